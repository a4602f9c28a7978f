# SPDX-License-Identifier: Apache-2.0
"""Which run a job goes on with, when the server ended in the middle of it: a note in the server's store, by job.

Imports nothing of FLARE. What may be gone on with is decided here, before a hospital is asked: a run that is not
complete, whose final evaluation was not asked for yet, and that has not ended too often.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from fairflare import schema
from fairflare.errors import FairFlareError, RunError, ServerError
from fairflare.flare.provision_files import STORE
from fairflare.jobs.meta import is_job_id
from fairflare.record import RunRecord, read_record
from fairflare.schema import StrictModel

FOLDER: Final = "continue"
#: Where a run's files are in its job's run folder.
RUN: Final = "fairflare"
#: In the store: runs that were unpacked to be gone on with.
RECORDS: Final = "records"
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: What a job that goes on with another one takes over of its meta data; FLARE's store adds the rest.
_TAKEN: Final = (
    "name", "job_folder_name", "deploy_map", "resource_spec", "min_clients", "data_storage_format", "study",
    "submitter_name", "submitter_org", "submitter_role",
)  # fmt: skip


class Continuation(StrictModel):
    """The note: the job whose run is gone on with."""

    format: Literal["fairflare/continue/1"]
    job: str


def write_continuation(kit: Path, new: str, old: str) -> None:
    """Note that the job ``new`` goes on with the run of ``old``."""
    folder = kit / STORE / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = Continuation(format="fairflare/continue/1", job=old)
    (folder / f"{new}.json").write_text(schema.pretty(note), encoding="utf-8")


def read_continuation(kit: Path, job: str) -> Path | None:
    """Folder of the run that a job goes on with, ``None`` for a run of its own; raises :class:`ServerError`."""
    file = kit / STORE / FOLDER / f"{job}.json"
    if not file.exists():
        return None
    old = schema.read(Continuation, file, error=ServerError, what="note of the run to go on with").job
    if not is_job_id(old):  # it becomes a folder's name
        raise ServerError(
            "FF-SERVER-CONTINUE", got="a note with no job's id", expected="an id of FLARE's",
            next_step="remove the note from store/continue, and hand the job in again",
        )  # fmt: skip
    return kit / old / RUN


def resumable(kit: Path, job: str, most: int) -> RunRecord | None:
    """The record of a job whose run can be gone on with, ``None`` if it cannot; ``most``: sessions after the first."""
    try:
        record = read_record(kit / job / RUN)
    except FairFlareError:  # it never began, or its record cannot be believed
        return None
    evaluated = record.plan.protection.masked and record.begun > record.plan.training.rounds
    if record.status == "complete" or evaluated or len(record.sessions) > most:
        return None
    return record


def taken_meta(meta: Mapping[str, Any], old: str) -> dict[str, Any]:
    """Meta data of a job that goes on with ``old``: the same job of the same person, whose signature is in it."""
    return {**{key: meta[key] for key in _TAKEN if key in meta}, "cloned_from": old}


def kept_run(kit: Path, job: str) -> Path:
    """Folder of the run of a job that is over: its own, or what FLARE packed of it, unpacked in the store.

    Raises
    ------
    ServerError
        ``FF-SERVER-JOB``: there is no such job, or nothing of its run.
    """
    own, archive = kit / job / RUN, kit / STORE / "jobs" / job / "workspace"
    if not is_job_id(job):
        raise _no_run("no job's id")
    if own.is_dir():
        return own
    target = kit / STORE / RECORDS / job
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            head, _, name = info.filename.partition("/")
            if head == RUN and _FILE.fullmatch(name):
                (target / name).write_bytes(packed.read(info))
    if not any(target.iterdir()):
        target.rmdir()
        raise _no_run("a job without anything of a run")
    return target


def _no_run(got: str) -> ServerError:
    return ServerError(
        "FF-SERVER-JOB", got=got, expected="the id of a job that ran at this server",
        next_step="'fairflare server health' lists the jobs of this server with their ids",
    )  # fmt: skip


def run_to_go_on_with(kit: Path, job: str, asked: Path | None) -> Path | None:
    """Folder of the run that a job goes on with: the one noted for it, or the one that the operator ``asked`` for."""
    noted = read_continuation(kit, job)
    if noted is not None and not noted.is_dir():
        raise RunError(
            "FF-RUN-NO-RECORD", got="a note of a run that is not there any more", expected="its folder in the kit",
            next_step="hand the job in again under another name",
        )  # fmt: skip
    return asked if noted is None else noted
