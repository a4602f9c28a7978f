# SPDX-License-Identifier: Apache-2.0
"""Differential privacy of a plan's training: what hides a patient's part in updates, numbers and group sums.

It is about the patients of the *training* split at each site, each site with noise of its own. Validation and test
records are not covered: their sums are exact, and only masks and the smallest cell protect them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fairflare.plan.words import Positive
from fairflare.schema import StrictModel

#: Noise as a multiple of the sensitivity; less is no protection.
Noise = Annotated[float, Field(ge=0.01, le=1e6)]


class GroupNoise(StrictModel):
    """Noise of group sums: their counts once in a session, their utilities whenever the method asks.

    ``noise_multiplier``: standard deviation over sensitivity, of each such vector; utilities are cut off where the
    method says (``utility_clip``). ``groups_per_unit``: in how many groups of an attribute one unit (patient) counts.
    ``shared``: hospitals add the noise together, each a part, so that there is less of it; then it protects a patient
    only as long as no more than ``protection.masking.colluders`` of them tell the server theirs.
    """

    noise_multiplier: Noise
    groups_per_unit: Annotated[int, Field(ge=1, le=1024)]
    shared: bool


class DifferentialPrivacy(StrictModel):
    """Private training (DP-SGD). The unit is what the manifest calls a patient, such as a lesion.

    ``clip``: L2 norm to which each record's gradient is cut off. ``noise_multiplier``: noise of a step over what a unit
    may change. ``count_noise``: the same for the number of a site's training units, told once in a session.
    ``records_per_unit``: most records of a unit in a batch. ``gradients``: how Opacus finds each record's; ``ghost``
    needs less memory and more time than ``hooks``.

    Chance to be in a batch and number of steps follow from the plan's ``training`` and a site's units. How much may be
    spent is each site's policy, not the plan's. ``groups`` is null where the method has no group sums.
    """

    clip: Positive
    noise_multiplier: Noise
    count_noise: Noise
    records_per_unit: Annotated[int, Field(ge=1, le=100_000)]
    gradients: Literal["hooks", "ghost"]
    groups: GroupNoise | None


__all__ = ["DifferentialPrivacy", "GroupNoise", "Noise"]
