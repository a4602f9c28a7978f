# SPDX-License-Identifier: Apache-2.0
"""Whole numbers for what is summed under masks: masks add modulo 2^32 or 2^64, so must the vectors.

Updates are rounded stochastically to 32 bits together with their weight; statistics are scaled to 64 bits exactly. Both
are laid out so that the sum of any honest sites cannot overflow, whatever their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairflare.errors import SecaggError
from fairflare.secagg.masking import CHUNK_BYTES, Scratch, cipher_of

Floats = NDArray[np.float32] | NDArray[np.float64]

#: All sites' weights together are at most 2^30, and so is the sum of what they send, but for one per site.
UPDATE_BITS = 30
STATISTICS_FRACTION_BITS = 32
#: Far beyond any cohort; keeps 2^30 + sites below 2^31.
MOST_SITES = 65535
_WHOLE = 1 << UPDATE_BITS
_WORD = np.dtype(np.uint32)
_CHUNK = CHUNK_BYTES // _WORD.itemsize


@dataclass(frozen=True)
class UpdateCodec:
    """Codec of updates: x becomes W x in steps of 2^(30 - f), rounded up or down at random, as 32-bit two's complement.

    No sum overflows: |clip(x)| <= C <= 2^(30 - f), so |W clip(x) 2^(f - 30)| <= W, and u in [0, 1) gives |q| <= W + 1;
    a set U of sites has sum W <= 2^30 by its definition, hence |sum q| <= 2^30 + |U| < 2^31.

    Attributes
    ----------
    clip
        C > 0: every coordinate is clipped to [-C, C]; 2^-32 <= C <= 2^29.
    norm_clip
        The whole vector is first scaled down to this L2 norm, 2^-64 to 2^64; ``None`` leaves it.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-CLIP`` for a bound outside its range.
    """

    clip: float
    norm_clip: float | None

    def __post_init__(self) -> None:
        """Refuse bounds that leave no fraction bits, or too many to be scaled exactly."""
        if not (_is_number(self.clip) and math.ldexp(1.0, -32) <= self.clip <= math.ldexp(1.0, 29)):
            raise _bad_clip("a coordinate bound outside its range", "a number from 2^-32 to 2^29")
        if self.norm_clip is not None and not (
            _is_number(self.norm_clip) and math.ldexp(1.0, -64) <= self.norm_clip <= math.ldexp(1.0, 64)
        ):
            raise _bad_clip("a norm bound outside its range", "a number from 2^-64 to 2^64, or none")

    @property
    def fraction_bits(self) -> int:
        """Fraction bits f = 30 - ceil(log2 C), from 1 to 62."""
        mantissa, exponent = math.frexp(self.clip)
        return UPDATE_BITS - (exponent - 1 if mantissa == 0.5 else exponent)

    def weight(self, own: int, total: int) -> int:
        """W = floor(2^30 own / total), exactly; 0 only where ``own`` is 0. ``FF-SECAGG-WEIGHT`` otherwise."""
        if not (type(own) is int and type(total) is int and 0 <= own <= total and total > 0):
            raise _bad_weight("a count that is negative, no whole number, or above the total", "0 <= own <= total")
        weight = _WHOLE * own // total
        if weight == 0 and own > 0:
            raise _bad_weight("a share of the total that rounds to nothing", "own / total of at least 2^-30")
        return weight

    def encode(self, values: Floats, weight: int, rounding_key: bytes) -> tuple[NDArray[np.uint32], int]:
        """Clip, weight and round an update.

        Parameters
        ----------
        values
            float32 or float64, (P,), finite.
        weight
            W, from 1 to 2^30; a site of weight 0 has nothing to say.
        rounding_key
            32 bytes for this vector alone: equal keys round equal values alike. It is as secret as the values.

        Returns
        -------
        tuple
            uint32 (P + 1,): floor(W clip(x) 2^(f-30) + u), with u in [0, 1) in steps of 2^-32 from the AES-256-CTR
            keystream, then W; and how many coordinates were clipped (by C, not by the norm). float64 holds the sum to
            2^-22 or better, and so far the rounding has no bias.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-DTYPE``, ``-SHAPE``, ``-NAN``, ``-WEIGHT`` or ``-KEY``; nothing is returned then.
        """
        _check_floats(values, (np.dtype(np.float32), np.dtype(np.float64)))
        if not (type(weight) is int and 1 <= weight <= _WHOLE):
            raise _bad_weight("a weight outside its range", "a whole number from 1 to 2^30")
        cipher = cipher_of(rounding_key)
        largest = [_largest(part) for part in _parts(values)]
        factors = self._norm_factors(values, max(largest, default=0.0))
        step = math.ldexp(float(weight), self.fraction_bits - UPDATE_BITS)
        words = np.empty(values.size + 1, dtype=np.uint32)
        words[-1] = weight
        scratch, clipped = Scratch(4 * values.size), 0
        numbers, noise = np.empty((2, min(_CHUNK, values.size)), dtype=np.float64)
        try:
            for part, out, bound in zip(_parts(values), _parts(words[:-1]), largest, strict=True):
                x, u = numbers[: part.size], noise[: part.size]
                np.copyto(x, part)
                clipped += self._clip(x, bound, factors, u)
                x *= step
                np.copyto(u, scratch.words(cipher, part.size, _WORD))
                u *= math.ldexp(1.0, -32)
                x += u
                np.copyto(out.view(np.int32), np.floor(x, out=x), casting="unsafe")
        finally:
            scratch.wipe()
            numbers.fill(0)
            noise.fill(0)
        return words, clipped

    def _clip(self, x: NDArray[np.float64], largest: float, factors: tuple[float, ...], scratch: Floats) -> int:
        """Scale and clip a chunk in place; how many coordinates were clipped."""
        for factor in factors:
            x *= factor
            largest *= factor  # rounds as the largest coordinate does, so it is still the largest
        if largest <= self.clip:
            return 0
        clipped = int(np.count_nonzero(np.abs(x, out=scratch) > self.clip))
        np.clip(x, -self.clip, self.clip, out=x)
        return clipped

    def _norm_factors(self, values: Floats, largest: float) -> tuple[float, ...]:
        """What to multiply by, in turn, so that the L2 norm is at most ``norm_clip``; nothing where it is already.

        The first factor is a power of two that brings the largest value near 1, so that no square overflows.
        """
        if self.norm_clip is None or largest == 0.0:
            return ()
        unit = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(largest)[1])))
        scratch = np.empty(min(_CHUNK, values.size), dtype=np.float64)
        squares = []
        for part in _parts(values):
            x = scratch[: part.size]
            np.copyto(x, part)
            x *= unit
            np.square(x, out=x)
            squares.append(float(x.sum()))
        scratch.fill(0)
        norm = math.sqrt(math.fsum(squares))
        if norm <= self.norm_clip * unit:
            return ()
        # 2^-36 is more than the squares of one chunk can lose by rounding: the bound holds, not only nearly.
        return unit, self.norm_clip / norm * (1.0 - math.ldexp(1.0, -36))

    def decode(self, total: NDArray[np.uint32], sites: int) -> tuple[NDArray[np.float64], int]:
        """Weighted mean of the updates in an unmasked sum.

        Parameters
        ----------
        total
            uint32 (P + 1,): the sum of ``sites`` encoded updates modulo 2^32.
        sites
            How many sites are in the sum.

        Returns
        -------
        tuple
            float64 (P,): sum of q / (sum W 2^(f-30)); and sum W.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-RANGE`` for a sum that no honest sites can have: one of them was dishonest, or a mask is left
            in it. A dishonest site can also stay within the range. ``FF-SECAGG-DTYPE``, ``-SHAPE``, ``-SITES``.
        """
        _check_words(total, _WORD)
        _check_sites(sites)
        if total.size == 0:
            raise _bad_array("SHAPE", "a sum without its weight", "one word more than coordinates")
        weight, signed, most = int(total[-1]), total[:-1].view(np.int32), _WHOLE + sites
        if not 0 < weight <= _WHOLE or int(signed.max(initial=0)) > most or int(signed.min(initial=0)) < -most:
            raise _out_of_range("a sum that honest sites cannot have", "a weight up to 2^30, and no sum much above it")
        mean = signed.astype(np.float64)
        mean /= math.ldexp(float(weight), self.fraction_bits - UPDATE_BITS)
        return mean, weight


@dataclass(frozen=True)
class StatisticsCodec:
    """Codec of statistics: x becomes round(2^32 x) as 64-bit two's complement, so whole numbers come back exactly.

    No sum overflows: every site refuses |q| > floor((2^63 - 1) / n), and at most n sites are in the sum.

    Attributes
    ----------
    sites
        n, the number of sites of the roster.
    """

    sites: int

    def __post_init__(self) -> None:
        """Raise ``FF-SECAGG-SITES`` for a roster of no site."""
        _check_sites(self.sites)

    @property
    def limit(self) -> int:
        """The largest |q| of one site."""
        return (2**63 - 1) // self.sites

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.uint64]:
        """Scale float64 (L,) to uint64 (L,); ``FF-SECAGG-DTYPE``, ``-SHAPE``, ``-NAN`` or ``-RANGE`` otherwise."""
        _check_floats(values, (np.dtype(np.float64),))
        for part in _parts(values):
            _largest(part)
        with np.errstate(over="ignore"):  # infinity is out of range below
            scaled = np.ldexp(values, STATISTICS_FRACTION_BITS)
        np.rint(scaled, out=scaled)
        # Compared before the cast, which has no defined result beyond 63 bits; rounding the limit up must not widen it.
        limit = float(self.limit)
        if int(limit) > self.limit:
            limit = math.nextafter(limit, 0.0)
        if max(scaled.max(initial=0.0), -scaled.min(initial=0.0)) > limit:
            raise _out_of_range(
                "a statistic that is too large to be added without overflow", f"at most 2^31 / {self.sites}"
            )
        return scaled.astype(np.int64).view(np.uint64)

    def decode(self, total: NDArray[np.uint64]) -> NDArray[np.float64]:
        """The sum of the statistics, float64 (L,), from an unmasked sum, uint64 (L,)."""
        _check_words(total, np.dtype(np.uint64))
        return np.ldexp(total.view(np.int64).astype(np.float64), -STATISTICS_FRACTION_BITS)


def _parts(values: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    return (values[start : start + _CHUNK] for start in range(0, values.size, _CHUNK))


def _largest(part: NDArray[np.generic]) -> float:
    """The largest |x| of a part, which is also where NaN and infinity show: ``FF-SECAGG-NAN``."""
    largest = max(float(part.max()), -float(part.min()))
    if not math.isfinite(largest):
        raise _bad_array("NAN", "NaN or infinity", "finite numbers")
    return largest


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_floats(values: Floats, dtypes: tuple[np.dtype[np.generic], ...]) -> None:
    # A subclass (a masked array, for one) may answer for other numbers than its bytes hold.
    if type(values) is not np.ndarray or values.dtype not in dtypes:
        raise _bad_array("DTYPE", "numbers of another type", " or ".join(str(dtype) for dtype in dtypes))
    if values.ndim != 1:
        raise _bad_array("SHAPE", "an array that is not one-dimensional", "a vector")


def _check_words(total: NDArray[np.unsignedinteger], dtype: np.dtype[np.generic]) -> None:
    if type(total) is not np.ndarray or total.dtype != dtype:
        raise _bad_array("DTYPE", "a sum of another type", str(dtype))
    if total.ndim != 1:
        raise _bad_array("SHAPE", "a sum that is not one-dimensional", "a vector")


def _check_sites(sites: int) -> None:
    if not (type(sites) is int and 1 <= sites <= MOST_SITES):
        raise SecaggError(
            "FF-SECAGG-SITES",
            got="a number of sites outside its range",
            expected=f"a whole number from 1 to {MOST_SITES}",
            next_step="report this as a defect of FairFlare",
        )


def _bad_array(code: str, got: str, expected: str) -> SecaggError:
    return SecaggError(
        f"FF-SECAGG-{code}",
        got=got,
        expected=expected,
        next_step="look at what made this vector; nothing was done with it",
    )


def _bad_clip(got: str, expected: str) -> SecaggError:
    return SecaggError("FF-SECAGG-CLIP", got=got, expected=expected, next_step="correct the bound in the plan")


def _bad_weight(got: str, expected: str) -> SecaggError:
    return SecaggError(
        "FF-SECAGG-WEIGHT",
        got=got,
        expected=expected,
        next_step="check the counts that the sites announced; a site without records takes no part",
    )


def _out_of_range(got: str, expected: str) -> SecaggError:
    return SecaggError(
        "FF-SECAGG-RANGE",
        got=got,
        expected=expected,
        next_step="look at the site's own numbers, or, at the server, for an upload that arrived incomplete",
    )
