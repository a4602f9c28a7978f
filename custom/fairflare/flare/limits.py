# SPDX-License-Identifier: Apache-2.0
"""How much one party may send to the server: a gate before everything that FLARE does with a message.

Two bounds. A party's messages and bytes in a minute, as ``local/limits.json`` says, in the server's parent process and
in a job's process. And, in a job's process, what a site may send in one phase: the plan says how long its answer is,
so a longer message, or many more of them, are none of the protocol's. Whoever passes a bound is not listened to until
the minute, or the phase, is over; that is noted by name. FLARE has received a message by then: the gate saves memory,
decoding and the other parties' time, not the line.

Who sent a message is told by mutual TLS: FLARE takes a connection only if the endpoint's name is the certificate's. In
a job's process messages come through the parent, which has compared each with the sender's token.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nvflare
from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

from fairflare.errors import ServerError
from fairflare.flare.limits_file import Limits, read_limits
from fairflare.flare.presence import REFUSALS

RATE, SIZE, MESSAGES = "FF-LIMIT-RATE", "FF-LIMIT-SIZE", "FF-LIMIT-MESSAGES"
#: Bytes that a message has beside its payload, about: names, token and signature of FLARE's headers.
HEADERS: Final = 1024
#: An answer's head, its texts, and FLARE's own: at most so many bytes beside what the plan says.
SLACK: Final = 1024 * 1024
#: FLARE sends an answer again if its connection broke.
_AGAIN: Final = 3
#: In a phase a site asks for its task, gives signs of life and receipts: so many at once, and so many in a second.
_MESSAGES_AT_ONCE, _MESSAGES_PER_SECOND = 500, 20
_BYTES_PER_SECOND: Final = 64 * 1024
#: FLARE cuts longer messages into frames of a megabyte; smaller ones are allowed for.
_FRAME: Final = 64 * 1024
_MINUTE: Final = 60.0
_PARAMETERS: Final = ("self", "endpoint", "connection", "app_id", "message")
_LOG = logging.getLogger("fairflare.limits")

Clock = Callable[[], float]
Noted = Callable[[str, str], None]


@dataclass
class _Count:
    messages: int = 0
    bytes: int = 0
    streams: dict[object, int] = field(default_factory=dict)
    code: str | None = None


class Minute:
    """What each party sent in the current minute."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._began = clock()
        self._counts: dict[str, _Count] = {}

    def code(self, party: str, size: int) -> str | None:
        """Count a message; why it is not taken, or ``None``."""
        now = self._clock()
        if now - self._began >= _MINUTE:
            self._began, self._counts = now, {}
        count = self._counts.setdefault(party, _Count())
        count.messages += 1
        count.bytes += size
        if count.messages > self._limits.messages_per_minute or count.bytes > self._limits.bytes_per_minute:
            count.code = RATE
        return count.code


class Phase:
    """What each site sent to a job in the current phase.

    Parameters
    ----------
    most
        Bytes of one answer at most, as the plan has it, without its head.
    down
        Bytes of what a site gets: it fetches long vectors piece by piece, each by a message of its own.
    """

    def __init__(self, most: int, down: int = 0, clock: Clock = time.monotonic) -> None:
        self._most, self._down, self._clock = most, down, clock
        self._began = clock()
        self._counts: dict[str, _Count] = {}

    def code(self, site: str, size: int, stream: object) -> str | None:
        """Count a message, which may be a frame of a longer one; why it is not taken, or ``None``."""
        count = self._counts.setdefault(site, _Count())
        if count.code is not None:
            return count.code
        seconds = self._clock() - self._began
        count.messages += 1
        count.bytes += size
        if stream is not None:
            count.streams[stream] = count.streams.get(stream, 0) + size
        pieces = (self._most + self._down) // _FRAME
        longest = size if stream is None else count.streams[stream]
        if longest > self._most + self._most // 8 + SLACK or (
            count.bytes > _AGAIN * (self._most + self._down // 8) + 4 * SLACK + _BYTES_PER_SECOND * seconds
        ):
            count.code = SIZE
        elif count.messages > _AGAIN * pieces + _MESSAGES_AT_ONCE + _MESSAGES_PER_SECOND * seconds:
            count.code = MESSAGES
        return count.code


class Gate:
    """Stands before FLARE's handling of messages, for all cells of this process."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._minute = Minute(limits, clock)
        self._phase: Phase | None = None
        self._noted: Noted | None = None
        self._told: set[tuple[str, str]] = set()

    def begin(self, most: int, down: int, noted: Noted) -> None:
        """A phase begins: bytes of an answer at most, and of what is sent; ``noted`` gets who passes a bound, and how.

        Parameters
        ----------
        most, down
            As in :class:`Phase`.
        noted
            Gets site and code, once each.
        """
        with self._lock:
            self._phase, self._noted = Phase(most, down, self._clock), noted
            self._told = set()

    def refuses(self, own: str, endpoint: str, message: Any) -> bool:
        """Whether a message to the cell ``own`` that came from ``endpoint`` is dropped."""
        party = sender(endpoint, message)
        if party is None:
            return False
        size = HEADERS + _length(message)
        with self._lock:
            code = self._minute.code(party, size)
            if code is None and self._phase is not None and message.headers.get(MessageHeaderKey.DESTINATION) == own:
                code = self._phase.code(party, size, message.headers.get(StreamHeaderKey.STREAM_ID))
            new = code is not None and (party, code) not in self._told
            noted = self._noted
            if code is None or not new:
                return code is not None
            self._told.add((party, code))
        _LOG.warning("%s: nothing more of %s is taken for now", code, party)
        REFUSALS.note(party, "message", code)
        if noted is not None:
            noted(party, code)
        return True


def sender(endpoint: str, message: Any) -> str | None:
    """The party that sent a message, ``None`` for the server's own processes."""
    root = FQCN.split(endpoint)[0] if endpoint else "?"
    if root == FQCN.ROOT_SERVER:  # another process of the server handed it on
        origin = message.headers.get(MessageHeaderKey.ORIGIN) if isinstance(message.headers, dict) else None
        root = FQCN.split(origin)[0] if isinstance(origin, str) else "?"
    return None if root == FQCN.ROOT_SERVER else str(root)


def _length(message: Any) -> int:
    payload = message.payload
    return len(payload) if isinstance(payload, bytes | bytearray | memoryview) else 0


_gate: Gate | None = None
_once = threading.Lock()


def install(limits: Limits) -> Gate:
    """Put the gate in place in this process, once; raises ``FF-SERVER-FLARE`` for another FLARE than 2.9."""
    global _gate
    with _once:
        if _gate is not None:
            return _gate
        found = tuple(inspect.signature(CoreCell.process_message).parameters)
        if not nvflare.__version__.startswith("2.9.") or found != _PARAMETERS:
            raise ServerError(
                "FF-SERVER-FLARE", got=f"FLARE {nvflare.__version__}, or changed messages", expected="FLARE 2.9",
                next_step="install the version that this release was tested with",
            )  # fmt: skip
        gate, process = Gate(limits), CoreCell.process_message

        def process_message(self: Any, endpoint: Any, connection: Any, app_id: int, message: Any) -> None:
            try:
                refused = gate.refuses(self.my_info.fqcn, endpoint.name, message)
            except Exception as problem:  # what cannot be counted is not taken
                _LOG.warning("FF-LIMIT-INTERNAL: %s", type(problem).__name__)
                refused = True
            if not refused:
                process(self, endpoint, connection, app_id, message)

        CoreCell.process_message = process_message
        _gate = gate
        return gate


def begin_phase(most: int, down: int, noted: Noted) -> None:
    """Tell this process's gate that a phase begins; nothing where there is none, as in the simulator."""
    if _gate is not None:
        _gate.begin(most, down, noted)


class ServerLimits(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``; takes no arguments.

    FLARE builds it in the parent process and in each job's process before they connect, and works in the kit's folder.
    A ``limits.json`` that cannot be used ends the process: it does not start without limits.
    """

    def __init__(self) -> None:
        super().__init__()
        install(read_limits(Path.cwd() / "local"))
