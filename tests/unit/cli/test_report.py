# SPDX-License-Identifier: Apache-2.0
"""``fairflare report``: it finds records, compares with the right one and writes what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from fairflare.cli.report import report
from fairflare.errors import RunError
from fairflare.record import find_record, write_record
from tests.unit.evaluation.records import (
    draw,
    draw_several,
    flexfair,
    make_painted,
    make_plan,
    make_record,
    make_several,
    paint,
)

APP = typer.Typer()
APP.command()(report)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two runs."""
    first, second = tmp_path / "first", tmp_path / "second" / "deep" / "inside"
    for folder, plan in ((first, make_plan()), (second, make_plan(name="skin_flexfair", method=flexfair()))):
        folder.mkdir(parents=True)
        write_record(folder, make_record(plan, draw()))
    return first, tmp_path / "second"


def test_one_run(runs: tuple[Path, Path]) -> None:
    result = invoke(runs[0])
    assert result.exit_code == 0, result.output
    assert "Run skin_fedavg: fedavg" in result.output
    assert max(map(len, result.output.splitlines())) <= 100
    assert "Run skin_fedavg" in invoke(runs[0] / "record.json", "--split", "validation").output


def test_the_first_of_several_is_the_baseline(runs: tuple[Path, Path]) -> None:
    assert "Comparison with skin_fedavg" in invoke(*runs).output
    assert "Comparison with skin_flexfair" in invoke(*runs, "--baseline", runs[1]).output
    assert "Comparison with skin_flexfair" in invoke(runs[0], "--baseline", runs[1]).output


def test_runs_of_one_plan_are_told_apart(runs: tuple[Path, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_record(again, make_record(make_plan(), draw(seed=9)))
    assert "skin_fedavg #2" in invoke(runs[0], again).output


def test_files_are_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    table, data = tmp_path / "table.csv", tmp_path / "report.json"
    result = invoke(*runs, "--csv", table, "--json", data)
    assert result.exit_code == 0, result.output
    assert table.read_text(encoding="utf-8").startswith("run,split,attribute,group,metric,n,value,low,high,note\n")
    assert len(json.loads(data.read_text(encoding="utf-8"))["comparisons"]) == 1
    assert "written: " in result.output


def test_a_page_is_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = invoke(*runs, "--html", page)
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "<h1>FairFlare report: skin_fedavg, skin_flexfair</h1>" in text
    assert "Comparison with skin_fedavg" in result.output
    assert f"written: {page}" in result.output.replace("\n", "")


@pytest.mark.parametrize("kind", ["images", "several"])
def test_other_tasks_have_reports_in_every_form(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    record = make_record(make_painted(), paint()) if kind == "images" else make_record(make_several(), draw_several())
    write_record(tmp_path, record)
    files = [tmp_path / name for name in ("table.csv", "report.json", "report.html", "pictures")]
    result = invoke(tmp_path, "--csv", files[0], "--json", files[1], "--html", files[2], "--png", files[3])
    assert result.exit_code == 0, result.output
    assert ("Mean Dice" if kind == "images" else "Each label against all others") in result.output
    assert max(map(len, result.output.split("written: ")[0].splitlines())) <= 100
    assert all(file.exists() for file in files)


def test_a_run_that_stopped_has_a_page_but_no_results(runs: tuple[Path, Path], tmp_path: Path) -> None:
    stopped, page, table = tmp_path / "stopped", tmp_path / "report.html", tmp_path / "table.csv"
    stopped.mkdir()
    plan = make_plan(name="broken")
    write_record(stopped, make_record(plan, draw(), final=None, status="stopped", rounds=()))
    with pytest.raises(RunError, match="FF-RUN-INCOMPLETE"):
        APP([str(stopped)], standalone_mode=False)
    result = invoke(stopped, "--html", page)
    assert result.exit_code == 0, result.output
    assert "broken: stopped after 0 rounds, without a final evaluation" in result.output
    assert "broken stopped after 0 of 2 rounds" in page.read_text(encoding="utf-8")
    result = invoke(stopped, *runs, "--html", page, "--csv", table)
    assert result.exit_code == 0, result.output
    assert "Comparison with skin_fedavg" in result.output
    assert {line.split(",")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]} == {
        "skin_fedavg", "skin_flexfair",
    }  # fmt: skip


def test_pictures_are_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = invoke(runs[0], runs[1], "--png", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert "run2-penalties-gap.png" in names
    assert "comparison-runs-all-roc_auc.png" in names
    assert result.output.count("written: ") == len(names)


def test_without_matplotlib_pictures_are_refused_with_the_next_step(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fairflare.evaluation.pictures", None)
    with pytest.raises(ModuleNotFoundError):
        APP([str(runs[0]), "--png", str(tmp_path)], standalone_mode=False)
    monkeypatch.delitem(sys.modules, "fairflare.evaluation.pictures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(runs[0], "--png", tmp_path / "pictures")
    assert result.exit_code == 2
    assert "fairflare[figures]" in result.output


def test_the_newest_record_under_a_folder_is_taken(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "record.json"
        file.write_text("{}", encoding="utf-8")
        os.utime(file, (1000 - age, 1000 - age))
    assert find_record(tmp_path) == tmp_path / "new" / "record.json"
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    assert find_record(tmp_path) == tmp_path / "record.json"


def record_at(folder: Path, age: int) -> Path:
    folder.mkdir(parents=True)
    file = folder / "record.json"
    file.write_text("{}", encoding="utf-8")
    os.utime(file, (1000 - age, 1000 - age))
    return file


def test_the_last_session_is_taken_whatever_the_times_of_its_files(tmp_path: Path) -> None:
    inside = Path("server") / "simulate_job" / "fairflare"
    sessions = [record_at(tmp_path / "run" / f"session-{n}" / inside, age=n) for n in (1, 2, 10)]
    assert find_record(tmp_path / "run") == sessions[-1]
    assert find_record(tmp_path) == sessions[-1]
    assert find_record(tmp_path / "run" / "session-2") == sessions[1]


def test_of_several_runs_the_newest_one_is_taken_and_of_it_the_last_session(tmp_path: Path) -> None:
    record_at(tmp_path / "old" / "session-7", age=3)
    record_at(tmp_path / "older" / "session-x", age=4)
    newest = record_at(tmp_path / "new" / "session-2", age=2)
    record_at(tmp_path / "new" / "session-1", age=1)
    assert find_record(tmp_path) == newest


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-NO-RECORD"):
        find_record(tmp_path)
    with pytest.raises(RunError, match="FF-RUN-NO-RECORD"):
        find_record(tmp_path / "absent")


def test_importing_the_command_loads_neither_scipy_nor_torch() -> None:
    code = "import sys, fairflare.cli.report; print(*{'scipy', 'torch', 'nvflare', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
