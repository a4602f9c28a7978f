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


class Masking(StrictModel):
    """How masks work where they protect a plan's vectors (secure aggregation, threshold floor(2n/3) + 1 of n sites).

    ``colluders``: sites that may collude with the server without learning more than the sum of the others. ``clip``:
    largest change of one parameter by one site in one round; beyond it changes are cut off. ``norm_clip``: bound of
    the whole change's L2 norm, before that (``null``: none). ``weight_unit``: a site's records are rounded to this
    unit before they weigh its update, since the sum of weights is seen whenever a site drops out. ``max_stale``: rounds
    in which sites go on with the last group sums when a site was missing, so that none could be opened; then
    ``when_stale``: train without a penalty, or stop.
    """

    colluders: Annotated[int, Field(ge=0, le=1024)]
    clip: Annotated[float, Field(ge=2**-20, le=2**20)]
    norm_clip: Positive | None
    weight_unit: Annotated[int, Field(ge=1, le=10_000)]
    max_stale: Annotated[int, Field(ge=0, le=10_000)]
    when_stale: Literal["no_penalty", "stop"]


class Protection(StrictModel):
    """How vectors are protected on their way. ``none``: the server sees every site's vector. ``masked``: sums only.

    ``ckks``: masked too, and sums of which only hospitals need the total (group sums of training records, distances)
    travel encrypted under a key that the hospitals share, so the server does not see even the total.
    """

    update: Literal["none", "masked"]
    statistics: Literal["none", "masked", "ckks"]
    masking: Masking | None

    @model_validator(mode="after")
    def _check(self) -> Protection:
        if self.encrypted and self.update != "masked":
            raise rule(f"got statistics 'ckks' with update '{self.update}', expected 'masked': masks are underneath")
        if self.update != self.statistics and not self.encrypted:
            raise rule(
                f"got update '{self.update}' with statistics '{self.statistics}', expected the same for both: what one "
                "of them shows in clear (counts, losses) is what the other one hides"
            )
        if self.masked != (self.masking is not None):
            wanted = "how masks work" if self.masked else "null: nothing is masked"
            raise rule(f"got protection '{self.update}' with the wrong 'masking', expected {wanted}")
        return self

    @property
    def masked(self) -> bool:
        """Whether the server sees sums only."""
        return self.update == "masked"

    @property
    def encrypted(self) -> bool:
        """Whether some of these sums are the hospitals' only."""
        return self.statistics == "ckks"


class Evaluation(StrictModel):
    """Histograms of scores, or of each image's Dice (bins of equal width over [0, 1]), and the decision threshold."""

    score_bins: Annotated[int, Field(ge=200, le=10_000, multiple_of=2)]
    threshold: Literal["half", "validation_balanced_accuracy"]
