# SPDX-License-Identifier: Apache-2.0
"""``fairflare study``: it lists, does, survives being killed, goes on, and repeats through real FLARE processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairflare.engine.verify import verify_run
from fairflare.study.kept import Result, read_outcome
from tests.unit.study.small import FEDAVG, FLEXFAIR, Json, baseline, rows, study, timeless, written

COMMAND = [sys.executable, "-c", "from fairflare.cli import main; main()", "study"]


def fairflare(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def done_in(out: Path) -> int:
    return len(list(out.glob("runs/**/evaluation.json")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A study that nobody disturbed: its file, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    file = written(folder, longer())
    done = fairflare(file, "--to", folder / "out")
    assert done.returncode == 0, done.stderr
    return file, folder / "out", done.stdout


def longer() -> Json:
    return study(methods=[FEDAVG, FLEXFAIR, baseline("pooled")], seeds=[0, 1, 2], protections=["none", "masked"])


def started(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """A study in a process group of its own that has done three runs."""
    process = subprocess.Popen(
        [*COMMAND, str(file), "--to", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # Tests that run in the background pass on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while done_in(out) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    return process


def alive(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc/self/stat: needed to find processes")
@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda one: one.name,
)
def test_a_study_that_was_ended_goes_on_and_finds_the_same(
    whole: tuple[Path, Path, str], tmp_path: Path, how: signal.Signals
) -> None:
    file, undisturbed, _ = whole
    process = started(file, tmp_path / "out")
    # As a terminal does it: an interrupt goes to every process of the group.
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    output, _ = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"give the same command again" in output
    deadline = time.monotonic() + 20
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(process.pid) == []
    before = done_in(tmp_path / "out")
    assert before < len(list(undisturbed.glob("runs/**/evaluation.json")))
    done = fairflare(file, "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("was there") == before
    texts = [(out / "results.csv").read_text(encoding="utf-8") for out in (tmp_path / "out", undisturbed)]
    assert timeless(texts[0]) == timeless(texts[1])


def test_a_line_for_each_run_a_table_and_the_files(whole: tuple[Path, Path, str]) -> None:
    _, out, shown = whole
    runs = rows((out / "results.csv").read_text(encoding="utf-8"))
    assert len(runs) == 2 * 2 * 2 * 3 + 2 * 3
    assert sum(f"/{len(runs)} heart, " in line for line in shown.splitlines()) == len(runs)
    assert " left" in shown
    for words in ("heart, masked", "95 % t interval", "2 configurations of every method", "30 runs, none failed"):
        assert words in " ".join(shown.split())
    for name in ("results.csv", "results.json", "table.md", "report.html", "study.json"):
        assert (out / name).stat().st_size > 0


def test_a_dry_run_lists_the_runs_and_does_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, {**longer(), "flare": True})
    done = fairflare(file, "--to", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("30 runs, of which 0 cannot run")
    assert "at most 4 runs again through NVIDIA FLARE" in lines[-1]
    assert len(lines) == 32
    assert [one.name for one in tmp_path.iterdir()] == ["study.json"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seed": 1}, "FF-STUDY-UNKNOWN-KEY"),
        ({"methods": [FEDAVG, {**FLEXFAIR, "configurations": FLEXFAIR["configurations"][:1]}]}, "FF-STUDY-GRID"),
        ({"methods": [{**FEDAVG, "changes": {"training.optimizer.rate": 1}}]}, "FF-STUDY-CHANGE"),
    ],
)
def test_a_study_that_is_not_right_is_four_lines(tmp_path: Path, changes: Json, code: str) -> None:
    done = fairflare(written(tmp_path, study(**changes)), "--to", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == code
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.federation
def test_flare_gives_the_same_model(tmp_path: Path) -> None:
    methods = [{**one, "configurations": one["configurations"][1:]} for one in (FEDAVG, FLEXFAIR, baseline("pooled"))]
    file = written(tmp_path, study(methods=methods, seeds=[0], protections=["masked"], flare=True))
    done = fairflare(file, "--to", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "same model" in done.stdout
    for method, label in (("fedavg", "fast"), ("flexfair", "s8")):
        folder = tmp_path / "out" / "flare" / "heart" / "masked" / method
        record = verify_run(folder)
        assert record.sessions[0].transport == "flare"
        local = read_outcome(tmp_path / "out" / "runs" / "heart" / "masked" / method / label / "seed-0")
        assert isinstance(local, Result)
        assert local.single_model == record.rounds[-1].model_sha256
    assert not (tmp_path / "out" / "flare" / "heart" / "no_federation").exists()
    again = fairflare(file, "--to", tmp_path / "out")
    assert "again through" not in again.stdout
    assert "same model" in again.stdout
    check = tmp_path / "out" / "flare" / "heart" / "masked" / "fedavg" / "check.json"
    data = json.loads(check.read_text(encoding="utf-8"))
    check.write_text(json.dumps({**data, "model_sha256": "0" * 64}), encoding="utf-8")
    wrong = fairflare(file, "--to", tmp_path / "out")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[0] == "FF-STUDY-FLARE"
    assert "another model" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
