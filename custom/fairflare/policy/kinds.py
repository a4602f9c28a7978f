# SPDX-License-Identifier: Apache-2.0
"""Kinds of numbers that may leave a site: a short closed list, and which of them a plan asks for.

Each vector of a job (``engine.messages.layout_of``) is of one of these kinds, which a test compares. A plan's kinds
follow from the plan alone, so a policy is checked before any data is seen. What a method sends is asked of the method
itself; a part of the update that no kind is known for is refused, so that no method sends what no policy can forbid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args

from fairflare.errors import PolicyError
from fairflare.plan import Plan, method_of

Kind = Literal[
    "counts",
    "cells",
    "vocabulary",
    "model_update",
    "control_variate",
    "local_steps",
    "training_loss",
    "group_records",
    "group_risks",
    "hospital_risks",
    "site_distance",
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
    "control_variate": "the change of this site's control variate: its mean gradient of a round (SCAFFOLD)",
    "local_steps": "how far this site's training steps lead, beside those of a site of mean size (FedNova)",
    "training_loss": "sum of the training loss, and how many records were seen and weighed",
    "group_records": "training records of each patient group, and of each label in it (reweighting)",
    "group_risks": "of each patient group: its records, and the sum of losses, probabilities or decisions",
    "hospital_risks": "the mean loss or accuracy of this hospital as a whole, for comparing hospitals",
    "site_distance": "how far this site's fairness, or accuracy, is from that of all sites together (FairFed)",
    "step_risks": "group sums of every single batch (lock step, for public data)",
    "evaluation_sums": "of each group: counts, losses, and histograms of scores on validation and test data",
    "prediction_counts": "images in which a structure is found nowhere, or everywhere",
}

#: What each kind is in a plan with differential privacy, where it is not as above. What is not here either is exact, or
#: is sent by methods that cannot be had with it.
WITH_PRIVACY: Final[Mapping[Kind, str]] = {
    "counts": "the number of training patients with noise, and how many opted out not at all; the rest exact",
    "cells": "of training decided by noised numbers of patients; of validation and test exact",
    "model_update": "by steps on cut-off gradients with noise",
    "training_loss": "does not leave",
    "group_risks": "patients and cut-off losses, both with noise",
    "evaluation_sums": "exact: no noise covers validation and test records",
    "prediction_counts": "exact: no noise covers validation and test records",
}
#: Kinds that hold exact numbers of validation and test records, under differential privacy too.
_UNCOVERED: Final = ("counts", "cells", "evaluation_sums", "prediction_counts")

#: ``hospital``: the site itself as a group (``fairness.groups.HOSPITAL``).
_HOSPITAL: Final = "hospital"
#: Further parts of an update (``Method.parts``), by label.
_PARTS: Final[Mapping[str, Kind]] = {"controls": "control_variate", "normalizer": "local_steps"}
#: Any number of parameters: which parts there are does not depend on it.
_ANY: Final = 1


def kinds_of(plan: Plan) -> tuple[Kind, ...]:
    """The kinds of numbers that leave a site in a job of ``plan``, in the order of :data:`KINDS`.

    Raises
    ------
    PolicyError
        ``FF-POLICY-KIND`` for a method of this version that sends what no kind is known for.
    """
    found: set[Kind] = {"counts"}
    if plan.method.counts_only:
        found |= {"cells", "vocabulary"}
    else:
        found |= {"model_update", "evaluation_sums", *_of_method(plan)}
        if plan.differential_privacy is None:
            found.add("training_loss")
        if _asks_for_cells(plan):
            found.add("cells")
        if plan.task.kind == "segmentation":
            found.add("prediction_counts")
    return tuple(kind for kind in KINDS if kind in found)


def exact_kinds(plan: Plan) -> tuple[Kind, ...]:
    """The kinds of numbers of ``plan`` that no noise covers, or not in every part; raises as :func:`kinds_of` does."""
    found = kinds_of(plan)
    return found if plan.differential_privacy is None else tuple(kind for kind in found if kind in _UNCOVERED)


def _asks_for_cells(plan: Plan) -> bool:
    """Whether there is anything to decide about groups (``engine.cells.CellRule``), which is done under masks only."""
    hospitals = any(measure.attribute == _HOSPITAL for measure in method_of(plan).measures())
    return plan.protection.masked and (plan.cells.minimum > 1 or plan.cells.sites > 1 or hospitals)


def _of_method(plan: Plan) -> Iterator[Kind]:
    method = method_of(plan)
    for label in method.parts(_ANY):
        yield _kind_of_part(label)
    measures = method.measures()
    for measure in measures:
        if measure.utility == "presence":
            yield "group_records"
        elif plan.method.compares_hospitals and measure.attribute not in plan.sizes:
            yield "hospital_risks"  # of the hospital, or of everybody in it
        else:
            yield "group_risks"
    if measures and plan.method.lock_step:
        yield "step_risks"
    if plan.method.compares_sites:
        yield "site_distance"


def _kind_of_part(label: str) -> Kind:
    if label not in _PARTS:
        raise PolicyError(
            "FF-POLICY-KIND",
            got=f"a method that sends '{label}', of which no policy can say whether it may leave",
            expected="methods whose parts have a kind",
            next_step="give the part a kind of its own in fairflare/policy/kinds.py",
        )
    return _PARTS[label]
