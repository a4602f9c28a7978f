# SPDX-License-Identifier: Apache-2.0
"""Policies to start from: open for public data, standard for patients' data, strict where each plan is signed for.

Whatever strict allows, standard allows (with the same approvals); whatever standard allows, open allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from fairflare.plan import Consent
from fairflare.policy.kinds import KINDS
from fairflare.policy.site import POLICY_FORMAT, LeastProtection, SitePolicy, utc_today

_STRICT_DAYS = 365
#: All kinds but the sums of single batches, which protect nobody.
_USUAL = tuple(kind for kind in KINDS if kind != "step_risks")


def open_policy(store: Path, *, identities: Literal["kit", "development"] = "development") -> SitePolicy:
    """A policy for public data: no more than the plan asks for."""
    return _policy(store, identities=identities)


def standard_policy(store: Path) -> SitePolicy:
    """A policy for patients' data: masks, start-up kits, cells of at least 11 records and three sites, one cohort.

    It approves no plan yet.
    """
    return _policy(store, **_standard())


def strict_policy(
    store: Path,
    *,
    package: str | None = None,
    peers: Mapping[str, str] | None = None,
    data_sets: Sequence[str] = (),
    attributes: Sequence[str] = (),
    features: Sequence[str] = (),
    today: date | None = None,
) -> SitePolicy:
    """A policy under which only a plan with a signed approval runs, with named hospitals, for a year.

    Until the owner has named data sets nothing runs. ``fairflare policy new`` makes none without ``peers``: the
    template's point is that the project's root is not believed alone. It writes the installed package's digest as
    ``package``.
    """
    last = (today or utc_today()) + timedelta(days=_STRICT_DAYS)
    return _policy(
        store, **{
            **_standard(), "package": package, "peers": None if peers is None else dict(peers), "least_sites": 4,
            "cells_sites": 4, "data_sets": tuple(data_sets), "attributes": tuple(attributes),
            "features": tuple(features), "most_score_bins": 200, "most_rounds": 200, "approvals": "signed",
            "expires": last.isoformat(),
        },
    )  # fmt: skip


def _standard() -> dict[str, Any]:
    return {
        "identities": "kit", "least_sites": 3, "protection": LeastProtection(update="masked", statistics="masked"),
        "colluders": 1, "weight_unit": 10, "cells_minimum": 11, "cells_sites": 3, "cohort_changes": 0,
        "metrics": _USUAL, "most_score_bins": 1000, "most_rounds": 1000, "plans": (), "consents": (),
    }  # fmt: skip


def _policy(store: Path, **changes: Any) -> SitePolicy:
    """The open policy, with changes."""
    fields: dict[str, Any] = {
        "format": POLICY_FORMAT, "store": str(store), "package": None, "identities": "development", "peers": None,
        "least_sites": 1, "tasks": None, "data_sets": None, "models": None, "methods": None, "attributes": None,
        "features": None, "protection": LeastProtection(update="none", statistics="none"), "colluders": 0,
        "weight_unit": 1, "cells_minimum": 0, "cells_sites": 1, "cohort_changes": 1_000_000, "metrics": None,
        "most_score_bins": None, "most_rounds": None, "differential_privacy": None, "plans": None,
        "approvals": "listed", "consents": get_args(Consent), "expires": None,
    }  # fmt: skip
    return SitePolicy.model_validate({**fields, **changes})
