# SPDX-License-Identifier: Apache-2.0
"""Records of runs that never took place, filled by hand from scores, labels and groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fairflare.fairness.groups import EvaluationSums, Floats, Integers, image_strata, label_strata
from fairflare.plan import Plan, parse_plan
from fairflare.record import (
    Final,
    PenaltyRecord,
    Refusal,
    RoundRecord,
    RunRecord,
    Seconds,
    Session,
    cells_from_sums,
)

SITES = ("charite", "lyon", "uppsala")
BINS = 200

FEDAVG: dict[str, Any] = {"name": "fedavg"}
SEX = {"name": "sex", "values": ["female", "male"], "edges": None}
AGE = {"name": "age", "values": ["under_40", "40_to_60", "over_60"], "edges": [40.0, 60.0]}


def flexfair(attribute: str = "sex", criterion: str = "equal_opportunity") -> dict[str, Any]:
    """A plan's ``method``."""
    penalty = {
        "attribute": attribute,
        "criterion": criterion,
        "utility": "cross_entropy",
        "weights": "records",
        "reduction": "sum",
        "form": "bounded",
        "strength": 2.0,
    }
    return {
        "name": "flexfair",
        "penalties": [penalty],
        "refresh": "round",
        "scaling": "joint",
        "min_weight": 0.0,
        "max_weight": None,
        "remeasure_own": None,
        "utility_clip": 10.0,
    }


def make_plan(**changes: Any) -> Plan:
    """A small plan; ``changes`` replace top-level fields."""
    fields: dict[str, Any] = {
        "format": "fairflare/plan/1",
        "name": "skin_fedavg",
        "task": {
            "kind": "classification",
            "data_set": "skin_lesions",
            "labels": ["benign", "malignant"],
            "input": {"kind": "table", "features": [{"name": "x", "center": 0.0, "scale": 1.0}]},
        },
        "attributes": [SEX, AGE],
        "intersections": [],
        "cells": {"minimum": 0, "sites": 1},
        "model": {"name": "mlp", "hidden": [4]},
        "start": {"kind": "seed"},
        "training": {
            "rounds": 2,
            "work": {"unit": "epochs", "amount": 1},
            "batch": {"unit": "records", "amount": 32},
            "optimizer": {
                "name": "sgd",
                "lr": 0.1,
                "momentum": 0.0,
                "nesterov": False,
                "weight_decay": 0.0,
                "state": "reset",
            },
            "class_weights": [1.0, 1.0],
            "aggregation": "records",
            "seed": 1,
        },
        "method": FEDAVG,
        "protection": {"update": "none", "statistics": "none", "masking": None},
        "differential_privacy": None,
        "consents": [],
        "federation": {"min_sites": 2, "task_timeout_seconds": 60.0, "max_missed": 1},
        "evaluation": {"score_bins": BINS, "threshold": "half"},
    }
    return parse_plan(json.dumps(fields | changes))


SKIN_LABELS = ("melanoma", "nevus", "keratosis", "carcinoma")
IMAGE = {
    "kind": "image", "channels": 3, "height": 64, "width": 64, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "augmentation": "none",
}  # fmt: skip
TOGETHER = {"name": "sex_and_age", "of": ["sex", "age"]}


def make_several(**changes: Any) -> Plan:
    """A plan of four labels, and an intersection."""
    plan = make_plan()
    fields: dict[str, Any] = {
        "name": "skin_four",
        "task": {**plan.task.model_dump(mode="json"), "labels": list(SKIN_LABELS)},
        "training": {**plan.training.model_dump(mode="json"), "class_weights": [1.0] * 4},
        "intersections": [TOGETHER],
    }
    return make_plan(**(fields | changes))


def make_painted(labels: tuple[str, ...] = ("background", "polyp"), **changes: Any) -> Plan:
    """A plan of a segmentation."""
    plan = make_plan()
    fields: dict[str, Any] = {
        "name": "polyps",
        "task": {
            "kind": "segmentation", "data_set": "polyp_images", "labels": list(labels),
            "mask_values": list(range(len(labels))), "input": IMAGE,
        },
        "model": {"name": "unet", "widths": [8, 16]},
        "training": {**plan.training.model_dump(mode="json"), "class_weights": [1.0] * len(labels)},
    }  # fmt: skip
    return make_plan(**(fields | changes))


class Evaluated(Protocol):
    """Records that a model was evaluated on."""

    def sums(self, plan: Plan, minimum: int = 0) -> EvaluationSums:
        """Evaluation sums of one site that holds all of them."""
        ...


@dataclass(frozen=True)
class Images:
    """Dice (n, F) of images, their loss (n,) and groups."""

    dice: Floats
    loss: Floats
    groups: Mapping[str, Integers]

    def sums(self, plan: Plan, minimum: int = 0) -> EvaluationSums:
        """Evaluation sums of one site that holds all of them."""
        strata = image_strata(self.dice, self.loss)
        return EvaluationSums.measure(strata, self.groups, plan.sizes, plan.evaluation.score_bins, minimum)


def paint(
    n: int = 400, *, seed: int = 0, labels: int = 1, skill: tuple[float, float] = (3.0, 5.0), missing: float = 0.0
) -> Images:
    """Images whose Dice is drawn around ``skill`` / (``skill`` + 1.5), for (female, male)."""
    generator = np.random.default_rng(seed)
    sex, age = generator.integers(0, 2, n), generator.integers(0, 3, n)
    dice = generator.beta(np.array(skill)[sex][:, None], 1.5, (n, labels))
    loss = 1 - dice.mean(axis=1) + 0.1
    sex = np.where(generator.random(n) < missing, -1, sex)
    return Images(dice, loss, {"sex": sex, "age": age})


@dataclass(frozen=True)
class Several:
    """Probabilities (n, C) of several labels, true labels and groups."""

    probability: Floats
    label: Integers
    groups: Mapping[str, Integers]

    def sums(self, plan: Plan, minimum: int = 0) -> EvaluationSums:
        """Evaluation sums of one site that holds all of them."""
        own = self.probability[np.arange(len(self.label)), self.label]
        strata = label_strata(self.probability, -np.log(np.maximum(own, 1e-12)), self.label)
        return EvaluationSums.measure(strata, self.groups, plan.sizes, plan.evaluation.score_bins, minimum)


def draw_several(
    n: int = 1600, *, seed: int = 0, skill: tuple[float, float] = (1.2, 2.0), missing: float = 0.0
) -> Several:
    """Records of four labels, the later ones rarer, told apart by ``skill`` for (female, male)."""
    generator = np.random.default_rng(seed)
    sex, age = generator.integers(0, 2, n), generator.integers(0, 3, n)
    label = generator.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    logit = generator.normal(size=(n, 4)) + np.eye(4)[label] * np.array(skill)[sex][:, None]
    probability = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    sex = np.where(generator.random(n) < missing, -1, sex)
    both = np.where(sex < 0, -1, 3 * sex + age)
    return Several(probability, label, {"sex": sex, "age": age, "sex_and_age": both})


@dataclass(frozen=True)
class Patients:
    """Scores, labels and groups of n records; group -1 is "missing"."""

    score: Floats
    label: Integers
    groups: Mapping[str, Integers]

    def sums(self, plan: Plan, minimum: int = 0) -> EvaluationSums:
        """Evaluation sums of one site that holds all of them."""
        probability = np.where(self.label == 1, self.score, 1 - self.score)
        loss = -np.log(np.maximum(probability, 1e-12))
        strata = label_strata(np.stack([1 - self.score, self.score], axis=1), loss, self.label)
        return EvaluationSums.measure(strata, self.groups, plan.sizes, plan.evaluation.score_bins, minimum)


def draw(
    n: int = 1200,
    *,
    seed: int = 0,
    skill: tuple[float, float] = (1.4, 1.4),
    shift: tuple[float, float] = (0.0, 0.0),
    missing: float = 0.0,
) -> Patients:
    """Patients whose score separates labels by ``skill`` and is moved by ``shift``, each for (female, male)."""
    generator = np.random.default_rng(seed)
    sex = generator.integers(0, 2, n)
    age = generator.integers(0, 3, n)
    label = (generator.random(n) < 0.3).astype(np.int64)
    signal = np.array(skill)[sex] * (label - 0.5) + np.array(shift)[sex] + generator.normal(size=n)
    sex = np.where(generator.random(n) < missing, -1, sex)
    return Patients(1 / (1 + np.exp(-signal)), label, {"sex": sex, "age": age})


def constant(patients: Patients, score: float = 0.3) -> Patients:
    """The same patients under a model that says the same of everybody."""
    return Patients(np.full_like(patients.score, score), patients.label, patients.groups)


def make_record(
    plan: Plan, test: Evaluated, validation: Evaluated | None = None, *, minimum: int = 0, **changes: Any
) -> RunRecord:
    """A complete run of ``plan``; the validation records are the test records unless given."""
    splits = [cells_from_sums(plan, part.sums(plan, minimum)) for part in (validation or test, test)]
    final = Final(
        model_sha256="b" * 64,
        best_model_sha256="b" * 64,
        best_rounds=plan.training.rounds,
        participants=SITES,
        refusals=(),
        validation=splits[0],
        test=splits[1],
        validation_collapse=None,
        test_collapse=None,
        confirmed=SITES,
    )
    record = RunRecord(
        format="fairflare/record/2",
        plan=plan,
        plan_sha256=plan.sha256,
        software={},
        notices=(),
        sessions=(make_session(),),
        status="complete",
        reason=None,
        ended="2025-01-01T00:00:00Z",
        initial_model_sha256="a" * 64,
        rounds=tuple(make_round(plan, number) for number in range(plan.training.rounds)),
        lost_rounds=(),
        begun=plan.training.rounds + 1,
        final=final,
    )
    return record.model_copy(update=changes)


def make_without(record: RunRecord, site: str = "lund", code: str = "FF-POLICY-REFUSED") -> RunRecord:
    """The same run, of a project with one more site that did not take the job."""
    refusal = Refusal(site=site, task="deploy", code=code)
    session = record.sessions[-1].model_copy(update={"without": (refusal,)})
    return record.model_copy(update={"sessions": (*record.sessions[:-1], session)})


def make_session() -> Session:
    """The one start of a run."""
    return Session(
        number=1,
        transport="local",
        started="2025-01-01T00:00:00Z",
        first_round=0,
        previous_record_sha256=None,
        roster=SITES,
        join_refusals=(),
        records={"training": 4000.0, "validation": 1200.0, "test": 1200.0, "opted_out": 0.0},
        identities=None,
        transcript=None,
    )


def make_round(plan: Plan, number: int, **changes: Any) -> RoundRecord:
    """One round, with a penalty line where the plan penalises."""
    gap = 0.2 / (number + 1)
    penalties = tuple(
        PenaltyRecord(
            attribute=penalty.attribute,
            criterion=penalty.criterion,
            measure=f"{penalty.attribute}/label1/{penalty.utility}",
            strength=penalty.strength,
            risk=(0.5, 0.7),
            weight=(0.5, 0.5),
            coefficient=(-0.1, 0.1),
            count=(600.0, 600.0),
            value=0.01,
            gap=gap,
        )
        for penalty in (plan.method.penalties if plan.method.name == "flexfair" else ())
    )
    fields: dict[str, Any] = {
        "round": number,
        "participants": {"train": SITES},
        "refusals": (),
        "records": 4000.0,
        "train_loss": 0.6 - 0.1 * number,
        "weighed": 4000.0,
        "at_minimum": 0.0,
        "at_maximum": 0.0,
        "totals": None,
        "penalties": penalties,
        "validation": (),
        "collapse": None,
        "seconds": Seconds(measure=0.1, train=1.0, protect=0.0, aggregate=0.1),
        "model_sha256": "b" * 64,
    }
    return RoundRecord(**(fields | changes))
