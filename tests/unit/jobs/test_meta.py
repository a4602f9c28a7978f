# SPDX-License-Identifier: Apache-2.0
"""Meta data as FLARE's own code makes it is accepted at every stage; any other key, and any other value, is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import JobMetaKey, job_from_meta
from nvflare.app_common.job_schedulers.job_scheduler import DefaultJobScheduler
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.admin_defs import Message
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fairflare import presets
from fairflare.jobs import write_job
from fairflare.jobs.check import check_meta
from fairflare.jobs.meta import VOLATILE, check_written_meta, is_job_id, is_same
from fairflare.plan import Plan

PLAN = presets.shipped("heart_flexfair")


class Manager(SimpleJobDefManager):
    """FLARE's own, with a store of its own."""

    def _get_job_store(self, fl_ctx: FLContext) -> FilesystemStorage:
        return FilesystemStorage()


def sent(base: Path, plan: Plan = PLAN) -> dict[str, Any]:
    """The meta data of a submitted and scheduled job, made by FLARE, as a site receives it at deployment."""
    job = write_job(plan, base / "jobs")
    data = zip_directory_to_bytes(str(job.parent), job.name)
    valid, said, meta = JobMetaValidator().validate(job.name, data)
    assert valid, said
    # FLARE's command handler adds these before it stores the job.
    meta.update(
        study="default", submitter_name="researcher@example.org", submitter_org="university", submitter_role="lead",
        job_folder_name=job.name,
    )  # fmt: skip
    manager = Manager(uri_root=str(base / "store"))
    stored = manager.create(meta, data, FLContext())
    found = manager.get_job(stored["job_id"], FLContext())
    scheduler = DefaultJobScheduler()
    scheduler._update_schedule_history(found, "connected sites (1) < min_sites (3)", FLContext())
    scheduler._update_schedule_history(found, "scheduled", FLContext())
    return over_the_wire(found.meta)


def started(meta: dict[str, Any]) -> dict[str, Any]:
    """The same at the start: FLARE adds the sites that take part, under a key of its enumeration."""
    job = job_from_meta(dict(meta))
    clients = [Client(f"hospital-{at}", "token") for at in range(3)]
    clients[0].set_prop("site_config", {"a": 1})
    job.meta[JobMetaKey.JOB_CLIENTS] = [client.to_dict() for client in clients]
    return over_the_wire(job.meta)


def over_the_wire(meta: dict[str, Any]) -> dict[str, Any]:
    fobs.register_data_classes(Message)
    fobs.register_enum_types(JobMetaKey)
    message = Message("train.deploy", {})
    message.set_header("job_meta", meta)
    return fobs.loads(fobs.dumps(message)).get_header("job_meta")


@pytest.mark.parametrize("name", presets.JOBS)
def test_meta_data_made_by_flare_are_accepted(tmp_path: Path, name: str) -> None:
    plan = presets.shipped(name)
    meta = sent(tmp_path, plan)
    assert check_meta(meta, plan) == []
    assert check_meta(started(meta), plan) == []
    # What FLARE adds is all in the table, and nothing else is.
    assert {"job_id", "study", "schedule_history", "status"} <= meta.keys()


def test_a_clone_of_a_job_is_accepted(tmp_path: Path) -> None:
    meta = sent(tmp_path)
    manager = Manager(uri_root=str(tmp_path / "store"))
    kept = ("name", "job_folder_name", "deploy_map", "resource_spec", "min_clients", "data_storage_format", "study")
    fresh = {key: meta[key] for key in kept}
    fresh |= {"submitter_name": "a@b.org", "submitter_org": "x", "submitter_role": "", "cloned_from": meta["job_id"]}
    assert check_meta(over_the_wire(manager.clone(meta["job_id"], fresh, FLContext())), PLAN) == []


WRONG: dict[str, list[Any]] = {
    "name": ["other", 1, None],
    "resource_spec": [{"hospital-1": {"num_of_gpus": 1}}, None, [], "x"],
    "min_clients": [1, 2, 4, 3.0, "3", True, None],
    "deploy_map": [
        {},
        {"app": ["@all"]},
        {"app": ["server", "hospital-1"]},
        {"app": ["@ALL"], "x": ["y"]},
        {"app": "@ALL"},
    ],
    "job_id": ["../x", "", 1, None, "F" * 32, "11111111-1111-1111-1111-111111111111"],
    "cloned_from": ["x", None],
    "study": ["oncology", "", None],
    "submitter_name": [1, None, "a\nb", "x" * 5000],
    "submitter_org": [1, "a\x1b[2J"],
    "submitter_role": [{}],
    "job_folder_name": ["../x", "a/b", "", 1, "a b"],
    "submit_time": ["now", True, float("nan"), float("inf"), 10**400],
    "submit_time_iso": [1],
    "start_time": [1],
    "duration": [1],
    "data_storage_format": [1, "2", True, 2.0],
    "status": ["FINISHED:COMPLETED", "x", 1, []],
    "schedule_count": [-1, 1.0, True, "1", 10**400],
    "last_schedule_time": ["x", None],
    "schedule_history": ["x", [1], {}, ["x"] * 5000],
    "job_clients": [{}, ["x"], [{}], [{"name": 1}], [{"name": "x", "token": "y"}], [{"name": "x", "is_leaf": 1}]],
}
EXTRA = (
    "launcher_spec", "scope", "stats_pool_config", "custom_props", "byoc", "flower_predeployed", "mandatory_clients",
    "edge_method", "content_location", "result_location", "approvals", "job_deploy_detail", "submit_token", "image", "",
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_every_other_value_is_refused_and_not_repeated(tmp_path: Path, key: str, value: Any) -> None:
    meta = {**started(sent(tmp_path)), key: value}
    (found,) = check_meta(meta, PLAN)
    assert (found.code, found.place) == ("FF-JOB-META", f"meta.json:{key}")
    assert "\x1b" not in str(found)


@pytest.mark.parametrize("key", EXTRA)
@pytest.mark.parametrize("value", [{}, None, "x"])
def test_every_other_key_is_refused_even_with_nothing_in_it(tmp_path: Path, key: str, value: Any) -> None:
    (found,) = check_meta({**sent(tmp_path), key: value}, PLAN)
    assert (found.code, found.got) == ("FF-JOB-META", "a key that no job of ours has")


def test_every_key_that_flare_knows_is_decided(tmp_path: Path) -> None:
    # A new version of FLARE with a new key must not be let through, nor pass unnoticed.
    own = {"name", "resource_spec", "min_clients", "deploy_map"}
    known = {key.value for key in JobMetaKey}
    assert known - own - WRONG.keys() == {key for key in EXTRA if key in known}
    assert WRONG.keys() > VOLATILE


@pytest.mark.parametrize("key", ["name", "resource_spec", "min_clients", "deploy_map"])
def test_every_key_of_ours_must_be_there(tmp_path: Path, key: str) -> None:
    meta = sent(tmp_path)
    del meta[key]
    assert [(one.code, one.place) for one in check_meta(meta, PLAN)] == [("FF-JOB-META", f"meta.json:{key}")]


def test_without_a_plan_the_rest_is_compared(tmp_path: Path) -> None:
    meta = {**sent(tmp_path), "name": "x", "min_clients": 99}
    assert check_meta(meta, None) == []
    assert [one.place for one in check_meta({**meta, "scope": "x", "resource_spec": {"a": 1}}, None)] == [
        "meta.json:resource_spec", "meta.json:scope",
    ]  # fmt: skip


@pytest.mark.parametrize("meta", [[], None, "x", {1: 2}, {("a",): 1}])
def test_what_is_no_meta_data_is_refused(meta: Any) -> None:
    assert {one.code for one in check_meta(meta, PLAN)} == {"FF-JOB-META"}


def test_a_researcher_writes_no_key_of_the_server(tmp_path: Path) -> None:
    own = json.loads((write_job(PLAN, tmp_path) / "meta.json").read_text())
    assert check_written_meta(json.dumps(own).encode(), PLAN) == []
    for key in WRONG.keys() - own.keys():
        assert [one.place for one in check_written_meta(json.dumps({**own, key: ""}).encode(), PLAN)] == [
            f"meta.json:{key}"
        ]
    for data in (b"", b"[]", b"\xff", b"{", b"null", b'{"a":' * 50 + b"1" + b"}" * 50):
        assert [one.code for one in check_written_meta(data, PLAN)] == ["FF-JOB-META"]


def test_numbers_and_truths_are_told_apart() -> None:
    assert is_same({"a": [1, "x", None]}, {"a": [1, "x", None]})
    for one, other in ((1, True), (1, 1.0), ([1], [1, 1]), ({"a": 1}, {"a": 1, "b": 1}), ({"a": 1}, {"a": True})):
        assert not is_same(one, other)
        assert not is_same(other, one)
    assert is_job_id("6f1c9a52-8d2f-4c7e-9b1a-2f4e6d8c0a1b")
    for value in ("6F1C9A52-8D2F-4C7E-9B1A-2F4E6D8C0A1B", "6f1c9a528d2f4c7e9b1a2f4e6d8c0a1b", "simulate_job", "..", 1):
        assert not is_job_id(value)
    assert not is_job_id("6f1c9a52-8d2f-4c7e-9b1a-2f4e6d8c0a1b\n")
