# SPDX-License-Identifier: Apache-2.0
"""What a job's meta data may say: the four keys that we write, and the ones that FLARE's server adds.

FLARE takes much more from a job's meta data: an image, a Python path and an entry point for the job's process, GPUs,
the privacy scope, sites that must or must not take part. A job of ours says none of that, so none of it is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, TypeGuard

from fairflare import schema
from fairflare.jobs.defects import JobDefect, name_of, place_of
from fairflare.jobs.files import job_meta
from fairflare.plan import Plan

#: Deepest nesting of any JSON of a job; a plan has seven levels.
DEEPEST: Final = 32
#: Most values in it; a plan of 4096 features has 12,300.
MOST_VALUES: Final = 20_000

_META = "FF-JOB-META"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_LONGEST = 4096
#: Larger numbers are no times and no counts, and FLARE could not write some of them down.
_MOST = 2**53
#: A job's states until it runs; a server sends none of the later ones to a site.
_STATES = ("SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING")
_CLIENT = {"name": str, "fqcn": str, "fqsn": str, "is_leaf": bool, "site_config": dict}
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def is_job_id(value: object) -> TypeGuard[str]:
    """Whether ``value`` is an id as FLARE gives it: it becomes a folder's name, so nothing else may be one."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and all(sign.isprintable() for sign in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_history(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _LONGEST and all(isinstance(line, str) for line in value)


def _is_clients(value: object) -> bool:
    def is_client(one: object) -> bool:
        if not isinstance(one, dict) or not _CLIENT.keys() >= one.keys():
            return False
        return "name" in one and all(isinstance(item, _CLIENT[key]) for key, item in one.items())

    return isinstance(value, list) and len(value) <= _LONGEST and all(is_client(one) for one in value)


#: Key that FLARE's server adds on the way from submission to start -> whether a value is one, and what it should be.
_SENT: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "job_id": (is_job_id, "a UUID of version 4"),
    "cloned_from": (is_job_id, "a UUID of version 4"),
    "study": (lambda value: value == "default", "'default': a study chooses what a container mounts"),
    "submitter_name": (_is_text, "a text"),
    "submitter_org": (_is_text, "a text"),
    "submitter_role": (_is_text, "a text"),
    "job_folder_name": (lambda value: isinstance(value, str) and _FOLDER.fullmatch(value) is not None, "a plain name"),
    "submit_time": (_is_number, "a number"),
    "submit_time_iso": (_is_text, "a text"),
    "start_time": (_is_text, "a text"),
    "duration": (_is_text, "a text"),
    "data_storage_format": (lambda value: _is_count(value) and value == 2, "2"),
    "status": (lambda value: isinstance(value, str) and value in _STATES, f"one of {', '.join(_STATES)}"),
    "schedule_count": (_is_count, "a count"),
    "last_schedule_time": (_is_number, "a number"),
    "schedule_history": (_is_history, "a list of texts"),
    "job_clients": (_is_clients, "a list of sites"),
}
#: Key that depends on the plan -> whether a value has its form, and which that is.
_WRITTEN: Final[tuple[tuple[str, Callable[[object], bool], str], ...]] = (
    ("name", lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None, "the name of the plan"),
    ("min_clients", lambda value: _is_count(value) and value != 0, "the plan's number of sites"),
)
#: What a server may change between the deployment of a job and its start.
VOLATILE: Final = frozenset(
    {"start_time", "duration", "status", "schedule_count", "last_schedule_time", "schedule_history", "job_clients"}
)


def plain(meta: Mapping[Any, Any]) -> dict[Any, Any]:
    """``meta`` with FLARE's enumerated keys as the texts that they are."""
    return {key.value if isinstance(key, Enum) else key: value for key, value in meta.items()}


def check_meta(meta: Mapping[str, Any], plan: Plan | None) -> list[JobDefect]:
    """Defects of the meta data that a server sends to a site, for the plan of the same job.

    Parameters
    ----------
    meta
        As decoded by FLARE at deployment or start: what we wrote, and whatever the server added.
    plan
        The plan in the job's app; ``None`` if it has none that can be read: then only the rest is compared.
    """
    return list(_defects(meta, plan, sent=True))


def check_written_meta(data: bytes, plan: Plan | None) -> list[JobDefect]:
    """Defects of a researcher's ``meta.json``; without a plan only its keys and what is the same in every job."""
    try:
        meta = load_json(data)
    except ValueError as problem:
        return [JobDefect(_META, "meta.json", f"no valid JSON ({problem})", "one JSON object, each key once")]
    if not isinstance(meta, dict):
        return [JobDefect(_META, "meta.json", "no JSON object", "one JSON object, each key once")]
    return list(_defects(meta, plan, sent=False))


def check_submitted_meta(meta: object) -> list[JobDefect]:
    """Defects of a job's meta data when it is handed in: what we wrote, and the two keys that FLARE's server sets.

    The server does not know the plan yet, so of what depends on it only the form is compared.

    Parameters
    ----------
    meta
        As FLARE's server read them. It has set ``study``, and ``byoc`` where the app has a folder ``custom``.
    """
    got = plain(meta) if isinstance(meta, Mapping) else meta
    if not isinstance(got, dict):
        return list(_defects(got, None, sent=False))
    code = got.pop("byoc", None) is not None
    found = [JobDefect("FF-JOB-CODE", "app/custom", "a folder for code", "no code: it is installed at each site")]
    found = found if code else []
    if got.get("study") == "default":
        del got["study"]
    found += _defects(got, None, sent=False)
    for key, is_right, expected in _WRITTEN:
        if key in got and not is_right(got[key]):
            found.append(JobDefect(_META, _key(key), _shown(got[key]), expected))
    return found


def _defects(meta: object, plan: Plan | None, *, sent: bool) -> Iterator[JobDefect]:
    if not isinstance(meta, Mapping):
        yield JobDefect(_META, "meta.json", f"a value of type {type(meta).__name__}", "an object")
        return
    got = plain(meta)
    own = job_meta(plan)
    for key, wanted in own.items():
        if key not in got:
            yield JobDefect(_META, _key(key), "nothing", _shown(wanted))
        elif wanted is not None and not is_same(got[key], wanted):
            yield JobDefect(_META, _key(key), _shown(got[key]), _shown(wanted))
    for key, value in got.items():
        if key in own:
            continue
        if not sent or not isinstance(key, str) or key not in _SENT:
            yield JobDefect(_META, _key(key), "a key that no job of ours has", f"only {', '.join(own)}")
            continue
        is_right, expected = _SENT[key]
        if not is_right(value):
            yield JobDefect(_META, _key(key), f"a value of type {type(value).__name__} that is none", expected)


def _key(key: object) -> str:
    return f"meta.json:{place_of(key)}" if isinstance(key, str) and "/" not in key else "meta.json:?"


def _shown(value: object) -> str:
    """A value of ours, or somebody else's as far as it is a number, a plain name or empty."""
    if value is None:
        return "a value"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9:
        return str(value)
    if isinstance(value, dict) and not value:
        return "{}"
    if is_same(value, job_meta(None)["deploy_map"]):
        return "the one app 'app' for all sites"
    return name_of(value)


def is_same(got: object, wanted: object) -> bool:
    """Whether two values of JSON are equal in type as well: neither ``True`` nor ``1.0`` is 1."""
    if type(got) is not type(wanted):
        return False
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(is_same(got[key], wanted[key]) for key in wanted)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(is_same(one, other) for one, other in zip(got, wanted, strict=True))
    return got == wanted


def load_json(data: bytes) -> Any:
    """JSON of a job; ``ValueError`` for bytes that are none, that are larger or deeper than any job's, or no UTF-8."""
    text = data.decode("utf-8")
    bare = _STRINGS.sub("", text)
    if bare.count(",") >= MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    depth = 0
    for sign in re.findall(r"[\[\]{}]", bare):
        depth += 1 if sign in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
    return schema.load(text)


__all__ = [
    "DEEPEST",
    "MOST_VALUES",
    "VOLATILE",
    "check_meta",
    "check_submitted_meta",
    "check_written_meta",
    "is_job_id",
    "is_same",
    "load_json",
    "plain",
]
