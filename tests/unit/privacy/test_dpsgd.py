# SPDX-License-Identifier: Apache-2.0
"""Clip, then weight: equal to gradients worked out one record at a time, with both of Opacus's ways to get them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fairflare.errors import PrivacyError
from fairflare.privacy import dpsgd, noise
from fairflare.privacy.dpsgd import DpSgd, Drawn, Mechanism, UnitSampler
from fairflare.privacy.preflight import verify_private
from tests.unit.privacy.private_models import RECORDS, Site, clipped, everybody

MODES = ("hooks", "ghost")
KINDS = ("mlp", "cnn", "unet")
WEIGHTS = np.linspace(0, 1, RECORDS)


def code(action) -> str:
    with pytest.raises(PrivacyError) as caught:
        action()
    return caught.value.code


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.5, 1e3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_the_one_worked_out_by_hand(mode, kind, clip):
    site = Site(kind)
    alone = [site.gradient(record) for record in range(RECORDS)]
    expected = sum(weight * clipped(one, clip) for weight, one in zip(WEIGHTS, alone, strict=True))
    found = site.private(mode, clip).clipped_sum(everybody(), WEIGHTS, site.losses)
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() < 1e-12 * scale


def test_some_records_are_clipped_and_some_are_not():
    """The test above would see no clip, or nothing else, if all gradients were short or all long."""
    norms = [float(np.linalg.norm(Site("cnn").gradient(record))) for record in range(RECORDS)]
    assert min(norms) < 1.5 < max(norms)


@pytest.mark.parametrize("mode", MODES)
def test_weights_act_in_full_at_a_small_bound(mode):
    """Of a weight inside the loss only its sign is left once the bound is short; behind the clip it is all there."""
    site, clip = Site("cnn"), 1e-3
    steps = site.private(mode, clip)
    for weight in (1.0, 0.3, 0.2):
        one = steps.clipped_sum(Drawn(np.array([4]), np.ones(1)), np.array([weight]), site.losses)
        assert np.linalg.norm(one) == pytest.approx(weight * clip, rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_parts_of_a_batch_add_up(mode, at_once):
    whole = Site("cnn")
    expected = whole.private(mode).clipped_sum(everybody(), WEIGHTS, whole.losses)
    site = Site("cnn")
    found = site.private(mode, at_once=at_once).clipped_sum(everybody(), WEIGHTS, site.losses)
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_the_same_batch_twice_gives_the_same_sum(mode):
    """Nothing of a batch is left for the next one."""
    site = Site("mlp")
    steps = site.private(mode)
    first = steps.clipped_sum(everybody(), WEIGHTS, site.losses)
    assert np.array_equal(first, steps.clipped_sum(everybody(), WEIGHTS, site.losses))


@pytest.mark.parametrize("mode", MODES)
def test_float32_is_close_and_never_above_the_bound(mode):
    site = Site("cnn", torch.float32)
    steps = site.private(mode, clip=0.01)
    for record in range(RECORDS):
        one = steps.clipped_sum(Drawn(np.array([record]), np.ones(1)), np.ones(1), site.losses)
        expected = clipped(site.gradient(record), 0.01)
        assert np.linalg.norm(one) <= 0.01
        assert np.linalg.norm(one - expected) < 1e-4 * 0.01


@pytest.mark.parametrize("mode", MODES)
def test_a_record_without_a_finite_gradient_counts_as_zero(mode):
    site = Site("cnn")
    site.inputs[2] = torch.nan
    site.inputs[7] = torch.inf
    steps = site.private(mode)
    rest = np.array([record for record in range(RECORDS) if record not in (2, 7)])
    expected = steps.clipped_sum(Drawn(rest, np.ones(rest.size)), WEIGHTS[rest], site.losses)
    found = steps.clipped_sum(everybody(), WEIGHTS, site.losses)
    assert np.abs(found - expected).max() < 1e-12
    broken = Drawn(np.array([2, 7]), np.ones(2))
    assert not steps.clipped_sum(broken, np.ones(2), site.losses).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-18, 1e-10, 1e10, 1e15, 1e18, 1e25, 1e35])
@pytest.mark.parametrize("mode", MODES)
def test_no_float32_gradient_slips_under_the_clip(mode, scale):
    """Squares of such numbers vanish or overflow in float32: what is too long to be scaled counts as zero."""
    torch.manual_seed(2)
    model = nn.Linear(4, 3)
    inputs = torch.randn(8, 4) * scale
    optimizer, bound = torch.optim.SGD(model.parameters(), lr=1.0), 1e-3
    given = (model, optimizer, Mechanism(bound, 1.0, 1.0, 1.0), UnitSampler(np.arange(8), 1.0, 1))
    steps = DpSgd(*given, mode=mode, at_once=8, charge=lambda: None)
    for record in range(8):
        one = Drawn(np.array([record]), np.ones(1))
        # A slope as small as the inputs are large, and the other way round: the gradient itself is of usual size.
        for slope in (1.0, min(1.0 / scale, 1e37), 0.1 / scale**0.5):
            found = steps.clipped_sum(one, np.ones(1), lambda index, by=slope: model(inputs[index]).sum(dim=1) * by)
            assert np.isfinite(found).all()
            assert np.linalg.norm(found) <= bound


@pytest.mark.parametrize(
    ("size", "slope", "bound"),
    [(1e-23, 1e19, 1e-6), (1e37, 1.0, 1e-6), (3e37, 1.0, 1e-6), (7e37, 1.0, 1e-6)],
    ids=["a square that vanishes", "a factor of few digits", "another", "and another"],
)
@pytest.mark.parametrize("mode", MODES)
def test_no_number_at_the_end_of_float32_slips_under_the_clip(mode, size, slope, bound):
    model, inputs = nn.Linear(4, 1, bias=False), torch.linspace(1, 2, 32).view(8, 4) * size
    given = (model, torch.optim.SGD(model.parameters(), lr=1.0), Mechanism(bound, 1.0, 1.0, 1.0))
    steps = DpSgd(*given, UnitSampler(np.arange(8), 1.0, 1), mode=mode, at_once=8, charge=lambda: None)
    for record in range(8):
        one = Drawn(np.array([record]), np.ones(1))
        found = steps.clipped_sum(one, np.ones(1), lambda index: model(inputs[index]).sum(dim=1) * slope)
        assert np.linalg.norm(found) <= bound


@pytest.mark.parametrize("mode", MODES)
def test_a_long_gradient_of_alike_numbers_is_no_longer_than_the_bound(mode):
    """In float32, half a million equal squares add up to too little, and the gradient would be cut too late."""
    model, inputs = nn.Conv2d(512, 1024, 1, bias=False), torch.ones(1, 512, 1, 1)
    given = (model, torch.optim.SGD(model.parameters(), lr=1.0), Mechanism(1.0, 1.0, 1.0, 1.0))
    steps = DpSgd(*given, UnitSampler(np.arange(1), 1.0, 1), mode=mode, at_once=1, charge=lambda: None)
    one = Drawn(np.array([0]), np.ones(1))
    found = steps.clipped_sum(one, np.ones(1), lambda index: 0.1 * model(inputs[index]).sum(dim=(1, 2, 3)))
    assert 1 - 1e-4 < np.linalg.norm(found) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_linear_layers_on_rows_of_rows_are_exact_too(mode):
    torch.manual_seed(2)
    model, inputs = nn.Linear(4, 3).to(torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    verify_private(model, inputs, mode)
    given = (model, torch.optim.SGD(model.parameters(), lr=1.0), Mechanism(0.5, 1.0, 1.0, 1.0))
    steps = DpSgd(*given, UnitSampler(np.arange(2), 1.0, 1), mode=mode, at_once=2, charge=lambda: None)
    for record in range(2):
        loss = model(inputs[record]).square().sum()
        alone = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, list(model.parameters()))]).numpy()
        one = Drawn(np.array([record]), np.ones(1))
        found = steps.clipped_sum(one, np.ones(1), lambda index: model(inputs[index]).square().sum(dim=(1, 2)))
        assert np.abs(found - clipped(alone, 0.5)).max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_only_what_is_trained_has_a_part_in_the_sum(mode):
    site = Site("cnn")
    for parameter in list(site.model.parameters())[:-2]:
        parameter.requires_grad_(False)
    alone = [site.gradient(record) for record in range(RECORDS)]
    expected = sum(weight * clipped(one, 0.1) for weight, one in zip(WEIGHTS, alone, strict=True))
    found = site.private(mode, 0.1).clipped_sum(everybody(), WEIGHTS, site.losses)
    assert found.shape == (2 * 16 + 2,)
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_the_noised_sum_over_the_expected_units(mode, monkeypatch):
    site = Site("cnn", torch.float32)
    before = torch.cat([one.detach().reshape(-1).clone() for one in site.model.parameters()])
    asked = []

    def no_noise(values, deviation):
        asked.append((values.copy(), deviation))
        return values

    monkeypatch.setattr(noise, "add_gaussian", no_noise)
    steps = site.private(mode, clip=0.5, most_weight=2.0, multiplier=3.0, expected=6.0, rate=1.0, lr=0.25)
    expected = steps.clipped_sum(everybody(), 2 * WEIGHTS, site.losses)
    steps.step(2 * WEIGHTS, site.losses)
    after = torch.cat([one.detach().reshape(-1) for one in site.model.parameters()])
    (values, deviation), moved = asked[0], (before - after).numpy()
    assert deviation == 3.0 * 2.0 * 0.5
    assert np.abs(values - expected).max() < 1e-5
    assert np.abs(moved - 0.25 * expected / 6.0).max() < 1e-6
    assert steps.steps == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_noise_of_a_step_is_as_wide_as_accounted(mode):
    """Multiplier x most_weight x clip, over the expected units, in every coordinate."""
    site = Site("cnn")
    steps = site.private(mode, clip=0.5, most_weight=2.0, multiplier=4.0, expected=8.0, rate=1e-9)
    drawn = []
    for _ in range(5):
        before = torch.cat([one.detach().reshape(-1).clone() for one in site.model.parameters()])
        steps.step(np.zeros(RECORDS), site.losses)
        drawn.append((torch.cat([one.detach().reshape(-1) for one in site.model.parameters()]) - before).numpy())
    moved = np.concatenate(drawn)
    assert np.std(moved) == pytest.approx(4.0 * 2.0 * 0.5 / 8.0, rel=5 / np.sqrt(2 * moved.size))


@pytest.mark.parametrize("mode", MODES)
def test_names_of_tensors_stay_clean_and_the_model_can_be_had_back(mode):
    site = Site("cnn")
    names, known = list(site.model.state_dict()), set(vars(next(site.model.parameters())))
    steps = site.private(mode)
    steps.step(WEIGHTS, site.losses)
    assert list(site.model.state_dict()) == names
    assert all(one.grad is None and getattr(one, "grad_sample", None) is None for one in site.model.parameters())
    steps.close()
    assert set(vars(next(site.model.parameters()))) == known
    assert not any(module._forward_hooks or module._backward_hooks for module in site.model.modules())
    site.losses(np.arange(2)).sum().backward()
    site.private(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_one_on_the_same_model_is_refused(mode):
    """An engine per round forgets what the rounds before have cost."""
    site = Site("mlp")
    site.private(mode)
    assert code(lambda: site.private(mode)) == "FF-PRIVACY-TWICE"


@pytest.mark.parametrize("bad", [-1e-9, 1.5, np.nan, np.inf])
def test_weights_outside_their_range_are_refused(bad):
    site = Site("mlp")
    weights = WEIGHTS.copy()
    weights[3] = bad
    assert code(lambda: site.private("hooks").clipped_sum(everybody(), weights, site.losses)) == "FF-PRIVACY-WEIGHT"


def test_weights_of_another_number_are_refused():
    site = Site("mlp")
    steps = site.private("hooks")
    assert code(lambda: steps.clipped_sum(everybody(), WEIGHTS[:3], site.losses)) == "FF-PRIVACY-WEIGHT"


@pytest.mark.parametrize("name", ["clip", "most_weight", "multiplier", "expected"])
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_mechanism_is_refused(name, bad):
    given = {"clip": 1.0, "most_weight": 1.0, "multiplier": 1.0, "expected": 1.0, name: bad}
    assert code(lambda: Mechanism(**given)) == "FF-PRIVACY-MECHANISM"


def test_an_optimiser_of_other_parameters_is_refused():
    site = Site("mlp")
    for held in (site.trained()[:1], [*site.trained(), nn.Parameter(torch.zeros(1))]):
        optimizer = torch.optim.SGD(held, lr=1.0)
        given = (site.model, optimizer, Mechanism(1.0, 1.0, 1.0, 1.0), UnitSampler(np.arange(3), 0.5, 1))
        assert (
            code(lambda given=given: DpSgd(*given, mode="hooks", at_once=1, charge=lambda: None))
            == "FF-PRIVACY-OPTIMIZER"
        )


@pytest.mark.parametrize("at_once", [0, dpsgd.MOST_AT_ONCE + 1])
def test_a_number_at_once_outside_its_range_is_refused(at_once):
    assert code(lambda: Site("mlp").private("hooks", at_once=at_once)) == "FF-PRIVACY-AT-ONCE"


def test_one_loss_for_the_whole_batch_is_refused():
    site = Site("mlp")
    steps = site.private("hooks")
    losses = lambda index: site.losses(index).mean()  # noqa: E731
    assert code(lambda: steps.clipped_sum(everybody(), WEIGHTS, losses)) == "FF-PRIVACY-MODEL"


class Inplace(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


class Mixing(nn.Sequential):
    """Centres over the batch, as BatchNorm does, without keeping buffers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self[0](x)
        return self[1](x - x.mean(dim=0) / 2)


class Batched(nn.Sequential):
    """BatchNorm itself, and no record is ever alone in it."""

    def __init__(self, buffers: bool = False) -> None:
        super().__init__(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=buffers), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if len(x) > 1 else torch.cat([x, -x]))[: len(x)]


class Buffered(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 2))
        self.register_buffer("kept", torch.zeros(1))


class Beside(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) @ self.two.weight + self.two.bias


class Unused(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 2)
        self.spare = nn.Linear(2, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Inplace, Mixing, Batched, Buffered, Beside, Unused])
def test_the_preflight_finds_what_has_no_gradient_of_its_own(kind, mode):
    torch.manual_seed(1)
    assert code(lambda: verify_private(kind(), torch.randn(2, 4), mode)) == "FF-PRIVACY-MODEL"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_preflight_passes_and_leaves_the_model_as_it_was(kind, mode):
    site = Site(kind, torch.float32)
    before = {name: tensor.clone() for name, tensor in site.model.state_dict().items()}
    verify_private(site.model, site.inputs[1:3], mode)
    assert all(torch.equal(tensor, before[name]) for name, tensor in site.model.state_dict().items())
    assert all(one.grad is None for one in site.model.parameters())
    site.private(mode)


def test_weights_are_looked_at_before_anything_is_charged_or_drawn():
    """Whether a bad one among them is found must not depend on who is drawn."""
    site, charged = Site("mlp"), []
    steps = site.private("hooks", rate=1e-12, charge=lambda: charged.append(True))
    for weights in (np.append(WEIGHTS[1:], 1.5), WEIGHTS[1:]):
        assert code(lambda weights=weights: steps.step(weights, site.losses)) == "FF-PRIVACY-WEIGHT"
    assert charged == []


def test_a_model_in_another_mode_or_type_is_refused():
    site = Site("mlp")
    steps = site.private("hooks")
    site.model.eval()
    assert code(lambda: steps.clipped_sum(everybody(), WEIGHTS, site.losses)) == "FF-PRIVACY-MODEL"
    steps.close()
    site.model.eval()
    assert code(lambda: site.private("hooks")) == "FF-PRIVACY-MODEL"
    site.model.train()
    site.model.to(torch.bfloat16)
    assert code(lambda: site.private("hooks")) == "FF-PRIVACY-MODEL"
