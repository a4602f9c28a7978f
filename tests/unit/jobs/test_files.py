# SPDX-License-Identifier: Apache-2.0
"""The committed jobs are what the package writes; none carries code; all configurations are the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairflare import presets, schema
from fairflare.cli.jobs import app
from fairflare.engine.messages import TASKS
from fairflare.errors import RunError
from fairflare.flare.names import ALLOWED
from fairflare.jobs import TASKS as JOB_TASKS
from fairflare.jobs import job_files, write_job
from fairflare.plan import read_plan

ROOT = Path(__file__).resolve().parents[3]
JOBS = ROOT / "jobs"


def test_the_committed_jobs_are_the_shipped_ones():
    assert {job.name for job in JOBS.iterdir()} == set(presets.JOBS)


@pytest.mark.parametrize("name", presets.JOBS)
def test_a_committed_job_is_what_this_version_writes(name):
    job = JOBS / name
    wanted = job_files(presets.shipped(name))
    assert {str(file.relative_to(job)) for file in job.rglob("*") if file.is_file()} == set(wanted)
    for path, text in wanted.items():
        assert (job / path).read_text(encoding="utf-8") == text, path
    assert read_plan(job) == presets.shipped(name)
    assert not any(file.suffix == ".py" or file.name == "custom" for file in job.rglob("*"))


@pytest.mark.parametrize("config", ["config_fed_server.json", "config_fed_client.json"])
def test_flare_configurations_are_the_same_bytes_in_every_job_and_name_only_our_classes(config):
    texts = {(JOBS / name / "app" / "config" / config).read_bytes() for name in presets.JOBS}
    assert len(texts) == 1

    def paths(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["path"]} if isinstance(value.get("path"), str) else set()
            return own.union(*(paths(item) for item in value.values())) if value else own
        return set().union(*(paths(item) for item in value)) if isinstance(value, list) and value else set()

    found = paths(json.loads(texts.pop()))
    assert found
    assert found <= set(ALLOWED)


def test_the_allow_list_of_the_poc_names_our_classes_one_by_one():
    resources = json.loads((ROOT / "poc" / "workspace" / "local" / "resources.json").read_text(encoding="utf-8"))
    assert resources["class_allow_list"] == list(ALLOWED)
    assert all("*" not in name and not name.endswith(".") for name in ALLOWED)


def test_the_tasks_of_the_configuration_are_the_engines():
    assert sorted(JOB_TASKS) == sorted(TASKS)


FEDAVG = presets.shipped("heart_fedavg")


def forgotten_code(job: Path) -> None:
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "x.py").write_text("import os\n", encoding="utf-8")


def empty_folder(job: Path) -> None:
    (job / "app" / "custom").mkdir()


def another_file(job: Path) -> None:
    (job / "thesis.txt").touch()


def link(job: Path) -> None:
    (job / "app" / "config" / "plan.json").rename(job.parent / "plan.json")
    (job / "app" / "config" / "plan.json").symlink_to(job.parent / "plan.json")


def folder_for_a_file(job: Path) -> None:
    (job / "meta.json").unlink()
    (job / "meta.json").mkdir()


def file_for_a_folder(job: Path) -> None:
    for file in (job / "app" / "config").iterdir():
        file.unlink()
    (job / "app" / "config").rmdir()
    (job / "app" / "config").touch()


@pytest.mark.parametrize(
    "spoil", [forgotten_code, empty_folder, another_file, link, folder_for_a_file, file_for_a_folder]
)
def test_a_job_is_never_written_among_other_files(tmp_path: Path, spoil) -> None:
    job = write_job(FEDAVG, tmp_path)
    assert write_job(FEDAVG, tmp_path) == job
    spoil(job)
    before = sorted(job.rglob("*"))
    for overwrite in (True, False):
        with pytest.raises(RunError) as caught:
            write_job(FEDAVG, tmp_path, overwrite=overwrite)
        assert caught.value.code == "FF-RUN-JOB-FILES"
    assert sorted(job.rglob("*")) == before


def make(plan: Path, to: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["make", str(plan), "--to", str(to), *words])


def test_make_replaces_a_job_of_another_plan_only_if_asked(tmp_path: Path) -> None:
    job = write_job(FEDAVG, tmp_path / "jobs")
    (job / "meta.json").write_text("{}", encoding="utf-8")
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    same.write_text(schema.pretty(FEDAVG), encoding="utf-8")
    other.write_text(schema.pretty(FEDAVG).replace('"rounds": 20', '"rounds": 21'), encoding="utf-8")
    assert make(same, tmp_path / "jobs").exit_code == 0  # the same plan: its files are repaired
    assert (job / "meta.json").read_text(encoding="utf-8") == job_files(FEDAVG)["meta.json"]
    refused = make(other, tmp_path / "jobs")
    assert isinstance(refused.exception, RunError)
    assert refused.exception.code == "FF-RUN-JOB-EXISTS"
    assert read_plan(job) == FEDAVG
    assert make(other, tmp_path / "jobs", "--overwrite").exit_code == 0
    assert read_plan(job) == read_plan(other)


def test_make_does_not_replace_a_job_that_has_no_plan_of_ours(tmp_path: Path) -> None:
    job = write_job(FEDAVG, tmp_path)
    (job / "app" / "config" / "plan.json").unlink()
    with pytest.raises(RunError, match="FF-RUN-JOB-EXISTS"):
        write_job(FEDAVG, tmp_path, overwrite=False)
    assert write_job(FEDAVG, tmp_path) == job
