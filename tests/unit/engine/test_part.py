# SPDX-License-Identifier: Apache-2.0
"""Jobs in which a part of a network is trained: the rest is the plan's everywhere, and files have both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fairflare import presets, schema
from fairflare.engine.at_site import probabilities, read_model_file, score
from fairflare.engine.frozen import FROZEN, frozen_text
from fairflare.engine.local import local_masks, run_local
from fairflare.engine.messages import JOIN, MEASURE, Message
from fairflare.engine.pictures import synthetic_pictures
from fairflare.engine.results import FOLDER
from fairflare.engine.site import Site
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.engine.verify import verify_run
from fairflare.errors import RoundError, WeightsError
from fairflare.models import (
    build,
    frozen_arrays,
    frozen_sha256,
    frozen_tensors,
    initial_vector,
    load_frozen,
    load_vector,
    named_arrays,
    parameter_count,
    read_weights,
    to_vector,
    write_weights,
)
from fairflare.plan import Plan, network_of, parse_plan
from fairflare.privacy.dpsgd import DpSgd
from tests.unit.engine.hospitals import PLAIN_SGD, four, image_plan, masked, plan, records, three_of_images
from tests.unit.models.test_start import keep

SCAFFOLD = {"name": "scaffold", "global_lr": 1.0, "correction": "gradient", "control_lr": None, "control_clip": 64.0}
FLEXFAIR = presets.flexfair(presets.penalty("sex", "equal_opportunity", 1.0))


def part_of(the_plan: Plan, trained: str, rank: int | None = None, start: dict[str, str] | None = None) -> Plan:
    data = json.loads(schema.pretty(the_plan))
    network = json.loads(schema.pretty(network_of(the_plan.model)))
    data["model"] = {"name": "part", "network": network, "trained": trained, "rank": rank}
    return parse_plan(json.dumps({**data, "start": start or data["start"]}))


def from_file(sha256: str, tensors: str = "all") -> dict[str, str]:
    return {"kind": "file", "sha256": sha256, "tensors": tensors}


HEAD = part_of(masked(plan(presets.FEDAVG, rounds=2)), "head")
ADAPTERS = part_of(masked(plan(presets.FEDAVG, rounds=2)), "adapters", 2)
PLANS = {"head": HEAD, "adapters": ADAPTERS}


def kept(folder, site="amber", kind="final"):
    return folder / "sites" / site / FOLDER / f"{kind}.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for name, the_plan in PLANS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder, run_local(the_plan, four(), folder)
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_masked_run_trains_the_part_and_nothing_else(runs, name):
    folder, record = runs[name]
    assert record.status == "complete"
    assert all(line.refusals == () for line in record.rounds)
    verify_run(folder)
    vector = read_model(folder, PLANS[name], record.final.model_sha256)
    assert vector.size == parameter_count(build(PLANS[name])) < parameter_count(build(plan(presets.FEDAVG)))
    assert np.abs(vector - initial_vector(PLANS[name])).max() > 1e-3
    for site in four():
        for kind in ("final", "best"):
            file = read_model_file(kept(folder, site, kind))
            assert frozen_sha256(file.frozen) == frozen_sha256(frozen_tensors(PLANS[name]))
            assert file.model_sha256 == getattr(
                record.final, "model_sha256" if kind == "final" else "best_model_sha256"
            )
    assert np.array_equal(read_model_file(kept(folder)).vector, vector)


@pytest.mark.parametrize("name", PLANS)
def test_a_file_of_a_run_is_usable_alone(runs, name):
    """Its tensors, by name, make the network that the sites scored: nothing is missing and nothing is left over."""
    folder, _ = runs[name]
    the_plan, file = PLANS[name], read_weights(kept(folder))
    network = build(the_plan)
    assert set(file.tensors) == {own for own, _ in network.named_parameters()}
    with torch.no_grad():
        for own, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(np.array(file.tensors[own])))
    test = four()["amber"]().test
    with torch.no_grad():
        expected = network(torch.from_numpy(test.inputs)).double().softmax(dim=1).numpy()
    model = read_model_file(kept(folder))
    assert np.array_equal(probabilities(the_plan, score(model, test))[:, 1], expected[:, 1])


@pytest.mark.parametrize("name", PLANS)
def test_the_frozen_part_of_a_network_stays_through_training(name):
    trainer = Trainer(PLANS[name], "amber", records(37, 1))
    trainer.start_round(initial_vector(PLANS[name]))
    before, start = frozen_sha256(frozen_arrays(trainer.model)), trainer.vector()
    assert before == trainer.frozen_sha256 == frozen_sha256(frozen_tensors(PLANS[name]))
    for number, index in enumerate(trainer.batches(0)):
        trainer.step(0, number, index, {})
    assert frozen_sha256(frozen_arrays(trainer.model)) == before
    assert not np.array_equal(trainer.vector(), start)


@pytest.mark.parametrize("name", PLANS)
def test_a_step_is_that_of_bare_torch(name):
    the_plan, data = PLANS[name], records(20, 1)
    trainer, network = Trainer(the_plan, "amber", data), build(the_plan)
    load_frozen(network, frozen_tensors(the_plan))
    for one in (trainer.model, network):
        load_vector(one, initial_vector(the_plan))
    spec = the_plan.training.optimizer
    index = np.arange(20)
    optimizer = torch.optim.SGD(
        [one for one in network.parameters() if one.requires_grad], lr=spec.lr, momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )  # fmt: skip
    weights = torch.tensor(the_plan.training.class_weights)
    for number in range(3):
        trainer.step(0, number, index, {})
        labels = torch.from_numpy(data.labels)
        losses = torch.nn.functional.cross_entropy(network(torch.from_numpy(data.inputs)), labels, reduction="none")
        loss = (weights[labels] * losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.abs(trainer.vector() - to_vector(network)).max() < 1e-6


@pytest.mark.parametrize("method", [FLEXFAIR, {"name": "fedprox", "mu": 0.1}, SCAFFOLD])
def test_other_methods_train_parts_too(tmp_path, method):
    base = plan(method, rounds=2, work={"unit": "steps", "amount": 3}, optimizer=PLAIN_SGD)
    the_plan = part_of(base, "head")
    record = run_local(the_plan, four(), tmp_path)
    assert record.status == "complete"
    verify_run(tmp_path)
    assert frozen_sha256(read_model_file(kept(tmp_path)).frozen) == frozen_sha256(frozen_tensors(the_plan))


@pytest.mark.parametrize("trained", ["head", "adapters"])
def test_a_part_of_a_segmentation_is_trained(tmp_path, trained):
    the_plan = part_of(image_plan(presets.FEDAVG, rounds=1), trained, 1 if trained == "adapters" else None)
    record = run_local(the_plan, three_of_images(), tmp_path)
    assert record.status == "complete"
    assert record.final.model_sha256 != record.initial_model_sha256
    assert frozen_sha256(read_model_file(kept(tmp_path)).frozen) == frozen_sha256(frozen_tensors(the_plan))
    assert len(synthetic_pictures(the_plan, initial_vector(the_plan), ("hospital-1",))) == 2
    of_file = part_of(the_plan, trained, the_plan.model.rank, from_file("ab" * 32))
    assert synthetic_pictures(of_file, initial_vector(the_plan), ("hospital-1",)) == []


PRIVACY = {
    "clip": 1.0, "noise_multiplier": 0.7, "count_noise": 3.0, "records_per_unit": 1, "gradients": "ghost",
    "groups": None,
}  # fmt: skip


@pytest.mark.parametrize("gradients", ["hooks", "ghost"])
@pytest.mark.parametrize("name", PLANS)
def test_a_part_is_trained_with_differential_privacy(tmp_path, monkeypatch, name, gradients):
    """A head through its kept features: the rest of the network is no part of a private step."""
    data = json.loads(schema.pretty(PLANS[name]))
    data["differential_privacy"] = {**PRIVACY, "gradients": gradients}
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": 4}
    the_plan, trained = parse_plan(json.dumps(data)), []

    class Seen(DpSgd):
        def __init__(self, model, *arguments, **options):
            trained.append(type(model).__name__)
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr("fairflare.engine.private.DpSgd", Seen)
    record = run_local(the_plan, four(), tmp_path)
    assert record.status == "complete", record.reason
    assert set(trained) == {"Linear" if name == "head" else "Mlp"}
    assert record.final.model_sha256 != record.initial_model_sha256
    assert frozen_sha256(read_model_file(kept(tmp_path)).frozen) == frozen_sha256(frozen_tensors(the_plan))


# --------------------------------------------------------------------------------------------------------- weight files


def pretrained(folder) -> str:
    """A file of a whole network, and its hash."""
    whole = plan(presets.FEDAVG)
    vector = initial_vector(whole) * np.float32(1.5)
    return keep(folder, named_arrays(build(whole), vector))


@pytest.mark.parametrize(("trained", "rank"), [("head", None), ("adapters", 2)])
def test_a_backbone_from_a_file_is_frozen_at_every_site_and_in_every_file(tmp_path, trained, rank):
    sha256 = pretrained(tmp_path)
    the_plan = part_of(masked(plan(presets.FEDAVG, rounds=1)), trained, rank, from_file(sha256))
    record = run_local(the_plan, four(), tmp_path / "run", weights=tmp_path)
    assert record.status == "complete"
    backbone = read_weights(tmp_path / f"{sha256}.safetensors").tensors
    for site in four():
        file = read_model_file(kept(tmp_path / "run", site))
        assert file.frozen
        assert all(np.array_equal(array, backbone[name]) for name, array in file.frozen.items())
    test = four()["amber"]().test
    assert len(score(read_model_file(kept(tmp_path / "run")), test).loss) == len(test)  # needs no weights folder
    found = verify_run(tmp_path / "run", tmp_path)
    assert found.final == record.final


def test_a_site_without_the_file_says_so_when_it_joins(tmp_path):
    the_plan = part_of(plan(presets.FEDAVG), "head", None, from_file(pretrained(tmp_path)))
    site = Site("amber", the_plan, four()["amber"], tmp_path / "site", tmp_path / "elsewhere")
    with pytest.raises(WeightsError) as caught:
        site.handle(Message(JOIN, 0, 0, "s", the_plan.sha256))
    assert caught.value.code == "FF-WEIGHTS-MISSING"
    with pytest.raises(WeightsError, match="FF-WEIGHTS-MISSING"):
        Trainer(the_plan, "amber", records(10, 1))


@pytest.mark.parametrize("name", PLANS)
def test_the_next_plan_goes_on_from_a_runs_file(runs, tmp_path, name):
    folder, _ = runs[name]
    file = read_weights(kept(folder))
    start = from_file(keep(tmp_path, dict(file.tensors)))
    again = part_of(PLANS[name], PLANS[name].model.trained, PLANS[name].model.rank, start)
    assert np.array_equal(initial_vector(again, tmp_path), read_model_file(kept(folder)).vector)
    frozen = frozen_tensors(again, tmp_path)
    assert frozen_sha256(frozen) == frozen_sha256(read_model_file(kept(folder)).frozen)
    whole = json.loads(schema.pretty(plan(presets.FEDAVG)))
    whole = parse_plan(json.dumps({**whole, "start": start}))
    if name == "head":  # the whole network can be trained next
        assert initial_vector(whole, tmp_path).size == sum(array.size for array in file.tensors.values())
    else:
        with pytest.raises(WeightsError, match="FF-WEIGHTS-TENSORS"):
            initial_vector(whole, tmp_path)


# ------------------------------------------------------------------------------------------------------ files, tampered


def rewritten(source, target, texts=None, tensors=None):
    file = read_weights(source)
    about = {key: text for key, text in {**file.metadata, **(texts or {})}.items() if text is not None}
    write_weights(target, {**file.tensors, **(tensors or {})}, about)
    return target


@pytest.mark.parametrize("name", PLANS)
def test_a_file_with_other_frozen_tensors_than_it_says_is_refused(runs, tmp_path, name):
    source = kept(runs[name][0])
    frozen = next(iter(read_model_file(source).frozen))
    other = {frozen: read_weights(source).tensors[frozen] + np.float32(1)}
    for texts, tensors in (({}, other), ({"frozen_sha256": "ab" * 32}, {}), ({"frozen_sha256": None}, {})):
        with pytest.raises(WeightsError) as caught:
            read_model_file(rewritten(source, tmp_path / "x", texts, tensors))
        assert caught.value.code == "FF-WEIGHTS-MODEL"
        assert "frozen" in caught.value.got


def test_a_file_of_another_part_is_refused(runs, tmp_path):
    """The head's plan on the adapters' file, and the other way round."""
    for of, by in (("head", "adapters"), ("adapters", "head")):
        texts = {"plan": schema.canonical(PLANS[by]).decode(), "plan_sha256": PLANS[by].sha256}
        with pytest.raises(WeightsError) as caught:
            read_model_file(rewritten(kept(runs[of][0]), tmp_path / "x", texts))
        assert caught.value.code == "FF-WEIGHTS-TENSORS"


def test_a_file_of_a_whole_network_has_no_frozen_tensors(tmp_path):
    run_local(plan(presets.FEDAVG, rounds=1), four(), tmp_path)
    assert read_model_file(kept(tmp_path)).frozen == {}
    assert "frozen_sha256" not in read_weights(kept(tmp_path)).metadata
    with pytest.raises(WeightsError, match="FF-WEIGHTS-MODEL"):
        read_model_file(rewritten(kept(tmp_path), tmp_path / "x", {"frozen_sha256": frozen_sha256({})}))


# ------------------------------------------------------------------------------------------ the same at server and site


def joined(folder, the_plan):
    site = Site("amber", the_plan, four()["amber"], folder / "site", None, local_masks(the_plan, "amber"))
    site.handle(Message(JOIN, 0, 0, "s", the_plan.sha256))
    return site


def test_a_site_whose_frozen_weights_are_not_the_servers_does_nothing(tmp_path):
    the_plan = part_of(plan(presets.FEDAVG), "head")
    vectors = {"model": initial_vector(the_plan)}
    for text in ({}, {FROZEN: "ab" * 32}):
        site = joined(tmp_path, the_plan)
        with pytest.raises(RoundError) as caught:
            site.handle(Message(MEASURE, 0, 0, "s", the_plan.sha256, vectors, {}, text))
        assert caught.value.code == "FF-ROUND-FROZEN"
    right = frozen_text(the_plan, None)
    joined(tmp_path, the_plan).handle(Message(MEASURE, 0, 0, "s", the_plan.sha256, vectors, {}, right))


def test_of_a_whole_network_nothing_is_said(tmp_path):
    assert frozen_text(plan(presets.FEDAVG), None) == {}
    assert set(frozen_text(HEAD, None)) == {FROZEN}


def test_what_a_site_drew_otherwise_is_found(tmp_path, monkeypatch):
    """A torch whose generator gives other numbers: at one site of four."""
    the_plan = part_of(plan(presets.FEDAVG, rounds=1, min_sites=3), "head")
    drawn = frozen_tensors(the_plan)
    calls = []

    def other(one, weights=None):
        calls.append(one)
        return {name: array + np.float32(len(calls) == 2) * np.float32(1e-7) for name, array in drawn.items()}

    monkeypatch.setattr("fairflare.engine.site.frozen_tensors", other)
    record = run_local(the_plan, four(), tmp_path)
    assert record.status == "complete"
    assert {(refusal.site, refusal.code) for refusal in record.rounds[0].refusals} == {("beryl", "FF-ROUND-FROZEN")}
