# SPDX-License-Identifier: Apache-2.0
"""``fairflare secagg``: what masks do for a plan, and what they do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.evaluation.units import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fairflare.engine.explain import Explained, Speed

app = typer.Typer(help="Look at how masks protect a plan's vectors.", no_args_is_help=True)

FORMAT = "fairflare/secagg-explain/1"


@app.command()
def explain(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    sites: Annotated[int, typer.Option(help="Number of sites that would take part.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON on standard output.")] = False,
) -> None:
    """Say what masks do for a plan and so many sites: dropouts, collusion, bytes, seconds, and what stays visible.

    The seconds are measured on this machine, now. A plan without masks, or too few sites, is an error (exit status 1).
    """
    # Imported here: torch would delay every other command.
    from rich.console import Console

    from fairflare.engine.explain import explain as explained
    from fairflare.plan import read_plan

    found = explained(read_plan(plan), sites)
    if as_json:
        print(json.dumps({"format": FORMAT, **asdict(found)}, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        # Piped into a file or a mail: Rich would fall back to 80 columns.
        console = Console(highlight=False, width=100)
    _show(console, found)


def _show(console: Console, found: Explained) -> None:
    console.print(f"Masks for the plan '{found.plan}' with {found.sites} sites", style="bold", markup=False)
    console.print(f"sha256 {found.plan_sha256}", markup=False)
    console.print(
        f"The server sees sums only. Every secret is shared among the sites: any {found.threshold} of {found.sites} "
        f"(the threshold t) can open it, fewer cannot. A sum of updates is of {found.least_sites} sites or more.",
        markup=False,
    )
    console.print(_stages(found))
    _list(console, "", found.dropouts)
    console.print(
        f"Collusion: safe with {found.colluders} of the sites (the plan's colluders) on the side of a server that "
        f"lies; {found.sites} sites allow {found.most_colluders} at most.",
        markup=False,
    )
    console.print(_traffic(found))
    console.print(
        "Vectors and protocol messages while all sites are there; heads and transport come on top. The model alone is "
        f"{size(4 * found.parameters)} ({found.parameters:,} parameters).",
        markup=False,
    )
    if found.speed is not None:
        console.print(_speed(found.speed))
        console.print("Measured here, now, with the plan's own vectors; another machine differs.", markup=False)
    _list(console, "What the server learns", found.server_learns)
    _list(console, "What a hospital can learn about another", found.hospitals_learn)
    _list(console, "What is not protected", found.not_protected)


def _list(console: Console, title: str, sentences: Sequence[str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if title:
        console.print(f"\n{title}", style="bold", markup=False)
    for sentence in sentences:
        console.print(Padding(Text(f"- {sentence}"), (0, 0, 0, 2)))


def _table(title: str, first: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _stages(found: Explained) -> Table:
    table = _table("Who may be missing", "by the end of", "sites needed", "sites that may be lost")
    for stage in found.stages:
        table.add_row(stage.name, str(stage.least), str(stage.lost))
    return table


def _traffic(found: Explained) -> Table:
    table = _table("What one site gets and sends", "part", "down", "up")
    for part in found.traffic:
        for trip in part.trips:
            table.add_row(f"{part.part}: {trip.task}", size(trip.down), size(trip.up))
        table.add_row(f"{part.part}: together", size(part.down), size(part.up), style="bold", end_section=True)
    return table


def _speed(speed: Speed) -> Table:
    table = _table("What masks add to one round", "where", "seconds")
    table.add_row("a site: round, agree on keys, mask", f"{speed.site:.3g}")
    table.add_row("the server: add, take the masks out", f"{speed.server:.3g}")
    if speed.server_lost is not None:
        table.add_row("the server, with one site lost after its shares", f"{speed.server_lost:.3g}")
    return table
