# SPDX-License-Identifier: Apache-2.0
"""Which groups of patients a site would hold back, by the same code that holds them back in a job.

The server's half of the rule (``cells.sites``) is not known before the others have joined: more may be withheld then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fairflare.data.manifest import SPLITS, SiteData
from fairflare.engine.cells import SPLITS as EVALUATED
from fairflare.engine.cells import CellRule, Kept
from fairflare.engine.vocabulary import Vocabulary
from fairflare.evaluation.rehearsal import HeldCell, Missing
from fairflare.fairness.groups import (
    EVERYBODY,
    HOSPITAL,
    CellSums,
    EvaluationSums,
    HospitalSums,
    Measure,
    Sums,
    group_index,
    groups_of,
)
from fairflare.plan import Cells, Plan, method_of

#: Bins do not matter for who is counted.
_BINS = 2


def cells_of(plan: Plan, data: SiteData, policy_minimum: int = 0) -> tuple[list[HeldCell], list[HeldCell]]:
    """Cells that are held back, and those that leave by the plan.

    A stricter minimum of a policy, which refuses the plan, adds to the former what it would hold back itself.
    """
    kept: list[HeldCell] = []
    held: list[HeldCell] = []
    for one, leaves in _cells(plan, data):
        (kept if leaves else held).append(one)
    if policy_minimum > plan.cells.minimum:
        stricter = plan.model_copy(update={"cells": Cells(minimum=policy_minimum, sites=plan.cells.sites)})
        places = {_place(one) for one in held}
        more = (one for one, leaves in _cells(stricter, data) if not leaves and _place(one) not in places)
        held += [replace(one, by="policy") for one in more]
    return held, kept


def missing_of(plan: Plan, data: SiteData) -> Iterator[Missing]:
    """Records whose attribute is not known, by split."""
    for split in SPLITS:
        groups = getattr(data, split).groups
        for name in plan.groups:
            if records := int((groups[name] < 0).sum()):
                yield Missing(split, name, records)


def _place(one: HeldCell) -> tuple[str, str, str, str]:
    return one.split, one.attribute, one.group, one.label


def _cells(plan: Plan, data: SiteData) -> Iterator[tuple[HeldCell, bool]]:
    """Every cell with a record, and whether it leaves."""
    if plan.method.counts_only:
        yield from _counted(plan, data)
        return
    measures = method_of(plan).measures()
    rule = CellRule(plan, measures)
    kept = rule.own(data)[1] if plan.protection.masked and rule.length else None
    yield from _of_training(plan, measures, kept, data)
    for split in EVALUATED:
        yield from _of_evaluation(plan, rule, kept, split, data)


def _of_training(
    plan: Plan, measures: Sequence[Measure], kept: Kept | None, data: SiteData
) -> Iterator[tuple[HeldCell, bool]]:
    records, seen = data.training, set()
    for measure in measures:
        if (measure.attribute, measure.label) in seen:
            continue  # another quantity of the same records
        seen.add((measure.attribute, measure.label))
        chosen = np.ones(len(records), dtype=bool) if measure.label < 0 else records.labels == measure.label
        label = "" if measure.label < 0 else plan.task.labels[measure.label]
        ones = np.ones(int(chosen.sum()))
        whole, sent = (_sums(plan, measure, ones, records.groups, chosen, n) for n in (0, plan.cells.minimum))
        counts = [ones.size] if isinstance(whole, HospitalSums) else whole.count.astype(int).tolist()
        if kept is not None:
            sent = kept.sums(measure, sent)
        leaves = [sent.sites > 0] if isinstance(sent, HospitalSums) else (sent.count > 0).tolist()
        words = plan.groups.get(measure.attribute, (measure.attribute,))  # else everybody, or this hospital
        for word, records_, leaving in zip(words, counts, leaves, strict=True):
            if records_:
                yield _cell(plan, "training", measure.attribute, word, label, records_), bool(leaving)


def _sums(
    plan: Plan, measure: Measure, ones: np.ndarray, groups: dict[str, np.ndarray], chosen: np.ndarray, n: int
) -> Sums:
    if measure.attribute == HOSPITAL:
        return HospitalSums.measure(ones, n, measure.weighted)
    group = group_index(measure, groups, chosen.size)[chosen]
    return CellSums.measure(ones, group, groups_of(measure, plan.sizes), n)


def _of_evaluation(
    plan: Plan, rule: CellRule, kept: Kept | None, split: str, data: SiteData
) -> Iterator[tuple[HeldCell, bool]]:
    records = getattr(data, split)
    strata = rule.strata(records)
    whole, sent = (
        EvaluationSums.measure(strata, records.groups, plan.sizes, _BINS, n) for n in (0, plan.cells.minimum)
    )
    if kept is not None:
        sent = kept.evaluation(split, sent)
    by_label = len(strata) == 2 and plan.task.kind == "classification"
    for name, table in whole.cells.items():
        words = plan.groups.get(name, (EVERYBODY,))
        for k, word in enumerate(words):
            counts, leaves = table[k, :, 0].astype(int), sent.cells[name][k, :, 0] > 0
            if by_label:
                for label, records_, leaving in zip(plan.task.labels, counts.tolist(), leaves.tolist(), strict=True):
                    if records_:
                        yield _cell(plan, split, name, word, label, records_), leaving
            elif counts.any():  # whole groups only: the strata of other labels would give a small one away
                total = int(counts[0] + (counts[1] if plan.task.kind == "classification" else 0))
                small = bool(((counts > 0) & (counts < plan.cells.minimum)).any())
                yield HeldCell(split, name, word, "", total, small, "plan"), bool(leaves.any())


def _counted(plan: Plan, data: SiteData) -> Iterator[tuple[HeldCell, bool]]:
    vocabulary = Vocabulary(plan)
    tally = vocabulary.tally(data)
    bits, shown = vocabulary.own(data, tally)
    whole, sent = (
        vocabulary.record(bits, vector).cells for vector in (vocabulary.vector(tally), vocabulary.vector(tally, shown))
    )
    for full, leaving in zip(whole, sent, strict=True):
        if full.records:
            label = "" if full.label == EVERYBODY else full.label
            one = _cell(plan, full.split, full.attribute, full.value, label, full.records)
            yield one, leaving.records > 0


def _cell(plan: Plan, split: str, attribute: str, group: str, label: str, records: int) -> HeldCell:
    return HeldCell(split, attribute, group, label, records, records < plan.cells.minimum, "plan")
