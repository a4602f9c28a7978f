# SPDX-License-Identifier: Apache-2.0
"""``fairflare rehearse``: what a plan would do at this hospital, tried here, before anybody approves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.cli.files import verify_writable
from fairflare.cli.own import CERTIFICATE, CatalogPath, SiteName, kit_of, read_own_entry, write_private

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.plan import Plan
    from fairflare.policy import SitePolicy

#: What a job's process has loaded as well.
MODULES = ("fairflare.flare.executor",)


def rehearse(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    catalog: CatalogPath,
    site: SiteName = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="site_policy.json, or the kit's local/ folder that holds it.", show_default=False),
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option(
            help="Number of sites that would take part; by default the policy's peers, or the plan's min_sites.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Folder of weight files, for a plan that starts from one.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write one page to read or print, here.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write every fact to this JSON file.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only; times are scaled from them.")] = False,
) -> None:
    """Try a plan on this site's own data, offline, before it is approved; nothing of it leaves or is remembered.

    Says what policy and data have to say, how long the job takes here, how much memory it needs, exactly what would
    leave, and which groups are too small to. Exit status 0: it would run; 1: it would be refused, also for want of an
    approval.
    """
    # Imported here: torch would delay every other command.
    from rich.console import Console

    from fairflare.cli.plan import summary
    from fairflare.engine.rehearsal import Question
    from fairflare.engine.rehearsal import rehearse as rehearsed
    from fairflare.evaluation import render
    from fairflare.evaluation.rehearsal_page import to_html, to_json, to_terminal
    from fairflare.plan import read_plan
    from fairflare.policy import read_policy

    for file in (html, json):
        if file is not None:
            verify_writable(file)
    found_plan = read_plan(plan)
    terms = None if policy is None else read_policy(policy)
    name, entry = read_own_entry(catalog, site, found_plan.task.data_set)
    question = Question(
        plan=found_plan, summary=tuple(line.strip() for line in summary(found_plan)), site=name, entry=entry,
        weights=weights, policy=terms, approved=_approved(policy), workspace=kit_of(policy),
        sites=sites or _roster(found_plan, terms, name),
        quick=quick, modules=MODULES,
    )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=render.WIDTH)  # piped: Rich would fall back to 80 columns
    with _bar(console) as watch:
        found = rehearsed(question, watch)
    console.print(to_terminal(found))
    for file, text in ((html, to_html), (json, to_json)):
        if file is not None:
            write_private(file, text(found).encode())
            console.print(f"written: {file}", markup=False, soft_wrap=True)
    if found.refusals:
        raise typer.Exit(1)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What is done now and how much of it, on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("rehearsal: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


def _approved(policy: Path | None) -> frozenset[str]:
    """Plans with a signed approval beside the policy; only a kit can have signed one."""
    from fairflare.policy.approvals import approved_plans

    kit = kit_of(policy)
    if policy is None or kit is None:
        return frozenset()
    return approved_plans(kit / "local", (kit / CERTIFICATE).read_bytes())


def _roster(plan: Plan, policy: SitePolicy | None, site: str) -> int:
    """As many sites as the policy knows, and never fewer than the plan asks for."""
    from fairflare.cli.own import THIS_SITE

    known = set() if policy is None or policy.peers is None else set(policy.peers)
    if known and site != THIS_SITE:
        known.add(site)
    return max(len(known), plan.federation.min_sites)
