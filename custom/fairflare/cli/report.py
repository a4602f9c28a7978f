# SPDX-License-Identifier: Apache-2.0
"""``fairflare report``: what one run achieved for whom, or how several runs compare."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fairflare.cli.files import MADE, verify_writable
from fairflare.cli.report_privacy import DELTA, sentence_of
from fairflare.errors import RunError
from fairflare.record import find_record, read_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from fairflare.evaluation.page import Picture, ReportedRun
    from fairflare.evaluation.summary import Comparison


class SplitName(str, Enum):
    """Which records are reported on."""

    validation = "validation"
    test = "test"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run's folder, or its record.json.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Run to compare with; the first one by default.", show_default=False)
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which records to report on.")] = SplitName.test,
    csv: Annotated[
        Path | None, typer.Option(help="Also write every number to this CSV file.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the whole report to this JSON file.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Also write one page to read, print or send: curves, tables, warnings.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Also draw the curves as PNG files into this folder (needs matplotlib).", show_default=False),
    ] = None,
    privacy: Annotated[
        bool, typer.Option("--privacy", help="Show what privacy costs whom: epsilon beside every group's numbers.")
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of that table, such as balanced_accuracy; the main one by default.", show_default=False
        ),
    ] = None,
    delta: Annotated[float, typer.Option(help="Delta that epsilon is counted at.")] = DELTA,
) -> None:
    """Show what a run achieved for each patient group; several runs are compared with the first."""
    # Imported here: SciPy and Rich would delay every other command.
    from fairflare.evaluation import render
    from fairflare.evaluation.report import compare

    for file in (csv, json, html):
        if file is not None:
            verify_writable(file)
    # A run that stopped has no results, but its page and curves say how far it came, who was missing and why.
    given = [*([] if baseline is None else [baseline]), *runs]
    if privacy:
        if png is not None or baseline is not None:
            raise typer.BadParameter("--privacy draws no curves, and finds the runs to compare with by itself")
        _privacy(runs, split, (metric, delta), csv, json, html)
        return
    found = _runs(given, split, unfinished=bool(html or png), delta=delta)
    summaries = [run.summary for run in found if run.summary is not None]
    comparisons = [compare(summaries[0], other) for other in summaries[1:]]
    console = _console()
    for run in found:
        if run.summary is None:
            text = f"{run.name}: {run.record.status} after {len(run.record.rounds)} rounds, without a final evaluation"
            console.print(text, markup=False, highlight=False)
    if summaries:
        shown = render.comparison_report(summaries, comparisons) if comparisons else render.run_report(summaries[0])
        console.print(shown, highlight=False)
    for run in found:
        if run.epsilon:
            name = f"{run.name}: " if len(found) > 1 else ""
            console.print(f"{name}{run.epsilon}", markup=False, highlight=False)
    if csv is not None:
        csv.write_text(render.to_csv(summaries), encoding="utf-8")
    if json is not None:
        json.write_text(render.to_json(summaries, comparisons), encoding="utf-8")
    if html is not None:
        from fairflare.evaluation.page import to_html

        html.write_text(to_html(found, comparisons, _synthetic(given, found)), encoding="utf-8")
    pictures = [] if png is None else _draw(found, comparisons, png)
    for written in (csv, json, html, *pictures):
        if written is not None:
            console.print(f"written: {written}", markup=False, highlight=False)


def _privacy(
    runs: list[Path],
    split: SplitName,
    counted: tuple[str | None, float],
    csv: Path | None,
    json: Path | None,
    html: Path | None,
) -> None:
    from fairflare.cli.report_privacy import table_of, written

    metric, delta = counted
    console = _console()
    table = table_of(_runs(runs, split, unfinished=False), delta, metric)
    console.print(written(table, csv, json, html), highlight=False)
    for file in (csv, json, html):
        if file is not None:
            console.print(f"written: {file}", markup=False, highlight=False)


def _console() -> Console:
    # Imported here: Rich would delay every other command.
    from rich.console import Console

    from fairflare.evaluation import render

    console = Console()
    # Piped into a file or a mail, Rich would fall back to 80 columns.
    return console if console.is_terminal else Console(width=render.WIDTH)


def _runs(runs: list[Path], split: SplitName, *, unfinished: bool, delta: float | None = None) -> list[ReportedRun]:
    """Different runs, in order; those of one plan are told apart by a number. ``unfinished`` ones have no summary.

    ``delta``: at which each one's epsilon is counted, if it is.
    """
    from fairflare.evaluation.page import ReportedRun
    from fairflare.evaluation.report import summarise

    files = list(dict.fromkeys(find_record(run).resolve() for run in runs))
    result: list[ReportedRun] = []
    used: dict[str, int] = {}
    for file in files:
        record = read_record(file)
        if record.plan.method.counts_only:
            raise RunError(
                "FF-RUN-ONLY-COUNTED",
                got="a feasibility job, which has no results",
                expected="runs that trained a model",
                next_step="read it with 'fairflare feasibility'",
            )
        plan = record.plan.name
        used[plan] = used.get(plan, 0) + 1
        name = plan if used[plan] == 1 else f"{plan} #{used[plan]}"
        epsilon = "" if delta is None else sentence_of(record, delta)
        if (record.final is None or not record.final.test) and unfinished:
            result.append(ReportedRun(name, record, None, epsilon))
        else:
            part: Literal["validation", "test"] = "test" if split is SplitName.test else "validation"
            result.append(ReportedRun(name, record, summarise(record, part, name=name), epsilon))
    return result


def _synthetic(given: list[Path], runs: Sequence[ReportedRun]) -> list[Picture]:
    """Pictures of newly drawn synthetic images, for runs over synthetic hospitals that this program made.

    No file of any hospital is opened for them: a folder that only looks like ours would still show nothing but shapes.
    """
    from fairflare.evaluation.page import Picture

    pictures = []
    folders: dict[Path, Path] = {}
    for folder in given:
        folders.setdefault(find_record(folder).resolve(), folder)
    for (file, folder), run in zip(folders.items(), runs, strict=True):
        if run.summary is None or run.record.plan.task.kind != "segmentation" or not (folder / MADE).is_dir():
            continue
        from fairflare.engine.pictures import synthetic_pictures
        from fairflare.engine.store import read_model

        model = read_model(file.parent, run.record.plan, run.summary.model_sha256)
        for one in synthetic_pictures(run.record.plan, model, run.record.roster[:1] + run.record.roster[-1:]):
            caption = (
                f"{run.name}, in the manner of {one.site}; Dice {one.dice:.2f}. Drawn for this page: nobody's data."
            )
            pictures.append(Picture("Image, truth, prediction", caption, one.png))
    return pictures


def _draw(runs: Sequence[ReportedRun], comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    try:
        from fairflare.evaluation.pictures import write_png
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] != "matplotlib":
            raise
        raise typer.BadParameter("--png needs matplotlib: install 'fairflare[figures]'") from None
    from fairflare.evaluation.curves import comparison_charts, run_charts

    charts = [(f"run{number}", chart) for number, run in enumerate(runs, start=1) for chart in run_charts(run.record)]
    if comparisons:
        summaries = [run.summary for run in runs if run.summary is not None]
        pairs = [(run.name, run.record) for run in runs]
        charts += [("comparison", chart) for chart in comparison_charts(pairs, summaries)]
    return write_png(charts, folder)
