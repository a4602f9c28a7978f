# SPDX-License-Identifier: Apache-2.0
"""Converters of public data sets, on made-up files of their form and on the real ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare.data.check import check
from fairflare.data.manifest import SiteData, load
from fairflare.data.sources import SOURCES, ham10000, uci_heart
from fairflare.errors import DataError
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from tests.unit.data.plans import AGE, SEX, image_input, make_plan, plan_dict, table_input

SOURCE = {"name": "source", "values": list(ham10000.SITES), "edges": None}


def plan_for(kind: dict[str, Any], data_set: str, labels: list[str], attributes: list[dict[str, Any]]) -> Plan:
    task = {**plan_dict(kind)["task"], "data_set": data_set, "labels": labels}
    return make_plan(kind, task=task, attributes=attributes)


HEART = plan_for(table_input(uci_heart.FEATURES), "heart", ["absent", "present"], [SEX, AGE])
SKIN = plan_for(image_input(3, 48, 64), "skin", ["benign", "malignant"], [SEX, AGE, SOURCE])


def load_all(plan: Plan, catalog: DataCatalog) -> dict[str, SiteData]:
    return {site: load(plan, catalog.entry(site, plan.task.data_set)) for site in catalog.site_names}


def sizes(data: dict[str, SiteData]) -> dict[str, int]:
    return {site: len(one.training) + len(one.validation) + len(one.test) for site, one in data.items()}


def columns(catalog: DataCatalog, data_set: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for site in catalog.site_names:
        with Path(catalog.entry(site, data_set).manifest).open(encoding="utf-8", newline="") as stream:
            rows += csv.DictReader(stream)
    return rows


# ------------------------------------------------------------------------------------------------------- made-up files

HEART_LINES = (
    "63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n67.0,0,4,0,0,?,2,-9,1,1.5,2,3,3,2\n63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n"
)


def heart_folder(folder: Path, text: str = HEART_LINES) -> Path:
    for site in uci_heart.SITES:
        (folder / f"processed.{site}.data").write_text(text, encoding="ascii")
    return folder


def test_heart_lines_become_rows(tmp_path: Path) -> None:
    catalog = SOURCES["uci_heart"](heart_folder(tmp_path), tmp_path / "out")
    rows = columns(catalog, "heart")
    assert len(rows) == 8  # the repeated line of each of four sites is taken once
    first, second = rows[:2]
    assert (first["id"], first["label"], first["sex"], first["age"], first["age_years"]) == (
        "cleveland_000", "absent", "male", "63", "63",
    )  # fmt: skip
    assert (second["label"], second["sex"], second["sex_male"]) == ("present", "female", "0")
    assert (second["trestbps"], second["chol"], second["fbs"]) == ("", "", "")  # 0, 0 and ? are missing
    assert (second["oldpeak"], second["ca"]) == ("1.5", "3")


@pytest.mark.parametrize("text", ["1,2,3\n", HEART_LINES.replace("145", "SECRET"), HEART_LINES.replace(",2\n", ",?\n")])
def test_heart_lines_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        uci_heart.convert(heart_folder(tmp_path, text), tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    assert "SECRET" not in str(caught.value)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        uci_heart.convert(tmp_path, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    with pytest.raises(DataError) as caught:
        ham10000.convert(tmp_path, tmp_path / "out")
    assert caught.value.code == "FF-DATA-FILE"
    with pytest.raises(DataError) as caught:
        uci_heart.convert(tmp_path, tmp_path / "out", subset=True)
    assert caught.value.code == "FF-DATA-SUBSET"


def skin_line(name: str, **changes: str) -> dict[str, str]:
    line = {
        "id": name, "image": f"images/{name}.jpg", "site": "rosendahl", "lesion_id": f"lesion_{name}", "malignant": "0",
        "age": "45.0", "sex": "male", "sha256": f"hash_{name}", "split": "train",
    }  # fmt: skip
    return {**line, **changes}


def skin_folder(folder: Path, lines: list[dict[str, str]]) -> Path:
    for name in ("metadata.csv", "ci_subset.csv"):
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return folder


def test_skin_lines_become_rows(tmp_path: Path) -> None:
    lines = [
        skin_line("a", malignant="1", split="val"),
        skin_line("b", sha256="hash_a"),
        skin_line("c", site="vienna_dias", sex="unknown", age="", split="test"),
    ]
    catalog = SOURCES["ham10000"](skin_folder(tmp_path, lines), tmp_path / "out")
    assert catalog.site_names == ("rosendahl", "vienna_dias")
    assert catalog.entry("rosendahl", "skin").root == str(tmp_path)
    assert columns(catalog, "skin") == [
        {"id": "a", "patient": "lesion_a", "label": "malignant", "split": "validation", "file": "images/a.jpg",
         "age": "45.0", "sex": "male", "source": "rosendahl"},
        {"id": "c", "patient": "lesion_c", "label": "benign", "split": "test", "file": "images/c.jpg",
         "age": "", "sex": "", "source": "vienna_dias"},
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"site": "elsewhere"}, {"split": "dev"}, {"malignant": "2"}])
def test_skin_lines_of_another_form_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(DataError) as caught:
        ham10000.convert(skin_folder(tmp_path, [skin_line("a", **change)]), tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"


# ---------------------------------------------------------------------------------------------------- the real files


@pytest.mark.real_data
def test_real_heart_data(shared_data: Path, tmp_path: Path) -> None:
    catalog = uci_heart.convert(shared_data / "uci_heart", tmp_path)
    data = load_all(HEART, catalog)
    assert sizes(data) == {"cleveland": 303, "hungarian": 293, "switzerland": 123, "va": 199}  # 920 less 2 repeated
    rows = columns(catalog, "heart")
    training = sum(row["split"] == "training" for row in rows) / len(rows)
    assert 0.55 < training < 0.65
    assert sum(row["label"] == "present" for row in rows) == 508
    assert sum(row["sex"] == "female" for row in rows) == 193
    assert not any(row["chol"] for row in rows if row["id"].startswith("switzerland"))
    for site in catalog.site_names:
        assert not [one for one in check(HEART, catalog.entry(site, "heart")) if one.severity == "error"]


@pytest.mark.real_data
def test_real_heart_data_agree_with_an_independent_copy(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "uci_heart" / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        theirs = {row["id"]: row for row in csv.DictReader(stream)}
    ours = columns(uci_heart.convert(shared_data / "uci_heart", tmp_path), "heart")
    same = ("cp", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "age")
    for row in ours:
        other = theirs[row["id"]]
        assert [row[name] and float(row[name]) for name in same] == [
            other[name] and float(other[name]) for name in same
        ]
        assert row["sex"] == other["sex_label"]
        assert row["label"] == ("present" if other["label"] == "1" else "absent")


@pytest.mark.real_data
def test_real_skin_metadata(shared_data: Path, tmp_path: Path) -> None:
    catalog = ham10000.convert(shared_data / "ham10000", tmp_path)
    rows = columns(catalog, "skin")
    assert len(rows) == 10_013  # 10,015 less one of each of two identical pairs
    found = {site: sum(row["source"] == site for row in rows) for site in catalog.site_names}
    assert found == {"rosendahl": 2259, "vidir_modern": 3363, "vidir_molemax": 3954, "vienna_dias": 437}
    assert sum(row["label"] == "malignant" for row in rows) == 1954
    assert sum(row["age"] == "" for row in rows) == 57
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(where) == 1 for where in splits.values())


@pytest.mark.real_data
def test_real_skin_subset_is_loaded(shared_data: Path, tmp_path: Path) -> None:
    catalog = ham10000.convert(shared_data / "ham10000", tmp_path, subset=True)
    data = load_all(SKIN, catalog)
    assert sizes(data) == {"rosendahl": 176, "vidir_modern": 176, "vidir_molemax": 108, "vienna_dias": 123}
    assert all(min(len(one.training), len(one.validation), len(one.test)) >= 10 for one in data.values())
    assert all(set(one.training.groups["source"].tolist()) == {at} for at, one in enumerate(data.values()))
    inputs = data["rosendahl"].training.inputs
    assert inputs.shape[1:] == (3, 48, 64)
    assert inputs.dtype == np.uint8
    assert inputs.std() > 10
    errors = [
        one
        for site in catalog.site_names
        for one in check(SKIN, catalog.entry(site, "skin"))
        if one.severity == "error"
    ]
    assert errors == []


@pytest.mark.slow
@pytest.mark.real_data
def test_all_skin_images_are_loaded(shared_data: Path, tmp_path: Path) -> None:
    data = load_all(SKIN, ham10000.convert(shared_data / "ham10000", tmp_path))
    assert sum(sizes(data).values()) == 10_013
