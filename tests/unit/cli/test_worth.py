# SPDX-License-Identifier: Apache-2.0
"""``fairflare worth``: the model of the site alone is what a run of that site alone gives, and the page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare.data.manifest import load
from fairflare.engine.alone import alone_plan, pooled
from fairflare.engine.local import run_local
from fairflare.plan import Plan
from fairflare.policy import DataCatalog, read_catalog
from tests.unit.cli.own import (
    HOSPITALS,
    NAME,
    code,
    heart,
    hospitals,
    invoke,
    mode,
    model,
    shapes,
    three_labels,
    trained,
)  # fmt: skip

Run = tuple[Path, Plan, DataCatalog]


@pytest.fixture(scope="module", params=[heart(), three_labels(), shapes()], ids=lambda plan: plan.name)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, plan = tmp_path_factory.mktemp("run"), request.param
    catalog = hospitals(folder, plan, records=120)
    trained(folder / "run", plan, catalog)
    return folder, plan, catalog


def worth(folder: Path, out: Path, *words: object, kind: str = "final") -> dict[str, Any]:
    base = (model(folder / "run", kind=kind), "--catalog", folder / NAME, "--site", "amber", "--resamples", 100)
    done = invoke("worth", *base, "--out", out, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert NAME not in done.output
    return json.loads((out / "worth.json").read_text(encoding="utf-8"))


def test_the_local_model_is_that_of_a_run_alone(run: Run, tmp_path: Path) -> None:
    folder, plan, catalog = run
    found = worth(folder, tmp_path / "out")
    data = load(plan, catalog.entry("amber", plan.task.data_set))
    alone = run_local(alone_plan(plan), {"amber": lambda: data}, tmp_path / "alone").final
    record = json.loads((folder / "run" / "record.json").read_text(encoding="utf-8"))
    assert alone is not None
    assert found["models"] == {
        "alone (final)": alone.model_sha256,
        "alone (best on validation)": alone.best_model_sha256,
        "federated (final)": record["final"]["model_sha256"],
    }
    groups = [(EVERY, EVERY), *((name, value) for name, values in plan.groups.items() for value in values)]
    for one in found["comparisons"]:
        assert {(row["attribute"], row["group"]) for row in one["rows"]} == set(groups)
    everybody = found["comparisons"][0]["rows"][0]["result"]
    assert everybody["records"] == len(data.test)
    assert everybody["difference"] == pytest.approx(everybody["second"] - everybody["first"])


EVERY = "all"


def test_the_settings_of_the_site_alone_are_the_plans(run: Run) -> None:
    _, plan, _ = run
    alone = alone_plan(plan)
    same = ("task", "model", "start", "training", "evaluation", "attributes", "intersections")
    assert [getattr(alone, name) for name in same] == [getattr(plan, name) for name in same]
    assert (alone.method.name, alone.consents, alone.federation.min_sites) == ("fedavg", (), 1)


def test_the_best_model_is_compared_with_the_best_alone(run: Run, tmp_path: Path) -> None:
    found = worth(run[0], tmp_path / "out", kind="best")
    pairs = [(one["first"], one["second"]) for one in found["comparisons"]]
    federated = "federated (best on validation)"
    assert pairs == [("alone (best on validation)", federated), ("alone (final)", federated)]


def test_pages_stay_here_and_name_nobody(run: Run, tmp_path: Path) -> None:
    folder, _, _ = run
    out = tmp_path / "out"
    worth(folder, out, "--pooled")
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["worth.html", "worth.json"]
    assert (mode(out), {mode(file) for file in files}) == (0o700, {0o600})
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert NAME not in text
        assert "Do not send this on" in text
        assert "simulation only" in text
        assert "without any fairness penalty" in text
        assert "by chance" in text


def test_pooled_records_are_those_of_all_sites(run: Run, tmp_path: Path) -> None:
    folder, plan, catalog = run
    sites = [load(plan, catalog.entry(site, plan.task.data_set)) for site in HOSPITALS]
    pool = pooled(sites)
    assert len(pool.training) == sum(len(site.training) for site in sites)
    assert (len(pool.test), len(pool.validation)) == (0, sum(len(site.validation) for site in sites))
    expected = np.concatenate([site.training.inputs for site in sites])
    assert np.array_equal(pool.training.inputs, expected)
    found = worth(folder, tmp_path / "out", "--pooled")
    record = run_local(alone_plan(plan), {"pooled": lambda: pool}, tmp_path / "pool")
    assert record.final is not None
    assert found["models"]["pooled (final, simulation only)"] == record.final.model_sha256


def test_a_pool_needs_a_simulation(tmp_path: Path) -> None:
    plan = heart()
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    words = ("worth", model(tmp_path / "run"), "--catalog", tmp_path / NAME, "--out", tmp_path / "out")
    assert code(invoke(*words, "--pooled")) == "FF-CAT-POOLED"
    assert not (tmp_path / "out").exists()
    assert read_catalog(tmp_path / NAME).site_names == ("amber",)


def test_a_training_alone_that_cannot_start_says_why(tmp_path: Path) -> None:
    plan = heart(batch={"unit": "batches_per_epoch", "amount": 20})
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    few = tmp_path / "few"
    entry = hospitals(few, plan, records=20, sites=("amber",)).entry("amber", "heart")
    assert len(load(plan, entry).training) < 20
    done = invoke("worth", model(tmp_path / "run"), "--catalog", few / NAME, "--out", tmp_path / "out")
    assert code(done) == "FF-RUN-ALONE"
    assert "FF-DATA-FEW" in str(done.exception)
