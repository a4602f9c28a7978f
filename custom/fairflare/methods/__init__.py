# SPDX-License-Identifier: Apache-2.0
"""Federated methods: one paper, one file, both halves and its frozen parameters."""

from __future__ import annotations

from fairflare.methods.base import Method, MethodParameters, NamedState, SampleTerms
from fairflare.methods.feasibility import Claim, Feasibility, FeasibilityParameters
from fairflare.methods.fedavg import FedAvg, FedAvgParameters
from fairflare.methods.flexfair import FlexFair, FlexFairParameters, Penalty

#: Schema of a plan's ``method``: one line per method, told apart by ``name``.
AnyParameters = FedAvgParameters | FlexFairParameters | FeasibilityParameters

METHODS: dict[str, type[Method]] = {"fedavg": FedAvg, "flexfair": FlexFair, "feasibility": Feasibility}

__all__ = [
    "METHODS",
    "AnyParameters",
    "Claim",
    "Feasibility",
    "FeasibilityParameters",
    "FedAvg",
    "FedAvgParameters",
    "FlexFair",
    "FlexFairParameters",
    "Method",
    "MethodParameters",
    "NamedState",
    "Penalty",
    "SampleTerms",
]
