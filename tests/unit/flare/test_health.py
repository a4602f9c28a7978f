# SPDX-License-Identifier: Apache-2.0
"""The health of a server is read from its kit: names, phases and codes, and no file in which results stand."""

from __future__ import annotations

import json
import os
import re
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fairflare.cli import app
from fairflare.errors import ServerError
from fairflare.evaluation.health import SOON_DAYS, Certificate, Disk, Health, JobLine, RefusalLine, SiteLine, verdict
from fairflare.evaluation.health_page import to_html, to_json, to_terminal
from fairflare.evaluation.render import to_text
from fairflare.flare import presence
from fairflare.flare.health import INTERRUPTED, health, kit_size
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD
from fairflare.flare.without import FILE_NAME
from fairflare.policy.roster import ROSTER_FORMAT, ROSTER_NAME
from fairflare.record import FILE_NAME as RECORD
from fairflare.record import PROGRESS_NAME, SERVER_NAME, STATE_NAME, Refusal, first_state, followed, write_state
from tests.unit.flare.test_kit import NOW, kit

RUNNING, ENDED, REFUSED = (f"{number:08d}-0000-4000-8000-000000000000" for number in (1, 2, 3))
SITES = ("hospital-1", "hospital-2", "hospital-3")
SECRET = "47.110815"
ABSENT = {"site": "hospital-3", "task": "deploy", "code": "FF-RUN-ABSENT"}
VETO = {"site": "hospital-2", "task": "deploy", "code": "FF-POLICY-REFUSED"}


def write_run(folder: Path, *events: tuple[str, dict[str, Any]]) -> None:
    """A run's folder as the server keeps it, results included."""
    (folder / "fairflare").mkdir(parents=True)
    for name in (RECORD, PROGRESS_NAME, "model.safetensors"):
        (folder / "fairflare" / name).write_text(f'{{"loss": {SECRET}}}', encoding="utf-8")
    state = first_state("hearts", time.time())
    for event, facts in (("start", {"rounds": 9}), *events):
        state = followed(state, event, facts, time.time())
    write_state(folder / "fairflare" / STATE_NAME, state)
    (folder / FILE_NAME).write_text(json.dumps({"sites": [VETO, ABSENT]}), encoding="utf-8")


def write_meta(server: Path, job: str, status: str, **more: Any) -> Path:
    folder = server / "store" / "jobs" / job
    folder.mkdir(parents=True)
    meta = {"job_id": job, "name": f"plan_{job[7]}", "status": status, "submit_time": time.time() - int(job[7]), **more}
    (folder / "meta").write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Path:
    kit(tmp_path, "server")
    roster = {"format": ROSTER_FORMAT, "sites": dict.fromkeys(SITES, "0" * 64)}
    (tmp_path / "local" / ROSTER_NAME).write_text(json.dumps(roster), encoding="utf-8")
    alive(tmp_path)
    write_meta(tmp_path, RUNNING, "RUNNING")
    late = {"site": "hospital-1", "task": "measure", "code": "FF-ROUND-TIMEOUT"}
    write_run(tmp_path / RUNNING, ("refused", late), ("phase", {"task": "train", "round": 2, "sites": ["hospital-1"]}))
    folder = write_meta(tmp_path, ENDED, "FINISHED:COMPLETED")
    write_run(tmp_path / "gone", ("round", {"round": 0}), ("end", {"status": "complete", "code": None}))
    with zipfile.ZipFile(folder / "workspace", "w") as packed:
        for file in sorted((tmp_path / "gone").rglob("*")):
            packed.write(file, file.relative_to(tmp_path / "gone"))
    for file in sorted((tmp_path / "gone").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    said = ["server: OK", "hospital-2: NVFLARE_ERROR: FF-JOB-CODE app/custom Anna Svensson"]
    tries = [f"2026-11-28 08:00:0{second}: FF-SERVER-QUOTA no room" for second in range(2)]
    write_meta(tmp_path, REFUSED, "FINISHED:FAILED_TO_RUN", job_deploy_detail=said, schedule_history=tries)
    return tmp_path


def alive(server: Path, **clients: float) -> None:
    """The server's process writes: two hospitals are there."""
    there = clients or {"hospital-1": time.time(), "hospital-2": time.time() - 5}
    table = {name: SimpleNamespace(name=name.replace("_", "-"), last_connect_time=at) for name, at in there.items()}
    presence.Watch(lambda: table, 60.0).write(server / "store" / SERVER_NAME)


def found(server: Path) -> Health:
    return health(server, time.time())


def job(health_: Health, id_: str) -> JobLine:
    (line,) = [one for one in health_.jobs if one.id == id_]
    return line


def test_sites_are_those_of_the_roster_and_who_is_not_there_has_no_time(server: Path) -> None:
    sites = {one.name: one for one in found(server).sites}
    assert [one.connected for one in sites.values()] == [True, True, False]
    assert sites["hospital-3"] == SiteLine("hospital-3", False, None)


def test_a_site_that_left_keeps_when_it_was_last_seen(server: Path) -> None:
    clients = {"a": SimpleNamespace(name="hospital-3", last_connect_time=1234.0)}
    watch = presence.Watch(lambda: clients, 60.0)
    watch.look()
    clients.clear()
    watch.write(server / "store" / SERVER_NAME)
    assert found(server).sites[2] == SiteLine("hospital-3", False, 1234.0)


def test_a_running_job_says_where_it_is(server: Path) -> None:
    line = job(found(server), RUNNING)
    assert (line.status, line.round, line.rounds, line.task, line.asked) == ("RUNNING", 2, 9, "train", 1)


def test_a_job_that_ended_is_read_from_its_archive(server: Path) -> None:
    line = job(found(server), ENDED)
    assert (line.status, line.complete, line.rounds, line.task) == ("FINISHED:COMPLETED", 1, 9, None)


def test_a_job_of_a_server_that_died_is_called_interrupted(server: Path) -> None:
    time.sleep(0.01)
    alive(server)
    assert job(found(server), RUNNING).status == INTERRUPTED


def test_the_newest_jobs_come_first(server: Path) -> None:
    assert [one.id for one in found(server).jobs] == [RUNNING, ENDED, REFUSED]


def test_refusals_are_gathered_by_code_and_absence_is_none(server: Path) -> None:
    presence.REFUSALS.note("", "submit", "FF-JOB-META")
    alive(server)
    lines = {(one.code, one.task, one.job): (one.sites, one.times) for one in found(server).refusals}
    assert lines[("FF-JOB-META", "submit", "")] == ((), 1)
    assert lines[("FF-ROUND-TIMEOUT", "measure", "plan_1")] == (("hospital-1",), 1)
    assert lines[("FF-POLICY-REFUSED", "deploy", "plan_1")] == (("hospital-2",), 1)
    assert lines[("FF-JOB-CODE", "deploy", "plan_3")] == (("hospital-2",), 1)
    assert lines[("FF-SERVER-QUOTA", "schedule", "plan_3")] == ((), 2)
    assert not any(code == "FF-RUN-ABSENT" for code, _, _ in lines)


@pytest.mark.parametrize("form", ["html", "table", "json"])
def test_no_result_is_on_the_page_and_no_word_of_a_site(server: Path, form: str) -> None:
    there = found(server)
    text = {"html": to_html(there), "table": to_text(to_terminal(there), 300), "json": to_json(there)}[form]
    assert "hospital-3" in text
    assert SECRET not in text
    assert "Svensson" not in text


def test_of_a_site_that_is_not_there_the_page_has_name_and_time_only(server: Path) -> None:
    html = to_html(found(server))
    assert re.findall(r"<tr><th[^>]*>hospital-3</th>(.*?)</tr>", html) == [
        '<td class="text">no</td><td class="text">not since the server&#39;s start</td>'
    ]
    assert html.count("hospital-3") == 1


def test_results_are_not_even_read(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or real(self, *a, **k))
    packed: list[str] = []
    member = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name, *a: packed.append(name.filename) or member(self, name, *a)
    )
    found(server)
    assert {STATE_NAME, FILE_NAME} <= set(opened)
    assert sorted(packed) == ["fairflare/state.json", FILE_NAME]
    assert not {RECORD, PROGRESS_NAME, "model.safetensors"} & set(opened)


def test_what_cannot_be_read_is_left_out(server: Path) -> None:
    (server / "store" / SERVER_NAME).write_text("{", encoding="utf-8")
    (server / RUNNING / "fairflare" / STATE_NAME).write_text("[]", encoding="utf-8")
    (server / "store" / "jobs" / ENDED / "workspace").write_bytes(b"no archive")
    (server / "store" / "jobs" / REFUSED / "meta").write_text('{"job_id": "another"}', encoding="utf-8")
    there = found(server)
    assert not there.is_alive
    assert [(one.id, one.round) for one in there.jobs] == [(RUNNING, None), (ENDED, None)]


@pytest.mark.parametrize(("more", "read"), [(0, True), (1024 * 1024, False)])
def test_a_large_file_in_an_archive_is_not_read(more: int, read: bool, server: Path) -> None:
    text = (server / RUNNING / "fairflare" / STATE_NAME).read_text(encoding="utf-8")
    with zipfile.ZipFile(server / "store" / "jobs" / ENDED / "workspace", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("fairflare/state.json", text + " " * more)
    assert (job(found(server), ENDED).round is not None) == read


def test_the_disk_is_the_whole_kit(server: Path) -> None:
    before = kit_size(server)
    (server / RUNNING / "large").write_bytes(bytes(5000))
    os.symlink("/usr", server / "link")
    assert 5000 <= kit_size(server) - before < 5100
    assert found(server).disk.used == kit_size(server)


def test_limits_that_cannot_be_read_are_not_called_no_limits(server: Path) -> None:
    assert found(server).disk.quota == STANDARD.quota_bytes
    (server / "local").mkdir(exist_ok=True)
    (server / "local" / LIMITS_NAME).write_text("{}", encoding="utf-8")
    assert found(server).disk.quota is None
    assert "not known: local/limits.json cannot be used" in to_html(found(server))


def lines(**changes: Any) -> Health:
    base: dict[str, Any] = {
        "server": "s", "now": NOW.timestamp(), "started": 1.0, "alive": NOW.timestamp(), "sites": (), "jobs": (),
        "refusals": (), "disk": Disk(1, 100, 10), "certificates": (),
    }  # fmt: skip
    return Health(**{**base, **changes})


def test_warnings() -> None:
    assert lines().warnings == ()
    soon, later = (Certificate("c", NOW + timedelta(days=SOON_DAYS + more)) for more in (-1, 1))
    assert len(lines(certificates=(soon, later)).warnings) == 1
    assert len(lines(disk=Disk(91, 100, 9)).warnings) == 1
    assert lines(disk=Disk(90, 100, 9)).warnings == ()
    (limits,) = lines(disk=Disk(90, None, 9)).warnings
    assert "limits.json cannot be used" in limits
    dead = lines(alive=NOW.timestamp() - 21, jobs=(JobLine("i", "n", "RUNNING", 1.0),))
    assert len(dead.warnings) == 2
    assert verdict(dead) == "The server is NOT running."


def test_names_of_others_are_shown_as_they_are_and_do_nothing() -> None:
    evil = "<script>alert(1)</script>\u202e[bold]x"
    there = lines(
        server=evil, sites=(SiteLine(evil, True, 1.0),), certificates=(Certificate(evil, NOW),),
        jobs=(JobLine("i", evil, "RUNNING", 1.0, 0, 3, 0, evil, 1.0, 4),),
        refusals=(RefusalLine("FF-X", evil, evil, (evil,), 1),),
    )  # fmt: skip
    html, text = to_html(there), to_text(to_terminal(there), 300)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5
    assert text.count("\\u202e[bold]x") > 5
    assert "\u202e" not in html + text


def test_another_folder_is_no_servers_kit(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="FF-SERVER-KIT"):
        health(tmp_path, 0.0)
    kit(tmp_path, "client")
    with pytest.raises(ServerError, match="FF-SERVER-KIT"):
        health(tmp_path, 0.0)


def test_the_command_prints_and_writes_and_tells_a_dead_server_by_its_exit_status(server: Path) -> None:
    page = server / "page.html"
    done = CliRunner().invoke(app, ["server", "health", str(server), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "2 of 3 sites are connected; 1 job runs" in done.output
    assert "<h1>Server hospital-1</h1>" in page.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")
    (server / "store" / SERVER_NAME).unlink()
    done = CliRunner().invoke(app, ["server", "health", str(server), "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["alive"] is False


def test_watching_looks_again_until_it_is_ended(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("fairflare.cli.server.time.sleep", sleep)
    page = server / "page.html"
    done = CliRunner().invoke(app, ["server", "health", str(server), "--watch", "7", "--html", str(page)])
    assert (done.exit_code, looks) == (0, [7, 7, 7])
    assert '<meta http-equiv="refresh" content="7">' in page.read_text(encoding="utf-8")
    assert done.output.count("sites are connected") == 3


def test_a_state_that_cannot_be_written_does_not_end_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file", encoding="utf-8")
    presence.Watch(dict, 60.0).write(tmp_path / "store" / SERVER_NAME)
    assert "FF-SERVER-STATE" in caplog.text


def test_the_component_writes_when_the_system_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presence, "_write_for_ever", lambda watch, file: watch.write(file))
    clients = {"t": SimpleNamespace(name="hospital-1", last_connect_time=5.0)}
    engine = SimpleNamespace(
        client_manager=SimpleNamespace(get_clients=lambda: clients), server=SimpleNamespace(heart_beat_timeout=60)
    )
    context: Any = SimpleNamespace(get_engine=lambda: engine)
    presence.ServerPresence().handle_event("_job_started", context)
    assert not (tmp_path / "store").exists()
    presence.ServerPresence().handle_event("_system_start", context)
    file = tmp_path / "store" / SERVER_NAME
    deadline = time.monotonic() + 5
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads(file.read_text(encoding="utf-8"))["sites"] == {"hospital-1": 5.0}


def test_a_refusal_is_noted_once_and_counted() -> None:
    book = presence.Refusals()
    for _ in range(3):
        book.note("hospital-1", "message", "FF-LIMIT-RATE")
    (one,) = book.found
    assert (one.refusal, one.times) == (Refusal(site="hospital-1", task="message", code="FF-LIMIT-RATE"), 3)
