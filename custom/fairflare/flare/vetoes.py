# SPDX-License-Identifier: Apache-2.0
"""Which sites a job runs without from its start on, told to the job's record.

A site's parent process refuses a job when FLARE hands it out, before anything of the job is built. The job then runs
without that site if enough others are left, and its processes never hear of it: the server's parent alone knows who
was asked. A component there writes it down where the job's controller reads it, as names and codes. The text of a
refusal comes from another organisation, so nothing of it but a code of our form goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from fairflare import schema
from fairflare.errors import PolicyError, RunError
from fairflare.policy.roster import ROSTER_NAME, Roster
from fairflare.record import ABSENT, DEPLOY, Refusal
from fairflare.schema import StrictModel

#: In the job's run folder at the server.
FILE_NAME = "fairflare_without.json"
_CODE = re.compile(r"\bFF(-[A-Z]+)+\b")
_LONGEST_CODE = 64
_NO_CODE, _NO_ANSWER = "FF-ROUND-SITE-ERROR", "FF-ROUND-TIMEOUT"
#: FLARE's own words, for a site that took it and for one that said nothing.
_TAKEN, _SILENT = "OK", "no reply (deployment timeout)"


class Without(StrictModel):
    """The note: every site of the project that the job runs without, and why."""

    sites: tuple[Refusal, ...]


class VetoNotes(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``: notes which sites a job runs without; takes no arguments."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write the note once FLARE has handed a job out to all sites that are there; its process starts afterwards."""
        if event_type != EventType.JOB_DEPLOYED:
            return
        workspace: Workspace = fl_ctx.get_engine().get_workspace()
        details = list(map(str, fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL) or ()))
        project = _project(Path(workspace.get_site_config_dir()) / ROSTER_NAME)
        folder = Path(workspace.get_run_dir(fl_ctx.get_prop(FLContextKey.JOB_RUN_NUMBER)))
        (folder / FILE_NAME).write_text(schema.pretty(without(details, project)), encoding="utf-8")


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
    asked.pop(SiteType.SERVER, None)
    codes = dict.fromkeys(set(project) - set(asked), ABSENT)
    codes |= {site: _code(said) for site, said in asked.items() if said != _TAKEN}
    return Without(sites=tuple(Refusal(site=site, task=DEPLOY, code=codes[site]) for site in sorted(codes)))


def read_without(folder: Path) -> tuple[Refusal, ...]:
    """What the server's parent noted for the job in this run folder; raises :class:`RunError` if it cannot be read.

    Nothing where no component noted anything: in the simulator, or at a server whose kit has none.
    """
    file = folder / FILE_NAME
    return schema.read(Without, file, error=RunError, what="note of absent sites").sites if file.exists() else ()


def _code(said: str) -> str:
    found = _CODE.search(said)
    if found is not None and len(found.group()) <= _LONGEST_CODE:
        return found.group()
    return _NO_ANSWER if said == _SILENT else _NO_CODE


def _project(roster: Path) -> frozenset[str]:
    """Names of the project's sites; none where there is no list of them that can be read."""
    try:
        return frozenset(schema.read(Roster, roster, error=PolicyError, what="roster").sites)
    except PolicyError:
        return frozenset()
