# SPDX-License-Identifier: Apache-2.0
"""Methods as a plan says them, each in two forms: ``paper``, and ``official``: what the FlexFair authors' code does.

The authors' public code has every method that they compare with in a version of its own. ``official`` has what these
versions compute, defects included (algorithms sections 3 to 9):

* FedProx: as the paper.
* SCAFFOLD: the correction is added after the optimiser's step, whatever the optimiser is; and a new control is divided
  by a rate of the grid (0.9 on skin images) instead of the optimiser's own, so the two scales disagree.
* FedNova: its model is overwritten by the plain average before it is used. It is FedAvg, for every rho.
* FairFed: the gap is the largest distance of a group from everybody; the first aggregation is FedAvg's; no bound on
  weights, so no masks.
* Fair mixup: along x_t - x0, which shrinks the derivative by 1 - t; the sum of a sigmoid of both outputs, not the
  positive one; and one regulariser for all labels, also where equal opportunity is wanted.
* FlexFair: label strata, mean over groups, no factor n / n_s, statistics of each batch in lock step.

Not copied from any of them: choices on test data (also FairFed's fairness values, which come from it), warm starts from
another method's model, crashes, a sigmoid in front of the cross-entropy, controls that begin as network weights (their
difference begins at 0 all the same) and are averaged uniformly beside a weighted model, corrections of running means
(no network here has any), weights of FairFed that are carried over normalised, and images of several hospitals in one
batch of fair mixup, which no federation has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Json = dict[str, Any]
Preset = Literal["paper", "official"]
Name = Literal["fedavg", "fedprox", "scaffold", "fednova", "fairfed", "fairmixup", "reweighting"]

FEDAVG: Json = {"name": "fedavg"}
#: Bounds of the shipped jobs: no record counts less than nothing, or more than eight times, and outliers are cut off.
BOUNDS: Json = {"min_weight": 0.0, "max_weight": 8.0, "utility_clip": 10.0}
#: Bounds of FairFed's weights in the shipped jobs; under masks there must be some.
SITE_BOUNDS: Json = {"min_weight": 0.5, "max_weight": 2.0}

_PAPER: Mapping[str, Json] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "scaffold": {"global_lr": 1.0, "correction": "gradient", "control_lr": None, "control_clip": 16.0},
    "fednova": {"normalize": True},
    "fairfed": {
        "beta": 0.1, "attribute": "sex", "criterion": "equal_opportunity", "gap": "difference",
        "first_round": "corrected", "min_weight": None, "max_weight": None,
    },
    "fairmixup": {
        "attribute": "sex", "criterion": "equal_opportunity", "strength": 1.0, "direction": "difference",
        "output": "probability",
    },
    "reweighting": {"attribute": "sex", "balance": "groups", "max_weight": None},
}  # fmt: skip
#: What is different in the authors' code; reweighting is not in it.
_OFFICIAL: Mapping[str, Json] = {
    "fedavg": {},
    "fedprox": {"mu": 0.001},
    "scaffold": {"correction": "after_step", "control_lr": 0.9},
    "fednova": {"normalize": False},
    "fairfed": {"beta": 0.2, "gap": "one_vs_overall", "first_round": "plain"},
    "fairmixup": {"criterion": "demographic_parity", "direction": "to_mixed", "output": "sum"},
}


def method(name: Name, preset: Preset = "paper", **changes: Any) -> Json:
    """A method's part of a plan; see the module for what ``official`` is. FlexFair has :func:`flexfair`.

    Parameters
    ----------
    name, preset
        Which method in which form; ``KeyError`` for the official form of reweighting: there is none.
    changes
        Parameters that come last, whatever the preset says.
    """
    official = _OFFICIAL[name] if preset == "official" else {}
    return {"name": name, **_PAPER[name], **official, **changes}


def penalty(attribute: str, criterion: str, strength: float, **changes: Any) -> Json:
    """A penalty as the paper has it (cross-entropy utility, w_k = n_k / n, sum over groups), with changes."""
    return {
        "attribute": attribute, "criterion": criterion, "utility": "cross_entropy", "weights": "records",
        "reduction": "sum", "form": "paper", "strength": strength, **changes,
    }  # fmt: skip


def flexfair(*penalties: Json, preset: Preset = "paper", **changes: Any) -> Json:
    """FlexFair's part of a plan.

    ``official`` turns each penalty into the authors' form: their "demographic parity" is a gap of losses within each
    label, which is equalized odds here; the mean over groups; statistics of each batch in lock step.
    """
    made = {
        "name": "flexfair", "penalties": list(penalties), "refresh": "round", "remeasure_own": None, "scaling": "joint",
        "min_weight": None, "max_weight": None, "utility_clip": None,
    }  # fmt: skip
    if preset == "official":
        renamed = {"demographic_parity": "equalized_odds"}
        made["penalties"] = [
            {**one, "criterion": renamed.get(one["criterion"], one["criterion"]), "reduction": "mean"}
            for one in penalties
        ]
        made.update(refresh="step", scaling="official")
    return {**made, **changes}
