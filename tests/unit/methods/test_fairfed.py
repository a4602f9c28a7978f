# SPDX-License-Identifier: Apache-2.0
"""FairFed against a reference written from its paper, with every count in clear; then bounds, limits and dropouts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fairflare import presets
from fairflare.data.manifest import Records, SiteData
from fairflare.fairness.groups import EVERYBODY, CellSums, Measure
from fairflare.methods import Assignment, FairFed, FairFedParameters, Work
from fairflare.models import build, load_vector
from fairflare.models.vector import Vector
from fairflare.plan import Plan
from tests.unit.engine.hospitals import (
    ADAMW,
    SGD,
    changed,
    four,
    image_plan,
    masked,
    plan,
    three_of_images,
)
from tests.unit.methods.driving import (
    ABSENT,
    BREAKS,
    LOST,
    Loaders,
    Run,
    completed,
    drive,
    failing,
    trained,
)

#: The paper's own form.
PAPER = {
    "name": "fairfed", "beta": 0.3, "attribute": "sex", "criterion": "equal_opportunity", "gap": "difference",
    "first_round": "corrected", "min_weight": None, "max_weight": None,
}  # fmt: skip
BOUNDED = {**PAPER, "min_weight": 0.5, "max_weight": 2.0}
#: The hospitals' models decide after a few rounds, and small differences between two runs stay small.
ROUNDS = 10
TRAINING = {
    "optimizer": {**SGD, "state": "reset"}, "work": {"unit": "epochs", "amount": 3}, "rounds": ROUNDS,
}  # fmt: skip
#: The round in which sites fail: all distances are above zero by then.
FAULTY = 7
#: Distances are differences of quotients of the same counts.
EXACT = 1e-12
#: Of models: float32 noise of ten rounds; with masks also as many roundings by 16 * 2^-26 (see test_masked_sums.py).
NOISE, ROUNDED = 2e-6, 2e-6 + ROUNDS * 16 * 2.0**-26


# --------------------------------------------------------------------------------------- the paper, with all in clear


@dataclass
class Known:
    """What the reference found in each round."""

    distances: list[dict[str, float]] = field(default_factory=list)
    weights: list[dict[str, float]] = field(default_factory=list)
    models: list[Vector] = field(default_factory=list)
    by_accuracy: int = 0


def rate(chosen: np.ndarray, said: np.ndarray) -> float | None:
    """Mean of what is said of the chosen; ``None`` of nobody."""
    return float(said[chosen].mean()) if chosen.any() else None


def unfairness(method: Mapping[str, Any], decided: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float | None:
    """F: difference of two groups' rates, or the largest distance of a group's rate from everybody's."""
    said = {"equal_accuracy": decided == labels}.get(method["criterion"], decided == 1)
    among = labels == 1 if method["criterion"] == "equal_opportunity" else np.ones(labels.shape, dtype=bool)
    rates = [rate(among & (group == which), said) for which in range(2)]
    if method["gap"] == "difference":
        return None if None in rates else rates[0] - rates[1]
    everybody, known = rate(among, said), [one for one in rates if one is not None]
    return None if len(known) < 2 else max(abs(one - everybody) for one in known)


def fairfed(the_plan: Plan, data: Mapping[str, Records], method: Mapping[str, Any], first: Vector) -> Known:
    """Algorithm 1 with equations 5 and 6: weights begin as n_s / n, and are normalised when they are used."""
    known, x = Known(), first
    n = sum(map(len, data.values()))
    shares = {name: len(one) / n for name, one in data.items()}
    weights = dict(shares)
    attribute = method["attribute"]
    for round_ in range(the_plan.training.rounds):
        model = build(the_plan)
        load_vector(model, x)
        decided = {name: _decided(model, one) for name, one in data.items()}
        pooled = [
            np.concatenate([decided[name] for name in data]), np.concatenate([one.labels for one in data.values()]),
            np.concatenate([_group(one, attribute) for one in data.values()]),
        ]  # fmt: skip
        overall, right = unfairness(method, *pooled), float((pooled[0] == pooled[1]).mean())
        distances = {}
        for name, one in data.items():
            own = unfairness(method, decided[name], one.labels, _group(one, attribute))
            if own is None or overall is None:
                distances[name] = abs(float((decided[name] == one.labels).mean()) - right)
                known.by_accuracy += 1
            else:
                distances[name] = abs(own - overall)
        mean = sum(distances.values()) / len(distances)
        if round_ > 0 or method["first_round"] == "corrected":
            weights = {name: weights[name] - method["beta"] * (distances[name] - mean) for name in data}
        low, high = method["min_weight"] or 0.0, method["max_weight"] or np.inf
        used = {name: min(max(weights[name], low * shares[name]), high * shares[name]) for name in data}
        local = {name: trained(the_plan, name, one, x, round_) for name, one in data.items()}
        whole = sum(used.values())
        x = sum(used[name] / whole * y.astype(np.float64) for name, y in local.items()).astype(np.float32)
        known.distances.append(distances)
        known.weights.append(dict(weights))
        known.models.append(x)
    return known


def _group(records: Records, attribute: str) -> np.ndarray:
    return np.full(len(records), -1) if attribute == "hospital" else records.groups[attribute]


def _decided(model: torch.nn.Module, records: Records) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(records.inputs)).argmax(dim=1).numpy()


def verify_run_of(run: Run, known: Known, noise: float) -> None:
    """Distances, weights and models of all rounds are those of the reference."""
    rounds = len(known.models)
    for round_ in range(rounds):
        told = {site: run.told[site, round_] for site in known.distances[round_]}
        assert told == pytest.approx(known.distances[round_], abs=EXACT)
    for begun in run.begun:
        # With masks the sum of distances has steps of 2^-32, and so have weights.
        assert begun.weight == pytest.approx(known.weights[begun.round][begun.site], abs=1e-9)
    for found, expected in zip(run.models[1:], known.models, strict=True):
        assert np.abs(found - expected).max() <= noise


CASES = {
    "the paper's": PAPER,
    "another attribute": {**PAPER, "attribute": "age"},
    "demographic parity": {**PAPER, "criterion": "demographic_parity"},
    "equal accuracy": {**PAPER, "criterion": "equal_accuracy"},
    "one against all": {**PAPER, "gap": "one_vs_overall"},
    "one against all, demographic parity": {
        **PAPER, "gap": "one_vs_overall", "criterion": "demographic_parity", "attribute": "age",
    },
    "first round plain": {**PAPER, "first_round": "plain", "criterion": "demographic_parity"},
    "accuracies of hospitals": {**PAPER, "attribute": "hospital", "criterion": "equal_accuracy"},
    "bounds that bind": {
        **PAPER, "criterion": "demographic_parity", "beta": 1.0, "min_weight": 0.6, "max_weight": 1.2,
    },
}  # fmt: skip


def without_one_group(attribute: str = "sex") -> Loaders:
    """Coral has nobody of the second group among its true positives; the others are as ever."""

    def coral() -> SiteData:
        data = four()["coral"]()
        data.training.groups[attribute][data.training.labels == 1] = 0
        return data

    return {**four(), "coral": coral}


def the_run(tmp_path, method, hidden, loaders=None) -> tuple[Run, Known]:
    loaders = loaders or four()
    the_plan = plan(method, **TRAINING)
    run = completed(masked(the_plan) if hidden else the_plan, tmp_path, loaders)
    known = fairfed(the_plan, {name: load().training for name, load in loaders.items()}, method, run.models[0])
    return run, known


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_it_is_the_paper(tmp_path, method) -> None:
    run, known = the_run(tmp_path, method, hidden=False)
    verify_run_of(run, known, NOISE)
    moved = max(
        abs(now - then) for now, then in zip(known.weights[-1].values(), known.weights[0].values(), strict=True)
    )
    assert moved > 0.005, "weights that hardly move would show nothing"
    assert len({tuple(one.values()) for one in known.distances}) > 3
    if method["min_weight"] is not None:
        n = sum(len(load().training) for load in four().values())
        shares = {name: len(load().training) / n for name, load in four().items()}
        factors = [known.weights[-1][name] / shares[name] for name in shares]
        assert min(factors) < 0.6
        assert max(factors) > 1.2


@pytest.mark.parametrize("method", [
    BOUNDED, {**BOUNDED, "criterion": "demographic_parity", "attribute": "age"},
    {**BOUNDED, "gap": "one_vs_overall"}, {**BOUNDED, "criterion": "demographic_parity", "beta": 1.0},
], ids=["sex", "age", "overall", "strong"])  # fmt: skip
def test_it_is_the_paper_with_masks(tmp_path, method) -> None:
    run, known = the_run(tmp_path, method, hidden=True)
    verify_run_of(run, known, ROUNDED)


@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
@pytest.mark.parametrize("gap", ["difference", "one_vs_overall"])
def test_a_site_without_one_group_is_compared_by_accuracy(tmp_path, hidden, gap) -> None:
    run, known = the_run(tmp_path, {**BOUNDED, "gap": gap}, hidden, without_one_group())
    verify_run_of(run, known, ROUNDED if hidden else NOISE)
    assert known.by_accuracy == ROUNDS


def test_where_no_site_has_a_group_all_are_compared_by_accuracy(tmp_path) -> None:
    def load(name: str) -> SiteData:
        data = four()[name]()
        data.training.groups["sex"][:] = 0
        return data

    loaders = {name: (lambda name=name: load(name)) for name in four()}
    run, known = the_run(tmp_path, PAPER, False, loaders)
    verify_run_of(run, known, NOISE)
    assert known.by_accuracy == 4 * ROUNDS


def test_a_weight_below_zero_counts_for_nothing_and_can_come_back(tmp_path) -> None:
    """Weights themselves go on below zero (equation 6); what is used of them does not."""
    method = {**PAPER, "criterion": "demographic_parity", "beta": 0.8}
    run, known = the_run(tmp_path, method, hidden=False)
    lowest = min(weight for one in known.weights for weight in one.values())
    assert lowest < 0
    assert max(weight for one in known.weights for weight in one.values()) <= 1, "above 1 it would be cut off"
    verify_run_of(run, known, NOISE)


def test_weights_sum_to_one_while_everybody_takes_part(tmp_path) -> None:
    run = completed(masked(plan(BOUNDED, **TRAINING)), tmp_path)
    for round_ in range(ROUNDS):
        assert sum(one.weight for one in run.begun if one.round == round_) == pytest.approx(1.0, abs=1e-8)


# ---------------------------------------------------------------------------------------------------------- one half


def _half(**changes: Any):
    parameters = FairFedParameters(**{**PAPER, **changes})
    return FairFed(parameters, {"sex": 2}, 1).at_site()


def _sums(positive: list[float], count: list[float], correct: float) -> dict[Measure, CellSums]:
    def cells(total, counts):
        counts = np.array(counts, dtype=float)
        return CellSums(np.array(total, dtype=float), counts, (counts > 0).astype(float))

    return {
        Measure("sex", 1, "positive"): cells(positive, count),
        Measure(EVERYBODY, -1, "correct"): cells([correct], [100]),
    }


def test_a_distance_worked_out_by_hand() -> None:
    """F = 30/40 - 10/20 = 1/4; F_s = 6/8 - 2/8 = 1/2; accuracies 70/100 and 64/100."""
    half = _half()
    everybody, own = _sums([30, 10], [40, 20], 70), _sums([6, 2], [8, 8], 64)
    assert half.distance(everybody, own) == 0.25
    assert half.distance(everybody, _sums([6, 0], [8, 0], 64)) == pytest.approx(0.06)
    assert half.distance(_sums([30, 0], [40, 0], 70), own) == pytest.approx(0.06)
    assert half.distance(everybody, {}) == 0.0


@pytest.mark.parametrize(("changes", "distance", "used"), [
    ({}, 0.3, 0.4 - 0.3 * 0.2), ({}, 0.0, 0.4 + 0.3 * 0.1), ({"beta": 10.0}, 0.9, 0.0), ({"beta": 100.0}, 0.0, 1.0),
    ({"beta": 10.0, "min_weight": 0.25}, 0.9, 0.1), ({"beta": 10.0, "max_weight": 2.0}, 0.0, 0.8),
])  # fmt: skip
def test_a_weight_worked_out_by_hand(changes, distance, used) -> None:
    """With p = 0.4 and a mean distance of 0.1."""
    half = _half(**changes)
    half.begin(Assignment(0, {}, 0.4, 1, distance, 0.1))
    assert half.finish(Work(np.zeros(1, dtype=np.float32), 1, 0.1)).weight == pytest.approx(used, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_with_a_beta_of_zero_it_is_fedavg_bit_by_bit_and_sends_nothing_more(tmp_path, optimizer, hidden) -> None:
    plans = [plan(one, rounds=2, optimizer=optimizer) for one in (presets.FEDAVG, {**BOUNDED, "beta": 0.0})]
    runs = [completed(masked(one) if hidden else one, tmp_path / str(at)) for at, one in enumerate(plans)]
    assert runs[0].record.final.model_sha256 == runs[1].record.final.model_sha256
    layouts = [run.coordinator.layout.tasks for run in runs]
    assert layouts[0] == layouts[1]


def test_images_are_compared_by_dice(tmp_path) -> None:
    """Distances of Dice, of hospitals and of groups; weights follow from them."""
    for attribute in ("hospital", "sex"):
        method = {**PAPER, "attribute": attribute, "criterion": "equal_accuracy", "beta": 2.0}
        work = {"unit": "epochs", "amount": 8}
        the_plan = image_plan(method, rounds=4, work=work, optimizer={**ADAMW, "lr": 0.02})
        run = completed(the_plan, tmp_path / attribute, three_of_images())
        assert len({run.told[name, 3] for name in three_of_images()}) == 3
        for round_ in range(4):
            told = [run.told[name, round_] for name in three_of_images()]
            for name in three_of_images():
                weights = {one.round: one.weight for one in run.begun if one.site == name}
                before = weights[round_ - 1] if round_ else len(three_of_images()[name]().training) / 37
                moved = 2.0 * (run.told[name, round_] - sum(told) / 3)
                assert weights[round_] == pytest.approx(before - moved, abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- dropouts

#: Task and fault; whether distances of that round are opened: with masks over all sites or not at all.
OPEN = {
    "measure": ("measure", ABSENT, True),
    "not compared": ("compare", ABSENT, True),
    "compared, not received": ("compare", LOST, True),
    "not asked to train": ("train", ABSENT, True),
    "trained, not sent": ("train", BREAKS, True),
    "sent, not received": ("train", LOST, True),
}
HIDDEN = {
    **OPEN,
    "measure": ("measure", ABSENT, False),
    "not compared": ("compare", ABSENT, False),
    "compared, not received": ("compare", LOST, False),
    "not confirmed": ("confirm", LOST, True),
    "not unmasked": ("unmask", ABSENT, True),
    "unmasked, not received": ("unmask", LOST, True),
}
DROPPED = [*(("none", name) for name in OPEN), *(("masked", name) for name in HIDDEN)]


def verify_weights(run: Run, beta: float, shut: Collection[int] = ()) -> None:
    """A weight moves once for each round in which its site's update was counted, and is where it was otherwise.

    ``shut``: rounds whose distances were not opened.
    """
    n = sum(len(load().training) for load in four().values())
    settled = {name: len(load().training) / n for name, load in four().items()}
    for begun in sorted(run.begun, key=lambda one: one.round):
        key = begun.site, begun.round
        assert (begun.distances is None) == (begun.round in shut), key
        weight = settled[begun.site]
        if begun.distances is not None:
            assert begun.round < FAULTY or run.told[key] > 0
            weight -= beta * (run.told[key] - begun.distances[0] / begun.distances[1])
        assert begun.weight == pytest.approx(weight, abs=1e-12), key
        if key in run.counted:
            settled[begun.site] = weight


@pytest.mark.parametrize(("protection", "name"), DROPPED, ids=[" ".join(case) for case in DROPPED])
def test_a_weight_moves_once_or_not_at_all_whoever_drops_out(dropped, protection, name) -> None:
    task, fault, opened = (OPEN if protection == "none" else HIDDEN)[name]
    run = dropped(protection, {(task, FAULTY): {"beryl": fault}})
    assert run.record.status == "complete", run.record.reason
    verify_weights(run, 0.5, () if opened else (FAULTY,))
    counted = {site for site, round_ in run.counted if round_ == FAULTY}
    assert counted == set(four()) - (set() if task in ("confirm", "unmask") else {"beryl"})
    # Each model is the mean of the updates that counted, with the weights that sites have, held to their bounds.
    for line, (before, after) in zip(run.record.rounds, itertools.pairwise(run.models), strict=True):
        weights = {one.site: one.weight for one in run.begun if one.round == line.round}
        used = {name: _held(name, weights[name]) for name in line.participants["train"]}
        step = sum(used[name] * run.updates[name, line.round]["dy"].astype(float) for name in used) / sum(used.values())
        # One masked mean is off by 16 * 2^-26 for rounding, and by as much for weights; see test_masked_sums.py.
        assert np.abs(after - before - step).max() <= 1e-6


@pytest.fixture(scope="module")
def dropped(tmp_path_factory) -> Callable[..., Run]:
    """A run with faults; each is made once."""
    done: dict[str, Run] = {}

    def get(protection: str, faults: Mapping[tuple[str, int], Mapping[str, str]]) -> Run:
        key = f"{protection} {faults}"
        if key not in done:
            the_plan = plan({**BOUNDED, "criterion": "demographic_parity", "beta": 0.5}, max_missed=ROUNDS, **TRAINING)
            the_plan = masked(the_plan) if protection == "masked" else the_plan
            done[key] = drive(the_plan, tmp_path_factory.mktemp("run"), None, failing(faults))
        return done[key]

    return get


@pytest.mark.parametrize(("protection", "name"), DROPPED, ids=[" ".join(case) for case in DROPPED])
def test_a_site_is_back_in_the_next_round(dropped, protection, name) -> None:
    task, fault, _ = HIDDEN[name]
    run = dropped(protection, {(task, FAULTY): {"beryl": fault}})
    assert {("beryl", round_) for round_ in range(FAULTY + 1, ROUNDS)} <= run.counted


def _held(name: str, weight: float) -> float:
    n = sum(len(load().training) for load in four().values())
    share = len(four()[name]().training) / n
    return min(max(weight, 0.5 * share), min(2.0 * share, 1.0))


@pytest.mark.parametrize("task", ["train", "confirm", "unmask"])
def test_a_lost_round_moves_no_weight(dropped, task) -> None:
    run = dropped("masked", {(task, FAULTY): {"beryl": LOST, "dune": LOST}})
    assert [lost.round for lost in run.record.lost_rounds] == [FAULTY]
    verify_weights(run, 0.5)


def test_small_cells_are_nobodys(tmp_path) -> None:
    """Under the plan's minimum a group is not in the sums, and its site is compared by accuracy."""
    the_plan = changed(
        plan(PAPER, **TRAINING).model_dump(mode="json"), minimum=12,
    )  # fmt: skip
    run = completed(the_plan, tmp_path)
    small = [
        name for name, load in four().items()
        if min(np.sum((load().training.groups["sex"] == k) & (load().training.labels == 1)) for k in (0, 1)) < 12
    ]  # fmt: skip
    assert 0 < len(small) < 4
    for round_ in range(ROUNDS):
        model = build(the_plan)
        load_vector(model, run.models[round_])
        data = {name: load().training for name, load in four().items()}
        right = {name: _decided(model, one) == one.labels for name, one in data.items()}
        overall = np.concatenate(list(right.values())).mean()
        for name in small:
            assert run.told[name, round_] == pytest.approx(abs(right[name].mean() - overall), abs=EXACT)
