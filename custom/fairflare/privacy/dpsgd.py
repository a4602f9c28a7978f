# SPDX-License-Identifier: Apache-2.0
"""DP-SGD at one site: each record's gradient is clipped, then weighted for fairness, then noise hides the sum.

Weights come after the clip. A weight inside the loss makes the gradient longer, and the clip cuts it back: at small
bounds only the weight's sign is left. Behind the clip it acts in full, and the accounting knows it: a unit moves the
sum by at most ``most_weight`` times the bound.

The unit that is protected is a patient (or a lesion): units are drawn, each on its own (Poisson sampling). A unit that
is drawn with k records, at most ``cap``, counts with the mean of their clipped gradients, so its bound is that of one
record, and no record counts more than its unit's k-th part.

Weights must be known to all, or come out of a private release themselves: what follows from private numbers without
noise is not covered here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import nn

from fairflare.errors import PrivacyError
from fairflare.privacy import noise

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mode = Literal["hooks", "ghost"]
Norms = dict[torch.Tensor, torch.Tensor]
#: Record numbers -> the loss of each of these records, (B,), through the model's own forward pass.
Losses = Callable[[Integers], torch.Tensor]

#: Gradients are clipped this much shorter than the bound, so that rounding never makes a record exceed it.
_SLACK = {torch.float32: 2.0**-14, torch.float64: 2.0**-44}
_BLOCK = 4096
#: Gradients longer than this many bounds count as not finite: scaling them down would lose digits to underflow.
_LONGEST = 2.0**40
#: Rounding grows with the records of one pass; with more of them the slack would no longer cover it.
MOST_AT_ONCE = 512


@dataclass(frozen=True)
class Mechanism:
    """What a step's privacy follows from; all of it is public.

    Attributes
    ----------
    clip
        C: bound of the L2 norm of one record's gradient.
    most_weight
        Upper bound of the fairness weights, which start at 0. Dividing all weights by it and multiplying the learning
        rate instead gives the same steps and the same privacy.
    multiplier
        sigma: standard deviation of the noise over the sensitivity.
    expected
        Units per step that the sum is divided by: a constant of the plan, not the size of the batch, which is private.
    """

    clip: float
    most_weight: float
    multiplier: float
    expected: float

    def __post_init__(self) -> None:
        """Refuse what is no protection."""
        for name in ("clip", "most_weight", "multiplier", "expected"):
            if not 2.0**-20 <= getattr(self, name) <= 2.0**64:  # also refuses NaN
                raise _refused("MECHANISM", f"{name} that is not above 0 and finite", "a number from 2^-20 to 2^64")

    @property
    def sensitivity(self) -> float:
        """How far one unit, there or not, moves the sum in L2 norm: ``most_weight`` C."""
        return self.most_weight * self.clip

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the sum."""
        return self.multiplier * self.sensitivity


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch: record numbers int64 (B,), and for each 1 / (records drawn of its unit), float64 (B,)."""

    records: Integers
    share: Floats


class UnitSampler:
    """Draws units at a rate, each on its own, and up to ``cap`` of each unit's records.

    Parameters
    ----------
    unit
        Number of the patient (or lesion) of each record, any integers, (n,).
    rate
        Probability that a unit is drawn.
    cap
        Most records of a unit in a batch; which ones is drawn anew each time.
    """

    def __init__(self, unit: Integers, rate: float, cap: int) -> None:
        if type(cap) is not int or cap < 1:
            raise _refused("CAP", "a cap of records per unit below one", "a whole number from 1")
        if unit.ndim != 1 or not np.issubdtype(unit.dtype, np.integer):
            raise _refused("UNIT", "units that are no row of whole numbers", "one number per record")
        names, self._unit = np.unique(unit, return_inverse=True)
        self.units, self.records, self.rate, self.cap = int(names.size), unit.size, rate, cap
        noise.chosen(0, rate)  # refuses a rate that is none before any data are read

    def draw(self) -> Drawn:
        """The next batch; it may be empty."""
        drawn = noise.chosen(self.units, self.rate)
        records = np.flatnonzero(drawn[self._unit])
        unit = self._unit[records]
        order = np.lexsort((noise.words(records.size), unit))
        records, unit = records[order], unit[order]
        _, first, size = np.unique(unit, return_index=True, return_counts=True)
        place = np.arange(unit.size) - np.repeat(first, size)
        share = np.repeat(1.0 / np.minimum(size, self.cap), size)
        kept = place < self.cap
        return Drawn(records[kept].astype(np.int64), share[kept])


class DpSgd:
    """Private steps of an optimiser on a model, kept for the whole job: two of them on one model are refused.

    The model is used as it is, under its own names of tensors; :meth:`close` takes the hooks off again. Parameters
    that need no gradient stay as they are and cost nothing. No loss is returned: a loss is private too.

    Parameters
    ----------
    model, optimizer
        The optimiser holds exactly the parameters of the model that are trained.
    mechanism, sampler
        The noise, and who is drawn.
    mode
        ``hooks`` keeps every record's gradient; ``ghost`` works out their norms alone and passes backward twice: less
        memory, more time. Both give the same sum.
    at_once
        Records of one forward pass, at most ``MOST_AT_ONCE``; larger batches are worked through in parts.
    charge
        Called before anything is drawn for a step: writes the step down, or raises if it cannot be afforded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mechanism: Mechanism,
        sampler: UnitSampler,
        *,
        mode: Mode,
        at_once: int,
        charge: Callable[[], None],
    ) -> None:
        if type(at_once) is not int or not 1 <= at_once <= MOST_AT_ONCE:
            raise _refused("AT-ONCE", "a number of records at once outside its range", f"from 1 to {MOST_AT_ONCE}")
        self.mechanism, self.sampler, self.mode = mechanism, sampler, mode
        self.steps = 0
        self._optimizer, self._at_once, self._charge = optimizer, at_once, charge
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not self._parameters or held != {id(parameter) for parameter in self._parameters}:
            raise _refused("OPTIMIZER", "an optimiser of other parameters than the trained ones", "exactly those")
        self._model = model
        self._slack = max(_slack_of(parameter.dtype) for parameter in self._parameters)
        self._hooks = _hooked(model, mode)

    def close(self) -> None:
        """Take hooks and per-record gradients off the model; this object is of no use afterwards."""
        self._hooks.to_standard_module()

    def step(self, weights: Floats, losses: Losses) -> None:
        """One step, also where nobody was drawn: then it is noise alone, and is charged like any other.

        Parameters
        ----------
        weights
            Fairness weight of every record of the site, from 0 to ``most_weight``, float64 (n,).
        losses
            The loss of each of some records, without fairness weights.

        Raises
        ------
        PrivacyError
            ``FF-PRIVACY-WEIGHT``, or ``FF-PRIVACY-MODEL`` if per-record gradients cannot be had. What was charged
            stays charged.
        """
        self._verify_weights(weights, self.sampler.records)  # all of them: whether one is bad must not hang on the draw
        self._charge()
        drawn = self.sampler.draw()
        total = self.clipped_sum(drawn, weights[drawn.records], losses)
        noised = noise.add_gaussian(total, self.mechanism.deviation) / self.mechanism.expected
        self._optimizer.zero_grad(set_to_none=True)
        start = 0
        for parameter in self._parameters:
            part = noised[start : start + parameter.numel()]
            parameter.grad = torch.from_numpy(part).view(parameter.shape).to(parameter.dtype)
            start += parameter.numel()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def clipped_sum(self, drawn: Drawn, weights: Floats, losses: Losses) -> Floats:
        """sum_i weight_i share_i clip(gradient_i, C) over a batch, float64 (P,), without noise: it must not leave.

        A record whose gradient is not finite counts as zero: one broken image cannot end a round, and whether there is
        one stays unknown.
        """
        if not self._model.training:
            raise unusable("a model that is not in training mode", "training mode")
        self._verify_weights(weights, drawn.records.size)
        factors = weights * drawn.share
        total = np.zeros(sum(parameter.numel() for parameter in self._parameters))
        for start in range(0, drawn.records.size, self._at_once):
            part = slice(start, start + self._at_once)
            total += self._sum_of(drawn.records[part], factors[part], losses)
        return total

    def _verify_weights(self, weights: Floats, records: int) -> None:
        inside = (weights >= 0) & (weights <= self.mechanism.most_weight)  # NaN is neither
        if weights.shape != (records,) or not bool(inside.all()):
            raise _refused("WEIGHT", "fairness weights outside their range", "one per record, from 0 to most_weight")

    def _sum_of(self, records: Integers, factors: Floats, losses: Losses) -> Floats:
        """The clipped, weighted sum of a few records, without those whose gradients are not finite."""
        while records.size:
            self._forget()
            loss = losses(records)
            if loss.shape != (records.size,):
                raise unusable("losses of another shape", "one loss per record")
            loss.sum().backward(retain_graph=self.mode == "ghost")  # type: ignore[no-untyped-call]
            norms = self._norms(records.size)
            bound = self.mechanism.clip * (1.0 - self._slack)
            finite = norms <= bound * _LONGEST  # false for NaN
            if bool(finite.all()):
                clipped = torch.from_numpy(factors) * (bound / norms.clamp(min=bound))
                return self._weighted(loss, clipped)
            kept = finite.numpy()
            records, factors = records[kept], factors[kept]
        self._forget()
        return np.zeros(sum(parameter.numel() for parameter in self._parameters))

    def _norms(self, size: int) -> torch.Tensor:
        """L2 norm of each record's gradient over all trained parameters, float64 (B,)."""
        name = "grad_sample" if self.mode == "hooks" else "_norm_sample"
        squares = torch.zeros(size, dtype=torch.float64)
        for parameter in self._parameters:
            found = getattr(parameter, name, None)
            if not isinstance(found, torch.Tensor) or len(found) != size:
                raise unusable("a trained parameter without a gradient for each record", "one for each")
            squares += _norm(found.reshape(size, -1)).square()
        return squares.sqrt()

    def _weighted(self, loss: torch.Tensor, factors: torch.Tensor) -> Floats:
        """sum_i factor_i gradient_i, float64 (P,)."""
        if self.mode == "hooks":
            parts = [
                torch.einsum("i,i...->...", factors.to(one.dtype), sample)
                for one in self._parameters
                if (sample := getattr(one, "grad_sample", None)) is not None
            ]
        else:
            self._hooks.disable_hooks()
            try:
                inputs = self._parameters
                parts = list(torch.autograd.grad((factors.to(loss.dtype) * loss).sum(), inputs))
            finally:
                self._hooks.enable_hooks()
        result: Floats = torch.cat([part.reshape(-1).to(torch.float64) for part in parts]).numpy()
        self._forget()
        return result

    def _forget(self) -> None:
        """Drop gradients of any kind, so that none is counted twice and none of a record outlives its step."""
        for parameter in self._parameters:
            parameter.grad = None
            for name in ("grad_sample", "_norm_sample"):
                setattr(parameter, name, None)


def _hooked(model: nn.Module, mode: Mode) -> Any:
    """Opacus's hooks on the model's layers. Its wrapper is not used to call the model, so names stay clean."""
    if any(True for _ in model.buffers()):
        raise unusable("a model with buffers", "none: nobody accounts for what they keep of the records")
    if not model.training:
        raise unusable("a model that is not in training mode", "training mode")
    try:
        if mode == "hooks":
            return GradSampleModule(model, loss_reduction="sum")
        ghost = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", use_ghost_clipping=True)
        ghost.NORM_SAMPLERS = {**dict.fromkeys(ghost.GRAD_SAMPLERS, _norms_of), nn.Linear: _norms_of_linear}
        return ghost
    except ValueError:
        raise _refused("TWICE", "a second DP-SGD on the same model", "one for the whole job") from None
    except NotImplementedError:
        raise unusable("a layer that Opacus has no gradients of records for", "another model") from None


def _norms_of(layer: nn.Module, activations: list[torch.Tensor], backprops: torch.Tensor) -> Norms:
    """Norms of a layer's gradients, which live no longer than this call."""
    gradients = GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, activations, backprops)
    return {parameter: _norm(gradient) for parameter, gradient in gradients.items()}


def _norms_of_linear(layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor) -> Norms:
    """The same without the gradients, where a record is one row: a product of two norms, each in float64."""
    if backprops.ndim != 2:
        return _norms_of(layer, activations, backprops)
    found: Norms = {layer.weight: _norm(activations[0]) * _norm(backprops)}
    if layer.bias is not None:
        found[layer.bias] = _norm(backprops)
    return found


def _norm(gradients: torch.Tensor) -> torch.Tensor:
    """L2 norm of each record's gradient, float64 (B,): too short a norm would let a gradient through unclipped.

    A long row is summed in blocks: in float32 alone, two million squares add up to 0.04 % too little. A short one is
    summed in float64, as the squares of small float32 numbers vanish; in a block they are far below any bound.
    """
    flat = gradients.flatten(1)
    whole = flat.shape[1] // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(flat[:, :whole].reshape(len(flat), whole // _BLOCK, _BLOCK), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1, dtype=torch.float64)
    return torch.hypot(torch.linalg.vector_norm(blocks, dim=1, dtype=torch.float64), rest)


def _slack_of(dtype: torch.dtype) -> float:
    if dtype not in _SLACK:
        raise unusable("parameters that are neither float32 nor float64", "one of these")
    return _SLACK[dtype]


def unusable(got: str, expected: str) -> PrivacyError:
    """What is wrong with a model of which no private sum can be had."""
    return _refused("MODEL", got, expected)


def _refused(code: str, got: str, expected: str) -> PrivacyError:
    return PrivacyError(
        f"FF-PRIVACY-{code}",
        got=got,
        expected=expected,
        next_step="check the plan's privacy section; report this as a defect of FairFlare if it is as it should be",
    )
