# SPDX-License-Identifier: Apache-2.0
"""Other programs to compare with, each in a virtual environment of its own: their dependencies do not fit ours.

An environment is made the first time that it is needed (``.venv-NAME`` beside ``.venv``; it can be removed at any
time). Where that fails, :class:`Unavailable` says why, and the benchmark goes on without that comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.benchmarks.subjects import ROOT

FLOWER = ("flwr", ("flwr==1.41.0",))
TENSEAL = ("tenseal", ("tenseal==0.3.15", "numpy"))
_READY = "ready.txt"
_LIMIT = 900.0


class Unavailable(Exception):
    """A comparison that cannot be made here; the text says why."""


def interpreter(name: str, packages: tuple[str, ...]) -> Path:
    """The interpreter of the environment ``.venv-NAME`` with ``packages``; raises :class:`Unavailable`."""
    home = ROOT / f".venv-{name}"
    python, ready, wanted = home / "bin" / "python", home / _READY, "\n".join(packages)
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    try:
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [str(python), "-m", "pip", "install", "--quiet", "--no-input", *packages],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT)
    except (OSError, subprocess.SubprocessError) as problem:
        shutil.rmtree(home, ignore_errors=True)
        said = str(getattr(problem, "stderr", "") or problem).strip().splitlines()
        reason = said[-1] if said else type(problem).__name__
        raise Unavailable(f"{', '.join(packages)} cannot be installed here: {reason}") from None
    ready.write_text(wanted, encoding="utf-8")
    return python


class Worker:
    """A script of this package that runs under another interpreter and answers one line of JSON with another.

    So what it measures can alternate with what is measured here; between questions it does nothing.
    """

    def __init__(self, python: Path, script: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        env.pop("PYTHONPATH", None)
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name(script))], env=env, text=True, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **question: Any) -> dict[str, Any]:
        """What the script answers; ``RuntimeError`` with its last words if it ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("no pipes to the other program")
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait(timeout=10)
            self._errors.seek(0)
            raise RuntimeError(f"the other program ended:\n{self._errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
