# SPDX-License-Identifier: Apache-2.0
"""Plans that are weaker than a policy in one field, for every field that a plan is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairflare.plan import Plan
from fairflare.policy import LeastProtection, SitePolicy, kinds_of, open_policy
from fairflare.policy.site import MostPrivacyLoss


@dataclass(frozen=True)
class WeakerPlan:
    """What to change in the terms so that the good plan is outside of them, and the violation's field.

    The plan stays the same in every case: what a policy asks for more is what the plan has less.
    """

    terms: Mapping[str, Any] = field(default_factory=dict)
    field: str = ""
    code: str = "FF-POLICY-REFUSED"


def terms(store: Path, plan: Plan, **changes: Any) -> SitePolicy:
    """A hospital's policy that fits ``plan`` without any room, with ``changes``; approves any plan that fits."""
    masking = plan.protection.masking
    bounds: dict[str, Any] = {
        "least_sites": plan.federation.min_sites,
        "tasks": (plan.task.kind,),
        "data_sets": (plan.task.data_set,),
        "models": (plan.model.name,),
        "methods": (plan.method.name,),
        "attributes": tuple(one.name for one in plan.attributes),
        "features": tuple(one.name for one in getattr(plan.task.input, "features", ())),
        "protection": LeastProtection(update=plan.protection.update, statistics=plan.protection.statistics),
        "colluders": 0 if masking is None else masking.colluders,
        "weight_unit": 1 if masking is None else masking.weight_unit,
        "cells_minimum": plan.cells.minimum,
        "cells_sites": plan.cells.sites,
        "cohort_changes": 0,
        "metrics": kinds_of(plan),
        "most_score_bins": plan.evaluation.score_bins,
        "most_rounds": plan.training.rounds,
        "consents": plan.consents,
    }
    whole = open_policy(store, identities="kit").model_dump() | bounds | changes
    return SitePolicy.model_validate(whole)


WEAKER: dict[str, WeakerPlan] = {
    "task": WeakerPlan({"tasks": ("segmentation",)}, "task.kind"),
    "data set": WeakerPlan({"data_sets": ("another",)}, "task.data_set"),
    "network": WeakerPlan({"models": ("unet",)}, "model.name"),
    "method": WeakerPlan({"methods": ("fedavg",)}, "method.name"),
    "attribute": WeakerPlan({"attributes": ("age",)}, "attributes"),
    "feature": WeakerPlan({"features": ("age_years",)}, "task.input.features"),
    "kind of numbers": WeakerPlan({"metrics": ("counts",)}, "metrics"),
    "fewest sites": WeakerPlan({"least_sites": 4}, "federation.min_sites"),
    "smallest cell": WeakerPlan({"cells_minimum": 11}, "cells.minimum"),
    "sites of a cell": WeakerPlan({"cells_sites": 3}, "cells.sites"),
    "colluders": WeakerPlan({"colluders": 2}, "protection.masking.colluders"),
    "unit of weights": WeakerPlan({"weight_unit": 100}, "protection.masking.weight_unit"),
    "bins": WeakerPlan({"most_score_bins": 100}, "evaluation.score_bins"),
    "rounds": WeakerPlan({"most_rounds": 19}, "training.rounds"),
    "privacy loss": WeakerPlan(
        {"differential_privacy": MostPrivacyLoss(epsilon=1.0, delta=1e-6, relation="add_remove")},
        "differential_privacy",
    ),
    "hash that is not listed": WeakerPlan({"plans": ("0" * 64,)}, "plans"),
    "no hash at all": WeakerPlan({"plans": ()}, "plans"),
    "no signed approval": WeakerPlan({"plans": (), "approvals": "signed"}, "plans"),
    "day that is over": WeakerPlan({"expires": "2020-01-31"}, "expires", "FF-POLICY-EXPIRED"),
}
