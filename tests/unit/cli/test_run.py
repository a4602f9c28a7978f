# SPDX-License-Identifier: Apache-2.0
"""``fairflare run``: which hospitals a run begins or goes on with, and what is refused before any of them works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.cli import run
from fairflare.data.synthetic import write_hospitals
from fairflare.engine import verify
from fairflare.engine.server import Coordinator, Start
from fairflare.errors import RunError
from fairflare.jobs import write_job
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog, write_catalog
from tests.unit.evaluation.records import draw, make_plan, make_record, make_without

PLAN = presets.shipped("heart_fedavg")
NAMES = ("amber", "beryl", "coral", "dune")


def catalog(folder: Path, sites: int) -> Path:
    write_hospitals(folder, PLAN, NAMES[:sites], 50, seed=1)
    return folder / "data_catalog.json"


def needs(sites: int) -> Plan:
    data = json.loads(schema.pretty(PLAN))
    data["federation"]["min_sites"], data["protection"] = sites, presets.UNPROTECTED
    return parse_plan(json.dumps(data))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been simulated."""
    calls: list[tuple[Any, ...]] = []

    def note(
        plan: Plan, job: Path, folder: Path, data: DataCatalog, resume: Path | None = None, **_: Sequence[Path]
    ) -> None:
        calls.append((plan.name, data.site_names, resume))

    monkeypatch.setattr(run, "simulated", note)
    return calls


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that ended before its first round."""
    folder = tmp_path / "stopped"
    session = folder / "session-1"
    coordinator = Coordinator(PLAN, session / "server" / "simulate_job" / "fairflare", Start("x", "flare", {}))
    coordinator.store.save(coordinator.record)
    (session / "local").mkdir()
    shutil.copy(catalog(tmp_path / "four", 4), session / "local")
    write_job(PLAN, folder / "job")
    return folder


def test_verify_names_the_sites_that_a_run_was_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = make_record(make_plan(), draw(), notices=("seen",))
    monkeypatch.setattr(verify, "verify_run", lambda *_: make_without(record, code="FF-RUN-ABSENT"))
    run.verify(tmp_path)
    lines = " ".join(capsys.readouterr().out.split())
    assert "ran without lund: FF-RUN-ABSENT, it was not connected to the server, or not free" in lines
    monkeypatch.setattr(verify, "verify_run", lambda *_: record)
    run.verify(tmp_path)
    assert "ran without" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [run.simulate, run.local])
def test_fewer_sites_than_min_sites_are_refused_before_work_starts(
    command: Any, started: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    job = write_job(PLAN, tmp_path / "job")
    with pytest.raises(RunError, match="FF-RUN-SITES: got 2 sites; expected at least 3, the plan's min_sites"):
        command(job, catalog(tmp_path / "two", 2), tmp_path / "run")
    assert started == []
    assert list((tmp_path / "run").iterdir()) == []


def test_more_sites_than_are_made_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FF-RUN-SITES"):
        run.simulate(write_job(needs(5), tmp_path / "job"), None, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_as_many_sites_as_min_sites_are_enough(started: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run.simulate(write_job(PLAN, tmp_path / "job"), catalog(tmp_path / "three", 3), tmp_path / "run")
    assert started == [("heart_fedavg", NAMES[:3], None)]


def test_a_run_goes_on_with_the_last_sessions_catalogue(stopped: Path, started: list[tuple[Any, ...]]) -> None:
    run.resume(stopped)
    source = stopped / "session-1" / "server" / "simulate_job" / "fairflare"
    assert started == [("heart_fedavg", NAMES, source)]


def test_a_run_goes_on_with_the_catalogue_that_is_named(
    stopped: Path, started: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run.resume(stopped, catalog(tmp_path / "three", 3))
    assert [names for _, names, _ in started] == [NAMES[:3]]


@pytest.mark.parametrize("which", ["too few sites", "one hospital", "a manifest that is not there"])
def test_a_run_does_not_go_on_with_a_catalogue_of_no_use(
    which: str, stopped: Path, started: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    file = catalog(tmp_path / "three", 2 if which == "too few sites" else 3)
    data = json.loads(file.read_text(encoding="utf-8"))
    if which == "one hospital":
        data = {**data, "sites": None, "data_sets": data["sites"]["amber"]}
    if which == "a manifest that is not there":
        data["sites"]["beryl"]["heart"]["manifest"] = str(tmp_path / "nowhere.csv")
    parsed = schema.parse(DataCatalog, json.dumps(data), error=RunError, what="catalogue")
    code = {"too few sites": "FF-RUN-SITES", "one hospital": "FF-RUN-CATALOG"}.get(which, "FF-CAT-MISSING-FILE")
    with pytest.raises(Exception, match=code):
        run.resume(stopped, write_catalog(tmp_path, parsed))
    assert started == []
