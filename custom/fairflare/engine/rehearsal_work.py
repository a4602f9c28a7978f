# SPDX-License-Identifier: Apache-2.0
"""The work of a rehearsal: one round on the site's own records by the code that does it in a job, with a clock.

Nothing is sent. What the site would release goes to a folder that is gone afterwards, the memory of what was revealed
is not touched, and the masks are of made-up keys: no question is spent.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fairflare.data.manifest import SPLITS, Records, SiteData
from fairflare.engine.explain import site_seconds
from fairflare.engine.frozen import frozen_text
from fairflare.engine.job_traffic import is_measured, lock_steps
from fairflare.engine.loading import load_apart
from fairflare.engine.local import local_account
from fairflare.engine.masked import coarse_records
from fairflare.engine.messages import (
    COMPARE,
    COUNTED,
    EVALUATE,
    JOIN,
    MEASURE,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    Message,
    layout_of,
)
from fairflare.engine.rehearsal_cells import cells_of, missing_of
from fairflare.engine.results import model_metadata
from fairflare.engine.roles import site_of
from fairflare.engine.rounds import steps_of
from fairflare.engine.site import RELEASES, Site
from fairflare.engine.trainable import verify_trainable
from fairflare.evaluation.rehearsal import HeldCell, TaskTime, Work
from fairflare.fairness.groups import EVERYBODY
from fairflare.models import build, frozen_tensors, initial_vector, parameter_count, vector_sha256, whole_arrays
from fairflare.models.vector import Vector
from fairflare.models.weights import write_weights
from fairflare.plan import Batch, Plan, Protection
from fairflare.plan import Work as Amount
from fairflare.policy import Entry
from fairflare.privacy.gate import Release

#: Called with what is done now, how much of it is done, and of how much (0: not known).
Tell = Callable[[str, int, int], None]

#: Steps and records of a quick rehearsal.
QUICK_STEPS = 5
_QUICK_RECORDS = {"classification": 512, "segmentation": 16}
#: Nobody's session.
_SESSION = "0" * 32


@dataclass(frozen=True)
class Request:
    """What is to be rehearsed; ``policy_minimum``: the policy's smallest cell, 0 without one."""

    plan: Plan
    site: str
    entry: Entry
    weights: Path | None
    sites: int
    policy_minimum: int
    quick: bool


def unprotected(plan: Plan) -> Plan:
    """The same plan without masks, which one site alone can play; its work on records is the same."""
    clear = Protection(update="none", statistics="none", masking=None)
    return plan.model_copy(update={"protection": clear})


def rehearse_work(request: Request, tell: Tell) -> Work:
    """Load, measure, train, evaluate and mask once, and count what would be held back.

    Raises
    ------
    DataError, WeightsError, RoundError
        Whatever the job would stumble over here.
    """
    start = peak_bytes()
    tell("loading records", 0, 0)
    loaded, load_seconds = _loaded(request)
    with tempfile.TemporaryDirectory(prefix="fairflare-rehearsal-") as scratch:
        player = _Player(request, loaded, Path(scratch), tell)
        times = player.play(load_seconds)
        disk = player.left_on_disk()
    plan, layout = request.plan, layout_of(request.plan, player.parameters)
    tell("masks", 0, 0)
    masks = site_seconds(layout, request.sites) if plan.protection.masked else None
    peak = peak_bytes()
    held, kept = cells_of(plan, loaded, request.policy_minimum)
    shown = [one for one in kept if one.attribute != EVERYBODY]
    return Work(
        times=tuple(times), masks=masks, start_bytes=start, peak_bytes=peak, disk_bytes=disk,
        records={split: len(getattr(loaded, split)) for split in SPLITS}, opted_out=loaded.opted_out,
        missing=tuple(missing_of(plan, loaded)), held=tuple(held),
        smallest=min(shown, key=lambda one: one.records, default=None), reported=_groups(shown),
        weight=_weight(plan, loaded),
    )  # fmt: skip


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux; there a started program's number begins at its starter's
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def _loaded(request: Request) -> tuple[SiteData, float]:
    began = time.perf_counter()
    data = load_apart(request.plan, request.entry, request.weights)
    if not request.plan.method.counts_only:
        verify_trainable(request.plan, data)
    return data, time.perf_counter() - began


def _groups(cells: list[HeldCell]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{one.attribute} {one.group}" for one in cells))


def _weight(plan: Plan, data: SiteData) -> int | None:
    if plan.training.aggregation != "records" or plan.method.counts_only:
        return None
    unit = 1 if plan.protection.masking is None else plan.protection.masking.weight_unit
    return coarse_records(len(data.training), unit)


# --------------------------------------------------------------------------------------------------------------- tasks


@dataclass
class _Player:
    """Plays the server for one site, and takes the time.

    In a quick rehearsal the site has a part of its records, and trains a few steps of the same size; what is measured
    is scaled to all of them.
    """

    request: Request
    data: SiteData
    scratch: Path
    tell: Tell
    parameters: int = 0
    _ticks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = unprotected(self.request.plan)
        self.steps = 0 if self.whole.method.counts_only else steps_of(self.whole, len(self.data.training))
        quick = self.request.quick and not self.whole.method.counts_only
        self.plan = _shortened(self.whole, len(self.data.training), self.steps) if quick else self.whole
        self.part = _part(self.plan, self.data) if quick else self.data
        self.site: Site = site_of(
            self.request.site, self.plan, lambda: self.part, self.scratch, self.request.weights, None,
            local_account(self.plan, self.scratch),
        )  # fmt: skip
        self.site.stop = self._tick
        self.parameters = parameter_count(build(self.plan))
        self.model: Vector = np.zeros(0, dtype=np.float32)
        self.frozen: dict[str, str] = {}

    def play(self, load_seconds: float) -> list[TaskTime]:
        """All tasks; ``load_seconds`` were spent before."""
        joined, seconds = self._do(JOIN, 0)
        seconds *= self._scale(("training", "validation"))  # where a head is trained, features of all records are kept
        times = [TaskTime(JOIN, load_seconds + seconds, 1, False)]
        if self.plan.method.counts_only:
            _, seconds = self._do(MEASURE, 0, {"totals": joined.payloads["cells"].values})
            return [*times, TaskTime(MEASURE, seconds, 1, False)]
        self.model = initial_vector(self.plan, self.request.weights)
        self.frozen = frozen_text(self.plan, self.request.weights)
        return [*times, *self._round(), self._evaluation()]

    def left_on_disk(self) -> int:
        """Bytes that a job leaves: its own list of releases, and two models, of which one is written here."""
        rounds = 1 if self.plan.method.counts_only else self.plan.training.rounds
        lists = (self.scratch / RELEASES).stat().st_size * rounds
        if self.plan.method.counts_only:
            return lists
        self.tell("writing a model", 0, 0)
        file = self.scratch / "model.safetensors"
        frozen = frozen_tensors(self.plan, self.request.weights)
        about = model_metadata(self.plan, self.model, frozen, kind="final", rounds=rounds, record_sha256="0" * 64)
        write_weights(file, whole_arrays(build(self.plan), self.model, frozen), about)
        return lists + 2 * file.stat().st_size

    def _do(
        self, task: str, number: int, vectors: Mapping[str, np.ndarray] | None = None, step: int = 0
    ) -> tuple[Release, float]:
        numbers, text = {}, {}
        if task in (TRAIN, STEP, TRAIN_ALONE, COMPARE):
            # As if the other sites were as large as this one.
            numbers = {
                "records": float(len(self.part.training) * self.request.sites),
                "sites": float(self.request.sites),
            }
        if task != JOIN and self.model.size:
            text = {"model_sha256": vector_sha256(self.model), **self.frozen}
        message = Message(task, number, step, _SESSION, self.plan.sha256, vectors or {}, numbers, text)
        began = time.perf_counter()
        return self.site.handle(message), time.perf_counter() - began

    def _tick(self) -> bool:
        """Asked by the site between two batches."""
        self._ticks.append(time.perf_counter())
        self.tell("one round of training", len(self._ticks) - 1, steps_of(self.plan, len(self.part.training)))
        return False

    # ------------------------------------------------------------------------------------------------------- one round

    def _round(self) -> list[TaskTime]:
        rounds = self.plan.training.rounds
        if self.plan.method.lagged:
            return [self._alone(rounds)]
        self.tell("measuring groups and validation records", 0, 0)
        release, seconds = self._do(MEASURE, 0, {"model": self.model})
        measure = seconds * self._scale(("training", "validation") if self._measures else ("validation",))
        totals = release.payloads["risk_sums"].values if self._measures else np.zeros(0)
        compared, told = self._compared(totals)
        stepped, totals = self._lock_steps(totals)
        self._ticks.clear()
        self.tell("one round of training", 0, self.steps)
        began = time.perf_counter()
        self._do(TRAIN, 0, {"totals": totals, **told, **self._inputs()})
        train = self._trained(began, time.perf_counter(), measure)
        often = sum(is_measured(self.plan, number) for number in range(rounds))
        first = [TaskTime(MEASURE, measure, often, self._scaled), *(replace(one, times=often) for one in compared)]
        found = [*first, *stepped, TaskTime(TRAIN, train, often, self._scaled)]
        if often < rounds:  # statistics of validation records ride with the update
            alone = train + measure * self._validation_share()
            found.append(TaskTime(TRAIN_ALONE, alone, rounds - often, True))
        return found

    def _inputs(self) -> dict[str, np.ndarray]:
        """What the method sends down in a session's first round: zeros, and that nobody was counted yet."""
        layout = self.site.layout
        inputs = {label: np.zeros(size, dtype=np.float32) for label, size in layout.inputs_of_method.items()}
        counted = {COUNTED: np.frombuffer(b"{}", dtype=np.uint8)} if self.plan.method.settles else {}
        return {**inputs, **counted}

    def _compared(self, totals: np.ndarray) -> tuple[list[TaskTime], dict[str, np.ndarray]]:
        """Tell the distance from all, as if all were like this site; it makes the sum by itself."""
        if not self.plan.method.compares_sites:
            return [], {}
        release, took = self._do(COMPARE, 0, {"totals": totals})
        return [TaskTime(COMPARE, took, 1, self._scaled)], {"distances": release.payloads["distances"].values}

    def _alone(self, rounds: int) -> TaskTime:
        self.tell("measuring groups and validation records", 0, 0)
        length = self.site.layout.vectors["risk_sums"].length
        vectors: dict[str, np.ndarray] = {"model": self.model, "totals": np.zeros(length), **self._inputs()}
        began = time.perf_counter()
        self._do(TRAIN_ALONE, 0, vectors)
        ended = time.perf_counter()
        first = self._ticks[0]
        measure = (first - began) * self._scale(("training", "validation"))
        return TaskTime(TRAIN_ALONE, measure + self._trained(first, ended, measure), rounds, self._scaled)

    def _lock_steps(self, totals: np.ndarray) -> tuple[list[TaskTime], np.ndarray]:
        """Steps in lock step; afterwards the totals of the last batch act."""
        seconds, count = [], lock_steps(self.plan)
        for step in range(count):
            self.tell("one round of training", step, count)
            release, took = self._do(STEP, 0, {"totals": totals}, step)
            totals = release.payloads["batch_sums"].values
            seconds.append(took)
        if not count:
            return [], totals
        times = self.plan.training.rounds * lock_steps(self.whole)
        return [TaskTime(STEP, statistics.mean(seconds), times, self._scaled)], totals

    def _trained(self, began: float, ended: float, measure: float) -> float:
        """Seconds of all steps of a round; of a few, the middle one stands for all."""
        if not self._scaled or self.plan.method.lock_step:
            return ended - began
        ticks = [*self._ticks, ended]
        each = statistics.median(b - a for a, b in pairwise(ticks))
        every = self.plan.method.remeasured_every
        again = 0 if every is None else (self.steps - 1) // every
        return self.steps * each + again * measure * (1 - self._validation_share())

    def _evaluation(self) -> TaskTime:
        self.tell("the final evaluation", 0, 0)
        _, seconds = self._do(EVALUATE, self.plan.training.rounds, {"model": self.model})
        return TaskTime(EVALUATE, seconds * self._scale(("validation", "test")), 1, self._scaled)

    @property
    def _scaled(self) -> bool:
        return self.plan is not self.whole

    @property
    def _measures(self) -> bool:
        return "risk_sums" in self.site.layout.vectors

    def _scale(self, splits: tuple[str, ...]) -> float:
        """Records of these splits over those of them that were looked at."""
        whole, part = (sum(len(getattr(data, split)) for split in splits) for data in (self.data, self.part))
        return whole / part if part else 1.0

    def _validation_share(self) -> float:
        """Part of a measurement that is about validation records."""
        validation = len(self.data.validation)
        return validation / (validation + (len(self.data.training) if self._measures else 0)) if validation else 0.0


def _shortened(plan: Plan, records: int, steps: int) -> Plan:
    """The same plan with a few steps, whose batches are as large as those of the whole one."""
    batch = plan.training.batch
    size = batch.amount if batch.unit == "records" else math.ceil(records / batch.amount)
    training = plan.training.model_copy(
        update={
            "work": Amount(unit="steps", amount=min(steps, QUICK_STEPS)),
            "batch": Batch(unit="records", amount=min(size, records)),
        }
    )
    return plan.model_copy(update={"training": training})


def _part(plan: Plan, data: SiteData) -> SiteData:
    """The first records of each split: enough for a few forward passes, and for one batch."""
    least = _QUICK_RECORDS[plan.task.kind]

    def first(records: Records, count: int) -> Records:
        return records.take(np.arange(min(len(records), count)))

    return SiteData(
        first(data.training, max(least, plan.training.batch.amount)), first(data.validation, least),
        first(data.test, least), data.opted_out,
    )  # fmt: skip
