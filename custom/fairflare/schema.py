# SPDX-License-Identifier: Apache-2.0
"""One strict way to read a JSON file: frozen objects, unknown keys refused with the nearest valid name.

Every file a person writes for FairFlare (plan, catalogue, record) goes through :func:`parse`. Nothing has a default:
what a file does not say, FairFlare does not assume.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fairflare.errors import FairFlareError


class StrictModel(BaseModel):
    """Frozen, without coercion, without defaults, and with a helpful refusal of unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError("unknown_key", "{text}", {"text": _unknown_key(cls, str(key))})
        return data


Model = TypeVar("Model", bound=StrictModel)


def _unknown_key(cls: type[StrictModel], key: str) -> str:
    near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=0.4)
    hint = f"the nearest valid name is '{near[0]}'" if near else f"valid names are {', '.join(cls.model_fields)}"
    return f"unknown key '{key}'; {hint}"


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key '{key}' is written twice")
        result[key] = value
    return result


def _tuples(data: Any) -> Any:
    """JSON's lists as tuples: documents are frozen, and strict validation takes nothing else."""
    if isinstance(data, list):
        return tuple(_tuples(item) for item in data)
    return {key: _tuples(value) for key, value in data.items()} if isinstance(data, dict) else data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def parse(model: type[Model], text: str, *, error: type[FairFlareError], what: str) -> Model:
    """Read ``text`` as ``model``.

    Parameters
    ----------
    model
        The schema.
    text
        JSON text.
    error
        Which branch of the exception tree a refusal belongs to.
    what
        Name of the document in messages, such as ``plan``.

    Raises
    ------
    FairFlareError
        Of the given branch: ``*-JSON`` when the text is no JSON object, ``*-UNKNOWN-KEY``, ``*-MISSING-KEY`` or
        ``*-VALUE`` when it does not fit the schema. All defects are named, the first one gives the code.
    """
    try:
        data = json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        raise error(
            f"{error.prefix}JSON",
            got=f"a {what} that is not valid JSON ({problem})",
            expected="one JSON object, each key once, finite numbers",
            next_step=f"correct the {what} at the place named",
        ) from None
    try:
        return model.model_validate(_tuples(data))
    except ValidationError as problem:
        raise _refusal(problem, error, what) from None


def read(model: type[Model], path: Path, *, error: type[FairFlareError], what: str) -> Model:
    """Read the file at ``path`` as ``model``; raises as :func:`parse` does, and ``*-FILE`` if it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(
            f"{error.prefix}FILE",
            got=f"a {what} that cannot be read ({type(problem).__name__})",
            expected="a readable UTF-8 file",
            next_step=f"check that the {what} exists and may be read by this user",
        ) from None
    return parse(model, text, error=error, what=what)


def canonical(document: StrictModel) -> bytes:
    """Canonical form of a document: UTF-8 JSON with sorted keys, no spaces, shortest round-trip numbers."""
    data = document.model_dump(mode="json")
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pretty(document: StrictModel) -> str:
    """Text of a document as committed: two spaces, keys in the order of the schema, one newline at the end."""
    return json.dumps(document.model_dump(mode="json"), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


_CODES = {"unknown_key": "UNKNOWN-KEY", "missing": "MISSING-KEY", "rule": "RULE"}


def rule(text: str, next_step: str = "") -> PydanticCustomError:
    """Error for a validator of a schema: a rule between fields that is broken; ``text`` says got and expected."""
    return PydanticCustomError("rule", "{text}", {"text": text, "next_step": next_step})


def _refusal(problem: ValidationError, error: type[FairFlareError], what: str) -> FairFlareError:
    lines = []
    for item in problem.errors():
        where = ".".join(str(part) for part in item["loc"]) or "top level"
        value = item.get("input")
        shown = f" (got {value!r})" if isinstance(value, (str, int, float, bool)) and len(repr(value)) < 80 else ""
        lines.append(f"{where}: {item['msg']}{shown}")
    first = problem.errors()[0]
    context = first.get("ctx") or {}
    return error(
        f"{error.prefix}{_CODES.get(first['type'], 'VALUE')}",
        got="; ".join(lines),
        expected=f"a {what} that follows its schema, every field written out",
        next_step=str(context.get("next_step") or f"correct {'this field' if len(lines) == 1 else 'these fields'}"),
    )
