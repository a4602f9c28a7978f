# SPDX-License-Identifier: Apache-2.0
"""Results of several labels together: the mean over labels of each one's results against all others.

Sums do not say how the results of two labels vary together. Intervals take them to vary as one: resamples of each
label are put in the same order before the mean is taken, which gives the widest spread that the labels' own allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairflare.evaluation.statistics import percentile_interval
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, Value
from fairflare.evaluation.two_labels import LabelTable
from fairflare.evaluation.values import absent, gap_of, value_of, worst_of
from fairflare.fairness.groups import Floats
from fairflare.fairness.metrics import difference

#: Mean over labels -> the metric of each.
MACRO: Mapping[str, str] = {"macro_roc_auc": "roc_auc", "macro_balanced_accuracy": "balanced_accuracy"}
MACRO_GAPS: Mapping[str, str] = {f"{name}_difference": name for name in MACRO}


def coupled(parts: Sequence[Floats]) -> Floats:
    """Mean of resamples (n, K) of several labels that rise and fall together, group by group.

    The order is the first label's, so groups vary apart as they do there. NaN come last in every label's order.
    """
    place = parts[0].argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    ranked = np.mean([np.sort(part, axis=0) for part in parts], axis=0)
    return np.asarray(np.take_along_axis(ranked, place, axis=0))


@dataclass(frozen=True)
class Macro:
    """Means over the labels of one attribute: ``values`` (K,), and ``drawn`` (n, K), by name."""

    tables: Sequence[LabelTable]
    values: Mapping[str, Floats]
    drawn: Mapping[str, Floats]

    @classmethod
    def of(cls, tables: Sequence[LabelTable]) -> Macro:
        """From the tables of all labels, of the same groups."""
        values = {name: np.mean([one.metrics[part] for one in tables], axis=0) for name, part in MACRO.items()}
        drawn = {name: coupled([one.resamples.metrics[part] for one in tables]) for name, part in MACRO.items()}
        return cls(tables, values, drawn)

    @property
    def records(self) -> Floats:
        """Records of each group (K,): where cells are withheld, the most that any label's question shows."""
        return np.asarray(np.max([one.table[..., 0].sum(axis=-1) for one in self.tables], axis=0))

    def summary(self, everybody: float) -> AttributeSummary:
        """Means over labels by this attribute; ``everybody`` is the number of all records."""
        first, records = self.tables[0], self.records
        groups = tuple(self._group(k) for k in range(len(first.names)))
        worst = (worst_of(name, self.values[name], self.drawn[name], groups) for name in MACRO)
        return AttributeSummary(
            attribute=first.attribute,
            groups=groups,
            gaps={gap: self._gap(name) for gap, name in MACRO_GAPS.items()},
            worst=dict(pair for found in worst for pair in found),
            missing=round(max(everybody - float(records.sum()), 0.0)),
            missing_positives=None,
        )

    def _group(self, k: int) -> GroupSummary:
        values = {name: self._metric(name, k) for name in MACRO}
        losses = [one.loss(k) for one in self.tables]
        # Every question has the same records, so any that is whole has the loss.
        values["mean_loss"] = next((loss for loss in losses if loss.value is not None), losses[0])
        return GroupSummary(self.tables[0].names[k], round(float(self.records[k])), None, values)

    def _metric(self, name: str, k: int) -> Value:
        value, records = float(self.values[name][k]), float(self.records[k])
        if np.isnan(value):
            without = [one.labels[1] for one in self.tables if np.isnan(one.metrics[MACRO[name]][k])]
            return absent(records, f"not estimable for {', '.join(without)}" if records else "no record")
        return value_of(value, percentile_interval(self.drawn[name][:, k]), records)

    def _gap(self, name: str) -> Value:
        known = ~np.isnan(self.values[name])
        gap = float(difference(self.values[name][known]))
        drawn = difference(self.drawn[name][:, known])
        return gap_of(gap, drawn, float(self.records[known].sum()), [known], self.tables[0].names)
