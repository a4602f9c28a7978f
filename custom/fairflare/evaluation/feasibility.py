# SPDX-License-Identifier: Apache-2.0
"""What a feasibility job says about the plan that it was made for: coding, small cells, claims out of reach."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from fairflare.errors import RunError
from fairflare.evaluation.power import records_in_each, records_needed, smallest_gap
from fairflare.fairness.groups import EVERYBODY
from fairflare.fairness.penalty import labels_of
from fairflare.plan import FeasibilityParameters, Plan
from fairflare.record import MISSING, OTHER, WITHHELD, Feasibility, RunRecord, Use, VocabularyCell

UNDERPOWERED, UNKNOWN = "FF-RUN-UNDERPOWERED", "FF-RUN-POWER-UNKNOWN"
CODING, UNUSED, SMALL = "FF-RUN-CODING", "FF-RUN-UNUSED", "FF-RUN-SMALL-CELL"
#: Looked at where nothing is claimed about an attribute.
_CRITERION = "equal_accuracy"


@dataclass(frozen=True)
class Finding:
    """Something to know before the plan is run: ``error`` stops it or spoils its claim, ``warning`` needs a person."""

    severity: Literal["error", "warning"]
    code: str
    text: str


@dataclass(frozen=True)
class Detectable:
    """The smallest gap that one group's test records can show, against those of the other groups of its attribute.

    Attributes
    ----------
    attribute, group, criterion, condition
        Whom it is about; ``condition`` is the label of the records that count, or ``all``.
    records, rest
        Test records that were opened, of the group and of the other groups: at least so many are there.
    hidden
        Test records that were withheld, and may belong to either.
    alpha
        Level of this test: the plan's, divided by the number of tests behind one claim.
    gap, best
        Smallest gap with the plan's power, of the records that were opened, and with what is hidden where it would help
        most; ``None``: not even a gap of 1.
    claim, needed, each
        The gap that is claimed (``None``: nothing is); records the group needs for it (``None``: the other groups have
        too few for any number), and records if all of the two sides had the same.
    """

    attribute: str
    group: str
    criterion: str
    condition: str
    records: int
    rest: int
    hidden: int
    alpha: float
    gap: float | None
    best: float | None
    claim: float | None
    needed: int | None
    each: int | None

    @property
    def verdict(self) -> Literal["", "enough", "underpowered", "unknown"]:
        """Whether a gap as large as the claim would be found: ``unknown`` if that depends on what is hidden."""
        if self.claim is None:
            return ""
        if self.gap is not None and self.gap <= self.claim:
            return "enough"
        return "unknown" if self.best is not None and self.best <= self.claim else "underpowered"


@dataclass(frozen=True)
class FeasibilitySummary:
    """A feasibility job's answer; ``sites``: hospitals that joined; ``records``: theirs by split."""

    name: str
    sites: int
    records: dict[str, int]
    minimum: int
    least_sites: int
    alpha: float
    power: float
    uses: tuple[Use, ...]
    cells: tuple[VocabularyCell, ...]
    detectable: tuple[Detectable, ...]
    findings: tuple[Finding, ...]

    @property
    def feasible(self) -> bool:
        """Whether nothing was found that stops the plan or spoils a claim."""
        return all(finding.severity != "error" for finding in self.findings)


def summarise_feasibility(record: RunRecord) -> FeasibilitySummary:
    """Read a complete feasibility job; raises :class:`RunError` ``FF-RUN-NOT-COUNTED`` for any other record."""
    plan, found, method = record.plan, record.feasibility, record.plan.method
    if found is None or not isinstance(method, FeasibilityParameters) or record.status != "complete":
        raise RunError(
            "FF-RUN-NOT-COUNTED",
            got=f"a record with status '{record.status}' of method '{method.name}'",
            expected="a complete run of a feasibility job",
            next_step="make its plan with 'fairflare plan feasibility', and run it",
        )
    sites = len(record.sessions[-1].joined)
    detectable = tuple(_detectable(record, found))
    # A manifest without one of the plan's columns, for example: the hospital's own log says more.
    absent = [
        Finding("error", one.code, f"{one.site} could not join, and is not counted")
        for one in (*record.without, *record.join_refusals)
    ]
    findings = (*absent, *_coding(found, sites), *_powerless(detectable), *_small(plan, found))
    return FeasibilitySummary(
        plan.name, sites, {split: round(number) for split, number in record.records.items()}, plan.cells.minimum,
        plan.cells.sites, method.alpha, method.power, found.uses, found.cells, detectable, findings,
    )  # fmt: skip


def _detectable(record: RunRecord, found: Feasibility) -> Iterator[Detectable]:
    """Every claim by condition and group; of attributes without a claim, accuracy among everybody."""
    plan = record.plan
    if not isinstance(plan.method, FeasibilityParameters):
        return
    claims = [(one.attribute, one.criterion, one.gap) for one in plan.method.claims]
    claimed = {attribute for attribute, _, _ in claims}
    asked = [*claims, *((name, _CRITERION, None) for name in plan.groups if name not in claimed)]
    for attribute, criterion, gap in asked:
        words, conditions = plan.groups[attribute], labels_of(criterion, len(plan.task.labels))
        # Of two groups each is the other's rest, so there is one test; a claim fails by chance in any of its tests.
        alpha = plan.method.alpha / ((len(words) if len(words) > 2 else 1) * len(conditions))
        for condition in conditions:
            counts = [_records(plan, found, attribute, word, condition) for word in words]
            hidden = _hidden(plan, record, attribute, condition)
            for word, count in zip(words, counts, strict=True):
                rest, power = sum(counts) - count, plan.method.power
                yield Detectable(
                    attribute, word, criterion, EVERYBODY if condition < 0 else plan.task.labels[condition],
                    count, rest, hidden, alpha, smallest_gap(count, rest, alpha, power),
                    smallest_gap(*_shared(count, rest, hidden), alpha, power), gap,
                    None if gap is None else records_needed(gap, rest, alpha, power),
                    None if gap is None else records_in_each(gap, alpha, power),
                )  # fmt: skip


def _records(plan: Plan, found: Feasibility, attribute: str, word: str | None, condition: int) -> int:
    """Test records of a group (``None``: of all, also of no group) that were opened, of one label or of the plan's."""
    if plan.task.kind == "segmentation":
        labels: tuple[str, ...] = (EVERYBODY,)
    else:
        labels = plan.task.labels if condition < 0 else plan.task.labels[condition : condition + 1]
    return sum(
        one.records
        for one in found.cells
        if (one.split, one.attribute) == ("test", attribute) and word in (None, one.value) and one.label in labels
    )


def _hidden(plan: Plan, record: RunRecord, attribute: str, condition: int) -> int:
    """Most test records of a condition that may be in groups of ``attribute`` beside those that were opened."""
    found = record.feasibility
    if found is None or (plan.cells.minimum <= 1 and plan.cells.sites <= 1):
        return 0
    everybody = _records(plan, found, EVERYBODY, None, condition)
    labelled = sum(one.records for one in found.cells if (one.split, one.attribute) == ("test", EVERYBODY))
    unlabelled = round(record.records.get("test", 0.0)) - labelled  # a label that a hospital keeps back
    return max(0, everybody - _records(plan, found, attribute, None, condition) + unlabelled)


def _shared(records: int, rest: int, hidden: int) -> tuple[int, int]:
    """Two sides as equal as ``hidden`` records can make them: what shows the smallest gap."""
    most = records + rest + hidden
    first = min(max(most // 2, records), records + hidden)
    return first, most - first


def _coding(found: Feasibility, sites: int) -> Iterator[Finding]:
    """Words of hospitals that the plan does not have; and words of the plan that no hospital, or not each one, has."""
    for one in found.uses:
        if one.value == OTHER and one.sites:
            yield Finding(
                "error", CODING,
                f"{one.attribute}: {one.sites} of {sites} hospitals have words or numbers that the plan does not have; "
                "their training would be refused: correct the manifests (such as F for female), or the plan",
            )  # fmt: skip
    for one in found.uses:
        if one.value in (OTHER, MISSING) or one.sites == sites:
            continue
        if one.sites == 0:
            yield Finding("warning", UNUSED, f"{one.attribute}: no hospital has '{one.value}'")
        else:
            text = f"{one.attribute}: {sites - one.sites} of {sites} hospitals do not have '{one.value}'"
            yield Finding("warning", UNUSED, text)


def _powerless(detectable: Sequence[Detectable]) -> Iterator[Finding]:
    """Claims that are out of reach, each at the smaller side of its comparison: that is where records are missing."""
    for one in detectable:
        if one.verdict not in ("underpowered", "unknown") or one.records > one.rest:
            continue
        among = "all" if one.condition == EVERYBODY else f"'{one.condition}'"
        found = "no gap" if one.gap is None else f"a gap of {one.gap:.2f}"
        more = (
            f"about {one.needed - one.records} records more in group '{one.group}'"
            if one.needed is not None
            else f"about {one.each} records of group '{one.group}' and as many of the others"
        )
        if one.verdict == "unknown":
            text = (
                f"not known whether that is enough: {one.hidden} more are withheld, with which a gap of {one.best:.2f}"
            )
            more = f"{text} might be shown"
        else:
            more = f"underpowered: needs {more}"
        yield Finding(
            "error", UNDERPOWERED if one.verdict == "underpowered" else UNKNOWN,
            f"{one.attribute}: {one.records} test records ({among}) of group '{one.group}' and {one.rest} others can "
            f"show {found}, the claim is {one.claim:g}; {more}",
        )  # fmt: skip


def _small(plan: Plan, found: Feasibility) -> Iterator[Finding]:
    """Groups with labels that are in use, and of which nothing can be shown, by split."""
    used = {(one.attribute, one.value) for one in found.uses if one.sites}
    values = {(name, word) for name, words in plan.groups.items() for word in words}
    crossed = {one.name for one in plan.intersections}
    labels = (*plan.task.labels, EVERYBODY)
    for split in dict.fromkeys(one.split for one in found.cells):
        hidden = [
            f"{one.value}/{one.label}" if one.label != EVERYBODY else one.value
            for one in found.cells
            if one.split == split and one.value != WITHHELD and one.records == 0 and one.label in labels
            if (one.attribute, one.value) in (values if one.attribute in crossed else used & values)
        ]
        if hidden:
            open_all = plan.cells.minimum <= 1 and plan.cells.sites <= 1
            why = "no records" if open_all else "no records, or too few to show"
            yield Finding("warning", SMALL, f"{split}: {why}: {', '.join(hidden)}")


def to_json(summary: FeasibilitySummary) -> str:
    """Everything as JSON text."""
    data = asdict(summary) | {
        "feasible": summary.feasible,
        "uses": [one.model_dump() for one in summary.uses],
        "cells": [one.model_dump() for one in summary.cells],
        "detectable": [asdict(one) | {"verdict": one.verdict} for one in summary.detectable],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
