# SPDX-License-Identifier: Apache-2.0
"""The loss of a batch: class-weighted cross-entropy, plus the method's terms on utilities of the same records."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from fairflare.fairness.groups import Floats, Utility


def utilities(logits: torch.Tensor, labels: torch.Tensor, clip: float) -> dict[Utility, torch.Tensor]:
    """Utilities of each record, (n,): cross-entropy bounded by ``clip``, and P(positive) = softmax(logits)[:, 1].

    Source: algorithms section 8.6 (probability is the differentiable form of "predicted positive").
    """
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    return {"cross_entropy": entropy.clamp(max=clip), "probability": logits.softmax(dim=1)[:, 1]}


def batch_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor,
    terms: Mapping[Utility, Floats],
    clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss to differentiate and its task part alone, both scalars: mean_i [ w(y_i) l_i + sum_u e_{i,u} u_i ].

    ``terms`` are the e_{i,u}, float64 (n,); without terms the two are the same tensor.
    """
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    task = (class_weights[labels] * entropy).mean()
    if not terms:
        return task, task
    values = utilities(logits, labels, clip)
    loss = task
    for name, coefficient in terms.items():
        weight = torch.from_numpy(np.ascontiguousarray(coefficient)).to(logits.dtype)
        loss = loss + (weight * values[name]).mean()
    return loss, task
