# SPDX-License-Identifier: Apache-2.0
"""What the server's parent process says of itself, for its operator: that it lives, which sites are there, refusals.

FLARE keeps all that in memory and shows it to whoever has an administrator's kit. The operator of the server should
need none: the file is read by ``fairflare server health``, on the server's own machine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from fairflare.flare.provision_files import STORE
from fairflare.record import SERVER_NAME, Refusal, Refused, ServerState, counted, write_state

#: Seconds between two writes. A site gives a sign of life every ten.
PERIOD = 5.0
_LOG = logging.getLogger("fairflare.presence")


class Refusals:
    """What the server itself refused, in this process; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: tuple[Refused, ...] = ()

    def note(self, site: str, task: str, code: str) -> None:
        """Remember one more; ``site`` is empty where it was a person's."""
        with self._lock:
            self._found = counted(self._found, Refusal(site=site, task=task, code=code))

    @property
    def found(self) -> tuple[Refused, ...]:
        """All of them, each kind once."""
        with self._lock:
            return self._found


#: Those of this process.
REFUSALS = Refusals()


class Watch:
    """Which sites are there, and when each was last.

    Parameters
    ----------
    clients
        FLARE's table of the sites that are there: any key -> an object with ``name`` and ``last_connect_time``.
    silence
        Seconds without a sign of life until FLARE takes a site out of the table.
    """

    def __init__(self, clients: Callable[[], Mapping[Any, Any]], silence: float) -> None:
        self._clients = clients
        self._silence = silence
        self._started = time.time()
        self._seen: dict[str, float] = {}

    def look(self) -> ServerState:
        """What is to be written now."""
        there = {str(one.name): float(one.last_connect_time) for one in list(self._clients().values())}
        self._seen |= there
        return ServerState(
            format="fairflare/server/1", started=self._started, written=time.time(), silence=self._silence,
            sites=dict(sorted(self._seen.items())), connected=tuple(sorted(there)), refusals=REFUSALS.found,
        )  # fmt: skip

    def write(self, file: Path) -> None:
        """Write the state; a disk that is full, or a table that just changes, must not end the server."""
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_state(file, self.look())
        except (OSError, RuntimeError) as problem:
            _LOG.warning("FF-SERVER-STATE: %s: the server's state could not be written", type(problem).__name__)


class ServerPresence(FLComponent):  # type: ignore[misc]
    """Component of the server's ``local/resources.json``; takes no arguments.

    FLARE works in the kit's own folder, and tells the parent process alone that the system has started.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin to write when the system has started."""
        if event_type != EventType.SYSTEM_START:
            return
        engine = fl_ctx.get_engine()
        watch = Watch(engine.client_manager.get_clients, float(engine.server.heart_beat_timeout))
        file = Path.cwd() / STORE / SERVER_NAME
        threading.Thread(target=_write_for_ever, args=(watch, file), name="fairflare-presence", daemon=True).start()


def _write_for_ever(watch: Watch, file: Path) -> None:
    while True:
        watch.write(file)
        time.sleep(PERIOD)
