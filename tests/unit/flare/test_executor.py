# SPDX-License-Identifier: Apache-2.0
"""At the site: one Site for the whole job, releases or codes out, texts into the site's own file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fairflare.engine.messages import JOIN, MEASURE, Message
from fairflare.flare import shutters, wire
from fairflare.flare.executor import PLAN, FairFlareExecutor
from fairflare.jobs import write_job
from fairflare.models import initial_vector
from fairflare.policy import (
    CATALOG_NAME,
    POLICY_NAME,
    DataCatalog,
    LeastProtection,
    open_policy,
    write_catalog,
    write_policy,
)
from fairflare.presets import FEDAVG, UNPROTECTED, heart
from fairflare.privacy.decisions import read_decisions
from tests.federation.support import changed, make_hospitals

THE_PLAN = changed(heart("heart_test", FEDAVG), protection=UNPROTECTED)
SITE = "hospital-1"
#: Of no process that started this one.
OTHER_PARENT = os.getppid() + 1
MASKED = LeastProtection(update="masked", statistics="masked")


class Engine:
    """What the executor asks FLARE's engine for: where things lie."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.events: list[str] = []

    def fire_event(self, event: str, _: FLContext) -> None:
        self.events.append(event)

    def get_workspace(self) -> Any:
        return SimpleNamespace(
            get_app_config_dir=lambda _: str(self.base / "config"),
            get_site_config_dir=lambda: str(self.base / "local"),
            get_run_dir=lambda _: str(self.base / "run"),
            get_root_dir=lambda: str(self.base),
            get_startup_kit_dir=lambda: str(self.base / "startup"),
        )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    job = write_job(THE_PLAN, tmp_path / "job")
    (job / "app" / "config").rename(tmp_path / "config")
    (tmp_path / "local").mkdir()
    write_policy(tmp_path / "local", open_policy(tmp_path.parent / "store"))
    write_catalog(tmp_path / "local", make_hospitals(tmp_path / "data", THE_PLAN, [SITE], 40))
    return tmp_path


@pytest.fixture
def context(base: Path) -> FLContext:
    ctx = FLContext()
    ctx.set_prop(ReservedKey.IDENTITY_NAME, SITE, private=False, sticky=False)
    ctx.set_prop(ReservedKey.ENGINE, Engine(base), private=True, sticky=False)
    ctx.set_prop(ReservedKey.RUN_NUM, "job", private=False, sticky=False)
    return ctx


def message(task: str, vectors: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Shareable:
    fields = {"round": 0, "step": 0, "session": "session", "plan_sha256": THE_PLAN.sha256, **changes}
    return wire.encode_message(Message(task, vectors=vectors or {}, **fields))


def code(answer: Shareable) -> str | None:
    return wire.failure_code(answer)


def test_a_site_joins_with_its_counts(context: FLContext) -> None:
    answer = FairFlareExecutor().execute(JOIN, message(JOIN), context, Signal())
    reply = wire.decode_reply(answer)
    assert (reply.task, reply.session) == (JOIN, "session")
    assert reply.payloads["counts"].values.sum() == 40


def test_the_site_is_kept_from_task_to_task(context: FLContext) -> None:
    executor = FairFlareExecutor()
    executor.execute(JOIN, message(JOIN), context, Signal())
    answer = executor.execute(MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal())
    assert code(answer) is None


def test_an_abort_reaches_the_site(context: FLContext) -> None:
    executor, abort = FairFlareExecutor(), Signal()
    executor.execute(JOIN, message(JOIN), context, abort)
    assert executor._site is not None
    assert not executor._site.stop()
    abort.trigger(True)
    assert executor._site.stop()


def test_what_is_no_message_is_answered_by_a_code(context: FLContext) -> None:
    assert code(FairFlareExecutor().execute(JOIN, Shareable(), context, Signal())) == "FF-WIRE-HEAD"


def test_the_message_of_another_task_is_not_done(context: FLContext) -> None:
    assert code(FairFlareExecutor().execute(MEASURE, message(JOIN), context, Signal())) == "FF-WIRE-TASK"


def test_a_site_that_restarted_must_join_again(context: FLContext) -> None:
    answer = FairFlareExecutor().execute(
        MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal()
    )
    assert code(answer) == "FF-ROUND-NOT-JOINED"


def masked_job(base: Path) -> None:
    job = write_job(changed(heart("heart_test", FEDAVG)), base / "masked")
    (job / "app" / "config" / PLAN).replace(base / "config" / PLAN)


def join_masked(base: Path, context: FLContext) -> object:
    masked_job(base)
    plan_sha256 = heart("heart_test", FEDAVG).sha256
    return code(FairFlareExecutor().execute(JOIN, message(JOIN, plan_sha256=plan_sha256), context, Signal()))


def test_a_simulated_site_joins_a_masked_job(base: Path, context: FLContext) -> None:
    assert join_masked(base, context) is None
    assert (base.parent / "store" / SITE / "heart" / "reveals.sqlite").stat().st_mode & 0o077 == 0


def test_a_policy_can_ask_for_a_start_up_kit(base: Path, context: FLContext) -> None:
    write_policy(base / "local", open_policy(base.parent / "store", identities="kit"))
    assert join_masked(base, context) == "FF-POLICY-IDENTITY"


def test_a_half_installed_kit_is_no_simulation(base: Path, context: FLContext) -> None:
    (base / "startup").mkdir()
    (base / "startup" / "client.crt").write_text("", encoding="utf-8")
    assert join_masked(base, context) == "FF-SECAGG-CERTIFICATE"


@pytest.mark.parametrize(("shut", "expected"), [(False, "FF-SHUTTER-OPEN"), (True, None)])
def test_a_hospitals_job_does_nothing_with_open_shutters(
    base: Path, context: FLContext, monkeypatch: pytest.MonkeyPatch, shut: bool, expected: str | None
) -> None:
    # resources.json may have been replaced after the parent process, which the validator looked at, had started.
    (base / "startup").mkdir()
    for name in ("client.crt", "client.key", "rootCA.pem"):
        (base / "startup" / name).write_text("", encoding="utf-8")
    monkeypatch.setattr(shutters, "is_shut", lambda: shut)
    executor = FairFlareExecutor()
    assert code(executor.execute(JOIN, message(JOIN), context, Signal())) == expected
    if shut:  # taken out during the job
        monkeypatch.setattr(shutters, "is_shut", lambda: False)
        answer = executor.execute(MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal())
        assert code(answer) == "FF-SHUTTER-OPEN"


def test_what_must_last_does_not_lie_where_flare_erases(base: Path, context: FLContext) -> None:
    write_policy(base / "local", open_policy(base / "store"))
    assert join_masked(base, context) == "FF-POLICY-STORE"


def test_a_task_of_another_plan_is_not_done(context: FLContext) -> None:
    answer = FairFlareExecutor().execute(JOIN, message(JOIN, plan_sha256="0" * 64), context, Signal())
    assert code(answer) == "FF-ROUND-PLAN"


def no_catalog(base: Path) -> None:
    (base / "local" / CATALOG_NAME).unlink()


def other_sites_catalog(base: Path) -> None:
    catalog = DataCatalog.model_validate_json((base / "local" / CATALOG_NAME).read_text(encoding="utf-8"), strict=False)
    assert catalog.sites is not None
    write_catalog(base / "local", catalog.model_copy(update={"sites": {"other": catalog.sites[SITE]}}))


def no_manifest(base: Path) -> None:
    (base / "data" / SITE / "manifest.csv").unlink()


def broken_manifest(base: Path) -> None:
    (base / "data" / SITE / "manifest.csv").write_text("SECRETPATIENT", encoding="utf-8")


def broken_plan(base: Path) -> None:
    (base / "config" / PLAN).write_text("{", encoding="utf-8")


def no_policy(base: Path) -> None:
    (base / "local" / POLICY_NAME).unlink()


def strict_policy(base: Path) -> None:
    write_policy(base / "local", open_policy(base.parent / "store").model_copy(update={"protection": MASKED}))


DEFECTS = {
    "no policy": (no_policy, "FF-POLICY-FILE"),
    "a policy that does not allow the plan": (strict_policy, "FF-POLICY-REFUSED"),
    "no catalogue": (no_catalog, "FF-CAT-FILE"),
    "another site's catalogue": (other_sites_catalog, "FF-CAT-UNKNOWN-SITE"),
    "no manifest": (no_manifest, "FF-CAT-MISSING-FILE"),
    "a manifest that is none": (broken_manifest, "FF-DATA-"),
    "a plan that is none": (broken_plan, "FF-PLAN-JSON"),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_a_site_that_cannot_begin_says_so_by_a_code(
    what: str, base: Path, context: FLContext, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, wanted = DEFECTS[what]
    spoil(base)
    answer = FairFlareExecutor().execute(JOIN, message(JOIN), context, Signal())
    assert str(code(answer)).startswith(wanted)
    assert b"SECRET" not in answer.to_bytes()
    assert str(base).encode() not in answer.to_bytes()
    # FLARE's log events carry the text; a widget of the job may send them to the server.
    assert context.get_engine().events == []
    assert "SECRET" not in caplog.text
    assert "got " not in caplog.text


def test_the_text_of_an_unknown_error_stays_in_the_sites_own_file(
    base: Path, context: FLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """FLARE's stock kits stream its log files to the server, so the text must not reach any logger."""
    executor = FairFlareExecutor()
    executor.execute(JOIN, message(JOIN), context, Signal())

    def fail(_: object) -> None:
        raise ValueError("patient SECRET-17")

    monkeypatch.setattr(executor._site, "handle", fail)
    with caplog.at_level(logging.DEBUG):
        answer = executor.execute(JOIN, message(JOIN), context, Signal())
    assert code(answer) == "FF-SITE-INTERNAL"
    assert b"SECRET" not in answer.to_bytes()
    assert "FF-SITE-INTERNAL" in caplog.text
    assert "SECRET" not in caplog.text
    errors = base / "run" / "fairflare" / "errors.log"
    assert "SECRET-17" in errors.read_text(encoding="utf-8")
    assert errors.stat().st_mode & 0o077 == 0


def decided(base: Path) -> list[tuple[str, str, str | None]]:
    found = read_decisions(base.parent / "store" / SITE / "decisions.jsonl")
    return [(one.depth, one.verdict, one.code) for one in found[-2:]]


def test_a_policy_that_is_withdrawn_stops_a_running_job(base: Path, context: FLContext) -> None:
    executor = FairFlareExecutor()
    assert code(executor.execute(JOIN, message(JOIN), context, Signal())) is None
    no_policy(base)
    for _ in range(2):
        answer = executor.execute(MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal())
        assert code(answer) == "FF-POLICY-FILE"
    assert decided(base) == [("join", "accepted", None), ("release", "refused", "FF-POLICY-FILE")]


def measured_while(context: FLContext, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> Shareable:
    """The answer of a site to which something happens after its work and before the release."""
    executor = FairFlareExecutor()
    executor.execute(JOIN, message(JOIN), context, Signal())
    site = executor._site
    assert site is not None
    work = site.handle

    def slowly(one: Message) -> object:
        made = work(one)
        happens()
        return made

    monkeypatch.setattr(site, "handle", slowly)
    return executor.execute(MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal())


def test_a_policy_that_is_tightened_during_the_work_lets_nothing_out(
    base: Path, context: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = measured_while(context, monkeypatch, lambda: strict_policy(base))
    assert code(answer) == "FF-POLICY-REFUSED"
    assert {key for key in answer if not key.startswith("__")} == {wire.CODE}
    assert decided(base) == [("join", "accepted", None), ("release", "refused", "FF-POLICY-REFUSED")]


def test_a_site_that_was_stopped_begins_no_task(context: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = FairFlareExecutor()
    executor.execute(JOIN, message(JOIN), context, Signal())
    site = executor._site
    assert site is not None
    monkeypatch.setattr("os.getppid", lambda: OTHER_PARENT)
    monkeypatch.setattr(site, "handle", lambda _: pytest.fail("the task was begun"))
    assert site.stop()
    answer = executor.execute(MEASURE, message(MEASURE, {"model": initial_vector(THE_PLAN)}), context, Signal())
    assert code(answer) == "FF-GATE-PARENT"


def test_a_site_that_is_stopped_during_the_work_lets_nothing_out(
    context: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = measured_while(context, monkeypatch, lambda: monkeypatch.setattr("os.getppid", lambda: OTHER_PARENT))
    assert code(answer) == "FF-GATE-PARENT"
    assert {key for key in answer if not key.startswith("__")} == {wire.CODE}


def test_a_site_that_cannot_write_down_its_decision_does_not_begin(base: Path, context: FLContext) -> None:
    log = base.parent / "unwritable" / SITE / "decisions.jsonl"
    log.mkdir(parents=True)
    write_policy(base / "local", open_policy(base.parent / "unwritable"))
    assert code(FairFlareExecutor().execute(JOIN, message(JOIN), context, Signal())) == "FF-DECISION-LOG"
    assert not (base / "run" / "fairflare" / "releases.jsonl").exists()


def test_a_list_of_releases_that_cannot_be_written_stops_the_release(base: Path, context: FLContext) -> None:
    (base / "run" / "fairflare" / "releases.jsonl").mkdir(parents=True)
    answer = FairFlareExecutor().execute(JOIN, message(JOIN), context, Signal())
    assert code(answer) == "FF-GATE-LOG"


def test_an_answer_that_says_it_failed_holds_nothing_but_the_code(context: FLContext) -> None:
    answer = FairFlareExecutor().execute(MEASURE, message(JOIN), context, Signal())
    assert {key for key in answer if not key.startswith("__")} == {wire.CODE}
