# SPDX-License-Identifier: Apache-2.0
"""Writes down a subject's work for the bare loop: the same records, batches, flips, start and settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fairflare.data.manifest import SiteData, load
from fairflare.engine.training import Trainer
from fairflare.fairness.penalty import labels_of
from fairflare.methods import FlexFairParameters
from fairflare.models import initial_vector
from fairflare.plan import ImageInput, Plan, TableInput
from fairflare.seeds import generator
from tests.benchmarks.subjects import Subject


def write_spec(subject: Subject, folder: Path) -> Path:
    """Write ``settings.json``, ``model.npy`` and one ``.npz`` per site; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, rounds = subject.plan, max(subject.bare_rounds, subject.plan.training.rounds)
    records, steps = {}, {}
    for site in sorted(subject.catalog.site_names):
        data = load(plan, subject.catalog.entry(site, plan.task.data_set))
        arrays, steps[site] = _arrays(plan, site, data, rounds)
        np.savez(folder / f"{site}.npz", **arrays)  # type: ignore[arg-type]
        records[site] = len(data.training)
    np.save(folder / "model.npy", initial_vector(plan))
    settings = _settings(plan) | {"hospitals": records, "records": sum(records.values()), "steps": steps}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _arrays(plan: Plan, site: str, data: SiteData, rounds: int) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """A site's arrays, and the first and last step of every round."""
    trainer = Trainer(plan, site, data.training)
    batches: list[np.ndarray] = []
    flips: list[np.ndarray] = []
    bounds: list[tuple[int, int]] = []
    for number in range(rounds):
        before = len(batches)
        for step, index in enumerate(trainer.batches(number)):
            batches.append(index)
            flips.append(_flips(plan, site, number, step, index.size))
        bounds.append((before, len(batches)))
    arrays = {
        "train_x": data.training.inputs, "train_y": data.training.labels,
        "val_x": data.validation.inputs, "val_y": data.validation.labels,
        "order": np.concatenate(batches), "batch_sizes": np.array([index.size for index in batches]),
    }  # fmt: skip
    arrays |= {f"group_{name}": group for name, group in data.training.groups.items()}
    if isinstance(plan.task.input, ImageInput) and plan.task.input.augmentation == "flips":
        arrays["flips"] = np.concatenate(flips, axis=1)
    return arrays, bounds


def _flips(plan: Plan, site: str, round_: int, step: int, size: int) -> np.ndarray:
    # As Trainer.batch draws them; should that change, the losses of the two differ and the benchmark says so.
    random = generator(plan.training.seed, "flips", site, round_, step)
    return random.integers(0, 2, size=(2, size, 1, 1, 1), dtype=np.int64).astype(bool).reshape(2, size)


def _settings(plan: Plan) -> dict[str, object]:
    method, given = plan.method, plan.task.input
    if not isinstance(method, FlexFairParameters) or method.lock_step or method.scaling != "joint":
        raise ValueError("the bare loop knows FlexFair with statistics of the round and joint scaling only")
    penalties = []
    for one in method.penalties:
        if (one.form, one.weights, one.reduction, one.utility) != ("paper", "records", "sum", "cross_entropy"):
            raise ValueError("the bare loop knows the paper's form of the penalty only")
        penalties += [
            {"attribute": one.attribute, "label": label, "strength": one.strength} for label in labels_of(one.criterion)
        ]
    image = given if isinstance(given, ImageInput) else None
    return {
        "model": plan.model.model_dump(mode="json"),
        "inputs": 2 * len(given.features) if isinstance(given, TableInput) else given.channels,
        "image": {"mean": image.mean, "std": image.std} if image else None,
        "optimizer": plan.training.optimizer.model_dump(mode="json"),
        "class_weights": plan.training.class_weights,
        "clip": method.clip,
        "bounds": [None if one is None else one - 1 for one in (method.min_weight, method.max_weight)],
        "penalties": penalties,
        "attributes": [(attribute.name, len(attribute.values)) for attribute in plan.attributes],
    }
