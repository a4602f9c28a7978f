# SPDX-License-Identifier: Apache-2.0
"""What one patient can change: never more than the accounted sensitivity, on data sets that differ by that patient.

Also who is drawn, how many records of a patient count, and steps into which nobody is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairflare.errors import PrivacyError
from fairflare.privacy import noise
from fairflare.privacy.dpsgd import Drawn, UnitSampler
from tests.unit.privacy.private_models import RECORDS, Site, everybody

MODES = ("hooks", "ghost")
#: Twelve records of five patients.
UNITS = np.array([3, 3, 3, 3, 9, 9, 0, 0, 0, 7, 5, 5])


def all_in(units=UNITS, cap: int = 2) -> Drawn:
    return UnitSampler(units, 1.0, cap).draw()


def without(drawn: Drawn, units, patient: int) -> Drawn:
    kept = units[drawn.records] != patient
    return Drawn(drawn.records[kept], drawn.share[kept])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cap", [1, 2, 4])
def test_a_patient_moves_the_sum_by_at_most_the_sensitivity(mode, cap, dtype):
    """With the largest weights and gradients far above the bound: close to it, and never beyond."""
    site = Site("cnn", dtype)
    steps = site.private(mode, clip=0.1, most_weight=1.7)
    reached = []
    for _ in range(3):
        drawn = all_in(cap=cap)
        whole = steps.clipped_sum(drawn, np.full(drawn.records.size, 1.7), site.losses)
        for patient in np.unique(UNITS):
            rest = without(drawn, UNITS, patient)
            part = steps.clipped_sum(rest, np.full(rest.records.size, 1.7), site.losses)
            reached.append(float(np.linalg.norm(whole - part)))
    assert max(reached) <= steps.mechanism.sensitivity
    assert max(reached) > 0.999 * steps.mechanism.sensitivity


@pytest.mark.parametrize("mode", MODES)
def test_a_patient_with_alike_images_reaches_the_sensitivity_and_not_a_multiple(mode):
    """Four copies of one image: their gradients add up in the same direction."""
    site = Site("cnn")
    site.inputs[:4] = site.inputs[0].clone()
    site.target = torch.zeros(RECORDS, dtype=torch.int64)
    steps = site.private(mode, clip=0.1)
    for cap in (1, 3, 4, 9):
        drawn = all_in(cap=cap)
        whole = steps.clipped_sum(drawn, np.ones(drawn.records.size), site.losses)
        rest = without(drawn, UNITS, 3)
        moved = np.linalg.norm(whole - steps.clipped_sum(rest, np.ones(rest.records.size), site.losses))
        assert moved == pytest.approx(0.1, rel=1e-9)
        assert moved <= 0.1 * (1 + 1e-15)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0, 2.5), min_size=RECORDS, max_size=RECORDS),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    clip=st.sampled_from([1e-4, 1.0, 50.0]),
    units=st.lists(st.integers(-2, 3), min_size=RECORDS, max_size=RECORDS),
    cap=st.integers(1, 5),
    mode=st.sampled_from(MODES),
)
def test_whatever_the_data_the_weights_and_the_patients(weights, scale, clip, units, cap, mode):
    site = Site("mlp")
    site.inputs *= scale
    steps = site.private(mode, clip=clip, most_weight=2.5)
    unit, weight = np.array(units), np.array(weights)
    drawn = all_in(unit, cap)
    whole = steps.clipped_sum(drawn, weight[drawn.records], site.losses)
    rest = without(drawn, unit, units[0])
    part = steps.clipped_sum(rest, weight[rest.records], site.losses)
    # What is added up and taken off again here is rounded, at most by the size of the whole sum.
    assert np.linalg.norm(whole - part) <= 2.5 * clip + 1e-12 * np.linalg.norm(whole)


def test_at_most_the_cap_of_each_patients_records_counts_and_their_shares_are_one():
    for cap, most in ((1, 1), (2, 2), (3, 3), (99, 4)):
        drawn = all_in(cap=cap)
        for patient in np.unique(UNITS):
            own = UNITS[drawn.records] == patient
            assert own.sum() == min(most, np.count_nonzero(np.equal(UNITS, patient)))
            assert drawn.share[own].sum() == pytest.approx(1.0, rel=1e-12)
        assert np.unique(drawn.records).size == drawn.records.size


def test_which_of_a_patients_records_count_is_drawn_anew():
    sampler = UnitSampler(np.zeros(5, dtype=np.int64), 1.0, 1)
    found = np.bincount([int(sampler.draw().records[0]) for _ in range(1000)], minlength=5)
    assert stats.chisquare(found).pvalue > 1e-6


def test_patients_are_drawn_whole_each_on_its_own_at_the_rate():
    sampler = UnitSampler(UNITS, 0.3, 99)
    seen = np.zeros((4000, 5))
    names = np.unique(UNITS)
    for row in seen:
        records = sampler.draw().records
        present = np.isin(names, UNITS[records])
        row[:] = present
        assert records.size == np.isin(UNITS, names[present]).sum()
    assert sampler.units == 5
    for column in seen.T:
        assert stats.binomtest(int(column.sum()), 4000, 0.3).pvalue > 1e-6
    together = np.corrcoef(seen.T)[np.triu_indices(5, 1)]
    assert np.abs(together).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_into_which_nobody_is_drawn_is_noise_and_is_charged(mode, monkeypatch):
    site = Site("cnn")
    charged, sums = [], []
    real = noise.add_gaussian

    def seen(values, deviation):
        sums.append((values.copy(), deviation))
        return real(values, deviation)

    monkeypatch.setattr(noise, "add_gaussian", seen)
    steps = site.private(mode, multiplier=2.0, rate=1e-12, charge=lambda: charged.append(True))
    before = [one.detach().clone() for one in site.model.parameters()]
    for _ in range(3):
        steps.step(np.ones(RECORDS), site.losses)
    assert (steps.steps, len(charged)) == (3, 3)
    assert all(not values.any() and deviation == 2.0 for values, deviation in sums)
    assert all(
        not torch.equal(one, other) and bool(torch.isfinite(one).all())
        for one, other in zip(site.model.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("mode", MODES)
def test_empty_and_full_batches_take_turns(mode):
    """Of 40 steps at one expected patient, about one in three is empty; none of them stops training."""
    site = Site("mlp")
    sizes = []

    def losses(index):
        sizes.append(len(index))
        return site.losses(index)

    steps = site.private(mode, rate=1 / RECORDS)
    for _ in range(40):
        steps.step(np.ones(RECORDS), losses)
    assert steps.steps == 40
    assert 0 < len(sizes) < 40
    assert all(bool(torch.isfinite(one).all()) for one in site.model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_drawn_for_a_step_that_cannot_be_paid(mode, monkeypatch):
    def broke() -> None:
        raise PrivacyError("FF-PRIVACY-BUDGET", got="a", expected="b", next_step="c")

    site = Site("mlp")
    steps = site.private(mode, charge=broke)
    monkeypatch.setattr(noise, "words", lambda _: pytest.fail("drawn"))
    monkeypatch.setattr(noise, "gaussian", lambda *_: pytest.fail("drawn"))
    with pytest.raises(PrivacyError, match="FF-PRIVACY-BUDGET"):
        steps.step(np.ones(RECORDS), site.losses)
    assert steps.steps == 0


def test_two_sites_with_the_same_data_take_different_steps():
    moved = []
    for _ in range(2):
        site = Site("mlp")
        site.private("hooks", rate=1.0).step(np.ones(RECORDS), site.losses)
        moved.append(torch.cat([one.detach().reshape(-1) for one in site.model.parameters()]))
    assert not torch.isclose(moved[0], moved[1]).any()


def test_a_message_names_no_patient():
    with pytest.raises(PrivacyError) as caught:
        Site("mlp").private("hooks", units=UNITS).clipped_sum(everybody(), np.full(RECORDS, 7.25), lambda _: None)
    assert not any(number in str(caught.value) for number in ("7.25", "9", "12"))


@pytest.mark.parametrize("cap", [0, -1, 1.5, True])
def test_a_cap_that_is_none_is_refused(cap):
    with pytest.raises(PrivacyError, match="FF-PRIVACY-CAP"):
        UnitSampler(UNITS, 0.5, cap)


def test_units_that_are_no_numbers_are_refused():
    for units in (np.array(["a"]), np.zeros((2, 2), dtype=np.int64), np.array([0.5])):
        with pytest.raises(PrivacyError, match="FF-PRIVACY-UNIT"):
            UnitSampler(units, 0.5, 1)


def test_a_rate_that_is_none_is_refused_before_any_step():
    with pytest.raises(PrivacyError, match="FF-PRIVACY-RATE"):
        UnitSampler(UNITS, 0.0, 1)
