# SPDX-License-Identifier: Apache-2.0
"""Smallest gap between two groups that a test set of a given size can detect.

A two-sided test of two proportions in the normal approximation, in the worst case: both rates at 1/2, where their
variance is largest. A mean of any numbers from 0 to 1, such as Dice, has no larger one, so the same bound holds. It
assumes that records are independent: several of one patient count for less than they seem to.
"""

from __future__ import annotations

import math

from scipy import special


def _quantiles(alpha: float, power: float) -> float:
    """z(1 - alpha / 2) + z(power)."""
    return float(special.ndtri(1 - alpha / 2) + special.ndtri(power))


def smallest_gap(records: float, rest: float, alpha: float, power: float) -> float | None:
    """Smallest gap between ``records`` and ``rest`` that is found with this power; ``None``: not even a gap of 1."""
    if records <= 0 or rest <= 0:
        return None
    gap = _quantiles(alpha, power) * math.sqrt(0.25 / records + 0.25 / rest)
    return gap if gap <= 1 else None


def records_needed(gap: float, rest: float, alpha: float, power: float) -> int | None:
    """Records that a group needs beside ``rest`` others to show ``gap``; ``None``: the others are too few for any."""
    room = (gap / _quantiles(alpha, power)) ** 2 - (0.25 / rest if rest > 0 else math.inf)
    return math.ceil(0.25 / room) if room > 0 else None


def records_in_each(gap: float, alpha: float, power: float) -> int:
    """Records that each of two groups of one size needs to show ``gap``."""
    return math.ceil(0.5 * (_quantiles(alpha, power) / gap) ** 2)
