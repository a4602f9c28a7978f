# SPDX-License-Identifier: Apache-2.0
"""Runs of a study over the cores: a process each, ended with the study however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from fairflare.errors import StudyError

if TYPE_CHECKING:
    from fairflare.policy import DataCatalog
    from fairflare.study.kept import Outcome
    from fairflare.study.runs import Run


@dataclass(frozen=True)
class Job:
    """A run, its folder, and where its data are."""

    run: Run
    folder: Path
    catalog: DataCatalog
    weights: Path | None


#: Called with the place of a finished run among the jobs, its outcome, and whether it was there already.
Finished = Callable[[int, "Outcome", bool], None]


def perform_all(jobs: Sequence[Job], workers: int, finished: Finished) -> None:
    """Do all jobs in ``workers`` processes.

    If ``finished`` raises, or an interrupt comes, the processes are ended at once: what they were doing is left half
    done, and done again when the study goes on.

    Raises
    ------
    StudyError
        ``FF-STUDY-WORKER`` if a process was ended from outside.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, max(1, len(jobs))), mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )
    try:
        futures: dict[Future[tuple[Outcome, bool]], int] = {
            pool.submit(_perform, job): place for place, job in enumerate(jobs)
        }
        for future in as_completed(futures):
            finished(futures[future], *future.result())
    except BrokenProcessPool:
        raise StudyError(
            "FF-STUDY-WORKER",
            got="a process of the study that was ended from outside",
            expected="processes that end by themselves",
            next_step="if memory ran out, set fewer workers; then give the same command again: finished runs stay",
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
            child.join()


def _perform(job: Job) -> tuple[Outcome, bool]:
    # Imported at work: torch is for the workers only.
    from fairflare.study.work import perform

    return perform(job)


def _begin() -> None:
    """Begin a worker's process: one thread, interrupts left to the study's own process, and an end with that one."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A study that is killed cannot end its workers, and they would wait for it for ever.
        wait([parent.sentinel])
        os._exit(1)
