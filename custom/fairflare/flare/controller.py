# SPDX-License-Identifier: Apache-2.0
"""The controller: sends each phase of the coordinator as one FLARE task, with a deadline."""

from __future__ import annotations

import json
import math
import secrets
import threading
from functools import partial
from pathlib import Path

import nvflare
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.apis.workspace import Workspace

from fairflare.engine import local
from fairflare.engine.describe import record_sha256
from fairflare.engine.job_traffic import largest_answers
from fairflare.engine.messages import JOIN, Message
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Coordinator, Phase, Start
from fairflare.engine.store import read_best, read_checkpoint
from fairflare.errors import FairFlareError
from fairflare.flare import limits, wire
from fairflare.flare.aggregator import SITE, FlexFairAggregator
from fairflare.flare.continuation import run_to_go_on_with
from fairflare.flare.executor import PLAN
from fairflare.flare.identities import server_cipher, server_trust
from fairflare.flare.names import RESUME
from fairflare.flare.vetoes import read_without
from fairflare.models.vector import Vector
from fairflare.models.weights import FOLDER as WEIGHTS
from fairflare.plan import read_plan
from fairflare.record import Reason, Refusal, RunRecord

_CHECK_PERIOD = 0.05
_HOLD = 2.0
#: Seconds that sites get on top of the plan's deadline to start their processes, before their first task.
_STARTING = 60.0


class FairFlareController(Controller):  # type: ignore[misc]
    """Runs a plan over FLARE. Success is what ``record.json`` says, never FLARE's exit code."""

    def __init__(self, aggregator_id: str) -> None:
        super().__init__(task_check_period=_CHECK_PERIOD)
        self._aggregator_id = aggregator_id
        self._aggregator: FlexFairAggregator | None = None
        self._coordinator: Coordinator | None = None
        self._task: Task | None = None
        self._without: tuple[Refusal, ...] = ()
        self._largest: dict[str, int] = {}
        self._lock = threading.Lock()

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Let FLARE look for finished tasks every 0.05 s.

        FLARE 2.9.0 hands the period of ``Controller`` over under a name that its communicator does not read, so every
        phase would wait twice for 0.2 s.
        """
        super().set_communicator(communicator)
        if hasattr(communicator, "_task_check_period"):
            communicator._task_check_period = _CHECK_PERIOD

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Read the plan and, if the server's operator asked for it, the run to go on from."""
        _let_no_site_end_the_job(fl_ctx)
        _hold_requests_until_there_is_a_task(fl_ctx)
        workspace: Workspace = fl_ctx.get_engine().get_workspace()
        job = fl_ctx.get_job_id()
        aggregator = fl_ctx.get_engine().get_component(self._aggregator_id)
        if not isinstance(aggregator, FlexFairAggregator):
            self.system_panic("FF-RUN-CONFIG: the server's configuration names no FlexFairAggregator", fl_ctx)
            return
        self._aggregator = aggregator
        try:
            plan = read_plan(Path(workspace.get_app_config_dir(job)) / PLAN)
            run = Path(workspace.get_run_dir(job))
            self._without = read_without(run)
            own = Path(workspace.get_site_config_dir())
            earlier, best = _earlier(run_to_go_on_with(run.parent, job, _asked(own / RESUME)))
            software = {**local.software(), "nvflare": nvflare.__version__}
            startup = Path(workspace.get_startup_kit_dir())
            trust, cipher = server_trust(startup), server_cipher(plan, startup, own)
            start = Start(secrets.token_hex(16), "flare", software, earlier, best, own / WEIGHTS, trust, cipher)
            self._coordinator = coordinator_of(plan, run / "fairflare", start)
        except FairFlareError as problem:
            self.system_panic(str(problem), fl_ctx)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Drive the coordinator's phases until the run is complete or stopped."""
        coordinator = self._coordinator
        if coordinator is None:
            return
        roster = [client.name for client in fl_ctx.get_engine().get_clients()]
        try:
            self._largest = largest_answers(coordinator.layout, len(roster))
            for phase in coordinator.phases(roster, self._without):
                self._send(phase, abort_signal, fl_ctx)
                if abort_signal.triggered:
                    coordinator.stop("FF-RUN-ABORTED", _aborted(phase))
                    return
        except Exception as problem:
            coordinator.stop("FF-RUN-INTERNAL", f"{type(problem).__name__} at the server; its log has the trace")
            raise
        reason = coordinator.record.reason
        if coordinator.record.status != "complete":
            self.system_panic(_words(reason), fl_ctx)

    def _send(self, phase: Phase, abort_signal: Signal, fl_ctx: FLContext) -> None:
        if self._aggregator is None:
            raise RuntimeError("control_flow ran without start_controller")
        message = phase.message
        self.log_info(fl_ctx, f"round {message.round} {message.task}: waiting for {', '.join(phase.targets)}")
        task = Task(
            name=message.task,
            data=wire.encode_message(message),
            timeout=math.ceil(phase.timeout + (_STARTING if message.task == JOIN else 0.0)),
            result_received_cb=self._received,
        )
        with self._lock:
            self._task = task
            self._aggregator.begin(phase)
        most, down = self._largest.get(message.task, self._largest[""]), _bytes_of(message)
        limits.begin_phase(most, down, partial(self._limited, phase, task))
        if phase.targets:
            self.broadcast_and_wait(
                task, fl_ctx, targets=list(phase.targets), min_responses=0, abort_signal=abort_signal
            )
        with self._lock:
            self._task = None
            self._aggregator.aggregate(fl_ctx)

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        site, result = client_task.client.name, client_task.result
        client_task.result = None  # otherwise FLARE keeps every site's vectors until the task ends
        with self._lock:  # FLARE may hand over a result while the phase that asked for it is being closed
            if self._aggregator is None or client_task.task is not self._task:
                self._late(site, client_task.task.name, fl_ctx)
            elif result is not None:
                fl_ctx.set_prop(SITE, site, private=True, sticky=False)
                self._aggregator.accept(result, fl_ctx)

    def _limited(self, phase: Phase, task: Task, site: str, code: str) -> None:
        """A site sends what no answer of the plan's has: its answer to this phase is not waited for any more."""
        with self._lock:
            now = self._task
            if self._coordinator is None or now is None or now is not task or site not in phase.targets:
                return
            if site in phase.collector.accepted:  # its answer counts; that it goes on sending is noted
                self._coordinator.store.progress("refused", site=site, task=now.name, code=code)
                return
            phase.collector.refuse(site, code)
            # FLARE ends a task when as many have answered as there are targets, and sends it to targets only.
            now.targets = [target for target in now.targets or () if _name(target) != site]

    def _late(self, site: str, task: str, fl_ctx: FLContext) -> None:
        self.log_warning(fl_ctx, f"FF-ROUND-LATE: a result of {site} for {task} came after the deadline")

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """A result that came after its deadline is not used."""
        self._late(client.name, task_name, fl_ctx)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Write the record of a run that FLARE ends early."""
        if self._coordinator is not None:
            self._coordinator.stop("FF-RUN-ABORTED", "FLARE ended the job before the last round")


def _bytes_of(message: Message) -> int:
    return len(message.protocol) + sum(int(vector.nbytes) for vector in message.vectors.values())


def _name(target: Client | str) -> str:
    return str(target.name if isinstance(target, Client) else target)


def _aborted(phase: Phase) -> str:
    # FLARE does not say why it aborts a job. If it is a site whose process died, it is among those waited for.
    waiting = sorted(set(phase.targets) - set(phase.collector.accepted))
    where = f"the job was aborted in {phase.message.task} of round {phase.message.round}"
    return f"{where}, while it waited for {', '.join(waiting)}" if waiting else where


def _let_no_site_end_the_job(fl_ctx: FLContext) -> None:
    # FLARE 2.9.0 ends the whole job when one site answers RUN_MISMATCH, TASK_UNKNOWN or UNSAFE_JOB. Here a site that
    # refuses the job is a site less, and min_sites decides.
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if hasattr(runner, "ABORT_RETURN_CODES"):
        runner.ABORT_RETURN_CODES = []


def _hold_requests_until_there_is_a_task(fl_ctx: FLContext) -> None:
    # FLARE's clients ask for tasks and sleep after a "no" (0.5 s in the simulator, despite task_request_interval).
    # Its server can wait with its answer, but 2.9.0 never makes use of it. Stay below the 5 s that a client waits.
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if hasattr(runner, "_try_to_get_task"):
        runner._try_to_get_task = partial(runner._try_to_get_task, timeout=_HOLD, retry_interval=_HOLD / 100)


def _asked(file: Path) -> Path | None:
    """The run that the server's operator asks to go on from."""
    return Path(json.loads(file.read_text(encoding="utf-8"))["folder"]) if file.exists() else None


def _earlier(folder: Path | None) -> tuple[tuple[RunRecord, Vector | None, str] | None, Vector | None]:
    """The run to go on from, and its best model so far."""
    if folder is None:
        return None, None
    record, model = read_checkpoint(folder)
    return (record, model, record_sha256(record)), read_best(folder, record)


def _words(reason: Reason | None) -> str:
    return f"{reason.code}: {reason.text}" if reason else "FF-RUN-INCOMPLETE: the run ended without a reason"
