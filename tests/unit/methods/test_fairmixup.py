# SPDX-License-Identifier: Apache-2.0
"""Fair mixup's regulariser against slopes and finite differences; batches without a pair; no foreign record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fairflare import presets
from fairflare.data.manifest import SiteData
from fairflare.engine import training
from fairflare.engine.mixing import mixing_loss
from fairflare.errors import PlanError
from fairflare.methods import FairMixupParameters, Mixing
from fairflare.models import build, load_vector, to_vector
from fairflare.seeds import generator
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, SGD, four, image_plan, masked, plan, several_labels
from tests.unit.methods.driving import completed

FAIRMIXUP = {
    "name": "fairmixup", "attribute": "sex", "criterion": "demographic_parity", "strength": 2.0,
    "direction": "difference", "output": "probability",
}  # fmt: skip
OUTPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "probability": lambda logits: logits.softmax(dim=1)[:, 1],
    "sum": lambda logits: torch.sigmoid(logits).sum(dim=1),
}


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False), nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


NETWORKS = {"mlp": (mlp, (6,)), "cnn": (cnn, (2, 6, 6))}


def case(network: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor, np.ndarray, np.ndarray]:
    """A network in float64, and a batch of 20 with records of no group."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[network]
    random = np.random.default_rng(seed)
    inputs = torch.from_numpy(random.normal(size=(20, *shape)))
    group, labels = np.resize([-1, 0, 1, 1, 0, 0, 1], 20), np.resize([0, 0, 0, 1, 1], 20)
    order = random.permutation(20)
    return make().double(), inputs, group[order], labels[order]


def pairs(group: np.ndarray, labels: np.ndarray, label: int) -> list[tuple[int, int]]:
    """First of group 0 with first of group 1, and so on, among records of a label."""
    sides = [[i for i in range(len(group)) if group[i] == k and label in (-1, labels[i])] for k in (0, 1)]
    return list(zip(*sides, strict=False))


def value_of(scalar: torch.Tensor) -> float:
    return float(scalar.detach())


def slope(f: Callable[[torch.Tensor], torch.Tensor], mixed: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """d/ds f(x + s d) at s = 0: no gradient of x and no inner product."""
    s = torch.zeros((), dtype=mixed.dtype, requires_grad=True)
    return torch.autograd.grad(f(mixed + s * along), s, create_graph=True)[0]


def term(mixing: Mixing, t: float, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], batch) -> torch.Tensor:
    """Sum over labels of |mean over pairs of the change along the way|; ``change(x_t, direction)`` works one out."""
    inputs, group, labels = batch
    total = torch.zeros((), dtype=torch.float64)
    for label in mixing.labels:
        found = []
        for first, second in pairs(group, labels, label):
            x0, x1 = inputs[first], inputs[second]
            mixed = t * x0 + (1 - t) * x1
            found.append(change(mixed, x1 - x0 if mixing.direction == "difference" else mixed - x0))
        total = total + torch.stack(found).mean().abs()
    return total


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("labels", [(-1,), (1,), (0, 1)], ids=["parity", "opportunity", "odds"])
@pytest.mark.parametrize("direction", ["difference", "to_mixed"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_value_and_gradient_are_those_of_slopes_and_of_finite_differences(network, labels, direction, output) -> None:
    """In float64: within 1e-10 of slopes for each pair alone, within 1e-6 of central differences of h = 1e-5."""
    model, inputs, group, of = case(network)
    mixing, t = Mixing("sex", labels, 2.0, direction, output), 0.3
    value = OUTPUTS[output]
    ours = mixing_loss(model, inputs, group, of, mixing, t)
    assert ours is not None
    gradient = torch.cat([one.ravel() for one in torch.autograd.grad(ours, list(model.parameters()))])
    names, parameters = zip(*model.named_parameters(), strict=True)

    def at(values: tuple[torch.Tensor, ...], exact: bool) -> torch.Tensor:
        def f(x: torch.Tensor) -> torch.Tensor:
            called = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x[None],))
            return value(called)[0]

        def change(mixed: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
            if exact:
                return slope(f, mixed, along)
            return (f(mixed + 1e-5 * along) - f(mixed - 1e-5 * along)) / 2e-5

        return term(mixing, t, change, (inputs, group, of))

    copies = tuple(one.detach().clone().requires_grad_() for one in parameters)
    theirs = at(copies, exact=True)
    assert value_of(ours) == pytest.approx(value_of(theirs), abs=1e-10)
    parts = torch.autograd.grad(theirs, copies, allow_unused=True, materialize_grads=True)
    assert torch.allclose(gradient, torch.cat([one.ravel() for one in parts]), atol=1e-10, rtol=0)
    assert value_of(ours) == pytest.approx(value_of(at(parameters, exact=False)), abs=1e-6)
    random = np.random.default_rng(1)
    for _ in range(3):  # along random directions of all parameters
        along = [torch.from_numpy(random.normal(size=tuple(one.shape))) for one in parameters]
        two = [
            value_of(
                at(tuple(one.detach() + sign * 1e-6 * way for one, way in zip(parameters, along, strict=True)), True)
            )
            for sign in (1, -1)
        ]
        expected = value_of(torch.dot(gradient, torch.cat([way.ravel() for way in along])))
        assert (two[0] - two[1]) / 2e-6 == pytest.approx(expected, abs=1e-5)


def test_two_records_worked_out_by_hand() -> None:
    """Let f = sigmoid(2 x) be the probability of two logits (0, 2 x): x0 = 1, x1 = -1, t = 3/4, so x_t = 1/2.

    f'(x) = 2 s (1 - s) with s = sigmoid(1); along x1 - x0 = -2: |4 s (1 - s)|; along x_t - x0 = -1/2: |s (1 - s)|.
    """
    model = nn.Linear(1, 2)
    load_vector(model, np.array([0.0, 2.0, 0.0, 0.0], dtype=np.float32))
    inputs, s = torch.tensor([[1.0], [-1.0]]), 1 / (1 + np.exp(-1.0))
    for direction, factor in (("difference", 4), ("to_mixed", 1)):
        mixing = Mixing("sex", (-1,), 1.0, direction, "probability")
        found = mixing_loss(model, inputs, np.array([0, 1]), np.array([0, 0]), mixing, 0.75)
        assert value_of(found) == pytest.approx(factor * s * (1 - s), rel=1e-6)


@pytest.mark.parametrize("group", [[0] * 20, [1] * 20, [-1] * 20, [0, -1] * 10])
def test_a_batch_without_both_groups_adds_nothing(group) -> None:
    model, inputs, _, labels = case("mlp")
    mixing = Mixing("sex", (0, 1), 2.0, "difference", "probability")
    assert mixing_loss(model, inputs, np.array(group), labels, mixing, 0.5) is None


def test_a_label_without_both_groups_leaves_the_other_one() -> None:
    model, inputs, _, _ = case("mlp")
    group, labels = np.arange(20) % 2, np.where(np.arange(20) % 2 == 0, np.arange(20) // 2 % 2, 1)
    odds, one = (Mixing("sex", which, 2.0, "difference", "probability") for which in ((0, 1), (1,)))
    batch = model, inputs, group, labels
    assert value_of(mixing_loss(*batch, odds, 0.5)) == value_of(mixing_loss(*batch, one, 0.5)) > 0
    assert mixing_loss(*batch, Mixing("sex", (0,), 2.0, "difference", "probability"), 0.5) is None


def test_records_of_no_group_and_those_without_a_partner_do_not_matter() -> None:
    model, inputs, group, labels = case("mlp")
    mixing = Mixing("sex", (-1,), 2.0, "difference", "probability")
    found = pairs(group, labels, -1)
    used = {place for pair in found for place in pair}
    assert len(used) < 20
    other = inputs.clone()
    other[[place for place in range(20) if place not in used]] = 100.0
    assert value_of(mixing_loss(model, other, group, labels, mixing, 0.5)) == value_of(
        mixing_loss(model, inputs, group, labels, mixing, 0.5)
    )


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("criterion", ["demographic_parity", "equal_opportunity", "equalized_odds"])
def test_a_whole_run_is_the_papers_loss_in_bare_torch(tmp_path, criterion) -> None:
    """Three rounds of four sites; t is drawn once for a batch; tolerance: float32 noise."""
    of = {"demographic_parity": (-1,), "equal_opportunity": (1,), "equalized_odds": (0, 1)}[criterion]
    the_plan = plan({**FAIRMIXUP, "criterion": criterion}, rounds=3, optimizer={**PLAIN_SGD, "lr": 0.3})
    run = completed(the_plan, tmp_path)
    data = {name: load().training for name, load in four().items()}
    n, x, mixing = sum(map(len, data.values())), run.models[0], Mixing("sex", of, 2.0, "difference", "probability")
    terms = []
    for round_ in range(3):
        mean = np.zeros(x.size)
        for name, records in data.items():
            model = build(the_plan)
            load_vector(model, x)
            for number, index in enumerate(training.Trainer(the_plan, name, records).batches(round_)):
                t = float(generator(the_plan.training.seed, "mixing", name, round_, number).random())
                inputs = torch.from_numpy(records.inputs[index])
                loss = nn.functional.cross_entropy(model(inputs), torch.from_numpy(records.labels[index]))
                group, labels = records.groups["sex"][index], records.labels[index]
                for label in mixing.labels:
                    if pairs(group, labels, label):
                        one = Mixing("sex", (label,), 2.0, "difference", "probability")

                        def change(mixed, along, model=model):
                            f = lambda at: model(at[None]).softmax(dim=1)[0, 1]  # noqa: E731
                            return slope(f, mixed, along)

                        terms.append(term(one, t, change, (inputs, group, labels)))
                        loss = loss + 2.0 * terms[-1]
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.3 * parameter.grad
            mean += len(records) / n * to_vector(model).astype(np.float64)
        x = mean.astype(np.float32)
        assert np.abs(run.models[round_ + 1] - x).max() <= 2e-6
    assert len(terms) > 20
    assert max(map(value_of, terms)) > 1e-2


OPTIMIZERS = {"plain": PLAIN_SGD, "momentum": SGD, "adamw": ADAMW}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_without_strength_it_is_fedavg_bit_by_bit(tmp_path, optimizer, hidden) -> None:
    methods = (presets.FEDAVG, {**FAIRMIXUP, "strength": 0.0}, FAIRMIXUP)
    plans = [plan(one, rounds=2, optimizer=optimizer) for one in methods]
    runs = [completed(masked(one) if hidden else one, tmp_path / str(at)) for at, one in enumerate(plans)]
    first, second, third = (run.record.final.model_sha256 for run in runs)
    assert first == second != third


def test_sites_of_one_group_train_as_fedavg_does(tmp_path) -> None:
    def load(name: str) -> SiteData:
        data = four()[name]()
        data.training.groups["sex"][:] = -1 if name == "dune" else len(name) % 2
        return data

    loaders = {name: (lambda name=name: load(name)) for name in four()}
    runs = [completed(plan(one, rounds=2), tmp_path / one["name"], loaders) for one in (presets.FEDAVG, FAIRMIXUP)]
    assert runs[0].record.final.model_sha256 == runs[1].record.final.model_sha256


def test_only_a_sites_own_training_records_are_mixed(tmp_path, monkeypatch) -> None:
    """Every row that is mixed is a training record of the site, with its own group and label."""
    seen = []
    own = training.mixing_loss

    def spy(model, inputs, group, labels, mixing, between):
        seen.append((inputs.numpy().copy(), group.copy(), labels.copy()))
        return own(model, inputs, group, labels, mixing, between)

    monkeypatch.setattr(training, "mixing_loss", spy)
    name_of = training.Trainer.step
    at = []
    monkeypatch.setattr(
        training.Trainer, "step", lambda trainer, *rest: (at.append(trainer.site), name_of(trainer, *rest))[1]
    )
    completed(plan(FAIRMIXUP, rounds=2), tmp_path)
    assert len(at) == len(seen) > 10
    known = {
        name: {
            row.tobytes(): (group, label)
            for row, group, label in zip(one.inputs, one.groups["sex"], one.labels, strict=True)
        }
        for name, one in ((name, load().training) for name, load in four().items())
    }
    for site, (inputs, group, labels) in zip(at, seen, strict=True):
        for row, of, label in zip(inputs, group, labels, strict=True):
            assert known[site][row.tobytes()] == (of, label)


def test_another_sites_records_do_not_change_what_a_site_sends(tmp_path) -> None:
    others = {**four(), "dune": four()["amber"]}
    runs = [completed(plan(FAIRMIXUP, rounds=1), tmp_path / str(at), data) for at, data in enumerate((four(), others))]
    for name in ("amber", "beryl", "coral"):
        one, other = (run.updates[name, 0]["dy"] for run in runs)
        assert one.tobytes() == other.tobytes()
    assert runs[0].updates["dune", 0]["dy"].tobytes() != runs[1].updates["dune", 0]["dy"].tobytes()


def test_images_are_mixed_and_networks_for_them_can_be_differentiated_twice() -> None:
    """The shipped image networks: value and gradient are finite, and not zero."""
    from fairflare.models.networks import Cnn, resnet18

    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.normal(size=(8, 3, 32, 32)).astype(np.float32))
    for network in (Cnn(3, (8, 16), 2), resnet18(3, 2)):
        mixing = Mixing("sex", (-1,), 1.0, "difference", "probability")
        found = mixing_loss(network, inputs, np.arange(8) % 2, np.zeros(8), mixing, 0.4)
        found.backward()
        gradient = torch.cat([one.grad.ravel() for one in network.parameters() if one.grad is not None])
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(("change", "expected"), [
    ({"attribute": "hospital"}, "no record leaves a hospital"), ({"attribute": "eyes"}, "does not declare"),
])  # fmt: skip
def test_what_cannot_be_mixed_is_refused(change, expected) -> None:
    with pytest.raises(PlanError, match=expected):
        plan({**FAIRMIXUP, **change})


def test_segmentation_and_more_than_two_labels_are_refused() -> None:
    with pytest.raises(PlanError, match="a classification of two labels"):
        image_plan(FAIRMIXUP)
    with pytest.raises(PlanError, match="a classification of two labels"):
        several_labels(3, FAIRMIXUP)


def test_criteria_name_the_labels() -> None:
    def labels(criterion: str) -> tuple[int, ...]:
        return FairMixupParameters(**{**FAIRMIXUP, "criterion": criterion}).mixing.labels

    assert [labels(one) for one in ("demographic_parity", "equal_opportunity", "equalized_odds")] == [
        (-1,), (1,), (0, 1),
    ]  # fmt: skip
