# SPDX-License-Identifier: Apache-2.0
"""What a hospital says in its own ``local/`` folder: which data sets it offers, and on which terms.

:class:`SitePolicy`, ``site_policy.json``, is its will: a policy can only tighten a plan, never loosen it. A site
without one takes part in nothing. :class:`DataCatalog` lists its data sets. ``approvals`` holds the plans that it has
signed for.
"""

from __future__ import annotations

from fairflare.policy.catalog import (
    CATALOG_NAME,
    FORMAT,
    DataCatalog,
    Entry,
    is_site_name,
    read_catalog,
    write_catalog,
)
from fairflare.policy.kinds import KINDS, Kind, kinds_of
from fairflare.policy.site import (
    POLICY_FORMAT,
    POLICY_NAME,
    LeastProtection,
    MostPrivacyLoss,
    SitePolicy,
    Violation,
    read_policy,
    write_policy,
)
from fairflare.policy.templates import open_policy, standard_policy, strict_policy

__all__ = [
    "CATALOG_NAME",
    "FORMAT",
    "KINDS",
    "POLICY_FORMAT",
    "POLICY_NAME",
    "DataCatalog",
    "Entry",
    "Kind",
    "LeastProtection",
    "MostPrivacyLoss",
    "SitePolicy",
    "Violation",
    "is_site_name",
    "kinds_of",
    "open_policy",
    "read_catalog",
    "read_policy",
    "standard_policy",
    "strict_policy",
    "write_catalog",
    "write_policy",
]
