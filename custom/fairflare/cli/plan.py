# SPDX-License-Identifier: Apache-2.0
"""``fairflare plan``: write, check, hash and compare training plans."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fairflare import presets, schema
from fairflare.cli.files import write_new_plan
from fairflare.errors import PlanError
from fairflare.evaluation.exchanged import TRUST, exchanged_words
from fairflare.evaluation.privacy_words import privacy_words
from fairflare.plan import Plan, model_words, parse_plan, read_plan
from fairflare.policy import standard_policy

app = typer.Typer(help="Write, check, hash and compare training plans.", no_args_is_help=True)

#: Short names of FlexFair's two presets, on the plan that is quickest to try.
ALIASES = {"paper": "heart_flexfair", "official": "heart_flexfair_official"}
_SHORT = ", ".join(f"{short} ({name})" for short, name in ALIASES.items())
_PRESETS = (*presets.PRESETS, *ALIASES)

PlanFile = Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")]


@app.command()
def new(
    preset: Annotated[
        str, typer.Option(help=f"What to start from: a name that 'fairflare plan presets' lists; or {_SHORT}.")
    ] = "heart_flexfair",
    name: Annotated[str, typer.Option(help="Name of the new plan; by default the preset's.")] = "",
    to: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
    patients: Annotated[
        bool,
        typer.Option(
            "--patients",
            help="For patients' data rather than public data: small groups are held back as the standard policy asks.",
        ),
    ] = False,
) -> None:
    """Write a complete plan, every field written out, to start from."""
    source = ALIASES.get(preset, preset)
    if source not in presets.PRESETS:
        raise _unknown_preset(preset)
    plan = presets.PRESETS[source](name or source)
    write_new_plan(_for_patients(plan) if patients else plan, to)


@app.command(name="presets")
def presets_() -> None:
    """List what a new plan can start from: every method on every task, as in its paper and as in the authors' code.

    A name that ends in _official is what the FlexFair authors' code does with that method, defects included.
    """
    told = ""
    width = max(map(len, presets.PRESETS))
    for name in sorted(presets.PRESETS):
        task, words = presets.described(name)
        if task != told:
            typer.echo(f"{task}:")
            told = task
        job = "job" if name in presets.JOBS else "   "
        typer.echo(f"  {name:{width}}  {job}  {words}")
    typer.echo("job: shipped, in the folder jobs. The authors' code: FlexFair's, as it was published.")


def _for_patients(plan: Plan) -> Plan:
    """The plan with the cells of the standard policy; the presets' data are public, so they hold nothing back."""
    policy = standard_policy(Path.home())
    cells = {"minimum": policy.cells_minimum, "sites": policy.cells_sites}
    return parse_plan(json.dumps({**plan.model_dump(mode="json"), "cells": cells}))


def _unknown_preset(preset: str) -> PlanError:
    near = difflib.get_close_matches(preset, _PRESETS, n=1, cutoff=0.4)
    why = f"; the nearest valid name is '{near[0]}'" if near else ""
    if preset.removesuffix("_official") in presets.REFUSED:
        why = f", which cannot be: {presets.REFUSED[preset.removesuffix('_official')]}"
    return PlanError(
        "FF-PLAN-PRESET",
        got=f"the preset '{preset}'{why}",
        expected="a name that 'fairflare plan presets' lists",
        next_step="correct --preset",
    )


@app.command()
def check(plan: PlanFile) -> None:
    """Check a plan: exit status 0 only if it can be run as written."""
    found = read_plan(plan)
    typer.echo(f"{found.name}: a valid plan")
    for line in summary(found):
        typer.echo(f"  {line}")
    typer.echo(f"  sha256 {found.sha256}")


@app.command(name="hash")
def hash_(plan: PlanFile) -> None:
    """Print the SHA-256 of a plan's canonical form: what a site approves."""
    typer.echo(read_plan(plan).sha256)


@app.command()
def diff(first: PlanFile, second: PlanFile) -> None:
    """Show the fields in which two plans differ: exit status 0 if there are none, 1 otherwise."""
    a, b = (schema.pretty(read_plan(file)).splitlines() for file in (first, second))
    lines = list(difflib.unified_diff(a, b, str(first), str(second), lineterm="", n=2))
    for line in lines:
        typer.echo(line)
    if lines:
        sys.exit(1)


def _refresh(plan: Plan) -> str:
    """How often group statistics are exchanged, in words."""
    method = plan.method
    if not getattr(method, "penalties", ()):
        return ""
    often = "at every local step" if method.lock_step else "at the start of every round"
    if method.lagged:
        often = "with every update, acting one round later"
    elif method.measured_every > 1:
        often = f"at the start of every {method.measured_every} rounds"
    own = f", own part measured anew every {method.remeasured_every} steps" if method.remeasured_every else ""
    return f"; group statistics {often}{own}"


def _masking(plan: Plan) -> list[str]:
    """How masks work, for a person who must decide on it."""
    masking = plan.protection.masking
    if masking is None:
        return []
    stale = "the sites train without a penalty" if masking.when_stale == "no_penalty" else "the run stops"
    norm = "" if masking.norm_clip is None else f", a whole change at an L2 norm of {masking.norm_clip:g}"
    return [
        f"  masks: safe with {masking.colluders} colluding sites; records weigh in units of {masking.weight_unit}",
        f"  a parameter's change is cut off at {masking.clip:g}{norm}",
        *([f"  ckks: {text}" for text in (TRUST.hospitals, TRUST.not_protected)] if plan.protection.encrypted else []),
        f"  while a site is missing, group sums may be {masking.max_stale} rounds old; then {stale}",
    ]


def _parameters(plan: Plan) -> Iterator[tuple[str, object]]:
    """Parameters of a method that has no penalties or claims, which have lines of their own."""
    if not hasattr(plan.method, "penalties") and not hasattr(plan.method, "claims"):
        yield from ((name, value) for name, value in plan.method if name != "name")


def _value(value: object) -> str:
    """A parameter as a plan has it, but for null."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def summary(plan: Plan) -> list[str]:
    """The plan in a few lines for a person who must decide on it."""
    training, federation = plan.training, plan.federation
    groups = ", ".join(f"{name} ({' / '.join(values)})" for name, values in plan.groups.items()) or "none"
    what = "pixels" if plan.task.kind == "segmentation" else f"{plan.task.input.kind}s"
    start = plan.start
    lines = [
        f"learns {' or '.join(plan.task.labels)} from {what} of the data set '{plan.task.data_set}'",
        f"sensitive attributes and intersections: {groups}",
        f"network {model_words(plan.model)}, {training.rounds} rounds of {training.work.amount} {training.work.unit}",
        "first model drawn from the seed"
        if start.kind == "seed"
        else f"first model: {start.tensors} tensors of the weight file {start.sha256[:16]}",
        f"method {plan.method.name}{_refresh(plan)}",
    ]
    lines += [
        f"  {penalty.criterion} by {penalty.attribute}: utility {penalty.utility}, weights {penalty.weights}, "
        f"{penalty.form} form, {penalty.reduction}, strength {penalty.strength:g}"
        for penalty in getattr(plan.method, "penalties", ())
    ]
    lines += [f"  {name.replace('_', ' ')} {_value(value)}" for name, value in _parameters(plan)]
    if plan.method.counts_only:
        lines.append("  records are counted, and nothing is trained")
    else:
        lines += ["  sent beside the update:", *(f"    {words}" for words in exchanged_words(plan))]
    lines += [
        f"  claim: a gap of {claim.gap:g} in {claim.criterion} by {claim.attribute}"
        for claim in getattr(plan.method, "claims", ())
    ]
    lines += [
        *(f"consent of the hospitals: {consent.replace('_', ' ')}" for consent in plan.consents),
        f"protection: update {plan.protection.update}, statistics {plan.protection.statistics}",
        *_masking(plan),
        f"differential privacy: {'none' if plan.differential_privacy is None else 'in training'}",
        *(f"  {words}" for words in privacy_words(plan)),
        f"cells: {plan.cells.minimum} records at a site, {plan.cells.sites} sites",
        f"at least {federation.min_sites} sites, {federation.task_timeout_seconds:g} s for a task",
    ]
    return lines
