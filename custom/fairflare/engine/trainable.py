# SPDX-License-Identifier: Apache-2.0
"""Whether a plan can be trained on a site's data, and what leaves the site if it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairflare.data.manifest import SiteData
from fairflare.engine.incoming import refused
from fairflare.errors import DataError
from fairflare.models import initial_vector, vector_sha256
from fairflare.models.vector import Vector
from fairflare.plan import FileStart, Plan


def load_trainable(plan: Plan, load: Callable[[], SiteData], note: Callable[[DataError], object] | None) -> SiteData:
    """A site's data, once they were looked at.

    ``note``: keeps at the site why they are refused; then the server is told no more than that they are.
    """
    try:
        data = load()
        if not plan.method.counts_only:
            verify_trainable(plan, data)
    except DataError as problem:
        if note is None:
            raise
        note(problem)
        raise refused_data() from None
    return data


def verify_start(plan: Plan, weights: Path | None, model: Vector) -> None:
    """In round 0, a plan that names a weight file starts from it. A resumed job's first model is not checked."""
    if isinstance(plan.start, FileStart) and vector_sha256(initial_vector(plan, weights)) != vector_sha256(model):
        raise refused("START", "another first model than the plan's weight file gives", "that model")


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
    if plan.differential_privacy is not None:
        return  # batches are drawn by chance, and a refusal would tell how many records there are
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
