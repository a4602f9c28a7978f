# SPDX-License-Identifier: Apache-2.0
"""Networks by registry name, and the weights that they start from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fairflare.schema import StrictModel


class MlpModel(StrictModel):
    """Multi-layer perceptron for tables."""

    name: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=8)]


class CnnModel(StrictModel):
    """Small convolutional network for images: one stride-2 block (convolution, GroupNorm, ReLU) per width."""

    name: Literal["cnn"]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=8, le=4096, multiple_of=8)], ...], Field(min_length=1, max_length=8)
    ]


class ResNet18Model(StrictModel):
    """ResNet-18 with GroupNorm and without in-place operations (He et al. 2016; 11.2 million parameters)."""

    name: Literal["resnet18"]


class ResNet50Model(StrictModel):
    """ResNet-50 with GroupNorm (23.5 million parameters): the FlexFair paper's network for skin images."""

    name: Literal["resnet50"]


class UNetModel(StrictModel):
    """Small U-Net (Ronneberger et al. 2015) with GroupNorm: one level per width, the last one is the bottom."""

    name: Literal["unet"]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=8, le=4096, multiple_of=8)], ...], Field(min_length=2, max_length=6)
    ]


class SanetLightModel(StrictModel):
    """MobileNetV3-small with SANet's product head of ``head`` channels: a light stand-in for SANet on a processor."""

    name: Literal["sanet_light"]
    head: Annotated[int, Field(ge=8, le=512, multiple_of=8)]


class SanetModel(StrictModel):
    """SANet (Wei et al. 2021): Res2Net-50 and the product of three levels; 23.9 million parameters."""

    name: Literal["sanet"]


AnyModel = MlpModel | CnnModel | ResNet18Model | ResNet50Model | UNetModel | SanetLightModel | SanetModel
#: Networks for each kind of task and input.
MODELS = {
    ("classification", "table"): ("mlp",),
    ("classification", "image"): ("cnn", "resnet18", "resnet50"),
    ("segmentation", "image"): ("unet", "sanet_light", "sanet"),
}


class SeedStart(StrictModel):
    """The first model is drawn from the plan's seed."""

    kind: Literal["seed"]


class FileStart(StrictModel):
    """The first model comes from a safetensors file that server and sites hold, found by its SHA-256.

    ``tensors``: ``all`` wants every tensor of the network in the file, and no other; ``matching`` takes those with the
    name and shape of one of the network's (an ImageNet backbone), at least one, and draws the others from the seed.
    """

    kind: Literal["file"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tensors: Literal["all", "matching"]
