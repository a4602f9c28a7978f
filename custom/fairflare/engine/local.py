# SPDX-License-Identifier: Apache-2.0
"""Drives the same sites and the same server as FLARE does, in one process: for property tests and studies."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

import fairflare
from fairflare.data.manifest import SiteData
from fairflare.engine.failures import note_failure
from fairflare.engine.masked_site import Masks
from fairflare.engine.messages import Message, Reply
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.server import Coordinator, Phase, Start
from fairflare.engine.site import Site
from fairflare.he.ckks import SiteCipher, make_contexts
from fairflare.he.context import Files
from fairflare.he.parameters import FLARE, Record
from fairflare.plan import Plan
from fairflare.privacy.ledger import Account, Ledger
from fairflare.privacy.loss import Budget
from fairflare.privacy.reveals import RevealMemory
from fairflare.record import RunRecord
from fairflare.secagg.identity import DEVELOPMENT, Identity, Trust, development_identity

Loader = Callable[[], SiteData]
#: Puts the sites that a message goes to in the order in which their replies arrive.
Order = Callable[[Message, Sequence[str]], Sequence[str]]


def software() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"fairflare": fairflare.__version__, "torch": torch.__version__, "python": platform.python_version()}


def run_local(
    plan: Plan,
    loaders: Mapping[str, Loader],
    folder: Path,
    *,
    weights: Path | None = None,
    order: Order = lambda _, sites: sites,
    watch: Callable[[Coordinator], None] = lambda _: None,
    budget: Budget | None = None,
) -> RunRecord:
    """Run a whole job in this process.

    Parameters
    ----------
    plan
        The job's plan.
    loaders
        Site name -> what loads its records.
    folder
        Gets the run's record, model and progress, and a folder ``sites/NAME`` per site.
    weights
        Folder of weight files, for a plan that starts from one.
    order
        Order of arrival; by default the roster's.
    watch
        Called once with the coordinator after every phase.
    budget
        What each site allows for its data in this run, if the plan spends any; ``None``: no limit.

    Returns
    -------
    RunRecord
        Also when the run stopped early: look at its ``status``.
    """

    def account_of(name: str) -> Account | None:
        return local_account(plan, folder / "sites" / name, budget)

    sites = {
        name: site_of(name, plan, load, folder / "sites" / name, weights, local_masks(plan, name), account_of(name))
        for name, load in loaders.items()
    }
    start = Start(secrets.token_hex(16), "local", software(), weights=weights, cipher=local_record(plan))
    coordinator = coordinator_of(plan, folder, start)
    for phase in coordinator.phases(sorted(sites)):
        for name in order(phase.message, phase.targets):
            answer(sites[name], phase)
        watch(coordinator)
    return coordinator.record


def local_masks(plan: Plan, name: str) -> Masks | None:
    """Masks of a site that this process plays: nobody vouches for it, and it remembers nothing afterwards."""
    if not plan.protection.masked:
        return None
    opener = local_cipher() if plan.protection.encrypted else None
    return Masks(_identity(name), Trust(DEVELOPMENT, None, {}), RevealMemory.volatile(), opener=opener)


def local_account(plan: Plan, folder: Path, budget: Budget | None = None) -> Account | None:
    """What pays at a site that this process plays: a ledger of this run alone, in the site's folder."""
    if plan.differential_privacy is None:
        return None
    return Account(Ledger(folder / "ledger.sqlite"), budget, "local")


def local_record(plan: Plan) -> Record | None:
    """What the server knows of :func:`local_cipher`, for a plan that needs it: no key."""
    return local_cipher().record if plan.protection.encrypted else None


@cache
def local_cipher() -> SiteCipher:
    """The cipher of all sites that this process plays: one key, made here and never written down."""
    contexts = make_contexts(FLARE)
    return SiteCipher(Files(contexts.client, contexts.record))


@cache
def _identity(name: str) -> Identity:
    # Making an RSA key takes a tenth of a second, and a study plays the same sites again and again.
    return development_identity(name)


def answer(site: Site, phase: Phase) -> None:
    """Let one site answer a phase; a refusal, on either side, is noted by its code."""
    try:
        release = site.handle(phase.message)
        release.verify_sealed()
        reply = Reply(
            release.task, release.round, release.step, phase.message.session, release.payloads, release.protocol
        )  # fmt: skip
        phase.collector.accept(site.name, reply)
    except Exception as problem:  # as in FLARE's executor: one site's failure is noted, the others go on
        phase.collector.refuse(site.name, note_failure(site.folder, phase.message.task, problem))
