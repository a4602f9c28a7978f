# SPDX-License-Identifier: Apache-2.0
"""From a plan to its network, and to the weights that every run with this plan starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fairflare.errors import WeightsError
from fairflare.models.networks import Cnn, Mlp, resnet18, resnet50
from fairflare.models.segmentation import Sanet, SanetLight, UNet
from fairflare.models.vector import Vector, named_arrays, to_vector
from fairflare.models.weights import WeightFile, find_weights, read_weights
from fairflare.plan import (
    AnyModel,
    CnnModel,
    ImageInput,
    MlpModel,
    Plan,
    ResNet18Model,
    ResNet50Model,
    SanetLightModel,
    SanetModel,
    SeedStart,
    UNetModel,
)
from fairflare.seeds import seed_for


def build(plan: Plan) -> nn.Module:
    """The plan's network with arbitrary weights. It has parameters and no buffers.

    It gives ``plan.task.outputs`` logits for each record, or in segmentation for each pixel.
    """
    given, outputs = plan.task.input, plan.task.outputs
    if isinstance(given, ImageInput):
        return _of_images(plan.model, given.channels, outputs)
    if isinstance(plan.model, MlpModel):
        return Mlp(2 * len(given.features), plan.model.hidden, outputs)
    raise TypeError(f"got model {plan.model.name} for a table, expected mlp")


def _of_images(spec: AnyModel, channels: int, outputs: int) -> nn.Module:
    match spec:
        case CnnModel():
            return Cnn(channels, spec.widths, outputs)
        case ResNet18Model():
            return resnet18(channels, outputs)
        case ResNet50Model():
            return resnet50(channels, outputs)
        case UNetModel():
            return UNet(channels, spec.widths, outputs)
        case SanetLightModel():
            return SanetLight(channels, spec.head, outputs)
        case SanetModel():
            return Sanet(channels, outputs)
        case MlpModel():
            raise TypeError("got model mlp for images, expected a network with convolutions")


def initial_vector(plan: Plan, weights: Path | None = None) -> Vector:
    """The first global model: float32 (P,).

    Parameters
    ----------
    plan
        Its ``start`` says whether the model is drawn from the seed or comes from a file.
    weights
        Folder in which weight files lie; only a start from a file needs it.

    Raises
    ------
    WeightsError
        If the start's file is not there, is not the one that the plan names, or does not fit the network.
    """
    if isinstance(plan.start, SeedStart):
        return _drawn(plan)
    file = read_weights(find_weights(weights, plan.start.sha256), plan.start.sha256)
    return to_vector_of(plan, file) if plan.start.tensors == "all" else _mixed(plan, file)


def to_vector_of(plan: Plan, file: WeightFile) -> Vector:
    """The vector in a file that holds every tensor of the plan's network in its shape, and no other."""
    own = _shapes(plan)
    missing, unexpected = own.keys() - file.tensors.keys(), file.tensors.keys() - own.keys()
    other = [name for name in own.keys() & file.tensors.keys() if file.tensors[name].shape != own[name]]
    if missing or unexpected or other:
        raise WeightsError(
            "FF-WEIGHTS-TENSORS",
            got=f"a file in which {len(missing)} of the network's {len(own)} tensors are missing, {len(unexpected)} "
            f"are unexpected and {len(other)} have another shape",
            expected="every tensor of the network in its shape, and no other",
            next_step="use the file of a run with this model, or start from the tensors that match",
        )
    vector: Vector = np.concatenate([file.tensors[name].ravel() for name in own])
    return vector


def matching_tensors(plan: Plan, file: WeightFile) -> tuple[str, ...]:
    """Names of the tensors that a start with ``matching`` takes from the file: name and shape are the network's."""
    return tuple(
        name for name, shape in _shapes(plan).items() if name in file.tensors and file.tensors[name].shape == shape
    )


def _mixed(plan: Plan, file: WeightFile) -> Vector:
    """The seed's draw with the file's tensors in it, where they match.

    Of a BatchNorm network's file, scales and shifts match GroupNorm's; its running means and variances have no
    counterpart and stay unused. What is left to the draw is the same with any file.
    """
    names = matching_tensors(plan, file)
    if not names:
        raise WeightsError(
            "FF-WEIGHTS-TENSORS",
            got=f"a file of {len(file.tensors)} tensors of which none has the name and shape of one of the network's",
            expected="at least one tensor that matches",
            next_step="use the weights of this architecture, with the names that its usual files have",
        )
    vector = _drawn(plan)
    for name, part in named_arrays(_skeleton(plan), vector).items():
        if name in names:
            part[...] = file.tensors[name]
    return vector


def _drawn(plan: Plan) -> Vector:
    """The model that the plan's seed gives.

    Weights are no secret, so torch's generator (32 bits of seed) is good enough here; noise never comes from it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(plan.training.seed, "initial model") % 2**32)
        return to_vector(build(plan))


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the network, in the order of its vector."""
    return {name: tuple(parameter.shape) for name, parameter in _skeleton(plan).named_parameters()}


def _skeleton(plan: Plan) -> nn.Module:
    """The network without memory for its weights, for names and shapes."""
    with torch.device("meta"):
        return build(plan)
