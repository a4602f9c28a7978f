# SPDX-License-Identifier: Apache-2.0
"""Which cells may be opened: decided, under masks, before any risk is, from one sum of "I have enough" bits.

Each site says by a bit for each cell whether it has at least ``cells.minimum`` records of it. The sum of these bits is
opened once a session; a cell is kept if ``cells.sites`` sites have it. Everybody minus the groups that are shown is a
cell as well: where it would be smaller than the minimum at a site, or of too few sites, one more group is withheld
(the site's smallest; over sites the one that the fewest have). Then sites send zeros for whatever is not kept, so the
server never sees it. Not covered: cells of an intersection, which margins of its attributes can still give away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairflare.data.manifest import Records, SiteData
from fairflare.fairness.groups import (
    EVERYBODY,
    HOSPITAL,
    CellSums,
    EvaluationSums,
    Floats,
    HospitalSums,
    Integers,
    Measure,
    Stratum,
    Sums,
    group_index,
    groups_of,
    image_strata,
    label_strata,
)
from fairflare.plan import Plan
from fairflare.plan.rules import fewest_hospitals

Bits = NDArray[np.bool_]
SPLITS = ("validation", "test")


def kept_at_site(count: Integers, total: int, minimum: int) -> tuple[Bits, bool]:
    """Which of a site's cells (K,) it may report, and whether the rest of ``total`` records is a cell of its own.

    The rest is never 1 to ``minimum`` - 1 records, unless that is all there is: then nothing is kept.
    """
    kept = count >= max(minimum, 1)
    rest = total - int(count[kept].sum())
    while 0 < rest < minimum and kept.any():
        smallest = min(np.flatnonzero(kept), key=lambda place: (count[place], place))
        kept[smallest] = False
        rest += int(count[smallest])
    return kept, rest >= max(minimum, 1)


def kept_over_sites(sites: Integers, rest: int, least: int) -> Bits:
    """Which cells (K,) are opened: those of ``least`` sites, and not all but one of a total (see the module)."""
    kept = sites >= max(least, 1)
    hidden = max([rest, *sites[~kept].tolist()])
    if 0 < hidden < least and kept.any():
        fewest = min(np.flatnonzero(kept), key=lambda place: (sites[place], place))
        kept[fewest] = False
    return kept


@dataclass(frozen=True)
class Kept:
    """What a site may put into its sums: for each measure (K,), for each split and attribute (K, S)."""

    measures: Mapping[Measure, Bits]
    splits: Mapping[str, Mapping[str, Bits]]

    def sums(self, measure: Measure, sums: Sums) -> Sums:
        """The sums with zeros where a cell is not kept."""
        kept = self.measures[measure]
        if isinstance(sums, CellSums):
            return CellSums(*(np.where(kept, part, 0.0) for part in (sums.total, sums.count, sums.sites)))
        return sums if kept[0] else HospitalSums.from_vector(np.zeros_like(sums.vector()))

    def evaluation(self, split: str, sums: EvaluationSums) -> EvaluationSums:
        """The same for evaluation sums."""
        kept = self.splits[split]
        return EvaluationSums({name: np.where(kept[name][..., None], cell, 0.0) for name, cell in sums.cells.items()})

    def everybody(self, split: str) -> bool:
        """Whether sums over everybody may be opened for a split."""
        return bool(self.splits[split][EVERYBODY].all())

    def __and__(self, other: Kept) -> Kept:
        measures = {measure: bits & other.measures[measure] for measure, bits in self.measures.items()}
        splits = {
            split: {name: bits & other.splits[split][name] for name, bits in tables.items()}
            for split, tables in self.splits.items()
        }
        return Kept(measures, splits)


class CellRule:
    """The rule for one plan; ``measures`` are what its method compares.

    Without a minimum, a fewest number of sites or hospitals as groups there is nothing to decide: ``length`` is 0.
    """

    def __init__(self, plan: Plan, measures: Sequence[Measure]) -> None:
        self.plan = plan
        self.measures = tuple(measures)
        sizes = {EVERYBODY: 1, **plan.sizes}
        self._tables = [(split, name, size) for split in SPLITS for name, size in sizes.items()]
        active = plan.cells.minimum > 1 or plan.cells.sites > 1 or any(m.attribute == HOSPITAL for m in measures)
        own = sum(groups_of(measure, plan.sizes) + 1 for measure in measures)
        scores = sum((size + 1) * plan.task.strata for _, _, size in self._tables)
        self.length = own + scores if active else 0

    def own(self, data: SiteData, noised: Mapping[Measure, Bits] | None = None) -> tuple[Floats, Kept]:
        """The site's bits (length,) as it sends them, and what it may report itself.

        ``noised``: what it may report of training records, decided from noised numbers; exact ones are not looked at.
        """
        minimum, parts = self.plan.cells.minimum, []
        measures: dict[Measure, Bits] = {}
        for measure in self.measures:
            if noised is not None:
                measures[measure] = noised[measure]
                parts += [noised[measure], np.zeros(1)]
                continue
            count, total = self._counts(measure, data.training)
            kept, rest = kept_at_site(count, total, minimum)
            if (left := self._left(measure, data.training)) is not None:
                kept, rest = kept & (left == 0 or left >= minimum), left >= max(minimum, 1)
            measures[measure] = kept
            parts += [kept, np.array([rest and measure.attribute != HOSPITAL])]
        splits: dict[str, dict[str, Bits]] = {split: {} for split in SPLITS}
        tables = {split: self._evaluated(getattr(data, split)) for split in SPLITS}
        for split, name, _ in self._tables:
            kept_table, rest_bits = self._kept_table(tables[split][name], tables[split][EVERYBODY][0], minimum)
            splits[split][name] = kept_table
            parts += [kept_table.ravel(), rest_bits & (name != EVERYBODY)]
        return np.concatenate(parts).astype(np.float64), Kept(measures, splits)

    def kept(self, total: Floats) -> Kept:
        """What is opened, from the sum of all sites' bits (length,)."""
        numbers, start = total.astype(np.int64), 0
        measures: dict[Measure, Bits] = {}
        for measure in self.measures:
            size = groups_of(measure, self.plan.sizes)
            part, start = numbers[start : start + size + 1], start + size + 1
            hospitals = measure.attribute == HOSPITAL
            least = max(self.plan.cells.sites, fewest_hospitals(self.plan) if hospitals else 1)
            measures[measure] = kept_over_sites(part[:size], int(part[size]), least)
        splits: dict[str, dict[str, Bits]] = {split: {} for split in SPLITS}
        strata = self.plan.task.strata
        for split, name, size in self._tables:
            length = (size + 1) * strata
            table, start = numbers[start : start + length].reshape(size + 1, strata), start + length
            columns = [
                kept_over_sites(table[:size, s], int(table[size, s]), self.plan.cells.sites) for s in range(strata)
            ]
            splits[split][name] = _whole(np.stack(columns, axis=1), table[:size])
        return Kept(measures, splits)

    def _left(self, measure: Measure, records: Records) -> int | None:
        """Records of everybody's sums that are in no sum of one label, which others are: these are a cell as well."""
        labels = [one.label for one in self.measures if one.label >= 0]
        if measure.attribute != EVERYBODY or measure.label >= 0 or not labels:
            return None
        return int((~np.isin(records.labels, labels)).sum())

    def _counts(self, measure: Measure, records: Records) -> tuple[Integers, int]:
        chosen = np.ones(len(records), dtype=bool) if measure.label < 0 else records.labels == measure.label
        total = int(chosen.sum())
        group = group_index(measure, records.groups, len(records))[chosen]
        return np.bincount(group[group >= 0], minlength=groups_of(measure, self.plan.sizes)), total

    def _evaluated(self, records: Records) -> dict[str, Integers]:
        """Records (K, S) by group and stratum for each attribute."""
        sums = EvaluationSums.measure(self.strata(records), records.groups, self.plan.sizes, 2, 0)
        return {name: table[..., 0].astype(np.int64) for name, table in sums.cells.items()}

    def strata(self, records: Records) -> list[Stratum]:
        """Kinds of records that the evaluation sums tell apart; losses and values are zeros."""
        nothing = np.zeros(len(records))
        if self.plan.task.kind == "segmentation":
            return image_strata(np.zeros((len(records), self.plan.task.strata)), nothing)
        return label_strata(np.zeros((len(records), len(self.plan.task.labels))), nothing, records.labels)

    def _kept_table(self, table: Integers, everybody: Integers, minimum: int) -> tuple[Bits, Bits]:
        pairs = [kept_at_site(table[:, s], int(everybody[s]), minimum) for s in range(table.shape[1])]
        kept = np.stack([pair[0] for pair in pairs], axis=1)
        return _whole(kept, table), np.array([pair[1] for pair in pairs])


def _whole(kept: Bits, amount: Integers) -> Bits:
    """With more than two strata a group is kept whole or not at all: the strata of other labels would give it away."""
    if kept.shape[1] <= 2:
        return kept
    broken = ((amount > 0) & ~kept).any(axis=1, keepdims=True)
    return kept & ~broken
