# SPDX-License-Identifier: Apache-2.0
"""What an open message tells: nothing but what it is for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.admin_defs import Message as AdminMessage
from nvflare.private.admin_defs import MsgHeader, error_reply, ok_reply
from nvflare.private.defs import ERROR_MSG_PREFIX
from nvflare.private.scheduler_constants import ShareableHeader

from fairflare.flare import scrub
from fairflare.flare.scrub import ERROR, admin_reply, outgoing, own_text, peer_context
from fairflare.flare.topics import ADMIN, TOPICS

SECRET = "/home/doctor/kits/hospital-1/startup/client.key"
OPEN = [one.topic for one in TOPICS if one.channel == ADMIN and one.direction == "in" and one.verdict != "closed"]


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("FF-POLICY-REFUSED: differential_privacy: got off, expected on", True), ("FF-JOB-FILE", True),
        ("NVFLARE_ERROR: FF-JOB-CONFIG app/config: got other bytes, expected ours", True),
        ("unsigned job rejected - signed deploy is required", True), ("NVFLARE_ERROR: BYOC not permitted", True),
        ("app heart does not pass signature verification", True), ("NVFLARE_ERROR: not authorized", True),
    ],
)  # fmt: skip
def test_a_text_for_the_submitter_passes_whole(said: str, passes: bool) -> None:
    assert (own_text(said) == said) is passes


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (f"exception_occurred: FileNotFoundError: {SECRET}", ERROR), ("", ERROR), (None, ERROR), (17, ERROR),
        (f"FF-JOB-FILE: got {SECRET}", "FF-JOB-FILE"), ("FF-JOB-FILE: got 'C:\\kits\\a'", "FF-JOB-FILE"),
        ("FF-JOB-FILE: got ~/kits", "FF-JOB-FILE"), (f"{ERROR_MSG_PREFIX}: {SECRET}", f"{ERROR_MSG_PREFIX}: {ERROR}"),
        (type("Sly", (), {"__str__": lambda _: "FF-JOB-FILE: x"})(), ERROR),
        ("said: FF-JOB-FILE", ERROR), ("FF-", ERROR), ("app /etc does not pass signature verification", ERROR),
        (f"not authorized {SECRET}", ERROR),
    ],
)  # fmt: skip
def test_every_other_text_is_a_code(said: object, left: str) -> None:
    assert own_text(said) == left


@given(st.text(max_size=80))
def test_no_text_of_somebody_else_passes(said: str) -> None:
    left = own_text(said)
    assert left.removeprefix(f"{ERROR_MSG_PREFIX}: ").startswith("FF-") or scrub._PLAIN.fullmatch(
        left.removeprefix(f"{ERROR_MSG_PREFIX}: ")
    )


def test_a_long_text_is_cut() -> None:
    assert len(own_text("FF-JOB-FILE: " + "x" * 100_000)) == scrub._LONGEST


@pytest.mark.parametrize("topic", OPEN)
def test_an_exception_leaves_as_a_code(topic: str) -> None:
    left = admin_reply(topic, error_reply(f"exception_occurred: {SECRET}"))
    assert (left.body, left.headers) == (ERROR, {MsgHeader.RETURN_CODE: "_error"})


@pytest.mark.parametrize("topic", OPEN)
def test_headers_of_an_answer_do_not_leave(topic: str) -> None:
    bodies: dict[str, Any] = {
        "train.check_status": json.dumps({"client_name": "a", "running_jobs": []}),
        "sys.report_version": json.dumps({"version": "2.9.0"}),
        "scheduler.check_resource": Shareable(), "scheduler.cancel_resource": Shareable(),
    }  # fmt: skip
    said = ok_reply(f"reply_{topic}", bodies.get(topic, f"Delete run folder: {SECRET}"), meta={"where": SECRET})
    said.set_header("more", SECRET)
    left = admin_reply(topic, said)
    assert SECRET not in repr(vars(left))
    assert left.headers == {MsgHeader.RETURN_CODE: "_ok"}


def test_no_code_is_invented_where_flare_sends_none() -> None:
    assert admin_reply("train.start_job", AdminMessage("x", "Start the client app...")).headers == {}


def test_status_is_names_only() -> None:
    job = {"app_name": "app", "job_id": "1", "status": "started", "folder": SECRET}
    said = ok_reply("x", json.dumps({"client_name": "hospital-1", "running_jobs": [job], "home": SECRET}))
    del job["folder"]
    assert json.loads(admin_reply("train.check_status", said).body) == {
        "client_name": "hospital-1", "running_jobs": [job],
    }  # fmt: skip


def test_a_failed_start_leaves_as_a_code() -> None:
    said = AdminMessage("x", f"{ERROR_MSG_PREFIX}: Start job execution exception: missing file: {SECRET}.")
    assert admin_reply("train.start_job", said).body == f"{ERROR_MSG_PREFIX}: {ERROR}"
    assert admin_reply("train.start_job", AdminMessage("x", "Start the client app...")).body == "OK"


@pytest.mark.parametrize(
    ("enough", "token", "left"),
    [
        (True, "0a1b-2c", (True, "0a1b-2c")), (True, "", (True, "")), (True, SECRET, (False, ERROR)),
        (True, None, (False, ERROR)), (False, f"ValueError {SECRET}", (False, ERROR)),
        (False, "FF-POLICY-REFUSED: no", (False, "FF-POLICY-REFUSED: no")), ("yes", "0a", (False, ERROR)),
    ],
)  # fmt: skip
def test_resources_are_yes_or_no(enough: object, token: object, left: tuple[bool, str]) -> None:
    body = Shareable()
    body[SECRET] = SECRET
    body.set_header(ShareableHeader.IS_RESOURCE_ENOUGH, enough)
    body.set_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, token)
    found = admin_reply("scheduler.check_resource", AdminMessage("x", body)).body
    assert (
        found.get_header(ShareableHeader.IS_RESOURCE_ENOUGH), found.get_header(ShareableHeader.RESOURCE_RESERVE_TOKEN),
    ) == left  # fmt: skip
    assert SECRET not in repr(found)


def test_registration_leaves_without_configuration_and_address() -> None:
    login = Shareable({"cert": b"public", "site_config": {"secret": SECRET}})
    message = Message(
        {
            MessageHeaderKey.CHANNEL: "task",
            MessageHeaderKey.TOPIC: "register",
            "client_ip": "10.1.2.3",
            MessageHeaderKey.MSG_TYPE: MessageType.REQ,
        },
        login,
    )
    outgoing(message)
    assert message.payload["cert"] == b"public"
    assert "site_config" not in message.payload
    assert message.headers["client_ip"] == scrub.NO_ADDRESS


def test_a_login_of_another_form_does_not_leave() -> None:
    key = {MessageHeaderKey.CHANNEL: "task", MessageHeaderKey.TOPIC: "register"}
    with pytest.raises(TypeError):
        outgoing(Message({**key, MessageHeaderKey.MSG_TYPE: MessageType.REQ}, b"site_config"))


def test_a_jobs_failure_is_one_of_flares_words() -> None:
    key = {
        MessageHeaderKey.CHANNEL: "task", MessageHeaderKey.TOPIC: "report_job_failure",
        MessageHeaderKey.MSG_TYPE: MessageType.REQ,
    }  # fmt: skip
    message = Message(dict(key), {"job_id": "1", "code": 101, "reason": SECRET, "more": SECRET})
    outgoing(message)
    assert SECRET not in repr(message.payload)
    assert set(message.payload) == {"job_id", "code", "reason"}
    refusal = Message({**key, MessageHeaderKey.MSG_TYPE: MessageType.REPLY}, None)
    outgoing(refusal)
    assert refusal.payload is None


@pytest.mark.parametrize("name", [StreamHeaderKey.ERROR_MSG, MessageHeaderKey.ERROR])
def test_texts_of_errors_leave_as_a_code(name: str) -> None:
    for said, left in ((f"blob_cb threw ValueError: {SECRET}", ERROR), ("FF-SHUTTER-CLOSED", "FF-SHUTTER-CLOSED")):
        message = Message({name: said}, None)
        outgoing(message)
        assert message.headers[name] == left


def test_a_returned_message_takes_no_headers_along() -> None:
    message = Message(
        {
            MessageHeaderKey.MSG_TYPE: MessageType.RETURN,
            MessageHeaderKey.ORIGINAL_HEADERS: {MessageHeaderKey.DESTINATION: "x", "token": SECRET},
        }
    )
    outgoing(message)
    assert SECRET not in repr(message.headers)


def test_a_context_leaves_with_names_only() -> None:
    reply, context = make_reply("OK"), FLContext()
    context.set_public_props({"__identity_name__": "hospital-1", "__app_root__": SECRET, "mine": SECRET})
    reply.set_peer_context(context)
    reply.set_peer_props({"__identity_name__": "hospital-1", "__workspace_root__": SECRET})
    peer_context(reply)
    assert reply.get_header(ReservedHeaderKey.PEER_PROPS) == {"__identity_name__": "hospital-1"}
    assert reply.get_peer_context().get_all_public_props() == {"__identity_name__": "hospital-1"}
    peer_context(b"bytes")
    peer_context(None)
