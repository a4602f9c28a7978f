# SPDX-License-Identifier: Apache-2.0
"""A site's process is killed at any point of a private job: what left was paid, and a restart goes on from there.

The whole job, all sites and the server, runs in a child process that kills itself (SIGKILL) before or after the n-th
of these: a payment, a draw of noise, a release. Then the ledgers must open, whole, with everything that left; and the
next start, on the same ledgers, ends.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairflare.privacy import noise
from fairflare.privacy.gate import ReleaseGate
from fairflare.privacy.ledger import Account
from tests.unit.engine.test_private import SIZES, drive, ledger_of, private_plan

PLAN = private_plan(rounds=2, batches=2)
POINTS = ((Account, "pay"), (noise, "discrete_gaussian"), (noise, "add_gaussian"), (ReleaseGate, "release"))
#: What a released task must have been paid as, in its round.
PAID = {"prepare": ("units", "counts"), "measure": ("model", "sums"), "train": ("model", "sums")}


class Deadly:
    """Counts calls before and after, and kills the process at the last one of them."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def passed(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **named: Any) -> Any:
            self.passed()
            result = call(*args, **named)
            self.passed()
            return result

        return watched


def in_child(work: Callable[[], None]) -> int:
    """The wait status of a child process that does this."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def points_of_a_whole_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    never = Deadly(-1)
    with monkeypatch.context() as patch:
        for owner, name in POINTS:
            patch.setattr(owner, name, never.around(getattr(owner, name)))
        drive(PLAN, folder)
    return never.count


def released(folder: Path, site: str) -> list[tuple[str, int]]:
    """Tasks that left, with their rounds: the site's own list, on disk before anything leaves."""
    file = folder / "sites" / site / "releases.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return [(line["task"], line["round"]) for line in lines if line["event"] == "release"]


def test_killed_at_any_point_of_a_job_what_left_was_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = points_of_a_whole_run(tmp_path / "whole", monkeypatch)
    assert whole > 150
    killed, left = 0, set()
    for last in range(3, whole, whole // 10):
        folder = tmp_path / str(last)

        def work(last: int = last, folder: Path = folder) -> None:
            deadly = Deadly(last)
            for owner, name in POINTS:
                setattr(owner, name, deadly.around(getattr(owner, name)))
            drive(PLAN, folder)

        status = in_child(work)
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        for site in SIZES:
            entries = [(one.release.round, one.release.what) for one in ledger_of(folder, site).entries()]
            for task, round_ in released(folder, site):
                left.add(task)
                for what in PAID.get(task, ()):
                    assert any(at == round_ and what in name for at, name in entries), (last, site, task, round_)
        before = {site: len(ledger_of(folder, site).entries()) for site in SIZES}
        assert drive(PLAN, folder, session="next").status == "complete"
        assert all(len(ledger_of(folder, site).entries()) == before[site] + 6 for site in SIZES)
    assert killed >= 10
    assert left >= set(PAID)
