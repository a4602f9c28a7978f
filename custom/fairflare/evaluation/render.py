# SPDX-License-Identifier: Apache-2.0
"""Reports for people: tables for the terminal, readable at 100 columns and without colour."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairflare.evaluation.export import to_csv, to_json
from fairflare.evaluation.phrases import (
    change_in_words,
    columns,
    counted,
    gathered,
    number,
    of_interest,
    positives,
    threshold,
)
from fairflare.evaluation.summary import Comparison, GroupSummary, LabelSummary, Remark, RunSummary, Value
from fairflare.evaluation.values import ONLY_THE_SUM
from fairflare.evaluation.words import COLUMNS, LEGEND_CHANGE, MEANINGS, NAMES, VOCABULARIES, small, worst_group_by

__all__ = ["WIDTH", "change_in_words", "comparison_report", "run_report", "to_csv", "to_json", "to_text"]

WIDTH = 100
#: Runs side by side in one table: the baseline and so many others.
_OTHERS = 2
#: Letters that a column's head always has room for.
_COLUMN = 14
#: Penalised gaps in training that are listed; more labels have more of them.
_PENALTIES = 8
#: Columns of the table of labels.
_OF_LABEL = ("roc_auc", "balanced_accuracy", "true_positive_rate", "false_positive_rate", "selection_rate")
#: One space to the left of a cell; the box adds one between columns.
_PADDING = (0, 0, 0, 1)


def to_text(report: RenderableType, width: int = WIDTH) -> str:
    """A report as plain text, lines without trailing spaces."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False, emoji=False).print(report)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def run_report(summary: RunSummary) -> Group:
    """One run: what it is, its groups, gaps and worst groups, what could not be estimated, and warnings."""
    parts: list[RenderableType] = [Text(line) for line in _head(summary)]
    words = VOCABULARIES[summary.kind]
    title = "Means over labels by group" if summary.labels else "Results by group"
    parts += [Text(), Text(title, style="bold"), _group_table(summary)]
    parts += [Text(line) for line in _not_estimable(summary)]
    if summary.attributes:
        parts += [Text(), Text("Gaps between groups", style="bold"), _gap_table(summary)]
        parts += [Text(line) for line in _worst(summary)]
    if summary.labels:
        parts += [Text(), Text("Each label against all others", style="bold"), _label_table(summary)]
        parts += [Text(line) for line in _worst_by_label(summary)]
    parts += [Text(line) for line in _penalties(summary)]
    parts += [Text(), *_legend(words.legend_gap, words.legend_interval), Text(), *_warnings(summary.remarks)]
    return Group(*parts)


def comparison_report(summaries: Sequence[RunSummary], comparisons: Sequence[Comparison]) -> Group:
    """Runs side by side, the first being the baseline; ``comparisons[i]`` compares it with ``summaries[i + 1]``."""
    baseline, *others = summaries
    parts: list[RenderableType] = [Text(line) for line in _comparison_head(summaries)]
    blocks = [others[start : start + _OTHERS] for start in range(0, len(others), _OTHERS)]
    parts += [_side_by_side(summaries, [baseline, *block]) for block in blocks]
    words = VOCABULARIES[baseline.kind]
    parts += [*_legend(words.legend_gap, words.legend_interval, LEGEND_CHANGE), Text()]
    return Group(*parts, *_warnings(gathered(summaries, comparisons)))


def _interval(value: Value, brackets: str = "") -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{brackets[:1]}{value.low:.2f}-{value.high:.2f}{brackets[1:]}"


def _cell(value: Value) -> str:
    return "\n".join(filter(None, [number(value.value), _interval(value)]))


def _head(summary: RunSummary) -> Iterator[str]:
    rounds = "1 round" if summary.rounds == 1 else f"{summary.rounds} rounds" if summary.rounds else ""
    yield f"Run {summary.name}: {', '.join(filter(None, [summary.method, rounds, summary.status]))}"
    where = f" at {', '.join(summary.sites)}" if summary.sites else ""
    noun = VOCABULARIES[summary.kind].noun
    positive = f" ({summary.task['labels'][1]})" if summary.kind == "two_labels" else ""
    yield f"{summary.split} {noun} of {summary.task['data_set']}{where}: {counted(summary)}{positive}"
    if summary.labels:
        yield f"Labels, each judged against all others: {', '.join(part.label for part in summary.labels)}"
    if summary.kind == "images":
        yield f"Painted: {', '.join(summary.task['labels'][1:])}"
    if threshold(summary):
        yield f"A score of {threshold(summary)} or more is called positive"


def _group_table(summary: RunSummary) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=_PADDING)
    table.add_column("Group", overflow="fold")
    shown = columns(summary)
    binary = summary.kind == "two_labels"
    count = "Records\n(positive)" if binary else VOCABULARIES[summary.kind].noun.capitalize()
    table.add_column(count, justify="right", min_width=10)
    for title in shown.values():
        wide = max(map(len, title.split("\n")))
        table.add_column(title, justify="right", min_width=min(wide, _COLUMN), overflow="fold")
    table.add_row(*_group_cells("everybody", summary.overall, shown, binary), end_section=True)
    for attribute in summary.attributes:
        table.add_row(Text(attribute.attribute, style="bold"))
        for group in attribute.groups:
            cells = _group_cells(f"  {group.group}", group, shown, binary)
            table.add_row(*cells, end_section=group is attribute.groups[-1])
    return table


def _group_cells(name: str, group: GroupSummary, metrics: Iterable[str], binary: bool) -> list[Text]:
    count = f"{group.records}\n({positives(group)})" if binary else str(group.records)
    return [Text(cell) for cell in (name, count, *(_cell(group.metrics[m]) for m in metrics))]


def _label_table(summary: RunSummary) -> Table:
    """One row for each of several labels; the page and the CSV have every group of each."""
    table = Table(box=SIMPLE, pad_edge=False, padding=_PADDING)
    table.add_column("Label", overflow="fold")
    table.add_column("Records", justify="right")
    for metric in _OF_LABEL:
        table.add_column(COLUMNS[metric], justify="right", overflow="fold")
    for part in summary.labels:
        cells = [part.label, positives(part.overall), *(_cell(part.overall.metrics[metric]) for metric in _OF_LABEL)]
        table.add_row(*map(Text, cells))
    return table


def _worst_by_label(summary: RunSummary) -> Iterator[str]:
    for part in summary.labels:
        found = [(one.attribute, worst) for one in part.attributes if (worst := one.worst.get("roc_auc")) is not None]
        groups = [
            f"{attribute} {worst.group}, {number(worst.value.value)} {_interval(worst.value, '()')}".rstrip()
            for attribute, worst in found
        ]
        if groups:
            yield f"{part.label}: {small(worst_group_by('roc_auc'))}: {'; '.join(groups)}"


def _not_estimable(summary: RunSummary) -> Iterator[str]:
    """Why values or intervals of the table are missing: one line per reason and metrics, naming the groups."""
    places = [("everybody", summary.overall)]
    places += [(f"{part.attribute} {group.group}", group) for part in summary.attributes for group in part.groups]
    lines: dict[tuple[str, str], list[str]] = {}
    for place, group in places:
        notes: dict[str, list[str]] = {}
        for metric, title in columns(summary).items():
            # That a loss has no interval is so everywhere, and no reason to name every group.
            if group.metrics[metric].note not in ("", ONLY_THE_SUM):
                notes.setdefault(group.metrics[metric].note, []).append(title.replace("\n", " ").lower())
        for note, titles in notes.items():
            lines.setdefault((", ".join(titles).replace("roc", "ROC"), note), []).append(place)
    for (names, note), where in lines.items():
        yield f"{', '.join(where)}: {names}: {note}"


def _gap_table(summary: RunSummary) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=_PADDING)
    names = [NAMES[gap] for attribute in summary.attributes for gap in attribute.gaps]
    table.add_column("Gap", min_width=2 + max(map(len, names)))
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("What is compared", overflow="fold")
    for attribute in summary.attributes:
        table.add_row(Text(attribute.attribute, style="bold"))
        for gap, value in attribute.gaps.items():
            known = MEANINGS[gap] if value.value is not None else ""
            meaning = "; ".join(filter(None, [known, value.note]))
            cells = [f"  {NAMES[gap]}", number(value.value), _interval(value).replace("-", " to "), meaning]
            table.add_row(*map(Text, cells), end_section=gap == list(attribute.gaps)[-1])
    return table


def _worst(summary: RunSummary | LabelSummary) -> Iterator[str]:
    for attribute in summary.attributes:
        for metric, worst in attribute.worst.items():
            shown = f"{number(worst.value.value)} {_interval(worst.value, '()')}".rstrip()
            sure = "" if worst.certainty is None else f"; the worst in {worst.certainty:.0%} of resamples"
            yield f"{worst_group_by(metric)}: {attribute.attribute} {worst.group}, {shown}{sure}"
        if not attribute.worst:
            yield f"Worst group of {attribute.attribute}: none (fewer than two groups have a value, or all are equal)"


def _penalties(summary: RunSummary) -> Iterator[str]:
    known = [
        f"In training, the penalised gap of {penalty.measure} (strength {penalty.strength:g}) went from "
        f"{penalty.first_gap:.3f} to {penalty.last_gap:.3f}"
        for penalty in summary.penalties
        if penalty.first_gap is not None and penalty.last_gap is not None
    ]
    yield from known[:_PENALTIES]
    if len(known) > _PENALTIES:
        yield f"Penalised gaps of {len(known) - _PENALTIES} other conditions: see the JSON or the page"


def _legend(*lines: str) -> list[Text]:
    return [Text(line, style="dim") for line in lines]


def _warnings(remarks: Sequence[Remark]) -> list[Text]:
    if not remarks:
        return [Text("Warnings: none")]
    return [Text("Warnings", style="bold"), *(Text(f"! {r.kind}: {r.text}") for r in remarks)]


def _comparison_head(summaries: Sequence[RunSummary]) -> Iterator[str]:
    baseline = summaries[0]
    yield f"Comparison with {baseline.name}, on {baseline.split} records of {baseline.task['data_set']}"
    for summary in summaries:
        if summary.kind == "two_labels":
            yield (
                f"{summary.name}: {summary.overall.records} records ({positives(summary.overall)} positive), "
                f"called positive from a score of {threshold(summary)}"
            )
        else:
            yield f"{summary.name}: {counted(summary)}"


def _side_by_side(everything: Sequence[RunSummary], shown: Sequence[RunSummary]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=_PADDING)
    table.add_column("Metric", overflow="fold")
    for place, summary in enumerate(shown):
        title = f"{summary.name}\n({summary.method}{', baseline' if place == 0 else ''})"
        table.add_column(Text(title), justify="right", min_width=16, overflow="fold")
    groups = [summary.overall for summary in shown]
    table.add_row(Text("everybody", style="bold"))
    for metric in VOCABULARIES[everything[0].kind].worst_by:
        table.add_row(*_line(NAMES[metric], metric, [group.metrics[metric] for group in groups]))
    table.add_section()
    for attribute in (part.attribute for part in everything[0].attributes):
        table.add_row(Text(attribute, style="bold"))
        for row in _attribute_lines(attribute, everything, shown):
            table.add_row(*row)
        table.add_section()
    return table


def _attribute_lines(
    attribute: str, everything: Sequence[RunSummary], shown: Sequence[RunSummary]
) -> Iterator[list[Text]]:
    metrics, gaps = of_interest(attribute, everything)
    parts = [summary.by_attribute(attribute) for summary in shown]
    for metric in metrics:
        for k, group in enumerate(parts[0].groups):
            values = [part.groups[k].metrics[metric] for part in parts]
            yield _line(f"{group.group}: {NAMES[metric]}", metric, values)
    for gap in gaps:
        yield _line(NAMES[gap], gap, [part.gaps[gap] for part in parts])
    for metric in VOCABULARIES[everything[0].kind].worst_by:
        found = [part.worst.get(metric) for part in parts]
        missing = Value(None, None, None, 0, "")
        values = [missing if worst is None else worst.value for worst in found]
        names = ["" if worst is None else worst.group for worst in found]
        yield _line(worst_group_by(metric), f"worst_group_{metric}", values, names)


def _line(title: str, metric: str, values: Sequence[Value], names: Sequence[str] | None = None) -> list[Text]:
    """One row: value, interval and change; ``names`` says which group it is, where runs may differ in that."""
    cells = [f"  {title}"]
    for place, value in enumerate(values):
        lines = [f"{number(value.value)} {_interval(value, '()')}".rstrip()]
        if names is not None and names[place]:
            lines.insert(0, names[place])
        if place > 0:
            lines.append(change_in_words(metric, values[0].value, value.value))
        cells.append("\n".join(filter(None, lines)))
    return [Text(cell) for cell in cells]
