# SPDX-License-Identifier: Apache-2.0
"""A plan's differential privacy in sentences: what it covers, with how much noise, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

from fairflare.plan import GroupNoise, Plan

#: What noise of this version never covers.
NOT_COVERED = "Sums of validation and test records are exact: masks and the smallest cell alone protect them"
#: Of a record: what a reader must know beside its numbers.
COVERED_NOTICE = (
    "differential privacy covers patients of the training split only: sums of validation and test records are exact"
)


def privacy_words(plan: Plan) -> Iterator[str]:
    """How a plan's training is private: sentences without a full stop; nothing for a plan without."""
    privacy = plan.differential_privacy
    if privacy is None:
        return
    yield "It is about patients of the training split, at each site for itself"
    yield (
        f"Each record's gradient is cut off at an L2 norm of {privacy.clip:g}; noise in the sum of each batch, "
        f"{privacy.noise_multiplier:g} times what a patient may change in it"
    )
    records = "one record" if privacy.records_per_unit == 1 else f"{privacy.records_per_unit} records"
    yield f"A batch holds at most {records} of a patient, and whoever is in it is drawn by chance"
    yield f"The number of a site's training patients is told with noise of {privacy.count_noise:g}; losses are not told"
    if privacy.groups is not None:
        yield from _of_groups(plan, privacy.groups)
    yield NOT_COVERED
    if plan.training.batch.unit == "batches_per_epoch":
        yield "What it costs is the same at every site; each site's own ledger adds it up over all plans"
    else:
        yield "What it costs depends on a site's number of patients: each site's own ledger adds it up over all plans"


def _of_groups(plan: Plan, groups: GroupNoise) -> Iterator[str]:
    many = "one group" if groups.groups_per_unit == 1 else f"{groups.groups_per_unit} groups"
    yield (
        f"Group sums have noise of {groups.noise_multiplier:g} times what a patient may change, who counts in at most "
        f"{many} of an attribute"
    )
    if groups.shared:
        yield shared_words(plan)


def shared_words(plan: Plan) -> str:
    """What it means that hospitals add the noise of group sums together; a sentence without a full stop."""
    masking, least = plan.protection.masking, plan.federation.min_sites
    colluders = 0 if masking is None else masking.colluders
    sharing = max(least - colluders, 1)
    text = (
        f"Hospitals add the noise of group sums together: it protects a patient only as long as at most {colluders} of "
        "them tell the server their parts"
    )
    if sharing == 1:
        return f"{text}; of {least} sites it is no less noise than with each site's own"
    return f"{text}; of {least} sites each adds 1/{sharing} of the variance"


__all__ = ["COVERED_NOTICE", "NOT_COVERED", "privacy_words", "shared_words"]
