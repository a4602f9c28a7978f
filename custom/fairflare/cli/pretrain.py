# SPDX-License-Identifier: Apache-2.0
"""``fairflare pretrain`` and ``fairflare weights``: a first model from public data, and what a weight file holds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fairflare.cli.files import verify_writable
from fairflare.cli.own import THIS_SITE, CatalogPath
from fairflare.errors import FairFlareError
from fairflare.plan import Plan, parse_plan, read_plan
from fairflare.policy import DataCatalog, Entry, read_catalog

if TYPE_CHECKING:
    from fairflare.models import WeightFile

app = typer.Typer(help="Look at files of weights.", no_args_is_help=True)
console = Console()


def pretrain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, or the job's folder that holds it.")],
    catalog: CatalogPath,
    out: Annotated[Path, typer.Option(help="Folder for the weight file, which gets its hash as name.")],
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="Site to train on; may be given again; by default all of the catalogue's."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the plan inside the file; by default the plan's own.", show_default=False),
    ] = None,
) -> None:
    """Train a plan's first model on public data, and list in its file whom it has seen.

    Only data sets whose catalogue entry says "public": true are used. Sites take part as the hospitals of FedAvg. A
    salted list of all their records, of all splits, goes into the file: every site compares its own records with it
    before it joins, and refuses a first model that has seen one of them.
    """
    from fairflare.cli.progress import Watcher
    from fairflare.engine.pretraining import list_members, verify_pretrainable, write_pretrained
    from fairflare.engine.pretraining import pretrain as train
    from fairflare.record import PROGRESS_NAME

    the_plan = _named(read_plan(plan), name)
    entries = _entries(read_catalog(catalog), site or [], the_plan.task.data_set)
    verify_pretrainable(the_plan, entries)
    console.print(f"{the_plan.name}: pretraining on {', '.join(entries)}", markup=False)
    out.mkdir(parents=True, exist_ok=True)
    verify_writable(out / "any")
    members = list_members(the_plan, entries)
    with tempfile.TemporaryDirectory() as scratch, Watcher(console, the_plan.name) as watcher:
        progress = Path(scratch) / PROGRESS_NAME
        used, vector = train(the_plan, entries, Path(scratch), lambda _: watcher(progress))
    digest = write_pretrained(out, used, vector, members)
    start = json.dumps({"start": {"kind": "file", "sha256": digest, "tensors": "all"}})
    for line in (
        f"written: {out / f'{digest}.safetensors'}",
        f"sha256 {digest}",
        f"It lists {len(members.hashes)} salted hashes of its members, of all splits.",
        "In the plan of a job, write",
        f"  {start[1:-1]}",
        "and copy the file, under this name, into the folder weights/ inside the folder local/ of the server and of "
        "every site (with 'fairflare run': --weights FOLDER).",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _named(plan: Plan, name: str | None) -> Plan:
    if name is None:
        return plan
    return parse_plan(json.dumps({**plan.model_dump(mode="json"), "name": name}))


def _entries(catalog: DataCatalog, sites: list[str], data_set: str) -> dict[str, Entry]:
    names = sites or list(catalog.site_names) or [THIS_SITE]
    return {name: catalog.entry(name, data_set) for name in names}


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file: of weights, or of a model.")],
) -> None:
    """Show what a weight file holds: its hash, tensors, the plan that it came from, and how many members it lists."""
    from fairflare.models import read_weights

    found = read_weights(file)
    numbers = sum(array.size for array in found.tensors.values())
    lines = [f"sha256 {found.sha256}", f"{len(found.tensors)} tensors of {numbers} numbers", *_about(found)]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _about(file: WeightFile) -> list[str]:
    from fairflare.data.members import from_metadata
    from fairflare.engine.loading import PRETRAINED
    from fairflare.engine.results import MODEL_FORMAT

    kind, lines = file.metadata.get("format"), []
    if kind not in (PRETRAINED, MODEL_FORMAT):
        return ["from elsewhere: it does not say what it was trained on, so no overlap with a site can be found"]
    what = "pretrained on public data" if kind == PRETRAINED else "a model of a job"
    lines.append(f"{what} ({kind})")
    try:
        plan = parse_plan(file.metadata.get("plan", ""))
        lines.append(f"plan {plan.name}, sha256 {plan.sha256}")
        if kind == PRETRAINED:
            lines.append(f"members: {len(from_metadata(file.metadata).hashes)} salted hashes")
    except FairFlareError as problem:
        lines.append(f"{problem.code}: its texts cannot be read by this version")
    return lines
