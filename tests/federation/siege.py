# SPDX-License-Identifier: Apache-2.0
"""Four live hospitals, a researcher's process, and a server that does its work and sends whatever it is told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairflare import presets
from fairflare.jobs import write_job
from fairflare.jobs.meta import is_job_id
from fairflare.plan import Plan
from fairflare.privacy.decisions import Decision, read_decisions
from tests.federation import hostile_tasks
from tests.federation.hostile_server import Hostile, Shot
from tests.federation.provisioned import SERVER, Federation
from tests.federation.support import SITES, changed, make_hospitals
from tests.hostile import CASES
from tests.hostile.cases import CANARY
from tests.unit.flare.hospital import deployment, sign

SHIPPED = presets.shipped("heart_flexfair")
PLAN = changed(SHIPPED, training={"rounds": 2, "seed": 31})
#: Requests at once; more would only wait for each other.
_VOLLEY = 40

Change = Callable[[dict[str, Any]], object]


def _patient(resources: dict[str, Any]) -> None:
    """A job that finds too few sites is given up after seconds, not after minutes."""
    for one in resources["components"]:
        if one["id"] == "job_scheduler":
            one["args"] |= {"max_schedule_count": 2, "min_schedule_interval": 0.5, "max_schedule_interval": 0.5}


@dataclass(frozen=True)
class Request:
    """One request of the server's to one site."""

    site: str
    job: str
    shot: Shot


@dataclass
class Siege:
    """The federation, and what there is of jobs at the sites."""

    running: Federation
    hostile: Hostile
    base: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    turns: Iterator[str] = field(default_factory=lambda: itertools.cycle(SITES))

    @classmethod
    def begin(cls, base: Path, tasks: tuple[str, ...]) -> Siege:
        """Make everything and start it; ``tasks``: what the server's jobs ask the sites for before their own work."""
        running = Federation(base / "federation", make_hospitals(base / "hospitals", PLAN, SITES, 60))
        siege = cls(running, Hostile(base / "hostile", hurry=True), base)
        (base / "canary").mkdir()
        running.amend(SERVER, _patient)
        running.environment[CANARY] = str(base / "canary")
        own = dict(running.environment)
        try:
            modules = hostile_tasks.inject(base / "hostile", tasks, SITES)
            running.environment |= {"PATH": f"{siege.hostile.python()}:{own['PATH']}", "PYTHONPATH": str(modules)}
            running.start(SERVER)
            running.environment.clear()
            running.environment.update(own)
            running.start(*SITES)
        except BaseException:
            running.stop()
            raise
        return siege

    # ------------------------------------------------------------------------------------------------------------ jobs

    def write(self, *cases: str, plan: Plan = PLAN) -> Path:
        """A good job's folder, spoilt in these ways."""
        job = write_job(plan, self.base / "jobs" / str(next(self.numbers)))
        for name in cases:
            CASES[name].spoil(job)
        return job

    def signed(self, *cases: str) -> Path:
        """The same, signed as the researcher's command line does."""
        job = self.write(*cases)
        sign(job, self.running.kits[SERVER].parent)
        return job

    # -------------------------------------------------------------------------------------------------------- requests

    def request(
        self, topic: str, headers: Mapping[str, Any], body: object, change: Change, site: str | None = None
    ) -> Request:
        """A request to ``site``, or else to the next one in turn: a site writes down 64 refusals an hour."""
        sent = json.loads(json.dumps(headers))
        change(sent)
        site = site or next(self.turns)
        file = None
        if isinstance(body, bytes):
            archive = self.base / f"{next(self.numbers)}.zip"
            archive.write_bytes(body)
            file, body = str(archive), None
        shot = Shot(site, "admin", "admin", "admin", body, topic, sent, seconds=60.0, file=file)
        return Request(site, sent["job_id"], shot)

    def deploy(self, job: Path, body: object, change: Change = lambda headers: None) -> Request:
        """Hand a job out, with ``change`` in what the server says of it."""
        app = "app" if (job / "app").is_dir() else "evil"
        return self.request("train.deploy", deployment(job, body=b"", app=app).headers, body, change)

    def fire(self, requests: Mapping[str, Request]) -> dict[str, str]:
        """Send requests; what each site answers."""
        names, said = list(requests), {}
        for at in range(0, len(names), _VOLLEY):
            some = names[at : at + _VOLLEY]
            said |= dict(zip(some, self.hostile.fire(*(requests[one].shot for one in some), wait=120), strict=True))
        return said

    # ---------------------------------------------------------------------------------------------------------- traces

    def decided(self, job: str | None) -> dict[str, Decision]:
        """What each site has written down about a job, last."""
        found = {}
        for site in SITES:
            for one in read_decisions(self.running.store / site / "decisions.jsonl"):
                if one.job == job:
                    found[site] = one
        return found

    def holders(self, job: str | None) -> list[str]:
        """Sites that have a folder of a job."""
        return [site for site in SITES if job is not None and (self.running.kits[site] / job).exists()]

    def traces(self) -> list[str]:
        """All that any site has of any job: folders and processes, started jobs, and what a job's code has written."""
        found = [one.name for one in (self.base / "canary").iterdir()]
        for site in SITES:
            found += [f"{site} {one.name}" for one in self.running.kits[site].iterdir() if is_job_id(one.name)]
            log = self.running.log(site).read_text(encoding="utf-8", errors="replace")
            found += [f"{site} started one"] * log.count("Launch the job in process")
        for name in (SERVER, *SITES):
            found += [f"{name} runs one"] * (len(self.running.processes(name)) - 1)
        return found
