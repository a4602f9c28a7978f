# SPDX-License-Identifier: Apache-2.0
"""What the terminal and the page say in the same words: verdicts, thresholds, and which numbers matter."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from fairflare.evaluation.remarks import NOTICEABLE
from fairflare.evaluation.summary import Comparison, GroupSummary, Remark, RunSummary
from fairflare.evaluation.words import HIGHER_IS_BETTER, LOWER_IS_BETTER, VOCABULARIES
from fairflare.fairness.images import of_label

#: Marks that change the direction of the text after them, and with it what a reader believes to read.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
#: Up to so many labels of a segmentation have a column of their own in the table of groups.
_LABEL_COLUMNS = 3


def visible(text: str, keep: str = "\n\t") -> str:
    """Write out characters that hide, reorder or cannot be encoded, but for those in ``keep``."""
    return "".join(
        f"\\u{ord(letter):04x}" if letter not in keep and _is_treacherous(letter) else letter for letter in text
    )


def _is_treacherous(letter: str) -> bool:
    return letter in _DIRECTION or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def number(value: float | None) -> str:
    """Three decimals, or the words for "there is none"."""
    return "not estimable" if value is None else f"{value:.3f}"


def positives(group: GroupSummary) -> str:
    """How many records are truly positive, or that nobody may know."""
    return "unknown" if group.positives is None else str(group.positives)


def counted(summary: RunSummary) -> str:
    """How many records there are, and how many of them are positive where there is such a label."""
    records, labels = summary.overall.records, summary.task["labels"]
    if summary.kind == "images":
        return f"{records} images"
    if summary.kind == "several_labels":
        return f"{records}, of {len(labels)} labels"
    return f"{records}, of which {positives(summary.overall)} are positive"


def threshold(summary: RunSummary) -> str:
    """The score from which on a record is called positive, and how it was chosen; "" where nothing is."""
    if summary.threshold is None:
        return ""
    chosen = summary.threshold.source == "validation_balanced_accuracy"
    source = "best balanced accuracy on validation records" if chosen else "fixed"
    return f"{summary.threshold.value:.4g} ({source})"


def change_in_words(metric: str, before: float | None, after: float | None) -> str:
    """Such as "+0.012 better"; "" where there is nothing to compare, no verdict where neither way is better."""
    if before is None or after is None:
        return ""
    change = after - before
    shown = f"{change:+.3f}"
    name = metric.partition("/")[0]
    if name not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        return shown
    if abs(change) <= NOTICEABLE:
        return f"{shown} about equal"
    return f"{shown} {'better' if (change > 0) == (name in HIGHER_IS_BETTER) else 'worse'}"


def columns(summary: RunSummary) -> Mapping[str, str]:
    """Metrics in the table of groups, and heads of their columns; few labels of a segmentation have their own."""
    found = dict(VOCABULARIES[summary.kind].columns)
    painted = summary.task["labels"][1:]
    if summary.kind == "images" and 1 < len(painted) <= _LABEL_COLUMNS:
        found |= {of_label("dice", label): f"Dice of\n{label}" for label in painted}
    return found


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
    words = VOCABULARIES[summaries[0].kind]
    chosen = [words.criteria[criterion] for criterion in criteria] or [words.no_criterion]
    metrics = dict.fromkeys(metric for part, _ in chosen for metric in part)
    gaps = dict.fromkeys(gap for _, part in chosen for gap in part)
    return list(metrics), list(gaps)
