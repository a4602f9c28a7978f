# SPDX-License-Identifier: Apache-2.0
"""``fairflare study``: compare methods over tasks, configurations, seeds and protections by one rule, and table it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.plan import Plan
    from fairflare.policy import DataCatalog
    from fairflare.study.conduct import Event, Prepared
    from fairflare.study.results import Findings


def study(
    file: Annotated[Path, typer.Argument(help="The study file (JSON).")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the study: new, or one that is to go on; by default studies/<study's name>.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; by default the study file's number, or one per core.", min=1, show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, and do none of them.")] = False,
) -> None:
    """Compare methods over tasks, configurations, seeds and protections, through the local engine and over all cores.

    Configurations are chosen on validation data only. A run that fails is kept and shown. Give the same command again
    to go on after an interrupt: what is done stays. Writes results.csv, results.json, table.md and report.html, and a
    folder for every run.
    """
    # Imported here: pydantic's schemas of a study would delay every other command.
    from rich.console import Console

    from fairflare.study.conduct import conduct, prepare

    console = Console(highlight=False)
    prepared = prepare(file)
    out = to or Path("studies") / prepared.study.name
    if dry_run:
        _list(console, prepared)
        return
    with _Watcher(console, len(prepared.runs)) as watch:
        try:
            found = conduct(prepared, out, workers=workers, watch=watch, repeat=_Flare(console))
        except KeyboardInterrupt:
            console.print("interrupted; give the same command again to go on: finished runs stay", style="bold")
            raise typer.Exit(130) from None
    _show(console, found, out)


def _list(console: Console, prepared: Prepared) -> None:
    from fairflare.study.text import grids_in_words

    for run in prepared.runs:
        refused = f": cannot run, {run.refusal[0]}: {run.refusal[1]}" if run.refusal else ""
        console.print(f"{run.key.words}{refused}", markup=False, soft_wrap=True)
    refused_runs = sum(run.refusal is not None for run in prepared.runs)
    console.print(f"{len(prepared.runs)} runs, of which {refused_runs} cannot run; {grids_in_words(prepared.study)}")
    if prepared.study.flare:
        methods = sum(method.baseline == "none" for method in prepared.study.methods)
        times = len(prepared.study.tasks) * len(prepared.study.protections) * methods
        console.print(f"and at most {times} runs again through NVIDIA FLARE")


def _show(console: Console, found: Findings, out: Path) -> None:
    from rich.console import Console as Plain

    from fairflare.evaluation import render
    from fairflare.study.results import CSV, JSON, MARKDOWN, PAGE
    from fairflare.study.text import failure_lines, summary_line, to_terminal

    # Piped, Rich would fall back to 80 columns.
    shown = console if console.is_terminal else Plain(highlight=False, width=render.WIDTH)
    shown.print(to_terminal(found))
    for key, code, text in failure_lines(found):
        console.print(f"failed: {key.words}: {code}: {text}", markup=False, soft_wrap=True)
    console.print(summary_line(found), style="bold")
    for name in (MARKDOWN, PAGE, CSV, JSON):
        console.print(f"written: {out / name}", markup=False, soft_wrap=True)


class _Watcher:
    """A bar with the time left on a terminal, a line per run elsewhere; failures have their line in both."""

    def __init__(self, console: Console, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("runs", total=total, left="")

    def __enter__(self) -> _Watcher:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        left = "" if event.left is None else f"{int(event.left) // 60}:{int(event.left) % 60:02d} left"
        self._bar.update(self._task, completed=event.done, left=left)
        failed = _code(event)
        if self._console.is_terminal and failed is None:
            return
        how = f"failed, {failed}" if failed else "was there" if event.kept else f"{event.outcome.seconds:.1f} s"
        line = f"  {event.done:>{len(str(event.total))}}/{event.total} {event.run.key.words}: {how}"
        self._console.print(f"{line}; {left}" if left else line, markup=False, soft_wrap=True)


def _code(event: Event) -> str | None:
    from fairflare.study.kept import Failure

    return event.outcome.code if isinstance(event.outcome, Failure) else None


class _Flare:
    """Runs a plan of the study through NVIDIA FLARE's simulator."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, plan: Plan, folder: Path, catalog: DataCatalog, weights: Path | None) -> str:
        """Hash of the last model of a run that verifies."""
        from fairflare.engine.verify import verify_run
        from fairflare.flare.simulate import Simulation
        from fairflare.jobs import write_job
        from fairflare.models import find_weights

        self._console.print(f"  again through NVIDIA FLARE: {plan.name}", markup=False)
        files = () if plan.start.kind == "seed" else (find_weights(weights, plan.start.sha256),)
        simulation = Simulation(write_job(plan, folder / "job"), folder, catalog, catalog.site_names, weights=files)
        simulation.run()
        return verify_run(simulation.workspace).rounds[-1].model_sha256
