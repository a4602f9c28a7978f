# SPDX-License-Identifier: Apache-2.0
"""A feasibility job counts what the manifests say, the same with and without masks, and opens no image."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.data.manifest import SPLITS
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.loading import load_apart
from fairflare.engine.local import run_local
from fairflare.engine.verify import check_run, verify_run
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog
from fairflare.record import MISSING, OTHER, WITHHELD, RunRecord, read_record

SITES = ("amber", "beryl", "coral", "dune")
Rows = list[dict[str, str]]


def plan(*, masked: bool, minimum: int = 0, sites: int = 1, preset: str = "heart_flexfair") -> Plan:
    data = json.loads(schema.pretty(presets.feasibility(presets.PRESETS[preset](preset), "count")))
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    data["cells"] = {"minimum": minimum, "sites": sites}
    if not masked:
        data["protection"] = presets.UNPROTECTED
    return parse_plan(json.dumps(data))


def edit(catalog: DataCatalog, site: str, data_set: str, change: Callable[[Rows], object]) -> None:
    path = Path(catalog.entry(site, data_set).manifest)
    rows = read(path)
    change(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def otherwise(rows: Rows) -> None:
    """F and M, a label and a split that nobody else writes so, an age in words."""
    for row in rows:
        row["sex"] = row["sex"][:1].upper()
    rows[0]["label"], rows[1]["split"], rows[2]["age"] = "ill", "held out", "old"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> DataCatalog:
    made = write_hospitals(tmp_path_factory.mktemp("hospitals"), plan(masked=False), SITES, 60, seed=5)
    edit(made, "coral", "heart", otherwise)
    return made


def run(the_plan: Plan, catalog: DataCatalog, folder: Path) -> RunRecord:
    entries = {site: catalog.entry(site, the_plan.task.data_set) for site in SITES}
    loaders = {site: (lambda entry=entry: load_apart(the_plan, entry, None)) for site, entry in entries.items()}
    record = run_local(the_plan, loaders, folder)
    assert record.status == "complete", record.reason
    verify_run(folder)
    return record


def groups(row: dict[str, str]) -> dict[str, str]:
    """The same in other words than the package's: what each attribute says of one row."""
    sex = row["sex"] if row["sex"] in ("female", "male") else OTHER if row["sex"] else MISSING
    try:
        age = ("lt60" if float(row["age"]) < 60 else "ge60") if row["age"] else MISSING
    except ValueError:
        age = OTHER
    both = f"{sex}+{age}" if "(" not in sex + age else MISSING
    return {"all": "all", "sex": sex, "age": age, "sex_age": both}


def counted(rows: Rows) -> Counter[tuple[str, str, str, str]]:
    return Counter(
        (row["split"], name, value, row["label"] if row["label"] in ("absent", "present") else OTHER)
        for row in rows
        for name, value in groups(row).items()
        if row["split"] in SPLITS
    )


def per_site(catalog: DataCatalog) -> dict[str, Counter[tuple[str, str, str, str]]]:
    return {site: counted(read(Path(catalog.entry(site, "heart").manifest))) for site in SITES}


@pytest.mark.parametrize("masked", [True, False])
def test_counts_are_those_of_the_manifests(masked, catalog, tmp_path):
    found = run(plan(masked=masked), catalog, tmp_path).feasibility
    sites = per_site(catalog)
    assert found is not None
    for one in found.cells:
        key = (one.split, one.attribute, one.value, one.label)
        parts = [] if one.value == WITHHELD else [counts[key] for counts in sites.values()]
        assert (one.sites, one.records) == (sum(n > 0 for n in parts), sum(parts)), key


def test_words_are_counted_by_hospitals_that_use_them(catalog, tmp_path):
    found = run(plan(masked=True), catalog, tmp_path).feasibility
    assert found is not None
    used = {(one.attribute, one.value): one.sites for one in found.uses}
    assert used["sex", "female"] == used["sex", "male"] == 3
    assert used["sex", OTHER] == used["age", OTHER] == used["label", OTHER] == used["split", OTHER] == 1
    assert used["age", "lt60"] == used["label", "present"] == used["split", "test"] == 4


@pytest.mark.parametrize(("minimum", "sites"), [(0, 1), (6, 1), (4, 2)])
def test_masks_change_no_number(minimum, sites, catalog, tmp_path):
    masked, plain = (
        run(plan(masked=one, minimum=minimum, sites=sites), catalog, tmp_path / str(one)) for one in (True, False)
    )
    assert masked.feasibility == plain.feasibility
    assert masked.records == plain.records
    assert masked.rounds == plain.rounds == ()
    assert masked.final is plain.final is None


def test_small_cells_are_withheld_at_each_hospital(catalog, tmp_path):
    found = run(plan(masked=True, minimum=6), catalog, tmp_path).feasibility
    assert found is not None
    sites = per_site(catalog)
    whole = {}
    for one in found.cells:
        if one.value == WITHHELD:
            continue
        parts = [counts[one.split, one.attribute, one.value, one.label] for counts in sites.values()]
        assert one.sites <= sum(part >= 6 for part in parts)
        assert one.records <= sum(part for part in parts if part >= 6)
        whole[one] = sum(parts)
    assert any(0 < one.records < total for one, total in whole.items())


def test_no_image_is_opened(tmp_path, monkeypatch):
    the_plan = plan(masked=True, preset="shapes_flexfair")
    catalog = write_hospitals(tmp_path / "data", the_plan, SITES, 20, seed=5)
    images = [file for file in (tmp_path / "data").rglob("*") if file.suffix == ".png"]
    assert images
    for file in images:
        file.unlink()
        file.symlink_to("nowhere")
    record = run(the_plan, catalog, tmp_path / "run")
    assert sum(record.records.values()) == len(SITES) * 20
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_hospital_without_training_records_is_counted(tmp_path):
    the_plan = plan(masked=True)
    catalog = write_hospitals(tmp_path / "data", the_plan, SITES, 30, seed=5)
    edit(catalog, "dune", "heart", lambda rows: [row.update(split="test") for row in rows])
    found = run(the_plan, catalog, tmp_path / "run").feasibility
    assert found is not None
    assert {one.value: one.sites for one in found.uses if one.attribute == "split"}["training"] == 3


def test_rows_that_could_not_opt_out_are_refused(tmp_path):
    the_plan = plan(masked=False)
    catalog = write_hospitals(tmp_path / "data", the_plan, SITES, 30, seed=5)
    edit(catalog, "dune", "heart", lambda rows: rows[0].update(id=""))
    record = run(the_plan, catalog, tmp_path / "run")
    assert [(one.site, one.code) for one in record.join_refusals] == [("dune", "FF-DATA-NO-ID")]


def test_a_site_that_is_lost_stops_the_count(catalog, tmp_path):
    """Which cells may be opened was decided over all that joined, so nothing is opened over fewer."""
    the_plan = plan(masked=False)
    loaders = {site: (lambda site=site: load_apart(the_plan, catalog.entry(site, "heart"), None)) for site in SITES}
    record = run_local(
        the_plan, loaders, tmp_path, order=lambda message, sites: sites[1:] if message.task == "measure" else sites
    )
    assert record.status == "stopped"
    assert record.reason is not None
    assert record.reason.code == "FF-ROUND-QUORUM"
    assert record.feasibility is None
    assert {defect.code for defect in check_run(tmp_path, record)} == {"FF-RUN-INCOMPLETE"}


# --------------------------------------------------------------------------------------------------------------- verify


@pytest.fixture(scope="module")
def good(catalog: DataCatalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    run(plan(masked=True, minimum=4), catalog, folder)
    return folder


@pytest.fixture(scope="module")
def exact(catalog: DataCatalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    run(plan(masked=False), catalog, folder)
    return folder


def cell(data: dict[str, Any], **wanted: str) -> dict[str, Any]:
    cells = data["feasibility"]["cells"]
    found: dict[str, Any] = next(one for one in cells if wanted.items() <= one.items() and one["records"])
    return found


def hidden(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        one for one in data["feasibility"]["cells"] if not one["sites"] and one["attribute"] == "sex"
    )
    return found


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a record less": (lambda d: cell(d, attribute="sex").update(records=cell(d, attribute="sex")["records"] - 1),
                      "FF-RUN-SUMS"),
    "a record more": (lambda d: cell(d, attribute="age").update(records=cell(d, attribute="age")["records"] + 1),
                      "FF-RUN-SUMS"),
    "more of everybody": (lambda d: cell(d, attribute="all").update(records=10_000), "FF-RUN-SUMS"),
    "fewer than the minimum": (lambda d: cell(d, attribute="sex").update(records=1), "FF-RUN-SUMS"),
    "too many hospitals": (lambda d: cell(d, attribute="sex").update(sites=9), "FF-RUN-SUMS"),
    "a hidden cell": (lambda d: hidden(d).update(records=7), "FF-RUN-SUMS"),
    "nobody uses it": (lambda d: d["feasibility"]["uses"][7].update(sites=0), "FF-RUN-SUMS"),
    "a cell less": (lambda d: d["feasibility"]["cells"].pop(), "FF-RUN-LAYOUT"),
    "another word": (lambda d: d["feasibility"]["uses"][7].update(value="F"), "FF-RUN-LAYOUT"),
    "nothing counted": (lambda d: d.update(feasibility=None), "FF-RUN-INCOMPLETE"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_verification_finds(name, good, exact, tmp_path):
    change, code = CHANGES[name]
    # Where something is withheld, a whole may have any number of records more than its parts.
    data = json.loads(((exact if name.startswith("a record") else good) / "record.json").read_text(encoding="utf-8"))
    change(data)
    (tmp_path / "record.json").write_text(json.dumps(data), encoding="utf-8")
    assert {defect.code for defect in check_run(tmp_path, read_record(tmp_path))} == {code}


def test_counts_in_a_record_of_another_job_are_a_defect(good, tmp_path):
    counts = json.loads((good / "record.json").read_text(encoding="utf-8"))["feasibility"]
    trained = plan(masked=False).model_copy(update={"method": presets.shipped("heart_fedavg").method})
    data = json.loads((good / "record.json").read_text(encoding="utf-8"))
    data.update(plan=json.loads(schema.pretty(trained)), plan_sha256=trained.sha256, feasibility=counts)
    (tmp_path / "record.json").write_text(json.dumps(data), encoding="utf-8")
    assert "FF-RUN-LAYOUT" in {defect.code for defect in check_run(tmp_path, read_record(tmp_path))}
