# SPDX-License-Identifier: Apache-2.0
"""One strict way to read a JSON file: frozen objects, unknown keys refused with the nearest valid name.

Every file a person writes for FairFlare (plan, catalogue, record) goes through :func:`parse`. Nothing has a default:
what a file does not say, FairFlare does not assume. A refusal repeats a key or a text of the file only if it has the
form of an identifier: anything else could be a path or somebody's name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from fairflare.errors import FairFlareError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_EXPECTED = ", expected "
#: Most defects that are named: a hostile file could have any number, and the nearest name of each costs time.
_MOST_DEFECTS = 64


class StrictModel(BaseModel):
    """Frozen, without coercion, without defaults, and with a helpful refusal of unknown keys (by :func:`parse`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=StrictModel)
Place = tuple[str | int, ...]


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{_key(key)} is written twice")
        result[key] = value
    return result


def _frozen(data: Any) -> Any:
    """JSON's lists as tuples, since strict validation takes nothing else; and no -0.0, which is equal to 0.0."""
    if isinstance(data, list):
        return tuple(_frozen(item) for item in data)
    if isinstance(data, float):
        return data + 0.0
    return {key: _frozen(value) for key, value in data.items()} if isinstance(data, dict) else data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def load(text: str) -> Any:
    """JSON text as Python objects; ``ValueError`` for repeated keys, and for NaN and infinities, which are no JSON."""
    return json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)


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
        Of the given branch: ``*-JSON`` when the text is no JSON object, ``*-UNKNOWN-KEY``, ``*-MISSING-KEY``,
        ``*-VALUE`` or ``*-RULE`` when it does not fit the schema. The first 64 defects are named, unknown
        keys first; the first one gives the code. A rule between fields is looked at once the fields are right.
    """
    try:
        data = _frozen(load(text))
    except (ValueError, RecursionError) as problem:
        raise error(
            f"{error.prefix}JSON",
            got=f"a {what} that is not valid JSON ({problem})",
            expected="one JSON object, each key once, finite numbers",
            next_step=f"correct the {what} at the place named",
        ) from None
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        defects = islice(_defects(model, data, problem), _MOST_DEFECTS)
        raise _refusal([(_path(data, one), one) for one in defects], error, what) from None


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
    """Canonical form of a document: UTF-8 JSON with sorted keys, no spaces, shortest round-trip numbers, no -0.0."""
    data = _frozen(document.model_dump(mode="json"))
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pretty(document: StrictModel) -> str:
    """Text of a document as committed: two spaces, keys in the order of the schema, one newline at the end."""
    return json.dumps(document.model_dump(mode="json"), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def rule(text: str, next_step: str = "") -> PydanticCustomError:
    """Error for a validator of a schema: a rule between fields that is broken; ``text`` is "got ..., expected ..."."""
    got, _, expected = text.removeprefix("got ").partition(_EXPECTED)
    return PydanticCustomError("rule", "{text}", {"text": got, "expected": expected, "next_step": next_step})


# ------------------------------------------------------------------------------------------------------------ refusals


@dataclass(frozen=True)
class _Defect:
    code: Literal["UNKNOWN-KEY", "MISSING-KEY", "VALUE", "RULE"]
    place: Place
    text: str
    expected: str = ""
    next_step: str = ""


def _refusal(defects: list[tuple[str, _Defect]], error: type[FairFlareError], what: str) -> FairFlareError:
    generic = f"a {what} that follows its schema, every field written out"
    first = defects[0][1]
    return error(
        f"{error.prefix}{first.code}",
        got="; ".join(f"{path}: {defect.text}" if path else defect.text for path, defect in defects),
        expected="; ".join(dict.fromkeys(defect.expected or generic for _, defect in defects)),
        next_step=first.next_step or f"correct {'this field' if len(defects) == 1 else 'these fields'}",
    )


def _path(data: Any, defect: _Defect) -> str:
    """Where a defect is in the document, as ``method.penalties.0``; keys that people choose only if identifiers."""
    parts = []
    for part in defect.place:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, tuple) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        elif defect.code != "MISSING-KEY" or part != defect.place[-1]:
            continue  # pydantic's name for the member of a union
        parts.append(str(part) if isinstance(part, int) or _is_identifier(part) else "?")
    return ".".join(parts) or ("" if defect.code == "RULE" else "top level")


def _defects(model: type[StrictModel], data: Any, problem: ValidationError) -> Iterator[_Defect]:
    """Every defect once: unknown keys in all objects of the document, then what pydantic found."""
    unknown = list(islice(_unknown_keys(model, None, data, ()), _MOST_DEFECTS))
    yield from (defect for defect, _ in unknown)
    # The right name of a misspelt key is missing as well, which needs no line of its own.
    meant = {(*defect.place, near) for defect, near in unknown}
    seen = {defect.place for defect, _ in unknown}
    for item in problem.errors(include_url=False):
        place = item["loc"]
        if item["type"] == "extra_forbidden" and place[:-1] in seen:
            continue
        if item["type"] in {"missing", "union_tag_not_found"} and (*place, *_discriminator(item)) in meant:
            continue
        # Items that were refused are not counted by pydantic, although they are there.
        if item["type"] == "too_short" and len(item["input"]) >= (item.get("ctx") or {})["min_length"]:
            continue
        yield _from_pydantic(item)


def _from_pydantic(item: ErrorDetails) -> _Defect:
    context, place = item.get("ctx") or {}, item["loc"]
    match item["type"]:
        case "rule":
            return _Defect("RULE", place, context["text"], context["expected"], context["next_step"])
        case "extra_forbidden":
            return _Defect("UNKNOWN-KEY", place[:-1], f"unknown {_key(str(place[-1]))}")
        case "missing":
            return _Defect("MISSING-KEY", place, item["msg"])
        case "union_tag_not_found":
            return _Defect("MISSING-KEY", (*place, *_discriminator(item)), "Field required")
        case "union_tag_invalid":
            # pydantic's own message would repeat the tag, whatever it is.
            shown = _shown(item["input"].get(*_discriminator(item)))
            return _Defect("VALUE", place, f"Input should be {context['expected_tags']}{shown}")
        case _:
            return _Defect("VALUE", place, f"{item['msg']}{_shown(item['input'])}")


def _discriminator(item: ErrorDetails) -> tuple[str, ...]:
    """Name of the key that tells the members of a union apart; nothing for other errors."""
    name = (item.get("ctx") or {}).get("discriminator")
    return () if name is None else (str(name).strip("'"),)


def _unknown_keys(
    annotation: Any, discriminator: str | None, data: Any, place: Place
) -> Iterator[tuple[_Defect, str | None]]:
    """Unknown keys of each object in ``data`` for which the schema has a model, with the nearest valid name."""
    inner = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        if not isinstance(data, dict):
            return
        for key in data:
            if key not in annotation.model_fields:
                yield _unknown_key(key, annotation.model_fields, annotation.model_fields.keys() - data.keys(), place)
        for name, field in annotation.model_fields.items():
            if name in data:
                told_by = field.discriminator if isinstance(field.discriminator, str) else None
                yield from _unknown_keys(field.annotation, told_by, data[name], (*place, name))
    elif discriminator is not None:
        yield from _unknown_in_union(inner, discriminator, data, place)
    elif get_origin(annotation) is dict and isinstance(data, dict):
        for key, value in data.items():
            yield from _unknown_keys(inner[1], None, value, (*place, key))
    elif get_origin(annotation) is tuple and isinstance(data, tuple):
        kinds = inner[:1] * len(data) if inner[-1:] == (...,) else inner
        for at, (kind, value) in enumerate(zip(kinds, data, strict=False)):
            yield from _unknown_keys(kind, None, value, (*place, at))
    elif inner and get_origin(annotation) is not Literal:  # a choice without a tag, such as "or null"
        for kind in inner:
            yield from _unknown_keys(kind, None, data, place)


def _unknown_in_union(
    kinds: tuple[type[StrictModel], ...], tag: str, data: Any, place: Place
) -> Iterator[tuple[_Defect, str | None]]:
    if not isinstance(data, dict):
        return
    if tag in data:
        for kind in kinds:
            if data[tag] in get_args(kind.model_fields[tag].annotation):
                yield from _unknown_keys(kind, None, data, (*place, data[tag]))
        return
    known = {name for kind in kinds for name in kind.model_fields}
    for key in data:
        if key not in known:
            yield _unknown_key(key, sorted(known), [tag], place)


def _unknown_key(key: str, valid: Collection[str], absent: Collection[str], place: Place) -> tuple[_Defect, str | None]:
    """Defect and nearest name; a name that is not there yet is nearer than one that is."""
    near = _nearest(key, [name for name in valid if name in absent]) or _nearest(key, valid)
    hint = f"the nearest valid name is '{near}'" if near else f"valid names are {', '.join(valid)}"
    return _Defect("UNKNOWN-KEY", place, f"unknown {_key(key)}; {hint}"), near


def _nearest(key: str, names: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, names, n=1, cutoff=0.4)), None)


def _is_identifier(text: str) -> bool:
    return _IDENTIFIER.fullmatch(text) is not None


def _key(key: str) -> str:
    return f"key '{key}'" if _is_identifier(key) else "key (no identifier, so not repeated here)"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f" (got '{value}')" if _is_identifier(value) else f" (got a text of {len(value)} characters)"
    if isinstance(value, (bool, int, float)) and len(repr(value)) < 80:
        return f" (got {value!r})"
    return ""
