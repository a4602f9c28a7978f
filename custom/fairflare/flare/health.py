# SPDX-License-Identifier: Apache-2.0
"""Reads a server's kit and says how the server is; imports nothing of FLARE, and reads no record and no progress.

FLARE keeps a folder for each job in the kit's store (``meta``, and once it has ended ``workspace``, a ZIP archive of
its run folder); while a job runs, its run folder stands in the kit. What is read of a run is ``state.json`` and the
note of the sites that it runs without: neither holds a number of anybody's result.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from fairflare import schema
from fairflare.errors import FairFlareError, PolicyError, RunError, ServerError
from fairflare.evaluation.health import Certificate, Disk, Health, JobLine, RefusalLine, SiteLine
from fairflare.flare.limits_file import read_limits
from fairflare.flare.provision_files import STORE
from fairflare.flare.without import FILE_NAME as WITHOUT
from fairflare.flare.without import Without, code_in, without
from fairflare.policy.roster import ROSTER_NAME, Roster
from fairflare.record import ABSENT, SERVER_NAME, STATE_NAME, JobState, Refused, ServerState

#: Jobs that are shown, the newest ones.
MOST_JOBS: Final = 50
#: Files of ours are a few kilobytes.
_LONGEST: Final = 1024 * 1024
_CERTIFICATES: Final = ("server.crt", "rootCA.pem")
_STARTED: Final = ("RUNNING", "DISPATCHED")
#: What the page calls a job that was running when the server ended; FLARE 2.9 calls it running for ever.
INTERRUPTED: Final = "INTERRUPTED"


def health(kit: Path, now: float) -> Health:
    """How the server of a kit is.

    Parameters
    ----------
    kit
        The server's start-up kit, on the server's own machine.
    now
        The present moment, seconds since 1970.

    Raises
    ------
    ServerError
        ``FF-SERVER-KIT``: the folder is no server's kit.
    """
    certificates = _certificates(kit / "startup")
    state = _server(kit / STORE / SERVER_NAME)
    metas = sorted(_metas(kit / STORE / "jobs"), key=_submitted, reverse=True)[:MOST_JOBS]
    jobs, refusals = [], list(_of_the_server(state))
    for meta in metas:
        run = _run(kit, meta["job_id"])
        jobs.append(_job(meta, run.get(STATE_NAME), state))
        refusals += _of_a_job(meta, run)
    return Health(
        server=_name(certificates[0][1]), now=now, started=None if state is None else state.started,
        alive=None if state is None else state.written, sites=_sites(kit, state), jobs=tuple(jobs),
        refusals=tuple(refusals), disk=_disk(kit),
        certificates=tuple(Certificate(name, one.not_valid_after_utc) for name, one in certificates),
    )  # fmt: skip


def kit_size(kit: Path) -> int:
    """Bytes of all files of a kit, jobs, records and logs included; links are not followed."""
    total = 0
    for folder, _, names in os.walk(kit):
        for name in names:
            with suppress(OSError):  # it was there a moment ago
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _certificates(startup: Path) -> list[tuple[str, x509.Certificate]]:
    try:
        return [(name, x509.load_pem_x509_certificate((startup / name).read_bytes())) for name in _CERTIFICATES]
    except (OSError, ValueError):
        raise ServerError(
            "FF-SERVER-KIT",
            got="a folder without a server's certificates",
            expected="a server's start-up kit: startup/server.crt and startup/rootCA.pem",
            next_step="name the kit's folder on the server's own machine",
        ) from None


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "?"


def _server(file: Path) -> ServerState | None:
    try:
        return schema.read(ServerState, file, error=ServerError, what="server's state")
    except FairFlareError:  # never started, or by another version
        return None


def _disk(kit: Path) -> Disk:
    try:
        quota = read_limits(kit / "local").quota_bytes
    except FairFlareError:
        quota = None
    return Disk(used=kit_size(kit), quota=quota, free=shutil.disk_usage(kit).free)


def _sites(kit: Path, state: ServerState | None) -> tuple[SiteLine, ...]:
    try:
        names = set(schema.read(Roster, kit / "local" / ROSTER_NAME, error=PolicyError, what="roster").sites)
    except FairFlareError:
        names = set()
    seen: Mapping[str, float] = {} if state is None else state.sites
    there = () if state is None else state.connected
    return tuple(SiteLine(name, name in there, seen.get(name)) for name in sorted(names | set(seen)))


# ---------------------------------------------------------------------------------------------------------------- jobs


def _metas(jobs: Path) -> Iterator[dict[str, Any]]:
    """What FLARE's store says of each job; one that cannot be read is left out."""
    for file in jobs.glob("*/meta"):
        try:
            meta = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(meta, dict) and isinstance(meta.get("job_id"), str) and meta["job_id"] == file.parent.name:
            yield meta


def _submitted(meta: Mapping[str, Any]) -> float:
    value = meta.get("submit_time")
    return float(value) if isinstance(value, int | float) else 0.0


def _run(kit: Path, job: str) -> dict[str, str]:
    """The two files that are read of a run, by name: from its folder, or from the archive that FLARE made of it."""
    folder = kit / job
    places = {STATE_NAME: folder / "fairflare" / STATE_NAME, WITHOUT: folder / WITHOUT}
    found = {}
    for name, file in places.items():
        with suppress(OSError, UnicodeDecodeError):
            found[name] = file.read_text(encoding="utf-8")
    archive = kit / STORE / "jobs" / job / "workspace"
    if not found and archive.is_file():
        with suppress(OSError, zipfile.BadZipFile, UnicodeDecodeError), zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                for name, file in places.items():
                    if info.filename == file.relative_to(folder).as_posix() and info.file_size <= _LONGEST:
                        found[name] = packed.read(info).decode("utf-8")
    return found


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return schema.parse(JobState, text, error=RunError, what="state")
    except FairFlareError:
        return None


def _job(meta: Mapping[str, Any], text: str | None, server: ServerState | None) -> JobLine:
    state, status = _state(text), str(meta.get("status", "?"))
    if status in _STARTED and state is not None and server is not None and state.written < server.started:
        status = INTERRUPTED
    line = JobLine(meta["job_id"], str(meta.get("name", "?")), status, _submitted(meta))
    if state is None:
        return line
    return JobLine(
        line.id, line.name, status, line.submitted, state.round, state.rounds, state.complete, state.task,
        state.since, state.asked, state.code,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ refusals


def _of_the_server(state: ServerState | None) -> Iterator[RefusalLine]:
    for one in () if state is None else state.refusals:
        sites = (one.refusal.site,) if one.refusal.site else ()
        yield RefusalLine(one.refusal.code, one.refusal.task, "", sites, one.times)


def _of_a_job(meta: Mapping[str, Any], run: Mapping[str, str]) -> Iterator[RefusalLine]:
    """Refusals of one job, gathered by code and task; that a site was not there is none."""
    state = _state(run.get(STATE_NAME))
    refused = [*_before(meta, run.get(WITHOUT)), *(() if state is None else state.refusals)]
    found: dict[tuple[str, str], list[Refused]] = {}
    for one in refused:
        if one.refusal.code != ABSENT:
            found.setdefault((one.refusal.code, one.refusal.task), []).append(one)
    name = str(meta.get("name", "?"))
    for (code, task), group in found.items():
        sites = tuple(sorted({one.refusal.site for one in group if one.refusal.site}))
        yield RefusalLine(code, task, name, sites, sum(one.times for one in group))
    codes = [code_in(line) for line in _lines(meta.get("schedule_history"))]
    for code in dict.fromkeys(code for code in codes if code is not None):
        yield RefusalLine(code, "schedule", name, (), codes.count(code))


def _before(meta: Mapping[str, Any], note: str | None) -> list[Refused]:
    """Who refused the job when it was handed out: from the note, or, of a job that never ran, from FLARE's details."""
    sites = without(_lines(meta.get("job_deploy_detail")), ()).sites
    if note is not None:
        with suppress(FairFlareError):
            sites = schema.parse(Without, note, error=RunError, what="note of absent sites").sites
    return [Refused(refusal=one, times=1) for one in sites]


def _lines(value: object) -> list[str]:
    return [line for line in value if isinstance(line, str)] if isinstance(value, list) else []
