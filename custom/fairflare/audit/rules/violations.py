# SPDX-License-Identifier: Apache-2.0
"""What the shared checks of jobs and policies say, sorted to the rules that speak of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fairflare.audit.evidence import PLAN, Evidence
from fairflare.audit.rule import Check, Defect, Doubt, Outcome
from fairflare.jobs.check import JobDefect

#: Field of a violation, or the beginning of it -> rule. The first that fits counts.
_RULES: Final = (
    ("plans", "FFA-307"),
    ("package", "FFA-305"),
    ("expires", "FFA-305"),
    ("differential_privacy", "FFA-401"),
    ("cells.", "FFA-501"),
    ("metrics", "FFA-502"),
    ("evaluation.", "FFA-502"),
    ("consents", "FFA-503"),
    ("protection.masking.", "FFA-605"),
    ("protection.", "FFA-601"),
    ("federation.", "FFA-802"),
    ("training.rounds", "FFA-803"),
    ("", "FFA-304"),
)

#: Fields of a policy that speak of a plan as a whole, and are none of its own.
_WHOLE: Final = ("plans", "package", "expires", "metrics")
#: Keys of meta.json that bring code with them, or other processes than FLARE's own.
_CODE_KEYS: Final = ("byoc", "launcher_spec", "image", "python_path", "entrypoint")
#: Keys that say which sites run a job, and how many of them are enough.
_SITE_KEYS: Final = ("min_clients", "deploy_map", "mandatory_clients")


def rule_of_defect(defect: JobDefect) -> str:
    """Id of the rule that speaks of a job's defect; one that nobody thought of is rule 203's."""
    key = defect.place.removeprefix("meta.json:")
    if defect.code == "FF-JOB-CODE" or (defect.code == "FF-JOB-META" and key in _CODE_KEYS):
        return "FFA-201"
    return "FFA-802" if defect.code == "FF-JOB-META" and key in _SITE_KEYS else "FFA-203"


def check_job_files(rule: str) -> Check:
    """The check of a job's folder, as far as ``rule`` speaks of it."""

    def function(evidence: Evidence) -> Iterator[Outcome]:
        for one in evidence.job.defects:
            if rule_of_defect(one) == rule:
                yield Defect(one.place, f"{one.got} ({one.code})", one.expected)

    return Check(("job",), function)


def rule_of(field: str) -> str:
    """Id of the rule that speaks of a violation in ``field``; a field that nobody thought of is rule 304's."""
    return next(rule for start, rule in _RULES if field.startswith(start))


def check_plan(rule: str) -> Check:
    """The check of a job's plan against a policy, as far as ``rule`` speaks of it."""

    def function(evidence: Evidence) -> Iterator[Outcome]:
        plan = evidence.job.plan
        if plan is None:
            yield Doubt(PLAN, "there is no plan that can be read")
            return
        for one in evidence.site_policy.check(plan, today=evidence.now.date(), approved=evidence.approved):
            if rule_of(one.field) == rule:
                place = PLAN if one.field in _WHOLE else f"{PLAN}:{one.field}"
                yield Defect(place, one.got, one.expected)

    return Check(("job",), function, needs_policy=True)
