# SPDX-License-Identifier: Apache-2.0
"""Whether one message may pass into, through or out of a site's process. Decides by headers only, before any decoding.

FLARE lets a sender write most headers as it likes, so nothing here believes a name alone: where a message comes from is
told by the connector over which it came, and an answer must be one that this process waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nvflare.fuel.f3.cellnet.cell import CHANNELS_TO_EXCLUDE
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.f3.streaming.stream_const import StreamDataType, StreamHeaderKey
from nvflare.fuel.utils.fobs import FOBSContextKey

from fairflare.flare.topics import ADMIN, ENVELOPE, RETURN, STREAM, Direction, Process, Topic, find

#: Set on a message that was let through to another process; an attribute, so nobody can send it.
FORWARDED = "fairflare_forwarded"
#: Set on our own answers that say no.
REFUSAL = "fairflare_refusal"

#: Characters of a header's text; names and ids are far shorter.
_LONGEST = 1024

Source = Literal["server", "parent", "child"]


@dataclass(frozen=True)
class Passage:
    """What becomes of a message.

    Parameters
    ----------
    allowed
        Whether it may pass.
    entry
        The open topic by which it passed, if it is a request or the answer to one.
    key
        Its channel and topic, of what it carries if it is a stream's frame.
    answered
        Whether a refusal is told to whoever sent it: not where the sender's name is a lie.
    """

    allowed: bool
    entry: Topic | None = None
    key: tuple[str, str] = ("?", "?")
    answered: bool = True


def process_of(name: str) -> Process | None:
    """Which of a site's processes has this name in FLARE's network; ``None`` for servers, relays and others."""
    path = FQCN.split(name)
    if not path[0] or path[0] == FQCN.ROOT_SERVER or len(path) > 2:
        return None
    return "parent" if len(path) == 1 else "job"


def source_of(cell: Any, connection: Any) -> Source | None:
    """Who sent a message: told by the connector, which this process opened itself, not by the sender's name."""
    connector = getattr(connection, "connector", None)
    handle = getattr(connector, "handle", None)
    if handle is None:
        return None
    known: tuple[tuple[Any, Source], ...] = (
        (cell.bb_ext_connector, "server"), (cell.int_listener, "child"), (cell.bb_int_connector, "parent"),
    )  # fmt: skip
    return next((name for one, name in known if one is not None and one.handle == handle), None)


def judge_incoming(cell: Any, source: Source | None, message: Any) -> Passage:
    """Whether a message that has reached this process may be handled or handed on."""
    me, headers = cell.my_info.fqcn, message.headers
    process = process_of(me)
    if process is None or source is None or not isinstance(headers, dict):
        return Passage(False, answered=False)
    kind = headers.get(MessageHeaderKey.MSG_TYPE)
    origin, destination = headers.get(MessageHeaderKey.ORIGIN), headers.get(MessageHeaderKey.DESTINATION)
    if not isinstance(origin, str) or not isinstance(destination, str) or not _may_speak_for(me, source, origin):
        return Passage(False, key=_key(headers), answered=False)
    if headers.get(MessageHeaderKey.SECURE):
        # FLARE would fetch the sender's certificate first; nothing of ours is sent that way.
        return Passage(False, key=_key(headers))
    if destination != me:
        return _judge_forwarding(me, source, destination, kind, headers)
    if kind == MessageType.REQ:
        return _judge_request(cell, process, "in", origin, headers)
    answers = kind in (MessageType.REPLY, MessageType.RETURN)
    return Passage(answers and _is_awaited(cell, origin, kind, headers), key=_key(headers))


def judge_outgoing(cell: Any, message: Any) -> Passage:
    """Whether a message may leave this process."""
    me, headers = cell.my_info.fqcn, message.headers
    process = process_of(me)
    if process is None or not isinstance(headers, dict):
        return Passage(False)
    if message.get_prop(FORWARDED) is True or message.get_prop(REFUSAL) is True:
        return Passage(True)
    kind, destination = headers.get(MessageHeaderKey.MSG_TYPE), headers.get(MessageHeaderKey.DESTINATION)
    if headers.get(MessageHeaderKey.ORIGIN) != me or not isinstance(destination, str):
        return Passage(False, key=_key(headers))
    if kind == MessageType.REQ:
        return _judge_request(cell, process, "out", destination, headers)
    if kind == MessageType.REPLY:
        channel, topic = _key(headers)
        entry = find(process, "in", channel, topic)
        return Passage(_is_open(entry, me, destination), key=(channel, topic))
    # FLARE's note that it could not hand a message on.
    return Passage(kind == MessageType.RETURN and process == "parent", key=_key(headers))


def open_admin(me: str, topic: str, outer: object, origin: object) -> Topic | None:
    """The open entry of an administrative request by the topic inside of it, or ``None``.

    Parameters
    ----------
    me
        This process.
    topic
        The topic inside, by which FLARE goes.
    outer
        The topic by which the message came: the envelope, or the same.
    origin
        Who sent it, as checked on its way in.
    """
    entry = find("parent", "in", ADMIN, topic)
    if topic == ENVELOPE or outer not in (ENVELOPE, topic) or not isinstance(origin, str):
        return None
    return entry if _is_open(entry, me, origin) else None


def is_printable(headers: Mapping[str, Any]) -> bool:
    """Whether the texts among an administrative request's headers fit into one line: FLARE writes them to its audit."""
    return all(one.isprintable() and len(one) <= _LONGEST for one in headers.values() if isinstance(one, str))


def _key(headers: Mapping[str, Any]) -> tuple[str, str]:
    """Channel and topic: those that a stream's frame carries, otherwise the message's own."""
    outer = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
    if outer == STREAM:
        outer = headers.get(StreamHeaderKey.CHANNEL), headers.get(StreamHeaderKey.TOPIC)
    channel, topic = outer
    return (channel, topic) if isinstance(channel, str) and isinstance(topic, str) else ("?", "?")


def _may_speak_for(me: str, source: Source, origin: str) -> bool:
    if FQCN.validate(origin):
        return False
    if source == "server":
        return _is_server(origin)
    if source == "child":
        return FQCN.is_parent(me, origin) is True
    return _is_server(origin) or origin == FQCN.get_parent(me)


def _is_server(name: str) -> bool:
    return bool(FQCN.split(name)[0] == FQCN.ROOT_SERVER)


def _is_site(me: str, name: str) -> bool:
    return bool(FQCN.is_parent(me, name) or FQCN.is_parent(name, me))


def _is_open(entry: Topic | None, me: str, other: str) -> bool:
    if entry is None or entry.verdict == "closed":
        return False
    server, site = _is_server(other), _is_site(me, other)
    return {"server": server, "site": site, "any": server or site}[entry.peer]


def _judge_request(
    cell: Any, process: Process, direction: Direction, other: str, headers: Mapping[str, Any]
) -> Passage:
    me = cell.my_info.fqcn
    key = _key(headers)
    outer = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
    if outer != STREAM:
        entry = find(process, direction, *key)
        # An answer to a streamed request comes as a stream only.
        return Passage(key[0] != RETURN and _is_open(entry, me, other), entry, key)
    if not _is_open(find(process, direction, *STREAM), me, other):
        return Passage(False, key=key)
    if headers.get(StreamHeaderKey.DATA_TYPE) == StreamDataType.ERROR:
        # The sender breaks a stream off; it names no channel. FLARE goes by the text: a frame without one would go to
        # whatever handler it names.
        known = (other, headers.get(StreamHeaderKey.STREAM_ID)) in RxTask.rx_task_map
        ends = known and bool(headers.get(StreamHeaderKey.ERROR_MSG))
        return Passage(direction == "out" or ends, key=STREAM)
    if key[0] == RETURN:
        channel, _, topic = key[1].partition(":")
        entry = find(process, "out" if direction == "in" else "in", channel, topic)
        awaited = direction == "out" or _is_awaited_stream(cell, other, headers)
        return Passage(_is_open(entry, me, other) and awaited, entry, (channel, topic))
    if key[0] in CHANNELS_TO_EXCLUDE or key[0] == STREAM[0]:
        return Passage(False, key=key)
    entry = find(process, direction, *key)
    return Passage(_is_open(entry, me, other), entry, key)


def _judge_forwarding(me: str, source: Source, destination: str, kind: object, headers: Mapping[str, Any]) -> Passage:
    """A parent process hands messages on between its own job processes and the server, and nowhere else."""
    key = _key(headers)
    if FQCN.validate(destination) or process_of(me) != "parent":
        return Passage(False, key=key)
    child = str(headers[MessageHeaderKey.ORIGIN]) if source == "child" else destination
    inward = source == "server" and FQCN.is_parent(me, destination) is True
    outward = source == "child" and _is_server(destination)
    if not (inward or outward):
        return Passage(False, key=key)
    if kind != MessageType.REQ:
        return Passage(kind in (MessageType.REPLY, MessageType.RETURN), key=key)
    direction: Direction = "in" if inward else "out"
    entry = find("job", direction, *key)
    if key[0] == RETURN:
        channel, _, topic = key[1].partition(":")
        entry = find("job", "out" if inward else "in", channel, topic)
    other = str(headers[MessageHeaderKey.ORIGIN]) if inward else destination
    return Passage(_is_open(entry, child, other), None, key)


def _is_awaited(cell: Any, origin: str, kind: object, headers: Mapping[str, Any]) -> bool:
    """Whether this process waits for an answer of this name from there; FLARE decodes first and looks later."""
    names = headers.get(MessageHeaderKey.REQ_ID)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        return False
    waiters = [cell.waiters.get(name) if isinstance(name, str) else None for name in names]
    if any(waiter is None for waiter in waiters):
        return False
    return kind == MessageType.RETURN or all(origin in waiter.targets for waiter in waiters if waiter is not None)


def _is_awaited_stream(cell: Any, origin: str, headers: Mapping[str, Any]) -> bool:
    # Once admitted, a stream's repeated frames come through: FLARE acknowledges them again.
    if (origin, headers.get(StreamHeaderKey.STREAM_ID)) in RxTask.rx_task_map:
        return True
    waiting = cell.fobs_ctx[FOBSContextKey.CELL].requests_dict.get(headers.get(StreamHeaderKey.STREAM_REQ_ID))
    return waiting is not None and waiting.target == origin
