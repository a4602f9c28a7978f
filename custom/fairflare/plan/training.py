# SPDX-License-Identifier: Apache-2.0
"""How sites train, who must take part, and how vectors are protected on their way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fairflare.plan.words import Count, NotNegative, Positive
from fairflare.schema import StrictModel, rule


class Sgd(StrictModel):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NotNegative
    state: Literal["keep", "reset"]

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise rule("got nesterov with momentum 0, expected momentum > 0 or nesterov false")
        return self


class AdamW(StrictModel):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    lr: Positive
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Positive
    weight_decay: NotNegative
    state: Literal["keep", "reset"]


class Work(StrictModel):
    """How much a site trains in a round."""

    unit: Literal["epochs", "steps"]
    amount: Annotated[int, Field(ge=1, le=100_000)]


class Batch(StrictModel):
    """Size of a batch: so many records, or records / amount (each site then makes the same number of steps)."""

    unit: Literal["records", "batches_per_epoch"]
    amount: Annotated[int, Field(ge=1, le=100_000)]


class Training(StrictModel):
    """Rounds, local work, optimiser. ``aggregation`` weighs sites by records (p_s = n_s / n) or uniformly.

    ``class_weights`` multiply the loss, one for each label: of records, or in segmentation of pixels.
    ``optimizer.state``: whether momentum survives from round to round at a site ("keep") or starts anew ("reset").
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    work: Work
    batch: Batch
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")]
    class_weights: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=64)]
    aggregation: Literal["records", "uniform"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class Federation(StrictModel):
    """Fewest sites of a round, seconds a site may take for a task, missed tasks in a row until a site is dropped."""

    min_sites: Count
    task_timeout_seconds: Annotated[float, Field(ge=1, le=7 * 24 * 3600)]
    max_missed: Count


class Protection(StrictModel):
    """How vectors are protected on their way. ``none``: the server sees every site's vector."""

    update: Literal["none"]
    statistics: Literal["none"]


class Evaluation(StrictModel):
    """Histograms of scores, or of each image's Dice (bins of equal width over [0, 1]), and the decision threshold."""

    score_bins: Annotated[int, Field(ge=200, le=10_000, multiple_of=2)]
    threshold: Literal["half", "validation_balanced_accuracy"]
