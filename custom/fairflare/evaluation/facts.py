# SPDX-License-Identifier: Apache-2.0
"""What a reader should know before any number: the result in a sentence, what was protected, and what ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fairflare.evaluation.exchanged import exchanged_words
from fairflare.evaluation.participation import without_in_words
from fairflare.evaluation.phrases import change_in_words, counted, number, of_interest, threshold
from fairflare.evaluation.privacy_words import NOT_COVERED, privacy_words
from fairflare.evaluation.summary import AttributeSummary, Comparison, Remark, RunSummary, Value
from fairflare.evaluation.tables import interval
from fairflare.evaluation.words import HIGHER_IS_BETTER, LOWER_IS_BETTER, NAMES, VOCABULARIES, small
from fairflare.plan import (
    DifferentialPrivacy,
    FairFedParameters,
    FileStart,
    FlexFairParameters,
    Plan,
    ReweightingParameters,
)
from fairflare.record import RoundRecord, RunRecord

#: Attributes that the sentence about a change mentions at most; the table has all.
_MENTIONED = 2


@dataclass(frozen=True)
class Guard:
    """A protection: what it is about, whether it was on, and what follows."""

    what: str
    on: bool
    words: str


@dataclass(frozen=True)
class Fact:
    """A term and its values; ``code`` ones are hashes and the like."""

    term: str
    values: tuple[str, ...]
    code: bool = False


def headline(
    runs: Sequence[tuple[str, RunRecord, RunSummary | None]], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """The result: a sentence per run, or per change against the first run with results."""
    for name, record, summary in runs:
        if summary is None:
            yield _stopped(name, record)
    summaries = [summary for _, _, summary in runs if summary is not None]
    if not comparisons:
        for summary in summaries:
            yield headline_of(summary)
    for other in summaries[1 : 1 + len(comparisons)]:
        yield _changes(summaries[0], other, summaries)


def _stopped(name: str, record: RunRecord) -> str:
    why = f" ({record.reason.code})" if record.reason else ""
    verb = "is still running" if record.status == "running" else "stopped"
    done = f"after {len(record.rounds)} of {record.plan.training.rounds} rounds"
    return f"{name} {verb}{why} {done}: it has no final evaluation, so this page cannot say how good its model is."


_MAIN = {
    "roc_auc": "the area under the ROC curve",
    "macro_roc_auc": "the area under the ROC curve (mean over labels, each against all others)",
    "dice": "the mean Dice",
}


def _with_interval(value: Value) -> str:
    return number(value.value) + (f" (95 % interval {interval(value)})" if interval(value) else "")


def headline_of(summary: RunSummary) -> str:
    """The result of a run in a sentence."""
    words = VOCABULARIES[summary.kind]
    text = (
        f"{summary.name} ({summary.method}): on {summary.overall.records} {summary.split} {words.noun} of "
        f"{summary.task['data_set']}, {_MAIN[words.main]} is {_with_interval(summary.overall.metrics[words.main])}"
    )
    found = [(one.attribute, worst) for one in summary.attributes if (worst := one.worst.get(words.main)) is not None]
    if not found:
        return f"{text}; no worst group can be named."
    # A group without a value is never the worst one, so there is a number to sort by.
    attribute, worst = min(found, key=lambda pair: pair[1].value.value or 0.0)
    return f"{text}; it is lowest for {worst.group} ({attribute}), {_with_interval(worst.value)}."


def _changes(baseline: RunSummary, other: RunSummary, everything: Sequence[RunSummary]) -> str:
    """What changed from the baseline, for what the penalties aim at and for everybody."""
    aimed = {penalty.attribute for summary in everything for penalty in summary.penalties}
    pairs = list(zip(baseline.attributes, other.attributes, strict=True))
    chosen = [pair for pair in pairs if pair[0].attribute in aimed] or pairs
    parts, main = [], VOCABULARIES[baseline.kind].main
    for before, after in chosen[:_MENTIONED]:
        metrics, gaps = of_interest(before.attribute, everything)
        for gap in gaps[:1]:
            title = f"{small(NAMES[gap])} by {before.attribute}"
            parts.append(_change(title, gap, before.gaps[gap].value, after.gaps[gap].value))
        judged = [metric for metric in metrics if metric in HIGHER_IS_BETTER | LOWER_IS_BETTER] or [main]
        for metric in judged[:1]:
            lowest = metric in HIGHER_IS_BETTER
            title = f"{'lowest' if lowest else 'highest'} {small(NAMES[metric])} by {before.attribute}"
            parts.append(_change(title, metric, *(_extreme(one, metric, lowest) for one in (before, after))))
    pair = (one.overall.metrics[main].value for one in (baseline, other))
    parts.append(_change(f"everybody's {small(NAMES[main])}", main, *pair))
    return f"Against {baseline.name}, {other.name} ({other.method}) has: {'; '.join(parts)}."


def _extreme(part: AttributeSummary, metric: str, lowest: bool) -> float | None:
    """The worst value among the groups that have one."""
    values = [group.metrics[metric].value for group in part.groups]
    return (min if lowest else max)((value for value in values if value is not None), default=None)


def _change(title: str, metric: str, before: float | None, after: float | None) -> str:
    verdict = change_in_words(metric, before, after)
    return f"{title} {number(after)}, was {number(before)}" + (f" ({verdict})" if verdict else "")


def caution(warnings: Sequence[Remark]) -> str:
    """What to read a result with; "" if there is no warning."""
    kinds = list(dict.fromkeys(remark.kind for remark in warnings))
    count = "the warning" if len(warnings) == 1 else f"the {len(warnings)} warnings"
    return f"Read this with {count} below: {', '.join(kinds)}." if kinds else ""


_SEEN = {"update": "model update", "statistics": "group sums and counts"}
_MASKED = {
    "update": "By masks: the server opened sums over the sites that remained, and the sum of their weights. "
    "The sums themselves are not protected.",
    "statistics": "By masks: the server, and every site, opened sums over all sites of a session, or nothing.",
}
_ENCRYPTED = (
    "Sums of training records by group were encrypted as well: the sites opened them, the server had no key. "
    "The sites share one key; any of them together with the server could open those sums."
)


def guards(record: RunRecord) -> Iterator[Guard]:
    """Each protection, on or off; what this version does not know is shown as the plan says it."""
    plan = record.plan.model_dump(mode="json")
    for field, what in _SEEN.items():
        kind = plan["protection"][field]
        if kind == "none":
            yield Guard(f"Hiding each site's {what}", False, f"The server saw every site's {what}.")
        elif kind == "masked":
            yield Guard(f"Hiding each site's {what}", True, _MASKED[field])
        elif kind == "ckks":
            yield Guard(f"Hiding each site's {what}", True, f"{_MASKED[field]} {_ENCRYPTED}")
        else:
            yield Guard(f"Hiding each site's {what}", True, f"By '{_text(kind)}', as the plan says.")
    if any(session.identities == "development" for session in record.sessions):
        text = "Unauthenticated identities: nobody vouched for the sites' keys, so one may have played them all."
        yield Guard("Knowing whose keys these are", False, text)
    elif any(session.identities == "kit" for session in record.sessions):
        text = "Start-up kits of one project; whoever made them could pose as a site, unless sites pinned keys."
        yield Guard("Knowing whose keys these are", True, text)
    yield from _private(record.plan)
    cells = record.plan.cells
    if cells.minimum > 1:
        text = (
            f"Groups with fewer than {cells.minimum} records at a site were sent as zeros. That is not anonymity: "
            "differences between rounds or totals can still point at single patients."
        )
        yield Guard("Holding back small groups", True, text)
    else:
        yield Guard(
            "Holding back small groups", False, "Sums over a single record could be sent; for public data only."
        )
    if cells.sites > 1:
        yield Guard("Several sites per group", True, f"A group counts only if {cells.sites} sites or more report it.")
    if any(session.transport == "local" for session in record.sessions):
        text = "The run, or a part of it, was one process on one machine: no site was an organisation of its own."
        yield Guard("Separate sites", False, text)


def _private(plan: Plan) -> Iterator[Guard]:
    """What noise covers, and what none does."""
    privacy: object = plan.differential_privacy  # of a later version's record, perhaps
    if privacy is None:
        text = "No noise was added: the sums themselves can reveal facts about single patients."
        yield Guard("Differential privacy", False, text)
        return
    if not isinstance(privacy, DifferentialPrivacy):
        told = _text(plan.model_dump(mode="json")["differential_privacy"])
        yield Guard("Differential privacy", True, f"As the plan says: {told}")
        return
    covered = " ".join(f"{one}." for one in privacy_words(plan) if one != NOT_COVERED)
    yield Guard("Differential privacy", True, covered)
    yield Guard("Differential privacy of evaluation", False, f"{NOT_COVERED}.")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def facts(name: str, record: RunRecord, summary: RunSummary | None) -> Iterator[Fact]:
    """What ran, where, when, and by which hashes it can be known again."""
    plan = record.plan
    status = record.status + (f" ({record.reason.code})" if record.reason else "")
    yield Fact("Status", (status,))
    yield Fact("Plan", (plan.name,) if name == plan.name else (f"{plan.name} (here called {name})",))
    yield Fact("Method", tuple(method_words(record)))
    lost = [f"round {one.round + 1} gave no model ({one.code})" for one in record.lost_rounds]
    yield Fact("Rounds", (f"{len(record.rounds)} of {plan.training.rounds}", *lost))
    yield Fact("Sites", (f"{len(record.roster)}: {', '.join(record.roster)}" if record.roster else "none",))
    if record.without:
        yield Fact("Ran without", tuple(without_in_words(record)))
    yield Fact("Group statistics", (refresh_words(plan),))
    yield Fact("Sent beside the update", exchanged_words(plan))
    yield Fact("Starting weights", (start_words(plan),))
    yield Fact("Agreed to by taking part", tuple(consent_words(plan)) or ("nothing beyond the plan itself",))
    yield Fact("Data set", (f"{plan.task.data_set}; {task_words(plan)}",))
    if record.records:
        counts = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in record.records.items())
        yield Fact("Records of all sites", (counts,))
    if summary is not None:
        yield Fact("Records reported on", (f"{summary.split}: {counted(summary)}",))
        if threshold(summary):
            yield Fact("Called positive", (f"from a score of {threshold(summary)}",))
    yield Fact("Sessions", tuple(_sessions(record)) or ("none recorded",))
    yield Fact("Ended", (record.ended or "not yet",))
    yield Fact("Time at the server", (f"{sum(map(_seconds, record.rounds)):.1f} s in all rounds",))
    yield Fact("Software", (", ".join(f"{key} {value}" for key, value in record.software.items()) or "not recorded",))
    yield Fact("Plan hash (SHA-256)", (record.plan_sha256,), code=True)
    yield Fact("First model (SHA-256)", (record.initial_model_sha256,), code=True)
    last = record.final.model_sha256 if record.final else record.rounds[-1].model_sha256 if record.rounds else "none"
    yield Fact("Final model (SHA-256)" if record.final else "Last model (SHA-256)", (last,), code=True)
    if record.final is not None:
        when = best_words(record.final.best_rounds, len(record.rounds))
        yield Fact("Best on validation (SHA-256)", (record.final.best_model_sha256,), code=True)
        yield Fact("Best on validation is", (when,))


def best_words(best: int, rounds: int) -> str:
    """When the best model was there."""
    if best == rounds:
        return "the final one"
    return "the first one" if best == 0 else f"after {best} of {rounds} rounds"


def task_words(plan: Plan) -> str:
    """What the labels are, and how they are judged."""
    if plan.task.kind == "segmentation":
        background, *painted = plan.task.labels
        return f"a label for each pixel: {', '.join(painted)}, else {background}"
    if len(plan.task.labels) == 2:
        return f"{' or '.join(plan.task.labels)}, the second is 'positive'"
    return f"one of {', '.join(plan.task.labels)}; each is judged against all others"


def refresh_words(plan: Plan) -> str:
    """When sites exchange group statistics for the penalties."""
    method = plan.method
    if isinstance(method, ReweightingParameters):
        return "numbers of records of each group, once in a session"
    if isinstance(method, FairFedParameters) and method.compares_sites:
        return "decisions by group at the start of each round, then the sum of sites' distances from all"
    if not isinstance(method, FlexFairParameters):
        return "none are needed for training; validation sums of each round's first model"
    own = method.remeasured_every
    anew = "" if own is None else f"; a site measures its own part anew every {own} local steps"
    if method.lock_step:
        return "exchanged at every local step (lock step)"
    if method.lagged:
        return f"with each update, for the next round: one round old, none in the first{anew}"
    if method.measured_every > 1:
        every = method.measured_every
        return f"at the start of every {every} rounds; the rounds between use the last ones{anew}"
    return f"at the start of each round{anew}"


def start_words(plan: Plan) -> str:
    """Where the first model's weights come from."""
    if not isinstance(plan.start, FileStart):
        return "drawn from the plan's seed"
    which = {
        "all": "all tensors",
        "matching": "those tensors that fit the network; the others are drawn from the plan's seed",
    }[plan.start.tensors]
    return f"from a file of weights with SHA-256 {plan.start.sha256}: {which}"


_CONSENTS = {
    "second_sum_of_updates": "The server may get two different weighted sums of the same updates.",
    "pair_sums_of_three_hospitals": "With three hospitals, each learns the sum of the two others' risks (mean losses).",
    "shared_noise": "Noise of group sums is added by all hospitals together; each adds a part.",
    "open_hospital_risks": "Each hospital's risk (mean loss) may be known to all.",
}


def consent_words(plan: Plan) -> Iterator[str]:
    """What hospitals agree to by taking part."""
    for consent in plan.consents:
        yield _CONSENTS.get(consent, consent)


def _seconds(line: RoundRecord) -> float:
    return line.seconds.measure + line.seconds.train + line.seconds.protect + line.seconds.aggregate


def method_words(record: RunRecord) -> Iterator[str]:
    """The method, and each penalty."""
    method = record.plan.method
    yield method.name
    if not isinstance(method, FlexFairParameters):
        yield from (f"{name.replace('_', ' ')} {value}" for name, value in method if name != "name")
        return
    for penalty in method.penalties:
        criterion = penalty.criterion.replace("_", " ")
        yield f"{criterion} between groups of {penalty.attribute}, strength {penalty.strength:g}"


def _sessions(record: RunRecord) -> Iterator[str]:
    places = {"flare": "FLARE", "local": "one process"}
    for one in record.sessions:
        begin = "from the start" if one.first_round == 0 else f"goes on after round {one.first_round}"
        yield f"{one.number}: {places.get(one.transport, one.transport)}, started {one.started}, {begin}"
