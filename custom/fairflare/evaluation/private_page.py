# SPDX-License-Identifier: Apache-2.0
"""The table of epsilon: for the terminal, as a page, and for other programs.

A gap never stands alone: the table has each group, the worst one and the gap, or nothing of an attribute.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairflare.evaluation.phrases import change_in_words, number, visible
from fairflare.evaluation.private import Cost, Mean, Place, PrivacyTable, Setting, colluders_of
from fairflare.evaluation.rendering import rendered
from fairflare.evaluation.statistics import PairedDifference
from fairflare.evaluation.tables import Block, Cell, Row, TableView
from fairflare.evaluation.words import GLOSSARY, NAMES, VOCABULARIES, small, worst_group_by
from fairflare.fairness.groups import EVERYBODY
from fairflare.plan import Plan

FORMAT = "fairflare/privacy-report/1"
RELATIONS = {"add_remove": "one patient more or less", "replace": "one patient in another's place"}
#: What stands for epsilon where the plan alone does not say it.
UNKNOWN = "see each site's ledger"
#: Settings side by side in the terminal: the first, and so many others.
_OTHERS = 2
CSV_HEAD = (
    "setting", "method", "noise_multiplier", "delta", "epsilon_add_remove", "epsilon_replace", "split", "attribute",
    "kind", "group", "metric", "n", "runs", "value", "sd", "low", "high", "baseline", "change", "change_low",
    "change_high", "pairs", "note",
)  # fmt: skip


def cost_words(cost: Cost | None, relation: str) -> str:
    """Such as "3.142"; "none" without differential privacy, and where to look where sites differ."""
    if cost is None:
        return "none: no bound"
    value = cost.add_remove if relation == "add_remove" else cost.replace
    return UNKNOWN if value is None else f"{value:.3f}"


def cost_sentence(plan: Plan, cost: Cost, delta: float) -> str:
    """Epsilon of one run alone, and what it does not cover."""
    if cost.add_remove is None:
        return (
            "Epsilon of this run alone is each site's own, since its batches are a number of records: 'fairflare "
            "ledger show' says it there."
        )
    known = [f"{cost_words(cost, relation)} for {words}" for relation, words in RELATIONS.items()]
    needed = colluders_of(plan)
    shared = "" if needed is None else f" Sites share the noise of group sums; if {needed} tell theirs, it fails."
    return (
        f"Epsilon of this run alone at delta {delta:g}: {', '.join(known)}, at a site that took part in all of it. "
        f"Each site's ledger adds up all runs. Validation and test sums are exact, and not covered.{shared}"
    )


def _title_of(table: PrivacyTable) -> str:
    """What the table is of."""
    noun = VOCABULARIES[table.kind].noun
    return f"Epsilon and each group's {small(NAMES[table.metric])} on {table.split} {noun} of {table.data_set}"


def view(table: PrivacyTable) -> TableView:
    """A column for each setting, a row for each number."""
    notes: list[str] = []
    settings = table.settings
    blocks = [Block(f"Epsilon at delta {table.delta:g}", tuple(_head_rows(settings)))]
    attributes = dict.fromkeys(place.attribute for place in settings[0].numbers)
    for attribute in attributes:
        places = [place for place in settings[0].numbers if place.attribute == attribute]
        rows = (_row(place, table, notes) for place in places)
        blocks.append(Block("" if attribute == EVERYBODY else attribute, tuple(rows)))
    heads = (NAMES[table.metric], *(_head_of(one) for one in settings))
    return TableView(_title_of(table), heads, tuple(blocks), tuple(notes))


def _head_of(one: Setting) -> str:
    """A setting as the head of its column."""
    known = one.cost is not None and one.cost.add_remove is not None
    shown = "no privacy" if one.cost is None else f"epsilon {one.cost.add_remove:.3g}" if known else "private"
    return f"{shown}: {one.name} ({one.method})"


def _head_rows(settings: Sequence[Setting]) -> Iterator[Row]:
    for relation, words in RELATIONS.items():
        yield Row(words, tuple(Cell(cost_words(one.cost, relation)) for one in settings))
    yield Row("noise in training", tuple(Cell("none" if one.noise is None else f"{one.noise:.4g}") for one in settings))
    yield Row("runs (seeds)", tuple(Cell(_seeds(one)) for one in settings))
    if any(one.collapsed for one in settings):
        yield Row("models that learnt nothing", tuple(Cell(f"{one.collapsed} of {len(one.seeds)}") for one in settings))


def _seeds(one: Setting) -> str:
    return f"{len(one.seeds)} ({', '.join(str(seed) for seed in dict.fromkeys(one.seeds))})"


def _row(place: Place, table: PrivacyTable, notes: list[str]) -> Row:
    found = [one.numbers[place] for one in table.settings]
    counts = [count for mean in found for count in mean.records]
    n = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    metric = _metric(place, table.metric)
    title = f"{place.group or 'everybody'} (n = {n})"
    if place.kind != "group":
        title = worst_group_by(table.metric) if place.kind == "worst" else f"{NAMES[metric]} (n = {n})"
    return Row(
        title, tuple(_cell(mean, one, place, metric, notes) for mean, one in zip(found, table.settings, strict=True))
    )


def _metric(place: Place, metric: str) -> str:
    """The name under which a change is called better or worse."""
    return {"group": metric, "worst": f"worst_group_{metric}", "gap": f"{metric}_difference"}[place.kind]


def _cell(mean: Mean, setting: Setting, place: Place, metric: str, notes: list[str]) -> Cell:
    note = 0
    if mean.note:
        if mean.note not in notes:
            notes.append(mean.note)
        note = notes.index(mean.note) + 1
    spread = "" if mean.sd is None else f" \u00b1 {mean.sd:.3f}"
    fewer = "" if mean.seeds in (0, len(setting.seeds)) else f" ({mean.seeds} of {len(setting.seeds)} runs)"
    interval = "" if mean.low is None or mean.high is None else f"{mean.low:.2f} to {mean.high:.2f}"
    change = "" if mean.change is None else _change_words(mean.change, metric, len(setting.seeds))
    who = _whose(mean) if place.kind == "worst" else ""
    return Cell(f"{number(mean.value)}{spread}{fewer}", interval, note, name=who, change=change)


def _whose(mean: Mean) -> str:
    """The worst group; with several seeds, how often it is which, and how many records the numbers are of."""
    low, high = mean.records
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    if not mean.groups:
        return ""
    counted = ", ".join(name if times == mean.seeds else f"{name} ({times})" for name, times in mean.groups.items())
    return f"{counted}, {n}"


def _change_words(change: PairedDifference, metric: str, seeds: int) -> str:
    """Such as "-0.031 worse [-0.045, -0.017]"."""
    found = change_in_words(metric, change.mean_baseline, change.mean_other)
    reach = "" if change.low is None or change.high is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    pairs = "" if change.n == seeds else f" ({change.n} pair{'' if change.n == 1 else 's'})"
    return f"{found}{reach}{pairs}"


# ----------------------------------------------------------------------------------------------------------- sentences


def legend(table: PrivacyTable) -> Iterator[str]:
    """What a reader has to know."""
    yield (
        "Epsilon bounds what anybody can learn about one patient of a site's training records: that of each run alone, "
        f"at a site that took part in all of it; smaller is safer. Delta ({table.delta:g}) should be far below one in "
        "the number of a site's patients. Validation and test sums are exact, and not covered."
    )
    if any(_unknown(one) for one in table.settings):
        yield (
            "Where a plan's batches are a number of records, the chance to be in one is each site's own, and so is "
            "epsilon: 'fairflare ledger show' says it at the site."
        )
    several = any(len(one.seeds) > 1 for one in table.settings)
    mean = (
        "Each number is the mean over seeds \u00b1 their standard deviation; the interval is the mean of theirs, for "
        "other patients; n is of one run. "
        if several
        else ""
    )
    yield (
        f"{mean}Below each value: its 95 % interval. Several images of one patient make it somewhat too narrow. Judge "
        "by each group and the worst one, never by the gap alone: noise that makes a model useless closes every gap."
    )
    yield from _change_legend(table)


def _change_legend(table: PrivacyTable) -> Iterator[str]:
    private = [one for one in table.settings if one.cost is not None]
    if any(one.baseline for one in private):
        yield (
            "Changes are from the run without differential privacy, paired by seed, with a 95 % t interval over seeds "
            "where there are several; within 0.005 they are called 'about equal'. A change of a single seed may be "
            "chance."
        )


def warnings(table: PrivacyTable) -> Iterator[str]:
    """What makes the comparison worth less than it looks."""
    for one in table.settings:
        if one.collapsed:
            count = f"{one.collapsed} of {len(one.seeds)}"
            yield f"{one.name}: {count} models say the same of everything; their gaps mean nothing"
        if one.cost is not None and not one.baseline:
            yield f"{one.name}: no run of {one.method} without differential privacy is here, so no change is shown"
        if one.differs:
            yield f"{one.name} differs from {one.baseline} in more than privacy: {', '.join(one.differs)}"
        if one.colluders is not None:
            yield f"{one.name}: sites share the noise of group sums; if {one.colluders} tell theirs, epsilon fails"
        if one.baseline and all(mean.change is None for mean in one.numbers.values()):
            yield f"{one.name} has no seed in common with {one.baseline}, so no change is shown"
    if table.together is not None:
        yield _together(table)
    if any(one.cost is None for one in table.settings) and table.together is not None:
        yield "a model without differential privacy is here to compare with; if released as well, nothing is bounded"


def _together(table: PrivacyTable) -> str:
    runs = sum(len(one.seeds) for one in table.settings if one.cost is not None)
    shown = "; ".join(f"{cost_words(table.together, name)} for {words}" for name, words in RELATIONS.items())
    if table.together is None or table.together.add_remove is None:
        shown = UNKNOWN
    what = "the private run" if runs == 1 else f"all {runs} private runs together"
    return f"{what} cost patients who were in training epsilon {shown}; whatever else was tried adds to it"


def _unknown(one: Setting) -> bool:
    return one.cost is not None and one.cost.add_remove is None


# --------------------------------------------------------------------------------------------------------------- forms


def to_terminal(table: PrivacyTable) -> Group:
    """The table in pieces that fit, each with the first setting, and what to know below."""
    shown = view(table)
    first, *others = range(len(table.settings))
    pieces = [others[at : at + _OTHERS] for at in range(0, len(others), _OTHERS)] or [[]]
    parts: list[RenderableType] = [Text(visible(shown.caption), style="bold")]
    parts += [_piece(shown, [first, *some]) for some in pieces]
    parts += [Text(visible(f"[{place}] {note}")) for place, note in enumerate(shown.notes, start=1)]
    parts += [Text(line, style="dim") for line in legend(table)]
    return Group(*parts, Text(), *(Text(visible(f"! {line}")) for line in warnings(table)))


def _piece(shown: TableView, columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column(Text(shown.heads[0]), overflow="fold")
    for at in columns:
        table.add_column(Text(visible(shown.heads[at + 1])), justify="right", min_width=16, overflow="fold")
    for block in shown.blocks:
        if block.heading:
            table.add_row(Text(visible(block.heading), style="bold"))
        for row in block.rows:
            table.add_row(Text(visible(f"  {row.name}")), *(Text(visible(_lines(row.cells[at]))) for at in columns))
        table.add_section()
    return table


def _lines(cell: Cell) -> str:
    value = f"{cell.number} [{cell.note}]" if cell.note else cell.number
    interval = f"({cell.interval})" if cell.interval else ""
    return "\n".join(filter(None, [cell.name, value, interval, cell.change]))


def to_html(table: PrivacyTable) -> str:
    """The same as one page that needs nothing else."""
    return rendered(
        "privacy.html.j2",
        title=_title_of(table),
        table_view=view(table),
        legend=list(legend(table)),
        warnings=list(warnings(table)),
        glossary=GLOSSARY,
    )


def to_json(table: PrivacyTable) -> str:
    """Everything, with ``null`` for "not estimable"."""
    settings = [
        # Places are no keys of JSON.
        {
            **asdict(replace(one, numbers={})),
            "numbers": [{**asdict(at), **asdict(mean)} for at, mean in one.numbers.items()],
        }
        for one in table.settings
    ]
    data = {"format": FORMAT, **asdict(replace(table, settings=())), "settings": settings}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def to_csv(table: PrivacyTable) -> str:
    """Long form, a line per number; an empty value is "not estimable"."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for one in table.settings:
        for place, mean in one.numbers.items():
            writer.writerow([_text(value) for value in _csv_line(table, one, place, mean)])
    return stream.getvalue()


def _csv_line(table: PrivacyTable, one: Setting, place: Place, mean: Mean) -> Iterator[object]:
    cost = one.cost or Cost(None, None)
    yield from (one.name, one.method, one.noise, table.delta, cost.add_remove, cost.replace, table.split)
    yield from (place.attribute, place.kind, place.group or "; ".join(mean.groups), table.metric, mean.records[0])
    yield from (mean.seeds, mean.value, mean.sd, mean.low, mean.high, one.baseline)
    change = mean.change
    yield from ("", "", "", "") if change is None else (change.difference, change.low, change.high, change.n)
    yield mean.note


def _text(value: object) -> object:
    return "" if value is None else repr(value) if isinstance(value, float) else value


__all__ = [
    "CSV_HEAD",
    "FORMAT",
    "RELATIONS",
    "cost_sentence",
    "legend",
    "to_csv",
    "to_html",
    "to_json",
    "to_terminal",
    "view",
    "warnings",
]
