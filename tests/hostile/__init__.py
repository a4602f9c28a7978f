# SPDX-License-Identifier: Apache-2.0
"""Hostile and mistaken jobs, each a good one with one thing spoilt; used for validator, door, audit and live kits.

:data:`CASES` holds those that a researcher can submit as a folder, :data:`ARCHIVES` those that only a server can make,
:data:`WEAKER` the plans that are weaker than :func:`terms` in one field of the policy.
"""

from __future__ import annotations

from tests.hostile.archives import ARCHIVES, HostileArchive, archive_of
from tests.hostile.cases import CASES, HostileJob
from tests.hostile.weaker import WEAKER, WeakerPlan, terms

__all__ = [
    "ARCHIVES",
    "CASES",
    "WEAKER",
    "HostileArchive",
    "HostileJob",
    "WeakerPlan",
    "archive_of",
    "terms",
]
