# SPDX-License-Identifier: Apache-2.0
"""FLARE's real server process, in the hands of somebody hostile: it does its work, and sends whatever it is told.

:meth:`Hostile.python` makes a folder whose ``python3`` stands in for the real one in the kit's own ``sub_start.sh``:
the server is started as ever, with the kit's arguments, keys and certificates. Inside, a thread watches a folder for
requests (JSON), sends each from the server's own cell, and writes the reply beside it. Everything that any site sends
goes through this process; all of it is kept, as bytes, in ``wire.bin``.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import stat
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "FAIRFLARE_HOSTILE"
WIRE = "wire.bin"
HURRY = "hurry"


@dataclass(frozen=True)
class Shot:
    """One message to a site.

    ``kind`` of the payload: ``admin`` (FLARE's administrative message; ``inner`` is the topic inside of it), ``data``
    (a Shareable with a peer context), ``value`` (as it is), ``bulk`` (a bag with one admin message in it). ``file``: an
    administrative message's body are the bytes of this file.
    """

    target: str
    channel: str
    topic: str
    kind: str = "value"
    body: Any = None
    inner: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    outer: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    seconds: float = 4.0
    file: str | None = None


class Hostile:
    """The test's end: hands requests to the hostile server and reads what came back.

    ``hurry``: the server looks for jobs to run twenty times a second; FLARE's own does so once.
    """

    def __init__(self, folder: Path, *, hurry: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if hurry:
            (folder / HURRY).touch()

    def python(self) -> Path:
        """A folder to stand first in the server's PATH."""
        place = self.folder / "bin"
        place.mkdir(exist_ok=True)
        stand_in = place / "python3"
        stand_in.write_text(
            f'#!/bin/sh\n{FOLDER}="{self.folder}" exec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n',
            encoding="utf-8",
        )
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
        return place

    def fire(self, *shots: Shot, wait: float = 30.0) -> list[str]:
        """Send all at once; returns for each the whole reply as one text."""
        names = []
        for shot in shots:
            name = uuid.uuid4().hex
            names.append(name)
            asked = self.folder / f"{name}.tmp"
            asked.write_text(json.dumps({**shot.__dict__}, default=dict), encoding="utf-8")
            asked.rename(self.folder / f"{name}.ask")
        deadline = time.monotonic() + wait
        while missing := [name for name in names if not (self.folder / f"{name}.reply").exists()]:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(missing)} shots without an end after {wait:.0f} s")
            time.sleep(0.05)
        return [(self.folder / f"{name}.reply").read_text(encoding="utf-8", errors="replace") for name in names]

    def wire(self) -> bytes:
        """Every byte that any site has sent so far, one message after the other."""
        file = self.folder / WIRE
        return file.read_bytes() if file.exists() else b""


# ------------------------------------------------------------------------------------------------ inside of the server


def _flat(value: Any, depth: int = 0) -> str:
    """All that a reply holds, as text."""
    if depth > 8:
        return "..."
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("latin-1")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flat(k, depth + 1)}: {_flat(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set)):
        return "[" + ", ".join(_flat(one, depth + 1) for one in value) + "]"
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return f"{type(value).__name__}{_flat(vars(value), depth + 1)}"
    return str(value)


def _message(asked: Mapping[str, Any]) -> Any:
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.fuel.f3.message import Message
    from nvflare.private.admin_defs import Message as AdminMessage

    def admin() -> Any:
        body = asked["body"] if asked.get("file") is None else Path(asked["file"]).read_bytes()
        message = AdminMessage(topic=asked["inner"] or asked["topic"], body=body)
        message.set_headers(dict(asked["headers"]))
        return message

    def data() -> Any:
        shareable = Shareable()
        shareable.update(asked["body"] or {})
        for name, value in asked["headers"].items():
            shareable.set_header(name, value)
        context = FLContext()
        context.set_public_props({"__identity_name__": "server"})
        shareable.set_peer_context(context)
        shareable.set_peer_props({"__identity_name__": "server"})
        return shareable

    def bulk() -> Any:
        from nvflare.fuel.f3.cellnet.utils import encode_payload

        inside = Message({}, admin())
        encode_payload(inside)
        parts = [inside.payload] if isinstance(inside.payload, bytes) else inside.payload
        payload = b"".join(bytes(one) for one in parts)
        return [
            {
                "target": asked["target"], "channel": "admin", "topic": asked["inner"],
                "message": {"headers": dict(inside.headers), "payload": payload},
            }
        ]  # fmt: skip

    makers = {"admin": admin, "data": data, "bulk": bulk, "value": lambda: asked["body"]}
    return Message(dict(asked["outer"]), makers[asked["kind"]]())


def _shoot(file: Path) -> None:
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.utils.fobs import FOBSContextKey

    asked = json.loads(file.read_text(encoding="utf-8"))
    try:
        core = CoreCell.ALL_CELLS["server"]
        message = _message(asked)
        where = {"channel": asked["channel"], "topic": asked["topic"], "target": asked["target"]}
        if asked["stream"]:
            cell = core.fobs_ctx[FOBSContextKey.CELL]
            reply = cell._send_request(**where, request=message, timeout=asked["seconds"], optional=True)
        else:
            reply = core.send_request(**where, request=message, timeout=asked["seconds"], optional=True)
        text = f"headers={_flat(reply.headers)} payload={_flat(reply.payload)}"
    except Exception as error:
        text = f"NOT SENT: {type(error).__name__}: {error}"
    done = file.with_suffix(".done")
    done.write_text(text, encoding="utf-8", errors="replace")
    done.rename(file.with_suffix(".reply"))


def _watch(folder: Path) -> None:
    while True:
        for file in folder.glob("*.ask"):
            taken = file.rename(file.with_suffix(".taken"))
            threading.Thread(target=_shoot, args=(taken,), daemon=True).start()
        time.sleep(0.02)


def _tap(folder: Path) -> None:
    """Keep the bytes of everything that comes from a site, as they come."""
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell

    lock, original = threading.Lock(), CoreCell.process_message

    # The server's own limits refuse to stand before a function of another form.
    def process_message(self: Any, endpoint: Any, connection: Any, app_id: int, message: Any) -> None:
        if not str(endpoint.name).startswith("server"):
            head = repr(message.headers).encode("utf-8", "replace")
            body = bytes(message.payload) if isinstance(message.payload, (bytes, bytearray, memoryview)) else b""
            with lock, (folder / WIRE).open("ab") as wire:
                wire.write(b"\n--- " + head + b"\n" + body)
        original(self, endpoint, connection, app_id, message)

    CoreCell.process_message = process_message


def _hurry() -> None:
    from types import SimpleNamespace

    from nvflare.private.fed.server import job_runner

    job_runner.time = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, 0.05))})


def main(arguments: list[str]) -> None:
    """Stand in for ``python3 -u -m module ...``."""
    rest = [one for one in arguments if one != "-u"]
    if rest[:2] == ["-m", "nvflare.private.fed.app.server.server_train"]:
        folder = Path(os.environ.pop(FOLDER))
        _tap(folder)
        if (folder / HURRY).exists():
            _hurry()
        threading.Thread(target=_watch, args=(folder,), daemon=True).start()
        sys.argv = rest[1:]
        with contextlib.suppress(ValueError):
            sys.path.remove(str(Path(__file__).parent))
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
