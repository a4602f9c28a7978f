# SPDX-License-Identifier: Apache-2.0
"""What the terminal and the page say in the same words: verdicts, thresholds, and which numbers matter."""

from __future__ import annotations

from collections.abc import Sequence

from fairflare.evaluation.remarks import NOTICEABLE
from fairflare.evaluation.summary import Comparison, GroupSummary, Remark, RunSummary
from fairflare.evaluation.words import CRITERIA, HIGHER_IS_BETTER, LOWER_IS_BETTER, NO_CRITERION


def number(value: float | None) -> str:
    """Three decimals, or the words for "there is none"."""
    return "not estimable" if value is None else f"{value:.3f}"


def positives(group: GroupSummary) -> str:
    """How many records are truly positive, or that nobody may know."""
    return "unknown" if group.positives is None else str(group.positives)


def threshold(summary: RunSummary) -> str:
    """The score from which on a record is called positive, and how it was chosen."""
    chosen = summary.threshold.source == "validation_balanced_accuracy"
    source = "best balanced accuracy on validation records" if chosen else "fixed"
    return f"{summary.threshold.value:.4g} ({source})"


def change_in_words(metric: str, before: float | None, after: float | None) -> str:
    """Such as "+0.012 better"; "" where there is nothing to compare, no verdict where neither way is better."""
    if before is None or after is None:
        return ""
    change = after - before
    shown = f"{change:+.3f}"
    if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        return shown
    if abs(change) <= NOTICEABLE:
        return f"{shown} about equal"
    return f"{shown} {'better' if (change > 0) == (metric in HIGHER_IS_BETTER) else 'worse'}"


def gathered(summaries: Sequence[RunSummary], comparisons: Sequence[Comparison]) -> list[Remark]:
    """All warnings, those about changes first; one that several runs share is said once and names them."""
    places: dict[Remark, list[str]] = {}
    pairs = [(c.other, remark) for c in comparisons for remark in c.remarks]
    for name, remark in [*pairs, *((s.name, remark) for s in summaries for remark in s.remarks)]:
        places.setdefault(remark, []).append(name)
    return [Remark(remark.kind, f"{', '.join(names)}: {remark.text}") for remark, names in places.items()]


def of_interest(attribute: str, summaries: Sequence[RunSummary]) -> tuple[list[str], list[str]]:
    """Metrics and gaps that any run's penalties on ``attribute`` aim at, each once, in order."""
    penalties = [penalty for summary in summaries for penalty in summary.penalties]
    criteria = dict.fromkeys(penalty.criterion for penalty in penalties if penalty.attribute == attribute)
    chosen = [CRITERIA[criterion] for criterion in criteria] or [NO_CRITERION]
    metrics = dict.fromkeys(metric for part, _ in chosen for metric in part)
    gaps = dict.fromkeys(gap for _, part in chosen for gap in part)
    return list(metrics), list(gaps)
