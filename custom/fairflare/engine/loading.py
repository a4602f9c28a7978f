# SPDX-License-Identifier: Apache-2.0
"""A site's records for a plan, once it is sure that the plan's starting weights have not seen any of them."""

from __future__ import annotations

from pathlib import Path

from fairflare.data.manifest import SiteData, load, load_counted
from fairflare.data.members import from_metadata, verify_apart
from fairflare.models.weights import find_weights, read_weights
from fairflare.plan import FileStart, Plan
from fairflare.policy import Entry

#: Entry of a weight file's metadata that says it was pretrained by FairFlare, and so lists its members.
PRETRAINED = "fairflare/pretrained/1"


def load_apart(plan: Plan, entry: Entry, weights: Path | None) -> SiteData:
    """Read a site's records; a weight file that lists its members must not list any of them.

    Raises
    ------
    DataError, WeightsError
        ``FF-DATA-OVERLAP`` if a record, an image or a patient of this site is among those that the weights were
        trained on; ``FF-WEIGHTS-*`` if this site does not hold the plan's weight file. A file from elsewhere (an
        ImageNet backbone) lists nobody: about it nothing can be checked but its hash. A plan that only counts trains
        nothing, and reads the manifest only.
    """
    if plan.method.counts_only:
        return load_counted(plan, entry)
    if isinstance(plan.start, FileStart):
        file = read_weights(find_weights(weights, plan.start.sha256), plan.start.sha256)
        if file.metadata.get("format") == PRETRAINED:
            verify_apart(plan, entry, from_metadata(file.metadata))
    return load(plan, entry)
