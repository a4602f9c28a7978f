# SPDX-License-Identifier: Apache-2.0
"""Small networks, data and per-record gradients worked out one record at a time, for the tests of DP-SGD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fairflare.models.networks import Cnn, Mlp
from fairflare.models.segmentation import UNet
from fairflare.privacy.dpsgd import DpSgd, Drawn, Mechanism, UnitSampler

Floats = NDArray[np.float64]
RECORDS = 12


class Site:
    """Records and a network; some records are a thousand times as bright as others, so some gradients are long."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float64, seed: int = 5) -> None:
        torch.manual_seed(seed)
        image = (RECORDS, 3, 16, 16)
        if kind == "mlp":
            self.model: nn.Module = Mlp(5, (7, 6), 2)
            self.inputs, self.target = torch.randn(RECORDS, 5), torch.arange(RECORDS) % 2
        elif kind == "cnn":
            self.model = Cnn(3, (8, 16), 2)
            self.inputs, self.target = torch.randn(*image), torch.arange(RECORDS) % 2
        else:
            self.model = UNet(3, (8, 16), 1)
            self.inputs, self.target = torch.randn(*image), (torch.randn(RECORDS, 1, 16, 16) > 0).to(dtype)
        self.inputs[::3] *= 1000
        self.inputs = self.inputs.to(dtype)
        self.model.to(dtype)

    def losses(self, index: NDArray[np.int64]) -> torch.Tensor:
        outputs = self.model(self.inputs[index])
        if outputs.ndim == 2:
            return functional.cross_entropy(outputs, self.target[index], reduction="none")
        entropy = functional.binary_cross_entropy_with_logits(outputs, self.target[index], reduction="none")
        return entropy.mean(dim=(1, 2, 3))

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def gradient(self, record: int) -> Floats:
        """Of one record alone, float64 (P,), by plain autograd."""
        found = torch.autograd.grad(self.losses(np.array([record])).sum(), self.trained())
        return torch.cat([part.reshape(-1).to(torch.float64) for part in found]).numpy()

    def private(
        self,
        mode: str,
        clip: float = 1.0,
        most_weight: float = 1.0,
        at_once: int = 64,
        multiplier: float = 1.0,
        expected: float = 1.0,
        rate: float = 0.5,
        units: NDArray[np.int64] | None = None,
        cap: int = 1,
        lr: float = 1.0,
        charge: Callable[[], None] = lambda: None,
    ) -> DpSgd:
        return DpSgd(
            self.model,
            torch.optim.SGD(self.trained(), lr=lr),
            Mechanism(clip, most_weight, multiplier, expected),
            UnitSampler(np.arange(RECORDS) if units is None else units, rate, cap),
            mode=mode,
            at_once=at_once,
            charge=charge,
        )


def everybody(share: float = 1.0) -> Drawn:
    return Drawn(np.arange(RECORDS), np.full(RECORDS, share))


def clipped(gradient: Floats, clip: float) -> Floats:
    norm = float(np.linalg.norm(gradient))
    return gradient if norm <= clip else gradient * (clip / norm)
