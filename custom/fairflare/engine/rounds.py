# SPDX-License-Identifier: Apache-2.0
"""What server, sites and verification must decide alike about a round."""

from __future__ import annotations

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
