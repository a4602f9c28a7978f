# SPDX-License-Identifier: Apache-2.0
"""Small hospitals in memory, and plans for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fairflare import presets, schema
from fairflare.data.manifest import Records, SiteData
from fairflare.errors import PlanError
from fairflare.plan import Plan, SegmentationTask, parse_plan

FEATURES = 13


def records(n: int, seed: int, shift: float = 0.0) -> Records:
    """Tables that differ between hospitals (``shift``) and between groups; some attributes are missing."""
    random = np.random.default_rng(seed)
    sex, age = random.integers(-1, 2, n), random.integers(0, 2, n)
    values = random.normal(size=(n, FEATURES)) + shift
    logit = values[:, 0] - values[:, 1] * np.where(sex == 0, -0.5, 1.0) + 0.5 * age
    labels = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    inputs = np.concatenate([values, np.ones_like(values)], axis=1).astype(np.float32)
    return Records(inputs, labels, {"sex": sex.astype(np.int64), "age": age.astype(np.int64)})


def hospital(n: int, seed: int, shift: float = 0.0) -> SiteData:
    """Training, validation and test records of one hospital."""
    return SiteData(records(n, seed, shift), records(n // 3, seed + 1, shift), records(n // 3, seed + 2, shift), 0)


def four() -> dict[str, Callable[[], SiteData]]:
    """Four hospitals of different sizes."""
    sizes = {"amber": 40, "beryl": 64, "coral": 25, "dune": 51}
    return {name: (lambda n=n, k=k: hospital(n, 100 * k, 0.3 * k)) for k, (name, n) in enumerate(sizes.items())}


def plan(method: dict[str, Any], **changes: Any) -> Plan:
    """The heart plan with another method; ``changes`` name fields of ``training``, ``federation`` or ``cells``."""
    data = json.loads(schema.pretty(presets.heart("test", presets.FEDAVG)))
    data["method"], data["protection"] = method, presets.UNPROTECTED
    if "hospital" in json.dumps(method):
        data["consents"] = ["open_hospital_risks"]  # nobody's: these hospitals are drawn
    if method["name"] == "fairfed":
        data["consents"] += ["pair_sums_of_three_hospitals", "second_sum_of_updates"]
    return changed(data, **changes)


def several_labels(labels: int, method: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """The heart plan with more than two labels."""
    data = json.loads(schema.pretty(presets.heart("test", presets.FEDAVG)))
    data["method"], data["protection"] = method or data["method"], presets.UNPROTECTED
    data["task"]["labels"] = [f"kind{label}" for label in range(labels)]
    data["training"]["class_weights"] = [1.0] * labels
    data["evaluation"]["threshold"] = "half"
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    return changed(data, **changes)


def of_several_labels(labels: int) -> dict[str, Callable[[], SiteData]]:
    """The four hospitals with labels of more kinds, and the intersection of their attributes."""

    def kinds(records: Records, seed: int) -> Records:
        random = np.random.default_rng(seed)
        drawn = (records.labels + random.integers(0, labels - 1, len(records))).astype(np.int64)
        sex, age = records.groups["sex"], records.groups["age"]
        return Records(records.inputs, drawn, {**records.groups, "sex_age": np.where(sex >= 0, sex * 2 + age, -1)})

    def load(name: str, number: int) -> SiteData:
        data = four()[name]()
        parts = (data.training, data.validation, data.test)
        return SiteData(*(kinds(part, 10 * number + at) for at, part in enumerate(parts)), 0)

    return {name: (lambda name=name, number=number: load(name, number)) for number, name in enumerate(four())}


def segmentation_task(labels: Sequence[str], side: int, channels: int = 1) -> SegmentationTask:
    """A task over square images whose mask values are the labels' places."""
    data = {
        "kind": "segmentation", "data_set": "shapes", "labels": list(labels), "mask_values": list(range(len(labels))),
        "input": {
            "kind": "image", "channels": channels, "height": side, "width": side, "mean": [0.5] * channels,
            "std": [0.25] * channels, "augmentation": "flips",
        },
    }  # fmt: skip
    return schema.parse(SegmentationTask, json.dumps(data), error=PlanError, what="task")


SIDE = 16


def image_records(n: int, seed: int, contrast: float = 80.0, maps: int = 1) -> Records:
    """Noisy images with a bright disc for each label but the background; ``contrast`` makes them easy to find."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((n, SIDE, SIDE), dtype=np.uint8)
    for label in range(1, maps + 1):
        centre, radius = random.uniform(3, SIDE - 3, (n, 2, 1, 1)), random.uniform(2, 5, (n, 1, 1))
        masks[np.hypot(rows - centre[:, 0], columns - centre[:, 1]) < radius] = label
    images = 60 + contrast * masks / maps + random.normal(0, 12, masks.shape)
    groups = {"sex": random.integers(-1, 2, n), "age": random.integers(0, 2, n)}
    groups["sex_age"] = np.where(groups["sex"] >= 0, groups["sex"] * 2 + groups["age"], -1)
    pixels = np.clip(images, 0, 255).astype(np.uint8)[:, None]
    return Records(pixels, np.zeros(n, dtype=np.int64), groups, masks)


def image_hospital(n: int, seed: int, contrast: float = 80.0, maps: int = 1) -> SiteData:
    """Training, validation and test images of one hospital."""
    parts = (image_records(size, seed + at, contrast, maps) for at, size in enumerate((n, n // 2, n // 2)))
    return SiteData(*parts, 0)


def three_of_images(maps: int = 1) -> dict[str, Callable[[], SiteData]]:
    """Three hospitals of different sizes, the last one with faint images."""
    kinds = {"amber": (12, 90.0), "beryl": (16, 80.0), "coral": (9, 30.0)}
    return {
        name: (lambda n=n, c=c, k=k: image_hospital(n, 50 + 10 * k, c, maps))
        for k, (name, (n, c)) in enumerate(kinds.items())
    }


def image_plan(method: dict[str, Any], maps: int = 1, **changes: Any) -> Plan:
    """A small segmentation with two attributes and their intersection."""
    data = json.loads(schema.pretty(presets.fundus("shapes", presets.FEDAVG)))
    data["method"], data["consents"], data["protection"] = method, ["open_hospital_risks"], presets.UNPROTECTED
    names = ["background", *(f"part{label}" for label in range(maps))]
    data["task"] = json.loads(schema.pretty(segmentation_task(names, SIDE)))
    data["attributes"] = [presets.SEX, presets.AGE]
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    data["model"] = {"name": "unet", "widths": [8, 16]}
    data["training"]["class_weights"] = [1.0] * (maps + 1)
    return changed(data, **changes)


def changed(data: dict[str, Any], **changes: Any) -> Plan:
    """A plan from its JSON form with some fields replaced."""
    for name, value in changes.items():
        part = next(data[one] for one in ("training", "federation", "cells", "evaluation") if name in data[one])
        part[name] = value
    return parse_plan(json.dumps(data))


def masked(plan: Plan, **changes: Any) -> Plan:
    """The same plan with masks, whose weights are the exact numbers of records; ``changes`` name fields of masking."""
    data = json.loads(schema.pretty(plan))
    masking = {**presets.MASKED["masking"], "weight_unit": 1, **changes}
    return parse_plan(json.dumps({**data, "protection": {**presets.MASKED, "masking": masking}}))


def encrypted(plan: Plan) -> Plan:
    """The same masked plan with encrypted statistics."""
    data = json.loads(schema.pretty(plan))
    return parse_plan(json.dumps({**data, "protection": {**data["protection"], "statistics": "ckks"}}))


SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-3, "state": "keep"}
PLAIN_SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
ADAMW = {
    "name": "adamw", "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01, "state": "keep",
}  # fmt: skip
