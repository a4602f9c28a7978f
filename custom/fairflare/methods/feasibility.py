# SPDX-License-Identifier: Apache-2.0
"""Feasibility: whether there are enough records for what a plan wants to claim, before anything is trained.

A plan with this method is the plan in question, but for the method: its run counts records by the plan's vocabulary and
ends. No image is opened, no model is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fairflare.fairness.groups import HOSPITAL
from fairflare.methods.base import Method, MethodParameters, Setting
from fairflare.schema import StrictModel


class Claim(StrictModel):
    """What a paper is to say: that a gap of ``gap`` or more between groups of ``attribute`` would have been seen.

    ``criterion`` says among whom: everybody, or records of one label, or of each (``fairness.penalty.labels_of``).
    """

    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    criterion: Literal["equal_accuracy", "demographic_parity", "equal_opportunity", "equalized_odds"]
    gap: Annotated[float, Field(gt=0, lt=1)]


class FeasibilityParameters(MethodParameters):
    """Claims to be examined, each by two-sided tests at level ``alpha`` with the given ``power``."""

    name: Literal["feasibility"]
    claims: Annotated[tuple[Claim, ...], Field(max_length=64)]
    alpha: Annotated[float, Field(gt=0, le=0.5)]
    power: Annotated[float, Field(ge=0.5, lt=1)]

    @property
    def counts_only(self) -> bool:
        """Whether a run counts records and ends, without a model."""
        return True

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Claims about groups that the plan does not have, or of a rate that the task does not have."""
        sizes, task = setting.sizes, setting.task
        known = ", ".join(sizes) or "attributes, of which the plan has none"
        for claim in self.claims:
            if claim.attribute == HOSPITAL:
                yield f"got a claim about '{HOSPITAL}', expected one of {known}: no single hospital is ever counted"
            elif claim.attribute not in sizes:
                yield f"got a claim about '{claim.attribute}', expected one of {known}"
            if task == "segmentation" and claim.criterion != "equal_accuracy":
                yield f"got the criterion '{claim.criterion}' for segmentation, expected 'equal_accuracy'"
        named = [(claim.attribute, claim.criterion) for claim in self.claims]
        if len(set(named)) < len(named):
            yield "got two claims about one attribute and criterion, expected each once"


class Feasibility(Method, of=FeasibilityParameters):
    """Counts, and never steps: what it opens is in ``engine.vocabulary``."""
