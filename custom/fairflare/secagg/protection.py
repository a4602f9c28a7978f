# SPDX-License-Identifier: Apache-2.0
"""The secure-sum interface: a site protects a vector, the server adds what arrives and opens only the sum.

A vector is known by its label; its dtype and length are fixed by the plan. Vectors are weighted: the server opens
(sum_s w_s x_s, sum_s w_s, who took part). Statistics use weight 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class VectorSpec:
    """Label, dtype (``float32`` updates, ``float64`` statistics) and length of a vector that may leave a site."""

    label: str
    dtype: str
    length: int


@dataclass(frozen=True)
class Weighted:
    """A vector that wants to leave, and its weight in the sum."""

    values: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Payload:
    """A vector on its way: its protected numbers, and the weight, ``None`` where the protection hides it."""

    values: np.ndarray
    weight: float | None


@dataclass(frozen=True)
class Opened:
    """What the server may know: the weighted sum (float64, (length,)), the sum of weights, the sites in it."""

    total: Floats
    weight: float
    sites: tuple[str, ...]

    @property
    def mean(self) -> Floats:
        """Weighted mean, shape (length,)."""
        return self.total / self.weight


class SiteProtection(ABC):
    """The half at the site."""

    @abstractmethod
    def protect(
        self, specs: Mapping[str, VectorSpec], vectors: Mapping[str, Weighted]
    ) -> tuple[dict[str, Payload], bytes]:
        """Turn the checked vectors of one task into what is sent, with protocol messages that go along."""


class SecureSum(ABC):
    """The half at the server: one object per vector and round."""

    @abstractmethod
    def check(self, payload: Payload) -> None:
        """Raise :class:`~fairflare.errors.RoundError` if the payload cannot be added; change nothing."""

    @abstractmethod
    def add(self, site: str, payload: Payload) -> None:
        """Add one site's checked payload; a site counts once. Called by one thread at a time."""

    @abstractmethod
    def open(self) -> Opened:
        """The sum over the sites added so far; the same whatever order they came in."""


def check_numbers(spec: VectorSpec, values: np.ndarray) -> str | None:
    """Say in a word what is wrong with ``values`` as a vector of ``spec``, or ``None``: DTYPE, SHAPE or NAN."""
    # A subclass (a masked array, for one) may answer these questions for other numbers than its bytes hold.
    if type(values) is not np.ndarray or values.dtype != np.dtype(spec.dtype):
        return "DTYPE"
    if values.shape != (spec.length,):
        return "SHAPE"
    return None if bool(np.isfinite(values).all()) else "NAN"


def describe(specs: Mapping[str, VectorSpec]) -> str:
    """Labels, dtypes and lengths in words, for messages."""
    return ", ".join(f"{spec.label} ({spec.dtype}, {spec.length})" for spec in specs.values()) or "no vector"
