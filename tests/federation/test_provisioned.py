# SPDX-License-Identifier: Apache-2.0
"""Real start-up kits and real parent processes: masks whose keys the project's root vouches for, and sites that die.

One federation for all tests: a job takes half a minute, mostly FLARE's start and end. Every job has a plan of its own,
since a site answers a question of a plan once, whoever asks.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.local import answer
from fairflare.engine.messages import CONFIRM, JOIN, MEASURE, PREPARE, TASKS, TRAIN, UNMASK, Message
from fairflare.engine.server import Phase
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.flare.provision_files import SEAL, SHUTTERS, VALIDATOR
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog, open_policy, read_policy
from fairflare.privacy.decisions import read_decisions
from fairflare.record import RunRecord, read_record
from tests.federation.provisioned import ADMIN, RESEARCHER, SERVER, Federation, FederationError, federation
from tests.federation.support import SITES, changed, local_run, make_hospitals, models, remembered, replay

pytestmark = pytest.mark.federation

ROUNDS = 4
#: Seconds that a phase waits for a site that is dead.
DEADLINE = 8.0
DEAD = "hospital-4"
ALIVE = SITES[:3]


def _plan(name: str, seed: int, seconds: float = DEADLINE) -> Plan:
    return changed(
        presets.shipped("heart_flexfair"), name=name, training={"rounds": ROUNDS, "seed": seed},
        federation={"task_timeout_seconds": seconds, "max_missed": 1},
    )  # fmt: skip


@dataclass
class Parties:
    federation: Federation
    catalog: DataCatalog
    jobs: Path

    def write(self, plan: Plan) -> Path:
        return write_job(plan, self.jobs)


@dataclass
class Ended:
    """A job that has ended: its plan, FLARE's id of it, the folder of its record."""

    plan: Plan
    job: str
    folder: Path

    @property
    def record(self) -> RunRecord:
        return read_record(self.folder)


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    base = tmp_path_factory.mktemp("kits")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    with federation(base / "federation", catalog) as running:
        yield Parties(running, catalog, base / "jobs")
    assert running.left() == []


# --------------------------------------------------------------------------------------------------- everybody is there


@pytest.fixture(scope="module")
def complete(parties: Parties) -> Ended:
    plan = _plan("kits", 1, 60.0)
    job = parties.federation.submit(parties.write(plan))
    assert parties.federation.ended(job) == "FINISHED:COMPLETED"
    return Ended(plan, job, parties.federation.download(job))


def test_a_job_completes_with_the_identities_of_kits(complete: Ended) -> None:
    record = verify_run(complete.folder)
    assert record.status == "complete"
    assert [session.identities for session in record.sessions] == ["kit"]
    assert [notice for notice in record.notices if "unauthenticated" in notice] == []
    assert record.final is not None
    assert record.final.confirmed == SITES
    assert [line.refusals for line in record.rounds] == [()] * ROUNDS


def test_who_vouches_for_sites_changes_no_number(parties: Parties, complete: Ended, tmp_path: Path) -> None:
    local = local_run(complete.plan, parties.catalog, tmp_path)
    assert models(complete.record) == models(local)
    assert complete.record.final == local.final
    assert local.sessions[-1].identities == "development"


def test_each_site_has_written_down_what_it_gave_away(parties: Parties, complete: Ended) -> None:
    for site in SITES:
        assert remembered(parties.federation.store, site, complete.plan) == {(n, "update") for n in range(ROUNDS)}


def test_each_site_got_the_models(parties: Parties, complete: Ended) -> None:
    for site in SITES:
        folder = parties.federation.kits[site] / complete.job / "fairflare" / "models"
        assert {file.name for file in folder.iterdir()} >= {"final.safetensors", "record.json", "model_card.md"}


# ------------------------------------------------------------------------------------------------------- hardened kits


def test_every_protection_of_a_hardened_kit_was_on(parties: Parties, complete: Ended) -> None:
    for site in SITES:
        local = parties.federation.kits[site] / "local"
        assert not (local / "resources.json").exists()  # so it is the builder's own file that was used
        resources = (local / "resources.json.default").read_text(encoding="utf-8")
        privacy = (local / "privacy.json").read_text(encoding="utf-8")
        assert all(f'"{path}"' in resources + privacy for path in (SHUTTERS, VALIDATOR, SEAL))
        assert "FF-SHUTTER-USED in admin train.deploy" in parties.federation.log(site).read_text(encoding="utf-8")


def test_each_site_has_decided_about_the_job_twice(parties: Parties, complete: Ended) -> None:
    for site in SITES:
        local = parties.federation.kits[site] / "local"
        decided = read_decisions(read_policy(local).decisions_file(None, parties.federation.kits[site]))
        own = [(one.depth, one.verdict, one.submitter) for one in decided if one.job == complete.job]
        assert own == [("deploy", "accepted", RESEARCHER), ("join", "accepted", RESEARCHER)]


def test_no_other_user_of_the_machine_can_read_what_a_job_leaves(parties: Parties, complete: Ended) -> None:
    running = parties.federation
    written = [running.kits[site] / complete.job for site in SITES]
    written += [running.kits[SERVER] / "store", *(running.store / site for site in SITES)]
    open_ones = [path for one in written for path in (one, *one.rglob("*")) if path.lstat().st_mode & 0o077]
    assert all(one.exists() for one in written)
    assert open_ones == []


def test_the_job_is_kept_in_the_servers_own_kit(parties: Parties, complete: Ended) -> None:
    assert (parties.federation.kits[SERVER] / "store" / "jobs" / complete.job / "meta").exists()


def test_the_projects_admin_may_not_hand_in_a_job(parties: Parties, complete: Ended) -> None:
    with pytest.raises(FederationError, match="not authorized for 'submit_job'"):
        parties.federation.submit(parties.write(complete.plan), person=ADMIN)


# -------------------------------------------------------------------------------------------------------- a second time


@pytest.fixture(scope="module")
def again(parties: Parties, complete: Ended) -> Ended:
    """The same job once more; one of the sites has been started anew in the meantime."""
    running = parties.federation
    running.wait_idle()
    running.stop(DEAD)
    running.start(DEAD)
    job = running.submit(parties.write(complete.plan))
    ended = Ended(complete.plan, job, running.records(job))
    running.wait_idle()
    return ended


def test_no_site_answers_the_same_question_twice(again: Ended) -> None:
    assert again.record.status == "stopped"
    assert again.record.rounds == ()
    reason = again.record.reason
    assert reason is not None
    assert reason.code == "FF-ROUND-QUORUM"
    assert all(f"{site}: FF-SECAGG-REUSED" in reason.text for site in SITES)


def test_the_second_time_nothing_left_any_site(parties: Parties, complete: Ended, again: Ended) -> None:
    wanted = len({(n, "update") for n in range(ROUNDS)})
    for site in SITES:
        assert len(remembered(parties.federation.store, site, complete.plan)) == wanted


# ------------------------------------------------------------------------------------------------------ site's policies


@pytest.fixture(scope="module")
def strict(parties: Parties) -> Ended:
    """One hospital wants larger groups than the plan, another one knows another key of hospital-3."""
    running, plan = parties.federation, _plan("strict", 2)
    running.wait_idle()
    running.set_policy("hospital-1", peers={**running.peers, "hospital-3": running.peers["hospital-2"]})
    running.set_policy("hospital-2", cells_minimum=11)
    job = running.submit(parties.write(plan))
    ended = Ended(plan, job, running.records(job))
    running.wait_idle()
    for site in ("hospital-1", "hospital-2"):
        running.set_policy(site)
    return ended


@pytest.mark.slow
def test_a_policy_that_wants_larger_groups_refuses_the_plan(strict: Ended) -> None:
    refused = [(one.site, one.task, one.code) for one in strict.record.without]
    assert refused == [("hospital-2", "deploy", "FF-POLICY-REFUSED")]


@pytest.mark.slow
def test_a_policy_that_knows_another_key_refuses_the_site(strict: Ended) -> None:
    assert strict.record.status == "stopped"
    assert strict.record.reason is not None
    assert "hospital-1: FF-SECAGG-PIN" in strict.record.reason.text
    assert strict.record.records == {}


@pytest.mark.slow
def test_a_policy_that_wants_kits_refuses_a_simulation(parties: Parties, tmp_path: Path) -> None:
    plan = _plan("simulated", 3)
    policy = open_policy(tmp_path / "store", identities="kit")
    simulation = Simulation(parties.write(plan), tmp_path / "run", parties.catalog, SITES, policy=policy)
    simulation.run(timeout=180)
    record = read_record(simulation.records)
    assert record.status == "stopped"
    assert record.reason is not None
    assert all(f"{site}: FF-POLICY-IDENTITY" in record.reason.text for site in SITES)


# ------------------------------------------------------------------------------------------------------- a site's power


def _killed(parties: Parties, plan: Plan, phase: str) -> Ended:
    """A job during which the site's processes are all killed as soon as a phase begins."""
    running = parties.federation
    running.wait_idle()
    job = running.submit(parties.write(plan))
    try:
        running.wait_for(job, "phase", task=JOIN)
        process = running.job_process(DEAD)
        running.wait_for(job, "phase", task=phase, round=0 if phase == PREPARE else 1)
        running.kill(DEAD, process)
        ended = Ended(plan, job, running.records(job))
        running.wait_idle()
    finally:
        if not running.processes(DEAD):
            running.start(DEAD)
    return ended


@pytest.mark.parametrize(
    "phase", [TRAIN, *(pytest.param(one, marks=pytest.mark.slow) for one in (MEASURE, CONFIRM, UNMASK))]
)
def test_a_site_that_dies_in_a_round_is_a_site_less(parties: Parties, phase: str, tmp_path: Path) -> None:
    ended = _killed(parties, _plan(f"dies_{phase}", 10 + TASKS.index(phase)), phase)
    record = verify_run(ended.folder)
    assert (record.status, record.lost_rounds) == ("complete", ())
    # On a busy machine the site may have answered before it died: then it is missed in the next task.
    ((number, refusal),) = [(line.round, one) for line in record.rounds for one in line.refusals]
    assert (refusal.site, refusal.code) == (DEAD, "FF-ROUND-TIMEOUT")
    assert (1, TASKS.index(phase)) <= (number, TASKS.index(refusal.task)) <= (2, TASKS.index(MEASURE))
    assert [line.participants[UNMASK] for line in record.rounds] == [SITES] * number + [ALIVE] * (ROUNDS - number)
    assert record.rounds[number].participants[TRAIN] == (SITES if refusal.task in (CONFIRM, UNMASK) else ALIVE)
    assert record.final is not None
    assert (record.final.confirmed, record.final.test) == (ALIVE, ())
    assert models(record) == models(_without(parties, ended.plan, (number, refusal.task), tmp_path))


def _without(parties: Parties, plan: Plan, first: tuple[int, str], folder: Path) -> RunRecord:
    """The plan in this process, where the site answers nothing from that round and task on."""

    def is_dead(message: Message) -> bool:
        return (message.round, TASKS.index(message.task)) >= (first[0], TASKS.index(first[1]))

    def answering(site: Site, one: Phase) -> None:
        if site.name == DEAD and is_dead(one.message):
            one.collector.refuse(site.name, "FF-ROUND-TIMEOUT")
        else:
            answer(site, one)

    return replay(plan, parties.catalog, folder, answering)


@pytest.mark.slow
def test_a_site_that_dies_before_the_counts_are_open_ends_the_run_cleanly(parties: Parties) -> None:
    ended = _killed(parties, _plan("dies_prepare", 20), PREPARE)
    assert ended.record.status == "stopped"
    assert ended.record.reason is not None
    assert ended.record.reason.code == "FF-ROUND-QUORUM"
    assert f"{DEAD}: FF-ROUND-TIMEOUT" in ended.record.reason.text
    assert (ended.record.records, ended.record.rounds) == ({}, ())
    for site in SITES:
        assert remembered(parties.federation.store, site, ended.plan) == set()


# ------------------------------------------------------------------------------------------------------ a job's process


@pytest.fixture(scope="module")
def broken(parties: Parties) -> Ended:
    """A site's job process dies alone: FLARE ends the whole job."""
    running, plan = parties.federation, _plan("breaks", 30, 60.0)
    running.wait_idle()
    job = running.submit(parties.write(plan))
    running.wait_for(job, "phase", task=JOIN)
    process = running.job_process(DEAD)
    running.wait_for(job, "phase", task=TRAIN, round=1)
    os.kill(process, signal.SIGKILL)
    ended = Ended(plan, job, running.records(job))
    assert running.ended(job) == "FINISHED:EXECUTION_EXCEPTION"
    running.wait_idle()
    return ended


@pytest.mark.slow
def test_a_job_process_that_dies_ends_the_job(broken: Ended) -> None:
    assert broken.record.status == "stopped"
    assert broken.record.reason is not None
    assert broken.record.reason.code == "FF-RUN-ABORTED"
    text = broken.record.reason.text
    assert " of round 1, while it waited for " in text
    assert DEAD in text
    assert [line.round for line in broken.record.rounds] == [0]
    assert broken.record.begun == 2


@pytest.mark.slow
def test_nothing_is_given_away_in_the_round_that_broke_off(parties: Parties, broken: Ended) -> None:
    for site in SITES:
        assert remembered(parties.federation.store, site, broken.plan) == {(0, "update")}


@pytest.mark.slow
def test_the_run_goes_on_without_the_round_that_broke_off(parties: Parties, broken: Ended) -> None:
    running = parties.federation
    running.resume_from(broken.folder)
    try:
        job = running.submit(parties.write(broken.plan))
        ended = dataclasses.replace(broken, job=job, folder=running.records(job))
    finally:
        running.resume_from(None)
    running.wait_idle()
    record = verify_run(ended.folder)
    assert record.status == "complete"
    assert [(lost.round, lost.code) for lost in record.lost_rounds] == [(1, "FF-RUN-INTERRUPTED")]
    assert [line.round for line in record.rounds] == [0, 2, 3]
    assert record.rounds[:1] == broken.record.rounds
    assert [session.identities for session in record.sessions] == ["kit", "kit"]
    for site in SITES:
        assert remembered(running.store, site, broken.plan) == {(n, "update") for n in (0, 2, 3)}
