# SPDX-License-Identifier: Apache-2.0
"""A study from its file to its tables: what is to run, running it, and making sure that it was a fair comparison."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairflare import schema
from fairflare.errors import StudyError
from fairflare.plan import Plan
from fairflare.record import write_atomically
from fairflare.study.flare import Repeat, repeated
from fairflare.study.hospitals import TaskData, task_data, verify_data, verify_same_data
from fairflare.study.kept import Outcome, Result, kept_plan_sha256
from fairflare.study.measures import measures_of
from fairflare.study.pool import Job, perform_all
from fairflare.study.results import Findings, write_results
from fairflare.study.runs import Key, Run, base_plan, expanded
from fairflare.study.spec import Study, read_study, verify_extends

STUDY, RUNS, LOCK = "study.json", "runs", ".lock"


@dataclass(frozen=True)
class Event:
    """A run that has just been finished.

    Attributes
    ----------
    run, outcome
        Which one, and how it ended.
    kept
        Whether it was there already.
    done, total
        Runs finished, and of how many.
    left
        Seconds left as they look now; ``None`` if nothing was timed yet.
    """

    run: Run
    outcome: Outcome
    kept: bool
    done: int
    total: int
    left: float | None


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Prepared:
    """A study, its tasks' plans, and its runs."""

    study: Study
    home: Path
    bases: Mapping[str, Plan]
    runs: list[Run]


def prepare(file: Path) -> Prepared:
    """Read a study file and lay out its runs; no data are looked at, and nothing is written."""
    study, home = read_study(file), file.resolve().parent
    bases = {task.name: base_plan(task, home) for task in study.tasks}
    for task in study.tasks:
        # Sites are not known yet; whatever else a task is judged by has to be in its plan.
        measures_of(task, bases[task.name], ())
    return Prepared(study, home, bases, expanded(study, dict(bases)))


def conduct(
    prepared: Prepared, out: Path, *, workers: int | None, watch: Watch, repeat: Repeat | None = None
) -> Findings:
    """Do whatever of a study is not done yet, and write its tables into ``out``.

    Parameters
    ----------
    prepared
        From :func:`prepare`.
    out
        The study's folder: new, or of the same study, which then goes on.
    workers
        Processes; the study file's number by default, or one for each core.
    watch
        Called after every run.
    repeat
        Runs a plan through NVIDIA FLARE; needed for a study that asks for it.

    Raises
    ------
    StudyError
        ``FF-STUDY-FOLDER``, ``FF-STUDY-BUSY`` and ``FF-STUDY-CHANGED`` for a folder that is not this study's to use;
        ``FF-STUDY-START`` if methods did not start from the same weights; ``FF-STUDY-DATA`` and ``FF-STUDY-SOFTWARE``
        if data or versions were changed since the study began;
        ``FF-STUDY-FLARE``, once everything is written, if FLARE gave another model than the local engine.
    """
    study = prepared.study
    _verify_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _verify_same_study(prepared, out)
        data = {one.name: task_data(one, prepared.bases[one.name], prepared.home, out) for one in study.tasks}
        verify_same_data(data, out)
        outcomes = _all_runs(prepared, data, out, workers or study.workers or _cores(), watch)
        measures = {one.name: measures_of(one, data[one.name].plan, data[one.name].sites) for one in study.tasks}
        found = Findings.of(study, prepared.runs, outcomes, measures)
        write_results(found, out)
        if study.flare and repeat is not None:
            found = found.with_flare(repeated(found, data, out, repeat))
            write_results(found, out)
            found.verify_flare()
        return found


def _cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all_runs(
    prepared: Prepared, data: Mapping[str, TaskData], out: Path, workers: int, watch: Watch
) -> dict[Key, Outcome]:
    runs = prepared.runs
    jobs = [
        Job(run, out / RUNS / run.key.folder, data[run.key.task].catalog, data[run.key.task].weights) for run in runs
    ]
    outcomes: dict[Key, Outcome] = {}
    starts: dict[tuple[str, int], str] = {}
    software: dict[str, str] = {}
    clock = _Clock(runs, min(workers, len(runs)))

    def finished(place: int, outcome: Outcome, kept: bool) -> None:
        run = runs[place]
        outcomes[run.key] = outcome
        if isinstance(outcome, Result):
            verify_data(run.key.task, data[run.key.task].sha256, outcome.data_sha256)
            _verify_start(run.key, starts, outcome.initial_model_sha256)
            _verify_software(software, outcome.software)
        left = clock.left(run, None if kept else outcome.seconds)
        watch(Event(run, outcome, kept, len(outcomes), len(runs), left))

    perform_all(jobs, workers, finished)
    return {run.key: outcomes[run.key] for run in runs}


def _verify_start(key: Key, starts: dict[tuple[str, int], str], found: str) -> None:
    if starts.setdefault((key.task, key.seed), found) != found:
        raise StudyError(
            "FF-STUDY-START",
            got=f"runs of the task '{key.task}' with seed {key.seed} that started from different weights",
            expected="the same first model for every method",
            next_step=f"do not compare these methods; look at the records of '{key.method}'",
        )


def _verify_software(known: dict[str, str], found: Mapping[str, str]) -> None:
    for name, version in found.items():
        if known.setdefault(name, version) != version:
            raise StudyError(
                "FF-STUDY-SOFTWARE",
                got=f"runs that were made with different versions of {name}: {known[name]} and {version}",
                expected="one version for all runs of a study",
                next_step="go on with the version that the study began with, or begin it anew in another folder",
            )


class _Clock:
    """Guesses the time left: each run takes as long as others of its task and method did on average."""

    def __init__(self, runs: Sequence[Run], workers: int) -> None:
        self._open = {run.key: run for run in runs}
        self._workers = workers
        self._took: dict[tuple[str, ...], list[float]] = {}

    def left(self, run: Run, seconds: float | None) -> float | None:
        """Seconds left after ``run``, which took so many; ``None`` for one that was there already."""
        self._open.pop(run.key, None)
        if seconds is not None:
            for key in self._keys(run):
                self._took.setdefault(key, []).append(seconds)
        if () not in self._took:
            return None
        return sum(self._guess(one) for one in self._open.values()) / self._workers

    def _guess(self, run: Run) -> float:
        took = next(self._took[key] for key in self._keys(run) if key in self._took)
        return sum(took) / len(took)

    @staticmethod
    def _keys(run: Run) -> tuple[tuple[str, ...], ...]:
        return (run.key.task, run.key.protection, run.key.method), (run.key.task,), ()


# -------------------------------------------------------------------------------------------------------------- folder


def _verify_folder(out: Path) -> None:
    if out.is_dir() and not (out / STUDY).exists() and any(one.name != LOCK for one in out.iterdir()):
        raise StudyError(
            "FF-STUDY-FOLDER",
            got="a folder that holds something else than a study",
            expected="a new folder, or that of this study",
            next_step="choose another folder with --to",
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with the process, however that ends."""
    with (out / LOCK).open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                "FF-STUDY-BUSY",
                got="a folder that another process is working in",
                expected="one process for each study",
                next_step="wait for it, or end it; then give the command again",
            ) from None
        yield


def _verify_same_study(prepared: Prepared, out: Path) -> None:
    """Refuse another study in this folder, also one whose plans were changed; then note the study."""
    file = out / STUDY
    if file.exists():
        verify_extends(read_study(file), prepared.study)
    for run in prepared.runs:
        there = kept_plan_sha256(out / RUNS / run.key.folder)
        if there not in (None, run.sha256):
            raise StudyError(
                "FF-STUDY-CHANGED",
                got=f"a run that is there with another plan: {run.key.words}",
                expected="the plans that the study began with",
                next_step="put the task's plan back as it was, or choose another folder with --to",
            )
    write_atomically(file, schema.pretty(prepared.study).encode())
