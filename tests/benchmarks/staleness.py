# SPDX-License-Identifier: Apache-2.0
"""D: how often statistics are exchanged: trips, bytes, and how far the coefficients in use are from fresh ones.

Staleness of a round: with c_k the coefficients that acted and c_k(x) those of a model x, the length of
sum_k (c_k - c_k(x)) grad R_k(x) over that of sum_k c_k(x) grad R_k(x), at the round's first model and at the model that
it ends with (algorithms section 8.5). Everything is computed in one process that holds all records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairflare import presets, schema
from fairflare.data.manifest import Records, SiteData, load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import answer, software
from fairflare.engine.messages import TRAIN, TRAIN_ALONE
from fairflare.engine.objective import Objective, objective_of
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.fairness.groups import CellSums, Floats, Measure, exchanged, unpack
from fairflare.fairness.penalty import evaluate
from fairflare.models import build, load_vector
from fairflare.models.vector import Vector
from fairflare.plan import Plan, parse_plan
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.subjects import SITES

SECTION = "D. How often statistics are exchanged"


@dataclass(frozen=True)
class Kind:
    """A schedule; ``own``: each site measures its own part anew at the model at which staleness is looked at."""

    refresh: Any
    own: bool = False

    def plan(self, rounds: int) -> Plan:
        """The heart job with this schedule; everything else is the same."""
        data = json.loads(schema.pretty(presets.shipped("heart_flexfair")))
        data["training"]["rounds"], data["method"]["refresh"] = rounds, self.refresh
        data["method"]["remeasure_own"] = 1 if self.own else None
        data["protection"] = presets.UNPROTECTED
        return parse_plan(json.dumps(data))


KINDS: Mapping[str, Kind] = {
    "round": Kind("round"),
    "round, own part anew": Kind("round", own=True),
    "round_lagged": Kind("round_lagged"),
    "every 3 rounds": Kind({"rounds": 3}),
}


def all_figures(rounds: int, records: int, folder: Path) -> list[Figure]:
    """Run the same job once for each kind."""
    catalog = write_hospitals(folder / "data", KINDS["round"].plan(rounds), SITES, records, seed=1)
    figures: list[Figure] = []
    for name, kind in KINDS.items():
        plan = kind.plan(rounds)
        data = {site: load(plan, catalog.entry(site, plan.task.data_set)) for site in SITES}
        figures += _run(name, kind, plan, data, folder / name)
    return figures


def _run(name: str, kind: Kind, plan: Plan, data: Mapping[str, SiteData], folder: Path) -> list[Figure]:
    sites = {site: Site(site, plan, (lambda one=one: one), folder / site) for site, one in data.items()}
    coordinator = Coordinator(plan, folder, Start("bench", "local", software()))
    trips = down = up = 0
    models: list[Vector] = [coordinator.model]
    used: list[Floats] = []
    for phase in coordinator.phases(sorted(sites)):
        message = phase.message
        if message.task in (TRAIN, TRAIN_ALONE):
            used.append(message.vectors["totals"])
        for site in phase.targets:
            answer(sites[site], phase)
        if message.task in ("measure", TRAIN, TRAIN_ALONE):
            trips += 1
            down += sum(values.nbytes for values in message.vectors.values())
            up += sum(
                spec.length * np.dtype(spec.dtype).itemsize for spec in coordinator.layout.tasks[message.task].values()
            )
        if len(coordinator.record.rounds) == len(models):
            models.append(coordinator.model)
    if coordinator.record.status != "complete":
        raise RuntimeError(f"{name}: {coordinator.record.reason}")
    rounds = plan.training.rounds
    records = [one.training for one in data.values()]
    first, last = _staleness(plan, kind.own, coordinator.layout.method.measures()[0], used, models, records)
    make = partial(Figure, SECTION, name)
    return [
        make("trips", "trips of a site, a round", trips / rounds, "", remark="exchanges of a message and its answer"),
        make("down", "bytes down to a site, a round", down / rounds, "B", remark="vectors; heads apart"),
        make("up", "bytes up from a site, a round", up / rounds, "B", remark="vectors; heads apart"),
        make("stale_first", "staleness at the round's first model", unit="", **spread(first),
             remark="median [min to max] over rounds; 0 is fresh, 1 is as far off as no penalty at all"),
        make("stale_last", "staleness at the model that the round ends with", unit="", **spread(last),
             remark="as above"),
    ]  # fmt: skip


def _staleness(
    plan: Plan,
    own: bool,
    measure: Measure,
    used: Sequence[Floats],
    models: Sequence[Vector],
    records: Sequence[Records],
) -> tuple[list[float], list[float]]:
    first, last = [], []
    network, objective = build(plan), objective_of(plan)
    before: list[CellSums] = []
    for number, totals in enumerate(used):
        acted = unpack([measure], totals, plan.sizes)[measure]
        for model, found in ((models[number], first), (models[number + 1], last)):
            load_vector(network, model)
            sums, gradients = _sites(network, objective, measure, plan, records)
            before = sums if found is first else before
            total = sum(sums[1:], start=sums[0])
            fresh = _coefficients(plan, total)
            wrong, right = np.zeros_like(gradients[0][0]), np.zeros_like(gradients[0][0])
            for old, new, gradient in zip(before, sums, gradients, strict=True):
                known = exchanged(acted, old, new) if own else acted
                right += fresh / total.count @ gradient
                wrong += (_coefficients(plan, known) - fresh) / total.count @ gradient
            length = float(np.linalg.norm(right))
            found.append(float(np.linalg.norm(wrong)) / length if length else 0.0)
    return first, last


def _coefficients(plan: Plan, sums: Any) -> Floats:
    penalty = plan.method.penalties[0]  # type: ignore[union-attr]
    return np.asarray(evaluate(sums, penalty.weights, penalty.form, penalty.reduction, 1).coefficient)


def _sites(
    network: torch.nn.Module, objective: Objective, measure: Measure, plan: Plan, records: Sequence[Records]
) -> tuple[list[CellSums], list[Floats]]:
    """Each site's sums, and the gradients (K, P) of its total utility in each group."""
    sums, gradients = [], []
    size, parameters = plan.sizes[measure.attribute], list(network.parameters())
    for one in records:
        outputs = network(torch.from_numpy(one.inputs))
        value = objective.quantities(outputs, objective.target(one), plan.method.clip)[measure.quantity]
        chosen = (one.labels == measure.label) & (one.groups[measure.attribute] >= 0)
        value, group = value[torch.from_numpy(chosen)], one.groups[measure.attribute][chosen]
        totals = [value[torch.from_numpy(group == k)].sum() for k in range(size)]
        gradients.append(np.stack([_flat(torch.autograd.grad(part, parameters, retain_graph=True)) for part in totals]))
        sums.append(CellSums.measure(value.detach().double().numpy(), group, size, 0))
    return sums, gradients


def _flat(parts: Sequence[torch.Tensor]) -> Floats:
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()
