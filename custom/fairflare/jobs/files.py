# SPDX-License-Identifier: Apache-2.0
"""A plan as a FLARE job folder: the plan, and two FLARE configurations that are the same bytes in every job.

The configurations name our classes and nothing else; a job carries no code. (A folder ``app/custom`` would switch
FLARE's class allow-list off at every site.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairflare import schema
from fairflare.errors import PlanError, RunError
from fairflare.plan import Plan, read_plan

CONTROLLER = "fairflare.flare.controller.FairFlareController"
AGGREGATOR = "fairflare.flare.aggregator.FlexFairAggregator"
EXECUTOR = "fairflare.flare.executor.FairFlareExecutor"
TASKS = [
    "join", "session", "prepare", "keys", "share", "measure", "compare", "step", "train", "train_alone", "confirm",
    "unmask", "evaluate", "finish",
]  # fmt: skip

SERVER_CONFIG: dict[str, Any] = {
    "format_version": 2,
    # How often clients ask for a task: FLARE's default of 2 s would be paid in every phase of every round.
    "server": {"task_request_interval": 0.05},
    # A lost site is noticed after these many seconds without a heartbeat, rather than after 90.
    "dead_client_grace_period": 15.0,
    "dead_client_check_lead_time": 5.0,
    "task_data_filters": [],
    "task_result_filters": [],
    "components": [{"id": "aggregator", "path": AGGREGATOR, "args": {}}],
    "workflows": [{"id": "fairflare", "path": CONTROLLER, "args": {"aggregator_id": "aggregator"}}],
}
CLIENT_CONFIG: dict[str, Any] = {
    "format_version": 2,
    "executors": [{"tasks": TASKS, "executor": {"path": EXECUTOR, "args": {}}}],
    "task_data_filters": [],
    "task_result_filters": [],
    "components": [],
}


#: What FLARE writes into each folder of a job, in place, whenever it is submitted: signatures, and who signed.
SIGNATURES = (".__nvfl_sig.json", ".__nvfl_submitter.crt")


def job_meta(plan: Plan | None) -> dict[str, Any]:
    """Meta data of the plan's job; without a plan, ``None`` stands for what depends on it."""
    return {
        "name": None if plan is None else plan.name,
        "resource_spec": {},
        "min_clients": None if plan is None else plan.federation.min_sites,
        "deploy_map": {"app": ["@ALL"]},
    }


def job_files(plan: Plan) -> dict[str, str]:
    """Relative path -> text of every file of the plan's job."""
    return {
        "meta.json": config_text(job_meta(plan)),
        "app/config/plan.json": schema.pretty(plan),
        "app/config/config_fed_server.json": config_text(SERVER_CONFIG),
        "app/config/config_fed_client.json": config_text(CLIENT_CONFIG),
    }


def write_job(plan: Plan, folder: Path, *, overwrite: bool = True) -> Path:
    """Write the plan's job below ``folder`` (as ``folder/<plan's name>``) and return its path.

    Parameters
    ----------
    plan
        What the job runs.
    folder
        Gets one folder per job; made if it is not there.
    overwrite
        Whether a job that is there already may be replaced although its plan is another one.

    Raises
    ------
    RunError
        ``FF-RUN-JOB-FILES`` if the job's folder holds anything that no job of ours has: a forgotten ``app/custom``
        would go along and switch the allow-list off. ``FF-RUN-JOB-EXISTS`` without ``overwrite``.
    """
    job = folder / plan.name
    files = job_files(plan)
    _verify_own(job, files)
    if not overwrite and any(job.glob("*")) and not _is_job_of(plan, job):
        raise RunError(
            "FF-RUN-JOB-EXISTS",
            got=f"a job '{plan.name}' that is there already, with another plan",
            expected="a new name, or the same plan again",
            next_step="rename the plan, choose another folder, or add --overwrite",
        )
    for signature in (found for name in SIGNATURES for found in job.rglob(name)):
        signature.unlink()  # of the files as they were; FLARE signs anew at the next submission
    for name, text in files.items():
        file = job / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return job


def _verify_own(job: Path, files: Mapping[str, str]) -> None:
    """Refuse what no job of ours has; a link could lead anywhere, so it is refused as well."""
    own = {job / name for name in files}
    folders = {parent for file in own for parent in file.parents}
    own |= {folder / name for folder in folders for name in SIGNATURES}
    odd = [path for path in job.rglob("*") if path.is_symlink() or path not in (folders if path.is_dir() else own)]
    if odd:
        raise RunError(
            "FF-RUN-JOB-FILES",
            got=f"a folder '{job.name}' that holds {len(odd)} other files or folders",
            expected=f"a new or empty folder, or one with {', '.join(files)} and nothing else: a job carries no code",
            next_step="move the other files away, or choose another folder",
        )


def _is_job_of(plan: Plan, job: Path) -> bool:
    try:
        return read_plan(job) == plan
    except PlanError:
        return False


def config_text(data: dict[str, Any]) -> str:
    """Text of a FLARE configuration, or of meta data, as every job of ours has it."""
    return json.dumps(data, indent=2) + "\n"
