# SPDX-License-Identifier: Apache-2.0
"""``fairflare jobs``: turn plans into FLARE job folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairflare import presets
from fairflare.jobs import SIGNATURES, job_files, write_job
from fairflare.plan import read_plan

app = typer.Typer(help="Turn plans into FLARE job folders.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Folder that gets one folder per job.")]


@app.command()
def write(to: Folder = Path("jobs")) -> None:
    """Write the jobs that FairFlare ships."""
    for name in presets.JOBS:
        typer.echo(f"wrote {write_job(presets.shipped(name), to)}")


@app.command()
def make(
    plan: Annotated[Path, typer.Argument(help="A plan.json.")],
    to: Folder = Path("jobs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a job of the same name.")] = False,
) -> None:
    """Write the job of one plan."""
    typer.echo(f"wrote {write_job(read_plan(plan), to, overwrite=overwrite)}")


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="Folder with one folder per job.")] = Path("jobs")) -> None:
    """Compare the shipped jobs with what this version would write: exit status 0 only if they are identical."""
    wrong = []
    for name in presets.JOBS:
        wanted = job_files(presets.shipped(name))
        job = folder / name
        files = (file for file in job.rglob("*") if file.is_file())
        present = {str(file.relative_to(job)) for file in files if file.name not in SIGNATURES}
        texts = {key: (job / key).read_text(encoding="utf-8") for key in present & set(wanted)}
        if present != set(wanted) or any(texts[key] != wanted[key] for key in wanted):
            wrong.append(name)
    for name in wrong:
        typer.echo(f"{name}: differs; write it anew with 'fairflare jobs write'")
    if wrong:
        raise typer.Exit(1)
    typer.echo(f"{len(presets.JOBS)} jobs are what this version writes")
