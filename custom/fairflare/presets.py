# SPDX-License-Identifier: Apache-2.0
"""The plans of the jobs that FairFlare ships, and the building blocks for new ones.

``jobs/`` is generated from here (``fairflare jobs write``) and a test compares the two. Two presets of FlexFair:
``paper`` is the article's penalty, exact across sites, without bounds; ``official`` is the penalty of the authors'
public code (label strata, mean over groups, no factor n / n_s, statistics of each batch in lock step; algorithms
section 8.2). Not copied: their sigmoid in front of the cross-entropy (8.3, no. 7), their warm start, their choices on
test data. The shipped jobs bound weights and utility, since large strengths on small groups can drive a model to a
constant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fairflare.plan import Plan, parse_plan

Json = dict[str, Any]
Preset = Literal["paper", "official"]

#: UCI heart disease: feature, centre, scale. Constants of clinical scales, not of anybody's data.
_HEART_FEATURES = (
    ("age_years", 55, 10), ("sex_male", 0.5, 0.5), ("cp", 2.5, 1.5), ("trestbps", 130, 20), ("chol", 240, 60),
    ("fbs", 0.5, 0.5), ("restecg", 1, 1), ("thalach", 140, 25), ("exang", 0.5, 0.5), ("oldpeak", 1, 1.2),
    ("slope", 2, 1), ("ca", 1, 1), ("thal", 5, 2),
)  # fmt: skip

AGE: Json = {"name": "age", "values": ["lt60", "ge60"], "edges": [60.0]}
SEX: Json = {"name": "sex", "values": ["female", "male"], "edges": None}
SOURCE: Json = {
    "name": "source",
    "values": ["rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"],
    "edges": None,
}


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
    method = {
        "name": "flexfair", "penalties": list(penalties), "refresh": "round", "remeasure_own": None, "scaling": "joint",
        "min_weight": None, "max_weight": None, "utility_clip": None,
    }  # fmt: skip
    if preset == "official":
        renamed = {"demographic_parity": "equalized_odds"}
        method["penalties"] = [
            {**one, "criterion": renamed.get(one["criterion"], one["criterion"]), "reduction": "mean"}
            for one in penalties
        ]
        method.update(refresh="step", scaling="official")
    return {**method, **changes}


#: The server sees sums only; one of four hospitals may drop out, and one may collude with the server. No parameter of
#: the shipped jobs moves by more than 16 in a round.
MASKED: Json = {
    "update": "masked",
    "statistics": "masked",
    "masking": {
        "colluders": 1, "clip": 16.0, "norm_clip": None, "weight_unit": 10, "max_stale": 2, "when_stale": "no_penalty",
    },
}  # fmt: skip
#: The server sees everything: for lock step, and for studies on public data.
UNPROTECTED: Json = {"update": "none", "statistics": "none", "masking": None}
#: Bounds of the shipped jobs: no record counts less than nothing, or more than eight times, and outliers are cut off.
BOUNDS: Json = {"min_weight": 0.0, "max_weight": 8.0, "utility_clip": 10.0}
FEDAVG: Json = {"name": "fedavg"}


def _common(name: str, rounds: int, batch: int, optimizer: Json, method: Json, seed: int) -> Json:
    return {
        "format": "fairflare/plan/1",
        "name": name,
        "intersections": [],
        "cells": {"minimum": 0, "sites": 1},
        "start": {"kind": "seed"},
        "training": {
            "rounds": rounds,
            "work": {"unit": "epochs", "amount": 1},
            "batch": {"unit": "records", "amount": batch},
            "optimizer": optimizer,
            "class_weights": [1.0, 1.0],
            "aggregation": "records",
            "seed": seed,
        },
        "method": method,
        "protection": MASKED,
        "differential_privacy": None,
        "consents": [],
        "federation": {"min_sites": 3, "task_timeout_seconds": 600.0, "max_missed": 2},
        "evaluation": {"score_bins": 200, "threshold": "validation_balanced_accuracy"},
    }


def _adamw(lr: float) -> Json:
    return {
        "name": "adamw", "lr": lr, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-2, "state": "keep",
    }  # fmt: skip


def heart(name: str, method: Json, seed: int = 0) -> Plan:
    """Heart disease from a table of 13 measurements; four hospitals; attributes sex and age."""
    features = [{"name": name, "center": center, "scale": scale} for name, center, scale in _HEART_FEATURES]
    optimizer = {
        "name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "state": "keep",
    }  # fmt: skip
    return _plan(
        {
            **_common(name, 20, 16, optimizer, method, seed),
            "task": {
                "kind": "classification",
                "data_set": "heart",
                "labels": ["absent", "present"],
                "input": {"kind": "table", "features": features},
            },
            "attributes": [SEX, AGE],
            "model": {"name": "mlp", "hidden": [32, 16]},
        }
    )


def skin(name: str, method: Json, seed: int = 0) -> Plan:
    """Malignant or benign from a dermoscopic image; four sources as sites; attributes age, sex and source."""
    plan = {
        **_common(name, 24, 32, _adamw(2e-4), method, seed),
        "task": {
            "kind": "classification",
            "data_set": "skin",
            "labels": ["benign", "malignant"],
            "input": {
                "kind": "image", "channels": 3, "height": 48, "width": 64, "mean": [0.76, 0.55, 0.57],
                "std": [0.14, 0.15, 0.17], "augmentation": "flips",
            },
        },
        "attributes": [AGE, SEX, SOURCE],
        "model": {"name": "cnn", "widths": [16, 32, 64, 128]},
    }  # fmt: skip
    # 81 % of the images are benign: without weights a small network says "benign" to everything.
    plan["training"]["class_weights"] = [1.0, 3.0]
    return _plan(plan)


def fundus(name: str, method: Json, seed: int = 0) -> Plan:
    """Retinal vessels in fundus images; three public data sets as hospitals, which are the only groups."""
    plan = {
        **_common(name, 25, 4, _adamw(2e-3), method, seed),
        "task": {
            "kind": "segmentation",
            "data_set": "fundus",
            "labels": ["background", "vessel"],
            "mask_values": [0, 255],
            "input": {
                "kind": "image", "channels": 3, "height": 192, "width": 192, "mean": [0.5, 0.3, 0.2],
                "std": [0.3, 0.2, 0.15], "augmentation": "flips",
            },
        },
        "attributes": [],
        "model": {"name": "unet", "widths": [16, 32, 64, 128]},
        # With three hospitals each learns the sum of the two others' risks; this says that they agree to it.
        "consents": ["pair_sums_of_three_hospitals"] if method["name"] == "flexfair" else [],
    }  # fmt: skip
    plan["evaluation"]["threshold"] = "half"
    # Ten records more or less are a great deal here; these are public images.
    plan["protection"] = {**MASKED, "masking": {**MASKED["masking"], "weight_unit": 1}}
    return _plan(plan)


def shapes(name: str, method: Json, seed: int = 0) -> Plan:
    """A small segmentation to try things with, on synthetic images; attributes sex, age and their intersection."""
    data = json.loads(fundus(name, FEDAVG, seed).model_dump_json())
    data["task"].update(data_set="shapes", labels=["background", "shape"])
    data["task"]["input"].update(height=48, width=48, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    data["attributes"] = [SEX, AGE]
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    data["model"] = {"name": "unet", "widths": [8, 16, 32]}
    data["training"]["rounds"], data["training"]["optimizer"]["lr"] = 8, 0.01
    return _plan({**data, "method": method})


def feasibility(plan: Plan, name: str, *claims: Json, alpha: float = 0.05, power: float = 0.8) -> Plan:
    """The plan of a job that counts records for ``plan``, to see whether its claims can be examined at all.

    Nothing is trained, so it needs no weight file and no consent about risks; all else stays as it is.
    """
    data = json.loads(plan.model_dump_json())
    data["method"] = {"name": "feasibility", "claims": list(claims), "alpha": alpha, "power": power}
    return _plan({**data, "name": name, "start": {"kind": "seed"}, "consents": []})


def _plan(data: Mapping[str, Any]) -> Plan:
    return parse_plan(json.dumps(data))


def _heart_flexfair(name: str) -> Plan:
    return heart(name, flexfair(penalty("sex", "equal_opportunity", 1.0), **BOUNDS))


def _heart_feasibility(name: str) -> Plan:
    claims = ({"attribute": "sex", "criterion": "equal_opportunity", "gap": 0.2},)
    return feasibility(_heart_flexfair("heart_flexfair"), name, *claims)


def _skin_flexfair(name: str) -> Plan:
    return skin(name, flexfair(penalty("age", "equalized_odds", 1.0), penalty("sex", "equalized_odds", 1.0), **BOUNDS))


def _skin_flexfair_site(name: str) -> Plan:
    return skin(name, flexfair(penalty("source", "equal_opportunity", 2.0, form="bounded"), **BOUNDS))


def _fundus_flexfair(name: str) -> Plan:
    equal = penalty("hospital", "equal_accuracy", 2.0, utility="dice_loss", weights="uniform")
    return fundus(name, flexfair(equal, **BOUNDS))


def _shapes_flexfair(name: str) -> Plan:
    equal = penalty("sex_age", "equal_accuracy", 2.0, utility="dice_loss")
    return shapes(name, flexfair(equal, refresh="round_lagged", **BOUNDS))


def _official(plan: Plan, batches: int) -> Plan:
    """FlexFair as the authors' code runs it: lock step, ``batches`` of proportional size per epoch at each site."""
    data = json.loads(plan.model_dump_json())
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": batches}
    data["training"]["class_weights"] = [1.0, 1.0]
    penalties = [{**one, "strength": 2.0} for one in data["method"]["penalties"]]
    data["method"] = flexfair(*penalties, preset="official")
    data["protection"] = UNPROTECTED
    return _plan(data)


#: Job name -> what makes its plan.
JOBS: dict[str, Callable[[str], Plan]] = {
    "fundus_fedavg": lambda name: fundus(name, FEDAVG),
    "fundus_flexfair": _fundus_flexfair,
    "heart_feasibility": _heart_feasibility,
    "heart_fedavg": lambda name: heart(name, FEDAVG),
    "heart_flexfair": _heart_flexfair,
    "skin_fedavg": lambda name: skin(name, FEDAVG),
    "skin_flexfair": _skin_flexfair,
    "skin_flexfair_site": _skin_flexfair_site,
}

#: Everything a new plan can start from: the jobs, a small segmentation of synthetic images, and the authors' own
#: settings (fairness_step 70 on skin images).
PRESETS: dict[str, Callable[[str], Plan]] = {
    **JOBS,
    "shapes_fedavg": lambda name: shapes(name, FEDAVG),
    "shapes_flexfair": _shapes_flexfair,
    "heart_flexfair_official": lambda name: _official(_heart_flexfair(name), 5),
    "skin_flexfair_official": lambda name: _official(_skin_flexfair(name), 70),
}


def shipped(name: str) -> Plan:
    """The plan of a shipped job; ``KeyError`` if there is none of that name."""
    return JOBS[name](name)
