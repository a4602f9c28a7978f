# SPDX-License-Identifier: Apache-2.0
"""Two attacks on a private round: is a certain patient there, and what are patients' rows.

The first is a membership audit. One round runs many times, without a patient and with: the one whom it moves as far as
it may. The attacker knows the model and everybody else, learns from a quarter of the runs, and is tested on the others.
What it can tell must be no more than what the site paid for; with a hole in the round the same attacker tells more.

In the second a hostile server shows a model that was made for it, and reads patients' rows out of the sum of all
hospitals' updates (Fowl et al., Robbing the Fed, 2022): masks do not hinder it, noise does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import cross_entropy

from fairflare import presets, schema
from fairflare.data.manifest import Records
from fairflare.engine import private
from fairflare.engine.local import run_local
from fairflare.engine.private import PrivateWork
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.methods import SampleTerms
from fairflare.models import build, initial_vector, to_vector
from fairflare.plan import Plan, parse_plan
from fairflare.privacy import noise
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.dpsgd import Mechanism as Steps
from fairflare.privacy.gradients import RecordGradients
from fairflare.privacy.loss import Mechanism
from tests.unit.engine.hospitals import FEATURES, hospital, records
from tests.unit.engine.test_private import FAIR, private_plan

RUNS = 600
#: Chance of each of two bounds to be wrong; they must be so together to accuse a round that has no hole.
UNSURE = 1e-3
SEX = FAIR["penalties"][0]["attribute"]


def plan_of(batches: int, steps: float, others: float) -> Plan:
    """One round; noise of its steps, and of what else is told, over its sensitivity."""
    groups = {"noise_multiplier": others, "groups_per_unit": 1, "shared": False}
    plain = {**PLAIN, "lr": 1e-3}
    return private_plan(
        groups=groups,
        rounds=1,
        batches=batches,
        sigma=steps,
        privacy={"count_noise": others},
        training={"optimizer": plain},
    )


PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
#: One step with everybody; the same, but that most is paid for it; four with a quarter each.
WHOLE, STEP, DRAWN = plan_of(1, 2.0, 2.0), plan_of(1, 2.0, 20.0), plan_of(4, 0.7, 20.0)


class Purse:
    """Pays for everything, and knows what."""

    def __init__(self) -> None:
        self.paid: list[Mechanism] = []

    def pay(self, plan_sha256: str, round_: int, bill: Sequence[tuple[str, Mechanism]]) -> None:
        """Take down what is released."""
        self.paid += [how for _, how in bill]


class Hospital(NamedTuple):
    """Records with the patient or without, each one's weight, and which way the patient moves the model."""

    records: Records
    extra: np.ndarray
    direction: np.ndarray


def hospitals(plan: Plan) -> tuple[Hospital, Hospital]:
    """The patient has three records of one kind, that nobody else has, and the greatest weight that there is."""
    base = records(40, 7)
    base.inputs[:, 12] = 0.0
    own = base.take(np.zeros(3, dtype=np.int64))
    own.inputs[:] = 0.0
    own.inputs[:, 12] = 500.0
    own.groups[SEX][:] = 0
    trainer = started(plan, base)
    scores = trainer.model(torch.from_numpy(own.inputs))
    own.labels[:] = scores.argmin(dim=1).numpy()
    loss = cross_entropy(scores, torch.from_numpy(own.labels))
    found = torch.autograd.grad(loss, list(trainer.model.parameters()))
    direction = np.concatenate([one.numpy().ravel() for one in found])
    both = Records(
        np.concatenate([base.inputs, own.inputs]), np.concatenate([base.labels, own.labels]),
        {name: np.concatenate([base.groups[name], own.groups[name]]) for name in base.groups}, None,
        np.concatenate([np.arange(40), np.full(3, 40)]),
    )  # fmt: skip
    extra = np.concatenate([np.zeros(40), np.full(3, private.most_weight(plan) - 1.0)])
    direction /= np.linalg.norm(direction)
    return Hospital(base, extra[:40], direction), Hospital(both, extra, direction)


def started(plan: Plan, known: Records) -> Trainer:
    """A site's trainer at the plan's first model."""
    trainer = Trainer(plan, "amber", known)
    trainer.start_round(initial_vector(plan))
    return trainer


def released(plan: Plan, hospital: Hospital, purse: Purse) -> list[float]:
    """What one session with one round tells: units, the group's, its sum, and the steps along the patient's way."""
    work = PrivateWork(plan, hospital.records, purse)  # type: ignore[arg-type]
    told = work.begin_session(0, 4)
    trainer = started(plan, hospital.records)
    work.begin_round(0, measured=True)
    (sums,) = work.sums(trainer.scores(hospital.records)).values()
    start = trainer.vector()
    work.train(trainer, 0, SampleTerms({"cross_entropy": hospital.extra}), lambda: None)
    moved = float((start - trainer.vector()) @ hospital.direction) * told.units
    return [told.units, float(sums.count[0]), float(sums.total[0]), moved]


def runs(plan: Plan, number: int) -> tuple[np.ndarray, list[Mechanism]]:
    """(2, number, 4) numbers without the patient and with, and what one run paid for."""
    found, purse = [], Purse()
    for one in hospitals(plan):
        for _ in range(number):
            purse = Purse()
            found.append(released(plan, one, purse))
    return np.array(found).reshape(2, number, -1), purse.paid


def rates(seen: np.ndarray) -> tuple[float, float]:
    """Bounds of how often the attacker is right about a patient who is there (at least), and wrong (at most)."""
    scaled = seen / seen.std(axis=(0, 1))
    scaled += 0.01 * np.random.default_rng(0).standard_normal(seen.shape)  # what never varies is left out otherwise
    learnt, tested = np.split(scaled, [seen.shape[1] // 4], axis=1)
    truth = np.repeat([0, 1], learnt.shape[1])
    attacker = LinearDiscriminantAnalysis().fit(np.concatenate(learnt), truth)
    wrong, right = (int(attacker.predict(part).sum()) for part in tested)
    number = tested.shape[1]
    least = beta.ppf(UNSURE, right, number - right + 1) if right else 0.0
    most = beta.ppf(1 - UNSURE, wrong + 1, number - wrong) if wrong < number else 1.0
    return float(least), float(most)


def excess(least: float, most: float, paid: Sequence[Mechanism]) -> float:
    """By how much of delta an attacker with these rates is above what was paid for; at most 0 if that covers it.

    For each of a mechanism's pairs, true positives are at most e^epsilon times the false ones, and delta.
    """
    deltas = np.linspace(0.05, 0.95, 19)
    return max(least - math.exp(epsilon(paid, delta).value) * most - delta for delta in deltas)


@pytest.mark.parametrize("plan", [WHOLE, DRAWN], ids=["whole", "drawn"])
def test_an_attacker_tells_no_more_than_what_was_paid_for(plan: Plan) -> None:
    seen, paid = runs(plan, RUNS)
    least, most = rates(seen)
    assert least > most  # it does see something: the noise is no more than it must be
    assert excess(least, most, paid) <= 0


# ---------------------------------------------------------------------------------------------------------------- holes


def _only(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the noise out of every third draw of whole numbers: units, counts and sums take turns."""
    drawn, draw = [0], noise.discrete_gaussian

    def quiet(count: int, variance: Any) -> Any:
        drawn[0] += 1
        return draw(count, variance) * (drawn[0] % 3 != number)

    monkeypatch.setattr(noise, "discrete_gaussian", quiet)


def _steps_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    known = np.random.default_rng(1).standard_normal(100_000)
    monkeypatch.setattr(noise, "add_gaussian", lambda values, deviation: values + deviation * known[: values.size])


def _steps_for_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "sensitivity", property(lambda self: self.clip))


def _no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RecordGradients, "norms", lambda self, losses, size, norms=RecordGradients.norms: norms(self, losses, size) * 0
    )


def _units_are_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Records, "units", property(lambda self: np.arange(len(self))))


def _everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "chosen", lambda count, rate: np.ones(count, dtype=np.bool_))


#: How many runs it takes to see each.
HOLES: dict[str, tuple[Plan, int, Callable[[pytest.MonkeyPatch], None]]] = {
    "exact units": (WHOLE, 160, lambda patch: _only(1, patch)),
    "exact counts": (WHOLE, 160, lambda patch: _only(2, patch)),
    "exact sums": (WHOLE, 160, lambda patch: _only(0, patch)),
    "steps with noise that is known": (WHOLE, 160, _steps_alike),
    "steps with noise for weights of one": (STEP, RUNS, _steps_for_no_weights),
    "gradients that are not clipped": (WHOLE, 160, _no_clip),
    "records instead of patients": (WHOLE, 160, _units_are_records),
    "everybody in each batch": (DRAWN, 160, _everybody),
}


@pytest.mark.parametrize("hole", HOLES)
def test_it_finds_each_hole(hole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, number, change = HOLES[hole]
    change(monkeypatch)
    seen, paid = runs(plan, number)
    assert excess(*rates(seen), paid) > 0


# ------------------------------------------------------------------------------------------------------------ inversion

BINS = 256
INVERTED = {"training": {"optimizer": {**PLAIN, "lr": 1.0}}, "model": {"name": "mlp", "hidden": [BINS, 1]}}
PRIVATE = private_plan(presets.FEDAVG, None, rounds=1, batches=1, sigma=1.0, **INVERTED)
HOSPITALS = {
    name: (lambda place=place: hospital(12, 100 * place)) for place, name in enumerate(("amber", "beryl", "coral"))
}


def without_privacy(plan: Plan) -> Plan:
    """The same masked plan without differential privacy."""
    data = json.loads(schema.pretty(plan))
    data["differential_privacy"] = None
    return parse_plan(json.dumps(data))


def imprint(plan: Plan) -> np.ndarray:
    """A model whose first layer sorts patients into bins: each next unit leaves out those of one bin more."""
    model = build(plan)
    weights, bias, *others = model.parameters()
    way = np.zeros(2 * FEATURES)
    way[:FEATURES] = np.random.default_rng(3).standard_normal(FEATURES) / math.sqrt(FEATURES)
    with torch.no_grad():
        weights[:] = torch.from_numpy(np.tile(way, (BINS, 1)))
        bias[:] = -torch.from_numpy(norm.ppf((np.arange(BINS) + 0.5) / BINS))
        for one, value in zip(others, ([1 / BINS], [0.0], [[1.0], [-1.0]], [0.0, 0.0]), strict=True):
            one[:] = torch.tensor(value)
    return to_vector(model)


def read_out(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of all hospitals' patients are read out of the one sum that the server gets, to 0.05 of each scale."""
    start = imprint(plan)
    monkeypatch.setattr("fairflare.engine.server.initial_vector", lambda *of: start)
    record = run_local(plan, HOSPITALS, folder)
    assert record.final is not None, record.reason
    gradient = (start - read_model(folder, plan, record.final.model_sha256)).astype(np.float64)
    layer = np.concatenate([gradient[: 2 * FEATURES * BINS].reshape(BINS, -1), np.zeros((1, 2 * FEATURES))])
    bias = np.append(gradient[2 * FEATURES * BINS :][:BINS], 0.0)
    with np.errstate(all="ignore"):  # most bins are empty
        guesses = np.diff(layer, axis=0) / np.diff(bias)[:, None]
    patients = np.concatenate([load().training.inputs for load in HOSPITALS.values()])
    return sum(bool((np.abs(guesses - one).max(axis=1) < 0.05).any()) for one in patients)


def test_masks_do_not_keep_rows_out_of_the_sum_and_noise_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patients = 3 * 12
    assert read_out(without_privacy(PRIVATE), tmp_path / "masked", monkeypatch) > patients / 2
    assert read_out(PRIVATE, tmp_path / "private", monkeypatch) == 0
    monkeypatch.setattr(noise, "add_gaussian", lambda values, deviation: values)
    assert read_out(PRIVATE, tmp_path / "clipped", monkeypatch) > patients / 2
