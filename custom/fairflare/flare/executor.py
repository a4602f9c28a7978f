# SPDX-License-Identifier: Apache-2.0
"""The executor at each hospital: one :class:`~fairflare.engine.site.Site` kept for the whole job."""

from __future__ import annotations

import os
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
from fairflare.errors import GateError, ShutterError
from fairflare.flare import seal, shutters, wire
from fairflare.flare.identities import is_site_kit, site_account, site_masks
from fairflare.flare.permission import Permission, Places, asked
from fairflare.models.weights import FOLDER as WEIGHTS
from fairflare.plan import Plan, read_plan
from fairflare.policy import CATALOG_NAME, read_catalog

PLAN = "plan.json"


class FairFlareExecutor(Executor):  # type: ignore[misc]
    """Answers the controller's tasks. What leaves is a sealed release, or a code; texts stay in the site's own file."""

    def __init__(self) -> None:
        super().__init__()
        self._site: Site | None = None
        self._permission: Permission | None = None
        self._parent = os.getppid()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task of the job's plan."""
        try:
            message = wire.decode_message(shareable)
            if message.task != task_name:
                return self._refuse("FF-WIRE-TASK", fl_ctx)
            # Before the work, which for masks writes into the site's memory, and after it, which may have taken hours.
            permission = self._permitted(fl_ctx)
            site = self._site or self._start(permission, fl_ctx)
            site.stop = lambda: bool(abort_signal.triggered) or self._is_orphan()
            made = site.handle(message)
            permission.verify()
            self._verify_parent()
            return seal.release(made, message, fl_ctx)
        except Exception as problem:  # the text of an unknown error may hold anything: it must not leave
            code = note_failure(_folder(fl_ctx), task_name, problem)
            return self._refuse(code, fl_ctx)

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent

    def _verify_parent(self) -> None:
        """Raise :class:`GateError` once the site's parent process has ended: whoever stops a site stops its jobs.

        FLARE 2.9 looks for the parent from time to time, and lets a job go on for seconds, or for ever where nobody
        collects the dead parent.
        """
        if self._is_orphan():
            raise GateError(
                "FF-GATE-PARENT",
                got="a job whose site was stopped",
                expected="a site's parent process that runs",
                next_step="nothing more leaves; start the site again, and hand the job in again or resume it",
            )

    def _refuse(self, code: str, fl_ctx: FLContext) -> Shareable:
        # The code and nothing else: a stock kit streams FLARE's own log files to the server, and FLARE would also fire
        # an event with this text. The text is in the site's own file.
        self.log_error(fl_ctx, f"{code}: see {ERRORS} in this site's run folder", fire_event=False)
        return seal.refusal(code, fl_ctx)

    def _permitted(self, fl_ctx: FLContext) -> Permission:
        _verify_shut(_places(fl_ctx).startup)
        if self._permission is None:
            self._permission = Permission(_plan(fl_ctx), asked(fl_ctx), _places(fl_ctx))
        self._verify_parent()
        self._permission.verify()
        return self._permission

    def _start(self, permission: Permission, fl_ctx: FLContext) -> Site:
        plan, own, places = permission.plan, permission.places.local, permission.places
        catalog = read_catalog(own / CATALOG_NAME)
        name = fl_ctx.get_identity_name()
        entry = catalog.entry(name, plan.task.data_set)
        weights = own / WEIGHTS
        masks = site_masks(plan, permission.policy, name, places.startup, own, places.workspace)
        account = site_account(
            plan, permission.policy, name, places.startup, places.workspace, str(fl_ctx.get_job_id())
        )
        self._site = site_of(
            name, plan, lambda: load_apart(plan, entry, weights), _folder(fl_ctx), weights, masks, account
        )
        return self._site


def _verify_shut(startup: Path) -> None:
    """Raise :class:`ShutterError` in a hospital's process with open shutters; a simulator has none.

    The validator looked at the parent process only. This one has read ``local/resources.json`` again, which may have
    been replaced since the parent started.
    """
    if is_site_kit(startup) and not shutters.is_shut():
        raise ShutterError(
            "FF-SHUTTER-OPEN",
            got="a job's process with open shutters",
            expected="closed ones, as in the parent process",
            next_step="name Shutters first among the components of local/resources.json, and start this site again",
        )


def _plan(fl_ctx: FLContext) -> Plan:
    workspace: Workspace = fl_ctx.get_engine().get_workspace()
    return read_plan(Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / PLAN)


def _places(fl_ctx: FLContext) -> Places:
    workspace: Workspace = fl_ctx.get_engine().get_workspace()
    return Places(
        local=Path(workspace.get_site_config_dir()),
        startup=Path(workspace.get_startup_kit_dir()),
        workspace=Path(workspace.get_root_dir()),
    )


def _folder(fl_ctx: FLContext) -> Path:
    """The site's own folder of this job."""
    workspace: Workspace = fl_ctx.get_engine().get_workspace()
    return Path(workspace.get_run_dir(fl_ctx.get_job_id())) / "fairflare"
