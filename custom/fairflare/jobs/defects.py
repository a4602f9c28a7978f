# SPDX-License-Identifier: Apache-2.0
"""A defect of a job: one code of a closed list, a place, what was got and what was expected.

Whoever wrote the job chose every name in it, so texts are cut, escaped and repeated only where they are plain names:
they end in the server's records, in a hospital's log and on other people's screens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairflare.errors import JobError

#: Every code, and what it says. Sites, server and auditor use no other ones for a job.
CODES: Final = {
    "FF-JOB-CODE": "code, or a folder for code: it would run at every site, and switches FLARE's class allow-list off",
    "FF-JOB-FILE": "a file or folder that no job of ours has",
    "FF-JOB-LINK": "a link, which could lead anywhere",
    "FF-JOB-MISSING": "a file that every job of ours has is not there",
    "FF-JOB-SIZE": "more, larger or deeper than any job of ours",
    "FF-JOB-CONFIG": "a FLARE configuration with other bytes than this version writes",
    "FF-JOB-PLAN": "a plan.json that cannot be run as written",
    "FF-JOB-META": "meta data that no job of this plan has",
    "FF-JOB-ARCHIVE": "an archive that no FLARE of ours makes",
    "FF-JOB-READ": "a file that cannot be read",
    "FF-JOB-ID": "a job's id that is none",
    "FF-JOB-REQUEST": "a request that FLARE's own server does not make",
    "FF-JOB-REVOKED": "a signature by somebody whose certificate the project's root has revoked",
    "FF-JOB-START": "a start of a job that this process has not accepted",
    "FF-JOB-INTERNAL": "the check itself failed, so the job is refused",
}

#: Longest text of a defect, in characters; a hostile job could otherwise fill disks and screens.
_LONGEST = 600
#: Longest sentence about all defects of a job.
_ALL = 4000
_PART = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}")
_DEEPEST = 6


@dataclass(frozen=True)
class JobDefect:
    """One thing that is wrong with a job; ``str()`` is "code place: got ..., expected ...".

    Attributes
    ----------
    code
        One of :data:`CODES`.
    place
        Where: a path inside the job, a key of ``meta.json``, or "?" for a name that is not a plain one.
    got, expected
        What is there, and what would be accepted.
    """

    code: str
    place: str
    got: str
    expected: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code} is no code of a job's defect")
        for field in ("got", "expected"):
            object.__setattr__(self, field, clipped(getattr(self, field), _LONGEST))

    def __str__(self) -> str:
        return f"{self.code} {self.place}: got {self.got}, expected {self.expected}"


def clipped(text: str, length: int) -> str:
    """``text`` as printable ASCII of at most ``length`` characters."""
    safe = "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in text[: length + 1])
    return safe if len(text) <= length else f"{safe[: length - 3]}..."


def place_of(path: str) -> str:
    """``path`` if it is made of plain names and not deep, else "?"."""
    parts = path.split("/")
    plain = len(parts) <= _DEEPEST and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    return path if plain else "?"


def name_of(value: object) -> str:
    """A key or a word of somebody else's, quoted if it is a plain name, else its type only."""
    if isinstance(value, str):
        return f"'{value}'" if _PART.fullmatch(value) else "a text that is no plain name"
    return f"a value of type {type(value).__name__}"


def sentence(reasons: Sequence[object]) -> str:
    """All ``reasons`` as one line of bounded length; what does not fit is counted."""
    texts = [clipped(str(reason), 2 * _LONGEST) for reason in reasons]
    line, used = "", 0
    for text in texts:
        longer = f"{line}; {text}" if line else text
        if len(longer) > _ALL:
            break
        line, used = longer, used + 1
    left = len(texts) - used
    return f"{line}; and {left} more" if left else line


def verify_job(defects: Sequence[JobDefect]) -> None:
    """Raise :class:`~fairflare.errors.JobError` with everything that was found, and the code of the first defect."""
    if defects:
        raise JobError(
            defects[0].code,
            got=sentence(defects),
            expected="a job as 'fairflare jobs make' writes it",
            next_step="write the job anew from its plan with 'fairflare jobs make', and submit that folder unchanged",
        )


__all__ = ["CODES", "JobDefect", "clipped", "name_of", "place_of", "sentence", "verify_job"]
