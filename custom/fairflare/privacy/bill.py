# SPDX-License-Identifier: Apache-2.0
"""What a plan's releases are called and how each is protected: for whoever pays at a site, and whoever foresees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fairflare.plan import Plan, method_of
from fairflare.plan.privacy import DifferentialPrivacy, GroupNoise
from fairflare.privacy.loss import DpSgd, Gaussian, Mechanism

#: A line of a bill: what is released, and how it is protected.
Line = tuple[str, Mechanism]

#: Batches should be no larger a part of the units, and no smaller in units: else the noise costs too much accuracy.
MOST_RATE: Final = 0.1
LEAST_BATCH: Final = 64


@dataclass(frozen=True)
class Sampling:
    """Chance ``q`` of a unit to be in a batch, and steps of a round."""

    q: float
    steps: int


def sampling(plan: Plan, units: int) -> Sampling:
    """How a site with so many training units draws its batches (a site knows them with noise only)."""
    work, batch = plan.training.work, plan.training.batch
    q = 1 / batch.amount if batch.unit == "batches_per_epoch" else min(1.0, batch.amount / units)
    batches = batch.amount if batch.unit == "batches_per_epoch" else math.ceil(units / batch.amount)
    return Sampling(q, work.amount * (batches if work.unit == "epochs" else 1))


def counting(plan: Plan, privacy: DifferentialPrivacy) -> tuple[Line, ...]:
    """What a session costs before its first round: the number of units, which one changes by one, and of each group."""
    units = ("units", Gaussian(privacy.count_noise, 1.0, 1))
    return units, *_groups(plan, privacy.groups, "counts")


def measuring(plan: Plan, privacy: DifferentialPrivacy) -> tuple[Line, ...]:
    """What measuring the groups costs once."""
    return _groups(plan, privacy.groups, "sums")


def training(privacy: DifferentialPrivacy, drawing: Sampling) -> Line:
    """What a round's steps cost."""
    return "model", DpSgd(drawing.q, privacy.noise_multiplier, drawing.steps)


def planned(plan: Plan, privacy: DifferentialPrivacy, units: int) -> tuple[tuple[Mechanism, ...], ...]:
    """What each round of a plan that runs in one session would release at a site with so many training units."""
    model, method = training(privacy, sampling(plan, units)), plan.method
    rounds = []
    for number in range(plan.training.rounds):
        measured = method.lagged or number % method.measured_every == 0
        lines = [
            *(counting(plan, privacy) if number == 0 else ()),
            model,
            *(measuring(plan, privacy) if measured else ()),
        ]
        rounds.append(tuple(how for _, how in lines))
    return tuple(rounds)


def drawn_in_public(plan: Plan) -> bool:
    """Whether the plan alone says how batches are drawn, so that its cost is the same at every site."""
    return plan.training.batch.unit == "batches_per_epoch"


def spent(
    plan: Plan, privacy: DifferentialPrivacy, *, sessions: int, begun: int, units: int = 1
) -> tuple[Mechanism, ...]:
    """What a site released that took part in all of a run: so many sessions, and ``begun`` rounds, lost ones too.

    A session tells its numbers of units anew; a round is begun once. A site that was started anew inside a session may
    have paid twice: its ledger knows. ``units`` only matters where batches are not :func:`drawn_in_public`.
    """
    rounds = [how for part in planned(plan, privacy, units)[:begun] for how in part]
    told = [how for _, how in counting(plan, privacy)]
    return tuple(rounds + told * (sessions - bool(rounds)))


def _groups(plan: Plan, noise: GroupNoise | None, what: str) -> tuple[Line, ...]:
    """One release for each measure: a unit is in g of its groups, and changes each by at most one."""
    if noise is None:
        return ()
    sensitivity = math.sqrt(noise.groups_per_unit)
    how = Gaussian(noise.noise_multiplier * sensitivity, sensitivity, 1)
    shared = ", noise shared" if noise.shared else ""
    return tuple((f"{measure.name} {what}{shared}", how) for measure in method_of(plan).measures())


def risk_noise(noise: GroupNoise, units: int) -> float:
    """Standard deviation of a measured risk over its largest value, in a group with so many units.

    Of its sum and, at worst, of its count: a count whose noise was drawn once is as uncertain in every round.
    """
    return noise.noise_multiplier * math.sqrt(2 * noise.groups_per_unit) / (2 * units)


__all__ = [
    "LEAST_BATCH", "MOST_RATE", "Line", "Sampling", "counting", "drawn_in_public", "measuring", "planned", "risk_noise",
    "sampling", "spent", "training",
]  # fmt: skip
