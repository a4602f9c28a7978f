# SPDX-License-Identifier: Apache-2.0
"""From a run's record to what can be said about it, and from two runs to what changed.

Everything is computed from the record's sums: no image, no score of a single patient is needed or kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fairflare.errors import RunError
from fairflare.evaluation.remarks import comparison_remarks, run_remarks
from fairflare.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Resamples,
    bootstrap,
    gap_interval,
    percentile_interval,
    wilson,
)
from fairflare.evaluation.summary import (
    NO_INTERVAL,
    TOO_FEW_GROUPS,
    AttributeSummary,
    Change,
    Comparison,
    GroupSummary,
    PenaltySummary,
    RunSummary,
    Split,
    Threshold,
    Value,
    WorstGroup,
)
from fairflare.fairness.groups import EVERYBODY, HEAD, Floats, Measure
from fairflare.fairness.metrics import (
    GAPS,
    METRICS,
    Booleans,
    Scores,
    best_edge,
    confusion,
    estimable,
    group_gaps,
    group_metrics,
    half_edge,
    mean_loss,
    worst_group,
)
from fairflare.fairness.penalty import labels_of
from fairflare.plan import Plan
from fairflare.record import RunRecord

WORST_BY = ("roc_auc", "balanced_accuracy")


def summarise(
    record: RunRecord,
    split: Split = "test",
    *,
    name: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RunSummary:
    """Everything a report says about one run.

    Parameters
    ----------
    record
        Of a run with a final evaluation.
    split
        Which records to report on.
    name
        What to call the run; the plan's name by default.
    resamples, seed
        Of the bootstrap; the same numbers give the same intervals.

    Raises
    ------
    RunError
        ``FF-RUN-INCOMPLETE`` if the run has no final evaluation, ``FF-RUN-LAYOUT`` if it does not fit its
        plan.
    """
    sums, plan = record.evaluation(split), record.plan
    edge, threshold = _choose_threshold(record)
    tables = list(sums.cells.items())
    everybody = sums.cells[EVERYBODY][0, :, 0]
    values = {EVERYBODY: (EVERYBODY,), **{attribute.name: attribute.values for attribute in plan.attributes}}
    first, *others = (
        _Table.of(plan, attribute, values[attribute], table, edge, (seed, index), resamples).summary(everybody)
        for index, (attribute, table) in enumerate(tables)
    )
    summary = RunSummary(
        name=name or plan.name,
        method=plan.method.name,
        split=split,
        status=record.status,
        plan_sha256=record.plan_sha256,
        model_sha256=record.final.model_sha256 if record.final else "",
        task=plan.task.model_dump(mode="json"),
        vocabulary=tuple(attribute.model_dump(mode="json") for attribute in plan.attributes),
        score_bins=plan.evaluation.score_bins,
        rounds=len(record.rounds),
        sites=record.final.participants if record.final else (),
        threshold=threshold,
        overall=first.groups[0],
        attributes=tuple(others),
        penalties=tuple(_penalties(record)),
        remarks=(),
    )
    return replace(summary, remarks=run_remarks(summary, record, sums))


def _choose_threshold(record: RunRecord) -> tuple[int, Threshold]:
    bins = record.plan.evaluation.score_bins
    edge = None
    if record.plan.evaluation.threshold == "validation_balanced_accuracy":
        edge = best_edge(record.evaluation("validation").cells[EVERYBODY][0, :, HEAD:])
    if edge is None:
        edge = half_edge(bins)
        return edge, Threshold(edge / bins, "half")
    return edge, Threshold(edge / bins, "validation_balanced_accuracy")


def _penalties(record: RunRecord) -> Iterator[PenaltySummary]:
    method = record.plan.method
    for penalty in method.penalties if method.name == "flexfair" else ():
        for label in labels_of(penalty.criterion):
            measure = Measure(penalty.attribute, label, penalty.utility).name
            gaps = [
                line.gap
                for part in record.rounds
                for line in part.penalties
                if (line.attribute, line.criterion) == (penalty.attribute, penalty.criterion)
                and line.measure.startswith(measure)
            ]
            first, last = (gaps[0], gaps[-1]) if gaps else (None, None)
            yield PenaltySummary(penalty.attribute, penalty.criterion, measure, penalty.strength, first, last)


@dataclass(frozen=True)
class _Table:
    """One attribute's sums (K, 2, 4 + bins), with all that is derived from them."""

    attribute: str
    values: tuple[str, ...]
    labels: tuple[str, str]
    withheld: str
    table: Floats
    scores: Scores
    metrics: Mapping[str, Floats]
    groups: Mapping[str, Booleans]
    resamples: Resamples

    @classmethod
    def of(
        cls,
        plan: Plan,
        attribute: str,
        values: tuple[str, ...],
        table: Floats,
        edge: int,
        seed: tuple[int, int],
        resamples: int,
    ) -> _Table:
        withheld = _withheld(plan)
        scores = Scores.of(table, edge, suppressed=bool(withheld))
        metrics = group_metrics(scores)
        groups = estimable(metrics)
        drawn = bootstrap(table, scores, groups, seed=seed, resamples=resamples)
        labels = plan.task.labels
        return cls(attribute, values, labels, withheld, table, scores, metrics, groups, drawn)

    def summary(self, everybody: Floats) -> AttributeSummary:
        """All results by this attribute; ``everybody`` (2,) is the number of all records by label."""
        groups = tuple(self._group(k) for k in range(len(self.values)))
        gaps = group_gaps(self.scores, self.groups)
        missing = np.maximum(everybody - self.table[..., 0].sum(axis=0), 0.0)
        return AttributeSummary(
            attribute=self.attribute,
            groups=groups,
            gaps={name: self._gap(name, float(gaps[name])) for name in GAPS},
            worst=dict(pair for metric in WORST_BY for pair in self._worst(metric, groups)),
            missing=round(float(missing.sum())),
            missing_positives=round(float(missing[1])),
        )

    def _group(self, k: int) -> GroupSummary:
        counts = self.table[k, :, 0]
        values = {name: self._metric(name, k) for name in METRICS}
        values["mean_loss"] = self._loss(k)
        positives = None if self.withheld and counts[1] == 0 else round(float(counts[1]))
        return GroupSummary(self.values[k], round(float(counts.sum())), positives, values)

    def _metric(self, name: str, k: int) -> Value:
        value = float(self.metrics[name][k])
        rate = _rate(name, self.scores, k)
        counts = self.table[k, :, 0]
        records = _behind(name, counts) if rate is None else rate[1]
        if np.isnan(value):
            return Value(None, None, None, round(records), self._why_not(name, k))
        interval = wilson(*rate) if rate is not None else percentile_interval(self.resamples.metrics[name][:, k])
        return _value(value, interval, records)

    def _loss(self, k: int) -> Value:
        loss, records = float(mean_loss(self.table)[k]), round(float(self.table[k, :, 0].sum()))
        if np.isnan(loss) or not self.scores.complete[k]:
            return Value(None, None, None, records, self._why_not("mean_loss", k))
        return Value(loss, None, None, records, "no interval: only the sum of the loss is known")

    def _why_not(self, name: str, k: int) -> str:
        counts = self.table[k, :, 0]
        needed = METRICS.get(name, ()) or ((0, 1) if self.withheld or counts.sum() == 0 else ())
        absent = [self.labels[label] for label in needed if counts[label] == 0]
        if not absent:
            return "no record is called positive"
        what = "no record" if len(absent) == 2 else f"no record labelled {absent[0]}"
        return f"{what}: {self.withheld}" if self.withheld else what

    def _gap(self, name: str, gap: float) -> Value:
        compared = [self.groups[part] for part in GAPS[name]]
        labels = sorted({label for part in GAPS[name] for label in METRICS[part] or (0, 1)})
        records = float(self.table[np.logical_or.reduce(compared)][:, labels, 0].sum())
        if np.isnan(gap):
            return Value(None, None, None, round(records), TOO_FEW_GROUPS)
        found = _value(gap, gap_interval(gap, self.resamples.gaps[name]), records)
        # Equalized odds compares two rates, and a group may have only one of them.
        inside = np.sum(compared, axis=0)
        without = ", ".join(self.values[k] for k in np.flatnonzero(inside == 0))
        partly = ", ".join(self.values[k] for k in np.flatnonzero((inside > 0) & (inside < len(compared))))
        notes = [found.note, without and f"without {without}", partly and f"one of the two rates without {partly}"]
        return replace(found, note="; ".join(filter(None, notes)))

    def _worst(self, metric: str, groups: tuple[GroupSummary, ...]) -> Iterator[tuple[str, WorstGroup]]:
        index = worst_group(self.metrics[metric])
        if index is None:
            return
        known = np.flatnonzero(self.groups[metric])
        drawn = self.resamples.metrics[metric][:, known]
        drawn = drawn[~np.isnan(drawn).any(axis=1)]
        share = float((known[drawn.argmin(axis=1)] == index).mean()) if len(drawn) else None
        yield metric, WorstGroup(self.values[index], groups[index].metrics[metric], share)


def _withheld(plan: Plan) -> str:
    """Why a cell may be empty although there are records; "" where every record counts."""
    cells, reasons = plan.cells, []
    if cells.minimum > 1:
        reasons.append(f"fewer than {cells.minimum} at each site")
    if cells.sites > 1:
        reasons.append(f"released by fewer than {cells.sites} sites")
    return f"withheld ({' or '.join(reasons)}), or there is none" if reasons else ""


def _behind(metric: str, counts: Floats) -> float:
    """Records (label 0, label 1) = ``counts`` (2,) that a metric is about."""
    needed = METRICS[metric] or (0, 1)
    return float(counts[list(needed)].sum())


def _rate(name: str, scores: Scores, k: int) -> tuple[float, float] | None:
    """Successes and trials of a metric of group k that is a proportion; ``None`` for the others."""
    counts = confusion(scores.histogram[k], scores.edge)
    called = float(counts.true_positives + counts.false_positives)
    records = float(counts.positives + counts.negatives)
    right = float(counts.true_positives + counts.negatives - counts.false_positives)
    return {
        "accuracy": (right, records),
        "true_positive_rate": (float(counts.true_positives), float(counts.positives)),
        "false_positive_rate": (float(counts.false_positives), float(counts.negatives)),
        "selection_rate": (called, records),
        "precision": (float(counts.true_positives), called),
    }.get(name)


def _value(value: float, interval: Interval | None, records: float) -> Value:
    if interval is None:
        return Value(value, None, None, round(records), NO_INTERVAL)
    return Value(value, interval.low, interval.high, round(records), "")


def compare(baseline: RunSummary, other: RunSummary) -> Comparison:
    """What changed from ``baseline`` to ``other``, number by number, and warnings such as levelling down.

    A change has no interval: two runs share their test records, and sums do not say which record is which.
    Runs with several seeds do: :func:`fairflare.evaluation.statistics.paired_difference`.

    Raises
    ------
    RunError
        ``FF-RUN-COMPARE`` if task, attributes, score bins or split differ.
    """
    _verify_comparable(baseline, other)
    changes = [*_group_changes(EVERYBODY, baseline.overall, other.overall)]
    for before, after in zip(baseline.attributes, other.attributes, strict=True):
        for old, new in zip(before.groups, after.groups, strict=True):
            changes += _group_changes(before.attribute, old, new)
        changes += [_change(before.attribute, "", gap, before.gaps[gap], after.gaps[gap]) for gap in before.gaps]
        for metric in WORST_BY:
            if metric in before.worst and metric in after.worst:
                pair = before.worst[metric].value, after.worst[metric].value
                changes.append(_change(before.attribute, "", f"worst_group_{metric}", *pair))
    return Comparison(baseline.name, other.name, tuple(changes), comparison_remarks(baseline, other))


def _verify_comparable(baseline: RunSummary, other: RunSummary) -> None:
    pairs = {
        "task": (baseline.task, other.task),
        "attributes": (baseline.vocabulary, other.vocabulary),
        "score_bins": (baseline.score_bins, other.score_bins),
        "split": (baseline.split, other.split),
    }
    different = [what for what, (first, second) in pairs.items() if first != second]
    if different:
        raise RunError(
            "FF-RUN-COMPARE",
            got=f"runs '{baseline.name}' and '{other.name}' with different {', '.join(different)}",
            expected="runs with the same task, attributes, score bins and split",
            next_step="report on these runs one at a time, or run one again with the other's settings",
        )


def _group_changes(attribute: str, old: GroupSummary, new: GroupSummary) -> list[Change]:
    return [_change(attribute, old.group, metric, old.metrics[metric], new.metrics[metric]) for metric in old.metrics]


def _change(attribute: str, group: str, metric: str, old: Value, new: Value) -> Change:
    change = None if old.value is None or new.value is None else new.value - old.value
    return Change(attribute, group, metric, old.value, new.value, change)
