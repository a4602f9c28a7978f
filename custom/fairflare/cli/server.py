# SPDX-License-Identifier: Apache-2.0
"""``fairflare server``: for whoever looks after the server, on its own machine, without an administrator's kit."""

from __future__ import annotations

import os
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fairflare.evaluation.health import Health

app = typer.Typer(
    help="Look after the server, on its own machine, without an administrator's kit.", no_args_is_help=True
)

ServerKit = Annotated[Path, typer.Argument(help="The server's start-up kit: the folder with startup/ and local/.")]


class Form(str, Enum):
    """How it is printed."""

    table = "table"
    json = "json"


@app.command()
def health(
    kit: ServerKit,
    html: Annotated[
        Path | None, typer.Option(help="Also write one HTML page, which loads nothing.", show_default=False)
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="What is printed.")] = Form.table,
    watch: Annotated[
        int | None, typer.Option(min=2, help="Look again every so many seconds, until Ctrl-C.", show_default=False)
    ] = None,
) -> None:
    """Show which sites are connected, where jobs stand, what was refused, the disk, and when certificates end.

    Reads the server's own files and no result: nothing on the page is a number of one hospital. Exit status 1 if the
    server does not run.
    """
    from fairflare.flare import health as reader

    while True:
        found = reader.health(kit, time.time())
        _show(found, form, clear=watch is not None and sys.stdout.isatty())
        if html is not None:
            _write(html, found, watch)
        if watch is None:
            break
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            break
    if not found.is_alive:
        raise typer.Exit(1)


@app.command()
def resume(
    kit: ServerKit,
    job: Annotated[str | None, typer.Argument(help="Id of a job that stopped; without it: stop asking.")] = None,
) -> None:
    """Let the next job go on with a run that stopped, when its researcher hands the same job in again.

    For a run that stopped by itself, such as with too few hospitals. After the server's own end nothing need be said.
    While it is asked for, jobs of other plans are refused: take it back ('server resume KIT') once the job has begun.
    """
    import json

    from fairflare.engine.describe import verify_resumable
    from fairflare.flare.continuation import kept_run
    from fairflare.flare.names import RESUME
    from fairflare.record import read_record

    file = kit / "local" / RESUME
    if job is None:
        file.unlink(missing_ok=True)
        typer.echo("no run is gone on with")
        return
    folder = kept_run(kit, job).resolve()
    record = read_record(folder)
    verify_resumable(record, record.plan)
    file.write_text(json.dumps({"folder": str(folder)}) + "\n", encoding="utf-8")
    typer.echo(f"{record.plan.name}: the next job of this plan goes on after {len(record.rounds)} complete rounds")
    typer.echo("next step: its researcher hands the same job in again; then 'fairflare server resume' without a job")


def _show(found: Health, form: Form, *, clear: bool) -> None:
    from rich.console import Console

    from fairflare.evaluation import health_page

    if form is Form.json:
        typer.echo(health_page.to_json(found), nl=False)
        return
    console = Console(highlight=False, emoji=False)
    if clear:
        console.clear()
    console.print(health_page.to_terminal(found))


def _write(file: Path, found: Health, renew: int | None) -> None:
    from fairflare.evaluation import health_page

    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(health_page.to_html(found, renew), encoding="utf-8")
    os.replace(temporary, file)
