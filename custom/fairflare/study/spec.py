# SPDX-License-Identifier: Apache-2.0
"""The study file: everything that is compared, and the rule by which configurations are chosen, written down first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import StudyError
from fairflare.schema import StrictModel, rule

FORMAT = "fairflare/study/1"

#: Names of tasks, methods and configurations become folders.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]{0,63}$")]
#: A place in a plan, such as ``training.optimizer.lr`` or ``method.penalties.0.strength``.
Dotted = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}(\.[a-z0-9_]{1,64}){0,15}$")]
Changes = dict[Dotted, Any]
Metric = Literal["auc", "balanced_accuracy", "accuracy", "dice"]
Criterion = Literal[
    "demographic_parity", "equal_opportunity", "equalized_odds", "equal_accuracy", "auc", "balanced_accuracy",
    "demographic_parity_to_overall", "equal_opportunity_to_overall", "equal_accuracy_to_overall",
]  # fmt: skip
ProtectionName = Literal["masked", "none"]
Baseline = Literal["none", "local_only", "pooled"]


class Gap(StrictModel):
    """A gap between the groups of an attribute, or of an intersection, or between hospitals (``hospital``)."""

    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    criterion: Criterion


class Selection(StrictModel):
    """How one configuration of a method is chosen, on validation data only, by means over seeds.

    Without ``gaps`` it is the one with the best ``metric``. With ``gaps``: of the configurations whose metric is at
    most ``quality_loss_allowed`` below the best of the same method, the one with the smallest mean gap.
    """

    metric: Metric
    gaps: Annotated[tuple[Gap, ...], Field(max_length=16)]
    quality_loss_allowed: Annotated[float, Field(ge=0, le=1)] | None

    @model_validator(mode="after")
    def _check(self) -> Selection:
        if bool(self.gaps) != (self.quality_loss_allowed is not None):
            raise rule(
                "got gaps without quality_loss_allowed or the other way round, expected both or neither: a smaller gap "
                "is worth nothing without a bound on what it may cost"
            )
        return self


class Report(StrictModel):
    """What the tables show of test data: one metric of quality, and gaps."""

    metric: Metric
    gaps: Annotated[tuple[Gap, ...], Field(max_length=16)]


class Task(StrictModel):
    """What is learnt, on which hospitals' data, and what it is judged by.

    ``plan`` is a shipped preset or a plan's path; its method, protection and seed are replaced. ``changes`` are made to
    it first. ``catalog`` is a data catalogue by site; ``null``: four synthetic hospitals of ``records`` each.
    ``weights`` is the folder of weight files, for a plan that starts from one. Paths are relative to the study file.
    """

    name: Label
    plan: Annotated[str, Field(min_length=1, max_length=1024)]
    changes: Changes
    catalog: Annotated[str, Field(min_length=1, max_length=1024)] | None
    records: Annotated[int, Field(ge=50, le=1_000_000)] | None
    weights: Annotated[str, Field(min_length=1, max_length=1024)] | None
    selection: Selection
    report: Report

    @model_validator(mode="after")
    def _check(self) -> Task:
        if (self.catalog is None) == (self.records is None):
            raise rule(
                "got both or neither of 'catalog' and 'records', expected one of them and null for the other: records "
                "is the size of a synthetic hospital"
            )
        return self


class Configuration(StrictModel):
    """One point of a method's grid: changes to the plan, made after the method's own."""

    label: Label
    changes: Changes


class MethodEntry(StrictModel):
    """A method: its part of a plan, and the configurations to choose from.

    ``changes`` may set ``differential_privacy``. Each noise is best a method of its own: of configurations that differ
    in it, the one with the least would be chosen.

    ``baseline``: ``local_only`` trains a model at each site alone, ``pooled`` one on all records in one place (which
    exists in simulation only); both with FedAvg's plan.
    """

    name: Label
    baseline: Baseline
    method: dict[str, Any]
    changes: Changes
    configurations: Annotated[tuple[Configuration, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _check(self) -> MethodEntry:
        _refuse_twice("configuration", [one.label for one in self.configurations])
        if self.baseline != "none" and self.method != {"name": "fedavg"}:
            raise rule(
                "got a baseline with another method, expected {'name': 'fedavg'}: nothing is federated there, so a "
                "method for federations would not do what its name says"
            )
        every = [self.changes, *(one.changes for one in self.configurations)]
        if self.baseline != "none" and any(path.startswith("differential_privacy") for some in every for path in some):
            raise rule("got a baseline with differential_privacy, expected none: nothing is sent there to be noised")
        return self


class Study(StrictModel):
    """The whole of a study file. The first method is the one that the others are compared with."""

    format: Literal["fairflare/study/1"]
    name: Label
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, max_length=64)]
    protections: Annotated[tuple[ProtectionName, ...], Field(min_length=1)]
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1, max_length=64)]
    unequal_grids: bool
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1, max_length=1000)]
    flare: bool
    workers: Annotated[int, Field(ge=1, le=1024)] | None

    @model_validator(mode="after")
    def _check(self) -> Study:
        _refuse_twice("task", [one.name for one in self.tasks])
        _refuse_twice("method", [one.name for one in self.methods])
        _refuse_twice("protection", list(self.protections))
        _refuse_twice("seed", [str(seed) for seed in self.seeds])
        return self

    @property
    def grids(self) -> dict[str, int]:
        """Method -> number of its configurations."""
        return {method.name: len(method.configurations) for method in self.methods}

    def method(self, name: str) -> MethodEntry:
        """The method called ``name``; ``KeyError`` if there is none."""
        return {method.name: method for method in self.methods}[name]


def read_study(path: Path) -> Study:
    """Read a study file; raises :class:`StudyError`, ``FF-STUDY-GRID`` for grids of different sizes."""
    study = schema.read(Study, path, error=StudyError, what="study file")
    verify_grids(study)
    return study


def verify_grids(study: Study) -> None:
    """Refuse methods with more configurations than others, unless the file says that it means it."""
    if len(set(study.grids.values())) > 1 and not study.unequal_grids:
        shown = ", ".join(f"{name} {size}" for name, size in study.grids.items())
        raise StudyError(
            "FF-STUDY-GRID",
            got=f"different numbers of configurations: {shown}",
            expected="the same number for every method: who may try more often finds more by luck",
            next_step="give every method as many, or set 'unequal_grids' to true, which the tables will say",
        )


def _refuse_twice(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise rule(f"got the {what} '{name}' more than once, expected each once")


# ---------------------------------------------------------------------------------------------------------- additions


def verify_extends(old: Study, new: Study) -> None:
    """Refuse a study that is not ``old`` with additions at the end of its lists; raises ``FF-STUDY-CHANGED``.

    Tasks, protections, methods, configurations, seeds and reported gaps may be added, FLARE may be turned on, and
    ``workers`` is no part of what is compared. A rule of selection never changes: results have been seen.
    """
    before, after = (json_of(one) for one in (old, new))
    after["workers"], after["flare"] = before["workers"], before["flare"] if new.flare else new.flare
    place = _first_change(before, after, "")
    if place is not None:
        raise StudyError(
            "FF-STUDY-CHANGED",
            got=f"another study than the one in the folder: '{place}' was changed",
            expected="the same study, or one with additions at the end of its lists",
            next_step="choose another folder with --to; what is in this one was decided before its results were seen",
        )


def json_of(study: Study) -> dict[str, Any]:
    """A study as plain JSON objects."""
    data: dict[str, Any] = study.model_dump(mode="json")
    return data


#: Lists that may grow at their end.
_GROWING = ("tasks", "protections", "methods", "seeds", "configurations", "report.gaps")


def _first_change(old: Any, new: Any, place: str) -> str | None:
    """The first place where ``new`` is not ``old`` with additions; ``None`` if there is none."""
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        inside = (_first_change(old[key], new[key], f"{place}.{key}".lstrip(".")) for key in old)
        return next((found for found in inside if found is not None), None)
    both = isinstance(old, list) and isinstance(new, list)
    if both and (len(new) == len(old) or (_grows(place) and len(new) > len(old))):
        pairs = enumerate(zip(old, new[: len(old)], strict=True))
        inside = (_first_change(one, two, f"{place}.{at}") for at, (one, two) in pairs)
        return next((found for found in inside if found is not None), None)
    return None if old == new and type(old) is type(new) else place or "top level"


def _grows(place: str) -> bool:
    """Whether this is a list of the study's own, not one inside a method or a change, that may become longer."""
    own = not any(part in f"{place}." for part in (".changes.", ".method."))
    return own and any(place == name or place.endswith(f".{name}") for name in _GROWING)
