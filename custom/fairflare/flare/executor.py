# SPDX-License-Identifier: Apache-2.0
"""The executor at each hospital: one :class:`~fairflare.engine.site.Site` kept for the whole job."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace

from fairflare.data.manifest import load
from fairflare.engine.site import Site
from fairflare.errors import FairFlareError
from fairflare.flare import wire
from fairflare.plan import read_plan
from fairflare.policy import read_catalog

CATALOG = "data_catalog.json"
PLAN = "plan.json"


class FairFlareExecutor(Executor):  # type: ignore[misc]
    """Answers the controller's tasks. What leaves is a sealed release, or a code; texts stay in the site's log."""

    def __init__(self) -> None:
        super().__init__()
        self._site: Site | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task of the job's plan."""
        try:
            message = wire.decode_message(shareable)
            if message.task != task_name:
                return self._refuse("FF-WIRE-TASK", f"task {task_name} with the message of another task", fl_ctx)
            site = self._site or self._start(fl_ctx)
            site.stop = lambda: bool(abort_signal.triggered)
            return wire.encode_release(site.handle(message), message.session)
        except FairFlareError as problem:
            return self._refuse(problem.code, str(problem), fl_ctx)
        except Exception as problem:  # the text of an unknown error may hold anything: it must not leave
            self.log_exception(fl_ctx, f"task {task_name} failed: {type(problem).__name__}")
            return self._refuse("FF-SITE-INTERNAL", "see the trace above in this site's own log", fl_ctx)

    def _refuse(self, code: str, text: str, fl_ctx: FLContext) -> Shareable:
        # FLARE would also fire an event with this text, which a widget of the job can send to the server.
        self.log_error(fl_ctx, f"{code}: {text}", fire_event=False)
        return wire.error_reply(code)

    def _start(self, fl_ctx: FLContext) -> Site:
        workspace: Workspace = fl_ctx.get_engine().get_workspace()
        job = fl_ctx.get_job_id()
        plan = read_plan(Path(workspace.get_app_config_dir(job)) / PLAN)
        catalog = read_catalog(Path(workspace.get_site_config_dir()) / CATALOG)
        name = fl_ctx.get_identity_name()
        entry = catalog.entry(name, plan.task.data_set)
        folder = Path(workspace.get_run_dir(job)) / "fairflare"
        self._site = Site(name, plan, lambda: load(plan, entry), folder)
        return self._site
