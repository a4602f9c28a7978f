# SPDX-License-Identifier: Apache-2.0
"""Every shipped job, and every other preset, runs and verifies: on synthetic hospitals, for two rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.plan import Plan, parse_plan
from fairflare.policy import kinds_of
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.bill import planned

#: Pixels of the images where a plan's own would take too long: the networks need a multiple of these.
SIDE = {"skin": 16, "fundus": 32, "shapes": 16}
#: Records of a hospital: enough for a batch of each step of an epoch, where a plan fixes their number.
RECORDS = {"heart": 60, "skin": 40, "fundus": 20, "shapes": 20}
#: Sites that the data of each task have.
SITES = {"heart": 4, "skin": 4, "fundus": 3, "shapes": 3}


def shortened(name: str, *, small: bool) -> Plan:
    """The preset with two rounds and few steps; ``small``: with small images as well."""
    data = json.loads(schema.pretty(presets.PRESETS[name](name)))
    task, training = name.partition("_")[0], data["training"]
    training["rounds"] = 2
    if training["work"]["unit"] == "steps":
        training["work"]["amount"] = 2
    if training["batch"]["unit"] == "batches_per_epoch":
        training["batch"]["amount"] = min(training["batch"]["amount"], 5)
    if small and "height" in data["task"]["input"]:
        data["task"]["input"].update(height=SIDE[task], width=SIDE[task])
    return parse_plan(json.dumps(data))


def run(name: str, folder: Path, *, small: bool) -> None:
    plan, task = shortened(name, small=small), name.partition("_")[0]
    sites = [f"site-{number + 1}" for number in range(SITES[task])]
    catalog = write_hospitals(folder / "data", plan, sites, RECORDS[task], seed=5)
    entries = {site: catalog.entry(site, plan.task.data_set) for site in sites}
    loaders: dict[str, Any] = {site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()}
    record = run_local(plan, loaders, folder / "run")
    assert record.status == "complete", record.reason
    verify_run(folder / "run")
    if plan.method.counts_only:
        assert record.feasibility is not None
        return
    assert len(record.rounds) == 2
    assert record.final is not None
    assert record.final.model_sha256 != record.initial_model_sha256
    assert all(line.refusals == () for line in record.rounds)
    trained = [set(line.participants) & {"train", "train_alone"} for line in record.rounds]
    assert all(trained)
    compared = [set(line.participants.get("compare", ())) for line in record.rounds]
    assert all(compared) == ("site_distance" in kinds_of(plan))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, small=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in presets.JOBS if not one.startswith("heart")])
def test_it_runs_on_images_of_its_own_size(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, small=False)


def test_every_task_has_every_method_or_a_reason() -> None:
    tasks, methods = ("fundus", "heart", "skin"), ("fedprox", "scaffold", "fednova", "fairfed", "fairmixup", "flexfair")
    for task in tasks:
        for method in (*methods, "fedavg", "reweighting"):
            assert (f"{task}_{method}" in presets.JOBS) != (f"{task}_{method}" in presets.REFUSED)


@pytest.mark.parametrize("name", presets.JOBS)
def test_every_job_is_masked(name: str) -> None:
    assert presets.shipped(name).protection.masked


def test_what_cannot_be_is_refused_by_the_plan_too() -> None:
    fundus, fairmixup = presets.fundus, presets.method("fairmixup", attribute="hospital")
    with pytest.raises(Exception, match="no record leaves a hospital"):
        fundus("fundus_fairmixup", fairmixup)
    with pytest.raises(Exception, match="expected one of attributes, of which the plan has none"):
        fundus("fundus_reweighting", presets.method("reweighting"))


@pytest.mark.parametrize("name", ["heart_private", "skin_private"])
def test_a_private_job_costs_what_it_says_and_can_be_counted_for(name: str) -> None:
    """The noise of a shipped plan is the least for epsilon 8, counted anew."""
    plan = presets.shipped(name)
    privacy = plan.differential_privacy
    assert privacy is not None
    cost = [one for round_ in planned(plan, privacy, 1) for one in round_]
    assert 7.95 < epsilon(cost, 1e-5).value <= 8
    counted = presets.feasibility(plan, "counted", {"attribute": "sex", "criterion": "equal_accuracy", "gap": 0.2})
    assert counted.differential_privacy is None
