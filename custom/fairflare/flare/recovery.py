# SPDX-License-Identifier: Apache-2.0
"""After the server ended in the middle of a job: the job goes on from its last complete round, as a new job.

FLARE 2.9 cannot: it calls the job running for ever. It could not start the same job again either, since hospitals take
an id once. So a component of the server's parent process hands the same job in again (the same bytes, signed by the
same person) under a new id, and notes which run it goes on with. Hospitals look at it as at any job: approval by the
plan's hash, and their memory. With masks the round that was begun is lost, and its number is never used again; so no
two sums of one round can be asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import RunStatus, new_job_id

from fairflare.flare.continuation import resumable, taken_meta, write_continuation
from fairflare.flare.limits_file import read_limits

#: Seconds for which all hospitals of the run must be there: until then their old processes have ended.
SETTLED: Final = 20.0
#: Seconds after which the job is handed in whoever is there; FLARE then waits for the plan's number of sites.
PATIENCE: Final = 300.0
_LOOK: Final = 1.0
_LOG = logging.getLogger("fairflare.recovery")


@dataclass(frozen=True)
class Interrupted:
    """A job that was running when the server ended: its id, what FLARE's store says of it, and who had joined."""

    job: str
    meta: dict[str, Any]
    sites: frozenset[str]


class ServerRecovery(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``; takes no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Interrupted] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Before FLARE looks for jobs: find those that were running. Once it has started: hand them in again."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            self._found = interrupted(fl_ctx, Path.cwd())
        elif event_type == EventType.SYSTEM_START and self._found:
            engine, kit, found = fl_ctx.get_engine(), Path.cwd(), self._found

            def work() -> None:
                for one in found:
                    wait_for(one.sites, lambda: {site.name for site in engine.get_clients()})
                    with engine.new_context() as context:
                        hand_in_again(one, context, kit)

            threading.Thread(target=work, name="fairflare-recovery", daemon=True).start()


def interrupted(fl_ctx: FLContext, kit: Path) -> list[Interrupted]:
    """Jobs that the store calls running when the server starts; they are called abnormal from now on.

    Returned are those whose run can be gone on with.
    """
    manager = fl_ctx.get_engine().job_def_manager
    most = read_limits(kit / "local").continuations
    found = []
    for job in manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
        manager.set_status(job.job_id, RunStatus.FINISHED_ABNORMAL, fl_ctx)
        record = resumable(kit, job.job_id, most)
        _LOG.warning(
            "FF-SERVER-INTERRUPTED: the server ended while job %s ran; %s", job.job_id,
            "it will be gone on with" if record else "it cannot be gone on with",
        )  # fmt: skip
        if record is not None:
            found.append(Interrupted(job.job_id, dict(job.meta), frozenset(record.sessions[-1].joined)))
    return found


def wait_for(
    sites: Collection[str],
    connected: Callable[[], Collection[str]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until all ``sites`` have been there for some time; ``False`` if patience ended first."""
    began = clock()
    since: float | None = None
    while clock() - began < PATIENCE:
        now = clock()
        since = (now if since is None else since) if set(sites) <= set(connected()) else None
        if since is not None and now - since >= SETTLED:
            return True
        sleep(_LOOK)
    return False


def hand_in_again(one: Interrupted, fl_ctx: FLContext, kit: Path) -> str | None:
    """Hand a job in again, to go on with its run; returns its new id. A failure is logged: the server goes on."""
    manager, new = fl_ctx.get_engine().job_def_manager, str(new_job_id())
    try:
        write_continuation(kit, new, one.job)  # first: the job may begin as soon as it is there
        manager.clone(from_jid=one.job, meta={**taken_meta(one.meta, one.job), "job_id": new}, fl_ctx=fl_ctx)
        manager.update_meta(one.job, {"continued_as": new}, fl_ctx)
    except Exception as problem:
        _LOG.warning("FF-SERVER-CONTINUE: job %s: %s", one.job, type(problem).__name__)
        return None
    _LOG.info("FF-SERVER-CONTINUE: job %s goes on as %s", one.job, new)
    return new
