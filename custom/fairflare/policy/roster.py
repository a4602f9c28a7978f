# SPDX-License-Identifier: Apache-2.0
"""The project's roster, ``local/roster.json`` of a kit: names and key hashes as the provisioner wrote them.

It saves typing, and proves nothing: hospitals read the hashes to one another on the telephone before they pin them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from fairflare import schema
from fairflare.errors import PolicyError
from fairflare.policy.approvals import site_name
from fairflare.policy.site import Hash
from fairflare.schema import StrictModel
from fairflare.secagg.identity import key_hash

ROSTER_FORMAT: Final = "fairflare/roster/1"
ROSTER_NAME = "roster.json"


class Roster(StrictModel):
    """Site name -> SHA-256 (hex) of its public key, as ``fairflare policy key`` prints it."""

    format: Literal["fairflare/roster/1"]
    sites: Annotated[dict[str, Hash], Field(min_length=1)]


def read_roster(kit: Path) -> dict[str, str]:
    """Peers for a policy from a kit's roster.

    Raises
    ------
    PolicyError
        As :func:`fairflare.schema.read`; ``FF-POLICY-ROSTER`` if this kit's own site is not in it with its own key.
    """
    roster = schema.read(Roster, kit / "local" / ROSTER_NAME, error=PolicyError, what="roster")
    try:
        certificate = (kit / "startup" / "client.crt").read_bytes()
    except OSError:
        certificate = b""
    name = site_name(certificate)
    if name is None or roster.sites.get(name) != key_hash(certificate):
        raise PolicyError(
            "FF-POLICY-ROSTER",
            got="a roster without this kit's own site and key, or a kit without startup/client.crt",
            expected="the roster that was provisioned together with this kit",
            next_step="ask the project's provisioner for the kit and its roster again",
        )
    return dict(roster.sites)
