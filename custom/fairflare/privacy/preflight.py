# SPDX-License-Identifier: Apache-2.0
"""Whether a model can be trained privately: found out on made-up records, before any patient's are read."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fairflare.privacy.dpsgd import DpSgd, Drawn, Mechanism, UnitSampler
from fairflare.privacy.gradients import Mode
from fairflare.privacy.refusals import unusable


def verify_private(model: nn.Module, inputs: torch.Tensor, mode: Mode) -> None:
    """Raise unless each of two made-up records gets its own gradient in a real forward and backward pass.

    Finds layers that work in place, layers that mix records (normalisation over the batch), buffers, and parameters
    that are used outside of their layer. Values of the model stay as they are.

    Parameters
    ----------
    inputs
        Two different records in the form that the model takes, (2, ...); no patient's.

    Raises
    ------
    PrivacyError
        ``FF-PRIVACY-MODEL``.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alone = []
    for record in torch.split(inputs, 1):
        gradients = torch.autograd.grad(_made_up_loss(model(record)).sum(), trained, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise unusable("a trained parameter that no output depends on", "a gradient for each")
        alone.append(torch.cat([gradient.reshape(-1).to(torch.float64) for gradient in gradients]).numpy())
    bound = float(np.linalg.norm(alone, axis=1).max()) / 2
    if not 0 < bound < math.inf:
        raise unusable("no finite gradient", "a model with finite outputs that depend on what is trained")
    once = Mechanism(bound, 1.0, 1.0, 1.0)
    expected = sum(
        factor * gradient * min(1.0, bound / float(np.linalg.norm(gradient)))
        for factor, gradient in zip((1.0, 0.5), alone, strict=True)
    )
    steps = DpSgd(
        model,
        torch.optim.SGD(trained, lr=0.0),
        once,
        UnitSampler(np.arange(2), 1.0, 1),
        mode=mode,
        at_once=2,
        charge=lambda: None,
    )
    try:
        drawn = Drawn(np.arange(2), np.ones(2))
        found = steps.clipped_sum(drawn, np.array([1.0, 0.5]), lambda index: _made_up_loss(model(inputs[index])))
    except (RuntimeError, ValueError):  # torch's and Opacus's words for layers that they cannot take apart
        raise unusable("a layer that cannot be taken apart by record", "layers without in-place operations") from None
    finally:
        steps.close()
    if not np.linalg.norm(found - expected) <= 1e-3 * bound:
        raise unusable("other gradients in a batch than alone", "records that do not see each other")


def _made_up_loss(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs.reshape(len(outputs), -1) + 1.0).square().sum(dim=1)
