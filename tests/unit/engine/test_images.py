# SPDX-License-Identifier: Apache-2.0
"""Segmentation from end to end in one process: what is measured, what is kept, and a model that learns nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional

from fairflare import presets
from fairflare.engine.local import run_local
from fairflare.engine.objective import Masks, predicted_labels
from fairflare.engine.store import read_best, read_model
from fairflare.engine.training import Trainer
from fairflare.engine.verify import verify_run
from fairflare.fairness.groups import EVERYBODY, EvaluationSums
from fairflare.models import initial_vector
from fairflare.record import best_model, read_record, validation_value
from tests.unit.engine.hospitals import SIDE, image_plan, image_records, plan, segmentation_task, three_of_images

NAMES = ("background", "part0", "part1")


def masks_objective(maps: int, weights: tuple[float, ...] | None = None) -> Masks:
    return Masks(segmentation_task(NAMES[: maps + 1], SIDE), torch.tensor(weights or (1.0,) * (maps + 1)))


@pytest.mark.parametrize("maps", [1, 2])
def test_dice_of_each_image_is_the_f1_of_its_pixels(maps):
    random = np.random.default_rng(4)
    records = image_records(9, 1, maps=maps)
    records.masks[0] = 0
    outputs = torch.from_numpy(random.normal(size=(9, maps, SIDE, SIDE)))
    outputs[0] = -1.0  # nothing there and nothing predicted
    outputs[1] = -1.0  # something there and nothing predicted
    scores = masks_objective(maps).scores(outputs, torch.from_numpy(records.masks.astype(np.int64)), np.inf)
    predicted = predicted_labels(outputs).numpy()
    for label in range(1, maps + 1):
        expected = [
            f1_score((mask == label).ravel(), (guess == label).ravel(), zero_division=1.0)
            for mask, guess in zip(records.masks, predicted, strict=True)
        ]
        assert np.allclose(scores.strata[label - 1].value, expected, rtol=0, atol=1e-12)
        images, none, full = scores.predictions.reshape(maps, 3)[label - 1]
        assert (images, full) == (9, 0)
        assert none == sum(not (guess == label).any() for guess in predicted) >= 2


def test_a_pixel_has_the_label_of_the_largest_logit_above_zero():
    outputs = torch.tensor([[-1.0, 2.0, 1.0], [-2.0, 1.0, 3.0]]).view(1, 2, 1, 3)
    assert predicted_labels(outputs).tolist() == [[[0, 1, 2]]]


def test_class_weights_weigh_pixels_of_their_label():
    records = image_records(4, 2)
    target = torch.from_numpy(records.masks.astype(np.int64))
    outputs = torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, weighed = (masks_objective(1, weights).task_loss(outputs, target) for weights in ((1.0, 1.0), (1.0, 3.0)))
    pixels = functional.binary_cross_entropy_with_logits(outputs[:, 0], target.double(), reduction="none")
    assert float(weighed - plain) == pytest.approx(float((2.0 * pixels * (target == 1)).mean()), abs=1e-12)


def test_an_image_and_its_mask_are_turned_together(tmp_path):
    the_plan = image_plan(presets.FEDAVG)
    records = image_records(8, 3, contrast=150.0)
    trainer = Trainer(the_plan, "amber", records)
    plain, turned = trainer.tensor(records.inputs), 0
    for number in range(4):
        inputs, target = trainer.batch(0, number, np.arange(8))
        bright = (inputs[:, 0] * 0.25 + 0.5) * 255 > 135
        assert float((bright == (target == 1)).double().mean()) > 0.99
        turned += int((inputs != plain).any(dim=(1, 2, 3)).sum())
    assert turned > 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    equal = presets.penalty("sex_age", "equal_accuracy", 2.0, utility="dice_loss")
    the_plan = image_plan(presets.flexfair(equal), rounds=6)
    return folder, run_local(the_plan, three_of_images(), folder)


def test_a_run_learns_and_verifies(trained):
    folder, record = trained
    assert record.status == "complete", record.reason
    assert verify_run(folder) == record
    values = [validation_value(line.validation) for line in record.rounds]
    assert values[-1] > 0.5 > values[0]
    assert set(record.plan.sizes) == {"sex", "age", "sex_age"}
    assert record.plan.groups["sex_age"] == ("female+lt60", "female+ge60", "male+lt60", "male+ge60")


def test_the_sums_of_the_record_are_those_of_the_sites_images(trained):
    folder, record = trained
    model = read_model(folder, record.plan, record.final.model_sha256)
    total = None
    for name, load in three_of_images().items():
        data = load()
        trainer = Trainer(record.plan, name, data.training)
        trainer.start_round(model)
        strata = trainer.scores(data.test).strata
        sums = EvaluationSums.measure(strata, data.test.groups, record.plan.sizes, 200, 0)
        total = sums if total is None else total + sums
    found = record.evaluation("test")
    for name, table in total.cells.items():
        assert np.allclose(found.cells[name], table, rtol=0, atol=1e-9)
    assert found.cells[EVERYBODY][0, 0, 0] == sum(len(load().test) for load in three_of_images().values())


def test_the_best_model_is_the_one_with_the_highest_validation_dice(trained):
    folder, record = trained
    place, sha256 = best_model(record)
    values = [validation_value(line.validation) for line in record.rounds]
    final = record.evaluation("validation").cells[EVERYBODY][0, 0]
    values.append(final[3] / final[0])
    assert values[place] == max(values)
    assert (record.final.best_rounds, record.final.best_model_sha256) == (place, sha256)
    assert read_model(folder, record.plan, sha256) is not None
    assert (read_best(folder, record) == read_model(folder, record.plan, sha256)).all()


@pytest.mark.parametrize(("bias", "expected"), [(-60.0, "all_background"), (60.0, "all_foreground")])
def test_a_model_that_paints_everything_alike_is_named_in_the_record(tmp_path, monkeypatch, bias, expected):
    # A learning rate of almost nothing keeps the model where it starts.
    optimizer = {"name": "sgd", "lr": 1e-12, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
    the_plan = image_plan(presets.FEDAVG, rounds=2, optimizer=optimizer)
    start = initial_vector(the_plan)
    start[-1] = bias  # the last number is the bias of the last convolution
    monkeypatch.setattr("fairflare.engine.server.initial_vector", lambda *_: start)
    record = run_local(the_plan, three_of_images(), tmp_path)
    assert [line.collapse for line in record.rounds] == [expected, expected]
    assert (record.final.validation_collapse, record.final.test_collapse) == (expected, expected)
    assert read_record(tmp_path).final == record.final


def test_a_constant_classifier_is_named_and_a_trained_one_is_not(tmp_path):
    from tests.unit.engine.hospitals import four

    slow = {"name": "sgd", "lr": 1e-12, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
    trained = run_local(plan(presets.FEDAVG, rounds=2), four(), tmp_path / "trained")
    assert [line.collapse for line in trained.rounds] == [None, None]
    loaders = {name: (lambda load=load: blind(load())) for name, load in four().items()}
    record = run_local(plan(presets.FEDAVG, rounds=1, optimizer=slow), loaders, tmp_path / "blind")
    assert record.rounds[0].collapse == record.final.test_collapse == "constant"
    verify_run(tmp_path / "blind")


def blind(data):
    """The same records with nothing to see: every score is the same."""
    for split in (data.training, data.validation, data.test):
        split.inputs[:] = 0
    return data


def test_a_model_that_finds_nothing_where_nothing_is_has_not_failed(tmp_path, monkeypatch):
    optimizer = {"name": "sgd", "lr": 1e-12, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
    the_plan = image_plan(presets.FEDAVG, rounds=1, optimizer=optimizer)
    start = initial_vector(the_plan)
    start[-1] = -60.0
    monkeypatch.setattr("fairflare.engine.server.initial_vector", lambda *_: start)
    loaders = {name: (lambda load=load: empty(load())) for name, load in three_of_images().items()}
    record = run_local(the_plan, loaders, tmp_path)
    assert record.rounds[0].collapse is None
    assert record.final.test_collapse is None


def empty(data):
    """The same images with nothing to find."""
    for split in (data.training, data.validation, data.test):
        split.masks[:] = 0
    return data
