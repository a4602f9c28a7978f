# SPDX-License-Identifier: Apache-2.0
"""What a plan would release at a site, round by round, and what would be exact all the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fairflare.plan import Plan, method_of
from fairflare.plan.privacy import DifferentialPrivacy, GroupNoise
from fairflare.privacy.loss import DpSgd, Gaussian, Mechanism

#: Batches should be no larger a part of the units, and no smaller in units: else the noise costs too much accuracy.
MOST_RATE: Final = 0.1
LEAST_BATCH: Final = 64


@dataclass(frozen=True)
class Sampling:
    """Chance ``q`` of a unit to be in a batch, and steps of a round."""

    q: float
    steps: int


def sampling(plan: Plan, units: int) -> Sampling:
    """How a site with so many training units (each in one record of an epoch at most) draws its batches."""
    work, batch = plan.training.work, plan.training.batch
    q = 1 / batch.amount if batch.unit == "batches_per_epoch" else min(1.0, batch.amount / units)
    batches = batch.amount if batch.unit == "batches_per_epoch" else math.ceil(units / batch.amount)
    return Sampling(q, work.amount * (batches if work.unit == "epochs" else 1))


def planned(plan: Plan, privacy: DifferentialPrivacy, units: int) -> tuple[tuple[Mechanism, ...], ...]:
    """What each round of a plan would release at a site with so many training units."""
    drawn = sampling(plan, units)
    model = DpSgd(drawn.q, privacy.noise_multiplier, drawn.steps)
    return tuple(
        (model, *(_groups(plan, privacy.groups, number, drawn.steps) if privacy.groups is not None else ()))
        for number in range(plan.training.rounds)
    )


def _groups(plan: Plan, noise: GroupNoise, number: int, steps: int) -> tuple[Gaussian, ...]:
    """Group sums of one round, for each measure: counts in the first, utilities whenever they are measured.

    Utilities are brought to [-1, 1], so a unit in g groups changes either vector by at most the root of g.
    """
    method = plan.method
    sensitivity = math.sqrt(noise.groups_per_unit)
    times = (number == 0) + (steps if method.lock_step else int(number % method.measured_every == 0))
    one = Gaussian(noise.noise_multiplier * sensitivity, sensitivity, times) if times else None
    return () if one is None else tuple(one for _ in method_of(plan).measures())


def risk_noise(noise: GroupNoise, units: int) -> float:
    """Standard deviation of a measured risk over its largest value, in a group with so many units.

    Of its sum and, at worst, of its count: a count whose noise was drawn once is as uncertain in every round.
    """
    return noise.noise_multiplier * math.sqrt(2 * noise.groups_per_unit) / (2 * units)


__all__ = ["LEAST_BATCH", "MOST_RATE", "Sampling", "planned", "risk_noise", "sampling"]
