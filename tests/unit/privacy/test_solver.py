# SPDX-License-Identifier: Apache-2.0
"""The solver keeps its budget by PLD, wastes little of it, and a forecast is what the ledger would be told."""

from __future__ import annotations

import json
import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from fairflare import presets
from fairflare.errors import LedgerError
from fairflare.plan import Plan, parse_plan
from fairflare.plan.privacy import DifferentialPrivacy, GroupNoise
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.bill import planned, risk_noise, sampling
from fairflare.privacy.loss import Budget, DpSgd, Gaussian
from fairflare.privacy.solver import propose, solve_sigma
from tests.unit.privacy.test_accounting import NEIGHBOURS

NOISE = GroupNoise(noise_multiplier=10.0, groups_per_unit=2, shared=False)
PRIVATE = DifferentialPrivacy(
    clip=1.0, noise_multiplier=1.0, count_noise=25.0, records_per_unit=1, gradients="hooks", groups=NOISE
)


def changed(name: str, **sections: dict[str, object]) -> Plan:
    plan = presets.PRESETS[name]("x").model_dump(mode="json")
    for section, values in sections.items():
        plan[section].update(values)
    return parse_plan(json.dumps(plan))


@pytest.mark.parametrize(("units", "target", "by_rdp"), [(500, 8.0, 1.49), (1000, 3.0, 2.26), (3000, 1.0, 3.38)])
def test_the_target_is_kept_by_pld_and_nearly_used(units: int, target: float, by_rdp: float) -> None:
    q, steps = 64 / units, 30 * math.ceil(units / 64)
    sigma = solve_sigma(q, steps, Budget(target, 1e-5))
    accountant = PLDAccountant(NEIGHBOURS["add_remove"])
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)), steps)
    assert 0.99 * target < accountant.get_epsilon(1e-5) <= target
    assert sigma < 1.01 * by_rdp  # the design's, by RDP, rounded


def test_what_was_spent_and_what_the_groups_cost_comes_out_of_the_same_budget() -> None:
    others = [DpSgd(0.016, 1.0, 300), Gaussian(10.0, 1.0, 20)]
    for relation in ("add_remove", "replace"):
        budget = Budget(5.0, 1e-5, relation)  # type: ignore[arg-type]
        sigma = solve_sigma(0.05, 200, budget, others)
        spent = epsilon([*others, DpSgd(0.05, sigma, 200)], 1e-5, relation)  # type: ignore[arg-type]
        assert 0.99 * 5 < spent.value <= 5


def test_a_large_budget_takes_little_noise_and_a_small_one_much() -> None:
    assert solve_sigma(0.01, 10, Budget(30.0, 1e-5)) < 0.5
    assert solve_sigma(1.0, 1000, Budget(0.5, 1e-5)) > 200


def test_a_budget_that_is_gone_is_named() -> None:
    spent = [Gaussian(2.0, 1.0, 1)]
    with pytest.raises(LedgerError) as caught:
        solve_sigma(0.01, 10, Budget(1.0, 1e-5), spent)
    assert caught.value.code == "FF-LEDGER-UNREACHABLE"


def test_a_proposal_is_what_its_forecast_costs() -> None:
    plan = presets.PRESETS["heart_flexfair"]("x")
    spent = [Gaussian(20.0, 1.0, 3)]
    made = propose(plan, 300, Budget(8.0, 1e-5), PRIVATE, spent)
    all_ = [*spent, *(one for round_ in planned(plan, made.privacy, 300) for one in round_)]
    assert made.now == epsilon(spent, 1e-5)
    assert made.after == epsilon(all_, 1e-5)
    assert made.after.value <= 8
    assert made.replaced == epsilon(all_, 1e-5, "replace")


@pytest.mark.parametrize(
    ("batch", "work", "q", "steps"),
    [
        (("records", 64), ("epochs", 2), 0.064, 32),
        (("records", 64), ("steps", 5), 0.064, 5),
        (("records", 5000), ("epochs", 1), 1.0, 1),
        (("batches_per_epoch", 20), ("epochs", 3), 0.05, 60),
    ],
)
def test_how_batches_are_drawn(batch: tuple[str, int], work: tuple[str, int], q: float, steps: int) -> None:
    training = {"batch": dict(zip(("unit", "amount"), batch, strict=True))}
    training["work"] = dict(zip(("unit", "amount"), work, strict=True))
    drawn = sampling(changed("heart_fedavg", training=training), 1000)
    assert (drawn.q, drawn.steps) == (pytest.approx(q), steps)


@pytest.mark.parametrize(("refresh", "wanted"), [("round", 1 + 20), ({"rounds": 5}, 1 + 4), ("round_lagged", 1 + 20)])
def test_group_sums_are_paid_whenever_they_leave_and_their_counts_once(refresh: object, wanted: int) -> None:
    plan = changed("heart_flexfair", method={"refresh": refresh})
    assert plan.training.rounds == 20
    rounds = planned(plan, PRIVATE, 300)
    assert len(rounds) == 20
    assert sum(one.steps for round_ in rounds for one in round_ if isinstance(one, DpSgd)) == 20 * 19
    first, *groups = [one for round_ in rounds for one in round_ if isinstance(one, Gaussian)]
    assert first == Gaussian(25.0, 1.0, 1)  # the number of patients
    assert sum(one.count for one in groups) == wanted
    assert {one.multiplier for one in groups} == {10.0}
    assert {one.sensitivity for one in groups} == {math.sqrt(2)}


def test_without_groups_only_the_number_of_patients_and_the_steps_cost() -> None:
    rounds = planned(presets.PRESETS["heart_fedavg"]("x"), PRIVATE.model_copy(update={"groups": None}), 300)
    assert rounds[0] == (Gaussian(25.0, 1.0, 1), DpSgd(16 / 300, 1.0, 19))
    assert set(rounds[1:]) == {rounds[0][1:]}


def test_the_noise_of_a_risk_is_the_designs() -> None:
    noise = GroupNoise(noise_multiplier=10.0, groups_per_unit=1, shared=False)
    assert risk_noise(noise, 300) * 3 == pytest.approx(0.07, abs=0.002)
    assert risk_noise(noise, 100) * 3 == pytest.approx(0.21, abs=0.003)
