# SPDX-License-Identifier: Apache-2.0
"""Who may send what to whom, decided by headers: every entry of the list, from every side, with every lie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey as Key
from nvflare.fuel.f3.cellnet.defs import MessageType
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import StreamDataType, StreamHeaderKey
from nvflare.fuel.utils.fobs import FOBSContextKey

from fairflare.flare import passage
from fairflare.flare.passage import judge_incoming, judge_outgoing, open_admin, process_of, source_of
from fairflare.flare.topics import ADMIN, RETURN, STREAM, TOPICS, Topic

PARENT, JOB, SERVER, SERVER_JOB = "hospital-1", "hospital-1.job", "server", "server.job"
NAMES = {"parent": PARENT, "job": JOB}
STREAMED = [one for one in TOPICS if one.channel in ("aux_communication", "server_command", "download_service__")]


def _cell(name: str, **waiting: Any) -> Any:
    cell = SimpleNamespace(requests_dict=waiting.get("streams", {}))
    return SimpleNamespace(
        my_info=SimpleNamespace(fqcn=name), waiters=waiting.get("waiters", {}), fobs_ctx={FOBSContextKey.CELL: cell},
        bb_ext_connector=SimpleNamespace(handle="ext"), int_listener=SimpleNamespace(handle="int"),
        bb_int_connector=None,
    )  # fmt: skip


def _message(channel: str, topic: str, origin: str, destination: str, **others: Any) -> Message:
    headers = {
        Key.CHANNEL: channel, Key.TOPIC: topic, Key.ORIGIN: origin, Key.DESTINATION: destination,
        Key.MSG_TYPE: MessageType.REQ,
    }  # fmt: skip
    return Message({**headers, **{name.replace("__", ""): value for name, value in others.items()}}, b"")


def _frame(channel: str, topic: str, origin: str, destination: str, **others: Any) -> Message:
    message = _message(*STREAM, origin, destination)
    message.add_headers({StreamHeaderKey.CHANNEL: channel, StreamHeaderKey.TOPIC: topic, StreamHeaderKey.SEQUENCE: 0})
    message.add_headers(others)
    return message


def _processes(one: Topic) -> tuple[str, ...]:
    return ("parent", "job") if one.process == "both" else (one.process,)


def _other(one: Topic, process: str) -> tuple[str, passage.Source]:
    """Somebody at whom the entry is aimed, and the way by which that one comes."""
    if one.peer != "site":
        return SERVER, "server"
    return (JOB, "child") if process == "parent" else (PARENT, "parent")


ENTRIES = [
    pytest.param(one, process, id=f"{process}-{one.direction}-{one.channel}-{one.topic}")
    for one in TOPICS if (one.channel, one.topic) not in (STREAM, (RETURN, "*"))
    for process in _processes(one)
]  # fmt: skip


@pytest.mark.parametrize(("one", "process"), ENTRIES)
def test_every_entry_has_its_verdict(one: Topic, process: str) -> None:
    topic = "anything" if one.topic == "*" else one.topic
    me, (other, source) = NAMES[process], _other(one, process)
    if one.direction == "in":
        verdict = judge_incoming(_cell(me), source, _message(one.channel, topic, other, me))
    else:
        verdict = judge_outgoing(_cell(me), _message(one.channel, topic, me, other))
    assert verdict.allowed is (one.verdict != "closed")
    assert verdict.key == (one.channel, topic)


@pytest.mark.parametrize("one", STREAMED, ids=lambda one: f"{one.process}-{one.direction}-{one.channel}-{one.topic}")
def test_a_stream_is_judged_by_what_it_carries(one: Topic) -> None:
    for process in _processes(one):
        me = NAMES[process]
        if one.direction == "in":
            verdict = judge_incoming(_cell(me), "server", _frame(one.channel, one.topic, SERVER, me))
        else:
            verdict = judge_outgoing(_cell(me), _frame(one.channel, one.topic, me, SERVER))
        assert verdict.allowed is (one.verdict != "closed")
        assert verdict.key == (one.channel, one.topic)


@pytest.mark.parametrize("channel", [ADMIN, "client_command", "task", "sm__STREAM"])
def test_no_stream_carries_what_flare_never_streams(channel: str) -> None:
    for name in (PARENT, JOB):
        for topic in ("train.check_status", "abort", "sm__ACK", "admin"):
            assert not judge_incoming(_cell(name), "server", _frame(channel, topic, SERVER, name)).allowed


@pytest.mark.parametrize(
    ("name", "process"),
    [("hospital-1", "parent"), ("hospital-1.job", "job"), ("server", None), ("server.job", None), ("", None),
     ("relay.hospital-1.job", None), ("hospital-1.job.R0", None)],
)  # fmt: skip
def test_only_a_site_and_its_jobs_have_a_list(name: str, process: str | None) -> None:
    assert process_of(name) == process
    if process is None:
        message = _message(ADMIN, "train.check_status", SERVER, name)
        assert not judge_incoming(_cell(name), "server", message).allowed
        assert not judge_outgoing(_cell(name), _message("task", "heart_beat", name, SERVER)).allowed


# ------------------------------------------------------------------------------------------------------- who sent it


@pytest.mark.parametrize(("handle", "source"), [("ext", "server"), ("int", "child"), ("adhoc", None), (None, None)])
def test_the_way_tells_who_sent_it(handle: str | None, source: str | None) -> None:
    connection = SimpleNamespace(connector=SimpleNamespace(handle=handle))
    assert source_of(_cell(PARENT), connection) == source
    assert source_of(_cell(PARENT), None) is None


@pytest.mark.parametrize(
    ("me", "source", "origin"),
    [
        (PARENT, "server", JOB), (PARENT, "server", PARENT), (PARENT, "server", "hospital-2"),
        (PARENT, "server", "serverx"), (PARENT, "server", ""), (PARENT, "server", "a b"),
        (PARENT, "server", "server.a b"), (PARENT, "child", SERVER),
        (PARENT, "child", "hospital-2.job"), (PARENT, "child", PARENT), (JOB, "parent", JOB), (JOB, "server", PARENT),
        (JOB, "parent", "hospital-2"),
    ],
)  # fmt: skip
def test_nobody_speaks_for_somebody_else(me: str, source: passage.Source, origin: str) -> None:
    for channel, topic in ((ADMIN, "admin"), ("cellnet.channel", "bye"), ("client_command", "abort")):
        verdict = judge_incoming(_cell(me), source, _message(channel, topic, origin, me))
        assert (verdict.allowed, verdict.answered) == (False, False)


def test_a_server_cannot_give_a_parents_commands() -> None:
    abort = ("client_command", "abort")
    assert judge_incoming(_cell(JOB), "parent", _message(*abort, PARENT, JOB)).allowed
    assert not judge_incoming(_cell(JOB), "server", _message(*abort, SERVER, JOB)).allowed
    assert not judge_incoming(_cell(JOB), "parent", _message(*abort, SERVER, JOB)).allowed


def test_a_server_cannot_make_a_site_forget_it() -> None:
    bye = ("cellnet.channel", "bye")
    assert judge_incoming(_cell(PARENT), "child", _message(*bye, JOB, PARENT)).allowed
    assert judge_incoming(_cell(JOB), "parent", _message(*bye, PARENT, JOB)).allowed
    for name in (PARENT, JOB):
        assert not judge_incoming(_cell(name), "server", _message(*bye, SERVER, name)).allowed


def test_nothing_comes_by_a_way_that_nobody_knows() -> None:
    assert not judge_incoming(_cell(PARENT), None, _message(ADMIN, "admin", SERVER, PARENT)).allowed


@pytest.mark.parametrize("key", [Key.ORIGIN, Key.DESTINATION, Key.MSG_TYPE])
@pytest.mark.parametrize("value", [None, 1, ["server"], {"a": 1}])
def test_headers_of_another_form_are_closed(key: str, value: object) -> None:
    message = _message(ADMIN, "admin", SERVER, PARENT)
    message.set_header(key, value)
    assert not judge_incoming(_cell(PARENT), "server", message).allowed


def test_flares_own_encryption_is_closed() -> None:
    message = _message(ADMIN, "admin", SERVER, PARENT)
    message.set_header(Key.SECURE, True)
    assert not judge_incoming(_cell(PARENT), "server", message).allowed


_HEADER = st.sampled_from([*vars(Key).values(), *vars(StreamHeaderKey).values()]).filter(
    lambda one: isinstance(one, str)
)
_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=12), st.lists(st.text(max_size=4), max_size=2),
    st.sampled_from([SERVER, PARENT, JOB, MessageType.REQ, MessageType.REPLY, *STREAM, RETURN]),
)  # fmt: skip


@given(headers=st.dictionaries(_HEADER, _VALUE, max_size=12))
def test_whatever_passes_is_open_in_the_list(headers: dict[str, Any]) -> None:
    for name in (PARENT, JOB):
        try:
            verdict = judge_incoming(_cell(name), "server", Message(dict(headers), b""))
        except TypeError:
            continue  # Shutters closes what cannot be judged
        assert not verdict.allowed or (verdict.entry is not None and verdict.entry.verdict != "closed")


# ------------------------------------------------------------------------------------------------------- administration


@pytest.mark.parametrize(
    ("topic", "outer", "origin", "is_open"),
    [
        ("train.check_status", "admin", SERVER, True), ("train.check_status", "train.check_status", SERVER, True),
        ("sys.shell", "admin", SERVER, False), ("sys.shell", "train.check_status", SERVER, False),
        ("train.check_status", "sys.shell", SERVER, False), ("admin", "admin", SERVER, False),
        ("train.notify_job_status", "train.notify_job_status", JOB, True),
        ("train.notify_job_status", "admin", SERVER, False), ("train.deploy", "admin", JOB, False),
        ("train.deploy", "admin", None, False), ("?", "?", SERVER, False), ("sys.shell", "sys.shell", SERVER, False),
    ],
)  # fmt: skip
def test_the_topic_inside_counts(topic: str, outer: str, origin: str | None, is_open: bool) -> None:
    assert (open_admin(PARENT, topic, outer, origin) is not None) is is_open


@pytest.mark.parametrize(
    ("headers", "fits"),
    [({"a": "b", "c": {"d": "\n"}}, True), ({"user": "a\nE:forged"}, False), ({"user": "\x1b[2J"}, False),
     ({"user": "x" * 2000}, False)],
)  # fmt: skip
def test_headers_are_lines(headers: dict[str, Any], fits: bool) -> None:
    assert passage.is_printable(headers) is fits


# -------------------------------------------------------------------------------------------------------------- answers


def _reply(name: str | list[str], origin: str = SERVER, kind: str = MessageType.REPLY) -> Message:
    message = _message("task", "heart_beat", origin, PARENT)
    message.add_headers({Key.MSG_TYPE: kind, Key.REQ_ID: name})
    return message


def test_only_an_awaited_answer_comes_in() -> None:
    cell = _cell(PARENT, waiters={"one": SimpleNamespace(targets=[SERVER])})
    assert judge_incoming(cell, "server", _reply("one")).allowed
    assert judge_incoming(cell, "server", _reply(["one"], kind=MessageType.RETURN)).allowed
    assert not judge_incoming(cell, "server", _reply("two")).allowed
    assert not judge_incoming(cell, "server", _reply(["one", "two"])).allowed
    assert not judge_incoming(cell, "server", _reply([])).allowed
    assert not judge_incoming(cell, "server", _reply("one", origin=SERVER_JOB)).allowed
    assert not judge_incoming(cell, "server", _reply("two", kind=MessageType.RETURN)).allowed


def _streamed_answer(topic: str, request: str, stream: int = 1) -> Message:
    return _frame(
        RETURN, topic, SERVER_JOB, JOB, **{StreamHeaderKey.STREAM_REQ_ID: request, StreamHeaderKey.STREAM_ID: stream}
    )


def test_only_an_awaited_stream_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = _cell(JOB, streams={"one": SimpleNamespace(target=SERVER_JOB)})
    asked = "server_command:get_task"
    assert judge_incoming(cell, "server", _streamed_answer(asked, "one")).allowed
    assert not judge_incoming(cell, "server", _streamed_answer(asked, "two")).allowed
    assert not judge_incoming(cell, "server", _streamed_answer("aux_communication:fed.event", "one")).allowed
    assert not judge_incoming(cell, "server", _streamed_answer("", "one")).allowed
    other = _cell(JOB, streams={"one": SimpleNamespace(target=SERVER)})
    assert not judge_incoming(other, "server", _streamed_answer(asked, "one")).allowed
    monkeypatch.setattr(RxTask, "rx_task_map", {(SERVER_JOB, 7): object()})
    assert judge_incoming(cell, "server", _streamed_answer(asked, "two", stream=7)).allowed


def test_an_answer_does_not_come_but_as_a_stream() -> None:
    assert not judge_incoming(_cell(JOB), "server", _message(RETURN, "server_command:get_task", SERVER, JOB)).allowed


def test_a_stream_may_break_off_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _message(*STREAM, SERVER, JOB)
    broken.add_headers({StreamHeaderKey.DATA_TYPE: StreamDataType.ERROR, StreamHeaderKey.STREAM_ID: 7})
    broken.set_header(StreamHeaderKey.ERROR_MSG, "stopped")
    assert not judge_incoming(_cell(JOB), "server", broken).allowed
    monkeypatch.setattr(RxTask, "rx_task_map", {(SERVER, 7): object()})
    for said in (None, "", 0, []):  # FLARE takes it for a frame with data, whatever its type says
        broken.set_header(StreamHeaderKey.ERROR_MSG, said)
        assert not judge_incoming(_cell(JOB), "server", broken).allowed
    broken.set_header(StreamHeaderKey.ERROR_MSG, "stopped")
    assert judge_incoming(_cell(JOB), "server", broken).allowed


def test_answers_go_out_for_open_requests_only() -> None:
    for topic, is_open in (("train.check_status", True), ("sys.shell", False)):
        reply = _message(ADMIN, topic, PARENT, SERVER)
        reply.set_header(Key.MSG_TYPE, MessageType.REPLY)
        assert judge_outgoing(_cell(PARENT), reply).allowed is is_open
        reply.set_prop(passage.REFUSAL, True)
        assert judge_outgoing(_cell(PARENT), reply).allowed
    for inner, is_open in (("aux_communication:__end_run__", True), ("aux_communication:fed.event", False)):
        assert judge_outgoing(_cell(JOB), _frame(RETURN, inner, JOB, SERVER)).allowed is is_open


def test_nothing_goes_out_under_another_name() -> None:
    assert not judge_outgoing(_cell(PARENT), _message("task", "heart_beat", "hospital-2", SERVER)).allowed


@pytest.mark.parametrize("other", ["hospital-2", "hospital-2.job", "hospital-1x", "relay"])
def test_nothing_goes_from_site_to_site(other: str) -> None:
    for one in TOPICS:
        for process in _processes(one):
            me = NAMES[process]
            if one.direction == "out":
                assert not judge_outgoing(_cell(me), _message(one.channel, one.topic, me, other)).allowed


# ----------------------------------------------------------------------------------------------------------- handing on


@pytest.mark.parametrize(
    ("source", "origin", "destination", "channel", "topic", "passes"),
    [
        ("server", SERVER_JOB, JOB, "aux_communication", "__end_run__", True),
        ("server", SERVER_JOB, JOB, "aux_communication", "__do_task__", False),
        ("server", SERVER_JOB, JOB, "_net_manager", "config_vars", False),
        ("server", SERVER_JOB, JOB, "client_command", "abort", False),
        ("server", SERVER_JOB, "hospital-2", "aux_communication", "__end_run__", False),
        ("server", SERVER_JOB, "hospital-1.job.deep", "aux_communication", "__end_run__", False),
        ("server", SERVER_JOB, "hospital-2.job", "aux_communication", "__end_run__", False),
        ("server", SERVER_JOB, SERVER, "aux_communication", "__end_run__", False),
        ("child", JOB, SERVER_JOB, "server_command", "submit_update", True),
        ("child", JOB, SERVER_JOB, "aux_communication", "fed.event", False),
        ("child", JOB, "hospital-2", "server_command", "submit_update", False),
    ],
)  # fmt: skip
def test_a_parent_hands_on_what_its_job_may_have(
    source: passage.Source, origin: str, destination: str, channel: str, topic: str, passes: bool
) -> None:
    cell = _cell(PARENT)
    assert judge_incoming(cell, source, _frame(channel, topic, origin, destination)).allowed is passes
    assert judge_incoming(cell, source, _message(channel, topic, origin, destination)).allowed is passes


def test_a_job_hands_nothing_on() -> None:
    for other in ("hospital-1.other", f"{JOB}.deep", "hospital-2.job", SERVER_JOB):
        message = _message("aux_communication", "__end_run__", SERVER, other)
        assert not judge_incoming(_cell(JOB), "server", message).allowed


def test_answers_are_handed_on_between_a_job_and_the_server() -> None:
    for source, origin, destination in (("server", SERVER_JOB, JOB), ("child", JOB, SERVER_JOB)):
        answer = _frame(RETURN, "aux_communication:__end_run__", origin, destination)
        assert judge_incoming(_cell(PARENT), source, answer).allowed is (source == "child")  # type: ignore[arg-type]
        reply = _message(ADMIN, "x", origin, destination)
        reply.set_header(Key.MSG_TYPE, MessageType.REPLY)
        assert judge_incoming(_cell(PARENT), source, reply).allowed  # type: ignore[arg-type]
        reply.set_header(Key.DESTINATION, "hospital-2")
        assert not judge_incoming(_cell(PARENT), source, reply).allowed  # type: ignore[arg-type]
