# SPDX-License-Identifier: Apache-2.0
"""Protection none: sums are exact, the same in every order, and cannot overflow."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare.errors import RoundError
from fairflare.secagg.plain import FRACTION_BITS, LIMIT, STATISTICS_LIMIT, PlainSite, PlainStatisticsSum, PlainUpdateSum
from fairflare.secagg.protection import Opened, Payload, SecureSum, VectorSpec, Weighted, describe

UPDATE = VectorSpec("update", "float32", 3)
SUMS = VectorSpec("sums", "float64", 2)
ONE = Fraction(1, 2**FRACTION_BITS)

floats32 = st.floats(-1e3, 1e3, width=32)
weights = st.integers(0, 2000).map(float)
sites = st.lists(st.tuples(st.lists(floats32, min_size=3, max_size=3), weights), min_size=1, max_size=4)
statistics = st.lists(st.lists(st.floats(0, 1e12), min_size=2, max_size=2), min_size=1, max_size=4)


def update(*values: float, weight: float = 1.0) -> Payload:
    return Payload(np.array(values, dtype=np.float32), weight)


def sums(*values: float, weight: float = 1.0) -> Payload:
    return Payload(np.array(values, dtype=np.float64), weight)


def total(secure_sum: SecureSum, payloads: dict[str, Payload]) -> Opened:
    for site, payload in payloads.items():
        secure_sum.check(payload)
        secure_sum.add(site, payload)
    return secure_sum.open()


@given(sites)
def test_an_update_sum_is_the_same_in_every_order(given_sites: list[tuple[list[float], float]]) -> None:
    named = {f"site-{at}": update(*values, weight=weight) for at, (values, weight) in enumerate(given_sites)}
    opened = {
        (found.total.tobytes(), found.weight, found.sites)
        for order in itertools.permutations(named)
        for found in [total(PlainUpdateSum(UPDATE, 10_000.0), {site: named[site] for site in order})]
    }
    assert len(opened) == 1


@given(sites)
def test_an_update_sum_is_that_of_fractions_but_for_one_rounding_per_site(
    given_sites: list[tuple[list[float], float]],
) -> None:
    named = {f"site-{at}": update(*values, weight=weight) for at, (values, weight) in enumerate(given_sites)}
    opened = total(PlainUpdateSum(UPDATE, 8192.0), named)
    for at in range(3):
        exact = sum(Fraction(float(one.values[at])) * Fraction(one.weight) for one in named.values())
        assert abs(Fraction(float(opened.total[at])) - exact) <= 8192 * ONE * len(named)
    assert opened.weight == sum(weight for _, weight in given_sites)


@given(st.lists(st.lists(st.integers(-1000, 1000), min_size=3, max_size=3), min_size=1, max_size=6))
def test_an_update_sum_of_whole_numbers_is_exact(rows: list[list[int]]) -> None:
    opened = total(PlainUpdateSum(UPDATE, 1.0), {str(at): update(*row) for at, row in enumerate(rows)})
    assert opened.total.tolist() == [float(sum(column)) for column in zip(*rows, strict=True)]


@given(statistics)
def test_a_statistics_sum_is_correctly_rounded_in_every_order(rows: list[list[float]]) -> None:
    wanted = [math.fsum(column) for column in zip(*rows, strict=True)]
    for order in itertools.permutations(range(len(rows))):
        opened = total(PlainStatisticsSum(SUMS), {f"site-{at}": sums(*rows[at]) for at in order})
        assert opened.total.tolist() == wanted
        assert opened.sites == tuple(sorted(f"site-{at}" for at in order))


def test_small_numbers_beside_large_ones_are_not_lost_one_by_one() -> None:
    """1e15 + 0.05 + 0.05 is 1e15 when added one after the other: each of them falls under the last bit."""
    opened = total(PlainStatisticsSum(SUMS), {"a": sums(1e15, 1), "b": sums(0.05, 1), "c": sums(0.05, 1)})
    assert 1e15 + 0.05 + 0.05 == 1e15
    assert opened.total.tolist() == [math.fsum([1e15, 0.05, 0.05]), 3.0]
    assert opened.total[0] > 1e15


def test_the_sum_over_nobody_is_zero() -> None:
    assert PlainStatisticsSum(SUMS).open().total.tolist() == [0.0, 0.0]
    assert PlainUpdateSum(UPDATE, 1.0).open().total.tolist() == [0.0, 0.0, 0.0]
    assert PlainUpdateSum(UPDATE, 1.0).open().weight == 0.0


def test_a_mean_is_weighted_by_what_sites_say_they_weigh() -> None:
    opened = total(PlainUpdateSum(UPDATE, 4.0), {"a": update(4, 0, 8, weight=1.0), "b": update(0, 4, 8, weight=3.0)})
    assert opened.mean.tolist() == [1.0, 3.0, 8.0]


def test_a_site_of_weight_zero_changes_nothing_but_is_named() -> None:
    opened = total(PlainUpdateSum(UPDATE, 4.0), {"a": update(1, 2, 3, weight=4.0), "b": update(9, 9, 9, weight=0.0)})
    assert opened.total.tolist() == [4.0, 8.0, 12.0]
    assert (opened.weight, opened.sites) == (4.0, ("a", "b"))


def test_a_vector_longer_than_a_chunk_is_added_whole() -> None:
    spec = VectorSpec("update", "float32", 70_000)
    values = np.arange(70_000, dtype=np.float32) / 64
    opened = total(PlainUpdateSum(spec, 1.0), {"a": Payload(values, 1.0), "b": Payload(values, 1.0)})
    assert np.array_equal(opened.total, 2.0 * values)


BELOW = float(np.nextafter(np.float32(LIMIT), np.float32(0)))


def test_an_update_just_below_the_limit_is_added_exactly() -> None:
    assert total(PlainUpdateSum(UPDATE, 1.0), {"a": update(BELOW, -BELOW, 0)}).total.tolist() == [BELOW, -BELOW, 0.0]


def test_the_limit_holds_for_weight_times_value() -> None:
    light = update(8 * BELOW, 0, 0, weight=1.0)
    PlainUpdateSum(UPDATE, 8.0).check(light)
    with pytest.raises(RoundError, match="FF-ROUND-RANGE"):
        PlainUpdateSum(UPDATE, 8.0).check(update(8 * BELOW, 0, 0, weight=8.0))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_1024_sites_at_the_limit_do_not_overflow(sign: float) -> None:
    accumulated = PlainUpdateSum(UPDATE, 1.0)
    for at in range(1024):
        accumulated.check(update(sign * BELOW, 0, 0))
        accumulated.add(f"site-{at}", update(sign * BELOW, 0, 0))
    assert accumulated.open().total[0] == sign * 1024 * BELOW
    assert abs(int(accumulated.accumulator[0])) == 1024 * int(Fraction(BELOW) / ONE) < 2**63


def test_statistics_go_as_far_as_float64_counts_by_ones() -> None:
    largest = math.nextafter(STATISTICS_LIMIT, 0.0)
    assert largest >= 2**50 - 1
    assert total(PlainStatisticsSum(SUMS), {"a": sums(largest, 0)}).total.tolist() == [largest, 0.0]


def test_a_negative_statistic_would_take_from_the_others_and_is_refused() -> None:
    for value in (-1e-300, -1.0, -(2.0**60)):
        with pytest.raises(RoundError, match="FF-ROUND-RANGE"):
            PlainStatisticsSum(SUMS).check(sums(1.0, value))


def masked() -> np.ndarray:
    return np.ma.masked_array([1.0, math.nan, 1.0], mask=[False, True, False], dtype=np.float32)


REFUSED = {
    "NaN": (Payload(np.array([0, math.nan, 0], np.float32), 1.0), "NAN"),
    "infinity": (update(0, math.inf, 0), "NAN"),
    "float64": (Payload(np.zeros(3), 1.0), "DTYPE"),
    "float16": (Payload(np.zeros(3, np.float16), 1.0), "DTYPE"),
    "whole numbers": (Payload(np.zeros(3, np.int32), 1.0), "DTYPE"),
    "a list": (Payload([0.0, 0.0, 0.0], 1.0), "DTYPE"),  # type: ignore[arg-type]
    "nothing": (Payload(None, 1.0), "DTYPE"),  # type: ignore[arg-type]
    "NaN behind a mask": (Payload(masked(), 1.0), "DTYPE"),
    "a shorter vector": (update(0, 0), "SHAPE"),
    "a longer vector": (update(0, 0, 0, 0), "SHAPE"),
    "a matrix": (Payload(np.zeros((3, 1), np.float32), 1.0), "SHAPE"),
    "a weight below zero": (update(0, 0, 0, weight=-1e-9), "WEIGHT"),
    "a weight of NaN": (update(0, 0, 0, weight=math.nan), "WEIGHT"),
    "a weight above everybody's together": (update(0, 0, 0, weight=10.1), "WEIGHT"),
    "the limit itself": (update(LIMIT, 0, 0, weight=10.0), "RANGE"),
    "minus the limit": (update(-LIMIT, 0, 0, weight=10.0), "RANGE"),
    "the largest float32": (update(0, 0, 3.4e38, weight=10.0), "RANGE"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_update_that_cannot_be_added_is_refused_and_changes_nothing(what: str) -> None:
    payload, code = REFUSED[what]
    secure_sum = PlainUpdateSum(UPDATE, 10.0)
    with pytest.raises(RoundError) as caught:
        secure_sum.check(payload)
    assert caught.value.code == f"FF-ROUND-{code}"
    assert secure_sum.open().total.tolist() == [0.0, 0.0, 0.0]
    assert secure_sum.open().sites == ()


REFUSED_STATISTICS = {
    "float32": (Payload(np.zeros(2, np.float32), 1.0), "DTYPE"),
    "another length": (sums(1.0), "SHAPE"),
    "NaN": (sums(math.nan, 0.0), "NAN"),
    "more than 2^50": (sums(2.0**50, 0.0), "RANGE"),
    "less than -2^50": (sums(0.0, -1.7e308), "RANGE"),
    "a weight": (sums(1.0, 1.0, weight=0.5), "WEIGHT"),
    "a weight of NaN": (sums(1.0, 1.0, weight=math.nan), "WEIGHT"),
}


@pytest.mark.parametrize("what", REFUSED_STATISTICS)
def test_statistics_that_cannot_be_added_are_refused(what: str) -> None:
    payload, code = REFUSED_STATISTICS[what]
    with pytest.raises(RoundError, match=f"FF-ROUND-{code}:"):
        PlainStatisticsSum(SUMS).check(payload)


@pytest.mark.parametrize("unit", [0.0, -5.0, math.inf, math.nan])
def test_nobody_may_weigh_anything_where_the_total_of_records_is_no_total(unit: float) -> None:
    # Sites that lie about their counts can bring the total to this; it must end in a refusal, not in a division.
    with pytest.raises(RoundError, match="FF-ROUND-WEIGHT"):
        PlainUpdateSum(UPDATE, unit).check(update(0, 0, 0, weight=0.0))


@pytest.mark.parametrize("secure_sum", [PlainUpdateSum(UPDATE, 1.0), PlainStatisticsSum(SUMS)])
def test_a_site_counts_once(secure_sum: PlainUpdateSum | PlainStatisticsSum) -> None:
    payload = Payload(np.ones(secure_sum.spec.length, secure_sum.spec.dtype), 1.0)
    secure_sum.add("a", payload)
    with pytest.raises(RoundError, match="FF-ROUND-TWICE"):
        secure_sum.add("a", payload)
    assert secure_sum.open().total.tolist() == [1.0] * secure_sum.spec.length


def test_the_sites_half_sends_the_vector_as_it_is() -> None:
    values = np.ones(3, np.float32)
    payloads, protocol = PlainSite().protect({"update": UPDATE}, {"update": Weighted(values, 2.0)})
    assert (payloads, protocol) == ({"update": Payload(values, 2.0)}, b"")


def test_a_layout_is_described_in_words() -> None:
    assert describe({"sums": SUMS}) == "sums (float64, 2)"
    assert describe({}) == "no vector"
