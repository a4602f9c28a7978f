# SPDX-License-Identifier: Apache-2.0
"""How sure a number is: 95 % intervals from histograms alone, and paired differences, over seeds or patients.

Intervals from sums take records for independent. Images of the same lesion or patient are not, and the sums do not say
which records belong together; so these intervals are somewhat too narrow wherever a patient has several records. Where
a site knows its own patients, :func:`paired_bootstrap` draws whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fairflare.fairness.groups import HEAD, Floats, Integers
from fairflare.fairness.metrics import Booleans, Scores, group_gaps, group_metrics

CONFIDENCE = 0.95
RESAMPLES = 2000
#: A metric that more than this share of the resamples cannot estimate has too few records for an interval.
MOST_LOST = 0.05
#: Numbers held at once while resampling: 32 MB, whatever the number of bins and groups.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def wilson(successes: float, records: float) -> Interval | None:
    """Wilson's score interval of a rate (Wilson, J. Am. Stat. Assoc. 22, 1927); ``None`` without records.

    It stays within [0, 1] and keeps its width at 0 and 1, where the usual interval vanishes. Records of one
    patient are clustered, so it is somewhat too narrow where patients have several.
    """
    if records <= 0:
        return None
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    rate = successes / records
    scale = 1 + z**2 / records
    middle = (rate + z**2 / (2 * records)) / scale
    half = z / scale * float(np.sqrt(rate * (1 - rate) / records + z**2 / (4 * records**2)))
    return Interval(0.0 if successes <= 0 else max(0.0, middle - half), 1.0 if rate >= 1 else min(1.0, middle + half))


@dataclass(frozen=True)
class Resamples:
    """Name -> metrics (resamples, K), and name -> gaps (resamples,); NaN where not estimable."""

    metrics: Mapping[str, Floats]
    gaps: Mapping[str, Floats]


def bootstrap(
    table: Floats,
    scores: Scores,
    groups: Mapping[str, Booleans],
    *,
    seed: Sequence[int],
    resamples: int = RESAMPLES,
) -> Resamples:
    """Metrics and gaps of data sets drawn with replacement from the records of one attribute.

    Records with the same group, label and bin are alike, so drawing records is drawing one multinomial over
    the cells of the histogram. A drawn record has the mean score of its bin, moved by a constant per (group,
    label) so that the observed mean score is met exactly. Records of one lesion or patient are clustered,
    which the histogram cannot show: the spread is somewhat too small.

    Parameters
    ----------
    table
        ``EvaluationSums`` table (K, 2, 4 + bins).
    scores
        ``Scores.of(table, ...)``.
    groups
        ``estimable(group_metrics(scores))``.
    seed
        Entropy of the generator: the same numbers give the same resamples.
    resamples
        How many.
    """
    histogram = table[..., HEAD:]
    used = np.flatnonzero(histogram.sum(axis=(0, 1)))
    small = histogram[..., used]
    value = bin_values(table, used)
    edge = int(np.searchsorted(used, scores.edge))
    metrics: dict[str, list[Floats]] = {}
    gaps: dict[str, list[Floats]] = {}
    for drawn in draw_cells(small, np.random.default_rng(seed), resamples):
        sample = Scores(drawn, (drawn * value).sum(axis=-1), edge, scores.complete)
        found = group_metrics(sample)
        for name, values in found.items():
            metrics.setdefault(name, []).append(values)
        for name, values in group_gaps(sample, groups, found).items():
            gaps.setdefault(name, []).append(values)
    return Resamples(
        {name: np.concatenate(parts) for name, parts in metrics.items()},
        {name: np.concatenate(parts) for name, parts in gaps.items()},
    )


def bin_values(table: Floats, used: np.ndarray) -> Floats:
    """Value of a record in each bin of ``used``, shape (..., used), such that the sum of values is exact.

    ``table`` (..., 4 + bins) are cells of an ``EvaluationSums``.
    """
    bins = table.shape[-1] - HEAD
    middle = (used + 0.5) / bins
    count = table[..., 0]
    error = table[..., 3] - (table[..., HEAD:][..., used] * middle).sum(axis=-1)
    shift = np.divide(error, count, out=np.zeros_like(count), where=count > 0)
    return np.asarray(middle + shift[..., None], dtype=np.float64)


def draw_cells(count: Floats, generator: np.random.Generator, resamples: int) -> Iterator[Floats]:
    """Resampled counts (chunk, ...) of cells of any shape, a few at a time, so that memory stays small."""
    flat = np.rint(count.ravel())
    filled = np.flatnonzero(flat > 0)
    if filled.size == 0:
        yield np.zeros((resamples, *count.shape))
        return
    counts = flat[filled]
    chunk = max(1, min(resamples, _CHUNK // flat.size))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = np.zeros((size, flat.size))
        drawn[:, filled] = generator.multinomial(int(counts.sum()), counts / counts.sum(), size=size)
        yield drawn.reshape(size, *count.shape)


def percentile_interval(samples: Floats) -> Interval | None:
    """Middle 95 % of the resamples (n,); ``None`` if over :data:`MOST_LOST` are NaN, or if they do not vary.

    Resamples that do not vary (an AUC of exactly 1, say) would give an interval of no width: sure of nothing
    but of having seen too few records.
    """
    found = samples[~np.isnan(samples)]
    # Rounding makes equal means differ in the last digits.
    if found.size == 0 or found.size < (1 - MOST_LOST) * samples.size or np.ptp(found) < 1e-9:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(low), float(high))


def gap_interval(gap: float, samples: Floats) -> Interval | None:
    """Interval of a gap between groups, from its resamples (n,); ``None`` as in :func:`percentile_interval`.

    A gap is never negative, and chance alone makes it positive: the middle of its resamples would always exclude 0,
    even if groups did not differ at all. So the upper end is the 97.5th percentile; the lower end lies as far below
    the gap, lower still by what resampling adds to the gap on average, and is at least 0. Without a true difference
    the interval contains 0 in about 95 % of studies with two groups, 90 % with four to six (simulated).
    """
    plain = percentile_interval(samples)
    if plain is None:
        return None
    high = max(plain.high, gap)
    bias = max(0.0, float(np.nanmean(samples)) - gap)
    return Interval(max(0.0, 2 * gap - high - bias), min(1.0, high))


@dataclass(frozen=True)
class PairedDifference:
    """Two methods over the same seeds: means, standard deviations (n - 1), mean of ``other - baseline``.

    ``low`` and ``high`` are the 95 % t interval of the difference, ``p_value`` the two-sided paired t test's;
    ``None`` where n < 2 or the differences do not vary. ``sd_*`` are ``None`` for n = 1.
    """

    n: int
    mean_baseline: float
    sd_baseline: float | None
    mean_other: float
    sd_other: float | None
    difference: float
    low: float | None
    high: float | None
    p_value: float | None


def paired_difference(baseline: Sequence[float], other: Sequence[float]) -> PairedDifference:
    """Compare a metric over seeds: one number per seed (epochs are not independent), in the same order.

    Seeds show how training varies, not how patients do: all runs share the test records (and records of one
    patient are clustered), so the interval speaks of this test set only.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"got {len(baseline)} and {len(other)} values, expected one of each per seed, at least one")
    first, second = np.array(baseline, dtype=np.float64), np.array(other, dtype=np.float64)
    change = second - first
    n, mean = change.size, float(change.mean())
    sd_first, sd_second, sd = (float(v.std(ddof=1)) if n > 1 else None for v in (first, second, change))
    low = high = p_value = None
    # Differences that are equal but for rounding have no spread to test against.
    if sd is not None and sd > 1e-12 * max(1.0, abs(mean)):
        error = sd / float(np.sqrt(n))
        reach = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
        low, high = mean - reach, mean + reach
        p_value = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    return PairedDifference(n, float(first.mean()), sd_first, float(second.mean()), sd_second, mean, low, high, p_value)


#: A number from records, given by their places in a data set; a place may come more than once. NaN: not estimable.
Metric = Callable[[Integers], float]


@dataclass(frozen=True)
class PairedBootstrap:
    """Two models on the same records: both values, and ``second - first`` with its 95 % interval.

    ``None`` is "not estimable"; ``low`` and ``high`` also where :func:`percentile_interval` gives no interval.
    ``records`` and ``patients`` say how many the numbers are of.
    """

    records: int
    patients: int
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None


def paired_bootstrap(
    first: Metric,
    second: Metric,
    patients: NDArray[Any],
    *,
    chosen: Booleans | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedBootstrap:
    """How much better the second model is on the same records, whole patients drawn with replacement.

    Both models meet the same patients in each resample, so what makes a patient hard for both cancels; and all records
    of a patient are drawn together, since they are alike.

    Parameters
    ----------
    first, second
        The metric of each model; see :func:`mean_metric` and its neighbours.
    patients
        Array (n,): whose record it is; any values that can be sorted.
    chosen
        bool array (n,): the records to compare on, such as one group's; all by default.
    resamples, seed
        Of the bootstrap; the same numbers give the same interval.
    """
    places = np.arange(len(patients)) if chosen is None else np.flatnonzero(chosen)
    _, whose = np.unique(np.asarray(patients)[places], return_inverse=True)
    count = int(whose.max()) + 1 if whose.size else 0
    one, two = (_known(metric(places)) if places.size else None for metric in (first, second))
    if one is None or two is None:
        return PairedBootstrap(places.size, count, one, two, None, None, None)
    own = np.split(places[np.argsort(whose, kind="stable")], np.cumsum(np.bincount(whose))[:-1])
    generator = np.random.default_rng(seed)
    samples = np.empty(resamples)
    for number in range(resamples if count > 1 else 0):
        drawn = np.concatenate([own[k] for k in generator.integers(0, count, count)])
        samples[number] = second(drawn) - first(drawn)
    interval = percentile_interval(samples) if count > 1 else None
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return PairedBootstrap(places.size, count, one, two, two - one, low, high)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def paired_by_group(
    first: Metric,
    second: Metric,
    patients: NDArray[Any],
    groups: Mapping[str, Booleans],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedBootstrap]:
    """:func:`paired_bootstrap` on each group's records (n,), by name."""
    return {
        name: paired_bootstrap(first, second, patients, chosen=chosen, resamples=resamples, seed=seed)
        for name, chosen in groups.items()
    }


def mean_metric(values: Floats) -> Metric:
    """Mean of a value per record (n,): of each image's Dice, say, or of "called what it is" for the accuracy."""
    return lambda places: float(values[places].mean()) if places.size else float("nan")


def auc_metric(score: Floats, positive: Booleans) -> Metric:
    """Area under the ROC curve of scores (n,), equal ones counted as one half."""

    def value(places: Integers) -> float:
        own, truth = score[places], positive[places]
        wins, losses = int(truth.sum()), int((~truth).sum())
        if wins == 0 or losses == 0:
            return float("nan")
        ordered = np.sort(own[~truth])
        below = np.searchsorted(ordered, own[truth]) + np.searchsorted(ordered, own[truth], side="right")
        return float(below.sum()) / (2 * wins * losses)

    return value


def balanced_accuracy_metric(called: Booleans, positive: Booleans) -> Metric:
    """Mean of sensitivity and specificity of calls (n,)."""

    def value(places: Integers) -> float:
        own, truth = called[places], positive[places]
        if truth.all() or not truth.any():
            return float("nan")
        return float(own[truth].mean() + (~own[~truth]).mean()) / 2

    return value
