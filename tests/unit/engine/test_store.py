# SPDX-License-Identifier: Apache-2.0
"""Whenever the server dies, a record and the model that its last complete round names lie on its disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fairflare.engine import store as module
from fairflare.engine.describe import record_sha256
from fairflare.engine.local import answer, run_local, software
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.engine.store import Store, model_file, read_best, read_checkpoint, read_model
from fairflare.engine.verify import verify_run
from fairflare.errors import RunError
from fairflare.models import initial_vector, vector_sha256
from fairflare.plan import Plan
from fairflare.presets import FEDAVG, flexfair, penalty
from fairflare.record import MODEL_NAME, PROGRESS_NAME, RunRecord, read_record
from tests.unit.engine.hospitals import four, hospital, plan

PLAN = plan(flexfair(penalty("sex", "equal_opportunity", 1.0)), rounds=4, min_sites=3)


def begin(folder: Path, earlier: Path | None = None) -> Coordinator:
    found = best = None
    if earlier is not None:
        record, model = read_checkpoint(earlier)
        found, best = (record, model, record_sha256(record)), read_best(earlier, record)
    return Coordinator(PLAN, folder, Start("session", "local", software(), found, best))


LOADERS = {**four(), "ember": lambda: hospital(30, 7)}


def drive(
    coordinator: Coordinator, folder: Path, phases: int = 10_000, names: Sequence[str] = tuple(four())
) -> RunRecord:
    """Answer so many phases, then let the server die without a word."""
    sites = {name: Site(name, PLAN, LOADERS[name], folder / "sites" / name) for name in names}
    for number, phase in enumerate(coordinator.phases(sorted(sites))):
        if number == phases:
            break
        for name in phase.targets:
            answer(sites[name], phase)
    return read_record(coordinator.store.folder)


@pytest.mark.parametrize("phases", range(12))
def test_a_server_that_dies_after_any_phase_can_be_gone_on_with(phases: int, tmp_path: Path) -> None:
    # join, four times measure and train, evaluate, finish: eleven phases.
    died = drive(begin(tmp_path / "1"), tmp_path / "1", phases) if phases else None
    if died is None:
        begin(tmp_path / "1").store.save(begin(tmp_path / "1").record)
    if phases >= 11:
        assert died is not None
        assert died.status == "complete"
        return
    again = drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2")
    assert (again.status, len(again.rounds), len(again.sessions)) == ("complete", 4, 2)
    assert verify_run(tmp_path / "2") == again


@pytest.mark.parametrize("phases", [1, 2])
def test_a_session_that_dies_before_its_first_round_can_be_gone_on_with(phases: int, tmp_path: Path) -> None:
    drive(begin(tmp_path / "1"), tmp_path / "1", 5)
    before = drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2", phases)
    assert len(before.rounds) == len(read_record(tmp_path / "1").rounds) == 2
    again = drive(begin(tmp_path / "3", tmp_path / "2"), tmp_path / "3")
    assert (again.status, len(again.sessions)) == ("complete", 3)
    assert verify_run(tmp_path / "3") == again


def test_a_session_that_only_has_to_evaluate_keeps_the_model(tmp_path: Path) -> None:
    died = drive(begin(tmp_path / "1"), tmp_path / "1", 9)
    assert (died.status, len(died.rounds)) == ("running", 4)
    drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2")
    assert verify_run(tmp_path / "2").status == "complete"


def test_a_site_that_refused_to_join_the_first_session_still_explains_its_rounds(tmp_path: Path) -> None:
    coordinator = begin(tmp_path / "1")
    sites = {name: Site(name, PLAN, load, tmp_path / "1" / name) for name, load in four().items()}
    for number, phase in enumerate(coordinator.phases(sorted(sites))):
        if number == 3:
            break
        for name in phase.targets:
            if name == "dune":
                phase.collector.refuse(name, "FF-DATA-FEW")
            else:
                answer(sites[name], phase)
    drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2")
    record = verify_run(tmp_path / "2")
    assert "dune" not in record.rounds[0].participants["train"]
    assert "dune" in record.rounds[-1].participants["train"]
    assert [refusal.site for refusal in record.sessions[0].join_refusals] == ["dune"]
    assert record.sessions[1].join_refusals == ()


OTHERS = {
    "one site fewer": ("amber", "beryl", "dune"),
    "one site more": ("amber", "beryl", "coral", "dune", "ember"),
    "another site": ("amber", "beryl", "coral", "ember"),
}


@pytest.mark.parametrize("phases", [1, 5, 9])
@pytest.mark.parametrize("others", OTHERS)
def test_a_run_that_goes_on_with_other_sites_verifies(others: str, phases: int, tmp_path: Path) -> None:
    drive(begin(tmp_path / "1"), tmp_path / "1", phases)
    drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2", names=OTHERS[others])
    record = verify_run(tmp_path / "2")
    assert record.roster == record.final.participants == OTHERS[others]
    assert [session.roster for session in record.sessions] == [tuple(four()), OTHERS[others]]
    rosters = [line.participants["train"] for line in record.rounds]
    before = (phases - 1) // 2
    assert rosters == [tuple(four())] * before + [OTHERS[others]] * (4 - before)
    assert record.sessions[0].records["training"] == 180.0
    assert record.records["training"] == sum(len(LOADERS[name]().training) for name in OTHERS[others])


def test_a_session_of_too_few_sites_stops_and_says_how_many_were_asked(tmp_path: Path) -> None:
    drive(begin(tmp_path / "1"), tmp_path / "1", 5)
    stopped = drive(begin(tmp_path / "2", tmp_path / "1"), tmp_path / "2", names=("amber", "beryl"))
    assert stopped.status == "stopped"
    assert stopped.reason is not None
    assert "2 usable answers to join (sites asked: 2)" in stopped.reason.text
    drive(begin(tmp_path / "3", tmp_path / "2"), tmp_path / "3")
    record = verify_run(tmp_path / "3")
    assert [(len(one.roster), one.first_round, bool(one.records)) for one in record.sessions] == [
        (4, 0, True), (2, 2, False), (4, 2, True),
    ]  # fmt: skip


@pytest.fixture
def small() -> Plan:
    return plan(FEDAVG, rounds=1, min_sites=3)


def test_a_crash_between_model_and_record_leaves_the_older_pair(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run_local(small, four(), tmp_path)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_record", crash)
    newer = initial_vector(small)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, small).save(record, newer)
    read, model = read_checkpoint(tmp_path)
    assert read == record
    assert model is not None
    assert vector_sha256(model) == record.rounds[-1].model_sha256


def test_only_the_newest_model_is_kept(small: Plan, tmp_path: Path) -> None:
    record = run_local(small, four(), tmp_path)
    assert [file.name for file in tmp_path.glob(f"*.{MODEL_NAME}")] == [
        f"{record.rounds[-1].model_sha256[:16]}.{MODEL_NAME}"
    ]


def test_a_record_without_rounds_has_no_model(small: Plan, tmp_path: Path) -> None:
    coordinator = Coordinator(small, tmp_path, Start("session", "local", software()))
    coordinator.store.save(coordinator.record)
    assert read_checkpoint(tmp_path) == (coordinator.record, None)


def test_a_model_under_a_wrong_name_is_refused(small: Plan, tmp_path: Path) -> None:
    kept = Store(tmp_path, small).keep(initial_vector(small))
    kept.rename(model_file(tmp_path, "0" * 64))
    with pytest.raises(RunError, match="FF-RUN-MODEL"):
        read_model(tmp_path, small, "0" * 64)


def test_a_model_of_another_network_is_refused(small: Plan, tmp_path: Path) -> None:
    kept = Store(tmp_path, small).keep(initial_vector(small))
    kept.write_bytes(kept.read_bytes()[:-4])
    with pytest.raises(RunError, match="FF-RUN-MODEL"):
        read_model(tmp_path, small, vector_sha256(initial_vector(small)))


def test_progress_is_one_line_per_event(small: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path, small)
    store.progress("phase", task="join", sites=["a"])
    store.progress("end", status="complete")
    lines = [json.loads(line) for line in (tmp_path / PROGRESS_NAME).read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["phase", "end"]
    assert np.isfinite(lines[0]["time"])
