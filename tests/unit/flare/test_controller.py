# SPDX-License-Identifier: Apache-2.0
"""The controller: phases as tasks, results of whom FLARE authenticated, a true record however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fairflare.engine.local import run_local
from fairflare.engine.site import Site
from fairflare.errors import FairFlareError
from fairflare.flare import limits, wire
from fairflare.flare.aggregator import FlexFairAggregator
from fairflare.flare.controller import FairFlareController
from fairflare.flare.executor import PLAN
from fairflare.flare.names import RESUME
from fairflare.flare.vetoes import FILE_NAME
from fairflare.jobs import write_job
from fairflare.presets import flexfair, penalty
from fairflare.record import RunRecord, read_record
from tests.unit.engine.hospitals import four, plan

THE_PLAN = plan(
    flexfair(penalty("sex", "equal_opportunity", 1.0)), rounds=3, min_sites=3, task_timeout_seconds=12.5, max_missed=1
)
NAMES = ("amber", "beryl", "coral", "dune")


class Engine:
    """FLARE's engine as far as a controller needs it."""

    def __init__(self, base: Path, aggregator: object) -> None:
        self.base = base
        self.aggregator = aggregator
        self.panics: list[str] = []

    def get_workspace(self) -> Any:
        return SimpleNamespace(
            get_app_config_dir=lambda _: str(self.base / "config"),
            get_site_config_dir=lambda: str(self.base / "local"),
            get_run_dir=lambda _: str(self.base / "run"),
            get_startup_kit_dir=lambda: str(self.base / "startup"),
        )

    def get_component(self, _: str) -> object:
        return self.aggregator

    def get_clients(self) -> list[Client]:
        return [Client(name, "") for name in reversed(NAMES)]

    def fire_event(self, event: str, ctx: FLContext) -> None:
        if event == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(ctx.get_prop(FLContextKey.EVENT_DATA))


class Flare(FairFlareController):
    """The controller with sites in this process instead of FLARE's communicator."""

    def __init__(self, base: Path) -> None:
        super().__init__("aggregator")
        self.sites = {name: Site(name, THE_PLAN, load, base / "sites" / name) for name, load in four().items()}
        self.tasks: list[Task] = []
        self.disturb: Callable[[Task, str], Shareable | None] = self.honest

    def honest(self, task: Task, name: str) -> Shareable | None:
        message = wire.decode_message(task.data)
        try:
            return wire.encode_release(self.sites[name].handle(message), message.session)
        except FairFlareError as problem:
            return wire.error_reply(problem.code)

    def broadcast_and_wait(
        self, task: Task, fl_ctx: FLContext, targets: Sequence[str], min_responses: int, abort_signal: Signal
    ) -> None:
        assert min_responses == 0
        self.tasks.append(task)
        for name in targets:
            found = ClientTask(Client(name, ""), task)
            found.result = self.disturb(task, name)
            task.result_received_cb(found, context(fl_ctx.get_engine(), says="somebody else"))
            assert found.result is None


def context(engine: Engine, says: str | None = None) -> FLContext:
    ctx = FLContext()
    ctx.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    ctx.set_prop(ReservedKey.RUN_NUM, "job", private=False, sticky=False)
    ctx.set_prop(FLContextKey.RUNNER, RUNNER, private=True, sticky=False)
    if says is not None:
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, says, private=False, sticky=False)
        ctx.set_peer_context(peer)
    return ctx


RUNNER = SimpleNamespace(ABORT_RETURN_CODES=["UNSAFE_JOB"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (write_job(THE_PLAN, tmp_path / "job") / "app" / "config").rename(tmp_path / "config")
    (tmp_path / "local").mkdir()
    return tmp_path


@pytest.fixture
def engine(base: Path) -> Engine:
    return Engine(base, FlexFairAggregator())


@pytest.fixture
def flare(base: Path) -> Flare:
    return Flare(base)


def run(flare: Flare, engine: Engine, abort: Signal | None = None) -> RunRecord:
    ctx = context(engine)
    flare.start_controller(ctx)
    flare.control_flow(abort or Signal(), ctx)
    flare.stop_controller(ctx)
    return read_record(engine.base / "run" / "fairflare")


def test_a_run_ends_complete_and_as_the_local_engines(flare: Flare, engine: Engine, tmp_path: Path) -> None:
    record = run(flare, engine)
    assert record.status == "complete"
    assert engine.panics == []
    local = run_local(THE_PLAN, four(), tmp_path / "local-run")
    assert [line.model_sha256 for line in record.rounds] == [line.model_sha256 for line in local.rounds]
    assert record.roster == NAMES


def test_every_task_has_the_plans_deadline_and_the_first_time_to_start(flare: Flare, engine: Engine) -> None:
    run(flare, engine)
    assert [task.timeout for task in flare.tasks] == [73, *[13] * (len(flare.tasks) - 1)]


def test_results_count_for_the_site_that_flare_authenticated(flare: Flare, engine: Engine) -> None:
    # Every result above comes with a context that says "somebody else".
    assert run(flare, engine).rounds[0].participants["train"] == NAMES


def test_no_return_code_of_a_site_ends_the_job(flare: Flare, engine: Engine) -> None:
    run(flare, engine)
    assert RUNNER.ABORT_RETURN_CODES == []


def test_a_result_of_an_earlier_task_is_not_taken_for_the_present_one(
    flare: Flare, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def disturb(task: Task, name: str) -> Shareable | None:
        if name == "dune" and len(flare.tasks) > 1:
            old = ClientTask(Client("amber", ""), flare.tasks[-2])
            old.result = wire.error_reply("FF-DATA-FEW")
            flare._received(old, context(engine))
        return flare.honest(task, name)

    flare.disturb = disturb
    record = run(flare, engine)
    assert record.status == "complete"
    assert all(line.refusals == () for line in record.rounds)
    assert "FF-ROUND-LATE" in caplog.text


def test_a_result_of_a_task_that_is_over_is_only_noted(
    flare: Flare, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    flare.process_result_of_unknown_task(Client("dune", ""), "train", "id", Shareable(), context(engine))
    assert "FF-ROUND-LATE: a result of dune for train" in caplog.text


def test_a_site_without_a_result_is_named(flare: Flare, engine: Engine) -> None:
    flare.disturb = lambda task, name: None if name == "dune" and len(flare.tasks) > 1 else flare.honest(task, name)
    record = run(flare, engine)
    assert record.status == "complete"
    assert [(one.site, one.code) for one in record.rounds[0].refusals] == [("dune", "FF-ROUND-TIMEOUT")]


class Gate:
    """What a phase's gate would call for a site that passes a bound."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most: list[int] = []
        self.down: list[int] = []
        self.noted: Callable[[str, str], None] = lambda site, code: None
        monkeypatch.setattr(limits, "begin_phase", self.begin)

    def begin(self, most: int, down: int, noted: Callable[[str, str], None]) -> None:
        self.most.append(most)
        self.down.append(down)
        self.noted = noted


def test_a_site_that_passes_a_bound_is_refused_by_its_code_and_not_waited_for(
    flare: Flare, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, waiting = Gate(monkeypatch), []

    def disturb(task: Task, name: str) -> Shareable | None:
        if name != "dune" or len(flare.tasks) == 1:
            return flare.honest(task, name)
        task.targets = [Client("amber", ""), "beryl", "coral", "dune"]
        gate.noted("dune", "FF-LIMIT-SIZE")
        waiting.append([one if isinstance(one, str) else one.name for one in task.targets])
        return None

    flare.disturb = disturb
    record = run(flare, engine)
    assert record.status == "complete"
    assert [(one.site, one.code) for one in record.rounds[0].refusals] == [("dune", "FF-LIMIT-SIZE")]
    assert {tuple(one) for one in waiting} == {NAMES[:3]}


def test_who_passes_a_bound_after_the_answer_is_noted_and_counted(
    flare: Flare, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, stale = Gate(monkeypatch), []

    def disturb(task: Task, name: str) -> Shareable | None:
        if task.name == "train" and name == "dune":
            gate.noted("amber", "FF-LIMIT-MESSAGES")
            stale.append(gate.noted)
        if task.name == "evaluate":
            stale[0]("amber", "FF-LIMIT-STALE")
            gate.noted("nobody", "FF-LIMIT-STALE")
        return flare.honest(task, name)

    flare.disturb = disturb
    record = run(flare, engine)
    assert record.status == "complete"
    assert all(line.refusals == () for line in record.rounds)
    events = (engine.base / "run" / "fairflare" / "progress.jsonl").read_text(encoding="utf-8")
    assert events.count("FF-LIMIT-MESSAGES") == 3
    assert "FF-LIMIT-STALE" not in events


def test_each_phase_has_the_bound_of_its_own_answers(
    flare: Flare, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    run(flare, engine)
    by_task = dict(zip([task.name for task in flare.tasks], gate.most, strict=True))
    assert by_task["train"] > by_task["join"] > 0
    sent = dict(zip([task.name for task in flare.tasks], gate.down, strict=True))
    assert sent["measure"] > 1000
    assert sent["join"] == 0


def test_too_few_sites_stop_the_run_with_a_reason(flare: Flare, engine: Engine) -> None:
    flare.disturb = lambda task, name: (
        wire.error_reply("FF-GATE-NAN") if name in NAMES[:2] and task.name == "train" else flare.honest(task, name)
    )
    record = run(flare, engine)
    assert record.status == "stopped"
    assert record.reason is not None
    assert record.reason.code == "FF-ROUND-QUORUM"
    assert "amber: FF-GATE-NAN, beryl: FF-GATE-NAN" in record.reason.text
    assert record.reason.text.count("FF-ROUND-QUORUM") == 0
    assert engine.panics[0].startswith("FF-ROUND-QUORUM: got 2 usable answers")


def test_an_aborted_job_is_a_stopped_run(flare: Flare, engine: Engine) -> None:
    abort = Signal()

    def disturb(task: Task, name: str) -> Shareable | None:
        if task.name == "train":
            abort.trigger(True)
        return flare.honest(task, name)

    flare.disturb = disturb
    record = run(flare, engine, abort)
    assert (record.status, len(record.rounds)) == ("stopped", 0)
    assert record.reason is not None
    assert record.reason.code == "FF-RUN-ABORTED"


def test_an_error_of_our_own_is_a_stopped_run_without_its_text(flare: Flare, engine: Engine) -> None:
    def fail(task: Task, name: str) -> Shareable | None:
        if task.name == "train":
            raise ValueError("SECRET")
        return flare.honest(task, name)

    flare.disturb = fail
    with pytest.raises(ValueError, match="SECRET"):
        run(flare, engine)
    record = read_record(engine.base / "run" / "fairflare")
    assert record.status == "stopped"
    assert record.reason is not None
    assert (record.reason.code, "SECRET" in record.reason.text) == ("FF-RUN-INTERNAL", False)


def test_a_job_that_flare_ends_is_a_stopped_run(flare: Flare, engine: Engine) -> None:
    ctx = context(engine)
    flare.start_controller(ctx)
    assert flare._coordinator is not None
    next(flare._coordinator.phases(NAMES))
    flare.stop_controller(ctx)
    assert flare._coordinator.record.status == "stopped"


def test_sites_that_the_job_runs_without_are_in_the_record(flare: Flare, engine: Engine) -> None:
    (engine.base / "run").mkdir()
    noted = {"sites": [{"site": "elm", "task": "deploy", "code": "FF-POLICY-REFUSED"}]}
    (engine.base / "run" / FILE_NAME).write_text(json.dumps(noted), encoding="utf-8")
    record = run(flare, engine)
    assert record.status == "complete"
    assert [(one.site, one.task, one.code) for one in record.without] == [("elm", "deploy", "FF-POLICY-REFUSED")]
    assert record.roster == NAMES


def test_where_nobody_noted_sites_the_record_names_none(flare: Flare, engine: Engine) -> None:
    assert run(flare, engine).without == ()


def test_a_note_of_sites_that_cannot_be_read_ends_the_job(flare: Flare, engine: Engine) -> None:
    (engine.base / "run").mkdir()
    (engine.base / "run" / FILE_NAME).write_text("{", encoding="utf-8")
    flare.start_controller(context(engine))
    assert "FF-RUN-JSON" in engine.panics[0]


def test_a_plan_that_cannot_be_read_ends_the_job_before_the_first_task(flare: Flare, engine: Engine) -> None:
    (engine.base / "config" / PLAN).write_text("{", encoding="utf-8")
    ctx = context(engine)
    flare.start_controller(ctx)
    flare.control_flow(Signal(), ctx)
    flare.stop_controller(ctx)
    assert "FF-PLAN-JSON" in engine.panics[0]
    assert flare.tasks == []


def test_a_job_without_our_aggregator_ends_before_the_first_task(flare: Flare, base: Path) -> None:
    engine = Engine(base, None)
    ctx = context(engine)
    flare.start_controller(ctx)
    flare.control_flow(Signal(), ctx)
    assert "FF-RUN-CONFIG" in engine.panics[0]
    assert flare.tasks == []


def stopped_run(base: Path) -> Path:
    """An unfinished run of the plan, after its first round."""
    earlier = Flare(base / "earlier")
    engine = Engine(base, FlexFairAggregator())
    earlier.disturb = lambda task, name: None if task.name == "evaluate" else earlier.honest(task, name)
    run(earlier, engine)
    (base / "run").rename(base / "run-1")
    return base / "run-1" / "fairflare"


def test_a_run_is_gone_on_with_where_it_stopped(flare: Flare, engine: Engine) -> None:
    earlier = stopped_run(engine.base)
    (engine.base / "local" / RESUME).write_text(json.dumps({"folder": str(earlier)}), encoding="utf-8")
    record = run(flare, engine)
    assert (record.status, len(record.sessions), len(record.rounds)) == ("complete", 2, 3)
    assert [task.name for task in flare.tasks] == ["join", "evaluate", "finish"]


def test_a_run_of_another_plan_is_not_gone_on_with(flare: Flare, engine: Engine) -> None:
    earlier = stopped_run(engine.base)
    text = (engine.base / "config" / PLAN).read_text(encoding="utf-8").replace('"rounds": 3', '"rounds": 4')
    (engine.base / "config" / PLAN).write_text(text, encoding="utf-8")
    (engine.base / "local" / RESUME).write_text(json.dumps({"folder": str(earlier)}), encoding="utf-8")
    ctx = context(engine)
    flare.start_controller(ctx)
    assert "FF-RUN-OTHER-PLAN" in engine.panics[0]


def test_without_any_site_nothing_is_sent(flare: Flare, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "get_clients", list)
    record = run(flare, engine)
    assert record.status == "stopped"
    assert record.reason is not None
    assert "nobody was asked" in record.reason.text
    assert flare.tasks == []


def test_a_phase_needs_a_controller_that_has_started(flare: Flare, engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="start_controller"):
        flare._send(None, Signal(), context(engine))  # type: ignore[arg-type]


def test_flare_looks_for_finished_tasks_as_often_as_we_say(flare: Flare) -> None:
    communicator = WFCommServer()
    flare.set_communicator(communicator)
    assert communicator._task_check_period == 0.05
