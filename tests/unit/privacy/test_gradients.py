# SPDX-License-Identifier: Apache-2.0
"""Gradients of records in layers as large as those of real networks, where other ways to them are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fairflare.errors import PrivacyError
from fairflare.privacy import gradients
from fairflare.privacy.gradients import RecordGradients

MODES = ("hooks", "ghost")


class Wide(nn.Sequential):
    """Convolutions whose gradients are larger than products of their few pixels, and one of one pixel by itself."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(
            nn.Conv2d(24, 160, 3, stride=2, padding=1, bias=bias),
            nn.GroupNorm(8, 160),
            nn.Conv2d(160, 210, 1, dilation=2, bias=bias),
            nn.Tanh(),
            nn.Conv2d(210, 24, 2, padding=1, padding_mode="circular"),
            nn.Conv2d(24, 24, 2, groups=2),
            nn.Flatten(),
            nn.Linear(24 * 9, 3),
        )


def batch(model: nn.Module, size: int, seed: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Inputs, and each record's gradient by plain autograd."""
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(size, 24, 6, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alone = [torch.autograd.grad(model(one).square().sum(), trained) for one in inputs.split(1)]
    return inputs, [torch.cat([part.reshape(-1) for part in one]).to(torch.float64) for one in alone]


def found_by(
    own: RecordGradients, model: nn.Module, inputs: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    norms = own.norms(lambda: model(inputs).square().sum(dim=1), len(inputs))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals = [torch.ones(parameter.shape, dtype=torch.float64) for parameter in trained]
    own.add_weighted(totals, factors)
    return norms, torch.cat([one.reshape(-1) for one in totals]) - 1.0


def code(action) -> str:
    with pytest.raises(PrivacyError) as caught:
        action()
    return caught.value.code


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_norms_and_sums_of_large_layers_are_those_worked_out_by_hand(mode, bias, monkeypatch):
    torch.manual_seed(2)
    model, through = Wide(bias).to(torch.float64), []
    real = gradients._norm_through_pixels
    monkeypatch.setattr(gradients, "_norm_through_pixels", lambda *given: through.append(True) or real(*given))
    own = RecordGradients(model, mode)
    # Sizes that grow and shrink: the room of the last batch is used again.
    for size, largest in ((3, 1.0), (5, 1e-9), (2, 1e9), (1, 0.0)):
        inputs, alone = batch(model, size, size)
        factors = torch.linspace(0.3, 1.0, size, dtype=torch.float64) * largest
        norms, total = found_by(own, model, inputs, factors)
        expected = torch.stack([one.norm() for one in alone])
        assert (norms / expected - 1).abs().max() < 1e-12
        wanted = sum(factor * one for factor, one in zip(factors, alone, strict=True))
        # One is added and taken off again.
        assert (total - wanted).abs().max() <= 1e-12 * float(wanted.abs().max()) + 1e-15
    assert len(through) == (8 if mode == "ghost" else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", ["weight", "bias"])
def test_a_layer_of_which_one_part_is_trained(mode, kept):
    torch.manual_seed(2)
    model = Wide().to(torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(kept))
    inputs, alone = batch(model, 3)
    norms, total = found_by(RecordGradients(model, mode), model, inputs, torch.ones(3, dtype=torch.float64))
    assert (norms / torch.stack([one.norm() for one in alone]) - 1).abs().max() < 1e-12
    assert (total - sum(alone)).abs().max() < 1e-12 * float(sum(alone).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cancels_between_pixels_is_never_taken_too_short(dtype):
    """Two pixels whose gradients are opposite but for rounding: products of pixels alone could say that nothing is."""
    random = torch.Generator().manual_seed(4)
    slopes, columns = torch.randn(64, 50, 1, generator=random), torch.randn(64, 70, 1, generator=random)
    close = 1.0 + 1e-6 * torch.randn(64, 1, 1, generator=random)
    slopes, columns = torch.cat([slopes, -slopes], dim=2).to(dtype), torch.cat([columns, columns * close], 2).to(dtype)
    norms = gradients._norm_through_pixels(slopes, columns)
    worked_out = torch.bmm(slopes, columns.transpose(1, 2)).flatten(1).norm(dim=1).to(torch.float64)
    assert (norms >= worked_out * (1 - 1e-12 if dtype is torch.float64 else 1 - 2**-16)).all()
    assert (norms < worked_out + 1e-6 * slopes.flatten(1).norm(dim=1) * columns.flatten(1).norm(dim=1)).all()
    equal = torch.cat([columns[:, :, :1], columns[:, :, :1]], dim=2)
    assert (gradients._norm_through_pixels(slopes, equal) > 0).all()


def test_what_cancels_where_the_sum_is_worked_out_another_way_is_never_taken_too_short():
    """Many pixels, a gradient too large to be kept: what the sum adds for a record is no longer than its norm says."""
    random = torch.Generator().manual_seed(5)
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    assert layer.weight.numel() > gradients._SMALL
    inputs = 50.0 * torch.randn(1, 64, 32, 32, generator=random)
    slopes = torch.randn(1, 64, 32, 32, generator=random)
    # The part of the slopes that the gradient sees is taken out, in float64: what is left is rounding, of either way.
    columns = gradients._columns(layer, inputs).to(torch.float64)[0]
    flat = slopes.flatten(2).to(torch.float64)[0]
    basis = torch.linalg.qr(columns.T).Q
    slopes = (flat - (flat @ basis) @ basis.T).to(torch.float32).view_as(slopes)
    call = gradients._Call(layer, (inputs,), torch.empty(0), [], slopes)
    (norm,) = gradients._norms_of_convolution(layer, call)
    assert layer.weight not in call.samples
    added = gradients._sum_of_convolution(layer, inputs, slopes).to(torch.float64).norm()
    assert added <= norm
    kept = gradients._norm(gradients._by_record(layer, call, gradients._columns(layer, inputs)))
    assert kept < norm < kept + 1e-6 * inputs.norm() * slopes.norm() * 9


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.one(x))


class Overwriting(nn.Module):
    """Writes over what a layer was given, behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = x + 0.0
        found = self.one(given).clone()
        given.detach().mul_(2.0)
        return found


class Tied(nn.Module):
    """One parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


class Uncalled(nn.Module):
    """A parameter that acts outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.one(x), self.two.weight, self.two.bias)


class Ignored(Uncalled):
    """A layer whose output nobody uses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.two(x)
        return self.one(x)


class Mixing(Uncalled):
    """A layer that is given other rows than records."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x.repeat(2, 1)))[: len(x)]


class Pair(nn.Module):
    """A trained layer that gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * self.weight, x


class First(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "model",
    [
        Twice, Overwriting, lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), Tied, Uncalled, Ignored,
        Mixing, lambda: First(Pair()),
    ],
    ids=[
        "a layer called twice", "an input written over", "an output written over", "a parameter of two layers",
        "a parameter outside of its layer", "an output without use", "other rows than records", "two tensors",
    ],
)  # fmt: skip
def test_what_would_give_other_gradients_is_refused_in_the_step_itself(mode, model):
    made = model()
    own = RecordGradients(made, mode)
    assert code(lambda: own.norms(lambda: made(torch.ones(2, 4)).sum(dim=1), 2)) == "FF-PRIVACY-MODEL"


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_rows_through_a_wide_layer_are_exact(mode):
    """More numbers than ghost keeps, of a layer that no short cut is for."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Flatten(), nn.Linear(400, 2)).to(torch.float64)
    assert model[0].weight.numel() > gradients._SMALL
    inputs, factors = torch.randn(3, 2, 200, dtype=torch.float64), torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64)
    trained = list(model.parameters())
    alone = [torch.autograd.grad(model(one).square().sum(), trained) for one in inputs.split(1)]
    flat = [torch.cat([part.reshape(-1) for part in one]) for one in alone]
    norms, total = found_by(RecordGradients(model, mode), model, inputs, factors)
    assert torch.allclose(norms, torch.stack([one.norm() for one in flat]), rtol=1e-12)
    wanted = sum(factor * one for factor, one in zip(factors, flat, strict=True))
    assert torch.allclose(total, wanted, atol=1e-12 * float(wanted.norm()))


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_the_whole_batch_is_never_worked_out(mode):
    """It would be of no use, and takes a third of an ordinary step."""
    model = Wide()
    own = RecordGradients(model, mode)
    inputs, _ = batch(model, 2)
    own.norms(lambda: model(inputs).sum(dim=1), 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    own.forget()
    assert own._calls == []


@pytest.mark.parametrize("mode", MODES)
def test_passes_that_are_not_watched_leave_nothing(mode):
    model = Wide()
    own = RecordGradients(model, mode)
    model(torch.randn(2, 24, 6, 6)).sum().backward()
    assert own._calls == []
    own.close()
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(hasattr(module, "ft_compute_sample_grad") for module in model.modules())
    assert np.array_equal(list(vars(model)), list(vars(Wide())))
