# SPDX-License-Identifier: Apache-2.0
"""Whole runs in this process in which sites can fail, local work can be looked at, and losses can be quadratics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from fairflare import schema
from fairflare.data.manifest import Records, SiteData
from fairflare.engine.local import answer, local_masks, software
from fairflare.engine.local_work import LocalWork
from fairflare.engine.messages import Message
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.engine.training import Trainer
from fairflare.fairness.groups import Floats
from fairflare.models import build, load_vector, to_vector
from fairflare.models.vector import Tensors, Vector
from fairflare.plan import Plan, parse_plan
from fairflare.record import RunRecord
from tests.unit.engine.hospitals import FEATURES, PLAIN_SGD, four, plan

Json = dict[str, Any]
Loaders = Mapping[str, Callable[[], SiteData]]
#: What becomes of a task at a site: nobody asks it, it breaks down once its work is done but before anything leaves,
#: or its answer is lost on the way.
ABSENT, BREAKS, LOST = "absent", "breaks", "lost"
Fails = Callable[[str, Message], str | None]


@dataclass
class Begun:
    """A site's half as its local training begins, after it settled what was sent before."""

    site: str
    round: int
    inputs: Mapping[str, np.ndarray]
    control: Floats | None
    weight: float | None
    distances: Floats | None


@dataclass
class Run:
    """A run and what was seen of it: the first model, the model after each round, and the sites' halves."""

    record: RunRecord
    sites: Mapping[str, Site]
    coordinator: Coordinator
    models: list[Vector]
    begun: list[Begun] = field(default_factory=list)
    sent: dict[tuple[str, int], Mapping[str, Floats]] = field(default_factory=dict)
    updates: dict[tuple[str, int], Mapping[str, np.ndarray]] = field(default_factory=dict)
    told: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def counted(self) -> set[tuple[str, int]]:
        """Whose update is in which round's model."""
        return {
            (site, line.round)
            for line in self.record.rounds
            for task in ("train", "train_alone")
            for site in line.participants.get(task, ())
        }


def drive(
    the_plan: Plan, folder: Path, loaders: Loaders | None = None, fails: Fails = lambda site, message: None
) -> Run:
    """Run a plan; ``fails`` says what goes wrong."""
    loaders = loaders or four()
    sites = {
        name: Site(name, the_plan, load, folder / "sites" / name, None, local_masks(the_plan, name))
        for name, load in loaders.items()
    }
    coordinator = coordinator_of(the_plan, folder, Start("session", "local", software()))
    run = Run(coordinator.record, sites, coordinator, [coordinator.model.copy()])
    with watched(run):
        for phase in coordinator.phases(sorted(sites)):
            for name in phase.targets:
                fault = fails(name, phase.message)
                if fault is None:
                    answer(sites[name], phase)
                    continue
                if fault == LOST:
                    sites[name].handle(phase.message)
                elif fault == BREAKS:
                    _break(sites[name], phase.message)
                phase.collector.refuse(name, "FF-TEST-ABSENT")
            if len(coordinator.record.rounds) >= len(run.models):
                run.models.append(coordinator.model.copy())
    run.record = coordinator.record
    return run


def _break(site: Site, message: Message) -> None:
    with (
        patch.object(site._gate, "release", side_effect=OSError("the disk is full")),
        pytest.raises(OSError, match="full"),
    ):
        site.handle(message)


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Write down what the sites' halves do."""
    begin, finish, sent, compare = LocalWork.begin, LocalWork.finish, LocalWork.sent, LocalWork.compare
    now: dict[str, int] = {}

    def begins(work: LocalWork, message: Message, share: float, typical: int, distances: Floats | None) -> Any:
        made = begin(work, message, share, typical, distances)
        now[work.name] = message.round
        control = getattr(work.half, "control", None)
        weight = getattr(work.half, "weight", None)
        inputs = {label: values.copy() for label, values in message.vectors.items()}
        run.begun.append(Begun(work.name, message.round, inputs, _copy(control), weight, _copy(distances)))
        return made

    def finishes(work: LocalWork, update: np.ndarray, steps: int) -> Any:
        made = finish(work, update, steps)
        parts = {label: one.values.copy() for label, one in made.items()}
        run.updates[work.name, now[work.name]] = {**parts, "dy": update.copy(), "steps": np.array(steps)}
        return made

    def sends(work: LocalWork, round_: int, parts: Mapping[str, Floats]) -> None:
        run.sent[work.name, round_] = {label: values.copy() for label, values in parts.items()}
        sent(work, round_, parts)

    def compares(work: LocalWork, round_: int, *sums: Any) -> Any:
        made = compare(work, round_, *sums)
        run.told[work.name, round_] = float(made["distances"].values[0])
        return made

    with (
        patch.object(LocalWork, "begin", begins), patch.object(LocalWork, "finish", finishes),
        patch.object(LocalWork, "sent", sends), patch.object(LocalWork, "compare", compares),
    ):  # fmt: skip
        yield


def _copy(values: Floats | None) -> Floats | None:
    return None if values is None else values.copy()


def completed(the_plan: Plan, folder: Path, loaders: Loaders | None = None) -> Run:
    """A run in which nothing fails."""
    run = drive(the_plan, folder, loaders)
    assert run.record.status == "complete", run.record.reason
    return run


def failing(cases: Mapping[tuple[str, int], Mapping[str, str]]) -> Fails:
    """Faults from (task, round) -> site -> fault."""
    return lambda site, message: cases.get((message.task, message.round), {}).get(site)


def with_consent(the_plan: Plan, *consents: str) -> Plan:
    """The plan to which hospitals agree in more ways."""
    data = json.loads(schema.pretty(the_plan))
    return parse_plan(json.dumps({**data, "consents": [*data["consents"], *consents]}))


# --------------------------------------------------------------------------------------------------------- quadratics


@dataclass(frozen=True)
class Bowl:
    """A site whose loss is a/2 (y - b)^2 in every parameter: a, b, and its number of records."""

    a: float
    b: float
    records: int


class _Objective:
    """The task's own objective, but for the loss that is trained."""

    def __init__(self, own: Any, model: nn.Module, a: float, b: float) -> None:
        self._own, self._model, self._a, self._b = own, model, a, b

    def task_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        parts = [((one - self._b) ** 2).sum() for one in self._model.parameters()]
        return self._a / 2 * torch.stack(parts).sum()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class BowlTrainer(Trainer):
    """The real trainer, optimiser and corrections, on a quadratic that the records name."""

    def __init__(self, the_plan: Plan, site: str, records: Records, frozen: Tensors | None = None) -> None:
        super().__init__(the_plan, site, records, frozen)
        a, b = (float(number) for number in records.inputs[0, :2])
        self.objective = _Objective(self.objective, self.model, a, b)


@contextmanager
def bowls(start: float) -> Iterator[None]:
    """Let sites train quadratics, from a model whose parameters are all ``start``."""
    first = lambda the_plan, weights=None: np.full(_size(the_plan), start, dtype=np.float32)  # noqa: E731
    with patch("fairflare.engine.site.Trainer", BowlTrainer), patch("fairflare.engine.server.initial_vector", first):
        yield


def _size(the_plan: Plan) -> int:
    return sum(one.numel() for one in build(the_plan).parameters())


def of_bowls(sites: Mapping[str, Bowl]) -> Loaders:
    """Hospitals whose loss is a quadratic."""

    def records(n: int, bowl: Bowl) -> Records:
        inputs = np.zeros((n, 2 * FEATURES), dtype=np.float32)
        inputs[:, :2] = bowl.a, bowl.b
        places = np.arange(n, dtype=np.int64)
        return Records(inputs, places % 2, {"sex": places % 2, "age": places // 2 % 2})

    def load(bowl: Bowl) -> SiteData:
        return SiteData(records(bowl.records, bowl), records(4, bowl), records(4, bowl), 0)

    return {name: (lambda bowl=bowl: load(bowl)) for name, bowl in sites.items()}


#: Records of one batch, and so of one local step of an epoch.
BATCH = 8


def bowl_plan(method: Json, lr: float, **changes: Any) -> Plan:
    """One epoch of plain SGD in a round: as many steps as a site has batches of 8."""
    optimizer = {**PLAIN_SGD, "lr": lr, **changes.pop("optimizer", {})}
    batch = {"unit": "records", "amount": BATCH}
    return plan(method, optimizer=optimizer, batch=batch, **changes)


def one_number(vector: Vector) -> float:
    """The number that all parameters are; they are all treated alike."""
    assert np.ptp(vector) == 0
    return float(vector[0])


def exact(value: float) -> Fraction:
    """The number as a fraction."""
    return Fraction(value)


# ----------------------------------------------------------------------------------------------------- bare PyTorch


def trained(
    the_plan: Plan, name: str, records: Records, start: Vector, round_: int,
    further: Callable[[nn.Module, Any], torch.Tensor] | None = None,
) -> Vector:  # fmt: skip
    """Local training of one round with bare PyTorch, on the batches of the plan; ``further`` adds to the loss."""
    spec, model = the_plan.training.optimizer, build(the_plan)
    load_vector(model, start)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay
    )
    for index in Trainer(the_plan, name, records).batches(round_):
        logits = model(torch.from_numpy(records.inputs[index]))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(records.labels[index]))
        if further is not None:
            loss = loss + further(model, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return to_vector(model)
