# SPDX-License-Identifier: Apache-2.0
"""A start from a file: all of it, or what matches, with the rest drawn from the seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v3_small, resnet18, resnet50

from fairflare import presets, schema
from fairflare.errors import WeightsError
from fairflare.models import (
    build,
    initial_vector,
    matching_tensors,
    named_arrays,
    read_weights,
    to_vector_of,
    write_weights,
)
from fairflare.plan import Plan, parse_plan


def plan_with(model, start=None, kind="skin_fedavg"):
    data = json.loads(schema.pretty(presets.shipped(kind)))
    data["model"] = model
    if model["name"].startswith("sanet"):
        data["task"].update(kind="segmentation", labels=["background", "polyp"], mask_values=[0, 255])
        data["task"]["input"].update(height=64, width=64)
        data["evaluation"]["threshold"] = "half"
    if start is not None:
        data["start"] = start
    return parse_plan(json.dumps(data))


CNN = {"name": "cnn", "widths": [8, 16]}


def keep(folder, tensors):
    """Put a file into the folder under its hash."""
    sha256 = write_weights(folder / "new", tensors, {})
    (folder / "new").rename(folder / f"{sha256}.safetensors")
    return sha256


def start_from(folder, model, tensors, how, **changes) -> Plan:
    return plan_with(model, {"kind": "file", "sha256": keep(folder, tensors), "tensors": how}, **changes)


def arrays_of(plan, vector):
    return named_arrays(build(plan), vector)


def refused(call, *arguments):
    with pytest.raises(WeightsError) as caught:
        call(*arguments)
    return caught.value


def test_a_start_from_all_of_a_file_is_the_file(tmp_path):
    plain = plan_with(CNN)
    vector = initial_vector(plain) + np.float32(1)
    plan = start_from(tmp_path, CNN, arrays_of(plain, vector), "all")
    assert np.array_equal(initial_vector(plan, tmp_path), vector)
    file = read_weights(tmp_path / f"{plan.start.sha256}.safetensors")
    assert np.array_equal(to_vector_of(plain, file), vector)


def test_a_start_from_a_file_that_is_absent_or_another_one_is_refused(tmp_path):
    plain = plan_with(CNN)
    plan = start_from(tmp_path, CNN, arrays_of(plain, initial_vector(plain)), "all")
    assert refused(initial_vector, plan).code == "FF-WEIGHTS-MISSING"
    assert refused(initial_vector, plan, tmp_path / "elsewhere").code == "FF-WEIGHTS-MISSING"
    write_weights(tmp_path / f"{plan.start.sha256}.safetensors", {"a": np.ones(1, dtype=np.float32)}, {})
    assert refused(initial_vector, plan, tmp_path).code == "FF-WEIGHTS-HASH"


def test_a_file_for_all_has_exactly_the_networks_tensors(tmp_path):
    plain = plan_with(CNN)
    arrays = arrays_of(plain, initial_vector(plain))
    one, *others = arrays
    for changed, words in [
        ({name: arrays[name] for name in others}, "1 of the network's 8 tensors are missing, 0 are unexpected and 0"),
        ({**arrays, "secret": arrays[one]}, "0 of the network's 8 tensors are missing, 1 are unexpected and 0"),
        ({**arrays, one: arrays[one].ravel()}, "0 of the network's 8 tensors are missing, 0 are unexpected and 1"),
    ]:
        problem = refused(initial_vector, start_from(tmp_path, CNN, changed, "all"), tmp_path)
        assert problem.code == "FF-WEIGHTS-TENSORS"
        assert words in str(problem)
        assert "secret" not in str(problem)


def test_what_matches_is_taken_and_the_rest_is_drawn_from_the_seed(tmp_path):
    plain = plan_with(CNN)
    drawn = arrays_of(plain, initial_vector(plain))
    first, second, *_ = drawn
    given = {first: drawn[first] + np.float32(1), second: np.ones(3, dtype=np.float32), "else": drawn[second].copy()}
    plan = start_from(tmp_path, CNN, given, "matching")
    got = arrays_of(plan, initial_vector(plan, tmp_path))
    assert np.array_equal(got[first], given[first])
    assert all(np.array_equal(got[name], drawn[name]) for name in drawn if name != first)
    file = read_weights(tmp_path / f"{plan.start.sha256}.safetensors")
    assert matching_tensors(plan, file) == (first,)


def test_a_file_of_which_nothing_matches_is_refused(tmp_path):
    plan = start_from(tmp_path, CNN, {"0.weight": np.ones(2, dtype=np.float32)}, "matching")
    assert refused(initial_vector, plan, tmp_path).code == "FF-WEIGHTS-TENSORS"


@pytest.mark.parametrize(
    ("model", "network", "unmatched"),
    [
        ({"name": "resnet18"}, resnet18, 2),
        ({"name": "resnet50"}, resnet50, 2),
        ({"name": "sanet_light", "head": 8}, mobilenet_v3_small, 14),
    ],
)
def test_the_usual_backbones_match_by_name(tmp_path, model, network, unmatched):
    """All but the layer of classes, or the head: also BatchNorm's scales and shifts, which GroupNorm goes on with."""
    torch.manual_seed(0)
    state = {name: tensor.numpy() for name, tensor in network(weights=None).state_dict().items()}
    floats = {name: array for name, array in state.items() if array.dtype == np.float32}
    assert len(floats) < len(state), "there are counters of BatchNorm"
    plan = start_from(tmp_path, model, floats, "matching")
    file = read_weights(tmp_path / f"{plan.start.sha256}.safetensors")
    got = arrays_of(plan, initial_vector(plan, tmp_path))
    taken = matching_tensors(plan, file)
    assert len(taken) == len(got) - unmatched
    assert all(np.array_equal(got[name], floats[name]) for name in taken)
    assert not [name for name in got if name not in taken and name.startswith(("layer", "features", "conv1", "bn1"))]


def test_sanets_backbone_has_the_names_of_res2nets_files():
    names = [name for name, _ in build(plan_with({"name": "sanet"})).named_parameters()]
    wanted = ["conv1.0.weight", "conv1.1.bias", "conv1.6.weight", "bn1.weight", "layer1.0.conv1.weight"]
    wanted += ["layer1.0.convs.2.weight", "layer1.0.bns.2.bias", "layer1.0.downsample.1.weight"]
    wanted += ["layer1.0.downsample.2.weight", "layer4.2.conv3.weight", "layer4.2.bn3.bias"]
    assert not set(wanted) - set(names)


def test_a_start_from_a_file_leaves_torchs_generator_alone(tmp_path):
    plain = plan_with(CNN)
    plan = start_from(tmp_path, CNN, arrays_of(plain, initial_vector(plain)), "matching")
    before = torch.random.get_rng_state()
    initial_vector(plan, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
