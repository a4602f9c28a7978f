# SPDX-License-Identifier: Apache-2.0
"""``fairflare worth``: whether joining helped this site's own patients, and whom it hurt."""

from __future__ import annotations

import json as json_text
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.cli.own import CatalogPath, ModelPath, SiteName, own_entry, private_folder, progress_bar, write_private
from fairflare.errors import CatalogError
from fairflare.policy import DataCatalog, read_catalog

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.data.manifest import SiteData
    from fairflare.engine.alone import Trained
    from fairflare.engine.at_site import ModelFile, Named
    from fairflare.engine.joining import Contender
    from fairflare.evaluation.facts import Fact
    from fairflare.evaluation.summary import Remark
    from fairflare.evaluation.worth import Worth
    from fairflare.plan import Plan

FORMAT = "fairflare/worth/1"
PAGE, NUMBERS = "worth.html", "worth.json"
ALONE = (
    "The model of this site alone was trained with the plan's own settings (network, first model, rounds, local work, "
    "batches, optimiser), by FedAvg: without any fairness penalty. Nobody tuned these settings for this site alone."
)
SIMULATION = (
    "A model trained on all sites' records in one pool exists in simulation only: here one catalogue holds the data "
    "of all sites, which no real hospital has."
)
DRAWN = (
    "Intervals are 95 %, over this site's test patients, each drawn with all of their records, for both models alike."
)


def worth(
    model: ModelPath,
    catalog: CatalogPath,
    site: SiteName = None,
    out: Annotated[Path, typer.Option(help="Folder for worth.html and worth.json; new or empty.")] = Path("worth"),
    pooled: Annotated[
        bool,
        typer.Option("--pooled", help="Also train on all sites' records in one pool (a catalogue by site only)."),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="Folder of weight files, for a plan that starts from one.", show_default=False),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap over patients.")] = 2000,
) -> None:
    """Compare a federated model with one trained here alone, for each group of this site's own test patients.

    Trains a model on this site's training records only, with the plan's own settings and FedAvg, which takes about as
    long as this site's part of the job. Says whom joining helped, whom it hurt, and who cannot be judged. Stays here.
    """
    from rich.console import Console

    from fairflare.data.manifest import load
    from fairflare.engine.at_site import named_records, read_model_file

    console = Console()
    found = read_model_file(model)
    offered = read_catalog(catalog)
    plan = found.plan
    name, entry = own_entry(offered, site, plan.task.data_set)
    if pooled:
        _verify_several(offered)
    folder = private_folder(out)
    data = load(plan, entry)
    named = named_records(plan, entry, data, "test")
    alone = _trained(console, plan, name, data, weights, f"{name} alone")
    pool = _trained(console, plan, "pooled", _pool(plan, offered), weights, "all sites pooled") if pooled else None
    contenders = _contenders(found, data, alone, pool)
    pairs = [(contenders["local"], contenders["federated"]), (contenders["other"], contenders["federated"])]
    pairs += [(contenders["local"], contenders["pooled"])] if pool else []
    worths = _compared(console, plan, pairs, named, resamples)
    warnings = _warnings(contenders, pairs)
    _write(folder, name, found, data, worths, warnings, contenders)
    _show(console, folder, worths, warnings)


def _verify_several(catalog: DataCatalog) -> None:
    if len(catalog.site_names) < 2:
        raise CatalogError(
            "FF-CAT-POOLED",
            got="--pooled with a catalogue of one site",
            expected="a catalogue by site with several, as a simulation has it",
            next_step="leave --pooled out: no hospital has the records of the others",
        )


def _pool(plan: Plan, catalog: DataCatalog) -> SiteData:
    from fairflare.data.manifest import load
    from fairflare.engine.alone import pooled

    return pooled([load(plan, catalog.entry(site, plan.task.data_set)) for site in catalog.site_names])


def _trained(console: Console, plan: Plan, name: str, data: SiteData, weights: Path | None, title: str) -> Trained:
    """Train in a folder that is gone afterwards: its record is not for anybody."""
    from fairflare.cli.progress import Watcher
    from fairflare.engine.alone import train_alone
    from fairflare.record import PROGRESS_NAME

    with tempfile.TemporaryDirectory() as scratch, Watcher(console, title) as watcher:
        progress = Path(scratch) / PROGRESS_NAME
        return train_alone(
            plan, {name: lambda: data}, Path(scratch), weights=weights, watch=lambda _: watcher(progress)
        )


def _contenders(found: ModelFile, data: SiteData, alone: Trained, pool: Trained | None) -> dict[str, Contender]:
    """The federated model, and of this site's own the one of the same kind and the other."""
    from fairflare.engine.joining import contender

    words = {"final": "final", "best": "best on validation"}
    other = "final" if found.kind == "best" else "best"
    models = {
        "local": (f"alone ({words[found.kind]})", alone.of_kind(found.kind)),
        "other": (f"alone ({words[other]})", alone.of_kind(other)),
        "federated": (f"federated ({words[found.kind]})", found),
    }
    if pool is not None:
        models["pooled"] = (f"pooled ({words[found.kind]}, simulation only)", pool.of_kind(found.kind))
    return {key: contender(name, model, data) for key, (name, model) in models.items()}


def _compared(
    console: Console, plan: Plan, pairs: Sequence[tuple[Contender, Contender]], named: Named, resamples: int
) -> list[Worth]:
    from fairflare.engine.joining import comparisons_of, worth_of

    total, done = comparisons_of(plan) * len(pairs), 0
    with progress_bar(console, "bootstrap over patients", total) as progress:

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        return [worth_of(plan, one, two, named, resamples=resamples, progress=step) for one, two in pairs]


def _warnings(contenders: Mapping[str, Contender], pairs: Sequence[tuple[Contender, Contender]]) -> list[Remark]:
    """Levelling down and collapse first, then what makes the numbers of a model worth less than they look."""
    from fairflare.engine.joining import levelled_down
    from fairflare.evaluation.phrases import gathered

    found = [remark for one, two in pairs for remark in levelled_down(one, two)]
    return [*found, *gathered([one.summary for one in contenders.values()], [])]


def _write(
    folder: Path, site: str, found: ModelFile, data: SiteData, worths: Sequence[Worth], warnings: Sequence[Remark],
    contenders: Mapping[str, Contender],
) -> None:  # fmt: skip
    from fairflare.evaluation.worth import CAUTION, chance, sentences
    from fairflare.evaluation.worth_page import Section, to_html, worth_page, worth_tables

    sections = []
    for number, one in enumerate(worths):
        simulated = (SIMULATION,) if "pooled" in contenders and number == 2 else ()
        # The answer by the first comparison stands on top of the page.
        told = () if number == 0 else tuple(sentences(one))
        sections.append(Section(f"{one.second} against {one.first}", (*simulated, *told), worth_tables(one, "test")))
    title = f"Was joining worth it? {found.plan.name} at {site}"
    answer = [*sentences(worths[0]), ALONE, DRAWN, chance(worths)]
    facts = _facts(site, found, data, contenders)
    write_private(folder / PAGE, to_html(worth_page(title, answer, facts, warnings, sections)).encode())
    numbers = {
        "format": FORMAT,
        "caution": CAUTION,
        "notes": [ALONE, DRAWN, chance(worths), *([SIMULATION] if "pooled" in contenders else [])],
        "site": site,
        "plan_sha256": found.plan.sha256,
        "models": {one.name: one.model.model_sha256 for one in contenders.values()},
        "answers": [list(sentences(one)) for one in worths],
        "warnings": [asdict(remark) for remark in warnings],
        "comparisons": [asdict(one) for one in worths],
    }
    write_private(folder / NUMBERS, (json_text.dumps(numbers, indent=2, allow_nan=False) + "\n").encode())


def _facts(site: str, found: ModelFile, data: SiteData, contenders: Mapping[str, Contender]) -> list[Fact]:
    from fairflare.evaluation.facts import Fact

    training = found.plan.training
    work = f"{training.rounds} rounds of {training.work.amount} {training.work.unit}"
    counts = f"{len(data.training)} training, {len(data.validation)} validation, {len(data.test)} test records"
    facts = [
        Fact("Site", (site,)),
        Fact("Its records", (counts,)),
        Fact("Plan", (found.plan.name, f"method {found.plan.method.name}, {work}")),
        Fact("Plan's hash", (found.plan.sha256,), code=True),
    ]
    facts += [Fact(f"Model, {one.name}", (one.model.model_sha256,), code=True) for one in contenders.values()]
    return [*facts, Fact("Alone", (ALONE,)), *([Fact("Pooled", (SIMULATION,))] if "pooled" in contenders else [])]


def _show(console: Console, folder: Path, worths: Sequence[Worth], warnings: Sequence[Remark]) -> None:
    from fairflare.evaluation.worth import CAUTION, sentences

    for one in worths:
        for sentence in sentences(one):
            console.print(sentence, markup=False, highlight=False)
    console.print(ALONE, markup=False, highlight=False)
    for remark in warnings:
        if remark.kind in ("levelling down", "collapsed model", "constant model"):
            console.print(f"! {remark.kind}: {remark.text}", markup=False, highlight=False)
    console.print(f"! {CAUTION}", style="bold", markup=False, highlight=False)
    for name in (PAGE, NUMBERS):
        console.print(f"written: {folder / name}", markup=False, highlight=False, soft_wrap=True)
