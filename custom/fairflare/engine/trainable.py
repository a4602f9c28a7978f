# SPDX-License-Identifier: Apache-2.0
"""Whether a plan can be trained on a site's data, and what leaves the site if it cannot."""

from __future__ import annotations

from fairflare.data.manifest import SiteData
from fairflare.errors import DataError
from fairflare.plan import Plan


def verify_trainable(plan: Plan, data: SiteData) -> None:
    """Raise :class:`DataError` for too few training records."""
    batch = plan.training.batch
    if len(data.training) == 0:
        raise DataError(
            "FF-DATA-NO-TRAINING",
            got="no training record",
            expected="at least one",
            next_step="check the manifest's splits and the opt-out list",
        )
    if batch.unit == "batches_per_epoch" and len(data.training) < batch.amount:
        raise DataError(
            "FF-DATA-FEW",
            got=f"fewer training records than the {batch.amount} batches of an epoch",
            expected="at least one record per batch",
            next_step="lower training.batch.amount in the plan",
        )


def refused_data() -> DataError:
    """What a site of a masked job says instead.

    Which check its data fail, of a plan that somebody else wrote, would be an answer outside of all masks.
    """
    return DataError(
        "FF-DATA-REFUSED",
        got="data that this plan cannot use",
        expected="data that 'fairflare data check' finds nothing wrong with",
        next_step="the reason stands in this site's errors.log; it is told to nobody else",
    )
