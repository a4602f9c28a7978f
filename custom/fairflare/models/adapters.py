# SPDX-License-Identifier: Apache-2.0
"""Which part of a network is trained: all of it, its head, or low-rank adapters of its layers and its head.

With private training, noise grows with the number of trained parameters and the gradients' bound does not, so fewer are
better where the rest of the network is good already.

An adapter (LoRA, Hu et al. 2021) stands beside a layer and adds ``up(down(x))`` to its output, through ``rank``
channels. The layer keeps its name and its tensors; those of the adapter have names of their own below it
(``layer1.0.conv1.adapter.down.weight``). ``up`` starts at zero, so at first the network is what it was.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from fairflare.errors import PrivacyError
from fairflare.models.networks import Cnn, Mlp
from fairflare.models.segmentation import Sanet, SanetLight, UNet
from fairflare.seeds import seed_for

Part = Literal["all", "head", "adapters"]
_NAME = "adapter"


def head_of(model: nn.Module) -> nn.Module:
    """The part of a registered network that turns features into logits."""
    match model:
        case Mlp() | Cnn():
            return model[-1]
        case ResNet():
            return _module(model.fc)
        case UNet():
            return model.last
        case Sanet() | SanetLight():
            return model.head
        case _:
            raise TypeError(f"got a {type(model).__name__}, expected a registered network")


def train_part(model: nn.Module, part: Part, *, rank: int, seed: int) -> None:
    """Make a part of the network trainable and keep the rest as it is; once for each network.

    Parameters
    ----------
    part
        ``adapters`` are put beside every convolution and linear layer outside of the head that has more parameters
        than its adapter would have (and no groups); the head itself is trained too.
    rank
        Channels of each adapter; of no account for the other parts.
    seed
        The plan's: every site starts from the same adapters.

    Raises
    ------
    PrivacyError
        ``FF-PRIVACY-PART`` for a rank below one, or if there is no layer that an adapter would make smaller.
    """
    head = head_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(part == "all")
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    if part == "adapters":
        _add_adapters(model, head, rank, seed)


def features(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What the head is given for ``inputs`` (n, ...), without gradients: computed once where only the head is trained.

    Raises
    ------
    PrivacyError
        ``FF-PRIVACY-PART`` if the network's outputs are not what its head makes of one tensor.
    """
    head, given = head_of(model), []
    handle = head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        with torch.no_grad():
            outputs = model(inputs)
    finally:
        handle.remove()
    if len(given) == 1 and isinstance(given[0], torch.Tensor):
        with torch.no_grad():
            if torch.equal(head(given[0]), outputs):
                return given[0]
    raise _refused("cached features of a network that does more behind its head", "a network of records")


def is_adapters(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter."""
    return name.endswith((f".{_NAME}.down.weight", f".{_NAME}.up.weight"))


class _AddAdapter:
    """A layer's forward hook. It finds the adapter through the layer, so that copies of a network have their own."""

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = output + getattr(layer, _NAME)(inputs[0])
        return adapted


class _Adapter(nn.Module):
    """``up(down(x))``; two layers of the usual kinds, which per-record gradients are known of."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the layer -> what is added to its output."""
        result: torch.Tensor = self.up(self.down(x))
        return result


def _add_adapters(model: nn.Module, head: nn.Module, rank: int, seed: int) -> None:
    if type(rank) is not int or rank < 1:
        raise _refused("a rank of adapters below one", "a whole number from 1")
    if _adapted(model):
        raise _refused("a network that has adapters already", "adapters once")
    of_head = set(head.modules())
    found = [layer for layer in model.modules() if layer not in of_head and _is_adaptable(layer, rank)]
    if not found:
        raise _refused("a network without a layer that adapters would make smaller", "a smaller rank, or another part")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "adapters") % 2**32)
        for layer in found:
            like = next(layer.parameters())
            setattr(layer, _NAME, _adapter_of(layer, rank).to(like.device, like.dtype))
            layer.register_forward_hook(_AddAdapter())


def _adapter_of(layer: nn.Module, rank: int) -> _Adapter:
    down: nn.Module
    up: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Conv2d):
        down = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding_mode=layer.padding_mode,
            bias=False,
        )
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    elif isinstance(layer, nn.Linear):
        down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    else:
        raise TypeError(f"got a {type(layer).__name__}, expected a convolution or a linear layer")
    nn.init.zeros_(up.weight)
    return _Adapter(down, up)


def _is_adaptable(layer: nn.Module, rank: int) -> bool:
    """Whether the layer multiplies by one matrix that has more numbers than two of this rank."""
    if not isinstance(layer, nn.Conv2d | nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
        return False
    outputs = layer.weight.shape[0]
    return rank * (outputs + layer.weight[0].numel()) < layer.weight.numel()


def _adapted(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(getattr(layer, _NAME, None), _Adapter)]


def _module(value: object) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise TypeError("got a network without its last layer")
    return value


def _refused(got: str, expected: str) -> PrivacyError:
    return PrivacyError(
        "FF-PRIVACY-PART", got=got, expected=expected, next_step="choose another trained part in the plan"
    )
