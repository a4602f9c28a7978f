# SPDX-License-Identifier: Apache-2.0
"""A hospital's half of the job: answers each task with a release, or refuses by an exception."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from fairflare.data.manifest import Records, SiteData
from fairflare.engine.failures import note_failure
from fairflare.engine.frozen import verify_frozen
from fairflare.engine.incoming import refused, verify_message
from fairflare.engine.local_work import LocalWork
from fairflare.engine.masked_site import Masks, masked_site
from fairflare.engine.messages import (
    COMPARE,
    CONFIRM,
    EVALUATE,
    FINISH,
    JOIN,
    KEYS,
    MEASURE,
    PREPARE,
    SESSION,
    SHARE,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    UNMASK,
    Layout,
    Message,
    layout_of,
)
from fairflare.engine.objective import Scores
from fairflare.engine.results import keep_models, received_record
from fairflare.engine.rounds import kept_totals, steps_of
from fairflare.engine.site_round import SiteRound, training_sums
from fairflare.engine.site_sums import evaluation_vectors, group_sums
from fairflare.engine.trainable import load_trainable, verify_start
from fairflare.engine.training import Trainer
from fairflare.fairness.groups import Floats, Measure, Sums, exchanged, pack, unpack
from fairflare.methods import UPDATE, SampleTerms
from fairflare.models import build, frozen_tensors, parameter_count, vector_sha256
from fairflare.models.vector import Vector
from fairflare.plan import Plan
from fairflare.privacy.gate import Release, ReleaseGate, ReleaseLog
from fairflare.secagg.plain import PlainSite
from fairflare.secagg.protection import Weighted

RELEASES = "releases.jsonl"


class Site:
    """One hospital in one job; kept between tasks.

    Parameters
    ----------
    name
        The site's name in the federation.
    plan
        The job's plan.
    load
        Loads the site's records; called once, at ``join``.
    folder
        Where the site keeps its own list of releases, and in the end the models. Nothing in it is ever sent.
    weights
        Folder of weight files, for a plan that starts from one.
    masks
        For a plan whose vectors are masked; it is refused without.

    ``stop`` is asked between batches; once it answers True, training is given up by an exception.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        load: Callable[[], SiteData],
        folder: Path,
        weights: Path | None = None,
        masks: Masks | None = None,
    ) -> None:
        # One thread makes the sums of a convolution independent of the machine's number of cores.
        torch.set_num_threads(1)
        self.name = name
        self.plan = plan
        self.folder = folder
        self._load = load
        self._weights = weights
        self.layout: Layout = layout_of(plan, parameter_count(build(plan)))
        self._log = ReleaseLog(folder / RELEASES)
        self._masked = masked_site(name, self.layout, masks)
        self._gate = ReleaseGate(self.layout.tasks, self._masked or PlainSite(), self._log)
        self._data: SiteData | None = None
        self._trainer: Trainer | None = None
        self._work: LocalWork | None = None
        self._round: SiteRound | None = None
        self._own: Mapping[Measure, Sums] = {}
        self._owns: dict[int, Mapping[Measure, Sums]] = {}
        self._evaluated: Vector | None = None
        self._session = ""
        self._measured = self._own_round = -1
        self.stop: Callable[[], bool] = lambda: False

    def handle(self, message: Message) -> Release:
        """Do one task; raises a :class:`~fairflare.errors.FairFlareError` that says why not otherwise."""
        self._verify(message)
        tasks: dict[str, Callable[[Message], Mapping[str, Weighted]]] = {
            JOIN: self._join, MEASURE: self._measure, STEP: self._step,
            TRAIN: self._train, TRAIN_ALONE: self._train_alone, EVALUATE: self._evaluate, FINISH: self._finish,
            PREPARE: self._prepare, COMPARE: self._compare,
            **dict.fromkeys((SESSION, KEYS, SHARE, CONFIRM, UNMASK), lambda _: {}),
        }  # fmt: skip
        started = time.monotonic()
        if self._masked is not None:
            self._masked.receive(message)
        vectors = tasks[message.task](message)
        self._log.append(
            {"event": "work", "task": message.task, "round": message.round, "seconds": time.monotonic() - started}
        )
        withheld = () if self._masked is None else self._masked.withheld(message.task)
        release = self._gate.release(message.task, message.round, message.step, vectors, withheld)
        if UPDATE in vectors and self._work is not None:
            parts = {label: vectors[label].values.astype(np.float64) for label in self.layout.parts}
            self._work.sent(message.round, parts if self._masked is None else self._masked.sent)
        return release

    def _verify(self, message: Message) -> None:
        joined = None if self._data is None else (self._session, len(self._data.training))
        verify_message(message, self.layout, joined)
        verify_frozen(message, self._trainer)

    def _join(self, message: Message) -> dict[str, Weighted]:
        data = self._loaded(message.task)
        self._data, self._round, self._evaluated, self._own, self._owns = data, None, None, {}, {}
        self._session, self._measured, self._own_round = message.session, -1, -1
        self._trainer = Trainer(self.plan, self.name, data.training, frozen_tensors(self.plan, self._weights))
        self._trainer.keep_features(data.training, data.validation)
        self._work = LocalWork(self.name, self.layout, None if self._masked is None else self._masked.counted)
        if self._masked is not None:
            return {}
        counts = [len(data.training), len(data.validation), len(data.test), data.opted_out]
        return {"counts": Weighted(np.array(counts, dtype=np.float64))}

    def _loaded(self, task: str) -> SiteData:
        """The site's data, once they were looked at."""
        data = self._data
        note = None if self._masked is None else lambda problem: note_failure(self.folder, task, problem)
        return load_trainable(self.plan, self._load if data is None else lambda: data, note)

    def _prepare(self, message: Message) -> dict[str, Weighted]:
        """Counts and cells of a masked job."""
        data, _ = self._parts()
        if self._masked is None:
            raise refused("TASK", f"task {message.task} of a plan without masks", "a task of this plan")
        return self._masked.prepare(data)

    def _parts(self) -> tuple[SiteData, Trainer]:
        if self._data is None or self._trainer is None:
            raise refused("NOT-JOINED", "a task before join", "join first, also after a restart")
        return self._data, self._trainer

    def _measure(self, message: Message) -> dict[str, Weighted]:
        vectors, current = self._start_round(message)
        self._keep_own(message.round)
        current.own = self._own
        return {**self._present(), **vectors, **self._risk_sums(self._own)}

    def _start_round(self, message: Message) -> tuple[dict[str, Weighted], SiteRound]:
        """Take over the round's first model; returns its validation results, and what is remembered of the round."""
        data, trainer = self._parts()
        self._verify_new(message)
        self._measured = message.round
        model = message.vectors["model"]
        trainer.start_round(model)
        # After a round that this site missed, its last part is of an older model, and not in the totals.
        method = self.plan.method
        known = message.round - self._own_round <= (1 if method.lagged else method.measured_every - 1)
        own = self._own if known else {}
        current = SiteRound(message.round, model, vector_sha256(model), own, trainer.batches(message.round))
        self._round = current
        return self._evaluation("validation", data.validation), current

    def _verify_new(self, message: Message) -> None:
        """Raise unless this is the first model of a round that did not begin here yet."""
        if message.round <= self._measured:
            raise refused("REPEAT", f"round {message.round} again", f"a round after {self._measured}")
        model = message.vectors["model"]
        if self._masked is not None and message.text.get("model_sha256") != vector_sha256(model):
            raise refused("MODEL-DIGEST", "a model that changed on its way", "the bytes that the server sent")
        if message.round == 0:
            verify_start(self.plan, self._weights, model)

    def _keep_own(self, round_: int) -> None:
        self._own, self._own_round = self._measured_sums(), round_
        if self._masked is not None:  # the totals that act may be those of an earlier round
            self._owns = {at: own for at, own in self._owns.items() if at >= self._masked.totals_round}
            self._owns[round_] = self._own

    def _measured_sums(self) -> dict[Measure, Sums]:
        """Group sums of this site at the current model; nothing if the method asks for none."""
        data, trainer = self._parts()
        if not self.layout.method.measures():
            return {}
        return self._sums(trainer.scores(data.training), data.training)

    def _risk_sums(self, own: Mapping[Measure, Sums]) -> dict[str, Weighted]:
        return {"risk_sums": Weighted(pack(self.layout.method.measures(), own))} if own else {}

    def _present(self) -> dict[str, Weighted]:
        """Records behind this site's sums; with masks all sites are behind all sums, or nothing is opened."""
        data, _ = self._parts()
        if self._masked is not None:
            return {}
        return {"present_records": Weighted(np.array([len(data.training)], dtype=np.float64))}

    def _sums(self, scores: Scores, records: Records) -> dict[Measure, Sums]:
        return group_sums(self.layout, scores, records, None if self._masked is None else self._masked.kept)

    def _evaluation(self, split: str, records: Records) -> dict[str, Weighted]:
        _, trainer = self._parts()
        kept = None if self._masked is None else self._masked.kept
        return evaluation_vectors(self.layout, split, trainer.scores(records), records, kept)

    def _compare(self, message: Message) -> dict[str, Weighted]:
        """How far this site is from the sums of all."""
        current = self._current(message)
        return self._method().compare(current.number, self._totals(message), self._own_part(current))

    def _method(self) -> LocalWork:
        if self._work is None:
            raise refused("NOT-JOINED", "a task before join", "join first, also after a restart")
        return self._work

    def _own_part(self, current: SiteRound) -> Mapping[Measure, Sums]:
        """What this site added to the totals that act."""
        return current.own if self._masked is None else self._owns.get(self._masked.totals_round, {})

    def _current(self, message: Message) -> SiteRound:
        current = self._round
        if current is None or current.number != message.round:
            raise refused("MODEL", f"task {message.task} of a round whose model this site did not get", "measure first")
        if message.text.get("model_sha256") != current.model_sha256:
            raise refused("MODEL", "another model than the one measured", "the same model in measure and train")
        return current

    def _step(self, message: Message) -> dict[str, Weighted]:
        data, trainer = self._parts()
        current = self._current(message)
        if message.step != current.step:
            raise refused("STEP", f"step {message.step}", f"step {current.step}")
        if message.step > 0:
            self._apply_batch(current, message)
        current.batch = next(current.batches)
        current.step += 1
        batch = data.training.take(current.batch)
        scores = trainer.batch_scores(current.number, current.step - 1, current.batch)
        current.own = self._sums(scores, batch)
        return {
            **self._present(),
            "batch_sums": Weighted(pack(self.layout.method.measures(), current.own)),
        }

    def _apply_batch(self, current: SiteRound, message: Message) -> None:
        data, trainer = self._parts()
        if current.batch is None:
            raise refused("STEP", "totals without a batch", "step 0 first")
        batch = data.training.take(current.batch)
        terms = self._terms(current, message, batch, len(batch))
        loss = trainer.step(current.number, current.step - 1, current.batch, terms.coefficients)
        current.losses.append((loss, len(batch)))
        current.terms.append(terms)
        current.batch = None

    def _terms(
        self,
        current: SiteRound,
        message: Message,
        records: Records,
        behind: int,
        fresh: Mapping[Measure, Sums] | None = None,
    ) -> SampleTerms:
        """The method's terms for ``records``; ``behind``: records over which the local loss is a mean.

        ``fresh`` sums of this site take the place of those that are in the totals.
        """
        totals, own = self._totals(message), self._own_part(current)
        if fresh is not None and own:
            totals = {measure: exchanged(total, own[measure], fresh[measure]) for measure, total in totals.items()}
            own = fresh
        factor = self._factor(message, behind)
        return self.layout.method.sample_terms(totals, own, records.groups, records.labels, factor)

    def _totals(self, message: Message) -> dict[Measure, Sums]:
        """The group sums that act: from the server, or with masks as this site added them up itself."""
        measures = self.layout.method.measures()
        vector = message.vectors["totals"] if self._masked is None else self._masked.totals(message)
        totals = unpack(measures, vector, self.layout.sizes)
        return totals if self._masked is None else kept_totals(self.plan, totals)

    def _factor(self, message: Message, behind: int) -> float:
        """What turns the gradient of the joint penalty into this site's mean loss (algorithms section 8.4)."""
        return self.layout.method.factor(behind, self._share(message))

    def _share(self, message: Message) -> float:
        """p_s: this site's part of the aggregate, as the plan weighs sites."""
        data, _ = self._parts()
        if self._masked is not None:
            return self._masked.share
        if self.plan.training.aggregation == "uniform":
            return 1.0 / message.numbers["sites"]
        return min(len(data.training) / message.numbers["records"], 1.0)

    def _typical_steps(self, message: Message) -> int:
        """Local steps of a site with the mean number of records."""
        if self._masked is not None:
            return steps_of(self.plan, self._masked.mean_records)
        return steps_of(self.plan, message.numbers["records"] / message.numbers["sites"])

    def _distances(self, message: Message) -> Floats | None:
        """Sums of all sites' distances in this round, where they were opened."""
        if not self.plan.method.compares_sites:
            return None
        return message.vectors["distances"] if self._masked is None else self._masked.distances(message)

    def _train_alone(self, message: Message) -> dict[str, Weighted]:
        """A round in one trip: totals of an earlier round act, this round's statistics ride with the update."""
        vectors, _ = self._start_round(message)
        if self.plan.method.lagged:
            self._keep_own(message.round)
            vectors |= {**self._present(), **self._risk_sums(self._own)}
        return {**vectors, **self._train(message)}

    def _train(self, message: Message) -> dict[str, Weighted]:
        data, trainer = self._parts()
        current = self._current(message)
        self._round = None
        if self._masked is not None and not self._masked.keeps_state(message):
            trainer.forget()
        correction = self._method().begin(
            message, self._share(message), self._typical_steps(message), self._distances(message)
        )
        trainer.correct(correction, current.model)
        if self.plan.method.lock_step:
            self._apply_batch(current, message)
        else:
            self._train_freely(current, message)
        update = trainer.vector() - current.model
        if not np.isfinite(update).all():
            trainer.forget()
        made = self._method().finish(update, len(current.losses))
        if self.layout.method.weighing == "aggregation":
            weight = float(len(data.training)) if self.plan.training.aggregation == "records" else 1.0
            made = {label: Weighted(part.values, weight) for label, part in made.items()}
        return {**made, **self._told(current)}

    def _told(self, current: SiteRound) -> Mapping[str, Weighted]:
        """What else leaves about a round's training."""
        data, _ = self._parts()
        return {"training_sums": Weighted(training_sums(current, len(data.training)))}

    def _train_freely(self, current: SiteRound, message: Message) -> None:
        data, trainer = self._parts()
        terms = self._terms(current, message, data.training, len(data.training))
        every = self.plan.method.remeasured_every
        for number, index in enumerate(current.batches):
            self._verify_going_on()
            if every is not None and number and number % every == 0:
                current.terms.append(terms)
                terms = self._terms(current, message, data.training, len(data.training), self._measured_sums())
            chosen = {name: values[index] for name, values in terms.coefficients.items()}
            loss = trainer.step(current.number, number, index, chosen)
            current.losses.append((loss, index.size))
        current.terms.append(terms)

    def _verify_going_on(self) -> None:
        if self.stop():
            raise refused("ABORTED", "an abort signal while training", "a job that goes on")

    def _evaluate(self, message: Message) -> dict[str, Weighted]:
        data, trainer = self._parts()
        if self._evaluated is not None:
            raise refused("REPEAT", "a second final evaluation", "one in a session")
        model = message.vectors["model"]
        trainer.start_round(model)
        self._evaluated = model
        return {**self._evaluation("validation", data.validation), **self._evaluation("test", data.test)}

    def _finish(self, message: Message) -> dict[str, Weighted]:
        """Keep the final model, the best one on validation data, and what is known about them, at this site."""
        final = self._evaluated
        if final is None or message.text.get("model_sha256") != vector_sha256(final):
            raise refused("MODEL", "a final model that this site did not evaluate", "the model of task evaluate")
        record = received_record(message.vectors["record"].tobytes(), self.plan)
        keep_models(self.folder, record, final, message.vectors["best"], self._parts()[1].frozen)
        return {}
