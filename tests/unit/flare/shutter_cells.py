# SPDX-License-Identifier: Apache-2.0
"""Two processes with FLARE's own cells, connected on this machine, without a job, for ``test_shutters.py``.

``site`` has what a site's process has: an agent for administration, one for the network, handlers. ``server`` sends
what it is told on its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.net_agent import NetAgent
from nvflare.fuel.f3.message import Message
from nvflare.fuel.sec.audit import AuditService
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from fairflare.flare import door, passage, scrub, shutters
from tests.federation.hostile_server import _flat, _message

HANDLED = "HANDLED"
#: The handlers that a real process has for these, instead of which a word is enough.
PLAIN = ("aux_communication", "server_command", "client_command", "download_service__", "client_api", "metrics")


class Engine:
    """What FLARE's agent asks of the site's engine."""

    @contextlib.contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()


def mutate(name: str) -> None:
    """Take one check out."""

    def admit(cell: Any, source: Any, message: Any) -> passage.Passage:
        return passage.Passage(True)

    if name == "incoming":
        passage.judge_incoming = admit  # type: ignore[assignment]
    if name == "outgoing":
        passage.judge_outgoing = lambda cell, message: passage.Passage(True)  # type: ignore[assignment]
    if name == "inside":
        shutters._Gates.dispatch = lambda gates, agent, request: gates._dispatch(agent, request)  # type: ignore
    if name == "origin":
        passage._may_speak_for = lambda me, source, origin: True
    if name == "scrub":
        scrub.admin_reply = lambda topic, reply: reply  # type: ignore[assignment]


_handled: list[str] = []


def _handle(request: Message) -> Message:
    _handled.append(f"{request.get_header('cn__channel')}:{request.get_header('cn__topic')}")
    return Message({}, HANDLED)


def run_site(name: str, port: int, mode: str) -> None:
    """Serve until standard input ends; each line is a message to send out, each line of output its fate."""
    nvflare_fobs_initialize()
    AuditService.initialize(str(Path("audit.txt").resolve()))
    ConfigService.initialize(section_files={}, config_path=["."], parsed_args=None, var_dict={"key_file": "/etc/key"})
    # The door is another room's: here everything that knocks is let in.
    door.inspect_request = lambda topic, headers, body: None  # type: ignore[assignment]
    if mode != "open":
        shutters.Shutters()
        mutate(mode)
    cell = Cell(name, f"tcp://127.0.0.1:{port}", False, {}, create_internal_listener="." not in name)
    agent = FedAdminAgent("admin_agent", cell, Engine())
    for processor in ClientRequestProcessors.request_processors:
        agent.register_processor(processor)
    NetAgent(cell)
    for channel in PLAIN:
        cell.register_request_cb(channel=channel, topic="*", cb=_handle)
    cell.start()
    _wait(lambda: "server" in cell.core_cell.agents)
    _say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        _say(_send(cell, asked))
    closed = shutters.book().closed if mode != "open" else {}
    counts = sorted([*key, count] for key, count in closed.items())
    _say({"shut": shutters.is_shut(), "closed": counts, "handled": _handled})
    cell.stop()


def run_server(port: int) -> None:
    """Send until standard input ends; each line is a message, each line of output its reply."""
    nvflare_fobs_initialize()
    cell = Cell("server", f"tcp://127.0.0.1:{port}", False, {}, create_internal_listener=False)
    cell.register_request_cb(channel="aux_communication", topic="*", cb=_handle)
    cell.register_request_cb(channel="task", topic="*", cb=_handle)
    cell.start()
    _say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        _wait(lambda asked=asked: asked["target"] in cell.core_cell.agents)
        _say(_send(cell, asked))
    cell.stop()


def _send(cell: Cell, asked: dict[str, Any]) -> str:
    where = {"channel": asked["channel"], "topic": asked["topic"], "target": asked["target"]}
    core: CoreCell = cell.core_cell
    message = _message(asked)
    origin = asked.get("origin")
    original = core._send_to_endpoint
    if origin:

        def lie(endpoint: Any, sent: Message) -> str:
            sent.set_header("cn__origin", origin)
            return str(original(endpoint, sent))

        core._send_to_endpoint = lie
    try:
        if asked["stream"]:
            reply = cell._send_request(**where, request=message, timeout=asked["seconds"], optional=True)
        else:
            reply = core.send_request(**where, request=message, timeout=asked["seconds"], optional=True)
    except Exception as error:
        return f"NOT SENT: {type(error).__name__}: {error}"
    finally:
        if origin:
            del core._send_to_endpoint
    return f"headers={_flat(reply.headers)} payload={_flat(reply.payload)}"


def _wait(look: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit("no connection")
        time.sleep(0.02)


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        if sys.argv[1] == "site":
            run_site(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        else:
            run_server(int(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(0)  # FLARE's threads would go on, and whoever reads from this process would wait for ever
