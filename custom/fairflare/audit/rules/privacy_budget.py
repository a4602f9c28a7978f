# SPDX-License-Identifier: Apache-2.0
"""Rules 402 to 410: whether noise protects, what it does not cover, and whether every release was paid for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from fairflare.audit.evidence import PLAN, Evidence
from fairflare.audit.folder import Problem, plain_name
from fairflare.audit.rule import Check, Defect, Doubt, Outcome, Rule, Severity, Skip
from fairflare.audit.store import Account, Ended, accounts, ended
from fairflare.errors import FairFlareError
from fairflare.plan import DifferentialPrivacy, Plan
from fairflare.policy import CATALOG_NAME, read_catalog
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.bill import (
    LEAST_BATCH,
    MOST_RATE,
    Line,
    counting,
    drawn_in_public,
    measuring,
    planned,
    sampling,
    training,
)
from fairflare.privacy.ledger import Entry, load_accounting
from fairflare.privacy.loss import DpSgd, Mechanism
from fairflare.record import LostRound, RoundRecord, RunRecord

#: Most epsilon for the life of a data set: beyond it a bound says next to nothing. Our choice: no norm fixes it.
MOST_EPSILON: Final = 8.0
#: Most delta: the chance that the bound does not hold.
MOST_DELTA: Final = 1e-5
#: Tasks before which a site pays for group sums, where the method does not say that each round has them.
_MEASURE: Final = "measure"
_FIELD: Final = f"{PLAN}:differential_privacy"
_NONE: Final = Skip("the plan has no differential privacy")
_NO_BUDGET: Final = Skip("the policy has no budget for differential privacy")


def _private(evidence: Evidence) -> tuple[Plan, DifferentialPrivacy] | Doubt | Skip:
    plan = evidence.job.plan
    if plan is None:
        return Doubt(PLAN, "there is no plan that can be read")
    return _NONE if plan.differential_privacy is None else (plan, plan.differential_privacy)


def _check_plan_cost(evidence: Evidence) -> Iterator[Outcome]:
    """What a plan costs by itself, as far as that follows from the plan alone."""
    found = _private(evidence)
    if isinstance(found, Doubt | Skip):
        yield found
        return
    most = None
    if evidence.policy is not None and evidence.policy.policy is not None:
        most = evidence.policy.policy.differential_privacy
    terms = most or MostPrivacyLoss(epsilon=MOST_EPSILON, delta=MOST_DELTA, relation="add_remove")
    limit = min(MOST_EPSILON, terms.epsilon)
    try:
        cost, known = _cost(*found), drawn_in_public(found[0])
        spent = load_accounting().epsilon(cost, terms.delta, terms.relation).value
    except FairFlareError as problem:
        yield Doubt(_FIELD, f"what the plan costs could not be counted ({problem.code})")
        return
    if spent > limit:
        what = "the plan alone" if known else "its counts and group sums alone"
        yield Defect(_FIELD, f"epsilon {spent:.3g} at delta {terms.delta:g} by {what}", f"at most {limit:g}")
    elif not known:
        yield Skip("the chance to be in a batch depends on a site's patients: 'fairflare plan privacy' counts that")


def _cost(plan: Plan, privacy: DifferentialPrivacy) -> tuple[Mechanism, ...]:
    """All releases of a plan that runs in one session; without steps where their sampling is not public."""
    all_ = (one for round_ in planned(plan, privacy, 1) for one in round_)
    return tuple(one for one in all_ if drawn_in_public(plan) or not isinstance(one, DpSgd))


def _check_policy_budget(evidence: Evidence) -> Iterator[Outcome]:
    most = evidence.site_policy.differential_privacy
    if most is None:
        yield _NO_BUDGET
    elif most.epsilon > MOST_EPSILON:
        place = f"{evidence.policy_file}:differential_privacy.epsilon"
        yield Defect(place, f"{most.epsilon:g}", f"at most {MOST_EPSILON:g}")


def _check_delta(evidence: Evidence) -> Iterator[Outcome]:
    most = evidence.site_policy.differential_privacy
    if most is None:
        yield _NO_BUDGET
    elif most.delta > MOST_DELTA:
        place = f"{evidence.policy_file}:differential_privacy.delta"
        yield Defect(place, f"{most.delta:g}", f"at most {MOST_DELTA:g}, and a tenth of one over the patients")


def _check_sampling(evidence: Evidence) -> Iterator[Outcome]:
    found = _private(evidence)
    if isinstance(found, Doubt | Skip):
        yield found
        return
    batch = found[0].training.batch
    place = f"{PLAN}:training.batch.amount"
    if batch.unit == "batches_per_epoch" and 1 / batch.amount > MOST_RATE:
        yield Defect(place, f"a batch of 1/{batch.amount} of the patients", f"at most {MOST_RATE:g} of them")
    elif batch.unit == "records" and batch.amount < LEAST_BATCH:
        yield Defect(place, f"{batch.amount} patients in a batch on average", f"at least {LEAST_BATCH}")


def _check_not_covered(evidence: Evidence) -> Iterator[Outcome]:
    found = _private(evidence)
    if isinstance(found, Doubt | Skip):
        yield found
        return
    groups = found[1].groups
    got = "exact sums of validation and test records beside it"
    yield Defect(_FIELD, got, "that everybody who approves knows it: masks and the smallest cell protect them")
    if groups is not None and groups.shared:
        masking = found[0].protection.masking
        most = 0 if masking is None else masking.colluders
        got = "noise of group sums that hospitals add together"
        yield Defect(f"{_FIELD}.groups.shared", got, f"at most {most} hospitals that tell the server their parts")


def _check_limit(evidence: Evidence) -> Iterator[Outcome]:
    found = _private(evidence)
    if isinstance(found, Doubt | Skip):
        yield found
    elif _is_open(evidence, found[0].task.data_set):
        yield Skip("the kit's catalogue says that the data set is public")
    elif evidence.site_policy.differential_privacy is None:
        got = "null, so plans with differential privacy may cost any epsilon"
        yield Defect(f"{evidence.policy_file}:differential_privacy", got, "a budget for the life of a data set")


def _is_open(evidence: Evidence, data_set: str) -> bool:
    """Whether the site's catalogue calls a data set public; where that is not known, it is patients'."""
    kit = evidence.a_kit
    if kit is None or isinstance(kit.folder.content(f"local/{CATALOG_NAME}"), Problem):
        return False
    try:
        entry = (read_catalog(kit.root / "local" / CATALOG_NAME).data_sets or {}).get(data_set)
    except FairFlareError:  # another rule speaks of it
        return False
    return entry is not None and entry.public


# -------------------------------------------------------------------------------------------------------------- ledgers


def _check_ledgers(evidence: Evidence) -> Iterator[Outcome]:
    found = {one.data_set: one for one in accounts(evidence.kit, evidence.site_policy)}
    for one in found.values():
        if one.broken:
            yield Defect(
                _place(one.data_set), f"a ledger that is refused ({one.broken})", "the file as the site wrote it"
            )
        elif one.doubt:
            yield Doubt(_place(one.data_set), one.doubt)
    runs = [one for one in ended(evidence.kit) if isinstance(one, Doubt) or one.record.plan.differential_privacy]
    yield from (one for one in runs if isinstance(one, Doubt))
    own = [one for one in runs if isinstance(one, Ended)]
    for run in own:
        yield from _check_run(evidence, run, found.get(run.record.plan.task.data_set))
    if not found and not runs:
        yield Skip("this site has released nothing with noise yet")


def _check_run(evidence: Evidence, run: Ended, account: Account | None) -> Iterator[Outcome]:
    place = f"{plain_name(run.job)}/fairflare/models/record.json"
    site = evidence.kit.site_name
    if site is None:
        yield Doubt(place, "the kit's certificate does not say which of the sites this is")
    elif account is None:
        yield Defect(place, "private training, and no ledger of the data set", "every release in a ledger")
    elif not account.broken and not account.doubt:
        missing = _missing(run, site, account.entries)
        if missing:
            rounds = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
            got = f"round {rounds}: releases that the ledger lacks, or has with less cost"
            yield Defect(place, got, "every release paid before its noise is drawn")


def _place(data_set: str) -> str:
    return f"ledger of {data_set}"


def _missing(run: Ended, site: str, entries: Sequence[Entry]) -> list[int]:
    """Rounds (the first is 1) of which the ledger lacks something that the site sent, as the record has it.

    What a run that was resumed did before is looked for under any job's name: its record has the last one's only.
    """
    record, plan = run.record, run.record.plan
    privacy = plan.differential_privacy
    if privacy is None or not record.sessions:
        return []
    own = [one for one in entries if one.release.plan_sha256 == plan.sha256]
    last = record.sessions[-1].first_round
    missing: list[int] = []
    counted = False
    for line in _rounds(record):
        tasks = [task for task, sites in line.participants.items() if site in sites]
        if not tasks:
            continue
        here = [one for one in own if line.round < last or one.release.job == run.job]
        bill: list[Line] = [training(privacy, sampling(plan, 1))]
        bill += measuring(plan, privacy) if _MEASURE in tasks or plan.method.lagged else ()
        paid = [one for one in here if one.release.round == line.round]
        whole = all(_has(paid, plan, one) for one in bill)
        if line.round >= last and not counted:
            counted = True
            whole = whole and all(_has(here, plan, one) for one in counting(plan, privacy))
        if not whole:
            missing.append(line.round + 1)
    return missing


def _rounds(record: RunRecord) -> Iterator[RoundRecord | LostRound]:
    lines: list[RoundRecord | LostRound] = [*record.rounds, *record.lost_rounds]
    yield from sorted(lines, key=lambda line: line.round)


def _has(entries: Sequence[Entry], plan: Plan, line: Line) -> bool:
    """Whether a release is among ``entries``, with the cost that the plan gives it."""
    what, wanted = line
    for entry in entries:
        found = entry.release.mechanism
        if entry.release.what != what:
            continue
        if found == wanted:
            return True
        if isinstance(wanted, DpSgd) and isinstance(found, DpSgd) and not drawn_in_public(plan):
            # How many patients a site has is not in the record, so neither are its batches.
            steps = plan.training.work.unit == "epochs" or found.steps == wanted.steps
            if found.sigma == wanted.sigma and steps:
                return True
    return False


PRIVACY_BUDGET = (
    Rule(
        "FFA-402",
        Severity.critical,
        "The noise is enough to protect anybody",
        "Above an epsilon of 8 the promise is empty: with such little noise it can be told who was in training.",
        "Ask the researcher for more noise, smaller batches or fewer rounds (fairflare plan privacy).",
        "NIST SP 800-226",
        (
            Check(("job",), _check_plan_cost),
            Check(("site",), _check_policy_budget, needs_policy=True, of_policy=True),
        ),
    ),
    Rule(
        "FFA-403",
        Severity.high,
        "The promise fails with a chance that is next to nothing",
        "Delta is the chance that the promise does not hold; near one over the patients it may give one of them away.",
        "Write a delta of at most 1e-5 into the policy, and of a tenth of one over the number of patients.",
        "NIST SP 800-226",
        (Check(("site",), _check_delta, needs_policy=True, of_policy=True),),
    ),
    Rule(
        "FFA-405",
        Severity.medium,
        "Batches are a small part of the patients, and large beside the noise",
        "Of a large part sampling hides nobody, so noise costs more; in a small batch it drowns what is learnt.",
        "Ask the researcher for at least ten batches in an epoch, and at least 64 patients in a batch.",
        "NIST SP 800-226",
        (Check(("job",), _check_sampling),),
    ),
    Rule(
        "FFA-407",
        Severity.critical,
        "Every release with noise was paid for, in a ledger that is whole",
        "What is not in the ledger was given away for nothing; in one that was put back, it can be spent again.",
        "Release nothing more of the data set; put the newest copy back; find out what was sent and not written down.",
        "NIST SP 800-226; 45 CFR 164.312(c)(1)",
        (Check(("site",), _check_ledgers, needs_policy=True),),
    ),
    Rule(
        "FFA-409",
        Severity.low,
        "What differential privacy does not cover is known",
        "Noise covers patients of training; sums of validation and test records are exact. Shared noise needs trust.",
        "Nothing, if every hospital knows and agrees; keep the smallest cell at 11 or more.",
        "NIST SP 800-226",
        (Check(("job",), _check_not_covered),),
    ),
    Rule(
        "FFA-410",
        Severity.medium,
        "Patients' data have a budget",
        "Without one, costs are counted and nothing ends them: plan after plan may ask the same patients.",
        "Write differential_privacy into the policy: epsilon, delta and relation, for the life of a data set.",
        "NIST SP 800-226; GDPR 25",
        (Check(("job",), _check_limit, needs_policy=True, of_policy=True),),
    ),
)

__all__ = ["MOST_DELTA", "MOST_EPSILON", "PRIVACY_BUDGET"]
