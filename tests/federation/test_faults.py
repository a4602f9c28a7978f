# SPDX-License-Identifier: Apache-2.0
"""Seven of nine hospitals misbehave, each in its own ways: refused or waited out, named, and never summed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.local import answer, software
from fairflare.engine.messages import MEASURE, TRAIN
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.flare.names import ALLOWED
from fairflare.flare.simulate import Simulation, process_marks
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord
from tests.federation.faulty import PATH, SECRET
from tests.federation.support import ROOT, changed, fairflare, files_with, loaders, make_hospitals, models

pytestmark = pytest.mark.federation

GOOD = ("hospital-1", "hospital-2")
#: Site -> round -> fault. All are honest in round 0; who misses two rounds in a row is not asked again.
FAULTS = {
    "hospital-3": {"1": "raises inside the site", "2": "raises"},
    "hospital-4": {"1": "NaN", "2": "unsafe"},
    "hospital-5": {"1": "longer", "2": "cut"},
    "hospital-6": {"1": "other key", "2": "one key more"},
    "hospital-7": {"1": "float16", "2": "words"},
    "hospital-8": {"1": "never"},
    "hospital-9": {"1": "late", "2": "says it is another site"},
}
DEADLINE = 8.0
CODES = {
    1: {
        "hospital-3": "FF-SITE-INTERNAL",
        "hospital-4": "FF-ROUND-NAN",
        "hospital-5": "FF-ROUND-SHAPE",
        "hospital-6": "FF-ROUND-KEYS",
        "hospital-7": "FF-WIRE-DTYPE",
        "hospital-8": "FF-ROUND-TIMEOUT",
        "hospital-9": "FF-ROUND-TIMEOUT",
    },
    2: {
        "hospital-3": "FF-ROUND-SITE-ERROR",
        "hospital-4": "FF-ROUND-SITE-ERROR",
        "hospital-5": "FF-WIRE-SHAPE",
        "hospital-6": "FF-WIRE-KEYS",
        "hospital-7": "FF-WIRE-DTYPE",
        "hospital-8": "FF-ROUND-TIMEOUT",
    },
}


@dataclass
class Run:
    plan: Plan
    catalog: DataCatalog
    simulation: Simulation
    seconds: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("faults")
    plan = changed(
        presets.shipped("heart_flexfair"),
        training={"rounds": 4},
        protection=presets.UNPROTECTED,  # these are faults of vectors that the server can look at
        federation={"min_sites": 2, "task_timeout_seconds": DEADLINE, "max_missed": 2},
    )
    # A site that trained in vain must not differ from one that did not train: then the local run below is the same.
    plan = changed(plan, training={"optimizer": {**plan.training.optimizer.model_dump(), "state": "reset"}})
    catalog = make_hospitals(base / "hospitals", plan, [*GOOD, *FAULTS], 60)
    job = write_job(plan, base / "job")
    config = job / "app" / "config" / "config_fed_client.json"
    client = json.loads(config.read_text(encoding="utf-8"))
    client["executors"][0]["executor"] = {"path": PATH, "args": {"faults": FAULTS, "late": DEADLINE + 2}}
    config.write_text(json.dumps(client), encoding="utf-8")
    simulation = Simulation(
        job, base / "run", catalog, catalog.site_names, allowed=[*ALLOWED, PATH], environment={"PYTHONPATH": str(ROOT)}
    )
    started = time.monotonic()
    simulation.run(timeout=240, grace=10)
    return Run(plan, catalog, simulation, time.monotonic() - started)


@pytest.fixture(scope="module")
def record(run: Run) -> RunRecord:
    return verify_run(run.simulation.workspace)


def test_the_job_completes_with_the_sites_that_behave(record: RunRecord) -> None:
    assert record.status == "complete"
    assert record.rounds[1].participants[TRAIN] == GOOD
    assert record.rounds[3].participants[TRAIN] == (*GOOD, "hospital-9")
    assert record.final is not None
    assert record.final.confirmed == (*GOOD, "hospital-9")


def test_everybody_took_part_before_the_first_fault(record: RunRecord) -> None:
    assert record.rounds[0].participants[TRAIN] == record.roster == (*GOOD, *FAULTS)


@pytest.mark.parametrize("number", sorted(CODES))
def test_every_misbehaving_site_is_named_with_a_code_of_its_own(record: RunRecord, number: int) -> None:
    assert {refusal.site: refusal.code for refusal in record.rounds[number].refusals} == CODES[number]


def test_who_missed_two_rounds_is_not_asked_again(record: RunRecord) -> None:
    assert record.rounds[3].refusals == ()
    assert record.rounds[3].participants[MEASURE] == (*GOOD, "hospital-9")


def test_a_late_answer_is_not_used_and_its_site_may_come_back(record: RunRecord) -> None:
    assert "hospital-9" not in record.rounds[1].participants[TRAIN]
    assert "hospital-9" in record.rounds[2].participants[TRAIN]


def test_a_site_counts_under_the_name_that_flare_authenticated(record: RunRecord) -> None:
    # In round 2 hospital-9 says that it is hospital-1: neither of the two may lose its place.
    assert record.rounds[2].participants[TRAIN] == (*GOOD, "hospital-9")


def test_the_secret_of_an_exception_stays_at_the_site(run: Run) -> None:
    workspace = run.simulation.workspace
    assert files_with(workspace / "hospital-3", SECRET)
    assert files_with(workspace / "server", SECRET) == []


def test_the_result_is_that_of_a_local_run_with_those_who_took_part(
    run: Run, record: RunRecord, tmp_path: Path
) -> None:
    sites = {name: Site(name, run.plan, load, tmp_path / name) for name, load in loaders(run.plan, run.catalog).items()}
    coordinator = Coordinator(run.plan, tmp_path / "server", Start("session", "local", software()))
    for phase in coordinator.phases(sorted(sites)):
        task, number = phase.message.task, phase.message.round
        took_part = set(phase.targets)
        if task in (MEASURE, TRAIN):
            took_part &= set(record.rounds[number].participants[task])
        for name in took_part:
            answer(sites[name], phase)
    assert models(coordinator.record) == models(record)


def test_a_site_that_hangs_for_ever_does_not_hold_the_run_up(run: Run) -> None:
    # It sleeps for ten minutes; the run's end was written long before.
    assert run.seconds < 180


def test_no_process_of_the_run_is_left(run: Run) -> None:
    assert str(run.simulation.workspace) not in process_marks().values()


def test_the_command_line_verifies_the_run(run: Run) -> None:
    done = fairflare("run", "verify", run.simulation.workspace)
    assert done.returncode == 0, done.stderr
    assert "complete and consistent, 4 rounds" in done.stdout
