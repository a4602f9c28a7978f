# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: cells as text, with the reasons for what is not there gathered below each table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fairflare.evaluation.curves import Chart
from fairflare.evaluation.drawing import thinned
from fairflare.evaluation.phrases import change_in_words, number, of_interest
from fairflare.evaluation.report import WORST_BY
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, RunSummary, Value
from fairflare.evaluation.words import COLUMNS, MEANINGS, NAMES, worst_group_by

#: Rows of a table of a curve's values at most.
MOST_ROWS = 120
#: Tables of more rows may be broken across pages.
_LONG = 12


@dataclass(frozen=True)
class Cell:
    """A number with its interval; ``note`` is the number of a note below the table, 0 for none."""

    number: str
    interval: str = ""
    note: int = 0
    worst: bool = False
    name: str = ""
    change: str = ""


@dataclass(frozen=True)
class Row:
    """A name (plain text), and a cell per column."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """Rows under a common heading, such as the groups of one attribute; "" for none."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class TableView:
    """A table: its caption, the heads of its columns (the first is that of the names), blocks of rows, and notes."""

    caption: str
    heads: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    @property
    def long(self) -> bool:
        """Whether it has to be broken across printed pages."""
        return sum(len(block.rows) for block in self.blocks) > _LONG


@dataclass
class _Notes:
    """Numbers the notes of a table, each text once."""

    texts: list[str] = field(default_factory=list)

    def cell(self, value: Value, *, worst: bool = False, name: str = "", change: str = "") -> Cell:
        note = 0
        if value.note:
            if value.note not in self.texts:
                self.texts.append(value.note)
            note = self.texts.index(value.note) + 1
        return Cell(number(value.value), interval(value), note, worst, name, change)


def interval(value: Value) -> str:
    """Such as "0.63 to 0.72", or ""."""
    return "" if value.low is None or value.high is None else f"{value.low:.2f} to {value.high:.2f}"


def group_table(summary: RunSummary, metrics: Mapping[str, str], caption: str) -> TableView:
    """Results of everybody and of every group; ``metrics``: name -> head of its column."""
    notes = _Notes()
    blocks = [Block("", (_group_row("everybody", summary.overall, metrics, {}, notes),))]
    for part in summary.attributes:
        worst = {metric: found.group for metric, found in part.worst.items()}
        rows = tuple(_group_row(group.group, group, metrics, worst, notes) for group in part.groups)
        blocks.append(Block(part.attribute, rows))
    heads = ("Group", "Records (positive)", *(title.replace("\n", " ") for title in metrics.values()))
    return TableView(caption, heads, tuple(blocks), tuple(notes.texts))


def _group_row(
    name: str, group: GroupSummary, metrics: Mapping[str, str], worst: Mapping[str, str], notes: _Notes
) -> Row:
    known = "positives unknown" if group.positives is None else f"{group.positives} positive"
    first = Cell(str(group.records), known)
    cells = (notes.cell(group.metrics[metric], worst=worst.get(metric) == group.group) for metric in metrics)
    return Row(name, (first, *cells))


def main_table(summary: RunSummary) -> TableView:
    """The metrics that a reader should judge by."""
    return group_table(summary, COLUMNS, f"Results by group on {summary.split} records, each with its 95 % interval")


def other_table(summary: RunSummary) -> TableView:
    """All other metrics."""
    others = {metric: NAMES[metric] for metric in summary.overall.metrics if metric not in COLUMNS}
    return group_table(summary, others, f"Other numbers by group on {summary.split} records")


def gap_table(summary: RunSummary) -> TableView:
    """Gaps between groups with intervals, and what each compares."""
    notes = _Notes()
    blocks = []
    for part in summary.attributes:
        rows = [Row(NAMES[gap], (notes.cell(value), Cell(MEANINGS[gap]))) for gap, value in part.gaps.items()]
        blocks.append(Block(part.attribute, tuple(rows)))
    return TableView(
        f"Gaps between groups on {summary.split} records",
        ("Gap", "Value", "What is compared"),
        tuple(blocks),
        tuple(notes.texts),
    )


def worst_sentences(summary: RunSummary) -> Iterator[str]:
    """Who is worst off, by what, and how sure that is."""
    for part in summary.attributes:
        for metric, worst in part.worst.items():
            shown = f"{number(worst.value.value)} {f'({interval(worst.value)})' if interval(worst.value) else ''}"
            sure = "" if worst.certainty is None else f"; the worst in {worst.certainty:.0%} of resamples"
            yield f"{worst_group_by(metric)}: {part.attribute} {worst.group}, {shown.strip()}{sure}"
        if not part.worst:
            yield f"Worst group of {part.attribute}: none (fewer than two groups have a value, or all are equal)"


def comparison_table(summaries: Sequence[RunSummary]) -> TableView:
    """Runs side by side, the first being the baseline: what any run's penalties aim at, and the worst groups."""
    notes = _Notes()
    overall = [summary.overall for summary in summaries]
    rows = (_line(NAMES[m], m, [group.metrics[m] for group in overall], notes) for m in WORST_BY)
    blocks = [Block("everybody", tuple(rows))]
    for place, part in enumerate(summaries[0].attributes):
        parts = [summary.attributes[place] for summary in summaries]
        blocks.append(Block(part.attribute, tuple(_attribute_lines(part, parts, summaries, notes))))
    heads = [f"{summary.name} ({summary.method})" for summary in summaries]
    heads[0] = f"{summaries[0].name} ({summaries[0].method}, baseline)"
    caption = f"Runs side by side on {summaries[0].split} records; changes are against the first"
    return TableView(caption, ("Metric", *heads), tuple(blocks), tuple(notes.texts))


def _attribute_lines(
    first: AttributeSummary, parts: Sequence[AttributeSummary], summaries: Sequence[RunSummary], notes: _Notes
) -> Iterator[Row]:
    metrics, gaps = of_interest(first.attribute, summaries)
    for metric in metrics:
        for k, group in enumerate(first.groups):
            values = [part.groups[k].metrics[metric] for part in parts]
            yield _line(f"{group.group}: {NAMES[metric]}", metric, values, notes)
    for gap in gaps:
        yield _line(NAMES[gap], gap, [part.gaps[gap] for part in parts], notes)
    for metric in WORST_BY:
        found = [part.worst.get(metric) for part in parts]
        values = [Value(None, None, None, 0, "no worst group") if one is None else one.value for one in found]
        names = ["" if one is None else one.group for one in found]
        yield _line(worst_group_by(metric), f"worst_group_{metric}", values, notes, names)


def _line(title: str, metric: str, values: Sequence[Value], notes: _Notes, names: Sequence[str] | None = None) -> Row:
    cells = []
    for place, value in enumerate(values):
        change = change_in_words(metric, values[0].value, value.value) if place else ""
        cells.append(notes.cell(value, name=names[place] if names else "", change=change))
    return Row(title, tuple(cells))


def curve_table(chart: Chart) -> TableView:
    """The values behind a chart, a row per model, and who was worst."""
    places = thinned(len(chart.x), MOST_ROWS)
    with_worst = chart.worst != "none"
    rows = []
    for at in places:
        worst = chart.worst_at(at)
        cells = [Cell(number(one.y[at])) for one in chart.series]
        if with_worst:
            cells.append(Cell("none" if worst is None else chart.series[worst].name))
        rows.append(Row(str(chart.x[at]), tuple(cells)))
    heads = ("Rounds trained", *(one.name for one in chart.series), *(["Worst group"] if with_worst else []))
    cut = f" ({len(places)} of {len(chart.x)} rows; the record has all)" if len(places) < len(chart.x) else ""
    return TableView(f"{chart.title}{cut}", heads, (Block("", tuple(rows)),))
