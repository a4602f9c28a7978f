# SPDX-License-Identifier: Apache-2.0
"""A small study of synthetic hospitals, as JSON that tests change, and results without running anything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairflare import presets
from fairflare.study.conduct import Event, conduct, prepare
from fairflare.study.kept import Failure, Result, failure
from fairflare.study.results import Findings

Json = dict[str, Any]
SEX = {"attribute": "sex", "criterion": "equal_opportunity"}
HOSPITAL = {"attribute": "hospital", "criterion": "auc"}
FEDAVG: Json = {
    "name": "fedavg", "baseline": "none", "method": {"name": "fedavg"}, "changes": {},
    "configurations": [
        {"label": "slow", "changes": {"training.optimizer.lr": 0.01}},
        {"label": "fast", "changes": {}},
    ],
}  # fmt: skip
FLEXFAIR: Json = {
    "name": "flexfair", "baseline": "none", "changes": {},
    "method": presets.flexfair(presets.penalty("sex", "equal_opportunity", 1.0), **presets.BOUNDS),
    "configurations": [
        {"label": "s1", "changes": {}},
        {"label": "s8", "changes": {"method.penalties.0.strength": 8.0}},
    ],
}  # fmt: skip


def baseline(kind: str) -> Json:
    return {**FEDAVG, "name": kind, "baseline": kind}


def task(**changes: Any) -> Json:
    base: Json = {
        "name": "heart", "plan": "heart_fedavg", "changes": {"training.rounds": 2, "model.hidden": [4]},
        "catalog": None, "records": 60, "weights": None,
        "selection": {"metric": "auc", "gaps": [SEX], "quality_loss_allowed": 0.02},
        "report": {"metric": "auc", "gaps": [SEX, HOSPITAL]},
    }  # fmt: skip
    return {**base, **changes}


def study(**changes: Any) -> Json:
    base: Json = {
        "format": "fairflare/study/1", "name": "small", "tasks": [task()], "protections": ["none"],
        "methods": [FEDAVG, FLEXFAIR], "unequal_grids": False, "seeds": [0, 1], "flare": False, "workers": 2,
    }  # fmt: skip
    return {**base, **changes}


def written(folder: Path, data: Json, name: str = "study.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def run(file: Path, out: Path, workers: int | None = None) -> tuple[Findings, list[Event]]:
    events: list[Event] = []
    return conduct(prepare(file), out, workers=workers, watch=events.append), events


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def timeless(text: str) -> str:
    """A results.csv without its last column."""
    return "\n".join(line.rpartition(",")[0] for line in text.splitlines())


def result(validation: Mapping[str, float | None], test: Mapping[str, float | None], **changes: Any) -> Result:
    values: Json = {
        "format": "fairflare/study-run/1", "plan_sha256": "a" * 64, "data_sha256": "b" * 64, "software": {},
        "initial_model_sha256": "c" * 64, "model_sha256": {"all": "d" * 64}, "sites": 4, "refusals": 0,
        "lost_rounds": 0, "validation_collapsed": 0.0, "test_collapsed": 0.0, "validation": dict(validation),
        "test": dict(test), "seconds": 1.0,
    }  # fmt: skip
    return Result.model_validate({**values, **changes})


def failed(code: str = "FF-ROUND-DIVERGED") -> Failure:
    return failure("a" * 64, code, "a training that diverged", 1.0)
