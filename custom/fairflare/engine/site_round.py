# SPDX-License-Identifier: Apache-2.0
"""What a site remembers while a round is under way, and what it says about it in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fairflare.fairness.groups import Floats, Integers, Measure, Sums
from fairflare.methods import SampleTerms
from fairflare.models.vector import Vector


@dataclass
class SiteRound:
    """What a site remembers while a round is under way."""

    number: int
    model: Vector
    model_sha256: str
    own: Mapping[Measure, Sums]
    batches: Iterator[Integers]
    step: int = 0
    batch: Integers | None = None
    losses: list[tuple[float, int]] = field(default_factory=list)
    terms: list[SampleTerms] = field(default_factory=list)


def training_sums(current: SiteRound, records: int) -> Floats:
    """The numbers of ``messages.TRAINING_SUMS``."""
    seen = sum(size for _, size in current.losses)
    loss = sum(value * size for value, size in current.losses)
    weighed = sum(terms.weighed for terms in current.terms)
    low = sum(terms.at_minimum for terms in current.terms)
    high = sum(terms.at_maximum for terms in current.terms)
    return np.array([records, loss, seen, weighed, low, high], dtype=np.float64)
