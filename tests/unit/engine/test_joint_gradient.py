# SPDX-License-Identifier: Apache-2.0
"""The heart of the claim: what the sites compute from sums adds up to the gradient of the joint objective.

The joint objective (1/n) sum_i l_i + sum_a lambda_a P_a is written here anew, over all records at once, and
differentiated by torch; the federated side uses the package's own sums, method and loss. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fairflare.engine.objective import batch_loss, utilities
from fairflare.fairness.groups import HOSPITAL, CellSums, HospitalSums, Measure, Sums, pack, unpack
from fairflare.methods import FlexFair, FlexFairParameters, Penalty

CLIP = 10.0
TOLERANCE = 1e-12


@dataclass
class SiteRecords:
    inputs: torch.Tensor
    labels: np.ndarray
    groups: dict[str, np.ndarray]


@dataclass
class Case:
    sites: list[SiteRecords]
    method: FlexFair
    model: nn.Module
    scaling: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = {"sex": 2, "age": draw(st.integers(2, 4))}
    seed = draw(st.integers(0, 2**20))
    random = np.random.default_rng(seed)
    absent_at_site = draw(st.booleans())
    absent_everywhere = draw(st.booleans())
    sites = []
    for place in range(draw(st.integers(1, 4))):
        n = int(random.integers(3, 12))
        groups = {name: random.integers(-1, size, n) for name, size in sizes.items()}
        if absent_at_site and place == 0:
            groups["sex"][groups["sex"] == 1] = 0
        if absent_everywhere:
            groups["age"][groups["age"] == 0] = -1
        inputs = torch.from_numpy(random.normal(size=(n, 3)))
        sites.append(SiteRecords(inputs, random.integers(0, 2, n), groups))
    penalties = []
    chosen = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["sex", "age", HOSPITAL]),
                st.sampled_from(["equal_accuracy", "demographic_parity", "equal_opportunity", "equalized_odds"]),
                st.sampled_from(["cross_entropy", "probability"]),
            ),
            min_size=1, max_size=3, unique=True,
        )
    )  # fmt: skip
    for attribute, criterion, utility in chosen:
        form, reduction = draw(st.sampled_from([("paper", "sum"), ("paper", "mean"), ("bounded", "sum")]))
        kinds = ["records", "uniform"] + (["fixed"] if attribute != HOSPITAL else [])
        weights = draw(st.sampled_from(kinds))
        if weights == "fixed":
            weights = tuple(random.uniform(0.05, 0.8, sizes[attribute]).tolist())
        strength = draw(st.floats(0, 5))
        penalties.append(
            Penalty(
                attribute=attribute, criterion=criterion, utility=utility, weights=weights,
                reduction=reduction, form=form, strength=strength,
            )
        )  # fmt: skip
    parameters = FlexFairParameters(
        name="flexfair", penalties=tuple(penalties), refresh="round", scaling="joint",
        min_weight=None, max_weight=None, utility_clip=CLIP,
    )  # fmt: skip
    assert not list(parameters.conflicts(sizes))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return Case(sites, FlexFair(parameters, sizes, 1), model, "joint")


def joint_objective(case: Case) -> torch.Tensor:
    """All hospitals' records in one place: the objective as the paper writes it."""
    logits = [case.model(site.inputs) for site in case.sites]
    labels = [torch.from_numpy(site.labels) for site in case.sites]
    losses = torch.cat(
        [nn.functional.cross_entropy(z, y, reduction="none") for z, y in zip(logits, labels, strict=True)]
    )
    total = losses.mean()
    for penalty in case.method.parameters.penalties:
        conditions = {"equal_opportunity": [1], "equalized_odds": [0, 1]}.get(penalty.criterion, [None])
        for label in conditions:
            total = total + penalty.strength * joint_penalty(case, penalty, label, logits, labels)
    return total


def joint_penalty(case, penalty, label, logits, labels) -> torch.Tensor:
    values, groups = [], []
    for place, site in enumerate(case.sites):
        if penalty.utility == "probability":
            value = torch.softmax(logits[place], dim=1)[:, 1]
        else:
            value = nn.functional.cross_entropy(logits[place], labels[place], reduction="none").clamp(max=CLIP)
        group = np.full(len(site.labels), place) if penalty.attribute == HOSPITAL else site.groups[penalty.attribute]
        keep = torch.from_numpy((group >= 0) & ((site.labels == label) if label is not None else True))
        values.append(value[keep])
        groups.append(torch.from_numpy(group)[keep])
    value, group = torch.cat(values), torch.cat(groups)
    present = sorted(set(group.tolist()))
    if len(present) < 2:
        return torch.zeros((), dtype=torch.float64)
    risk = torch.stack([value[group == k].mean() for k in present])
    count = torch.tensor([float((group == k).sum()) for k in present], dtype=torch.float64)
    if penalty.weights == "records":
        weight = count / count.sum()
    elif penalty.weights == "uniform":
        weight = torch.full((len(present),), 1 / len(present), dtype=torch.float64)
    else:
        fixed = torch.tensor(penalty.weights, dtype=torch.float64)
        weight = fixed[present] * fixed.sum() / fixed[present].sum()
    gap = risk - (weight * risk).sum()
    result = (gap**2).sum() if penalty.form == "paper" else (weight * gap**2).sum()
    return result / len(present) if penalty.reduction == "mean" else result


def own_sums(case: Case, site: SiteRecords) -> dict[Measure, Sums]:
    with torch.no_grad():
        values = utilities(case.model(site.inputs), torch.from_numpy(site.labels), CLIP)
    result: dict[Measure, Sums] = {}
    for measure in case.method.measures():
        chosen = np.ones(len(site.labels), dtype=bool) if measure.label < 0 else site.labels == measure.label
        value = values[measure.utility].numpy()[chosen]
        if measure.attribute == HOSPITAL:
            result[measure] = HospitalSums.measure(value, 0, measure.weighted)
        else:
            group = site.groups[measure.attribute][chosen]
            result[measure] = CellSums.measure(value, group, case.method.sizes[measure.attribute], 0)
    return result


def federated_gradient(case: Case, aggregation: str) -> list[torch.Tensor]:
    """Only vectors of sums cross sites: pack, add, unpack, as on the wire."""
    measures, method = case.method.measures(), case.method
    own = [own_sums(case, site) for site in case.sites]
    vector = np.sum([pack(measures, one) for one in own], axis=0)
    totals = unpack(measures, vector, method.sizes)
    n = sum(len(site.labels) for site in case.sites)
    gradient = [torch.zeros_like(p) for p in case.model.parameters()]
    for site, sums in zip(case.sites, own, strict=True):
        share = len(site.labels) / n if aggregation == "records" else 1 / len(case.sites)
        factor = method.factor(len(site.labels), share)
        terms = method.sample_terms(totals, sums, site.groups, site.labels, factor)
        labels = torch.from_numpy(site.labels)
        ones = torch.ones(2, dtype=torch.float64)
        loss, _ = batch_loss(case.model(site.inputs), labels, ones, terms.coefficients, CLIP)
        for total, part in zip(gradient, torch.autograd.grad(loss, case.model.parameters()), strict=True):
            total += share * part
    return gradient


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_the_sites_gradients_add_up_to_the_joint_gradient(case):
    joint = torch.autograd.grad(joint_objective(case), case.model.parameters())
    federated = federated_gradient(case, "records")
    worst = max(float((a - b).abs().max()) for a, b in zip(joint, federated, strict=True))
    assert worst <= TOLERANCE


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_with_uniform_sites_the_penalty_is_still_the_joint_one(case):
    """Uniform aggregation changes the task loss to a mean over sites; the penalty's gradient stays what it is."""
    uniform = federated_gradient(case, "uniform")
    losses = [
        nn.functional.cross_entropy(case.model(site.inputs), torch.from_numpy(site.labels)) for site in case.sites
    ]
    everything = torch.cat([site.inputs for site in case.sites])
    labels = torch.cat([torch.from_numpy(site.labels) for site in case.sites])
    pooled = nn.functional.cross_entropy(case.model(everything), labels)
    objective = joint_objective(case) - pooled + torch.stack(losses).mean()
    joint = torch.autograd.grad(objective, case.model.parameters())
    assert max(float((a - b).abs().max()) for a, b in zip(joint, uniform, strict=True)) <= TOLERANCE


def test_a_wrong_coefficient_would_be_seen():
    """The check can fail: the authors' scaling, without n / n_s, is off by far more than the tolerance."""
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    sites = [
        SiteRecords(
            torch.from_numpy(random.normal(size=(9, 3))), random.integers(0, 2, 9), {"sex": random.integers(0, 2, 9)}
        )
        for _ in range(2)
    ]
    sites[0].groups["sex"][:7] = 0
    penalty = Penalty(
        attribute="sex", criterion="equal_accuracy", utility="cross_entropy", weights="records",
        reduction="sum", form="paper", strength=3.0,
    )  # fmt: skip
    parameters = FlexFairParameters(
        name="flexfair", penalties=(penalty,), refresh="round", scaling="joint",
        min_weight=None, max_weight=None, utility_clip=CLIP,
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    case = Case(sites, FlexFair(parameters, {"sex": 2}, 1), model, "joint")
    joint = torch.autograd.grad(joint_objective(case), model.parameters())
    official = FlexFairParameters(
        **{**parameters.model_dump(), "penalties": parameters.penalties, "scaling": "official"}
    )
    wrong = federated_gradient(Case(sites, FlexFair(official, {"sex": 2}, 1), model, "official"), "records")
    right = federated_gradient(case, "records")
    assert max(float((a - b).abs().max()) for a, b in zip(joint, right, strict=True)) <= TOLERANCE
    assert max(float((a - b).abs().max()) for a, b in zip(joint, wrong, strict=True)) > 1e-3


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (None, 2.0), (0.5, 1.5)])
def test_weights_are_held_at_their_bounds_and_the_count_says_how_often(low, high):
    penalty = Penalty(
        attribute="sex", criterion="equal_accuracy", utility="cross_entropy", weights="records",
        reduction="sum", form="paper", strength=50.0,
    )  # fmt: skip
    parameters = FlexFairParameters(
        name="flexfair", penalties=(penalty,), refresh="round", scaling="joint",
        min_weight=low, max_weight=high, utility_clip=CLIP,
    )  # fmt: skip
    method = FlexFair(parameters, {"sex": 2}, 1)
    measure = method.measures()[0]
    totals = {measure: CellSums(np.array([20.0, 4.0]), np.array([10.0, 10.0]), np.array([1.0, 1.0]))}
    group = np.array([0, 0, 1, -1])
    terms = method.sample_terms(totals, {}, {"sex": group}, np.array([0, 1, 1, 0]), 20.0)
    weight = 1 + terms.coefficients["cross_entropy"]
    assert weight[3] == 1.0
    assert low is None or weight.min() >= low
    assert high is None or weight.max() <= high
    assert (terms.at_minimum, terms.at_maximum) == (0 if low is None else 1, 0 if high is None else 2)
