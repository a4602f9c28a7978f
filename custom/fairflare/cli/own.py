# SPDX-License-Identifier: Apache-2.0
"""What the commands share that look at a site's own patients: which site, files for its own eyes, progress."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.errors import CatalogError, RunError
from fairflare.policy import DataCatalog, Entry, read_catalog

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.engine.at_site import Progress

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="final.safetensors or best.safetensors, as a job leaves them in the folder 'models'."
    ),
]
CatalogPath = Annotated[Path, typer.Option("--catalog", help="data_catalog.json, or the folder that holds it.")]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="Which site's data; needed only if the catalogue has several.", show_default=False),
]

#: A site's certificate in its start-up kit.
CERTIFICATE = Path("startup") / "client.crt"
#: What the site of a catalogue without site names is called.
THIS_SITE = "this-site"


def own_entry(catalog: DataCatalog, site: str | None, data_set: str) -> tuple[str, Entry]:
    """The site's name and its entry; raises ``FF-CAT-SITE`` if the catalogue has several and none is named."""
    names = catalog.site_names
    if site is None and len(names) > 1:
        raise CatalogError(
            "FF-CAT-SITE",
            got=f"a catalogue of {len(names)} sites, and no --site",
            expected=f"one of {', '.join(names)}",
            next_step="add --site and the name of the site whose data are meant",
        )
    name = site or (names[0] if names else THIS_SITE)
    return name, catalog.entry(name, data_set)


def read_own_entry(catalog: Path, site: str | None, data_set: str) -> tuple[str, Entry]:
    """:func:`own_entry` of a catalogue's file."""
    return own_entry(read_catalog(catalog), site, data_set)


def kit_of(policy: Path | None) -> Path | None:
    """The start-up kit that a policy, or its folder, lies in; ``None`` if it lies in none."""
    if policy is None:
        return None
    kit = (policy if policy.is_dir() else policy.parent).resolve().parent
    return kit if (kit / CERTIFICATE).is_file() else None


def private_folder(path: Path) -> Path:
    """Make ``path``, which only its owner may enter; raises ``FF-RUN-OUT`` if there is anything in it already."""
    if path.is_dir() and any(path.iterdir()):
        raise RunError(
            "FF-RUN-OUT",
            got="a folder for results that is not empty",
            expected="a new or an empty one: nothing is replaced",
            next_step="choose another --out, or remove what is in it",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, also where an older one could be read by others."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
            stream.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def progress_bar(console: Console, title: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere; yields what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
