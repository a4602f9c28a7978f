# SPDX-License-Identifier: Apache-2.0
"""Networks for records. Inputs are float32: (batch, features) or (batch, channels, height, width)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class Mlp(nn.Sequential):
    """Multi-layer perceptron with ReLU: (batch, inputs) -> logits (batch, classes)."""

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class Cnn(nn.Sequential):
    """Stride-2 blocks of 3 x 3 convolution, GroupNorm(8) and ReLU, then the mean over pixels and a linear layer."""

    def __init__(self, channels: int, widths: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.ReLU(),
            ]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class _OutOfPlaceBlock(BasicBlock):  # type: ignore[misc]
    """ResNet's basic block; torchvision's own adds the shortcut in place, which breaks per-sample gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        result: torch.Tensor = torch.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


class _OutOfPlaceBottleneck(Bottleneck):  # type: ignore[misc]
    """The block of the deeper ResNets, with the shortcut added out of place as above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        result: torch.Tensor = torch.relu(self.bn3(self.conv3(out)) + shortcut)
        return result


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016) with GroupNorm(32) in place of BatchNorm (Wu and He 2018)."""
    return _resnet(_OutOfPlaceBlock, (2, 2, 2, 2), channels, classes)


def resnet50(channels: int, classes: int) -> nn.Module:
    """ResNet-50 with GroupNorm(32), strides in the 3 x 3 convolutions; 23,512,130 parameters for RGB and two labels."""
    return _resnet(_OutOfPlaceBottleneck, (3, 4, 6, 3), channels, classes)


def _resnet(block: type[nn.Module], blocks: Sequence[int], channels: int, classes: int) -> nn.Module:
    network = ResNet(block, list(blocks), num_classes=classes, norm_layer=lambda width: nn.GroupNorm(32, width))
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    result: nn.Module = network
    return result
