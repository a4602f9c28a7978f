# SPDX-License-Identifier: Apache-2.0
"""Private group risks: sums and counts of groups leave a site with noise, small groups not at all.

A unit (a patient) is in at most g groups. In each it counts once, with the mean of its records' utilities, clipped to
[0, B] and moved to [-1, 1], as a whole number of 2^-20; so no rounding is left to account for. A unit that comes or
goes then moves the sums, and the counts, by at most sqrt(g) in L2 norm, and discrete normal noise of z sqrt(g) makes
each of the two releases a Gaussian mechanism with noise multiplier z. Counts are released once per session.

What is hidden is whether a patient is in the data at all. Which groups are published must not say more than the noise
allows: a threshold on exact counts lets one patient switch a whole group on and off, which noise for one patient does
not hide. So the threshold is put on noised counts, with a margin. Whoever calls this has paid before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fairflare.privacy import noise
from fairflare.privacy.refusals import refused

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Kept = NDArray[np.bool_]

#: Sums and noised counts travel as whole numbers of 1 / SCALE.
SCALE = 1 << 20
#: Deviations of the noise above a threshold: below it a group passes with a probability of one in a thousand.
MARGIN: Final = float(-ndtri(1e-3))


@dataclass(frozen=True)
class GroupNoise:
    """What a release's privacy follows from; all of it is public.

    Attributes
    ----------
    bound
        B: utilities are clipped to [0, B].
    multiplier
        z: standard deviation of the noise in a sum over all ``sharing`` sites, over the sensitivity.
    most_groups
        g: groups in which a unit counts; of more, g are drawn.
    minimum
        Smallest number of units of a published group, from 1.
    sharing
        h: sites that share the noise of a masked sum, each with the part 1 / h of the variance. It must be no more
        than the sites whose part is sure to be in the sum and unknown to the others: max(t, n_min) - c. With h = 1
        each site adds the whole noise and sharing gains nothing; so it is where nobody else is trusted. A site's own
        part, seen without the others', is then protected with z / sqrt(h) only.
    """

    bound: float
    multiplier: float
    most_groups: int
    minimum: int
    sharing: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no protection."""
        for value in (self.bound, self.multiplier):
            if not 2.0**-20 <= value <= 2.0**20:  # also refuses NaN
                raise refused("RELEASE", "a bound or a multiplier that is not above 0 and finite", "2^-20 to 2^20")
        for whole in (self.most_groups, self.minimum, self.sharing):
            if type(whole) is not int or not 1 <= whole <= 1 << 20:
                raise refused("RELEASE", "groups, a minimum or sites below one", "whole numbers from 1")

    @property
    def sensitivity_squared(self) -> int:
        """Square of how far a unit moves the sums in L2 norm, in units of 1: g."""
        return self.most_groups

    @property
    def variance(self) -> Fraction:
        """Variance of one site's noise in each number, in units of 1 / SCALE squared."""
        return Fraction(self.multiplier) ** 2 * self.sensitivity_squared * SCALE**2 / self.sharing

    def deviation(self, reporting: int) -> float:
        """Standard deviation of the noise in a sum over ``reporting`` sites, in units of 1."""
        return math.sqrt(self.variance * reporting) / SCALE


class Cohort:
    """A site's units and their groups, fixed for a job.

    Parameters
    ----------
    unit
        Number of the unit of each record, (n,).
    group
        Groups of each record, (n,) or (n, A) for A attributes; numbers from 0 to ``size`` - 1, or -1 for none.
    size
        K, the number of groups of all attributes.
    most_groups
        g; of a unit with more groups, g are drawn.
    """

    def __init__(self, unit: Integers, group: Integers, size: int, most_groups: int) -> None:
        columns = group[:, np.newaxis] if group.ndim == 1 else group
        if len(columns) != len(unit) or not bool(((columns >= -1) & (columns < size)).all()):
            raise refused("RELEASE", "a group that is not declared", "numbers of groups, or -1")
        self.size, self.most_groups, self._records = size, most_groups, len(unit)
        member = np.unique(unit, return_inverse=True)[1]
        record, column = np.nonzero(columns >= 0)
        pairs, pair = np.unique(member[record] * size + columns[record, column], return_inverse=True)
        kept = _at_most(pairs // max(size, 1), most_groups)
        self._group = (pairs % max(size, 1))[kept]
        place = np.full(pairs.size, -1)
        place[kept] = np.arange(self._group.size)
        inside = place[pair] >= 0
        self._record, self._pair = record[inside], place[pair][inside]

    @property
    def counts(self) -> Integers:
        """Units in each group, exact, (K,): they must not leave without noise or consent."""
        return np.bincount(self._group, minlength=self.size).astype(np.int64)

    def sums(self, values: Floats, bound: float) -> Integers:
        """Sums over each group's units of their mean utility, moved from [0, B] to [-SCALE, SCALE], exact, (K,).

        A utility that is not a number counts as B.
        """
        if values.shape != (self._records,):
            raise refused("RELEASE", "utilities of another number of records", "one per record")
        moved = np.nan_to_num(values, nan=bound, posinf=bound, neginf=0.0).clip(0.0, bound) * (2.0 / bound) - 1.0
        times = np.bincount(self._pair, minlength=self._group.size)
        total = np.bincount(self._pair, weights=moved[self._record], minlength=self._group.size)
        whole = np.rint(total / np.maximum(times, 1) * SCALE).astype(np.int64)
        result = np.zeros(self.size, dtype=np.int64)
        np.add.at(result, self._group, whole)
        return result


def noised_counts(cohort: Cohort, settings: GroupNoise) -> Integers:
    """A site's noised counts, in units of 1 / SCALE, int64 (K,): once per session."""
    _verify_groups(cohort, settings)
    return cohort.counts * SCALE + noise.discrete_gaussian(cohort.size, settings.variance)


def noised_sums(cohort: Cohort, values: Floats, kept: Kept, settings: GroupNoise) -> Integers:
    """A site's noised sums of the published groups, in units of 1 / SCALE, int64 (K,); 0 for the others.

    Parameters
    ----------
    values
        Utility of each record, (n,).
    kept
        From :func:`kept_by_noised`: known to all before this release, (K,).
    """
    _verify_groups(cohort, settings)
    if kept.shape != (cohort.size,) or kept.dtype != np.bool_:
        raise refused("RELEASE", "another number of groups than there are", "one truth value per group")
    noised = cohort.sums(values, settings.bound) + noise.discrete_gaussian(cohort.size, settings.variance)
    return np.where(kept, noised, 0)


def kept_by_noised(noised: Integers, table: Integers, settings: GroupNoise, reporting: int) -> Kept:
    """Which groups are published, from noised counts (K,) summed over ``reporting`` sites: no further privacy is spent.

    The noised count must be above the minimum by so much that a smaller group seldom passes (1 in 1000). ``table``:
    number of each group's attribute, for the second suppression.
    """
    limit = settings.minimum + MARGIN * settings.deviation(reporting)
    return _kept(np.maximum(noised / SCALE, 1.0), table, limit)


def _kept(counts: Floats, table: Integers, limit: float) -> Kept:
    """Groups of at least ``limit`` units; if the rest of a table can be told from its total, more are left out.

    A single group left out is the total minus the others, and so is the sum of two: what is left out must be at least
    two groups that together have ``limit`` units. Groups without any unit cover nobody.
    """
    if counts.shape != table.shape:
        raise refused("RELEASE", "groups without a table", "the number of each group's attribute")
    kept = counts >= limit
    for one in np.unique(table):
        inside = table == one
        while True:
            out = inside & ~kept & (counts > 0)
            shown = np.flatnonzero(inside & kept)
            if not out.any() or shown.size == 0 or (out.sum() >= 2 and counts[out].sum() >= limit):
                break
            kept[shown[np.argmin(counts[shown])]] = False
    return kept


def _at_most(unit: Integers, most: int) -> Integers:
    """Places of up to ``most`` entries of each unit, drawn."""
    order = np.lexsort((noise.words(unit.size), unit))
    _, first, size = np.unique(unit[order], return_index=True, return_counts=True)
    kept: Integers = np.sort(order[np.arange(unit.size) - np.repeat(first, size) < most])
    return kept


def _verify_groups(cohort: Cohort, settings: GroupNoise) -> None:
    if cohort.most_groups > settings.most_groups:
        raise refused("RELEASE", "units in more groups than the noise is made for", "at most g groups per unit")
