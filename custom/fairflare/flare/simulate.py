# SPDX-License-Identifier: Apache-2.0
"""Runs a job with ``nvflare simulator``: one process per hospital, and an exit status that tells the truth.

FLARE's simulator exits 0 when clients fail, and erases its workspace. So each start gets a fresh workspace inside the
run's folder (``session-1``, ``session-2`` ...), and success is what :func:`fairflare.engine.verify.verify_run` says.

It also starts every hospital's process in a process group of its own, waits for ever for one that does not answer, and
leaves them behind when it is killed. So every process of a session carries a mark in its environment, by which this
module finds and ends it, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from fairflare import schema
from fairflare.errors import PlanError, RunError
from fairflare.flare.names import ALLOWED, RESUME, WEIGHTS
from fairflare.he.ckks import make_contexts
from fairflare.he.context import write_contexts
from fairflare.he.parameters import parameters_for
from fairflare.plan import read_plan
from fairflare.policy import CATALOG_NAME, DataCatalog, SitePolicy, open_policy, write_policy
from fairflare.record import FILE_NAME, PROGRESS_NAME, session_number

#: Environment variable of every process of a session; its value is the session's workspace.
MARK = "FAIRFLARE_SESSION"
#: Folders of the simulator's workspace, where a site of that name would write too.
RESERVED = ("server", "local", "startup")
#: Seconds that FLARE gets to end by itself once the run's record is final; it needs about 8.
GRACE = 25.0
#: Seconds until the server must have written its first event; it needs about 10.
START = 300.0
#: Folder, inside a run's folder, of what its sites must remember from session to session.
STORE = "store"
_SERVER = Path("server") / "simulate_job" / "fairflare"
_PROCESSES = Path("/proc")


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
    weights
        Weight files that the plan starts from; copied to where server and sites look for them.
    allowed
        Classes that FLARE may build, one by one.
    environment
        Variables for FLARE's processes, besides this process's own.
    policy
        Policy of every site; by default one for public data, whose store lies in the run's folder.

    Raises
    ------
    RunError
        ``FF-RUN-BUSY`` while an earlier session in ``folder`` still has processes, ``FF-RUN-PATH`` and
        ``FF-RUN-SITES`` for names that FLARE's simulator cannot work with.
    """

    def __init__(
        self,
        job: Path,
        folder: Path,
        catalog: DataCatalog,
        sites: Sequence[str],
        *,
        resume: Path | None = None,
        weights: Sequence[Path] = (),
        allowed: Sequence[str] = ALLOWED,
        environment: Mapping[str, str] | None = None,
        policy: SitePolicy | None = None,
    ) -> None:
        self.job = job.resolve()
        self.sites = tuple(sites)
        _verify_names(folder.resolve(), self.sites)
        _verify_idle(folder.resolve())
        self.environment = dict(environment or {})
        self.workspace = _fresh(folder.resolve())
        self.records = self.workspace / _SERVER
        self.log = self.workspace.with_suffix(".log")
        local = self.workspace / "local"
        local.mkdir(parents=True)
        resources = {"format_version": 2, "class_allow_list": list(allowed)}
        (local / "resources.json").write_text(json.dumps(resources, indent=2) + "\n", encoding="utf-8")
        (local / CATALOG_NAME).write_text(schema.pretty(catalog), encoding="utf-8")
        # Outside the workspace, which FLARE erases: what a site revealed must outlive the session that revealed it.
        write_policy(local, policy or open_policy(folder.resolve() / STORE))
        _write_contexts(self.job, local, len(self.sites))
        for file in weights:
            (local / WEIGHTS).mkdir(exist_ok=True)
            shutil.copyfile(file, local / WEIGHTS / file.name)
        if resume is not None:
            (local / RESUME).write_text(json.dumps({"folder": str(resume.resolve())}), encoding="utf-8")

    def run(
        self,
        watch: Callable[[Path], None] = lambda _: None,
        interval: float = 0.2,
        timeout: float | None = None,
        grace: float = GRACE,
        start: float = START,
    ) -> int:
        """Start FLARE, call ``watch(progress file)`` until it ends, and return its (untrustworthy) exit code.

        However this ends, by itself, by ``timeout`` seconds, by an interrupt or a signal, no process of the session is
        left. FLARE is ended ``grace`` seconds after the run's last event, since it waits for ever for a site that
        hangs; and if there is no first event within ``start`` seconds. In between, every phase has its deadline.
        """
        command = [
            sys.executable, "-m", "nvflare.cli", "simulator", str(self.job), "-w", str(self.workspace),
            "-c", ",".join(self.sites), "-t", str(len(self.sites)), "-m", str(len(self.sites)),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": "0", **self.environment, MARK: str(self.workspace)}
        progress = self.records / PROGRESS_NAME
        with self.log.open("wb") as log, signals_as_exceptions():
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, arguments made above
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
            with process:
                try:
                    self._wait(process, lambda: watch(progress), interval, timeout, grace, start)
                finally:
                    end_processes(str(self.workspace))
                    process.kill()  # already over, but where a system has no /proc
                    watch(progress)
                return process.wait()

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        watch: Callable[[], None],
        interval: float,
        timeout: float | None,
        grace: float,
        start: float,
    ) -> None:
        started, ended, progress = time.monotonic(), None, self.records / PROGRESS_NAME
        while process.poll() is None:
            watch()
            now = time.monotonic()
            if timeout is not None and now - started > timeout:
                raise _too_long(timeout)
            if now - started > start and not progress.exists():
                raise _not_started(start)
            if ended is None and _has_ended(progress):
                ended = now
            if ended is not None and now - ended > grace:
                return
            time.sleep(interval)


def _write_contexts(job: Path, local: Path, sites: int) -> None:
    """For a plan with encrypted statistics: a key of this session, in the folder that server and sites share here."""
    try:
        encrypted = read_plan(job).protection.encrypted
    except (PlanError, OSError):  # server and sites will say why
        return
    if encrypted:
        contexts = make_contexts(parameters_for(sites))
        write_contexts(local, contexts.record, client=contexts.client, server=contexts.server)


def latest_record_folder(folder: Path) -> Path:
    """Folder of the record of a run's newest session that wrote one; raises :class:`RunError` if there is none."""
    for session in sorted(folder.glob("session-*"), key=lambda one: session_number(one.name), reverse=True):
        if (session / _SERVER / FILE_NAME).exists():
            return session / _SERVER
    raise RunError(
        "FF-RUN-NO-RECORD",
        got="a run's folder without any session that wrote a record",
        expected="a folder made by 'fairflare run simulate'",
        next_step="start the job with 'fairflare run simulate'",
    )


def _fresh(folder: Path) -> Path:
    taken = [session_number(session.name) for session in folder.glob("session-*")]
    workspace = folder / f"session-{max(taken, default=0) + 1}"
    workspace.mkdir(parents=True)
    return workspace


def _verify_names(folder: Path, sites: Sequence[str]) -> None:
    # FLARE 2.9.0 glues the command of each site's process together and cuts it at spaces, quotes and hashes again.
    words = [sys.executable, str(folder)]
    if _cut(" ".join(words)) != words:
        raise RunError(
            "FF-RUN-PATH",
            got="a folder, or a Python interpreter, whose path holds a space, a quote, a backslash or a hash",
            expected="paths without them: FLARE's simulator cannot start processes there",
            next_step="choose another folder for the run",
        )
    taken = sorted(set(sites) & set(RESERVED))
    if taken or not sites or len(set(sites)) != len(sites):
        raise RunError(
            "FF-RUN-SITES",
            got=f"sites named {', '.join(taken)}" if taken else f"{len(sites)} sites, or one of them twice",
            expected=f"at least one site, each with a name of its own, and not {', '.join(RESERVED)}",
            next_step="rename the sites in the catalogue: these are folders of FLARE's own",
        )


def _cut(command: str) -> list[str]:
    with contextlib.suppress(ValueError):  # a quote that is never closed
        return shlex.split(command, comments=True)
    return []


def _verify_idle(folder: Path) -> None:
    busy = sorted({Path(mark).name for mark in process_marks().values() if Path(mark).parent == folder})
    if busy:
        raise RunError(
            "FF-RUN-BUSY",
            got=f"a run whose {', '.join(busy)} still has processes",
            expected="a run that has ended",
            next_step="wait for it, or end it; then try again",
        )


def _has_ended(progress: Path) -> bool:
    """Whether the run's last event was written; the record is final then."""
    try:
        with progress.open("rb") as stream:
            stream.seek(max(0, progress.stat().st_size - 4096))
            last = stream.read().splitlines()[-1:]
        return bool(last) and json.loads(last[0])["event"] == "end"
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or a line that is being written
        return False


def process_marks() -> dict[int, str]:
    """The mark of every process of this user that has one."""
    found = {}
    for folder in _PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone by now, or somebody else's
            for line in (folder / "environ").read_bytes().split(b"\0"):
                name, _, value = line.partition(b"=")
                if name == MARK.encode():
                    found[int(folder.name)] = os.fsdecode(value)
    return found


def end_processes(mark: str) -> None:
    """End every process that carries this mark, and wait until they are gone (at most 20 s)."""
    for kind, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 15.0)):
        told: set[int] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            alive = {pid for pid, found in process_marks().items() if found == mark}
            if not alive:
                return
            for pid in alive - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kind)
            told |= alive
            time.sleep(0.1)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that ``finally`` is reached: by default they would end us at once."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there only
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        for kind in earlier:
            signal.signal(kind, signal.SIG_IGN)  # a second one must not break off the cleaning up
        raise SystemExit(128 + number)

    earlier = {kind: signal.signal(kind, leave) for kind in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for kind, handler in earlier.items():
            signal.signal(kind, handler)


def _too_long(timeout: float) -> RunError:
    return RunError(
        "FF-RUN-TIMEOUT",
        got=f"a simulation that did not end within {timeout:.0f} s",
        expected="an end before the limit",
        next_step="look at the log beside the workspace; raise the limit if the job is simply long",
    )


def _not_started(start: float) -> RunError:
    return RunError(
        "FF-RUN-START",
        got=f"a simulation whose server did not begin within {start:.0f} s",
        expected="a first event in the server's folder",
        next_step="look at the log beside the workspace",
    )
