# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder for the study: its results, or its failure; read again when a study goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeVar

from fairflare import schema
from fairflare.errors import FairFlareError, StudyError
from fairflare.record import Sha256, write_atomically
from fairflare.schema import StrictModel

PLAN, RESULT, FAILURE = "plan.json", "evaluation.json", "failure.json"
#: Code of a failure that is none of ours: such a run is tried again when the study goes on.
UNEXPECTED = "FF-STUDY-UNEXPECTED"
#: Value name -> value; ``None`` is "not estimable".
Values = dict[str, float | None]
Split = Literal["validation", "test"]


class Result(StrictModel):
    """Results of a run that is complete and verified.

    Attributes
    ----------
    plan_sha256, data_sha256
        What was run, on which manifests.
    software
        Versions that the result depends on.
    initial_model_sha256
        Of the first model.
    model_sha256
        Of the last one; of each site, where each trained alone.
    sites
        How many sites the training was of.
    refusals, lost_rounds
        Answers that were refused or missing, and rounds without a model: such a run is not what the plan meant.
    validation_collapsed, test_collapsed
        Share of its models (one, or one for each site) that say the same of everything.
    validation, test
        Every number, by name.
    seconds
        Wall clock, of training and evaluation.
    """

    format: Literal["fairflare/study-run/1"]
    plan_sha256: Sha256
    data_sha256: Sha256
    software: dict[str, str]
    initial_model_sha256: Sha256
    model_sha256: dict[str, Sha256]
    sites: int
    refusals: int
    lost_rounds: int
    validation_collapsed: float
    test_collapsed: float
    validation: Values
    test: Values
    seconds: float

    @property
    def single_model(self) -> str | None:
        """Hash of the last model, if there is one for all sites."""
        return next(iter(self.model_sha256.values())) if len(self.model_sha256) == 1 else None


class Failure(StrictModel):
    """Why a run has no results."""

    format: Literal["fairflare/study-failure/1"]
    plan_sha256: Sha256
    code: str
    text: str
    seconds: float


Outcome = Result | Failure
_Kind = TypeVar("_Kind", Result, Failure)


def failure(plan_sha256: str, code: str, text: str, seconds: float) -> Failure:
    """A failure as it is kept."""
    return Failure(
        format="fairflare/study-failure/1", plan_sha256=plan_sha256, code=code, text=text, seconds=seconds
    )  # fmt: skip


def keep(folder: Path, outcome: Outcome) -> None:
    """Write an outcome; a crash leaves a whole file or none."""
    name = RESULT if isinstance(outcome, Result) else FAILURE
    write_atomically(folder / name, schema.pretty(outcome).encode())


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a run's folder, unless there is none, or none that can be read."""
    return _read(Result, folder / RESULT) or _read(Failure, folder / FAILURE)


def _read(kind: type[_Kind], file: Path) -> _Kind | None:
    try:
        return schema.read(kind, file, error=StudyError, what="run of a study")
    except FairFlareError:
        return None


def kept_plan_sha256(folder: Path) -> str | None:
    """Hash of the plan whose outcome a folder holds; ``None`` where there is none."""
    found = read_outcome(folder)
    return None if found is None else found.plan_sha256


def write_json(path: Path, data: object) -> None:
    """Write a file for people and programs, whole or not at all."""
    write_atomically(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())
