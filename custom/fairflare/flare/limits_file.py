# SPDX-License-Identifier: Apache-2.0
"""``local/limits.json`` of a server's kit: how much disk it may take, and how much any one party may send it.

The defaults are far above what any plan of ours needs. They are there so that one party, broken or hostile, takes
neither the disk nor the line from the others. Imports nothing of FLARE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from fairflare import schema
from fairflare.errors import ServerError
from fairflare.schema import StrictModel

LIMITS_NAME: Final = "limits.json"
LIMITS_FORMAT: Final = "fairflare/limits/1"

_Bytes = Annotated[int, Field(ge=1024 * 1024, le=2**53)]


class Limits(StrictModel):
    """What the server's operator grants.

    Attributes
    ----------
    quota_bytes
        Bytes that the whole kit may take: jobs, records, models, logs.
    reserve_bytes
        Bytes that must be left of the quota, and on the disk, when a job is handed in or begins.
    messages_per_minute
        Messages of one party, frames of longer messages and receipts included.
    bytes_per_minute
        Bytes of one party.
    continuations
        How often a run is gone on with by itself after the server ended in the middle of it; 0: never.
    """

    format: Literal["fairflare/limits/1"]
    quota_bytes: _Bytes
    reserve_bytes: _Bytes
    messages_per_minute: Annotated[int, Field(ge=1000, le=2**31)]
    bytes_per_minute: _Bytes
    continuations: Annotated[int, Field(ge=0, le=100)]


#: What a kit is made with.
STANDARD: Final = Limits(
    format=LIMITS_FORMAT, quota_bytes=50 * 1024**3, reserve_bytes=1024**3, messages_per_minute=60_000,
    bytes_per_minute=16 * 1024**3, continuations=2,
)  # fmt: skip


def read_limits(local: Path) -> Limits:
    """The limits in a ``local/`` folder, the standard ones where there is no file; raises :class:`ServerError`."""
    file = local / LIMITS_NAME
    return schema.read(Limits, file, error=ServerError, what="limits.json") if file.exists() else STANDARD
