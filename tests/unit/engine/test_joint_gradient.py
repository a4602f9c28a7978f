# SPDX-License-Identifier: Apache-2.0
"""The heart of the claim: what the sites compute from sums adds up to the gradient of the joint objective.

The joint objective (1/n) sum_i l_i + sum_a lambda_a P_a is written here anew, over all records at once, and
differentiated by torch; the federated side uses the package's own sums, method and loss. All in float64. Two labels,
several labels and masks; groups are attributes, intersections of attributes and hospitals.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fairflare.data.manifest import Records
from fairflare.engine.objective import Labels, Masks, Objective, batch_loss
from fairflare.fairness.groups import HOSPITAL, CellSums, HospitalSums, Measure, Sums, exchanged, pack, unpack
from fairflare.methods import FlexFair, FlexFairParameters, Penalty, Setting
from tests.unit.engine.hospitals import segmentation_task

CLIP = 10.0
TOLERANCE = 1e-12
SIDE = 8


@dataclass
class SiteRecords:
    inputs: torch.Tensor
    labels: np.ndarray
    groups: dict[str, np.ndarray]
    masks: np.ndarray | None = None

    def records(self) -> Records:
        return Records(self.inputs.numpy(), self.labels, self.groups, self.masks)


@dataclass
class Case:
    sites: list[SiteRecords]
    method: FlexFair
    model: nn.Module
    labels: int  # of a classification; 0: masks
    objective: Objective


def objective_for(labels: int, maps: int) -> Objective:
    if labels:
        return Labels(labels, torch.ones(labels, dtype=torch.float64))
    names = ["background", *(f"part{label}" for label in range(maps))]
    return Masks(segmentation_task(names, SIDE), torch.ones(maps + 1, dtype=torch.float64))


def network_for(labels: int, maps: int) -> nn.Module:
    if labels:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, labels)).double()
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, maps, 1)).double()


def site_records(random: np.random.Generator, n: int, labels: int, maps: int, groups) -> SiteRecords:
    if labels:
        return SiteRecords(torch.from_numpy(random.normal(size=(n, 3))), random.integers(0, labels, n), groups)
    inputs = torch.from_numpy(random.normal(size=(n, 1, SIDE, SIDE)))
    masks = random.integers(0, maps + 1, (n, SIDE, SIDE)).astype(np.uint8)
    masks[:1] = 0  # an image without anything to find
    return SiteRecords(inputs, np.zeros(n, dtype=np.int64), groups, masks)


CRITERIA = ["equal_accuracy", "demographic_parity", "equal_opportunity", "equalized_odds"]


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[int, ...] = (2, 3, 4, 0)) -> Case:
    labels, maps = draw(st.sampled_from(kinds)), draw(st.integers(1, 2))
    sizes = {"sex": 2, "age": draw(st.integers(2, 4))}
    sizes["sex_age"] = sizes["sex"] * sizes["age"]
    seed = draw(st.integers(0, 2**20))
    random = np.random.default_rng(seed)
    absent_at_site = draw(st.booleans())
    absent_everywhere = draw(st.booleans())
    sites = []
    for place in range(draw(st.integers(1, 4))):
        n = int(random.integers(3, 12))
        groups = {name: random.integers(-1, sizes[name], n) for name in ("sex", "age")}
        if absent_at_site and place == 0:
            groups["sex"][groups["sex"] == 1] = 0
        if absent_everywhere:
            groups["age"][groups["age"] == 0] = -1
        known = (groups["sex"] >= 0) & (groups["age"] >= 0)
        groups["sex_age"] = np.where(known, groups["sex"] * sizes["age"] + groups["age"], -1)
        sites.append(site_records(random, n, labels, maps, groups))
    penalties = []
    chosen = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["sex", "age", "sex_age", HOSPITAL]),
                st.sampled_from(CRITERIA if labels else ["equal_accuracy"]),
                st.sampled_from(["cross_entropy", "probability"] if labels else ["dice_loss", "binary_cross_entropy"]),
            ),
            min_size=1, max_size=3, unique=True,
        )
    )  # fmt: skip
    for attribute, criterion, utility in chosen:
        form, reduction = draw(st.sampled_from([("paper", "sum"), ("paper", "mean"), ("bounded", "sum")]))
        kinds_of_weights = ["records", "uniform"] + (["fixed"] if attribute != HOSPITAL else [])
        weights = draw(st.sampled_from(kinds_of_weights))
        if weights == "fixed":
            weights = tuple(random.uniform(0.05, 0.8, sizes[attribute]).tolist())
        strength = draw(st.floats(0, 5))
        penalties.append(
            Penalty(
                attribute=attribute, criterion=criterion, utility=utility, weights=weights,
                reduction=reduction, form=form, strength=strength,
            )
        )  # fmt: skip
    parameters = parameters_of(*penalties)
    task = "classification" if labels else "segmentation"
    assert not list(parameters.conflicts(Setting(sizes, labels or 2, task, "sgd", 0.0, "keep", False, False, 3)))
    torch.manual_seed(seed)
    method = FlexFair(parameters, sizes, 1, labels or maps + 1)
    return Case(sites, method, network_for(labels, maps), labels, objective_for(labels, maps))


def parameters_of(*penalties: Penalty, **changes) -> FlexFairParameters:
    fields = {
        "name": "flexfair", "penalties": tuple(penalties), "refresh": "round", "remeasure_own": None,
        "scaling": "joint", "min_weight": None, "max_weight": None, "utility_clip": CLIP,
    }  # fmt: skip
    return FlexFairParameters(**{**fields, **changes})


def image_losses(logits: torch.Tensor, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean binary cross-entropy and soft Dice loss of each image, from their definitions."""
    entropies, dices = [], []
    for image, mask in zip(logits, torch.from_numpy(masks.astype(np.int64)), strict=True):
        entropy, dice = [], []
        for place, logit in enumerate(image):
            truth = (mask == place + 1).double()
            chance = 1 / (1 + torch.exp(-logit))
            entropy.append(-(truth * torch.log(chance) + (1 - truth) * torch.log(1 - chance)).mean())
            dice.append(1 - 2 * (chance * truth).sum() / (chance.sum() + truth.sum() + 1))
        entropies.append(torch.stack(entropy).mean())
        dices.append(torch.stack(dice).mean())
    return torch.stack(entropies), torch.stack(dices)


def task_losses(case: Case, site: SiteRecords) -> torch.Tensor:
    outputs = case.model(site.inputs)
    if case.labels:
        return nn.functional.cross_entropy(outputs, torch.from_numpy(site.labels), reduction="none")
    return sum(image_losses(outputs, site.masks))


def joint_objective(case: Case) -> torch.Tensor:
    """All hospitals' records in one place: the objective as the paper writes it."""
    total = torch.cat([task_losses(case, site) for site in case.sites]).mean()
    every = list(range(case.labels))
    for penalty in case.method.parameters.penalties:
        positive = [1] if case.labels == 2 else every
        conditions = {"equal_opportunity": positive, "equalized_odds": every}.get(penalty.criterion, [None])
        for label in conditions:
            for target in targets_of(case, penalty, label):
                total = total + penalty.strength * joint_penalty(case, penalty, label, target)
    return total


def targets_of(case: Case, penalty: Penalty, label: int | None) -> list[int]:
    if penalty.utility != "probability" or case.labels == 2:
        return [1]
    return [label] if penalty.criterion == "equal_opportunity" else list(range(case.labels))


def utility(case: Case, penalty: Penalty, site: SiteRecords, target: int) -> torch.Tensor:
    outputs = case.model(site.inputs)
    if penalty.utility == "probability":
        return torch.softmax(outputs, dim=1)[:, target]
    if penalty.utility == "cross_entropy":
        return nn.functional.cross_entropy(outputs, torch.from_numpy(site.labels), reduction="none").clamp(max=CLIP)
    entropy, dice = image_losses(outputs, site.masks)
    return dice if penalty.utility == "dice_loss" else entropy.clamp(max=CLIP)


def joint_penalty(case: Case, penalty: Penalty, label: int | None, target: int) -> torch.Tensor:
    values, groups = [], []
    for place, site in enumerate(case.sites):
        value = utility(case, penalty, site, target)
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


def own_sums(case: Case, site: SiteRecords, model: nn.Module | None = None) -> dict[Measure, Sums]:
    target = case.objective.target(site.records())
    with torch.no_grad():
        values = case.objective.quantities((model or case.model)(site.inputs), target, CLIP)
    result: dict[Measure, Sums] = {}
    for measure in case.method.measures():
        chosen = np.ones(len(site.labels), dtype=bool) if measure.label < 0 else site.labels == measure.label
        value = values[measure.quantity].numpy()[chosen]
        if measure.attribute == HOSPITAL:
            result[measure] = HospitalSums.measure(value, 0, measure.weighted)
        else:
            group = site.groups[measure.attribute][chosen]
            result[measure] = CellSums.measure(value, group, case.method.sizes[measure.attribute], 0)
    return result


def federated_gradient(case: Case, aggregation: str, stale: nn.Module | None = None) -> list[torch.Tensor]:
    """Only vectors of sums cross sites: pack, add, unpack, as on the wire.

    With a ``stale`` model the totals are those of that model, and each site puts its own fresh part in their place.
    """
    measures, method = case.method.measures(), case.method
    own = [own_sums(case, site, stale) for site in case.sites]
    vector = np.sum([pack(measures, one) for one in own], axis=0)
    totals = unpack(measures, vector, method.sizes)
    n = sum(len(site.labels) for site in case.sites)
    gradient = [torch.zeros_like(p) for p in case.model.parameters()]
    for site, sums in zip(case.sites, own, strict=True):
        share = len(site.labels) / n if aggregation == "records" else 1 / len(case.sites)
        factor = method.factor(len(site.labels), share)
        mine, fresh = totals, sums
        if stale is not None:
            fresh = own_sums(case, site)
            mine = {measure: exchanged(total, sums[measure], fresh[measure]) for measure, total in totals.items()}
        terms = method.sample_terms(mine, fresh, site.groups, site.labels, factor)
        target = case.objective.target(site.records())
        loss, _ = batch_loss(case.objective, case.model(site.inputs), target, terms.coefficients, CLIP)
        for total, part in zip(gradient, torch.autograd.grad(loss, case.model.parameters()), strict=True):
            total += share * part
    return gradient


def largest_difference(first, second) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_the_sites_gradients_add_up_to_the_joint_gradient(case):
    joint = torch.autograd.grad(joint_objective(case), case.model.parameters())
    federated = federated_gradient(case, "records")
    assert largest_difference(joint, federated) <= TOLERANCE


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_with_uniform_sites_the_penalty_is_still_the_joint_one(case):
    """Uniform aggregation changes the task loss to a mean over sites; the penalty's gradient stays what it is."""
    uniform = federated_gradient(case, "uniform")
    losses = [task_losses(case, site) for site in case.sites]
    pooled, each = torch.cat(losses).mean(), torch.stack([one.mean() for one in losses]).mean()
    joint = torch.autograd.grad(joint_objective(case) - pooled + each, case.model.parameters())
    assert largest_difference(joint, uniform) <= TOLERANCE


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(0, 2**20))
def test_a_site_that_measures_its_own_part_anew_knows_what_one_site_can_know(case, seed):
    """Totals of another model with the own part replaced: exact where one site is everybody, near it otherwise."""
    torch.manual_seed(seed)
    stale = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in stale.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    alone = Case(case.sites[:1], case.method, case.model, case.labels, case.objective)
    fresh = federated_gradient(alone, "records", stale)
    assert largest_difference(torch.autograd.grad(joint_objective(alone), case.model.parameters()), fresh) <= 1e-10


@pytest.mark.parametrize("labels", [2, 3, 0], ids=["two labels", "three labels", "masks"])
def test_each_kind_of_task_has_a_penalty_that_acts(labels):
    """The check above can fail: without the penalty's terms the gradient is another one."""
    random = np.random.default_rng(2)
    groups = [{"sex": np.array([0, 0, 1, 1, 0]), "age": np.array([0, 1, 0, 1, 1])} for _ in range(2)]
    for one in groups:
        one["sex_age"] = one["sex"] * 2 + one["age"]
    sites = [site_records(random, 5, labels, 1, one) for one in groups]
    penalty = Penalty(
        attribute="sex_age", criterion="equal_accuracy", utility="cross_entropy" if labels else "dice_loss",
        weights="records", reduction="sum", form="paper", strength=5.0,
    )  # fmt: skip
    torch.manual_seed(3)
    method = FlexFair(parameters_of(penalty), {"sex": 2, "age": 2, "sex_age": 4}, 1, labels or 2)
    case = Case(sites, method, network_for(labels, 1), labels, objective_for(labels, 1))
    joint = torch.autograd.grad(joint_objective(case), case.model.parameters())
    task = torch.autograd.grad(torch.cat([task_losses(case, site) for site in sites]).mean(), case.model.parameters())
    assert largest_difference(joint, federated_gradient(case, "records")) <= TOLERANCE
    assert largest_difference(joint, task) > 1e-4


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
    parameters = parameters_of(penalty)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    objective = objective_for(2, 1)
    case = Case(sites, FlexFair(parameters, {"sex": 2}, 1), model, 2, objective)
    joint = torch.autograd.grad(joint_objective(case), model.parameters())
    official = parameters_of(penalty, scaling="official")
    wrong = federated_gradient(Case(sites, FlexFair(official, {"sex": 2}, 1), model, 2, objective), "records")
    right = federated_gradient(case, "records")
    assert largest_difference(joint, right) <= TOLERANCE
    assert largest_difference(joint, wrong) > 1e-3


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (None, 2.0), (0.5, 1.5)])
def test_weights_are_held_at_their_bounds_and_the_count_says_how_often(low, high):
    penalty = Penalty(
        attribute="sex", criterion="equal_accuracy", utility="cross_entropy", weights="records",
        reduction="sum", form="paper", strength=50.0,
    )  # fmt: skip
    parameters = parameters_of(penalty, min_weight=low, max_weight=high)
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
