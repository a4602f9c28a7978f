# SPDX-License-Identifier: Apache-2.0
"""Warnings, in words: what makes a number in a report worth less than it looks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fairflare.evaluation.summary import AttributeSummary, Remark, RunSummary, Value
from fairflare.evaluation.words import NAMES
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL, EvaluationSums
from fairflare.record import RunRecord

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

#: Gap -> the metric whose worst group tells whether closing the gap helped anybody.
_BENEFIT = {
    "roc_auc_difference": "roc_auc",
    "balanced_accuracy_difference": "balanced_accuracy",
    "accuracy_difference": "accuracy",
    "equal_opportunity_difference": "true_positive_rate",
    "equalized_odds_difference": "balanced_accuracy",
    "demographic_parity_difference": "balanced_accuracy",
}


def run_remarks(summary: RunSummary, record: RunRecord, sums: EvaluationSums) -> tuple[Remark, ...]:
    """All warnings about one run, those that concern everything first."""
    found = [
        *_incomplete(record, summary),
        *_threshold(record, summary),
        *_constant(summary, sums),
        *_held(record),
        *_unseen(summary),
    ]
    for attribute in summary.attributes:
        found += [*_missing(attribute, summary, record), *_small_cells(attribute, summary)]
    return (*found, *_wide_intervals(summary))


def _incomplete(record: RunRecord, summary: RunSummary) -> Iterator[Remark]:
    planned = record.plan.training.rounds
    if record.status != "complete" or summary.rounds < planned:
        yield Remark("incomplete run", f"the run is '{record.status}' after {summary.rounds} of {planned} rounds")
    absent = [site for site in record.roster if site not in summary.sites]
    if absent:
        yield Remark(
            "missing sites",
            f"{', '.join(absent)} took no part in the final evaluation: the results are not about them",
        )


def _threshold(record: RunRecord, summary: RunSummary) -> Iterator[Remark]:
    wanted = record.plan.evaluation.threshold
    if wanted != summary.threshold.source:
        yield Remark("threshold", "the validation records lack one of the labels, so the threshold is 0.5")
    elif wanted != "half" and summary.split == "validation":
        yield Remark(
            "threshold",
            "it was chosen on these same records: balanced accuracy at it looks better than it is",
        )


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
    held = 0.0 if last is None else last.at_minimum + last.at_maximum
    if last is not None and held > HELD * last.weighed:
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


def _missing(attribute: AttributeSummary, summary: RunSummary, record: RunRecord) -> Iterator[Remark]:
    if attribute.missing > 0:
        overall, cells = summary.overall, record.plan.cells
        share = attribute.missing / max(overall.records, 1)
        text = (
            f"{attribute.attribute}: {attribute.missing} of {overall.records} records ({share:.1%}), "
            f"{attribute.missing_positives} of them {summary.task['labels'][1]}, are in no group, because the "
            "attribute is missing"
        )
        if cells.minimum > 1 or cells.sites > 1:
            text += " or the cell was too small to be released; rates that mix labels may be shifted by it"
        yield Remark("missing records", text)


def _small_cells(attribute: AttributeSummary, summary: RunSummary) -> Iterator[Remark]:
    negative, positive = summary.task["labels"]
    cells = []
    for group in attribute.groups:
        positives = group.positives or 0
        for label, count in ((negative, group.records - positives), (positive, positives)):
            if 0 < count < SMALL_CELL:
                cells.append(f"{group.group} has {count} records labelled {label}")
    if cells:
        yield Remark("small cell", f"{attribute.attribute}: {', '.join(cells)} (fewer than {SMALL_CELL})")


def is_wide(value: Value) -> bool:
    """Whether the interval is wider than :data:`WIDE`; a value without one is not wide but unknown."""
    return value.low is not None and value.high is not None and value.high - value.low > WIDE


def _wide_intervals(summary: RunSummary) -> Iterator[Remark]:
    places = [("everybody", summary.overall)]
    places += [(f"{part.attribute} {group.group}", group) for part in summary.attributes for group in part.groups]
    for metric, words in (
        ("roc_auc", "area under the ROC curve"),
        ("balanced_accuracy", "balanced accuracy"),
    ):
        wide = [place for place, group in places if is_wide(group.metrics[metric])]
        if wide:
            yield Remark("wide interval", f"{words}: wider than {WIDE:g} for {', '.join(wide)}")


def comparison_remarks(baseline: RunSummary, other: RunSummary) -> tuple[Remark, ...]:
    """All warnings about two comparable runs."""
    found = list(_different_records(baseline, other))
    for before, after in zip(baseline.attributes, other.attributes, strict=True):
        found += _levelling_down(before, after)
    return tuple(found)


def _different_records(baseline: RunSummary, other: RunSummary) -> Iterator[Remark]:
    first, second = baseline.overall, other.overall
    if (first.records, first.positives) != (second.records, second.positives):
        yield Remark(
            "different records",
            f"it was evaluated on {second.records} records, {baseline.name} on {first.records}, or with other "
            "labels: a part of every change may come from that",
        )


def _levelling_down(before: AttributeSummary, after: AttributeSummary) -> Iterator[Remark]:
    """Levelling down: a gap fell, the worst group did not gain, and a better group lost."""
    gaps, evidence = [], []
    for gap, metric in _BENEFIT.items():
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
