# SPDX-License-Identifier: Apache-2.0
"""A federation on this machine: kits that FLARE provisions from ``provision/project.yml``, and its real processes.

Two ways to it. :class:`Federation` starts every party from its own kit, as each organisation would. :class:`Poc` leaves
that to ``nvflare poc``. Both have mutual TLS, one port, and the hardened kits of ``HardeningBuilder``.

Every process of a party carries a mark, by which it, its job processes and nothing else are found and ended. Every wait
has a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fairflare.flare.names import RESUME
from fairflare.flare.simulate import MARK, end_processes, process_marks
from fairflare.policy import DataCatalog, SitePolicy, open_policy, write_catalog, write_policy
from fairflare.record import PROGRESS_NAME
from fairflare.secagg.identity import key_hash

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "provision" / "project.yml"
SERVER, ADMIN, RESEARCHER = "fl-server", "admin@example.org", "researcher@example.org"
#: Seconds without a heartbeat until the server takes a site for dead; a project of several organisations has a minute.
HEARTBEAT = 12
_HARDENING = "fairflare.flare.provision.HardeningBuilder"
_T = TypeVar("_T")


class FederationError(RuntimeError):
    """Something did not happen in time, or a command of FLARE's failed."""


def wait_until(look: Callable[[], _T | None], seconds: float, what: str, interval: float = 0.1) -> _T:
    """What ``look`` finds, asked again and again; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise FederationError(f"after {seconds:.0f} s still no {what}")
        time.sleep(interval)
    return found


def write_project(file: Path, sites: Sequence[str], heartbeat: int = HEARTBEAT) -> Path:
    """The project's own file for this machine: a free port, localhost, these sites; everything else stays."""
    project = yaml.safe_load(PROJECT.read_text(encoding="utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = [one for one in project["participants"] if one["type"] != "client"]
    for server in (one for one in others if one["type"] == "server"):
        server.update(
            fed_learn_port=port, admin_port=port, default_host="localhost", host_names=["localhost", "127.0.0.1"]
        )
    clients = [{"name": site, "type": "client", "org": re.sub(r"\W", "_", site)} for site in sites]
    project["participants"] = others + clients
    for builder in project["builders"]:
        if builder["path"] == _HARDENING:
            builder["args"]["heartbeat_seconds"] = heartbeat
    file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return file


def events_in(progress: Path) -> list[Mapping[str, Any]]:
    """The events of a run's progress file so far; of one that is not there yet, none."""
    lines = progress.read_bytes().splitlines() if progress.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break  # it is being written
    return found


class Kits:
    """What is the same however the processes are started: kits, local files, jobs.

    Parameters
    ----------
    base
        Folder for everything; the sites' stores lie in ``base / "store"``, outside of every kit.
    catalog
        Where each site's data lie; its sites are those of the federation.
    heartbeat
        Seconds without a sign of life until the server takes a site for lost.
    """

    def __init__(self, base: Path, catalog: DataCatalog, heartbeat: int = HEARTBEAT) -> None:
        self.base = base
        self.sites = catalog.site_names
        self.store = base / "store"
        self.environment = {
            **os.environ, "HOME": str(base / "home"), "PYTHONHASHSEED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        (base / "home").mkdir(parents=True)
        self.kits = self._made(write_project(base / "project.yml", self.sites, heartbeat))
        self.peers = {site: key_hash((self.kits[site] / "startup" / "client.crt").read_bytes()) for site in self.sites}
        self.store.mkdir(mode=0o700)
        for site in self.sites:
            local = self.kits[site] / "local"
            write_catalog(local, DataCatalog(format=catalog.format, data_sets=(catalog.sites or {})[site], sites=None))
            self.set_policy(site)

    def _made(self, project: Path) -> dict[str, Path]:
        """Make the kits; returns each party's."""
        kits = self._provision(project)
        return {name: kits / name for name in (SERVER, ADMIN, RESEARCHER, *self.sites)}

    def _provision(self, project: Path) -> Path:
        """Make the kits; returns the folder that holds them."""
        raise NotImplementedError

    def mark(self, name: str) -> str:
        """The mark of a party's processes."""
        return str(self.kits[name])

    def set_policy(self, site: str, **changes: object) -> None:
        """Write a site's policy: kits, and the keys of all peers; it is read anew for every job."""
        policy = open_policy(self.store / site, identities="kit").model_copy(update={"peers": self.peers, **changes})
        write_policy(self.kits[site] / "local", SitePolicy.model_validate_json(policy.model_dump_json()))

    def amend(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Give a party a ``resources.json`` of its own, changed; read at its next start."""
        local = self.kits[name] / "local"
        own = local / "resources.json"
        resources = json.loads((own if own.exists() else local / f"{own.name}.default").read_text(encoding="utf-8"))
        change(resources)
        own.write_text(json.dumps(resources), encoding="utf-8")

    # -------------------------------------------------------------------------------------------------------- processes

    def processes(self, name: str) -> list[int]:
        """All processes of a party."""
        return [pid for pid, mark in process_marks().items() if mark == self.mark(name)]

    def left(self) -> list[int]:
        """All processes of all parties."""
        marks = {self.mark(name) for name in self.kits}
        return [pid for pid, mark in process_marks().items() if mark in marks]

    def stop(self, *names: str) -> None:
        """End parties; everybody without names."""
        for mark in {self.mark(name) for name in names or self.kits}:
            end_processes(mark)

    # ------------------------------------------------------------------------------------------------------------- jobs

    def flare(self, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None) -> str:
        """Run a command of FLARE's; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *arguments], capture_output=True, text=True, check=False,
            timeout=timeout, env=self.environment if environment is None else environment, cwd=self.base,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            command = " ".join(arguments[:2])
            raise FederationError(f"nvflare {command}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def job(self, *arguments: str, timeout: float = 60, person: str = RESEARCHER) -> Any:
        """Run ``nvflare job``; returns the data that it printed."""
        kit = str(self.kits[person])
        return json.loads(self.flare("job", *arguments, "--startup-kit", kit, "--format", "json", timeout=timeout))

    def submit(self, job: Path, person: str = RESEARCHER) -> str:
        """Hand a job in; returns its id."""
        return str(self.job("submit", "-j", str(job), person=person)["data"]["job_id"])

    def meta(self, job: str) -> Mapping[str, Any]:
        """What FLARE says about a job."""
        data = self.job("meta", job)["data"]
        return dict(data.get("meta", data))

    def deploy_details(self, job: str) -> tuple[str, ...]:
        """What each party said when it got the job: "name: OK", or why it refused."""
        return tuple(self.meta(job).get("job_deploy_detail") or ())

    def ended(self, job: str, seconds: float = 150) -> str:
        """FLARE's status of the job, once it has one that begins with FINISHED."""

        def look() -> str | None:
            status = str(self.meta(job).get("status", ""))
            return status if status.startswith("FINISHED") else None

        return wait_until(look, seconds, "end of the job", interval=1.0)

    def progress(self, job: str) -> Path:
        """Where the server writes down events while a job runs."""
        return self.kits[SERVER] / job / "fairflare" / PROGRESS_NAME

    def events(self, job: str) -> list[Mapping[str, Any]]:
        """What the server has written down so far."""
        return events_in(self.progress(job))

    def wait_for(self, job: str, event: str, seconds: float = 90, **facts: object) -> Mapping[str, Any]:
        """The first event of this kind, and with these facts."""

        def look() -> Mapping[str, Any] | None:
            for found in self.events(job):
                if found["event"] == event and all(found.get(name) == fact for name, fact in facts.items()):
                    return found
                if found["event"] == "end":
                    raise FederationError(f"the run ended without an event {event}: {found}")
            return None

        return wait_until(look, seconds, f"event {event}", interval=0.002)

    def records(self, job: str, seconds: float = 90) -> Path:
        """A copy of the record's folder as it is once the run's last event is written."""
        self.wait_for(job, "end", seconds)
        return Path(shutil.copytree(self.progress(job).parent, self.base / "records" / job))

    def download(self, job: str) -> Path:
        """Fetch a job's results as a researcher does; returns the folder of its record."""
        target = self.base / "results"
        target.mkdir(exist_ok=True)
        self.job("download", job, "-o", str(target), timeout=90)
        (record,) = target.glob(f"{job}/**/fairflare/record.json")
        return record.parent


class Federation(Kits):
    """A server and its sites, each started from a kit of its own; not started yet."""

    def __init__(self, base: Path, catalog: DataCatalog, heartbeat: int = HEARTBEAT) -> None:
        self._parents: dict[str, subprocess.Popen[bytes]] = {}
        #: Party -> folder with another installation of the package, from which it starts next.
        self.installed: dict[str, Path] = {}
        super().__init__(base, catalog, heartbeat)

    def _provision(self, project: Path) -> Path:
        self.flare("provision", "-p", str(project), "-w", str(self.base / "kits"))
        return self.base / "kits" / str(yaml.safe_load(project.read_text(encoding="utf-8"))["name"]) / "prod_00"

    def start(self, *names: str) -> None:
        """Start parent processes from their kits, and wait until the server knows every site."""
        before = self._joined()
        for name in names:
            self.spawn(name)
        sites = set(names) - {SERVER}
        wait_until(lambda: all(self._joined()[site] > before[site] for site in sites) or None, 90, "site at the server")

    def spawn(self, name: str) -> subprocess.Popen[bytes]:
        """Start a party's parent process, and wait for nothing."""
        with self.log(name).open("ab") as log:
            self._parents[name] = subprocess.Popen(
                [str(self.kits[name] / "startup" / "sub_start.sh"), "--once"], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.base,
                env={**self.environment, MARK: self.mark(name), **self._package(name)},
            )  # fmt: skip
        return self._parents[name]

    def _package(self, name: str) -> Mapping[str, str]:
        return {"PYTHONPATH": str(self.installed[name])} if name in self.installed else {}

    def log(self, name: str) -> Path:
        """What a party's parent process prints."""
        return self.base / f"{name}.log"

    def _joined(self) -> dict[str, int]:
        """How often the server has said that a site came."""
        log = self.log(SERVER).read_text(encoding="utf-8", errors="replace") if self.log(SERVER).exists() else ""
        return {site: len(re.findall(rf"New client {re.escape(site)}@", log)) for site in self.sites}

    def job_process(self, site: str, seconds: float = 60) -> int:
        """The process in which a site runs its job, as soon as there is one."""

        def look() -> int | None:
            return next((pid for pid in self.processes(site) if _is_job(pid)), None)

        return wait_until(look, seconds, "job's process", interval=0.02)

    def kill(self, site: str, job_process: int) -> None:
        """The power of a whole site fails: that of its job's process, known already for speed, and of its parent."""
        parent = self._parents.pop(site)
        for pid in (job_process, parent.pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: None if self.processes(site) else True, 20, "end of a killed site")
        parent.wait(timeout=20)

    def leave(self, name: str) -> None:
        """End a party as the manual's systemd unit does: FLARE's first process is told, what is left then is killed."""
        parent = self._parents.pop(name)
        parent.terminate()
        parent.wait(timeout=60)
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: None if self.processes(name) else True, 20, "end of a party's processes")

    def stop(self, *names: str) -> None:
        """End parties; everybody without names."""
        super().stop(*names)
        for name in names or self.kits:
            if name in self._parents:
                self._parents.pop(name).wait(timeout=20)

    def wait_idle(self, seconds: float = 90) -> None:
        """Wait until no job has a process: until then a site's memory is in use."""

        def look() -> bool | None:
            busy = [pid for name in (SERVER, *self.sites) for pid in self.processes(name) if _is_job(pid)]
            return None if busy else True

        wait_until(look, seconds, "end of the job's processes", interval=0.2)

    def resume_from(self, records: Path | None) -> None:
        """Ask the server to go on from a record, or not to."""
        file = self.kits[SERVER] / "local" / RESUME
        file.unlink(missing_ok=True)
        if records is not None:
            file.write_text(json.dumps({"folder": str(records)}), encoding="utf-8")


class Poc(Kits):
    """The same kits in a workspace of ``nvflare poc``, which starts and stops the processes itself."""

    @property
    def workspace(self) -> Path:
        """The workspace of ``nvflare poc``."""
        return self.base / "poc"

    def mark(self, name: str) -> str:
        """One mark for all: it is FLARE that starts them."""
        del name
        return str(self.workspace)

    def _poc(self, *arguments: str, timeout: float = 120) -> str:
        own = {"NVFLARE_POC_WORKSPACE": str(self.workspace), MARK: str(self.workspace)}
        return self.flare(
            "poc", *arguments, "--format", "json", timeout=timeout, environment={**self.environment, **own}
        )

    def _provision(self, project: Path) -> Path:
        self._poc("prepare", "-i", str(project), "--force")
        return self.workspace / str(yaml.safe_load(project.read_text(encoding="utf-8"))["name"]) / "prod_00"

    def start(self) -> None:
        """Start everybody, and wait until the server knows every site."""
        self._poc("start", "--timeout", "150", timeout=200)

    def shut_down(self) -> None:
        """Let FLARE stop everybody, each named: the plain command asks the server to stop the hospitals.

        A hardened hospital is stopped by the hospital only; named, it is stopped through a file in its own kit.
        """
        self._poc("stop", *(word for name in (SERVER, *self.sites) for word in ("-p", name)))

    def wait(self, job: str, seconds: int = 150) -> None:
        """Let FLARE wait for the end of a job; fails if it did not complete."""
        self.job("wait", job, "--timeout", str(seconds), timeout=seconds + 30.0)


@contextlib.contextmanager
def federation(base: Path, catalog: DataCatalog) -> Iterator[Federation]:
    """A running federation; whatever happens, none of its processes is left."""
    parties = Federation(base, catalog)
    try:
        parties.start(SERVER)
        parties.start(*parties.sites)
        yield parties
    finally:
        parties.stop()


def _is_job(pid: int) -> bool:
    """Whether a process is FLARE's for one job, at the server or at a site."""
    with contextlib.suppress(OSError):
        return re.search(rb"\.(runner|worker)_process\0", Path(f"/proc/{pid}/cmdline").read_bytes()) is not None
    return False
