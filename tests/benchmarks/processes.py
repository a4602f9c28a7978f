# SPDX-License-Identifier: Apache-2.0
"""Runs a plan in FLARE's simulator, or one of our own scripts, each with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairflare.engine.verify import verify_run
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from tests.benchmarks import timeline
from tests.benchmarks.subjects import ROOT

#: Seconds after which a run counts as hanging.
LIMIT = 420.0


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", flush=True)


def flare(
    plan: Plan,
    catalog: DataCatalog,
    sites: Sequence[str],
    folder: Path,
    watch: Callable[[Path], None] = lambda _: None,
) -> timeline.Timeline:
    """Run ``plan`` through FLARE; the run must verify, and every site must have taken part in everything."""
    simulation = Simulation(write_job(plan, folder / "job"), folder, catalog, sites)
    started = time.time()
    simulation.run(watch, interval=0.1, timeout=LIMIT)
    ended = time.time()
    record = verify_run(simulation.workspace)
    if any(line.refusals for line in record.rounds) or set(record.roster) != set(sites):
        raise RuntimeError(f"{plan.name}: a site was missing in a round; its times would mean something else")
    return timeline.read(simulation.workspace, sites, started, ended)


def script(module: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a module of this package in a process of its own; what its last line says."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        timeout=LIMIT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
