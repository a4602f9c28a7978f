# SPDX-License-Identifier: Apache-2.0
"""Networks for pixels: float32 (batch, channels, height, width) -> logits (batch, outputs, height, width).

``outputs`` is the number of labels without the background. The last convolution's bias starts at the logit of
``FOREGROUND``: what is looked for covers a small part of most images, and a network that has to learn that first
spends its first rounds on calling everything background. (Tried with UNet and SanetLight on noisy images of discs that
cover some percent of them: after forty steps two of twelve starts from even odds still did so, none from 0.1.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import mobilenet_v3_small
from torchvision.models.mobilenetv3 import InvertedResidual

from fairflare.models.res2net import Res2Net50

#: Part of the pixels that a new network takes for foreground.
FOREGROUND = 0.1
#: SANet's own number of channels at each level of its head.
_SANET_HEAD = 64


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): two 3 x 3 convolutions per level, each with GroupNorm(8) and ReLU.

    Max pooling leads down; bilinear upsampling, with the level's own map beside it, leads up. Height and width are
    multiples of 2 ** (levels - 1). Widths 16, 32, 64, 128 have 488,001 parameters for RGB and one output.
    """

    def __init__(self, channels: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(before, after) for before, after in pairwise((channels, *widths)))
        self.up = nn.ModuleList(_double(deep + own, own) for own, deep in reversed(list(pairwise(widths))))
        self.pool = nn.MaxPool2d(2)
        self.last = _last(widths[0], outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) -> logits (batch, outputs, h, w)."""
        levels = [self.down[0](x)]
        for block in list(self.down)[1:]:
            levels.append(block(self.pool(levels[-1])))
        out = levels.pop()
        for block in self.up:
            own = levels.pop()
            out = block(torch.cat([_resize(out, own), own], dim=1))
        result: torch.Tensor = self.last(out)
        return result


class ProductHead(nn.Module):
    """SANet's head (Wei et al. 2021): three levels of a backbone, from shallow to deep, become one logit map.

    Each level is brought to ``width`` channels, normalised in groups of eight (the deepest map can be a single pixel,
    so a group has to have several channels), and to the shallowest one's size. The shallow ones see edges but also
    much noise, so they only count where the deeper ones agree: the products deep, middle * deep and
    shallow * middle * deep stand side by side in front of the last convolution.
    """

    def __init__(self, levels: Sequence[int], width: int, outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(width // 8, width), nn.ReLU())
            for channels in levels
        )
        self.last = _last(3 * width, outputs)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps of the three levels -> logits of the shallowest one's size."""
        shallow, middle, deep = (level(one) for level, one in zip(self.levels, maps, strict=True))
        middle, deep = _resize(middle, shallow), _resize(deep, shallow)
        both = middle * deep
        result: torch.Tensor = self.last(torch.cat([deep, both, shallow * both], dim=1))
        return result


class Sanet(Res2Net50):
    """SANet (Wei et al. 2021): Res2Net-50 and the product of its levels of 512, 1024 and 2048 channels.

    23,899,497 parameters for RGB and one output, as many as with BatchNorm: 23,669,352 of the backbone (no layer for
    ImageNet's classes is in that number) and 230,145 of the head. The backbone's tensors have the names that files of
    Res2Net weights use (``layer1.0.conv1.weight``), so a start from a file finds them. Left out: SANet's exchange of
    colours between images in training, and its correction of probabilities after it.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels)
        self.head = ProductHead((512, 1024, 2048), _SANET_HEAD, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) -> logits (batch, outputs, h, w)."""
        return _resize(self.head(self.levels(x)), x)


class SanetLight(nn.Module):
    """MobileNetV3-small (Howard et al. 2019) with SANet's head: maps of 1/8, 1/16 and 1/32 of the image.

    With a head of 32 channels, 948,129 parameters for RGB and one output, as many as with BatchNorm; 927,008 of them
    are the backbone's, whose tensors have torchvision's names (``features.0.0.weight``).
    """

    _TAPS = (3, 8, 12)

    def __init__(self, channels: int, head: int, outputs: int) -> None:
        super().__init__()
        self.features: nn.Sequential = mobilenet_v3_small(
            weights=None, num_classes=1, block=_OutOfPlaceResidual, norm_layer=lambda width: nn.GroupNorm(8, width)
        ).features
        for module in self.features.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        if channels != 3:
            self.features[0][0] = nn.Conv2d(channels, 16, kernel_size=3, stride=2, padding=1, bias=False)
        self.head = ProductHead((24, 48, 576), head, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) -> logits (batch, outputs, h, w)."""
        out, maps = x, []
        for at, layer in enumerate(self.features):
            out = layer(out)
            if at in self._TAPS:
                maps.append(out)
        return _resize(self.head(maps), x)


class _OutOfPlaceResidual(InvertedResidual):  # type: ignore[misc]
    """MobileNetV3's block; torchvision's own adds the shortcut in place."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, h, w) -> (batch, out, h / stride, w / stride)."""
        out: torch.Tensor = self.block(input)
        return out + input if self.use_res_connect else out


def _double(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.GroupNorm(8, after), nn.ReLU()]
    return nn.Sequential(*layers)


def _last(channels: int, outputs: int) -> nn.Conv2d:
    """The convolution that gives the logits; at first, about ``FOREGROUND`` of the pixels' probability."""
    layer = nn.Conv2d(channels, outputs, 1)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, math.log(FOREGROUND / (1 - FOREGROUND)))
    return layer


def _resize(small: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return interpolate(small, size=like.shape[2:], mode="bilinear", align_corners=False)
