# SPDX-License-Identifier: Apache-2.0
"""The server's sums of one train phase, alone in a process: the memory that they need for so many sites."""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np

from fairflare.engine.collector import Collector, PlainSums
from fairflare.engine.messages import TRAIN, Layout, Message, Reply, layout_of
from fairflare.models import initial_vector
from fairflare.secagg.protection import Payload
from tests.benchmarks.subjects import resnet_plan

MB = 1e6


def phase(layout: Layout, sites: int) -> float:
    """Collect one reply per site and open the sums; returns the seconds spent adding and checking."""
    names = [f"site-{number}" for number in range(sites)]
    message = Message(TRAIN, 0, 0, "s", layout.plan.sha256)
    collector = Collector(PlainSums(layout, message.task, 1000.0 * sites), message, names)
    seconds = 0.0
    for number, name in enumerate(names):
        reply = _reply(layout, number)
        started = time.perf_counter()
        collector.accept(name, reply)
        seconds += time.perf_counter() - started
        del reply
    started = time.perf_counter()
    collector.close()
    mean = collector.opened()["update"].mean
    seconds += time.perf_counter() - started
    if not np.isfinite(mean).all():
        raise RuntimeError("the sums are not finite")
    return seconds


def _reply(layout: Layout, number: int) -> Reply:
    specs = layout.tasks[TRAIN]
    update = np.full(specs["update"].length, 1e-3 * (number + 1), dtype=np.float32)
    sums = np.ones(specs["training_sums"].length)
    return Reply(TRAIN, 0, 0, "s", {"update": Payload(update, 1000.0), "training_sums": Payload(sums, 1.0)})


def rss(field: str) -> float:
    """A field of this process's status in MB, such as ``VmHWM``, its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return float(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"no {field} in /proc/self/status")


def main() -> None:
    """Print one JSON object: peak by tracemalloc, growth of the peak RSS, seconds per reply, size of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, required=True)
    given = parser.parse_args()
    plan = resnet_plan(16, 1, 2)
    model = initial_vector(plan)
    layout = layout_of(plan, model.size)
    before = rss("VmRSS")
    seconds = phase(layout, given.sites)
    growth = max(0.0, rss("VmHWM") - before)
    tracemalloc.start()
    phase(layout, given.sites)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = {
        "sites": given.sites, "model_mb": model.nbytes / MB, "peak_mb": peak / MB, "rss_mb": growth,
        "seconds_per_reply": seconds / given.sites,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
