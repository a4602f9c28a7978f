# SPDX-License-Identifier: Apache-2.0
"""Synthetic hospitals: the same from the same seed, accepted by the contract, learnable, and unequal on purpose."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fairflare.data.check import check
from fairflare.data.manifest import Records, load
from fairflare.data.synthetic import SIGNAL, write_hospitals
from fairflare.errors import DataError
from fairflare.plan import Plan
from fairflare.policy import DataCatalog, read_catalog
from tests.unit.data.plans import image_input, make_plan, segmentation_plan, table_input

SITES = ("site-1", "site-2", "site-3")
TABLE = make_plan(table_input(tuple(f"x{at}" for at in range(8))))
IMAGES = make_plan(image_input(3, 24, 32))
PLANS = {
    "table": TABLE,
    "table_with_one_feature": make_plan(table_input(("only",))),
    "colour": IMAGES,
    "grey": make_plan(image_input(1, 16, 16)),
    "without_attributes": make_plan(table_input(), attributes=[]),
    "segmentation": segmentation_plan(image_input(3, 16, 24)),
    "segmentation_grey_of_many": segmentation_plan(
        image_input(1, 16, 16), ("a", "b", "c", "d"), (9, 0, 255, 1), attributes=[]
    ),
    "one_edge": make_plan(table_input(), attributes=[{"name": "bmi", "values": ["low", "high"], "edges": [-0.37]}]),
}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "data_catalog.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_data_keep_the_contract(tmp_path: Path, plan: Plan) -> None:
    catalog = write_hospitals(tmp_path, plan, SITES, records=80, seed=3)
    assert read_catalog(tmp_path) == catalog
    assert catalog.site_names == SITES
    sizes = []
    for site in SITES:
        entry = catalog.entry(site, plan.task.data_set)
        assert [one.text for one in check(plan, entry) if one.severity == "error"] == []
        data = load(plan, entry)
        sizes.append(len(data.training) + len(data.validation) + len(data.test))
        assert min(len(data.validation), len(data.test)) > 0
    assert sizes == [112, 80, 48]


@pytest.mark.parametrize("plan", [TABLE, IMAGES, PLANS["segmentation"]], ids=["table", "images", "masks"])
def test_the_same_seed_writes_the_same_files(tmp_path: Path, plan: Plan) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_hospitals(tmp_path / name, plan, SITES[:2], records=30, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_paths_are_absolute_even_if_the_folder_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = write_hospitals(Path("here"), IMAGES, SITES[:1], records=20, seed=1)
    entry = catalog.entry("site-1", "demo")
    assert Path(entry.manifest) == tmp_path / "here" / "site-1" / "manifest.csv"
    assert entry.root == str(tmp_path / "here" / "site-1")


@pytest.mark.parametrize(("sites", "records"), [((), 50), (("a", "a"), 50), (("a",), 19), (("../a",), 50)])
def test_impossible_wishes_are_refused(tmp_path: Path, sites: tuple[str, ...], records: int) -> None:
    with pytest.raises(DataError) as caught:
        write_hospitals(tmp_path / "new", TABLE, sites, records, seed=1)
    assert caught.value.code == "FF-DATA-SYNTHETIC"
    assert not (tmp_path / "new").exists()


def pooled(plan: Plan, catalog: DataCatalog, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts: list[Records] = [getattr(load(plan, catalog.entry(site, "demo")), split) for site in catalog.site_names]
    inputs = np.concatenate([part.inputs.reshape(len(part), -1) for part in parts]).astype(np.float64)
    return (
        inputs,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.groups["sex"] for part in parts]),
    )


def auc(score: np.ndarray, label: np.ndarray) -> float:
    return float((score[label == 1][:, None] > score[label == 0][None, :]).mean())


def test_tables_are_learnable_and_unequal(tmp_path: Path) -> None:
    catalog = write_hospitals(tmp_path, TABLE, SITES, records=600, seed=7)
    inputs, labels, _ = pooled(TABLE, catalog, "training")
    # Least squares stands in for the model: it minimises a mean loss, as federated averaging does.
    design = np.column_stack([inputs, np.ones(len(inputs))])
    weights = np.linalg.lstsq(design, labels * 2.0 - 1.0, rcond=None)[0]
    inputs, labels, groups = pooled(TABLE, catalog, "test")
    score = np.column_stack([inputs, np.ones(len(inputs))]) @ weights
    assert 0.78 < auc(score, labels) < 0.92
    majority, minority = (auc(score[groups == group], labels[groups == group]) for group in (0, 1))
    assert majority - minority > 0.1
    # What a fair model can use is there: the features that show the minority's sign.
    other = inputs[:, 1:8:2].mean(axis=1)
    assert auc(other[groups == 1], labels[groups == 1]) > 0.8


def test_the_best_possible_auc_is_the_one_that_is_promised() -> None:
    rng = np.random.default_rng(1)
    odds = SIGNAL * rng.normal(size=4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    assert auc(odds, labels) == pytest.approx(0.95, abs=0.015)


def test_images_show_both_signs(tmp_path: Path) -> None:
    plan = make_plan(image_input(1, 24, 24))
    catalog = write_hospitals(tmp_path, plan, SITES, records=150, seed=7)
    pixels, labels, groups = pooled(plan, catalog, "training")
    image = pixels.reshape(-1, 24, 24)
    dark = -image[:, 9:15, 9:15].mean(axis=(1, 2))  # everybody's sign: a dark blob
    edge = image[:, :3]
    stripes = abs(edge[:, :, 0::4] + edge[:, :, 1::4] - edge[:, :, 2::4] - edge[:, :, 3::4]).mean(axis=(1, 2))
    assert auc(dark[groups == 0], labels[groups == 0]) > 0.8
    assert auc(stripes[groups == 1], labels[groups == 1]) > 0.8
    assert auc(dark[groups == 1], labels[groups == 1]) < 0.7


def test_hospitals_differ(tmp_path: Path) -> None:
    catalog = write_hospitals(tmp_path, TABLE, ("a", "b", "c", "d"), records=400, seed=2)
    training = [load(TABLE, catalog.entry(site, "demo")).training for site in catalog.site_names]
    prevalence = [float(part.labels.mean()) for part in training]
    assert max(prevalence) - min(prevalence) > 0.05
    centres = np.array([part.inputs[:, :8].mean(axis=0) for part in training])
    assert np.ptp(centres, axis=0).max() > 0.2
    shares = [float((part.groups["sex"] == 1).mean()) for part in training]
    assert all(0.1 < share < 0.35 for share in shares)
    assert all(0 < float((part.groups["age"] < 0).mean()) < 0.1 for part in training)


# Made before there were masks and more than two labels: runs of then can be repeated.
BEFORE = {
    "table": "78cd1c30c8f3d7c16cfc15bd69a25a8f3e3abb4fb12a4fae0a7f738a17bc8fb8",
    "without_attributes": "64333a8659557b0e9768ee54d40162518dfc4c0c5e6dfa7bb8a82166f660ce51",
}


@pytest.mark.parametrize("name", BEFORE)
def test_tables_are_those_of_earlier_versions(tmp_path: Path, name: str) -> None:
    write_hospitals(tmp_path, PLANS[name], ("a", "b", "c"), records=40, seed=5)
    found = hashlib.sha256()
    for file, content in contents(tmp_path).items():
        found.update(file.encode() + content)
    assert found.hexdigest() == BEFORE[name]


def contrasts(plan: Plan, catalog: DataCatalog) -> dict[str, np.ndarray]:
    """How much darker the shape is than the rest of each training image, by site."""
    found = {}
    for site in catalog.site_names:
        part = load(plan, catalog.entry(site, "demo")).training
        assert part.masks is not None
        shape = part.masks == 1
        grey = part.inputs.mean(axis=1)
        inside = (grey * shape).sum(axis=(1, 2)) / shape.sum(axis=(1, 2))
        found[site] = (grey * ~shape).sum(axis=(1, 2)) / (~shape).sum(axis=(1, 2)) - inside
    return found


def test_shapes_of_the_minority_are_faint(tmp_path: Path) -> None:
    plan = segmentation_plan(image_input(3, 32, 32))
    catalog = write_hospitals(tmp_path, plan, SITES, records=60, seed=3)
    for site, contrast in contrasts(plan, catalog).items():
        groups = load(plan, catalog.entry(site, "demo")).training.groups["sex"]
        assert contrast[groups == 0].mean() > 50
        assert 5 < contrast[groups == 1].mean() < 25


def test_without_attributes_the_last_hospital_is_faint(tmp_path: Path) -> None:
    plan = segmentation_plan(image_input(1, 32, 32), attributes=[])
    means = [float(one.mean()) for one in contrasts(plan, write_hospitals(tmp_path, plan, SITES, 60, 3)).values()]
    assert min(means[:2]) > 50
    assert 5 < means[2] < 25


def test_every_label_is_in_nearly_every_picture(tmp_path: Path) -> None:
    plan = PLANS["segmentation_grey_of_many"]
    catalog = write_hospitals(tmp_path, plan, SITES[:1], records=30, seed=3)
    masks = load(plan, catalog.entry("site-1", "demo")).training.masks
    assert masks is not None
    for label in range(4):
        assert (masks == label).any(axis=(1, 2)).mean() > 0.9
