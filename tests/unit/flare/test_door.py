# SPDX-License-Identifier: Apache-2.0
"""What a hostile server may ask a hospital's parent process for at the door, and what it hears."""

from __future__ import annotations

import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.scheduler_constants import ShareableHeader

from fairflare import presets
from fairflare.flare import deploys, door, scrub
from fairflare.flare.door import inspect_request
from fairflare.jobs import write_job
from fairflare.policy.revoked import REVOKED_NAME, read_authority, revoke, write_list
from tests.hostile import ARCHIVES, archive_of
from tests.unit.flare.hospital import SITE, deployment, sign

PLAN = presets.shipped("heart_flexfair")
TOKEN = ShareableHeader.RESOURCE_RESERVE_TOKEN
OF_A_JOB = (
    TrainingTopic.DEPLOY, TrainingTopic.START_JOB, TrainingTopic.CHECK_RESOURCE, TrainingTopic.ABORT,
    TrainingTopic.ABORT_TASK, TrainingTopic.DELETE_RUN, TrainingTopic.NOTIFY_JOB_STATUS,
    TrainingTopic.CONFIGURE_JOB_LOG,
)  # fmt: skip
IDS = (None, "", "..", "../../etc", "startup", "local", "simulate_job", 1, ["x"], "X" * 36, f"{uuid.uuid1()}",
       f"{uuid.uuid4()}".upper(), f"{uuid.uuid4()}\n", f"{uuid.uuid4()}/..")  # fmt: skip


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A parent process that has just started, in a folder that is no kit: nothing is written down."""
    monkeypatch.setattr(deploys, "DEPLOYS", deploys.Deploys())
    monkeypatch.setattr(door, "DEPLOYS", deploys.DEPLOYS)
    (tmp_path / "kit").mkdir()
    monkeypatch.chdir(tmp_path / "kit")


@pytest.fixture
def job(kits: Path, tmp_path: Path) -> Path:
    folder = write_job(PLAN, tmp_path / "jobs")
    sign(folder, kits)
    return folder


def ask(message: Message) -> str:
    said = inspect_request(message.topic, message.headers, message.body)
    assert said is None or scrub.own_text(said) == said  # the shutters let it pass as it is
    return said or ""


def accepted(job: Path) -> tuple[str, dict[str, Any]]:
    """A job that door and validator let pass: its id, and its meta data."""
    message = deployment(job)
    assert ask(message) == ""
    number = message.headers[RequestHeader.JOB_ID]
    deploys.DEPLOYS.accept(number)
    return number, message.headers[RequestHeader.JOB_META]


def start(number: object, meta: object, body: object = None, **headers: Any) -> str:
    message = Message(TrainingTopic.START_JOB, {} if body is None else body)
    message.headers = {RequestHeader.JOB_ID: number, RequestHeader.JOB_META: meta, TOKEN: "", **headers}
    return ask(message)


# ------------------------------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("topic", OF_A_JOB)
@pytest.mark.parametrize("number", IDS)
def test_what_is_no_id_never_becomes_a_folder(topic: str, number: object) -> None:
    message = Message(topic, b"")
    message.headers = {RequestHeader.JOB_ID: number} if number is not None else {}
    said = ask(message)
    assert "FF-JOB-ID" in said
    assert not isinstance(number, str) or len(number) < 3 or number not in said


@pytest.mark.parametrize("topic", [SysCommandTopic.SYS_INFO, TrainingTopic.CHECK_STATUS, "made.up"])
def test_other_requests_need_no_job_but_a_false_one_is_refused(topic: str) -> None:
    assert inspect_request(topic, {}, "") is None
    assert inspect_request(topic, {RequestHeader.JOB_ID: str(uuid.uuid4())}, "") is None
    assert "FF-JOB-ID" in (inspect_request(topic, {RequestHeader.JOB_ID: ".."}, "") or "")


# ------------------------------------------------------------------------------------------------------------ deploying


def test_a_good_deployment_passes(job: Path) -> None:
    message = deployment(job)
    assert ask(message) == ""
    assert deploys.DEPLOYS.is_offered(message.headers[RequestHeader.JOB_ID], PLAN)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused_before_flare_unzips_it(job: Path, name: str) -> None:
    said = ask(deployment(job, body=ARCHIVES[name].spoil(archive_of(job / "app"))))
    assert ARCHIVES[name].code in said
    assert not list(Path.cwd().iterdir())


HEADERS: dict[str, tuple[str, Any, str]] = {
    "no permission asked for": (RequestHeader.REQUIRE_AUTHZ, "false", "FF-JOB-REQUEST require_authz"),
    "permission as a truth": (RequestHeader.REQUIRE_AUTHZ, True, "FF-JOB-REQUEST require_authz"),
    "permission for something else": (RequestHeader.ADMIN_COMMAND, "check_status", "FF-JOB-REQUEST admin_command"),
    "no command": (RequestHeader.ADMIN_COMMAND, None, "FF-JOB-REQUEST admin_command"),
    "another app": (RequestHeader.APP_NAME, "../../x", "FF-JOB-REQUEST app_name"),
    "no meta data": (RequestHeader.JOB_META, None, "FF-JOB-META meta.json:name"),
    "meta data that are none": (RequestHeader.JOB_META, ["x"], "FF-JOB-META meta.json:name"),
    "another submitter": (RequestHeader.SUBMITTER_NAME, "admin@example.org", "FF-JOB-META meta.json:submitter_name"),
    "another user": (RequestHeader.USER_NAME, "admin@example.org", "FF-JOB-META meta.json:submitter_name"),
    "another role": (RequestHeader.USER_ROLE, "project_admin", "FF-JOB-META meta.json:submitter_role"),
    "another organisation": (RequestHeader.SUBMITTER_ORG, "x", "FF-JOB-META meta.json:submitter_org"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_deployment_says_what_flares_server_says(job: Path, name: str) -> None:
    header, value, expected = HEADERS[name]
    message = deployment(job, **{header: value})
    assert expected in ask(message)
    assert not deploys.DEPLOYS.is_offered(message.headers[RequestHeader.JOB_ID], PLAN)


@pytest.mark.parametrize("key", ["launcher_spec", "scope", "custom_props", "stats_pool_config", "byoc"])
def test_a_server_cannot_add_to_the_meta_data(job: Path, key: str) -> None:
    message = deployment(job)
    message.headers[RequestHeader.JOB_META][key] = {"default": {"docker": {"image": "evil:latest"}}}
    said = ask(message)
    assert f"FF-JOB-META meta.json:{key}" in said
    assert "evil:latest" not in said


def test_meta_data_of_another_job_or_plan_are_refused(job: Path, tmp_path: Path, kits: Path) -> None:
    message = deployment(job, **{RequestHeader.JOB_ID: str(uuid.uuid4())})
    assert "meta.json:job_id" in ask(message)
    other = write_job(presets.shipped("heart_fedavg"), tmp_path / "jobs")
    sign(other, kits)
    said = ask(deployment(job, body=archive_of(other / "app")))
    assert "FF-JOB-META meta.json:name" in said


def test_the_submitter_is_the_one_who_signed(job: Path, kits: Path) -> None:
    sign(job, kits, "admin@example.org")
    said = ask(deployment(job))
    assert "meta.json:submitter_name: got another submitter than the job's signer" in said
    assert "meta.json:submitter_org" in said
    assert "meta.json:submitter_role" in said


def test_all_folders_of_a_job_are_signed_by_one_person(job: Path, kits: Path) -> None:
    certificate = kits / "admin@example.org" / "startup" / "client.crt"
    (job / "app" / "config" / ".__nvfl_submitter.crt").write_bytes(certificate.read_bytes())
    assert "folders that different people signed" in ask(deployment(job))


def test_a_job_of_somebody_who_was_revoked_is_refused(job: Path, kits: Path) -> None:
    shutil.copytree(kits / "hospital-1" / "startup", "startup")
    Path("local").mkdir()
    signer = (kits / "researcher@example.org" / "startup" / "client.crt").read_bytes()
    other = (kits / "admin@example.org" / "startup" / "client.crt").read_bytes()
    for revoked, said in ((other, ""), (signer, "FF-JOB-REVOKED")):
        write_list(Path("local") / REVOKED_NAME, revoke(*read_authority(kits.parent / "state"), [revoked], None)[0])
        heard = ask(deployment(job))
        assert said in heard
        assert bool(heard) == bool(said)
    (Path("local") / REVOKED_NAME).write_bytes(b"no list")
    assert "FF-JOB-INTERNAL" in ask(deployment(job))


def test_a_broken_certificate_is_refused_with_a_code(job: Path) -> None:
    for file in (job / "app").rglob(".__nvfl_submitter.crt"):
        file.write_bytes(b"no certificate")
    assert "FF-JOB-READ" in ask(deployment(job))


def test_an_unsigned_job_is_for_flare_to_refuse(job: Path) -> None:
    for file in job.rglob(".__nvfl*"):
        file.unlink()
    assert ask(deployment(job)) == ""


def test_an_id_counts_once(job: Path) -> None:
    number, meta = accepted(job)
    again = deployment(job, **{RequestHeader.JOB_ID: number, RequestHeader.JOB_META: meta})
    assert "FF-JOB-ID" in ask(again)
    assert start(number, meta) == ""
    # FLARE would empty the folder of the running job, and unzip another app into it.
    assert "FF-JOB-ID" in ask(again)


def test_an_id_whose_folder_is_there_is_not_taken_again(job: Path) -> None:
    message = deployment(job)
    Path(message.headers[RequestHeader.JOB_ID]).mkdir()  # from before a restart
    assert "FF-JOB-ID" in ask(message)


def test_jobs_without_end_do_not_fill_the_disk(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(deploys.DEPLOYS, "_let_in", deploys._Bounded(most=3, clock=lambda: now[0]))
    assert [ask(deployment(job)) for _ in range(3)] == ["", "", ""]
    refused = deployment(job)
    assert "FF-JOB-REQUEST train.deploy: got more jobs in an hour" in ask(refused)
    assert not deploys.DEPLOYS.is_offered(refused.headers[RequestHeader.JOB_ID], PLAN)
    now[0] = 3601.0
    assert ask(deployment(job)) == ""
    assert 60 < deploys._MOST_JOBS < 1000


def test_a_start_beside_too_many_jobs_is_refused() -> None:
    for topic in OF_A_JOB:
        said = door.inspect_running(topic, lambda: ["x"] * door.MOST_RUNNING)
        assert (said is not None) == (topic == TrainingTopic.START_JOB)
        assert said is None or said.startswith("FF-JOB-REQUEST train.start_job: got a start beside 4 jobs")
        assert said is None or scrub.own_text(said) == said
        assert door.inspect_running(topic, lambda: ["x"] * (door.MOST_RUNNING - 1)) is None


def test_the_memory_of_jobs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploys, "_MOST", 3)
    memory = deploys.Deploys()
    numbers = [str(uuid.uuid4()) for _ in range(5)]
    assert all(memory.offer(number, PLAN, {}) for number in numbers)
    assert [memory.is_offered(number, PLAN) for number in numbers] == [False, False, True, True, True]


# ------------------------------------------------------------------------------------------------------------- starting


def test_a_job_starts_once_and_as_it_was_deployed(job: Path) -> None:
    number, meta = accepted(job)
    later = {**meta, "status": "DISPATCHED", "job_clients": [{"name": SITE}], "schedule_count": 2, "duration": "N/A"}
    assert start(number, later) == ""
    assert "FF-JOB-START" in start(number, later)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "heart_fedavg"},
        {"min_clients": 2},
        {"resource_spec": {"default": {}}},
        {"deploy_map": {"app": ["server"]}},
        {"launcher_spec": {"default": {"docker": {"image": "evil:latest"}}}},
        {"scope": "open"},
        {"study": "oncology"},
        {"byoc": True},
        {"job_id": str(uuid.uuid4())},
        {"submitter_name": "admin@example.org"},
        {"submit_time": 2.0},
        {"job_clients": [{"name": "x", "token": "y"}]},
        {"status": "FINISHED:COMPLETED"},
    ],
)
def test_other_meta_data_than_at_the_deployment_start_nothing(job: Path, change: dict[str, Any]) -> None:
    number, meta = accepted(job)
    said = start(number, {**meta, **change})
    assert f"FF-JOB-META meta.json:{next(iter(change))}" in said
    assert "evil" not in said
    assert start(number, meta) == ""  # the good one is not lost


def test_meta_data_that_are_left_out_start_nothing(job: Path) -> None:
    number, meta = accepted(job)
    for key in ("name", "job_id", "study", "submitter_name"):
        assert f"meta.json:{key}" in start(number, {one: value for one, value in meta.items() if one != key})
    assert "FF-JOB-META" in start(number, None)


@pytest.mark.parametrize("body", [{"num_of_gpus": 1}, None, [], "", b"", {"docker": {"image": "x"}}])
def test_a_start_brings_no_resources(job: Path, body: object) -> None:
    number, meta = accepted(job)
    message = Message(TrainingTopic.START_JOB, body)
    message.headers = {RequestHeader.JOB_ID: number, RequestHeader.JOB_META: meta}
    assert "FF-JOB-REQUEST resource_spec" in ask(message)


def test_a_token_is_a_short_text(job: Path) -> None:
    number, meta = accepted(job)
    for token in (1, ["x"], "x" * 500):
        assert "FF-JOB-REQUEST" in start(number, meta, **{TOKEN: token})
    assert start(number, meta, **{TOKEN: str(uuid.uuid4())}) == ""


def test_what_was_not_deployed_was_refused_or_came_before_a_restart_does_not_start(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = deployment(job)
    number, meta = message.headers[RequestHeader.JOB_ID], message.headers[RequestHeader.JOB_META]
    assert "FF-JOB-START" in start(number, meta)
    assert ask(message) == ""
    assert "FF-JOB-START" in start(number, meta)  # offered, and not accepted by the validator
    deploys.DEPLOYS.forget(number)  # as the validator does when it refuses
    deploys.DEPLOYS.accept(number)
    assert "FF-JOB-START" in start(number, meta)
    number, meta = accepted(job)
    monkeypatch.setattr(door, "DEPLOYS", deploys.Deploys())
    assert "submitted anew" in start(number, meta)


def test_of_many_starts_at_once_one_passes(job: Path) -> None:
    number, meta = accepted(job)
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(start(number, meta))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("") == 1
    assert all("FF-JOB-START" in one for one in said if one)


def test_the_first_of_two_starts_that_were_both_looked_at_passes(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, meta = accepted(job)
    look = deploys.DEPLOYS.accepted

    def looked(asked: str) -> Any:
        found = look(asked)
        assert deploys.DEPLOYS.take(asked)  # the other one, just now
        return found

    monkeypatch.setattr(deploys.DEPLOYS, "accepted", looked)
    assert "FF-JOB-START" in start(number, meta)


# ------------------------------------------------------------------------------------------------------------ resources


def test_resources_are_asked_for_as_flare_does() -> None:
    good = {RequestHeader.JOB_ID: str(uuid.uuid4()), RequestHeader.ADMIN_COMMAND: "check_resources"}
    assert inspect_request(TrainingTopic.CHECK_RESOURCE, good, {}) is None
    for body in ({"num_of_gpus": 1}, None, []):
        assert "FF-JOB-REQUEST" in (inspect_request(TrainingTopic.CHECK_RESOURCE, good, body) or "")
    other = {**good, RequestHeader.ADMIN_COMMAND: "submit_job"}
    assert "FF-JOB-REQUEST" in (inspect_request(TrainingTopic.CHECK_RESOURCE, other, {}) or "")
    assert inspect_request(TrainingTopic.CANCEL_RESOURCE, {TOKEN: "x"}, {}) is None
    assert "FF-JOB-REQUEST" in (inspect_request(TrainingTopic.CANCEL_RESOURCE, {TOKEN: 1}, {}) or "")
    assert "FF-JOB-REQUEST" in (inspect_request(TrainingTopic.CANCEL_RESOURCE, {TOKEN: "x"}, {"a": 1}) or "")


def test_a_state_of_a_job_is_one_of_flares() -> None:
    number = str(uuid.uuid4())
    for status in range(5):
        good = {RequestHeader.JOB_ID: number, RequestHeader.JOB_STATUS: status}
        assert inspect_request(TrainingTopic.NOTIFY_JOB_STATUS, good, "") is None
    for status in (None, 5, -1, True, "2", [], {"a": 1}):
        bad = {RequestHeader.JOB_ID: number, RequestHeader.JOB_STATUS: status}
        assert "FF-JOB-REQUEST" in (inspect_request(TrainingTopic.NOTIFY_JOB_STATUS, bad, "") or "")


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("fail", ["check_archive", "check_meta", "_same_submitter"])
def test_no_exception_becomes_a_text_and_none_lets_a_job_pass(
    job: Path, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    def raising(*_: object) -> None:
        raise KeyError("/home/somebody")

    monkeypatch.setattr(door, fail, raising)
    message = deployment(job)
    said = ask(message)
    assert said.startswith("FF-JOB-INTERNAL")
    assert "somebody" not in said
    assert not deploys.DEPLOYS.is_offered(message.headers[RequestHeader.JOB_ID], PLAN)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
NAMES = [value for name, value in vars(RequestHeader).items() if name.isupper()] + [TOKEN]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    topic=st.sampled_from(OF_A_JOB), headers=st.dictionaries(st.sampled_from(NAMES), VALUES), body=VALUES,
    named=st.booleans(),
)  # fmt: skip
def test_whatever_a_server_sends_the_answer_is_one_of_ours(topic: str, headers: Any, body: Any, named: bool) -> None:
    if named:
        headers[RequestHeader.JOB_ID] = str(uuid.uuid4())
    said = inspect_request(topic, headers, body)
    fine = (TrainingTopic.ABORT, TrainingTopic.ABORT_TASK, TrainingTopic.DELETE_RUN, TrainingTopic.CONFIGURE_JOB_LOG)
    if said is None:
        assert topic in fine or topic == TrainingTopic.NOTIFY_JOB_STATUS
    else:
        assert said.startswith("FF-JOB-")
        assert "FF-JOB-INTERNAL" not in said
        assert len(said) < 4100


@pytest.mark.parametrize("problem", [OSError(28, "full", "/home/somebody"), PermissionError(13, "no", "/x")])
def test_a_refusal_that_cannot_be_written_is_one_and_logs_no_path(
    job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: OSError
) -> None:
    def raising(_: Path) -> None:
        raise problem

    monkeypatch.setattr(deploys, "places_of", raising)
    assert "FF-JOB-REQUEST" in ask(deployment(job, **{RequestHeader.APP_NAME: "evil"}))
    assert type(problem).__name__ in caplog.text
    assert "/" not in caplog.messages[-1]


@pytest.mark.parametrize("headers", [None, [], "x", 1])
def test_headers_that_are_none_are_refused(headers: Any) -> None:
    for topic in OF_A_JOB:
        assert (inspect_request(topic, headers, {}) or "").startswith("FF-JOB-INTERNAL")
