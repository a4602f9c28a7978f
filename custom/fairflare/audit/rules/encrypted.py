# SPDX-License-Identifier: Apache-2.0
"""Rules 606 and 607: where the hospitals' key to encrypted statistics lies, and what it means that they share it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from fairflare.audit.evidence import Evidence
from fairflare.audit.folder import Folder, Problem, plain_name
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity, Skip
from fairflare.errors import HeError
from fairflare.he.context import holds_secret
from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME

ENDING: Final = ".tenseal"
_NONE: Final = Skip("there is no context for encrypted statistics; plans without them need none")


def contexts_of(folder: Folder) -> list[str]:
    """Paths of a kit's contexts, in ``startup/`` and ``local/``."""
    return [name for name in folder.files("startup", "local", "transfer") if name.endswith(ENDING)]


def _check_server(evidence: Evidence) -> Iterator[Outcome]:
    """Also an administrator's kit: nobody but hospitals has use for the key."""
    folder = evidence.kit.folder
    names = contexts_of(folder)
    if not names:
        yield _NONE
    for name in names:
        secret = _has_secret(folder, name)
        if isinstance(secret, Doubt):
            yield secret
        elif secret:
            yield Defect(plain_name(name), "the hospitals' secret key", "a context without it, or none")


def _check_site(evidence: Evidence) -> Iterator[Outcome]:
    folder = evidence.kit.folder
    names = [name for name in contexts_of(folder) if name.split("/")[-1] == CLIENT_CONTEXT]
    if not names:
        yield _NONE
        return
    if len(names) > 1:
        yield Defect(plain_name(names[1]), "a second context", "one: jobs are refused with two", Severity.medium)
    for name in names:
        secret = _has_secret(folder, name)
        if isinstance(secret, Doubt):
            yield secret
        elif secret:
            got = "one secret key, the same at every hospital, by design"
            allowed = "no hospital gives it away: with the server it opens totals of groups; masks hide the rest"
            yield Defect(plain_name(name), got, allowed, Severity.low)
        yield from _recorded(folder, name)


def _recorded(folder: Folder, name: str) -> Iterator[Outcome]:
    """Whether the record beside a context is of this one; what SEAL makes of it is for jobs to find out."""
    place = f"{name.rpartition('/')[0]}/{RECORD_NAME}"
    record, data = folder.json(place), folder.content(name)
    if isinstance(record, Problem):
        yield Defect(place, "a context without a record that can be read", "he.json beside it", Severity.medium)
    elif isinstance(data, bytes):
        named = record.get("context_sha256") if isinstance(record, dict) else None
        if named != hashlib.sha256(data).hexdigest():
            yield Defect(f"{place}:context_sha256", "the record of another context", "the context beside it")


def _has_secret(folder: Folder, name: str) -> bool | Doubt:
    data = folder.content(name)
    if isinstance(data, Problem):
        return Doubt(plain_name(name), f"the file {data.text}")
    try:
        return holds_secret(data)
    except HeError:
        return Doubt(plain_name(name), "the file is no context of TenSEAL")


ENCRYPTED = (
    Rule(
        "FFA-606",
        Severity.critical,
        "Only hospitals have the key to encrypted statistics",
        "With it the server opens what every hospital sends to the others only.",
        "Take the file away, and let the hospitals make a new key: this one is no secret any more.",
        "NIST SP 800-57 part 1, 6",
        (Check(("server", "admin"), _check_server),),
    ),
    Rule(
        "FFA-607",
        Severity.high,
        "The key to encrypted statistics is the hospitals' one, and known as such",
        "All hospitals hold one key: with any of them, or with whoever made it, the server opens totals of training "
        "groups. Masks do the rest.",
        "Nothing, if every hospital knows and agrees; else use statistics 'masked'. Take files of one provisioning.",
        "NIST SP 800-57 part 1, 6",
        (Check(("site",), _check_site),),
    ),
)

__all__ = ["ENCRYPTED", "contexts_of"]
