# SPDX-License-Identifier: Apache-2.0
"""Random numbers that privacy rests on: noise, and who is drawn into a batch. Nobody can choose or repeat them.

Each call takes a new 256-bit key from the operating system, stretches it with AES-256-CTR and forgets it. Nothing is
kept from one call to the next. So there is no seed to give, write down or guess, and no state that a fork, a thread, a
copy or a restart could use twice; two sites never share a stream.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fairflare.privacy.refusals import refused

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

_KEY_BYTES = 32
_BLOCK = 16
#: Noised values are multiples of a power of two about 2^-20 of the noise's standard deviation.
GRID_BITS = 20
#: Pairs of normal numbers made at once: their few arrays stay in the processor's cache.
_PAIRS = 1 << 13
_MANTISSA = np.uint64((1 << 52) - 1)
_EXPONENT = np.uint64(0x7FF << 52)
_FEW = 512
#: Far above any noise that is of use, and safe from overflow in 64 bits.
_LARGEST_DEVIATION = 1 << 52


class _Keystream:
    """One call's keystream, from a key of its own that is not kept."""

    def __init__(self) -> None:
        key = os.urandom(_KEY_BYTES)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK))).encryptor()
        self._pool = b""

    def words(self, count: int) -> Words:
        """The next ``count`` words of 64 bits, (count,)."""
        buffer = np.zeros(8 * count + _BLOCK, dtype=np.uint8)
        size = 8 * count
        self._cipher.update_into(memoryview(bytes(size)), buffer.data)
        return buffer[:size].view(np.uint64)

    def below(self, bound: int) -> int:
        """A whole number from 0 to ``bound`` - 1, each as likely as the other, of any size."""
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            found = int.from_bytes(self._take(size), "little") & ((1 << bits) - 1)
            if found < bound:
                return found

    def _take(self, size: int) -> bytes:
        while len(self._pool) < size:
            self._pool += self._cipher.update(bytes(_FEW))
        taken, self._pool = self._pool[:size], self._pool[size:]
        return taken


def words(count: int) -> Words:
    """Uniform words of 64 bits, (count,)."""
    return _Keystream().words(count)


def chosen(count: int, rate: float) -> NDArray[np.bool_]:
    """Poisson sampling: each of ``count`` units is in on its own with probability ``rate``, bool (count,).

    The probability is ``rate`` rounded down to a multiple of 2^-64, so never above what is accounted for.
    """
    if not 0.0 < rate <= 1.0:  # also refuses NaN
        raise refused("RATE", "a sampling rate outside its range", "a number above 0, up to 1")
    if rate == 1.0:
        return np.ones(count, dtype=np.bool_)
    limit = np.uint64(math.floor(Fraction(rate) * (1 << 64)))
    result: NDArray[np.bool_] = words(count) < limit
    return result


def gaussian(count: int, deviation: float) -> Floats:
    """Normal numbers with mean 0 and this standard deviation, float64 (count,).

    Box-Muller. The radius comes from a uniform number with all 52 bits of its mantissa, however small it is; beyond
    8.5 deviations, probability 2^-53, the tail ends. Floating-point normals alone do not keep a float secret: what
    they are added to shows in the last bits. :func:`add_gaussian` takes those away.
    """
    _verify_deviation(deviation)
    stream = _Keystream()
    result = np.empty(count + count % 2, dtype=np.float64)
    for start in range(0, result.size, 2 * _PAIRS):
        part = result[start : start + 2 * _PAIRS]
        _fill_normal(part, stream, deviation)
    return result[:count]


def add_gaussian(values: Floats, deviation: float) -> Floats:
    """``values`` (n,) plus normal noise, rounded to a grid that depends on ``deviation`` alone; float64 (n,).

    The grid is 2^-20 of the deviation or finer by less than half. Each of its points stands for some 2^30 numbers that
    the noise can take, so which points can come out does not depend on the values, as it would for plain floats. That
    defends against reading the values from the last bits; it is no proof, as the discrete Gaussian has one.

    Raises
    ------
    PrivacyError
        ``FF-PRIVACY-VALUES`` for numbers that are not finite, ``FF-PRIVACY-NOISE`` for a deviation that is no noise.
    """
    _verify_deviation(deviation)
    if values.dtype != np.float64 or values.ndim != 1 or not bool(np.isfinite(values).all()):
        raise refused("VALUES", "values that are not finite float64 in a row", "finite float64 numbers, (n,)")
    grid, stream = grid_of(deviation), _Keystream()
    noised = np.empty(values.size + values.size % 2, dtype=np.float64)
    # All of it part by part, as each of these passes over a long row takes as long as much of the noise.
    for start in range(0, noised.size, 2 * _PAIRS):
        part, added = noised[start : start + 2 * _PAIRS], values[start : start + 2 * _PAIRS]
        _fill_normal(part, stream, deviation)
        part[: added.size] += added
        part *= 1.0 / grid  # exact: the grid is a power of two
        np.rint(part, out=part)
        part *= grid
    return noised[: values.size]


def grid_of(deviation: float) -> float:
    """The grid of :func:`add_gaussian`: a power of two."""
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)


def discrete_gaussian(count: int, variance: Fraction) -> Integers:
    """Whole numbers z with probability proportional to exp(-z^2 / (2 variance)), exactly; int64 (count,).

    Rejection from a two-sided geometric distribution, in rational arithmetic (Canonne, Kamath and Steinke 2020): no
    floating-point number takes part, so there are no last bits to read. For integer sums of L2 sensitivity D its
    concentrated privacy is that of the normal one, D^2 / (2 variance). Some 50 microseconds a number: for statistics.
    """
    if not 0 < variance <= _LARGEST_DEVIATION**2:
        raise refused("NOISE", "a variance outside its range", "above 0, up to 2^104")
    stream = _Keystream()
    # floor(sqrt(p / q)) is isqrt(p // q).
    scale = math.isqrt(variance.numerator // variance.denominator) + 1
    return np.array([_discrete_normal(stream, variance, scale) for _ in range(count)], dtype=np.int64)


def _discrete_normal(stream: _Keystream, variance: Fraction, scale: int) -> int:
    while True:
        found = _discrete_laplace(stream, scale)
        off = abs(found) - variance / scale
        if _happens(stream, off * off / (2 * variance)):
            return found


def _discrete_laplace(stream: _Keystream, scale: int) -> int:
    """A whole number z with probability proportional to exp(-|z| / scale)."""
    while True:
        rest = stream.below(scale)
        if not _happens(stream, Fraction(rest, scale)):
            continue
        whole = 0
        while _happens(stream, Fraction(1)):
            whole += 1
        size, negative = rest + scale * whole, stream.below(2) == 1
        if negative and size == 0:  # zero has no sign: it would come twice as often
            continue
        return -size if negative else size


def _happens(stream: _Keystream, exponent: Fraction) -> bool:
    """True with probability exp(-exponent), exactly."""
    while exponent > 1:
        if not _happens(stream, Fraction(1)):
            return False
        exponent -= 1
    top, bottom, number = exponent.numerator, exponent.denominator, 1
    # The alternating series of exp(-x): the first k at which an event of probability x / k fails is odd that often.
    while stream.below(bottom * number) < top:
        number += 1
    return number % 2 == 1


def _fill_normal(part: Floats, stream: _Keystream, deviation: float) -> None:
    """Box-Muller into ``part``, of even length."""
    pairs = part.size // 2
    drawn = stream.words(3 * pairs).reshape(3, pairs)
    radius, angle = _uniform(drawn[0], drawn[1]), (drawn[2] >> np.uint64(11)).astype(np.float64)
    np.log(radius, out=radius)
    radius *= -2.0 * deviation * deviation
    np.sqrt(radius, out=radius)
    angle *= math.ldexp(2.0 * math.pi, -53)
    # Torch's are three times as fast as numpy's, to the last bit but one; so few at once start none of its threads.
    turned, first, second = torch.from_numpy(angle), part[:pairs], part[pairs:]
    torch.cos(turned, out=torch.from_numpy(first))
    torch.sin(turned, out=torch.from_numpy(second))
    first *= radius
    second *= radius


def _uniform(order: Words, mantissa: Words) -> Floats:
    """Uniform in (0, 1) with a full mantissa: from ``order`` the power of two, each half as likely as the next."""
    power: NDArray[Any] = ((order >> np.uint64(11)) | np.uint64(1)).astype(np.float64).view(np.uint64)
    power &= _EXPONENT
    power |= mantissa & _MANTISSA
    result: Floats = power.view(np.float64)
    result *= math.ldexp(1.0, -53)
    return result


def _verify_deviation(deviation: float) -> None:
    if not math.ldexp(1.0, -200) <= deviation <= math.ldexp(1.0, 200):  # also refuses NaN
        raise refused("NOISE", "a standard deviation that is no noise", "a number above 0 that floats can square")
