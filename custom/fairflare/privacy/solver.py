# SPDX-License-Identifier: Apache-2.0
"""The least noise of private training that a budget allows: epsilon is counted as the ledger counts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from fairflare.errors import LedgerError
from fairflare.plan import Plan
from fairflare.plan.privacy import DifferentialPrivacy
from fairflare.privacy.accounting import COARSE, FINE, Epsilon, epsilon
from fairflare.privacy.bill import Sampling, planned, sampling
from fairflare.privacy.loss import Budget, DpSgd, Mechanism

#: Noise is searched for among multiples of 1 / GRID, up to the most.
GRID: Final = 1000
_LEAST, _MOST = 50, 10_000_000
_NEAR: Final = 1.001


def solve_sigma(q: float, steps: int, budget: Budget, others: Sequence[Mechanism] = ()) -> float:
    """Noise (over the clip norm) for so many steps in all, with ``others`` paid from the same budget.

    Parameters
    ----------
    q
        Chance of a unit to be in a batch.
    steps
        Steps of all rounds.
    budget
        What everything may cost together.
    others
        What was spent before, and what the plan releases besides.

    Returns
    -------
    float
        A multiple of 1 / ``GRID``, at most one part in a thousand (or one step of the grid) above the least that fits
        by the quick count. By the fine one it never costs more than the budget.

    Raises
    ------
    LedgerError
        ``FF-LEDGER-UNREACHABLE``: the others alone leave too little, or the steps are too many for any noise.
    """

    def fits(number: int, interval: float = COARSE) -> bool:
        all_ = [*others, DpSgd(q, number / GRID, steps)]
        return epsilon(all_, budget.delta, budget.relation, interval=interval).value <= budget.epsilon

    high = 1000
    while not fits(high):
        high *= 2
        if high > _MOST:
            _refuse()
    low = max(_LEAST, high // 2) if high > 1000 else _LEAST
    while high - low > 1 and high > low * _NEAR:
        # From above by halves of the ratio: little noise takes long to count.
        middle = max(low + 1, math.isqrt(low * high))
        low, high = (low, middle) if fits(middle) else (middle, high)
    while not fits(high, FINE):
        high = max(high + 1, math.ceil(high * _NEAR))
    return high / GRID


@dataclass(frozen=True)
class Proposal:
    """A plan's privacy at a site with so many units, and what it leaves.

    Attributes
    ----------
    privacy
        What would stand in the plan.
    drawn
        How batches are drawn.
    now, after
        Epsilon before and after the plan, for the budget's relation.
    replaced
        Epsilon after the plan, for one unit in another's place.
    """

    privacy: DifferentialPrivacy
    drawn: Sampling
    now: Epsilon
    after: Epsilon
    replaced: Epsilon


def propose(
    plan: Plan, units: int, budget: Budget, draft: DifferentialPrivacy, spent: Sequence[Mechanism] = ()
) -> Proposal:
    """The least noise in training with which ``plan`` keeps ``budget`` at a site with so many units.

    Parameters
    ----------
    plan, units, budget
        Of the plan the training and the method count; how it is private says ``draft``.
    draft
        Everything but ``noise_multiplier``, which is solved for.
    spent
        What the site spent before.

    Raises
    ------
    LedgerError
        ``FF-LEDGER-UNREACHABLE``: no noise is enough.
    """
    drawn = sampling(plan, units)
    beside = [one for round_ in planned(plan, draft, units) for one in round_ if not isinstance(one, DpSgd)]
    sigma = solve_sigma(drawn.q, drawn.steps * plan.training.rounds, budget, [*spent, *beside])
    return foreseen(plan, units, budget, draft.model_copy(update={"noise_multiplier": sigma}), spent)


def foreseen(
    plan: Plan, units: int, budget: Budget, privacy: DifferentialPrivacy, spent: Sequence[Mechanism] = ()
) -> Proposal:
    """What ``plan`` costs if it is private like this; as :func:`propose`."""
    all_ = [*spent, *(one for round_ in planned(plan, privacy, units) for one in round_)]
    return Proposal(
        privacy,
        sampling(plan, units),
        epsilon(spent, budget.delta, budget.relation),
        epsilon(all_, budget.delta, budget.relation),
        epsilon(all_, budget.delta, "replace"),
    )


def _refuse() -> NoReturn:
    raise LedgerError(
        "FF-LEDGER-UNREACHABLE",
        got="a budget that no amount of noise in training keeps",
        expected="something left of the budget after what was spent and what the groups cost",
        next_step="release group sums less often or with more noise, run fewer rounds, or ask for a larger budget",
    )


__all__ = ["GRID", "Proposal", "foreseen", "propose", "solve_sigma"]
