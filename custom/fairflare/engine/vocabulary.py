# SPDX-License-Identifier: Apache-2.0
"""What a feasibility job counts, and what of it may be opened: records by split, group and label, and words in use.

Two vectors. ``cells``, first: a bit for each word that a hospital uses at all, and for each cell of which it has at
least ``cells.minimum`` records. ``vocabulary``, second: the records of each cell, zeros for whatever the sum of the
bits does not let out (``cells.sites``). The server sees no other number.

Nothing that is withheld follows from what is shown. Labels are parts of a split, and the groups of an attribute, with
"missing" and "coded otherwise", are parts of each label: of each whole the parts that are kept back together are never
one to ``minimum`` - 1 records, nor of too few hospitals (as in ``engine.cells``). A label that is kept back is kept
back in every group. An intersection is shown whole or not at all: only where its attributes are whole too, and only if
what these have beyond it (those of whom another attribute is not known) is no small cell either.

What this cannot see is another plan: two jobs whose age groups differ by a year count that year. Whoever approves plans
must look at them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairflare.data.manifest import MISSING as MISSING_CODE
from fairflare.data.manifest import SPLITS, UNKNOWN, Records, SiteData
from fairflare.engine.cells import Bits, kept_at_site, kept_over_sites
from fairflare.fairness.groups import EVERYBODY, Floats, Integers
from fairflare.plan import Plan
from fairflare.record import ANY, MISSING, OTHER, WITHHELD, Feasibility, Use, VocabularyCell

#: By split and attribute: records (R, C) of R groups and C labels; or which of these are shown.
Tally = Mapping[tuple[str, str], Integers]
Shown = Mapping[tuple[str, str], Bits]


@dataclass(frozen=True)
class _Rows:
    """Groups of an attribute, of an intersection (``of`` its attributes), or everybody."""

    name: str
    words: tuple[str, ...]
    of: tuple[str, ...] = ()


class Vocabulary:
    """Layout and rule of one plan.

    Attributes
    ----------
    columns
        Labels, and "coded otherwise"; of a segmentation, one column for everything.
    bits, length
        Lengths of the vectors ``cells`` and ``vocabulary``.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        labels = plan.task.labels if plan.task.kind == "classification" else ()
        self.columns = (*labels, OTHER) if labels else (EVERYBODY,)
        self._rows = [_Rows(one.name, (*one.values, MISSING, OTHER)) for one in plan.attributes]
        # Whoever is coded otherwise in one attribute is missing in the intersection.
        self._rows += [_Rows(one.name, (*plan.groups[one.name], MISSING), one.of) for one in plan.intersections]
        own = [("split", (*SPLITS, OTHER)), *([("label", self.columns)] if labels else [])]
        named = [*own, *((one.name, one.words) for one in self._rows if not one.of)]
        self._uses = [(name, word) for name, words in named for word in words]
        width = len(self.columns)
        rows = sum(len(one.words) for one in self._rows)
        self.length = len(SPLITS) * width * (1 + rows)
        self.bits = len(self._uses) + len(SPLITS) * (width + 1 + width * (rows + len(self._rows)))

    # ------------------------------------------------------------------------------------------------------- at a site

    def tally(self, data: SiteData) -> Tally:
        """Records of this site."""
        result = {}
        for split in SPLITS:
            records: Records = getattr(data, split)
            column = self._column(records)
            result[split, EVERYBODY] = _table(np.zeros_like(column), column, 1, len(self.columns))
            for one in self._rows:
                row = _row(records.groups[one.name], one)
                result[split, one.name] = _table(row, column, len(one.words), len(self.columns))
        return result

    def own(self, data: SiteData, tally: Tally) -> tuple[Floats, Shown]:
        """The site's bits as it sends them, and what it may show itself."""
        parts: list[Bits] = [self._used(data)]
        shown: dict[tuple[str, str], Bits] = {}
        for split in SPLITS:
            everybody = tally[split, EVERYBODY][0]
            labels, rest = kept_at_site(everybody, int(everybody.sum()), self.plan.cells.minimum)
            shown[split, EVERYBODY] = labels[None]
            parts += [labels, np.array([rest])]
            rests: dict[str, Bits] = {}
            for one in self._rows:
                rests_of = [rests[name] for name in one.of]
                kept, rests[one.name] = self._own_table(split, one, tally, labels, rests_of)
                shown[split, one.name] = kept
                parts += [kept.ravel(), rests[one.name]]
        return np.concatenate(parts).astype(np.float64), shown

    def vector(self, tally: Tally, *shown: Shown) -> Floats:
        """``vocabulary`` (length,): records where everything in ``shown`` agrees, zeros elsewhere."""
        kept = {key: np.all([one[key] for one in shown], axis=0) for key in tally}
        parts = [np.where(kept[key], table, 0).ravel() for key, table in tally.items()]
        return np.concatenate(parts).astype(np.float64)

    def _column(self, records: Records) -> Integers:
        labels = records.labels
        if len(self.columns) == 1:
            return np.zeros_like(labels)
        return np.where(labels == UNKNOWN, len(self.columns) - 1, labels)

    def _used(self, data: SiteData) -> Bits:
        """Which words the site uses at all, (uses,)."""
        splits = [data.training, data.validation, data.test, *([data.elsewhere] if data.elsewhere else [])]
        parts = [np.array([len(part) > 0 for part in (*splits[:3], data.elsewhere or ())])]
        if len(self.columns) > 1:
            found = np.concatenate([self._column(part) for part in splits])
            parts.append(np.bincount(found, minlength=len(self.columns)) > 0)
        for one in self._rows:
            if not one.of:
                found = np.concatenate([_row(part.groups[one.name], one) for part in splits])
                parts.append(np.bincount(found, minlength=len(one.words)) > 0)
        return np.concatenate(parts)

    def _own_table(
        self, split: str, rows: _Rows, tally: Tally, labels: Bits, rests_of: Sequence[Bits]
    ) -> tuple[Bits, Bits]:
        """Which cells (R, C) a site may show, and of which labels (C,) it keeps back a whole smallest cell.

        ``rests_of``: the latter of each of an intersection's attributes.
        """
        table, everybody = tally[split, rows.name], tally[split, EVERYBODY][0]
        kept, rests = np.zeros(table.shape, dtype=np.bool_), np.zeros(labels.shape, dtype=np.bool_)
        minimum = self.plan.cells.minimum
        for c in np.flatnonzero(labels):
            if not rows.of:
                kept[:, c], rests[c] = kept_at_site(table[:, c], int(everybody[c]), minimum)
            elif any(rest[c] for rest in rests_of) or self._has_small(split, rows, tally, int(c)):
                rests[c] = True
            else:
                kept[:, c] = table[:, c] > 0
        return kept, rests

    def _has_small(self, split: str, rows: _Rows, tally: Tally, column: int) -> bool:
        """Whether an intersection has a small cell of one label, or its attributes have one beyond it."""
        cells = tally[split, rows.name][:, column]
        sizes = [self.plan.sizes[name] for name in rows.of]
        block = cells[:-1].reshape(sizes)
        parts = [cells]
        for axis, name in enumerate(rows.of):
            inside = block.sum(axis=tuple(other for other in range(len(sizes)) if other != axis))
            parts.append(tally[split, name][: sizes[axis], column] - inside)
        found = np.concatenate(parts)
        return bool(((found > 0) & (found < self.plan.cells.minimum)).any())

    # -------------------------------------------------------------------------------------------------- over all sites

    def sites(self, total: Floats) -> tuple[dict[tuple[str, str], Integers], dict[tuple[str, str], Integers]]:
        """Hospitals with enough of each cell (R, C), and hospitals that keep something back of each label (C,).

        Everybody's rest is one number (1,): of all labels. ``total`` (bits,) is the sum of all sites' bits.
        """
        numbers, width, start = total.astype(np.int64), len(self.columns), len(self._uses)
        cells, rests = {}, {}
        for split in SPLITS:
            cells[split, EVERYBODY] = numbers[start : start + width][None]
            rests[split, EVERYBODY] = numbers[start + width : start + width + 1]
            start += width + 1
            for one in self._rows:
                end = start + (len(one.words) + 1) * width
                table = numbers[start:end].reshape(-1, width)
                cells[split, one.name], rests[split, one.name] = table[:-1], table[-1]
                start = end
        return cells, rests

    def shown(self, total: Floats) -> Shown:
        """What is opened, from the sum of all sites' bits (bits,)."""
        cells, rests = self.sites(total)
        least = self.plan.cells.sites
        result: dict[tuple[str, str], Bits] = {}
        for split in SPLITS:
            labels = kept_over_sites(cells[split, EVERYBODY][0], int(rests[split, EVERYBODY][0]), least)
            result[split, EVERYBODY] = labels[None]
            for one in self._rows:
                table, rest = cells[split, one.name], rests[split, one.name]
                kept = np.zeros(table.shape, dtype=np.bool_)
                for c in np.flatnonzero(labels):
                    if not one.of:
                        kept[:, c] = kept_over_sites(table[:, c], int(rest[c]), least)
                    elif not any(0 < amount < least for amount in (*table[:, c], rest[c])):
                        whole = all((result[split, of] == (cells[split, of] > 0))[:, c].all() for of in one.of)
                        kept[:, c] = (table[:, c] > 0) & whole
                result[split, one.name] = kept
        return result

    # ------------------------------------------------------------------------------------------------- for the record

    def record(self, bits: Floats, counts: Floats) -> Feasibility:
        """Both sums in the record's form."""
        sites, start = [round(value) for value in bits.tolist()], len(self._uses)
        uses = [Use(attribute=name, value=word, sites=n) for (name, word), n in zip(self._uses, sites, strict=False)]
        numbers = iter(counts.tolist())
        cells = [
            VocabularyCell(
                split=split, attribute=name, value=word, label=label, sites=n,
                records=0 if word == WITHHELD else round(next(numbers)),
            )
            for (split, name, word, label), n in zip(self._places(), sites[start:], strict=True)
        ]  # fmt: skip
        return Feasibility(uses=tuple(uses), cells=tuple(cells))

    def vectors(self, found: Feasibility) -> tuple[Floats, Floats]:
        """Inverse of :meth:`record`; ``ValueError`` for other words or cells than the plan's."""
        named = [(one.attribute, one.value) for one in found.uses]
        placed = [(one.split, one.attribute, one.value, one.label) for one in found.cells]
        if named != self._uses or placed != list(self._places()):
            raise ValueError("other words or cells, or in another order")
        bits = [*(one.sites for one in found.uses), *(one.sites for one in found.cells)]
        counts = [one.records for one in found.cells if one.value != WITHHELD]
        return np.array(bits, dtype=np.float64), np.array(counts, dtype=np.float64)

    def tables(self, counts: Floats) -> dict[tuple[str, str], Floats]:
        """``vocabulary`` (length,) by split and attribute, (R, C) each."""
        result, start, width = {}, 0, len(self.columns)
        for split in SPLITS:
            for name, high in ((EVERYBODY, 1), *((one.name, len(one.words)) for one in self._rows)):
                result[split, name] = counts[start : start + high * width].reshape(high, width)
                start += high * width
        return result

    def _places(self) -> Iterator[tuple[str, str, str, str]]:
        """Split, attribute, group and label of every bit that is about a cell."""
        for split in SPLITS:
            yield from ((split, EVERYBODY, EVERYBODY, label) for label in self.columns)
            yield split, EVERYBODY, WITHHELD, ANY
            for one in self._rows:
                for word in (*one.words, WITHHELD):
                    yield from ((split, one.name, word, label) for label in self.columns)


def _row(group: Integers, rows: _Rows) -> Integers:
    """Places in ``rows.words`` of groups (n,)."""
    if rows.of:
        return np.where(group < 0, len(rows.words) - 1, group)
    return np.where(group == UNKNOWN, len(rows.words) - 1, np.where(group == MISSING_CODE, len(rows.words) - 2, group))


def _table(row: Integers, column: Integers, high: int, width: int) -> Integers:
    counts: Integers = np.bincount(row * width + column, minlength=high * width).reshape(high, width)
    return counts
