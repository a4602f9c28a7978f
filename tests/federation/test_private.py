# SPDX-License-Identifier: Apache-2.0
"""Differential privacy through FLARE's processes, with masks: each hospital pays from its ledger, or refuses.

One run of four hospitals. The last one has spent nearly all of its budget on an earlier job, so it takes part in the
first two rounds only; the others go on without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.flare.simulate import STORE, Simulation
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import open_policy
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.bill import counting, measuring, sampling, training
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget, Gaussian, Mechanism, Release
from fairflare.record import RunRecord, read_record
from tests.federation.support import PATIENT, SITES, changed, files_with, make_hospitals, models

pytestmark = pytest.mark.federation

ROUNDS, RECORDS, DELTA = 4, 120, 1e-5
LAST = SITES[-1]
EARLIER = Gaussian(0.8, 1.0, 1)


def plan() -> Plan:
    method = {
        **presets.flexfair(presets.penalty("sex", "equal_accuracy", 2.0)), "min_weight": 0.0, "max_weight": 3.0,
        "utility_clip": 4.0,
    }  # fmt: skip
    privacy = {
        "clip": 1.0, "noise_multiplier": 1.3, "count_noise": 40.0, "records_per_unit": 1, "gradients": "hooks",
        "groups": {"noise_multiplier": 20.0, "groups_per_unit": 1, "shared": False},
    }  # fmt: skip
    training_ = {"rounds": ROUNDS, "batch": {"unit": "batches_per_epoch", "amount": 5}}
    return changed(
        presets.heart("private", presets.FEDAVG), method=method, training=training_, differential_privacy=privacy,
        federation={"task_timeout_seconds": 90.0, "max_missed": 9},
    )  # fmt: skip


def bill(one: Plan, rounds: int) -> list[Mechanism]:
    """What ``rounds`` rounds of the plan cost a site."""
    privacy = one.differential_privacy
    assert privacy is not None
    first = [how for _, how in counting(one, privacy)]
    return [*first, *(rounds * [how for _, how in (training(privacy, sampling(one, 1)), *measuring(one, privacy))])]


class Run:
    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, plan()
        self.catalog = make_hospitals(folder / "hospitals", self.plan, SITES, RECORDS)
        store = folder / "run" / STORE
        two = epsilon([EARLIER, *bill(self.plan, 2)], DELTA).value
        assert two < epsilon([EARLIER, *bill(self.plan, 3)], DELTA).value - 0.05
        assert epsilon(bill(self.plan, ROUNDS), DELTA).value < two
        self.budget = Budget(two + 0.02, DELTA)
        most = MostPrivacyLoss(epsilon=self.budget.epsilon, delta=DELTA, relation="add_remove")
        policy = open_policy(store).model_copy(update={"differential_privacy": most})
        self.ledger(LAST).spend(None, Release("0" * 64, "earlier", 0, "model", EARLIER))
        simulation = Simulation(
            write_job(self.plan, folder / "job"), folder / "run", self.catalog, SITES, policy=policy
        )  # fmt: skip
        simulation.run(timeout=240)
        self.workspace, self.records = simulation.workspace, simulation.records
        self.record: RunRecord = read_record(simulation.records)

    def ledger(self, site: str) -> Ledger:
        return Ledger(self.folder / "run" / STORE / site / "heart" / "ledger.sqlite")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("private"))


def test_it_ends_without_the_hospital_that_could_not_afford_more(run: Run) -> None:
    assert run.record.status == "complete", run.record.reason
    verify_run(run.records)
    assert len(run.record.rounds) == ROUNDS
    refused = {(one.site, one.task, one.code) for line in run.record.rounds for one in line.refusals}
    assert refused == {(LAST, "measure", "FF-LEDGER-BUDGET")}
    assert [LAST in line.participants["train"] for line in run.record.rounds] == [True, True, False, False]
    assert len(set(models(run.record))) == ROUNDS


def test_each_ledger_holds_what_its_hospital_released_and_no_more_than_its_budget(run: Run) -> None:
    for site in SITES:
        rounds = 2 if site == LAST else ROUNDS
        entries = [one.release for one in run.ledger(site).entries() if one.release.job != "earlier"]
        assert {one.plan_sha256 for one in entries} == {run.plan.sha256}
        assert {one.job for one in entries} == {"simulate_job"}
        assert [one.mechanism for one in entries] == bill(run.plan, rounds)
        paid = [EARLIER] * (site == LAST) + bill(run.plan, rounds)
        assert run.ledger(site).epsilon(DELTA).value == epsilon(paid, DELTA).value <= run.budget.epsilon
        assert [one.budget for one in run.ledger(site).entries() if one.release.job != "earlier"] == (
            [run.budget] * len(entries)
        )


def test_the_server_holds_no_exact_number_of_training_records_and_no_loss_of_theirs(run: Run) -> None:
    """Noise of 40 was added at each of four hospitals: the sum is near the exact number, and not it but by chance."""
    data = json.loads((run.records / "record.json").read_text(encoding="utf-8"))
    assert all(line["train_loss"] is line["records"] is line["weighed"] is None for line in data["rounds"])
    told = data["sessions"][0]["records"]
    trained = len(SITES) * RECORDS - told["validation"] - told["test"]
    assert abs(told["training"] - trained) < 6 * 80
    assert files_with(run.workspace / "server", PATIENT) == []
    log = run.workspace.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    assert "noise_multiplier" not in log
