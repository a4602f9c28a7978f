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
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairflare.privacy import noise
from fairflare.privacy.gradients import Mode, RecordGradients
from fairflare.privacy.refusals import refused, unusable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
#: Record numbers -> the loss of each of these records, (B,), through the model's own forward pass.
Losses = Callable[[Integers], torch.Tensor]

#: Gradients are clipped this much shorter than the bound, so that rounding never makes a record exceed it.
_SLACK = {torch.float32: 2.0**-14, torch.float64: 2.0**-44}
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
                raise refused("MECHANISM", f"{name} that is not above 0 and finite", "a number from 2^-20 to 2^64")

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
            raise refused("CAP", "a cap of records per unit below one", "a whole number from 1")
        if unit.ndim != 1 or not np.issubdtype(unit.dtype, np.integer):
            raise refused("UNIT", "units that are no row of whole numbers", "one number per record")
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
            raise refused("AT-ONCE", "a number of records at once outside its range", f"from 1 to {MOST_AT_ONCE}")
        self.mechanism, self.sampler, self.mode = mechanism, sampler, mode
        self.steps = 0
        self._optimizer, self._at_once, self._charge = optimizer, at_once, charge
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not self._parameters or held != {id(parameter) for parameter in self._parameters}:
            raise refused("OPTIMIZER", "an optimiser of other parameters than the trained ones", "exactly those")
        self._model = model
        self._slack = max(_slack_of(parameter.dtype) for parameter in self._parameters)
        self._gradients = RecordGradients(model, mode)

    def close(self) -> None:
        """Take hooks and per-record gradients off the model; this object is of no use afterwards."""
        self._gradients.close()

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
        noised = noise.add_gaussian(total, self.mechanism.deviation)
        noised /= self.mechanism.expected
        for parameter, part in zip(self._parameters, self._by_parameter(noised), strict=True):
            parameter.grad = part.to(parameter.dtype)
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
        totals = self._by_parameter(total)
        for start in range(0, drawn.records.size, self._at_once):
            part = slice(start, start + self._at_once)
            self._add(totals, drawn.records[part], factors[part], losses)
        return total

    def _verify_weights(self, weights: Floats, records: int) -> None:
        inside = (weights >= 0) & (weights <= self.mechanism.most_weight)  # NaN is neither
        if weights.shape != (records,) or not bool(inside.all()):
            raise refused("WEIGHT", "fairness weights outside their range", "one per record, from 0 to most_weight")

    def _add(self, totals: list[torch.Tensor], records: Integers, factors: Floats, losses: Losses) -> None:
        """Add the clipped, weighted gradients of a few records, without those whose gradients are not finite."""
        while records.size:
            norms = self._gradients.norms(partial(losses, records), records.size)
            bound = self.mechanism.clip * (1.0 - self._slack)
            finite = norms <= bound * _LONGEST  # false for NaN
            if bool(finite.all()):
                clipped = torch.from_numpy(factors) * (bound / norms.clamp(min=bound))
                self._gradients.add_weighted(totals, clipped)
                return
            kept = finite.numpy()
            records, factors = records[kept], factors[kept]
        self._gradients.forget()

    def _by_parameter(self, flat: Floats) -> list[torch.Tensor]:
        """Views of a row of numbers, one like each trained parameter."""
        sizes = [parameter.numel() for parameter in self._parameters]
        parts = torch.split(torch.from_numpy(flat), sizes)
        return [part.view(parameter.shape) for part, parameter in zip(parts, self._parameters, strict=True)]


def _slack_of(dtype: torch.dtype) -> float:
    if dtype not in _SLACK:
        raise unusable("parameters that are neither float32 nor float64", "one of these")
    return _SLACK[dtype]
