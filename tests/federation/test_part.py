# SPDX-License-Identifier: Apache-2.0
"""A part of a network trained through FLARE's processes, masked: the rest is frozen at every site and never travels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.at_site import read_model_file
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.models import (
    build,
    find_weights,
    frozen_sha256,
    frozen_tensors,
    initial_vector,
    named_arrays,
    parameter_count,
    vector_sha256,
    write_weights,
)
from fairflare.plan import Plan, parse_plan
from fairflare.record import RunRecord, read_record
from tests.federation.support import SITES, changed, loaders, make_hospitals, models, releases

pytestmark = [pytest.mark.federation, pytest.mark.slow]

CNN = {"name": "cnn", "widths": [16, 32]}


@dataclasses.dataclass
class Run:
    plan: Plan
    weights: Path
    workspace: Path
    record: RunRecord
    local: RunRecord


@pytest.fixture(scope="module", params=[("head", None), ("adapters", 2)], ids=["head", "adapters"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Images of three hospitals, on a network from a file; a head's features are kept."""
    base, (trained, rank) = tmp_path_factory.mktemp("part"), request.param
    shipped = presets.shipped("skin_fedavg")
    small = {**shipped.task.input.model_dump(mode="json"), "height": 24, "width": 24, "augmentation": "none"}
    whole = changed(
        shipped, name="part", model=CNN, training={"rounds": 2}, task={"input": small},
        federation={"task_timeout_seconds": 60.0, "min_sites": 3},
    )  # fmt: skip
    assert whole.protection.masked
    sha256 = write_weights(base / "new", named_arrays(build(whole), initial_vector(whole)), {})
    (base / "new").rename(base / f"{sha256}.safetensors")
    part = {"name": "part", "network": CNN, "trained": trained, "rank": rank}
    start = {"kind": "file", "sha256": sha256, "tensors": "all"}
    plan = parse_plan(json.dumps({**whole.model_dump(mode="json"), "model": part, "start": start}))
    catalog = make_hospitals(base / "hospitals", plan, SITES[:3], 60)
    file = find_weights(base, sha256)
    simulation = Simulation(write_job(plan, base / "job"), base / "run", catalog, SITES[:3], weights=(file,))
    simulation.run(timeout=240)
    local = run_local(plan, loaders(plan, catalog), base / "local", weights=base)
    return Run(plan, base, simulation.workspace, read_record(simulation.records), local)


def test_every_rounds_model_is_the_local_engines(run: Run) -> None:
    assert run.record.status == "complete"
    assert models(run.record) == models(run.local)
    assert len(models(run.record)) == run.plan.training.rounds
    assert run.record.final == run.local.final
    assert verify_run(run.workspace, run.weights) == run.record


def test_only_the_trained_part_travels_and_files_have_the_whole_network(run: Run) -> None:
    size, final = parameter_count(build(run.plan)), run.record.final
    assert final is not None
    for site in run.record.roster:
        sent = [line["vectors"]["update"] for line in releases(run.workspace, site) if "update" in line["vectors"]]
        assert sent == [size] * run.plan.training.rounds
        folder = run.workspace / site / "simulate_job" / "fairflare" / "models"
        model = read_model_file(folder / "final.safetensors")
        assert vector_sha256(model.vector) == final.model_sha256
        assert frozen_sha256(model.frozen) == frozen_sha256(frozen_tensors(run.plan, run.weights))
