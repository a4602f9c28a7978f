# SPDX-License-Identifier: Apache-2.0
"""Kits as ``nvflare package`` makes them, from keys that their holders made: once for all tests of a process."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from poc.distributed import HOST, Authority, Party, package, request

SITE, SERVER, PERSON = "hospital-1", HOST, "researcher@example.org"
_WHO = {
    SITE: {"name": SITE, "type": "client", "org": "hospital_1"},
    SERVER: {"name": SERVER, "type": "server", "org": "coordinator"},
    PERSON: {"name": PERSON, "type": "admin", "org": "university", "role": "lead"},
}


@functools.cache
def _base() -> Path:
    base = Path(tempfile.mkdtemp(prefix="fairflare-own-kits-"))
    (base / "post").mkdir()
    return base


@functools.cache
def _authority() -> Authority:
    return Authority(_base() / "authority", 28999)


@functools.cache
def _packaged(name: str) -> Path:
    party = Party(_base() / name)
    asked = request(party, _WHO[name], _base() / "post")
    signed = _base() / "post" / f"{name}.signed.zip"
    _authority().approve(asked, signed)
    return package(party, signed, _authority().fingerprint, harden=False)


def packaged(name: str, to: Path) -> Path:
    """A copy of a party's kit, not hardened."""
    return Path(shutil.copytree(_packaged(name), to / name))


def remove() -> None:
    """Take away what was made; the next call makes it anew."""
    if _base.cache_info().currsize:
        shutil.rmtree(_base(), ignore_errors=True)
    for one in (_base, _authority, _packaged):
        one.cache_clear()
