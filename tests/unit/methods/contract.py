# SPDX-License-Identifier: Apache-2.0
"""What every method must keep to: one row for each, and what the tests of the contract need to play a row.

A new method gets a row here; ``test_contract.py`` fails until it has one, and then says whether it keeps the contract.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fairflare import presets, schema
from fairflare.data.manifest import SiteData
from fairflare.engine.local import answer, local_masks, software
from fairflare.engine.messages import Message
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.server import Start
from fairflare.engine.verify import verify_run
from fairflare.fairness.groups import (
    HOSPITAL,
    CellSums,
    Floats,
    GroupIndex,
    HospitalSums,
    Integers,
    Measure,
    group_index,
    groups_of,
)
from fairflare.methods import METHODS, Assignment, Method, ServerHalf, SiteHalf, Work
from fairflare.plan import Plan, parse_plan
from fairflare.privacy.gate import Release
from fairflare.record import RunRecord
from tests.unit.engine.hospitals import PLAIN_SGD, four, masked, plan

Json = dict[str, Any]
Loaders = Mapping[str, Callable[[], SiteData]]

ROUNDS = 3
PROTECTIONS = ("none", "masked")
#: Sites make different numbers of steps, all of them alike.
TRAINING: Json = {"optimizer": {**PLAIN_SGD, "lr": 0.5}}
#: So many steps at every site.
EQUAL_STEPS: Json = {"work": {"unit": "steps", "amount": 4}}


def balanced() -> Loaders:
    """The four hospitals with as many records of one sex as of the other, over all of them."""

    def load(name: str, place: int) -> SiteData:
        data = four()[name]()
        sex = data.training.groups["sex"]
        sex[:] = (np.arange(sex.size) + place) % 2
        return data

    return {name: partial(load, name, place) for place, name in enumerate(four())}


@dataclass(frozen=True)
class Limit:
    """With what a method is FedAvg: its parameters, and changes of the plan's training; whose records; which rounds."""

    method: Json
    training: Json = field(default_factory=dict)
    loaders: Callable[[], Loaders] = four
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes
    ----------
    name
        Its name in a plan.
    method
        Parameters with which it does what FedAvg does not, for the heart plan of ``tests/unit/engine/hospitals.py``.
    limit
        When it is FedAvg; ``None`` if it never is.
    sends
        Labels of the vectors that leave a site and that FedAvg does not have.
    training
        Changes of the plan's training that it needs.
    trains
        ``False`` for a job that ends without a model.
    """

    name: str
    method: Json
    limit: Limit | None
    sends: frozenset[str] = frozenset()
    training: Json = field(default_factory=dict)
    trains: bool = True


def _one(name: str, **parameters: Any) -> Json:
    return {"name": name, **parameters}


_SCAFFOLD = _one("scaffold", global_lr=1.0, correction="gradient", control_lr=None, control_clip=64.0)
_FAIRFED = _one(
    "fairfed", beta=0.5, attribute="sex", criterion="equal_accuracy", gap="difference", first_round="corrected",
    min_weight=0.5, max_weight=2.0,
)  # fmt: skip
_FAIRMIXUP = _one(
    "fairmixup", attribute="sex", criterion="equalized_odds", strength=1.0, direction="difference", output="probability"
)
_FEASIBILITY = _one(
    "feasibility", claims=[{"attribute": "sex", "criterion": "equal_accuracy", "gap": 0.2}], alpha=0.05, power=0.8
)
_REWEIGHTING = _one("reweighting", attribute="sex", balance="groups", max_weight=None)


def _flexfair(strength: float) -> Json:
    return presets.flexfair(presets.penalty("sex", "equalized_odds", strength))


ROWS: Sequence[Row] = (
    Row("fedavg", presets.FEDAVG, Limit(presets.FEDAVG)),
    Row("fedprox", _one("fedprox", mu=0.5), Limit(_one("fedprox", mu=0.0))),
    # Controls are zero in the first round of a session.
    Row("scaffold", _SCAFFOLD, Limit(_SCAFFOLD, EQUAL_STEPS, rounds=1), frozenset({"controls"}), EQUAL_STEPS),
    Row("fednova", _one("fednova", normalize=True), Limit(_one("fednova", normalize=True), EQUAL_STEPS),
        frozenset({"normalizer"})),
    Row("fairfed", _FAIRFED, Limit({**_FAIRFED, "beta": 0.0}), frozenset({"risk_sums", "distances"})),
    Row("fairmixup", _FAIRMIXUP, Limit({**_FAIRMIXUP, "strength": 0.0})),
    Row("reweighting", _REWEIGHTING, Limit(_REWEIGHTING, loaders=balanced), frozenset({"risk_sums"})),
    Row("flexfair", _flexfair(1.0), Limit(_flexfair(0.0)), frozenset({"risk_sums"})),
    Row("feasibility", _FEASIBILITY, None, frozenset({"cells", "vocabulary"}), trains=False),
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- one run


def plan_of(method: Json, protection: str, training: Json, rounds: int = ROUNDS) -> Plan:
    """The heart plan with a method; sites weigh what their records do, also with masks."""
    found = plan(method, rounds=rounds, **{**TRAINING, **training})
    return masked(found) if protection == "masked" else found


def text_of(row: Row, **changes: Any) -> str:
    """The row's plan as JSON text, with changes of its method; ``None`` takes a parameter away."""
    data = json.loads(schema.pretty(plan_of(row.method, "none", row.training)))
    method = {**data["method"], **changes}
    data["method"] = {name: value for name, value in method.items() if value is not Missing}
    return json.dumps(data)


class Missing:
    """Stands for a parameter that is not there."""


def method_of(row: Row) -> Method:
    """The row's method, as a site or the server makes it."""
    read = parse_plan(text_of(row))
    return METHODS[row.name](read.method, read.sizes, read.cells.sites)


@dataclass(frozen=True)
class Ran:
    """A run that is complete and verified: its record, and everything that was asked and left a site."""

    plan: Plan
    record: RunRecord
    exchanges: Sequence[tuple[Message, Release]]

    @property
    def outcome(self) -> str:
        """Hash of the final model, or of what was counted."""
        if self.record.final is not None:
            return self.record.final.model_sha256
        return hashlib.sha256(str(self.record.feasibility).encode("utf-8")).hexdigest()


class Watched:
    """A site whose releases are kept."""

    def __init__(self, site: Any, exchanges: list[tuple[Message, Release]]) -> None:
        self.site, self.name, self.folder = site, site.name, site.folder
        self._exchanges = exchanges

    def handle(self, message: Message) -> Release:
        """Let the site answer."""
        release = self.site.handle(message)
        self._exchanges.append((message, release))
        return release


def run(the_plan: Plan, folder: Path, loaders: Loaders, turn: int = 1) -> Ran:
    """Run a plan in this process; ``turn`` -1 lets replies arrive in the opposite order."""
    exchanges: list[tuple[Message, Release]] = []
    sites = {
        name: Watched(site_of(name, the_plan, load, folder / name, None, local_masks(the_plan, name)), exchanges)
        for name, load in loaders.items()
    }
    coordinator = coordinator_of(the_plan, folder, Start("session", "local", software()))
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets[::turn]:
            answer(sites[name], phase)  # type: ignore[arg-type]
        assert phase.collector.refusals == (), "a site refused a task of its own plan"
    record = verify_run(folder)
    assert record.status == "complete", record.reason
    return Ran(the_plan, record, exchanges)


# -------------------------------------------------------------------------------------------------------- both halves

_PARAMETERS = 6


def site_life(method: Method, half: SiteHalf, seed: int) -> list[object]:
    """Everything that a half at a site says in four rounds of drawn numbers; its third update is not counted."""
    random, said = np.random.default_rng(seed), []
    for number in range(4):
        inputs = {label: _drawn(random, size) for label, size in method.inputs(_PARAMETERS).items()}
        correction = half.begin(Assignment(number, inputs, 0.3, 4, *random.random(2)))
        made = half.finish(Work(_drawn(random, _PARAMETERS), 4 + number, 0.1))
        half.sent({label: part.astype(np.float64) for label, part in made.parts.items()})
        half.settle(number != 2)
        shift = None if correction.shift is None else correction.shift.tolist()
        parts = {label: part.tolist() for label, part in made.parts.items()}
        said.append((correction.pull, correction.after_step, shift, parts, made.weight))
    return said


def server_life(method: Method, half: ServerHalf, seed: int) -> list[object]:
    """Everything that a half at the server says in four rounds of drawn numbers."""
    random, said = np.random.default_rng(seed), []
    labels = {"update": _PARAMETERS, **{label: part.length for label, part in method.parts(_PARAMETERS).items()}}
    for _ in range(4):
        model = _drawn(random, _PARAMETERS)
        means = {label: random.normal(size=length) for label, length in labels.items()}
        down = {label: values.tolist() for label, values in half.inputs().items()}
        said.append((down, half.step(model, means, 0.75).tolist()))
    return said


def site_terms(method: Method, seed: int) -> list[object]:
    """What the method adds to the loss of drawn records, for totals of two sites like them."""
    random, n = np.random.default_rng(seed), 40
    groups = {name: random.integers(-1, size, n) for name, size in method.sizes.items()}
    labels = random.integers(0, method.labels, n)
    own = {one: _sums(method, one, groups, random.random(n), labels) for one in method.measures()}
    totals = {one: sums + _sums(method, one, groups, random.random(n), labels) for one, sums in own.items()}
    terms = method.sample_terms(totals, own, groups, labels, 1.5)
    coefficients = {name: values.tolist() for name, values in terms.coefficients.items()}
    return [coefficients, terms.weighed, terms.at_minimum, terms.at_maximum]


def _sums(method: Method, measure: Measure, groups: GroupIndex, values: Floats, labels: Integers) -> Any:
    chosen = np.ones(labels.shape, dtype=bool) if measure.label < 0 else labels == measure.label
    if measure.attribute == HOSPITAL:
        return HospitalSums.measure(values[chosen], 0, measure.weighted)
    group = group_index(measure, groups, labels.size)[chosen]
    return CellSums.measure(values[chosen], group, groups_of(measure, method.sizes), 0)


def _drawn(random: np.random.Generator, size: int) -> np.ndarray:
    return random.normal(size=size).astype(np.float32)
