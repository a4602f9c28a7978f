# SPDX-License-Identifier: Apache-2.0
"""Res2Net-50 (Gao et al. 2019) in the form v1b 26w 4s, SANet's backbone: written anew, with GroupNorm.

A block splits its channels in four parts and convolves them one after the other, each with what the part before it
became, so one block sees several scales. v1b: three 3 x 3 convolutions in front, and shortcuts that get smaller by
averages. 26w: parts of 26 channels at the first level; 4s: four parts.
"""

from __future__ import annotations

import torch
from torch import nn

_BASE, _PARTS, _EXPANSION = 26, 4, 4


def _norm(width: int) -> nn.GroupNorm:
    """Groups of 16 channels (Wu and He 2018), or of 13 for widths that are multiples of 26."""
    return nn.GroupNorm(width // (13 if width % 13 == 0 else 16), width)


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """1 x 1 convolution, four parts, 1 x 1 convolution, shortcut.

    ``first``, the first block of a level: its map may be smaller and its shortcut has other channels, so its parts
    are convolved independently of each other and the last one, which no block convolves, is averaged.
    """

    def __init__(self, before: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        self.first = first
        part, after = planes * _BASE // 64, planes * _EXPANSION
        self.conv1 = _conv(before, part * _PARTS, 1)
        self.bn1 = _norm(part * _PARTS)
        self.convs = nn.ModuleList(_conv(part, part, 3, stride) for _ in range(_PARTS - 1))
        self.bns = nn.ModuleList(_norm(part) for _ in range(_PARTS - 1))
        self.conv3 = _conv(part * _PARTS, after, 1)
        self.bn3 = _norm(after)
        self.pool = nn.AvgPool2d(3, stride, padding=1)
        self.downsample = None
        if first:
            smaller = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(smaller, _conv(before, after, 1), _norm(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, before, h, w) -> (batch, 4 * planes, h / stride, w / stride)."""
        *parts, rest = torch.relu(self.bn1(self.conv1(x))).chunk(_PARTS, dim=1)
        done: list[torch.Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=True):
            given = part if self.first or not done else part + done[-1]
            done.append(torch.relu(norm(conv(given))))
        done.append(self.pool(rest) if self.first else rest)
        out = self.bn3(self.conv3(torch.cat(done, dim=1)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class Res2Net50(nn.Module):
    """The backbone without ImageNet's classes: 23,669,352 parameters for RGB. Tensors have the usual files' names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            _conv(channels, 32, 3, stride=2), _norm(32), nn.ReLU(),
            _conv(32, 32, 3), _norm(32), nn.ReLU(),
            _conv(32, 64, 3),
        )  # fmt: skip
        self.bn1 = _norm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _level(64, 64, 3, 1)
        self.layer2 = _level(256, 128, 4, 2)
        self.layer3 = _level(512, 256, 6, 2)
        self.layer4 = _level(1024, 512, 3, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps of 512, 1024 and 2048 channels, 1/8, 1/16 and 1/32 of the image's height and width."""
        out = self.layer1(self.maxpool(torch.relu(self.bn1(self.conv1(x)))))
        maps = []
        for layer in (self.layer2, self.layer3, self.layer4):
            out = layer(out)
            maps.append(out)
        return maps


def _level(before: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Block(planes * _EXPANSION, planes, 1, first=False) for _ in range(blocks - 1))
    return nn.Sequential(_Block(before, planes, stride, first=True), *rest)
