# SPDX-License-Identifier: Apache-2.0
"""A record on disk: written atomically, read strictly, found in a run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fairflare import schema
from fairflare.errors import RunError
from fairflare.record.run import RunRecord

FILE_NAME = "record.json"
MODEL_NAME = "model.safetensors"
PROGRESS_NAME = "progress.jsonl"
_SESSION = "session-"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at ``path``; a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record.json`` into ``folder``."""
    text = json.dumps(record.model_dump(mode="json"), allow_nan=False, separators=(",", ": "), indent=None)
    write_atomically(folder / FILE_NAME, text.encode() + b"\n")


def read_record(path: Path) -> RunRecord:
    """Read a record from its file or from the folder that holds it; raises :class:`RunError`."""
    file = path / FILE_NAME if path.is_dir() else path
    return schema.read(RunRecord, file, error=RunError, what="record")


def session_number(name: str) -> int:
    """N of a session's folder ``session-N``; 0 for any other name."""
    text = name.removeprefix(_SESSION)
    return int(text) if name.startswith(_SESSION) and text.isdecimal() else 0


def find_record(run: Path) -> Path:
    """The record of a run: ``run`` itself, the one in it, or one below it.

    Of several, the one written last names the run; where a run has several sessions (``session-N``), the one with the
    largest N is taken, since copying a folder changes its files' times.
    """
    if run.is_file():
        return run
    if (run / FILE_NAME).is_file():
        return run / FILE_NAME
    found = sorted(run.rglob(FILE_NAME), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    if not found:
        raise RunError(
            "FF-RUN-NO-RECORD",
            got="a folder without a record.json, in it or below",
            expected="a run's folder, a FLARE workspace or a record",
            next_step="name the folder that 'fairflare run' wrote; if it is this one, the job ended before its first "
            "phase: read the server's log",
        )
    place, _ = _place(run, found[-1])
    return max((file for file in found if _place(run, file)[0] == place), key=lambda file: _place(run, file)[1])


def _place(run: Path, file: Path) -> tuple[tuple[str, ...], int]:
    """Where a record lies below ``run``, with its session's number taken out, and that number."""
    parts = file.relative_to(run).parts
    numbers = [session_number(part) for part in parts]
    return tuple(_SESSION if number else part for part, number in zip(parts, numbers, strict=True)), max(numbers)
