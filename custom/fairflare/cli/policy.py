# SPDX-License-Identifier: Apache-2.0
"""``fairflare policy``: write a site's policy, and say whether a plan is within it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fairflare.errors import PolicyError
from fairflare.plan import read_plan
from fairflare.policy import POLICY_NAME, open_policy, read_policy, standard_policy, write_policy

app = typer.Typer(help="Write a site's policy, and say whether a plan is within it.", no_args_is_help=True)


class Template(str, Enum):
    """Where a policy starts from."""

    open = "open"
    standard = "standard"


@app.command()
def new(
    store: Annotated[
        Path, typer.Option(help="Folder, outside any FLARE workspace, for what this site must never forget.")
    ],
    to: Annotated[Path, typer.Option(help="The site's local/ folder, which gets site_policy.json.")],
    template: Annotated[
        Template,
        typer.Option(help="open: public data, simulations. standard: masks, start-up kits, small cells held back."),
    ] = Template.standard,
) -> None:
    """Write a policy from a template; then read it, and add the other hospitals' keys under 'peers'."""
    if (to / POLICY_NAME).exists():
        raise PolicyError(
            "FF-POLICY-EXISTS",
            got=f"a folder with a {POLICY_NAME}",
            expected="a folder without: a hospital's will is never overwritten",
            next_step="edit the policy that is there, or move it away first",
        )
    to.mkdir(parents=True, exist_ok=True)
    made = (open_policy if template is Template.open else standard_policy)(store.absolute())
    typer.echo(f"wrote {write_policy(to, made)}")


@app.command()
def key(
    certificate: Annotated[Path, typer.Argument(help="The start-up kit's client.crt.")],
) -> None:
    """Print the hash of a site's public key: what the other hospitals write under 'peers', told by telephone."""
    from fairflare.secagg.identity import key_hash

    typer.echo(key_hash(certificate.read_bytes()))


@app.command()
def check(
    policy: Annotated[Path, typer.Argument(help="A site_policy.json, or the folder that holds it.")],
    plan: Annotated[Path, typer.Argument(help="A job's folder, or a plan.json.")],
) -> None:
    """Say what a plan asks for and the policy does not allow: exit status 0 only if there is nothing."""
    found = list(read_policy(policy).check(read_plan(plan)))
    for text in found:
        typer.echo(text)
    if found:
        typer.echo("next step: change the plan, or, if the site agrees, its policy (a plan's hash goes under 'plans')")
        raise typer.Exit(1)
    typer.echo("the plan is within the policy")
