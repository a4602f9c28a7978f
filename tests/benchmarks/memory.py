# SPDX-License-Identifier: Apache-2.0
"""B: the server's peak memory with ResNet-18 updates, for two numbers of sites; and that of our accumulator alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fairflare.models import initial_vector
from tests.benchmarks.figures import Figure
from tests.benchmarks.processes import flare, say, script
from tests.benchmarks.subjects import Size, memory_hospitals, resnet_plan

SECTION = "B. Memory of the server"
ROUNDS = 2
PIXELS = 16
MB = 1e6


class ServerMemory:
    """Watches the simulator's server: the process that the sites' workers are children of.

    (``nvflare.cli simulator`` itself only starts it.) ``peak`` is the kernel's own high-water mark (VmHWM), so nothing
    between two looks is missed; ``before`` is the RSS when the first round began.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self.peak = 0.0
        self._server: psutil.Process | None = None

    def __call__(self, progress: Path) -> None:
        """Look once more."""
        try:
            self._server = self._server or self._found()
            if self._server is None:
                return
            self.peak = max(self.peak, _high_water(self._server))
            if self.before == 0.0 and progress.exists() and '"measure"' in progress.read_text(encoding="utf-8"):
                self.before = self._server.memory_info().rss / MB
        except (psutil.Error, OSError):  # it has ended
            return

    def verify(self, model: float) -> None:
        """Raise unless the process watched was one that adds up models of this size (in MB)."""
        if not self.before or self.peak - self.before < model:
            raise RuntimeError(f"no server found: peak {self.peak:.0f} MB, before the first round {self.before:.0f} MB")

    @staticmethod
    def _found() -> psutil.Process | None:
        for one in psutil.Process().children(recursive=True):
            if any("simulator_worker" in word for word in one.cmdline()):
                return one.parent()
        return None


def _high_water(process: psutil.Process) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024 / MB
    return float(process.memory_info().rss) / MB


def server(size: Size, folder: Path) -> list[Figure]:
    """Peaks of FLARE's server with few and with many sites, in turn."""
    few, many = size.memory_sites
    plan = resnet_plan(PIXELS, ROUNDS, 2)
    model = initial_vector(plan).nbytes / MB
    peaks: dict[int, list[float]] = {few: [], many: []}
    before: dict[int, list[float]] = {few: [], many: []}
    for repeat in range(size.memory_repeats):
        for sites in (few, many):
            home = folder / f"{sites}-sites-{repeat}"
            names, catalog = memory_hospitals(plan, sites, home / "data")
            watch, began = ServerMemory(), time.monotonic()
            flare(plan, catalog, names, home / "flare", watch)
            watch.verify(model)
            peaks[sites].append(watch.peak)
            before[sites].append(watch.before)
            say(f"server with {sites} sites: peak {watch.peak:.0f} MB ({time.monotonic() - began:.0f} s)")
    return _figures(model, plan.training.rounds, peaks, before)


def _figures(model: float, rounds: int, peaks: dict[int, list[float]], before: dict[int, list[float]]) -> list[Figure]:
    few, many = sorted(peaks)
    make = partial(Figure, SECTION, "resnet18 updates")
    middle = {sites: statistics.median(values) for sites, values in peaks.items()}
    base = {sites: statistics.median(values) for sites, values in before.items()}
    low, high = min(peaks[many]) - max(peaks[few]), max(peaks[many]) - min(peaks[few])
    how = f"VmHWM of the server process, {rounds} rounds, {len(peaks[few])} run(s) each"
    lines = [make("model", "one model", model, "MB", remark="the plan's ResNet-18 with two labels, float32")]
    for sites in (few, many):
        lines += [
            make(f"peak_{sites}", f"server's peak RSS, {sites} sites", middle[sites], "MB", min(peaks[sites]),
                 max(peaks[sites]), remark=how),
            make(f"above_{sites}", f"the same above its RSS before the first round, {sites} sites",
                 middle[sites] - base[sites], "MB", remark="what communication and aggregation add"),
        ]  # fmt: skip
    grows = middle[many] - middle[few]
    lines.append(
        make("growth", f"growth of the server's peak from {few} to {many} sites", grows, "MB", low, high, model,
             "aim: under one model")
    )  # fmt: skip
    return lines


def accumulator(size: Size) -> list[Figure]:
    """Peaks of our collector alone: one reply after the other, each freed as FLARE's would be."""
    make = partial(Figure, SECTION, "accumulator alone")
    counts, found = size.accumulator_sites, {}
    for sites in counts:
        found[sites] = script("accumulator", "--sites", str(sites))
        say(f"accumulator with {sites} sites: {found[sites]['peak_mb']:.0f} MB")
    few, many = counts
    model = found[few]["model_mb"]
    lines = []
    for sites in counts:
        one = found[sites]
        lines.append(
            make(f"accumulator_{sites}", f"peak of the train phase's sums, {sites} sites", one["peak_mb"], "MB",
                 remark=f"tracemalloc; RSS grew by {one['rss_mb']:.0f} MB; the reply under way included; "
                 f"{1e3 * one['seconds_per_reply']:.0f} ms a reply without tracing")
        )  # fmt: skip
    growth = found[many]["peak_mb"] - found[few]["peak_mb"]
    lines.append(make("accumulator_growth", f"growth from {few} to {many} sites", growth, "MB", most=model,
                      remark="what is ours; the rest of the server's growth is FLARE's"))  # fmt: skip
    return lines


def all_figures(size: Size, folder: Path) -> Sequence[Any]:
    """Both halves."""
    return [*server(size, folder), *accumulator(size)]
