# SPDX-License-Identifier: Apache-2.0
"""Each method through FLARE's processes, with masks: the models are those of the local engine, whoever drops out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets
from fairflare.engine.local import answer
from fairflare.engine.server import Phase
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.flare.names import ALLOWED
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.record import RunRecord
from tests.federation.faulty import FAILING
from tests.federation.support import ROOT, SITES, changed, hooked, make_hospitals, models, replay

pytestmark = pytest.mark.federation

Json = dict[str, Any]
Faults = Mapping[str, Mapping[str, str]]

PLAIN = {"name": "sgd", "lr": 0.3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "reset"}
SCAFFOLD = {"name": "scaffold", "global_lr": 1.0, "correction": "gradient", "control_lr": None, "control_clip": 64.0}
FAIRFED = {
    "name": "fairfed", "beta": 0.5, "attribute": "sex", "criterion": "equal_accuracy", "gap": "difference",
    "first_round": "corrected", "min_weight": 0.5, "max_weight": 2.0,
}  # fmt: skip
FAIRMIXUP = {
    "name": "fairmixup", "attribute": "sex", "criterion": "equalized_odds", "strength": 1.0, "direction": "difference",
    "output": "probability",
}  # fmt: skip
REWEIGHTING = {"name": "reweighting", "attribute": "sex", "balance": "independence", "max_weight": None}
EQUAL: Json = {"work": {"unit": "steps", "amount": 4}}
METHODS: Mapping[str, Json] = {
    "fedprox": {"name": "fedprox", "mu": 0.5},
    "fednova": {"name": "fednova", "normalize": True},
    "fairmixup": FAIRMIXUP,
    "reweighting": REWEIGHTING,
}
#: Of four sites one is missing in a round; it is back in the next one, and has to know whether it was counted.
TRAINS: Faults = {"hospital-2": {"1 train": "raises"}}
UNMASKS: Faults = {"hospital-3": {"1 unmask": "raises"}}


def _plan(method: Json, training: Json, rounds: int) -> Plan:
    first = method if method["name"] == "fairfed" else presets.FEDAVG  # its plan has consents
    return changed(
        presets.heart("methods", first),
        method=method,
        training={"rounds": rounds, "optimizer": PLAIN, **training},
        protection={"masking": {**presets.MASKED["masking"], "weight_unit": 1}},
        federation={"task_timeout_seconds": 60.0},
    )


def _both(folder: Path, plan: Plan, faults: Faults) -> tuple[RunRecord, RunRecord]:
    """The record of a run in FLARE's processes, and of one in this process with the same faults."""
    # As many records at every site would mean as many steps, and weights that are all alike.
    catalog = make_hospitals(folder / "hospitals", plan, SITES, 90)
    job = write_job(plan, folder / "job")
    if faults:
        hooked(job, executor=FAILING, faults=faults, late=0.0)
    simulation = Simulation(
        job, folder / "run", catalog, SITES, allowed=[*ALLOWED, FAILING], environment={"PYTHONPATH": str(ROOT)}
    )
    simulation.run(timeout=120)

    def answering(site: Site, phase: Phase) -> None:
        if faults.get(site.name, {}).get(f"{phase.message.round} {phase.message.task}") == "raises":
            phase.collector.refuse(site.name, "FF-ROUND-SITE-ERROR")
        else:
            answer(site, phase)

    return verify_run(simulation.workspace), replay(plan, catalog, folder / "local", answering)


def _verify_same(found: RunRecord, expected: RunRecord, rounds: int) -> None:
    assert (found.status, len(found.rounds)) == ("complete", rounds), found.reason
    assert models(found) == models(expected)
    assert len(set(models(found))) == rounds
    assert [line.participants for line in found.rounds] == [line.participants for line in expected.rounds]
    assert [line.refusals for line in found.rounds] == [line.refusals for line in expected.rounds]


def test_scaffold_with_a_site_that_misses_a_round(tmp_path: Path) -> None:
    found, expected = _both(tmp_path, _plan(SCAFFOLD, EQUAL, 3), TRAINS)
    _verify_same(found, expected, 3)
    assert [len(line.participants["train"]) for line in found.rounds] == [4, 3, 4]


def test_fairfed(tmp_path: Path) -> None:
    found, expected = _both(tmp_path, _plan(FAIRFED, {}, 3), {})
    _verify_same(found, expected, 3)
    assert all(len(line.participants["compare"]) == 4 for line in found.rounds)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_others(tmp_path: Path, method: Json) -> None:
    _verify_same(*_both(tmp_path, _plan(method, {}, 2), {}), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "training"), [(SCAFFOLD, EQUAL), (FAIRFED, {})], ids=["scaffold", "fairfed"])
@pytest.mark.parametrize("faults", [TRAINS, UNMASKS], ids=["train", "unmask"])
def test_dropouts(tmp_path: Path, method: Json, training: Json, faults: Faults) -> None:
    """Also where an update was counted whose site did not help to open it."""
    _verify_same(*_both(tmp_path, _plan(method, training, 4), faults), 4)
