# SPDX-License-Identifier: Apache-2.0
"""Processes are killed in the middle of a run: it stops in bounded time, says why, and can be gone on with.

Three sessions of one run, with masks. The first loses a hospital's process, the second the server's; the third is left
alone and has one hospital more. A round that was begun is never begun again: a site answers a question once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.flare.simulate import STORE, end_processes, process_marks
from fairflare.jobs import write_job
from fairflare.policy import write_catalog
from fairflare.record import PROGRESS_NAME, RunRecord, read_record
from tests.federation.support import SITES, changed, fairflare, make_hospitals, remembered

pytestmark = pytest.mark.federation

ROUNDS = 12
MORE = (*SITES, "hospital-5")
DEADLINE = 8.0
RECORDS = Path("server") / "simulate_job" / "fairflare"


@dataclass
class Session:
    status: int
    output: str
    record: RunRecord
    seconds_after_the_kill: float
    left: list[int] = field(default_factory=list)


def _session(number: int, run: Path, arguments: list[str], victim: Callable[[Path], int] | None) -> Session:
    """Start the command line, kill the victim once two more rounds are complete, and wait for the end."""
    workspace = run / f"session-{number}"
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("fairflare")), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        killed = time.monotonic()
        if victim is not None:
            _wait_for_rounds(workspace / RECORDS / PROGRESS_NAME, 2, process)
            os.kill(victim(workspace), signal.SIGKILL)
            killed = time.monotonic()
        output, _ = process.communicate(timeout=240)
        seconds = time.monotonic() - killed
        left = [pid for pid, mark in process_marks().items() if mark == str(workspace)]
    finally:
        process.kill()
        end_processes(str(workspace))
    return Session(process.returncode, output, read_record(workspace / RECORDS), seconds, left)


def _wait_for_rounds(progress: Path, rounds: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if progress.exists() and progress.read_bytes().count(b'"event": "round"') >= rounds:
            return
        time.sleep(0.02)
    raise AssertionError("the session made no progress")


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def _worker_of(site: str) -> Callable[[Path], int]:
    def find(workspace: Path) -> int:
        ours = [pid for pid, mark in process_marks().items() if mark == str(workspace)]
        (pid,) = [pid for pid in ours if ["--client", site] == _after(_command(pid), "--client")]
        return pid

    return find


def _after(command: list[str], option: str) -> list[str]:
    at = command.index(option) if option in command else len(command)
    return command[at : at + 2]


def _server(workspace: Path) -> int:
    """The process that is the server and the parent of every hospital's process."""
    (parent,) = {
        _after(_command(pid), "--parent_pid")[1]
        for pid, mark in process_marks().items()
        if mark == str(workspace) and "--parent_pid" in _command(pid)
    }
    return int(parent)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill") / "run"


@pytest.fixture(scope="module")
def first(run: Path) -> Session:
    plan = changed(
        presets.shipped("heart_flexfair"),
        training={"rounds": ROUNDS},
        federation={"min_sites": 4, "task_timeout_seconds": DEADLINE, "max_missed": 2},
    )
    catalog = make_hospitals(run.parent / "hospitals", plan, SITES, 60)
    job, where = write_job(plan, run.parent / "plans"), write_catalog(run.parent, catalog)
    arguments = ["run", "simulate", str(job), "--catalog", str(where), "--out", str(run)]
    return _session(1, run, arguments, _worker_of("hospital-3"))


@pytest.fixture(scope="module")
def second(run: Path, first: Session) -> Session:
    return _session(2, run, ["run", "resume", str(run)], _server)


@pytest.fixture(scope="module")
def third(run: Path, second: Session) -> Session:
    more = run.parent / "more"
    make_hospitals(more, second.record.plan, MORE, 60)
    return _session(3, run, ["run", "resume", str(run), "--catalog", str(more)], None)


def test_a_killed_hospital_stops_the_run_below_min_sites(first: Session) -> None:
    assert first.record.status == "stopped"
    assert first.record.reason is not None
    assert first.record.reason.code == "FF-ROUND-QUORUM"
    assert "hospital-3: FF-ROUND-TIMEOUT" in first.record.reason.text


def test_the_rounds_before_the_kill_are_kept(first: Session) -> None:
    assert 2 <= len(first.record.rounds) < ROUNDS
    assert first.record.final is None


def test_a_killed_hospital_loses_a_round_and_then_the_run(first: Session) -> None:
    # With as many sites as min_sites, a round that one of them misses is lost; after max_missed of them it is out.
    after = len(first.record.rounds)
    assert [(lost.round, lost.code) for lost in first.record.lost_rounds] == [(after, "FF-ROUND-QUORUM")]
    assert [(one.site, one.code) for one in first.record.lost_rounds[0].refusals] == [
        ("hospital-3", "FF-ROUND-TIMEOUT")
    ]
    assert first.record.begun == after + 2


def test_our_exit_status_is_true_and_names_the_reason(first: Session) -> None:
    assert first.status == 1
    assert "FF-RUN-INCOMPLETE" in first.output
    assert "hospital-3 gave no usable answer" in first.output


def test_it_ends_soon_after_the_deadline_of_the_killed_hospital(first: Session) -> None:
    assert first.seconds_after_the_kill < 2 * DEADLINE + 45


def test_a_killed_server_leaves_a_running_record_with_its_complete_rounds(first: Session, second: Session) -> None:
    assert second.status == 1
    assert second.record.status == "running"
    assert len(second.record.rounds) >= len(first.record.rounds) + 2
    assert second.record.rounds[: len(first.record.rounds)] == first.record.rounds


def test_a_killed_server_is_noticed_at_once(second: Session) -> None:
    assert second.seconds_after_the_kill < 30


def test_no_process_outlives_its_session(first: Session, second: Session, third: Session) -> None:
    assert (first.left, second.left, third.left) == ([], [], [])


def test_the_third_session_completes_the_run(second: Session, third: Session) -> None:
    assert third.status == 0, third.output
    assert third.record.status == "complete"
    assert len(third.record.rounds) + len(third.record.lost_rounds) == ROUNDS
    assert third.record.rounds[: len(second.record.rounds)] == second.record.rounds


def test_rounds_that_broke_off_are_lost_by_name(first: Session, second: Session, third: Session) -> None:
    # The server may also die between two rounds: then there is nothing to be lost.
    interrupted = [
        (number, "FF-RUN-INTERRUPTED")
        for session in (first, second)
        for number in range(session.record.next_round, session.record.begun)
    ]
    lost = [(one.round, one.code) for one in third.record.lost_rounds]
    assert lost == [*((one.round, one.code) for one in first.record.lost_rounds), *interrupted]
    assert (first.record.begun - 1, "FF-RUN-INTERRUPTED") in lost


def test_no_site_gave_anything_away_in_a_lost_round(run: Path, third: Session) -> None:
    complete = {line.round for line in third.record.rounds}
    for site in SITES:
        assert {number for number, _ in remembered(run / STORE, site, third.record.plan)} == complete


def test_the_record_tells_of_three_sessions(first: Session, second: Session, third: Session) -> None:
    sessions = third.record.sessions
    assert [session.number for session in sessions] == [1, 2, 3]
    assert [session.first_round for session in sessions] == [0, first.record.begun, second.record.begun]
    assert sessions[0].previous_record_sha256 is None
    assert all(session.previous_record_sha256 for session in sessions[1:])


def test_the_third_session_has_one_hospital_more(second: Session, third: Session) -> None:
    assert [session.roster for session in third.record.sessions] == [SITES, SITES, MORE]
    trained = [line.participants["train"] for line in third.record.rounds]
    before = len(second.record.rounds)
    assert trained == [SITES] * before + [MORE] * (len(trained) - before)


def test_the_completed_run_verifies(run: Path, third: Session) -> None:
    done = fairflare("run", "verify", run)
    assert done.returncode == 0, done.stderr
    assert f"{len(third.record.rounds)} rounds in 3 sessions" in done.stdout


def test_a_completed_run_is_not_gone_on_with(run: Path, third: Session) -> None:
    done = fairflare("run", "resume", run)
    assert done.returncode == 1
    assert "FF-RUN-COMPLETE" in done.stderr
    assert not (run / "session-4").exists()


def test_each_session_began_with_the_model_that_its_record_names(run: Path, second: Session, third: Session) -> None:
    # A session that is killed before its first round is complete can be gone on with, too.
    events = [json.loads(line) for line in (run / "session-3" / RECORDS / PROGRESS_NAME).read_text().splitlines()]
    rounds = [event["round"] for event in events if event["event"] == "round"]
    assert rounds == list(range(second.record.begun, ROUNDS))
