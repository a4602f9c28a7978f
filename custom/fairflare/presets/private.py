# SPDX-License-Identifier: Apache-2.0
"""Plans with differential privacy. Batches are a part of a site's patients, so nobody must know how many these are.

The noise of the shipped ones is the least with which a job keeps epsilon 8 at delta 1e-5, for one patient more or less,
by privacy loss distributions (``fairflare plan privacy``); a test counts it again.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fairflare.plan import Plan
from fairflare.presets.methods import Json, flexfair, penalty
from fairflare.presets.tasks import heart, plan_of, sgd, skin

#: The mechanism but for its noise: clip at 1, one image of a patient in a batch.
_USUAL: Final[Json] = {"clip": 1.0, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks"}
#: Bounds of fairness weights. The noise grows with the larger one: it hides whoever weighs most.
PRIVATE_BOUNDS: Final[Json] = {"min_weight": 0.5, "max_weight": 1.5, "utility_clip": 3.0}


def private(plan: Plan, noise: float, batches: int, groups: Json | None = None, **training: Any) -> Plan:
    """A plan's private form; ``groups``: noise of its group sums, if it has any.

    Parameters
    ----------
    noise
        Of a step, over what a patient may change.
    batches
        A patient is in a batch with the chance 1 / batches; an epoch has so many.
    """
    data = json.loads(plan.model_dump_json())
    data["differential_privacy"] = {**_USUAL, "noise_multiplier": noise, "groups": groups}
    return plan_of(data, {"batch": {"unit": "batches_per_epoch", "amount": batches}, **training})


def heart_private(name: str) -> Plan:
    """FlexFair between the sexes on heart disease; groups are measured every fifth round."""
    fair = flexfair(penalty("sex", "equal_accuracy", 1.0), **PRIVATE_BOUNDS)
    groups = {"noise_multiplier": 5.0, "groups_per_unit": 1, "shared": False}
    plan = heart(name, {**fair, "refresh": {"rounds": 5}})
    return private(plan, 1.167, 5, groups, rounds=10, optimizer=sgd(0.1, momentum=0.5))


def skin_private(name: str) -> Plan:
    """FedAvg on skin lesions, each of which is a unit, with a rate that little noise allows."""
    return private(skin(name, {"name": "fedavg"}), 0.83, 16, rounds=10)


__all__ = ["PRIVATE_BOUNDS", "heart_private", "private", "skin_private"]
