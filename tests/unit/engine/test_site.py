# SPDX-License-Identifier: Apache-2.0
"""What a site refuses, and what it does with its optimiser, its batches and its stop signal."""

from __future__ import annotations

import numpy as np
import pytest

from fairflare import presets
from fairflare.engine.messages import EVALUATE, FINISH, JOIN, MEASURE, STEP, TRAIN, Message
from fairflare.engine.site import Site
from fairflare.engine.training import Trainer
from fairflare.errors import DataError, GateError, RoundError
from fairflare.models import initial_vector, vector_sha256
from tests.unit.engine.hospitals import SGD, four, hospital, plan, records

FAIR = plan(presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0)))


@pytest.fixture
def site(tmp_path):
    return Site("amber", FAIR, four()["amber"], tmp_path)


def message(the_plan, task, round_=0, step=0, **changes):
    model = initial_vector(the_plan)
    vectors = {"model": model} if task in (MEASURE, EVALUATE) else {}
    if task == FINISH:
        vectors = {"best": model, "record": np.frombuffer(b"{}", dtype=np.uint8)}
    if task in (TRAIN, STEP):
        vectors = {"totals": np.zeros(12)}
    numbers = {"records": 180.0, "sites": 4.0} if task in (TRAIN, STEP) else {}
    text = {} if task == JOIN else {"model_sha256": vector_sha256(model)}
    fields = {
        "task": task, "round": round_, "step": step, "session": "s", "plan_sha256": the_plan.sha256,
        "vectors": vectors, "numbers": numbers, "text": text,
    }  # fmt: skip
    return Message(**{**fields, **changes})


def joined(site):
    site.handle(message(FAIR, JOIN))
    return site


def code_of(site, one):
    with pytest.raises(RoundError) as caught:
        site.handle(one)
    assert caught.value.got
    assert caught.value.next_step
    return caught.value.code


def test_a_round_gives_what_the_layout_says(site):
    joined(site)
    measured = site.handle(message(FAIR, MEASURE))
    assert set(measured.payloads) == {"present_records", "risk_sums", "validation_sums"}
    trained = site.handle(message(FAIR, TRAIN))
    assert set(trained.payloads) == {"update", "training_sums"}
    assert trained.payloads["update"].weight == 40
    assert set(site.handle(message(FAIR, EVALUATE, 20)).payloads) == {"validation_sums", "test_sums"}
    assert code_of(site, message(FAIR, FINISH, 20)) == "FF-ROUND-RECORD"


@pytest.mark.parametrize("task", [MEASURE, TRAIN, EVALUATE, FINISH])
def test_nothing_before_join(site, task):
    assert code_of(site, message(FAIR, task)) == "FF-ROUND-NOT-JOINED"


HOSTILE = {
    "another plan": (message(FAIR, MEASURE, plan_sha256="0" * 64), "FF-ROUND-PLAN"),
    "an unknown task": (message(FAIR, "shell"), "FF-ROUND-TASK"),
    "lock step that the plan does not have": (message(FAIR, STEP), "FF-ROUND-TASK"),
    "another session": (message(FAIR, MEASURE, session="t"), "FF-ROUND-SESSION"),
    "no model": (message(FAIR, MEASURE, vectors={}), "FF-ROUND-INPUT"),
    "one vector too many": (
        message(FAIR, MEASURE, vectors={"model": initial_vector(FAIR), "x": np.zeros(1)}), "FF-ROUND-INPUT",
    ),
    "a model of another size": (message(FAIR, MEASURE, vectors={"model": initial_vector(FAIR)[1:]}), "FF-ROUND-INPUT"),
    "a model of float64": (
        message(FAIR, MEASURE, vectors={"model": initial_vector(FAIR).astype(float)}), "FF-ROUND-INPUT",
    ),
    "a model with NaN": (
        message(FAIR, MEASURE, vectors={"model": initial_vector(FAIR) * np.float32("nan")}), "FF-ROUND-INPUT",
    ),
    "training without measuring": (message(FAIR, TRAIN), "FF-ROUND-MODEL"),
    "totals of another length": (message(FAIR, TRAIN, vectors={"totals": np.zeros(11)}), "FF-ROUND-INPUT"),
    "fewer records than its own": (message(FAIR, TRAIN, numbers={"records": 9.0, "sites": 4.0}), "FF-ROUND-INPUT"),
    "no sites": (message(FAIR, TRAIN, numbers={"records": 180.0, "sites": 0.0}), "FF-ROUND-INPUT"),
    "NaN sites": (message(FAIR, TRAIN, numbers={"records": 180.0, "sites": float("nan")}), "FF-ROUND-INPUT"),
    "no numbers": (message(FAIR, TRAIN, numbers={}), "FF-ROUND-INPUT"),
    "a final model never evaluated": (message(FAIR, FINISH, FAIR.training.rounds), "FF-ROUND-MODEL"),
    "the end before the last round": (message(FAIR, FINISH), "FF-ROUND-ROUND"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_site_refuses(site, what):
    one, code = HOSTILE[what]
    assert code_of(joined(site), one) == code


def test_a_site_does_not_train_twice_on_one_measurement_nor_on_another_model(site):
    joined(site).handle(message(FAIR, MEASURE, 3))
    assert code_of(site, message(FAIR, MEASURE, 3)) == "FF-ROUND-REPEAT"
    assert code_of(site, message(FAIR, MEASURE, 2)) == "FF-ROUND-REPEAT"
    assert code_of(site, message(FAIR, TRAIN, 4)) == "FF-ROUND-MODEL"
    assert code_of(site, message(FAIR, TRAIN, 3, text={"model_sha256": "0" * 64})) == "FF-ROUND-MODEL"
    site.handle(message(FAIR, TRAIN, 3))
    assert code_of(site, message(FAIR, TRAIN, 3)) == "FF-ROUND-MODEL"


def test_a_site_stops_when_it_is_told_to(site):
    joined(site).handle(message(FAIR, MEASURE))
    site.stop = lambda: True
    assert code_of(site, message(FAIR, TRAIN)) == "FF-ROUND-ABORTED"


def test_an_update_with_nan_stays_at_the_site_and_the_optimiser_is_forgotten(tmp_path):
    wild = {**SGD, "lr": 1e30}
    the_plan = plan(presets.FEDAVG, optimizer=wild)
    site = Site("amber", the_plan, four()["amber"], tmp_path)
    site.handle(message(the_plan, JOIN))
    site.handle(message(the_plan, MEASURE))
    with pytest.raises(GateError) as caught:
        site.handle(message(the_plan, TRAIN, vectors={"totals": np.zeros(0)}))
    assert caught.value.code == "FF-GATE-NAN"
    log = (tmp_path / "releases.jsonl").read_text(encoding="utf-8")
    assert '"event": "release", "round": 0, "step": 0, "task": "train"' not in log
    assert not site._trainer.optimizer.state


def test_lock_step_wants_its_steps_in_order(tmp_path):
    method = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0), refresh="step")
    the_plan = plan(method, work={"unit": "steps", "amount": 2})
    site = Site("amber", the_plan, four()["amber"], tmp_path)
    site.handle(message(the_plan, JOIN))
    site.handle(message(the_plan, MEASURE))
    assert code_of(site, message(the_plan, STEP, step=1)) == "FF-ROUND-STEP"
    site.handle(message(the_plan, STEP, step=0))
    site.handle(message(the_plan, STEP, step=1))
    assert set(site.handle(message(the_plan, TRAIN)).payloads) == {"update", "training_sums"}


def test_too_few_records_for_the_batches_are_refused_at_join(tmp_path):
    the_plan = plan(presets.FEDAVG, batch={"unit": "batches_per_epoch", "amount": 41})
    with pytest.raises(DataError) as caught:
        Site("amber", the_plan, four()["amber"], tmp_path).handle(message(the_plan, JOIN))
    assert caught.value.code == "FF-DATA-FEW"


def test_an_epoch_uses_every_record_once_and_rounds_and_sites_differ():
    trainer = Trainer(FAIR, "amber", records(37, 1))
    first, again, later = (list(trainer.batches(round_)) for round_ in (0, 0, 1))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.size for part in first] == [16, 16, 5]
    assert sorted(np.concatenate(first)) == list(range(37))
    assert np.concatenate(first).tolist() != np.concatenate(later).tolist()
    other = np.concatenate(list(Trainer(FAIR, "beryl", records(37, 1)).batches(0)))
    assert np.concatenate(first).tolist() != other.tolist()


def test_every_site_makes_the_same_number_of_steps_in_batches_per_epoch():
    the_plan = plan(presets.FEDAVG, batch={"unit": "batches_per_epoch", "amount": 7})
    sizes = [[part.size for part in Trainer(the_plan, "a", records(n, 1)).batches(0)] for n in (20, 61)]
    assert [len(one) for one in sizes] == [7, 7]
    assert [sum(one) for one in sizes] == [20, 61]


@pytest.mark.parametrize(("state", "kept"), [("keep", True), ("reset", False)])
def test_momentum_survives_from_round_to_round_only_if_the_plan_says_so(state, kept):
    the_plan = plan(presets.FEDAVG, optimizer={**SGD, "state": state})
    data = hospital(20, 1).training
    trainer = Trainer(the_plan, "amber", data)
    trainer.start_round(initial_vector(the_plan))
    for number, index in enumerate(trainer.batches(0)):
        trainer.step(0, number, index, {})
    trainer.start_round(initial_vector(the_plan))
    assert bool(trainer.optimizer.state) is kept


def test_augmentation_is_drawn_for_each_batch_and_only_flips(tmp_path):
    the_plan = presets.shipped("skin_fedavg")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, size=(4, 3, 48, 64), dtype=np.uint8)
    data = records(4, 1)
    data = type(data)(images, data.labels, data.groups)
    trainer = Trainer(the_plan, "amber", data)
    index = np.arange(4)
    (once, _), (again, _) = trainer.batch(0, 0, index), trainer.batch(0, 0, index)
    assert np.array_equal(once, again)
    assert any(not np.array_equal(once, trainer.batch(0, number, index)[0]) for number in range(1, 6))
    plain = trainer.tensor(images)
    for image, flipped in zip(plain, once, strict=True):
        assert any(np.array_equal(flipped, image.flip(axes)) for axes in ([], [1], [2], [1, 2]))
