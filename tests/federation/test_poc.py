# SPDX-License-Identifier: Apache-2.0
"""``make provisioned`` and ``make poc``: they end with a true exit status, and leave no process, however they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairflare import presets
from fairflare.errors import RunError
from fairflare.flare.simulate import process_marks
from fairflare.policy import DataCatalog, Entry
from poc import run
from tests.federation.support import ROOT

EMPTY = DataCatalog(
    format="fairflare/catalog/1", data_sets=None, sites={"a": {"x": Entry(manifest="/m", root=None, opt_out=None)}}
)


def left(folder: Path) -> list[int]:
    return [pid for pid, mark in process_marks().items() if Path(mark).is_relative_to(folder)]


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "poc.run", kind, "--job", "heart_flexfair", "--out", str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- comparisons


def record(plan_sha256: str, *models: str) -> Any:
    return SimpleNamespace(plan_sha256=plan_sha256, rounds=[SimpleNamespace(model_sha256=one) for one in models])


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (record("p", "a", "b"), True),
        (record("q", "a", "b"), False),
        (record("p", "a", "c"), False),
        (record("p", "a"), False),
        (record("p", "a", "b", "c"), False),
        (record("p"), False),
    ],
)
def test_a_comparison_holds_only_if_everything_is_the_same(found: Any, holds: bool, tmp_path: Path) -> None:
    plan = presets.shipped("heart_flexfair")
    study = run.Study(tmp_path, [plan], EMPTY, reference={plan.name: record("p", "a", "b")})
    study.compare(plan, "somewhere", found, 1.0)
    (row,) = study.rows
    assert row.holds is holds
    assert ("DIFFERENT" in run.summary(study.rows)) is not holds


def test_a_run_without_rounds_holds_nothing(tmp_path: Path) -> None:
    plan = presets.shipped("heart_flexfair")
    study = run.Study(tmp_path, [plan], EMPTY, reference={plan.name: record("p")})
    study.compare(plan, "somewhere", record("p"), 1.0)
    assert not study.rows[0].holds


def test_the_exit_status_tells_of_a_different_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def different(study: run.Study) -> None:
        study.rows.append(run.Row("job", "place", 1.0, same_plan=True, same_models=1, rounds=2))

    monkeypatch.setattr(run, "run_here", lambda study: None)
    monkeypatch.setattr(run, "provisioned", different)
    assert run.main(["provisioned", "--out", str(tmp_path / "out"), "--job", "heart_flexfair"]) == 1


def test_the_exit_status_tells_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(study: run.Study) -> None:
        raise RunError("FF-RUN-X", got="g", expected="e", next_step="n")

    monkeypatch.setattr(run, "run_here", broken)
    assert run.main(["provisioned", "--out", str(tmp_path / "out"), "--job", "heart_flexfair"]) == 1


def test_nothing_compared_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_here", lambda study: None)
    monkeypatch.setattr(run, "provisioned", lambda study: None)
    assert run.main(["provisioned", "--out", str(tmp_path / "out"), "--job", "heart_flexfair"]) == 1


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="no run of this script"):
        run.prepare(tmp_path, ["heart_flexfair"])
    assert (tmp_path / "mine.txt").exists()


def test_a_rerun_ends_what_an_earlier_run_left(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run.prepare(folder, ["heart_flexfair"])
    mark = {"FAIRFLARE_SESSION": str(folder / "federation" / "kits")}
    with subprocess.Popen(["sleep", "60"], env={**os.environ, **mark}) as forgotten:
        (folder / "old").touch()
        run.prepare(folder, ["heart_flexfair"])
        assert forgotten.wait(timeout=5) == -signal.SIGTERM
    assert not (folder / "old").exists()


# ------------------------------------------------------------------------------------------------------------ real runs


@pytest.mark.federation
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["provisioned", "distributed", "poc"])
def test_a_whole_run(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(kind, folder)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    places = {
        "provisioned": ["one process", "provisioned kits"],
        "distributed": ["one process", "own kits"],
        "poc": ["one process", "simulator", "nvflare poc"],
    }
    lines = [line for line in output.splitlines() if line.startswith("heart_flexfair")]
    assert [line[17:36].strip() for line in lines] == places[kind]
    assert all(line.endswith("same    20/20  ok") for line in lines)
    assert left(folder) == []


@pytest.mark.federation
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_broken_off_leaves_nothing(number: int, status: int, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start("provisioned", folder)
    deadline = time.monotonic() + 120
    while len(left(folder)) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    assert len(left(folder)) >= 5
    os.kill(process.pid, number)
    time.sleep(0.5)
    os.kill(process.pid, number)  # somebody who is impatient
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert left(folder) == []
    shutil.rmtree(folder)  # and nobody writes to it any more
