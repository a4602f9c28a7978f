# SPDX-License-Identifier: Apache-2.0
"""The server's parent notes which sites a job runs without: names and codes, never a site's text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext

from fairflare.errors import RunError
from fairflare.flare.vetoes import FILE_NAME, VetoNotes, read_without, without
from fairflare.policy.roster import ROSTER_FORMAT, ROSTER_NAME

PROJECT = ("hospital-1", "hospital-2", "hospital-3")


def codes(*details: str, project: tuple[str, ...] = ()) -> dict[str, str]:
    return {one.site: one.code for one in without(details, project).sites}


SAID = {
    "a code of ours": (
        "NVFLARE_ERROR: FF-POLICY-REFUSED: field cells: got 0, expected at least 11",
        "FF-POLICY-REFUSED",
    ),
    "the first of several": ("NVFLARE_ERROR: FF-JOB-CODE app/custom; FF-JOB-FILE app/x", "FF-JOB-CODE"),
    "a text without a code": ("NVFLARE_ERROR: BYOC not permitted", "FF-ROUND-SITE-ERROR"),
    "a name": ("NVFLARE_ERROR: Anna Svensson, born 1950", "FF-ROUND-SITE-ERROR"),
    "nothing": ("", "FF-ROUND-SITE-ERROR"),
    "a code in small letters": ("ff-policy-refused", "FF-ROUND-SITE-ERROR"),
    "a code with a number": ("FF-PATIENT17", "FF-ROUND-SITE-ERROR"),
    "a code that is too long": ("FF-" + "A" * 62, "FF-ROUND-SITE-ERROR"),
    "a part of a word": ("OFF-LINE", "FF-ROUND-SITE-ERROR"),
    "no reply": ("no reply (deployment timeout)", "FF-ROUND-TIMEOUT"),
    "an ok with more": ("OK: FF-DATA-FEW", "FF-DATA-FEW"),
}


@pytest.mark.parametrize("what", SAID)
def test_of_what_a_site_says_a_code_is_left(what: str) -> None:
    said, code = SAID[what]
    assert codes("server: OK", f"hospital-1: {said}", "hospital-2: OK") == {"hospital-1": code}


def test_who_was_not_asked_was_absent() -> None:
    found = codes("server: OK", "hospital-1: OK", "hospital-3: FF-DATA-FEW", project=PROJECT)
    assert found == {"hospital-2": "FF-RUN-ABSENT", "hospital-3": "FF-DATA-FEW"}


def test_names_are_in_order_and_the_task_says_when() -> None:
    found = without(["b: x", "a: x"], ("c",)).sites
    assert [one.site for one in found] == ["a", "b", "c"]
    assert {one.task for one in found} == {"deploy"}


def test_lines_that_are_about_no_party_are_passed_over() -> None:
    assert codes("server: FF-JOB-CODE app/custom", "num_ok_sites 2 < required_min_sites 3") == {}


@pytest.fixture
def parent(tmp_path: Path) -> FLContext:
    """What FLARE's server knows when it has handed a job out."""
    for folder in ("local", "job"):
        (tmp_path / folder).mkdir()
    workspace = SimpleNamespace(
        get_site_config_dir=lambda: str(tmp_path / "local"), get_run_dir=lambda job: str(tmp_path / job)
    )
    ctx = FLContext()
    ctx.set_prop(ReservedKey.ENGINE, SimpleNamespace(get_workspace=lambda: workspace), private=True, sticky=False)
    ctx.set_prop(FLContextKey.JOB_RUN_NUMBER, "job", private=True, sticky=False)
    ctx.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, ["server: OK", "hospital-1: OK", "hospital-2: FF-DATA-FEW: no"])
    return ctx


def noted(parent: FLContext, base: Path) -> list[tuple[str, str]]:
    VetoNotes().handle_event(EventType.JOB_DEPLOYED, parent)
    return [(one.site, one.code) for one in read_without(base / "job")]


def roster(base: Path, data: Any) -> None:
    (base / "local" / ROSTER_NAME).write_text(json.dumps(data), encoding="utf-8")


def test_the_note_names_the_projects_other_sites(parent: FLContext, tmp_path: Path) -> None:
    roster(tmp_path, {"format": ROSTER_FORMAT, "sites": dict.fromkeys(PROJECT, "0" * 64)})
    assert noted(parent, tmp_path) == [("hospital-2", "FF-DATA-FEW"), ("hospital-3", "FF-RUN-ABSENT")]


@pytest.mark.parametrize("data", [None, [], {"sites": list(PROJECT)}, {"sites": {"hospital-3": "x"}}])
def test_without_a_list_of_the_project_those_that_were_asked_are_noted(
    data: Any, parent: FLContext, tmp_path: Path
) -> None:
    if data is not None:
        roster(tmp_path, data)
    assert noted(parent, tmp_path) == [("hospital-2", "FF-DATA-FEW")]


def test_other_events_are_none_of_its_business(parent: FLContext, tmp_path: Path) -> None:
    VetoNotes().handle_event(EventType.JOB_STARTED, parent)
    assert not (tmp_path / "job" / FILE_NAME).exists()
    assert read_without(tmp_path / "job") == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"sites": [{"site": "a"}]}', '{"hospital-1": "FF-DATA-FEW"}'])
def test_a_note_that_is_none_is_not_read(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="FF-RUN-"):
        read_without(tmp_path)
