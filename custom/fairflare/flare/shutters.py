# SPDX-License-Identifier: Apache-2.0
"""Closes every road into and out of a site's processes that a run does not need.

FLARE's server can send any message straight to a hospital's processes: one of them runs ``cat`` on any path and
returns the file. The right to do so is checked only if the server asks for the check. So the hospital closes the roads
itself: :class:`Shutters` is a component of ``local/resources.json``, which FLARE builds in the parent process and in
each job process before they connect. It puts one gate before everything that FLARE does with a message that comes in,
and one before everything that goes out; :mod:`fairflare.flare.topics` lists what may pass.

Whatever is not as in FLARE 2.9 raises: the process does not start.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import nvflare
from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.cellnet import cell as cell_module
from nvflare.fuel.f3.cellnet import core_cell as core_module
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType
from nvflare.fuel.f3.cellnet.defs import ReturnCode as CellReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_ERROR_TOPIC, StreamDataType, StreamHeaderKey
from nvflare.private.admin_defs import Message as AdminMessage
from nvflare.private.admin_defs import error_reply
from nvflare.private.defs import TrainingTopic, new_cell_message
from nvflare.private.fed.client.admin import FedAdminAgent

import fairflare
from fairflare.errors import ShutterError
from fairflare.flare import door, passage, scrub
from fairflare.flare.topics import ADMIN, RETURN, STREAM, TOPICS, Topic

CLOSED = "FF-SHUTTER-CLOSED"
USED = "FF-SHUTTER-USED"
SHUT = "FF-SHUTTER-SHUT"
_VERSION = "2.9."
#: Characters of a text of the other side that FLARE writes into the site's log.
_LONGEST = 300
_KNOWN = frozenset((one.channel, one.topic) for one in TOPICS)
_CHANNELS = frozenset(one.channel for one in TOPICS)
_LOG = logging.getLogger("fairflare.shutters")

#: What is replaced, and the parameters that it must have.
_EXPECTED: Mapping[tuple[Any, str], tuple[str, ...]] = MappingProxyType(
    {
        (CoreCell, "process_message"): ("self", "endpoint", "connection", "app_id", "message"),
        (CoreCell, "_send_to_endpoint"): ("self", "to_endpoint", "message"),
        (CoreCell, "_send_reply"): ("self", "reply", "endpoint"),
        (CoreCell, "fire_and_forget"): ("self", "channel", "topic", "targets", "message", "secure", "optional"),
        (FedAdminAgent, "_dispatch_request"): ("self", "request"),
        (core_module, "encode_payload"): ("message", "encoding_key", "fobs_ctx"),
        (cell_module, "encode_payload"): ("message", "encoding_key", "fobs_ctx"),
    }
)


class Book:
    """Counts what was closed and what was used; tells the site's log each kind once, by names that FLARE has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.closed: Counter[tuple[str, str, str]] = Counter()
        self.used: Counter[tuple[str, str, str]] = Counter()
        self._begun = False

    def begin(self) -> None:
        """Say once that the gates stand; FLARE sets its log up after it has built us."""
        with self._lock:
            first, self._begun = not self._begun, True
        if first:
            _LOG.info("%s %d kinds of messages known, fairflare %s", SHUT, len(TOPICS), fairflare.__version__)

    def refuse(self, way: str, key: tuple[str, str]) -> None:
        """A message was stopped; a name that FLARE does not have is the sender's, and is not repeated."""
        channel = key[0] if key[0] in _CHANNELS else "?"
        self._note(self.closed, (way, channel, key[1] if key in _KNOWN else "?"), logging.WARNING, CLOSED)

    def use(self, entry: Topic) -> None:
        """A request passed, or an answer to one."""
        self._note(self.used, (entry.direction, entry.channel, entry.topic), logging.INFO, USED)

    def _note(self, book: Counter[tuple[str, str, str]], what: tuple[str, str, str], level: int, code: str) -> None:
        with self._lock:
            book[what] += 1
            first = book[what] == 1
        if first:
            _LOG.log(level, "%s %s %s %s", code, *what)


class _Gates:
    """The functions that stand in the place of FLARE's, with the ones that they replace."""

    def __init__(self) -> None:
        self.book = Book()
        #: One start after the other, so that each sees what runs already.
        self._starting = threading.Lock()
        self._process: Callable[..., Any] = CoreCell.process_message
        self._send: Callable[..., Any] = CoreCell._send_to_endpoint
        self._dispatch: Callable[..., Any] = FedAdminAgent._dispatch_request
        self._encode: Callable[..., Any] = core_module.encode_payload

    def install(self) -> None:
        """Put the gates in place, for all cells of this process."""
        gates = self

        def process_message(cell: Any, endpoint: Any, connection: Any, app_id: int, message: Any) -> None:
            gates.incoming(cell, endpoint, connection, app_id, message)

        def _send_to_endpoint(cell: Any, to_endpoint: Any, message: Any) -> str:
            return gates.outgoing(cell, to_endpoint, message)

        def _dispatch_request(agent: Any, request: Any) -> Any:
            return gates.dispatch(agent, request)

        CoreCell.process_message = process_message
        CoreCell._send_to_endpoint = _send_to_endpoint
        FedAdminAgent._dispatch_request = _dispatch_request
        core_module.encode_payload = cell_module.encode_payload = gates.encode
        self._placed = (process_message, _send_to_endpoint, _dispatch_request)

    def in_place(self) -> bool:
        """Whether nobody has taken a gate out since."""
        now = (CoreCell.process_message, CoreCell._send_to_endpoint, FedAdminAgent._dispatch_request)
        encoders = (core_module.encode_payload, cell_module.encode_payload)
        return now == self._placed and all(one == self.encode for one in encoders)

    # ------------------------------------------------------------------------------------------------------- the gates

    def incoming(self, cell: Any, endpoint: Any, connection: Any, app_id: int, message: Any) -> None:
        """Before FLARE counts, routes, decrypts or decodes a message."""
        try:
            source = passage.source_of(cell, connection)
            verdict = passage.judge_incoming(cell, source, message)
        except Exception:
            # A message that cannot even be judged: no word of it goes on, least of all into an answer.
            self.book.refuse("in", ("?", "?"))
            return
        if not verdict.allowed:
            self.book.refuse("in" if _is_request(message) else "answer", verdict.key)
            if verdict.answered:
                self._refuse(cell, endpoint, message)
            return
        _tidy(cell, message)
        if verdict.entry is not None:
            self.book.use(verdict.entry)
        self._process(cell, endpoint, connection, app_id, message)

    def outgoing(self, cell: Any, to_endpoint: Any, message: Any) -> str:
        """Before FLARE encodes and sends a message; FLARE takes the returned code as the reason why not."""
        self.book.begin()
        try:
            verdict = passage.judge_outgoing(cell, message)
            if verdict.allowed and message.get_prop(passage.FORWARDED) is not True:
                scrub.outgoing(message)
        except Exception:
            verdict = passage.Passage(False)
        if not verdict.allowed:
            self.book.refuse("out", verdict.key)
            return str(CellReturnCode.FILTER_ERROR)
        if verdict.entry is not None:
            self.book.use(verdict.entry)
        return str(self._send(cell, to_endpoint, message))

    def dispatch(self, agent: Any, request: Any) -> Any:
        """An open admin request: FLARE goes by the topic inside of it, so that must be the one it came by."""
        starts = isinstance(request.payload, AdminMessage) and request.payload.topic == TrainingTopic.START_JOB
        with self._starting if starts else contextlib.nullcontext():
            return self._dispatch_one(agent, request)

    def _dispatch_one(self, agent: Any, request: Any) -> Any:
        try:
            topic, why = self._look_inside(agent, request)
            if why is None:
                return new_cell_message({}, scrub.admin_reply(topic, self._dispatch(agent, request).payload))
        except Exception:
            why = scrub.ERROR
        return new_cell_message({}, error_reply(scrub.own_text(why)))

    def _look_inside(self, agent: Any, request: Any) -> tuple[str, str | None]:
        """The topic inside of an administrative request, and why it is refused."""
        asked = request.payload
        topic = asked.topic if isinstance(asked, AdminMessage) and isinstance(asked.topic, str) else "?"
        outer, origin = request.get_header(MessageHeaderKey.TOPIC), request.get_header(MessageHeaderKey.ORIGIN)
        entry = passage.open_admin(agent.cell.get_fqcn(), topic, outer, origin)
        if entry is None or not passage.is_printable(asked.headers):
            self.book.refuse("in", (ADMIN, topic))
            return topic, CLOSED
        self.book.use(entry)
        why = door.inspect_running(topic, lambda: agent.app_ctx.get_all_job_ids())
        why = why or door.inspect_request(topic, asked.headers, asked.body)
        if why is not None:
            self.book.refuse("door", (ADMIN, topic))
        return topic, why

    def encode(self, message: Any, encoding_key: str = MessageHeaderKey.PAYLOAD_ENCODING, fobs_ctx: Any = None) -> Any:
        """Before a payload becomes bytes."""
        scrub.peer_context(message.payload)
        return self._encode(message, encoding_key, fobs_ctx)

    def _refuse(self, cell: Any, endpoint: Any, message: Any) -> None:
        """Answer a closed request with our code, so that whoever asked does not wait."""
        try:
            _answer(cell, endpoint, message.headers)
        except Exception:
            _LOG.debug("%s: no answer sent", CLOSED)


def _is_request(message: Any) -> bool:
    headers = message.headers
    return not isinstance(headers, dict) or headers.get(MessageHeaderKey.MSG_TYPE) == MessageType.REQ


def _tidy(cell: Any, message: Any) -> None:
    """Take off what FLARE would act upon by itself, or write into the site's log."""
    text = message.get_header(StreamHeaderKey.ERROR_MSG)
    if text is not None and not (isinstance(text, str) and text.isprintable() and len(text) <= _LONGEST):
        message.set_header(StreamHeaderKey.ERROR_MSG, scrub.ERROR)
    # FLARE connects to any address that stands here.
    message.remove_header(MessageHeaderKey.CONN_URL)
    if message.get_header(MessageHeaderKey.DESTINATION) != cell.my_info.fqcn:
        message.set_prop(passage.FORWARDED, True)
    if message.get_header(MessageHeaderKey.MSG_TYPE) == MessageType.RETURN:
        # A note that something was not delivered needs no content, and content would be decoded.
        message.payload = None
        message.remove_header(MessageHeaderKey.PAYLOAD_ENCODING)


def _answer(cell: Any, endpoint: Any, asked: Mapping[str, Any]) -> None:
    if asked.get(MessageHeaderKey.MSG_TYPE) != MessageType.REQ:
        return
    me, origin = cell.my_info.fqcn, asked.get(MessageHeaderKey.ORIGIN)
    outer = asked.get(MessageHeaderKey.CHANNEL), asked.get(MessageHeaderKey.TOPIC)
    if outer == STREAM:
        first = asked.get(StreamHeaderKey.SEQUENCE) == 0 and asked.get(StreamHeaderKey.CHANNEL) != RETURN
        if first:
            _break_stream(cell, str(origin), asked)
        return
    if not asked.get(MessageHeaderKey.REPLY_EXPECTED):
        return
    body = error_reply(CLOSED) if outer[0] == ADMIN else None
    headers = {
        MessageHeaderKey.RETURN_CODE: CellReturnCode.INVALID_REQUEST, MessageHeaderKey.ERROR: CLOSED,
        MessageHeaderKey.CHANNEL: outer[0], MessageHeaderKey.TOPIC: outer[1], MessageHeaderKey.ORIGIN: me,
        MessageHeaderKey.FROM_CELL: me, MessageHeaderKey.TO_CELL: endpoint.name, MessageHeaderKey.DESTINATION: origin,
        MessageHeaderKey.REQ_ID: asked.get(MessageHeaderKey.REQ_ID, ""), MessageHeaderKey.MSG_TYPE: MessageType.REPLY,
        MessageHeaderKey.ROUTE: [(me, time.time())],
    }  # fmt: skip
    reply = Message(headers, body)
    reply.set_prop(passage.REFUSAL, True)
    cell._send_reply(reply, endpoint)


def _break_stream(cell: Any, origin: str, asked: Mapping[str, Any]) -> None:
    kept = (StreamHeaderKey.STREAM_ID, StreamHeaderKey.CHANNEL, StreamHeaderKey.TOPIC, StreamHeaderKey.STREAM_REQ_ID)
    headers = {name: asked[name] for name in kept if name in asked}
    headers |= {
        StreamHeaderKey.DATA_TYPE: StreamDataType.ERROR, StreamHeaderKey.ERROR_MSG: CLOSED,
        StreamHeaderKey.ERROR_TYPE: "StreamError",
    }  # fmt: skip
    cell.fire_and_forget(STREAM_CHANNEL, STREAM_ERROR_TOPIC, origin, Message(headers), optional=True)


_gates: _Gates | None = None
_once = threading.Lock()


def verify_flare(version: str = nvflare.__version__) -> None:
    """Raise :class:`ShutterError` unless FLARE is the one whose messages are listed."""
    if not version.startswith(_VERSION):
        raise _unknown(f"FLARE {version}")
    for (owner, name), expected in _EXPECTED.items():
        function = vars(owner).get(name)
        found = tuple(inspect.signature(function).parameters) if callable(function) else ()
        if found != expected:
            raise _unknown(f"another form of {name}")


def close_shutters() -> None:
    """Put the gates in place in this process, once; raises :class:`ShutterError` where they would not hold."""
    global _gates
    with _once:
        if _gates is not None:
            if not _gates.in_place():
                raise _unknown("a gate that was taken out")
            return
        verify_flare()
        if CoreCell.ALL_CELLS:
            raise ShutterError(
                "FF-SHUTTER-LATE", got="a process that is connected already",
                expected="shutters closed before the connection",
                next_step="name Shutters as a component in local/resources.json, and use FLARE's process launcher",
            )  # fmt: skip
        gates = _Gates()
        gates.install()
        _gates = gates


def is_shut() -> bool:
    """Whether the gates stand in this process, all of them and unchanged."""
    return _gates is not None and _gates.in_place()


def book() -> Book:
    """What was closed and what was used in this process."""
    if _gates is None:
        raise _unknown("open shutters")
    return _gates.book


def _unknown(got: str) -> ShutterError:
    return ShutterError(
        "FF-SHUTTER-FLARE", got=got, expected="NVIDIA FLARE 2.9 as its authors made it, with the shutters closed",
        next_step="install nvflare 2.9.0; do not start this site with another version",
    )  # fmt: skip


class Shutters(FLComponent):  # type: ignore[misc]
    """Closes this process's shutters when FLARE builds it. Raises :class:`~fairflare.errors.ShutterError`."""

    def __init__(self) -> None:
        super().__init__()
        close_shutters()
