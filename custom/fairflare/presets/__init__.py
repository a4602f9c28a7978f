# SPDX-License-Identifier: Apache-2.0
"""The plans of the jobs that FairFlare ships, and the building blocks for new ones.

``jobs/`` is generated from here (``fairflare jobs write``) and a test compares the two. Every method has two presets:
``paper``, and ``official`` (what the FlexFair authors' code does, defects included: ``presets.methods``). FlexFair's
``paper`` is the article's penalty, exact across sites, without bounds. The shipped jobs bound weights and utility,
since large strengths on small groups can drive a model to a constant.
"""

from __future__ import annotations

from fairflare.presets.catalogue import JOBS, PRESETS, REFUSED, described, shipped
from fairflare.presets.methods import BOUNDS, FEDAVG, SITE_BOUNDS, Json, Name, Preset, flexfair, method, penalty
from fairflare.presets.private import PRIVATE_BOUNDS, private
from fairflare.presets.tasks import (
    AGE,
    MASKED,
    SEX,
    SOURCE,
    UNPROTECTED,
    feasibility,
    fundus,
    heart,
    sgd,
    shapes,
    skin,
)

__all__ = [
    "AGE", "BOUNDS", "FEDAVG", "JOBS", "MASKED", "PRESETS", "PRIVATE_BOUNDS", "REFUSED", "SEX", "SITE_BOUNDS", "SOURCE",
    "UNPROTECTED", "Json", "Name", "Preset", "described", "feasibility", "flexfair", "fundus", "heart", "method",
    "penalty", "private", "sgd", "shapes", "shipped", "skin",
]  # fmt: skip
