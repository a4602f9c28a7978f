# SPDX-License-Identifier: Apache-2.0
"""A job that is handed in, as FLARE's own code reads it: what the server refuses before it has stored anything."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import job_from_meta
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fairflare import presets
from fairflare.flare import intake
from fairflare.flare.intake import INTERNAL, Intake
from fairflare.jobs import write_job
from fairflare.jobs.meta import check_submitted_meta
from tests.hostile import CASES

PLAN = presets.shipped("heart_flexfair")
#: Who knows the plan refuses them, or FLARE takes them off before anybody is asked.
LATER = {"fewer sites than the plan", "more sites than the plan", "name of another plan"}
TAKEN_OFF = {
    "code at the top", "notes at the top", "second meta", "study", "code announced", "key written twice in meta",
}  # fmt: skip


def read(job: Path) -> dict[str, Any]:
    """Meta data as FLARE's command handler has them when it fires the event."""
    valid, said, meta = JobMetaValidator().validate(job.name, zip_directory_to_bytes(str(job.parent), job.name))
    assert valid, said
    return {**meta, "study": "default"}


def hand_in(meta: object, event: str = EventType.SUBMIT_JOB) -> str:
    context = FLContext()
    context.set_prop(FLContextKey.JOB_META, meta, private=True, sticky=False)
    Intake().handle_event(event, context)
    return str(context.get_prop(FLContextKey.JOB_BLOCK_REASON) or "")


@pytest.mark.parametrize("name", presets.JOBS)
def test_every_committed_job_is_taken(tmp_path: Path, name: str) -> None:
    assert hand_in(read(write_job(presets.shipped(name), tmp_path))) == ""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.where == "meta" and case.flare is None])
def test_meta_data_that_no_job_of_ours_has_are_refused_at_once(tmp_path: Path, name: str) -> None:
    job = write_job(PLAN, tmp_path)
    CASES[name].spoil(job)
    said = hand_in(read(job))
    if name in LATER | TAKEN_OFF:
        assert said == ""
    else:
        assert said.startswith("FF-JOB-META meta.json")
        assert "evil" not in said
        assert len(said) < 4100


@pytest.mark.parametrize("name", ["code in custom", "empty file in custom", "empty folder custom"])
def test_a_folder_for_code_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    job = write_job(PLAN, tmp_path)
    CASES[name].spoil(job)
    assert hand_in(read(job)).startswith("FF-JOB-CODE app/custom: got a folder for code")


GOOD = {"name": "x", "resource_spec": {}, "min_clients": 3, "deploy_map": {"app": ["@ALL"]}, "study": "default"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("min_clients", value) for value in ("3", True, 3.0, 0, -1, None, [3])),
        *(("name", value) for value in ("../x", "X", "", "a" * 65, "x\n", 1, None)),
        ("study", "oncology"), ("schedule_count", "x"), ("last_schedule_time", "x"), ("job_id", "x"),
        # What only the server writes, in its right form.
        ("schedule_count", 0), ("status", "SUBMITTED"), ("job_id", str(uuid.uuid4())), ("submitter_name", "x"),
        ("mandatory_clients", []), ("deploy_map", {"app": ["server"]}), ("resource_spec", {"default": {}}),
    ],
)  # fmt: skip
def test_each_value_has_its_form(key: str, value: object) -> None:
    assert hand_in(GOOD) == ""
    assert f"FF-JOB-META meta.json:{key}: " in hand_in({**GOOD, key: value})


def test_every_key_must_be_there() -> None:
    for key in ("name", "resource_spec", "min_clients", "deploy_map"):
        assert f"meta.json:{key}: got nothing" in hand_in({name: GOOD[name] for name in GOOD if name != key})


@pytest.mark.parametrize("meta", [None, [], "x", {}, {1: 2}])
def test_what_are_no_meta_data_is_refused(meta: object) -> None:
    assert hand_in(meta).startswith("FF-JOB-META meta.json")


def test_a_number_of_sites_as_a_text_would_stop_flares_scheduler_for_everybody() -> None:
    # So that this is noticed when it is no longer needed.
    with pytest.raises(TypeError):
        _ = job_from_meta({**GOOD, "min_clients": "3"}).min_sites > 4


def test_other_events_are_nothing_to_it() -> None:
    assert hand_in([], EventType.JOB_DEPLOYED) == ""


def test_an_exception_is_a_refusal_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(_: object) -> None:
        raise KeyError("/home/somebody")

    monkeypatch.setattr(intake, "check_submitted_meta", raising)
    assert hand_in(GOOD) == INTERNAL


def test_the_meta_data_are_left_as_they_are() -> None:
    meta = {**GOOD, "byoc": True}
    assert check_submitted_meta(meta)
    assert meta == {**GOOD, "byoc": True}
