# SPDX-License-Identifier: Apache-2.0
"""What a report says, as plain frozen data that can go into JSON; ``None`` is "not estimable", never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["validation", "test"]
#: What is judged: records of two labels; of more labels, each against all others and their mean; or painted images.
Kind = Literal["two_labels", "several_labels", "images"]

NO_INTERVAL = "no interval: too few records, or none that differ"
TOO_FEW_GROUPS = "fewer than two groups"


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval.

    Attributes
    ----------
    value, low, high
        ``None`` where not estimable; ``low`` and ``high`` also where no interval can be given.
    records
        Records behind the number: for a true positive rate, the positives.
    note
        Why there is no value or no interval, or what the value leaves out; else empty.
    """

    value: float | None
    low: float | None
    high: float | None
    records: int
    note: str


@dataclass(frozen=True)
class GroupSummary:
    """Results of one group.

    Attributes
    ----------
    records
        Released ones: where one label is withheld, those of the other. Of a segmentation, images.
    positives
        ``None`` where none was released, so that there may be some, and where no label is the positive one.
    metrics
        Metric name -> value. Two labels: ``fairness.metrics.METRICS`` and ``mean_loss``; the mean over more labels:
        ``evaluation.macro.MACRO`` and ``mean_loss``; images: ``fairness.images.METRICS``, and of several labels
        ``dice/LABEL`` and ``low_dice/LABEL``.
    """

    group: str
    records: int
    positives: int | None
    metrics: Mapping[str, Value]


@dataclass(frozen=True)
class WorstGroup:
    """The group with the lowest value, and the share of resamples in which it is the lowest, if known."""

    group: str
    value: Value
    certainty: float | None


@dataclass(frozen=True)
class AttributeSummary:
    """Results by one attribute.

    Attributes
    ----------
    groups
        In the order of the plan.
    gaps
        Gap name -> value.
    worst
        Metric (``words.Vocabulary.worst_by``) -> worst group; absent where fewer than two groups have a value, or all
        have the same.
    missing, missing_positives
        Records of ``all`` that are in no group, and the positive ones of them (``None`` where no label is the positive
        one): the attribute is missing, or the cell was withheld.
    """

    attribute: str
    groups: tuple[GroupSummary, ...]
    gaps: Mapping[str, Value]
    worst: Mapping[str, WorstGroup]
    missing: int
    missing_positives: int | None


@dataclass(frozen=True)
class LabelSummary:
    """Results of one of several labels against all others: they are then the positive and the negative ones."""

    label: str
    overall: GroupSummary
    attributes: tuple[AttributeSummary, ...]


@dataclass(frozen=True)
class Threshold:
    """Scores from ``value`` on are called positive; ``source``: the plan's rule, or ``half`` where it failed."""

    value: float
    source: Literal["half", "validation_balanced_accuracy"]


@dataclass(frozen=True)
class PenaltySummary:
    """A penalty, and its gap F = max_k |R_k - Rbar| on training data in the first and the last round."""

    attribute: str
    criterion: str
    measure: str
    strength: float
    first_gap: float | None
    last_gap: float | None


@dataclass(frozen=True)
class Remark:
    """A warning in words; ``kind`` is one of a few fixed names, such as ``constant model``."""

    kind: str
    text: str


@dataclass(frozen=True)
class RunSummary:
    """One model on one split; ``task`` and ``vocabulary`` (attributes, then intersections) are copied from the plan.

    Attributes
    ----------
    rounds, status
        0 and "" if the numbers are not from a run's record.
    threshold
        ``None`` for images: nothing is called positive there.
    overall, attributes
        Of more than two labels, the mean over labels.
    labels
        Of more than two labels, each against all others; else empty.
    """

    name: str
    method: str
    split: Split
    status: str
    plan_sha256: str
    model_sha256: str
    task: Mapping[str, Any]
    vocabulary: tuple[Mapping[str, Any], ...]
    score_bins: int
    rounds: int
    sites: tuple[str, ...]
    threshold: Threshold | None
    overall: GroupSummary
    attributes: tuple[AttributeSummary, ...]
    labels: tuple[LabelSummary, ...]
    penalties: tuple[PenaltySummary, ...]
    remarks: tuple[Remark, ...]

    @property
    def kind(self) -> Kind:
        """Which metrics there are."""
        if self.task["kind"] == "segmentation":
            return "images"
        return "two_labels" if len(self.task["labels"]) == 2 else "several_labels"

    @property
    def parts(self) -> tuple[LabelSummary, ...]:
        """Labels that are judged one by one: those of :attr:`labels`, or the whole, without a name."""
        return self.labels or (LabelSummary("", self.overall, self.attributes),)

    def by_attribute(self, name: str) -> AttributeSummary:
        """Results by the attribute called ``name``; ``KeyError`` if the plan does not declare it."""
        for attribute in self.attributes:
            if attribute.attribute == name:
                return attribute
        raise KeyError(name)


@dataclass(frozen=True)
class Change:
    """``other - baseline`` of one number; ``None`` if either is not estimable; ``group`` is "" for gaps.

    A ``metric`` of one of several labels is ``METRIC/LABEL``.
    """

    attribute: str
    group: str
    metric: str
    baseline: float | None
    other: float | None
    change: float | None


@dataclass(frozen=True)
class Comparison:
    """How ``other`` differs from ``baseline``, both on the same task and split."""

    baseline: str
    other: str
    changes: tuple[Change, ...]
    remarks: tuple[Remark, ...]
