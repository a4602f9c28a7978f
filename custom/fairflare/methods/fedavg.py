# SPDX-License-Identifier: Apache-2.0
"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017."""

from __future__ import annotations

from typing import Literal

from fairflare.methods.base import Method, MethodParameters


class FedAvgParameters(MethodParameters):
    """FedAvg has none of its own: local work and weights of sites are the plan's ``training``."""

    name: Literal["fedavg"]


class FedAvg(Method, of=FedAvgParameters):
    """x <- x + sum_s p_s (y_s - x), p_s = n_s / n (algorithms section 3)."""
