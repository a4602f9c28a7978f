# SPDX-License-Identifier: Apache-2.0
"""A: seconds per round in FLARE against the same work in a bare PyTorch loop, which runs just before and just after."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fairflare.plan import ImageInput
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import flare, say, script
from tests.benchmarks.serialisation import cost
from tests.benchmarks.spec import write_spec
from tests.benchmarks.subjects import AIM, AIMED_AT, Subject
from tests.benchmarks.timeline import PARTS, Timeline

SECTION = "A. Seconds per round, start-up apart"
#: Largest relative difference of training losses that still counts as the same work (float sums in another order).
SAME = 1e-3

#: Parts of a phase, along the way of the reply that comes last (see ``timeline``).
WORDS = {
    "polling": "until the site asks for its task (polling)",
    "download": "until the site has its task (transfer down)",
    "work": "the site's executor: work, gate, encoding",
    "upload": "end of work until the server has the reply",
    "noticing": "until FLARE notices that the task is complete",
    "server": "our server: sums, step, record and model on disk",
}


@dataclass(frozen=True)
class Bare:
    """Runs of the bare loop with the same number of workers: before FLARE's run and after it."""

    workers: int
    runs: Sequence[dict[str, Any]]

    @property
    def seconds(self) -> list[float]:
        """Every round of every run but the first of each."""
        return [second for run in self.runs for second in run["seconds"][1:]]

    def train_only(self) -> tuple[float, float]:
        """Median over rounds of seconds of training: of the busiest worker, and of all hospitals together."""
        busiest, together = [], []
        for run in self.runs:
            rounds = {site: [one["train"] for one in seconds][1:] for site, seconds in run["hospitals"].items()}
            shares = run["shares"] if self.workers > 1 else [list(rounds)]
            for number in range(len(run["seconds"]) - 1):
                busiest.append(max(sum(rounds[site][number] for site in share) for share in shares))
                together.append(sum(one[number] for one in rounds.values()))
        return statistics.median(busiest), statistics.median(together)


def measure(subject: Subject, folder: Path) -> list[Figure]:
    """All figures of one subject."""
    sites = sorted(subject.catalog.site_names)
    workers = min(len(os.sched_getaffinity(0)), len(sites))
    spec = write_spec(subject, folder / "spec")
    counts = sorted({1, max(2, workers)})
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}

    def bare(when: str) -> None:
        for count in counts:
            runs[count].append(script("bare", spec, "--workers", str(count), "--rounds", str(subject.bare_rounds)))
            median = statistics.median(runs[count][-1]["seconds"][1:])
            say(f"{subject.name}: bare loop {when}, {count} worker(s): {median:.3f} s a round")

    bare("before")
    run = flare(subject.plan, subject.catalog, sites, folder / "flare")
    say(f"{subject.name}: FLARE: {statistics.median(run.rounds[1:]):.3f} s a round")
    bare("after")
    loops = [Bare(count, runs[count]) for count in counts]
    make = partial(Figure, SECTION, subject.name)
    return [
        *_times(subject, run, loops[0], loops[1], make),
        *_training(run, loops[0], loops[1], make),
        *_shares(run, make),
        *_serialised(subject, run, len(sites), make),
        *_checks(run, loops, make),
    ]


def _times(subject: Subject, run: Timeline, one: Bare, fair: Bare, make: Any) -> list[Figure]:
    rounds = run.rounds[1:]
    flare_median, aim = statistics.median(rounds), AIM if subject.name == AIMED_AT else None
    pairs = {key: flare_median / statistics.median(loop.seconds) for key, loop in (("one", one), ("fair", fair))}
    low, high = min(rounds) / max(fair.seconds), max(rounds) / min(fair.seconds)
    cores = len(os.sched_getaffinity(0))
    drift = [statistics.median(each["seconds"][1:]) for each in fair.runs]
    size = f"{fair.runs[0]['parameters']:,} parameters"
    return [
        make("flare_round", "FLARE, 4 sites, one round", unit="s", **spread(rounds),
             remark=f"{subject.data}; {size}; median [min to max] of {len(rounds)} rounds, the first one dropped"),
        make("bare_one", "bare loop, sites one after the other on one thread", unit="s", **spread(one.seconds),
             remark=f"{len(one.runs)} runs, before and after FLARE's"),
        make("bare_fair", f"bare loop, {fair.workers} worker processes", unit="s", **spread(fair.seconds),
             remark=f"medians before and after: {drift[0]:.3g} s, {drift[1]:.3g} s"),
        make("ratio_fair", f"FLARE / bare loop with {fair.workers} workers", pairs["fair"], "", low, high, aim,
             "the fair comparison: FLARE's site processes use all cores too; [best to worst pairing of rounds]"),
        make("ratio_one", "FLARE / bare loop on one thread", pairs["one"], "",
             remark="below 1 where more cores win more than FLARE costs"),
        make("ratio_ideal", f"FLARE / (bare loop on one thread / {cores} cores)", pairs["one"] * min(cores, 4), "",
             remark="against a perfect split of the work over the cores, which nobody reaches"),
        make("start_up", "FLARE, start until the first round", run.start_up, "s", remark="not in any round"),
        make("teardown", "FLARE, last event until all processes are gone", run.teardown, "s",
             remark="not in any round"),
    ]  # fmt: skip


def _training(run: Timeline, one: Bare, fair: Bare, make: Any) -> list[Figure]:
    train, both = run.work("train"), run.work("measure")
    local = [max(a.values()) + max(b.values()) for a, b in zip(train, both, strict=True)]
    share = 100 * sum(local) / sum(run.rounds[1:])
    busiest, _ = fair.train_only()
    remark = "the sites' own clocks (event work of releases.jsonl)"
    return [
        make("train_max", "FLARE, train only, slowest site", unit="s", **spread([max(s.values()) for s in train]),
             remark=remark),
        make("train_sum", "FLARE, train only, sum over sites", unit="s", **spread([sum(s.values()) for s in train]),
             remark=remark + "; wall-clock, so sites that share a core count double"),
        make("bare_train_one", "bare loop on one thread, train only, sum over sites", one.train_only()[1], "s"),
        make("bare_train_fair", f"bare loop, {fair.workers} workers, train only, busiest worker", busiest, "s"),
        make("local_work", "share of round: local work, slowest site", share, "%",
             remark=remark + ", measure and train"),
    ]  # fmt: skip


def _shares(run: Timeline, make: Any) -> list[Figure]:
    parts, whole = run.per_round(), sum(run.rounds[1:])
    figures = [
        make(f"share_{part}", f"share of round: {WORDS[part]}", 100 * sum(parts[part]) / whole, "%",
             remark=f"mean {statistics.fmean(parts[part]):.3g} s a round; from progress.jsonl and FLARE's logs")
        for part in PARTS
    ]  # fmt: skip
    rest = whole - sum(sum(seconds) for seconds in parts.values())
    waiting = sum(sum(parts[part]) for part in ("polling", "upload", "noticing"))
    figures += [
        make("share_rest", "share of round: not in any part", 100 * rest / whole, "%"),
        make("waiting", "share of round: waiting and polling, all of it", 100 * waiting / whole, "%",
             remark="polling + upload + noticing: phase start to site start, site end to the server's acceptance"),
    ]  # fmt: skip
    return figures


def _serialised(subject: Subject, run: Timeline, sites: int, make: Any) -> list[Figure]:
    image = isinstance(subject.plan.task.input, ImageInput)
    found, whole = cost(subject.plan, sites, 5 if image else 50), statistics.median(run.rounds[1:])
    kinds = (
        ("wire", "FairFlare's wire.encode and wire.decode", found.wire),
        ("fobs", "FLARE's FOBS of the same Shareables", found.fobs),
    )
    figures = [
        make(f"serialise_{name}", f"serialisation, {words}", 1e3 * seconds, "ms",
             remark=f"one round, {sites} sites added up, in one process: {100 * seconds / whole:.2g} % of a round")
        for name, words, seconds in kinds
    ]  # fmt: skip
    remark = f"{found.down / 1e6:.3g} down, {found.up / 1e6:.3g} up"
    return [
        *figures,
        make("bytes", "a site gets and sends in one round", (found.down + found.up) / 1e6, "MB", remark=remark),
    ]


def _checks(run: Timeline, loops: Sequence[Bare], make: Any) -> list[Figure]:
    """Whether both did the same work: the mean training loss of every round agrees."""
    worst = 0.0
    for loop in loops:
        for each in loop.runs:
            pairs = list(zip(run.losses, each["losses"], strict=False))
            worst = max([worst, *(abs(flare - bare) / abs(flare) for flare, bare in pairs)])
    return [
        make("same_work", "largest relative difference of a round's training loss", worst, "", most=SAME,
             remark="FLARE against the bare loop: the same records, batches, flips and steps")
    ]  # fmt: skip
