# SPDX-License-Identifier: Apache-2.0
"""A feasibility job's answer for the terminal: findings first, then tables, readable at 100 columns without colour."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairflare.evaluation.feasibility import FeasibilitySummary
from fairflare.fairness.groups import EVERYBODY
from fairflare.record import WITHHELD, VocabularyCell

_SPLITS = ("training", "validation", "test")
_PADDING = (0, 0, 0, 1)


def feasibility_report(summary: FeasibilitySummary) -> Group:
    """Head, findings, words in use, records by group, smallest gaps."""
    counted = ", ".join(f"{summary.records.get(split, 0)} {split}" for split in _SPLITS)
    head = [f"Feasibility {summary.name}: {summary.sites} hospitals, {counted}; no image was opened, nothing trained"]
    findings = [f"{one.severity}: {one.code}: {one.text}" for one in summary.findings]
    head += findings or ["nothing found against the plan"]
    parts: list[RenderableType] = [Text(line) for line in head]
    tables = (("Words in use", _uses(summary)), ("Records by group (hospitals that have them)", _cells(summary)))
    for title, table in (*tables, ("Smallest gap that test records can show", _gaps(summary))):
        parts += [Text(), Text(title, style="bold"), table]
    return Group(*parts, *(Text(line) for line in _legend(summary)))


def _legend(summary: FeasibilitySummary) -> Iterator[str]:
    least = max(summary.minimum, 1)
    if least > 1 or summary.least_sites > 1:
        yield (
            f"'-': no hospital can show {least} of them, as it has fewer or would give a smaller cell away. "
            f"'withheld': some can, but too few. Row {WITHHELD}: hospitals that keep back {least} or more of it. "
            "Numbers are of those hospitals only, so there may be more records."
        )
    yield (
        "Gaps: two-sided test of two proportions (normal approximation), the group against the other groups of its "
        f"attribute; level {summary.alpha:g} for a claim, divided by its number of tests; power {summary.power:g}; "
        "both rates taken as 1/2, the worst case, so a gap of rates farther from 1/2 is found more easily. Several "
        "records of one patient count for less than they seem to; below some 10 records the approximation is rough."
    )


def _table(*heads: str) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=_PADDING)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    return table


def _uses(summary: FeasibilitySummary) -> Table:
    table = _table("Attribute", "Word", "Hospitals")
    last = ""
    for one in summary.uses:
        name, last = ("" if one.attribute == last else one.attribute), one.attribute
        table.add_row(Text(name), Text(one.value), f"{one.sites} of {summary.sites}")
    return table


def _cells(summary: FeasibilitySummary) -> Table:
    """One row for each group and label that is in use at all."""
    rows: dict[tuple[str, str, str], dict[str, VocabularyCell]] = {}
    for one in summary.cells:
        rows.setdefault((one.attribute, one.value, one.label), {})[one.split] = one
    table = _table("Attribute", "Group", "Label", *_SPLITS)
    last = ""
    for (attribute, value, label), found in rows.items():
        plain = value.startswith("(") or label.startswith("(")  # our own rows are shown where there is something
        if plain and not any(one.sites for one in found.values()):
            continue
        name, last = ("" if attribute == last else attribute), attribute
        everybody = attribute == value == EVERYBODY
        shown = ["everybody" if everybody else name, "" if everybody else value, "" if label == EVERYBODY else label]
        table.add_row(*map(Text, shown), *(_amount(found.get(split), summary.minimum) for split in _SPLITS))
    return table


def _amount(cell: VocabularyCell | None, minimum: int) -> Text:
    if cell is None:
        return Text()
    if cell.value == WITHHELD:
        return Text(f"({cell.sites})" if cell.sites else "")
    if cell.sites == 0:
        return Text("-" if minimum > 1 else "0")
    return Text(f"{cell.records} ({cell.sites})" if cell.records else "withheld")


def _gaps(summary: FeasibilitySummary) -> Table:
    table = _table("Attribute", "Group", "Among", "Records", "Others", "Smallest gap", "Claim", "")
    last = ("", "")
    for one in summary.detectable:
        name = "" if (one.attribute, one.criterion) == last else f"{one.attribute}, {one.criterion.replace('_', ' ')}"
        last = (one.attribute, one.criterion)
        among = "" if one.condition == EVERYBODY else one.condition
        gap = "none" if one.gap is None else f"{one.gap:.3f}"
        claim = "" if one.claim is None else f"{one.claim:g}"
        cells = (name, one.group, among, str(one.records), str(one.rest), gap, claim, one.verdict)
        table.add_row(*map(Text, cells))
    return table
