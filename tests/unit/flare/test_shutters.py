# SPDX-License-Identifier: Apache-2.0
"""The gates on FLARE's own cells and agents: what is closed answers a code, and without the gate the secret comes out.

Every process here is a real one (``shutter_cells.py``): closing the shutters changes the whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from nvflare.fuel.f3.cellnet.cell import CHANNELS_TO_EXCLUDE
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey as Key
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamDataType, StreamHeaderKey
from nvflare.private.admin_defs import Message as AdminMessage
from nvflare.private.admin_defs import ok_reply

from fairflare.errors import ShutterError
from fairflare.flare import door, passage, shutters
from fairflare.flare.shutters import CLOSED, verify_flare
from fairflare.flare.topics import ADMIN, RETURN, STREAM, TOPICS, Topic

ROOT = Path(__file__).resolve().parents[3]
HANDLED = "HANDLED"
NAMES = {"parent": "hospital-1", "job": "hospital-1.job"}
SECRET = "the patients of ward 7"


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )


class End:
    """One of the two processes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{arguments[0]}.log"
        with self.log.open("w") as log:
            self.process = self._start(folder, log, arguments)
        assert self._line() == "ready", self.log.read_text()

    @staticmethod
    def _start(folder: Path, log: IO[str], arguments: tuple[str, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.unit.flare.shutter_cells", *arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def _line(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                return json.loads(line)
        raise AssertionError(self.log.read_text())

    def send(self, target: str, channel: str, topic: str, **others: Any) -> str:
        """Send one message, and return everything that came back as one text."""
        asked = {
            "target": target, "channel": channel, "topic": topic, "kind": "value", "body": None, "inner": None,
            "headers": {}, "outer": {}, "stream": False, "seconds": 5.0, **others,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return str(self._line())

    def ask(self, target: str, topic: str, body: str = "", outer: str = "admin", **others: Any) -> str:
        """Send an administrative request in an envelope."""
        return self.send(target, ADMIN, outer, kind="admin", inner=topic, body=body, **others)

    def end(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self._line()
        self.process.wait(timeout=20)
        return last

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def _pair(folder: Path, process: str, mode: str) -> Iterator[tuple[End, End]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ends: list[End] = []
    try:
        ends.append(End(folder, "server", port))
        ends.append(End(folder, "site", NAMES[process], port, mode))
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.kill()


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ward") / "secret.txt"
    file.write_text(SECRET, encoding="utf-8")
    return file


def _closed(process: str, direction: str) -> list[Topic]:
    return [
        one
        for one in TOPICS
        if one.verdict == "closed" and one.direction == direction and one.process in (process, "both")
    ]


def _fire(server: End, one: Topic, name: str, *, stream: bool, secret: Path) -> str:
    topic = "anything" if one.topic == "*" else one.topic
    if one.channel == ADMIN:
        return server.ask(name, topic, f"cat {secret}")
    kind = "data" if one.channel == "aux_communication" else "value"
    return server.send(name, one.channel, topic, kind=kind, body={}, stream=stream)


# -------------------------------------------------------------------------------------------------- shutters closed


@pytest.fixture(scope="module", params=["parent", "job"])
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, secret: Path
) -> tuple[str, dict[tuple[str, str, bool], str], Any, str]:
    """Everything closed, sent to a process of a site: straight, and as a stream where FLARE streams."""
    process: str = request.param
    found = {}
    with _pair(tmp_path_factory.mktemp("cells"), process, "shut") as (server, site):
        for one in _closed(process, "in"):
            for stream in (False, True):
                if not stream or one.channel not in (*CHANNELS_TO_EXCLUDE, "cellnet.channel"):
                    text = _fire(server, one, NAMES[process], stream=stream, secret=secret)
                    found[(one.channel, one.topic, stream)] = text
        last = site.end()
        log = site.log.read_text()
    return process, found, last, log


def test_everything_closed_answers_with_the_code_and_nothing_else(
    answers: tuple[str, dict[tuple[str, str, bool], str], Any, str],
) -> None:
    _, found, _, _ = answers
    assert len(found) > 40
    for key, text in found.items():
        assert CLOSED in text, key
        assert text.endswith((
            "payload=None", "body: FF-SHUTTER-CLOSED, headers: {_rtnCode: _error}}",
        )), key  # fmt: skip
        assert SECRET not in text
        assert HANDLED not in text
        assert str(ROOT) not in text


def test_everything_closed_is_counted_and_told_once(
    answers: tuple[str, dict[tuple[str, str, bool], str], Any, str],
) -> None:
    process, found, last, log = answers
    assert last["shut"] is True
    assert sum(count for way, *_, count in last["closed"] if way == "in") == len(found)
    told = [line for line in log.splitlines() if line.startswith(f"{CLOSED} in ")]
    assert (
        len(told)
        == len(set(told))
        == len({(channel, topic) for way, channel, topic, _ in last["closed"] if way == "in"})
    )
    if process == "parent":
        assert f"{CLOSED} in admin sys.shell" in told


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[End, End]]:
    with _pair(tmp_path_factory.mktemp("cells"), "parent", "shut") as pair:
        yield pair


def test_an_open_request_is_answered(parent: tuple[End, End]) -> None:
    assert '{"version": "2.9.0"}' in parent[0].ask("hospital-1", "sys.report_version")


def test_the_topic_inside_counts(parent: tuple[End, End], secret: Path) -> None:
    for outer in ("admin", "train.check_status", "sys.shell"):
        assert CLOSED in parent[0].ask("hospital-1", "sys.shell", f"cat {secret}", outer=outer)


def test_an_exception_leaves_as_a_code(parent: tuple[End, End]) -> None:
    # The agent's engine here is none of FLARE's, and FLARE would say so in words.
    text = parent[0].ask("hospital-1", "train.check_status")
    assert "FF-SHUTTER-ERROR" in text
    assert "engine" not in text


_REPORT = "train.notify_job_status"


def test_a_liar_gets_no_answer(tmp_path: Path) -> None:
    with _pair(tmp_path, "parent", "shut") as (server, site):
        text = server.ask("hospital-1", _REPORT, outer=_REPORT, origin="hospital-1.job", seconds=1.0)
        assert text == "headers={cn__return_code: timeout} payload=None"
        assert site.end()["closed"] == [["in", ADMIN, _REPORT, 1]]


def test_a_forged_user_reaches_no_audit(parent: tuple[End, End]) -> None:
    text = parent[0].ask("hospital-1", "sys.report_version", headers={"user_name": "x\n[E:forged]"})
    assert CLOSED in text


def test_a_message_that_is_none_is_closed(parent: tuple[End, End]) -> None:
    assert CLOSED in parent[0].send("hospital-1", ADMIN, "admin", kind="value", body={"topic": "sys.shell"})
    assert CLOSED in parent[0].send("hospital-1", "a\nb", "c\nd")


def test_the_site_may_send_what_it_needs_and_no_more(parent: tuple[End, End]) -> None:
    site = parent[1]
    assert HANDLED in site.send("server", "task", "heart_beat", kind="data")
    for stream in (False, True):
        text = site.send("server", "aux_communication", "fed.event", kind="data", stream=stream)
        assert HANDLED not in text
        assert "filter_error" in text
    assert "filter_error" in site.send("server", "aux_communication", "ObjectStreamer.Request", kind="data")


def test_a_job_may_end_and_is_not_told_what_to_do(tmp_path: Path) -> None:
    with _pair(tmp_path, "job", "shut") as (server, site):
        for stream in (False, True):
            assert HANDLED in server.send(NAMES["job"], "aux_communication", "__end_run__", kind="data", stream=stream)
            assert CLOSED in server.send(NAMES["job"], "aux_communication", "__do_task__", kind="data", stream=stream)
        assert CLOSED in server.send(NAMES["job"], "client_command", "abort")
        assert HANDLED in site.send("server", "aux_communication", "__task_check__", kind="data", stream=True)
        assert "filter_error" in site.send("server", "task", "heart_beat", kind="data")


def test_no_frame_of_a_stream_turns_to_another_handler(tmp_path: Path) -> None:
    def frame(server: End, topic: str, number: int, kind: int) -> None:
        outer = {
            StreamHeaderKey.STREAM_ID: 7, StreamHeaderKey.SEQUENCE: number, StreamHeaderKey.DATA_TYPE: kind,
            StreamHeaderKey.CHANNEL: "aux_communication", StreamHeaderKey.TOPIC: topic,
        }  # fmt: skip
        server.send(NAMES["job"], *STREAM, outer=outer, seconds=0.5)

    with _pair(tmp_path, "job", "shut") as (server, site):
        frame(server, "__end_run__", 1, StreamDataType.FINAL)
        frame(server, "__do_task__", 0, StreamDataType.ERROR)
        frame(server, "__do_task__", 0, StreamDataType.CHUNK)
        frame(server, "__end_run__", 0, StreamDataType.CHUNK)
        assert site.end()["handled"] == ["aux_communication:__end_run__"]


# -------------------------------------------------------------------------------------------- and each gate taken out


def test_without_shutters_the_secret_comes_out(tmp_path: Path, secret: Path) -> None:
    with _pair(tmp_path, "parent", "open") as (server, site):
        assert SECRET in server.ask("hospital-1", "sys.shell", f"cat {secret}")
        assert "streaming_max_blob_size" in server.send("hospital-1", "_net_manager", "config_vars")
        assert "Thread:" in server.send("hospital-1", "_net_manager", "process_info")
        for stream in (False, True):
            assert HANDLED in server.send("hospital-1", "aux_communication", "fed.event", kind="data", stream=stream)
            assert HANDLED in site.send("server", "aux_communication", "fed.event", kind="data", stream=stream)
        assert "engine must be" in server.ask("hospital-1", "train.check_status")


@pytest.mark.parametrize("mode", ["incoming", "outgoing", "inside", "scrub", "origin"])
def test_without_one_check_something_comes_out(tmp_path: Path, secret: Path, mode: str) -> None:
    with _pair(tmp_path, "parent", mode) as (server, site):
        if mode == "incoming":
            # Its answer is still held back on its way out, but the handler has run.
            server.send("hospital-1", "client_command", "abort", seconds=1.0)
            assert CLOSED in server.ask("hospital-1", "sys.shell", f"cat {secret}")
            assert site.end()["handled"] == ["client_command:abort"]
        if mode == "inside":
            assert SECRET in server.ask("hospital-1", "sys.shell", f"cat {secret}")
        if mode == "outgoing":
            assert HANDLED in site.send("server", "aux_communication", "fed.event", kind="data")
        if mode == "scrub":
            assert "engine must be" in server.ask("hospital-1", "train.check_status")
        if mode == "origin":
            server.ask("hospital-1", _REPORT, outer=_REPORT, origin="hospital-1.job", seconds=1.0)
            assert site.end()["closed"] == []


# -------------------------------------------------------------------------------------------------- one gate by itself


class Agent:
    """An agent of FLARE's whose answer is known."""

    def __init__(self, said: object = None) -> None:
        self.said, self.asked = said, 0
        self.cell = SimpleNamespace(get_fqcn=lambda: "hospital-1")
        self.running: list[str] = []
        self.app_ctx = SimpleNamespace(get_all_job_ids=lambda: list(self.running))

    def answer(self, _: object) -> Message:
        self.asked += 1
        if isinstance(self.said, Exception):
            raise self.said
        return Message({}, self.said)


def _gates(agent: Agent) -> shutters._Gates:
    gates = shutters._Gates()
    gates._dispatch = lambda one, request: agent.answer(request)
    return gates


def _request(topic: str, **headers: str) -> Message:
    asked = AdminMessage(topic, "body")
    asked.set_headers(headers)
    return Message({Key.TOPIC: "admin", Key.ORIGIN: "server"}, asked)


def test_of_many_starts_at_once_a_few_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "inspect_request", lambda *_: None)
    agent = Agent()
    gates = _gates(agent)

    def start(one: object, request: object) -> Message:
        time.sleep(0.02)  # FLARE's own takes its time
        agent.running.append("x")
        return Message({}, ok_reply("x", "ok"))

    gates._dispatch = start
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(gates.dispatch(agent, _request("train.start_job")).payload.body))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(agent.running) == said.count("OK") == door.MOST_RUNNING
    assert sum("FF-JOB-REQUEST train.start_job" in one for one in said) == 12 - door.MOST_RUNNING


def test_the_door_is_asked_with_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(door, "inspect_request", lambda *what: seen.append(what))
    agent = Agent(ok_reply("x", "deployed"))
    reply = _gates(agent).dispatch(agent, _request("train.deploy", job_id="1")).payload
    assert (reply.body, agent.asked, seen) == ("ok", 1, [("train.deploy", {"job_id": "1"}, "body")])


@pytest.mark.parametrize(
    ("why", "left"),
    [("FF-JOB-META meta.json: got a, expected b", "FF-JOB-META meta.json: got a, expected b"),
     ("/home/kit is wrong", "FF-SHUTTER-ERROR")],
)  # fmt: skip
def test_what_the_door_refuses_never_reaches_flare(why: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "inspect_request", lambda *what: why)
    agent = Agent(ok_reply("x", "deployed"))
    gates = _gates(agent)
    assert gates.dispatch(agent, _request("train.deploy")).payload.body == left
    assert agent.asked == 0
    assert gates.book.closed == {("door", ADMIN, "train.deploy"): 1}


@pytest.mark.parametrize("said", [ValueError("/home/kit"), None, "text", ok_reply("x", "no json at /home/kit")])
def test_whatever_goes_wrong_inside_leaves_as_a_code(said: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "inspect_request", lambda *what: None)
    agent = Agent(said)
    assert _gates(agent).dispatch(agent, _request("train.check_status")).payload.body == "FF-SHUTTER-ERROR"


def test_a_door_that_breaks_is_a_closed_door(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*what: object) -> None:
        raise RuntimeError(str(what))

    monkeypatch.setattr(door, "inspect_request", broken)
    agent = Agent(ok_reply("x", "ok"))
    assert _gates(agent).dispatch(agent, _request("train.abort")).payload.body == "FF-SHUTTER-ERROR"
    assert agent.asked == 0


@pytest.mark.parametrize("payload", [None, b"bytes", {"topic": "train.check_status"}, AdminMessage("x", "")])
def test_what_is_no_administrative_message_is_closed(payload: object) -> None:
    agent = Agent(ok_reply("x", "ok"))
    request = Message({Key.TOPIC: "admin", Key.ORIGIN: "server"}, payload)
    assert _gates(agent).dispatch(agent, request).payload.body == CLOSED
    assert agent.asked == 0


def test_a_header_of_two_lines_is_closed() -> None:
    agent = Agent(ok_reply("x", "ok"))
    assert (
        _gates(agent).dispatch(agent, _request("train.check_status", user_name="x\n[E:forged]")).payload.body == CLOSED
    )
    assert agent.asked == 0


_CELL = SimpleNamespace(my_info=SimpleNamespace(fqcn="hospital-1"))


def test_flare_is_not_told_where_to_connect() -> None:
    message = Message({Key.CONN_URL: "tcp://elsewhere:1", Key.DESTINATION: "hospital-1"}, b"")
    shutters._tidy(_CELL, message)
    assert Key.CONN_URL not in message.headers
    assert message.get_prop(passage.FORWARDED) is None


def test_what_is_handed_on_is_marked() -> None:
    message = Message({Key.DESTINATION: "hospital-1.job"}, b"")
    shutters._tidy(_CELL, message)
    assert message.get_prop(passage.FORWARDED) is True


def test_a_returned_message_is_not_decoded() -> None:
    message = Message({Key.MSG_TYPE: "return", Key.PAYLOAD_ENCODING: "fobs"}, b"evil")
    shutters._tidy(_CELL, message)
    assert (message.payload, message.headers.get(Key.PAYLOAD_ENCODING)) == (None, None)


@pytest.mark.parametrize(
    ("said", "left"),
    [("a\nforged line", "FF-SHUTTER-ERROR"), ("x" * 400, "FF-SHUTTER-ERROR"), (["a"], "FF-SHUTTER-ERROR"),
     ("stream closed", "stream closed")],
)  # fmt: skip
def test_a_text_of_the_other_side_is_one_short_line(said: object, left: str) -> None:
    message = Message({StreamHeaderKey.ERROR_MSG: said, Key.DESTINATION: "hospital-1"}, b"")
    shutters._tidy(_CELL, message)
    assert message.headers[StreamHeaderKey.ERROR_MSG] == left


@pytest.mark.parametrize("headers", [None, [], "text", {"cn__msg_type": []}])
def test_what_cannot_be_judged_goes_nowhere(headers: Any) -> None:
    gates = shutters._Gates()
    reached: list[object] = []
    gates._process = lambda *what: reached.append(what)
    gates._send = lambda *what: reached.append(what)
    message = Message(headers, b"")
    gates.incoming(object(), None, None, 1, message)
    assert gates.outgoing(object(), None, message) == "filter_error"
    assert reached == []
    assert sum(gates.book.closed.values()) == 2


def test_names_of_the_sender_are_not_written_down() -> None:
    book = shutters.Book()
    for key in (("a\nb", "c"), (ADMIN, "forged"), (ADMIN, "sys.shell")):
        book.refuse("in", key)
    assert set(book.closed) == {("in", "?", "?"), ("in", ADMIN, "?"), ("in", ADMIN, "sys.shell")}


# ------------------------------------------------------------------------------------------------------- closing or not


def test_in_this_process_they_are_open() -> None:
    assert not shutters.is_shut()
    with pytest.raises(ShutterError) as caught:
        shutters.book()
    assert caught.value.code == "FF-SHUTTER-FLARE"


def test_closing_twice_is_closing_once() -> None:
    done = _run(
        "from fairflare.flare.shutters import *\n"
        "from nvflare.fuel.f3.cellnet.core_cell import CoreCell\n"
        "Shutters(); one = CoreCell.process_message; Shutters(); print(is_shut(), one is CoreCell.process_message)"
    )
    assert done.stdout.strip() == "True True"


def test_a_gate_that_is_taken_out_is_noticed() -> None:
    done = _run(
        "from fairflare.flare.shutters import *\n"
        "from nvflare.fuel.f3.cellnet import core_cell, cell\n"
        "from nvflare.private.fed.client.admin import FedAdminAgent as agent\n"
        "Shutters(); core = core_cell.CoreCell\n"
        "for owner, name in ((core, 'process_message'), (core, '_send_to_endpoint'), (agent, '_dispatch_request'),\n"
        "                    (core_cell, 'encode_payload'), (cell, 'encode_payload')):\n"
        "    gate = getattr(owner, name)\n"
        "    setattr(owner, name, lambda *all: None)\n"
        "    try: Shutters()\n"
        "    except Exception as error: print(name, is_shut(), error.code)\n"
        "    setattr(owner, name, gate)\n"
        "    assert is_shut()\n"
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert all(line.endswith(" False FF-SHUTTER-FLARE") for line in lines)


@pytest.mark.parametrize("version", ["2.8.0", "2.10.0", "3.0.0", "2.90.1", ""])
def test_another_flare_does_not_start(version: str) -> None:
    with pytest.raises(ShutterError) as caught:
        verify_flare(version)
    assert caught.value.code == "FF-SHUTTER-FLARE"


def test_this_flare_is_known() -> None:
    verify_flare()


@pytest.mark.parametrize("key", list(shutters._EXPECTED), ids=lambda key: f"{key[0].__name__}.{key[1]}")
def test_a_function_of_another_form_does_not_start(key: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = key
    monkeypatch.setattr(owner, name, lambda self: None)
    with pytest.raises(ShutterError):
        verify_flare()
    monkeypatch.delattr(owner, name)
    with pytest.raises(ShutterError):
        verify_flare()


def test_a_process_that_is_connected_is_too_late() -> None:
    done = _run(
        "from fairflare.flare.shutters import *\n"
        "from nvflare.fuel.f3.cellnet.core_cell import CoreCell\n"
        "CoreCell.ALL_CELLS['hospital-1'] = object()\n"
        "Shutters()"
    )
    assert done.returncode != 0
    assert "FF-SHUTTER-LATE" in done.stderr


def test_flare_builds_them_from_a_sites_resources() -> None:
    # As FLARE does it: by class path and arguments.
    done = _run(
        "from nvflare.fuel.utils.class_utils import instantiate_class\n"
        "from fairflare.flare.shutters import is_shut\n"
        "instantiate_class('fairflare.flare.shutters.Shutters', {}); print(is_shut())"
    )
    assert done.stdout.strip() == "True"


def test_streams_and_their_answers_are_the_only_wrappers() -> None:
    assert STREAM == ("sm__STREAM", "sm__DATA")
    assert RETURN == "return_only"
