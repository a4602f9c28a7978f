# SPDX-License-Identifier: Apache-2.0
"""Reweighting: FedAvg with weights of records that make up for unequal groups; a baseline to measure against.

``groups``: every group of an attribute weighs the same. ``independence``: Kamiran and Calders, Data preprocessing
techniques for classification without discrimination, KAIS 2012, section 4.3.1: group and label are made independent.
Counts are those of all hospitals together, opened once a session as sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fairflare.fairness.groups import CellSums, Floats, GroupIndex, Integers, Measure, Sums
from fairflare.methods.base import Method, MethodParameters, SampleTerms, Setting

#: Rounds between two counts: more than any plan has.
_ONCE = 10_001


class ReweightingParameters(MethodParameters):
    """Whose groups are weighed, how, and the largest weight (``null``: no bound); the least one is 0.

    A record of group a (and label y) of ``groups`` weighs n / (G n_a), with ``independence`` n_a n_y / (n n_ay), where
    numbers are of records with a known group that may be shown. Records of other groups weigh 1. With groups of one
    size (``independence``: with the same labels in each) it is FedAvg.
    """

    name: Literal["reweighting"]
    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    balance: Literal["groups", "independence"]
    max_weight: Annotated[float, Field(ge=1)] | None

    @property
    def measured_every(self) -> int:
        """Counts do not change: they are taken once in a session."""
        return _ONCE

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Attributes that the plan does not have, and labels that the task does not have."""
        if self.attribute not in setting.sizes:
            known = ", ".join(setting.sizes) or "attributes, of which the plan has none"
            yield f"got reweighting of '{self.attribute}', expected one of {known}"
        if self.balance == "independence" and setting.task == "segmentation":
            yield "got balance 'independence' for segmentation, expected 'groups': images have no label"


class Reweighting(Method, of=ReweightingParameters):
    """FedAvg on weighted records."""

    parameters: ReweightingParameters

    def measures(self) -> Sequence[Measure]:
        """Records of each group, of each label if that matters."""
        labels = range(self.labels) if self.parameters.balance == "independence" else (-1,)
        return [Measure(self.parameters.attribute, label, "presence") for label in labels]

    def sample_terms(
        self,
        totals: Mapping[Measure, Sums],
        own: Mapping[Measure, Sums],
        groups: GroupIndex,
        labels: Integers,
        factor: float,
    ) -> SampleTerms:
        """Weight less 1 of each record, times its loss."""
        counts = np.stack([_counts(totals[measure]) for measure in self.measures()])
        weights = self._weights(counts)
        most = np.inf if self.parameters.max_weight is None else self.parameters.max_weight
        group = groups[self.parameters.attribute]
        row = labels if self.parameters.balance == "independence" else np.zeros_like(labels)
        of_records = np.where(group >= 0, weights[row, np.maximum(group, 0)], 1.0)
        at_maximum = int((of_records > most).sum())
        term = np.minimum(of_records, most) - 1.0
        if not term.any():
            return SampleTerms(weighed=labels.size)
        return SampleTerms({"task_loss": term}, labels.size, 0, at_maximum)

    def _weights(self, counts: Floats) -> Floats:
        """Weights (Y, G) from counts (Y, G); 1 where there is no count."""
        if self.parameters.balance == "groups":
            wanted = np.full(counts.shape, counts.sum() / max(int((counts > 0).sum()), 1))
        else:
            wanted = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / max(float(counts.sum()), 1.0)
        return np.where(counts > 0, wanted / np.maximum(counts, 1.0), 1.0)


def _counts(sums: Sums) -> Floats:
    if not isinstance(sums, CellSums):
        raise TypeError(f"got {type(sums).__name__}, expected CellSums")
    return sums.count
