# SPDX-License-Identifier: Apache-2.0
"""J: seconds that masks add to a round in FLARE: the same job without masks and with them, in turn.

Both run as they are shipped, only the plan's ``protection`` differs. Where the seconds go is cut as in ``timeline``:
waiting (polling and noticing), transfer, the sites' executors (training and, with masks, rounding, masking, signatures
and a memory on disk), our server. ``record.json`` has its own clock of the phases.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fairflare import presets, schema
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.explain import speed
from fairflare.engine.messages import layout_of
from fairflare.models import initial_vector
from fairflare.plan import Plan, parse_plan
from fairflare.record import Seconds, find_record, read_record
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import flare, say
from tests.benchmarks.subjects import SITES, plan_of, resnet_plan
from tests.benchmarks.timeline import Timeline

SECTION = "J. What masks add to a round in FLARE"
MOST_SECONDS = 3.0
KINDS = ("none", "masked")
#: Parts of a timeline, as they are summed up here.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "waiting": ("polling", "noticing"), "transfer": ("download", "upload"), "sites": ("work",), "server": ("server",),
}  # fmt: skip
_WORDS = {
    "waiting": "waiting: polling and noticing", "transfer": "transfer, both ways, and FLARE's serialisation",
    "sites": "the executor of the site that comes last: masks, signatures, memory on disk",
    "server": "our server: checks, sums, unmasking, record on disk",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A plan with four synthetic hospitals of ``records``; ``most``: aim in seconds, if there is one."""

    name: str
    plan: Plan
    records: int
    most: float | None


@dataclass(frozen=True)
class Run:
    """What one run left behind; the first round is dropped."""

    timeline: Timeline
    seconds: Sequence[Seconds]

    @property
    def round(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.timeline.rounds[1:])

    def part(self, names: Sequence[str]) -> float:
        """Median seconds of some parts of a round."""
        parts = self.timeline.per_round()
        return statistics.median(map(sum, zip(*(parts[name] for name in names), strict=True)))


def jobs(quick: bool) -> list[Job]:
    """A network of 0.1 million parameters and one of 11.2 million; in a quick run one small enough."""
    if quick:
        return [Job("mlp on heart", plan_of("heart_flexfair", 3), 60, None)]
    # A plan's ResNet-18 has as many outputs as labels; the thousand of ImageNet would be half a million more.
    large = resnet_plan(32, 6, 3)
    return [Job("cnn", plan_of("skin_flexfair", 9), 60, None), Job("resnet18", large, 40, MOST_SECONDS)]


def all_figures(quick: bool, folder: Path) -> list[Figure]:
    """Each job with and without masks, in turn."""
    figures: list[Figure] = []
    for job in jobs(quick):
        home = folder / job.name.replace(" ", "-")
        catalog = write_hospitals(home / "data", job.plan, SITES, job.records, seed=1)
        runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
        for repeat in range(1 if quick else 4):
            # The other way round every second time: a load that grows or fades is not to speak for one of them.
            for kind in KINDS if repeat % 2 == 0 else KINDS[::-1]:
                place = home / f"{kind}-{repeat}"
                found = flare(protected(job.plan, kind), catalog, SITES, place)
                record = read_record(find_record(place))
                runs[kind].append(Run(found, [line.seconds for line in record.rounds[1:]]))
                say(f"{job.name}, {kind}: {runs[kind][-1].round:.3f} s a round")
        figures += _figures(job, runs)
    return figures


def protected(plan: Plan, kind: str) -> Plan:
    """The plan with or without masks."""
    data = json.loads(schema.pretty(plan))
    data["protection"] = presets.UNPROTECTED if kind == "none" else presets.MASKED
    return parse_plan(json.dumps(data))


def _figures(job: Job, runs: Mapping[str, Sequence[Run]]) -> Iterator[Figure]:
    size = initial_vector(job.plan).size
    make = partial(Figure, SECTION, f"{job.name}, {size:,} parameters, {len(SITES)} sites")
    rounds = len(runs["none"][0].timeline.rounds) - 1
    how = f"medians of {rounds} rounds in each of {len(runs['none'])} runs, in turn"
    for kind, words in (("none", "without masks"), ("masked", "with masks")):
        yield make(f"round_{kind}", f"one round {words}", unit="s", **spread([run.round for run in runs[kind]]),
                   remark=how if kind == "none" else "")  # fmt: skip
    pairs = list(zip(runs["masked"], runs["none"], strict=True))
    added = spread([a.round - b.round for a, b in pairs])
    # Masks only add work: a pair in which they save time was measured while something else ran.
    resolved = added["low"] > 0
    yield make("added", "masks add", unit="s", **added, most=job.most, resolved=resolved,
               remark="two more trips of every site (confirm, unmask) among them" if resolved else
               "noise is larger than what masks add: measure again on a quiet machine")  # fmt: skip
    for key, names in GROUPS.items():
        yield make(f"added_{key}", f"of it: {_WORDS[key]}", unit="s",
                   **spread([a.part(names) - b.part(names) for a, b in pairs]))  # fmt: skip
    layout = layout_of(protected(job.plan, "masked"), size)
    kernel = speed(layout, len(SITES))
    yield make(
        "kernel",
        "the kernel alone: a site's masks, and the server's sum",
        kernel.site + kernel.server,
        "s",
        remark=f"in this process: site {kernel.site:.3g} s, server {kernel.server:.3g} s; part of the above",
    )
    for name in Seconds.model_fields:
        medians = [[statistics.median(getattr(line, name) for line in run.seconds) for run in pair] for pair in pairs]
        yield make(f"record_{name}", f"record.json, {name}: with masks minus without", unit="s",
                   **spread([masked - none for masked, none in medians]))  # fmt: skip
