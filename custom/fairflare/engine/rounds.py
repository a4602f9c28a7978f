# SPDX-License-Identifier: Apache-2.0
"""What server, sites and verification must decide alike about a round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from fairflare.fairness.groups import HOSPITAL, CellSums, Measure, Sums
from fairflare.plan import Plan
from fairflare.plan.rules import fewest_hospitals
from fairflare.privacy.release import MARGIN
from fairflare.record import Session


def is_measured(plan: Plan, session: Session, number: int) -> bool:
    """Whether a round begins with an exchange of statistics; a session's first one does, unless they always lag."""
    method = plan.method
    return not method.lagged and (number - session.first_round) % method.measured_every == 0


def kept_totals(plan: Plan, totals: Mapping[Measure, Sums]) -> dict[Measure, Sums]:
    """Zeros for groups that too few sites report, and for risks of too few hospitals."""
    # Hospitals with too few records are not in the sums, so there may be fewer than the plan asks for.
    hospitals = fewest_hospitals(plan)
    least = {measure: hospitals if measure.attribute == HOSPITAL else plan.cells.sites for measure in totals}
    return {measure: cleared(plan, one.keep(least[measure])) for measure, one in totals.items()}


def cleared(plan: Plan, sums: Sums) -> Sums:
    """Noised sums without groups that cannot be told from noise, and with risks that can be; others as they are.

    A group counts if a count of 0 would be noised to its count, or above, only once in a thousand times. All that is
    done here follows from numbers that are noised already.
    """
    privacy, masking = plan.differential_privacy, plan.protection.masking
    if privacy is None or privacy.groups is None or masking is None or not isinstance(sums, CellSums):
        return sums
    sites = sums.sites.max(initial=0.0)  # shared noise is told by all sites or by nobody
    parts = max(sites - masking.colluders, 1.0) if privacy.groups.shared else 1.0
    variance = privacy.groups.noise_multiplier**2 * privacy.groups.groups_per_unit * sums.sites / parts
    clear = sums.count > np.maximum(_CLEAR * np.sqrt(variance), 0.0)
    total = sums.total.clip(0.0, plan.method.clip * np.maximum(sums.count, 0.0))
    return CellSums(*(np.where(clear, part, 0.0) for part in (total, sums.count, sums.sites)))


_CLEAR: Final = MARGIN


def steps_of(plan: Plan, records: float) -> int:
    """Local steps of a round at a site with so many training records (which may be a mean)."""
    work, batch = plan.training.work, plan.training.batch
    if work.unit == "steps":
        return work.amount
    batches = batch.amount if batch.unit == "batches_per_epoch" else max(1, math.ceil(records / batch.amount))
    return work.amount * batches
