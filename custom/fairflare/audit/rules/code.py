# SPDX-License-Identifier: Apache-2.0
"""Rules 2xx, code: what may run at a site, who may ask for it, and that a job is a plan and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from fairflare.audit.evidence import Evidence, Kit
from fairflare.audit.folder import Problem, plain_name, shown
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity
from fairflare.audit.rules.violations import check_job_files
from fairflare.jobs import AGGREGATOR, CONTROLLER, EXECUTOR
from fairflare.jobs.meta import is_same

VALIDATOR: Final = "fairflare.flare.validator.PlanValidator"
SHUTTERS: Final = "fairflare.flare.shutters.Shutters"
INTAKE: Final = "fairflare.flare.intake.Intake"
KIT_CHECK: Final = "fairflare.flare.kit.KitCheck"
VETO_NOTES: Final = "fairflare.flare.vetoes.VetoNotes"
PRESENCE: Final = "fairflare.flare.presence.ServerPresence"
LIMITS: Final = "fairflare.flare.limits.ServerLimits"
QUOTA: Final = "fairflare.flare.quota.ServerQuota"
RECOVERY: Final = "fairflare.flare.recovery.ServerRecovery"
#: Parts of a kit that look at things besides validator and shutters.
_OWN: Final[Mapping[str, tuple[str, ...]]] = {
    "server": (INTAKE, KIT_CHECK, VETO_NOTES, LIMITS, QUOTA),
    "site": (KIT_CHECK,),
}

#: What FLARE may build for a job of ours.
JOB_CLASSES: Final = frozenset({CONTROLLER, AGGREGATOR, EXECUTOR})
#: What may stand in a kit's own configuration: parts that FLARE cannot work without, and ours.
KIT_CLASSES: Final = frozenset(
    {
        VALIDATOR,
        SHUTTERS,
        INTAKE,
        KIT_CHECK,
        VETO_NOTES,
        PRESENCE,
        LIMITS,
        QUOTA,
        RECOVERY,
        "fairflare.flare.storage.KitStorage",
        "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
        "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher",
        "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
        "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
        "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
        "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
        "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
        "nvflare.app_common.storages.filesystem_storage.FilesystemStorage",
    }
)
#: FLARE's classes that send a site's logs away, or take them: rule 701 has its own words for them.
LOGGING: Final = "nvflare.app_common.logging."

_PARTS: Final = "the parts of FLARE that a kit needs, and FairFlare's own"
_SHELL: Final = ("shell_commands", "cat", "grep", "head", "ls", "pwd", "tail")
_CODE: Final = ("byoc", "server-predeployed-flwr")


def _check_byoc(evidence: Evidence) -> Iterator[Outcome]:
    yield from _check_rights(evidence.kit, _CODE)


def _check_shell_right(evidence: Evidence) -> Iterator[Outcome]:
    for one in _check_rights(evidence.kit, _SHELL):
        yield replace(one, severity=Severity.high) if isinstance(one, Defect) else one


def _check_rights(kit: Kit, rights: tuple[str, ...]) -> Iterator[Outcome]:
    found, place = kit.authorization, kit.authorization_file
    roles = None if isinstance(found, Problem) else found.get("permissions")
    if not isinstance(roles, Mapping):
        reason = f"the file {found.text}" if isinstance(found, Problem) else "expected 'permissions'"
        yield Doubt(place, reason)
        return
    for role, given in roles.items():
        at = f"{place}:permissions.{plain_name(role)}"
        if not isinstance(given, Mapping):
            if not _denied(given):
                yield Defect(at, shown(given), f"every right written out, '{rights[0]}' none")
            continue
        for right, who in given.items():
            name = " ".join(str(right).lower().split())  # as FLARE reads it
            if name in rights and not _denied(who):
                yield Defect(f"{at}.{name}", shown(who), "'none'")


def _denied(who: Any) -> bool:
    """Whether FLARE gives a right to nobody: "not none" gives it to everybody, and so does a list with one other."""
    given = who if isinstance(who, list) else [who]
    texts = [" ".join(one.lower().split()) if isinstance(one, str) else "?" for one in given]
    return bool(texts) and all(text in ("none", "no", "not any", "not all") for text in texts)


def _check_signed_jobs(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    if isinstance(kit.startup, Problem):
        yield Doubt(kit.startup_file, f"the file {kit.startup.text}")
    elif kit.startup.get("require_signed_jobs") is False:
        yield Defect(f"{kit.startup_file}:require_signed_jobs", "false", "true")
    elif "require_signed_jobs" not in kit.startup and "startup/rootCA.pem" not in kit.folder.entries:
        # FLARE's default is true only where there is a root certificate.
        yield Defect(f"{kit.startup_file}:require_signed_jobs", "nothing, and no rootCA.pem", "true")


def _check_classes(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    if isinstance(kit.resources, Problem):
        yield Doubt(kit.resources_file, f"the file {kit.resources.text}")
        return
    mode = kit.resources.get("class_list_enforcement_mode", "enforce")
    if mode != "enforce":
        place = f"{kit.resources_file}:class_list_enforcement_mode"
        yield Defect(place, shown(mode), "'enforce'", Severity.critical)
    place = f"{kit.resources_file}:class_allow_list"
    listed = kit.resources.get("class_allow_list")
    if listed is None:
        yield Defect(place, "nothing, so FLARE's own long list", "FairFlare's classes, one by one")
    elif not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        yield Doubt(place, "expected a list of class paths")
    else:
        for one in listed:
            if one == "*" or one.endswith("."):
                yield Defect(place, shown(one), "classes one by one, no prefix", Severity.critical)
        odd = [one for one in listed if one not in JOB_CLASSES and one != "*" and not one.endswith(".")]
        if odd:
            yield Defect(place, f"{len(odd)} other classes, such as {shown(odd[0])}", "FairFlare's classes only")


def _check_validator(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    wanted = {"policy": kit.kind == "site"}
    found = []
    for name, document in kit.documents():
        if isinstance(document, Problem):
            yield Doubt(name, f"the file {document.text}")
        elif "app_validator" in document:
            found.append((f"{name}:app_validator", document["app_validator"]))
    if not found:
        yield Defect(f"{kit.resources_file}:app_validator", "none", VALIDATOR)
    for place, _ in found[1:]:
        yield Defect(place, "a second validator, which FLARE merges with the first", "one")
    for place, one in found[:1]:
        if not isinstance(one, Mapping) or one.get("path") != VALIDATOR or one.get("disabled") is True:
            yield Defect(place, "another or a disabled validator", VALIDATOR)
        elif not is_same(one.get("args"), wanted):
            yield Defect(f"{place}.args", "other arguments", f"policy {str(wanted['policy']).lower()}, nothing else")


def _check_shutters(evidence: Evidence) -> Iterator[Outcome]:
    yield from _check_built(evidence.kit, (SHUTTERS,), "no shutters")


def _check_own(evidence: Evidence) -> Iterator[Outcome]:
    yield from _check_built(evidence.kit, _OWN[evidence.kit.kind], "a kit without them")


def _check_built(kit: Kit, wanted: tuple[str, ...], got: str) -> Iterator[Outcome]:
    yield from (one for one in kit.components() if isinstance(one, Doubt))
    built = _built(kit)
    missing = [path for path in wanted if path not in built]
    if missing:
        yield Defect(f"{kit.resources_file}:components", got, ", ".join(missing))


def _built(kit: Kit) -> set[str]:
    """Components without arguments that FLARE builds in the parent and in every job process alike."""
    own = f"{kit.resources_file}:"
    return {
        one.path
        for one in kit.components()
        if not isinstance(one, Doubt) and one.args == {} and not one.disabled and one.place.startswith(own)
    }


def _check_components(evidence: Evidence) -> Iterator[Outcome]:
    kit = evidence.kit
    for name, document in kit.documents():
        if isinstance(document, Problem):
            yield Doubt(name, f"the file {document.text}")
    for one in kit.classes():
        elsewhere = one.path.startswith(LOGGING) or one.place.endswith(":app_validator")  # rules 701 and 205
        if one.path not in KIT_CLASSES and one.path not in JOB_CLASSES and not elsewhere:
            yield Defect(one.place, shown(one.path), _PARTS)
    yield from (one for one in kit.components() if isinstance(one, Doubt) and ":" in one.place)
    for name in kit.folder.files("local/custom", "startup/custom"):
        yield Defect(plain_name(name), "code in the kit", "the installed package only")
    for folder in ("local", "startup"):
        found = kit.folder.json(f"{folder}/comm_config.json")
        if isinstance(found, Mapping) and "comm_driver_path" in found:
            yield Defect(f"{folder}/comm_config.json:comm_driver_path", "drivers from a folder", _PARTS)
    yield from _check_privacy_parts(kit)


def _check_privacy_parts(kit: Kit) -> Iterator[Outcome]:
    """FLARE also builds what stands in privacy.json; of filters for results rule 301 speaks."""
    found = {} if isinstance(kit.privacy, Problem) else kit.privacy
    scopes = found.get("scopes", [])
    parts = [("components", found.get("components", []))]
    for at, scope in enumerate(scopes if isinstance(scopes, list) else []):
        if isinstance(scope, Mapping):
            parts.append((f"scopes[{at}].task_data_filters", scope.get("task_data_filters", [])))
    for place, items in parts:
        if items:
            yield Defect(f"local/privacy.json:{place}", shown(items), "nothing")


CODE = (
    Rule(
        "FFA-201",
        Severity.critical,
        "No job brings code",
        "Code from a job can read whatever FLARE's user can read, and FLARE's class allow-list is off for such a job.",
        "Write byoc 'none' for every role in authorization.json; take custom/, images and paths out of the job.",
        "NVIDIA FLARE authorization; AI Act 15",
        (Check(("site", "server"), _check_byoc), check_job_files("FFA-201")),
    ),
    Rule(
        "FFA-202",
        Severity.high,
        "Jobs must be signed",
        "An unsigned job could have been changed on its way, or be nobody's.",
        "Write require_signed_jobs true (project.yml), and install the new kit.",
        "45 CFR 164.312(c)(1)",
        (Check(("site", "server"), _check_signed_jobs),),
    ),
    Rule(
        "FFA-203",
        Severity.high,
        "Only reviewed code and configuration",
        "Any other component, file or setting can move data past the release gate.",
        "Make the job again from its plan (fairflare jobs make); take the other components and files out of the kit.",
        "NIST AI 100-2 2.3",
        (Check(("site", "server"), _check_components), check_job_files("FFA-203")),
    ),
    Rule(
        "FFA-204",
        Severity.high,
        "FLARE builds listed classes only",
        "Every class of the list is one that a job may start at a site, with arguments of its own choice.",
        "List FairFlare's classes one by one in resources.json, with class_list_enforcement_mode 'enforce'.",
        "NVIDIA FLARE component policy",
        (Check(("site", "server"), _check_classes),),
    ),
    Rule(
        "FFA-205",
        Severity.high,
        "Every job is checked before it is unpacked for use",
        "The validator is where a site's policy refuses a plan; without it any job of allowed classes runs.",
        "Put FairFlare's validator into resources.json as app_validator, with policy true at a site.",
        "GDPR 25",
        (Check(("site", "server"), _check_validator),),
    ),
    Rule(
        "FFA-206",
        Severity.critical,
        "The remote shell and other doors are shut",
        "FLARE's shell lets a hostile server read any file that FLARE's user can read, in spite of authorization.json.",
        "Put FairFlare's shutters into the components of resources.json; write shell_commands 'none' for every role.",
        "45 CFR 164.312(a)(1); GDPR 32",
        (Check(("site",), _check_shutters), Check(("site", "server"), _check_shell_right)),
    ),
    Rule(
        "FFA-207",
        Severity.medium,
        "The kit's smaller checks are in place",
        "Without them an expired kit is silent, one job's broken meta data stop all jobs, and records omit refusals.",
        "Put FairFlare's components back into resources.json, or install the kit anew.",
        "AI Act 15",
        (Check(("site", "server"), _check_own),),
    ),
)

__all__ = ["CODE", "JOB_CLASSES", "KIT_CLASSES", "LOGGING", "SHUTTERS", "VALIDATOR"]
