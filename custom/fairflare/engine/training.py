# SPDX-License-Identifier: Apache-2.0
"""A site's local work on tensors: batches, forward passes, optimiser steps. Knows nothing of sums or messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fairflare.data.manifest import Records
from fairflare.engine.correction import GradientCorrection
from fairflare.engine.features import Features
from fairflare.engine.mixing import mixing_loss
from fairflare.engine.objective import Scores, batch_loss, objective_of
from fairflare.errors import RoundError
from fairflare.fairness.groups import Floats, Integers
from fairflare.methods import Correction
from fairflare.models import (
    build,
    frozen_arrays,
    frozen_sha256,
    frozen_tensors,
    load_frozen,
    load_vector,
    to_vector,
    trained_parameters,
)
from fairflare.models.adapters import head_of
from fairflare.models.vector import Tensors, Vector
from fairflare.plan import ImageInput, PartModel, Plan, Sgd
from fairflare.seeds import generator

#: Records of one forward pass; the maps of a segmentation network take far more memory than a row of logits.
_FORWARD_BATCH = {"classification": 256, "segmentation": 8}


class Trainer:
    """The network and its optimiser at one site, kept for the whole job.

    Parameters
    ----------
    plan
        Says network, optimiser, batches and seed.
    site
        Name of the site: part of the seeds, so no two sites draw the same batches.
    records
        Training records.
    frozen
        What is not trained of the network; by default what the plan's seed gives, and a plan that starts from a file
        is refused (``FF-WEIGHTS-MISSING``).
    """

    def __init__(self, plan: Plan, site: str, records: Records, frozen: Tensors | None = None) -> None:
        self.plan = plan
        self.site = site
        self.records = records
        self.model = build(plan)
        load_frozen(self.model, frozen_tensors(plan) if frozen is None else frozen)
        self.objective = objective_of(plan)
        self.optimizer = self._new_optimizer()
        self._correction: GradientCorrection | None = None
        self._features = Features(self.model, self._inputs, _FORWARD_BATCH[plan.task.kind])

    def keep_features(self, *parts: Records) -> None:
        """Compute once what leads to the head for these records, where only the head is trained, and they never change.

        Steps and scores of the very same objects then go through the head alone.
        """
        given, model = self.plan.task.input, self.plan.model
        augmented = isinstance(given, ImageInput) and given.augmentation != "none"
        if isinstance(model, PartModel) and model.trained == "head" and not augmented and not self.plan.method.mixing:
            for records in parts:
                self._features.keep(records)

    @property
    def network(self) -> nn.Module:
        """What :meth:`batch`'s inputs go through: the model, or its head alone where their features are kept."""
        return self.model if self._features.of(self.records) is None else head_of(self.model)

    @property
    def frozen(self) -> Tensors:
        """What is not trained; nothing where the whole network is."""
        return frozen_arrays(self.model)

    @cached_property
    def frozen_sha256(self) -> str | None:
        """The hash of :attr:`frozen`; ``None`` where the whole network is trained."""
        return frozen_sha256(self.frozen) if isinstance(self.plan.model, PartModel) else None

    def correct(self, correction: Correction, model: Vector) -> None:
        """Add a method's correction to every step until the next round; ``model``: the round's first one."""
        acts = correction.pull > 0 or correction.shift is not None
        self._correction = GradientCorrection(self.model, correction, model) if acts else None

    def start_round(self, vector: Vector) -> None:
        """Take over the global model; the optimiser's state goes on or starts anew, as the plan says."""
        load_vector(self.model, vector)
        self._correction = None
        if self.plan.training.optimizer.state == "reset":
            self.forget()

    def forget(self) -> None:
        """Drop the optimiser's state."""
        self.optimizer = self._new_optimizer()

    def vector(self) -> Vector:
        """The local model, float32 (P,)."""
        return to_vector(self.model)

    def batches(self, round_: int) -> Iterator[Integers]:
        """Record numbers of each batch of this round, drawn from the plan's seed; every record once an epoch."""
        random = generator(self.plan.training.seed, "batches", self.site, round_)
        work = self.plan.training.work
        epochs = range(work.amount) if work.unit == "epochs" else itertools.count()
        endless = (batch for _ in epochs for batch in self._epoch(random))
        yield from itertools.islice(endless, work.amount if work.unit == "steps" else None)

    def _epoch(self, random: np.random.Generator) -> list[Integers]:
        order = random.permutation(len(self.records)).astype(np.int64)
        batch = self.plan.training.batch
        if batch.unit == "records":
            return [order[start : start + batch.amount] for start in range(0, order.size, batch.amount)]
        return np.array_split(order, batch.amount)

    @property
    def is_augmented(self) -> bool:
        """Whether a batch's images are flipped at random."""
        given = self.plan.task.input
        return isinstance(given, ImageInput) and given.augmentation == "flips"

    def batch(
        self, round_: int, number: int, index: Integers, flips: NDArray[np.bool_] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Input of :attr:`network` and target of a batch, with augmentation drawn for its number in the round.

        ``flips``: takes its place, for all records (2, n): which are mirrored left to right, and upside down.
        """
        records, kept = self.records.take(index), self._features.of(self.records)
        if kept is not None:
            return kept[torch.from_numpy(index)], self.objective.target(records)
        if self.is_augmented:
            if flips is None:
                random = generator(self.plan.training.seed, "flips", self.site, round_, number)
                turned = random.integers(0, 2, size=(2, index.size, 1, 1, 1), dtype=np.int64).astype(bool)
            else:
                turned = flips[:, index, np.newaxis, np.newaxis, np.newaxis]
            masks = records.masks
            records = replace(
                records,
                inputs=_flipped(records.inputs, turned),
                masks=None if masks is None else _flipped(masks, turned[..., 0]),
            )
        return self.tensor(records.inputs), self.objective.target(records)

    def tensor(self, inputs: NDArray[np.float32] | NDArray[np.uint8]) -> torch.Tensor:
        """Records' inputs as the network takes them: images scaled to [0, 1] and normalised."""
        given = self.plan.task.input
        values = torch.from_numpy(np.ascontiguousarray(inputs)).to(torch.float32)
        if isinstance(given, ImageInput):
            shape = (1, given.channels, 1, 1)
            values = (values / 255 - torch.tensor(given.mean).view(shape)) / torch.tensor(given.std).view(shape)
        return values

    def _inputs(self, records: Records, part: slice) -> torch.Tensor:
        return self.tensor(records.inputs[part])

    def scores(self, records: Records, *, finite: bool = True) -> Scores:
        """A forward pass over all of ``records`` with the current model, without augmentation.

        ``finite``: raise ``FF-ROUND-DIVERGED`` where an output is not; else that stays unknown.
        """
        target = self.objective.target(records)
        size = _FORWARD_BATCH[self.plan.task.kind]
        kept, parts = self._features.of(records), []
        with torch.no_grad():
            for start in range(0, len(records), size):
                part = slice(start, start + size)
                outputs = self.model(self._inputs(records, part)) if kept is None else head_of(self.model)(kept[part])
                parts.append(self._scores(outputs, target[part], finite))
        return Scores.joined(parts or [self._scores(self.objective.empty(), target)])

    def batch_scores(self, round_: int, number: int, index: Integers) -> Scores:
        """The same for one training batch, augmented as its training step will see it."""
        inputs, target = self.batch(round_, number, index)
        with torch.no_grad():
            outputs = self.network(inputs)
        return self._scores(outputs, target)

    def _scores(self, outputs: torch.Tensor, target: torch.Tensor, finite: bool = True) -> Scores:
        if finite and not bool(torch.isfinite(outputs).all()):
            raise RoundError(
                "FF-ROUND-DIVERGED",
                got="a model whose outputs are NaN or infinite on this site's records",
                expected="finite outputs",
                next_step="lower the learning rate or the penalty's strength in the plan",
            )
        return self.objective.scores(outputs.to(torch.float64), target, self.plan.method.clip)

    def step(self, round_: int, number: int, index: Integers, terms: Mapping[str, Floats]) -> float:
        """One optimiser step on a batch; returns the mean task loss of the batch before the step."""
        inputs, target = self.batch(round_, number, index)
        loss, task = batch_loss(self.objective, self.network(inputs), target, terms, self.plan.method.clip)
        regulariser = self._regulariser(round_, number, index, inputs)
        if regulariser is not None:
            loss = loss + regulariser
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._correction is not None:
            self._correction.before_step()
        self.optimizer.step()
        if self._correction is not None:
            self._correction.after_step(self.plan.training.optimizer.lr)
        return float(task.detach())

    def record_losses(
        self, round_: int, number: int, index: Integers, flips: NDArray[np.bool_] | None = None
    ) -> torch.Tensor:
        """The loss of each record of a batch, (n,), before :meth:`record_weights`; its graph leads to the network.

        ``flips``: as :meth:`batch` has it.
        """
        inputs, target = self.batch(round_, number, index, flips)
        values = self.objective.quantities(self.network(inputs), target, float("inf"))
        return values["cross_entropy" if self.plan.task.kind == "classification" else "task_loss"]

    def record_weights(self, records: Records) -> Floats:
        """Class weight of each record, float64 (n,); ones in segmentation, where pixels have them."""
        if self.plan.task.kind == "segmentation":
            return np.ones(len(records))
        return np.array(self.plan.training.class_weights, dtype=np.float64)[records.labels]

    @contextmanager
    def corrected(self) -> Iterator[None]:
        """Within it, the round's correction acts on each step that the optimiser makes, whoever asks for it."""
        correction, lr = self._correction, self.plan.training.optimizer.lr
        if correction is None:
            yield
            return
        hooks = (
            self.optimizer.register_step_pre_hook(lambda *_: correction.before_step()),
            self.optimizer.register_step_post_hook(lambda *_: correction.after_step(lr)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _regulariser(self, round_: int, number: int, index: Integers, inputs: torch.Tensor) -> torch.Tensor | None:
        mixing = self.plan.method.mixing
        if mixing is None:
            return None
        between = float(generator(self.plan.training.seed, "mixing", self.site, round_, number).random())
        group, labels = self.records.groups[mixing.attribute][index], self.records.labels[index]
        found = mixing_loss(self.model, inputs, group, labels, mixing, between)
        return None if found is None else mixing.strength * found

    def _new_optimizer(self) -> torch.optim.Optimizer:
        spec, parameters = self.plan.training.optimizer, trained_parameters(self.model)
        if isinstance(spec, Sgd):
            return torch.optim.SGD(
                parameters, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay
            )
        betas = (spec.beta1, spec.beta2)
        return torch.optim.AdamW(parameters, lr=spec.lr, betas=betas, eps=spec.epsilon, weight_decay=spec.weight_decay)


def _flipped(pixels: NDArray[np.uint8], flips: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Images (n, ..., height, width) mirrored left to right where ``flips[0]``, upside down where ``flips[1]``."""
    mirrored = np.where(flips[0], pixels[..., ::-1], pixels)
    return np.where(flips[1], mirrored[..., ::-1, :], mirrored)
