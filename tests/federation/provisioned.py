# SPDX-License-Identifier: Apache-2.0
"""A federation of real, hardened start-up kits: the one that ``make provisioned`` starts (``poc/federation.py``)."""

from __future__ import annotations

from poc.federation import (
    ADMIN,
    HEARTBEAT,
    RESEARCHER,
    SERVER,
    Federation,
    FederationError,
    federation,
    wait_until,
)

__all__ = [
    "ADMIN", "HEARTBEAT", "RESEARCHER", "SERVER", "Federation", "FederationError", "federation", "wait_until",
]  # fmt: skip
