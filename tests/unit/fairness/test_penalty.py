# SPDX-License-Identifier: Apache-2.0
"""The penalty and its coefficients against automatic differentiation, and the inequalities of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairflare.fairness.groups import CellSums, HospitalSums
from fairflare.fairness.penalty import (
    evaluate,
    group_weights,
    hospital_coefficient,
    penalty_gradient,
    penalty_value,
)

numbers = st.floats(0, 10, allow_nan=False)
risks = st.lists(numbers, min_size=2, max_size=8)
FORMS = [("paper", "sum"), ("paper", "mean"), ("bounded", "sum")]


def weights_for(draw: st.DataObject, size: int) -> np.ndarray:
    return np.array(draw.draw(st.lists(st.floats(0.01, 3), min_size=size, max_size=size)))


@given(st.data(), risks, st.sampled_from(FORMS))
def test_the_coefficient_is_the_derivative_of_the_penalty(data, values, kind):
    weight = weights_for(data, len(values))
    risk = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    w = torch.from_numpy(weight)
    gap = risk - w @ risk
    total = (gap**2).sum() if kind[0] == "paper" else w @ gap**2
    total = total / len(values) if kind[1] == "mean" else total
    total.backward()
    assert penalty_value(np.array(values), weight, *kind) == pytest.approx(total.item(), abs=1e-9)
    assert np.allclose(penalty_gradient(np.array(values), weight, *kind), risk.grad.numpy(), atol=1e-10)


@given(st.data(), risks)
def test_the_gap_is_bounded_by_the_penalty_both_ways(data, values):
    """F <= sqrt(P) <= sqrt(K) F (FlexFair, section on the penalty)."""
    count = np.array(data.draw(st.lists(st.integers(1, 500), min_size=len(values), max_size=len(values))), dtype=float)
    sums = CellSums(np.array(values) * count, count, np.ones(len(values)))
    state = evaluate(sums, "records", "paper", "sum", 1)
    slack = 1e-9 * (1 + max(values))
    assert state.gap <= math.sqrt(state.value) + slack
    assert math.sqrt(state.value) <= math.sqrt(len(values)) * state.gap + slack


@given(risks)
def test_a_constant_can_be_added_to_all_risks_without_a_change(values):
    """With weights that sum to one, the coefficients sum to zero and equal risks cost nothing."""
    count = np.arange(1.0, len(values) + 1)
    weight = group_weights("records", count, np.ones(len(values), dtype=bool))
    assert abs(penalty_gradient(np.array(values), weight, "paper", "sum").sum()) < 1e-9
    assert penalty_value(np.full(len(values), 3.0), weight, "paper", "sum") == pytest.approx(0, abs=1e-20)


def test_absent_groups_are_dropped_from_the_number_of_groups_and_from_the_weights():
    sums = CellSums(np.array([2.0, 0.0, 9.0]), np.array([2.0, 0.0, 6.0]), np.array([1.0, 0.0, 2.0]))
    without = CellSums(np.array([2.0, 9.0]), np.array([2.0, 6.0]), np.array([1.0, 2.0]))
    for weights in ("records", "uniform"):
        a, b = (evaluate(one, weights, "paper", "mean", 1) for one in (sums, without))
        assert a.value == b.value
        assert a.gap == b.gap
        assert np.array_equal(a.coefficient[[0, 2]], b.coefficient)
        assert a.coefficient[1] == a.weight[1] == 0
        assert np.isnan(a.risk[1])


def test_fixed_weights_of_absent_groups_are_shared_out_so_that_their_sum_stays():
    present = np.array([True, False, True])
    assert np.allclose(group_weights((0.2, 0.5, 0.3), np.ones(3), present), [0.4, 0, 0.6])
    assert np.allclose(group_weights((0.0, 1.0, 0.0), np.ones(3), present), 0)


def test_one_group_or_none_costs_nothing():
    for count in ([5.0, 0.0], [0.0, 0.0]):
        state = evaluate(CellSums(np.array([3.0, 0.0]), np.array(count), np.sign(count)), "records", "paper", "sum", 1)
        assert state.value == state.gap == 0
        assert not state.coefficient.any()


def test_a_group_that_too_few_sites_report_is_dropped():
    sums = CellSums(np.array([2.0, 3.0, 4.0]), np.array([20.0, 20.0, 20.0]), np.array([3.0, 1.0, 2.0]))
    assert evaluate(sums, "records", "paper", "sum", 2).present.tolist() == [True, False, True]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", FORMS)
@given(st.data())
def test_a_hospital_finds_its_own_coefficient_from_sums_over_hospitals(weighted, kind, data):
    """Equal accuracy from sums only: no site sees another's risk (algorithms section 8.6)."""
    values = [
        np.array(v) for v in data.draw(st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=2, max_size=6))
    ]
    own = [HospitalSums.measure(v, 0, weighted) for v in values]
    total = HospitalSums.from_vector(np.sum([one.vector() for one in own], axis=0))
    risk = np.array([v.mean() for v in values])
    count = np.array([v.size for v in values], dtype=float)
    weight = count / count.sum() if weighted else np.full(len(values), 1 / len(values))
    expected = penalty_gradient(risk, weight, *kind)
    found = [hospital_coefficient(one, total, *kind) for one in own]
    assert np.allclose(found, expected, atol=1e-12 * (1 + np.abs(expected).max()), rtol=1e-12)


def test_with_uniform_weights_a_hospital_sends_its_risk_and_nothing_else():
    own = HospitalSums.measure(np.array([1.0, 2.0, 6.0]), 0, weighted=False)
    assert own.vector().tolist() == [3.0, 1.0]
    assert HospitalSums.measure(np.array([1.0]), 11, weighted=False).vector().tolist() == [0.0, 0.0]


def test_without_weight_on_any_present_group_there_is_no_mean_and_no_penalty():
    sums = CellSums(np.array([0.0, 2.0, 9.0]), np.array([0.0, 2.0, 6.0]), np.array([0.0, 1.0, 2.0]))
    state = evaluate(sums, (1.0, 0.0, 0.0), "paper", "sum", 1)
    assert state.value == state.gap == 0
    assert not state.coefficient.any()
