# SPDX-License-Identifier: Apache-2.0
"""Federated methods: one paper, one file, both halves and its frozen parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from fairflare.methods.base import (
    METHODS,
    UPDATE,
    Assignment,
    Contribution,
    Correction,
    Method,
    MethodParameters,
    Mixing,
    NamedState,
    Part,
    SampleTerms,
    ServerHalf,
    Setting,
    SiteHalf,
    Vector,
    Work,
)
from fairflare.methods.fairfed import FairFed, FairFedParameters
from fairflare.methods.fairmixup import FairMixup, FairMixupParameters
from fairflare.methods.feasibility import Claim, Feasibility, FeasibilityParameters
from fairflare.methods.fedavg import FedAvg, FedAvgParameters
from fairflare.methods.fednova import FedNova, FedNovaParameters
from fairflare.methods.fedprox import FedProx, FedProxParameters
from fairflare.methods.flexfair import FlexFair, FlexFairParameters, Penalty
from fairflare.methods.reweighting import Reweighting, ReweightingParameters
from fairflare.methods.scaffold import Scaffold, ScaffoldParameters

# What a plan may have: one of the above, told apart by its name. Types are checked against the base class.
if TYPE_CHECKING:
    AnyParameters = MethodParameters
else:
    AnyParameters = Union[tuple(method.of for method in METHODS.values())]  # noqa: UP007 - made, not written

__all__ = [
    "METHODS", "UPDATE", "AnyParameters", "Assignment", "Claim", "Contribution", "Correction", "FairFed",
    "FairFedParameters", "FairMixup", "FairMixupParameters", "Feasibility", "FeasibilityParameters", "FedAvg",
    "FedAvgParameters", "FedNova", "FedNovaParameters", "FedProx", "FedProxParameters", "FlexFair",
    "FlexFairParameters", "Method", "MethodParameters", "Mixing", "NamedState", "Part", "Penalty", "Reweighting",
    "ReweightingParameters", "SampleTerms", "Scaffold", "ScaffoldParameters", "ServerHalf", "Setting", "SiteHalf",
    "Vector", "Work",
]  # fmt: skip
