# SPDX-License-Identifier: Apache-2.0
"""A network of which a part is trained: what travels is that part, and the rest is the same wherever the plan is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fairflare import schema
from fairflare.errors import PrivacyError, WeightsError
from fairflare.models import (
    build,
    frozen_arrays,
    frozen_sha256,
    frozen_tensors,
    frozen_tensors_of,
    initial_vector,
    load_frozen,
    load_vector,
    named_arrays,
    parameter_count,
    read_weights,
    to_vector,
    to_vector_of,
    trained_parameters,
    vector_sha256,
    whole_arrays,
)
from fairflare.models.adapters import head_of, is_adapters
from fairflare.plan import Plan, parse_plan
from tests.unit.models.test_models import PLANS, inputs
from tests.unit.models.test_start import keep

NETWORKS = ("mlp", "cnn", "unet", "sanet_light")
PARTS = [(name, part) for name in NETWORKS for part in ("head", "adapters") if (name, part) != ("mlp", "adapters")]


def part_of(plan: Plan, trained: str, start: dict[str, str] | None = None, rank: int = 2) -> Plan:
    data = json.loads(schema.pretty(plan))
    rank_ = rank if trained == "adapters" else None
    data["model"] = {"name": "part", "network": data["model"], "trained": trained, "rank": rank_}
    return parse_plan(json.dumps({**data, "start": start or data["start"]}))


def started(plan: Plan, start: dict[str, str]) -> Plan:
    return parse_plan(json.dumps({**json.loads(schema.pretty(plan)), "start": start}))


def from_file(sha256: str, tensors: str) -> dict[str, str]:
    return {"kind": "file", "sha256": sha256, "tensors": tensors}


def used(plan: Plan, folder=None, vector=None) -> torch.nn.Module:
    """The network as a site uses it."""
    model = build(plan)
    load_frozen(model, frozen_tensors(plan, folder))
    load_vector(model, initial_vector(plan, folder) if vector is None else vector)
    return model


def whole(plan: Plan, folder=None) -> dict[str, np.ndarray]:
    return whole_arrays(build(plan), initial_vector(plan, folder), frozen_tensors(plan, folder))


def changed(arrays):
    """Other numbers everywhere, as after a training."""
    return {name: array + np.float32(0.25) for name, array in arrays.items()}


def refused(call, *arguments) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize(("name", "trained"), PARTS)
def test_only_the_trained_part_travels(name, trained):
    plan = part_of(PLANS[name], trained)
    model, vector = build(plan), initial_vector(plan)
    names = [own for own, one in model.named_parameters() if one.requires_grad]
    head = {id(one) for one in head_of(model).parameters()}
    expected = [own for own, one in model.named_parameters() if id(one) in head or is_adapters(own)]
    assert names == expected
    assert any(map(is_adapters, names)) == (trained == "adapters")
    size = sum(one.numel() for one in trained_parameters(model))
    assert vector.shape == (size,) == (parameter_count(model),) == to_vector(model).shape
    assert size < parameter_count(build(PLANS[name]))
    assert list(named_arrays(model, vector)) == names
    with pytest.raises(ValueError, match="got a vector"):
        load_vector(model, initial_vector(PLANS[name]))


@pytest.mark.parametrize(("name", "trained"), PARTS)
def test_a_part_starts_as_the_network_that_the_seed_gives(name, trained):
    """Trained and frozen numbers are those of the same plan without a part; adapters start at no effect."""
    plan, plain = part_of(PLANS[name], trained), PLANS[name]
    base = named_arrays(build(plain), initial_vector(plain))
    now = whole(plan)
    assert list(now) == [own for own, _ in build(plan).named_parameters()]
    assert base.keys() == {own for own in now if not is_adapters(own)}
    assert all(np.array_equal(now[own], array) for own, array in base.items())
    network = build(plain)
    load_vector(network, initial_vector(plain))
    with torch.no_grad():
        assert torch.equal(used(plan)(inputs(plain)), network(inputs(plain)))


def test_frozen_tensors_are_the_same_everywhere_and_leave_torchs_generator_alone():
    plan = part_of(PLANS["cnn"], "head")
    before = torch.random.get_rng_state()
    first = frozen_tensors(plan)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert frozen_sha256(first) == frozen_sha256(frozen_tensors(plan))
    data = json.loads(schema.pretty(plan))
    data["training"]["seed"] += 1
    assert frozen_sha256(first) != frozen_sha256(frozen_tensors(parse_plan(json.dumps(data))))
    assert frozen_tensors(PLANS["cnn"]) == {}


def test_frozen_tensors_are_not_a_networks_arbitrary_ones_until_they_are_loaded():
    plan = part_of(PLANS["cnn"], "head")
    model = build(plan)
    assert frozen_sha256(frozen_arrays(model)) != frozen_sha256(frozen_tensors(plan))
    trained = to_vector(model)
    load_frozen(model, frozen_tensors(plan))
    assert frozen_sha256(frozen_arrays(model)) == frozen_sha256(frozen_tensors(plan))
    assert np.array_equal(to_vector(model), trained)


def test_loading_a_vector_leaves_what_is_frozen_and_copies_are_copies():
    plan = part_of(PLANS["cnn"], "adapters")
    model = used(plan)
    kept = frozen_arrays(model)
    load_vector(model, initial_vector(plan) + np.float32(1))
    assert frozen_sha256(frozen_arrays(model)) == frozen_sha256(kept)
    with torch.no_grad():
        next(one for one in model.parameters() if not one.requires_grad).add_(1)
    assert frozen_sha256(frozen_arrays(model)) != frozen_sha256(kept)


def test_other_tensors_than_the_frozen_ones_are_not_loaded():
    plan = part_of(PLANS["cnn"], "head")
    model, tensors = build(plan), dict(frozen_tensors(plan))
    name, array = next(iter(tensors.items()))
    for other in (
        {},
        {**tensors, "8.weight": array},
        {**tensors, name: array.ravel()},
        {own: one for own, one in tensors.items() if own != name},
    ):
        with pytest.raises(ValueError, match="frozen tensors that are not"):
            load_frozen(model, other)
        with pytest.raises(ValueError, match="frozen tensors that are not"):
            whole_arrays(model, initial_vector(plan), other)


def test_the_hash_of_frozen_tensors_is_of_names_shapes_and_numbers():
    one = np.arange(6, dtype=np.float32)
    hashes = {
        frozen_sha256(tensors)
        for tensors in (
            {}, {"a": one}, {"b": one}, {"a": one.reshape(2, 3)}, {"a": one.reshape(3, 2)}, {"a": one + 1},
            {"a": one[:3], "b": one[3:]}, {"a": one[:2], "b": one[2:]},
        )
    }  # fmt: skip
    assert len(hashes) == 8
    assert frozen_sha256({"a": one}) != vector_sha256(one)


# ------------------------------------------------------------------------------------------------------- starts by file


@pytest.mark.parametrize("tensors", ["all", "matching"])
@pytest.mark.parametrize("trained", ["head", "adapters"])
def test_a_part_of_a_whole_networks_file_is_frozen(tmp_path, trained, tensors):
    plain = PLANS["cnn"]
    given = changed(named_arrays(build(plain), initial_vector(plain)))
    plan = part_of(plain, trained, from_file(keep(tmp_path, given), tensors))
    now, drawn = whole(plan, tmp_path), whole(part_of(plain, trained))
    assert list(now) == list(drawn)
    for name, array in now.items():
        assert np.array_equal(array, drawn[name] if is_adapters(name) else given[name])
    # Adapters start at no effect beside any weights.
    network = build(plain)
    load_vector(network, initial_vector(started(plain, from_file(plan.start.sha256, "all")), tmp_path))
    with torch.no_grad():
        assert torch.equal(used(plan, tmp_path)(inputs(plan)), network(inputs(plan)))


def test_matching_freezes_what_it_finds_and_draws_the_rest(tmp_path):
    plain = PLANS["cnn"]
    drawn = whole(part_of(plain, "head"))
    first = next(iter(drawn))
    given = changed({first: drawn[first]})
    plan = part_of(plain, "head", from_file(keep(tmp_path, given), "matching"))
    frozen = frozen_tensors(plan, tmp_path)
    assert np.array_equal(frozen[first], given[first])
    assert all(np.array_equal(frozen[name], drawn[name]) for name in frozen if name != first)
    assert np.array_equal(initial_vector(plan, tmp_path), initial_vector(part_of(plain, "head")))


@pytest.mark.parametrize("tensors", ["all", "matching"])
@pytest.mark.parametrize("trained", ["head", "adapters"])
def test_training_goes_on_from_a_parts_file(tmp_path, trained, tensors):
    given = changed(whole(part_of(PLANS["cnn"], trained)))
    plan = part_of(PLANS["cnn"], trained, from_file(keep(tmp_path, given), tensors))
    now = whole(plan, tmp_path)
    assert all(np.array_equal(now[name], given[name]) for name in given)


def test_a_head_was_trained_of_the_same_network_so_all_of_it_may_be_trained_next(tmp_path):
    given = changed(whole(part_of(PLANS["cnn"], "head")))
    plan = started(PLANS["cnn"], from_file(keep(tmp_path, given), "all"))
    vector = initial_vector(plan, tmp_path)
    assert np.array_equal(vector, np.concatenate([one.ravel() for one in given.values()]))


@pytest.mark.parametrize("tensors", ["all", "matching"])
def test_adapters_are_not_lost_or_mixed(tmp_path, tensors):
    """A file with adapters is of another network than one without, or with others: its layers alone are no model."""
    given = whole(part_of(PLANS["cnn"], "adapters"))
    start = from_file(keep(tmp_path, given), tensors)
    ups = [name for name in given if name.endswith("adapter.up.weight")]
    without_one = {name: array for name, array in given.items() if name != ups[0]}
    for plan in (
        started(PLANS["cnn"], start),
        part_of(PLANS["cnn"], "head", start),
        part_of(PLANS["cnn"], "adapters", start, rank=3),
        part_of(PLANS["cnn"], "adapters", from_file(keep(tmp_path, without_one), tensors)),
    ):
        assert refused(initial_vector, plan, tmp_path).code == "FF-WEIGHTS-TENSORS"
        if plan.model.name == "part":
            assert refused(frozen_tensors, plan, tmp_path).code == "FF-WEIGHTS-TENSORS"


def test_a_file_that_is_not_there_is_missed_by_name(tmp_path):
    plan = part_of(PLANS["cnn"], "head", from_file("ab" * 32, "all"))
    for folder in (None, tmp_path):
        problem = refused(frozen_tensors, plan, folder)
        assert problem.code == "FF-WEIGHTS-MISSING"
        assert "ab" * 32 in str(problem)
    parameter_count(build(plan))  # needs no file


@pytest.mark.parametrize("trained", ["head", "adapters"])
def test_a_models_file_holds_every_tensor(tmp_path, trained):
    """Unlike a start, it may not leave out the adapters: without them it would be another model."""
    plan = part_of(PLANS["cnn"], trained)
    given = changed(whole(plan))
    file = read_weights(tmp_path / f"{keep(tmp_path, given)}.safetensors")
    vector, frozen = to_vector_of(plan, file), frozen_tensors_of(plan, file)
    found = whole_arrays(build(plan), vector, frozen)
    assert all(np.array_equal(found[name], given[name]) for name in given)
    assert frozen_tensors_of(PLANS["mlp"], read_weights(tmp_path / f"{keep_whole(tmp_path)}.safetensors")) == {}
    for name in given:
        less = {own: array for own, array in given.items() if own != name}
        assert (
            refused(to_vector_of, plan, read_weights(tmp_path / f"{keep(tmp_path, less)}.safetensors")).code
            == "FF-WEIGHTS-TENSORS"
        )
    base = {own: array for own, array in given.items() if not is_adapters(own)}
    if trained == "adapters":
        bare = read_weights(tmp_path / f"{keep(tmp_path, base)}.safetensors")
        assert refused(to_vector_of, plan, bare).code == "FF-WEIGHTS-TENSORS"
        assert refused(frozen_tensors_of, plan, bare).code == "FF-WEIGHTS-TENSORS"


def keep_whole(folder) -> str:
    return keep(folder, named_arrays(build(PLANS["mlp"]), initial_vector(PLANS["mlp"])))


def test_adapters_that_would_make_nothing_smaller_are_refused_by_name():
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        build(part_of(PLANS["cnn"], "adapters", rank=64))
    with pytest.raises(PrivacyError, match="FF-PRIVACY-PART"):
        initial_vector(part_of(PLANS["linear"], "adapters"))
