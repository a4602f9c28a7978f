# SPDX-License-Identifier: Apache-2.0
"""The study file: written out in full, fair in its form, and only ever added to once results have been seen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare.errors import StudyError
from fairflare.study.spec import Study, read_study, verify_extends
from tests.unit.study.small import FEDAVG, FLEXFAIR, HOSPITAL, SEX, Json, baseline, study, task, written


def read(folder: Path, data: Json) -> Study:
    return read_study(written(folder, data))


def refusal(folder: Path, data: Json) -> StudyError:
    with pytest.raises(StudyError) as caught:
        read(folder, data)
    return caught.value


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    data = study()
    data["seed"] = data.pop("seeds")
    problem = refusal(tmp_path, data)
    assert problem.code == "FF-STUDY-UNKNOWN-KEY"
    assert "'seeds'" in problem.got


@pytest.mark.parametrize("name", sorted(study()))
def test_every_field_has_to_be_written_out(tmp_path: Path, name: str) -> None:
    data = study()
    del data[name]
    assert refusal(tmp_path, data).code == "FF-STUDY-MISSING-KEY"


def test_grids_of_different_sizes_are_refused_unless_the_file_says_so(tmp_path: Path) -> None:
    short = {**FEDAVG, "configurations": FEDAVG["configurations"][:1]}
    problem = refusal(tmp_path, study(methods=[short, FLEXFAIR]))
    assert problem.code == "FF-STUDY-GRID"
    assert "fedavg 1, flexfair 2" in problem.got
    assert read(tmp_path, study(methods=[short, FLEXFAIR], unequal_grids=True)).grids == {"fedavg": 1, "flexfair": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": [FEDAVG, FEDAVG]},
        {"tasks": [task(), task()]},
        {"seeds": [1, 1]},
        {"protections": ["none", "none"]},
        {"tasks": [task(records=None)]},
        {"tasks": [task(catalog="x.json")]},
        {"tasks": [task(selection={"metric": "auc", "gaps": [SEX], "quality_loss_allowed": None})]},
        {"tasks": [task(selection={"metric": "auc", "gaps": [], "quality_loss_allowed": 0.1})]},
        {"methods": [{**FLEXFAIR, "baseline": "pooled"}]},
        {"methods": [{**FEDAVG, "configurations": [FEDAVG["configurations"][0]] * 2}]},
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, changes: Json) -> None:
    assert refusal(tmp_path, study(**changes)).code == "FF-STUDY-RULE"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a b"])
def test_names_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, study(tasks=[task(name=name)])).code == "FF-STUDY-VALUE"
    assert refusal(tmp_path, study(methods=[{**FEDAVG, "name": name}, FLEXFAIR])).code == "FF-STUDY-VALUE"
    labels = [{"label": name, "changes": {}}, FEDAVG["configurations"][1]]
    assert refusal(tmp_path, study(methods=[{**FEDAVG, "configurations": labels}])).code == "FF-STUDY-VALUE"


def _added(data: Json) -> Json:
    new = copy.deepcopy(data)
    new["tasks"].append(task(name="again"))
    new["tasks"][0]["report"]["gaps"].append({"attribute": "age", "criterion": "equalized_odds"})
    new["methods"].append(copy.deepcopy(baseline("pooled")))
    for method in new["methods"]:
        method["configurations"].append({"label": "more", "changes": {"training.rounds": 3}})
    new["seeds"].append(7)
    new["protections"].append("masked")
    new["flare"], new["workers"] = True, None
    return new


def test_additions_are_no_change(tmp_path: Path) -> None:
    old = read(tmp_path, study())
    verify_extends(old, old)
    verify_extends(old, read(tmp_path, _added(study())))


def _set(path: str, value: Any) -> Json:
    data: Any = copy.deepcopy(_added(study()))
    whole = data
    *parents, last = path.split(".")
    for name in parents:
        data = data[int(name) if name.isdecimal() else name]
    data[int(last) if last.isdecimal() else last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("unequal_grids", True),
        ("seeds.0", 9),
        ("tasks.0.selection.metric", "balanced_accuracy"),
        ("tasks.0.selection.quality_loss_allowed", 0.5),
        ("tasks.0.selection.gaps", [SEX, HOSPITAL]),
        ("tasks.0.report.gaps.0", HOSPITAL),
        ("tasks.0.changes", {"training.rounds": 3, "model.hidden": [4]}),
        ("tasks.0.changes", {"training.rounds": 2, "model.hidden": [4, 4]}),
        ("tasks.0.records", 61),
        ("methods.1.method.penalties.0.strength", 2.0),
        ("methods.0.configurations.0.changes", {}),
        ("methods.0.name", "other"),
    ],
)
def test_what_was_decided_stays(tmp_path: Path, path: str, value: Any) -> None:
    old = read(tmp_path, study())
    with pytest.raises(StudyError) as caught:
        verify_extends(old, read(tmp_path, _set(path, value)))
    assert caught.value.code == "FF-STUDY-CHANGED"
    assert path.rpartition(".")[0] in caught.value.got


def test_nothing_is_taken_away(tmp_path: Path) -> None:
    new = read(tmp_path, study())
    with pytest.raises(StudyError, match="FF-STUDY-CHANGED"):
        verify_extends(read(tmp_path, _added(study())), new)
    with pytest.raises(StudyError, match="'flare' was changed"):
        verify_extends(read(tmp_path, study(flare=True)), new)


@pytest.mark.parametrize("place", ["method", "changes"])
def test_a_list_inside_a_method_is_none_of_the_studys_own(tmp_path: Path, place: str) -> None:
    method = {"name": "odd", "configurations": [1]} if place == "method" else {"name": "odd"}
    changes = {"method.seeds": [1]} if place == "changes" else {}
    old = {**FEDAVG, "method": method, "changes": changes}
    new = copy.deepcopy(old)
    (new["method"]["configurations"] if place == "method" else new["changes"]["method.seeds"]).append(2)
    with pytest.raises(StudyError, match="FF-STUDY-CHANGED"):
        verify_extends(read(tmp_path, study(methods=[old])), read(tmp_path, study(methods=[new])))


def test_a_new_method_cannot_come_first(tmp_path: Path) -> None:
    # It would be what all others are compared with.
    old = read(tmp_path, study())
    with pytest.raises(StudyError, match="FF-STUDY-CHANGED"):
        verify_extends(old, read(tmp_path, study(methods=[baseline("pooled"), FEDAVG, FLEXFAIR])))


@given(st.text(max_size=200))
def test_no_text_is_more_than_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "study.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError):
        read_study(file)


def test_a_study_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    data = study(methods=[FEDAVG, FLEXFAIR, baseline("local_only"), baseline("pooled")])
    assert json.loads(json.dumps(read(tmp_path, data).model_dump(mode="json"))) == data
