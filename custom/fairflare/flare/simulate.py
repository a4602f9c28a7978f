# SPDX-License-Identifier: Apache-2.0
"""Runs a job with ``nvflare simulator``: one process per hospital, and an exit status that tells the truth.

FLARE's simulator exits 0 when clients fail, and erases its workspace. So each start gets a fresh workspace inside the
run's folder (``session-1``, ``session-2`` ...), and success is what :func:`fairflare.engine.verify.verify_run` says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fairflare import schema
from fairflare.errors import RunError
from fairflare.flare.names import ALLOWED, RESUME
from fairflare.policy import CATALOG_NAME, DataCatalog
from fairflare.record import FILE_NAME, PROGRESS_NAME

LOG = "flare.log"
_SERVER = Path("server") / "simulate_job" / "fairflare"


class Simulation:
    """One start of a job in ``nvflare simulator``.

    Parameters
    ----------
    job
        The job's folder.
    folder
        The run's folder; the session's workspace is made inside it.
    catalog
        Catalogue with an entry per site (``sites`` form).
    sites
        Names of the sites; each becomes a process.
    resume
        Folder of an unfinished run's record to go on from.
    allowed
        Classes that FLARE may build, one by one.
    """

    def __init__(
        self,
        job: Path,
        folder: Path,
        catalog: DataCatalog,
        sites: Sequence[str],
        *,
        resume: Path | None = None,
        allowed: Sequence[str] = ALLOWED,
    ) -> None:
        self.job = job.resolve()
        self.sites = tuple(sites)
        self.workspace = _fresh(folder.resolve())
        self.records = self.workspace / _SERVER
        self.log = self.workspace.with_suffix(".log")
        local = self.workspace / "local"
        local.mkdir(parents=True)
        resources = {"format_version": 2, "class_allow_list": list(allowed)}
        (local / "resources.json").write_text(json.dumps(resources, indent=2) + "\n", encoding="utf-8")
        (local / CATALOG_NAME).write_text(schema.pretty(catalog), encoding="utf-8")
        if resume is not None:
            (local / RESUME).write_text(json.dumps({"folder": str(resume.resolve())}), encoding="utf-8")

    def run(
        self, watch: Callable[[Path], None] = lambda _: None, interval: float = 0.2, timeout: float | None = None
    ) -> int:
        """Start FLARE, call ``watch(progress file)`` until it ends, and return its (untrustworthy) exit code.

        An interrupt, or ``timeout`` seconds, end the whole process group that was started here, and nothing else.
        """
        command = [
            sys.executable, "-m", "nvflare.cli", "simulator", str(self.job), "-w", str(self.workspace),
            "-c", ",".join(self.sites), "-t", str(len(self.sites)),
        ]  # fmt: skip
        waited = 0.0
        with self.log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, arguments made above
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )  # fmt: skip
            try:
                while True:
                    watch(self.records / PROGRESS_NAME)
                    try:
                        return process.wait(timeout=interval)
                    except subprocess.TimeoutExpired:
                        waited += interval
                        if timeout is not None and waited > timeout:
                            raise _too_long(timeout) from None
            finally:
                _end_group(process)
                watch(self.records / PROGRESS_NAME)


def latest_record_folder(folder: Path) -> Path:
    """Folder of the record of a run's newest session that wrote one; raises :class:`RunError` if there is none."""
    for session in sorted(folder.glob("session-*"), key=_number, reverse=True):
        if (session / _SERVER / FILE_NAME).exists():
            return session / _SERVER
    raise RunError(
        "FF-RUN-NO-RECORD",
        got="a run's folder without any session that wrote a record",
        expected="a folder made by 'fairflare run simulate'",
        next_step="start the job with 'fairflare run simulate'",
    )


def _number(session: Path) -> int:
    text = session.name.removeprefix("session-")
    return int(text) if text.isdigit() else 0


def _fresh(folder: Path) -> Path:
    taken = [_number(session) for session in folder.glob("session-*")]
    workspace = folder / f"session-{max(taken, default=0) + 1}"
    workspace.mkdir(parents=True)
    return workspace


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what this simulation started: FLARE leaves client processes behind when it is interrupted."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def _too_long(timeout: float) -> RunError:
    return RunError(
        "FF-RUN-TIMEOUT",
        got=f"a simulation that did not end within {timeout:.0f} s",
        expected="an end before the limit",
        next_step="look at the log beside the workspace; raise the limit if the job is simply long",
    )
