# SPDX-License-Identifier: Apache-2.0
"""K: what real kits cost: provisioning, the way to the server, a job's start, a phase's latency; and an audit.

Four hospitals and a server run on this machine as processes of their own, from hardened kits, with mutual TLS. The job
is masked. A phase's latency is that of the phases that only carry the protocol (``PROTOCOL``): no site computes more
than a few milliseconds in them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from fairflare import presets
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.messages import CONFIRM, KEYS, SHARE, UNMASK
from fairflare.engine.verify import verify_run
from fairflare.jobs import write_job
from fairflare.plan import Plan, parse_plan
from fairflare.record import PROGRESS_NAME
from poc.federation import SERVER, Federation, events_in, write_project
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import say
from tests.benchmarks.subjects import ROOT, SITES

SECTION = "K. Real kits: provisioning, start, latency, audit"
#: Phases in which sites only sign, deal and open.
PROTOCOL = (KEYS, SHARE, CONFIRM, UNMASK)
MOST_AUDIT = 1.0


def all_figures(quick: bool, folder: Path) -> list[Figure]:
    """Everything, on one federation."""
    repeats = 1 if quick else 5
    make = partial(Figure, SECTION, "kits of four hospitals")
    figures = [
        make("provision", "nvflare provision: keys, kits, hardening, signatures", unit="s",
             **spread([_provision(folder / f"kits-{number}") for number in range(repeats)])),
        *_jobs(make, 1 if quick else 3, folder),
    ]  # fmt: skip
    figures += _audits(partial(Figure, SECTION, "audit"), repeats, folder)
    return figures


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _provision(folder: Path) -> float:
    folder.mkdir(parents=True)
    project = write_project(folder / "project.yml", SITES)
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(project), "-w", str(folder / "kits")]
    return _timed(lambda: subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=folder))


def plan_of(number: int) -> Plan:
    """The masked heart plan, short; every job has a seed of its own, since sites answer a question once."""
    data = presets.shipped("heart_flexfair").model_dump(mode="json")
    data["training"].update(rounds=6, seed=number)
    return parse_plan(json.dumps(data))


def _jobs(make: Callable[..., Figure], jobs: int, folder: Path) -> Iterator[Figure]:
    catalog = write_hospitals(folder / "data", plan_of(0), SITES, 100, seed=1)
    parties = Federation(folder / "federation", catalog)
    try:
        server = _timed(lambda: parties.start(SERVER))
        sites = _timed(lambda: parties.start(*SITES))
        say(f"connected after {server + sites:.1f} s")
        found = [_job(parties, plan_of(number), folder / "jobs") for number in range(jobs)]
    finally:
        parties.stop()
    yield make("connected", "from the start of server and sites until all four are connected", server + sites, "s")
    for key, words in (
        ("deployed", "submit until the server's job process begins"),
        ("first_round", "submit until the first round begins"),
        ("ended", "last event until no process of the job is left"),
    ):
        yield make(key, words, unit="s", **spread([one[key] for one in found]))
    latencies = [value for one in found for value in one["latencies"]]
    yield make("phase", f"one phase of the protocol ({', '.join(PROTOCOL)}): four sites, TLS", unit="s",
               **spread(latencies), remark=f"{len(latencies)} phases in {jobs} jobs")  # fmt: skip


def _job(parties: Federation, plan: Plan, folder: Path) -> dict[str, Any]:
    job_folder = write_job(plan, folder)
    submitted = time.time()
    job = parties.submit(job_folder)
    records = parties.records(job, 180)  # a copy: FLARE clears the server's folder of a job that has ended
    ended = time.time()
    parties.wait_idle()
    idle = time.time()
    verify_run(records)
    events = events_in(records / PROGRESS_NAME)
    first = next(
        one["time"] for one in events if one["event"] == "phase" and one["round"] == 0 and one["task"] == "measure"
    )
    say(f"{plan.name}: first round after {first - submitted:.1f} s")
    return {
        "deployed": events[0]["time"] - submitted, "first_round": first - submitted, "ended": idle - ended,
        "latencies": latencies(events),
    }  # fmt: skip


def latencies(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from each protocol phase's event to the next event."""
    return [
        after["time"] - one["time"]
        for one, after in pairwise(events)
        if one["event"] == "phase" and one["task"] in PROTOCOL
    ]


def _audits(make: Callable[..., Figure], repeats: int, folder: Path) -> Iterator[Figure]:
    program = str(Path(sys.executable).with_name("fairflare"))
    (kit,) = (folder / "federation" / "kits").glob(f"*/prod_00/{SITES[0]}")
    policy = str(kit / "local")
    for key, words, command in (
        ("job", "fairflare audit job, against a site's policy and kit, with Python's start",
         ["audit", "job", str(ROOT / "jobs" / "heart_flexfair"), "--policy", policy, "--kit", str(kit)]),
        ("kit", "fairflare audit kit, with Python's start", ["audit", "kit", str(kit)]),
    ):  # fmt: skip
        run = partial(subprocess.run, [program, *command], capture_output=True, check=False, timeout=60)
        run()  # files that Python compiles once
        times = [_timed(run) for _ in range(max(3, repeats))]
        yield make(key, words, unit="s", **spread(times), most=MOST_AUDIT if key == "job" else None)
    bare = [
        _timed(lambda: subprocess.run([sys.executable, "-c", "import pydantic, typer"], check=True)) for _ in range(3)
    ]
    yield make("python", "of which Python with pydantic and typer alone", statistics.median(bare), "s")
