# SPDX-License-Identifier: Apache-2.0
"""What a private release costs, in the words of the ledger: mechanisms, budgets, and what one release was.

A unit is what differential privacy protects, such as a patient. Two relations between data sets are told apart: one
unit more or less (``add_remove``), or one unit in the place of another (``replace``), which costs more: what a unit may
change is then up to twice the sensitivity. Where the number of units is public, only ``replace`` is honest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, get_args

from fairflare.errors import LedgerError

Relation = Literal["add_remove", "replace"]
RELATIONS: Final[tuple[Relation, ...]] = get_args(Relation)

#: Least noise that is taken for noise, as a multiple of the sensitivity.
LEAST_NOISE: Final = 0.01
_MOST: Final = 10**9


@dataclass(frozen=True)
class DpSgd:
    """Steps of private gradient descent on batches that are drawn by chance (Poisson).

    Attributes
    ----------
    q
        Chance of each unit to be in a batch.
    sigma
        Standard deviation of the noise on the sum of a batch's gradients, as a multiple of the clip norm.
    steps
        Number of steps; a step with an empty batch counts.
    """

    q: float
    sigma: float
    steps: int

    def __post_init__(self) -> None:
        _verify(_positive(self.q) and self.q <= 1, _positive(self.sigma), _count(self.steps))
        _verify(self.sigma >= LEAST_NOISE)


@dataclass(frozen=True)
class Gaussian:
    """Vectors that are released with Gaussian noise, from all units.

    Attributes
    ----------
    sigma
        Standard deviation of the noise on each number.
    sensitivity
        Largest L2 norm of the vector's change when one unit is added or taken away.
    count
        Number of such releases.
    """

    sigma: float
    sensitivity: float
    count: int

    def __post_init__(self) -> None:
        _verify(_positive(self.sigma), _positive(self.sensitivity), _count(self.count))
        _verify(LEAST_NOISE <= self.multiplier < math.inf)

    @property
    def multiplier(self) -> float:
        """The noise as a multiple of the sensitivity."""
        return self.sigma / self.sensitivity


Mechanism = DpSgd | Gaussian


@dataclass(frozen=True)
class Budget:
    """Most that all releases of a data set may cost together: (epsilon, delta) for one relation."""

    epsilon: float
    delta: float
    relation: Relation = "add_remove"

    def __post_init__(self) -> None:
        _verify(_positive(self.epsilon), _positive(self.delta) and self.delta < 1, self.relation in RELATIONS)


@dataclass(frozen=True)
class Release:
    """Something that leaves a site with noise.

    Attributes
    ----------
    plan_sha256, job, round
        For which plan (hex), job and round.
    what
        What is released: ``model``, or the name of the attribute whose groups it is about.
    mechanism
        How it is protected.
    """

    plan_sha256: str
    job: str
    round: int
    what: str
    mechanism: Mechanism

    def __post_init__(self) -> None:
        _verify(
            all(type(text) is str and 0 < len(text) <= 256 for text in (self.plan_sha256, self.job, self.what)),
            type(self.round) is int and 0 <= self.round < _MOST,
            isinstance(self.mechanism, DpSgd | Gaussian),
        )


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Fewer mechanisms that cost the same: equal steps together, and all Gaussian releases as one.

    The order of what comes in does not matter, not even to the last bit.
    """
    steps: Counter[tuple[float, float]] = Counter()
    parts: list[float] = []
    for one in mechanisms:
        if isinstance(one, Gaussian):
            parts.append(one.count / one.multiplier**2)
        elif one.q == 1:
            parts.append(one.steps / one.sigma**2)
        else:
            steps[one.q, one.sigma] += one.steps
    return (*(DpSgd(q, sigma, count) for (q, sigma), count in sorted(steps.items())), *_together(math.fsum(parts)))


def _together(cost: float) -> tuple[Gaussian, ...]:
    """One Gaussian release, or several of the least noise, for the sum of 1 / multiplier^2; never too few."""
    if cost == 0:
        return ()
    noise = 1 / math.sqrt(cost)
    return (
        Gaussian(noise, 1.0, 1)
        if noise >= LEAST_NOISE
        else Gaussian(LEAST_NOISE, 1.0, math.ceil(cost * LEAST_NOISE**2)),
    )


def _positive(value: object) -> bool:
    return type(value) is float and 0 < value < math.inf


def _count(value: object) -> bool:
    return type(value) is int and 0 < value < _MOST


def _verify(*good: bool) -> None:
    if not all(good):
        _refuse_form()


def _refuse_form() -> NoReturn:
    raise LedgerError(
        "FF-LEDGER-FORM",
        got="a private release, or a budget, that does not have its form",
        expected=f"positive decimals and whole numbers, a chance of at most 1, noise of at least {LEAST_NOISE:g} times "
        "the sensitivity",
        next_step="correct the noise, the sensitivity or the number of releases; nothing was counted",
    )
