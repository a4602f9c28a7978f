# SPDX-License-Identifier: Apache-2.0
"""``fairflare plan feasibility`` and ``fairflare feasibility``: whether a plan's claims can be examined at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fairflare import presets
from fairflare.cli.files import verify_writable, write_new_plan
from fairflare.errors import PlanError
from fairflare.plan import Plan, read_plan
from fairflare.record import find_record, read_record

_FORM = "ATTRIBUTE=GAP or ATTRIBUTE:CRITERION=GAP"


def plan_feasibility(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    claim: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Gap that the plan must be able to show, as {_FORM}; by default the criterion that the plan "
            "penalises. May be given several times.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of each claim's test.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to find a gap as large as the claim.")] = 0.8,
    name: Annotated[str, typer.Option(help="Name of the new plan; by default the plan's, and _feasibility.")] = "",
    to: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
) -> None:
    """Write the plan of a job that only counts, to run before this plan."""
    source = read_plan(plan)
    claims = [_claim(source, text) for text in claim or ()]
    made = presets.feasibility(source, name or f"{source.name[:52]}_feasibility", *claims, alpha=alpha, power=power)
    write_new_plan(made, to)


def _claim(plan: Plan, text: str) -> presets.Json:
    """A claim of the command line; what its words mean, the plan checks."""
    left, _, right = text.partition("=")
    attribute, _, criterion = left.partition(":")
    try:
        gap = float(right)
    except ValueError:
        raise _bad_claim(f"the claim '{text}'", _FORM) from None
    penalised = [one.criterion for one in getattr(plan.method, "penalties", ()) if one.attribute == attribute]
    if not criterion and len(penalised) != 1:
        found = f"the claim '{text}' about an attribute with {len(penalised)} penalties in the plan"
        raise _bad_claim(found, "a criterion: ATTRIBUTE:CRITERION=GAP")
    return {"attribute": attribute, "criterion": criterion or penalised[0], "gap": gap}


def _bad_claim(got: str, expected: str) -> PlanError:
    return PlanError("FF-PLAN-CLAIM", got=got, expected=expected, next_step="such as --claim sex:equal_opportunity=0.1")


def feasibility(
    run: Annotated[Path, typer.Argument(help="Folder of a feasibility job's run, or its record.json.")],
    json: Annotated[
        Path | None, typer.Option(help="Also write the whole answer to this JSON file.", show_default=False)
    ] = None,
) -> None:
    """Show whether a plan's claims can be examined: exit status 1 if one cannot, or a hospital codes otherwise."""
    # Imported here: SciPy and Rich would delay every other command.
    from rich.console import Console

    from fairflare.evaluation import render
    from fairflare.evaluation.feasibility import summarise_feasibility, to_json
    from fairflare.evaluation.feasibility_text import feasibility_report

    if json is not None:
        verify_writable(json)
    summary = summarise_feasibility(read_record(find_record(run)))
    console = Console()
    if not console.is_terminal:
        # Piped into a file or a mail: Rich would fall back to 80 columns.
        console = Console(width=render.WIDTH)
    console.print(feasibility_report(summary), highlight=False)
    if json is not None:
        json.write_text(to_json(summary), encoding="utf-8")
        console.print(f"written: {json}", markup=False, highlight=False)
    if not summary.feasible:
        sys.exit(1)
