# SPDX-License-Identifier: Apache-2.0
"""A good run passes; every way of changing its record, model or plan is found and named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fairflare.engine.describe import record_sha256
from fairflare.engine.local import run_local
from fairflare.engine.messages import COUNTS, Message
from fairflare.engine.objective import Labels
from fairflare.engine.store import model_file
from fairflare.engine.verify import check_run, verify_run
from fairflare.engine.verify_numbers import _loss_bounds, wrong_evaluation
from fairflare.errors import RunError
from fairflare.fairness.groups import EvaluationSums, evaluation_length
from fairflare.jobs import write_job
from fairflare.presets import FEDAVG, flexfair, penalty
from fairflare.record import MODEL_NAME, Session, read_record, write_record
from tests.unit.engine.hospitals import (
    four,
    image_plan,
    of_several_labels,
    plan,
    several_labels,
    three_of_images,
)

Json = dict[str, Any]
METHOD = flexfair(
    penalty("sex", "equal_opportunity", 1.0),
    penalty("age", "equalized_odds", 0.5, weights="uniform", form="bounded"),
    penalty("hospital", "equal_accuracy", 0.5, weights="uniform"),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as FLARE lays it out: the record beside the application with its plan."""
    base = tmp_path_factory.mktemp("verify")
    small = plan(METHOD, rounds=2, min_sites=3)
    record = run_local(small, four(), base / "fairflare")
    assert record.status == "complete"
    shutil.copytree(write_job(small, base / "job") / "app", base / "app_server")
    return base


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run")) / "fairflare"


def codes(folder: Path) -> set[str]:
    return {defect.code for defect in check_run(folder, read_record(folder))}


def change(folder: Path, edit: Callable[[Json], object], name: str = "record.json") -> None:
    file = folder / name
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_the_untouched_run_passes(run: Path) -> None:
    assert codes(run) == set()
    assert verify_run(run.parent).status == "complete"
    assert verify_run(run / "record.json").status == "complete"


def test_the_record_that_is_named_is_the_one_that_is_read(run: Path) -> None:
    copy = Path(shutil.copy(run / "record.json", run / "copy.json"))
    change(run, lambda d: d.update(status="stopped"))
    assert verify_run(copy).status == "complete"
    change(run, lambda d: d.update(status="complete"))
    change(run, lambda d: d["rounds"][0].update(train_loss=-1.0), "copy.json")
    assert verify_run(run).status == "complete"
    with pytest.raises(RunError, match="a loss below zero"):
        verify_run(copy)


def test_a_path_from_inside_the_run_finds_the_plan_of_the_job_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_plan(run)
    monkeypatch.chdir(run)
    with pytest.raises(RunError, match="FF-RUN-PLAN"):
        verify_run(Path("record.json"))


def cells(data: Json, split: str = "test", attribute: str = "sex") -> list[Json]:
    return [one for one in data["final"][split] if one["attribute"] == attribute]


def cell(data: Json, split: str = "test", attribute: str = "sex") -> Json:
    return next(one for one in cells(data, split, attribute) if one["count"] > 0)


def first(data: Json, attribute: str = "sex") -> Json:
    return next(one for one in data["rounds"][0]["penalties"] if one["attribute"] == attribute)


def refusal(site: str, task: str = "train") -> Json:
    return {"site": site, "task": task, "code": "FF-ROUND-TIMEOUT"}


def second_session(data: Json, **changes: Any) -> None:
    session = {**data["sessions"][0], "number": 2, "first_round": 1, "previous_record_sha256": "0" * 64, **changes}
    data["sessions"].append(session)


def shift(numbers: list[float], at: int, by: float) -> None:
    numbers[at] += by


def moved(histogram: list[float]) -> None:
    """One record from its bin to the farthest one: the count stays, the sum of scores cannot be true any more."""
    at = next(place for place, number in enumerate(histogram) if number)
    histogram[at] -= 1
    histogram[-1 if at < len(histogram) / 2 else 0] += 1


def refill(one: Json, histogram: list[float]) -> None:
    """A cell with other scores, and all that follows from them: each record in the middle of its bin."""
    bins = len(histogram)
    scores = [(place + 0.5) / bins for place in range(bins)]
    one["histogram"], one["count"] = histogram, sum(histogram)
    one["value"] = sum(number * score for number, score in zip(histogram, scores, strict=True))
    truth = [score if one["stratum"] else 1 - score for score in scores]
    one["loss"] = sum(-number * math.log(p) for number, p in zip(histogram, truth, strict=True) if number)


def perfect(one: Json) -> None:
    histogram = [0.0] * len(one["histogram"])
    histogram[-1 if one["stratum"] else 0] = one["count"]
    refill(one, histogram)


def perfect_group(data: Json) -> None:
    for one in cells(data)[:2]:
        perfect(one)


def records_twice(data: Json) -> None:
    """Neither group has more than all, but both together do."""
    histogram = cells(data, attribute="all")[1]["histogram"]
    most = max(histogram)
    for one in cells(data):
        if one["stratum"] == 1:
            refill(one, [most * (place == histogram.index(most)) for place in range(len(histogram))])
            one["sites"] = 1.0


def times_ten(data: Json) -> None:
    for one in data["final"]["test"]:
        for name in ("count", "loss", "value"):
            one[name] *= 10
        one["histogram"] = [10 * number for number in one["histogram"]]


def joined(data: Json, **records: float) -> None:
    data["sessions"][0]["records"].update(records)


def halves(data: Json) -> None:
    one = cell(data)
    refill(one, [number / 2 for number in one["histogram"]])


def lone(data: Json) -> None:
    """One record, that four sites say they have."""
    histogram = cell(data)["histogram"]
    at = next(place for place, number in enumerate(histogram) if number)
    refill(cell(data), [float(place == at) for place in range(len(histogram))])


def half_validation(data: Json) -> None:
    data["rounds"][0]["validation"][1]["records"] += 0.5


def line(data: Json, group: int = 1) -> Json:
    return data["rounds"][0]["validation"][group]  # type: ignore[no-any-return]


EDITS: dict[str, tuple[Callable[[Json], object], str]] = {
    # the plan
    "another hash of the plan": (lambda d: d.update(plan_sha256="0" * 64), "FF-RUN-PLAN"),
    "another plan under the same hash": (lambda d: d["plan"]["training"].update(seed=5), "FF-RUN-PLAN"),
    "another first model": (lambda d: d.update(initial_model_sha256="0" * 64), "FF-RUN-START"),
    # how far it got
    "still running": (lambda d: d.update(status="running"), "FF-RUN-INCOMPLETE"),
    "stopped": (lambda d: d.update(status="stopped", reason={"code": "X", "text": "y"}), "FF-RUN-INCOMPLETE"),
    "a round cut off at the end": (lambda d: d["rounds"].pop(), "FF-RUN-INCOMPLETE"),
    "no final evaluation": (lambda d: d.update(final=None), "FF-RUN-INCOMPLETE"),
    "no end": (lambda d: d.update(ended=None), "FF-RUN-INCOMPLETE"),
    "a round twice": (lambda d: d["rounds"].append(d["rounds"][-1]), "FF-RUN-ROUNDS"),
    "rounds in another order": (lambda d: d["rounds"].reverse(), "FF-RUN-ROUNDS"),
    # sessions
    "no session": (lambda d: d["sessions"].clear(), "FF-RUN-SESSIONS"),
    "sessions that do not begin with one": (lambda d: d["sessions"][0].update(number=2), "FF-RUN-SESSIONS"),
    "a first session that skips rounds": (lambda d: d["sessions"][0].update(first_round=1), "FF-RUN-SESSIONS"),
    "a session from nowhere": (lambda d: second_session(d, previous_record_sha256=None), "FF-RUN-SESSIONS"),
    "a session after the last round": (lambda d: second_session(d, first_round=9), "FF-RUN-SESSIONS"),
    "a first session that goes on from another": (
        lambda d: d["sessions"][0].update(previous_record_sha256="0" * 64), "FF-RUN-SESSIONS",
    ),
    "a reason to stop in a complete run": (
        lambda d: d.update(reason={"code": "X", "text": "y"}), "FF-RUN-INCOMPLETE",
    ),
    "no notices": (lambda d: d.update(notices=[]), "FF-RUN-NOTICES"),
    "another notice": (lambda d: d["notices"].__setitem__(0, "everything was encrypted"), "FF-RUN-NOTICES"),
    # who took part
    "a site twice in the roster": (lambda d: d["sessions"][0]["roster"].insert(0, "amber"), "FF-RUN-SITES"),
    "a site twice in a round": (
        lambda d: d["rounds"][0]["participants"]["train"].insert(0, "amber"), "FF-RUN-SITES",
    ),
    "a site twice in the evaluation": (lambda d: d["final"]["participants"].insert(0, "amber"), "FF-RUN-SITES"),
    "a task that does not exist": (
        lambda d: d["rounds"][0]["participants"].update(sing=["amber"]), "FF-RUN-SITES",
    ),
    "lock step in a plan without it": (
        lambda d: d["rounds"][0]["participants"].update(step=d["sessions"][0]["roster"]), "FF-RUN-SITES",
    ),
    "a refusal of a task that does not exist": (
        lambda d: d["rounds"][0]["refusals"].append(refusal("x", "sing")), "FF-RUN-SITES",
    ),
    "a refusal of a site that is not in the roster": (
        lambda d: d["rounds"][0]["refusals"].append(refusal("x")), "FF-RUN-SITES",
    ),
    "a refusal to evaluate by a stranger": (
        lambda d: d["final"]["refusals"].append(refusal("x", "evaluate")), "FF-RUN-SITES",
    ),
    "a refusal to join by a stranger": (
        lambda d: d["sessions"][0]["join_refusals"].append(refusal("x", "join")), "FF-RUN-SITES",
    ),
    "a refusal to join under another task": (
        lambda d: d["sessions"][0]["join_refusals"].append(refusal("dune", "train")), "FF-RUN-SITES",
    ),
    "a site it ran without that was asked all the same": (
        lambda d: d["sessions"][0]["without"].append(refusal("dune", "deploy")), "FF-RUN-SITES",
    ),
    "a site it ran without, twice": (
        lambda d: d["sessions"][0]["without"].extend([refusal("x", "deploy")] * 2), "FF-RUN-SITES",
    ),
    "sites it ran without, out of order": (
        lambda d: d["sessions"][0]["without"].extend([refusal("y", "deploy"), refusal("x", "deploy")]),
        "FF-RUN-SITES",
    ),
    "a site it ran without that had a task": (
        lambda d: d["sessions"][0]["without"].append(refusal("x", "join")), "FF-RUN-SITES",
    ),
    "a site that did not confirm, without a word": (lambda d: d["final"]["confirmed"].pop(), "FF-RUN-SITES"),
    "a site that did not evaluate, without a word": (
        lambda d: (d["final"]["confirmed"].pop(), d["final"]["participants"].pop()), "FF-RUN-SITES",
    ),
    "a site that was dropped before it missed enough": (
        lambda d: (
            d["rounds"][0]["participants"]["train"].remove("dune"),
            d["rounds"][0]["refusals"].append(refusal("dune")),
            [d["rounds"][1]["participants"][task].remove("dune") for task in ("measure", "train")],
        ),
        "FF-RUN-SITES",
    ),
    "fewer joined than min_sites": (
        lambda d: d["sessions"][0]["join_refusals"].extend(refusal(s, "join") for s in ("amber", "dune")),
        "FF-RUN-QUORUM",
    ),
    "fewer sites than min_sites": (
        lambda d: d["rounds"][0]["participants"].update(train=["amber"]), "FF-RUN-QUORUM",
    ),
    "nobody measured": (lambda d: d["rounds"][1]["participants"].pop("measure"), "FF-RUN-QUORUM"),
    "a site that is not in the roster": (
        lambda d: d["rounds"][0]["participants"].update(measure=["amber", "beryl", "coral", "dune", "x"]),
        "FF-RUN-SITES",
    ),
    "a comparison that the plan has not": (
        lambda d: d["rounds"][0]["participants"].update(compare=["amber", "beryl", "coral", "dune"]), "FF-RUN-SITES",
    ),
    "a site that vanished without a word": (lambda d: d["rounds"][0]["participants"]["train"].pop(), "FF-RUN-SITES"),
    "a site that took part and was refused": (
        lambda d: d["rounds"][0]["refusals"].append(refusal("amber")), "FF-RUN-SITES",
    ),
    "an evaluation by a stranger": (lambda d: d["final"]["participants"].append("x"), "FF-RUN-SITES"),
    "a confirmation by a stranger": (lambda d: d["final"]["confirmed"].append("x"), "FF-RUN-SITES"),
    "an evaluation by two": (lambda d: d["final"].update(participants=["amber", "beryl"]), "FF-RUN-QUORUM"),
    "a confirmation by two": (lambda d: d["final"].update(confirmed=["amber", "beryl"]), "FF-RUN-QUORUM"),
    # what follows from the sums
    "a smaller gap": (lambda d: first(d).update(gap=0.0), "FF-RUN-PENALTY"),
    "a smaller penalty": (lambda d: first(d).update(value=0.0), "FF-RUN-PENALTY"),
    "no gap": (lambda d: first(d).update(gap=None), "FF-RUN-PENALTY"),
    "another risk": (lambda d: shift(first(d)["risk"], 0, 0.1), "FF-RUN-PENALTY"),
    "a risk that disappeared": (lambda d: first(d)["risk"].__setitem__(0, None), "FF-RUN-PENALTY"),
    "another coefficient": (lambda d: shift(first(d)["coefficient"], 1, 1e-6), "FF-RUN-PENALTY"),
    "other weights": (lambda d: first(d).update(weight=[0.5, 0.5]), "FF-RUN-PENALTY"),
    "other counts": (lambda d: shift(first(d)["count"], 0, 5.0), "FF-RUN-PENALTY"),
    "a group too many": (lambda d: first(d)["weight"].append(0.0), "FF-RUN-PENALTY"),
    "no coefficients": (lambda d: first(d).update(coefficient=None), "FF-RUN-PENALTY"),
    "no risks": (lambda d: first(d).update(risk=None), "FF-RUN-PENALTY"),
    "another strength": (lambda d: first(d).update(strength=0.1), "FF-RUN-PENALTY"),
    "a penalty less": (lambda d: d["rounds"][1]["penalties"].pop(0), "FF-RUN-PENALTY"),
    "a penalty more": (lambda d: d["rounds"][1]["penalties"].append(first(d)), "FF-RUN-PENALTY"),
    "a single hospital's risk": (lambda d: first(d, "hospital").update(risk=[0.1, 0.2]), "FF-RUN-PENALTY"),
    "counts that are no whole numbers": (
        lambda d: first(d).update(count=[one + 0.5 for one in first(d)["count"]]), "FF-RUN-PENALTY",
    ),
    "counts of more than joined": (
        lambda d: first(d).update(count=[10 * one for one in first(d)["count"]]), "FF-RUN-PENALTY",
    ),
    "a risk below zero": (lambda d: first(d)["risk"].__setitem__(0, -0.1), "FF-RUN-PENALTY"),
    "validation without a group": (lambda d: d["rounds"][0]["validation"].pop(), "FF-RUN-LAYOUT"),
    "validation of another group": (lambda d: d["rounds"][0]["validation"][1].update(group="x"), "FF-RUN-LAYOUT"),
    # ranges and bounds of a round
    "an area under the curve above 1": (lambda d: line(d).update(auc=1.1), "FF-RUN-SUMS"),
    "an area under the curve below 0": (lambda d: line(d).update(auc=-0.1), "FF-RUN-SUMS"),
    "no area under the curve": (lambda d: line(d).update(auc=None), "FF-RUN-SUMS"),
    "a mean score above 1": (lambda d: line(d).update(mean_score=1.1), "FF-RUN-SUMS"),
    "no mean score": (lambda d: line(d).update(mean_score=None), "FF-RUN-SUMS"),
    "a validation loss below zero": (lambda d: line(d).update(loss=-0.1), "FF-RUN-SUMS"),
    "a group that loses more than everybody": (lambda d: line(d).update(loss=99.0), "FF-RUN-SUMS"),
    "fewer records than none": (lambda d: line(d).update(records=-1.0), "FF-RUN-SUMS"),
    "half a validation record": (half_validation, "FF-RUN-SUMS"),
    "more positives than records": (lambda d: line(d).update(positives=line(d)["records"] + 1), "FF-RUN-SUMS"),
    "more positives in the groups than in all": (
        lambda d: [line(d, k).update(positives=line(d, k)["records"] - 1) for k in (1, 2)], "FF-RUN-SUMS",
    ),
    "fewer validation records than joined": (
        lambda d: line(d, 0).update(records=line(d, 0)["records"] - 1), "FF-RUN-SUMS",
    ),
    "more validation records than joined": (
        lambda d: line(d, 0).update(records=line(d, 0)["records"] + 1), "FF-RUN-SUMS",
    ),
    "more training records than joined": (lambda d: d["rounds"][0].update(records=181.0), "FF-RUN-SUMS"),
    "fewer training records than joined": (lambda d: d["rounds"][0].update(records=179.0), "FF-RUN-SUMS"),
    "a training loss below zero": (lambda d: d["rounds"][0].update(train_loss=-0.1), "FF-RUN-SUMS"),
    "fewer held weights than none": (lambda d: d["rounds"][0].update(at_minimum=-1.0), "FF-RUN-SUMS"),
    "more held weights than weights": (
        lambda d: d["rounds"][0].update(at_maximum=d["rounds"][0]["weighed"] + 1), "FF-RUN-SUMS",
    ),
    "a phase of less than no time": (lambda d: d["rounds"][0]["seconds"].update(train=-1.0), "FF-RUN-SUMS"),
    "no joined records": (lambda d: d["sessions"][0].update(records={}), "FF-RUN-SUMS"),
    "joined records of an unknown split": (lambda d: joined(d, train=180.0), "FF-RUN-SUMS"),
    "other joined training records": (lambda d: joined(d, training=1800.0), "FF-RUN-SUMS"),
    "other joined test records": (lambda d: joined(d, test=590.0), "FF-RUN-SUMS"),
    "half an opted-out record": (lambda d: joined(d, opted_out=0.5), "FF-RUN-SUMS"),
    "fewer opted out than none": (lambda d: joined(d, opted_out=-1.0), "FF-RUN-SUMS"),
    # the result
    "a perfect group": (perfect_group, "FF-RUN-SUMS"),
    "two groups with the same records": (records_twice, "FF-RUN-SUMS"),
    "ten times the test records": (times_ten, "FF-RUN-SUMS"),
    "half records": (halves, "FF-RUN-SUMS"),
    "no loss at all": (lambda d: cell(d).update(loss=0.0), "FF-RUN-SUMS"),
    "a larger loss": (lambda d: cell(d).update(loss=1e6), "FF-RUN-SUMS"),
    "a group's sites": (lambda d: cell(d).update(sites=0.5), "FF-RUN-SUMS"),
    "more sites than records": (lone, "FF-RUN-SUMS"),
    "a cell of another group": (lambda d: cell(d).update(group="x"), "FF-RUN-LAYOUT"),
    "two cells in each other's place": (
        lambda d: d["final"]["test"].insert(0, d["final"]["test"].pop(1)), "FF-RUN-LAYOUT",
    ),
    "another final model": (lambda d: d["final"].update(model_sha256="0" * 64), "FF-RUN-MODEL"),
    "another last model": (lambda d: d["rounds"][-1].update(model_sha256="0" * 64), "FF-RUN-MODEL"),
    "a count": (lambda d: cell(d).update(count=cell(d)["count"] + 1), "FF-RUN-SUMS"),
    "a bin": (lambda d: shift(cell(d)["histogram"], 7, 1.0), "FF-RUN-SUMS"),
    "a record in another bin": (lambda d: moved(cell(d)["histogram"]), "FF-RUN-SUMS"),
    "a sum of scores": (lambda d: cell(d, "validation").update(value=0.0), "FF-RUN-SUMS"),
    "a loss below zero": (lambda d: cell(d).update(loss=-1.0), "FF-RUN-SUMS"),
    "more sites than took part": (lambda d: cell(d).update(sites=9.0), "FF-RUN-SUMS"),
    "records of no site": (lambda d: cell(d).update(sites=0.0), "FF-RUN-SUMS"),
    "a cell less": (lambda d: d["final"]["test"].pop(), "FF-RUN-LAYOUT"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_changed_record_is_found_out(what: str, run: Path) -> None:
    edit, code = EDITS[what]
    change(run, edit)
    assert code in codes(run)
    with pytest.raises(RunError, match="FF-RUN-VERIFY"):
        verify_run(run)


HONEST: dict[str, tuple[Json, Json]] = {
    "averaging": (FEDAVG, {}),
    "uniform aggregation": (METHOD, {"aggregation": "uniform"}),
    "probability as utility": (flexfair(penalty("age", "demographic_parity", 2.0, utility="probability")), {}),
    "small cells withheld": (METHOD, {"minimum": 5}),
    "every cell withheld": (METHOD, {"minimum": 99}),
    "cells of two sites or more": (METHOD, {"sites": 2}),
    "cells of all sites": (METHOD, {"minimum": 3, "sites": 4}),
    "lock step": (
        flexfair(penalty("sex", "equalized_odds", 1.0), refresh="step"), {"work": {"unit": "steps", "amount": 3}},
    ),
}  # fmt: skip


SILENT = ("join", "measure", "step", "train", "evaluate", "finish")


@pytest.mark.parametrize(
    ("what", "silent"),
    [
        *((what, "") for what in HONEST),
        *((what, task) for what in ("lock step", "uniform aggregation") for task in SILENT),
    ],
)
def test_an_honest_run_passes_whoever_falls_silent_whenever(what: str, silent: str, tmp_path: Path) -> None:
    method, changes = HONEST[what]
    the_plan = plan(method, **{"rounds": 3, "min_sites": 2, "max_missed": 2, **changes})

    def order(message: Message, sites: Sequence[str]) -> Sequence[str]:
        return [site for site in sites if message.task != silent or site != "beryl"]

    record = run_local(the_plan, four(), tmp_path, order=order)
    assert record.status == "complete", record.reason
    assert list(check_run(tmp_path, record)) == []
    there = silent in ("", "evaluate", "finish") or (silent == "step" and not the_plan.method.lock_step)
    assert ("beryl" in record.rounds[2].participants["measure"]) == there


def test_a_dropout_in_lock_step_is_seen_in_the_step_that_it_missed(tmp_path: Path) -> None:
    method, changes = HONEST["lock step"]

    def order(message: Message, sites: Sequence[str]) -> Sequence[str]:
        return [site for site in sites if (message.round, message.step, site) != (1, 2, "coral")]

    record = run_local(plan(method, rounds=2, min_sites=3, **changes), four(), tmp_path, order=order)
    assert record.rounds[0].participants["step"] == tuple(four())
    assert record.rounds[1].participants == {
        "measure": ("amber", "beryl", "coral", "dune"),
        "step": ("amber", "beryl", "dune"),
        "train": ("amber", "beryl", "dune"),
    }
    assert [(one.site, one.task) for one in record.rounds[1].refusals] == [("coral", "step")]
    assert list(check_run(tmp_path, record)) == []
    change(tmp_path, lambda d: d["rounds"][1]["participants"]["step"].insert(2, "coral"))
    assert codes(tmp_path) == {"FF-RUN-SITES"}


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("minimum", [0, 5])
@pytest.mark.parametrize("kinds", [2, 3])
def test_honest_sums_pass_however_sure_the_model_is(scale: float, minimum: int, kinds: int) -> None:
    the_plan = plan(FEDAVG, minimum=minimum) if kinds == 2 else several_labels(kinds, minimum=minimum)
    sizes, strata = the_plan.sizes, the_plan.task.strata
    random = np.random.default_rng(5)
    total = EvaluationSums.from_vector(np.zeros(evaluation_length(sizes, 200, strata)), sizes, 200, strata)
    for _ in range(4):
        labels = random.integers(0, kinds, 90)
        groups = {name: random.integers(-1, size, 90) for name, size in sizes.items()}
        logits = torch.from_numpy(random.normal(size=(90, kinds)) * scale)
        scores = Labels(kinds, torch.ones(kinds)).scores(logits, torch.from_numpy(labels), math.inf)
        total = total + EvaluationSums.measure(scores.strata, groups, sizes, 200, minimum)
    session = Session(
        number=1, transport="local", started="", first_round=0, previous_record_sha256=None, roster=tuple(four()),
        join_refusals=(), records={**dict.fromkeys(COUNTS, 0.0), "test": 360.0}, identities=None, transcript=None,
    )  # fmt: skip
    assert list(wrong_evaluation(the_plan, total, session, "test", session.roster)) == []


@pytest.mark.parametrize("label", [0, 1])
def test_a_loss_lies_between_the_edges_of_its_bin(label: int) -> None:
    bins, scores = 200, np.random.default_rng(3).random(500)
    for score in [*scores, 0.0, 1.0 / bins, 0.5, 1 - 1.0 / bins]:
        histogram = np.zeros((2, bins))
        histogram[label, min(int(score * bins), bins - 1)] = 1
        low, high = _loss_bounds(plan(FEDAVG), histogram)
        truth = score if label else 1 - score
        loss = -math.log(truth) if truth else math.inf
        assert low[label] - 1e-12 <= loss <= high[label] + 1e-12
        assert (low[1 - label], high[1 - label]) == (0, 0)
        farthest = score < 1 / bins if label else score >= 1 - 1 / bins
        assert math.isinf(high[label]) == farthest
        if not farthest:
            assert math.exp(-low[label]) - math.exp(-high[label]) == pytest.approx(1 / bins)


def test_more_records_in_the_groups_than_in_all(run: Path) -> None:
    def edit(data: Json) -> None:
        one = cell(data)
        for _ in range(1000):
            place = int(np.argmax(one["histogram"]))
            one["histogram"][place] += 1
            one["count"] += 1
            one["value"] += (place + 0.5) / len(one["histogram"])

    change(run, edit)
    assert codes(run) == {"FF-RUN-SUMS"}


def other_bytes(run: Path) -> None:
    file = model_file(run, read_record(run).final.model_sha256)
    file.write_bytes(b"no model")


def other_numbers(run: Path) -> None:
    file = model_file(run, read_record(run).final.model_sha256)
    arrays = load_file(file)
    arrays[min(arrays)] = arrays[min(arrays)] + np.float32(1e-3)
    save_file(arrays, file)


def no_file(run: Path) -> None:
    for file in run.glob(f"*.{MODEL_NAME}"):
        file.unlink()


def another_plan(run: Path) -> None:
    file = run.parent / "app_server" / "config" / "plan.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["training"]["seed"] = 99
    file.write_text(json.dumps(data), encoding="utf-8")


def no_plan(run: Path) -> None:
    (run.parent / "app_server" / "config" / "plan.json").write_text("{", encoding="utf-8")


FILES = {
    "a model file of other bytes": (other_bytes, "FF-RUN-MODEL"),
    "a model file of other numbers": (other_numbers, "FF-RUN-MODEL"),
    "no model file": (no_file, "FF-RUN-MODEL"),
    "another plan in the job": (another_plan, "FF-RUN-PLAN"),
    "a plan in the job that cannot be read": (no_plan, "FF-RUN-PLAN"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_changed_file_is_found_out(what: str, run: Path) -> None:
    edit, code = FILES[what]
    edit(run)
    assert codes(run) == {code}


UNREADABLE = {
    "an unknown key": lambda d: d.update(extra=1),
    "a missing key": lambda d: d.pop("notices"),
    "a session without a roster": lambda d: d["sessions"][0].pop("roster"),
    "a plan's hash that is none": lambda d: d.update(plan_sha256="abc"),
    "a first model's hash that is none": lambda d: d.update(initial_model_sha256="x" * 64),
    "a round's hash that is none": lambda d: d["rounds"][0].update(model_sha256="../" + "0" * 61),
    "a final model's hash that is none": lambda d: d["final"].update(model_sha256="0" * 63),
    "a hash with a line break": lambda d: d["final"].update(model_sha256="0" * 64 + "\n"),
    "an earlier record's hash that is none": lambda d: second_session(d, previous_record_sha256="none"),
    "a number as text": lambda d: d["rounds"][0].update(train_loss="0.1"),
    "another format": lambda d: d.update(format="fairflare/record/1"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_record_that_does_not_follow_its_schema_is_refused(what: str, run: Path) -> None:
    change(run, UNREADABLE[what])
    with pytest.raises(RunError, match="FF-RUN-"):
        verify_run(run)


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-NO-RECORD"):
        verify_run(tmp_path)


def test_a_site_that_refused_to_join_may_be_absent(run: Path) -> None:
    def edit(data: Json) -> None:
        data["sessions"][0]["join_refusals"].append(refusal("dune", "join"))
        for line in data["rounds"]:
            for sites in line["participants"].values():
                sites.remove("dune")
        for sites in ("participants", "confirmed"):
            data["final"][sites].remove("dune")

    change(run, edit)
    # Three sites cannot have reported what four did; that is found by the sums, and nothing else is wrong.
    assert codes(run) <= {"FF-RUN-SUMS"}


@pytest.fixture
def resumed(good: Path, tmp_path: Path) -> Path:
    """A run of two sessions, laid out as ``fairflare run simulate`` does."""
    folders = [tmp_path / f"session-{number}" / "server" / "simulate_job" / "fairflare" for number in (1, 2)]
    for folder in folders:
        shutil.copytree(good / "fairflare", folder)
    change(folders[0], lambda d: (d["rounds"].pop(), d.update(status="stopped", final=None, ended=None)))
    before = record_sha256(read_record(folders[0]))
    change(folders[1], lambda d: second_session(d, previous_record_sha256=before))
    return tmp_path


def test_a_session_goes_on_from_the_record_beside_it(resumed: Path) -> None:
    newest = resumed / "session-2" / "server" / "simulate_job" / "fairflare"
    assert codes(newest) == set()
    write_record(newest, read_record(newest))
    assert verify_run(resumed).sessions[1].number == 2


def test_an_earlier_sessions_record_that_was_changed_is_found_out(resumed: Path) -> None:
    earlier = resumed / "session-1" / "server" / "simulate_job" / "fairflare"
    change(earlier, lambda d: d["rounds"][0].update(train_loss=0.0))
    assert codes(resumed / "session-2" / "server" / "simulate_job" / "fairflare") == {"FF-RUN-SESSIONS"}


def test_an_earlier_record_that_cannot_be_read_is_passed_over(resumed: Path) -> None:
    earlier = resumed / "session-1" / "server" / "simulate_job" / "fairflare"
    (earlier / "record.json").write_text("{", encoding="utf-8")
    assert codes(resumed / "session-2" / "server" / "simulate_job" / "fairflare") == set()


def test_the_model_is_where_its_hash_says(run: Path) -> None:
    assert model_file(run, read_record(run).rounds[-1].model_sha256).is_file()


def emptied(data: Json) -> None:
    for one in data["final"]["test"]:
        if one["stratum"] == 1:
            one.update(count=0.0, sites=0.0, loss=0.0, value=0.0, histogram=[0.0] * len(one["histogram"]))


def collapsed(data: Json, kind: str) -> None:
    data["rounds"][1].update(collapse=kind)


FALSE: dict[str, tuple[Callable[[Json], object], str]] = {
    "images that are constant": (lambda d: collapsed(d, "constant"), "images"),
    "background only, with some Dice": (lambda d: collapsed(d, "all_background"), "images"),
    "background only in the end": (lambda d: d["final"].update(test_collapse="all_background"), "images"),
    "a label of fewer images": (emptied, "images"),
    "a label of fewer records": (emptied, "labels"),
    "painted records": (lambda d: collapsed(d, "all_foreground"), "labels"),
    "constant with an area": (lambda d: collapsed(d, "constant"), "labels"),
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of other tasks than the one with two labels."""
    base = tmp_path_factory.mktemp("others")
    images = image_plan(FEDAVG, 2, rounds=6)
    assert run_local(images, three_of_images(2), base / "images").status == "complete"
    assert run_local(several_labels(3, rounds=2), of_several_labels(3), base / "labels").status == "complete"
    return {kind: base / kind for kind in ("images", "labels")}


@pytest.mark.parametrize("what", FALSE)
def test_a_changed_record_of_other_tasks_is_found_out(what: str, others: dict[str, Path], tmp_path: Path) -> None:
    edit, kind = FALSE[what]
    run = Path(shutil.copytree(others[kind], tmp_path / "run"))
    assert codes(run) == set()
    change(run, edit)
    assert "FF-RUN-SUMS" in codes(run)
