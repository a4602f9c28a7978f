# SPDX-License-Identifier: Apache-2.0
"""Epsilon of everything that was released, by dp-accounting: the only module that imports it, which takes seconds.

Privacy loss distributions (PLD) are rounded so that epsilon is never too small. Where they cannot be had (no memory,
a loss so large that nobody needs it exactly, or a delta as small as rounding errors), Renyi differential privacy (RDP)
is the fallback: larger, never smaller.
Gaussian differential privacy is not used: it is an approximation that reports too little.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final, Literal

import dp_accounting
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution as pld

from fairflare.privacy.loss import DpSgd, Mechanism, Relation, merged

#: Width of the steps in which losses are counted: what figures are reported with, and a quick one, never smaller.
FINE: Final = 1e-4
COARSE: Final = 1e-3
#: Epsilon (RDP, one unit more or less) from which on it is not counted by PLD.
_MOST_EXACT: Final = 32.0
#: Delta below which the rounding errors of PLD's Fourier transforms are no longer small beside it.
_LEAST_EXACT: Final = 1e-11

#: Whole orders only: others do not always converge, and each failure is a line in the log.
_ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)

# Its warnings repeat sampling rates, from which the number of records follows; a log may leave the site.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_NEIGHBOURS: Final = {
    "add_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace": dp_accounting.NeighboringRelation.REPLACE_ONE,
}


@dataclass(frozen=True)
class Epsilon:
    """An upper bound of epsilon, and how it was found."""

    value: float
    method: Literal["pld", "rdp"]


def epsilon(
    mechanisms: Iterable[Mechanism], delta: float, relation: Relation = "add_remove", *, interval: float = FINE
) -> Epsilon:
    """Epsilon of all ``mechanisms`` together, whatever their order, each chosen after the results of those before.

    Parameters
    ----------
    mechanisms
        What was released; none costs 0.
    delta
        Chance that the bound does not hold, in (0, 1).
    relation
        Which data sets are told apart at most so well.
    interval
        ``FINE`` or ``COARSE``.
    """
    return _epsilon(merged(mechanisms), delta, relation, interval)


@lru_cache(maxsize=256)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float, relation: Relation, interval: float) -> Epsilon:
    if not mechanisms:
        return Epsilon(0.0, "pld")
    bound = _rdp(mechanisms)
    if delta >= _LEAST_EXACT and bound(delta) <= _MOST_EXACT:
        try:
            parts = [_distribution(one, relation, interval) for one in mechanisms]
            found = float(reduce(lambda all_, one: all_.compose(one), parts).get_epsilon_for_delta(delta))
        except (ArithmeticError, MemoryError, ValueError):
            found = math.inf
        if found < math.inf:
            return Epsilon(found, "pld")
    return Epsilon(bound(delta) if relation == "add_remove" else _replaced(bound, delta), "rdp")


@lru_cache(maxsize=64)
def _distribution(mechanism: Mechanism, relation: Relation, interval: float) -> Any:
    how = {"value_discretization_interval": interval, "neighboring_relation": _NEIGHBOURS[relation]}
    if isinstance(mechanism, DpSgd):
        one = pld.from_gaussian_mechanism(mechanism.sigma, sampling_prob=mechanism.q, **how)
        return one.self_compose(mechanism.steps)
    return pld.from_gaussian_mechanism(mechanism.multiplier / math.sqrt(mechanism.count), **how)


def _rdp(mechanisms: tuple[Mechanism, ...]) -> Callable[[float], float]:
    """Epsilon by delta, for one unit more or less."""
    accountant = rdp.RdpAccountant(_ORDERS, neighboring_relation=_NEIGHBOURS["add_remove"])
    for one in mechanisms:
        if isinstance(one, DpSgd):
            noise = dp_accounting.GaussianDpEvent(one.sigma)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(one.q, noise), one.steps)
        else:
            accountant.compose(dp_accounting.GaussianDpEvent(one.multiplier), one.count)
    return lambda delta: float(accountant.get_epsilon(delta))


def _replaced(bound: Callable[[float], float], delta: float) -> float:
    """A unit is replaced by taking it away and adding another: (2 e, (1 + exp e) d), for the largest d that fits."""

    def fits(part: float) -> bool:
        return bound(part) < math.log(delta) - math.log(part) - math.log1p(math.exp(-bound(part)))

    low, high = 1e-300, delta / 2  # the first fits, or none does; the second never does
    if not fits(low):
        return math.inf
    for _ in range(60):
        middle = math.exp((math.log(low) + math.log(high)) / 2)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return 2 * bound(low)


__all__ = ["COARSE", "FINE", "Epsilon", "epsilon"]
