# SPDX-License-Identifier: Apache-2.0
"""One seed of each method's chosen configuration again, through NVIDIA FLARE: its model must have the same hash.

With differential privacy it must have another one, since noise is never the same twice; that it verifies must do.

This module does not know FLARE: whoever calls hands in what runs a plan there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fairflare import schema
from fairflare.errors import FairFlareError, StudyError
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import Sha256, write_atomically
from fairflare.schema import StrictModel
from fairflare.study.hospitals import TaskData
from fairflare.study.kept import PLAN, Result
from fairflare.study.results import NO_NOISE, NOISY, OTHER, SAME, Findings, Place
from fairflare.study.runs import NO_FEDERATION, Run

FOLDER, CHECK = "flare", "check.json"


class Repeat(Protocol):
    """Runs a plan through FLARE in a folder, verifies the run, and gives the hash of its model."""

    def __call__(self, plan: Plan, folder: Path, catalog: DataCatalog, weights: Path | None) -> str:
        """Raises :class:`FairFlareError` if the run does not verify."""


class Check(StrictModel):
    """What FLARE gave for a plan."""

    format: str
    plan_sha256: Sha256
    model_sha256: Sha256
    local_model_sha256: Sha256


def repeated(found: Findings, data: Mapping[str, TaskData], out: Path, repeat: Repeat) -> dict[Place, str]:
    """Whether FLARE gives the same model, for each method that federates and has a chosen configuration."""
    said: dict[Place, str] = {}
    for place in found.chosen:
        run = None if place[1] == NO_FEDERATION else _run_of(found, place)
        if run is not None:
            said[place] = _repeated(found, run, data[place[0]], out / FOLDER / Path(*place), repeat)
    return said


def _run_of(found: Findings, place: Place) -> Run | None:
    """The first seed of the chosen configuration that has results."""
    for run in found.runs:
        key = run.key
        of_place = (key.task, key.protection, key.method) == place
        if of_place and found.is_chosen(key) and isinstance(found.outcomes[key], Result):
            return run
    return None


def _repeated(found: Findings, run: Run, data: TaskData, folder: Path, repeat: Repeat) -> str:
    outcome = found.outcomes[run.key]
    expected = outcome.single_model if isinstance(outcome, Result) else None
    if expected is None:
        return OTHER
    check = _read(folder)
    if check is None or (check.plan_sha256, check.local_model_sha256) != (run.sha256, expected):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(folder / PLAN, run.text.encode())
        try:
            model = repeat(run.plan, folder, data.catalog, data.weights)
        except FairFlareError as problem:
            return problem.code
        check = Check(
            format="fairflare/study-flare/1", plan_sha256=run.sha256, model_sha256=model, local_model_sha256=expected
        )
        write_atomically(folder / CHECK, schema.pretty(check).encode())
    same = check.model_sha256 == expected
    if run.private:
        return NO_NOISE if same else NOISY
    return SAME if same else OTHER


def _read(folder: Path) -> Check | None:
    try:
        return schema.read(Check, folder / CHECK, error=StudyError, what="repetition through FLARE")
    except StudyError:
        return None
