# SPDX-License-Identifier: Apache-2.0
"""A plan tried at one hospital, offline, before it is approved: the policy's verdict, the data's, and real work.

Nothing of it leaves the machine or is remembered: it spends no question and writes to no memory or ledger.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import fairflare
from fairflare.data.check import check as check_data
from fairflare.engine.explain import explain
from fairflare.engine.job_traffic import job_messages, job_vectors
from fairflare.engine.masked import params_of
from fairflare.engine.messages import layout_of
from fairflare.engine.rehearsal_process import run_apart
from fairflare.engine.rehearsal_work import Request, Tell
from fairflare.errors import PolicyError, SecaggError
from fairflare.evaluation.rehearsal import Found, PlanFacts, PolicyVerdict, Rehearsal, Told, Work
from fairflare.he.parameters import nominal
from fairflare.models import build, parameter_count
from fairflare.plan import Plan
from fairflare.policy import Entry, SitePolicy, Violation
from fairflare.privacy.reveals import has_sent
from fairflare.secagg.identity import KIT

#: The field of a violation that says no more than that nobody has approved the plan yet.
_APPROVAL = "plans"


@dataclass(frozen=True)
class Question:
    """What is to be rehearsed.

    Attributes
    ----------
    plan, summary
        The plan, and lines about it for a person.
    site, entry, weights
        This site's name, where its data lie, and its folder of weight files.
    policy, approved
        The site's policy (``None``: none was given), and hashes of the plans with a signed approval.
    workspace
        The start-up kit that the policy lies in, where FLARE works; ``None``: it lies in none.
    sites
        How many sites would take part.
    quick
        A few steps only, scaled.
    modules
        What a job's process has loaded as well.
    """

    plan: Plan
    summary: tuple[str, ...]
    site: str
    entry: Entry
    weights: Path | None
    policy: SitePolicy | None
    approved: frozenset[str]
    workspace: Path | None
    sites: int
    quick: bool
    modules: tuple[str, ...] = ()


def rehearse(question: Question, watch: Tell) -> Rehearsal:
    """Look at policy and data, then do one round's work; ``watch`` is told how far it is.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-SITES``, ``FF-SECAGG-COLLUDERS``: masks for so many sites would not begin.
    """
    plan = question.plan
    layout = layout_of(plan, parameter_count(build(plan)))
    if plan.protection.masked:
        params_of(layout, KIT, nominal(question.sites)).verify_sites(question.sites)
    messages = job_messages(layout, question.sites)
    findings = check_data(plan, question.entry, lambda done, total: watch("looking at the data", done, total))
    data = tuple(Found(one.severity, one.code, one.text, one.next_step) for one in findings)
    work, failure = None, None
    if all(one.severity != "error" for one in data):
        done = run_apart(_request(question), question.modules, watch)
        work, failure = (done, None) if isinstance(done, Work) else (None, done)
    return Rehearsal(
        plan=_plan_facts(plan, question.summary), site=question.site, sites=question.sites, quick=question.quick,
        software=_software(), policy=_verdict(question), data=data, failure=failure, work=work,
        leaving=job_vectors(layout, messages), messages=messages, told=told(plan, question.sites, work),
    )  # fmt: skip


def _request(question: Question) -> Request:
    minimum = 0 if question.policy is None else question.policy.cells_minimum
    return Request(
        question.plan, question.site, question.entry, question.weights, question.sites, minimum, question.quick
    )


def _verdict(question: Question) -> PolicyVerdict | None:
    policy = question.policy
    if policy is None:
        return None
    found = list(policy.check(question.plan, approved=question.approved))
    missing = any(one.field == _APPROVAL for one in found)
    asked = policy.plans is not None or policy.approvals == "signed"
    defects = [_found(one) for one in found if one.field != _APPROVAL]
    try:
        policy.decisions_file(None, question.workspace)
        defects += _masks(question, policy)
    except (PolicyError, SecaggError) as problem:
        text = f"{problem.got}; expected {problem.expected}"
        defects.append(Found("error", problem.code, text, problem.next_step))
    return PolicyVerdict(tuple(defects), "missing" if missing else "given" if asked else "not asked for")


def _masks(question: Question, policy: SitePolicy) -> Iterator[Found]:
    """What this site would refuse when a job with masks begins: unknown sites, a question that was asked before."""
    plan = question.plan
    if not plan.protection.masked:
        return
    known = {question.site, *(policy.peers or ())}
    if policy.peers is not None and len(known) < plan.federation.min_sites:
        yield Found(
            "error", "FF-SECAGG-PIN",
            f"the policy knows {len(known)} sites with this one, and the plan needs {plan.federation.min_sites}: every "
            "other site is refused",
            "add the missing hospitals' keys to 'peers', as they read them out to you",
        )  # fmt: skip
    # Only a kit has one memory of a data set, whatever the site is called.
    if question.workspace is not None and has_sent(
        policy.memory_file(None, plan.task.data_set, question.workspace), plan.sha256
    ):
        yield Found(
            "error", "FF-SECAGG-REUSED",
            "this site has sent numbers for this plan before, and answers no question twice; only a run that goes on "
            "from its own record may continue",
            "ask for a plan with another seed, and look at what both together tell",
        )  # fmt: skip


def _found(one: Violation) -> Found:
    own = {"FF-POLICY-REFUSED": "ask for another plan, or, if the site agrees, change the policy"}
    return Found("error", one.code, str(one), own.get(one.code, one.next_step))


def _plan_facts(plan: Plan, summary: tuple[str, ...]) -> PlanFacts:
    return PlanFacts(
        name=plan.name, sha256=plan.sha256, data_set=plan.task.data_set, summary=summary, method=plan.method.name,
        trains=not plan.method.counts_only, masked=plan.protection.masked,
        private=plan.differential_privacy is not None,
        rounds=plan.training.rounds if not plan.method.counts_only else 1,
        deadline=plan.federation.task_timeout_seconds, minimum=plan.cells.minimum, cell_sites=plan.cells.sites,
    )  # fmt: skip


def _software() -> dict[str, str]:
    return {"fairflare": fairflare.__version__, "torch": torch.__version__, "python": platform.python_version()}


# ----------------------------------------------------------------------------------------------------------- sentences


def told(plan: Plan, sites: int, work: Work | None) -> Told:
    """What the numbers of this site could tell whom."""
    if plan.protection.masked and not plan.method.counts_only:
        found = explain(plan, sites, measure=False)
        server, hospitals, not_protected = found.server_learns, found.hospitals_learn, found.not_protected
    else:
        server, hospitals, not_protected = _other(plan, sites)
    own = () if work is None else tuple(_own(plan, work))
    return Told(server, hospitals, not_protected, own, tuple(_stays(plan)))


def _other(plan: Plan, sites: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The same for a plan that has no masks, or only counts."""
    if not plan.protection.masked:
        return _in_clear(plan)
    server = (
        "The sums over all sites: records of each cell that may be opened, and how many sites have enough of it.",
        "Who takes part, who refused with which code, and how long each answer took.",
    )
    hospitals = (
        "The same sums: every hospital that takes its own part away knows the sum of the others'.",
        f"{sites - 1} hospitals that put their numbers together know those of the last one: no sum can prevent that.",
    )
    not_protected = (
        "Another plan with nearly the same groups: the difference of two counts is a count of its own. Whoever "
        "approves plans must look at them together.",
        "The sum itself: exact numbers of records, without noise.",
    )
    return server, hospitals, not_protected


def _in_clear(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    server = ["IN CLEAR, as this site sends it: every number in the tables above. This plan has no masks."]
    hospitals = "The totals"
    if not plan.method.counts_only:
        server.append("An update in clear is enough to reconstruct training records in part.")
        hospitals += ", and the model of every round"
    server.append("Whoever runs the server, or may read its disk or memory, can look at all of it.")
    not_protected = "Everything: there are no masks, and there is no differential privacy."
    return tuple(server), (f"{hospitals}; only the server sees what a single site sent.",), (not_protected,)


def _own(plan: Plan, work: Work) -> Iterator[str]:
    """What the sums are about here, in this site's own numbers."""
    if work.smallest is not None:
        one = work.smallest
        label = f", {one.label}" if one.label else ""
        count = f"{one.records} record{'' if one.records == 1 else 's'}"
        yield f"The smallest group that is in a sum: {one.attribute} {one.group}{label} ({one.split}), {count} here."
    if plan.groups and plan.cells.sites < 2 and work.reported:
        yield (
            "A sum of a group that no other site has is this site's own (cells.sites is 1). Ask the others about: "
            f"{', '.join(work.reported)}."
        )
    if work.weight is not None:
        masking = plan.protection.masking
        unit = "" if masking is None else f", in units of {masking.weight_unit}"
        yield f"This site's update weighs {work.weight}: its {work.records['training']} training records{unit}."
    held = [one.small for one in work.held if one.by == "plan"]
    if any(held) and not all(held):
        yield (
            "Some groups that are large enough are held back too: otherwise a small one would be the difference "
            "between everybody and what is shown."
        )


def _stays(plan: Plan) -> Iterator[str]:
    kind = "Rows of the table" if plan.task.input.kind == "table" else "Images"
    yield f"{'Images and masks' if plan.task.kind == 'segmentation' else kind}, names of files, and paths."
    yield "Ids of records and patients, and the opt-out list."
    yield "The label, the groups and the model's prediction of any single record."
    if plan.protection.masked:
        yield "This site's own sums, counts and update before they are masked."
    yield "Texts of errors: a code goes up, and nothing else."
    yield "This page and everything on it."
