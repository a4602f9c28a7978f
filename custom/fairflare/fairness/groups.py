# SPDX-License-Identifier: Apache-2.0
"""What a site adds up about groups: mergeable sums with a layout that the plan fixes before anybody looks at data.

Three kinds of sums cross sites, each a flat float64 vector on the wire:

* :class:`CellSums`: per group of one attribute (under one condition), sum of utility, count, and "I report this cell";
* :class:`HospitalSums`: the same with the hospital itself as the group, as sums only (never a single site's risk);
* :class:`EvaluationSums`: per attribute, group and label, count, loss, probability and a histogram of scores.

No torch here: sums are plain numpy, so the auditor and the report read them without a deep-learning stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Attribute name -> group of each record, -1 where the attribute is missing.
GroupIndex = Mapping[str, Integers]
#: What is averaged in a group. Classification: cross-entropy, or the probability of a label. Segmentation: the image's
#: soft Dice loss, or its mean binary cross-entropy over pixels.
Utility = Literal["cross_entropy", "probability", "dice_loss", "binary_cross_entropy"]
#: What else is averaged or counted in a group, of decisions and not of losses: whether a record is called positive, or
#: called right; the Dice of an image; 1 for every record.
Quantity = Utility | Literal["positive", "correct", "dice", "presence"]

HOSPITAL = "hospital"
EVERYBODY = "all"


@dataclass(frozen=True, order=True)
class Measure:
    """A question about groups: mean ``utility`` per group of ``attribute`` among records with ``label`` (-1: all).

    Attribute :data:`EVERYBODY` has one group, of all records.
    ``weighted`` matters for :data:`HOSPITAL` only: whether record counts are summed too (weights n_s / n) or the
    risks alone (uniform weights). ``target`` is the label whose probability is meant, -1 for the positive one of two.
    """

    attribute: str
    label: int
    utility: Quantity
    weighted: bool = False
    target: int = -1

    @property
    def quantity(self) -> str:
        """Name of what is averaged: the utility, with its label where there are more than two."""
        return self.utility if self.target < 0 else f"{self.utility}{self.target}"

    @property
    def name(self) -> str:
        """Stable name on the wire and in the record."""
        condition = "all" if self.label < 0 else f"label{self.label}"
        return f"{self.attribute}/{condition}/{self.quantity}" + ("/weighted" if self.weighted else "")


@dataclass(frozen=True)
class CellSums:
    """Sums over the K groups of an attribute; adding two is adding their vectors.

    Attributes
    ----------
    total, count, sites
        float64 arrays of shape (K,): sum of utility, number of records, number of sites that report the group.
    """

    total: Floats
    count: Floats
    sites: Floats

    @classmethod
    def measure(cls, values: Floats, group: Integers, size: int, minimum: int) -> CellSums:
        """Add up ``values`` (n,) by ``group`` (n,), -1 left out; groups under ``minimum`` records become zeros."""
        known = group >= 0
        count = np.bincount(group[known], minlength=size).astype(np.float64)
        total = np.bincount(group[known], weights=values[known], minlength=size)
        kept = (count > 0) & (count >= minimum)
        return cls(np.where(kept, total, 0.0), np.where(kept, count, 0.0), kept.astype(np.float64))

    @classmethod
    def zeros(cls, size: int) -> CellSums:
        """The sums of nobody: neutral element of merging."""
        return cls(np.zeros(size), np.zeros(size), np.zeros(size))

    @classmethod
    def from_vector(cls, vector: Floats) -> CellSums:
        """Inverse of :meth:`vector`."""
        total, count, sites = vector.reshape(3, -1)
        return cls(total, count, sites)

    def vector(self) -> Floats:
        """Flat form, length 3 K: totals, counts, reporting sites."""
        return np.concatenate([self.total, self.count, self.sites])

    def keep(self, sites: int) -> CellSums:
        """The same sums with every group that fewer than ``sites`` sites report set to zero."""
        kept = self.sites >= sites
        return CellSums(*(np.where(kept, part, 0.0) for part in (self.total, self.count, self.sites)))

    def exchange(self, old: CellSums, new: CellSums) -> CellSums:
        """The same sums with one site's ``old`` part replaced by its ``new`` one; what is held back stays so."""
        held = self.count == 0
        total = np.where(held, 0.0, self.total - old.total + new.total)
        return CellSums(total, self.count, self.sites)

    def __add__(self, other: CellSums) -> CellSums:
        return CellSums(self.total + other.total, self.count + other.count, self.sites + other.sites)


@dataclass(frozen=True)
class HospitalSums:
    """Sums with the hospital as group: what equal accuracy needs, and no more.

    Attributes
    ----------
    risk, sites
        Sum over sites of their mean utility R_s; number of sites that have at least the minimum of records.
    total, count
        Sum of utility and of records over sites; ``None`` when weights are uniform (then they are never sent).
    local_count
        Records behind this site's own risk. It stays at the site: no part of the vector, lost in a sum.
    """

    risk: float
    sites: float
    total: float | None = None
    count: float | None = None
    local_count: int = 0

    @classmethod
    def measure(cls, values: Floats, minimum: int, weighted: bool) -> HospitalSums:
        """One site's part, from the utility (n,) of its records under the condition."""
        if values.size == 0 or values.size < minimum:
            return cls(0.0, 0.0, 0.0 if weighted else None, 0.0 if weighted else None)
        total = float(values.sum())
        own = cls(total / values.size, 1.0, local_count=values.size)
        return replace(own, total=total, count=float(values.size)) if weighted else own

    @classmethod
    def from_vector(cls, vector: Floats) -> HospitalSums:
        """Inverse of :meth:`vector`."""
        risk, sites, *rest = (float(number) for number in vector)
        return cls(risk, sites, rest[0], rest[1]) if rest else cls(risk, sites)

    def vector(self) -> Floats:
        """Flat form: (risk, sites) or (risk, sites, total, count)."""
        extra = [] if self.total is None or self.count is None else [self.total, self.count]
        return np.array([self.risk, self.sites, *extra], dtype=np.float64)

    def keep(self, sites: int) -> HospitalSums:
        """The same sums, or zeros if fewer than ``sites`` hospitals are in them: each could work out another's risk."""
        return self if self.sites >= sites else HospitalSums.from_vector(np.zeros_like(self.vector()))

    def exchange(self, old: HospitalSums, new: HospitalSums) -> HospitalSums:
        """The same sums with one site's ``old`` part replaced by its ``new`` one."""
        total = None if self.total is None else self.total - (old.total or 0.0) + (new.total or 0.0)
        return replace(self, risk=self.risk - old.risk + new.risk, total=total)

    def __add__(self, other: HospitalSums) -> HospitalSums:
        return HospitalSums.from_vector(self.vector() + other.vector())


Sums = CellSums | HospitalSums


def exchanged(total: Sums, old: Sums, new: Sums) -> Sums:
    """``total`` with one site's ``old`` part replaced by its ``new`` one; ``TypeError`` for sums of two kinds."""
    if isinstance(total, CellSums) and isinstance(old, CellSums) and isinstance(new, CellSums):
        return total.exchange(old, new)
    if isinstance(total, HospitalSums) and isinstance(old, HospitalSums) and isinstance(new, HospitalSums):
        return total.exchange(old, new)
    raise TypeError("got sums of two kinds, expected one")


def measure_length(measure: Measure, sizes: Mapping[str, int]) -> int:
    """Numbers that ``measure`` sends, given the number of groups of each attribute."""
    if measure.attribute == HOSPITAL:
        return 4 if measure.weighted else 2
    return 3 * groups_of(measure, sizes)


def groups_of(measure: Measure, sizes: Mapping[str, int]) -> int:
    """Groups that ``measure`` compares: of its attribute; one of everybody, or of a hospital."""
    return 1 if measure.attribute in (EVERYBODY, HOSPITAL) else sizes[measure.attribute]


def group_index(measure: Measure, groups: GroupIndex, records: int) -> Integers:
    """Group of each record (n,) for ``measure``, -1 where it is not known; 0 for everybody, or the hospital."""
    if measure.attribute in (EVERYBODY, HOSPITAL):
        return np.zeros(records, dtype=np.int64)
    return groups[measure.attribute]


def pack(measures: Sequence[Measure], sums: Mapping[Measure, Sums]) -> Floats:
    """One flat vector of all measures, in the given order."""
    return np.concatenate([sums[measure].vector() for measure in measures]) if measures else np.zeros(0)


def unpack(measures: Sequence[Measure], vector: Floats, sizes: Mapping[str, int]) -> dict[Measure, Sums]:
    """Inverse of :func:`pack`; ``ValueError`` if the length is not that of the layout."""
    lengths = [measure_length(measure, sizes) for measure in measures]
    if vector.shape != (sum(lengths),):
        raise ValueError(f"got {vector.shape}, expected ({sum(lengths)},)")
    result: dict[Measure, Sums] = {}
    start = 0
    for measure, length in zip(measures, lengths, strict=True):
        part = vector[start : start + length]
        kind = HospitalSums if measure.attribute == HOSPITAL else CellSums
        result[measure] = kind.from_vector(part)
        start += length
    return result


#: Numbers per cell before the histogram: count, reporting sites, sum of the loss, sum of the value.
HEAD = 4


@dataclass(frozen=True)
class Stratum:
    """Records of one kind in an evaluation: which (bool (n,)), their losses and their values in [0, 1] (float64 (n,)).

    Classification has two strata for each label in question: records of other labels and of this label, with the
    probability of this label as value. Segmentation has one for each label but the background, with each image's Dice.
    """

    chosen: NDArray[np.bool_]
    loss: Floats
    value: Floats


def label_strata(probability: Floats, cross_entropy: Floats, labels: Integers) -> list[Stratum]:
    """Strata of a classification: probability (n, C) of each label, true labels (n,).

    Of two labels only the second is in question.
    """
    questions = (1,) if probability.shape[1] == 2 else range(probability.shape[1])
    return [
        Stratum((labels == label) == own, cross_entropy, probability[:, label])
        for label in questions
        for own in (False, True)
    ]


def image_strata(dice: Floats, loss: Floats) -> list[Stratum]:
    """Strata of a segmentation: Dice (n, F) of each image for each label but the background."""
    everybody = np.ones(loss.shape, dtype=np.bool_)
    return [Stratum(everybody, loss, dice[:, label]) for label in range(dice.shape[1])]


@dataclass(frozen=True)
class EvaluationSums:
    """Everything that any reported metric needs, summed over records (and then over sites).

    Attributes
    ----------
    cells
        Attribute name (and ``all``) -> float64 array of shape (K, S, 4 + bins). The second axis are the strata
        (:class:`Stratum`; of two labels, the true label). The last one is count, reporting sites, sum of the loss, sum
        of the value (P(positive), or Dice), and the histogram of the value over ``bins`` equal bins of [0, 1] (bin b
        holds [b/bins, (b+1)/bins), the last one includes 1).
    """

    cells: Mapping[str, Floats]

    @classmethod
    def measure(
        cls, strata: Sequence[Stratum], groups: GroupIndex, sizes: Mapping[str, int], bins: int, minimum: int
    ) -> EvaluationSums:
        """Add up one site's records by group and stratum; a cell under ``minimum`` records becomes zeros.

        With more than two strata so does its whole group: the strata of the other labels would give it away.
        """
        result = {}
        for name, size in ((EVERYBODY, 1), *sizes.items()):
            parts = [_tabulate(stratum, groups.get(name), size, bins) for stratum in strata]
            table = np.stack(parts, axis=1)
            kept = _kept(table[..., 0], minimum)
            table[..., 1] = kept
            result[name] = np.where(kept[..., None], table, 0.0)
        return cls(result)

    @classmethod
    def from_vector(cls, vector: Floats, sizes: Mapping[str, int], bins: int, strata: int = 2) -> EvaluationSums:
        """Inverse of :meth:`vector`; ``ValueError`` if the length is not that of the layout."""
        if vector.shape != (evaluation_length(sizes, bins, strata),):
            raise ValueError(f"got {vector.shape}, expected ({evaluation_length(sizes, bins, strata)},)")
        result, start = {}, 0
        for name, size in ((EVERYBODY, 1), *sizes.items()):
            length = size * strata * (HEAD + bins)
            result[name] = vector[start : start + length].reshape(size, strata, HEAD + bins)
            start += length
        return cls(result)

    def vector(self) -> Floats:
        """Flat form: ``all`` first, then the groups in the order of the plan."""
        return np.concatenate([table.ravel() for table in self.cells.values()])

    def question(self, place: int) -> EvaluationSums:
        """The two strata of one label in question, in the form of a task with two labels."""
        return EvaluationSums({name: table[:, 2 * place : 2 * place + 2] for name, table in self.cells.items()})

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        return EvaluationSums({name: table + other.cells[name] for name, table in self.cells.items()})

    def keep(self, sites: int) -> EvaluationSums:
        """The same sums without cells that fewer than ``sites`` sites report; see :meth:`measure` for whole groups."""
        return EvaluationSums(
            {name: np.where(_kept(table[..., 1], sites)[..., None], table, 0.0) for name, table in self.cells.items()}
        )


def _kept(amount: Floats, least: float) -> NDArray[np.bool_]:
    """Which cells (K, S) with these amounts may be shown: no small one, and of more than two strata all or none."""
    kept = (amount > 0) & (amount >= least)
    if amount.shape[1] > 2:
        kept &= ~((amount > 0) & (amount < least)).any(axis=1, keepdims=True)
    return kept


def _tabulate(stratum: Stratum, group: Integers | None, size: int, bins: int) -> Floats:
    """(K, 4 + bins) of one stratum; ``group`` (n,), ``None`` for everybody in one group."""
    place = np.zeros(stratum.chosen.shape, dtype=np.int64) if group is None else group
    known = stratum.chosen & (place >= 0)
    cell, value = place[known], stratum.value[known]
    table = np.zeros((size, HEAD + bins))
    table[:, 0] = np.bincount(cell, minlength=size)
    table[:, 2] = np.bincount(cell, stratum.loss[known], size)
    table[:, 3] = np.bincount(cell, value, size)
    bin_of = np.minimum((value * bins).astype(np.int64), bins - 1)
    table[:, HEAD:] = np.bincount(cell * bins + bin_of, minlength=size * bins).reshape(size, bins)
    return table


def evaluation_length(sizes: Mapping[str, int], bins: int, strata: int = 2) -> int:
    """Length of the evaluation vector for attributes with ``sizes`` groups."""
    return (1 + sum(sizes.values())) * strata * (HEAD + bins)
