# SPDX-License-Identifier: Apache-2.0
"""Applies the rules to a job or a start-up kit; a rule that fails to run is undecided, never passed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fairflare import __version__
from fairflare.audit.evidence import (
    Evidence,
    Kit,
    Policy,
    key_digest,
    read_job,
    read_kit_policy,
    read_policy_file,
)
from fairflare.audit.findings import Finding, NotChecked, Report, Undecided
from fairflare.audit.folder import plain_name
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Target
from fairflare.audit.rules import RULES
from fairflare.errors import AuditError
from fairflare.policy.approvals import approved_plans

__all__ = ["audit_job", "audit_kit"]


def audit_kit(kit: Path, *, now: datetime | None = None) -> Report:
    """Audit a start-up kit, with the policy in its ``local/`` if there is one.

    Raises
    ------
    AuditError
        ``FF-AUDIT-FOLDER`` or ``FF-AUDIT-KIT``: there is nothing to audit.
    """
    return _audit(_evidence(None, None, kit, now))


def audit_job(job: Path, *, policy: Path | None = None, kit: Path | None = None, now: datetime | None = None) -> Report:
    """Audit a job's folder, against a policy and the kit of the site that would run it, where they are given.

    Without ``policy``, the policy is the kit's. Raises as :func:`audit_kit` does, and ``FF-AUDIT-POLICY`` if there is
    no policy where one was named.
    """
    return _audit(_evidence(job, policy, kit, now))


def _evidence(job: Path | None, policy: Path | None, kit: Path | None, now: datetime | None) -> Evidence:
    for folder in (job, kit):
        if folder is not None and not folder.is_dir():
            raise AuditError(
                "FF-AUDIT-FOLDER",
                got="the name of something that is no folder, or is not there",
                expected="a job's folder, or a start-up kit's",
                next_step="correct the path, or unpack the archive first",
            )
    found = Evidence(now or datetime.now(timezone.utc))
    found.a_kit = None if kit is None else Kit(kit)
    if policy is not None:
        found.policy = read_policy_file(policy)
        if found.policy.absent:
            raise AuditError(
                "FF-AUDIT-POLICY",
                got="the name of a policy that is not there",
                expected="a site_policy.json, or the folder that holds it",
                next_step="correct --policy",
            )
    elif found.a_kit is not None and found.a_kit.kind == "site":
        found.policy = read_kit_policy(found.a_kit)
    found.a_job = None if job is None else read_job(job)
    if found.a_kit is not None and found.policy is not None:
        found.approved = _approved(found.a_kit, found.policy, found.now.date())
    return found


def _approved(kit: Kit, given: Policy, today: date) -> frozenset[str]:
    """Plans that the kit's site has signed for: under its own policy, or another copy of it, and no other."""
    own = given if given.subject == "kit" else read_kit_policy(kit)
    # A policy that could not be read may be a pipe, or a link to anything: nobody must read it once more.
    if own.policy is None or given.policy is None or own.policy.terms_sha256 != given.policy.terms_sha256:
        return frozenset()
    certificate = kit.folder.content("startup/client.crt")
    return approved_plans(kit.root / "local", certificate if isinstance(certificate, bytes) else None, today=today)


def _audit(evidence: Evidence) -> Report:
    targets = _targets(evidence)
    checked: list[Rule] = []
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    not_checked: list[NotChecked] = []
    for rule in RULES.values():
        reasons = _why_not(rule, targets, evidence)
        before = len(reasons)
        able = _able(rule, targets, evidence)
        for check, target in able:
            subject = _subject(check, target, evidence)
            for one in _run(check, evidence):
                if isinstance(one, Defect):
                    severity = one.severity or rule.severity
                    findings.append(Finding(rule, severity, subject, one.place, one.got, one.allowed))
                elif isinstance(one, Doubt):
                    undecided.append(Undecided(rule, subject, one.place, one.reason))
                else:
                    reasons.append(one.reason)
        if len(able) > len(reasons) - before:
            checked.append(rule)
        else:
            not_checked.append(NotChecked(rule, "; ".join(reasons)))
    findings.sort(key=lambda one: (one.severity.rank, one.rule.id))
    return Report(
        tool=__version__,
        time=evidence.now,
        subjects=_subjects(evidence),
        facts=_facts(evidence),
        checked=tuple(checked),
        findings=tuple(findings),
        undecided=tuple(undecided),
        not_checked=tuple(not_checked),
        evidence=_digests(evidence),
    )


def _subject(check: Check, target: Target, evidence: Evidence) -> str:
    if check.of_policy:
        return "kit" if evidence.policy is None else evidence.policy.subject
    return "job" if target == "job" else "kit"


def _able(rule: Rule, targets: list[Target], evidence: Evidence) -> list[tuple[Check, Target]]:
    """The checks of a rule that have something to look at."""
    has_policy = evidence.policy is not None and evidence.policy.policy is not None
    runs = [(check, target) for check in rule.checks for target in check.targets if target in targets]
    return [(check, target) for check, target in runs if has_policy or not check.needs_policy]


def _run(check: Check, evidence: Evidence) -> Iterator[Outcome]:
    try:
        yield from check.function(evidence)
    except Exception as problem:  # hostile evidence may break a rule in any way: that is no pass
        yield Doubt("?", f"the rule could not be applied to these files ({type(problem).__name__})")


def _targets(evidence: Evidence) -> list[Target]:
    targets: list[Target] = []
    if evidence.a_job is not None:
        targets.append("job")
    if evidence.a_kit is not None:
        targets.append(evidence.a_kit.kind)
    return targets


def _why_not(rule: Rule, targets: list[Target], evidence: Evidence) -> list[str]:
    """Why a rule has nothing to look at; empty if it has."""
    if _able(rule, targets, evidence):
        return []
    if set(rule.targets) & set(targets):
        return ["there is no site policy that can be used" if evidence.policy else "no site policy was given"]
    return [f"looks at {', '.join(_WORDS[target] for target in rule.targets)}"]


_WORDS = {"job": "a job", "site": "a site's kit", "server": "the server's kit", "admin": "a person's kit"}


def _subjects(evidence: Evidence) -> dict[str, str]:
    found = {}
    if evidence.a_job is not None:
        plan = evidence.a_job.plan
        name = "a job whose plan cannot be read" if plan is None else f"the job '{plan.name}', plan {plan.sha256}"
        found["job"] = name
    if evidence.a_kit is not None:
        found["kit"] = f"{_WORDS[evidence.a_kit.kind]}, folder {plain_name(evidence.a_kit.root.resolve().name)}"
    if evidence.policy is not None:
        policy = evidence.policy
        place = "the kit's own" if policy.subject == "kit" else policy.place
        found["policy"] = f"{place}" if policy.policy else f"{place}: {policy.problem}"
    return found


def _facts(evidence: Evidence) -> dict[str, str]:
    if evidence.a_kit is None:
        return {}
    facts = {}
    root, own = evidence.a_kit.root_certificate(), evidence.a_kit.certificate()
    if isinstance(root, x509.Certificate):
        facts["SHA-256 of the root certificate"] = root.fingerprint(hashes.SHA256()).hex()
    if isinstance(own, x509.Certificate):
        facts["SHA-256 of this kit's public key"] = key_digest(own)
        facts["this kit's certificate is valid until"] = f"{own.not_valid_after_utc:%Y-%m-%d}"
    return facts


def _digests(evidence: Evidence) -> dict[str, tuple[str, int]]:
    found = {}
    if evidence.a_job is not None:
        found.update({f"job/{plain_name(name)}": one for name, one in evidence.a_job.folder.digests.items()})
    if evidence.a_kit is not None:
        found.update({f"kit/{plain_name(name)}": one for name, one in evidence.a_kit.folder.digests.items()})
    policy: Policy | None = evidence.policy
    if policy is not None and policy.subject == "policy" and policy.digest is not None:
        found[f"policy/{policy.place}"] = policy.digest
    return found
