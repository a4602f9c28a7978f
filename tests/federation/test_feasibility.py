# SPDX-License-Identifier: Apache-2.0
"""A feasibility job in FLARE's processes: the local engine's numbers, masked, and one list of releases per site."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.loading import load_apart
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.jobs import write_job
from fairflare.policy import write_catalog
from fairflare.record import read_record
from tests.federation.support import PATIENT, SITES, VALUE, fairflare, files_with, make_hospitals, releases

pytestmark = [pytest.mark.federation, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("feasibility")
    plan = presets.shipped("heart_feasibility")
    catalog = write_catalog(base, make_hospitals(base / "hospitals", plan, SITES, 60))
    done = fairflare("run", "simulate", write_job(plan, base / "job"), "--catalog", catalog, "--out", base / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return base


def test_flare_counts_what_the_local_engine_counts(base: Path) -> None:
    record = verify_run(base / "run")
    plan = record.plan
    catalog = make_hospitals(base / "again", plan, SITES, 60)
    entries = {site: catalog.entry(site, "heart") for site in SITES}
    loaders = {site: (lambda entry=entry: load_apart(plan, entry, None)) for site, entry in entries.items()}
    local = run_local(plan, loaders, base / "local")
    assert record.feasibility == local.feasibility
    assert record.feasibility is not None
    assert record.records == local.records


def test_each_site_lets_counts_out_once_and_no_patient(base: Path) -> None:
    workspace = base / "run" / "session-1"
    for site in SITES:
        sent = [(line["task"], sorted(line["vectors"])) for line in releases(workspace, site)]
        assert sent == [
            ("join", []), ("session", []), ("prepare", ["cells", "counts"]), ("measure", ["vocabulary"]),
        ]  # fmt: skip
    assert read_record(workspace / "server" / "simulate_job" / "fairflare").status == "complete"
    assert files_with(workspace / "server", PATIENT, VALUE) == []
