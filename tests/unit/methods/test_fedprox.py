# SPDX-License-Identifier: Apache-2.0
"""FedProx against FLARE's own loss, against numbers worked by hand, and in its limit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

from fairflare import presets
from fairflare.engine.correction import GradientCorrection
from fairflare.methods import Correction
from fairflare.models import build, load_vector, to_vector
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, SGD, four, masked, plan
from tests.unit.methods.driving import ABSENT, Bowl, bowl_plan, bowls, completed, drive, failing, of_bowls, trained


def prox(mu: float) -> dict[str, object]:
    return {"name": "fedprox", "mu": mu}


@pytest.mark.parametrize("mu", [0.01, 0.5, 3.0])
def test_the_gradient_is_that_of_flares_loss(mu) -> None:
    network = build(plan(prox(mu)))
    first = copy.deepcopy(network)
    random = np.random.default_rng(4)
    away = (to_vector(network) + random.normal(size=to_vector(network).size)).astype(np.float32)
    load_vector(network, away)
    inputs, labels = torch.from_numpy(random.normal(size=(9, 26)).astype(np.float32)), torch.arange(9) % 2

    def gradient(further: bool) -> torch.Tensor:
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        (loss + PTFedProxLoss(mu)(network, first) if further else loss).backward()
        return torch.cat([one.grad.ravel() for one in network.parameters()]).clone()

    theirs = gradient(further=True)
    gradient(further=False)
    GradientCorrection(network, Correction(pull=mu), to_vector(first)).before_step()
    ours = torch.cat([one.grad.ravel() for one in network.parameters()])
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert float((ours - gradient(further=False)).abs().max()) > mu / 2


@pytest.mark.parametrize("optimizer", [{**PLAIN_SGD, "lr": 0.5}, {**SGD, "state": "reset"}], ids=["plain", "momentum"])
def test_a_whole_run_is_that_of_flares_loss(tmp_path, optimizer) -> None:
    """Four sites, three rounds of an epoch each, averaged here; tolerance: float32 noise."""
    the_plan = plan(prox(0.7), rounds=3, optimizer=optimizer, work={"unit": "epochs", "amount": 2})
    run = completed(the_plan, tmp_path)
    data = {name: load().training for name, load in four().items()}
    n, x = sum(map(len, data.values())), run.models[0]
    for round_ in range(3):
        first = build(the_plan)
        load_vector(first, x)
        local = {
            name: trained(
                the_plan, name, records, x, round_, lambda model, _, first=first: PTFedProxLoss(0.7)(model, first)
            )
            for name, records in data.items()
        }
        x = sum(len(data[name]) / n * y.astype(np.float64) for name, y in local.items()).astype(np.float32)
        assert np.abs(run.models[round_ + 1] - x).max() <= 1e-6


def test_steps_worked_out_by_hand(tmp_path) -> None:
    """Let f = (y - 4)^2 / 2, mu = 1, learning rate 1/4, two steps from x = 0.

    g = -4 + 0, y = 1; g = -3 + 1 = -2, y = 3/2. Next round from 3/2: g = -5/2, y = 17/8; g = -15/8 + 5/8 = -5/4,
    y = 39/16. Without the pull y = 1, 7/4 first.
    """
    site = {"amber": Bowl(1.0, 4.0, 16)}
    with bowls(0.0):
        run = completed(bowl_plan(prox(1.0), 0.25, rounds=2, min_sites=1), tmp_path, of_bowls(site))
    assert [float(model[0]) for model in run.models] == [0.0, 3 / 2, 39 / 16]


def test_a_site_ends_at_the_optimum_of_its_own_loss_and_the_pull(tmp_path) -> None:
    """(a b + mu x) / (a + mu), after many steps."""
    site = {"amber": Bowl(2.0, 4.0, 16)}
    work = {"unit": "steps", "amount": 200}
    with bowls(1.0):
        run = completed(bowl_plan(prox(3.0), 0.125, rounds=1, min_sites=1, work=work), tmp_path, of_bowls(site))
    assert np.abs(run.models[1] - (2 * 4 + 3 * 1) / (2 + 3)).max() < 1e-6


OPTIMIZERS = {"plain": PLAIN_SGD, "momentum": SGD, "adamw": ADAMW}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_without_a_pull_it_is_fedavg_bit_by_bit(tmp_path, optimizer, hidden) -> None:
    plans = [plan(one, rounds=2, optimizer=optimizer) for one in (presets.FEDAVG, prox(0.0), prox(0.1))]
    runs = [completed(masked(one) if hidden else one, tmp_path / str(at)) for at, one in enumerate(plans)]
    first, second, third = (run.record.final.model_sha256 for run in runs)
    assert first == second != third


def test_the_pull_is_to_the_model_of_the_round_also_after_a_round_missed(tmp_path) -> None:
    """A site that missed a round is pulled to the newest model, not to the last that it trained."""
    the_plan = plan(prox(2.0), rounds=3, optimizer=PLAIN_SGD)
    run = drive(the_plan, tmp_path, None, failing({("measure", 1): {"beryl": ABSENT}}))
    first = build(the_plan)
    load_vector(first, run.models[2])
    term = PTFedProxLoss(2.0)
    records = four()["beryl"]().training
    y = trained(the_plan, "beryl", records, run.models[2], 2, lambda model, _: term(model, first))
    assert np.abs(run.updates["beryl", 2]["dy"] - (y - run.models[2])).max() <= 1e-6
