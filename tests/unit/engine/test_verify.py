# SPDX-License-Identifier: Apache-2.0
"""A good run passes; every way of changing its record, model or plan is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.unit.engine.hospitals import four, plan

from fairflare.engine.describe import record_sha256
from fairflare.engine.local import run_local
from fairflare.engine.store import model_file
from fairflare.engine.verify import check_run, verify_run
from fairflare.errors import RunError
from fairflare.jobs import write_job
from fairflare.presets import flexfair, penalty
from fairflare.record import MODEL_NAME, read_record, write_record

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


def change(folder: Path, edit: Callable[[Json], object]) -> None:
    file = folder / "record.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_the_untouched_run_passes(run: Path) -> None:
    assert codes(run) == set()
    assert verify_run(run.parent).status == "complete"
    assert verify_run(run / "record.json").status == "complete"


def cell(data: Json, split: str = "test", attribute: str = "sex") -> Json:
    return next(one for one in data["final"][split] if one["attribute"] == attribute and one["count"] > 0)


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
    # who took part
    "fewer sites than min_sites": (
        lambda d: d["rounds"][0]["participants"].update(train=["amber"]), "FF-RUN-QUORUM",
    ),
    "nobody measured": (lambda d: d["rounds"][1]["participants"].pop("measure"), "FF-RUN-QUORUM"),
    "a site that is not in the roster": (
        lambda d: d["rounds"][0]["participants"].update(measure=["amber", "beryl", "coral", "dune", "x"]),
        "FF-RUN-SITES",
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
    "validation without a group": (lambda d: d["rounds"][0]["validation"].pop(), "FF-RUN-LAYOUT"),
    "validation of another group": (lambda d: d["rounds"][0]["validation"][1].update(group="x"), "FF-RUN-LAYOUT"),
    # the result
    "another final model": (lambda d: d["final"].update(model_sha256="0" * 64), "FF-RUN-MODEL"),
    "another last model": (lambda d: d["rounds"][-1].update(model_sha256="0" * 64), "FF-RUN-MODEL"),
    "a count": (lambda d: cell(d).update(count=cell(d)["count"] + 1), "FF-RUN-SUMS"),
    "a bin": (lambda d: shift(cell(d)["histogram"], 7, 1.0), "FF-RUN-SUMS"),
    "a record in another bin": (lambda d: moved(cell(d)["histogram"]), "FF-RUN-SUMS"),
    "a sum of scores": (lambda d: cell(d, "validation").update(score=0.0), "FF-RUN-SUMS"),
    "a loss below zero": (lambda d: cell(d).update(cross_entropy=-1.0), "FF-RUN-SUMS"),
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


def test_more_records_in_the_groups_than_in_all(run: Path) -> None:
    def edit(data: Json) -> None:
        one = cell(data)
        for _ in range(1000):
            place = int(np.argmax(one["histogram"]))
            one["histogram"][place] += 1
            one["count"] += 1
            one["score"] += (place + 0.5) / len(one["histogram"])

    change(run, edit)
    assert codes(run) == {"FF-RUN-SUMS"}


def other_bytes(run: Path) -> None:
    (file,) = run.glob(f"*.{MODEL_NAME}")
    file.write_bytes(b"no model")


def other_numbers(run: Path) -> None:
    (file,) = run.glob(f"*.{MODEL_NAME}")
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
    "a missing key": lambda d: d.pop("roster"),
    "a number as text": lambda d: d["rounds"][0].update(train_loss="0.1"),
    "another format": lambda d: d.update(format="fairflare/record/2"),
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
        data["join_refusals"].append(refusal("dune", "join"))
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
