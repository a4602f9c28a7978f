# SPDX-License-Identifier: Apache-2.0
"""Which runs a study stands for, what a change may reach, and which plans are findings rather than slips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.errors import StudyError
from fairflare.study.conduct import Prepared, prepare
from fairflare.study.runs import NO_FEDERATION
from tests.unit.study.small import FEDAVG, FLEXFAIR, HOSPITAL, SEX, Json, baseline, study, task, written


def prepared(folder: Path, **changes: Any) -> Prepared:
    return prepare(written(folder, study(**changes)))


def refusal(folder: Path, **changes: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        prepared(folder, **changes)
    return caught.value


def changed(method: Json, **changes: Any) -> Json:
    return {**method, "changes": changes}


def test_every_combination_is_one_run_and_baselines_run_once(tmp_path: Path) -> None:
    methods = [FEDAVG, FLEXFAIR, baseline("local_only"), baseline("pooled")]
    runs = prepared(tmp_path, methods=methods, protections=["masked", "none"], seeds=[0, 1, 2]).runs
    assert len(runs) == 2 * 2 * 2 * 3 + 2 * 2 * 3
    assert len({run.key for run in runs}) == len({run.key.folder for run in runs}) == len(runs)
    assert {run.key.protection for run in runs if run.baseline != "none"} == {NO_FEDERATION}
    for run in runs:
        plan = run.plan
        assert (plan.training.seed, plan.training.rounds, plan.sha256) == (run.key.seed, 2, run.sha256)
        assert plan.protection.masked == (run.key.protection == "masked")
    strong = [run.plan.method.penalties[0].strength for run in runs if run.key.configuration == "s8"]
    assert strong == [8.0] * 6


def test_a_tasks_own_masking_is_kept(tmp_path: Path) -> None:
    plan = presets.shipped("heart_fedavg")
    data = json.loads(schema.pretty(plan))
    data["protection"]["masking"]["clip"] = 3.0
    written(tmp_path, data, "own.json")
    runs = prepared(tmp_path, tasks=[task(plan="own.json")], protections=["masked", "none"]).runs
    assert {run.plan.protection.masking.clip for run in runs if run.plan.protection.masking} == {3.0}
    data["protection"] = presets.UNPROTECTED
    written(tmp_path, data, "own.json")
    runs = prepared(tmp_path, tasks=[task(plan="own.json")], protections=["masked"]).runs
    assert {run.plan.protection.masking.clip for run in runs if run.plan.protection.masking} == {16.0}


def test_a_change_of_masks_is_left_out_where_nothing_is_masked(tmp_path: Path) -> None:
    methods = [changed(FEDAVG, **{"protection.masking.clip": 2.0}), FLEXFAIR]
    runs = prepared(tmp_path, methods=methods, protections=["masked", "none"]).runs
    clips = {(run.key.method, run.plan.protection.masking.clip) for run in runs if run.plan.protection.masking}
    assert clips == {("fedavg", 2.0), ("flexfair", 16.0)}


@pytest.mark.parametrize(
    "path",
    ["training.optimizer.learning_rate", "method.mu", "training.optimizer.lr.x", "consents.0", "federation.sites"],
)
def test_a_field_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    problem = refusal(tmp_path, methods=[changed(FEDAVG, **{path: 1}), FLEXFAIR])
    assert problem.code == "FF-STUDY-CHANGE"
    assert path in problem.got


def test_the_nearest_name_is_named(tmp_path: Path) -> None:
    problem = refusal(tmp_path, tasks=[task(changes={"training.optimizer.momentm": 0.0})])
    assert "'momentum'" in problem.got


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.seed", 1), ("training", {}), ("method.name", "fedavg"), ("protection.update", "none"),
        ("protection.masking", None), ("model.hidden", [3]), ("start.kind", "seed"), ("evaluation.score_bins", 400),
        ("task.data_set", "x"), ("attributes", []), ("cells.minimum", 5), ("name", "x"),
    ],
)  # fmt: skip
def test_a_method_cannot_change_what_is_the_same_for_all(tmp_path: Path, path: str, value: Any) -> None:
    grid = [{"label": "a", "changes": {path: value}}, {"label": "b", "changes": {}}]
    for method in (changed(FEDAVG, **{path: value}), {**FEDAVG, "configurations": grid}):
        assert refusal(tmp_path, methods=[method, FLEXFAIR]).code == "FF-STUDY-CHANGE"


@pytest.mark.parametrize("path", ["training.seed", "method.name", "name", "format", "protection.update", "protection",
                                  "differential_privacy", "differential_privacy.clip"])  # fmt: skip
def test_a_task_cannot_change_what_the_study_decides(tmp_path: Path, path: str) -> None:
    assert refusal(tmp_path, tasks=[task(changes={path: 1})]).code == "FF-STUDY-CHANGE"


def test_a_slip_is_refused_and_a_combination_that_cannot_be_is_a_run(tmp_path: Path) -> None:
    slip = {**FEDAVG, "method": {"name": "fedavg", "mu": 1.0}}
    problem = refusal(tmp_path, methods=[slip, FLEXFAIR])
    assert problem.code == "FF-STUDY-PLAN"
    assert "FF-PLAN-UNKNOWN-KEY" in problem.got
    assert refusal(tmp_path, methods=[{**FEDAVG, "method": {"name": "fedbest"}}, FLEXFAIR]).code == "FF-STUDY-PLAN"
    lock_step = {**FLEXFAIR, "method": {**FLEXFAIR["method"], "refresh": "step"}}
    steps = task(changes={"training.rounds": 2, "training.work.unit": "steps", "training.work.amount": 2})
    runs = prepared(tmp_path, tasks=[steps], methods=[FEDAVG, lock_step], protections=["masked", "none"]).runs
    refused = {run.key.protection for run in runs if run.refusal is not None}
    assert refused == {"masked"}
    assert {run.refusal[0] for run in runs if run.refusal} == {"FF-PLAN-RULE"}
    assert len({run.sha256 for run in runs}) == len(runs)


def test_a_plan_that_is_not_there_is_refused_with_the_nearest_preset(tmp_path: Path) -> None:
    problem = refusal(tmp_path, tasks=[task(plan="hart_fedavg")])
    assert problem.code == "FF-STUDY-TASK"
    assert "'heart_fedavg'" in problem.got


@pytest.mark.parametrize(
    "part",
    [
        {"metric": "dice", "gaps": []},
        {"metric": "auc", "gaps": [{"attribute": "hair", "criterion": "equal_opportunity"}]},
        {"metric": "auc", "gaps": [{"attribute": "sex", "criterion": "equal_accuracy_to_overall"}]},
    ],
)
def test_a_task_is_judged_by_what_it_has(tmp_path: Path, part: Json) -> None:
    assert refusal(tmp_path, tasks=[task(report=part)]).code == "FF-STUDY-MEASURE"
    chosen = {**part, "quality_loss_allowed": 0.1 if part["gaps"] else None}
    assert refusal(tmp_path, tasks=[task(selection=chosen)]).code == "FF-STUDY-MEASURE"


def test_every_task_is_judged_in_its_own_way(tmp_path: Path) -> None:
    shapes = task(
        name="shapes", plan="shapes_fedavg", changes={},
        selection={"metric": "dice", "gaps": [], "quality_loss_allowed": None},
        report={"metric": "dice", "gaps": [{"attribute": "hospital", "criterion": "equal_accuracy_to_overall"},
                                           {"attribute": "sex_age", "criterion": "equal_accuracy"}]},
    )  # fmt: skip
    runs = prepared(tmp_path, tasks=[task(report={"metric": "auc", "gaps": [SEX, HOSPITAL]}), shapes], methods=[FEDAVG])
    assert {run.key.task for run in runs.runs} == {"heart", "shapes"}
