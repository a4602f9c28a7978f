# SPDX-License-Identifier: Apache-2.0
"""What jobs left in a kit, and how it goes again when nobody needs it any more; imports nothing of FLARE.

A job's folder holds logs, the models that this site got and ``releases.jsonl``: all that left the site. The last one is
evidence, and is kept unless somebody asks for more. Nothing of the store is touched: what was revealed is remembered
for ever.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from fairflare.jobs.meta import is_job_id

#: What stays of a job's folder, as evidence.
EVIDENCE: Final = Path("fairflare") / "releases.jsonl"


@dataclass(frozen=True)
class LeftJob:
    """What a job left in a kit.

    Attributes
    ----------
    folder
        Its folder, named for the job.
    last
        When something in it was written last.
    size
        Bytes that would be removed.
    """

    folder: Path
    last: datetime
    size: int


def left_jobs(kit: Path, before: datetime, *, evidence: bool = False) -> list[LeftJob]:
    """The jobs in whose folders nothing was written since ``before``, and of which something can be removed.

    Parameters
    ----------
    kit
        The folder that holds ``startup/`` and ``local/``.
    before
        A moment, with a time zone. A job that runs writes all the time.
    evidence
        Whether what left the site is to go as well.
    """
    found = []
    for folder in sorted(kit.iterdir()):
        if not is_job_id(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        files = [one for one in folder.rglob("*") if one.is_file() or one.is_symlink()]
        last = max((one.lstat().st_mtime for one in files), default=folder.lstat().st_mtime)
        gone = [one for one in files if evidence or one != folder / EVIDENCE]
        moment = datetime.fromtimestamp(last, tz=timezone.utc)
        if moment < before and (gone or evidence):
            found.append(LeftJob(folder, moment, sum(one.lstat().st_size for one in gone)))
    return found


def remove_jobs(jobs: list[LeftJob], *, evidence: bool = False) -> Iterator[LeftJob]:
    """Remove what jobs left, one after the other; yields each that is gone. Raises :class:`OSError`."""
    for job in jobs:
        kept = job.folder / EVIDENCE
        if evidence or not kept.is_file():
            shutil.rmtree(job.folder)
        else:
            for one in job.folder.iterdir():
                _remove(one, kept)
        yield job


def _remove(path: Path, kept: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if path not in kept.parents:
            shutil.rmtree(path)
            return
        for one in path.iterdir():
            _remove(one, kept)
    elif path != kept:
        path.unlink()
