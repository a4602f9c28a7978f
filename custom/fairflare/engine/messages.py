# SPDX-License-Identifier: Apache-2.0
"""What travels, and the layout of every vector, both fixed by the plan.

Down: a :class:`Message`. Up: a :class:`~fairflare.privacy.gate.Release` (at the server, once off the wire, a
:class:`Reply`). One round is ``measure``, then ``train``; where sites compare themselves with the sums ``measure``,
``compare``, ``train``; in lock step ``measure``, ``step`` ..., ``train``; a round without statistics of its own is
``train_alone``. With masks a run begins with ``session`` and ``prepare`` after
``join``, a round ends with ``confirm`` and ``unmask``, and ``keys`` and ``share`` come first where a site lacks keys.
A job that only counts ends after one ``measure``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fairflare.engine.cells import CellRule
from fairflare.engine.vocabulary import Vocabulary
from fairflare.fairness.groups import evaluation_length, measure_length
from fairflare.methods import UPDATE, Method, Part
from fairflare.plan import Plan, method_of
from fairflare.secagg.protection import Payload, VectorSpec

JOIN, MEASURE, STEP, TRAIN, EVALUATE, FINISH = "join", "measure", "step", "train", "evaluate", "finish"
COMPARE = "compare"
TRAIN_ALONE = "train_alone"
SESSION, PREPARE, KEYS, SHARE, CONFIRM, UNMASK = "session", "prepare", "keys", "share", "confirm", "unmask"
TASKS = (
    JOIN, MEASURE, COMPARE, STEP, TRAIN, TRAIN_ALONE, EVALUATE, FINISH, SESSION, PREPARE, KEYS, SHARE, CONFIRM, UNMASK,
)  # fmt: skip

#: Tasks that only masks need.
PROTECT = (SESSION, PREPARE, KEYS, SHARE, CONFIRM, UNMASK)

#: Entries of the ``counts`` vector of ``join``; with masks ``prepare`` has it, and one entry more: the site's records
#: for training, rounded to the plan's unit, which weigh its update.
COUNTS = ("training", "validation", "test", "opted_out")
#: The vector of a job that only counts (``engine.vocabulary``).
VOCABULARY = "vocabulary"
#: Entries of a ``predictions`` vector for each label but the background: images, images in which no pixel is predicted
#: to have it, and images in which all are.
PREDICTIONS = ("images", "none", "all")
#: Entries of the ``training_sums`` vector of ``train``: records at the site; sum of losses over, and number of, records
#: seen in batches; records weighed by the method, and those of them whose weight was held at a bound.
TRAINING_SUMS = ("records", "loss", "seen", "weighed", "at_minimum", "at_maximum")
#: Entries of the ``distances`` vector of ``compare``: how far the site is from all, and 1.
DISTANCES = ("distance", "sites")
#: The input of ``train`` that says, as JSON, in which round each site's update was last counted.
COUNTED = "counted"


@dataclass(frozen=True)
class Message:
    """From the server to a site.

    Attributes
    ----------
    task, round, step
        What to do; ``step`` counts local steps in lock step and is 0 otherwise.
    session, plan_sha256
        Which start of which plan this belongs to.
    vectors
        ``model`` (float32, (P,)) for ``measure`` and ``evaluate``; ``totals`` (float64) for ``train`` and ``step``;
        both for ``train_alone``; ``best`` (float32, (P,)) and ``record`` (uint8, its JSON) for ``finish``. With masks
        no totals travel: each site adds them up from what all sites signed.
    numbers
        ``records`` and ``sites`` behind the totals; ``model_sha256`` goes in ``text``, with masks also ``totals``:
        whether any act.
    protocol
        Messages of masked aggregation (``secagg.envelope``), or nothing.
    """

    task: str
    round: int
    step: int
    session: str
    plan_sha256: str
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    protocol: bytes = b""


@dataclass(frozen=True)
class Reply:
    """From a site to the server, as it came off the wire; nothing in it has been checked."""

    task: str
    round: int
    step: int
    session: str
    payloads: Mapping[str, Payload]
    protocol: bytes = b""


@dataclass(frozen=True)
class Layout:
    """Every vector of a job: what each task may send, and how each is protected."""

    plan: Plan
    method: Method
    sizes: Mapping[str, int]
    tasks: Mapping[str, Mapping[str, VectorSpec]]

    @property
    def parts(self) -> Mapping[str, Part]:
        """Further parts of the update, by label; none where no update is sent."""
        specs = self.vectors
        return self.method.parts(specs[UPDATE].length) if UPDATE in specs else {}

    @property
    def inputs_of_method(self) -> Mapping[str, int]:
        """Lengths of the vectors that the method sends down before training, by label."""
        return self.method.inputs(self.vectors[UPDATE].length)

    @property
    def vectors(self) -> dict[str, VectorSpec]:
        """All vectors by label."""
        return {label: spec for specs in self.tasks.values() for label, spec in specs.items()}

    def inputs(self, task: str) -> dict[str, tuple[str, int]]:
        """Type and length of each vector that a task brings to a site; length 0 stands for any."""
        specs = self.vectors
        if self.plan.method.counts_only:  # which cells may be opened; with masks each site adds that up itself
            bits = {"totals": ("float64", specs["cells"].length)}
            return bits if task == MEASURE and not self.plan.protection.masked else {}
        model = {"model": ("float32", specs["update"].length)}
        totals = {"totals": ("float64", specs["risk_sums"].length if "risk_sums" in specs else 0)}
        distances = {"distances": ("float64", len(DISTANCES))} if self.plan.method.compares_sites else {}
        if self.plan.protection.masked:
            totals, distances = {}, {}
        own = {label: ("float32", size) for label, size in self.inputs_of_method.items()}
        if self.plan.method.settles:
            own[COUNTED] = ("uint8", 0)
        last = {"best": model["model"], "record": ("uint8", 0)}
        inputs = {
            MEASURE: model, EVALUATE: model, COMPARE: totals, STEP: totals, TRAIN: {**totals, **distances, **own},
            TRAIN_ALONE: {**model, **totals, **own}, FINISH: last,
        }  # fmt: skip
        return inputs.get(task, {})


def layout_of(plan: Plan, parameters: int) -> Layout:
    """The layout of a plan whose network has ``parameters`` numbers."""
    sizes = plan.sizes
    method = method_of(plan)
    risk = sum(measure_length(measure, sizes) for measure in method.measures())
    scores = evaluation_length(sizes, plan.evaluation.score_bins, plan.task.strata)
    maps = plan.task.outputs * len(PREDICTIONS) if plan.task.kind == "segmentation" else 0
    masked = plan.protection.masked
    if plan.method.counts_only:
        return Layout(plan, method, sizes, _counting(plan))

    def specs(*vectors: tuple[str, str, int]) -> dict[str, VectorSpec]:
        return {label: VectorSpec(label, dtype, length) for label, dtype, length in vectors if length}

    # With masks statistics are of all sites of the session or of nobody, so who is behind them is known.
    present = ("present_records", "float64", 0 if masked else 1)
    validation = [("validation_sums", "float64", scores), ("validation_predictions", "float64", maps)]
    further = [(label, "float32", part.length) for label, part in method.parts(parameters).items()]
    trained = [("update", "float32", parameters), *further]
    if plan.differential_privacy is None:  # exact sums over training records
        trained.append(("training_sums", "float64", len(TRAINING_SUMS)))
    tasks = {
        JOIN: specs(("counts", "float64", len(COUNTS))),
        MEASURE: specs(present, ("risk_sums", "float64", risk), *validation),
        TRAIN: specs(*trained),
        EVALUATE: specs(*validation, ("test_sums", "float64", scores), ("test_predictions", "float64", maps)),
        FINISH: specs(),
    }
    if plan.method.compares_sites:
        tasks[COMPARE] = specs(("distances", "float64", len(DISTANCES)))
    if plan.method.lock_step:
        tasks[STEP] = specs(present, ("batch_sums", "float64", risk))
    if plan.method.lagged:
        tasks[TRAIN_ALONE] = specs(*trained, present, ("risk_sums", "float64", risk), *validation)
        del tasks[MEASURE], tasks[TRAIN]
    elif plan.method.measured_every > 1:
        tasks[TRAIN_ALONE] = specs(*trained, *validation)
    if masked:
        cells = ("cells", "float64", CellRule(plan, method.measures()).length)
        tasks[PREPARE] = specs(("counts", "float64", len(COUNTS) + 1), cells)
        tasks.update({task: {} for task in (JOIN, SESSION, KEYS, SHARE, CONFIRM, UNMASK)})
    return Layout(plan, method, sizes, tasks)


def _counting(plan: Plan) -> dict[str, dict[str, VectorSpec]]:
    """Tasks of a job that only counts."""
    vocabulary, masked = Vocabulary(plan), plan.protection.masked
    lengths = {"counts": len(COUNTS) + masked, "cells": vocabulary.bits}
    first = {label: VectorSpec(label, "float64", length) for label, length in lengths.items()}
    last = {VOCABULARY: VectorSpec(VOCABULARY, "float64", vocabulary.length)}
    if masked:
        return {JOIN: {}, SESSION: {}, PREPARE: first, MEASURE: last}
    return {JOIN: first, MEASURE: last}
