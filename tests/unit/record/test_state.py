# SPDX-License-Identifier: Apache-2.0
"""Where a job stands is told by names of phases and codes; no result of anybody comes into the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairflare import schema
from fairflare.errors import RunError
from fairflare.record import STATE_NAME, JobState, Refusal, counted, first_state, followed, write_state
from fairflare.record.state import _MOST
from tests.unit.engine.hospitals import four
from tests.unit.engine.test_store import PLAN, begin, drive

LETTERS = [chr(ord("A") + place % 26) + chr(ord("A") + place // 26) for place in range(2 * 256)]


def told(*events: tuple[str, dict[str, Any]]) -> JobState:
    state = first_state("heart", 100.0)
    for place, (event, facts) in enumerate(events):
        state = followed(state, event, facts, 101.0 + place)
    return state


PHASE = ("phase", {"task": "train", "round": 3, "step": 0, "sites": ["a", "b"]})


def test_a_phase_says_what_is_waited_for_and_since_when() -> None:
    state = told(("start", {"plan": "heart", "rounds": 7, "roster": ["a", "b"]}), PHASE)
    assert (state.rounds, state.round, state.task, state.asked, state.since) == (7, 3, "train", 2, 102.0)


def test_the_end_says_why_and_waits_for_nothing() -> None:
    state = told(PHASE, ("end", {"status": "stopped", "code": "FF-ROUND-QUORUM"}))
    assert (state.status, state.code, state.task, state.since) == ("stopped", "FF-ROUND-QUORUM", None, 102.0)


def test_a_round_counts_and_its_results_are_not_taken() -> None:
    secret = {"loss": 0.123456789, "validation": [{"auc": 0.987654321}], "round": 0, "records": 4711}
    state = told(PHASE, ("round", secret), ("joined", {"sites": ["a"], "records": {"training": 4711}}))
    assert state.complete == 1
    text = state.model_dump_json()
    assert not any(number in text for number in ("0.123456789", "0.987654321", "4711"))


def test_equal_refusals_are_counted() -> None:
    late = {"site": "a", "task": "train", "code": "FF-ROUND-TIMEOUT"}
    state = told(("refused", late), ("refused", late), ("refused", {**late, "site": "b"}))
    assert [(one.refusal.site, one.times) for one in state.refusals] == [("a", 2), ("b", 1)]


def test_kinds_of_refusals_are_bounded() -> None:
    found = ()
    for letters in LETTERS:
        found = counted(found, Refusal(site=letters, task="x", code="FF-X"))
    assert len(found) == _MOST


def test_the_file_is_read_strictly(tmp_path: Path) -> None:
    write_state(tmp_path / STATE_NAME, told(PHASE))
    assert schema.read(JobState, tmp_path / STATE_NAME, error=RunError, what="state") == told(PHASE)
    assert [file.name for file in tmp_path.iterdir()] == [STATE_NAME]


@pytest.mark.parametrize("phases", [1, 3, 99])
def test_a_run_keeps_it_at_every_phase(phases: int, tmp_path: Path) -> None:
    coordinator = begin(tmp_path / "1")
    drive(coordinator, tmp_path / "1", phases)
    state = schema.read(JobState, tmp_path / "1" / STATE_NAME, error=RunError, what="state")
    assert state.plan == PLAN.name
    assert state.rounds == 4
    if phases == 99:
        assert (state.status, state.complete, state.task) == ("complete", 4, None)
    else:
        assert (state.status, state.task) == ("running", {1: "measure", 3: "measure"}[phases])
        assert state.asked == len(four())


def test_no_number_of_a_run_is_in_its_state(tmp_path: Path) -> None:
    coordinator = begin(tmp_path / "1")
    record = drive(coordinator, tmp_path / "1")
    state = json.loads((tmp_path / "1" / STATE_NAME).read_text(encoding="utf-8"))
    whole = json.loads(record.model_dump_json())
    numbers = set(_numbers(whole["rounds"])) | set(_numbers(whole["final"])) | set(_numbers(whole["sessions"]))
    results = {number for number in numbers if number > 12 or number != int(number)}
    assert len(results) > 100
    assert set(_numbers(state)) & results == set()


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
