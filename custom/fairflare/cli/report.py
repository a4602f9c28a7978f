# SPDX-License-Identifier: Apache-2.0
"""``fairflare report``: what one run achieved for whom, or how several runs compare."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.cli.files import verify_writable
from fairflare.record import find_record, read_record

if TYPE_CHECKING:
    from fairflare.evaluation.summary import RunSummary


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
) -> None:
    """Show what a run achieved for each patient group; several runs are compared with the first."""
    # Imported here: SciPy and Rich would delay every other command.
    from rich.console import Console

    from fairflare.evaluation import render
    from fairflare.evaluation.report import compare

    for file in (csv, json):
        if file is not None:
            verify_writable(file)
    summaries = _summaries([*([] if baseline is None else [baseline]), *runs], split)
    comparisons = [compare(summaries[0], other) for other in summaries[1:]]
    console = Console()
    if not console.is_terminal:
        # Piped into a file or a mail: Rich would fall back to 80 columns.
        console = Console(width=render.WIDTH)
    shown = render.comparison_report(summaries, comparisons) if comparisons else render.run_report(summaries[0])
    console.print(shown, highlight=False)
    if csv is not None:
        csv.write_text(render.to_csv(summaries), encoding="utf-8")
        console.print(f"written: {csv}", markup=False, highlight=False)
    if json is not None:
        json.write_text(render.to_json(summaries, comparisons), encoding="utf-8")
        console.print(f"written: {json}", markup=False, highlight=False)


def _summaries(runs: list[Path], split: SplitName) -> list[RunSummary]:
    """Summaries of different records, in order; runs of one plan are told apart by a number."""
    from fairflare.evaluation.report import summarise

    files = list(dict.fromkeys(find_record(run).resolve() for run in runs))
    result: list[RunSummary] = []
    used: dict[str, int] = {}
    for file in files:
        record = read_record(file)
        plan = record.plan.name
        used[plan] = used.get(plan, 0) + 1
        name = plan if used[plan] == 1 else f"{plan} #{used[plan]}"
        result.append(summarise(record, "test" if split is SplitName.test else "validation", name=name))
    return result
