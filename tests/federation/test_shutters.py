# SPDX-License-Identifier: Apache-2.0
"""A hostile server against live sites: it sends every message of the list, and more, to both of a site's processes.

The sites are of hardened kits; one more, of a stock kit, shows that the same messages open it. A job runs meanwhile, to
its end, with masks: what a run needs is exactly what is open.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.flare.simulate import process_marks
from fairflare.flare.topics import ADMIN, ENVELOPE, RETURN, STREAM, TOPICS
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.record import RunRecord
from poc.federation import SERVER, Federation, wait_until
from tests.federation.hostile_server import Hostile, Shot
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = pytest.mark.federation

TARGET = SITES[0]
FILE_SECRET, ENV_SECRET = "the-patients-of-ward-7", "token-of-the-hospitals-archive"
#: Ends the run, which is the server's right; sent last, by the server itself.
LAST = ("aux_communication", "__end_run__")
CLOSED = "FF-SHUTTER-CLOSED"
#: Only a run that is ended from outside uses these, and only a broken stream the last.
ABORT = {("parent", "in", ADMIN, "train.abort"), ("parent", "out", "client_command", "abort"),
         ("job", "in", "client_command", "abort")}  # fmt: skip
BROKEN = {("both", direction, "sm__STREAM", "sm__ERROR") for direction in ("in", "out")}


def _plan(name: str, rounds: int) -> Plan:
    # The model is large enough to go by FLARE's download service.
    return changed(
        presets.shipped("heart_flexfair"), name=name, training={"rounds": rounds, "seed": 7},
        model={"hidden": [1500]}, federation={"task_timeout_seconds": 60.0, "max_missed": 1},
    )  # fmt: skip


def _arrows(target: str, secret: Path, job: str = "") -> list[Shot]:
    """Every message of the list and some that are not in it, in every form that FLARE takes them in."""
    shots = [
        Shot(target, "_net_manager", "unheard"), Shot(target, "unheard", "of"), Shot(target, ADMIN, "unheard", "admin"),
        Shot(target, "cellnet.channel", "bulk", "bulk", f"cat {secret}", inner="sys.shell"),
        Shot(target, ADMIN, "train.check_status", "admin", f"cat {secret}", inner="sys.shell"),
        Shot(target, ADMIN, ENVELOPE, "value", {"topic": "sys.shell", "body": f"cat {secret}"}),
    ]  # fmt: skip
    headers = {"job_id": job or "../../..", "job_meta": {"name": "x"}, "app_name": "app"}
    for channel, topic in sorted({(one.channel, one.topic) for one in TOPICS} - {LAST, STREAM}):
        name = "anything" if topic == "*" else topic
        if channel == ADMIN and name != "train.abort":
            shots.append(Shot(target, channel, ENVELOPE, "admin", f"cat {secret}", inner=name, headers=headers))
            shots.append(Shot(target, channel, name, "admin", f"cat {secret}", headers=headers))
        else:
            kind = "data" if channel in ("aux_communication", "server_command") else "value"
            shots.append(Shot(target, channel, name, kind, {}))
            shots.append(Shot(target, channel, name, kind, {}, stream=True))
    return shots


def _secrets(running: Federation, site: str) -> list[bytes]:
    """What must be in nothing that a site sends."""
    key = (running.kits[site] / "startup" / "client.key").read_bytes().splitlines()
    words = [FILE_SECRET, ENV_SECRET, str(running.base), str(running.store), str(Path.home()) + "/", "client.key",
             "fed_client.json", "class_allow_list", "Traceback"]  # fmt: skip
    return [word.encode() for word in words] + key[1:3]


@dataclass
class Battle:
    """What was sent, what came back, and the run that went on meanwhile."""

    running: Federation
    hostile: Hostile
    secret: Path
    parent: list[tuple[Shot, str]]
    job: list[tuple[Shot, str]]
    record: RunRecord


@pytest.fixture(scope="module")
def battle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battle]:
    base = tmp_path_factory.mktemp("shutters")
    plan = _plan("besieged", 25)
    running = Federation(base / "federation", make_hospitals(base / "hospitals", plan, SITES, 60))
    secret, hostile = running.base / "secret.txt", Hostile(base / "hostile")
    secret.write_text(FILE_SECRET, encoding="utf-8")
    path = running.environment["PATH"]
    try:
        running.environment |= {"PATH": f"{hostile.python()}:{path}", "WARD_SECRET": ENV_SECRET}
        running.start(SERVER)
        running.environment["PATH"] = path
        running.start(*SITES[:2])
        shots = _arrows(TARGET, secret)
        parent = list(zip(shots, hostile.fire(*shots), strict=True))
        # Two are not enough: what they had promised to the job is given back.
        job = running.submit(write_job(plan, base / "jobs"))
        wait_until(lambda: "scheduler.cancel_resource" in running.log(TARGET).read_text() or None, 60, "cancellation")
        running.start(*SITES[2:])
        running.wait_for(job, "phase", task="train", round=1)
        shots = _arrows(f"{TARGET}.{job}", secret, job)
        during = list(zip(shots, hostile.fire(*shots), strict=True))
        assert running.ended(job) == "FINISHED:COMPLETED"
        record = verify_run(running.download(job))
        yield Battle(running, hostile, secret, parent, during, record)
    finally:
        running.stop()
    kits = {str(kit) for kit in running.kits.values()}
    assert [pid for pid, mark in process_marks().items() if mark in kits] == []


def test_the_run_went_on_to_its_end_with_masks(battle: Battle) -> None:
    assert battle.record.status == "complete"
    assert len(battle.record.rounds) == 25
    assert battle.record.final is not None
    assert battle.record.final.confirmed == SITES
    assert [line.refusals for line in battle.record.rounds] == [()] * 25


def test_every_message_was_sent(battle: Battle) -> None:
    assert len(battle.parent) == len(battle.job) > 150
    assert [shot for shot, text in battle.parent + battle.job if text.startswith("NOT SENT")] == []


def test_no_answer_holds_a_secret(battle: Battle) -> None:
    for shot, text in battle.parent + battle.job:
        for word in _secrets(battle.running, TARGET):
            assert word.decode() not in text, (shot.channel, shot.topic, shot.inner)


def test_nothing_that_any_site_ever_sent_holds_a_secret(battle: Battle) -> None:
    wire = battle.hostile.wire()
    assert len(wire) > 100_000
    for site in SITES:
        for word in _secrets(battle.running, site):
            # The researcher's own files come the same way, and are signed by name.
            found = [wire[max(0, one.start() - 200) : one.end()] for one in re.finditer(re.escape(word), wire)]
            assert [one for one in found if site.encode() in one] == [], word


def test_closed_messages_get_the_code_and_nothing_else(battle: Battle) -> None:
    opened = set()
    for process, volley in (("parent", battle.parent), ("job", battle.job)):
        for shot, text in volley:
            if CLOSED in text:
                assert text.endswith(("payload=None", f"body: {CLOSED}, headers: {{_rtnCode: _error}}}}")), shot
            else:
                opened.add((process, shot.channel, shot.inner or shot.topic))
    assert opened == {
        # Names only, and FLARE's version.
        ("parent", ADMIN, "train.check_status"), ("parent", ADMIN, "sys.report_version"),
        # Refused at the door, by a code of its own.
        *(("parent", ADMIN, name) for name in
          ("train.deploy", "train.start_job", "scheduler.check_resource", "scheduler.cancel_resource")),
        # No such reference.
        ("job", "download_service__", "download_service__download"),
        # Receipts for streams that are none.
        *((process, "sm__STREAM", name) for process in ("parent", "job") for name in ("sm__ACK", "sm__ERROR")),
        # Answers to nothing.
        *((process, RETURN, "anything") for process in ("parent", "job")),
    }  # fmt: skip


def _used(running: Federation) -> set[tuple[str, str, str]]:
    """What the sites' own logs say was used."""
    lines = "\n".join(running.log(site).read_text(encoding="utf-8", errors="replace") for site in SITES)
    return set(re.findall(r"FF-SHUTTER-USED (in|out) (\S+) (\S+)", lines))


def test_the_list_of_what_is_needed_is_exact(battle: Battle) -> None:
    needed = {
        (one.process, one.direction, one.channel, one.topic)
        for one in TOPICS
        if one.verdict in ("needed", "checked") and (one.channel, one.topic) not in (STREAM, (RETURN, "*"))
    }
    used = _used(battle.running)
    assert {key[1:] for key in needed - ABORT - BROKEN} - used == set()
    assert used - {key[1:] for key in needed} <= {
        ("in", ADMIN, "train.check_status"), ("in", ADMIN, "sys.report_version"), ("out", "task", "quit"),
    }  # fmt: skip


def test_each_closed_kind_is_told_once_and_without_content(battle: Battle) -> None:
    log = battle.running.log(TARGET).read_text(encoding="utf-8", errors="replace")
    told = re.findall(rf"{CLOSED} in (\S+) (\S+)$", log, flags=re.MULTILINE)
    # Once by the parent process, once by the job's.
    assert {told.count(one) for one in told} <= {1, 2}
    assert (ADMIN, "sys.shell") in told
    assert ("?", "?") in told
    assert "unheard" not in log
    assert str(battle.secret) not in log


@pytest.mark.slow
def test_a_run_that_is_aborted_ends_at_the_sites(battle: Battle, tmp_path: Path) -> None:
    running = battle.running
    running.wait_idle()
    job = running.submit(write_job(_plan("aborted", 200), tmp_path))
    running.wait_for(job, "phase", task="train", round=1)
    running.job("abort", job, "--force")
    running.wait_idle(60)
    assert running.ended(job) == "FINISHED:ABORTED"
    assert {key[1:] for key in ABORT} <= _used(running)


# ----------------------------------------------------------------------------------------------------- a kit of FLARE's


class Stock(Federation):
    """The same project without our builder: the kits that FLARE's template makes."""

    def _provision(self, project: Path) -> Path:
        plain = yaml.safe_load(project.read_text(encoding="utf-8"))
        plain["builders"] = [one for one in plain["builders"] if not one["path"].startswith("fairflare.")]
        project.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
        return super()._provision(project)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stock, Hostile, Path]]:
    base = tmp_path_factory.mktemp("stock")
    plan = presets.shipped("heart_flexfair")
    running = Stock(base / "federation", make_hospitals(base / "hospitals", plan, SITES, 60))
    secret, hostile = running.base / "secret.txt", Hostile(base / "hostile")
    secret.write_text(FILE_SECRET, encoding="utf-8")
    path = running.environment["PATH"]
    try:
        running.environment |= {"PATH": f"{hostile.python()}:{path}", "WARD_SECRET": ENV_SECRET}
        running.start(SERVER)
        running.environment["PATH"] = path
        running.start(TARGET)
        yield running, hostile, secret
    finally:
        running.stop()


def _shell(command: str) -> Shot:
    return Shot(TARGET, ADMIN, ENVELOPE, "admin", command, inner="sys.shell")


def test_a_stock_kit_gives_every_file_away(stock: tuple[Stock, Hostile, Path]) -> None:
    running, hostile, secret = stock
    startup = running.kits[TARGET] / "startup"
    texts = hostile.fire(
        _shell(f"cat {secret}"), _shell(f"cat {startup / 'client.key'}"), _shell("cat /proc/self/environ"),
        _shell(f"ls {startup}"), Shot(TARGET, ADMIN, ENVELOPE, "admin", "", inner="sys.report_env"),
    )  # fmt: skip
    assert FILE_SECRET in texts[0]
    assert "PRIVATE KEY" in texts[1]
    assert ENV_SECRET in texts[2]
    assert "fed_client.json" in texts[3]
    assert str(running.base) in texts[4]


def test_a_stock_kit_gives_its_configuration_away_by_itself(stock: tuple[Stock, Hostile, Path]) -> None:
    _, hostile, _ = stock
    (text,) = hostile.fire(Shot(TARGET, "_net_manager", "config_vars"))
    assert CLOSED not in text
    assert b"site_config" in hostile.wire()


def test_a_site_whose_shutters_do_not_close_does_not_start(stock: tuple[Stock, Hostile, Path]) -> None:
    running, _, _ = stock
    site = SITES[1]

    def another_form(resources: dict[str, Any]) -> None:
        # As on a FLARE that builds components otherwise: the constructor raises.
        broken = {"path": "fairflare.flare.shutters.Shutters", "args": {"unknown": 1}}
        resources["components"].append({"id": "shutters", **broken})

    running.amend(site, another_form)
    done = subprocess.run(
        [str(running.kits[site] / "startup" / "sub_start.sh"), "--once"], env=running.environment, cwd=running.base,
        capture_output=True, text=True, check=False, timeout=90, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "connector" not in done.stdout + done.stderr
    assert f"New client {site}@" not in running.log(SERVER).read_text(encoding="utf-8", errors="replace")


def test_the_same_messages_find_secrets_in_a_stock_kit(stock: tuple[Stock, Hostile, Path]) -> None:
    running, hostile, secret = stock
    harmless = [
        shot
        for shot in _arrows(TARGET, secret)
        if (shot.inner or shot.topic) not in ("train.shutdown", "train.restart", "train.delete_run", "change_root")
        and shot.topic not in ("stop", "stop_cell", "stress", "start_route", "speed", "bulk_test", "bye")
    ]
    # Some of the others cost a stock site its connection, and with it the answers that are still on their way.
    waves = [[shot for shot in harmless if (shot.channel == ADMIN) is first] for first in (True, False)]
    texts = [text for wave in waves for text in hostile.fire(*wave, wait=60)]
    found = {word for text in texts for word in _secrets(running, TARGET) if word.decode() in text}
    assert {FILE_SECRET.encode(), str(running.base).encode()} <= found
