# SPDX-License-Identifier: Apache-2.0
"""L: what each method costs over FedAvg: seconds of a round, and bytes of one site's messages.

The jobs of all methods, in clear and masked, run in this process side by side: one round of each in turn, every second
time the other way round, so that a load that grows or fades speaks for none of them. Plain SGD and one epoch in as many
batches at every site: what all methods can do, and the same work for all of them. A round's seconds are those of all
sites, one after the other on one thread, and of the server; compared with FedAvg's round of the same turn. Bytes are
those of FLARE's serialisation (FOBS) of every message of a round, down to a site and up from it, transport apart.

The table job also runs through FLARE, masked, one method after the other.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.decomposers import common_decomposers
from nvflare.fuel.utils import fobs

from fairflare import presets
from fairflare.data.manifest import Records, SiteData, load
from fairflare.engine.local import local_masks, software
from fairflare.engine.masked_site import Masks
from fairflare.engine.messages import MEASURE, TRAIN_ALONE, Reply
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.server import Phase, Start
from fairflare.flare import wire
from fairflare.he.ckks import SiteCipher
from fairflare.plan import Plan, parse_plan
from tests.benchmarks import subjects
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import flare, say
from tests.benchmarks.subjects import Subject
from tests.unit.methods.contract import ROWS, Row

SECTION = "L. What a method costs over FedAvg"
BASE = "fedavg"
KINDS: Mapping[str, Any] = {"none": presets.UNPROTECTED, "masked": presets.MASKED}
#: The round whose messages are weighed: the first one has what belongs to the start.
WEIGHED = 1
OPTIMIZER = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "keep"}
#: Bytes over FedAvg's that a method may have, both ways together. Nothing more is exchanged, or a vector of the model's
#: length more each way.
MOST: Mapping[str, float] = {"fedprox": 1.001, "fairmixup": 1.001, "scaffold": 2.0}


@dataclass(frozen=True)
class Size:
    """How much is run; ``images``: most training images of a site, ``batches``: of an epoch, table and images."""

    subjects: subjects.Size
    heart_rounds: int
    skin_rounds: int
    images: int
    batches: tuple[int, int]
    flare_rounds: int
    flare_repeats: int
    flare_methods: tuple[str, ...]


ALL = tuple(row.name for row in ROWS if row.trains)
FULL = Size(subjects.FULL, 21, 7, 600, (20, 15), 9, 2, ALL)
QUICK = Size(subjects.QUICK, 3, 3, 12, (4, 2), 3, 1, (BASE, "fairfed"))


@dataclass
class Seen:
    """What was measured of one method: seconds of each round but the first, bytes of one site in the weighed one."""

    seconds: list[float] = field(default_factory=list)
    down: float = 0.0
    up: float = 0.0

    @property
    def bytes(self) -> float:
        """Both ways."""
        return self.down + self.up


class Job:
    """One method's job with all its sites in this process, driven round by round."""

    def __init__(
        self, plan: Plan, data: Mapping[str, SiteData], folder: Path, cipher: SiteCipher | None = None
    ) -> None:
        def masks(name: str) -> Masks | None:
            own = local_masks(plan, name)
            return own if own is None or cipher is None else replace(own, opener=cipher)

        self.sites = {
            name: site_of(name, plan, (lambda one=one: one), folder / name, None, masks(name))
            for name, one in data.items()
        }
        record = None if cipher is None else cipher.record
        self.coordinator = coordinator_of(plan, folder, Start("0" * 32, "local", software(), cipher=record))
        self._phases = self.coordinator.phases(sorted(self.sites))
        self._phase = self._next()
        while self._phase.message.task not in (MEASURE, TRAIN_ALONE):
            self._answer(lambda _, __: None)
            self._phase = self._next()

    def round(self, seen: Seen) -> None:
        """Play one round to its end; the first one is not counted."""
        number = len(self.coordinator.record.rounds)
        weigh = partial(self._weigh, seen) if number == WEIGHED else lambda _, __: None
        seconds = 0.0
        while len(self.coordinator.record.rounds) == number:
            seconds += self._answer(weigh)
            started = time.perf_counter()
            self._phase = self._next()
            seconds += time.perf_counter() - started
        if number > 0:
            seen.seconds.append(seconds)

    def _next(self) -> Phase:
        phase = next(self._phases, None)
        if phase is None:
            raise RuntimeError(f"{self.coordinator.plan.method.name}: {self.coordinator.record.reason}")
        return phase

    def _answer(self, weigh: Callable[[Phase, Any], None]) -> float:
        """Let every site answer; returns the seconds, weighing apart."""
        phase, seconds = self._phase, 0.0
        for name in phase.targets:
            started = time.perf_counter()
            release = self.sites[name].handle(phase.message)
            reply = Reply(
                release.task, release.round, release.step, phase.message.session, release.payloads, release.protocol
            )  # fmt: skip
            phase.collector.accept(name, reply)
            seconds += time.perf_counter() - started
            weigh(phase, release)
        return seconds

    def _weigh(self, seen: Seen, phase: Phase, release: Any) -> None:
        seen.down += _size(wire.encode_message(phase.message)) / len(self.sites)
        seen.up += _size(wire.encode_release(release, phase.message.session)) / len(self.sites)


def _size(shareable: Any) -> int:
    return len(fobs.dumps(shareable))


def plan_of(base: Plan, row: Row, kind: str, rounds: int, batches: int) -> Plan:
    """The base plan with a method, plain SGD, one epoch of as many batches at every site, and a protection."""
    data = base.model_dump(mode="json")
    data["training"].update(
        rounds=rounds, optimizer=OPTIMIZER, work={"unit": "epochs", "amount": 1},
        batch={"unit": "batches_per_epoch", "amount": batches},
    )  # fmt: skip
    data["method"], data["protection"] = row.method, KINDS[kind]
    if row.name == "fairfed":  # of three sites at least, and with weights that move
        data["consents"] = ["pair_sums_of_three_hospitals", "second_sum_of_updates"]
    return parse_plan(json.dumps(data))


def all_figures(size: Size, folder: Path) -> list[Figure]:
    """Both jobs in this process, and the table job through FLARE."""
    heart = subjects.mlp(size.subjects, folder / "heart")
    skin = subjects.cnn(size.subjects, folder / "skin")
    return [
        *side_by_side(heart, ALL, size.heart_rounds, size.batches[0], folder / "heart-jobs"),
        *side_by_side(skin, ALL, size.skin_rounds, size.batches[1], folder / "skin-jobs", size.images),
        *_through_flare(heart, size, folder / "flare"),
    ]


def side_by_side(
    subject: Subject, names: Sequence[str], rounds: int, batches: int, folder: Path, most: int | None = None
) -> list[Figure]:
    """One job with each of the methods ``names``, FedAvg among them; ``most``: training records of a site."""
    common_decomposers.register()
    data = {}
    for site in sorted(subject.catalog.site_names):
        data[site] = _fewer(load(subject.plan, subject.catalog.entry(site, subject.plan.task.data_set)), most)
    rows = [row for row in ROWS if row.name in names]
    # One more round than is played: the last one's messages would be those of the final evaluation, too.
    jobs = {
        (kind, row.name): Job(
            plan_of(subject.plan, row, kind, rounds + 1, batches), data, folder / f"{kind}-{row.name}"
        )
        for kind in KINDS
        for row in rows
    }  # fmt: skip
    seen = {key: Seen() for key in jobs}
    for number in range(rounds):
        for key in list(jobs)[:: 1 if number % 2 == 0 else -1]:
            jobs[key].round(seen[key])
    records = sum(len(one.training) for one in data.values())
    figures: list[Figure] = []
    for kind in KINDS:
        base = seen[kind, BASE]
        say(f"{subject.name}, {kind}: FedAvg {statistics.median(base.seconds):.3f} s a round")
        make = partial(Figure, SECTION, f"{subject.name}, {kind}")
        for row in rows:
            figures += _figures(row.name, seen[kind, row.name], base, f"{subject.data}; {records} for training", make)
    return figures


def _fewer(data: SiteData, most: int | None) -> SiteData:
    def first(records: Records) -> Records:
        return records if most is None else records.take(np.arange(min(len(records), most)))

    return SiteData(first(data.training), first(data.validation), first(data.test), data.opted_out)


def _figures(name: str, seen: Seen, base: Seen, about: str, make: Any) -> Iterator[Figure]:
    ratios = [own / fedavg for own, fedavg in zip(seen.seconds, base.seconds, strict=True)]
    how = f"{about}; median [min to max] of {len(seen.seconds)} rounds" if name == BASE else ""
    yield make(f"{name}_seconds", f"{name}, one round: all sites in turn, and the server", unit="s",
               **spread(seen.seconds), remark=how)  # fmt: skip
    if name != BASE:
        once = "counts go once, in the first round, which is not in here" if name == "reweighting" else ""
        yield make(f"{name}_over", f"{name} over FedAvg, seconds of rounds of one turn", unit="", **spread(ratios),
                   remark=once)  # fmt: skip
    for way, words, own, fedavg in (
        ("down", "down to a site", seen.down, base.down), ("up", "up from a site", seen.up, base.up),
    ):  # fmt: skip
        remark = "FOBS of every message" if name == BASE else f"{own / fedavg:.4g} times FedAvg's"
        yield make(f"{name}_{way}", f"{name}, {words} in a round", own / 1e3, "kB", remark=remark)
    if name != BASE:
        yield make(f"{name}_bytes", f"{name} over FedAvg, bytes both ways", seen.bytes / base.bytes, "",
                   most=MOST.get(name))  # fmt: skip


def _through_flare(subject: Subject, size: Size, folder: Path) -> Iterator[Figure]:
    """The same job through FLARE's simulator, masked: one method after the other, every second time backwards."""
    sites = sorted(subject.catalog.site_names)
    rows = [row for row in ROWS if row.name in size.flare_methods]
    found: dict[str, list[list[float]]] = {row.name: [] for row in rows}
    for repeat in range(size.flare_repeats):
        for row in rows[:: 1 if repeat % 2 == 0 else -1]:
            plan = plan_of(subject.plan, row, "masked", size.flare_rounds, size.batches[0])
            run = flare(plan, subject.catalog, sites, folder / f"{row.name}-{repeat}")
            found[row.name].append(list(run.rounds[1:]))
            say(f"{subject.name}, FLARE, {row.name}: {statistics.median(run.rounds[1:]):.3f} s a round")
    make = partial(Figure, SECTION, f"{subject.name} through FLARE, masked")
    for name, runs in found.items():
        medians = [statistics.median(rounds) for rounds in runs]
        yield make(f"{name}_round", f"{name}, one round in FLARE, {len(sites)} sites", unit="s", **spread(medians),
                   remark=f"medians of {len(runs[0])} rounds in each of {len(runs)} runs")  # fmt: skip
        if name != BASE:
            base = [statistics.median(rounds) for rounds in found[BASE]]
            added = [own - fedavg for own, fedavg in zip(medians, base, strict=True)]
            yield make(f"{name}_added", f"{name} adds to FedAvg's round", unit="s", **spread(added),
                       remark="of runs of one turn; polling is most of it, so small differences are noise")  # fmt: skip
