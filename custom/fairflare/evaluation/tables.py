# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: cells as text, with the reasons for what is not there gathered below each table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fairflare.evaluation.curves import Chart
from fairflare.evaluation.drawing import thinned
from fairflare.evaluation.phrases import change_in_words, columns, number, of_interest
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, LabelSummary, RunSummary, Value
from fairflare.evaluation.words import COLUMNS, MEANINGS, NAMES, VOCABULARIES, name_of, worst_group_by

#: Rows of a table of a curve's values at most.
MOST_ROWS = 120
#: Tables of more rows may be broken across pages.
_LONG = 12
#: Columns that half a printed page has room for.
_WIDE = 6


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
    def wide(self) -> bool:
        """Whether it needs a printed page's width for itself."""
        return len(self.heads) > _WIDE

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


#: What results are shown of: a whole run, or one of its labels against all others.
Part = RunSummary | LabelSummary


def group_table(part: Part, metrics: Mapping[str, str], caption: str, count: str) -> TableView:
    """Results of everybody and of every group; ``metrics``: name -> head of its column; ``count``: head of the first.

    How many records are positive stands in the first column if its head says so.
    """
    notes = _Notes()
    blocks = [Block("", (_group_row("everybody", part.overall, metrics, {}, notes, count),))]
    for one in part.attributes:
        worst = {metric: found.group for metric, found in one.worst.items()}
        rows = tuple(_group_row(group.group, group, metrics, worst, notes, count) for group in one.groups)
        blocks.append(Block(one.attribute, rows))
    heads = ("Group", count, *(title.replace("\n", " ") for title in metrics.values()))
    return TableView(caption, heads, tuple(blocks), tuple(notes.texts))


def _group_row(
    name: str, group: GroupSummary, metrics: Mapping[str, str], worst: Mapping[str, str], notes: _Notes, count: str
) -> Row:
    known = "positives unknown" if group.positives is None else f"{group.positives} positive"
    first = Cell(str(group.records), known if count == _POSITIVE else "")
    cells = (notes.cell(group.metrics[metric], worst=worst.get(metric) == group.group) for metric in metrics)
    return Row(name, (first, *cells))


_POSITIVE = "Records (positive)"


def _count(summary: RunSummary) -> str:
    return _POSITIVE if summary.kind == "two_labels" else VOCABULARIES[summary.kind].noun.capitalize()


def main_table(summary: RunSummary) -> TableView:
    """The metrics that a reader should judge by."""
    what = "Means over labels by group" if summary.labels else "Results by group"
    caption = f"{what} on {summary.split} {VOCABULARIES[summary.kind].noun}, each with its 95 % interval"
    return group_table(summary, columns(summary), caption, _count(summary))


def other_table(summary: RunSummary) -> TableView | None:
    """All other metrics; ``None`` if there are none."""
    shown = columns(summary)
    others = {metric: name_of(metric) for metric in summary.overall.metrics if metric not in shown}
    caption = f"Other numbers by group on {summary.split} {VOCABULARIES[summary.kind].noun}"
    return group_table(summary, others, caption, _count(summary)) if others else None


def gap_table(part: Part, caption: str) -> TableView | None:
    """Gaps between groups with intervals, and what each compares; ``None`` without attributes."""
    notes = _Notes()
    blocks = []
    for one in part.attributes:
        rows = [Row(NAMES[gap], (notes.cell(value), Cell(MEANINGS[gap]))) for gap, value in one.gaps.items()]
        blocks.append(Block(one.attribute, tuple(rows)))
    heads = ("Gap", "Value", "What is compared")
    return TableView(caption, heads, tuple(blocks), tuple(notes.texts)) if blocks else None


def label_overview(summary: RunSummary) -> TableView:
    """One row for each of several labels: how well it is told from all others, and for whom worst."""
    notes = _Notes()
    rows = []
    for part in summary.labels:
        cells = [Cell(str(part.overall.positives) if part.overall.positives is not None else "unknown")]
        cells += [notes.cell(part.overall.metrics[metric]) for metric in _OVERVIEW]
        for one in part.attributes:
            worst = one.worst.get("roc_auc")
            cells.append(Cell("none") if worst is None else notes.cell(worst.value, name=worst.group))
        rows.append(Row(part.label, tuple(cells)))
    names = [COLUMNS[metric].replace("\n", " ") for metric in _OVERVIEW]
    worst_heads = [f"Worst group of {one.attribute}" for one in summary.attributes]
    caption = f"Each label against all others on {summary.split} records"
    caption += "; worst groups by area under ROC curve" if worst_heads else ""
    return TableView(caption, ("Label", "Records", *names, *worst_heads), (Block("", tuple(rows)),), tuple(notes.texts))


_OVERVIEW = ("roc_auc", "balanced_accuracy", "true_positive_rate")


@dataclass(frozen=True)
class LabelView:
    """One of several labels on the page: its headline, and its tables; ``gaps`` is ``None`` without attributes."""

    title: str
    groups: TableView
    others: TableView
    gaps: TableView | None
    worst: tuple[str, ...]


def label_views(summary: RunSummary) -> Iterator[LabelView]:
    """Tables of each of several labels against all others."""
    for part in summary.labels:
        auc = part.overall.metrics["roc_auc"]
        between = f" ({interval(auc)})" if interval(auc) else ""
        against = f"{part.label} against all others"
        others = {metric: name_of(metric) for metric in part.overall.metrics if metric not in COLUMNS}
        yield LabelView(
            title=f"{against}: area under ROC curve {number(auc.value)}{between}",
            groups=group_table(part, COLUMNS, f"{against}: results by group on {summary.split} records", _POSITIVE),
            others=group_table(part, others, f"{against}: other numbers by group", _POSITIVE),
            gaps=gap_table(part, f"{against}: gaps between groups"),
            worst=tuple(worst_sentences(part)),
        )


def worst_sentences(whole: Part) -> Iterator[str]:
    """Who is worst off, by what, and how sure that is."""
    for part in whole.attributes:
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
    worst_by = VOCABULARIES[summaries[0].kind].worst_by
    rows = (_line(NAMES[m], m, [group.metrics[m] for group in overall], notes) for m in worst_by)
    blocks = [Block("everybody", tuple(rows))]
    for place, part in enumerate(summaries[0].attributes):
        parts = [summary.attributes[place] for summary in summaries]
        blocks.append(Block(part.attribute, tuple(_attribute_lines(part, parts, summaries, notes))))
    heads = [f"{summary.name} ({summary.method})" for summary in summaries]
    heads[0] = f"{summaries[0].name} ({summaries[0].method}, baseline)"
    noun = VOCABULARIES[summaries[0].kind].noun
    caption = f"Runs side by side on {summaries[0].split} {noun}; changes are against the first"
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
    for metric in VOCABULARIES[summaries[0].kind].worst_by:
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
    marked = [("Best on validation", {chart.best})] if chart.best is not None else []
    marked += [("Collapse", set(chart.collapsed))] if chart.collapsed else []
    for at in places:
        worst = chart.worst_at(at)
        cells = [Cell(number(one.y[at])) for one in chart.series]
        if with_worst:
            cells.append(Cell("none" if worst is None else chart.series[worst].name))
        cells += [Cell("yes" if chart.x[at] in which else "") for _, which in marked]
        rows.append(Row(str(chart.x[at]), tuple(cells)))
    extra = [*(["Worst group"] if with_worst else []), *(head for head, _ in marked)]
    heads = ("Rounds trained", *(one.name for one in chart.series), *extra)
    cut = f" ({len(places)} of {len(chart.x)} rows; the record has all)" if len(places) < len(chart.x) else ""
    return TableView(f"{chart.title}{cut}", heads, (Block("", tuple(rows)),))
