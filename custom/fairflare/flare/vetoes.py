# SPDX-License-Identifier: Apache-2.0
"""Which sites a job runs without from its start on, told to the job's record.

A site's parent process refuses a job when FLARE hands it out, before anything of the job is built. The job then runs
without that site if enough others are left, and its processes never hear of it: the server's parent alone knows who
was asked. A component there writes it down where the job's controller reads it, as names and codes.
"""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from fairflare import schema
from fairflare.errors import PolicyError
from fairflare.flare.without import FILE_NAME, Without, read_without, without
from fairflare.policy.roster import ROSTER_NAME, Roster

__all__ = ["FILE_NAME", "VetoNotes", "Without", "read_without", "without"]


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


def _project(roster: Path) -> frozenset[str]:
    """Names of the project's sites; none where there is no list of them that can be read."""
    try:
        return frozenset(schema.read(Roster, roster, error=PolicyError, what="roster").sites)
    except PolicyError:
        return frozenset()
