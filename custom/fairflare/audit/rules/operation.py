# SPDX-License-Identifier: Apache-2.0
"""Rules 7xx and 8xx: logs stay at home, quorums agree, and what must last is kept where it lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fairflare.audit.evidence import PLAN, Evidence, Kit
from fairflare.audit.folder import Problem, plain_name, shown
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity
from fairflare.audit.rules.code import LOGGING
from fairflare.audit.rules.sums import LEAST_SITES
from fairflare.audit.rules.violations import check_job_files, check_plan

#: Folders that every user of a machine shares: they are refused here.
_SHARED: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_HANDLERS: Final = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.handlers.RotatingFileHandler",
    "logging.handlers.TimedRotatingFileHandler",
)  # fmt: skip
_STREAMS: Final = ("ext://sys.stdout", "ext://sys.stderr")
_FORMATTERS: Final = "nvflare.fuel.utils.log_utils."
_PLACES: Final = ("root_dir", "uri_root")
#: Longest time, in seconds, after which a server should know that a site is lost: FLARE's default is ten minutes.
_HEARTBEAT: Final = 120


def _check_streaming(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    for name, document in kit.documents():
        if isinstance(document, Problem):
            yield Doubt(name, f"the file {document.text}")
    resources = {} if isinstance(kit.resources, Problem) else kit.resources
    if kit.kind == "site" and resources.get("allow_log_streaming", True) is not False:
        got = shown(resources.get("allow_log_streaming"))
        yield Defect(f"{kit.resources_file}:allow_log_streaming", got, "false")
    for one in kit.classes():
        if one.path.startswith(LOGGING) and not one.disabled:
            yield Defect(one.place, shown(one.path), "no component that sends or takes logs")
    yield from _check_handlers(kit)


def _check_handlers(kit: Kit) -> Iterator[Outcome]:
    """Python's logging builds any class that its configuration names, and some of its own send records away."""
    found = kit.folder.json(kit.logging_file)
    if isinstance(found, Problem):
        if not found.absent:
            yield Doubt(kit.logging_file, f"the file {found.text}")
        return
    for place, value in _values(kit.logging_file, found, ":"):
        key = place.rpartition(":")[2].rpartition(".")[2]
        if key == "class" and value not in _HANDLERS:
            yield Defect(place, shown(value), "handlers that write to this site's own files")
        elif not isinstance(value, str):
            continue
        # The key "()", which is no plain name, calls whatever its value names.
        elif key == "?" and "." in value and not value.startswith(_FORMATTERS):
            yield Defect(place, shown(value), "FLARE's own formatters and filters")
        elif value.startswith("ext://") and value not in _STREAMS:
            yield Defect(place, "an object of another module", "this process's own output")


def _check_quorum(evidence: Evidence) -> Iterator[Outcome]:
    plan = evidence.job.plan
    if plan is None:
        yield Doubt(PLAN, "there is no plan that can be read")
    elif plan.federation.min_sites < LEAST_SITES:
        place = f"{PLAN}:federation.min_sites"
        yield Defect(place, str(plan.federation.min_sites), f"at least {LEAST_SITES}")


def _check_stores(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    for name, document in kit.documents():
        if isinstance(document, Problem):
            yield Doubt(name, f"the file {document.text}")
            continue
        for place, value in _values(name, document, ":"):
            if place.rpartition(".")[2] in _PLACES and isinstance(value, str) and _is_shared(value):
                yield Defect(place, "a folder that every user of the machine shares", "one inside the server's kit")


def _check_site_store(evidence: Evidence) -> Iterator[Outcome]:
    store = evidence.site_policy.store
    place = f"{evidence.policy_file}:store"
    if _is_shared(store):
        yield Defect(place, "a folder that every user of the machine shares", "one of FLARE's user alone, backed up")
    elif Path(os.path.realpath(store)).is_relative_to(evidence.kit.root.resolve()):
        yield Defect(place, "a folder inside the kit, which FLARE may erase", "one outside of the kit")


def _is_shared(path: str) -> bool:
    if not os.path.isabs(path):
        return False  # inside the kit, where FLARE's process works
    return any(Path(one).is_relative_to(shared) for one in (path, os.path.realpath(path)) for shared in _SHARED)


def _values(place: str, value: Any, joint: str = ".") -> Iterator[tuple[str, Any]]:
    yield place, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(f"{place}{joint}{plain_name(key)}", inner)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _values(f"{place}[{at}]", inner)


def _check_heartbeat(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    servers = None if isinstance(kit.resources, Problem) else kit.resources.get("servers")
    if not isinstance(servers, list) or not servers or not all(isinstance(one, Mapping) for one in servers):
        yield Doubt(kit.resources_file, "expected a list 'servers'")
        return
    for at, one in enumerate(servers):
        seconds = one.get("heart_beat_timeout", 600)
        if not isinstance(seconds, int | float) or not 0 < seconds <= _HEARTBEAT:
            place = f"{kit.resources_file}:servers[{at}].heart_beat_timeout"
            yield Defect(place, shown(seconds), f"at most {_HEARTBEAT} seconds")


OPERATION = (
    Rule(
        "FFA-701",
        Severity.high,
        "No log leaves a site",
        "Logs hold paths, names and whatever an error quotes; FLARE's template streams them to the server.",
        "Set allow_log_streaming false, and take the log streamers out of the components.",
        "GDPR 5(1)(c)",
        (Check(("site", "server"), _check_streaming),),
    ),
    Rule(
        "FFA-802",
        Severity.high,
        "As many sites as the plan and the policy say",
        "FLARE starts a job with as many sites as meta.json says; sums of fewer than three tell a site about another.",
        "Make the job again from its plan (fairflare jobs make); ask for a larger min_sites.",
        "NIST AI 100-2 2.4",
        (check_job_files("FFA-802"), Check(("job",), _check_quorum), check_plan("FFA-802")),
    ),
    Rule(
        "FFA-803",
        Severity.high,
        "No more rounds than agreed",
        "Every round is one more sum about the same patients.",
        "Ask the researcher for fewer rounds, or raise most_rounds in the policy.",
        "GDPR 5(1)(e)",
        (check_plan("FFA-803"),),
    ),
    Rule(
        "FFA-804",
        Severity.high,
        "What must last, and what others must not read, has a folder of its own",
        "In a shared temporary folder others can read or replace it, and it is gone after a restart.",
        "Name a folder that belongs to FLARE's user, outside of the kit for a site's store, inside for the server's.",
        "45 CFR 164.312(c)(1); GDPR 5(1)(e)",
        (Check(("server",), _check_stores), Check(("site",), _check_site_store, needs_policy=True, of_policy=True)),
    ),
    Rule(
        "FFA-805",
        Severity.medium,
        "A lost site is noticed soon",
        "Until then every round waits for it, and a job can hang for as long as ten minutes at a time.",
        "Set heart_beat_timeout to 60 seconds in the server's resources.json.",
        "GDPR 32(1)(b)",
        (Check(("server",), _check_heartbeat),),
    ),
)

__all__ = ["OPERATION"]
