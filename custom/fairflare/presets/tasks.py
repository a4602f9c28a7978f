# SPDX-License-Identifier: Apache-2.0
"""Plans of the tasks that FairFlare ships jobs for, each with any method; how their vectors are protected.

The shipped jobs are made for public data: no group is held back (``plan new --patients`` asks for that).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fairflare.plan import Plan, parse_plan
from fairflare.presets.methods import FEDAVG, Json

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
        # FairFed's weights move from round to round, and of three sites each learns the sum of two distances.
        "consents": ["pair_sums_of_three_hospitals", "second_sum_of_updates"] if method["name"] == "fairfed" else [],
        "federation": {"min_sites": 3, "task_timeout_seconds": 600.0, "max_missed": 2},
        "evaluation": {"score_bins": 200, "threshold": "validation_balanced_accuracy"},
    }


def _adamw(lr: float) -> Json:
    return {
        "name": "adamw", "lr": lr, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-2, "state": "keep",
    }  # fmt: skip


def sgd(lr: float, momentum: float = 0.9, state: str = "keep") -> Json:
    """Stochastic gradient descent; ``state``: whether momentum goes on from round to round (``keep``, ``reset``)."""
    return {
        "name": "sgd", "lr": lr, "momentum": momentum, "nesterov": False, "weight_decay": 1e-4, "state": state,
    }  # fmt: skip


def heart(name: str, method: Json, seed: int = 0, **training: Any) -> Plan:
    """Heart disease from a table of 13 measurements; four hospitals; attributes sex and age.

    Here and in the other tasks ``training`` changes fields of the plan's training.
    """
    features = [{"name": name, "center": center, "scale": scale} for name, center, scale in _HEART_FEATURES]
    return plan_of(
        {
            **_common(name, 20, 16, sgd(0.05), method, seed),
            "task": {
                "kind": "classification",
                "data_set": "heart",
                "labels": ["absent", "present"],
                "input": {"kind": "table", "features": features},
            },
            "attributes": [SEX, AGE],
            "model": {"name": "mlp", "hidden": [32, 16]},
        },
        training,
    )


def skin(name: str, method: Json, seed: int = 0, **training: Any) -> Plan:
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
    return plan_of(plan, training)


#: What three hospitals agree to by comparing themselves: with FlexFair each learns the sum of the two others' risks;
#: FairFed's sums have their numbers of records in them, from which more can be worked out.
_CONSENTS = {
    "flexfair": ["pair_sums_of_three_hospitals"],
    "fairfed": ["open_hospital_risks", "second_sum_of_updates"],
}


def fundus(name: str, method: Json, seed: int = 0, **training: Any) -> Plan:
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
        "consents": _CONSENTS.get(method["name"], []),
    }  # fmt: skip
    plan["evaluation"]["threshold"] = "half"
    # Ten records more or less are a great deal here; these are public images.
    plan["protection"] = {**MASKED, "masking": {**MASKED["masking"], "weight_unit": 1}}
    return plan_of(plan, training)


def shapes(name: str, method: Json, seed: int = 0) -> Plan:
    """A small segmentation to try things with, on synthetic images; attributes sex, age and their intersection."""
    data = json.loads(fundus(name, FEDAVG, seed).model_dump_json())
    data["task"].update(data_set="shapes", labels=["background", "shape"])
    data["task"]["input"].update(height=48, width=48, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    data["attributes"] = [SEX, AGE]
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    data["model"] = {"name": "unet", "widths": [8, 16, 32]}
    data["training"]["rounds"], data["training"]["optimizer"]["lr"] = 8, 0.01
    return plan_of({**data, "method": method})


def feasibility(plan: Plan, name: str, *claims: Json, alpha: float = 0.05, power: float = 0.8) -> Plan:
    """The plan of a job that counts records for ``plan``, to see whether its claims can be examined at all.

    Nothing is trained, so it needs no weight file, no noise and no consent about risks; all else stays as it is.
    """
    data = json.loads(plan.model_dump_json())
    data["method"] = {"name": "feasibility", "claims": list(claims), "alpha": alpha, "power": power}
    open_: Json = {"start": {"kind": "seed"}, "consents": [], "differential_privacy": None}
    return plan_of({**data, "name": name, **open_})


def plan_of(data: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> Plan:
    """The plan, with changes of its training; raises :class:`~fairflare.errors.PlanError`."""
    return parse_plan(json.dumps({**data, "training": {**data["training"], **(training or {})}}))
