# SPDX-License-Identifier: Apache-2.0
"""What a run keeps on the server's disk: the record, the newest model, and a line per event for whoever watches."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from fairflare.errors import RunError
from fairflare.models import build, named_arrays, to_vector, vector_sha256
from fairflare.models.vector import Vector
from fairflare.plan import Plan
from fairflare.record import (
    FILE_NAME,
    MODEL_NAME,
    PROGRESS_NAME,
    STATE_NAME,
    RunRecord,
    best_model,
    first_state,
    followed,
    read_record,
    write_atomically,
    write_record,
    write_state,
)


def model_file(folder: Path, sha256: str) -> Path:
    """Where the model with this hash lies."""
    return folder / f"{sha256[:16]}.{MODEL_NAME}"


class Store:
    """A folder with ``record.json``, the newest model, ``progress.jsonl`` and ``state.json``.

    A crash at any moment leaves a record and the model that its last complete round names: the model is written
    first, the record second, and only then is the older model removed. The best one on validation data stays as well.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self._network = build(plan)
        self._state = first_state(plan.name, time.time())
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, record: RunRecord, model: Vector | None = None, best: Vector | None = None) -> None:
        """Write the record; with ``model`` (and the ``best`` one so far), these first; then remove all others."""
        if model is None:
            write_record(self.folder, record)
            return
        kept = {self.keep(one) for one in (model, best) if one is not None}
        write_record(self.folder, record)
        for older in self.folder.glob(f"*.{MODEL_NAME}"):
            if older not in kept:
                older.unlink()

    def keep(self, model: Vector) -> Path:
        """Write a model, for a record that will name it, and return its file."""
        file = model_file(self.folder, vector_sha256(model))
        if file.exists():
            return file
        write_atomically(file, save(named_arrays(self._network, model)))
        return file

    def progress(self, event: str, **facts: object) -> None:
        """Add one line for whoever watches the run, and write where it stands; losing one is no harm."""
        now = time.time()
        self._state = followed(self._state, event, facts, now)
        write_state(self.folder / STATE_NAME, self._state)
        line = json.dumps({"event": event, "time": now, **facts})
        with (self.folder / PROGRESS_NAME).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def read_model(folder: Path, plan: Plan, sha256: str) -> Vector:
    """The model with this hash from a run's folder; raises :class:`RunError` if it is absent or another one."""
    network = build(plan)
    file = model_file(folder, sha256)
    try:
        arrays = load_file(file)
        vector = np.concatenate([arrays[name].ravel() for name in named_arrays(network, to_vector(network))])
    except Exception as problem:  # safetensors raises its own, untyped errors for broken files
        raise _no_model(f"a model file that cannot be read ({type(problem).__name__})") from None
    if vector_sha256(vector) != sha256:
        raise _no_model("a model file with another hash than the record's")
    result: Vector = vector
    return result


def read_checkpoint(folder: Path) -> tuple[RunRecord, Vector | None]:
    """Record and newest model of a run's folder (no model before the first round is complete)."""
    record = read_record(folder / FILE_NAME)
    if not record.rounds:
        return record, None
    return record, read_model(folder, record.plan, record.rounds[-1].model_sha256)


def read_best(folder: Path, record: RunRecord) -> Vector | None:
    """The best model on validation data so far of a run's folder; ``None`` if no round was complete."""
    return read_model(folder, record.plan, best_model(record)[1]) if record.rounds else None


def _no_model(got: str) -> RunError:
    return RunError(
        "FF-RUN-MODEL",
        got=got,
        expected="the model that the record's last complete round names",
        next_step="do not use this folder; start the run again",
    )
