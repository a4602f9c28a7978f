# SPDX-License-Identifier: Apache-2.0
"""The tables of a study in words: cells that the terminal, ``table.md`` and the page share, and what stands below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairflare.evaluation.phrases import visible
from fairflare.evaluation.statistics import PairedDifference
from fairflare.evaluation.words import NAMES, small
from fairflare.study.measures import View
from fairflare.study.results import Findings
from fairflare.study.runs import Key
from fairflare.study.spec import Study, Task
from fairflare.study.table import Board, Column, Line, Spread, Worst

NONE = "none"
BASELINES = {
    "local_only": "each site trained alone (FedAvg's plan); each site's records are scored by its own model, and sums "
    "are added over sites",
    "pooled": "one model trained on all records in one place, which exists in simulation only",
}
TITLE = "Study"


@dataclass(frozen=True)
class Sheet:
    """A table as text: a cell may have several lines."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    below: tuple[str, ...]


def sheets(found: Findings) -> Iterator[Sheet]:
    """A sheet for each task under each protection."""
    tasks = {task.name: task for task in found.study.tasks}
    for one in found.boards:
        yield _sheet(found, one, tasks[one.task])


def _sheet(found: Findings, one: Board, task: Task) -> Sheet:
    view = one.view
    heads = ["Method", "Configuration", view.words, *(gap.words for gap in view.gaps)]
    heads += ["Failed runs", *(["FLARE"] if found.study.flare else []), "Seconds per run"]
    rows = tuple(tuple(_cells(line, place == 0, found.study.flare)) for place, line in enumerate(one.lines))
    words = {"masked": "masked", "none": "no protection (the server sees every update)"}[one.protection]
    return Sheet(f"{one.task}, {words}", tuple(heads), rows, tuple(_below(found, one, task)))


def _cells(line: Line, first: bool, flare: bool) -> Iterator[tuple[str, ...]]:
    yield (line.method, *_kind(line))
    yield _configuration(line)
    yield _column(line.quality, line, first)
    for gap, worst in zip(line.gaps, line.worst, strict=True):
        yield (*_column(gap, line, first), *_worst(worst))
    yield _failed(line)
    if flare:
        yield (_flare(line),)
    yield (_spread(line.seconds, 1),)


def _kind(line: Line) -> tuple[str, ...]:
    return () if line.baseline == "none" else (line.baseline.replace("_", " "),)


def _flare(line: Line) -> str:
    return line.flare or ("does not federate" if line.baseline != "none" else "not run")


def _configuration(line: Line) -> tuple[str, ...]:
    if line.configuration is None:
        return ("none has results",)
    notes = []
    if line.chosen_failed:
        notes.append(f"{line.chosen_failed} of {line.seeds} seeds failed")
    if line.collapsed:
        notes.append(f"{line.collapsed} of {line.seeds} seeds learnt nothing")
    if line.disturbed:
        notes.append(f"{line.disturbed} of {line.seeds} seeds lost answers")
    return (f"{line.configuration} (of {line.configurations})", *notes)


def _column(column: Column, line: Line, first: bool) -> tuple[str, ...]:
    shown = [_spread(column.spread), *_fewer(column, line)]
    if not first and column.difference is not None:
        shown.append(_difference(column.difference, line.seeds))
    return tuple(shown)


def _fewer(column: Column, line: Line) -> list[str]:
    """Over how many seeds a mean is, where not over all."""
    n = column.spread.n
    return [f"({n} of {line.seeds} seeds)"] if 0 < n < line.seeds else []


def _spread(spread: Spread, digits: int = 3) -> str:
    if spread.mean is None:
        return NONE
    sd = "" if spread.sd is None else f" \u00b1 {spread.sd:.{digits}f}"
    return f"{spread.mean:.{digits}f}{sd}"


def _difference(found: PairedDifference, seeds: int) -> str:
    reach = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    pairs = "" if found.n == seeds else f" ({found.n} pairs)"
    return f"{found.difference:+.3f}{reach}{pairs}"


def _worst(worst: Worst) -> tuple[str, ...]:
    if worst.spread.mean is None:
        return ()
    seeds = worst.spread.n
    who = ", ".join(group if count == seeds else f"{group} ({count})" for group, count in worst.groups.items())
    return f"lowest {_spread(worst.spread)}", who


def _failed(line: Line) -> tuple[str, ...]:
    count = sum(line.failed.values())
    if not count:
        return (f"0 of {line.runs}",)
    return (f"{count} of {line.runs}", *(f"{code} {number}" for code, number in line.failed.items()))


def _below(found: Findings, one: Board, task: Task) -> Iterator[str]:
    study = found.study
    seeds = f"seed{'' if len(study.seeds) == 1 else 's'} {', '.join(str(seed) for seed in study.seeds)}"
    yield (
        f"Test data, final models, mean \u00b1 standard deviation over {seeds}; then the paired difference to "
        f"{study.methods[0].name} with its 95 % t interval over seeds. Sums over all hospitals, nothing withheld."
    )
    for gap in one.view.gaps:
        yield (
            f"{gap.words}: with it the lowest {small(NAMES[gap.worst_by])} of a group, and whose it was (in how many "
            "seeds, where not in all)."
        )
    yield f"{grids_in_words(study)}; {rule_in_words(task, found.measures[task.name].selection)}."
    yield from _private(found, one)
    if len(study.seeds) == 1:
        yield "One seed: a difference between two methods may be chance, and has no interval."
    for line in one.lines:
        if line.baseline != "none":
            mean = _spread(line.site_mean)
            yield (
                f"{line.method}: {BASELINES[line.baseline]}. Mean over sites of each one's own "
                f"{small(one.view.words)} (a threshold, where there is one, from its own validation records): {mean}."
            )


def _private(found: Findings, one: Board) -> Iterator[str]:
    names = [line.method for line in one.lines if (one.task, one.protection, line.method) in found.private]
    if not names:
        return
    yield (
        f"With differential privacy: {', '.join(names)}. Epsilon, and each group's change, are in 'fairflare report "
        "--privacy' of the runs; every run that was tried costs privacy, chosen or not."
    )
    if found.study.flare:
        yield "Noise is never the same twice: through FLARE these give another model, which verifies, and no same hash."


def grids_in_words(study: Study) -> str:
    """How many configurations each method had."""
    sizes = study.grids
    if len(set(sizes.values())) == 1:
        size = next(iter(sizes.values()))
        return f"{size} configuration{'' if size == 1 else 's'} of every method"
    shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f"UNEQUAL GRIDS, so methods with more had more luck to choose from: {shown}"


def rule_in_words(task: Task, view: View) -> str:
    """How configurations were chosen."""
    chosen = "chosen on validation data by the mean over seeds: "
    if task.selection.quality_loss_allowed is None:
        return f"{chosen}the best {small(view.words)}"
    gaps = " and ".join(small(gap.words) for gap in view.gaps)
    return (
        f"{chosen}the smallest {gaps}{' (their mean)' if len(view.gaps) > 1 else ''} among those whose "
        f"{small(view.words)} is at most {task.selection.quality_loss_allowed:g} below the same method's best"
    )


def failure_lines(found: Findings) -> list[tuple[Key, str, str]]:
    """Every failed run with its code and text."""
    return [(key, one.code, one.text) for key, one in found.failed.items()]


def summary_line(found: Findings) -> str:
    """How many runs there were."""
    failed = len(found.failed)
    return f"{len(found.outcomes)} runs, {failed} failed" if failed else f"{len(found.outcomes)} runs, none failed"


# --------------------------------------------------------------------------------------------------------------- forms


def to_markdown(found: Findings) -> str:
    """``table.md``."""
    lines = [f"# {TITLE} {found.study.name}", "", f"{summary_line(found)}.", ""]
    for sheet in sheets(found):
        lines += [f"## {sheet.title}", "", _markdown_row([(head,) for head in sheet.heads])]
        lines += ["|" + "---|" * len(sheet.heads), *(_markdown_row(row) for row in sheet.rows), ""]
        for sentence in sheet.below:
            lines += [_escaped(sentence), ""]
    if found.failed:
        lines += ["## Failed runs", ""]
        lines += [f"- {_escaped(key.words)}: {code}: {_escaped(text)}" for key, code, text in failure_lines(found)]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(cells: list[tuple[str, ...]] | tuple[tuple[str, ...], ...]) -> str:
    return "| " + " | ".join("<br>".join(_escaped(line) for line in cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    kept = visible(text, keep="")
    return "".join(f"\\{letter}" if letter in "|<>`*_[" else letter for letter in kept)


def to_terminal(found: Findings) -> Group:
    """The tables for a terminal: a row for each number of a method, since a row for each method would be too wide."""
    shown: list[RenderableType] = []
    for sheet, one in zip(sheets(found), found.boards, strict=True):
        shown += [Text(), Text(visible(sheet.title), style="bold")]
        table = Table(box=SIMPLE_HEAD)
        for head in ("Method", "On test data", "Mean \u00b1 sd", "Difference", "Lowest group"):
            table.add_column(Text(head), justify="left", overflow="fold")
        for place, line in enumerate(one.lines):
            for row in _terminal_rows(one, line, place == 0, found.study.flare):
                table.add_row(*(Text(visible(cell)) for cell in row))
            table.add_section()
        shown += [table, *(Text(visible(sentence)) for sentence in sheet.below)]
    return Group(*shown)


def _terminal_rows(one: Board, line: Line, first: bool, flare: bool) -> Iterator[tuple[str, str, str, str, str]]:
    columns: list[tuple[str, Column, Worst | None]] = [(one.view.words, line.quality, None)]
    columns += [
        (gap.words, column, worst) for gap, column, worst in zip(one.view.gaps, line.gaps, line.worst, strict=True)
    ]
    numbers = [
        (
            words,
            " ".join([_spread(column.spread), *_fewer(column, line)]),
            "" if first or column.difference is None else _difference(column.difference, line.seeds),
            "" if worst is None else " ".join(_worst(worst)).removeprefix("lowest "),
        )
        for words, column, worst in columns
    ]
    failed = _failed(line)
    numbers.append(("Failed runs", " ".join(failed), "", ""))
    if flare:
        numbers.append(("FLARE", _flare(line), "", ""))
    names = [line.method, *_configuration(line), *_kind(line)]
    for place in range(max(len(names), len(numbers))):
        cells = numbers[place] if place < len(numbers) else ("", "", "", "")
        yield (names[place] if place < len(names) else "", *cells)
