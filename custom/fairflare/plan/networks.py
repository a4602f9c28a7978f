# SPDX-License-Identifier: Apache-2.0
"""Networks by registry name, and the weights that they start from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fairflare.schema import StrictModel, rule


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


WholeModel = MlpModel | CnnModel | ResNet18Model | ResNet50Model | UNetModel | SanetLightModel | SanetModel


class PartModel(StrictModel):
    """A network of which only a part is trained, and travels; the rest is what the plan's ``start`` gives, everywhere.

    ``trained``: ``head``, the last layer, or all that makes logits of features; ``adapters``, low-rank layers (LoRA)
    beside the others, and the head. ``rank``: channels of each adapter; null for a head.
    """

    name: Literal["part"]
    network: Annotated[WholeModel, Field(discriminator="name")]
    trained: Literal["head", "adapters"]
    rank: Annotated[int, Field(ge=1, le=64)] | None

    @model_validator(mode="after")
    def _check(self) -> PartModel:
        if (self.rank is None) != (self.trained == "head"):
            got = f"rank {'null' if self.rank is None else self.rank} where '{self.trained}' is trained"
            raise rule(f"got {got}, expected a number for adapters and null for a head")
        return self


AnyModel = WholeModel | PartModel


def network_of(model: AnyModel) -> WholeModel:
    """The network, whatever part of it is trained."""
    return model.network if isinstance(model, PartModel) else model


def names_of(model: AnyModel) -> tuple[str, ...]:
    """Every registry name that a model bears: who allows it must allow them all."""
    return tuple(dict.fromkeys((model.name, network_of(model).name)))


def model_words(model: AnyModel) -> str:
    """The network, and which part of it is trained, in words."""
    if not isinstance(model, PartModel):
        return model.name
    part = "the head" if model.rank is None else f"adapters of rank {model.rank} and the head"
    return f"{model.network.name}, trained: {part}"


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
    Adapters of a ``part`` may be missing with both: they start at no effect. A file's own must be the network's.
    """

    kind: Literal["file"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tensors: Literal["all", "matching"]
