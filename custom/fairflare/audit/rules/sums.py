# SPDX-License-Identifier: Apache-2.0
"""Rules 4xx to 6xx: small cells, differential privacy, and masks that open sums only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from fairflare.audit.evidence import PLAN, Evidence, key_digest
from fairflare.audit.folder import Problem, plain_name, shown
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity, Skip
from fairflare.audit.rules.violations import check_plan

#: Fewest records of a cell (Centers for Medicare and Medicaid Services: counts of 1 to 10 are not shown).
LEAST_CELL: Final = 11
#: Fewest sites of a sum: of two, each knows the other's part.
LEAST_SITES: Final = 3
#: Protections by which a server sees sums at most.
MASKED: Final = ("masked", "ckks")
ROSTER: Final = "local/roster.json"


def _check_cells(evidence: Evidence) -> Iterator[Outcome]:
    policy = evidence.site_policy
    if policy.cells_minimum < LEAST_CELL:
        yield Defect(f"{evidence.policy_file}:cells_minimum", str(policy.cells_minimum), f"at least {LEAST_CELL}")
    if policy.cells_sites < LEAST_SITES:
        place = f"{evidence.policy_file}:cells_sites"
        yield Defect(place, str(policy.cells_sites), f"at least {LEAST_SITES}", Severity.medium)


def _check_masks(evidence: Evidence) -> Iterator[Outcome]:
    plan = evidence.job.plan
    if plan is None:
        yield Doubt(PLAN, "there is no plan that can be read")
        return
    for field in ("update", "statistics"):
        if getattr(plan.protection, field) not in MASKED:
            yield Defect(f"{PLAN}:protection.{field}", shown(getattr(plan.protection, field)), "'masked'")


def _check_policy_masks(evidence: Evidence) -> Iterator[Outcome]:
    policy = evidence.site_policy
    for field in ("update", "statistics"):
        if getattr(policy.protection, field) not in MASKED:
            yield Defect(
                f"{evidence.policy_file}:protection.{field}", shown(getattr(policy.protection, field)), "'masked'"
            )
    if policy.least_sites < LEAST_SITES:
        yield Defect(f"{evidence.policy_file}:least_sites", str(policy.least_sites), f"at least {LEAST_SITES}")


def _check_identities(evidence: Evidence) -> Iterator[Outcome]:
    policy = evidence.site_policy
    if policy.identities != "kit":
        yield Defect(f"{evidence.policy_file}:identities", shown(policy.identities), "'kit'")
    if policy.peers is None:
        got, allowed = "null, so whoever the provisioner vouches for", "the other hospitals' keys, told by telephone"
        yield Defect(f"{evidence.policy_file}:peers", got, allowed, Severity.medium)


def _roster(evidence: Evidence) -> Mapping[str, object] | Doubt | Skip:
    roster = evidence.kit.folder.json(ROSTER)
    if isinstance(roster, Problem) and roster.absent:
        return Skip("there is no roster; it is a help for those who pin keys, and proves nothing")
    sites = roster.get("sites") if isinstance(roster, Mapping) else None
    return sites if isinstance(sites, Mapping) else Doubt(ROSTER, "expected an object 'sites'")


def _check_roster(evidence: Evidence) -> Iterator[Outcome]:
    sites, own = _roster(evidence), evidence.kit.certificate()
    if isinstance(sites, Doubt | Skip):
        yield sites
    elif not isinstance(own, Problem) and key_digest(own) not in sites.values():
        yield Defect(f"{ROSTER}:sites", "a roster without this site's key", "the roster of this kit's project")


def _check_pins(evidence: Evidence) -> Iterator[Outcome]:
    sites, pinned = _roster(evidence), evidence.site_policy.peers
    if isinstance(sites, Doubt | Skip) or pinned is None:
        yield Skip("there is no roster, or no pinned key")
        return
    for name in sorted(pinned):
        if pinned[name] != sites.get(name):
            place = f"{evidence.policy_file}:peers.{plain_name(name)}"
            yield Defect(place, "another key than the roster's", "the same key in both, as told by telephone")
    for name in sorted(set(sites) - set(pinned)):
        place, got = f"{evidence.policy_file}:peers", f"no key of {plain_name(name)}"
        yield Defect(place, got, "all sites of the roster", Severity.medium)


def _check_cohorts(evidence: Evidence) -> Iterator[Outcome]:
    if evidence.site_policy.cohort_changes > 0:
        place = f"{evidence.policy_file}:cohort_changes"
        yield Defect(place, str(evidence.site_policy.cohort_changes), "0")


SUMS = (
    Rule(
        "FFA-401",
        Severity.critical,
        "Differential privacy where the policy asks for it",
        "Exact sums tell more with every question.",
        "Ask the researcher for a plan with differential privacy (fairflare plan privacy writes one).",
        "NIST SP 800-226",
        (check_plan("FFA-401"),),
    ),
    Rule(
        "FFA-501",
        Severity.critical,
        "Small groups are held back",
        "A sum over a handful of patients is about each of them.",
        "Set cells.minimum in the plan and cells_minimum in the policy to 11 or more; data that are public need none.",
        "CMS cell size suppression policy",
        (check_plan("FFA-501"), Check(("site",), _check_cells, needs_policy=True, of_policy=True)),
    ),
    Rule(
        "FFA-502",
        Severity.high,
        "Statistics are of the agreed kinds, and no finer than agreed",
        "A histogram with thousands of bins has single patients in its bins.",
        "Ask the researcher for fewer score_bins, or for a plan without these statistics.",
        "GDPR 5(1)(c)",
        (check_plan("FFA-502"),),
    ),
    Rule(
        "FFA-503",
        Severity.high,
        "The hospital has given the consents that the plan needs",
        "They open sums of few hospitals' risks to all of them.",
        "Ask for more hospitals, or for the consent of those who may give it.",
        "GDPR 6; GDPR 35",
        (check_plan("FFA-503"),),
    ),
    Rule(
        "FFA-601",
        Severity.critical,
        "The server opens sums of at least three sites only",
        "One hospital's own update gives training images back; with masks the server has sums and nothing else.",
        "Set protection 'masked' in the plan, and protection and least_sites in the policy.",
        "NIST AI 100-2 2.4",
        (
            Check(("job",), _check_masks),
            check_plan("FFA-601"),
            Check(("site",), _check_policy_masks, needs_policy=True, of_policy=True),
        ),
    ),
    Rule(
        "FFA-602",
        Severity.critical,
        "Masks are agreed with the other hospitals, and with nobody who poses as them",
        "Keys that nobody vouches for let a server pose as all other sites, and open the last one's numbers.",
        "Set identities 'kit' in the policy, and pin the other hospitals' keys under peers.",
        "45 CFR 164.312(d)",
        (Check(("site",), _check_identities, needs_policy=True, of_policy=True),),
    ),
    Rule(
        "FFA-603",
        Severity.high,
        "Pinned keys are those of the roster",
        "Two lists that differ: the provisioner has made new keys since, or somebody's list was changed.",
        "Telephone the hospitals whose keys differ, and compare 'fairflare policy key' of both sides.",
        "45 CFR 164.312(d)",
        (
            Check(("site",), _check_roster),
            Check(("site",), _check_pins, needs_policy=True, of_policy=True),
        ),
    ),
    Rule(
        "FFA-604",
        Severity.medium,
        "Exact statistics go to one set of sites",
        "The difference of two exact sums is the sum of the sites in which they differ.",
        "Set cohort_changes 0 in the policy, and raise it by one when the hospitals agree to a change.",
        "CMS cell size suppression policy",
        (Check(("site",), _check_cohorts, needs_policy=True, of_policy=True),),
    ),
    Rule(
        "FFA-605",
        Severity.high,
        "Masks are as strong as the policy asks",
        "More colluding sites than the masks are made for can work out the others' numbers, finer weights their sizes.",
        "Ask the researcher for more colluders, or a larger weight_unit, in the plan's masking.",
        "NIST AI 100-2 2.4",
        (check_plan("FFA-605"),),
    ),
)

__all__ = ["LEAST_CELL", "LEAST_SITES", "SUMS"]
