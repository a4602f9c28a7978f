# SPDX-License-Identifier: Apache-2.0
"""Group sums and counts with noise: what one patient changes, how wide the noise is, which groups are published."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairflare.errors import PrivacyError
from fairflare.privacy import noise
from fairflare.privacy.release import (
    SCALE,
    Cohort,
    GroupNoise,
    _kept,
    kept_by_noised,
    noised_counts,
    noised_sums,
)

RARE = 1e-6


def code(action) -> str:
    with pytest.raises(PrivacyError) as caught:
        action()
    return caught.value.code


def made(**given: object) -> GroupNoise:
    usual = {"bound": 3.0, "multiplier": 10.0, "most_groups": 1, "minimum": 11}
    return GroupNoise(**{**usual, **given})


def one_each(groups: list[int], size: int) -> Cohort:
    return Cohort(np.arange(len(groups)), np.array(groups), size, 1)


records = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-3, 4), min_size=n, max_size=n),
        st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=n, max_size=n),
        st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(records, st.sampled_from([1, 2, 3, 8]))
def test_a_patient_moves_counts_and_sums_by_at_most_the_root_of_g(data, most):
    """Whatever its records say, and in however many groups they are; and all there is, is the sum over patients."""
    unit, group, values = (np.array(part) for part in data)
    group = np.where(group >= 0, group + np.array([0, 4]), -1)
    counts, sums = np.zeros((2, 8))
    for name in np.unique(unit):
        own = unit == name
        alone = Cohort(unit[own], group[own], 8, most)
        assert np.linalg.norm(alone.counts) <= math.sqrt(most) + 1e-12
        assert np.linalg.norm(alone.sums(values[own], 3.0)) <= SCALE * math.sqrt(most) + 1e-6
        counts, sums = counts + alone.counts, sums + alone.sums(values[own], 3.0)
    whole = Cohort(unit, group, 8, most)
    assert whole.counts.sum() == counts.sum()
    if most == 8:  # of fewer, which ones is drawn
        assert np.array_equal(whole.counts, counts)
        assert np.array_equal(whole.sums(values, 3.0), sums)


def test_a_patient_with_many_images_counts_once_with_their_mean():
    unit, group = np.array([4, 4, 4, 9]), np.array([0, 0, 0, 1])
    cohort = Cohort(unit, group, 2, 1)
    assert cohort.counts.tolist() == [1, 1]
    # Utilities 0, 3, 3 of [0, 3] are -1, 1, 1; and 1.5 is the middle.
    assert cohort.sums(np.array([0.0, 3.0, 3.0, 1.5]), 3.0).tolist() == [round(SCALE / 3), 0]


def test_of_a_patient_in_too_many_groups_some_are_drawn():
    seen = np.zeros(3)
    for _ in range(300):
        counts = Cohort(np.zeros(3, dtype=np.int64), np.array([0, 1, 2]), 3, 2).counts
        assert counts.sum() == 2
        seen += counts
    assert stats.chisquare(seen).pvalue > RARE


def test_utilities_are_clipped_and_what_is_no_number_is_the_bound():
    values = np.array([-5.0, 99.0, np.nan, np.inf, -np.inf])
    assert one_each([0, 1, 2, 3, 4], 5).sums(values, 2.0).tolist() == [-SCALE, SCALE, SCALE, SCALE, -SCALE]


def test_records_without_a_group_are_nowhere():
    cohort = Cohort(np.arange(3), np.array([[-1, 1], [0, -1], [-1, -1]]), 2, 2)
    assert cohort.counts.tolist() == [1, 1]
    assert Cohort(np.arange(2), np.array([-1, -1]), 2, 1).counts.tolist() == [0, 0]
    assert Cohort(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 2, 1).counts.tolist() == [0, 0]


def test_the_variance_is_that_of_the_multiplier_times_the_sensitivity():
    given = made(most_groups=3, multiplier=2.5)
    assert given.sensitivity_squared == 3
    assert given.variance == Fraction(25, 4) * 3 * SCALE**2
    assert given.deviation(4) == pytest.approx(2.5 * math.sqrt(3) * 2)


def test_sites_that_share_the_noise_reach_the_whole_of_it_together():
    whole, part = made(), made(sharing=4)
    assert 4 * part.variance == whole.variance
    assert part.deviation(4) == pytest.approx(whole.deviation(1))


@pytest.mark.parametrize("g", [1, 2])
def test_counts_and_sums_carry_the_noise_that_is_accounted(g):
    given = made(most_groups=g, multiplier=3.0)
    cohort = one_each([0] * 20, 600)
    counts = noised_counts(cohort, given)
    sums = noised_sums(cohort, np.full(20, 3.0), np.ones(600, dtype=np.bool_), given)
    for found in (counts, sums):
        free = found.astype(np.float64)
        free[0] -= 20 * SCALE
        assert stats.kstest(free / SCALE / (3.0 * math.sqrt(g)), "norm").pvalue > RARE


def test_two_releases_have_noise_of_their_own():
    cohort, given = one_each([0, 1], 2), made()
    assert not np.array_equal(noised_counts(cohort, given), noised_counts(cohort, given))


def test_groups_that_are_not_published_send_nothing_not_even_noise():
    kept = np.array([True, False, True])
    sums = noised_sums(one_each([0, 1, 2], 3), np.ones(3), kept, made())
    assert (sums != 0).tolist() == [True, False, True]


def test_one_patient_does_not_switch_a_group_on_and_off():
    """With a threshold on exact counts, 11 patients are published and 10 are not: the eleventh is seen for sure."""
    given, table = made(multiplier=1.0, minimum=11), np.zeros(1, dtype=np.int64)
    shown = []
    for patients in (14, 15):
        cohort = one_each([0] * patients, 1)
        shown.append(sum(bool(kept_by_noised(noised_counts(cohort, given), table, given, 1)[0]) for _ in range(400)))
    # A Gaussian mechanism with multiplier 1: Phi(Phi^-1(p) + 1) bounds how often, up to the draw.
    assert 0 < shown[1] < 400
    bound = stats.norm.cdf(stats.norm.ppf(max(shown[0], 1) / 400) + 1)
    assert shown[1] / 400 <= bound + 5 * math.sqrt(0.25 / 400)


def test_a_group_below_the_minimum_seldom_passes():
    given, table = made(multiplier=2.0, minimum=11), np.zeros(4000, dtype=np.int64)
    counts = np.full(4000, 10 * SCALE) + noise.discrete_gaussian(4000, given.variance)
    alone = np.array([kept_by_noised(counts[at : at + 1], table[:1], given, 1)[0] for at in range(4000)])
    assert alone.sum() <= 15


def test_the_margin_grows_with_the_noise_of_all_sites():
    """A count of 50, at 10 per site: enough for the noise of one site, not for that of four."""
    table, count = np.zeros(1, dtype=np.int64), np.array([50 * SCALE])
    assert kept_by_noised(count, table, made(), 1)[0]
    assert not kept_by_noised(count, table, made(), 4)[0]


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ([20, 11, 10], [True, False, False]),  # 10 alone is the total minus the others: 11 covers it
        ([20, 30, 5, 6], [True, True, False, False]),  # 5 + 6 = 11 cover each other
        ([20, 30, 5, 5], [False, True, False, False]),  # 5 + 5 do not
        ([20, 30, 0], [True, True, True]),
        ([20, 0, 4], [False, True, False]),
        ([3, 2], [False, False]),
        ([20, 11], [True, True]),
        ([12], [True]),
        ([10], [False]),
    ],
)
def test_groups_left_out_cannot_be_told_from_the_total(counts, kept):
    found = _kept(np.array(counts, dtype=np.float64), np.zeros(len(counts), dtype=np.int64), 11.0)
    assert [bool(one) or number == 0 for one, number in zip(found, counts, strict=True)] == [
        one or number == 0 for one, number in zip(kept, counts, strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=9), st.integers(1, 20))
def test_what_is_left_out_of_a_table_covers_itself(cells, minimum):
    counts, table = (np.array(part) for part in zip(*cells, strict=True))
    kept = _kept(counts.astype(np.float64), table, float(minimum))
    assert (counts[kept] >= minimum).all()
    for one in np.unique(table):
        out = counts[(table == one) & ~kept & (counts > 0)]
        shown = (table == one) & kept
        assert not shown.any() or out.size == 0 or (out.size >= 2 and out.sum() >= minimum)


def test_tables_do_not_cover_each_other():
    counts, table = np.array([5, 30, 6, 30, 12]), np.array([0, 0, 1, 1, 1])
    found = _kept(counts.astype(np.float64), table, 11.0)
    assert found.tolist() == [False, False, False, True, False]


def test_noised_counts_are_covered_too():
    """Of noised counts, none is known to be of an empty group: also one below 0 needs cover."""
    counts = np.array([-4, 900, 400]) * SCALE
    found = kept_by_noised(counts, np.zeros(3, dtype=np.int64), made(), 1)
    assert found.tolist() == [False, True, False]


def test_sums_are_right_on_average_and_as_wide_as_said():
    """Each of 400 groups of 300 patients with mean utility 1 of [0, 3]: sums of -100, with noise of 10."""
    given, groups, patients = made(), 400, 300
    cohort = Cohort(np.arange(groups * patients), np.repeat(np.arange(groups), patients), groups, 1)
    found = noised_sums(cohort, np.ones(groups * patients), np.ones(groups, dtype=np.bool_), given) / SCALE
    assert abs(np.mean((found + 100) / 10)) < 5 / math.sqrt(groups)
    assert np.std((found + 100) / 10) == pytest.approx(1, rel=5 / math.sqrt(2 * groups))


def test_what_does_not_go_together_is_refused():
    cohort, kept = Cohort(np.arange(2), np.array([0, 1]), 2, 2), np.ones(2, dtype=np.bool_)
    table = np.zeros(2, dtype=np.int64)
    refused = [
        lambda: noised_counts(cohort, made()),  # in 2 groups, noise for 1
        lambda: noised_sums(cohort, np.ones(2), kept, made()),
        lambda: noised_sums(cohort, np.ones(3), kept, made(most_groups=2)),
        lambda: noised_sums(cohort, np.ones(2), kept[:1], made(most_groups=2)),
        lambda: noised_sums(cohort, np.ones(2), np.ones(2), made(most_groups=2)),
        lambda: kept_by_noised(np.ones(3), table, made(), 1),
        lambda: Cohort(np.arange(2), np.array([0, 2]), 2, 1),
        lambda: Cohort(np.arange(2), np.array([0, -2]), 2, 1),
        lambda: Cohort(np.arange(3), np.array([0, 1]), 2, 1),
    ]
    assert [code(one) for one in refused] == ["FF-PRIVACY-RELEASE"] * len(refused)


@pytest.mark.parametrize("name", ["bound", "multiplier", "most_groups", "minimum", "sharing"])
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_what_is_no_noise_is_refused(name, bad):
    assert code(lambda: made(**{name: bad})) == "FF-PRIVACY-RELEASE"
