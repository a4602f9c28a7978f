# SPDX-License-Identifier: Apache-2.0
"""Policies of earlier formats: each said less, so none is read, and each is told what it lacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fairflare.errors import PolicyError

_FORMER: Final = re.compile(r'"format"\s*:\s*"(fairflare/policy/[12])"')
#: Former format -> what the present one says beside, and what to do.
_SINCE: Final = {
    "fairflare/policy/1": (
        "which also says what may be learnt, from which data sets, columns and groups, what may leave, how plans are "
        "approved, until when, and by which package",
        "move it away, write one with 'fairflare policy new', and take over store, peers and numbers",
    ),
    "fairflare/policy/2": (
        "which also says which package may run",
        "write the new format, and below 'store' a line \"package\": null, for any, or with the hash that 'fairflare "
        "policy package' prints; then sign approvals again",
    ),
}


def refuse_former(file: Path, present: str) -> None:
    """Raise ``FF-POLICY-FORMAT`` if a policy that could not be read is of an earlier format than ``present``."""
    try:
        former = _FORMER.search(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return
    if former is not None:
        since, next_step = _SINCE[former[1]]
        raise PolicyError(
            "FF-POLICY-FORMAT",
            got=f"a policy of the format {former[1]}",
            expected=f"{present}, {since}",
            next_step=next_step,
        ) from None
