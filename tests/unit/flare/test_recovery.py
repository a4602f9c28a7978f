# SPDX-License-Identifier: Apache-2.0
"""A job whose server ended goes on as a new job: the same bytes of the same person, from the last complete round."""

from __future__ import annotations

import json
import shutil
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.job_def import RunStatus
from typer.testing import CliRunner

from fairflare.cli import app
from fairflare.engine.store import read_checkpoint
from fairflare.errors import RunError, ServerError
from fairflare.flare import recovery
from fairflare.flare.continuation import (
    FOLDER,
    kept_run,
    read_continuation,
    resumable,
    run_to_go_on_with,
    taken_meta,
    write_continuation,
)
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD
from fairflare.flare.names import RESUME
from fairflare.flare.recovery import PATIENCE, SETTLED, Interrupted, ServerRecovery, hand_in_again, wait_for
from fairflare.jobs.meta import check_meta
from fairflare.plan import Plan, parse_plan
from fairflare.presets import MASKED
from fairflare.record import RunRecord, changed, write_record
from fairflare.schema import pretty
from tests.unit.engine.test_store import PLAN, begin, drive

OLD, NEW = (f"{number:08d}-0000-4000-8000-000000000000" for number in (1, 2))
META: dict[str, Any] = {
    "name": PLAN.name, "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}, "min_clients": PLAN.federation.min_sites,
    "job_id": OLD, "study": "default", "submitter_name": "r@u.org", "submitter_org": "u", "submitter_role": "lead",
    "job_folder_name": PLAN.name, "submit_time": 5.0, "submit_time_iso": "x", "start_time": "x", "duration": "N/A",
    "data_storage_format": 2, "status": "RUNNING", "schedule_count": 3, "last_schedule_time": 6.0,
    "schedule_history": ["x"], "job_clients": [], "job_deploy_detail": ["server: OK"],
}  # fmt: skip


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A server's kit in which a run broke off after some rounds."""
    coordinator = begin(tmp_path / OLD / "fairflare")
    drive(coordinator, tmp_path / "work", 5)
    return tmp_path


def rewritten(kit: Path, **fields: Any) -> None:
    record = resumable(kit, OLD, 99)
    assert record is not None
    write_record(kit / OLD / "fairflare", changed(record, **fields))


def masked(record: RunRecord) -> Plan:
    return parse_plan(json.dumps({**record.plan.model_dump(mode="json"), "protection": MASKED}))


# ---------------------------------------------------------------------------------------------------- what may go on


def test_a_run_that_broke_off_can_be_gone_on_with(kit: Path) -> None:
    record = resumable(kit, OLD, 1)
    assert record is not None
    assert record.sessions[-1].joined


def test_a_complete_run_cannot(kit: Path) -> None:
    rewritten(kit, status="complete")
    assert resumable(kit, OLD, 1) is None


def test_a_run_that_went_on_too_often_cannot(kit: Path) -> None:
    assert resumable(kit, OLD, 0) is None
    record = resumable(kit, OLD, 1)
    assert record is not None
    rewritten(kit, sessions=record.sessions * 2)
    assert resumable(kit, OLD, 1) is None
    assert resumable(kit, OLD, 2) is not None


def test_a_masked_run_whose_evaluation_was_asked_for_cannot(kit: Path) -> None:
    record = resumable(kit, OLD, 1)
    assert record is not None
    rounds = record.plan.training.rounds
    rewritten(kit, begun=rounds + 1)
    assert resumable(kit, OLD, 1) is not None  # in clear a question may be asked again
    rewritten(kit, plan=masked(record), begun=rounds)
    assert resumable(kit, OLD, 1) is not None
    rewritten(kit, begun=rounds + 1)
    assert resumable(kit, OLD, 1) is None


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_record_that_cannot_be_read_cannot(kit: Path, text: str | None) -> None:
    file = kit / OLD / "fairflare" / "record.json"
    file.unlink()
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert resumable(kit, OLD, 1) is None


# --------------------------------------------------------------------------------------------------------------- notes


def test_a_note_leads_to_the_run(kit: Path) -> None:
    assert read_continuation(kit, NEW) is None
    write_continuation(kit, NEW, OLD)
    assert read_continuation(kit, NEW) == kit / OLD / "fairflare"
    assert run_to_go_on_with(kit, NEW, kit / "asked") == kit / OLD / "fairflare"
    assert run_to_go_on_with(kit, OLD, kit / "asked") == kit / "asked"
    assert run_to_go_on_with(kit, OLD, None) is None


def test_a_note_names_a_job_and_no_other_folder(kit: Path) -> None:
    write_continuation(kit, NEW, "../../etc")
    with pytest.raises(ServerError, match="FF-SERVER-CONTINUE"):
        read_continuation(kit, NEW)


def test_a_note_of_a_run_that_is_gone_starts_no_new_run(kit: Path) -> None:
    write_continuation(kit, NEW, NEW)
    with pytest.raises(RunError, match="FF-RUN-NO-RECORD"):
        run_to_go_on_with(kit, NEW, None)


def test_sites_take_the_meta_data_of_a_job_that_goes_on() -> None:
    meta = {**taken_meta(META, OLD), "job_id": NEW, "status": "SUBMITTED", "submit_time": 9.0}
    assert check_meta(meta, PLAN) == []
    assert meta["submitter_name"] == META["submitter_name"]
    assert not {"schedule_count", "schedule_history", "job_deploy_detail", "start_time"} & set(meta)


# ------------------------------------------------------------------------------------------------------------- waiting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_waits_until_all_were_there_for_some_time() -> None:
    clock = Clock()
    assert wait_for({"a", "b"}, lambda: {"a", "b", "c"}, clock, clock.sleep)
    assert SETTLED <= clock.now < SETTLED + 2


def test_whoever_goes_begins_anew() -> None:
    clock = Clock()
    assert wait_for({"a"}, lambda: set() if 10 < clock.now < 12 else {"a"}, clock, clock.sleep)
    assert clock.now >= 12 + SETTLED


def test_it_does_not_wait_for_ever() -> None:
    clock = Clock()
    assert not wait_for({"a", "b"}, lambda: {"a"}, clock, clock.sleep)
    assert PATIENCE <= clock.now < PATIENCE + 2


# ----------------------------------------------------------------------------------------------------------- component


class Manager:
    """FLARE's store of jobs."""

    def __init__(self, *jobs: str) -> None:
        self.jobs = jobs
        self.calls: list[tuple[Any, ...]] = []
        self.cloned = threading.Event()

    def get_jobs_by_status(self, wanted: list[RunStatus], _: object) -> list[Any]:
        assert wanted == [RunStatus.RUNNING, RunStatus.DISPATCHED]
        return [SimpleNamespace(job_id=job, meta={**META, "job_id": job}) for job in self.jobs]

    def set_status(self, job: str, status: RunStatus, _: object) -> None:
        self.calls.append(("status", job, status))

    def clone(self, from_jid: str, meta: dict[str, Any], fl_ctx: object) -> None:
        self.calls.append(("clone", from_jid, meta))
        self.cloned.set()

    def update_meta(self, job: str, meta: dict[str, Any], _: object) -> None:
        self.calls.append(("meta", job, meta))


class Context:
    """A context of FLARE's, which ends as one."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def get_engine(self) -> Any:
        return self.engine

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def context(manager: Manager) -> Any:
    engine = SimpleNamespace(job_def_manager=manager, get_clients=list)
    engine.new_context = lambda: Context(engine)
    return Context(engine)


def start(kit: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kit)
    monkeypatch.setattr(recovery, "wait_for", lambda sites, _: sites == frozenset(("amber", "beryl", "coral", "dune")))
    component = ServerRecovery()
    component.handle_event(EventType.SYSTEM_BOOTSTRAP, context(manager))
    component.handle_event(EventType.JOB_STARTED, context(manager))
    component.handle_event(EventType.SYSTEM_START, context(manager))


def test_the_job_is_handed_in_again_under_a_new_id(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager(OLD)
    start(kit, manager, monkeypatch)
    assert manager.cloned.wait(10)
    deadline = time.monotonic() + 5
    while len(manager.calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    status, clone, meta = manager.calls
    assert status == ("status", OLD, RunStatus.FINISHED_ABNORMAL)
    new = clone[2]["job_id"]
    assert clone[:2] == ("clone", OLD)
    assert clone[2]["cloned_from"] == OLD
    assert meta == ("meta", OLD, {"continued_as": new})
    assert read_continuation(kit, new) == kit / OLD / "fairflare"


def test_a_job_that_cannot_go_on_is_called_abnormal_and_no_more(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kit / "local").mkdir()
    limits = STANDARD.model_copy(update={"continuations": 0})
    (kit / "local" / LIMITS_NAME).write_text(pretty(limits), encoding="utf-8")
    manager = Manager(OLD, NEW)
    start(kit, manager, monkeypatch)
    assert not manager.cloned.wait(0.3)
    assert [call[:2] for call in manager.calls] == [("status", OLD), ("status", NEW)]


def test_without_such_a_job_nothing_happens(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager()
    start(kit, manager, monkeypatch)
    assert manager.calls == []
    assert not (kit / "store").exists()


def test_a_store_that_refuses_does_not_end_the_server(kit: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager()
    manager.clone = lambda **_: 1 / 0  # type: ignore[method-assign]
    assert hand_in_again(Interrupted(OLD, META, frozenset()), context(manager), kit) is None
    assert "FF-SERVER-CONTINUE" in caplog.text
    assert str(kit) not in caplog.text


def test_the_note_is_there_before_the_job(kit: Path) -> None:
    manager = Manager()
    seen: list[list[str]] = []
    manager.clone = lambda **_: seen.append([file.name for file in (kit / "store" / FOLDER).iterdir()])  # type: ignore[method-assign]
    new = hand_in_again(Interrupted(OLD, META, frozenset()), context(manager), kit)
    assert seen == [[f"{new}.json"]]
    assert json.loads((kit / "store" / FOLDER / f"{new}.json").read_text())["job"] == OLD


# -------------------------------------------------------------------------------------------------- the operator's word


def packed(kit: Path, *more: str) -> Path:
    """FLARE packs a job's run folder, and takes it away."""
    archive = kit / "store" / "jobs" / OLD / "workspace"
    archive.parent.mkdir(parents=True)
    run = kit / OLD / "fairflare"
    with zipfile.ZipFile(archive, "w") as made:
        for file in sorted(run.iterdir()):
            made.write(file, f"fairflare/{file.name}")
        for name in more:
            made.writestr(name, b"evil")
    shutil.rmtree(kit / OLD)
    return archive


def asked_for(kit: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["server", "resume", str(kit), *words])


def test_the_operator_asks_for_a_run_and_takes_it_back(kit: Path) -> None:
    (kit / "local").mkdir()
    packed(kit)
    done = asked_for(kit, OLD)
    assert done.exit_code == 0, done.output
    assert f"{PLAN.name}: the next job of this plan goes on after " in done.output
    folder = Path(json.loads((kit / "local" / RESUME).read_text(encoding="utf-8"))["folder"])
    record, model = read_checkpoint(folder)
    assert model is not None
    assert record.rounds
    assert asked_for(kit).exit_code == 0
    assert not (kit / "local" / RESUME).exists()


def test_what_was_packed_is_unpacked_into_its_own_folder_only(kit: Path) -> None:
    packed(kit, "fairflare/../../climbed", "fairflare/deeper/x", "/etc/x", "fairflare/.hidden", "other/x")
    folder = kept_run(kit, OLD)
    assert folder == kit / "store" / "records" / OLD
    assert {"record.json", "progress.jsonl", "state.json"} <= {file.name for file in folder.iterdir()}
    assert not [file for file in kit.rglob("*") if file.is_file() and file.read_bytes() == b"evil"]


def test_a_run_that_is_still_in_the_kit_is_taken_from_there(kit: Path) -> None:
    assert kept_run(kit, OLD) == kit / OLD / "fairflare"


@pytest.mark.parametrize("job", [NEW, "../x", ""])
def test_what_never_ran_cannot_be_asked_for(kit: Path, job: str) -> None:
    with pytest.raises(ServerError, match="FF-SERVER-JOB"):
        kept_run(kit, job)
    assert not (kit / "store" / "records" / NEW).exists()


def test_a_complete_run_cannot_be_asked_for(kit: Path) -> None:
    (kit / "local").mkdir()
    rewritten(kit, status="complete")
    done = asked_for(kit, OLD)
    assert isinstance(done.exception, RunError)
    assert done.exception.code == "FF-RUN-COMPLETE"
    assert not (kit / "local" / RESUME).exists()
