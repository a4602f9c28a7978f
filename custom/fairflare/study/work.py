# SPDX-License-Identifier: Apache-2.0
"""One run of a study, in a worker's process: trained, verified, judged and written down, or its failure kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fairflare.data.manifest import SiteData
from fairflare.engine.alone import alone_plan, pooled, train_alone
from fairflare.engine.at_site import ModelFile
from fairflare.engine.loading import load_apart
from fairflare.engine.local import run_local
from fairflare.engine.store import read_model
from fairflare.engine.verify import verify_run
from fairflare.errors import FairFlareError, StudyError
from fairflare.models import frozen_tensors
from fairflare.plan import Plan
from fairflare.record import RunRecord, write_atomically
from fairflare.study.hospitals import data_sha256
from fairflare.study.judge import Judged, judge, same_as_record
from fairflare.study.kept import PLAN, UNEXPECTED, Failure, Outcome, Result, failure, keep, read_outcome
from fairflare.study.pool import Job

#: Folder of each site's run where sites train alone, and the name of the one site that has all records.
ALONE, POOLED = "alone", "pooled"


class _Stopped(Exception):
    """A run that ended early, with the code of its reason."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code)
        self.code, self.text = code, text


#: The data of one task: the next run of this worker most likely wants them again.
_loaded: dict[str, tuple[dict[str, SiteData], str]] = {}


def perform(job: Job) -> tuple[Outcome, bool]:
    """Do a run, or find it done; whether it was there already.

    A run that is there counts if it is of the same plan and its record verifies. What is left of any other is removed.
    A failure that is not one of ours (a full disk, say) is tried again.
    """
    found = _done(job)
    if found is not None:
        return found, True
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    write_atomically(job.folder / PLAN, job.run.text.encode())
    outcome = _tried(job)
    for left in (job.folder, *job.folder.glob(f"{ALONE}/*")) if isinstance(outcome, Result) else ():
        # Copies, at every site, of the models and of the record that lie in the folder itself.
        shutil.rmtree(left / "sites", ignore_errors=True)
    keep(job.folder, outcome)
    return outcome, False


def _done(job: Job) -> Outcome | None:
    found = read_outcome(job.folder)
    if found is None or found.plan_sha256 != job.run.sha256:
        return None
    if isinstance(found, Failure):
        return None if found.code == UNEXPECTED else found
    try:
        plan = job.run.plan
        records = {name: _verified(job, plan, folder) for name, folder in _records(job).items()}
    except FairFlareError:
        return None
    same = {name: record.rounds[-1].model_sha256 for name, record in records.items()} == found.model_sha256
    starts = {record.initial_model_sha256 for record in records.values()}
    return found if same and starts == {found.initial_model_sha256} else None


def _records(job: Job) -> dict[str, Path]:
    """Name of each model -> folder of the record of its training."""
    if job.run.baseline == "local_only":
        return {site: job.folder / ALONE / site for site in sorted(job.catalog.site_names)}
    return {POOLED if job.run.baseline == "pooled" else "all": job.folder}


def _verified(job: Job, plan: Plan, folder: Path) -> RunRecord:
    """Record of a run that verifies and is of the right plan."""
    record = verify_run(folder, job.weights)
    wanted = plan if job.run.baseline == "none" else alone_plan(plan)
    if record.plan_sha256 != wanted.sha256:
        raise StudyError(
            "FF-STUDY-RUN", got="the record of another plan", expected="that of the run's plan", next_step="run it anew"
        )
    return record


def _tried(job: Job) -> Outcome:
    started = time.monotonic()
    if job.run.refusal is not None:
        return failure(job.run.sha256, *job.run.refusal, 0.0)
    try:
        return _result(job, started)
    except _Stopped as stop:
        code, text = stop.code, stop.text
    except FairFlareError as problem:
        code, text = problem.code, f"got {problem.got}; expected {problem.expected}"
    except Exception as problem:  # any failure is kept and shown; one run must not end the study
        code, text = UNEXPECTED, type(problem).__name__
    return failure(job.run.sha256, code, text, time.monotonic() - started)


def _result(job: Job, started: float) -> Result:
    plan = job.run.plan
    data, sha256 = _data(job, plan)
    train = {"none": _federated, "local_only": _local_only, "pooled": _pooled}[job.run.baseline]
    records, models = train(job, plan, data)
    judged = judge(plan, models, data)
    if job.run.baseline == "none" and not same_as_record(judged, records[0], sorted(data)):
        raise _Stopped("FF-STUDY-EVALUATION", "the run's own final evaluation counts other scores than its model gives")
    return Result(
        format="fairflare/study-run/1",
        plan_sha256=job.run.sha256,
        data_sha256=sha256,
        software=dict(sorted(records[0].software.items())),
        initial_model_sha256=_one_start(records),
        model_sha256=_model_hashes(job, models),
        sites=len(data),
        refusals=sum(_refusals(record) for record in records),
        lost_rounds=sum(len(record.lost_rounds) for record in records),
        validation_collapsed=judged["validation"].collapsed,
        test_collapsed=judged["test"].collapsed,
        validation=_values(judged["validation"]),
        test=_values(judged["test"]),
        seconds=time.monotonic() - started,
    )


def _values(judged: Judged) -> dict[str, float | None]:
    return dict(sorted(judged.values.items()))


def _one_start(records: list[RunRecord]) -> str:
    starts = {record.initial_model_sha256 for record in records}
    if len(starts) != 1:
        raise _Stopped("FF-STUDY-START", "sites that trained alone did not start from the same weights")
    return starts.pop()


def _refusals(record: RunRecord) -> int:
    found = len(record.join_refusals)
    found += sum(len(line.refusals) for line in record.rounds)
    found += sum(len(line.refusals) for line in record.lost_rounds)
    return found + (0 if record.final is None else len(record.final.refusals))


def _model_hashes(job: Job, models: Mapping[str, ModelFile]) -> dict[str, str]:
    if job.run.baseline == "local_only":
        return {site: model.model_sha256 for site, model in models.items()}
    return {name: next(iter(models.values())).model_sha256 for name in _records(job)}


# ------------------------------------------------------------------------------------------------------------- training

Trained = tuple[list[RunRecord], dict[str, ModelFile]]


def _federated(job: Job, plan: Plan, data: Mapping[str, SiteData]) -> Trained:
    record = run_local(plan, _loaders(data), job.folder, weights=job.weights)
    if record.status != "complete":
        reason = record.reason
        raise _Stopped("FF-RUN-INCOMPLETE" if reason is None else reason.code, "" if reason is None else reason.text)
    verify_run(job.folder, job.weights)
    sha256 = record.rounds[-1].model_sha256
    vector = read_model(job.folder, plan, sha256)
    frozen = frozen_tensors(plan, job.weights)
    model = ModelFile(plan, vector, "final", len(record.rounds), sha256, record_sha256="", sha256="", frozen=frozen)
    return [record], dict.fromkeys(data, model)


def _local_only(job: Job, plan: Plan, data: Mapping[str, SiteData]) -> Trained:
    records, models = [], {}
    for site, folder in _records(job).items():
        trained = train_alone(plan, _loaders({site: data[site]}), folder, weights=job.weights)
        verify_run(folder, job.weights)
        records.append(trained.record)
        models[site] = trained.final
    return records, models


def _pooled(job: Job, plan: Plan, data: Mapping[str, SiteData]) -> Trained:
    pool = pooled([data[site] for site in sorted(data)])
    trained = train_alone(plan, _loaders({POOLED: pool}), job.folder, weights=job.weights)
    verify_run(job.folder, job.weights)
    return [trained.record], dict.fromkeys(data, trained.final)


def _loaders(data: Mapping[str, SiteData]) -> dict[str, Callable[[], SiteData]]:
    return {site: partial(_same, records) for site, records in data.items()}


def _same(data: SiteData) -> SiteData:
    return data


def _data(job: Job, plan: Plan) -> tuple[dict[str, SiteData], str]:
    """Records of every site, and the hash of their manifests; kept for the next run of the same task."""
    key = repr((job.catalog, job.weights, plan.task, plan.attributes, plan.intersections, plan.start))
    if key not in _loaded:
        _loaded.clear()
        before = data_sha256(job.catalog, plan.task.data_set)
        sites = sorted(job.catalog.site_names)
        data = {
            site: load_apart(plan, job.catalog.entry(site, plan.task.data_set), job.weights) for site in sites
        }  # fmt: skip
        _loaded[key] = data, before
    return _loaded[key]
