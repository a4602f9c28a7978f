# SPDX-License-Identifier: Apache-2.0
"""Performance and fairness from sums alone: score histograms per group and true label are enough.

A record is called positive when its score is at or above a threshold that is the edge of a bin, so every
threshold metric is that of the single records. The area under the ROC curve counts pairs within a bin as one
half: it equals the one of scores rounded down to their bin. Definitions of the differences between groups are
fairlearn's (largest minus smallest); the gaps to the overall mean are the FlexFair paper's (algorithms
section 10), computed from mean scores.

Arrays may carry leading axes (such as bootstrap resamples): a histogram has shape (..., K, 2, bins), K groups
by true label by bin, and a metric has shape (..., K). "Not estimable" is NaN, never 0: without positives
there is no true positive rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairflare.fairness.groups import HEAD, Floats

Booleans = NDArray[np.bool_]

#: Metric of one group -> true labels without which it is not estimable; none named: any record will do.
METRICS: Mapping[str, tuple[int, ...]] = {
    "roc_auc": (0, 1),
    "balanced_accuracy": (0, 1),
    "accuracy": (),
    "true_positive_rate": (1,),
    "false_positive_rate": (0,),
    "selection_rate": (),
    "precision": (),
    "mean_score": (),
    "mean_score_of_positives": (1,),
}

#: Gap between groups -> metrics of the groups that it compares.
GAPS: Mapping[str, tuple[str, ...]] = {
    "demographic_parity_difference": ("selection_rate",),
    "equal_opportunity_difference": ("true_positive_rate",),
    "equalized_odds_difference": ("true_positive_rate", "false_positive_rate"),
    "roc_auc_difference": ("roc_auc",),
    "balanced_accuracy_difference": ("balanced_accuracy",),
    "accuracy_difference": ("accuracy",),
    "demographic_parity_gap_to_overall": ("mean_score",),
    "equal_opportunity_gap_to_overall": ("mean_score_of_positives",),
}


@dataclass(frozen=True)
class Scores:
    """What metrics are computed from.

    Attributes
    ----------
    histogram
        float64 array (..., K, 2, bins): records by group, true label and bin of P(positive).
    total
        float64 array (..., K, 2): sum of P(positive).
    edge
        Bins from this one on are called positive; the threshold is ``edge / bins``.
    complete
        bool array (K,): whether both labels of a group are known. Where one may have been withheld, whatever
        mixes the labels (accuracy, selection rate, ...) would be that of half the group, and is not
        estimable.
    """

    histogram: Floats
    total: Floats
    edge: int
    complete: Booleans

    @classmethod
    def of(cls, table: Floats, edge: int, *, suppressed: bool) -> Scores:
        """Scores of an ``EvaluationSums`` table (K, 2, 4 + bins); ``suppressed``: cells may be withheld."""
        seen = table[..., 0] > 0
        complete = np.asarray(seen.all(axis=-1)) | (not suppressed)
        return cls(table[..., HEAD:], table[..., 3], edge, complete)


@dataclass(frozen=True)
class Confusion:
    """Records per group at a threshold; float64 arrays (...,). Negatives are those whose true label is 0."""

    true_positives: Floats
    false_positives: Floats
    positives: Floats
    negatives: Floats


def confusion(histogram: Floats, edge: int) -> Confusion:
    """Confusion counts of a histogram (..., 2, bins) when bins from ``edge`` on are called positive."""
    called = histogram[..., edge:].sum(axis=-1)
    total = histogram.sum(axis=-1)
    return Confusion(called[..., 1], called[..., 0], total[..., 1], total[..., 0])


def ratio(part: Floats, whole: Floats) -> Floats:
    """``part / whole``, NaN where ``whole`` is 0."""
    result: Floats = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return result


def selection_rate(counts: Confusion) -> Floats:
    """P(called positive)."""
    return ratio(counts.true_positives + counts.false_positives, counts.positives + counts.negatives)


def true_positive_rate(counts: Confusion) -> Floats:
    """P(called positive | positive): sensitivity, recall."""
    return ratio(counts.true_positives, counts.positives)


def false_positive_rate(counts: Confusion) -> Floats:
    """P(called positive | negative): 1 - specificity."""
    return ratio(counts.false_positives, counts.negatives)


def accuracy(counts: Confusion) -> Floats:
    """P(called what it is)."""
    right = counts.true_positives + counts.negatives - counts.false_positives
    return ratio(right, counts.positives + counts.negatives)


def balanced_accuracy(counts: Confusion) -> Floats:
    """Mean of sensitivity and specificity; 1/2 for every constant prediction."""
    return np.asarray((true_positive_rate(counts) + 1 - false_positive_rate(counts)) / 2)


def precision(counts: Confusion) -> Floats:
    """P(positive | called positive): positive predictive value."""
    return ratio(counts.true_positives, counts.true_positives + counts.false_positives)


def roc_auc(histogram: Floats) -> Floats:
    """Area under the ROC curve of a histogram (..., 2, bins): P(positive scores higher) + P(same bin) / 2."""
    negative, positive = histogram[..., 0, :], histogram[..., 1, :]
    below = negative.cumsum(axis=-1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=-1)
    return ratio(wins, positive.sum(axis=-1) * negative.sum(axis=-1))


def mean_loss(table: Floats) -> Floats:
    """Mean cross-entropy per group, shape (..., K), of an ``EvaluationSums`` table (..., K, 2, 4 + bins)."""
    return ratio(table[..., 2].sum(axis=-1), table[..., 0].sum(axis=-1))


def half_edge(bins: int) -> int:
    """The edge at 0.5, or the next one above when ``bins`` is odd."""
    return (bins + 1) // 2


def best_edge(histogram: Floats) -> int | None:
    """The inner edge with the largest balanced accuracy; of equals the one nearest 0.5, then the lower one.

    Parameters
    ----------
    histogram
        float64 array (2, bins) of validation data: choosing on test data would flatter the result.

    Returns
    -------
    int or None
        An edge in 1 .. bins - 1; ``None`` if a label is absent, so that balanced accuracy is not estimable.
    """
    negatives, positives = histogram.sum(axis=-1)
    if negatives == 0 or positives == 0:
        return None
    passed = histogram.cumsum(axis=-1)[:, :-1]
    # Twice the balanced accuracy times both counts, up to a constant: whole numbers, so that ties are exact.
    gain = passed[0] * positives - passed[1] * negatives
    tied = np.flatnonzero(gain == gain.max()) + 1
    bins = histogram.shape[-1]
    return int(min(tied, key=lambda edge: (abs(2 * int(edge) - bins), int(edge))))


def group_metrics(scores: Scores) -> dict[str, Floats]:
    """Every metric of :data:`METRICS`, each of shape (..., K)."""
    counts = confusion(scores.histogram, scores.edge)
    records = scores.histogram.sum(axis=-1)
    values = {
        "roc_auc": roc_auc(scores.histogram),
        "balanced_accuracy": balanced_accuracy(counts),
        "accuracy": accuracy(counts),
        "true_positive_rate": true_positive_rate(counts),
        "false_positive_rate": false_positive_rate(counts),
        "selection_rate": selection_rate(counts),
        "precision": precision(counts),
        "mean_score": ratio(scores.total.sum(axis=-1), records.sum(axis=-1)),
        "mean_score_of_positives": ratio(scores.total[..., 1], records[..., 1]),
    }
    return {
        name: value if METRICS[name] else np.where(scores.complete, value, np.nan) for name, value in values.items()
    }


def estimable(metrics: Mapping[str, Floats]) -> dict[str, Booleans]:
    """Which groups have a value, metric by metric; bool arrays (K,) from float64 arrays (K,)."""
    return {name: ~np.isnan(value) for name, value in metrics.items()}


def difference(values: Floats) -> Floats:
    """Largest minus smallest over the last axis; NaN for fewer than two groups, or if one is NaN."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.max(axis=-1) - values.min(axis=-1))


def gap_to_overall(total: Floats, records: Floats) -> Floats:
    """``max_k |mean_k - mean|`` over the last axis (K,), the mean taken over the records of all K groups.

    For two groups it is their difference times the share of the larger group, so it is the smaller of the two
    numbers.
    """
    if total.shape[-1] < 2:
        return np.full(total.shape[:-1], np.nan)
    overall = ratio(total.sum(axis=-1), records.sum(axis=-1))
    return np.asarray(np.abs(ratio(total, records) - overall[..., None]).max(axis=-1))


def group_gaps(
    scores: Scores, groups: Mapping[str, Booleans], metrics: Mapping[str, Floats] | None = None
) -> dict[str, Floats]:
    """Every gap of :data:`GAPS`, each of shape (...,).

    Parameters
    ----------
    scores
        Of all K groups of one attribute.
    groups
        Metric -> which groups (K,) are compared: :func:`estimable` of the data themselves, so that resamples
        of them answer the same question. Fewer than two groups, or one that a resample lost, give NaN.
    metrics
        ``group_metrics(scores)``, if they are known already.
    """
    metrics = group_metrics(scores) if metrics is None else metrics
    gaps = {}
    for name, parts in GAPS.items():
        if not name.endswith("_gap_to_overall"):
            differences = [difference(metrics[part][..., groups[part]]) for part in parts]
            gaps[name] = np.asarray(np.maximum.reduce(differences))
    records = scores.histogram.sum(axis=-1)
    known = groups["mean_score"]
    positive = groups["mean_score_of_positives"]
    gaps["demographic_parity_gap_to_overall"] = gap_to_overall(
        scores.total.sum(axis=-1)[..., known], records.sum(axis=-1)[..., known]
    )
    gaps["equal_opportunity_gap_to_overall"] = gap_to_overall(scores.total[..., positive, 1], records[..., positive, 1])
    return gaps


def _gap(table: Floats, edge: int, name: str) -> float:
    scores = Scores.of(table, edge, suppressed=False)
    return float(group_gaps(scores, estimable(group_metrics(scores)))[name])


def demographic_parity_difference(table: Floats, edge: int) -> float:
    """Largest difference of selection rates between groups of a table (K, 2, 4 + bins); 0 is parity.

    Groups without records are left out; NaN if fewer than two remain.
    """
    return _gap(table, edge, "demographic_parity_difference")


def equal_opportunity_difference(table: Floats, edge: int) -> float:
    """Largest difference of true positive rates between groups; see :func:`demographic_parity_difference`."""
    return _gap(table, edge, "equal_opportunity_difference")


def equalized_odds_difference(table: Floats, edge: int) -> float:
    """The larger difference, of true or false positive rates; see :func:`demographic_parity_difference`."""
    return _gap(table, edge, "equalized_odds_difference")


def worst_group(values: Floats) -> int | None:
    """Index of the lowest of the values (K,), the first of equals; NaN are left out.

    ``None`` if fewer than two are left, or if they are all the same.
    """
    known = np.flatnonzero(~np.isnan(values))
    if known.size < 2 or np.ptp(values[known]) == 0:
        return None
    return int(known[np.argmin(values[known])])
