# SPDX-License-Identifier: Apache-2.0
"""What server, sites and verification must decide alike about a round."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fairflare.fairness.groups import HOSPITAL, Measure, Sums
from fairflare.plan import Plan
from fairflare.plan.rules import fewest_hospitals
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
    return {measure: one.keep(least[measure]) for measure, one in totals.items()}


def steps_of(plan: Plan, records: float) -> int:
    """Local steps of a round at a site with so many training records (which may be a mean)."""
    work, batch = plan.training.work, plan.training.batch
    if work.unit == "steps":
        return work.amount
    batches = batch.amount if batch.unit == "batches_per_epoch" else max(1, math.ceil(records / batch.amount))
    return work.amount * batches
