# SPDX-License-Identifier: Apache-2.0
"""From a study file to the runs that it stands for: each with its plan, or with the reason why there is none."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairflare import presets, schema
from fairflare.errors import PlanError, StudyError
from fairflare.plan import Plan, parse_plan, read_plan
from fairflare.study.changes import applied, copied, verify_of_method, verify_of_task
from fairflare.study.spec import Baseline, Configuration, MethodEntry, Study, Task

Json = dict[str, Any]
#: Stands for a protection where nothing is sent, so that nothing is protected: baselines run once, not once for each.
NO_FEDERATION = "no_federation"
#: A broken rule between fields is what a comparison may come upon (a method that masks do not allow, say) and keeps as
#: a failed run. Anything else is a slip of whoever wrote the file.
_FINDING = "FF-PLAN-RULE"


@dataclass(frozen=True, order=True)
class Key:
    """Which run of a study."""

    task: str
    protection: str
    method: str
    configuration: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where the run lies below the folder of runs."""
        return Path(self.task) / self.protection / self.method / self.configuration / f"seed-{self.seed}"

    @property
    def words(self) -> str:
        """The run in a line of progress."""
        return f"{self.task}, {self.protection}, {self.method} {self.configuration}, seed {self.seed}"


@dataclass(frozen=True)
class Run:
    """One run: its plan as JSON text, or why that is no plan.

    Attributes
    ----------
    text
        What goes into ``plan.json``.
    sha256
        Of the plan's canonical form; of the text's, where it is no plan.
    refusal
        Code and text; ``None`` for a plan that can be run.
    """

    key: Key
    baseline: Baseline
    text: str
    sha256: str
    refusal: tuple[str, str] | None

    @property
    def private(self) -> bool:
        """Whether it trains with differential privacy, so that no two runs of it are the same."""
        return json.loads(self.text)["differential_privacy"] is not None

    @property
    def plan(self) -> Plan:
        """The plan; raises :class:`PlanError` if it is none."""
        return parse_plan(self.text)


def protections_of(study: Study, method: MethodEntry) -> tuple[str, ...]:
    """Under which protections a method runs."""
    return study.protections if method.baseline == "none" else (NO_FEDERATION,)


def base_plan(task: Task, home: Path) -> Plan:
    """The task's own plan with its changes and FedAvg, whatever its method was; ``home`` is the study file's folder.

    Raises
    ------
    StudyError
        ``FF-STUDY-TASK`` if there is no such plan, ``FF-STUDY-CHANGE`` and ``FF-STUDY-PLAN`` for wrong changes.
    """
    where = f"the task '{task.name}'"
    verify_of_task(task.changes, where)
    data = _as_json(_plan_of(task, home))
    # Noise is for what a method sends, so it is a method's to say.
    data["method"], data["consents"], data["differential_privacy"] = presets.FEDAVG, [], None
    changed = applied(data, task.changes, where)
    try:
        return parse_plan(json.dumps(changed))
    except PlanError as problem:
        raise _no_plan(where, problem) from None


def expanded(study: Study, bases: dict[str, Plan]) -> list[Run]:
    """Every run of a study, task by task; ``bases``: task -> :func:`base_plan`.

    Raises
    ------
    StudyError
        ``FF-STUDY-CHANGE`` for a change of what is not there or not a method's to change; ``FF-STUDY-PLAN`` for a
        method's part that is not written as its schema wants it.
    """
    return [
        _run(Key(task.name, protection, method.name, grid.label, seed), bases[task.name], method, grid)
        for task in study.tasks
        for seed in study.seeds
        for method in study.methods
        for grid in method.configurations
        for protection in protections_of(study, method)
    ]  # fmt: skip


def _run(key: Key, base: Plan, method: MethodEntry, configuration: Configuration) -> Run:
    where = f"the method '{method.name}' ({configuration.label})"
    verify_of_method(method.changes, where)
    verify_of_method(configuration.changes, where)
    data = _as_json(base)
    data["protection"] = _protection(data["protection"], key.protection)
    data["method"] = copied(method.method)
    data = applied(applied(data, method.changes, where), configuration.changes, where)
    data["training"]["seed"] = key.seed
    data["name"] = _plan_name(key)
    try:
        plan = parse_plan(json.dumps(data))
    except PlanError as problem:
        if problem.code != _FINDING:
            raise _no_plan(where, problem) from None
        text = json.dumps(data, indent=2) + "\n"
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
        why = f"got {problem.got}; expected {problem.expected}"
        return Run(key, method.baseline, text, hashlib.sha256(canonical).hexdigest(), (problem.code, why))
    return Run(key, method.baseline, schema.pretty(plan), plan.sha256, None)


def _protection(own: Json, wanted: str) -> Json:
    if wanted != "masked":
        return dict(presets.UNPROTECTED)
    return dict(presets.MASKED) if own["masking"] is None else {**presets.MASKED, "masking": own["masking"]}


def _plan_name(key: Key) -> str:
    """A name that a plan may have; what does not fit is left out."""
    text = f"{key.task}_{key.method}".lower()
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text).lstrip("_0123456789")
    return (kept or "run")[:64]


def _as_json(plan: Plan) -> Json:
    data: Json = json.loads(schema.pretty(plan))
    return data


def _plan_of(task: Task, home: Path) -> Plan:
    if task.plan in presets.PRESETS:
        return presets.PRESETS[task.plan](task.plan)
    path = home / task.plan
    if path.exists():
        return read_plan(path)
    near = difflib.get_close_matches(task.plan, presets.PRESETS, n=1, cutoff=0.4)
    hint = f"; the nearest preset is '{near[0]}'" if near else ""
    raise StudyError(
        "FF-STUDY-TASK",
        got=f"a plan of the task '{task.name}' that is neither a preset nor a file{hint}",
        expected=f"a path relative to the study file, or one of {', '.join(presets.PRESETS)}",
        next_step="correct 'plan' in the study file",
    )


def _no_plan(where: str, problem: PlanError) -> StudyError:
    return StudyError(
        "FF-STUDY-PLAN",
        got=f"{where} gives no plan: {problem.code}, {problem.got}",
        expected=problem.expected,
        next_step=problem.next_step,
    )


def by_configuration(runs: list[Run]) -> Iterator[tuple[tuple[str, str, str], dict[str, list[Run]]]]:
    """Runs of each (task, protection, method), by configuration, in the order of the study."""
    found: dict[tuple[str, str, str], dict[str, list[Run]]] = {}
    for run in runs:
        key = run.key
        found.setdefault((key.task, key.protection, key.method), {}).setdefault(key.configuration, []).append(run)
    yield from found.items()
