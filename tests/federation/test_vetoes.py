# SPDX-License-Identifier: Apache-2.0
"""A hospital that refuses a job: the job runs without it if enough are left, or not at all, and everybody is told.

Real kits, real processes, each hospital's own policy and validator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.flare.vetoes import FILE_NAME
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.record import RunRecord
from tests.federation.provisioned import SERVER, Federation, federation
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = pytest.mark.federation

VETO, SECOND = "hospital-4", "hospital-3"
REFUSED = "FF-POLICY-REFUSED"


def _plan(name: str, seed: int) -> Plan:
    return changed(
        presets.shipped("heart_flexfair"), name=name, training={"rounds": 2, "seed": seed}, federation={"min_sites": 3}
    )


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    base = tmp_path_factory.mktemp("vetoes")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    with federation(base / "federation", catalog) as running:
        yield running
    assert running.left() == []


def _refuse(parties: Federation, *sites: str) -> None:
    """Let these hospitals, and no other, want larger groups than the plan has."""
    for site in SITES:
        parties.set_policy(site, **({"cells_minimum": 11} if site in sites else {}))


def _submit(parties: Federation, plan: Plan) -> str:
    parties.wait_idle()
    return parties.submit(write_job(plan, parties.base / "drafts"))


def _said(parties: Federation, job: str) -> dict[str, str]:
    return dict(detail.split(": ", 1) for detail in parties.deploy_details(job) if ": " in detail)


@pytest.fixture(scope="module")
def one(parties: Federation) -> tuple[str, RunRecord, Path]:
    """One of four hospitals refuses, and three are enough."""
    _refuse(parties, VETO)
    job = _submit(parties, _plan("one_veto", 1))
    assert parties.ended(job) == "FINISHED:COMPLETED"
    folder = parties.download(job)
    return job, verify_run(folder), folder


def test_the_job_completes_without_the_hospital_that_refuses(one: tuple[str, RunRecord, Path]) -> None:
    _, record, _ = one
    assert record.status == "complete"
    assert record.roster == tuple(site for site in SITES if site != VETO)
    assert record.final is not None
    assert record.final.confirmed == record.roster


def test_the_record_says_who_refused_and_by_which_code(one: tuple[str, RunRecord, Path]) -> None:
    _, record, _ = one
    assert [(two.site, two.task, two.code) for two in record.without] == [(VETO, "deploy", REFUSED)]


def test_the_submitter_reads_the_reasons(parties: Federation, one: tuple[str, RunRecord, Path]) -> None:
    said = _said(parties, one[0])
    assert {site: text for site, text in said.items() if text != "OK"}.keys() == {VETO}
    assert REFUSED in said[VETO]
    assert "cells" in said[VETO]
    assert str(parties.base) not in said[VETO]


def test_of_what_the_hospital_said_the_server_notes_the_code_only(one: tuple[str, RunRecord, Path]) -> None:
    note = (one[2].parent / FILE_NAME).read_text(encoding="utf-8")
    assert REFUSED in note
    assert "cells" not in note


def test_nothing_of_the_job_is_at_the_hospital_that_refused(
    parties: Federation, one: tuple[str, RunRecord, Path]
) -> None:
    assert not (parties.kits[VETO] / one[0]).exists()
    assert not (parties.store / VETO / "heart").exists()


@pytest.mark.slow
def test_where_too_few_are_left_the_job_fails_whole_and_all_reasons_are_told(parties: Federation) -> None:
    _refuse(parties, VETO, SECOND)
    job = _submit(parties, _plan("two_vetoes", 2))
    assert parties.ended(job) == "FINISHED:FAILED_TO_RUN"
    said = _said(parties, job)
    assert {site for site in SITES if REFUSED in said[site]} == {VETO, SECOND}
    assert not (parties.kits[SERVER] / job / "fairflare").exists()


@pytest.mark.slow
def test_a_hospital_that_is_not_there_is_in_the_record_too(parties: Federation) -> None:
    _refuse(parties)
    parties.wait_idle()
    parties.stop(VETO)
    job = _submit(parties, _plan("absent", 3))
    assert parties.ended(job) == "FINISHED:COMPLETED"
    assert VETO not in _said(parties, job)
    record = verify_run(parties.download(job))
    assert [(one.site, one.code) for one in record.without] == [(VETO, "FF-RUN-ABSENT")]
