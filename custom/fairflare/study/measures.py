# SPDX-License-Identifier: Apache-2.0
"""What a study file calls a metric or a criterion, and the name of the number that it means in a kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairflare.errors import StudyError
from fairflare.evaluation.summary import Kind
from fairflare.evaluation.words import NAMES, VOCABULARIES
from fairflare.fairness.groups import EVERYBODY, HOSPITAL
from fairflare.plan import Plan
from fairflare.study.spec import Gap, Task

METRICS: Mapping[Kind, Mapping[str, str]] = {
    "two_labels": {"auc": "roc_auc", "balanced_accuracy": "balanced_accuracy", "accuracy": "accuracy"},
    "several_labels": {"auc": "macro_roc_auc", "balanced_accuracy": "macro_balanced_accuracy"},
    "images": {"dice": "dice"},
}
GAPS: Mapping[Kind, Mapping[str, str]] = {
    "two_labels": {
        "demographic_parity": "demographic_parity_difference",
        "equal_opportunity": "equal_opportunity_difference",
        "equalized_odds": "equalized_odds_difference",
        "equal_accuracy": "accuracy_difference",
        "auc": "roc_auc_difference",
        "balanced_accuracy": "balanced_accuracy_difference",
        "demographic_parity_to_overall": "demographic_parity_gap_to_overall",
        "equal_opportunity_to_overall": "equal_opportunity_gap_to_overall",
    },
    "several_labels": {
        "auc": "macro_roc_auc_difference",
        "balanced_accuracy": "macro_balanced_accuracy_difference",
    },
    "images": {"equal_accuracy": "dice_difference", "equal_accuracy_to_overall": "dice_gap_to_overall"},
}
#: Between the parts of a value's name: no attribute, group or metric has it in its own.
SEPARATOR = ":"
#: First part of the means over sites, each judged by itself; no attribute can have this name.
SITE_MEAN = "site-mean"


def kind_of(plan: Plan) -> Kind:
    """Which metrics there are."""
    if plan.task.kind == "segmentation":
        return "images"
    return "two_labels" if len(plan.task.labels) == 2 else "several_labels"


def named(*parts: str) -> str:
    """Name of a value, such as ``sex:female:roc_auc``."""
    return SEPARATOR.join(parts)


@dataclass(frozen=True)
class GapColumn:
    """A gap that is looked at.

    Attributes
    ----------
    attribute, gap
        Of which groups, and the gap's name.
    worst_by
        Metric whose lowest group tells whether anybody was helped.
    groups
        Names of the groups.
    """

    attribute: str
    gap: str
    worst_by: str
    groups: tuple[str, ...]

    @property
    def value(self) -> str:
        """Name of its value."""
        return named(self.attribute, self.gap)

    @property
    def words(self) -> str:
        """Head of its column."""
        return f"{NAMES[self.gap]} by {self.attribute}"

    def of_group(self, group: str) -> str:
        """Name of the value of one group."""
        return named(self.attribute, group, self.worst_by)


@dataclass(frozen=True)
class View:
    """A metric of quality and some gaps."""

    metric: str
    gaps: tuple[GapColumn, ...]

    @property
    def quality(self) -> str:
        """Name of the value of quality over everybody."""
        return named(EVERYBODY, self.metric)

    @property
    def words(self) -> str:
        """Head of the column of quality."""
        return NAMES[self.metric]


@dataclass(frozen=True)
class Measures:
    """What configurations of a task are chosen by, and what its tables show."""

    kind: Kind
    selection: View
    report: View


def measures_of(task: Task, plan: Plan, sites: tuple[str, ...]) -> Measures:
    """Names of the values that ``task`` is judged by; raises ``FF-STUDY-MEASURE`` for what ``plan`` does not have."""
    kind = kind_of(plan)
    groups = {**plan.groups, HOSPITAL: sites}
    parts = (
        View(_metric(kind, part.metric, task.name), tuple(_gap(kind, gap, groups, task.name) for gap in part.gaps))
        for part in (task.selection, task.report)
    )
    return Measures(kind, *parts)


def _metric(kind: Kind, metric: str, task: str) -> str:
    found = METRICS[kind].get(metric)
    if found is None:
        raise _refused(task, f"the metric '{metric}'", METRICS[kind])
    return found


def _gap(kind: Kind, gap: Gap, groups: Mapping[str, tuple[str, ...]], task: str) -> GapColumn:
    if gap.attribute not in groups:
        raise _refused(task, f"a gap by '{gap.attribute}'", groups)
    found = GAPS[kind].get(gap.criterion)
    if found is None:
        raise _refused(task, f"the criterion '{gap.criterion}'", GAPS[kind])
    worst_by = VOCABULARIES[kind].benefit.get(found, "balanced_accuracy")
    return GapColumn(gap.attribute, found, worst_by, groups[gap.attribute])


def _refused(task: str, got: str, known: Mapping[str, object]) -> StudyError:
    return StudyError(
        "FF-STUDY-MEASURE",
        got=f"{got}, which the task '{task}' does not have",
        expected=f"one of {', '.join(known)}",
        next_step="correct the task's selection or report in the study file",
    )
