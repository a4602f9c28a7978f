# SPDX-License-Identifier: Apache-2.0
"""Warnings, in words: what makes a number in a report worth less than it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fairflare.evaluation.summary import AttributeSummary, LabelSummary, Remark, RunSummary, Value
from fairflare.evaluation.words import COLLAPSES, NAMES, VOCABULARIES
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL, EvaluationSums
from fairflare.plan import Plan
from fairflare.record import Collapse, RunRecord

#: Fewer records than this in a (group, label) cell are pointed out: a rate near 1/2 is known to +-0.17.
SMALL_CELL = 30
#: A 95 % interval wider than this is pointed out.
WIDE = 0.2
#: So much of all scores in one bin makes a model constant.
ONE_BIN = 0.99
#: Changes up to this size (half a percentage point) are called "about equal".
NOTICEABLE = 0.005
#: Levelling down is pointed out when the gap fell, and a better group lost, by more than this: chance moves both.
LEVELLED = 0.02
#: Share of record weights held at the plan's bounds from which on it is pointed out.
HELD = 0.01


def sums_remarks(
    summary: RunSummary, plan: Plan, sums: EvaluationSums, collapse: Collapse | None
) -> tuple[Remark, ...]:
    """Warnings that evaluation sums give reason for, those that concern everything first."""
    found = list(_threshold(plan, summary))
    if summary.kind == "images":
        found += _unpainted(summary, sums, collapse)
        if 0 < summary.overall.records < SMALL_CELL:
            found.append(Remark("few images", f"{summary.overall.records} in all (fewer than {SMALL_CELL})"))
    elif summary.kind == "two_labels":
        found += _constant(summary, sums)
    else:
        found += [*_all_constant(summary, collapse), *_chance(summary), *_never_called(summary)]
    for place, attribute in enumerate(summary.attributes):
        found += _missing(attribute, summary, plan)
        if summary.kind == "images":
            found += _few_images(attribute)
        else:
            found += _small_cells(attribute.attribute, place, summary)
    return (*found, *_wide_intervals(summary))


def run_remarks(summary: RunSummary, record: RunRecord) -> tuple[Remark, ...]:
    """All warnings about one run: what its record gives reason for, then those that its summary has."""
    return (*_incomplete(record, summary), *_collapsed(record), *_held(record), *_unseen(summary), *summary.remarks)


def _incomplete(record: RunRecord, summary: RunSummary) -> Iterator[Remark]:
    planned = record.plan.training.rounds
    if record.status != "complete" or summary.rounds < planned:
        yield Remark("incomplete run", f"the run is '{record.status}' after {summary.rounds} of {planned} rounds")
    if record.without:
        who = ", ".join(f"{one.site} ({one.code})" for one in record.without)
        yield Remark("ran without", f"{who}: the run and its results are not about them")
    absent = [site for site in record.roster if site not in summary.sites]
    if absent:
        yield Remark(
            "missing sites",
            f"{', '.join(absent)} took no part in the final evaluation: the results are not about them",
        )


def collapses(record: RunRecord) -> list[Collapse | None]:
    """How each model failed on validation data, by rounds trained before it; with the final one, if there is one.

    That a model which was drawn from a seed has learnt nothing before its first round is no failure.
    """
    found = [line.collapse for line in record.rounds]
    if record.plan.start.kind == "seed":
        found[:1] = [None] * len(found[:1])
    return found if record.final is None else [*found, record.final.validation_collapse]


def collapsed_spans(found: Sequence[Collapse | None]) -> Iterator[tuple[Collapse, int, int]]:
    """Models in a row that failed alike: how, the first and the last of them."""
    start = 0
    for at, one in enumerate(found):
        if one != found[start]:
            start = at
        if one is not None and (at + 1 == len(found) or found[at + 1] != one):
            yield one, start, at


def collapse_in_words(how: Collapse, first: int, last: int) -> str:
    """Such as "after 3 to 5 rounds the model paints ..."."""
    when = f"{first} round{'' if first == 1 else 's'}" if first == last else f"{first} to {last} rounds"
    return f"after {when} the model {COLLAPSES[how]}"


def _collapsed(record: RunRecord) -> Iterator[Remark]:
    spans = list(collapsed_spans(collapses(record)))
    if spans:
        text = "; ".join(collapse_in_words(*one) for one in spans)
        yield Remark("collapse", f"on validation data, {text}. Small gaps of such a model mean nothing")


def _threshold(plan: Plan, summary: RunSummary) -> Iterator[Remark]:
    wanted = plan.evaluation.threshold
    if summary.threshold is None:
        return
    if wanted != summary.threshold.source:
        yield Remark("threshold", "no validation records, or they lack one of the labels, so the threshold is 0.5")
    elif wanted != "half" and summary.split == "validation":
        yield Remark(
            "threshold",
            "it was chosen on these same records: balanced accuracy at it looks better than it is",
        )


def _final_collapse(summary: RunSummary, collapse: Collapse | None) -> Iterator[Remark]:
    if collapse is not None:
        text = f"on these {summary.split} data the model {COLLAPSES[collapse]}. Small gaps of such a model mean nothing"
        yield Remark("collapsed model", text)


def _unpainted(summary: RunSummary, sums: EvaluationSums, collapse: Collapse | None) -> Iterator[Remark]:
    """A model that paints nothing or everything, and labels of which it never finds a pixel."""
    yield from _final_collapse(summary, collapse)
    table = sums.cells[EVERYBODY][0]
    labels = summary.task["labels"][1:]
    lost = [label for label, row in zip(labels, table, strict=True) if row[0] > 0 and row[3] == 0]
    if lost:
        yield Remark("no overlap", f"Dice of {', '.join(lost)} is 0 in each image: the model finds no pixel of it")


def _few_images(attribute: AttributeSummary) -> Iterator[Remark]:
    few = [f"{group.group} has {group.records}" for group in attribute.groups if 0 < group.records < SMALL_CELL]
    if few:
        yield Remark("small group", f"{attribute.attribute}: {', '.join(few)} (fewer than {SMALL_CELL} images)")


def _all_constant(summary: RunSummary, collapse: Collapse | None) -> Iterator[Remark]:
    yield from _final_collapse(summary, collapse)


def _chance(summary: RunSummary) -> Iterator[Remark]:
    """Labels that the model may not know at all."""
    found = []
    for part in summary.labels:
        auc = part.overall.metrics["roc_auc"]
        if auc.low is not None and auc.low <= 0.5:
            found.append(f"{part.label} ({auc.low:.2f} to {auc.high:.2f})")
    if found:
        text = f"not shown to be better than chance, area under the ROC curve: {', '.join(found)}"
        yield Remark("chance", f"{text}. Small gaps of such labels mean little")


def _never_called(summary: RunSummary) -> Iterator[Remark]:
    names = [part.label for part in summary.labels if part.overall.metrics["selection_rate"].value == 0.0]
    if names:
        text = f"no record reaches the threshold for {', '.join(names)}"
        yield Remark("never called", f"{text}, so gaps of decisions (rates, accuracy) about it mean nothing")


def is_constant(histogram: np.ndarray) -> bool:
    """Whether (nearly) all scores are the same; ``histogram`` (2, bins) of all records by label."""
    return bool(histogram.sum() > 0 and histogram.sum(axis=0).max() >= ONE_BIN * histogram.sum())


def _constant(summary: RunSummary, sums: EvaluationSums) -> Iterator[Remark]:
    """A model that gives everybody one score; or one that decides the same on everybody; or one as good as a coin."""
    histogram = sums.cells[EVERYBODY][0, :, HEAD:]
    rate, auc = (summary.overall.metrics[name] for name in ("selection_rate", "roc_auc"))
    if is_constant(histogram):
        share = histogram.sum(axis=0).max() / histogram.sum()
        yield Remark(
            "constant model",
            f"{share:.0%} of the scores lie in one bin of width {1 / histogram.shape[-1]:.3g}. "
            "Small gaps of such a model mean nothing",
        )
    elif auc.low is not None and auc.high is not None and auc.low <= 0.5:
        where = "contains" if auc.high >= 0.5 else "lies below"
        yield Remark(
            "chance",
            "not shown to be better than chance: the interval of the area under the ROC curve "
            f"({auc.low:.2f} to {auc.high:.2f}) {where} 0.5. Small gaps of such a model mean little",
        )
    if rate.value in (0.0, 1.0):
        who = "nobody" if rate.value == 0 else "everybody"
        yield Remark(
            "constant decision",
            f"{who} is called positive at this threshold, so gaps of decisions (rates, accuracy) mean nothing",
        )


def _held(record: RunRecord) -> Iterator[Remark]:
    last = record.rounds[-1] if record.rounds else None
    if last is None or last.weighed is None:
        return
    held = (last.at_minimum or 0.0) + (last.at_maximum or 0.0)
    if held > HELD * last.weighed:
        yield Remark(
            "held weights",
            f"in the last round {held:.0f} of {last.weighed:.0f} record weights were held at the "
            "plan's bounds: the penalty acted more weakly than its strength says",
        )


def _unseen(summary: RunSummary) -> Iterator[Remark]:
    if any(penalty.attribute == HOSPITAL for penalty in summary.penalties):
        yield Remark(
            "hospitals",
            "the penalised groups are hospitals: only sums over hospitals are opened, so no gap between them "
            "can be shown",
        )


def _missing(attribute: AttributeSummary, summary: RunSummary, plan: Plan) -> Iterator[Remark]:
    if attribute.missing > 0:
        overall, cells = summary.overall, plan.cells
        share = attribute.missing / max(overall.records, 1)
        crossed = any("of" in one for one in summary.vocabulary if one["name"] == attribute.attribute)
        noun, known = VOCABULARIES[summary.kind].noun, attribute.missing_positives
        among = "" if known is None else f", {known} of them {summary.task['labels'][1]},"
        text = (
            f"{attribute.attribute}: {attribute.missing} of {overall.records} {noun} ({share:.1%}){among} are in no "
            f"group, because {'one of its attributes' if crossed else 'the attribute'} is missing"
        )
        if cells.minimum > 1 or cells.sites > 1:
            text += " or the cell was too small to be released; rates that mix labels may be shifted by it"
        yield Remark("missing records", text)


def _small_cells(attribute: str, place: int, summary: RunSummary) -> Iterator[Remark]:
    cells = [text for part in summary.parts for text in _few_of(part, place, summary)]
    if cells:
        yield Remark("small cell", f"{attribute}: {', '.join(cells)} (fewer than {SMALL_CELL})")


def _few_of(part: LabelSummary, place: int, summary: RunSummary) -> Iterator[str]:
    """Groups with few records of a label; of one of several labels, what is not of it is never the rare part."""
    negative, positive = ("", part.label) if part.label else summary.task["labels"]
    for group in part.attributes[place].groups:
        positives = group.positives or 0
        for label, count in ((negative, group.records - positives), (positive, positives)):
            if label and 0 < count < SMALL_CELL:
                yield f"{group.group} has {count} records labelled {label}"


def is_wide(value: Value) -> bool:
    """Whether the interval is wider than :data:`WIDE`; a value without one is not wide but unknown."""
    return value.low is not None and value.high is not None and value.high - value.low > WIDE


def _wide_intervals(summary: RunSummary) -> Iterator[Remark]:
    places = [("everybody", summary.overall)]
    places += [(f"{part.attribute} {group.group}", group) for part in summary.attributes for group in part.groups]
    for metric, words in VOCABULARIES[summary.kind].wide.items():
        wide = [place for place, group in places if is_wide(group.metrics[metric])]
        if wide:
            yield Remark("wide interval", f"{words}: wider than {WIDE:g} for {', '.join(wide)}")


def comparison_remarks(baseline: RunSummary, other: RunSummary) -> tuple[Remark, ...]:
    """All warnings about two comparable runs."""
    found = list(_different_records(baseline, other))
    for before, after in zip(baseline.attributes, other.attributes, strict=True):
        found += _levelling_down(before, after, VOCABULARIES[baseline.kind].benefit)
    return tuple(found)


def _different_records(baseline: RunSummary, other: RunSummary) -> Iterator[Remark]:
    first, second = baseline.overall, other.overall
    if (first.records, first.positives) != (second.records, second.positives):
        yield Remark(
            "different records",
            f"it was evaluated on {second.records} records, {baseline.name} on {first.records}, or with other "
            "labels: a part of every change may come from that",
        )


def _levelling_down(before: AttributeSummary, after: AttributeSummary, benefit: Mapping[str, str]) -> Iterator[Remark]:
    """Levelling down: a gap fell, the worst group did not gain, and a better group lost."""
    gaps, evidence = [], []
    for gap, metric in benefit.items():
        old, new = before.gaps[gap].value, after.gaps[gap].value
        loss = _loss_without_gain(before, after, metric)
        if old is not None and new is not None and new < old - LEVELLED and loss:
            gaps.append(f"{NAMES[gap]} {old:.3f} to {new:.3f}")
            evidence.append(loss)
    if gaps:
        yield Remark("levelling down", f"{before.attribute}: gaps fell ({'; '.join(gaps)}), but {evidence[0]}")


def _loss_without_gain(before: AttributeSummary, after: AttributeSummary, metric: str) -> str:
    """Who lost, in words, if the worst group by ``metric`` gained nothing; else ""."""
    old, new = ({g.group: g.metrics[metric].value for g in part.groups} for part in (before, after))
    pairs = {name: (x, y) for name, x in old.items() if x is not None and (y := new[name]) is not None}
    if len(pairs) < 2:
        return ""
    worst_before, worst_after = min(x for x, _ in pairs.values()), min(y for _, y in pairs.values())
    losers = [f"{name} ({x:.3f} to {y:.3f})" for name, (x, y) in pairs.items() if x > worst_before and y < x - LEVELLED]
    if not losers or worst_after > worst_before + NOTICEABLE:
        return ""
    return (
        f"by {NAMES[metric]} the worst group did not gain ({worst_before:.3f} to {worst_after:.3f}) "
        f"and better ones lost: {', '.join(losers)}"
    )
