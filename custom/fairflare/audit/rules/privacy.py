# SPDX-License-Identifier: Apache-2.0
"""Rules 3xx: what leaves passes the gate, and only what the hospital agreed to is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairflare.audit.evidence import Evidence
from fairflare.audit.folder import Problem, shown
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity, Skip
from fairflare.audit.rules.violations import check_plan
from fairflare.errors import FairFlareError
from fairflare.policy import CATALOG_NAME, read_catalog
from fairflare.policy.package import installed_digest

SEAL: Final = "fairflare.flare.seal.SealFilter"
PRIVACY: Final = "local/privacy.json"


def _scopes(evidence: Evidence) -> list[Any] | Problem:
    found = evidence.kit.privacy
    if isinstance(found, Problem):
        return found
    scopes = found.get("scopes")
    return scopes if isinstance(scopes, list) else Problem("has no list of scopes")


def _check_seal(evidence: Evidence) -> Iterator[Outcome]:
    scopes = _scopes(evidence)
    if isinstance(scopes, Problem):
        if scopes.absent:
            yield Defect(PRIVACY, "no privacy.json", f"a scope with {SEAL}")
        else:
            yield Doubt(PRIVACY, f"the file {scopes.text}")
        return
    for at, scope in enumerate(scopes):
        place = f"{PRIVACY}:scopes[{at}].task_result_filters"
        filters = scope.get("task_result_filters", []) if isinstance(scope, Mapping) else None
        if not isinstance(filters, list):
            yield Doubt(place, "expected a list")
        elif not any(_is_seal(one) for one in filters):
            yield Defect(place, "no seal on what leaves", SEAL)
        elif len(filters) > 1:
            yield Defect(place, f"{len(filters)} filters", "the seal alone: another one could change what was sealed")


def _is_seal(one: Any) -> bool:
    if not isinstance(one, Mapping) or one.get("path") != SEAL or one.get("disabled") is True:
        return False
    # "in" would look at results that arrive, of which a site has none.
    return one.get("args", {}) == {} and str(one.get("direction", "out")).lower() in ("out", "inout")


def _check_scopes(evidence: Evidence) -> Iterator[Outcome]:
    scopes = _scopes(evidence)
    if isinstance(scopes, Problem):
        if scopes.absent:
            yield Defect(PRIVACY, "no privacy.json, so FLARE allows every scope", "one scope, which is the default")
        else:
            yield Doubt(PRIVACY, f"the file {scopes.text}")
        return
    if len(scopes) != 1:
        yield Defect(f"{PRIVACY}:scopes", f"{len(scopes)} scopes", "exactly one: a job chooses among them")
    names = [one.get("name") for one in scopes if isinstance(one, Mapping)]
    default = None if isinstance(evidence.kit.privacy, Problem) else evidence.kit.privacy.get("default_scope")
    if default is None or default not in names:
        yield Defect(f"{PRIVACY}:default_scope", shown(default), "the name of the scope")


def _check_policy(evidence: Evidence) -> Iterator[Outcome]:
    policy, place = evidence.policy, evidence.policy_file
    if policy is None or policy.absent:
        got = "no site policy, so this site takes part in nothing"
        yield Defect(place, got, "a policy of this hospital", Severity.medium)
    elif policy.policy is None:
        yield Defect(place, policy.problem, "a policy that can be read as it was meant")
    elif policy.policy.is_expired(evidence.now.date()):
        yield Defect(f"{place}:expires", f"'{policy.policy.expires}'", "a day to come", Severity.medium)
    elif policy.policy.package not in (None, installed_digest()):
        got = f"'{policy.policy.package}', and this audit is by the package {installed_digest()}"
        yield Defect(f"{place}:package", got, "the package that this site runs, and audits with", Severity.medium)


def _check_job_policy(evidence: Evidence) -> Iterator[Outcome]:
    if evidence.policy is None:
        yield Skip("no site policy was given")
    elif evidence.a_kit is None or evidence.a_kit.kind != "site":  # else the kit's check speaks of it
        yield from _check_policy(evidence)


def _check_catalog(evidence: Evidence) -> Iterator[Outcome]:
    kit, place = evidence.kit, f"local/{CATALOG_NAME}"
    found = kit.folder.content(place)
    if isinstance(found, Problem):
        if found.absent:
            yield Defect(place, "no data catalogue, so this site offers no data", "a catalogue of this hospital")
        else:
            yield Doubt(place, f"the file {found.text}")
        return
    try:
        read_catalog(kit.root / "local" / CATALOG_NAME)
    except FairFlareError as problem:
        yield Defect(place, f"a catalogue that is refused ({problem.code})", "one that can be read", Severity.high)


def _check_open_approval(evidence: Evidence) -> Iterator[Outcome]:
    if evidence.site_policy.plans is None:
        yield Defect(
            f"{evidence.policy_file}:plans", "null, so any plan", "the hashes of approved plans, or signed ones"
        )


PRIVACY_RULES = (
    Rule(
        "FFA-301",
        Severity.high,
        "What leaves carries the gate's seal",
        "The seal is how a site sees that a result came through its release gate, and nothing rides along.",
        "Put the seal filter alone into task_result_filters of the only scope in local/privacy.json.",
        "GDPR 25",
        (Check(("site",), _check_seal),),
    ),
    Rule(
        "FFA-303",
        Severity.high,
        "One privacy scope, which every job gets",
        "Without privacy.json FLARE allows every scope; with several, the job chooses the one that suits it.",
        "Write local/privacy.json with one scope and its name as default_scope, as FairFlare's kits have it.",
        "NVIDIA FLARE site policy",
        (Check(("site",), _check_scopes),),
    ),
    Rule(
        "FFA-304",
        Severity.high,
        "The job asks for what the policy allows",
        "Data set, groups, features, networks and methods are what the ethics board has seen.",
        "Ask the researcher to change the plan; or ask the board, and then change the policy.",
        "GDPR 35; GDPR 5(1)(b)",
        (check_plan("FFA-304"),),
    ),
    Rule(
        "FFA-305",
        Severity.high,
        "The hospital has a policy that counts",
        "Without a policy, or with one that is broken, has expired or names another package, a site takes part in "
        "nothing.",
        "Write one with 'fairflare policy new'; look an expired one through before it gets a new day; install the "
        "package that it names.",
        "GDPR 24; GDPR 35",
        (Check(("site",), _check_policy, of_policy=True), Check(("job",), _check_job_policy, of_policy=True)),
    ),
    Rule(
        "FFA-306",
        Severity.medium,
        "The hospital says where its data are",
        "Plans name data sets; only the catalogue leads from a name to a folder.",
        "Fill in local/data_catalog.json.template and save it as local/data_catalog.json (fairflare data check).",
        "GDPR 30",
        (Check(("site",), _check_catalog),),
    ),
    Rule(
        "FFA-307",
        Severity.high,
        "The hospital has approved the plan",
        "A site answers each question once for each plan: whoever may choose plans may ask again, and subtract.",
        "Look at the plan (fairflare rehearse); list its hash in the policy, or sign it (fairflare policy approve).",
        "GDPR 35; ISO/IEC 27559 6.2",
        (
            check_plan("FFA-307"),
            Check(("site",), _check_open_approval, needs_policy=True, of_policy=True),
        ),
    ),
)

__all__ = ["PRIVACY_RULES", "SEAL"]
