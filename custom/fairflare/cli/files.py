# SPDX-License-Identifier: Apache-2.0
"""Files that commands write, and errors of the file system in our own form: code, what went wrong, what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from fairflare import schema
from fairflare.errors import FairFlareError, PlanError, RunError
from fairflare.plan import Plan

#: Folder of the synthetic hospitals that a run without a catalogue makes for itself.
MADE = "synthetic"


def file_error(problem: OSError, words: Sequence[str]) -> RunError:
    """``FF-RUN-FILE`` for ``problem``; of all paths, only one that was typed (in ``words``) is repeated."""
    typed = _typed(problem, words)
    where = f"'{typed}': " if typed else ""
    return RunError(
        "FF-RUN-FILE",
        got=f"{where}{problem.strerror or type(problem).__name__}",
        expected="files and folders that this user can read and write as the command needs them",
        next_step="correct the path: a folder must not be a file, nor a file a folder; or the access rights, or the "
        "space on the disk",
    )


def show_error(problem: FairFlareError) -> None:
    """Write an error as four lines to standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{problem.code}", style="bold red", markup=False)
    for name, text in (("got", problem.got), ("expected", problem.expected), ("next step", problem.next_step)):
        console.print(f"  {name + ':':<10} {text}", markup=False, soft_wrap=True)


def write_new_plan(plan: Plan, to: Path | None) -> None:
    """Write a plan to a new file, or to standard output; raises ``FF-PLAN-EXISTS``."""
    text = schema.pretty(plan)
    if to is None:
        typer.echo(text, nl=False)
        return
    if to.exists():
        raise PlanError(
            "FF-PLAN-EXISTS",
            got="a file that exists already",
            expected="the name of a new file",
            next_step="choose another name, or remove the file first",
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {to} ({plan.sha256})")


def verify_writable(path: Path) -> None:
    """Raise :class:`OSError` now if ``path`` cannot be written later; nothing is made or changed."""
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    there = path if path.exists() else path.parent
    if there.exists() and there != path and not there.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not there.exists():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if not os.access(there, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _typed(problem: OSError, words: Sequence[str]) -> str | None:
    """The word of the command line that is the problem's path, or leads to it, or below it."""
    if not isinstance(problem.filename, str):
        return None
    wanted = Path(problem.filename).absolute()
    for word in words:
        value = word.partition("=")[2] if word.startswith("-") else word
        path = Path(value).absolute()
        if value and (path == wanted or path in wanted.parents or wanted in path.parents):
            return value
    return None
