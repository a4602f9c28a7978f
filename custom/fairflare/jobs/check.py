# SPDX-License-Identifier: Apache-2.0
"""What a job may be: a closed list of files, two configurations byte for byte, one readable plan, and four keys.

What is not allowed here is refused, whatever it is: FLARE searches configurations under many names and in subfolders,
builds what they name, and reads images and paths from meta data, so a list of what is forbidden would never be whole.
Nothing of a job is imported, built or run. Without FLARE and torch: sites, servers, researchers and auditors ask this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fairflare.errors import PlanError
from fairflare.jobs.content import Item, list_archive, list_folder
from fairflare.jobs.defects import JobDefect, name_of, place_of
from fairflare.jobs.files import CLIENT_CONFIG, SERVER_CONFIG, SIGNATURES, config_text
from fairflare.jobs.meta import check_meta, check_written_meta, load_json
from fairflare.plan import Plan, parse_plan

#: Most bytes of each file. A plan of 4096 features, written with indents, has 600 kB.
MOST_PLAN: Final = 2**20
MOST_META: Final = 64 * 2**10
MOST_SIGNATURE: Final = 64 * 2**10

_CONFIGS: Final = {
    "config/config_fed_server.json": config_text(SERVER_CONFIG).encode(),
    "config/config_fed_client.json": config_text(CLIENT_CONFIG).encode(),
}
_PLAN: Final = "config/plan.json"
_CODE_FOLDERS = ("custom", "lib", "src", "__pycache__")
_CODE_SUFFIXES = (".py", ".pyc", ".pyi", ".pyx", ".pth", ".so", ".pyd", ".dll", ".sh", ".whl", ".zip", ".jar", ".pt")


def check_job(folder: Path) -> list[JobDefect]:
    """Defects of a researcher's job folder, as submitted: with ``meta.json``, and FLARE's signatures or without.

    Parameters
    ----------
    folder
        The job: ``meta.json`` and the folder ``app``. Links in it are not followed.
    """
    items, defects = list_folder(folder)
    found, plan = _check(items, "app/")
    written = next((item for item in items if item.path == "meta.json" and item.kind == "file"), None)
    if written is not None:
        data = _read(written, MOST_META, found.append)
        found += [] if data is None else check_written_meta(data, plan)
    return defects + found


def check_app(folder: Path) -> tuple[list[JobDefect], Plan | None]:
    """Defects of an app as FLARE unzips it at a server or a site, and its plan if that can be read.

    Parameters
    ----------
    folder
        What FLARE gives to an app validator: it holds ``config``.
    """
    items, defects = list_folder(folder)
    found, plan = _check(items, "")
    return defects + found, plan


def check_archive(body: object) -> tuple[list[JobDefect], Plan | None]:
    """As :func:`check_app`, for the bytes of the archive from which FLARE would unzip the app."""
    items, defects = list_archive(body)
    if defects and not items:
        return defects, None
    found, plan = _check(items, "")
    return defects + found, plan


def _check(items: list[Item], app: str) -> tuple[list[JobDefect], Plan | None]:
    """Compare ``items`` with the files of a job whose app lies at ``app``; a job has ``meta.json`` as well."""
    top = ["meta.json"] if app else []
    wanted = [*top, *(app + name for name in (_PLAN, *_CONFIGS))]
    folders = [parent for parent in (app.rstrip("/"), f"{app}config") if parent]
    signed = [f"{folder}/{name}".lstrip("/") for folder in ("", *folders) for name in SIGNATURES]
    here = {item.path: item for item in items}
    # FLARE signs in every folder: of a folder that should not be there, its own defect is enough.
    told = [item for item in items if not _is_signature_of(item, {*here} - {*folders})]
    defects = [defect for item in told for defect in _misplaced(item, {*wanted, *signed}, folders)]
    files = {path: item for path, item in here.items() if item.kind == "file"}
    absent = "a file, as every job of ours has it"
    defects += [JobDefect("FF-JOB-MISSING", path, "nothing", absent) for path in wanted if path not in here]
    signatures = [files[path] for path in signed if path in files]
    defects += [_large(one, MOST_SIGNATURE) for one in signatures if one.size > MOST_SIGNATURE]
    for name, text in _CONFIGS.items():
        if app + name in files:
            defects += _config_defects(files[app + name], text)
    plan = _plan_of(files[app + _PLAN], defects.append) if app + _PLAN in files else None
    return defects, plan


def _is_signature_of(item: Item, folders: set[str]) -> bool:
    path = PurePosixPath(item.path)
    return path.name in SIGNATURES and item.kind == "file" and str(path.parent) in folders


def _misplaced(item: Item, files: set[str], folders: list[str]) -> Iterator[JobDefect]:
    place = place_of(item.path)
    path = PurePosixPath(item.path)
    if item.kind == "link":
        yield JobDefect("FF-JOB-LINK", place, "a link", "no link")
    elif item.path in files or item.path in folders:
        wanted = "file" if item.path in files else "folder"
        if item.kind != wanted:
            yield JobDefect("FF-JOB-FILE", place, f"a {item.kind}", f"a {wanted}")
    elif any(part.lower() in _CODE_FOLDERS for part in path.parts) or path.suffix.lower() in _CODE_SUFFIXES:
        yield JobDefect("FF-JOB-CODE", place, f"a {item.kind} for code", "no code: it is installed at each site")
    else:
        allowed = ", ".join(sorted(PurePosixPath(name).name for name in files if not name.endswith(SIGNATURES)))
        yield JobDefect("FF-JOB-FILE", place, f"another {item.kind}", f"{allowed} and nothing else")


def _config_defects(item: Item, wanted: bytes) -> list[JobDefect]:
    defects: list[JobDefect] = []
    data = _read(item, MOST_META, defects.append)
    if data is not None and data != wanted:
        got = f"other bytes than this version writes{_difference(data, wanted)}"
        defects.append(JobDefect("FF-JOB-CONFIG", place_of(item.path), got, "the bytes of 'fairflare jobs make'"))
    return defects


def _difference(data: bytes, wanted: bytes) -> str:
    """Which top-level keys differ, for whoever changed a configuration by hand and wonders which part is meant."""
    try:
        got, own = load_json(data), load_json(wanted)
    except ValueError:
        return ", and no valid JSON"
    if not isinstance(got, dict):
        return ", and no JSON object"
    keys = [key for key in {**own, **got} if key not in got or key not in own or got[key] != own[key]]
    return f", in {', '.join(name_of(key) for key in keys[:8])}" if keys else ", although they mean the same"


def _plan_of(item: Item, note: Callable[[JobDefect], Any]) -> Plan | None:
    data = _read(item, MOST_PLAN, note)
    if data is None:
        return None
    place = place_of(item.path)
    try:
        load_json(data)  # depth and encoding, before the schema descends into it
        return parse_plan(data.decode("utf-8"))
    except PlanError as problem:
        note(JobDefect("FF-JOB-PLAN", place, f"{problem.code}: {problem.got}", problem.expected))
    except (ValueError, RecursionError) as problem:
        text = "bytes that are not UTF-8" if isinstance(problem, UnicodeDecodeError) else str(problem)
        note(JobDefect("FF-JOB-PLAN", place, f"FF-PLAN-JSON: no valid JSON ({text})", "one JSON object, each key once"))
    return None


def _read(item: Item, most: int, note: Callable[[JobDefect], Any]) -> bytes | None:
    """The bytes of a file of at most ``most`` bytes, whatever its size is said to be."""
    if item.size > most:
        note(_large(item, most))
        return None
    try:
        data = item.read(most + 1)
    except OSError as problem:
        note(JobDefect("FF-JOB-READ", place_of(item.path), f"no content ({type(problem).__name__})", "a file"))
        return None
    if len(data) > most:
        note(_large(item, most))
        return None
    return data


def _large(item: Item, most: int) -> JobDefect:
    return JobDefect("FF-JOB-SIZE", place_of(item.path), f"{item.size} bytes", f"at most {most}")


__all__ = ["JobDefect", "check_app", "check_archive", "check_job", "check_meta"]
