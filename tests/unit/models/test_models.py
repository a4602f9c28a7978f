# SPDX-License-Identifier: Apache-2.0
"""Every network: no buffers, nothing in place, the same start from the same seed, a vector that goes both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fairflare import presets, schema
from fairflare.models import build, initial_vector, load_vector, named_arrays, parameter_count, to_vector, vector_sha256
from fairflare.plan import parse_plan


def plan_with(model: dict[str, object], channels: int = 3):
    data = json.loads(schema.pretty(presets.shipped("heart_fedavg" if model["name"] == "mlp" else "skin_fedavg")))
    data["model"] = model
    if data["task"]["input"]["kind"] == "image":
        data["task"]["input"].update(
            height=32, width=32, channels=channels, mean=[0.5] * channels, std=[0.5] * channels
        )
    return parse_plan(json.dumps(data))


PLANS = {
    "mlp": plan_with({"name": "mlp", "hidden": [8, 4]}),
    "linear": plan_with({"name": "mlp", "hidden": []}),
    "cnn": plan_with({"name": "cnn", "widths": [8, 16]}),
    "grey cnn": plan_with({"name": "cnn", "widths": [8]}, channels=1),
    "resnet18": plan_with({"name": "resnet18"}),
    "grey resnet18": plan_with({"name": "resnet18"}, channels=1),
}


def inputs(plan, n=3):
    given = plan.task.input
    shape = (2 * len(given.features),) if given.kind == "table" else (given.channels, given.height, given.width)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PLANS)
def test_two_logits_per_record_parameters_only_and_a_gradient_for_each(name):
    model = build(PLANS[name])
    logits = model(inputs(PLANS[name]))
    assert logits.shape == (3, 2)
    assert not list(model.buffers())
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", PLANS)
def test_nothing_happens_in_place(name):
    """Full backward hooks turn every module's output into a view; an in-place operation on one raises."""
    model = build(PLANS[name])
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        assert not getattr(module, "inplace", False)
    model(inputs(PLANS[name]).requires_grad_()).sum().backward()


@pytest.mark.parametrize("name", PLANS)
def test_records_do_not_see_each_other(name):
    """GroupNorm, not BatchNorm: a record's logits do not depend on the rest of its batch."""
    model = build(PLANS[name])
    batch = inputs(PLANS[name])
    with torch.no_grad():
        assert torch.allclose(model(batch)[:1], model(batch[:1]), atol=1e-5)


@pytest.mark.parametrize("name", PLANS)
def test_a_vector_goes_both_ways(name):
    plan = PLANS[name]
    model, vector = build(plan), initial_vector(plan)
    load_vector(model, vector)
    assert np.array_equal(to_vector(model), vector)
    assert vector.shape == (parameter_count(model),)
    arrays = named_arrays(model, vector)
    assert {k: tuple(v.shape) for k, v in model.named_parameters()} == {k: v.shape for k, v in arrays.items()}
    with pytest.raises(ValueError, match="got a vector"):
        load_vector(model, np.append(vector, np.float32(0)))


def test_the_start_depends_on_the_seed_and_leaves_torchs_generator_alone():
    data = json.loads(schema.pretty(PLANS["mlp"]))
    data["training"]["seed"] = 1
    other = parse_plan(json.dumps(data))
    before = torch.random.get_rng_state()
    assert np.array_equal(initial_vector(PLANS["mlp"]), initial_vector(PLANS["mlp"]))
    assert not np.array_equal(initial_vector(PLANS["mlp"]), initial_vector(other))
    assert torch.equal(before, torch.random.get_rng_state())


def test_resnet18_has_the_size_that_the_benchmarks_speak_of():
    assert 11.1e6 < parameter_count(build(PLANS["resnet18"])) < 11.3e6


def test_the_hash_of_a_vector_is_fixed():
    """A vector for the hash: it goes into records, so its meaning must not change."""
    vector = np.array([1.0, -2.5, 0.0], dtype=np.float32)
    assert vector_sha256(vector) == "52bb0d66c1bdabf58720abdd01e8165b6a89d29984b422f771257cb1355804f3"
    assert vector_sha256(vector) != vector_sha256(np.array([1.0, -2.5, -0.0], dtype=np.float32))
    assert vector_sha256(vector[:2]) != vector_sha256(vector)
