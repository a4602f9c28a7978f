# SPDX-License-Identifier: Apache-2.0
"""How a plan's releases would be made private: a draft in a file of its own, which no run reads yet.

A plan's own field ``differential_privacy`` stays ``null`` until a run does what would stand there: a plan must not say
what does not happen. Then :class:`DifferentialPrivacy` goes into that field; plans with ``null`` keep their hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from fairflare import schema
from fairflare.errors import PlanError
from fairflare.plan.words import Positive
from fairflare.schema import StrictModel

PRIVACY_FORMAT: Final = "fairflare/privacy-draft/1"

#: Noise as a multiple of the sensitivity; less is no protection.
Noise = Annotated[float, Field(ge=0.01, le=1e6)]


class GroupNoise(StrictModel):
    """Noise of group sums: their counts once for each job, their utilities whenever the method asks.

    ``noise_multiplier``: standard deviation over sensitivity, of each such vector; utilities are cut off where the
    method says. ``groups_per_unit``: in how many groups of an attribute one unit (patient) may have records.
    """

    noise_multiplier: Noise
    groups_per_unit: Annotated[int, Field(ge=1, le=1024)]


class DifferentialPrivacy(StrictModel):
    """Private training: the L2 norm to which a unit's gradient is cut off, noise over that norm, and the groups'.

    Chance to be in a batch and number of steps follow from the plan's ``training`` and a site's units. How much may be
    spent is each site's policy, not the plan's. ``groups`` is null where the method has no group sums.
    """

    clip: Positive
    noise_multiplier: Noise
    groups: GroupNoise | None


class PrivacyDraft(StrictModel):
    """The file: for which plan (SHA-256, hex), and the proposal."""

    format: Literal["fairflare/privacy-draft/1"]
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    differential_privacy: DifferentialPrivacy


def read_draft(path: Path) -> PrivacyDraft:
    """Read a draft; raises :class:`PlanError`."""
    return schema.read(PrivacyDraft, path, error=PlanError, what="privacy draft")


__all__ = ["PRIVACY_FORMAT", "DifferentialPrivacy", "GroupNoise", "PrivacyDraft", "read_draft"]
