# SPDX-License-Identifier: Apache-2.0
"""Reweighting against weights counted in clear over all hospitals, and gradients of one process that has them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairflare import presets
from fairflare.data.manifest import Records
from fairflare.fairness.groups import CellSums, Measure
from fairflare.methods import Reweighting, ReweightingParameters
from fairflare.models import build, load_vector
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, four, masked, plan
from tests.unit.methods.driving import ABSENT, completed, drive, failing, trained

REWEIGHTING = {"name": "reweighting", "attribute": "sex", "balance": "groups", "max_weight": None}
INDEPENDENT = {**REWEIGHTING, "balance": "independence"}
METHODS = {
    "groups": REWEIGHTING, "independence": INDEPENDENT, "another attribute": {**INDEPENDENT, "attribute": "age"},
    "bounded": {**REWEIGHTING, "max_weight": 1.0}, "bounded pairs": {**INDEPENDENT, "max_weight": 1.05},
}  # fmt: skip
PLAIN = {**PLAIN_SGD, "lr": 0.5}


def counted(data: Mapping[str, Records], method: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weight of every record, from a table of all records; records without a group weigh 1."""
    rows = [
        (site, place, int(group), int(label))
        for site, one in data.items()
        for place, (group, label) in enumerate(zip(one.groups[method["attribute"]], one.labels, strict=True))
    ]
    known = [row for row in rows if row[2] >= 0]
    n = len(known)
    weights = {site: np.ones(len(one)) for site, one in data.items()}
    for site, place, group, label in known:
        of_group = sum(row[2] == group for row in known)
        of_label = sum(row[3] == label for row in known)
        of_both = sum(row[2] == group and row[3] == label for row in known)
        groups = len({row[2] for row in known})
        weight = n / (groups * of_group) if method["balance"] == "groups" else of_group * of_label / (n * of_both)
        weights[site][place] = min(weight, method["max_weight"] or np.inf)
    return weights


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_one_full_step_is_a_step_on_all_records_with_their_weights(tmp_path, method, hidden) -> None:
    """(1/n) sum_i w_i l_i over all hospitals; tolerance: float32 noise, with masks a step of a word (4 * 2^-26)."""
    one_step = {"work": {"unit": "steps", "amount": 1}, "batch": {"unit": "records", "amount": 1000}}
    the_plan = plan(method, rounds=1, optimizer=PLAIN, **one_step)
    run = completed(masked(the_plan) if hidden else the_plan, tmp_path)
    data = {name: load().training for name, load in four().items()}
    weights = np.concatenate(list(counted(data, method).values()))
    assert np.ptp(weights) > 0.03
    model = build(the_plan)
    load_vector(model, run.models[0])
    logits = model(torch.from_numpy(np.concatenate([one.inputs for one in data.values()])))
    labels = torch.from_numpy(np.concatenate([one.labels for one in data.values()]))
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    (torch.from_numpy(weights).float() * losses).mean().backward()
    step = torch.cat([-0.5 * one.grad.ravel() for one in model.parameters()]).numpy()
    assert np.abs(run.models[1] - run.models[0] - step).max() <= 2e-7 + hidden * 4 * 2.0**-26
    assert np.abs(step).max() > 1e-2


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_whole_run_is_fedavg_on_weighted_losses(tmp_path, method) -> None:
    """Weights are those of the first round in all rounds."""
    the_plan = plan(method, rounds=4, optimizer=PLAIN)
    run = completed(the_plan, tmp_path)
    data = {name: load().training for name, load in four().items()}
    weights, n, x = counted(data, method), sum(map(len, data.values())), run.models[0]
    for round_ in range(4):
        mean = np.zeros(x.size)
        for name, one in data.items():

            def further(model: nn.Module, index: np.ndarray, name=name, one=one) -> torch.Tensor:
                logits, labels = model(torch.from_numpy(one.inputs[index])), torch.from_numpy(one.labels[index])
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
                return (torch.from_numpy(weights[name][index] - 1).float() * losses).mean()

            mean += len(one) / n * trained(the_plan, name, one, x, round_, further).astype(np.float64)
        x = mean.astype(np.float32)
        assert np.abs(run.models[round_ + 1] - x).max() <= 1e-6
    bound = method["max_weight"]
    free = counted(data, {**method, "max_weight": None})
    held = 0 if bound is None else sum(int((one > bound).sum()) for one in free.values())
    assert [line.at_maximum for line in run.record.rounds] == [held] * 4
    assert (held > 0) == (bound is not None)


def balanced(pairs: bool) -> dict[str, Any]:
    """The hospitals with groups of one size over all, or with the same labels in each of them."""
    data = {name: load() for name, load in four().items()}
    labels = np.concatenate([one.training.labels for one in data.values()])
    group = np.resize([0, 1], labels.size)
    if pairs:  # every second record of each label; an odd one has no group
        for label in (0, 1):
            places = np.flatnonzero(labels == label)
            group[places] = np.resize([0, 1], places.size)
            if places.size % 2:
                group[places[-1]] = -1
    start = 0
    for one in data.values():
        size = len(one.training)
        one.training.groups["sex"][:] = group[start : start + size]
        start += size
    return {name: (lambda one=one: one) for name, one in data.items()}


@pytest.mark.parametrize(("method", "pairs"), [(REWEIGHTING, False), (INDEPENDENT, True)], ids=["groups", "pairs"])
@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_where_nothing_is_unequal_it_is_fedavg_bit_by_bit(tmp_path, method, pairs, bound, hidden) -> None:
    plans = [plan(one, rounds=2, optimizer=ADAMW) for one in (presets.FEDAVG, {**method, "max_weight": bound})]
    runs = [
        completed(masked(one) if hidden else one, tmp_path / str(at), balanced(pairs)) for at, one in enumerate(plans)
    ]
    assert runs[0].record.final.model_sha256 == runs[1].record.final.model_sha256


def test_weights_worked_out_by_hand() -> None:
    """Kamiran and Calders: 10 records, group 0 has 4 (3 of label 1), group 1 has 6 (2 of label 1).

    w = n_a n_y / (n n_ay): (0, 1) 4*5/(10*3) = 2/3, (0, 0) 4*5/(10*1) = 2, (1, 1) 6*5/(10*2) = 3/2,
    (1, 0) 6*5/(10*4) = 3/4. Groups alone: 10/(2*4) = 5/4 and 10/(2*6) = 5/6.
    """
    group, labels = np.array([0, 0, 1, 1, -1]), np.array([1, 0, 1, 0, 1])
    sums = {0: [1.0, 4.0], 1: [3.0, 2.0], -1: [4.0, 6.0]}
    totals = {
        Measure("sex", label, "presence"): CellSums(np.array(count), np.array(count), np.ones(2))
        for label, count in sums.items()
    }
    expected = {"independence": [2 / 3, 2, 3 / 2, 3 / 4, 1], "groups": [5 / 4, 5 / 4, 5 / 6, 5 / 6, 1]}
    for balance, weights in expected.items():
        method = Reweighting(ReweightingParameters(**{**REWEIGHTING, "balance": balance}), {"sex": 2}, 1)
        terms = method.sample_terms(totals, {}, {"sex": group}, labels, 1.0)
        assert (terms.coefficients["task_loss"] + 1).tolist() == pytest.approx(weights)
        assert set(method.measures()) <= set(totals)


def test_a_group_of_nobody_takes_nothing_from_the_others() -> None:
    method = Reweighting(ReweightingParameters(**REWEIGHTING), {"sex": 3}, 1)
    count = np.array([2.0, 0.0, 6.0])
    totals = {Measure("sex", -1, "presence"): CellSums(count, count, np.array([1.0, 0.0, 1.0]))}
    terms = method.sample_terms(totals, {}, {"sex": np.array([0, 1, 2])}, np.zeros(3, dtype=np.int64), 1.0)
    assert (terms.coefficients["task_loss"] + 1).tolist() == pytest.approx([2.0, 1.0, 8 / 12])


def test_a_site_that_missed_the_counting_still_weighs_by_the_counts_of_the_others(tmp_path) -> None:
    """Without masks counts are those of the sites that were there; the late site uses them as well."""
    the_plan = plan(REWEIGHTING, rounds=3, optimizer=PLAIN)
    run = drive(the_plan, tmp_path, None, failing({("measure", 0): {"beryl": ABSENT}}))
    assert {("beryl", 1), ("beryl", 2)} <= run.counted
    data = {name: load().training for name, load in four().items()}
    present = {name: one for name, one in data.items() if name != "beryl"}
    of_group = [sum(int((one.groups["sex"] == k).sum()) for one in present.values()) for k in (0, 1)]
    beryl = data["beryl"]
    group = beryl.groups["sex"]
    weight = np.where(group < 0, 1.0, sum(of_group) / (2 * np.array(of_group)[np.maximum(group, 0)]))

    def further(model: nn.Module, index: np.ndarray) -> torch.Tensor:
        logits, labels = model(torch.from_numpy(beryl.inputs[index])), torch.from_numpy(beryl.labels[index])
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return (torch.from_numpy(weight[index] - 1).float() * losses).mean()

    y = trained(the_plan, "beryl", beryl, run.models[1], 1, further)
    assert np.abs(run.updates["beryl", 1]["dy"] - (y - run.models[1])).max() <= 1e-6


def test_with_masks_counts_are_taken_as_soon_as_everybody_is_there(tmp_path) -> None:
    fails = failing({("measure", 0): {"beryl": ABSENT}})
    plans = [masked(plan(one, rounds=4, optimizer=PLAIN)) for one in (REWEIGHTING, presets.FEDAVG)]
    runs = [drive(one, tmp_path / str(at), None, fails) for at, one in enumerate(plans)]
    assert runs[0].record.final.model_sha256 != runs[1].record.final.model_sha256
