# SPDX-License-Identifier: Apache-2.0
"""Whether what a feasibility job counted agrees with itself: parts with wholes, records with hospitals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fairflare.data.manifest import SPLITS
from fairflare.engine.verify_numbers import Defect
from fairflare.engine.vocabulary import Vocabulary
from fairflare.fairness.groups import EVERYBODY, Floats
from fairflare.record import WITHHELD, Feasibility, RunRecord


def check_feasibility(record: RunRecord) -> Iterator[Defect]:
    """Every defect of the counts, or of their absence; nothing to check in a record of another job."""
    found = record.feasibility
    if not record.plan.method.counts_only:
        if found is not None:
            yield Defect("FF-RUN-LAYOUT", "counts of a feasibility job in a record of another one")
        return
    if record.rounds or record.final is not None:
        yield Defect("FF-RUN-LAYOUT", "rounds or results of a feasibility job, which has none")
    if found is None:
        if record.status == "complete":
            yield Defect("FF-RUN-INCOMPLETE", "no counts although the status is 'complete'")
        return
    vocabulary = Vocabulary(record.plan)
    try:
        bits, counts = vocabulary.vectors(found)
    except ValueError:
        yield Defect("FF-RUN-LAYOUT", "counts that do not follow the plan's vocabulary")
        return
    sites = len(record.sessions[-1].joined) if record.sessions else 0
    for text in (*_wrong_cells(record, found, sites), *_wrong_wholes(record, vocabulary, bits, counts)):
        yield Defect("FF-RUN-SUMS", f"feasibility: {text}")


def _wrong_cells(record: RunRecord, found: Feasibility, sites: int) -> Iterator[str]:
    """What is wrong with single cells."""
    least = max(record.plan.cells.minimum, 1)
    used = {(one.attribute, one.value): one.sites for one in found.uses}
    hospitals = [*(one.sites for one in found.uses), *(one.sites for one in found.cells)]
    if any(not 0 <= number <= sites for number in hospitals):
        yield "hospitals that are more than joined, or fewer than none"
    if any(one.records and one.records < one.sites * least for one in found.cells):
        yield "fewer records than so many hospitals must have"
    if any(one.records < 0 or (one.records and not one.sites) for one in found.cells):
        yield "records of no hospital"
    if any(one.value == WITHHELD and one.records for one in found.cells):
        yield "records that should be withheld"
    if any(one.sites > used.get((one.attribute, one.value), sites) for one in found.cells):
        yield "more hospitals with enough of a value than hospitals that use it"


def _wrong_wholes(record: RunRecord, vocabulary: Vocabulary, bits: Floats, counts: Floats) -> Iterator[str]:
    """What is wrong with cells that are parts of others, or that may not be shown."""
    tables, shown = vocabulary.tables(counts), vocabulary.shown(bits)
    sites, rests = vocabulary.sites(bits)
    least = max(record.plan.cells.minimum, 1)
    for split in SPLITS:
        labels = tables[split, EVERYBODY][0]
        total = record.records.get(split, 0.0)
        if labels.sum() > total or (least == 1 and record.plan.cells.sites <= 1 and labels.sum() != total):
            yield f"{split}: labels that do not add up to the records that joined"
        for (where, name), table in tables.items():
            if where != split:
                continue
            kept, enough = shown[split, name], sites[split, name]
            if (table[~kept] != 0).any() or (table[kept] == 0).any():
                yield f"{split}, {name}: other cells are shown than those that may be"
            if name == EVERYBODY:
                continue
            hidden = rests[split, name] + np.where(kept, 0, enough).sum(axis=0)
            rest = labels - table.sum(axis=0)
            open_labels = shown[split, EVERYBODY][0]
            if ((rest < hidden * least) | ((rest != 0) & (hidden == 0)))[open_labels].any():
                yield f"{split}, {name}: groups that do not add up to their labels"
