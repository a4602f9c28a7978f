# SPDX-License-Identifier: Apache-2.0
"""Dotted changes to a plan, such as ``training.optimizer.lr``: only of fields that are there, only where allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fairflare.errors import StudyError

Json = dict[str, Any]

#: What a method, or one of its configurations, may differ in. Task, network, start and evaluation are the same for all.
_OF_METHODS = ("method", "training", "protection.masking", "differential_privacy", "consents", "federation")
#: What the study itself decides.
_OF_STUDY = ("format", "name", "method", "training.seed", "protection.update", "protection.statistics",
             "differential_privacy")  # fmt: skip


def copied(data: Any) -> Any:
    """The same JSON value, with nothing shared."""
    return json.loads(json.dumps(data))


def verify_of_task(changes: Mapping[str, Any], where: str) -> None:
    """Refuse changes of a task to what the study decides; raises ``FF-STUDY-CHANGE``."""
    for path in changes:
        if path == "protection" or _touches(path, _OF_STUDY):
            raise _refused(where, path, "a change to task, network, training or evaluation", "the study decides that")


def verify_of_method(changes: Mapping[str, Any], where: str) -> None:
    """Refuse changes of a method to what has to be the same for all; raises ``FF-STUDY-CHANGE``."""
    for path in changes:
        within = any(path == name or path.startswith(f"{name}.") for name in _OF_METHODS)
        if not within or path in ("method", "method.name", "training", "training.seed", "protection.masking"):
            expected = (
                "changes below method, training (not its seed), protection.masking, consents or federation, or of "
                "differential_privacy"
            )
            raise _refused(where, path, expected, "methods are compared on the same task, network and first weights")


def _touches(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.") for name in names)


def applied(data: Json, changes: Mapping[str, Any], where: str) -> Json:
    """``data`` with the fields at these places replaced; raises ``FF-STUDY-CHANGE`` for a place that is not there.

    Changes to how masks work are left out where nothing is masked.
    """
    result: Json = copied(data)
    unmasked = "protection" in result and result["protection"]["masking"] is None
    for path, value in changes.items():
        if unmasked and path.startswith("protection.masking."):
            continue
        *parents, last = path.split(".")
        part: Any = result
        for name in parents:
            part = part[_key(part, name, path, where)]
        part[_key(part, last, path, where)] = copied(value)
    return result


def _key(part: Any, name: str, path: str, where: str) -> str | int:
    if isinstance(part, list) and name.isdecimal() and int(name) < len(part):
        return int(name)
    if isinstance(part, dict) and name in part:
        return name
    known = sorted(part) if isinstance(part, dict) else [f"0 to {len(part) - 1}"] if isinstance(part, list) else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; the nearest valid name is '{near[0]}'" if near else ""
    expected = f"one of {', '.join(known)}" if known else "a field of the plan: there is nothing below this one"
    raise _refused(where, path, expected, f"'{name}' is not there{hint}")


def _refused(where: str, path: str, expected: str, why: str) -> StudyError:
    return StudyError(
        "FF-STUDY-CHANGE",
        got=f"the change '{path}' of {where}: {why}",
        expected=expected,
        next_step="correct the change in the study file",
    )
