# SPDX-License-Identifier: Apache-2.0
"""Metrics from sums alone agree with scikit-learn and fairlearn on the records behind the sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import fairlearn.metrics as fairlearn
import numpy as np
import pytest
import sklearn.metrics as sklearn
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.fairness.groups import HEAD, EvaluationSums, Floats, Integers, label_strata
from fairflare.fairness.metrics import (
    GAPS,
    METRICS,
    Scores,
    accuracy,
    balanced_accuracy,
    best_edge,
    confusion,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    estimable,
    false_positive_rate,
    group_gaps,
    group_metrics,
    half_edge,
    mean_loss,
    precision,
    roc_auc,
    selection_rate,
    true_positive_rate,
    worst_group,
)

BINS = 200


@dataclass(frozen=True)
class Case:
    """Records, and their sums by a sensitive attribute; group -1 is "missing"."""

    score: Floats
    loss: Floats
    label: Integers
    group: Integers
    size: int
    edge: int

    @property
    def called(self) -> Integers:
        return (self.score >= self.edge / BINS).astype(np.int64)

    def table(self, minimum: int = 0) -> Floats:
        probability = np.stack([1 - self.score, self.score], axis=1)
        strata = label_strata(probability, self.loss, self.label)
        sums = EvaluationSums.measure(strata, {"a": self.group}, {"a": self.size}, BINS, minimum)
        return np.array(sums.cells["a"])


@st.composite
def cases(draw: st.DrawFn, *, grid: bool, complete: bool = False) -> Case:
    """Random records; on the grid, scores are bin centres; ``complete``: each group has both labels."""
    seed = draw(st.integers(0, 2**32 - 1))
    n = draw(st.integers(1, 120))
    size = draw(st.integers(2, 5))
    edge = draw(st.integers(0, BINS - 1))
    generator = np.random.default_rng(seed)
    group = generator.integers(-1, size, n)
    label = (generator.random(n) < generator.random()).astype(np.int64)
    if complete:
        group = np.concatenate([group, np.repeat(np.arange(size), 2)])
        label = np.concatenate([label, np.tile([0, 1], size)])
    score = generator.beta(*generator.uniform(0.3, 4, 2), size=group.size)
    if grid:
        score = (np.minimum((score * BINS).astype(np.int64), BINS - 1) + 0.5) / BINS
    return Case(score, generator.exponential(size=group.size), label, group, size, edge)


def close(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(grid=True, complete=True))
def test_auc_on_the_grid_is_that_of_scikit_learn(case: Case) -> None:
    found = roc_auc(case.table()[..., HEAD:])
    for k in range(case.size):
        mine = case.group == k
        assert close(found[k], sklearn.roc_auc_score(case.label[mine], case.score[mine]))


@settings(deadline=None, max_examples=60)
@given(cases(grid=False, complete=True))
def test_auc_of_raw_scores_differs_by_at_most_half_of_the_ties(case: Case) -> None:
    histogram = case.table()[..., HEAD:]
    found = roc_auc(histogram)
    ties = (histogram[:, 0] * histogram[:, 1]).sum(axis=-1) / histogram.sum(axis=-1).prod(axis=-1)
    for k in range(case.size):
        mine = case.group == k
        exact = sklearn.roc_auc_score(case.label[mine], case.score[mine])
        assert abs(found[k] - exact) <= ties[k] / 2 + 1e-12


@settings(deadline=None, max_examples=60)
@given(cases(grid=False, complete=True))
def test_threshold_metrics_of_raw_scores_are_exact(case: Case) -> None:
    counts = confusion(case.table()[..., HEAD:], case.edge)
    for k in range(case.size):
        mine = case.group == k
        label, called = case.label[mine], case.called[mine]
        assert close(selection_rate(counts)[k], fairlearn.selection_rate(label, called))
        assert close(true_positive_rate(counts)[k], fairlearn.true_positive_rate(label, called))
        assert close(false_positive_rate(counts)[k], fairlearn.false_positive_rate(label, called))
        assert close(accuracy(counts)[k], sklearn.accuracy_score(label, called))
        assert close(balanced_accuracy(counts)[k], sklearn.balanced_accuracy_score(label, called))
        if called.any():
            assert close(precision(counts)[k], sklearn.precision_score(label, called))
        else:
            assert np.isnan(precision(counts)[k])


@settings(deadline=None, max_examples=40)
@given(cases(grid=False, complete=True))
def test_differences_are_those_of_fairlearn(case: Case) -> None:
    known = case.group >= 0
    label, called, group = case.label[known], case.called[known], case.group[known]
    pairs = (
        (demographic_parity_difference, fairlearn.demographic_parity_difference),
        (equal_opportunity_difference, fairlearn.equal_opportunity_difference),
        (equalized_odds_difference, fairlearn.equalized_odds_difference),
    )
    for ours, theirs in pairs:
        assert close(ours(case.table(), case.edge), theirs(label, called, sensitive_features=group))


@settings(deadline=None, max_examples=60)
@given(cases(grid=False, complete=True))
def test_gaps_to_overall_are_those_of_the_paper(case: Case) -> None:
    # Algorithms section 10: soft, one group against everybody whose group is known.
    scores = Scores.of(case.table(), case.edge, suppressed=False)
    gaps = group_gaps(scores, estimable(group_metrics(scores)))
    for name, who in (
        ("demographic_parity_gap_to_overall", case.group >= 0),
        ("equal_opportunity_gap_to_overall", (case.group >= 0) & (case.label == 1)),
    ):
        overall = case.score[who].mean()
        means = [case.score[who & (case.group == k)].mean() for k in range(case.size)]
        assert close(float(gaps[name]), max(abs(mean - overall) for mean in means))


@settings(deadline=None, max_examples=60)
@given(cases(grid=False))
def test_mean_score_and_loss_are_exact_and_absent_groups_are_nan(case: Case) -> None:
    scores = Scores.of(case.table(), case.edge, suppressed=False)
    means, losses = group_metrics(scores)["mean_score"], mean_loss(case.table())
    for k in range(case.size):
        mine = case.group == k
        if mine.any():
            assert close(means[k], case.score[mine].mean())
            assert close(losses[k], case.loss[mine].mean())
        else:
            assert np.isnan(means[k])
            assert np.isnan(losses[k])


@settings(deadline=None, max_examples=60)
@given(cases(grid=False))
def test_what_is_not_estimable_is_nan_and_never_zero(case: Case) -> None:
    scores = Scores.of(case.table(), case.edge, suppressed=False)
    values = group_metrics(scores)
    assert set(values) == set(METRICS)
    for k in range(case.size):
        labels = set(case.label[case.group == k].tolist())
        for name, needed in METRICS.items():
            if name != "precision":
                assert np.isnan(values[name][k]) == (not labels or not set(needed) <= labels)
    gaps = group_gaps(scores, estimable(values))
    assert set(gaps) == set(GAPS)
    for name, parts in GAPS.items():
        fewest = min(int((~np.isnan(values[part])).sum()) for part in parts)
        assert np.isnan(gaps[name]) == (fewest < 2)


@settings(deadline=None, max_examples=30)
@given(cases(grid=False), st.integers(0, 2**32 - 1))
def test_sums_of_sites_give_the_metrics_of_all_records(case: Case, seed: int) -> None:
    at_first = np.random.default_rng(seed).random(case.label.size) < 0.5
    parts = [
        Case(case.score[who], case.loss[who], case.label[who], case.group[who], case.size, case.edge).table()
        for who in (at_first, ~at_first)
    ]
    merged = group_metrics(Scores.of(parts[0] + parts[1], case.edge, suppressed=False))
    whole = group_metrics(Scores.of(case.table(), case.edge, suppressed=False))
    for name in METRICS:
        np.testing.assert_allclose(merged[name], whole[name], rtol=0, atol=1e-12)


def test_a_group_without_one_label_has_no_mixed_metrics_where_cells_may_be_withheld() -> None:
    label = np.array([0] * 20 + [1] * 3 + [0] * 15 + [1] * 15)
    group = np.array([0] * 23 + [1] * 30)
    score = np.linspace(0.01, 0.99, label.size)
    table = Case(score, score, label, group, 2, 100).table(minimum=11)
    withheld = group_metrics(Scores.of(table, 100, suppressed=True))
    assert np.isnan(withheld["selection_rate"][0])
    assert np.isnan(withheld["accuracy"][0])
    assert np.isnan(withheld["mean_score"][0])
    assert withheld["false_positive_rate"][0] == 0.0
    assert not any(np.isnan(withheld[name][1]) for name in METRICS)
    # Where nothing is ever withheld, an empty cell means that there is no such record.
    assert group_metrics(Scores.of(table, 100, suppressed=False))["selection_rate"][0] == 0.0


def test_a_score_of_exactly_one_is_in_the_last_bin() -> None:
    table = Case(np.array([0.0, 1.0]), np.zeros(2), np.array([0, 1]), np.zeros(2, dtype=np.int64), 2, 1).table()
    assert roc_auc(table[..., HEAD:])[0] == 1.0
    assert true_positive_rate(confusion(table[..., HEAD:], BINS - 1))[0] == 1.0


@settings(deadline=None, max_examples=60)
@given(cases(grid=False, complete=True))
def test_the_best_edge_has_the_best_balanced_accuracy_nearest_to_a_half(case: Case) -> None:
    histogram = case.table()[..., HEAD:].sum(axis=0)
    edge = best_edge(histogram)
    values = {e: float(balanced_accuracy(confusion(histogram, e))) for e in range(1, BINS)}
    assert edge is not None
    top = max(values.values())
    assert values[edge] == pytest.approx(top, abs=1e-12)
    nearest = min(abs(e - BINS / 2) for e, value in values.items() if value > top - 1e-12)
    assert abs(edge - BINS / 2) == nearest


def test_best_edge_breaks_ties_the_same_way_every_time() -> None:
    histogram = np.zeros((2, BINS))
    histogram[0, 10], histogram[1, 190] = 5, 5
    assert best_edge(histogram) == 100  # edges 11 to 190 are all perfect
    histogram = np.zeros((2, BINS))
    # Separated below 99 or above 101, equally far from 0.5.
    histogram[0, [50, 100]], histogram[1, [99, 150]] = 5, 5
    assert best_edge(histogram) == 99
    assert best_edge(np.zeros((2, BINS))) is None
    assert best_edge(histogram * [[1], [0]]) is None


@pytest.mark.parametrize(("bins", "edge"), [(200, 100), (201, 101)])
def test_half_edge(bins: int, edge: int) -> None:
    assert half_edge(bins) == edge


def test_worst_group() -> None:
    assert worst_group(np.array([0.7, np.nan, 0.6])) == 2
    assert worst_group(np.array([0.7, 0.6, 0.6])) == 1
    assert worst_group(np.array([0.7, np.nan])) is None
    assert worst_group(np.array([0.7, 0.7])) is None


@pytest.mark.parametrize("counts", [(10, 9, 1), (10, 5, 4), (1, 1, 1), (10, 0, 4)])
def test_of_more_than_two_labels_a_small_cell_takes_its_group_with_it(counts):
    """What is left must not be a subtraction away from the cell: neither at a site nor in a sum over sites."""
    labels = np.repeat(np.arange(3), counts)
    probability = np.full((labels.size, 3), 1 / 3)
    strata = label_strata(probability, np.arange(labels.size, dtype=np.float64), labels)
    groups = {"sex": np.zeros(labels.size, dtype=np.int64)}
    sums = EvaluationSums.measure(strata, groups, {"sex": 1}, 200, 5)
    assert not sums.vector().any()


def test_of_more_than_two_labels_a_group_is_whole_where_every_cell_is_large_or_empty():
    labels = np.repeat(np.arange(3), (10, 7, 0))
    strata = label_strata(np.full((17, 3), 1 / 3), np.ones(17), labels)
    first = EvaluationSums.measure(strata, {}, {}, 200, 5)
    assert first.cells["all"][0, :, 0].tolist() == [7, 10, 10, 7, 17, 0]
    other = EvaluationSums.measure(
        label_strata(np.full((6, 3), 1 / 3), np.ones(6), np.zeros(6, dtype=np.int64)), {}, {}, 200, 5
    )
    total = first + other
    # Label 1 comes from one site only: with two sites asked for, nothing of the group may be shown.
    assert not total.keep(2).vector().any()
    assert total.keep(1).cells["all"][0, :, 0].tolist() == [7, 16, 16, 7, 23, 0]
