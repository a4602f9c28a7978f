# SPDX-License-Identifier: Apache-2.0
"""The model card: what a model is for, whom it was judged on, and for whom it works worse; kept beside the model.

Names come from other organisations, and Markdown is often shown as HTML: every name is written so that it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fairflare.plan import model_words
from fairflare.record import RunRecord

if TYPE_CHECKING:
    from fairflare.evaluation.summary import GroupSummary, RunSummary, Value

#: The card is written at each site when a job ends, so intervals are rougher than a report's; of many labels most.
_RESAMPLES = 800
_SPECIAL = re.compile(r"([\\`*_{}\[\]!|~$@])")


def model_card(record: RunRecord, digest: str) -> str:
    """The model card of a run with results, as Markdown.

    Parameters
    ----------
    record
        Of a run with a final evaluation.
    digest
        SHA-256 (hex) of the record as it is kept beside the card.
    """
    # Imported here: the engine needs this module at its start, SciPy only at its end.
    from fairflare.evaluation.report import summarise

    if record.final is not None and not record.final.test:
        return _joined(_unjudged(record), _what(record, digest), _training(record), _protection(record))
    if record.final is not None and record.next_round == record.plan.training.rounds:
        # A card is written while the last task is under way; nothing that it tells can change any more.
        record = record.model_copy(update={"status": "complete"})
    questions = max(record.plan.task.strata // 2, 1)
    summary = summarise(record, resamples=max(_RESAMPLES // questions, 100))
    return _joined(
        _use(record, summary),
        _what(record, digest),
        _training(record),
        _protection(record),
        _results(summary),
        _warnings(summary),
    )


def _joined(*sections: Iterator[str]) -> str:
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _unjudged(record: RunRecord) -> Iterator[str]:
    """In place of use and results: with masks, nothing is opened about test data where a site was missing."""
    yield f"# Model card: {plain(record.plan.name)}"
    yield ""
    yield (
        "This model was not judged: a site of the session was missing from the final evaluation, and exact statistics "
        "are opened over all sites or not at all. Judge it on your own data before any use: fairflare evaluate."
    )
    yield ""
    yield "It is for research. It is not a medical device, and nothing here shows that it is safe for a patient's care."


def plain(text: str) -> str:
    """A text from elsewhere as Markdown that shows it as it is: on one line, without markup, links or HTML."""
    from fairflare.evaluation.phrases import visible

    shown = _SPECIAL.sub(r"\\\1", visible(text, keep=""))
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([#+=-])", r"\\\1", shown.strip()))
    return re.sub(r"(?i)(www)\.", r"\1\\.", shown.replace("://", ":\\/\\/"))


def _use(record: RunRecord, summary: RunSummary) -> Iterator[str]:
    from fairflare.evaluation.participation import TRAINING

    plan = record.plan
    labels = ", ".join(map(plain, plan.task.labels[1:] if summary.kind == "images" else plan.task.labels))
    task = f"marks {labels} in images" if summary.kind == "images" else f"tells {labels} apart in data"
    sites = len({site for line in record.rounds for task in TRAINING for site in line.participants.get(task, ())})
    yield f"# Model card: {plain(plan.name)}"
    yield ""
    yield (
        f"This model {task} like those of the data set {plain(plan.task.data_set)}. "
        f"{sites} {'site' if sites == 1 else 'sites'} trained it together; their records stayed with them."
    )
    yield ""
    yield "## What it is for, and what it is not for"
    yield ""
    yield "- For research. It is not a medical device, and nothing here shows that it is safe for a patient's care."
    yield "- Only for populations, devices and ways of taking data like those of the hospitals below."
    yield f"- The numbers below are about their {summary.split} data only. Judge it anew on your own before use."
    small = [f"{plain(name)} ({reason})" for name, reason in _too_small(summary)]
    if small:
        yield f"- Groups too small to be judged, for whom little may be concluded: {'; '.join(small)}."
    if not summary.attributes:
        yield "- It was not judged by patient group: the plan names no sensitive attribute."


def _too_small(summary: RunSummary) -> Iterator[tuple[str, str]]:
    from fairflare.evaluation.remarks import SMALL_CELL
    from fairflare.evaluation.words import VOCABULARIES

    words = VOCABULARIES[summary.kind]
    for part in summary.attributes:
        for group in part.groups:
            negatives = group.records - (group.positives or 0)
            counts = [group.records] if group.positives is None else [negatives, group.positives]
            if group.metrics[words.main].value is None:
                yield f"{part.attribute} {group.group}", group.metrics[words.main].note
            elif min(counts) < SMALL_CELL:
                what = words.noun if group.positives is None else "records of a label"
                yield f"{part.attribute} {group.group}", f"{min(counts)} {what}"


def _what(record: RunRecord, digest: str) -> Iterator[str]:
    from fairflare.evaluation.facts import best_words, task_words

    final, plan = record.final, record.plan
    yield "## Which model this is"
    yield ""
    yield "| What | Value |"
    yield "| --- | --- |"
    yield f"| Plan | {plain(plan.name)} |"
    yield f"| Plan hash (SHA-256) | `{record.plan_sha256}` |"
    yield f"| Record of the run (SHA-256) | `{digest}` |"
    yield f"| Network | {plain(model_words(plan.model))} |"
    yield f"| Task | {plain(task_words(plan))} |"
    yield f"| Data set | {plain(plan.task.data_set)} |"
    if final is not None:
        rounds = len(record.rounds)
        yield f"| Final model, after {rounds} rounds (SHA-256) | `{final.model_sha256}` |"
        when = best_words(final.best_rounds, rounds)
        yield f"| Best model on validation data, {when} (SHA-256) | `{final.best_model_sha256}` |"
        if final.best_model_sha256 != final.model_sha256:
            yield ""
            yield "The results below are the final model's. The best one was chosen by validation data alone."


def _training(record: RunRecord) -> Iterator[str]:
    from fairflare.evaluation.exchanged import exchanged_words
    from fairflare.evaluation.facts import consent_words, method_words, refresh_words, start_words
    from fairflare.evaluation.participation import without_in_words

    plan = record.plan
    yield "## How it was trained"
    yield ""
    yield f"- Sites: {', '.join(map(plain, record.roster)) or 'none'}"
    for absent_site in without_in_words(record):
        yield f"- Ran without: {plain(absent_site)}"
    absent = [] if record.final is None else [one for one in record.roster if one not in record.final.participants]
    if absent:
        yield f"- Not in the final evaluation: {', '.join(map(plain, absent))}"
    if record.records:
        counts = ", ".join(f"{plain(key.replace('_', ' '))} {value:g}" for key, value in record.records.items())
        yield f"- Records of all sites: {counts}"
    yield f"- Method: {plain('; '.join(method_words(record)))}"
    yield f"- Group statistics: {plain(refresh_words(plan))}"
    yield f"- Sent beside the update: {plain('; '.join(exchanged_words(plan)))}"
    yield f"- Starting weights: {plain(start_words(plan))}"
    yield f"- Rounds: {len(record.rounds)} of {plan.training.rounds}"
    for consent in consent_words(plan):
        yield f"- Agreed to by taking part: {plain(consent)}"


def _protection(record: RunRecord) -> Iterator[str]:
    from fairflare.evaluation.facts import guards

    yield "## What was protected, and what was not"
    yield ""
    for guard in guards(record):
        yield f"- {'Yes' if guard.on else 'No'}: {plain(guard.what)}. {plain(guard.words)}"
    for notice in record.notices:
        yield f"- The record's notice: {plain(notice)}"


def _results(summary: RunSummary) -> Iterator[str]:
    from fairflare.evaluation.facts import headline_of
    from fairflare.evaluation.tables import worst_sentences
    from fairflare.evaluation.words import NAMES, VOCABULARIES, name_of

    words = VOCABULARIES[summary.kind]
    metrics = list(dict.fromkeys([*words.worst_by, *(_TWO_LABELS if summary.kind == "two_labels" else words.columns)]))
    yield f"## Results on {summary.split} {words.noun}, by group"
    yield ""
    yield plain(headline_of(summary))
    yield ""
    names = [words.columns.get(metric, name_of(metric)).replace("\n", " ") for metric in metrics]
    yield from _table(["Group", words.noun.capitalize(), *names], _group_rows(summary, metrics))
    if summary.labels:
        yield ""
        yield "Each label against all others:"
        yield ""
        found = ((part.label, part.overall) for part in summary.labels)
        rows = ([plain(label), _positives(group), _shown(group.metrics["roc_auc"])] for label, group in found)
        yield from _table(["Label", "Records", NAMES["roc_auc"]], rows)
    if summary.attributes:
        yield ""
        yield "Gaps between groups:"
        yield ""
        gaps = ([plain(part.attribute), NAMES[gap], _shown(value)] for part in summary.attributes
                for gap, value in part.gaps.items())  # fmt: skip
        yield from _table(["Attribute", "Gap", "Value"], gaps)
        yield ""
        yield from (f"- {plain(sentence)}" for sentence in worst_sentences(summary))
    yield ""
    yield f"{words.legend_gap} In brackets: 95 % intervals."


_TWO_LABELS = ("roc_auc", "balanced_accuracy", "true_positive_rate", "false_positive_rate")


def _table(heads: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(plain, heads))} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _group_rows(summary: RunSummary, metrics: Sequence[str]) -> Iterator[list[str]]:
    groups = [("everybody", summary.overall)]
    groups += [(f"{part.attribute}: {group.group}", group) for part in summary.attributes for group in part.groups]
    for name, group in groups:
        count = str(group.records)
        if summary.kind == "two_labels":
            count += f" ({_positives(group)} positive)"
        yield [plain(name), count, *(_shown(group.metrics[metric]) for metric in metrics)]


def _positives(group: GroupSummary) -> str:
    return "unknown" if group.positives is None else str(group.positives)


def _shown(value: Value) -> str:
    if value.value is None:
        return f"not estimable ({plain(value.note)})"
    between = "" if value.low is None or value.high is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.value:.3f}{between}"


def _warnings(summary: RunSummary) -> Iterator[str]:
    yield "## Warnings"
    yield ""
    if not summary.remarks:
        yield "None."
    for remark in summary.remarks:
        yield f"- {plain(remark.kind)}: {plain(remark.text)}"
