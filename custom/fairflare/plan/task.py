# SPDX-License-Identifier: Apache-2.0
"""What is learnt, from what, and between which groups: the part of a plan that describes data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fairflare.fairness.groups import EVERYBODY, HOSPITAL
from fairflare.plan.words import Count, Name, Positive, Word, refuse_repeats
from fairflare.schema import StrictModel, rule


class Feature(StrictModel):
    """A column of a table, scaled by constants of the plan: the model sees ``(x - center) / scale`` and "known"."""

    name: Name
    center: float
    scale: Positive


class TableInput(StrictModel):
    """Rows of numbers. Each feature gives two inputs: its scaled value (0 if missing) and whether it is known."""

    kind: Literal["table"]
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]

    @model_validator(mode="after")
    def _check(self) -> TableInput:
        refuse_repeats("feature", [feature.name for feature in self.features])
        return self


class ImageInput(StrictModel):
    """Images, resized to height x width pixels, scaled to [0, 1] and normalised per channel."""

    kind: Literal["image"]
    channels: Literal[1, 3]
    height: Annotated[int, Field(ge=8, le=1024)]
    width: Annotated[int, Field(ge=8, le=1024)]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    augmentation: Literal["none", "flips"]

    @model_validator(mode="after")
    def _check(self) -> ImageInput:
        if not len(self.mean) == len(self.std) == self.channels:
            raise rule(
                f"got {len(self.mean)} means and {len(self.std)} stds for {self.channels} channels, expected one each"
            )
        return self


class ClassificationTask(StrictModel):
    """One label for each record. Of two labels the second is the positive one; of more, each is judged against all."""

    kind: Literal["classification"]
    data_set: Name
    labels: Annotated[tuple[Word, ...], Field(min_length=2, max_length=64)]
    input: Annotated[TableInput | ImageInput, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check(self) -> ClassificationTask:
        refuse_repeats("label", list(self.labels))
        return self

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for a record: one logit per label (softmax)."""
        return len(self.labels)

    @property
    def questions(self) -> tuple[int, ...]:
        """Labels that are evaluated against all others: the positive one of two, else each."""
        return (1,) if len(self.labels) == 2 else tuple(range(len(self.labels)))

    @property
    def strata(self) -> int:
        """Parts of a group in the evaluation sums: for each question, records of other labels and of this one."""
        return 2 * len(self.questions)


class SegmentationTask(StrictModel):
    """A label for each pixel: the first of ``labels`` is the background, ``mask_values`` are their grey values.

    A mask is an 8-bit image of the same place as its image; a pixel with any other value is refused. The network gives
    one logit for each label but the background (sigmoid), so labels are learnt and measured one by one.
    """

    kind: Literal["segmentation"]
    data_set: Name
    labels: Annotated[tuple[Word, ...], Field(min_length=2, max_length=16)]
    mask_values: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(min_length=2, max_length=16)]
    input: ImageInput

    @model_validator(mode="after")
    def _check(self) -> SegmentationTask:
        refuse_repeats("label", list(self.labels))
        refuse_repeats("mask value", [str(value) for value in self.mask_values])
        if len(self.mask_values) != len(self.labels):
            raise rule(
                f"got {len(self.mask_values)} mask_values for {len(self.labels)} labels, expected one for each label"
            )
        return self

    @property
    def outputs(self) -> int:
        """Logits per pixel: one for each label but the background."""
        return len(self.labels) - 1

    @property
    def strata(self) -> int:
        """Parts of a group in the evaluation sums: one for each label but the background."""
        return len(self.labels) - 1


class Attribute(StrictModel):
    """A sensitive attribute and its closed vocabulary.

    ``edges`` is ``null`` for a categorical attribute. For a numeric one, value k is for numbers in
    ``[edges[k-1], edges[k])``, so there is one edge fewer than values. An empty cell of the manifest is "missing".
    """

    name: Name
    values: Annotated[tuple[Word, ...], Field(min_length=2, max_length=64)]
    edges: tuple[float, ...] | None

    @model_validator(mode="after")
    def _check(self) -> Attribute:
        refuse_repeats(f"value of attribute '{self.name}'", list(self.values))
        _refuse_own_words(self.name)
        if self.edges is not None:
            if len(self.edges) != len(self.values) - 1:
                values = f"the {len(self.values)} values of '{self.name}'"
                raise rule(f"got {len(self.edges)} edges for {values}, expected {len(self.values) - 1}")
            if list(self.edges) != sorted(set(self.edges)):
                raise rule(f"got edges of '{self.name}' out of order, expected strictly increasing numbers")
        return self


class Intersection(StrictModel):
    """Groups that share the values of several attributes, such as women over 60: named like ``female+ge60``.

    Whoever has a missing value in one of them is in none of its groups.
    """

    name: Name
    of: Annotated[tuple[Name, ...], Field(min_length=2, max_length=4)]

    @model_validator(mode="after")
    def _check(self) -> Intersection:
        _refuse_own_words(self.name)
        refuse_repeats(f"attribute of '{self.name}'", list(self.of))
        return self


def _refuse_own_words(name: str) -> None:
    if name in (HOSPITAL, EVERYBODY):
        what = "the sites themselves" if name == HOSPITAL else "all records"
        raise rule(f"got an attribute named '{name}', expected another name: it is reserved for {what}")


class Cells(StrictModel):
    """Smallest cells: zeros are sent below ``minimum`` records; a cell counts if ``sites`` sites or more have it."""

    minimum: Annotated[int, Field(ge=0)]
    sites: Count
