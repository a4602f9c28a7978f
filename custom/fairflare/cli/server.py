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


@app.callback()
def _group() -> None:
    """Keep 'fairflare server' a group of commands."""


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
