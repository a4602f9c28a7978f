# SPDX-License-Identifier: Apache-2.0
"""Protection ``none``: no protection at all. The server sees every site's vector. For studies on public data.

The sums are exact, so no order of arrival can change a hash: updates are added as 64-bit integers (streaming, one
accumulator whatever the number of sites), statistics with a correctly rounded float sum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np

from fairflare.errors import RoundError
from fairflare.secagg.protection import (
    Floats,
    Opened,
    Payload,
    SecureSum,
    SiteProtection,
    VectorSpec,
    Weighted,
    check_numbers,
)

#: Fraction bits of an update in the accumulator: its rounding (2^-41) is far below float32's at any useful weight.
FRACTION_BITS = 40
#: A site's largest |w x|: 1,024 sites of it still fit 63 bits.
LIMIT = float(2 ** (62 - FRACTION_BITS - 10))
#: A site's largest statistic: up to here float64 still counts by ones.
STATISTICS_LIMIT = 2.0**50
_CHUNK = 1 << 16


class PlainSite(SiteProtection):
    """Sends the vector as it is."""

    def protect(
        self, specs: Mapping[str, VectorSpec], vectors: Mapping[str, Weighted]
    ) -> tuple[dict[str, Payload], bytes]:
        """The vectors themselves, and their weights in clear."""
        return {label: Payload(vectors[label].values, vectors[label].weight) for label in specs}, b""


class _PlainSum(SecureSum):
    def __init__(self, spec: VectorSpec, weight_unit: float = 1.0) -> None:
        self.spec = spec
        self.weight_unit = weight_unit
        self.weights: dict[str, float] = {}

    def check(self, payload: Payload) -> None:
        """Refuse another dtype, another shape, NaN or infinity, and weights outside [0, weight unit]."""
        defect = check_numbers(self.spec, payload.values)
        if defect is None and not self._may_weigh(payload.weight):
            defect = "WEIGHT"
        if defect is None and not self._in_range(payload):
            defect = "RANGE"
        if defect is not None:
            raise refusal(defect, self.spec)

    def _may_weigh(self, weight: float | None) -> bool:
        return weight is not None and 0 <= weight <= self.weight_unit and 0 < self.weight_unit < math.inf

    @abstractmethod
    def _in_range(self, payload: Payload) -> bool:
        """Whether the payload's numbers can be added without overflow, and mean something."""

    def add(self, site: str, payload: Payload) -> None:
        """Add one site's vector."""
        if site in self.weights:
            raise refusal("TWICE", self.spec)
        self._add(site, payload)
        self.weights[site] = _weight(payload)

    @abstractmethod
    def _add(self, site: str, payload: Payload) -> None:
        """Add a payload that was checked."""

    def _opened(self, total: Floats) -> Opened:
        sites = tuple(sorted(self.weights))
        return Opened(total, math.fsum(self.weights[site] for site in sites), sites)


class PlainUpdateSum(_PlainSum):
    """Sum of float32 updates in one int64 accumulator: round(w x 2^40), w in units of ``weight_unit``."""

    def __init__(self, spec: VectorSpec, weight_unit: float) -> None:
        super().__init__(spec, weight_unit)
        self.accumulator = np.zeros(spec.length, dtype=np.int64)

    def _in_range(self, payload: Payload) -> bool:
        largest = max(float(payload.values.max(initial=0.0)), -float(payload.values.min(initial=0.0)))
        return largest * _weight(payload) / self.weight_unit < LIMIT

    def _add(self, site: str, payload: Payload) -> None:
        scale = _weight(payload) / self.weight_unit * 2.0**FRACTION_BITS
        for start in range(0, self.spec.length, _CHUNK):
            part = payload.values[start : start + _CHUNK].astype(np.float64)
            part *= scale
            np.rint(part, out=part)
            self.accumulator[start : start + _CHUNK] += part.astype(np.int64)

    def open(self) -> Opened:
        """Sum of w x over the sites that arrived, in float64."""
        total = self.accumulator.astype(np.float64)
        total *= self.weight_unit * 2.0**-FRACTION_BITS
        return self._opened(total)


class PlainStatisticsSum(_PlainSum):
    """Sum of float64 statistics, each number correctly rounded (Shewchuk 1997, ``math.fsum``)."""

    def __init__(self, spec: VectorSpec) -> None:
        super().__init__(spec)
        self.rows: dict[str, Floats] = {}

    def _may_weigh(self, weight: float | None) -> bool:
        return weight == 1.0

    def _in_range(self, payload: Payload) -> bool:
        # Every statistic is a sum of counts, losses or probabilities: a negative one would take from the others'.
        return bool((payload.values >= 0).all() and (payload.values < STATISTICS_LIMIT).all())

    def _add(self, site: str, payload: Payload) -> None:
        self.rows[site] = payload.values

    def open(self) -> Opened:
        """Sum over the sites that arrived."""
        rows = [self.rows[site].tolist() for site in sorted(self.rows)]
        total = [math.fsum(column) for column in zip(*rows, strict=True)] if rows else [0.0] * self.spec.length
        return self._opened(np.array(total, dtype=np.float64))


def _weight(payload: Payload) -> float:
    return 0.0 if payload.weight is None else payload.weight


_DEFECTS = {
    "DTYPE": "an unknown number type",
    "SHAPE": "another length",
    "NAN": "NaN or infinity",
    "WEIGHT": "a weight outside its range",
    "RANGE": "numbers too large to be added without overflow, or a negative statistic",
    "TWICE": "a second vector of the same site",
}


def refusal(defect: str, spec: VectorSpec) -> RoundError:
    """The error ``FF-ROUND-<defect>`` for a vector that cannot be added."""
    return RoundError(
        f"FF-ROUND-{defect}",
        got=f"{_DEFECTS[defect]} in '{spec.label}'",
        expected=f"{spec.length} finite numbers of type {spec.dtype}, once per site",
        next_step="check that server and sites run the same version and plan; look at the site's own log",
    )
