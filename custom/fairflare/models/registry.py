# SPDX-License-Identifier: Apache-2.0
"""From a plan to its network, and to the weights that every run with this plan and seed starts from."""

from __future__ import annotations

import torch
from torch import nn

from fairflare.models.networks import Cnn, Mlp, resnet18
from fairflare.models.vector import Vector, to_vector
from fairflare.plan import CnnModel, ImageInput, MlpModel, Plan
from fairflare.seeds import seed_for


def build(plan: Plan) -> nn.Module:
    """The plan's network with arbitrary weights; two logits per record. It has parameters and no buffers."""
    spec, given, classes = plan.model, plan.task.input, len(plan.task.labels)
    model: nn.Module
    if isinstance(given, ImageInput):
        model = (
            Cnn(given.channels, spec.widths, classes)
            if isinstance(spec, CnnModel)
            else resnet18(given.channels, classes)
        )
    elif isinstance(spec, MlpModel):
        model = Mlp(2 * len(given.features), spec.hidden, classes)
    else:
        raise TypeError(f"got model {spec.name} for a table, expected mlp")
    return model


def initial_vector(plan: Plan, weights: object = None) -> Vector:
    """The first global model, drawn from the plan's seed: float32 (P,).

    Weights are no secret, so torch's generator (32 bits of seed) is good enough here; noise never comes from it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(plan.training.seed, "initial model") % 2**32)
        return to_vector(build(plan))
