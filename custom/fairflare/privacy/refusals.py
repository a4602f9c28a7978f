# SPDX-License-Identifier: Apache-2.0
"""What private training and releases refuse, in one form."""

from __future__ import annotations

from fairflare.errors import PrivacyError


def refused(code: str, got: str, expected: str) -> PrivacyError:
    """``FF-PRIVACY-`` and a code."""
    return PrivacyError(
        f"FF-PRIVACY-{code}",
        got=got,
        expected=expected,
        next_step="check the plan's privacy section; report this as a defect of FairFlare if it is as it should be",
    )


def unusable(got: str, expected: str) -> PrivacyError:
    """What is wrong with a model of which no private sum can be had."""
    return refused("MODEL", got, expected)
