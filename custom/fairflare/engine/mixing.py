# SPDX-License-Identifier: Apache-2.0
"""Fair mixup's regulariser on a batch: how much the output changes from records of one group to those of the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fairflare.fairness.groups import Integers
from fairflare.methods import Mixing


def mixing_loss(
    model: nn.Module, inputs: torch.Tensor, group: Integers, labels: Integers, mixing: Mixing, between: float
) -> torch.Tensor | None:
    """Sum over the labels of ``mixing`` of |mean_b <grad f(x_b), direction_b>|, a scalar that can be differentiated.

    Parameters
    ----------
    model, inputs
        Network, and the batch as it takes it (n, ...).
    group, labels
        Of each record (n,); records of neither group 0 nor 1 are left out.
    mixing
        Which pairs, which output and which direction. Pairs are formed in the order of the batch, as many as the
        smaller group has records.
    between
        t in x = t x0 + (1 - t) x1, in [0, 1].

    Returns
    -------
    torch.Tensor or None
        ``None`` where no label has records of both groups: then there is nothing to add.
    """
    found = None
    for label in mixing.labels:
        chosen = labels == label if label >= 0 else np.ones(labels.shape, dtype=bool)
        first, second = (np.flatnonzero(chosen & (group == which)) for which in (0, 1))
        pairs = min(first.size, second.size)
        if pairs == 0:
            continue
        x0, x1 = (inputs[torch.from_numpy(places[:pairs])] for places in (first, second))
        change = _change(model, x0, x1, mixing, between)
        found = change if found is None else found + change
    return found


def _change(model: nn.Module, x0: torch.Tensor, x1: torch.Tensor, mixing: Mixing, between: float) -> torch.Tensor:
    mixed = (between * x0 + (1 - between) * x1).requires_grad_()
    outputs = model(mixed)
    value = outputs.softmax(dim=1)[:, 1] if mixing.output == "probability" else outputs.sigmoid().sum(dim=1)
    (gradient,) = torch.autograd.grad(value.sum(), mixed, create_graph=True)
    direction = x1 - x0 if mixing.direction == "difference" else mixed.detach() - x0
    return (gradient * direction).flatten(1).sum(dim=1).mean().abs()
