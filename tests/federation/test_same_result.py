# SPDX-License-Identifier: Apache-2.0
"""The same plan and seeds give the same model through FLARE's processes as in one process, for each kind of job."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairflare import presets, schema
from fairflare.engine.at_site import read_model_file
from fairflare.engine.messages import (
    CONFIRM,
    COUNTS,
    EVALUATE,
    FINISH,
    JOIN,
    MEASURE,
    PREPARE,
    SESSION,
    STEP,
    TRAIN,
    TRAIN_ALONE,
    UNMASK,
)
from fairflare.engine.verify import verify_run
from fairflare.flare.simulate import Simulation, process_marks
from fairflare.jobs import write_job
from fairflare.models import vector_sha256
from fairflare.plan import Plan
from fairflare.policy import open_policy, write_catalog, write_policy
from fairflare.record import RunRecord, read_record, results_of
from tests.federation.support import (
    PATIENT,
    ROOT,
    SITES,
    VALUE,
    changed,
    fairflare,
    files_with,
    local_run,
    make_hospitals,
    models,
    releases,
    simulator,
)

pytestmark = pytest.mark.federation

QUICK = {"task_timeout_seconds": 60.0}


@dataclass
class Run:
    plan: Plan
    workspace: Path
    record: RunRecord
    local: RunRecord


def _simulated(base: Path, plan: Plan, sites: tuple[str, ...], records: int) -> Run:
    catalog = make_hospitals(base / "hospitals", plan, sites, records)
    simulation = Simulation(write_job(plan, base / "job"), base / "run", catalog, sites)
    simulation.run(timeout=240)
    return Run(plan, simulation.workspace, read_record(simulation.records), local_run(plan, catalog, base / "local"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shipped job, started with FLARE's own command and the workspace that the project ships."""
    base = tmp_path_factory.mktemp("plain")
    plan = presets.shipped("heart_fedavg")
    catalog = make_hospitals(base / "hospitals", plan, SITES, 60)
    workspace = base / "workspace"
    shutil.copytree(ROOT / "poc" / "workspace" / "local", workspace / "local")
    write_catalog(workspace / "local", catalog)
    write_policy(workspace / "local", open_policy(base / "store"))
    assert simulator("jobs/heart_fedavg", workspace, SITES) == 0
    record = read_record(workspace / "server" / "simulate_job" / "fairflare")
    return Run(plan, workspace, record, local_run(plan, catalog, base / "local"))


@pytest.fixture(scope="module")
def flexfair(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job started with our own command."""
    base = tmp_path_factory.mktemp("flexfair")
    plan = changed(presets.shipped("heart_flexfair"), training={"rounds": 3}, federation=QUICK)
    catalog = make_hospitals(base / "hospitals", plan, SITES, 80)
    job, where = write_job(plan, base / "plans"), write_catalog(base, catalog)
    done = fairflare("run", "simulate", job, "--catalog", where, "--out", base / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    workspace = base / "run" / "session-1"
    record = read_record(workspace / "server" / "simulate_job" / "fairflare")
    return Run(plan, workspace, record, local_run(plan, catalog, base / "local"))


@pytest.fixture(scope="module")
def lock_step(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The authors' official form: statistics of every batch, all sites in step."""
    method = presets.flexfair(presets.penalty("sex", "demographic_parity", 1.0), preset="official")
    plan = changed(
        presets.shipped("heart_fedavg"),
        name="heart_step",
        method=method,
        protection=presets.UNPROTECTED,
        training={"rounds": 2, "work": {"unit": "steps", "amount": 3}},
        federation=QUICK,
    )
    return _simulated(tmp_path_factory.mktemp("lock_step"), plan, SITES[:3], 60)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Segmentation with flips: hospitals and an intersection as groups, statistics that lag; updates as arrays."""
    equal = {"utility": "dice_loss", "weights": "uniform"}
    penalties = (presets.penalty(name, "equal_accuracy", 2.0, **equal) for name in ("hospital", "sex_age"))
    base = presets.shipped("fundus_fedavg")
    plan = changed(
        base,
        name="shapes",
        method=presets.flexfair(*penalties, refresh="round_lagged", remeasure_own=3),
        attributes=[presets.SEX, presets.AGE],
        intersections=[{"name": "sex_age", "of": ["sex", "age"]}],
        consents=["open_hospital_risks"],
        protection=presets.UNPROTECTED,
        task={"input": {**base.task.input.model_dump(mode="json"), "height": 16, "width": 24}},
        model={"name": "unet", "widths": [16, 32]},
        training={"rounds": 3},
        federation={**QUICK, "min_sites": 2},
    )
    return _simulated(tmp_path_factory.mktemp("images"), plan, SITES[:2], 60)


@pytest.fixture(scope="module", params=["plain", "flexfair", "lock_step", "images"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def test_every_rounds_model_is_the_local_engines(run: Run) -> None:
    assert models(run.record) == models(run.local)
    assert len(models(run.record)) == run.plan.training.rounds


def test_the_record_verifies(run: Run) -> None:
    assert verify_run(run.workspace) == run.record


def test_what_the_server_learnt_is_what_the_local_engine_learnt(run: Run) -> None:
    assert run.record.final == run.local.final
    assert [line.penalties for line in run.record.rounds] == [line.penalties for line in run.local.rounds]
    assert [line.validation for line in run.record.rounds] == [line.validation for line in run.local.rounds]
    assert [line.train_loss for line in run.record.rounds] == [line.train_loss for line in run.local.rounds]
    assert run.record.records == run.local.records


def test_the_record_names_everybody_and_refuses_nobody(run: Run) -> None:
    for line in run.record.rounds:
        tasks = (MEASURE, STEP, TRAIN) if run.plan.method.lock_step else (MEASURE, TRAIN)
        tasks = (TRAIN_ALONE,) if run.plan.method.lagged else tasks
        tasks = (*tasks, CONFIRM, UNMASK) if run.plan.protection.masked else tasks
        assert line.participants == dict.fromkeys(tasks, run.record.roster)
        assert line.refusals == ()
    assert run.record.final is not None
    assert run.record.final.confirmed == run.record.roster
    assert run.record.sessions[0].transport == "flare"
    assert set(run.record.records) == set(COUNTS)
    assert "nvflare" in run.record.software


def test_each_site_lists_every_release_and_no_number_of_it(run: Run) -> None:
    steps = 3 if run.plan.method.lock_step else 0
    one = [TRAIN_ALONE] if run.plan.method.lagged else [MEASURE, *[STEP] * steps, TRAIN]
    first: list[str] = []
    if run.plan.protection.masked:
        one, first = [*one, CONFIRM, UNMASK], [SESSION, PREPARE]
    rounds = one * run.plan.training.rounds
    for site in run.record.roster:
        listed = releases(run.workspace, site)
        assert [line["task"] for line in listed] == [JOIN, *first, *rounds, EVALUATE, FINISH]
        for line in listed:
            assert set(line) == {"event", "task", "round", "step", "vectors"}
            assert all(type(length) is int for length in line["vectors"].values())


def test_the_search_for_patients_finds_them_where_they_are(run: Run) -> None:
    # Otherwise the next test would pass on any mistake in the search.
    hospitals = next(folder / "hospitals" for folder in run.workspace.parents if (folder / "hospitals").is_dir())
    found = files_with(hospitals, PATIENT)
    assert sum(file.endswith("manifest.csv") for file in found) == len(run.record.roster)
    if run.plan.task.input.kind == "image":  # in the images' own text, and in their names
        assert sum(file.endswith(".png") and PATIENT in Path(file).name for file in found) > len(run.record.roster)


def test_no_patient_and_no_value_of_the_data_is_in_any_file_but_the_manifests(run: Run) -> None:
    # Not in the server's folder, not in the sites' logs, not in what FLARE printed.
    assert files_with(run.workspace, PATIENT, VALUE) == []
    assert files_with(run.workspace.parent, PATIENT, VALUE) == files_with(
        run.workspace.parent / "hospitals", PATIENT, VALUE
    )


def test_no_image_is_named_after_a_patient_outside_the_hospitals(run: Run) -> None:
    assert [path for path in run.workspace.rglob("*") if PATIENT in path.name] == []


def test_no_patient_is_in_a_report_of_the_run(run: Run, tmp_path: Path) -> None:
    files = [part for kind in ("html", "csv", "json") for part in (f"--{kind}", tmp_path / f"report.{kind}")]
    done = fairflare("report", run.workspace, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert files_with(tmp_path, PATIENT, VALUE) == []
    assert PATIENT not in done.stdout + done.stderr


def test_every_site_has_both_models_with_the_record_and_a_card(run: Run) -> None:
    final = run.record.final
    assert final is not None
    sent = hashlib.sha256(schema.canonical(results_of(run.record))).hexdigest()
    for site in run.record.roster:
        folder = run.workspace / site / "simulate_job" / "fairflare" / "models"
        for kind, expected in (("final", final.model_sha256), ("best", final.best_model_sha256)):
            model = read_model_file(folder / f"{kind}.safetensors")
            assert vector_sha256(model.vector) == expected
            assert (model.plan, model.record_sha256) == (run.plan, sent)
        assert hashlib.sha256((folder / "record.json").read_bytes()).hexdigest() == sent
        card = (folder / "model_card.md").read_text(encoding="utf-8")
        assert all(text in card for text in (sent, final.model_sha256, run.plan.sha256, run.plan.task.data_set))


def test_nobody_is_left_behind(run: Run) -> None:
    assert str(run.workspace) not in process_marks().values()


def test_the_shipped_workspace_allows_our_three_classes_and_no_other() -> None:
    resources = json.loads((ROOT / "poc" / "workspace" / "local" / "resources.json").read_text(encoding="utf-8"))
    assert resources["class_allow_list"] == [
        "fairflare.flare.controller.FairFlareController",
        "fairflare.flare.aggregator.FlexFairAggregator",
        "fairflare.flare.executor.FairFlareExecutor",
    ]


def test_the_image_models_update_is_large_enough_to_travel_as_an_array(images: Run) -> None:
    update = next(
        line["vectors"]["update"] for line in releases(images.workspace, SITES[0]) if "update" in line["vectors"]
    )
    assert update * 4 > 65_536
