# SPDX-License-Identifier: Apache-2.0
"""A federation of real start-up kits: FLARE provisions them, and its own parent processes run them on this machine.

Every process of a party carries the party's folder as its mark, by which it, its job processes and nothing else are
found and ended. Every wait has a limit.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from fairflare.flare.names import ALLOWED, RESUME
from fairflare.flare.simulate import MARK, _marks, end_processes
from fairflare.policy import DataCatalog, SitePolicy, open_policy, write_catalog, write_policy
from fairflare.record import PROGRESS_NAME

SERVER, ADMIN = "fl-server", "admin@coord.org"
#: Seconds without a heartbeat until the server takes a site for dead; FLARE's default is ten minutes.
HEARTBEAT = 12
_T = TypeVar("_T")


def wait_until(look: Callable[[], _T | None], seconds: float, what: str, interval: float = 0.1) -> _T:
    """What ``look`` finds, asked again and again; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:.0f} s still no {what}")
        time.sleep(interval)
    return found


class Federation:
    """A server and its sites, each with a kit of its own; not started yet.

    Parameters
    ----------
    base
        Folder for everything; the sites' stores lie in ``base / "store"``, outside of every kit.
    catalog
        Where each site's data lie.
    """

    def __init__(self, base: Path, catalog: DataCatalog) -> None:
        self.base = base
        self.sites = catalog.site_names
        self.store = base / "store"
        self._parents: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, "HOME": str(base / "home"), "PYTHONHASHSEED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        (base / "home").mkdir(parents=True)
        self._provision()
        kits = base / "kits" / "hospitals" / "prod_00"
        self.kits = {name: kits / name for name in (SERVER, ADMIN, *self.sites)}
        self.peers = {site: self._key(site) for site in self.sites}
        for name in (SERVER, *self.sites):
            self._allow(name)
        for site in self.sites:
            local = self.kits[site] / "local"
            write_catalog(local, DataCatalog(format=catalog.format, data_sets=(catalog.sites or {})[site], sites=None))
            self.set_policy(site)

    def _provision(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = {
            "name": SERVER, "type": "server", "org": "coord", "fed_learn_port": port, "admin_port": port,
            "default_host": "localhost", "host_names": ["localhost", "127.0.0.1"],
        }  # fmt: skip
        clients = [{"name": site, "type": "client", "org": site.replace("-", "_")} for site in self.sites]
        admin = {"name": ADMIN, "type": "admin", "org": "coord", "role": "project_admin"}
        kinds: dict[str, dict[str, str]] = {
            "workspace.Workspace": {},
            "static_file.StaticFile": {"config_folder": "config", "scheme": "grpc"},
            "cert.Cert": {},
            "signature.Signature": {},
        }
        project = {
            "api_version": 3, "name": "hospitals", "description": "four hospitals on one machine",
            "participants": [server, *clients, admin],
            "builders": [
                {"path": f"nvflare.lighter.impl.{kind}Builder", "args": arguments} for kind, arguments in kinds.items()
            ],
        }  # fmt: skip
        file = self.base / "project.yml"
        file.write_text(json.dumps(project), encoding="utf-8")  # JSON is YAML
        self._flare("provision", "-p", str(file), "-w", str(self.base / "kits"))

    def _allow(self, name: str) -> None:
        """FLARE's default configuration, and in it what must be a site's own: our classes, and folders of its own."""
        local = self.kits[name] / "local"
        resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
        resources["class_allow_list"] += ALLOWED
        if name == SERVER:
            resources["servers"][0]["heart_beat_timeout"] = HEARTBEAT
            resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(self.base / "snapshots")
            (jobs,) = [one for one in resources["components"] if one["id"] == "job_manager"]
            jobs["args"]["uri_root"] = str(self.base / "jobs")
        (local / "resources.json").write_text(json.dumps(resources), encoding="utf-8")

    def _key(self, site: str) -> str:
        """What hospitals tell one another about their keys."""
        certificate = x509.load_pem_x509_certificate((self.kits[site] / "startup" / "client.crt").read_bytes())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        digest = hashes.Hash(hashes.SHA256())
        digest.update(certificate.public_key().public_bytes(serialization.Encoding.DER, form))
        return digest.finalize().hex()

    def set_policy(self, site: str, **changes: object) -> None:
        """Write a site's policy: kits, and the keys of all peers; it is read anew for every job."""
        policy = open_policy(self.store / site, identities="kit").model_copy(update={"peers": self.peers, **changes})
        write_policy(self.kits[site] / "local", SitePolicy.model_validate_json(policy.model_dump_json()))

    # -------------------------------------------------------------------------------------------------------- processes

    def start(self, *names: str) -> None:
        """Start parent processes from their kits, and wait until the server knows every site."""
        before = self._joined()
        for name in names:
            with self._log(name).open("ab") as log:
                self._parents[name] = subprocess.Popen(
                    [str(self.kits[name] / "startup" / "sub_start.sh"), "--once"], stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.base,
                    env={**self.environment, MARK: str(self.kits[name])},
                )  # fmt: skip
        sites = set(names) - {SERVER}
        wait_until(lambda: all(self._joined()[site] > before[site] for site in sites) or None, 90, "site at the server")

    def _log(self, name: str) -> Path:
        return self.base / f"{name}.log"

    def _joined(self) -> dict[str, int]:
        """How often the server has said that a site came."""
        log = self._log(SERVER).read_text(encoding="utf-8", errors="replace") if self._log(SERVER).exists() else ""
        return {site: len(re.findall(rf"New client {re.escape(site)}@", log)) for site in self.sites}

    def processes(self, name: str) -> list[int]:
        """All processes of a party."""
        return [pid for pid, mark in _marks().items() if mark == str(self.kits[name])]

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

    def stop(self, *names: str) -> None:
        """End parties; everybody without names."""
        for name in names or self.kits:
            end_processes(str(self.kits[name]))
            if name in self._parents:
                self._parents.pop(name).wait(timeout=20)

    # ------------------------------------------------------------------------------------------------------------- jobs

    def _flare(self, *arguments: str, timeout: float = 60) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *arguments], capture_output=True, text=True, check=False,
            timeout=timeout, env=self.environment, cwd=self.base, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"nvflare {arguments[0]} {arguments[1]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def _job(self, *arguments: str, timeout: float = 60) -> Any:
        kit = str(self.kits[ADMIN])
        return json.loads(self._flare("job", *arguments, "--startup-kit", kit, "--format", "json", timeout=timeout))

    def submit(self, job: Path) -> str:
        """Hand a job in; returns its id."""
        return str(self._job("submit", "-j", str(job))["data"]["job_id"])

    def meta(self, job: str) -> Mapping[str, Any]:
        """What FLARE says about a job."""
        data = self._job("meta", job)["data"]
        return dict(data.get("meta", data))

    def ended(self, job: str, seconds: float = 150) -> str:
        """FLARE's status of the job, once it has one that begins with FINISHED."""

        def look() -> str | None:
            status = str(self.meta(job).get("status", ""))
            return status if status.startswith("FINISHED") else None

        return wait_until(look, seconds, "end of the job", interval=1.0)

    def progress(self, job: str) -> Path:
        """Where the server writes down events while a job runs."""
        return self.kits[SERVER] / job / "fairflare" / PROGRESS_NAME

    def wait_for(self, job: str, event: str, seconds: float = 90, **facts: object) -> Mapping[str, Any]:
        """The first event of this kind, and with these facts."""

        def look() -> Mapping[str, Any] | None:
            with contextlib.suppress(OSError, ValueError):
                for line in self.progress(job).read_text(encoding="utf-8").splitlines():
                    found: dict[str, Any] = json.loads(line)
                    if found["event"] == event and all(found.get(name) == fact for name, fact in facts.items()):
                        return found
                    if found["event"] == "end":
                        raise AssertionError(f"the run ended without an event {event}: {line}")
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
        self._job("download", job, "-o", str(target), timeout=90)
        (record,) = target.glob(f"{job}/**/fairflare/record.json")
        return record.parent

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
