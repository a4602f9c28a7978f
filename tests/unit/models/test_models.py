# SPDX-License-Identifier: Apache-2.0
"""Every network: no buffers, nothing in place, the same start from the same seed, a vector that goes both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fairflare import presets, schema
from fairflare.models import build, initial_vector, load_vector, named_arrays, parameter_count, to_vector, vector_sha256
from fairflare.plan import parse_plan

SEGMENTATION = ("unet", "sanet_light", "sanet")


def plan_with(model: dict[str, object], channels: int = 3, labels: int = 2):
    data = json.loads(schema.pretty(presets.shipped("heart_fedavg" if model["name"] == "mlp" else "skin_fedavg")))
    data["model"] = model
    if data["task"]["input"]["kind"] == "image":
        data["task"]["input"].update(
            height=32, width=32, channels=channels, mean=[0.5] * channels, std=[0.5] * channels
        )
    if model["name"] in SEGMENTATION:
        data["task"].update(
            kind="segmentation", labels=["background", "one", "two"][:labels], mask_values=[0, 100, 200][:labels]
        )
        data["training"]["class_weights"] = [1.0] * labels
        data["evaluation"]["threshold"] = "half"
    return parse_plan(json.dumps(data))


PLANS = {
    "mlp": plan_with({"name": "mlp", "hidden": [8, 4]}),
    "linear": plan_with({"name": "mlp", "hidden": []}),
    "cnn": plan_with({"name": "cnn", "widths": [8, 16]}),
    "grey cnn": plan_with({"name": "cnn", "widths": [8]}, channels=1),
    "resnet18": plan_with({"name": "resnet18"}),
    "grey resnet18": plan_with({"name": "resnet18"}, channels=1),
    "resnet50": plan_with({"name": "resnet50"}),
    "unet": plan_with({"name": "unet", "widths": [16, 32, 64, 128]}),
    "grey unet of two levels": plan_with({"name": "unet", "widths": [8, 16]}, channels=1, labels=3),
    "sanet_light": plan_with({"name": "sanet_light", "head": 32}),
    "grey sanet_light": plan_with({"name": "sanet_light", "head": 8}, channels=1, labels=3),
    "sanet": plan_with({"name": "sanet"}),
    "grey sanet": plan_with({"name": "sanet"}, channels=1, labels=3),
}


def inputs(plan, n=3):
    given = plan.task.input
    shape = (2 * len(given.features),) if given.kind == "table" else (given.channels, given.height, given.width)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PLANS)
def test_logits_per_record_or_pixel_parameters_only_and_a_gradient_for_each(name):
    plan = PLANS[name]
    model = build(plan)
    logits = model(inputs(plan))
    pixels = (32, 32) if plan.task.kind == "segmentation" else ()
    assert logits.shape == (3, plan.task.outputs, *pixels)
    assert logits.dtype == torch.float32
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
    assert np.isfinite(vector).all()
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


@pytest.mark.parametrize("name", PLANS)
def test_the_same_seed_gives_the_same_start(name):
    assert vector_sha256(initial_vector(PLANS[name])) == vector_sha256(initial_vector(PLANS[name]))


@pytest.mark.parametrize(
    ("plan", "start"),
    [
        ("heart_fedavg", "c99e3a31f5421e7a2226f304fa76c19672f31698b29bdda8006178212fbe02b1"),
        ("skin_fedavg", "a7a18ae053220d2d983b8cf87096958cdbd334e515c82b32574e3c201bf97a4a"),
    ],
)
def test_the_starts_of_shipped_plans_stay_as_they_are(plan, start):
    """They are in the records of runs. A failure after an update of torch means that its generator has changed."""
    assert vector_sha256(initial_vector(presets.shipped(plan))) == start


#: Exact numbers, which docstrings and plans speak of: RGB, two labels.
COUNTS = {
    "resnet18": 11_177_538,
    "resnet50": 23_512_130,
    "unet": 488_001,
    "sanet_light": 948_129,
    "sanet": 23_899_497,
}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_size_that_is_said_of_them(name):
    assert parameter_count(build(PLANS[name])) == COUNTS[name]


@pytest.mark.parametrize("name", ["resnet50", *SEGMENTATION])
def test_with_batchnorm_the_networks_have_as_many_parameters(name):
    """So the published sizes, which are counted with BatchNorm, hold here: 23,899,497 for SANet with its backbone."""
    model = build(PLANS[name])
    for module in list(model.modules()):
        for child, norm in list(module.named_children()):
            if isinstance(norm, nn.GroupNorm):
                setattr(module, child, nn.BatchNorm2d(norm.num_channels))
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert parameter_count(model) == COUNTS[name]
    assert model(inputs(PLANS[name])).shape[:2] == (3, PLANS[name].task.outputs)


def test_res2net_without_classes_has_23_669_352_parameters():
    head = build(PLANS["sanet"]).head
    assert COUNTS["sanet"] - parameter_count(head) == 23_669_352


@pytest.mark.parametrize("name", SEGMENTATION)
@pytest.mark.parametrize(("height", "width"), [(32, 64), (96, 32)])
def test_maps_have_the_size_of_the_image(name, height, width):
    model = build(PLANS[name])
    with torch.no_grad():
        assert model(torch.zeros(2, 3, height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if plan.task.kind == "segmentation"])
def test_a_new_network_takes_about_a_tenth_of_the_pixels_for_foreground(name):
    plan = PLANS[name]
    model = build(plan)
    load_vector(model, initial_vector(plan))
    with torch.no_grad():
        shares = torch.sigmoid(model(inputs(plan))).mean(dim=(0, 2, 3))
    assert ((shares > 0.03) & (shares < 0.3)).all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_learns_a_square(name):
    """Twenty steps on four images of a bright square on noise: the square is found, the rest is background."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(4, 1, 64, 64)
    for at, (row, column) in enumerate([(8, 8), (8, 32), (32, 8), (32, 32)]):
        masks[at, :, row : row + 24, column : column + 24] = 1
    images = 2 * masks + 0.3 * torch.randn(4, 3, 64, 64, generator=generator)
    model = build(PLANS[name])
    load_vector(model, initial_vector(PLANS[name]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(images), masks).backward()
        optimizer.step()
    with torch.no_grad():
        found = (model(images) > 0).float()
    assert 2 * (found * masks).sum() / (found.sum() + masks.sum()) > 0.8


def test_the_hash_of_a_vector_is_fixed():
    """A vector for the hash: it goes into records, so its meaning must not change."""
    vector = np.array([1.0, -2.5, 0.0], dtype=np.float32)
    assert vector_sha256(vector) == "52bb0d66c1bdabf58720abdd01e8165b6a89d29984b422f771257cb1355804f3"
    assert vector_sha256(vector) != vector_sha256(np.array([1.0, -2.5, -0.0], dtype=np.float32))
    assert vector_sha256(vector[:2]) != vector_sha256(vector)
