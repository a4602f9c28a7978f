# SPDX-License-Identifier: Apache-2.0
"""What a method exchanges beside the update of the model, how often, and what its sums tell: in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fairflare.fairness.groups import HOSPITAL
from fairflare.plan import (
    FairFedParameters,
    FedNovaParameters,
    FlexFairParameters,
    Plan,
    ReweightingParameters,
    ScaffoldParameters,
)

_SECOND_SUM = "second_sum_of_updates"


def exchanged_words(plan: Plan) -> tuple[str, ...]:
    """What leaves a site beside its update, and how often; sentences without a full stop."""
    method = plan.method
    if method.counts_only:
        return ("records of each split, group and label, once; there is no update",)
    return tuple(_of_method(plan)) or ("nothing: what FedAvg sends",)


def _of_method(plan: Plan) -> Iterator[str]:
    method = plan.method
    if isinstance(method, ScaffoldParameters):
        yield (
            "every round, in the update's own sum: the change of the site's control variate (its mean gradient), as "
            "many numbers as the update has; the mean of all sites' controls comes down with the model"
        )
    elif isinstance(method, FedNovaParameters) and method.normalize:
        yield (
            "every round, in the update's own sum: one number, how far the site's steps lead beside those of a site "
            "of mean size; the update is divided by it"
        )
    elif isinstance(method, FairFedParameters) and method.compares_sites:
        groups = "" if method.attribute == HOSPITAL else f" by {method.attribute}"
        yield f"before every round: {_decisions(plan)} on training records{groups}, and of everybody, summed"
        yield "then one number: how far the site is from all; the sum of these is opened"
        yield "a weight of the update that only the site knows: it falls where a site is farther from all than others"
    elif isinstance(method, ReweightingParameters):
        labels = " and label" if method.balance == "independence" else ""
        yield f"once in a session: how many training records each group of {method.attribute}{labels} has"
    elif isinstance(method, FlexFairParameters):
        if plan.differential_privacy is None:
            yield "for each group that is compared: the sum of its losses or probabilities, and its records"
        else:
            yield "for each group that is compared: the sum of its losses, and its patients, both with noise"


def _decisions(plan: Plan) -> str:
    return "the Dice of images" if plan.task.kind == "segmentation" else "the model's decisions"


def server_words(plan: Plan) -> Iterator[str]:
    """What the server learns with masks beside the sum of updates, and would not with FedAvg: whole sentences."""
    method = plan.method
    if isinstance(method, ScaffoldParameters):
        yield "The mean change of the sites' control variates, in every round."
        if _SECOND_SUM in plan.consents:
            yield "Steps differ, so this is a second, different sum of the same updates: the hospitals agreed to it."
        else:
            yield "All sites make the same number of steps, so it follows from the mean update: it tells nothing new."
    elif isinstance(method, FedNovaParameters) and method.normalize:
        yield (
            "How far the sites' steps lead, in the mean: one number for each round. Steps of epochs follow from "
            "numbers of records, so with one hospital's help it can tell two others' numbers."
        )
    elif isinstance(method, FairFedParameters) and method.compares_sites:
        if not plan.protection.encrypted:
            yield (
                "Before every round: the model's decisions by group over all training records, and the sum of "
                "distances."
            )
        yield (
            "How the sum of the sites' own weights moves. A weight falls where a site differs from all, and stays "
            f"between {method.min_weight or 0:g} and {_most(method)} times the site's share of the records."
        )
        yield (
            "A server that lies and shows a model twice gets two sums of nearly the same updates, with other weights: "
            "the hospitals agreed to it."
        )
    elif isinstance(method, ReweightingParameters) and not plan.protection.encrypted:
        yield "How many training records of all sites together each group has, once in a session."


@dataclass(frozen=True)
class Trust:
    """What encrypted statistics change, and for whom: a sentence each on server, hospitals, and what is left open."""

    server: str
    hospitals: str
    not_protected: str


#: Said wherever a plan's statistics are 'ckks'.
TRUST: Final = Trust(
    "Not the group sums of training records (nor distances): they travel encrypted and the server has no key. What it "
    "opens of validation and test records by group it still sees.",
    "One secret key, the same at every hospital, decrypts every hospital's ciphertext. What it finds are masked words, "
    "random as long as the masks hold: the key keeps totals from the server, the masks keep hospitals from each other.",
    "The shared key: the server together with any one hospital, or with whoever made the key, gets the totals of "
    "training groups, as if there were masks only.",
)


def _most(method: FairFedParameters) -> str:
    return "any number of" if method.max_weight is None else f"{method.max_weight:g}"
