# SPDX-License-Identifier: Apache-2.0
"""A method's correction of local steps, on a network's own tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fairflare.methods import Correction
from fairflare.models.vector import Vector, trained_parameters


class GradientCorrection:
    """Adds pull (y - x) + shift to the gradients of a network, or -lr shift to its parameters after a step.

    Parameters
    ----------
    network
        Whose trained parameters y are meant; each of them has a gradient.
    correction
        What is added; its shift is float32 (P,), in the order of the parameters.
    model
        x: the round's first model, float32 (P,).
    """

    def __init__(self, network: nn.Module, correction: Correction, model: Vector) -> None:
        self._parameters = trained_parameters(network)
        self._pull, self._after = correction.pull, correction.after_step
        self._anchor = self._pieces(model) if correction.pull > 0 else None
        self._shift = None if correction.shift is None else self._pieces(correction.shift)

    def _pieces(self, vector: Vector) -> list[torch.Tensor]:
        flat = torch.from_numpy(np.array(vector, dtype=np.float32))
        sizes = [parameter.numel() for parameter in self._parameters]
        pieces = torch.split(flat, sizes)
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self._parameters, strict=True)]

    def before_step(self) -> None:
        """Add to the gradients of a batch."""
        with torch.no_grad():
            for place, parameter in enumerate(self._parameters):
                gradient = parameter.grad
                if gradient is None:
                    gradient = parameter.grad = torch.zeros_like(parameter)
                if self._anchor is not None:
                    gradient.add_(parameter - self._anchor[place], alpha=self._pull)
                if self._shift is not None and not self._after:
                    gradient.add_(self._shift[place])

    def after_step(self, lr: float) -> None:
        """Move the parameters, where the shift does not enter the optimiser."""
        if self._shift is None or not self._after:
            return
        with torch.no_grad():
            for parameter, shift in zip(self._parameters, self._shift, strict=True):
                parameter.add_(shift, alpha=-lr)
