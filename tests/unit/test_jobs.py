# SPDX-License-Identifier: Apache-2.0
"""The committed jobs are what the package writes; none carries code; all configurations are the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.messages import TASKS
from fairflare.flare.names import ALLOWED
from fairflare.jobs import TASKS as JOB_TASKS
from fairflare.jobs import job_files
from fairflare.plan import read_plan

ROOT = Path(__file__).resolve().parents[2]
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
    assert tuple(JOB_TASKS) == TASKS
