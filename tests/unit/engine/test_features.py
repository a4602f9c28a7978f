# SPDX-License-Identifier: Apache-2.0
"""A head trained on features that are kept is the head trained in its network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fairflare import presets, schema
from fairflare.data.manifest import Records, SiteData
from fairflare.engine import features as kept_features
from fairflare.engine.local import run_local
from fairflare.engine.training import Trainer
from fairflare.models import initial_vector, load_frozen
from fairflare.models.adapters import head_of
from fairflare.plan import Plan, parse_plan
from tests.unit.engine.hospitals import image_plan, image_records, plan, records
from tests.unit.engine.test_part import part_of

FLEXFAIR = presets.flexfair(presets.penalty("sex", "equal_opportunity", 1.0))


def pictures(n: int, seed: int) -> Records:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n).astype(np.int64)
    pixels = random.integers(0, 256, (n, 3, 16, 16)) * np.where(labels, 1.0, 0.6)[:, None, None, None]
    groups = {name: random.integers(-1, 2, n).astype(np.int64) for name in ("sex", "age")}
    return Records(pixels.astype(np.uint8), labels, groups)


def skin(model: dict[str, object], augmentation: str = "none", method: dict[str, object] = presets.FEDAVG) -> Plan:
    data = json.loads(schema.pretty(presets.skin("test", presets.FEDAVG)))
    data["model"], data["protection"], data["method"] = model, presets.UNPROTECTED, method
    data["attributes"], data["intersections"] = [presets.SEX, presets.AGE], []
    data["task"]["input"].update(height=16, width=16, augmentation=augmentation)
    data["training"].update(rounds=2)
    return parse_plan(json.dumps(data))


CNN = {"name": "cnn", "widths": [8, 16]}
TABLES = part_of(plan(FLEXFAIR, rounds=2), "head")
IMAGES = part_of(skin(CNN), "head")
MAPS = json.loads(schema.pretty(part_of(image_plan(presets.FEDAVG, rounds=1), "head")))
MAPS["task"]["input"]["augmentation"] = "none"
MAPS = parse_plan(json.dumps(MAPS))
CASES = {"table": (TABLES, records(300, 1)), "image": (IMAGES, pictures(300, 1)), "maps": (MAPS, image_records(20, 1))}


def trainer_of(the_plan: Plan, data: Records, *parts: Records) -> Trainer:
    trainer = Trainer(the_plan, "amber", data)
    trainer.start_round(initial_vector(the_plan))
    trainer.keep_features(*parts)
    return trainer


def goes_through_the_head(trainer: Trainer) -> bool:
    return trainer.network is head_of(trainer.model)


def equal(one, other) -> bool:
    strata = zip(one.strata, other.strata, strict=True)
    return np.array_equal(one.loss, other.loss) and all(np.array_equal(a.value, b.value) for a, b in strata)


def calls(trainer: Trainer) -> list[int]:
    """How many records go through the body of the network from now on, pass by pass."""
    found: list[int] = []
    first = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear))
    first.register_forward_pre_hook(lambda _, given: found.append(len(given[0])))
    return found


@pytest.mark.parametrize("name", CASES)
def test_scores_of_kept_features_are_the_networks_to_the_bit(name):
    the_plan, data = CASES[name]
    other = data.take(np.arange(len(data))[::-1])
    plain, kept = trainer_of(the_plan, data), trainer_of(the_plan, data, data, other)
    assert goes_through_the_head(kept)
    assert not goes_through_the_head(plain)
    through = calls(kept)
    for one in (data, other):
        assert equal(plain.scores(one), kept.scores(one))
    assert through == []
    same = data.take(np.arange(len(data)))  # equal records, but nobody said so
    assert equal(plain.scores(same), kept.scores(same))
    assert sum(through) == len(data)


@pytest.mark.parametrize("name", CASES)
def test_steps_on_kept_features_are_the_networks(name):
    the_plan, data = CASES[name]
    plain, kept = trainer_of(the_plan, data), trainer_of(the_plan, data, data)
    through, far = calls(kept), 0.0
    for number, index in enumerate(plain.batches(0)):
        losses = [one.step(0, number, index, {}) for one in (plain, kept)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        far = max(far, float(np.abs(plain.vector() - kept.vector()).max()))
    assert through == []
    assert far < 1e-6
    assert np.abs(plain.vector() - initial_vector(the_plan)).max() > 1e-3
    index = np.arange(7)
    batch = [one.batch_scores(0, 0, index).loss for one in (plain, kept)]
    assert np.abs(batch[0] - batch[1]).max() < 1e-5
    assert torch.allclose(plain.record_losses(0, 0, index), kept.record_losses(0, 0, index), atol=1e-5)
    empty = np.zeros(0, dtype=np.int64)
    assert kept.record_losses(0, 0, empty).shape == plain.record_losses(0, 0, empty).shape


def test_a_run_computes_features_once_and_learns_the_same(tmp_path, monkeypatch):
    """Two rounds of four hospitals; the body of the network sees each training and validation record once."""
    parts = ((40, 0), (15, 10), (9, 20))
    data = {name: SiteData(*(pictures(n, k + at) for n, at in parts), 0) for k, name in enumerate("abcd")}
    loaders = {name: (lambda one=one: one) for name, one in data.items()}
    seen: dict[int, int] = {}
    original = kept_features.features

    def counted(model, inputs):
        seen[id(model)] = seen.get(id(model), 0) + len(inputs)
        return original(model, inputs)

    monkeypatch.setattr(kept_features, "features", counted)
    cached = run_local(IMAGES, loaders, tmp_path / "cached")
    assert sorted(seen.values()) == [40 + 1 + 15 + 1] * 4  # one of each to see how large they are
    monkeypatch.setattr(Trainer, "keep_features", lambda *_: None)
    plain = run_local(IMAGES, loaders, tmp_path / "plain")
    assert cached.status == plain.status == "complete"
    for one, other in zip(cached.rounds, plain.rounds, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_nothing_is_kept_where_features_change_or_the_head_is_not_all_that_is_trained():
    adapters = part_of(skin(CNN), "adapters", 2)
    flipped = part_of(skin(CNN, "flips"), "head")
    data = pictures(20, 1)
    for the_plan in (skin(CNN), adapters, flipped):
        assert not goes_through_the_head(trainer_of(the_plan, data, data))
    mixup = {
        "name": "fairmixup", "attribute": "sex", "criterion": "demographic_parity", "strength": 1.0,
        "direction": "difference", "output": "probability",
    }  # fmt: skip
    mixed = part_of(skin(CNN, method=mixup), "head")
    assert mixed.method.mixing is not None
    assert not goes_through_the_head(trainer_of(mixed, data, data))


def test_a_network_that_does_more_behind_its_head_keeps_nothing():
    data = json.loads(schema.pretty(MAPS))
    data["model"]["network"] = {"name": "sanet_light", "head": 8}
    data["task"]["input"].update(height=32, width=32)
    the_plan = parse_plan(json.dumps(data))
    small = image_records(3, 1)
    pixels, masks = small.inputs.repeat(2, 2).repeat(2, 3), small.masks.repeat(2, 1).repeat(2, 2)
    large = Records(pixels, small.labels, small.groups, masks)
    assert not goes_through_the_head(trainer_of(the_plan, large, large))


def test_features_beyond_the_bound_are_not_kept(monkeypatch):
    data, other = pictures(20, 1), pictures(5, 2)
    size = 16 * 4
    for most, kept in ((25 * size, (True, True)), (25 * size - 1, (True, False)), (20 * size - 1, (False, True))):
        monkeypatch.setattr(kept_features, "MOST_BYTES", most)
        trainer = trainer_of(IMAGES, data, data, other)
        assert tuple(trainer._features.of(one) is not None for one in (data, other)) == kept
        assert goes_through_the_head(trainer) == kept[0]


def test_other_frozen_weights_make_kept_features_void():
    data = pictures(20, 1)
    trainer = trainer_of(IMAGES, data, data)
    plain = trainer_of(IMAGES, data)
    assert goes_through_the_head(trainer)
    for one in (trainer, plain):
        load_frozen(one.model, {name: array * np.float32(2) for name, array in one.frozen.items()})
    assert not goes_through_the_head(trainer)
    assert equal(trainer.scores(data), plain.scores(data))


def test_another_trained_vector_does_not():
    data = pictures(20, 1)
    trainer, plain = trainer_of(IMAGES, data, data), trainer_of(IMAGES, data)
    for one in (trainer, plain):
        one.start_round(initial_vector(IMAGES) + np.float32(0.5))
    assert goes_through_the_head(trainer)
    assert equal(trainer.scores(data), plain.scores(data))


def test_weights_that_make_no_numbers_keep_nothing():
    data = pictures(20, 1)
    trainer = Trainer(IMAGES, "amber", data, {name: array * np.float32(np.nan) for name, array in frozen().items()})
    trainer.keep_features(data)
    assert not goes_through_the_head(trainer)


def frozen():
    return Trainer(IMAGES, "amber", pictures(2, 1)).frozen


def test_no_records_keep_nothing():
    data = pictures(4, 1)
    nobody = data.take(np.zeros(0, dtype=np.int64))
    trainer = trainer_of(IMAGES, data, nobody, data)
    assert goes_through_the_head(trainer)
    assert trainer.scores(nobody).loss.shape == (0,)
