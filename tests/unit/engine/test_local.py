# SPDX-License-Identifier: Apache-2.0
"""Whole runs in one process against references written from scratch with bare PyTorch."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, SGD, changed, four, hospital, plan
from torch import nn

from fairflare import presets, schema
from fairflare.engine.local import run_local
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.models import build, initial_vector, load_vector, to_vector

FAIR = presets.penalty("sex", "equalized_odds", 2.0)
TOLERANCE = 1e-6


def final_model(folder, record):
    assert record.status == "complete", record.reason
    return read_model(folder, record.plan, record.final.model_sha256)


def step_plan(**changes):
    method = presets.flexfair(FAIR, presets.penalty("age", "demographic_parity", 1.0), preset="official")
    method = {**method, **{key: changes.pop(key) for key in ("scaling",) if key in changes}}
    data = json.loads(schema.pretty(presets.heart("test", presets.FEDAVG)))
    data["method"] = method
    data["training"]["work"] = {"unit": "steps", "amount": 3}
    data["cells"]["minimum"] = 0
    return changed(data, rounds=2, **changes)


def reference_of_lock_step(the_plan, loaders):
    """The authors' way: all hospitals in one process, one joint loss, one backward pass, one optimiser per hospital."""
    data = {name: load() for name, load in loaders.items()}
    n = sum(len(site.training) for site in data.values())
    weights = {name: len(site.training) / n for name, site in data.items()}
    vector = initial_vector(the_plan)
    trainers = {name: Trainer(the_plan, name, site.training) for name, site in data.items()}
    for round_ in range(the_plan.training.rounds):
        batches = {name: list(trainer.batches(round_)) for name, trainer in trainers.items()}
        for trainer in trainers.values():
            load_vector(trainer.model, vector)
        for step in range(3):
            task, pieces = torch.zeros(()), []
            for name, trainer in trainers.items():
                index = batches[name][step]
                records = data[name].training
                logits = trainer.model(torch.from_numpy(records.inputs[index]))
                labels = torch.from_numpy(records.labels[index])
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
                share = weights[name] if the_plan.method.scaling == "joint" else 1.0
                task = task + share * losses.mean()
                pieces.append((losses, labels, {k: torch.from_numpy(v[index]) for k, v in records.groups.items()}))
            loss = task + joint_penalty(the_plan, pieces)
            for trainer in trainers.values():
                trainer.optimizer.zero_grad()
            loss.backward()
            for name, trainer in trainers.items():
                if the_plan.method.scaling == "joint":  # a site's own loss is 1 / p_s of its part of the joint one
                    for parameter in trainer.model.parameters():
                        parameter.grad /= weights[name]
                trainer.optimizer.step()
        vector = sum(w * to_vector(trainers[name].model).astype(np.float64) for name, w in weights.items())
        vector = vector.astype(np.float32)
    return vector


def joint_penalty(the_plan, pieces):
    losses = torch.cat([piece[0] for piece in pieces])
    labels = torch.cat([piece[1] for piece in pieces])
    total = torch.zeros(())
    for penalty in the_plan.method.penalties:
        group = torch.cat([piece[2][penalty.attribute] for piece in pieces])
        for label in (0, 1):
            chosen = (labels == label) & (group >= 0)
            present = [k for k in (0, 1) if bool((chosen & (group == k)).any())]
            if len(present) < 2:
                continue
            mean = losses[chosen].mean()
            risks = torch.stack([losses[chosen & (group == k)].mean() for k in present])
            total = total + penalty.strength * ((risks - mean) ** 2).mean()
    return total


@pytest.mark.parametrize("scaling", ["official", "joint"])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_lock_step_is_the_joint_training_of_the_authors(tmp_path, scaling, optimizer):
    """Refresh 'step' over 2 rounds of 3 steps: parameters within 1e-6 of one process with one backward pass."""
    the_plan = step_plan(scaling=scaling, optimizer=optimizer)
    record = run_local(the_plan, four(), tmp_path)
    found, expected = final_model(tmp_path, record), reference_of_lock_step(the_plan, four())
    assert np.abs(expected - initial_vector(the_plan)).max() > 1e-3
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_one_site_is_centralized_training(tmp_path, optimizer):
    the_plan = plan(presets.FEDAVG, rounds=3, optimizer=optimizer, min_sites=1)
    data = hospital(50, 1)
    found = final_model(tmp_path, run_local(the_plan, {"alone": lambda: data}, tmp_path))
    model = build(the_plan)
    load_vector(model, initial_vector(the_plan))
    kind = torch.optim.SGD if optimizer is SGD else torch.optim.AdamW
    names = ("lr", "momentum", "weight_decay") if optimizer is SGD else ("lr", "weight_decay")
    bare = kind(model.parameters(), **{name: optimizer[name] for name in names})
    batches = Trainer(the_plan, "alone", data.training)
    for round_ in range(3):
        for index in batches.batches(round_):
            logits = model(torch.from_numpy(data.training.inputs[index]))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.training.labels[index]))
            bare.zero_grad()
            loss.backward()
            bare.step()
    assert np.abs(found - to_vector(model)).max() <= TOLERANCE


def test_one_full_batch_step_at_each_site_is_one_gradient_step_on_all_records(tmp_path):
    the_plan = plan(
        presets.FEDAVG, rounds=1, optimizer=PLAIN_SGD, work={"unit": "steps", "amount": 1},
        batch={"unit": "records", "amount": 1000},
    )  # fmt: skip
    found = final_model(tmp_path, run_local(the_plan, four(), tmp_path))
    sites = [load() for load in four().values()]
    inputs = torch.from_numpy(np.concatenate([site.training.inputs for site in sites]))
    labels = torch.from_numpy(np.concatenate([site.training.labels for site in sites]))
    model = build(the_plan)
    load_vector(model, initial_vector(the_plan))
    nn.functional.cross_entropy(model(inputs), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    assert np.abs(found - to_vector(model)).max() <= TOLERANCE


@pytest.mark.parametrize("refresh", ["round", "step"])
def test_flexfair_of_strength_zero_is_fedavg_bit_by_bit(tmp_path, refresh):
    method = presets.flexfair(
        {**FAIR, "strength": 0.0}, presets.penalty("hospital", "equal_accuracy", 0.0), refresh=refresh
    )
    changes = {"rounds": 3, "work": {"unit": "steps", "amount": 4}, "minimum": 0}
    fair = run_local(plan(method, **changes), four(), tmp_path / "fair")
    plain = run_local(plan(presets.FEDAVG, **changes), four(), tmp_path / "plain")
    assert fair.final.model_sha256 == plain.final.model_sha256
    other = run_local(plan(presets.flexfair(FAIR, refresh=refresh), **changes), four(), tmp_path / "other")
    assert other.final.model_sha256 != plain.final.model_sha256


def test_every_order_of_arrival_gives_the_same_hash_and_so_does_a_second_run(tmp_path):
    the_plan = plan(presets.flexfair(FAIR, presets.penalty("hospital", "equal_accuracy", 1.0)), rounds=1)
    orders = [*itertools.permutations(four()), tuple(four())]
    hashes = {
        run_local(the_plan, four(), tmp_path / str(number), order=lambda _, __, order=order: order).final.model_sha256
        for number, order in enumerate(orders)
    }
    assert len(orders) == 25
    assert len(hashes) == 1


def test_statistics_and_records_too_do_not_depend_on_the_order_of_arrival(tmp_path):
    the_plan = plan(presets.flexfair(FAIR), rounds=2)
    records = [
        run_local(the_plan, four(), tmp_path / str(number), order=lambda _, sites, turn=turn: sites[::turn])
        for number, turn in enumerate((1, -1))
    ]
    lines = [[(line.penalties, line.validation, line.train_loss) for line in record.rounds] for record in records]
    assert lines[0] == lines[1]
    assert records[0].final == records[1].final
