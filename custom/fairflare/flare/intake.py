# SPDX-License-Identifier: Apache-2.0
"""What the server takes from a researcher: a job's meta data are looked at when it is handed in, not when it runs.

FLARE's scheduler trusts a job's meta data. A number of sites written as a text, and no job of anybody is scheduled any
more, also after a restart: comparing it raises, each time. So the server refuses at once whatever no job of ours has;
the researcher reads why as the answer to ``nvflare job submit``. The plan is not known yet: the sites' doors compare.
"""

from __future__ import annotations

import logging

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fairflare.flare.presence import REFUSALS
from fairflare.flare.without import code_in
from fairflare.jobs.defects import sentence
from fairflare.jobs.meta import check_submitted_meta

INTERNAL = "FF-JOB-INTERNAL meta.json: got meta data that could not be checked, expected some that can be"
_LOG = logging.getLogger("fairflare.intake")


class Intake(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``; takes no arguments."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Refuse a job that is being handed in, by FLARE's own way to do so; never raises: FLARE would take the job."""
        if event_type != EventType.SUBMIT_JOB:
            return
        try:
            reason = sentence(check_submitted_meta(fl_ctx.get_prop(FLContextKey.JOB_META)))
        except Exception as problem:
            _LOG.warning("FF-JOB-INTERNAL: %s", type(problem).__name__)
            reason = INTERNAL
        if reason:
            REFUSALS.note("", "submit", code_in(reason) or "FF-JOB-INTERNAL")
            fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, reason, private=True, sticky=False)
