# SPDX-License-Identifier: Apache-2.0
"""``fairflare evaluate``: the site's own numbers are the run's where there is one site, and stay at the site."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fairflare.engine.at_site import read_model_file
from fairflare.evaluation.report import summarise
from fairflare.evaluation.worth import CAUTION
from fairflare.models import (
    build,
    load_vector,
    named_arrays,
    read_weights,
    to_vector,
    vector_sha256,
    write_weights,
)
from fairflare.plan import Plan
from fairflare.policy import DataCatalog, write_catalog
from fairflare.record import RunRecord
from tests.unit.cli.own import NAME, code, heart, hospitals, invoke, mode, model, shapes, three_labels, trained

PLANS = [heart(), three_labels(), shapes()]


@pytest.fixture(scope="module", params=PLANS, ids=lambda plan: plan.name)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunRecord]:
    """A run of one site."""
    folder, plan = tmp_path_factory.mktemp("alone"), request.param
    catalog = hospitals(folder, plan, records=100, sites=("amber",))
    return folder, plan, trained(folder / "run", plan, catalog)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    trained(folder / "run", heart(), hospitals(folder, heart()))
    return folder


@pytest.mark.parametrize("split", ["test", "validation"])
def test_with_one_site_the_numbers_are_the_runs(
    alone: tuple[Path, Plan, RunRecord], split: str, tmp_path: Path
) -> None:
    folder, _, record = alone
    done = invoke(
        "evaluate", model(folder / "run"), "--catalog", folder / NAME, "--split", split, "--json", tmp_path / "x"
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "x").read_text(encoding="utf-8"))
    summary = summarise(record, split)  # type: ignore[arg-type]
    own = found["result"]
    assert own["overall"]["records"] == summary.overall.records > 0
    assert own["threshold"] == (None if summary.threshold is None else vars(summary.threshold))
    for group, other in zip(_groups(own), _groups(_plain(summary)), strict=True):
        assert group == other
    assert own["plan_sha256"] == record.plan_sha256
    assert own["model_sha256"] == summary.model_sha256


def _plain(summary: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(summary)))


def _groups(summary: dict[str, Any]) -> list[Any]:
    return [summary["overall"], *summary["attributes"], *summary["labels"]]


def test_nothing_that_is_written_names_a_patient(alone: tuple[Path, Plan, RunRecord], tmp_path: Path) -> None:
    folder, plan, _ = alone
    out = {kind: tmp_path / f"x.{kind}" for kind in ("json", "html")}
    words = [word for kind, file in out.items() for word in (f"--{kind}", file)]
    done = invoke("evaluate", model(folder / "run"), "--catalog", folder / NAME, *words)
    texts = [done.output, *(file.read_text(encoding="utf-8") for file in out.values())]
    for text in texts:
        assert NAME not in text
        assert "not send this on" in " ".join(text.split())
    assert {mode(file) for file in out.values()} == {0o600}
    page = html.unescape(texts[2])
    assert CAUTION in page
    assert "default-src 'none'" in page
    assert plan.name in page
    for file in (folder / "run" / "sites").rglob("*"):
        if file.is_file():
            assert NAME.encode() not in file.read_bytes(), file


def test_an_older_file_that_others_could_read_is_not_readable_afterwards(two: Path, tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text("{}", encoding="utf-8")
    file.chmod(0o666)
    done = invoke(
        "evaluate", model(two / "run"), "--catalog", two / NAME, "--site", "amber", "--json", file, "--minimum", 0
    )
    assert done.exit_code == 0, done.output
    assert mode(file) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["old.json"]


def test_of_several_sites_one_has_to_be_named(two: Path) -> None:
    done = invoke("evaluate", model(two / "run"), "--catalog", two / NAME)
    assert code(done) == "FF-CAT-SITE"
    assert "amber, beryl" in str(done.exception)
    done = invoke("evaluate", model(two / "run"), "--catalog", two / NAME, "--site", "amba")
    assert code(done) == "FF-CAT-UNKNOWN-SITE"


def test_a_sites_own_catalogue_needs_no_name(two: Path, tmp_path: Path) -> None:
    catalog = hospitals(tmp_path, heart(), sites=("amber",))
    own = DataCatalog(format="fairflare/catalog/1", data_sets=(catalog.sites or {})["amber"], sites=None)
    write_catalog(tmp_path, own)
    done = invoke("evaluate", model(two / "run"), "--catalog", tmp_path)
    assert done.exit_code == 0, done.output
    assert "this-site" in done.output


def test_small_groups_are_withheld_at_the_minimum_that_is_asked_for(two: Path, tmp_path: Path) -> None:
    found = {}
    for least in (0, 1000):
        file = tmp_path / f"{least}.json"
        words = ("--site", "amber", "--minimum", least, "--json", file)
        assert invoke("evaluate", model(two / "run"), "--catalog", two / NAME, *words).exit_code == 0
        found[least] = json.loads(file.read_text(encoding="utf-8"))
    assert found[0]["result"]["overall"]["records"] > 0
    assert found[1000]["result"]["overall"]["records"] == 0
    assert found[1000]["minimum"] == 1000


@pytest.mark.parametrize("plan", [heart(), shapes()], ids=lambda plan: plan.name)
def test_a_collapsed_model_is_named(tmp_path: Path, plan: Plan) -> None:
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    file = read_weights(model(tmp_path / "run"))
    network = build(plan)
    vector = read_model_file(model(tmp_path / "run")).vector * 0
    if plan.task.kind == "segmentation":
        load_vector(network, vector)
        list(network.parameters())[-1].data.fill_(-3.0)
        vector = to_vector(network)
    texts = {**file.metadata, "model_sha256": vector_sha256(vector)}
    write_weights(tmp_path / "zero", named_arrays(network, vector), texts)
    done = invoke("evaluate", tmp_path / "zero", "--catalog", tmp_path / NAME)
    words = "calls every pixel" if plan.task.kind == "segmentation" else "constant model"
    assert words in " ".join(done.output.split())


def test_a_split_without_records_is_refused(two: Path, tmp_path: Path) -> None:
    catalog = hospitals(tmp_path, heart(), sites=("amber",))
    manifest = Path(catalog.entry("amber", "heart").manifest)
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace(",test,", ",training,"), encoding="utf-8")
    assert code(invoke("evaluate", model(two / "run"), "--catalog", tmp_path / NAME)) == "FF-DATA-SPLIT-EMPTY"
