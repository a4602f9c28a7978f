# SPDX-License-Identifier: Apache-2.0
"""Intervals: known values, coverage, and the same answer twice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fairflare.evaluation import statistics
from fairflare.evaluation.statistics import (
    Interval,
    Resamples,
    auc_metric,
    balanced_accuracy_metric,
    bootstrap,
    gap_interval,
    mean_metric,
    paired_bootstrap,
    paired_by_group,
    paired_difference,
    percentile_interval,
    wilson,
)
from fairflare.fairness.groups import HEAD, Floats
from fairflare.fairness.metrics import Scores, estimable, group_gaps, group_metrics

BINS = 200


def table_of(generator: np.random.Generator, sizes: tuple[int, ...], skill: tuple[float, ...]) -> Floats:
    """Evaluation table of groups with half positives, whose scores are normal with distance ``skill``."""
    table = np.zeros((len(sizes), 2, HEAD + BINS))
    for k, (size, distance) in enumerate(zip(sizes, skill, strict=True)):
        for label in (0, 1):
            score = 1 / (1 + np.exp(-generator.normal(distance * (label - 0.5), 1, size // 2)))
            table[k, label, HEAD:] = np.bincount((score * BINS).astype(int), minlength=BINS)
            table[k, label, :HEAD] = score.size, 1, score.sum(), score.sum()
    return table


def resampled(table: Floats, seed: int = 0, resamples: int = 200) -> tuple[Scores, Resamples]:
    scores = Scores.of(table, BINS // 2, suppressed=False)
    groups = estimable(group_metrics(scores))
    return scores, bootstrap(table, scores, groups, seed=(seed,), resamples=resamples)


@pytest.mark.parametrize(("successes", "records"), [(0, 1), (0, 12), (3, 10), (81, 263), (99, 100), (7, 7)])
def test_wilson_is_that_of_scipy(successes: int, records: int) -> None:
    expected = stats.binomtest(successes, records).proportion_ci(method="wilson")
    found = wilson(successes, records)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_known_value_and_no_records() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263.
    found = wilson(81, 263)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 0) is None


def test_the_same_seed_gives_the_same_resamples() -> None:
    table = table_of(np.random.default_rng(0), (60, 80), (1.0, 2.0))
    (_, first), (_, second), (_, other) = resampled(table), resampled(table), resampled(table, seed=1)
    for name, values in first.metrics.items():
        np.testing.assert_array_equal(values, second.metrics[name])
    assert not np.array_equal(first.metrics["roc_auc"], other.metrics["roc_auc"])


def test_resampling_in_chunks_gives_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    _, found = resampled(table_of(np.random.default_rng(0), (60, 80), (1.0, 2.0)), resamples=37)
    assert found.metrics["roc_auc"].shape == (37, 2)
    assert found.gaps["roc_auc_difference"].shape == (37,)


def test_resamples_centre_on_the_data() -> None:
    table = table_of(np.random.default_rng(0), (4000, 3000), (1.0, 2.0))
    scores, found = resampled(table, resamples=400)
    for name, values in group_metrics(scores).items():
        drawn = found.metrics[name]
        np.testing.assert_allclose(drawn.mean(axis=0), values, atol=4 * drawn.std() / np.sqrt(400) + 1e-9)


def test_bootstrap_error_of_a_rate_is_the_binomial_one() -> None:
    table = table_of(np.random.default_rng(0), (400, 400), (1.0, 2.0))
    scores, found = resampled(table, resamples=2000)
    rate = group_metrics(scores)["selection_rate"]
    np.testing.assert_allclose(found.metrics["selection_rate"].std(axis=0), np.sqrt(rate * (1 - rate) / 400), rtol=0.1)


def test_auc_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth = float(stats.norm.cdf(1.5 / np.sqrt(2)))
    covered = 0
    for trial in range(100):
        _, found = resampled(table_of(generator, (120, 20), (1.5, 1.5)), seed=trial)
        interval = percentile_interval(found.metrics["roc_auc"][:, 0])
        covered += interval is not None and interval.low <= truth <= interval.high
    assert 86 <= covered <= 100


@pytest.mark.parametrize("skill", [(1.5, 1.5), (0.5, 2.0)])
def test_gap_interval_covers_the_truth_with_and_without_a_difference(skill: tuple[float, float]) -> None:
    generator = np.random.default_rng(4)
    truth = abs(float(np.diff(stats.norm.cdf(np.array(skill) / 2))[0]))
    covered = 0
    for trial in range(100):
        table = table_of(generator, (160, 160), skill)
        scores, found = resampled(table, seed=trial)
        gap = float(group_gaps(scores, estimable(group_metrics(scores)))["equal_opportunity_difference"])
        interval = gap_interval(gap, found.gaps["equal_opportunity_difference"])
        covered += interval is not None and interval.low <= truth <= interval.high
    assert 86 <= covered <= 100


def test_no_interval_when_too_many_resamples_are_lost_or_none_differs() -> None:
    few = np.linspace(0, 1, 100)
    few[:4] = np.nan
    assert percentile_interval(few) is not None
    few[:6] = np.nan
    assert percentile_interval(few) is None
    assert gap_interval(0.5, few) is None
    assert percentile_interval(np.full(100, 0.7)) is None
    assert percentile_interval(np.full(100, np.nan)) is None


def test_no_records_give_resamples_that_are_not_estimable() -> None:
    _, found = resampled(np.zeros((2, 2, HEAD + BINS)), resamples=5)
    assert np.isnan(found.metrics["roc_auc"]).all()
    assert np.isnan(found.gaps["roc_auc_difference"]).all()


def test_gap_interval_stays_within_zero_and_one() -> None:
    assert gap_interval(0.05, np.linspace(0, 0.2, 1001)) == Interval(0.0, pytest.approx(0.195))
    found = gap_interval(0.98, np.linspace(0.9, 1.0, 1001))
    assert found is not None
    assert found.high <= 1.0


def test_paired_difference_is_the_paired_t_test() -> None:
    generator = np.random.default_rng(5)
    first = generator.normal(0.8, 0.02, 5)
    second = first + generator.normal(0.01, 0.01, 5)
    found, expected = paired_difference(list(first), list(second)), stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert found.n == 5
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.difference == pytest.approx(float((second - first).mean()))
    assert found.sd_baseline == pytest.approx(float(np.std(first, ddof=1)))
    assert found.sd_other == pytest.approx(float(np.std(second, ddof=1)))


def test_paired_difference_says_nothing_it_cannot_know() -> None:
    single = paired_difference([0.8], [0.9])
    assert (single.n, single.sd_baseline, single.low, single.p_value) == (1, None, None, None)
    alike = paired_difference([0.7, 0.8, 0.9], [0.8, 0.9, 1.0])
    assert alike.difference == pytest.approx(0.1)
    assert (alike.low, alike.high, alike.p_value) == (None, None, None)
    with pytest.raises(ValueError, match="got 1 and 2 values"):
        paired_difference([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="got 0 and 0 values"):
        paired_difference([], [])


# ------------------------------------------------------------------------------------- two models on the same records


def test_paired_bootstrap_is_scipys_if_each_patient_has_one_record() -> None:
    generator = np.random.default_rng(7)
    first = generator.beta(4, 2, 150)
    second = np.clip(first + generator.normal(0.03, 0.1, 150), 0, 1)
    found = paired_bootstrap(mean_metric(first), mean_metric(second), np.arange(150), resamples=4000, seed=1)
    expected = stats.bootstrap(
        (second - first,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (found.records, found.patients) == (150, 150)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)


def test_paired_bootstrap_draws_whole_patients() -> None:
    generator = np.random.default_rng(8)
    change = generator.normal(0.05, 0.2, 40)
    first, second = np.zeros(400), np.repeat(change, 10)
    whole = paired_bootstrap(mean_metric(first), mean_metric(second), np.repeat(np.arange(40), 10), resamples=1000)
    torn = paired_bootstrap(mean_metric(first), mean_metric(second), np.arange(400), resamples=1000)
    once = paired_bootstrap(mean_metric(np.zeros(40)), mean_metric(change), np.arange(40), resamples=1000)
    assert (whole.records, whole.patients) == (400, 40)
    widths = [one.high - one.low for one in (whole, torn, once) if one.high is not None and one.low is not None]
    assert widths[0] == pytest.approx(widths[2], rel=0.01)
    assert widths[0] > 2.5 * widths[1]


def test_paired_metrics_are_scikit_learns() -> None:
    generator = np.random.default_rng(9)
    for _ in range(30):
        places = generator.integers(0, 50, 80)
        score, truth = generator.integers(0, 8, 50) / 7, generator.random(50) < 0.4
        assert auc_metric(score, truth)(places) == pytest.approx(roc_auc_score(truth[places], score[places]))
        called = score > 0.5
        wanted = balanced_accuracy_score(truth[places], called[places])
        assert balanced_accuracy_metric(called, truth)(places) == pytest.approx(wanted)


def test_paired_bootstrap_by_group_says_what_it_cannot_know() -> None:
    generator = np.random.default_rng(10)
    score, better, truth = generator.random(200), generator.random(200), generator.random(200) < 0.5
    better = better + truth
    patients = generator.integers(0, 90, 200).astype(str)
    one = np.zeros(200, dtype=bool)
    one[int(np.flatnonzero(truth)[0])] = True
    groups = {"all": np.ones(200, dtype=bool), "half": truth | (score < 0.5), "nobody": ~truth & truth, "one": one}
    metrics = auc_metric(score, truth), auc_metric(better, truth)
    found = paired_by_group(*metrics, patients, groups, resamples=300, seed=4)
    assert found == paired_by_group(*metrics, patients, groups, resamples=300, seed=4)
    assert found != paired_by_group(*metrics, patients, groups, resamples=300, seed=5)
    everybody = found["all"]
    assert everybody.low is not None
    assert everybody.low > 0
    assert (found["nobody"].records, found["nobody"].difference) == (0, None)
    assert (found["one"].records, found["one"].first, found["one"].difference) == (1, None, None)
    lonely = paired_bootstrap(mean_metric(score), mean_metric(better), patients, chosen=one)
    assert lonely.difference is not None
    assert (lonely.patients, lonely.low, lonely.high) == (1, None, None)


def test_paired_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(100):
        effect = np.repeat(generator.normal(0.05, 0.1, 60), 3)
        first, second = generator.normal(0.7, 0.1, 180), np.zeros(180)
        second = first + effect
        patients = np.repeat(np.arange(60), 3)
        found = paired_bootstrap(mean_metric(first), mean_metric(second), patients, resamples=300, seed=trial)
        covered += found.low is not None and found.high is not None and found.low <= 0.05 <= found.high
    assert 86 <= covered <= 100
