# SPDX-License-Identifier: Apache-2.0
"""No job comes in, and none begins, for which the server has no room: its disk must not fill up half-way."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fairflare.errors import FairFlareError, ServerError
from fairflare.evaluation.units import size
from fairflare.flare.health import kit_size
from fairflare.flare.limits_file import Limits, read_limits
from fairflare.flare.presence import REFUSALS

#: A job is handed in; a job is about to begin.
_ASKS: Final = (EventType.SUBMIT_JOB, EventType.BEFORE_CHECK_CLIENT_RESOURCES)
_LOG = logging.getLogger("fairflare.quota")


class ServerQuota(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``; takes no arguments. Limits are read anew for each job."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Refuse a job that is handed in, or that is about to begin, by FLARE's own way to do so; never raises."""
        if event_type not in _ASKS:
            return
        earlier = fl_ctx.get_prop(FLContextKey.JOB_BLOCK_REASON)
        if earlier and not str(earlier).startswith(ServerError.prefix):
            return
        # FLARE's scheduler keeps one context for ever: a reason that is not taken back would hold for every later job.
        fl_ctx.remove_prop(FLContextKey.JOB_BLOCK_REASON, force_removal=True)
        kit = Path.cwd()
        try:
            verify_room(kit, read_limits(kit / "local"))
            return
        except FairFlareError as problem:
            code, reason = problem.code, str(problem)
        except Exception as problem:
            _LOG.warning("FF-SERVER-QUOTA: %s", type(problem).__name__)
            code, reason = "FF-SERVER-QUOTA", "FF-SERVER-QUOTA: the server could not find out whether it has room"
        if event_type == EventType.SUBMIT_JOB:  # of one that waits, FLARE's own history tells it
            REFUSALS.note("", "submit", code)
        fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, reason, private=True, sticky=False)


def verify_room(kit: Path, limits: Limits) -> None:
    """Raise ``FF-SERVER-QUOTA`` unless the quota, and the disk, have the reserve left for one more job."""
    left, free = limits.quota_bytes - kit_size(kit), shutil.disk_usage(kit).free
    if min(left, free) < limits.reserve_bytes:
        where = "of the server's quota" if left <= free else "on the server's disk"
        raise ServerError(
            "FF-SERVER-QUOTA",
            got=f"{size(max(min(left, free), 0))} left {where}",
            expected=f"{size(limits.reserve_bytes)} for a job",
            next_step="ask the server's operator to delete jobs that nobody needs any more, or to raise the quota",
        )
