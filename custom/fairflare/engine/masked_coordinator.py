# SPDX-License-Identifier: Apache-2.0
"""The server's half of a masked job: the same rounds, with the phases that masks need, and nothing opened but sums.

A round is ``measure``, ``train``, ``confirm``, ``unmask``. Keys of the next round ride on ``confirm``, its shares on
``unmask``; where a site lacks them, ``keys`` and ``share`` come first. Statistics are opened over all sites of the
session or not at all; an update is opened over those that remain, as long as they are max(t, min_sites). A round in
which fewer remain is lost: nothing of it is opened, its number is never used again, and the next one goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fairflare.engine.collector import Sums
from fairflare.engine.masked import (
    ACT,
    DISTANCES,
    KEEP,
    NONE,
    RESET,
    TOTALS,
    Acting,
    masking_of,
    oldest_totals,
    sums_in,
)
from fairflare.engine.masked_server import RISK, MaskedServer
from fairflare.engine.messages import (
    COMPARE,
    CONFIRM,
    COUNTS,
    EVALUATE,
    JOIN,
    KEYS,
    MEASURE,
    PREPARE,
    SESSION,
    SHARE,
    TRAIN,
    TRAIN_ALONE,
    UNMASK,
    Message,
)
from fairflare.engine.rounds import cleared
from fairflare.engine.server import Coordinator, Phase, Start
from fairflare.errors import RoundError, SecaggError
from fairflare.fairness.groups import CellSums, Floats, pack, unpack
from fairflare.methods import UPDATE
from fairflare.plan import Plan
from fairflare.record import LostRound, changed
from fairflare.secagg.protection import Opened

Participants = dict[str, tuple[str, ...]]


class MaskedCoordinator(Coordinator):
    """One masked job at the server; see :class:`~fairflare.engine.server.Coordinator`."""

    def __init__(self, plan: Plan, folder: Path, start: Start) -> None:
        super().__init__(plan, folder, start)
        self._masks = MaskedServer(self.layout, start.trust, start.session, start.cipher)
        self._risk: Acting | None = None
        self._risk_round = -1
        self._distances: Acting | None = None
        self._share = 1.0
        self._participants: Participants = {}
        self._trained: tuple[int, tuple[str, ...]] = (-1, ())

    def _addressed(self, message: Message) -> tuple[Message, Sums]:
        acting: dict[str, Acting] = {}
        for name in sums_in(message.task):
            if name == TOTALS:
                acting[name] = self._acting(message)
            elif self._distances is not None:
                acting[name] = self._distances
        return self._masks.addressed(message, acting)

    # -------------------------------------------------------------------------------------------------------- session

    def _join(self) -> Iterator[Phase]:
        first = self.record.next_round
        yield from self._phase(JOIN, first, self.record.roster)
        joined = self._last.accepted
        self._missed = dict.fromkeys(joined, 0)
        self.store.save(self.record)
        self._masks.begin(joined)
        prepared = sorted(self.layout.tasks[PREPARE])
        self._masks.offer(prepared, first)
        self._masks.offer(self._labels(first), first)
        yield from self._phase(SESSION, first, joined)
        self._verify_all(joined)
        self._session(transcript=self._masks.session.session.hex())
        self._begin(first)
        self._masks.keyset_closed(prepared)
        if UPDATE in self._labels(first):
            self._masks.keyset_open()
        yield from self._phase(PREPARE, first, joined)
        self._verify_all(joined)
        counts = dict(zip((*COUNTS, "weight"), self._last.opened()["counts"].total.tolist(), strict=True))
        self._records = counts.pop("weight")
        for label in prepared:
            self._masks.opening(label)
        self._session(records=counts)
        self.store.save(self.record)
        self.store.progress("joined", sites=list(joined), records=counts)

    def _verify_all(self, joined: Sequence[str]) -> None:
        """Counts are exact, so they are opened over everybody who joined or not at all."""
        if self._last.accepted != tuple(joined):
            who = ", ".join(f"{one.site}: {one.code}" for one in self._last.refusals)
            raise RoundError(
                "FF-ROUND-QUORUM",
                got=f"{len(self._last.accepted)} of {len(joined)} sites in {self._last.message.task} ({who})",
                expected="all sites that joined: numbers of records are opened over all of them or not at all",
                next_step="nothing was opened; repair or leave out those sites, then 'fairflare run resume'",
            )

    def _labels(self, number: int) -> list[str]:
        """Vectors of a round, or of the final evaluation."""
        if number >= self.plan.training.rounds:
            tasks: tuple[str, ...] = (EVALUATE,)
        else:
            tasks = (MEASURE, COMPARE, TRAIN) if self._measures(number) else (TRAIN_ALONE,)
        return sorted({label for task in tasks for label in self.layout.tasks.get(task, ())} - set(self.layout.parts))

    def _measures(self, number: int) -> bool:
        """Also as long as a site was missing whenever it was time to: rare statistics are not put off to the next."""
        missing = self._risk is None and RISK in self.layout.vectors and not self.plan.method.lagged
        return missing or super()._measures(number)

    # ---------------------------------------------------------------------------------------------------------- rounds

    def _round(self, number: int) -> Iterator[Phase]:
        self._participants, self._distances = {}, None
        try:
            yield from super()._round(number)
        except (RoundError, SecaggError) as problem:
            self._lose(number, problem)

    def _lose(self, number: int, problem: RoundError | SecaggError) -> None:
        """Go on without this round, if enough sites are left and there is a next one; otherwise stop."""
        if problem.code not in _LOSES or len(self.active) < self._masks.params.least(len(self._masks.session.roster)):
            raise problem
        self._masks.drop_queue()
        lost = LostRound(
            round=number, code=problem.code, participants=self._participants, refusals=tuple(self._refusals)
        )  # fmt: skip
        self.record = changed(self.record, lost_rounds=(*self.record.lost_rounds, lost))
        self.store.save(self.record)
        self.store.progress("lost", round=number, code=problem.code)

    def _keyed(self, number: int) -> Iterator[Phase]:
        """See to it that every active site has keys, and dealt shares, for this round; others sit it out."""
        self._masks.session.forget(number - 1)  # a lost round leaves its vectors behind
        active, labels = self.active, self._labels(number)
        if self._masks.has_keys(labels, active) and self._masks.has_shares(active):
            self._cohort = active
            return
        self._masks.drop_steps()
        self._masks.reopen()
        self._masks.offer(labels, number)
        yield from self._ask(KEYS, number, active)
        self._masks.keyset_open()
        yield from self._ask(SHARE, number, self._last.accepted)
        self._cohort = self._last.accepted

    def _ask(
        self, task: str, number: int, targets: Sequence[str], *, model: bool = False, totals: bool = False
    ) -> Iterator[Phase]:
        """One phase of a round; afterwards ``self._participants`` has who answered."""
        text, vectors = {}, {"model": self.model} if model else {}
        trains = task in (TRAIN, TRAIN_ALONE)
        if totals:
            text["totals"] = ACT if self._usable(number) else NONE
        if trains:
            text["optimizer"] = self._state(number, targets)
            vectors |= self._inputs()
            if self.plan.method.compares_sites:
                text[DISTANCES] = NONE if self._distances is None else ACT
            self._masks.show(targets)
        yield from self._phase(task, number, targets, vectors=vectors, text=text)
        self._participants[task] = self._last.accepted
        if trains:
            self._trained = number, self._last.accepted
            self._masks.shown(self._last.accepted)

    def _state(self, number: int, targets: Sequence[str]) -> str:
        """Whether optimisers go on: only where all these sites trained in the round before."""
        keeps = self.plan.training.optimizer.state == "keep"
        together = self._trained[0] == number - 1 and set(targets) <= set(self._trained[1])
        return KEEP if keeps and together else RESET

    def _measured_round(self, number: int) -> Iterator[Phase]:
        yield from self._keyed(number)
        self._masks.keyset_closed(self.layout.tasks[MEASURE])
        yield from self._ask(MEASURE, number, self._cohort, model=True)
        measured, cohort = self._last.opened(), self._last.accepted
        self._take_totals(number, measured)
        if self.plan.method.compares_sites and self._risk_round == number:
            cohort = yield from self._compared(number, cohort)
        self._masks.dealers()
        self._masks.keyset_closed(self.layout.tasks[TRAIN])
        yield from self._ask(TRAIN, number, cohort, totals=True)
        trained = dict(self._last.opened())
        acted = self._risk_round if self._usable(number) else None
        yield from self._unmask(number, trained)
        self._finish_round(number, measured, trained, acted)

    def _compared(self, number: int, cohort: Sequence[str]) -> Generator[Phase, None, tuple[str, ...]]:
        """Let sites tell their distances from the sums that were opened; returns who goes on."""
        self._masks.keyset_closed(self.layout.tasks[COMPARE])
        yield from self._ask(COMPARE, number, cohort, totals=True)
        self._distances = self._masks.pass_on(DISTANCES, self._last.opened())
        return self._last.accepted

    def _round_alone(self, number: int) -> Iterator[Phase]:
        yield from self._keyed(number)
        self._masks.dealers()
        self._masks.keyset_closed(self.layout.tasks[TRAIN_ALONE])
        yield from self._ask(TRAIN_ALONE, number, self._cohort, model=True, totals=True)
        trained = dict(self._last.opened())
        acted = self._risk_round if self._usable(number) else None
        self._take_totals(number, trained)
        yield from self._unmask(number, trained)
        self._finish_round(number, trained, trained, acted)

    def _unmask(self, number: int, trained: dict[str, Opened]) -> Iterator[Phase]:
        """Open the sum of the updates that arrived; the next round's keys and shares ride along."""
        following = self._labels(number + 1)
        self._masks.survivors()
        self._masks.offer(following, number + 1)
        yield from self._ask(CONFIRM, number, self._last.accepted)
        self._masks.confirms()
        if UPDATE in following and self._masks.has_keys([UPDATE], self.active):
            self._masks.keyset_open()
        yield from self._ask(UNMASK, number, self._last.accepted)
        opened, self._share = self._masks.unmasked()
        if self.plan.method.settles:
            self._masks.owe(set(opened[UPDATE].sites) - set(self._last.accepted))
        trained |= opened
        task = TRAIN if TRAIN in self._participants else TRAIN_ALONE
        self._participants[task] = opened[UPDATE].sites

    def _share_of(self, update: Opened) -> float:
        return self._share

    def _finish_round(
        self, number: int, measured: Mapping[str, Opened], trained: Mapping[str, Opened], acted: int | None
    ) -> None:
        risk: Acting | None = self._for_the_record(measured[RISK].total) if RISK in measured else None
        if self._risk_round == number and isinstance(self._risk, bytes):
            risk = self._risk
        self._aggregate(number, self._participants, risk, measured, trained, acted)

    def _for_the_record(self, totals: Floats) -> Floats:
        """Group sums whose risks have three decimals: what a record shows, and passes on, of exact statistics.

        Weights, coefficients, P and gap in the record follow from these; the ones that acted are exact.
        """
        measures = self.layout.method.measures()
        sums = unpack(measures, totals, self.layout.sizes)
        for measure, found in sums.items():
            one = sums[measure] = cleared(self.plan, found)
            if isinstance(one, CellSums):
                risk = np.round(one.total / np.maximum(one.count, 1.0), 3)
                sums[measure] = CellSums(risk * one.count, one.count, one.sites)
        return pack(measures, sums)

    # ---------------------------------------------------------------------------------------------------------- totals

    def _take_totals(self, number: int, opened: Mapping[str, Opened]) -> None:
        """Keep what was opened about groups, and pass it on to the sites with the next task."""
        found = self._masks.pass_on(RISK, opened)
        if found is not None:
            self._risk, self._risk_round = found, number
        elif TRAIN_ALONE not in self._participants:
            self._verify_not_stale(number)

    def _usable(self, number: int) -> bool:
        """Whether there are group sums that are not too old to act; the sites decide alike."""
        return self._risk is not None and number - self._risk_round <= oldest_totals(self.plan)

    def _verify_not_stale(self, number: int) -> None:
        stop = masking_of(self.plan).when_stale == "stop"
        if stop and RISK in self.layout.vectors and not self._usable(number):
            raise RoundError(
                "FF-ROUND-STALE",
                got="group sums that are older than protection.masking.max_stale, or none",
                expected="statistics of all sites of the session",
                next_step="start the sites that are missing, then 'fairflare run resume'",
            )

    def _acting(self, message: Message) -> Acting:
        length = self.layout.vectors[RISK].length if RISK in self.layout.vectors else 0
        if self._risk is None or message.text.get("totals") != ACT:
            return np.zeros(length)
        return self._risk

    # ------------------------------------------------------------------------------------------------------ evaluation

    def _evaluate(self) -> Iterator[Phase]:
        number = self.plan.training.rounds
        labels, roster = self._labels(number), self._masks.session.roster
        if self.active == roster and not self._masks.has_keys(labels, roster):
            refusals, missed = list(self._refusals), dict(self._missed)
            self._masks.drop_steps()
            self._masks.offer(labels, number)
            yield from self._phase(KEYS, number, self.active)
            self._refusals, self._missed = refusals, missed  # who has no keys is still asked to evaluate
        if self.active == roster:
            self._masks.keyset_closed(labels)
        yield from super()._evaluate()


#: What loses a round and no more: too few sites, in time, with the same view.
_LOSES = ("FF-ROUND-QUORUM", "FF-SECAGG-QUORUM", "FF-SECAGG-CULPRIT")
