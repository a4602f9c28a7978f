# SPDX-License-Identifier: Apache-2.0
"""The executor at each hospital: one :class:`~fairflare.engine.site.Site` kept for the whole job."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace

from fairflare.engine.failures import ERRORS, note_failure
from fairflare.engine.loading import load_apart
from fairflare.engine.roles import site_of
from fairflare.engine.site import Site
from fairflare.flare import wire
from fairflare.flare.identities import site_masks
from fairflare.models.weights import FOLDER as WEIGHTS
from fairflare.plan import read_plan
from fairflare.policy import CATALOG_NAME, POLICY_NAME, read_catalog, read_policy

PLAN = "plan.json"


class FairFlareExecutor(Executor):  # type: ignore[misc]
    """Answers the controller's tasks. What leaves is a sealed release, or a code; texts stay in the site's own file."""

    def __init__(self) -> None:
        super().__init__()
        self._site: Site | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task of the job's plan."""
        try:
            message = wire.decode_message(shareable)
            if message.task != task_name:
                return self._refuse("FF-WIRE-TASK", fl_ctx)
            site = self._site or self._start(fl_ctx)
            site.stop = lambda: bool(abort_signal.triggered)
            return wire.encode_release(site.handle(message), message.session)
        except Exception as problem:  # the text of an unknown error may hold anything: it must not leave
            code = note_failure(_folder(fl_ctx), task_name, problem)
            return self._refuse(code, fl_ctx)

    def _refuse(self, code: str, fl_ctx: FLContext) -> Shareable:
        # The code and nothing else: a stock kit streams FLARE's own log files to the server, and FLARE would also fire
        # an event with this text. The text is in the site's own file.
        self.log_error(fl_ctx, f"{code}: see {ERRORS} in this site's run folder", fire_event=False)
        return wire.error_reply(code)

    def _start(self, fl_ctx: FLContext) -> Site:
        workspace: Workspace = fl_ctx.get_engine().get_workspace()
        job = fl_ctx.get_job_id()
        plan = read_plan(Path(workspace.get_app_config_dir(job)) / PLAN)
        own = Path(workspace.get_site_config_dir())
        policy = read_policy(own / POLICY_NAME)
        policy.verify(plan)
        catalog = read_catalog(own / CATALOG_NAME)
        name = fl_ctx.get_identity_name()
        entry = catalog.entry(name, plan.task.data_set)
        weights = own / WEIGHTS
        root = Path(workspace.get_root_dir())
        masks = site_masks(plan, policy, name, Path(workspace.get_startup_kit_dir()), root)
        self._site = site_of(name, plan, lambda: load_apart(plan, entry, weights), _folder(fl_ctx), weights, masks)
        return self._site


def _folder(fl_ctx: FLContext) -> Path:
    """The site's own folder of this job."""
    workspace: Workspace = fl_ctx.get_engine().get_workspace()
    return Path(workspace.get_run_dir(fl_ctx.get_job_id())) / "fairflare"
