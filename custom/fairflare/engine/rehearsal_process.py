# SPDX-License-Identifier: Apache-2.0
"""A process of its own for the work of a rehearsal, so that its memory is the job's and nobody else's.

The request comes as JSON on standard input; lines of JSON go out: ``at`` (how far it is), then ``work`` or ``error``.
Run as ``python -m fairflare.engine.rehearsal_process``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from fairflare import schema
from fairflare.engine.rehearsal_work import Request, Tell, rehearse_work
from fairflare.errors import CatalogError, FairFlareError
from fairflare.evaluation.rehearsal import Found, Work
from fairflare.plan import parse_plan
from fairflare.policy import Entry

#: Seconds between two signs of progress.
_PAUSE = 0.1
_WORK: TypeAdapter[Work] = TypeAdapter(Work)


def run_apart(request: Request, modules: Sequence[str], watch: Tell) -> Work | Found:
    """Do the work in a new process, and say what it found, or why it could not be done.

    Parameters
    ----------
    request
        What to do.
    modules
        Modules that a job's process has loaded as well; they count as memory.
    watch
        Told how far it is.
    """
    command = [sys.executable, "-m", __name__]
    found: Work | Found | None = None
    # An interrupt from the keyboard is for this process, which then ends the other one; the context closes the pipes.
    # A process that is killed leaves its files, so their folder is this one's.
    with (
        tempfile.TemporaryDirectory(prefix="fairflare-rehearsal-") as scratch,
        subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        ) as process,
    ):  # fmt: skip
        try:
            _ask(process, _encoded(request, modules))
            for line in process.stdout or ():
                if not line.endswith(b"\n"):
                    break  # it died while it wrote
                said = json.loads(line)
                if "at" in said:
                    watch(*said["at"])
                else:
                    found = _WORK.validate_python(said["work"]) if "work" in said else Found(**said["error"])
            status = process.wait()
        finally:
            process.kill()
    return found or _ended(status)


def _ask(process: subprocess.Popen[bytes], text: bytes) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:  # it has ended already: see its status
            stream.write(text)


def _ended(status: int) -> Found:
    if status < 0:
        text = f"the rehearsal was ended by signal {-status}"
        step = "most likely there was too little memory: free some, or ask for a smaller training.batch"
        return Found("error", "FF-RUN-KILLED", text, step)
    text = f"the rehearsal ended with exit status {status} and without a result"
    return Found("error", "FF-RUN-REHEARSAL", text, "read what it wrote above; report this as a defect of FairFlare")


def _encoded(request: Request, modules: Sequence[str]) -> bytes:
    data = {
        "plan": schema.canonical(request.plan).decode(), "site": request.site, "entry": request.entry.model_dump(),
        "weights": None if request.weights is None else str(request.weights.resolve()), "sites": request.sites,
        "policy_minimum": request.policy_minimum, "quick": request.quick, "modules": list(modules),
    }  # fmt: skip
    return json.dumps(data).encode()


def _decoded(text: bytes) -> tuple[Request, list[str]]:
    data = json.loads(text)
    entry = schema.parse(Entry, json.dumps(data["entry"]), error=CatalogError, what="catalogue entry")
    weights = None if data["weights"] is None else Path(data["weights"])
    plan = parse_plan(data["plan"])
    numbers = (data["sites"], data["policy_minimum"], data["quick"])
    return Request(plan, data["site"], entry, weights, *numbers), data["modules"]


# ------------------------------------------------------------------------------------------------------- the process


def answered(text: bytes, out: IO[str]) -> None:
    """Do what ``text`` asks for and write lines to ``out``; an error becomes a line as well."""
    last = 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last
        if done == 0 or time.monotonic() - last > _PAUSE:
            last = time.monotonic()
            _say(out, {"at": [stage, done, total]})

    try:
        request, modules = _decoded(text)
        for name in modules:
            importlib.import_module(name)
        _say(out, {"work": asdict(rehearse_work(request, tell))})
    except FairFlareError as problem:
        error = Found("error", problem.code, f"{problem.got}; expected {problem.expected}", problem.next_step)
        _say(out, {"error": asdict(error)})
    except Exception as problem:  # its text may hold anything, so it goes to this terminal and not onto a page
        traceback.print_exc()
        step = "read what was written to the terminal; with too little memory ask for a smaller training.batch"
        _say(out, {"error": asdict(Found("error", "FF-SITE-INTERNAL", f"{type(problem).__name__} in the work", step))})


def _say(out: IO[str], line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def main() -> None:
    """The process: what other code prints goes to standard error, so that only lines of ours go out."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        answered(sys.stdin.buffer.read(), out)


if __name__ == "__main__":
    main()
