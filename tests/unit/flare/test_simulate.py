# SPDX-License-Identifier: Apache-2.0
"""What starts and ends FLARE's simulator: fresh workspaces, true ends, nobody left behind. FLARE is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairflare.errors import RunError
from fairflare.flare import simulate as module
from fairflare.flare.names import ALLOWED, RESUME
from fairflare.flare.simulate import MARK, Simulation, end_processes, latest_record_folder
from fairflare.policy import CATALOG_NAME, DataCatalog, Entry, read_catalog

SITES = ("north", "south")
CATALOG = DataCatalog(
    format="fairflare/catalog/1",
    data_sets=None,
    sites={site: {"heart": Entry(manifest=f"/data/{site}.csv", root=None, opt_out=None)} for site in SITES},
)
END = '{"event": "end", "status": "complete"}\n'


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for mark in set(module.process_marks().values()):
        if Path(mark).is_relative_to(tmp_path):
            end_processes(mark)


def simulation(base: Path, script: str = "", **changes: object) -> Simulation:
    """A simulation whose FLARE is ``script``; in it, ``records`` is where the server would write."""
    fake = base / "fake" / "nvflare"
    fake.mkdir(parents=True, exist_ok=True)
    (fake / "__init__.py").touch()
    head = """
        import os, pathlib, subprocess, sys, time
        workspace = pathlib.Path(sys.argv[sys.argv.index("-w") + 1])
        records = workspace / "server" / "simulate_job" / "fairflare"
        records.mkdir(parents=True)
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    """
    (fake / "cli.py").write_text(textwrap.dedent(head) + textwrap.dedent(script), encoding="utf-8")
    given = {"environment": {"PYTHONPATH": str(base / "fake")}, **changes}
    return Simulation(base / "job", base / "run", CATALOG, SITES, **given)  # type: ignore[arg-type]


def left(found: Simulation) -> list[int]:
    return [pid for pid, mark in module.process_marks().items() if mark == str(found.workspace)]


def test_each_start_gets_a_workspace_of_its_own(base: Path) -> None:
    assert simulation(base).workspace.name == "session-1"
    (base / "run" / "session-7").mkdir()
    (base / "run" / "session-x").mkdir()
    assert simulation(base).workspace.name == "session-8"


def test_a_workspace_allows_three_classes_and_holds_the_catalogue(base: Path) -> None:
    local = simulation(base).workspace / "local"
    assert json.loads((local / "resources.json").read_text(encoding="utf-8"))["class_allow_list"] == list(ALLOWED)
    assert read_catalog(local / CATALOG_NAME) == CATALOG
    assert not (local / RESUME).exists()


def test_a_resumed_run_names_the_record_to_go_on_from(base: Path) -> None:
    local = simulation(base, resume=base / "earlier").workspace / "local"
    assert json.loads((local / RESUME).read_text(encoding="utf-8")) == {"folder": str(base / "earlier")}


@pytest.mark.parametrize("name", ["my runs", "it's", 'a"b', "a\\b", "run #3"])
def test_a_path_that_flare_would_cut_in_pieces_is_refused(name: str, base: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-PATH"):
        Simulation(base / "job", base / name, CATALOG, SITES)
    assert not (base / name).exists()


@pytest.mark.parametrize("sites", [("server", "north"), ("local",), ("startup",), (), ("north", "north")])
def test_sites_that_flare_cannot_tell_from_its_own_folders_are_refused(sites: tuple[str, ...], base: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-SITES"):
        Simulation(base / "job", base / "run", CATALOG, sites)


def test_flares_exit_status_is_handed_on(base: Path) -> None:
    assert simulation(base, "sys.exit(3)").run(interval=0.02) == 3


def test_flare_is_asked_for_as_many_processes_as_sites(base: Path) -> None:
    found = simulation(base, "(records / 'arguments').write_text(' '.join(sys.argv[1:]))")
    found.run(interval=0.02)
    assert (found.records / "arguments").read_text() == (
        f"simulator {base / 'job'} -w {found.workspace} -c north,south -t 2 -m 2"
    )


def test_what_flare_prints_is_kept(base: Path) -> None:
    found = simulation(base, "print('out'); print('err', file=sys.stderr)")
    found.run(interval=0.02)
    assert set(found.log.read_text(encoding="utf-8").split()) == {"out", "err"}


def test_progress_is_watched_until_after_the_end(base: Path) -> None:
    found = simulation(base, "(records / 'progress.jsonl').write_text('last')")
    seen: list[str] = []
    found.run(lambda file: seen.append(file.read_text() if file.exists() else ""), interval=0.02)
    assert seen[0] == ""
    assert seen[-1] == "last"


def test_a_simulation_that_takes_too_long_is_ended(base: Path) -> None:
    found = simulation(base, "subprocess.Popen(sleeper, start_new_session=True).wait()")
    with pytest.raises(RunError, match="FF-RUN-TIMEOUT"):
        found.run(interval=0.02, timeout=1.0)
    assert left(found) == []


def test_a_simulation_that_never_begins_is_ended(base: Path) -> None:
    found = simulation(base, "time.sleep(600)")
    with pytest.raises(RunError, match="FF-RUN-START"):
        found.run(interval=0.02, start=0.5)
    assert left(found) == []


def test_a_simulation_that_hangs_after_the_runs_end_is_ended(base: Path) -> None:
    script = f"""
        (records / "progress.jsonl").write_text({END!r})
        subprocess.Popen(sleeper, start_new_session=True).wait()
    """
    found = simulation(base, script)
    started = time.monotonic()
    assert found.run(interval=0.02, grace=0.5) == -signal.SIGTERM
    assert time.monotonic() - started < 20
    assert left(found) == []


def test_a_process_that_ignores_the_polite_signal_is_ended_too(base: Path) -> None:
    script = f"""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (records / "progress.jsonl").write_text({END!r})
        time.sleep(600)
    """
    found = simulation(base, script)
    assert found.run(interval=0.02, grace=0.2) == -signal.SIGKILL
    assert left(found) == []


def test_processes_that_flare_leaves_behind_are_ended(base: Path) -> None:
    found = simulation(base, "subprocess.Popen(sleeper, start_new_session=True); os.kill(os.getpid(), 9)")
    assert found.run(interval=0.02) == -signal.SIGKILL
    assert left(found) == []


def test_an_interrupt_leaves_nobody_behind(base: Path) -> None:
    found = simulation(base, "subprocess.Popen(sleeper, start_new_session=True).wait()")

    def interrupt(_: Path) -> None:
        if len(left(found)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.run(interrupt, interval=0.02, timeout=20)
    assert left(found) == []


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_us_leaves_nobody_behind(kind: signal.Signals, base: Path) -> None:
    found = simulation(base, "subprocess.Popen(sleeper, start_new_session=True).wait()")
    before = signal.getsignal(kind)

    def send(_: Path) -> None:
        if len(left(found)) == 2:
            os.kill(os.getpid(), kind)

    with pytest.raises(SystemExit) as caught:
        found.run(send, interval=0.02, timeout=20)
    assert caught.value.code == 128 + kind
    assert left(found) == []
    assert signal.getsignal(kind) == before


def test_in_another_thread_signals_are_left_alone(base: Path) -> None:
    found = simulation(base)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(found.run(interval=0.02)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_a_run_with_processes_is_not_started_a_second_time(base: Path) -> None:
    mark = {**os.environ, MARK: str(base / "run" / "session-1")}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=mark) as process:
        try:
            with pytest.raises(RunError, match="session-1 still has processes"):
                simulation(base)
        finally:
            process.kill()
    simulation(base)


def test_only_marked_processes_are_ended(base: Path) -> None:
    other = {**os.environ, MARK: str(base / "other")}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=other) as process:
        try:
            end_processes(str(base / "run"))
            assert process.poll() is None
        finally:
            process.kill()


LAST_LINES = {
    "no file": (None, False),
    "nothing": ("", False),
    "another event": ('{"event": "phase"}\n', False),
    "the end": (END, True),
    "the end after much else": ('{"event": "phase", "sites": ["north"]}\n' * 500 + END, True),
    "a line that is being written": ('{"event": "round"}\n{"event": "e', False),
    "a line that is no event": ('["end"]\n', False),
    "a line without an event": ('{"status": "complete"}\n', False),
}


@pytest.mark.parametrize("what", LAST_LINES)
def test_the_end_of_a_run_is_its_last_event(what: str, tmp_path: Path) -> None:
    text, ended = LAST_LINES[what]
    if text is not None:
        (tmp_path / "progress.jsonl").write_text(text, encoding="utf-8")
    assert module._has_ended(tmp_path / "progress.jsonl") is ended


def test_the_newest_session_with_a_record_is_gone_on_from(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11):
        folder = tmp_path / f"session-{number}" / "server" / "simulate_job" / "fairflare"
        folder.mkdir(parents=True)
        if number < 11:  # the last session died before it wrote one
            (folder / "record.json").touch()
    assert latest_record_folder(tmp_path).parts[-4] == "session-10"


def test_a_folder_without_sessions_has_no_record(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-NO-RECORD"):
        latest_record_folder(tmp_path)
