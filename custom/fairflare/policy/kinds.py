# SPDX-License-Identifier: Apache-2.0
"""Kinds of numbers that may leave a site: a short closed list, and which of them a plan asks for.

Each vector of a job (``engine.messages.layout_of``) is of one of these kinds, which a test compares. A plan's kinds
follow from the plan alone, so a policy is checked before any data is seen.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from fairflare.plan import Plan

Kind = Literal[
    "counts",
    "cells",
    "vocabulary",
    "model_update",
    "training_loss",
    "group_risks",
    "hospital_risks",
    "step_risks",
    "evaluation_sums",
    "prediction_counts",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

#: What each kind is, for a person who must decide on it.
MEANINGS: Final[dict[Kind, str]] = {
    "counts": "how many records there are for training, validation and test, and how many opted out",
    "cells": "for each group, whether there are enough records of it to be counted (yes or no)",
    "vocabulary": "records of each split, group and label, in a job that only counts",
    "model_update": "the change of the model's parameters by training here",
    "training_loss": "sum of the training loss, and how many records were seen and weighed",
    "group_risks": "sum of losses or probabilities of each patient group, and its records",
    "hospital_risks": "the mean loss of this hospital as a whole, for comparing hospitals",
    "step_risks": "group sums of every single batch (lock step, for public data)",
    "evaluation_sums": "of each group: counts, losses, and histograms of scores on validation and test data",
    "prediction_counts": "images in which a structure is found nowhere, or everywhere",
}

#: ``hospital``: the site itself as a group (``fairness.groups.HOSPITAL``).
_HOSPITAL: Final = "hospital"


def kinds_of(plan: Plan) -> tuple[Kind, ...]:
    """The kinds of numbers that leave a site in a job of ``plan``, in the order of :data:`KINDS`."""
    found: set[Kind] = {"counts"}
    if plan.method.counts_only:
        found |= {"cells", "vocabulary"}
    else:
        found |= {"model_update", "training_loss", "evaluation_sums", *_risks(plan)}
        if _asks_for_cells(plan):
            found.add("cells")
        if plan.task.kind == "segmentation":
            found.add("prediction_counts")
    return tuple(kind for kind in KINDS if kind in found)


def _asks_for_cells(plan: Plan) -> bool:
    """Whether there is anything to decide about groups (``engine.cells.CellRule``), which is done under masks only."""
    rule = plan.cells.minimum > 1 or plan.cells.sites > 1 or plan.method.compares_hospitals is not None
    return plan.protection.masked and rule


def _risks(plan: Plan) -> set[Kind]:
    compared = {penalty.attribute for penalty in getattr(plan.method, "penalties", ())}
    found: set[Kind] = set()
    if _HOSPITAL in compared:
        found.add("hospital_risks")
    if compared - {_HOSPITAL}:
        found.add("group_risks")
    if compared and plan.method.lock_step:
        found.add("step_risks")
    return found
