# SPDX-License-Identifier: Apache-2.0
"""The server's own side, on live processes: what its operator sees, that nobody's result is in it, and its limits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets
from fairflare.engine.describe import record_sha256
from fairflare.engine.local import answer
from fairflare.engine.server import Phase
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord, read_record
from fairflare.schema import pretty
from tests.benchmarks.masked_rounds import protected
from tests.benchmarks.subjects import resnet_plan
from tests.federation.provisioned import SERVER, Federation, FederationError, federation, wait_until
from tests.federation.support import ROOT, changed, fairflare, local_run, make_hospitals, models, remembered, replay
from tests.federation.support import SITES as FOUR

pytestmark = pytest.mark.federation

SITES = (*FOUR, "hospital-5")
ILL, VETO = "hospital-4", "hospital-3"
#: Forty-five megabytes of masked words from every hospital, and as many down.
LARGE = protected(resnet_plan(16, 1, 3), "masked")
#: A number of records that nothing else on a page is likely to be.
RECORDS = 137


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> DataCatalog:
    base = tmp_path_factory.mktemp("hospitals")
    heart = make_hospitals(base / "heart", presets.shipped("heart_flexfair"), SITES, RECORDS)
    skin = make_hospitals(base / "skin", LARGE, SITES, 30)
    both = {site: {**(heart.sites or {})[site], **(skin.sites or {})[site]} for site in SITES}
    return DataCatalog(format=heart.format, data_sets=None, sites=both)


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory, catalog: DataCatalog) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("server_side") / "federation", catalog) as running:
        yield running
    assert running.left() == []


def _plan(name: str, seed: int, rounds: int = 2, **sections: Any) -> Plan:
    training = {"rounds": rounds, "seed": seed}
    return changed(
        presets.shipped("heart_flexfair"), name=name, training=training, federation={"min_sites": 3}, **sections
    )


def _submit(parties: Federation, plan: Plan) -> str:
    parties.wait_idle()
    return parties.submit(write_job(plan, parties.base / "drafts"))


# -------------------------------------------------------------------------------------------------------------- health


def _health(parties: Federation, page: Path | None = None) -> dict[str, Any]:
    more = [] if page is None else ["--html", page]
    done = fairflare("server", "health", parties.kits[SERVER], "--format", "json", *more)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["health"])


def _numbers_of_sites(plan: Plan, catalog: DataCatalog, folder: Path) -> set[float]:
    """Every number that any site would send in clear."""
    found: set[float] = set()

    def answering(site: Site, phase: Phase) -> None:
        before = phase.collector.accept

        def accept(name: str, reply: Any) -> None:
            for payload in reply.payloads.values():
                found.update(payload.values.ravel().tolist())
                found.update([] if payload.weight is None else [payload.weight])
            before(name, reply)

        phase.collector.accept = accept  # type: ignore[method-assign]
        answer(site, phase)

    clear = changed(plan, protection={"update": "none", "statistics": "none", "masking": None})
    replay(clear, catalog, folder, answering)
    return {abs(one) for one in found if abs(one) > 20 or one != int(one)}


def _numbers_on(page: str) -> set[str]:
    """What is written with digits, but for moments, ids, the style and the kit's own bytes and days."""
    body = page[page.index("<body>") : page.index('<h2 id="s4">')]
    body = re.sub(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|id=\"s\d\"", "", body)
    return set(re.findall(r"\d[\d,.]*", body))


def test_the_operator_sees_sites_jobs_and_refusals_and_nobodys_result(
    parties: Federation, catalog: DataCatalog, tmp_path: Path
) -> None:
    plan = _plan("health", 1, rounds=3)
    parties.set_policy(VETO, cells_minimum=50)
    # The server writes what it sees every few seconds: a file from before the site came would look like its loss.
    wait_until(lambda: ILL in _connected(parties) or None, 60, "sign of life in the server's file", interval=1.0)
    parties.stop(ILL)
    try:
        wait_until(lambda: ILL not in _connected(parties) or None, 60, "loss of a site", interval=1.0)
        job = _submit(parties, plan)
        parties.wait_for(job, "phase", task="train", round=1)
        live = _health(parties, tmp_path / "live.html")
        assert parties.ended(job) == "FINISHED:COMPLETED"
    finally:
        parties.set_policy(VETO)
        parties.start(ILL)
    later = _health(parties, tmp_path / "later.html")
    _verify_live(live, job)
    (line,) = (one for one in later["jobs"] if one["id"] == job)
    assert (line["status"], line["complete"]) == ("FINISHED:COMPLETED", 3)
    verify_run(parties.download(job))
    results = _numbers_of_sites(plan, catalog, tmp_path / "clear")
    assert len(results) > 1000
    for name in ("live.html", "later.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        shown = {float(one.replace(",", "").rstrip(".")) for one in _numbers_on(page)}
        assert shown
        assert {one for one in results if any(abs(one - other) < 1e-6 * one for other in shown)} == set()
        assert str(RECORDS) not in _numbers_on(page)


def _connected(parties: Federation) -> list[str]:
    return [one["name"] for one in _health(parties)["sites"] if one["connected"]]


def _verify_live(live: dict[str, Any], job: str) -> None:
    assert {one["name"]: one["connected"] for one in live["sites"]} == {site: site != ILL for site in SITES}
    (line,) = (one for one in live["jobs"] if one["id"] == job)
    assert line["status"] in ("DISPATCHED", "RUNNING")
    assert line["round"] >= 1
    assert line["rounds"] == 3
    assert line["task"] is not None
    assert [(one["code"], one["task"], one["sites"]) for one in live["refusals"]] == [
        ("FF-POLICY-REFUSED", "deploy", [VETO])
    ]
    assert ILL not in json.dumps([live["jobs"], live["refusals"]])


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.slow
def test_a_large_model_is_not_taken_for_too_much(parties: Federation) -> None:
    job = _submit(parties, changed(LARGE, federation={"task_timeout_seconds": 240.0}))
    assert parties.ended(job, 400) == "FINISHED:COMPLETED"
    record = verify_run(parties.download(job))
    assert record.final is not None
    assert record.final.confirmed == SITES
    assert not [one for one in _health(parties)["refusals"] if one["job"] == LARGE.name]
    assert "FF-LIMIT" not in parties.log(SERVER).read_text("utf-8", "replace")


def _armed(how: str) -> Callable[[dict[str, Any]], None]:
    def change(resources: dict[str, Any]) -> None:
        own = {"id": "hostile", "path": "tests.federation.hostile_site.Sender", "args": {"how": how}}
        resources["components"] = [*resources["components"], own]

    return change


@contextlib.contextmanager
def _hostile(parties: Federation, how: str) -> Iterator[None]:
    """A hospital that sends far too much, beside what it should."""
    own, kept = parties.kits[ILL] / "local" / "resources.json", parties.environment.get("PYTHONPATH")
    parties.wait_idle()
    parties.stop(ILL)
    parties.amend(ILL, _armed(how))
    parties.environment["PYTHONPATH"] = os.pathsep.join(filter(None, (kept, str(ROOT))))
    try:
        parties.start(ILL)
        yield
    finally:
        parties.stop(ILL)
        own.unlink()
        if kept is None:
            del parties.environment["PYTHONPATH"]
        else:
            parties.environment["PYTHONPATH"] = kept
        parties.start(ILL)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("flood", "FF-LIMIT-MESSAGES"), ("huge", "FF-LIMIT-SIZE")])
def test_a_site_that_sends_far_too_much_is_refused_by_name_and_the_others_finish(
    how: str, code: str, parties: Federation
) -> None:
    others = tuple(site for site in SITES if site != ILL)
    with _hostile(parties, how):
        job = _submit(parties, _plan(f"hostile_{how}", 10, rounds=3))
        assert parties.ended(job) == "FINISHED:COMPLETED"
        record = verify_run(parties.download(job))
        seen = _health(parties)
    assert record.final is not None
    assert record.final.confirmed == others
    refusals = [*record.join_refusals, *record.final.refusals]
    refusals += [one for line in (*record.rounds, *record.lost_rounds) for one in line.refusals]
    assert {one.site for one in refusals} == {ILL}
    assert code in {one.code for one in refusals}
    of_tasks = [one["sites"] for one in seen["refusals"] if one["code"] == code]
    assert of_tasks
    assert all(sites == [ILL] for sites in of_tasks)


def test_a_job_is_refused_while_the_server_has_no_room(parties: Federation) -> None:
    parties.wait_idle()
    file = parties.kits[SERVER] / "local" / LIMITS_NAME
    kept = file.read_bytes()
    file.write_text(pretty(STANDARD.model_copy(update={"quota_bytes": 1024**2, "reserve_bytes": 1024**2})), "utf-8")
    try:
        with pytest.raises(FederationError, match="FF-SERVER-QUOTA: got"):
            _submit(parties, _plan("no_room", 11))
        wait_until(lambda: _codes(parties).get("FF-SERVER-QUOTA"), 20, "note of the refusal", interval=1.0)
    finally:
        file.write_bytes(kept)


@pytest.mark.slow
def test_a_job_waits_until_there_is_room(parties: Federation) -> None:
    first = _submit(parties, _plan("before", 12, rounds=40))
    waiting = parties.submit(write_job(_plan("waits", 13), parties.base / "drafts"))
    file = parties.kits[SERVER] / "local" / LIMITS_NAME
    kept = file.read_bytes()
    file.write_text(pretty(STANDARD.model_copy(update={"quota_bytes": 1024**2, "reserve_bytes": 1024**2})), "utf-8")
    try:
        wait_until(lambda: "FF-SERVER-QUOTA" in str(parties.meta(waiting)) or None, 120, "refusal", interval=1.0)
        assert parties.ended(first) == "FINISHED:COMPLETED"
    finally:
        file.write_bytes(kept)
    assert parties.ended(waiting) == "FINISHED:COMPLETED"


def _codes(parties: Federation) -> dict[str, str]:
    return {one["code"]: one["task"] for one in _health(parties)["refusals"]}


# ------------------------------------------------------------------------------------------------------------ recovery


def _kill_server(parties: Federation) -> None:
    """The server's machine fails, and starts again."""
    for pid in parties.processes(SERVER):
        os.kill(pid, signal.SIGKILL)
    parties.stop(SERVER)
    parties.spawn(SERVER)


def _continued(parties: Federation, job: str) -> str:
    """The id of the job that goes on with one whose server ended."""

    def look() -> str | None:
        with contextlib.suppress(FederationError, subprocess.TimeoutExpired):  # the server is not there yet
            meta = parties.meta(job)
            assert meta["status"] in ("RUNNING", "FINISHED:ABNORMAL")
            return str(meta["continued_as"]) if "continued_as" in meta else None
        return None

    return wait_until(look, 240, "continuation", interval=2.0)


def _died(parties: Federation, plan: Plan, **phase: Any) -> tuple[RunRecord, RunRecord]:
    """The record that a server left behind which was killed in a phase, and that of the job that went on."""
    job = _submit(parties, plan)
    parties.wait_for(job, "phase", **phase)
    _kill_server(parties)
    new = _continued(parties, job)
    left = read_record(parties.progress(job).parent)
    assert parties.ended(new, 240) == "FINISHED:COMPLETED"
    return left, verify_run(parties.download(new))


@pytest.mark.slow
def test_a_masked_job_whose_server_is_killed_goes_on_by_itself_without_the_round_that_was_begun(
    parties: Federation,
) -> None:
    plan = _plan("killed", 20, rounds=4)
    left, record = _died(parties, plan, task="train", round=1)
    assert (left.status, [line.round for line in left.rounds]) == ("running", [0])
    assert [(lost.round, lost.code) for lost in record.lost_rounds] == [(1, "FF-RUN-INTERRUPTED")]
    assert [line.round for line in record.rounds] == [0, 2, 3]
    assert record.rounds[0].model_sha256 == left.rounds[0].model_sha256
    assert [one.joined for one in record.sessions] == [SITES, SITES]
    assert record.sessions[1].previous_record_sha256 == record_sha256(left)
    assert record.final is not None
    assert record.final.confirmed == SITES
    for site in SITES:  # nobody was ever asked for the update of the round that was begun once more
        assert {number for number, label in remembered(parties.store, site, plan) if label == "update"} == {0, 2, 3}


@pytest.mark.slow
def test_a_job_in_clear_goes_on_to_the_very_model_of_a_run_that_was_left_alone(
    parties: Federation, catalog: DataCatalog, tmp_path: Path
) -> None:
    clear = {"update": "none", "statistics": "none", "masking": None}
    plan = _plan("killed_in_clear", 21, rounds=4, protection=clear)
    # Momentum is kept at sites only, so it begins anew with a session; without it a round depends on its number alone.
    optimizer = {**plan.training.optimizer.model_dump(mode="json"), "state": "reset"}
    plan = changed(plan, training={"optimizer": optimizer})
    left, record = _died(parties, plan, task="train", round=2)
    assert len(left.rounds) == 2
    assert len(record.sessions) == 2
    assert models(record) == models(local_run(plan, catalog, tmp_path / "alone"))
