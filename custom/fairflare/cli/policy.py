# SPDX-License-Identifier: Apache-2.0
"""``fairflare policy``: write a site's policy, say what it means and whether a plan is within it, approve plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare import schema
from fairflare.cli.own import kit_of
from fairflare.errors import PolicyError
from fairflare.plan import Plan, read_plan
from fairflare.policy import (
    POLICY_NAME,
    SitePolicy,
    open_policy,
    read_policy,
    standard_policy,
    strict_policy,
    write_policy,
)
from fairflare.policy.package import installed_digest, is_editable, wheel_digest

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.privacy.decisions import Decision, History

app = typer.Typer(
    help="Write a site's policy, say what it means and whether a plan is within it, and approve plans.",
    no_args_is_help=True,
)

DECISIONS_FORMAT = "fairflare/decisions/1"

PolicyFile = Annotated[Path, typer.Argument(help="A site_policy.json, or the folder that holds it.")]
PlanFile = Annotated[Path, typer.Argument(help="A job's folder, or a plan.json.")]


class Template(str, Enum):
    """Where a policy starts from."""

    open = "open"
    standard = "standard"
    strict = "strict"


@app.command()
def new(
    store: Annotated[
        Path, typer.Option(help="Folder, outside any FLARE workspace, for what this site must never forget.")
    ],
    to: Annotated[Path, typer.Option(help="The site's local/ folder, which gets site_policy.json.")],
    template: Annotated[
        Template,
        typer.Option(
            help="open: public data, simulations. standard: masks, start-up kits, small cells held back. strict: also "
            "pinned keys (--kit) and package, signed approvals, named data sets, four hospitals, one year."
        ),
    ] = Template.standard,
    kit: Annotated[
        Path | None,
        typer.Option(help="The site's start-up kit, whose roster fills in the hospitals' keys.", show_default=False),
    ] = None,
    data_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="strict: a data set that may be used; give it again for more."
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="strict: an attribute that may group patients; again for more."
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="strict: a table's column that a model may see; again for more."
        ),
    ] = None,
) -> None:
    """Write a policy from a template; then read it with 'fairflare policy explain', and change what is not yours."""
    if (to / POLICY_NAME).exists():
        raise PolicyError(
            "FF-POLICY-EXISTS",
            got=f"a folder with a {POLICY_NAME}",
            expected="a folder without: a hospital's will is never overwritten",
            next_step="edit the policy that is there, or move it away first",
        )
    lists = {"data_sets": data_set, "attributes": attribute, "features": feature}
    made = _made(template, store.absolute(), _peers(kit), lists)
    to.mkdir(parents=True, exist_ok=True)
    typer.echo(f"wrote {write_policy(to, made)}")
    if made.package is not None:
        _note_editable()
        typer.echo("next step: compare 'package' with the wheel that all hospitals agreed on")
    elif template is Template.standard:
        typer.echo("advice: write what 'fairflare policy package' prints into 'package'; as it is, any version may run")
    if kit is not None:
        typer.echo("next step: compare each key under 'peers' with its hospital by telephone")
    for field in lists:
        if getattr(made, field) == ():
            typer.echo(f"next step: write names into '{field}'; as it is, none is allowed")


def _peers(kit: Path | None) -> dict[str, str] | None:
    if kit is None:
        return None
    from fairflare.policy.roster import read_roster

    return read_roster(kit)


def _made(
    template: Template, store: Path, peers: dict[str, str] | None, lists: dict[str, list[str] | None]
) -> SitePolicy:
    if template is Template.strict:
        if peers is None:
            raise PolicyError(
                "FF-POLICY-PEERS",
                got="the strict template without --kit, so without the other hospitals' keys",
                expected="a start-up kit with local/roster.json: under this template keys are pinned",
                next_step="add --kit; then compare the keys by telephone",
            )
        made = strict_policy(store, package=installed_digest()).model_copy(
            update={field: tuple(names or ()) for field, names in lists.items()}
        )
    elif any(lists.values()):
        raise PolicyError(
            "FF-POLICY-TEMPLATE",
            got=f"names of data sets, attributes or features for the template '{template.value}'",
            expected="them with --template strict: the others allow any name",
            next_step="choose the strict template, or write the names into the policy afterwards",
        )
    elif template is Template.standard:
        made = standard_policy(store)
    else:
        made = open_policy(store, identities="development" if peers is None else "kit")
    # Through the schema once more: names come from the command line, and keys from a roster.
    text = schema.pretty(made.model_copy(update={"peers": peers}))
    return schema.parse(SitePolicy, text, error=PolicyError, what="site policy")


@app.command()
def key(
    certificate: Annotated[Path, typer.Argument(help="The start-up kit's client.crt.")],
) -> None:
    """Print the hash of a site's public key: what the other hospitals write under 'peers', told by telephone."""
    from fairflare.secagg.identity import key_hash

    typer.echo(key_hash(certificate.read_bytes()))


@app.command()
def package(
    wheel: Annotated[
        Path | None,
        typer.Option(help="A wheel, as it would be once it is installed; by default what is.", show_default=False),
    ] = None,
) -> None:
    """Print the digest of the installed package, or of a wheel.

    It is what a policy names as 'package'. Compare it with the other hospitals', by telephone. The package says it of
    itself: whoever may change its files can make it say anything. How to compute it from outside is told in
    provision/deploy/README.md.
    """
    if wheel is None:
        _note_editable()
    typer.echo(installed_digest() if wheel is None else wheel_digest(wheel))


def _note_editable() -> None:
    if is_editable():
        typer.echo("note: the package is a tree of sources; its digest changes with every edit", err=True)


@app.command()
def check(
    policy: PolicyFile,
    plan: PlanFile,
    kit: Annotated[
        Path | None,
        typer.Option(
            help="The site's start-up kit, whose signed approvals count; by default the one that the policy lies in.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what a plan asks for and the policy does not allow: exit status 0 only if there is nothing."""
    terms, wanted = read_policy(policy), read_plan(plan)
    approved: set[str] = set()
    kit = kit or kit_of(policy)
    if kit is not None:
        approved = _approved(terms, wanted, kit)
    found = list(terms.check(wanted, approved=approved))
    for one in found:
        typer.echo(str(one))
    if found:
        steps = {
            "package": "install the wheel whose hash the policy names, or write the new one into it",
            "plans": "approve the plan (its hash under 'plans', or 'fairflare policy approve')",
            "expires": "look the policy through, and give it a new day in 'expires'",
        }
        fields = {one.field for one in found}
        needed = [step for field, step in steps.items() if field in fields]
        if fields - steps.keys():
            needed.insert(0, "change the plan, or, if the site agrees, its policy")
        typer.echo(f"next step: {'; '.join(needed)}")
        raise typer.Exit(1)
    typer.echo("the plan is within the policy")


def _approved(terms: SitePolicy, plan: Plan, kit: Path) -> set[str]:
    """The plan's hash, if it has a signed approval; says why one does not count."""
    from fairflare.policy.approvals import check_approvals

    local = kit / "local"
    if read_policy(local).terms_sha256 != terms.terms_sha256:
        typer.echo("note: the kit holds another policy than this one, so its approvals are not looked at")
        return set()
    crt = kit / "startup" / "client.crt"
    found = [
        one
        for one in check_approvals(local, crt.read_bytes() if crt.is_file() else None)
        if one.plan_sha256 == plan.sha256
    ]
    for one in found:
        typer.echo(f"note: the signed approval {one.defect or 'is valid'}")
    return {one.plan_sha256 for one in found if not one.defect}


@app.command()
def explain(policy: PolicyFile) -> None:
    """Say in plain words what a policy allows, forbids and cannot prevent, and how it compares to the templates."""
    from fairflare.policy.words import NOT_PREVENTED, against_template, kinds_in_words
    from fairflare.policy.words import explain as explained

    terms = read_policy(policy)
    console = _console()
    for sentence in against_template(terms):
        _item(console, sentence, 0)
    for section in explained(terms):
        console.print(f"\n{section.title}", style="bold", markup=False)
        for said in section.fields:
            console.print(f"  {said.field}", markup=False)
            lines = {"allows": said.allows, "forbids": said.forbids, "cannot prevent": said.limits}
            for name, text in lines.items():
                if text:
                    _item(console, f"{name}: {text}", 4)
    console.print("\nKinds of numbers (metrics)", style="bold", markup=False)
    for sentence in kinds_in_words(terms):
        _item(console, sentence, 2)
    console.print("\nWhat no policy prevents", style="bold", markup=False)
    for sentence in NOT_PREVENTED:
        _item(console, f"- {sentence}", 2)


@app.command()
def approve(
    plan: PlanFile,
    kit: Annotated[Path, typer.Option(help="The site's start-up kit, with its policy in local/.")],
    by: Annotated[str, typer.Option(help="Name of the person who approves.")],
    expires: Annotated[
        str | None, typer.Option(help="Last day of the approval, as 2030-12-31.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Sign an approval of a plan with the kit's key, after showing the plan and the policy's verdict.

    A plan outside the policy is not approved (exit status 1). A policy that is changed later makes approvals void.
    """
    from fairflare.cli.plan import summary
    from fairflare.policy.approvals import sign_approval

    wanted, terms = read_plan(plan), read_policy(kit / "local")
    last = _day(expires)
    typer.echo(f"{wanted.name}, sha256 {wanted.sha256}")
    for line in summary(wanted):
        typer.echo(f"  {line}")
    terms.verify(wanted, approved={wanted.sha256})
    typer.echo("the plan is within the policy")
    if not yes:
        typer.confirm(f"Sign an approval of this plan as {by!r}?", abort=True)
    typer.echo(f"wrote {sign_approval(kit, wanted, by=by, expires=last, policy=terms)}")


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise PolicyError(
            "FF-POLICY-DAY",
            got="a text in --expires that is no day",
            expected="a day such as 2030-12-31",
            next_step="correct --expires",
        ) from None


@app.command()
def decisions(
    policy: PolicyFile,
    site: Annotated[
        str | None, typer.Option(help="The site, where a simulator's sites share the policy.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON on standard output.")] = False,
) -> None:
    """Show what a site decided about plans, oldest first, once the list's chain of hashes is checked.

    A list that was changed is an error (exit status 1), and in a kit one that ends earlier than this site wrote.
    Elsewhere lines that were cut off at its end are not noticed: compare the last line's hash with one noted elsewhere.
    """
    from fairflare.privacy.anchor import decisions_anchor
    from fairflare.privacy.decisions import read_history

    kit = (policy if policy.is_dir() else policy.parent).absolute().parent
    anchor = decisions_anchor(kit) if site is None and (kit / "startup" / "client.crt").is_file() else None
    history = read_history(_decisions_file(read_policy(policy), site), anchor)
    if as_json:
        typer.echo(json.dumps({"format": DECISIONS_FORMAT, **asdict(history)}, indent=2))
        return
    _show(_console(), history)


def _decisions_file(policy: SitePolicy, site: str | None) -> Path:
    file = policy.decisions_file(site, None)
    below = sorted(one.parent.name for one in file.parent.glob(f"*/{file.name}")) if site is None else []
    if below and not file.exists():
        raise PolicyError(
            "FF-POLICY-SITE",
            got=f"a store of {len(below)} sites, and no --site",
            expected=f"one of {', '.join(below)}",
            next_step="add --site and the name of the site whose decisions are meant",
        )
    return file


def _show(console: Console, history: History) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not history.decisions:
        console.print("no decisions yet", markup=False)
    else:
        table = Table(box=SIMPLE_HEAD)
        for name in ("time", "at", "verdict", "plan", "sha256", "submitter", "job"):
            table.add_column(name, overflow="fold", no_wrap=name not in ("plan", "submitter"))
        for one in history.decisions:
            table.add_row(*map(Text, _row(one)))
        console.print(table)
        for one in history.decisions:
            for reason in one.reasons or (() if one.code is None else ("",)):
                _item(console, f"{_printable(_time(one))} {_printable(one.code)}: {_printable(reason)}", 2)
    if history.torn:
        console.print(f"torn lines, of a power loss while they were written: {history.torn}", markup=False)
    console.print(f"sha256 of the last line: {history.head}", markup=False, soft_wrap=True)


def _row(one: Decision) -> Iterator[str]:
    texts = (
        _time(one), one.depth, one.verdict, one.plan_name, (one.plan_sha256 or "")[:8], one.submitter, one.job[:8],
    )  # fmt: skip
    yield from map(_printable, texts)


def _time(one: Decision) -> str:
    return one.time.replace("+00:00", "Z")


def _printable(text: str | None) -> str:
    """Text that came from elsewhere, without anything that moves the cursor or hides what follows."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text or "")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    # Piped into a file or a mail: Rich would fall back to 80 columns.
    return console if console.is_terminal else Console(highlight=False, width=100)


def _item(console: Console, text: str, indent: int) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text), (0, 0, 0, indent), expand=False))
