# SPDX-License-Identifier: Apache-2.0
"""Who plays a plan's two halves: what trains, or what only counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairflare.data.manifest import SiteData
from fairflare.engine.feasibility import CountingCoordinator, CountingSite, MaskedCountingCoordinator
from fairflare.engine.masked_coordinator import MaskedCoordinator
from fairflare.engine.masked_site import Masks
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.plan import Plan
from fairflare.privacy.ledger import Account


def site_of(
    name: str,
    plan: Plan,
    load: Callable[[], SiteData],
    folder: Path,
    weights: Path | None,
    masks: Masks | None,
    account: Account | None = None,
) -> Site:
    """The site that a plan asks for; see :class:`~fairflare.engine.site.Site`.

    ``account``: what pays for the releases of a plan with differential privacy.
    """
    if plan.differential_privacy is not None:
        # Opacus takes a second to import, and sets up the root logger of a process that has none.
        from fairflare.engine.private_site import PrivateSite

        return PrivateSite(name, plan, load, folder, weights, masks, account)
    return (CountingSite if plan.method.counts_only else Site)(name, plan, load, folder, weights, masks)


def coordinator_of(plan: Plan, folder: Path, start: Start) -> Coordinator:
    """The coordinator that a plan asks for."""
    masked = plan.protection.masked
    if plan.method.counts_only:
        return (MaskedCountingCoordinator if masked else CountingCoordinator)(plan, folder, start)
    return (MaskedCoordinator if masked else Coordinator)(plan, folder, start)
