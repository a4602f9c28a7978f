# SPDX-License-Identifier: Apache-2.0
"""``fairflare data``: exit codes, JSON, and nothing heavy before a command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairflare.cli.data import app
from fairflare.errors import CatalogError, DataError
from fairflare.policy import read_catalog
from fairflare.schema import pretty
from tests.unit.data.plans import (
    SECRETS,
    good_rows,
    image_input,
    plan_dict,
    segmentation_plan,
    table_input,
    write_entry,
)

runner = CliRunner()


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_dict(table_input())), encoding="utf-8")
    return str(path)


def test_synthetic_data_pass_the_check(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_dict(image_input())), encoding="utf-8")
    out = str(tmp_path / "hospitals")
    made = runner.invoke(app, ["synthetic", "--plan", str(plan), "--sites", "2", "--records", "40", "--to", out])
    assert made.exit_code == 0, made.output
    assert "2 sites" in made.output
    assert read_catalog(tmp_path / "hospitals").site_names == ("site-1", "site-2")
    checked = runner.invoke(app, ["check", "--plan", str(plan), "--catalog", out])
    assert checked.exit_code == 0, checked.output
    assert "site-2" in checked.output
    one = runner.invoke(app, ["check", "--plan", str(plan), "--catalog", out, "--site", "site-2", "--json"])
    assert one.exit_code == 0
    assert list(json.loads(one.stdout)["findings"]) == ["site-2"]


def test_synthetic_data_for_segmentation_pass_the_check(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(pretty(segmentation_plan()), encoding="utf-8")
    out = str(tmp_path / "hospitals")
    made = runner.invoke(app, ["synthetic", "--plan", str(plan), "--sites", "2", "--records", "20", "--to", out])
    assert made.exit_code == 0, made.output
    checked = runner.invoke(app, ["check", "--plan", str(plan), "--catalog", out])
    assert checked.exit_code == 0, checked.output


def test_errors_are_an_exit_code_and_a_table(tmp_path: Path, plan: str) -> None:
    rows = good_rows()
    rows[0]["label"] = "SECRET"
    manifest = write_entry(tmp_path, rows).manifest
    shown = runner.invoke(app, ["check", "--plan", plan, "--manifest", manifest], env={"COLUMNS": "300"})
    assert shown.exit_code == 1
    assert "FF-DATA-LABEL" in shown.output
    assert "1 error\n" in shown.output
    told = runner.invoke(app, ["check", "--plan", plan, "--manifest", manifest, "--json"])
    assert told.exit_code == 1
    document = json.loads(told.stdout)
    assert document["format"] == "fairflare/data-check/1"
    assert document["errors"] == 1
    assert document["findings"]["manifest"][0]["severity"] == "error"
    assert [secret for secret in SECRETS if secret in shown.output + told.stdout] == []


def test_a_manifest_can_come_with_an_opt_out_file(tmp_path: Path, plan: str) -> None:
    manifest = write_entry(tmp_path, good_rows(), opt_out=good_rows()[0]["id"]).manifest
    options = ["--manifest", manifest, "--opt-out", str(tmp_path / "opt_out.txt"), "--root", str(tmp_path), "--json"]
    told = runner.invoke(app, ["check", "--plan", plan, *options])
    assert told.exit_code == 0
    assert "1 record left out" in told.stdout


@pytest.mark.parametrize("options", [[], ["--catalog", "a", "--manifest", "b"]])
def test_a_check_needs_one_of_catalog_and_manifest(plan: str, options: list[str]) -> None:
    result = runner.invoke(app, ["check", "--plan", plan, *options])
    assert isinstance(result.exception, CatalogError)
    assert result.exception.code == "FF-CAT-ARGUMENTS"


def test_an_earlier_catalogue_is_not_replaced_by_the_way(tmp_path: Path, plan: str) -> None:
    out = str(tmp_path / "hospitals")
    command = ["synthetic", "--plan", plan, "--sites", "1", "--records", "20", "--to", out]
    assert runner.invoke(app, command).exit_code == 0
    again = runner.invoke(app, command)
    assert isinstance(again.exception, DataError)
    assert again.exception.code == "FF-DATA-EXISTS"
    assert runner.invoke(app, [*command, "--overwrite"]).exit_code == 0


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["import", "mnist", "--from", str(tmp_path), "--to", str(tmp_path / "out")])
    assert isinstance(result.exception, DataError)
    assert "one of uci_heart, ham10000" in str(result.exception)


@pytest.mark.real_data
def test_real_data_are_imported(shared_data: Path, tmp_path: Path) -> None:
    source, out = str(shared_data / "uci_heart"), str(tmp_path / "out")
    result = runner.invoke(app, ["import", "uci_heart", "--from", source, "--to", out])
    assert result.exit_code == 0, result.output
    assert read_catalog(tmp_path / "out").site_names == ("cleveland", "hungarian", "switzerland", "va")


def test_the_data_layer_needs_neither_torch_nor_flare() -> None:
    modules = ("check", "images", "manifest", "masks", "members", "sources", "synthetic", "table")
    imports = ", ".join(f"fairflare.data.{name}" for name in modules)
    code = f"import sys, {imports}; print(*sorted({{'torch', 'nvflare', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    light = "import sys, fairflare.cli.data; print(*sorted({'PIL', 'torch', 'nvflare', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([], "")
