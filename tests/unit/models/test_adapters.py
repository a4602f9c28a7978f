# SPDX-License-Identifier: Apache-2.0
"""The trained part of a network: what is frozen stays, adapters start as nothing and end in the weights.

Every registered network, with every part, can be trained with DP-SGD in both modes.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairflare.errors import PrivacyError
from fairflare.models import build, initial_vector, load_vector, parameter_count, to_vector
from fairflare.models.adapters import (
    features,
    head_of,
    train_part,
)
from fairflare.models.networks import Mlp
from fairflare.privacy.dpsgd import DpSgd, Drawn, Mechanism, UnitSampler
from fairflare.privacy.preflight import verify_private
from tests.unit.models.test_models import PLANS, inputs

LARGE = ("resnet18", "grey resnet18", "resnet50", "sanet", "grey sanet")
SMALL = [name for name in PLANS if name not in LARGE]
ADAPTABLE = [name for name in SMALL if name not in ("mlp", "linear", "grey cnn")]
PARTS = ("all", "head", "adapters")


def network(name: str) -> torch.nn.Module:
    model = build(PLANS[name])
    load_vector(model, initial_vector(PLANS[name]))
    return model


def trained(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def one_step(model: torch.nn.Module, plan) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    model(inputs(plan)).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", PLANS)
def test_the_head_is_the_last_part_and_gives_the_outputs(name):
    model = build(PLANS[name])
    head = head_of(model)
    names = [own for own, parameter in model.named_parameters() if any(parameter is one for one in head.parameters())]
    assert names == list(dict(model.named_parameters()))[-len(names) :]
    train_part(model, "head", rank=1, seed=0)
    assert trained(model) == names


@pytest.mark.parametrize("name", SMALL)
def test_all_trains_everything(name):
    model = network(name)
    train_part(model, "head", rank=1, seed=0)
    train_part(model, "all", rank=1, seed=0)
    assert trained(model) == [own for own, _ in model.named_parameters()]


@pytest.mark.parametrize("name", [*ADAPTABLE, "resnet18"])
def test_adapters_start_as_nothing_below_names_that_stay(name):
    model, plan = network(name), PLANS[name]
    names = dict(model.named_parameters())
    with torch.no_grad():
        before = model(inputs(plan))
    train_part(model, "adapters", rank=2, seed=3)
    with torch.no_grad():
        assert torch.equal(model(inputs(plan)), before)
    now = dict(model.named_parameters())
    assert all(now[own] is parameter for own, parameter in names.items())
    new = set(now) - set(names)
    assert new
    assert all(own.endswith(("adapter.down.weight", "adapter.up.weight")) for own in new)
    of_head = {id(parameter) for parameter in head_of(model).parameters()}
    assert set(trained(model)) == new | {own for own, parameter in names.items() if id(parameter) in of_head}


@pytest.mark.parametrize("name", ADAPTABLE)
def test_training_adapters_leaves_the_network_as_it_is_and_changes_its_outputs(name):
    model, plan = network(name), PLANS[name]
    train_part(model, "adapters", rank=2, seed=3)
    frozen = {own: one.clone() for own, one in model.named_parameters() if not one.requires_grad}
    for _ in range(3):
        one_step(model, plan)
    assert all(torch.equal(dict(model.named_parameters())[own], one) for own, one in frozen.items())
    ups = [one for own, one in model.named_parameters() if own.endswith("up.weight")]
    assert all(bool(one.any()) for one in ups)
    with torch.no_grad():
        assert not torch.equal(model(inputs(plan)), network(name)(inputs(plan)))


def test_every_site_starts_from_the_same_adapters_and_torchs_generator_is_left_alone():
    vectors, state = [], torch.random.get_rng_state()
    for seed in (3, 3, 4):
        model = network("cnn")
        state = torch.random.get_rng_state()
        train_part(model, "adapters", rank=2, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        vectors.append(to_vector(model))
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])


def test_a_copy_of_a_network_has_adapters_of_its_own():
    model, plan = network("cnn"), PLANS["cnn"]
    train_part(model, "adapters", rank=2, seed=3)
    other = copy.deepcopy(model)
    one_step(other, plan)
    with torch.no_grad():
        assert torch.equal(model(inputs(plan)), network("cnn")(inputs(plan)))
        assert not torch.equal(model(inputs(plan)), other(inputs(plan)))


@pytest.mark.parametrize("part", PARTS)
def test_the_trained_part_travels_alone(part):
    model, other, plan = network("cnn"), network("cnn"), PLANS["cnn"]
    for one in (model, other):
        train_part(one, part, rank=2, seed=3)
    one_step(model, plan)
    vector = to_vector(model)
    assert vector.dtype == np.float32
    assert vector.size == sum(one.numel() for one in model.parameters() if one.requires_grad)
    load_vector(other, vector)
    with torch.no_grad():
        assert torch.equal(model(inputs(plan)), other(inputs(plan)))
    for size in (vector.size + 1, vector.size - 1):
        with pytest.raises(ValueError, match="got a vector"):
            load_vector(other, np.zeros(size, dtype=np.float32))


def test_adapters_are_far_smaller_than_the_network():
    """ResNet-18 with rank 4: a seventy-seventh of its 11 million parameters."""
    model = network("resnet18")
    whole = parameter_count(model)
    train_part(model, "adapters", rank=4, seed=0)
    assert to_vector(model).size == 144_718
    assert to_vector(model).size < whole / 70


@pytest.mark.parametrize("rank", [0, -1, 1.0, True])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        train_part(network("cnn"), "adapters", rank=rank, seed=0)


def test_adapters_that_would_not_be_smaller_or_are_there_already_are_refused():
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        train_part(network("linear"), "adapters", rank=1, seed=0)
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        train_part(network("cnn"), "adapters", rank=500, seed=0)
    model = network("cnn")
    train_part(model, "adapters", rank=2, seed=0)
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        train_part(model, "adapters", rank=2, seed=0)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
def test_the_head_makes_the_outputs_of_cached_features(name):
    model, plan = network(name), PLANS[name]
    found = features(model, inputs(plan))
    assert found.ndim == 2
    assert not found.requires_grad
    assert torch.equal(head_of(model)(found), model(inputs(plan)))
    assert not head_of(model)._forward_pre_hooks


def test_a_head_behind_which_the_network_goes_on_has_no_cached_features():
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        features(network("sanet_light"), inputs(PLANS["sanet_light"]))


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_the_head_on_cached_features_has_the_private_sum_of_the_head_in_its_network(name, mode):
    model, plan = network(name).to(torch.float64), PLANS[name]
    records, everybody = inputs(plan, 6).to(torch.float64), Drawn(np.arange(6), np.ones(6))
    cached, head, weights = features(model, records), copy.deepcopy(head_of(model)), np.linspace(0, 1, 6)
    train_part(model, "head", rank=1, seed=0)

    def clipped_sum(trained: torch.nn.Module, given: torch.Tensor) -> np.ndarray:
        parameters = [one for one in trained.parameters() if one.requires_grad]
        steps = DpSgd(
            trained,
            torch.optim.SGD(parameters, lr=1.0),
            Mechanism(0.5, 1.0, 1.0, 1.0),
            UnitSampler(np.arange(6), 1.0, 1),
            mode=mode,
            at_once=6,
            charge=lambda: None,
        )
        return steps.clipped_sum(everybody, weights, lambda index: trained(given[index]).square().sum(dim=1))

    assert np.abs(clipped_sum(model, records) - clipped_sum(head, cached)).max() < 1e-12


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name in SMALL for part in PARTS if part != "adapters" or name in ADAPTABLE],
)
def test_every_network_passes_the_preflight_of_private_training(name, part, mode):
    model = network(name)
    train_part(model, part, rank=2, seed=0)
    verify_private(model, inputs(PLANS[name], 2), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", LARGE)
def test_every_large_network_passes_it_too(name, part, mode):
    model = network(name)
    train_part(model, part, rank=2, seed=0)
    verify_private(model, inputs(PLANS[name], 2), mode)


def test_a_network_that_is_not_registered_has_no_known_head():
    with pytest.raises(TypeError, match="registered network"):
        head_of(torch.nn.Linear(2, 2))
    assert head_of(Mlp(2, [], 2)) is not None
