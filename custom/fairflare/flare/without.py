# SPDX-License-Identifier: Apache-2.0
"""The note of the sites that a job runs without, in the job's run folder at the server; imports nothing of FLARE.

The text of a refusal comes from another organisation, so nothing of it but a code of our form goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from fairflare import schema
from fairflare.errors import RunError
from fairflare.record import ABSENT, DEPLOY, Refusal
from fairflare.schema import StrictModel

#: In the job's run folder at the server.
FILE_NAME = "fairflare_without.json"
_CODE = re.compile(r"\bFF(-[A-Z]+)+\b")
_LONGEST_CODE = 64
_NO_CODE, _NO_ANSWER = "FF-ROUND-SITE-ERROR", "FF-ROUND-TIMEOUT"
#: FLARE's own words, for a site that took it and for one that said nothing.
_TAKEN, _SILENT = "OK", "no reply (deployment timeout)"
#: FLARE's name of the server among the parties.
_SERVER: Final = "server"


class Without(StrictModel):
    """The note: every site of the project that the job runs without, and why."""

    sites: tuple[Refusal, ...]


def without(details: Iterable[str], project: Collection[str]) -> Without:
    """Who did not take a job, and why.

    Parameters
    ----------
    details
        FLARE's ``job_deploy_detail``: "name: what it said" of each party that was asked.
    project
        Names of all sites of the project, as far as the server knows them.
    """
    asked = dict(detail.split(": ", 1) for detail in details if ": " in detail)
    asked.pop(_SERVER, None)
    codes = dict.fromkeys(set(project) - set(asked), ABSENT)
    codes |= {site: _code(said) for site, said in asked.items() if said != _TAKEN}
    return Without(sites=tuple(Refusal(site=site, task=DEPLOY, code=codes[site]) for site in sorted(codes)))


def read_without(folder: Path) -> tuple[Refusal, ...]:
    """What the server's parent noted for the job in this run folder; raises :class:`RunError` if it cannot be read.

    Nothing where no component noted anything: in the simulator, or at a server whose kit has none.
    """
    file = folder / FILE_NAME
    return schema.read(Without, file, error=RunError, what="note of absent sites").sites if file.exists() else ()


def code_in(text: str) -> str | None:
    """The first code of our form in a text of somebody's, or ``None``."""
    found = _CODE.search(text)
    return found.group() if found is not None and len(found.group()) <= _LONGEST_CODE else None


def _code(said: str) -> str:
    code = code_in(said)
    if code is not None:
        return code
    return _NO_ANSWER if said == _SILENT else _NO_CODE
