# SPDX-License-Identifier: Apache-2.0
"""From a plan to its network, and to the weights that every run with this plan starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fairflare.errors import WeightsError
from fairflare.models.adapters import is_adapters, train_part
from fairflare.models.networks import Cnn, Mlp, resnet18, resnet50
from fairflare.models.segmentation import Sanet, SanetLight, UNet
from fairflare.models.vector import Tensors, Vector
from fairflare.models.weights import WeightFile, find_weights, read_weights
from fairflare.plan import (
    CnnModel,
    ImageInput,
    MlpModel,
    PartModel,
    Plan,
    ResNet18Model,
    ResNet50Model,
    SanetLightModel,
    SanetModel,
    SeedStart,
    UNetModel,
    WholeModel,
    network_of,
)
from fairflare.seeds import seed_for


def build(plan: Plan) -> nn.Module:
    """The plan's network with arbitrary weights. It has parameters and no buffers.

    It gives ``plan.task.outputs`` logits for each record, or in segmentation for each pixel. Of a ``part``, only the
    trained parameters require a gradient; the frozen ones are arbitrary, too, until
    :func:`~fairflare.models.vector.load_frozen` has set them to :func:`frozen_tensors`.

    Raises
    ------
    PrivacyError
        ``FF-PRIVACY-PART`` for adapters of a network that has no layer which they would make smaller.
    """
    network = _whole(plan, network_of(plan.model))
    if isinstance(plan.model, PartModel):
        train_part(network, plan.model.trained, rank=plan.model.rank or 1, seed=plan.training.seed)
    return network


def _whole(plan: Plan, spec: WholeModel) -> nn.Module:
    given, outputs = plan.task.input, plan.task.outputs
    if isinstance(given, ImageInput):
        return _of_images(spec, given.channels, outputs)
    if isinstance(spec, MlpModel):
        return Mlp(2 * len(given.features), spec.hidden, outputs)
    raise TypeError(f"got model {spec.name} for a table, expected mlp")


def _of_images(spec: WholeModel, channels: int, outputs: int) -> nn.Module:
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
    return _vector(plan, _initial(plan, weights))


def frozen_tensors(plan: Plan, weights: Path | None = None) -> Tensors:
    """What is not trained of the plan's network, in the order of its parameters; nothing of a whole network.

    The same at the server and at every site: it comes from the plan, as :func:`initial_vector` does, and never travels.
    Arguments and errors are the same, too.
    """
    if not isinstance(plan.model, PartModel):
        return {}
    return _frozen(plan, _initial(plan, weights))


def to_vector_of(plan: Plan, file: WeightFile) -> Vector:
    """The vector in a file that holds every tensor of the plan's network in its shape, and no other."""
    return _vector(plan, _all(plan, file, adapters=True))


def frozen_tensors_of(plan: Plan, file: WeightFile) -> Tensors:
    """The frozen tensors in such a file; nothing of a whole network."""
    return _frozen(plan, _all(plan, file, adapters=True))


def matching_tensors(plan: Plan, file: WeightFile) -> tuple[str, ...]:
    """Names of the tensors that a start with ``matching`` takes from the file: name and shape are the network's."""
    return tuple(
        name for name, shape in _shapes(plan).items() if name in file.tensors and file.tensors[name].shape == shape
    )


def _initial(plan: Plan, weights: Path | None) -> Tensors:
    """Every tensor of the first model, trained or not, in the order of the network's parameters."""
    if isinstance(plan.start, SeedStart):
        return _drawn(plan)
    file = read_weights(find_weights(weights, plan.start.sha256), plan.start.sha256)
    if plan.start.tensors == "matching":
        return _mixed(plan, file)
    found = _all(plan, file, adapters=any(map(is_adapters, file.tensors)))
    own = _shapes(plan)
    if len(found) < len(own):
        found = {**_drawn(plan), **found}
    return {name: found[name] for name in own}


def _all(plan: Plan, file: WeightFile, *, adapters: bool) -> Tensors:
    """All tensors of a file, which are the network's, with its ``adapters`` or without."""
    own = {name: shape for name, shape in _shapes(plan).items() if adapters or not is_adapters(name)}
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
    return {name: file.tensors[name] for name in own}


def _mixed(plan: Plan, file: WeightFile) -> Tensors:
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
    given, own = (set(filter(is_adapters, these)) for these in (file.tensors, _shapes(plan)))
    if given and (given != own or not given <= set(names)):  # without its adapters, this network is another one
        raise WeightsError(
            "FF-WEIGHTS-TENSORS",
            got="a file of a network with adapters that are not this network's",
            expected="no adapters, or those of the plan's network and rank",
            next_step="use the file of a run with this model, or one without adapters",
        )
    return {**_drawn(plan), **{name: file.tensors[name] for name in names}}


def _drawn(plan: Plan) -> Tensors:
    """The model that the plan's seed gives. A part of a network has the numbers that the whole one would have.

    Weights are no secret, so torch's generator (32 bits of seed) is good enough here; noise never comes from it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(plan.training.seed, "initial model") % 2**32)
        return {name: one.detach().numpy() for name, one in build(plan).named_parameters()}


def _vector(plan: Plan, tensors: Tensors) -> Vector:
    """The trained ones, one after the other."""
    trained = [name for name, one in _skeleton(plan).named_parameters() if one.requires_grad]
    vector: Vector = np.concatenate([tensors[name].ravel() for name in trained])
    return vector


def _frozen(plan: Plan, tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name, one in _skeleton(plan).named_parameters() if not one.requires_grad}


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the network, in the order of its parameters."""
    return {name: tuple(parameter.shape) for name, parameter in _skeleton(plan).named_parameters()}


def _skeleton(plan: Plan) -> nn.Module:
    """The network without memory for its weights, for names and shapes."""
    with torch.device("meta"):
        return build(plan)
