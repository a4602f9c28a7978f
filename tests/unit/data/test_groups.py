# SPDX-License-Identifier: Apache-2.0
"""Groups of intersections follow from their attributes, and labels may be more than two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairflare.data.check import check
from fairflare.data.manifest import MISSING, load, needed_columns, read_manifest
from fairflare.data.synthetic import write_hospitals
from fairflare.errors import DataError
from fairflare.plan import Plan
from tests.unit.data.plans import AGE, SEX, good_rows, image_input, make_plan, plan_dict, table_input, write_entry

COLOUR = {"name": "colour", "values": ["grey", "brown"], "edges": None}
CROSSED = [{"name": "age_by_sex", "of": ["age", "sex"]}, {"name": "all_three", "of": ["sex", "colour", "age"]}]
PLAN = make_plan(table_input(), attributes=[SEX, AGE, COLOUR], intersections=CROSSED)


def rows_with_colours() -> list[dict[str, str]]:
    return [{**row, "colour": ("grey", "brown", "")[at % 3]} for at, row in enumerate(good_rows())]


def test_the_place_of_an_intersection_is_that_of_the_plan(tmp_path: Path) -> None:
    rows = rows_with_colours()
    rows[3]["sex"] = ""
    manifest = read_manifest(PLAN, write_entry(tmp_path, rows))
    assert list(manifest.groups) == list(PLAN.groups) == ["sex", "age", "colour", "age_by_sex", "all_three"]
    for crossed in PLAN.intersections:
        names = PLAN.groups[crossed.name]
        for at, place in enumerate(manifest.groups[crossed.name].tolist()):
            words = [PLAN.groups[name][manifest.groups[name][at]] for name in crossed.of]
            if any(manifest.groups[name][at] < 0 for name in crossed.of):
                assert place == MISSING
            else:
                assert names[place] == "+".join(words)
    assert (manifest.groups["age_by_sex"] >= 0).sum() == 7
    assert len(set(manifest.groups["age_by_sex"].tolist())) > 3


def test_intersections_have_no_column(tmp_path: Path) -> None:
    assert needed_columns(PLAN)[-3:] == ("sex", "age", "colour")
    data = load(PLAN, write_entry(tmp_path, rows_with_colours()))
    assert list(data.training.groups) == list(PLAN.groups)
    assert data.training.take(np.array([2])).groups["all_three"].shape == (1,)
    texts = " ".join(one.text for one in check(PLAN, write_entry(tmp_path, rows_with_colours())))
    assert "'age_by_sex': cells under 2 records: " in texts
    assert "under_40+female" in texts


def test_an_unknown_word_is_told_once_and_not_for_the_intersection(tmp_path: Path) -> None:
    rows = rows_with_colours()
    rows[0]["sex"] = "SECRET"
    errors = [one for one in check(PLAN, write_entry(tmp_path, rows)) if one.severity == "error"]
    assert [one.code for one in errors] == ["FF-DATA-ATTRIBUTE"]


def many_labels(kind: dict[str, object], count: int) -> Plan:
    labels = [f"stage_{at}" for at in range(count)]
    data = plan_dict(kind)
    training = {**data["training"], "class_weights": [1.0] * count}
    return make_plan(kind, task={**data["task"], "labels": labels}, training=training)


def test_labels_may_be_more_than_two(tmp_path: Path) -> None:
    plan = many_labels(table_input(), 3)
    rows = [{**row, "label": f"stage_{at % 3}"} for at, row in enumerate(good_rows())]
    data = load(plan, write_entry(tmp_path, rows))
    assert data.training.labels.tolist() == [0, 1, 2, 0]
    cells = " ".join(one.text for one in check(plan, write_entry(tmp_path, rows)) if one.code == "FF-DATA-SMALL-CELL")
    assert "female/stage_2" in cells
    rows[1]["label"] = "stage_3"
    with pytest.raises(DataError, match="stage_0 or stage_1 or stage_2") as caught:
        load(plan, write_entry(tmp_path, rows))
    assert caught.value.code == "FF-DATA-LABEL"


@pytest.mark.parametrize("count", [3, 7, 64])
@pytest.mark.parametrize("kind", [table_input(), image_input(1, 16, 16)], ids=["table", "images"])
def test_synthetic_hospitals_have_every_label(tmp_path: Path, kind: dict[str, object], count: int) -> None:
    plan = many_labels(kind, count)
    catalog = write_hospitals(tmp_path, plan, ("a", "b"), records=20 * count if count < 10 else 400, seed=1)
    labels = np.concatenate([load(plan, catalog.entry(site, "demo")).training.labels for site in ("a", "b")])
    shares = np.bincount(labels, minlength=count) / len(labels)
    assert len(shares) == count
    assert shares[: min(count, 7)].min() > 0
    assert shares.max() < 3 / count
