# SPDX-License-Identifier: Apache-2.0
"""The server's path of a masked job, alone in a process, with so many sites in another one.

Everything that is ours at a server is here: the coordinator, a phase's collector, FLARE's aggregator with our wire
format on Shareables, session and sums of the masks, record and model on disk. What lies between is a pipe in the
place of FLARE's network. Sites are real ones, with data, masks and signatures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext

from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import local_masks, software
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Phase, Start
from fairflare.engine.site import Site
from fairflare.errors import FairFlareError
from fairflare.flare import wire
from fairflare.flare.aggregator import SITE, FlexFairAggregator
from fairflare.plan import Plan
from tests.benchmarks.accumulator import rss
from tests.benchmarks.masked_rounds import protected
from tests.benchmarks.subjects import plan_of

#: Subject -> job that it is, and records of a site; the work of sites is not what is measured.
JOBS = {"mlp": ("heart_flexfair", 50), "cnn": ("skin_flexfair", 50)}


def names_of(sites: int) -> list[str]:
    """Names of so many sites."""
    return [f"site-{number:02d}" for number in range(1, sites + 1)]


def play_sites(plan: Plan, names: Sequence[str], records: int, folder: Path, pipe: Connection) -> None:
    """All sites, in a process of their own: for each message the answers of whom it names, one after the other."""
    catalog = write_hospitals(folder / "data", plan, names, records, seed=1)
    entries = {name: catalog.entry(name, plan.task.data_set) for name in names}
    sites = {
        name: Site(name, plan, lambda entry=entry: load(plan, entry), folder / name, None, local_masks(plan, name))
        for name, entry in entries.items()
    }
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        shareable, targets = asked
        for name in targets:
            message = wire.decode_message(shareable)
            try:
                answer = wire.encode_release(sites[name].handle(message), message.session)
            except FairFlareError as problem:
                answer = wire.error_reply(problem.code)
            pipe.send(answer)


class Server:
    """Drives a job's phases; ``busy``: seconds in which it did something, by round."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._aggregator = FlexFairAggregator()
        self.busy: dict[int, float] = {}
        self.accepting: list[float] = []

    def phase(self, phase: Phase) -> None:
        """Send a phase's message, take the answers as they come."""
        started, context = time.perf_counter(), FLContext()
        self._aggregator.begin(phase)
        self._pipe.send((wire.encode_message(phase.message), phase.targets))
        self._busy(phase.message.round, started)
        for site in phase.targets:
            answer = self._pipe.recv()
            started = time.perf_counter()
            context.set_prop(SITE, site, private=True, sticky=False)
            self._aggregator.accept(answer, context)
            del answer
            self.accepting.append(time.perf_counter() - started)
            self._busy(phase.message.round, started)
        started = time.perf_counter()
        self._aggregator.aggregate(context)
        self._busy(phase.message.round, started)

    def _busy(self, number: int, started: float) -> None:
        self.busy[number] = self.busy.get(number, 0.0) + time.perf_counter() - started


def run(subject: str, sites: int, rounds: int) -> dict[str, Any]:
    """One job; what the server needed for it."""
    job, records = JOBS[subject]
    plan, names = protected(plan_of(job, rounds), "masked"), names_of(sites)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process = context.Process(target=play_sites, args=(plan, names, records, folder, theirs), daemon=True)
        process.start()
        ours.recv()
        coordinator = coordinator_of(plan, folder / "server", Start("s" * 32, "local", software()))
        server, before = Server(ours), rss("VmRSS")
        last = time.perf_counter()
        for phase in coordinator.phases(names):
            server.busy[phase.message.round] = server.busy.get(phase.message.round, 0.0) + time.perf_counter() - last
            server.phase(phase)
            last = time.perf_counter()
        ours.send(None)
        process.join(30)
    record = coordinator.record
    if record.status != "complete" or record.final is None or len(record.final.confirmed) != sites:
        raise RuntimeError(f"the run ended as {record.status}: {record.reason}")
    model = 4 * coordinator.model.size / 1e6
    middle = sorted(server.busy[number] for number in range(1, rounds))
    return {
        "model_mb": model, "before_mb": before, "peak_mb": rss("VmHWM"), "round": middle[len(middle) // 2],
        "answer": sum(server.accepting) / len(server.accepting), "phases": len(server.accepting) / sites,
    }  # fmt: skip


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=list(JOBS), required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(run(given.subject, given.sites, given.rounds)))


if __name__ == "__main__":
    main()
