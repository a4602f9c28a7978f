# SPDX-License-Identifier: Apache-2.0
"""Results of a question with two answers: a positive label against another one, or against all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairflare.evaluation.statistics import Resamples, bootstrap, percentile_interval, wilson
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, Value
from fairflare.evaluation.values import ONLY_THE_SUM, absent, gap_of, value_of, worst_of
from fairflare.fairness.groups import Floats
from fairflare.fairness.metrics import (
    GAPS,
    METRICS,
    Booleans,
    Scores,
    confusion,
    estimable,
    group_gaps,
    group_metrics,
    mean_loss,
)

WORST_BY = ("roc_auc", "balanced_accuracy")


@dataclass(frozen=True)
class LabelTable:
    """One attribute's sums (K, 2, 4 + bins), with all that is derived from them.

    Attributes
    ----------
    attribute, names
        The attribute, and its groups.
    labels
        What the negatives and the positives are called.
    withheld
        Why cells may be empty although there are records; "" where every record counts.
    """

    attribute: str
    names: tuple[str, ...]
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
        attribute: str,
        names: tuple[str, ...],
        labels: tuple[str, str],
        withheld: str,
        table: Floats,
        *,
        edge: int,
        seed: tuple[int, ...],
        resamples: int,
    ) -> LabelTable:
        """Derive everything; bins from ``edge`` on are called positive."""
        scores = Scores.of(table, edge, suppressed=bool(withheld))
        metrics = group_metrics(scores)
        groups = estimable(metrics)
        drawn = bootstrap(table, scores, groups, seed=seed, resamples=resamples)
        return cls(attribute, names, labels, withheld, table, scores, metrics, groups, drawn)

    def summary(self, everybody: Floats) -> AttributeSummary:
        """All results by this attribute; ``everybody`` (2,) is the number of all records by label."""
        groups = tuple(self._group(k) for k in range(len(self.names)))
        gaps = group_gaps(self.scores, self.groups)
        missing = np.maximum(everybody - self.table[..., 0].sum(axis=0), 0.0)
        worst = (worst_of(name, self.metrics[name], self.resamples.metrics[name], groups) for name in WORST_BY)
        return AttributeSummary(
            attribute=self.attribute,
            groups=groups,
            gaps={name: self._gap(name, float(gaps[name])) for name in GAPS},
            worst=dict(pair for found in worst for pair in found),
            missing=round(float(missing.sum())),
            missing_positives=round(float(missing[1])),
        )

    def _group(self, k: int) -> GroupSummary:
        counts = self.table[k, :, 0]
        values = {name: self._metric(name, k) for name in METRICS}
        values["mean_loss"] = self.loss(k)
        positives = None if self.withheld and counts[1] == 0 else round(float(counts[1]))
        return GroupSummary(self.names[k], round(float(counts.sum())), positives, values)

    def _metric(self, name: str, k: int) -> Value:
        value = float(self.metrics[name][k])
        rate = _rate(name, self.scores, k)
        counts = self.table[k, :, 0]
        records = _behind(name, counts) if rate is None else rate[1]
        if np.isnan(value):
            return absent(records, self._why_not(name, k))
        interval = wilson(*rate) if rate is not None else percentile_interval(self.resamples.metrics[name][:, k])
        return value_of(value, interval, records)

    def loss(self, k: int) -> Value:
        """Mean loss of a group, of which both labels have to be known."""
        loss, records = float(mean_loss(self.table)[k]), round(float(self.table[k, :, 0].sum()))
        if np.isnan(loss) or not self.scores.complete[k]:
            return absent(records, self._why_not("mean_loss", k))
        return Value(loss, None, None, records, ONLY_THE_SUM)

    def _why_not(self, name: str, k: int) -> str:
        counts = self.table[k, :, 0]
        needed = METRICS.get(name, ()) or ((0, 1) if self.withheld or counts.sum() == 0 else ())
        missing = [self.labels[label] for label in needed if counts[label] == 0]
        if not missing:
            return "no record is called positive"
        what = "no record" if len(missing) == 2 else f"no record labelled {missing[0]}"
        return f"{what}: {self.withheld}" if self.withheld else what

    def _gap(self, name: str, gap: float) -> Value:
        compared = [self.groups[part] for part in GAPS[name]]
        labels = sorted({label for part in GAPS[name] for label in METRICS[part] or (0, 1)})
        records = float(self.table[np.logical_or.reduce(compared)][:, labels, 0].sum())
        return gap_of(gap, self.resamples.gaps[name], records, compared, self.names)


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
