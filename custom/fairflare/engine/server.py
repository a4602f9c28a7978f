# SPDX-License-Identifier: Apache-2.0
"""The server's half of the job: which task comes next, what the sums mean, and the record of it all.

:meth:`Coordinator.phases` is a generator of phases. Whoever drives it (FLARE's controller, the local engine) sends each
phase's message to its targets, hands replies to the phase's collector and asks for the next phase.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fairflare import schema
from fairflare.engine import describe
from fairflare.engine.collector import Collector, PlainSums, Sums
from fairflare.engine.frozen import frozen_text
from fairflare.engine.messages import (
    COMPARE,
    COUNTED,
    COUNTS,
    EVALUATE,
    FINISH,
    JOIN,
    MEASURE,
    PROTECT,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    Layout,
    Message,
    layout_of,
)
from fairflare.engine.round_line import final_results, round_line
from fairflare.engine.rounds import is_measured, kept_totals
from fairflare.engine.store import Store
from fairflare.errors import HeError, RoundError, SecaggError
from fairflare.fairness.groups import Floats, pack, unpack
from fairflare.methods import UPDATE
from fairflare.models import initial_vector, vector_sha256
from fairflare.models.vector import Vector
from fairflare.plan import Plan
from fairflare.record import (
    Final,
    Reason,
    Refusal,
    RunRecord,
    Seconds,
    best_model,
    changed,
    results_of,
)
from fairflare.secagg.identity import DEVELOPMENT, Trust
from fairflare.secagg.params import Cipher
from fairflare.secagg.protection import Opened


@dataclass(frozen=True)
class Phase:
    """One message, who gets it, how long to wait (seconds), and who collects the replies."""

    message: Message
    targets: tuple[str, ...]
    timeout: float
    collector: Collector


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes
    ----------
    session
        Random name of this start; replies to another one are refused.
    transport
        What drives the phases.
    software
        Names and versions, for the record.
    earlier
        Record and model of an earlier start to go on from (model ``None``: no round was complete), or ``None``.
    best
        The best model on validation data so far of the earlier start, or ``None``.
    weights
        Folder of weight files, for a plan that starts from one.
    trust
        With masks, whom the server believes: the root of its start-up kit, or in a simulation anybody.
    cipher
        For a plan with encrypted statistics: what its sites encrypt with. It holds no key.
    """

    session: str
    transport: Literal["flare", "local"]
    software: Mapping[str, str]
    earlier: tuple[RunRecord, Vector | None, str] | None = None
    best: Vector | None = None
    weights: Path | None = None
    trust: Trust = field(default_factory=lambda: Trust(DEVELOPMENT))
    cipher: Cipher | None = None


class Coordinator:
    """One job at the server.

    Parameters
    ----------
    plan
        The job's plan.
    folder
        Where record, model and progress are kept.
    start
        How this run begins.
    """

    def __init__(self, plan: Plan, folder: Path, start: Start) -> None:
        self.plan = plan
        self.start = start
        self.model: Vector = initial_vector(plan, start.weights)
        self.layout: Layout = layout_of(plan, self.model.size)
        self.store = Store(folder, plan)
        self.record = describe.first_record(plan, start, vector_sha256(self.model))
        if start.earlier is not None and start.earlier[1] is not None:
            self.model = start.earlier[1]
            for one in (self.model, start.best):  # the record of this session names them before there are newer ones
                if one is not None:
                    self.store.keep(one)
        self._sha256, self._frozen = vector_sha256(self.model), frozen_text(plan, start.weights)
        self._best = self.model if start.best is None else start.best
        self._totals: Floats | None = None
        self._numbers: dict[str, float] = {}
        self._missed: dict[str, int] = {}
        self._records, self._joined = 0.0, 0
        self._counted: dict[str, int] = {}
        self._half = self.layout.method.at_server(self.model.size)
        self._refusals: list[Refusal] = []
        self._seconds: dict[str, float] = {}

    @property
    def active(self) -> tuple[str, ...]:
        """Sites that still take part, sorted."""
        return tuple(sorted(site for site, missed in self._missed.items() if missed < self.plan.federation.max_missed))

    def phases(self, roster: Sequence[str], without: Sequence[Refusal] = ()) -> Iterator[Phase]:
        """All phases of the run with these sites; afterwards ``record.status`` is ``complete`` or ``stopped``."""
        self._session(roster=tuple(sorted(roster)), without=tuple(without))
        rounds = 0 if self.plan.method.counts_only else self.plan.training.rounds
        self.store.progress("start", plan=self.plan.name, rounds=rounds, roster=sorted(roster))
        try:
            yield from self._join()
            yield from self._work()
        except (RoundError, SecaggError, HeError) as problem:
            self.stop(problem.code, str(problem).removeprefix(f"{problem.code}: "))
            return
        self._end("complete", None)

    def _work(self) -> Iterator[Phase]:
        """What a session does once its sites have joined."""
        for number in range(self.record.next_round, self.plan.training.rounds):
            self._begin(number)
            yield from self._round(number)
        self._begin(self.plan.training.rounds)
        yield from self._evaluate()

    def _begin(self, number: int) -> None:
        """Write down that a round begins; with masks it can never be begun again."""
        self._refusals, self._seconds = [], {}
        if number >= self.record.begun:
            self.record = changed(self.record, begun=number + 1)
            self.store.save(self.record)

    def _session(self, **fields: object) -> None:
        *earlier, newest = self.record.sessions
        self.record = changed(self.record, sessions=(*earlier, newest.model_copy(update=fields)))

    def stop(self, code: str, text: str) -> None:
        """End the run early, for the record."""
        if self.record.status == "running":
            self._end("stopped", Reason(code=code, text=text))

    def _end(self, status: Literal["complete", "stopped"], reason: Reason | None) -> None:
        self.record = changed(self.record, status=status, reason=reason, ended=describe.now())
        self.store.save(self.record)
        self.store.progress("end", status=status, code=reason.code if reason else None)

    def _phase(
        self,
        task: str,
        number: int,
        targets: Sequence[str],
        *,
        step: int = 0,
        vectors: Mapping[str, np.ndarray] | None = None,
        numbers: Mapping[str, float] | None = None,
        text: Mapping[str, str] | None = None,
    ) -> Iterator[Phase]:
        """Yield one phase; afterwards its collector is ``self._last`` and sites without an answer are noted."""
        words = {**({} if task == JOIN else {"model_sha256": self._sha256, **self._frozen}), **(text or {})}
        own = (self.start.session, self.plan.sha256)
        message = Message(task, number, step, *own, vectors or {}, numbers or {}, words)
        message, sums = self._addressed(message)
        collector = Collector(sums, message, targets)
        self.store.progress("phase", task=task, round=number, step=step, sites=list(targets))
        started = time.monotonic()
        yield Phase(message, tuple(targets), self.plan.federation.task_timeout_seconds, collector)
        collector.close()
        kind = task if task in (MEASURE, EVALUATE) else "protect" if task in PROTECT else TRAIN
        self._seconds[kind] = self._seconds.get(kind, 0.0) + time.monotonic() - started
        self._note(collector)

    def _addressed(self, message: Message) -> tuple[Message, Sums]:
        """The message as it is sent, and what replies to it are added to."""
        by_records = self.plan.training.aggregation == "records" and self.layout.method.weighing == "aggregation"
        return message, PlainSums(self.layout, message.task, self._records if by_records else 1.0)

    def _note(self, collector: Collector) -> None:
        self._last = collector
        self._refusals += collector.refusals
        if collector.message.task == JOIN:  # also of a session that ends here
            self._session(join_refusals=tuple(self._refusals))
        for refusal in collector.refusals:
            self._missed[refusal.site] = self._missed.get(refusal.site, 0) + 1
            self.store.progress("refused", site=refusal.site, task=refusal.task, code=refusal.code)
        collector.verify_enough(self.plan.federation.min_sites, self._refusals)

    def _join(self) -> Iterator[Phase]:
        yield from self._phase(JOIN, self.record.next_round, self.record.roster)
        joined = self._last.accepted
        self._joined = len(joined)
        self._missed = dict.fromkeys(joined, 0)
        opened = self._last.opened()["counts"]
        counts = dict(zip(COUNTS, opened.total.tolist(), strict=True))
        self._records = counts["training"]
        self._session(records=counts)
        self._refusals = []
        self.store.save(self.record)
        self.store.progress("joined", sites=list(joined), records=counts)

    def _round(self, number: int) -> Iterator[Phase]:
        if self._measures(number):
            yield from self._measured_round(number)
        else:
            yield from self._round_alone(number)

    def _measures(self, number: int) -> bool:
        """Whether a round begins with statistics of its own."""
        return is_measured(self.plan, self.record.sessions[-1], number)

    def _round_alone(self, number: int) -> Iterator[Phase]:
        """A round in one trip: the last totals act, this round's own statistics (if any) ride with the update."""
        if self._totals is None:  # nothing was measured yet: no group is there, so no penalty acts
            risk = self.layout.vectors["risk_sums"].length if "risk_sums" in self.layout.vectors else 0
            self._totals = np.zeros(risk)
            self._numbers = {"records": self._records, "sites": float(len(self.active))}
        vectors: dict[str, np.ndarray] = {"model": self.model, "totals": self._totals, **self._inputs()}
        yield from self._phase(TRAIN_ALONE, number, self.active, vectors=vectors, numbers=self._numbers)
        opened, cohort = self._last.opened(), self._last.accepted
        risk_sums = opened["risk_sums"].total if "risk_sums" in opened else None
        if risk_sums is not None:
            self._totals, self._numbers = self._kept(risk_sums), _cohort_numbers(opened, cohort)
        self._aggregate(number, {TRAIN_ALONE: cohort}, risk_sums, opened, opened)

    def _measured_round(self, number: int) -> Iterator[Phase]:
        yield from self._phase(MEASURE, number, self.active, vectors={"model": self.model})
        measured, cohort = self._last.opened(), self._last.accepted
        participants: dict[str, tuple[str, ...]] = {MEASURE: cohort}
        risk = measured["risk_sums"].total if "risk_sums" in measured else np.zeros(0)
        numbers = _cohort_numbers(measured, cohort)
        if self.layout.method.weighing == "own":  # sites begin with their part of all, whoever is missing now
            numbers = {"records": self._records, "sites": float(self._joined)}
        totals = self._kept(risk)
        self._totals, self._numbers = totals, numbers
        inputs = self._inputs()
        if self.plan.method.compares_sites:
            yield from self._phase(COMPARE, number, cohort, vectors={"totals": totals}, numbers=numbers)
            inputs["distances"], cohort = self._last.opened()["distances"].total, self._last.accepted
            participants[COMPARE] = cohort
        for step in range(self._lock_steps()):
            yield from self._phase(STEP, number, cohort, step=step, vectors={"totals": totals}, numbers=numbers)
            stepped, cohort = self._last.opened(), self._last.accepted
            totals, numbers = self._kept(stepped["batch_sums"].total), _cohort_numbers(stepped, cohort)
            participants[STEP] = cohort
        yield from self._phase(TRAIN, number, cohort, vectors={"totals": totals, **inputs}, numbers=numbers)
        participants[TRAIN] = self._last.accepted
        self._aggregate(number, participants, risk, measured, self._last.opened())

    def _inputs(self) -> dict[str, np.ndarray]:
        """What the method sends down before training, and whose updates were counted, if sites must know."""
        inputs: dict[str, np.ndarray] = dict(self._half.inputs())
        if self.plan.method.settles:
            text = json.dumps(self._counted, sort_keys=True, separators=(",", ":"))
            inputs[COUNTED] = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        return inputs

    def _kept(self, totals: Floats) -> Floats:
        """Totals as sites get them: zeros for groups that too few sites report, and for risks of too few hospitals."""
        measures, sizes = self.layout.method.measures(), self.layout.sizes
        return pack(measures, kept_totals(self.plan, unpack(measures, totals, sizes)))

    def _lock_steps(self) -> int:
        training = self.plan.training
        if not self.plan.method.lock_step:
            return 0
        return training.work.amount * (training.batch.amount if training.work.unit == "epochs" else 1)

    def _aggregate(
        self,
        number: int,
        participants: Mapping[str, tuple[str, ...]],
        risk: Floats | bytes | None,
        validated: Mapping[str, Opened],
        trained: Mapping[str, Opened],
        acted: int | None = None,
    ) -> None:
        """Make the next model and write the round down; ``risk`` is ``None`` if nothing was measured in it.

        It is bytes where only sites know it. With masks ``acted`` is the round whose totals acted, and statistics may
        be missing.
        """
        started = time.monotonic()
        before = self.model
        *_, last = participants.values()
        self.model = self._moved(trained)
        if not np.isfinite(self.model).all():
            raise RoundError(
                "FF-ROUND-DIVERGED",
                got="a global model with NaN or infinity",
                expected="finite numbers",
                next_step="lower the learning rate or the penalty's strength in the plan",
            )
        self._sha256 = vector_sha256(self.model)
        self._counted.update(dict.fromkeys(trained[UPDATE].sites, number))
        self._missed = dict(sorted({**self._missed, **dict.fromkeys(last, 0)}.items()))
        seconds = Seconds(
            measure=self._seconds.get(MEASURE, 0.0), train=self._seconds.get(TRAIN, 0.0),
            protect=self._seconds.get("protect", 0.0), aggregate=time.monotonic() - started,
        )  # fmt: skip
        line = round_line(
            self.layout, number, dict(participants), tuple(self._refusals), risk, validated, trained, acted, seconds,
            self._sha256,
        )  # fmt: skip
        self.record = changed(self.record, rounds=(*self.record.rounds, line))
        if best_model(self.record)[0] == len(self.record.rounds) - 1:
            self._best = before
        self.store.save(self.record, self.model, best=self._best)
        self.store.progress("round", **describe.progress_facts(self.plan, line))

    def _moved(self, trained: Mapping[str, Opened]) -> Vector:
        """The next model; raises ``FF-ROUND-WEIGHTS`` where the updates weigh nothing."""
        if trained[UPDATE].weight <= 0:
            raise RoundError(
                "FF-ROUND-WEIGHTS",
                got="updates whose weights are all zero",
                expected="at least one that counts",
                next_step="lower the step by which weights move (method.beta) in the plan",
            )
        means = {label: trained[label].mean for label in (UPDATE, *self.layout.parts)}
        return self._half.step(self.model, means, self._share_of(trained[UPDATE]))

    def _share_of(self, update: Opened) -> float:
        """Part of all sites' weights that the sites of an update have."""
        whole = self._records if self.plan.training.aggregation == "records" else float(self._joined)
        return min(update.weight / whole, 1.0)

    def _evaluate(self) -> Iterator[Phase]:
        number = self.plan.training.rounds
        yield from self._phase(EVALUATE, number, self.active, vectors={"model": self.model})
        opened, participants = self._last.opened(), self._last.accepted
        final = Final(
            model_sha256=self._sha256,
            best_model_sha256=self._sha256,
            best_rounds=len(self.record.rounds),
            participants=participants,
            refusals=tuple(self._refusals),
            validation=(), test=(), validation_collapse=None, test_collapse=None, confirmed=(),
        )  # fmt: skip
        if "test_sums" in opened and "validation_sums" in opened:
            final = final.model_copy(update=final_results(self.layout, opened))
        rounds, sha256 = best_model(changed(self.record, final=final))
        if rounds == len(self.record.rounds):
            self._best = self.model
        final = final.model_copy(update={"best_model_sha256": sha256, "best_rounds": rounds})
        self.record = changed(self.record, final=final)
        self.store.save(self.record, self.model, best=self._best)
        sent = np.frombuffer(schema.canonical(results_of(self.record)), dtype=np.uint8)
        yield from self._phase(FINISH, number, participants, vectors={"best": self._best, "record": sent})
        refusals = tuple(self._refusals)
        self.record = changed(
            self.record, final=final.model_copy(update={"confirmed": self._last.accepted, "refusals": refusals})
        )


def _cohort_numbers(opened: Mapping[str, Opened], cohort: Sequence[str]) -> dict[str, float]:
    """Records and sites behind totals: what turns a site's records into its share of the aggregate."""
    return {"records": float(opened["present_records"].total[0]), "sites": float(len(cohort))}
