# SPDX-License-Identifier: Apache-2.0
"""D: how often statistics are exchanged: trips, bytes, and how far the coefficients in use are from fresh ones.

Staleness of a round: with c_k the coefficients that acted and c_k(x) those of a model x, the length of
sum_k (c_k - c_k(x)) grad R_k(x) over that of sum_k c_k(x) grad R_k(x), at the round's first model and at the model that
it ends with (algorithms section 8.5). Everything is computed in one process that holds all records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairflare import presets, schema
from fairflare.data.manifest import Records, load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import answer, software
from fairflare.engine.messages import TRAIN, TRAIN_ALONE
from fairflare.engine.objective import Objective, objective_of
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.fairness.groups import CellSums, Floats, Measure, unpack
from fairflare.fairness.penalty import evaluate
from fairflare.models import build, load_vector
from fairflare.models.vector import Vector
from fairflare.plan import Plan, parse_plan
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.subjects import SITES

SECTION = "D. How often statistics are exchanged"
KINDS: Mapping[str, Any] = {"round": "round", "round_lagged": "round_lagged", "every 3 rounds": {"rounds": 3}}
LABEL = 1


def plan_of(refresh: Any, rounds: int) -> Plan:
    """The heart job with another refresh; everything else is the same."""
    data = json.loads(schema.pretty(presets.shipped("heart_flexfair")))
    data["training"]["rounds"], data["method"]["refresh"] = rounds, refresh
    return parse_plan(json.dumps(data))


def all_figures(rounds: int, records: int, folder: Path) -> list[Figure]:
    """Run the same job once for each kind."""
    catalog = write_hospitals(folder / "data", plan_of("round", rounds), SITES, records, seed=1)
    figures: list[Figure] = []
    for name, refresh in KINDS.items():
        plan = plan_of(refresh, rounds)
        data = {site: load(plan, catalog.entry(site, plan.task.data_set)) for site in SITES}
        sites = {site: Site(site, plan, (lambda one=one: one), folder / name / site) for site, one in data.items()}
        figures += _run(name, plan, sites, [one.training for one in data.values()], folder / name)
    return figures


def _run(name: str, plan: Plan, sites: Mapping[str, Site], records: Sequence[Records], folder: Path) -> list[Figure]:
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
    first, last = _staleness(plan, coordinator.layout.method.measures()[0], used, models, records)
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
    plan: Plan, measure: Measure, used: Sequence[Floats], models: Sequence[Vector], records: Sequence[Records]
) -> tuple[list[float], list[float]]:
    first, last = [], []
    network, objective = build(plan), objective_of(plan)
    for number, totals in enumerate(used):
        acted = _coefficients(plan, unpack([measure], totals, plan.sizes)[measure])
        for model, found in ((models[number], first), (models[number + 1], last)):
            load_vector(network, model)
            risks, sums = _risks(network, objective, measure, plan, records)
            fresh = _coefficients(plan, sums)
            gradients = np.stack(
                [_flat(torch.autograd.grad(risk, list(network.parameters()), retain_graph=True)) for risk in risks]
            )
            length = float(np.linalg.norm(fresh @ gradients))
            found.append(float(np.linalg.norm((acted - fresh) @ gradients)) / length if length else 0.0)
    return first, last


def _coefficients(plan: Plan, sums: Any) -> Floats:
    penalty = plan.method.penalties[0]  # type: ignore[union-attr]
    return np.asarray(evaluate(sums, penalty.weights, penalty.form, penalty.reduction, 1).coefficient)


def _risks(
    network: torch.nn.Module, objective: Objective, measure: Measure, plan: Plan, records: Sequence[Records]
) -> tuple[list[torch.Tensor], CellSums]:
    """Mean utility of each group over all hospitals, differentiable, and the sums behind it."""
    values, groups = [], []
    for one in records:
        outputs = network(torch.from_numpy(one.inputs))
        value = objective.quantities(outputs, objective.target(one), plan.method.clip)[measure.quantity]
        chosen = torch.from_numpy((one.labels == measure.label) & (one.groups[measure.attribute] >= 0))
        values.append(value[chosen])
        groups.append(torch.from_numpy(one.groups[measure.attribute])[chosen])
    value, group = torch.cat(values), torch.cat(groups)
    size = plan.sizes[measure.attribute]
    sums = CellSums.measure(value.detach().double().numpy(), group.numpy(), size, 0)
    return [value[group == k].mean() for k in range(size)], sums


def _flat(parts: Sequence[torch.Tensor]) -> Floats:
    return torch.cat([part.reshape(-1) for part in parts]).double().numpy()
