# SPDX-License-Identifier: Apache-2.0
"""``fairflare evaluate``: a finished model on the site's own records, group by group."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.cli.files import verify_writable
from fairflare.cli.own import CatalogPath, ModelPath, SiteName, progress_bar, read_own_entry, write_private
from fairflare.cli.report import SplitName

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.engine.at_site import ModelFile
    from fairflare.evaluation.summary import RunSummary
    from fairflare.policy import Entry

FORMAT = "fairflare/own-evaluation/1"


def evaluate(
    model: ModelPath,
    catalog: CatalogPath,
    site: SiteName = None,
    split: Annotated[SplitName, typer.Option(help="Which records to evaluate on.")] = SplitName.test,
    minimum: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Show nothing of a group and label with fewer records; by default the plan's own smallest cell.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write every number to this JSON file.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write one page to read or print, here.", show_default=False)
    ] = None,
) -> None:
    """Show what a model achieves for each group of this site's own patients. The numbers stay here.

    The data set that the model's plan names is looked up in the catalogue. A threshold is chosen on this site's own
    validation records, if the plan wants it chosen.
    """
    # Imported here: torch and SciPy would delay every other command.
    from rich.console import Console

    from fairflare.engine.at_site import read_model_file
    from fairflare.evaluation import render
    from fairflare.evaluation.worth import CAUTION

    for file in (json, html):
        if file is not None:
            verify_writable(file)
    found = read_model_file(model)
    name, entry = read_own_entry(catalog, site, found.plan.task.data_set)
    least = found.plan.cells.minimum if minimum is None else minimum
    console = Console()
    if not console.is_terminal:
        console = Console(width=render.WIDTH)  # piped: Rich would fall back to 80 columns
    summary = _summary(console, found, name, entry, split, least)
    console.print(f"! {CAUTION}", style="bold", markup=False, highlight=False)
    console.print()
    console.print(render.run_report(summary), highlight=False)
    if json is not None:
        data = {"format": FORMAT, "caution": CAUTION, "minimum": least, "result": asdict(summary)}
        write_private(json, (json_text.dumps(data, indent=2, allow_nan=False) + "\n").encode())
    if html is not None:
        write_private(html, _page(found, summary, least).encode())
    for written in (json, html):
        if written is not None:
            console.print(f"written: {written}", markup=False, highlight=False)


def _summary(console: Console, model: ModelFile, name: str, entry: Entry, split: SplitName, minimum: int) -> RunSummary:
    """What the report's code says of the sums that this site would have sent."""
    from fairflare.data.manifest import load
    from fairflare.engine.at_site import part_of, score, site_sums, verify_some
    from fairflare.evaluation.report import summarise_sums
    from fairflare.plan import Cells

    plan = model.plan
    data = load(plan, entry)
    verify_some(part_of(data, split.value), split.value)
    sums = {}
    for part in dict.fromkeys(("validation", split.value)):
        records = part_of(data, part)
        with progress_bar(console, f"{part} records") as progress:
            sums[part] = site_sums(plan, score(model, records, progress), records, minimum)
    chosen = sums[split.value]
    # Of one site there is no smallest number of sites.
    own = plan.model_copy(update={"cells": Cells(minimum=minimum, sites=1)})
    summary = summarise_sums(
        own, chosen.sums, sums["validation"].sums, split=split.value, name=plan.name, sites=(name,),
        model_sha256=model.model_sha256, collapse=chosen.collapse,
    )  # fmt: skip
    return replace(summary, plan_sha256=plan.sha256, rounds=model.rounds, status=f"{model.kind} model, own evaluation")


def _page(model: ModelFile, summary: RunSummary, minimum: int) -> str:
    from fairflare.evaluation.facts import Fact
    from fairflare.evaluation.phrases import counted, threshold
    from fairflare.evaluation.worth_page import result_sections, to_html, worth_page

    facts = [
        Fact("Model", (f"{model.kind}, after {model.rounds} rounds of {model.plan.name}",)),
        Fact("Model's hash", (model.model_sha256,), code=True),
        Fact("Plan's hash", (summary.plan_sha256,), code=True),
        Fact("Record's hash", (model.record_sha256,), code=True),
        Fact("Site", summary.sites),
        Fact("Records", (f"{summary.split}: {counted(summary)}",)),
        Fact("Smallest cell shown", (str(minimum),)),
    ]
    if threshold(summary):
        facts.append(Fact("Called positive from a score of", (threshold(summary),)))
    title = f"Own evaluation: {model.plan.name} at {', '.join(summary.sites)}"
    return to_html(worth_page(title, (), facts, summary.remarks, list(result_sections(summary))))
