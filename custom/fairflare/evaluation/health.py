# SPDX-License-Identifier: Apache-2.0
"""What the operator of a server sees of it, in words: sites, jobs, refusals, disk, certificates; no result of anybody.

A hospital that is not there is a name and when it was last seen, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from fairflare.evaluation.rehearsal_words import Grid, Part
from fairflare.evaluation.units import duration, size

#: A certificate that ends sooner, and a disk that is fuller, is pointed out.
SOON_DAYS: Final = 30
FULL: Final = 0.9
#: Without a new word for so many times the usual, the server's process is taken for dead.
_LATE_SECONDS: Final = 20.0
CAUTION: Final = (
    "For whoever looks after this server. It names hospitals and jobs; it holds no count, loss, weight or size of "
    "anybody's data or update. Results are in the records of the runs."
)
_WAITS: Final = {
    "join": "sites join", "session": "the session begins", "prepare": "numbers of records", "keys": "keys",
    "share": "shares of keys", "measure": "statistics of groups", "compare": "comparison of sites",
    "step": "a step in lock", "train": "training", "train_alone": "training", "confirm": "consent to the sum",
    "unmask": "opening of the sum", "evaluate": "final evaluation", "finish": "sending of the models",
}  # fmt: skip


@dataclass(frozen=True)
class SiteLine:
    """A site of the project; ``seen``: seconds since 1970, ``None`` if never since the server's start."""

    name: str
    connected: bool
    seen: float | None


@dataclass(frozen=True)
class JobLine:
    """A job; ``since``: seconds since 1970. ``task`` is what the server waits for, of ``asked`` sites."""

    id: str
    name: str
    status: str
    submitted: float
    round: int | None = None
    rounds: int | None = None
    complete: int | None = None
    task: str | None = None
    since: float | None = None
    asked: int | None = None
    code: str | None = None


@dataclass(frozen=True)
class RefusalLine:
    """Refusals of one kind: what was refused in which job (or none), of which sites (or a person), how often."""

    code: str
    task: str
    job: str
    sites: tuple[str, ...]
    times: int


@dataclass(frozen=True)
class Certificate:
    """A certificate of the server's kit and when it ends."""

    name: str
    ends: datetime


@dataclass(frozen=True)
class Disk:
    """Bytes that the server's kit takes, may take (``None``: its limits cannot be read), and that its disk has left."""

    used: int
    quota: int | None
    free: int


@dataclass(frozen=True)
class Health:
    """All of it; times are seconds since 1970. ``alive``: when the server's process last said a word, if ever."""

    server: str
    now: float
    started: float | None
    alive: float | None
    sites: tuple[SiteLine, ...]
    jobs: tuple[JobLine, ...]
    refusals: tuple[RefusalLine, ...]
    disk: Disk
    certificates: tuple[Certificate, ...]

    @property
    def is_alive(self) -> bool:
        """Whether the server's process writes."""
        return self.alive is not None and self.now - self.alive < _LATE_SECONDS

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should do something about, each as one sentence."""
        return tuple(_warnings(self))


def title(found: Health) -> str:
    """The name of the page."""
    return f"Server {found.server}"


def verdict(found: Health) -> str:
    """The one sentence that matters."""
    there = sum(site.connected for site in found.sites) if found.is_alive else 0
    running = sum(job.status == "RUNNING" for job in found.jobs)
    if not found.is_alive:
        return "The server is NOT running."
    jobs = "no job runs" if running == 0 else "1 job runs" if running == 1 else f"{running} jobs run"
    return f"The server is running; {there} of {len(found.sites)} sites are connected; {jobs}."


def moment(seconds: float | None) -> str:
    """A moment in UTC, to the second."""
    if seconds is None:
        return "not since the server's start"
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def parts(found: Health) -> tuple[Part, ...]:
    """Every table."""
    return (_sites(found), _jobs(found), _refusals(found), _disk(found), _certificates(found))


def _warnings(found: Health) -> Iterator[str]:
    if not found.is_alive:
        yield f"The server's process last wrote: {moment(found.alive)}. Start it: startup/start.sh."
    for one in found.certificates:
        days = (one.ends.timestamp() - found.now) / 86400
        if days < SOON_DAYS:
            yield f"{one.name} ends on {one.ends:%Y-%m-%d}: ask the project's provisioner for a new kit."
    disk = found.disk
    if disk.quota is None:
        yield "local/limits.json cannot be used, and the server does not start with it: correct it."
    elif disk.used > FULL * disk.quota:
        yield f"The kit takes {size(disk.used)} of {size(disk.quota)}: delete jobs that nobody needs any more."
    for job in found.jobs:
        if job.status == "RUNNING" and not found.is_alive:
            yield f"Job {job.name} was running when the server ended."


def _sites(found: Health) -> Part:
    rows = [
        (site.name, "yes" if site.connected and found.is_alive else "no", moment(site.seen)) for site in found.sites
    ]
    return Part("Sites", grids=(Grid("Sites of the project", ("site", "connected", "last seen"), tuple(rows), _ALL),))


def _jobs(found: Health) -> Part:
    if not found.jobs:
        return Part("Jobs", ("No job was handed in, or all were deleted.",))
    heads = ("job", "state", "round", "waits for", "for", "handed in", "id")
    rows = tuple(_job(job, found.now) for job in found.jobs)
    return Part("Jobs", grids=(Grid("Newest first", heads, rows, _ALL),))


def _job(job: JobLine, now: float) -> tuple[str, ...]:
    where = waits = since = ""
    if job.rounds is not None and job.round is not None:
        where = f"{min(job.round + 1, job.rounds)} of {job.rounds}" if job.task else f"{job.complete} of {job.rounds}"
    if job.task and job.status == "RUNNING" and job.since is not None:
        waits = f"{_WAITS.get(job.task, job.task)} ({job.asked} sites asked)"
        since = duration(max(now - job.since, 0.0))
    state = job.status.lower().replace(":", ": ").replace("_", " ")
    return (
        job.name,
        f"{state} ({job.code})" if job.code else state,
        where,
        waits,
        since,
        moment(job.submitted),
        job.id,
    )


def _refusals(found: Health) -> Part:
    if not found.refusals:
        return Part("Refusals", ("None that the server knows of.",))
    rows = tuple(
        (one.code, one.task, one.job, ", ".join(one.sites) or _NOBODY.get(one.task, "-"), str(one.times))
        for one in found.refusals
    )
    heads = ("code", "of", "job", "whose", "times")
    note = "By code; provision/README.md and provision/server/README.md say what each means. A site's own log has why."
    return Part("Refusals", (note,), grids=(Grid("Refusals", heads, rows, frozenset({0, 1, 2, 3})),))


def _disk(found: Health) -> Part:
    disk = found.disk
    limit = (
        "not known: local/limits.json cannot be used"
        if disk.quota is None
        else f"{size(disk.quota)} ({disk.used / max(disk.quota, 1):.0%} used)"
    )
    rows = (("the kit, jobs and records included", size(disk.used)), ("may take", limit))
    return Part("Disk", grids=(Grid("Disk", ("", ""), (*rows, ("left on the disk", size(disk.free)))),))


def _certificates(found: Health) -> Part:
    rows = tuple(
        (one.name, f"{one.ends:%Y-%m-%d}", str(int((one.ends.timestamp() - found.now) // 86400)))
        for one in found.certificates
    )
    return Part("Certificates", grids=(Grid("Certificates of this kit", ("file", "ends", "days left"), rows, _TWO),))


#: Whose a refusal is that is no site's.
_NOBODY: Final = {"submit": "a person"}
_ALL: Final = frozenset(range(7))
_TWO: Final = frozenset({0, 1})
