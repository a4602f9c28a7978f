# SPDX-License-Identifier: Apache-2.0
"""Fixed point: no honest sum can overflow, rounding has no bias, whole numbers come back exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.errors import SecaggError
from fairflare.secagg import fixedpoint
from fairflare.secagg.fixedpoint import MOST_SITES, STATISTICS_FRACTION_BITS, UPDATE_BITS, StatisticsCodec, UpdateCodec
from fairflare.secagg.masking import Scratch, keystream

WHOLE = 2**UPDATE_BITS
KEY = hashlib.sha256(b"rounding").digest()
CODEC = UpdateCodec(1.0, None)
SUMS = StatisticsCodec(8)
CHUNK = fixedpoint._CHUNK

keys = st.binary(min_size=32, max_size=32)
clips = st.one_of(st.floats(2.0**-32, 2.0**29), st.integers(-32, 29).map(lambda power: 2.0**power))
weights = st.one_of(st.integers(1, WHOLE), st.sampled_from([1, 2, WHOLE - 1, WHOLE]))


def key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def encoded(codec: UpdateCodec, values: np.ndarray, weight: int, rounding: bytes = KEY) -> list[int]:
    return codec.encode(values, weight, rounding)[0][:-1].view(np.int32).tolist()


def exact(codec: UpdateCodec, value: float, weight: int, word: int) -> Fraction:
    """W clip(x) 2^(f-30) + u before it is rounded down, in exact numbers."""
    clipped = min(max(Fraction(value), -Fraction(codec.clip)), Fraction(codec.clip))
    return weight * clipped * Fraction(2) ** (codec.fraction_bits - UPDATE_BITS) + Fraction(word, 2**32)


# ---------------------------------------------------------------------------------------------------- updates: bounds


@given(clips)
def test_fraction_bits_are_what_the_bound_leaves(clip: float) -> None:
    codec = UpdateCodec(clip, None)
    power = Fraction(2) ** (UPDATE_BITS - codec.fraction_bits)
    assert power / 2 < Fraction(clip) <= power
    assert 1 <= codec.fraction_bits <= 62


@pytest.mark.parametrize(("clip", "bits"), [(1, 30), (1.0, 30), (8.0, 27), (8.1, 26), (0.5, 31), (2.0**29, 1)])
def test_fraction_bits_of_known_bounds(clip: float, bits: int) -> None:
    assert UpdateCodec(clip, None).fraction_bits == bits


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any), st.data())
def test_weights_never_exceed_the_whole(owns: list[int], data: st.DataObject) -> None:
    total = sum(owns)
    weights_ = [CODEC.weight(own, total) for own in owns]
    assert weights_ == [own * WHOLE // total for own in owns]
    assert sum(weights_) <= WHOLE
    assert CODEC.weight(total, total) == WHOLE
    assert [weight == 0 for weight in weights_] == [own == 0 for own in owns]


@settings(max_examples=200, deadline=None)
@given(clips, st.lists(st.integers(0, 10**7), min_size=1, max_size=50).filter(any), st.booleans(), st.data())
def test_no_sum_of_honest_sites_leaves_its_range(
    clip: float, owns: list[int], double: bool, data: st.DataObject
) -> None:
    """All at their bound, up and down, and beyond it: every subset's sum stays within 2^30 + its size."""
    codec, total = UpdateCodec(clip, None), sum(owns)
    extreme = [clip, -clip, math.nextafter(clip, 0), -math.nextafter(clip, 0), 1e30, -1e30, 0.0, -0.0, 1e-40, -1e-40]
    values = np.array(extreme, dtype=np.float64 if double else np.float32)
    members = data.draw(st.lists(st.sampled_from([at for at, own in enumerate(owns) if own]), min_size=1, unique=True))
    words = np.zeros(len(extreme) + 1, dtype=np.uint32)
    sums = [0] * len(extreme)
    for site in members:
        one, _ = codec.encode(values, codec.weight(owns[site], total), key(site))
        assert all(abs(q) <= int(one[-1]) + 1 for q in one[:-1].view(np.int32).tolist())
        words += one
        sums = [known + q for known, q in zip(sums, one[:-1].view(np.int32).tolist(), strict=True)]
    assert all(abs(value) <= WHOLE + len(members) < 2**31 for value in sums)
    assert words[:-1].view(np.int32).tolist() == sums
    mean, weight = codec.decode(words, len(members))
    assert weight == sum(codec.weight(owns[site], total) for site in members)
    assert mean.tolist() == [q / (weight * 2.0 ** (codec.fraction_bits - UPDATE_BITS)) for q in sums]


def test_3000_worst_cases_do_not_overflow() -> None:
    chance = random.Random(3000)
    for case in range(3000):
        clip = chance.choice([2.0 ** chance.randint(-32, 29), chance.uniform(1e-6, 1e6)])
        codec, sites = UpdateCodec(clip, None), chance.randint(1, 50)
        owns = [chance.choice([1, chance.randint(1, 10), chance.randint(1, 10**6)]) for _ in range(sites)]
        sign = chance.choice([1.0, -1.0])
        total = 0
        words = np.zeros(2, dtype=np.uint32)
        for site, own in enumerate(owns):
            one, clipped = codec.encode(np.array([sign * clip]), codec.weight(own, sum(owns)), key(case * 50 + site))
            assert clipped == 0
            total += int(one[:1].view(np.int32)[0])
            words += one
        assert abs(total) <= WHOLE + sites < 2**31
        mean, _ = codec.decode(words, sites)
        assert abs(mean[0] - sign * clip) <= clip * 2.0**-28 * sites


def test_the_largest_weight_can_be_rounded_up_by_one_and_no_more() -> None:
    """Next to 2^30 float64 has 22 fraction bits: u just below 1 counts as 1 there. The bound allows for it."""
    number = next(at for at in range(100) if int(keystream(key(at), 1 << 16, np.uint32).max()) > 2**32 - 2**12)
    q = encoded(CODEC, np.ones(1 << 16), WHOLE, key(number))
    assert set(q) <= {WHOLE, WHOLE + 1}
    assert max(encoded(CODEC, -np.ones(1 << 16), WHOLE, key(number))) <= -WHOLE + 1


# -------------------------------------------------------------------------------------------------- updates: rounding


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=30), clips, weights, keys, st.booleans())
def test_every_value_is_rounded_as_the_protocol_says(
    values: list[float], clip: float, weight: int, rounding: bytes, double: bool
) -> None:
    codec = UpdateCodec(clip, None)
    array = np.array([value * clip for value in values], dtype=np.float64 if double else np.float32)
    words, clipped = codec.encode(array, weight, rounding)
    assert words.dtype == np.uint32
    assert words.shape == (len(values) + 1,)
    assert int(words[-1]) == weight
    assert clipped == sum(abs(value) > clip for value in array.tolist())
    noise = keystream(rounding, len(values), np.uint32).tolist()
    for value, q, word in zip(array.tolist(), words[:-1].view(np.int32).tolist(), noise, strict=True):
        wanted = exact(codec, value, weight, word)
        # float64 carries W x + u with an error of at most 2^-22 next to 2^30.
        assert wanted - 1 - Fraction(1, 2**21) <= q <= wanted + Fraction(1, 2**21)


def test_exact_products_are_rounded_exactly_at_the_border() -> None:
    """Where x has few bits and the weight is a power of two, the result is the exact floor for every u."""
    noise = keystream(KEY, 4096, np.uint32)
    values = np.linspace(-4095, 4095, 4096) / 8192
    q = encoded(CODEC, values, 2**10, KEY)
    assert q == [math.floor(exact(CODEC, x, 2**10, u)) for x, u in zip(values.tolist(), noise.tolist(), strict=True)]


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-3, -7.77e-7, 0.999])
@pytest.mark.parametrize("weight", [1, 1000, WHOLE // 7])
def test_stochastic_rounding_has_no_bias(value: float, weight: int) -> None:
    """The mean over many keys is W x within five standard errors, also where a step is far larger than W x."""
    array = np.full(64, value, dtype=np.float32)
    found = np.concatenate([np.array(encoded(CODEC, array, weight, key(at)), dtype=np.int64) for at in range(600)])
    target = weight * float(array[0])
    fraction = target - math.floor(target)
    error = math.sqrt(max(fraction * (1 - fraction), 1e-12) / found.size)
    assert abs(float((found - math.floor(target)).mean()) - fraction) <= 5 * error + 2.0**-22


def test_rounding_is_independent_between_coordinates_and_keys() -> None:
    half = np.full(20_000, 0.5, dtype=np.float32)
    first, second = (np.array(encoded(CODEC, half, 1, key(at))) for at in range(2))
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert abs(float(((a - 0.5) * (b - 0.5)).mean()) * 4) < 5 / math.sqrt(a.size)
    assert encoded(CODEC, half, 1, key(0)) == first.tolist()


def test_zero_stays_zero() -> None:
    assert encoded(CODEC, np.zeros(5000, np.float32), WHOLE) == [0] * 5000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_leave_no_trace(dtype: type, length: int) -> None:
    values = np.random.default_rng(length).normal(0, 0.4, length).astype(dtype)
    words, clipped = CODEC.encode(values, 12345, KEY)
    noise = keystream(KEY, length, np.uint32) * 2.0**-32
    plain = np.floor(np.clip(values.astype(np.float64), -1, 1) * 12345.0 + noise)
    assert np.array_equal(words[:-1].view(np.int32), plain)
    assert clipped == int((np.abs(values) > 1).sum())


def test_a_vector_in_pieces_is_encoded_like_its_copy() -> None:
    values = np.random.default_rng(1).normal(0, 1, 1000)[::-2]
    assert encoded(CODEC, values, 5) == encoded(CODEC, values.copy(), 5)


def test_the_mean_comes_back_within_one_step_per_site() -> None:
    chance = np.random.default_rng(8)
    owns = [500, 700, 90, 1000, 800, 650, 333, 12]
    updates = [chance.uniform(-1, 1, 2000).astype(np.float32) for _ in owns]
    words = np.zeros(2001, np.uint32)
    for own, update in zip(owns, updates, strict=True):
        words += CODEC.encode(update, CODEC.weight(own, sum(owns)), key(own))[0]
    mean, weight = CODEC.decode(words, len(owns))
    wanted = sum(own * update.astype(np.float64) for own, update in zip(owns, updates, strict=True)) / sum(owns)
    error = mean - wanted
    assert WHOLE - len(owns) < weight <= WHOLE
    assert np.abs(error).max() < 2 * len(owns) / WHOLE
    assert float(np.sqrt((error**2).mean())) < 3e-9
    assert abs(float(error.mean())) < 1e-9


def test_encoding_leaves_the_update_alone_and_needs_little_memory() -> None:
    values = np.random.default_rng(2).normal(0, 1, 4_000_000).astype(np.float32)
    before = values[::997].copy()
    tracemalloc.start()
    UpdateCodec(0.5, 100.0).encode(values, 1 << 20, KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(values[::997], before)
    assert peak < 4 * values.size + 5_000_000


def test_scratch_memory_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []

    class Watched(Scratch):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            made.append(self._bytes)

    monkeypatch.setattr(fixedpoint, "Scratch", Watched)
    CODEC.encode(np.ones(100), 7, KEY)
    assert len(made) == 1
    assert not made[0].any()


# ------------------------------------------------------------------------------------------------------ updates: norm


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(2.0**-64, 2.0**64),
)
def test_the_norm_never_exceeds_its_bound(values: list[float], bound: float) -> None:
    codec = UpdateCodec(1.0, bound)
    array = np.array(values)
    factors = codec._norm_factors(array, float(np.abs(array).max()))
    scaled = array.copy()
    for factor in factors:
        scaled *= factor
    assert math.hypot(*scaled.tolist()) <= bound
    if not factors:
        assert math.hypot(*values) <= bound * (1 + 1e-12)
    else:
        assert math.hypot(*scaled.tolist()) >= bound * (1 - 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_long_vector_is_scaled_as_a_whole(dtype: type) -> None:
    values = np.random.default_rng(5).normal(0, 1, 2 * CHUNK + 9).astype(dtype)
    norm = math.sqrt(math.fsum(np.square(values.astype(np.float64)).tolist()))
    words, clipped = UpdateCodec(1.0, norm / 4).encode(values, 1000, KEY)
    plain, _ = CODEC.encode(values.astype(np.float64) / 4 * (1 - 2.0**-36), 1000, KEY)
    assert np.abs(words.view(np.int32) - plain.view(np.int32)).max() <= 1
    assert np.mean(words == plain) > 0.999
    assert clipped == int((np.abs(values.astype(np.float64)) / 4 > 1).sum()) > 0


def test_a_vector_within_its_norm_is_left_as_it_is() -> None:
    values = np.random.default_rng(6).normal(0, 0.1, 1000).astype(np.float32)
    assert encoded(UpdateCodec(1.0, 100.0), values, 999) == encoded(CODEC, values, 999)
    assert encoded(UpdateCodec(1.0, 100.0), np.zeros(3), 999) == [0, 0, 0]
    assert encoded(UpdateCodec(1.0, 100.0), np.zeros(0), 999) == []


def test_the_norm_is_clipped_before_the_coordinates() -> None:
    """(3, 4) has norm 5: scaled to norm 1 it is (0.6, 0.8), of which a bound of 0.7 cuts the second."""
    words, clipped = UpdateCodec(0.7, 1.0).encode(np.array([3.0, 4.0]), WHOLE, KEY)
    mean, _ = UpdateCodec(0.7, 1.0).decode(words, 1)
    assert np.allclose(mean, [0.6, 0.7], atol=1e-8)
    assert clipped == 1


def test_values_near_the_end_of_float64_are_scaled_without_overflow() -> None:
    huge = np.array([1.7e308, -1.7e308, 1e300])
    mean, _ = UpdateCodec(1.0, 1.0).decode(UpdateCodec(1.0, 1.0).encode(huge, WHOLE, KEY)[0], 1)
    assert np.allclose(mean, [math.sqrt(0.5), -math.sqrt(0.5), 0], atol=1e-7)


# -------------------------------------------------------------------------------------------------- updates: refusals


@pytest.mark.parametrize(
    ("clip", "norm"),
    [
        (0.0, None),
        (-1.0, None),
        (math.nan, None),
        (math.inf, None),
        (2.0**29 * 1.0000001, None),
        (2.0**-33, None),
        (True, None),
        ("1", None),
        (None, None),
        (1.0, 0.0),
        (1.0, -1.0),
        (1.0, math.nan),
        (1.0, math.inf),
        (1.0, 2.0**65),
        (1.0, 2.0**-65),
        (1.0, True),
    ],
)
def test_a_bound_without_meaning_is_refused(clip: float, norm: float | None) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-CLIP"):
        UpdateCodec(clip, norm)


@pytest.mark.parametrize(
    ("own", "total"), [(-1, 5), (6, 5), (0, 0), (1, 0), (1, -1), (1, 2**30 + 1), (1.0, 2), (1, 2.0), (True, 2)]
)
def test_a_share_without_meaning_is_refused(own: int, total: int) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-WEIGHT"):
        CODEC.weight(own, total)


def test_the_smallest_share_weighs_one() -> None:
    assert CODEC.weight(1, 2**30) == 1
    assert CODEC.weight(0, 5) == 0


@pytest.mark.parametrize("weight", [0, -1, WHOLE + 1, 1.0, True, None, np.uint32(5)])
def test_a_weight_outside_its_range_is_refused(weight: int) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-WEIGHT"):
        CODEC.encode(np.zeros(3), weight, KEY)


@pytest.mark.parametrize("rounding", [b"", KEY[1:], KEY + b"\0", None, bytearray(KEY)])
def test_a_bad_rounding_key_is_refused(rounding: bytes) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-KEY"):
        CODEC.encode(np.zeros(3), 1, rounding)


NO_UPDATES = {
    "half precision": (np.zeros(3, np.float16), "DTYPE"),
    "whole numbers": (np.zeros(3, np.int32), "DTYPE"),
    "the other byte order": (np.zeros(3, np.dtype(np.float32).newbyteorder()), "DTYPE"),
    "complex numbers": (np.zeros(3, np.complex64), "DTYPE"),
    "a list": ([0.0], "DTYPE"),
    "nothing": (None, "DTYPE"),
    "NaN behind a mask": (np.ma.masked_array([1.0, math.nan], mask=[False, True]), "DTYPE"),
    "a matrix": (np.zeros((3, 1)), "SHAPE"),
    "a number": (np.array(1.0), "SHAPE"),
}


@pytest.mark.parametrize("what", NO_UPDATES)
def test_what_is_no_vector_of_floats_is_refused(what: str) -> None:
    values, code = NO_UPDATES[what]
    for encode in (lambda: CODEC.encode(values, 1, KEY), lambda: SUMS.encode(values)):  # type: ignore[arg-type]
        with pytest.raises(SecaggError) as caught:
            encode()
        assert caught.value.code == f"FF-SECAGG-{code}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK, CHUNK + 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused_wherever_they_stand(value: float, place: int, dtype: type) -> None:
    values = np.zeros(CHUNK + 5, dtype)
    values[place] = value
    for codec in (CODEC, UpdateCodec(1.0, 1.0)):
        with pytest.raises(SecaggError, match="FF-SECAGG-NAN"):
            codec.encode(values, 1, KEY)
    if dtype is np.float64:
        with pytest.raises(SecaggError, match="FF-SECAGG-NAN"):
            SUMS.encode(values)


def summed(*signed: int, weight: int) -> np.ndarray:
    return np.array([value % 2**32 for value in signed] + [weight], dtype=np.uint32)


@pytest.mark.parametrize("sites", [1, 8, MOST_SITES])
def test_a_sum_at_the_end_of_its_range_is_decoded_and_one_beyond_is_refused(sites: int) -> None:
    most = WHOLE + sites
    assert CODEC.decode(summed(most, -most, weight=WHOLE), sites)[0].tolist() == [most / WHOLE, -most / WHOLE]
    for value in (most + 1, -most - 1, 2**31 - 1, -(2**31)):
        with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
            CODEC.decode(summed(0, value, weight=WHOLE), sites)


@pytest.mark.parametrize("weight", [0, WHOLE + 1, 2**32 - 1])
def test_a_sum_of_weights_that_cannot_be_is_refused(weight: int) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
        CODEC.decode(summed(0, weight=weight), 3)


def test_a_sum_that_still_holds_a_mask_is_refused() -> None:
    masked = keystream(KEY, 1000, np.uint32)
    masked[-1] = WHOLE
    with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
        CODEC.decode(masked, 8)


@pytest.mark.parametrize("sites", [0, -1, MOST_SITES + 1, 1.0, True, None])
def test_a_number_of_sites_that_cannot_be_is_refused(sites: int) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-SITES"):
        CODEC.decode(summed(0, weight=1), sites)
    with pytest.raises(SecaggError, match="FF-SECAGG-SITES"):
        StatisticsCodec(sites)


NO_SUMS = {
    "signed": (np.zeros(3, np.int32), "DTYPE"),
    "floats": (np.zeros(3, np.float64), "DTYPE"),
    "a list": ([0, 0], "DTYPE"),
    "the other byte order": (np.zeros(3, np.dtype(np.uint32).newbyteorder()), "DTYPE"),
    "a matrix": (np.zeros((3, 1), np.uint32), "SHAPE"),
    "no weight": (np.zeros(0, np.uint32), "SHAPE"),
}


@pytest.mark.parametrize("what", NO_SUMS)
def test_what_is_no_sum_of_updates_is_refused(what: str) -> None:
    total, code = NO_SUMS[what]
    with pytest.raises(SecaggError, match=f"FF-SECAGG-{code}"):
        CODEC.decode(total, 3)  # type: ignore[arg-type]


def test_a_sum_in_pieces_is_decoded_like_its_copy() -> None:
    total = summed(5, -7, 9, -11, weight=4)[::-1].copy()[::-1]
    assert CODEC.decode(total, 2)[0].tolist() == CODEC.decode(total.copy(), 2)[0].tolist() == [1.25, -1.75, 2.25, -2.75]


def test_a_codec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CODEC.clip = 2.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SUMS.sites = 2  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- statistics


def added(codec: StatisticsCodec, rows: list[list[float]]) -> np.ndarray:
    total = np.zeros(len(rows[0]), np.uint64)
    for row in rows:
        total += codec.encode(np.array(row))
    return total


@given(st.lists(st.lists(st.floats(-(2.0**24), 2.0**24), min_size=3, max_size=3), min_size=1, max_size=50))
def test_a_sum_of_statistics_is_that_of_rounded_numbers(rows: list[list[float]]) -> None:
    codec = StatisticsCodec(50)
    found = codec.decode(added(codec, rows)).tolist()
    for at in range(3):
        whole = sum(round(Fraction(row[at]) * 2**STATISTICS_FRACTION_BITS) for row in rows)
        assert found[at] == float(whole) * 2.0**-32


@given(st.integers(1, 50), st.data())
def test_counts_come_back_exactly(sites: int, data: st.DataObject) -> None:
    most = (2**31 - 1) // sites
    counts = data.draw(st.lists(st.integers(-most, most), min_size=sites, max_size=sites))
    codec = StatisticsCodec(sites)
    assert codec.decode(added(codec, [[float(count)] for count in counts])).tolist() == [float(sum(counts))]


@given(st.floats(-(2.0**31), 2.0**31, exclude_min=True, exclude_max=True))
def test_scaling_is_exact_above_and_below_the_53_bits(value: float) -> None:
    word = int(StatisticsCodec(1).encode(np.array([value])).view(np.int64)[0])
    assert word == round(Fraction(value) * 2**32)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 7, 8, 49, 50, 1000, MOST_SITES])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_statistic_of_every_site_does_not_overflow_and_the_next_is_refused(sites: int, sign: float) -> None:
    codec = StatisticsCodec(sites)
    bound = (2**63 - 1) // sites
    assert codec.limit == bound
    highest = float(bound)
    while int(highest) > bound:
        highest = math.nextafter(highest, 0.0)
    value = sign * highest * 2.0**-32
    q = int(codec.encode(np.array([value])).view(np.int64)[0])
    assert q == int(sign * highest)
    assert abs(q) * sites <= 2**63 - 1
    above = math.nextafter(highest, math.inf) if highest >= 2.0**52 else highest + 1
    assert int(above) > bound
    with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
        codec.encode(np.array([0.0, sign * above * 2.0**-32]))


@pytest.mark.parametrize("value", [1e300, -1.7e308, 2.0**31, -(2.0**31)])
def test_a_statistic_beyond_63_bits_is_refused_before_it_is_cast(value: float) -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-RANGE"):
        StatisticsCodec(1).encode(np.array([0.0, value]))


def test_no_statistic_is_a_sum_of_nothing() -> None:
    assert SUMS.encode(np.zeros(0)).shape == (0,)
    assert SUMS.decode(np.zeros(0, np.uint64)).shape == (0,)


def test_statistics_are_float64() -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-DTYPE"):
        SUMS.encode(np.zeros(3, np.float32))  # type: ignore[arg-type]
    with pytest.raises(SecaggError, match="FF-SECAGG-DTYPE"):
        SUMS.decode(np.zeros(3, np.uint32))  # type: ignore[arg-type]
    with pytest.raises(SecaggError, match="FF-SECAGG-SHAPE"):
        SUMS.decode(np.zeros((3, 1), np.uint64))
    assert SUMS.encode(np.zeros(3)).dtype == np.uint64


def test_a_message_names_no_value() -> None:
    with pytest.raises(SecaggError) as caught:
        SUMS.encode(np.array([1234567.0, 9.87654e17]))
    assert "987654" not in str(caught.value).replace(".", "")
    assert "1234567" not in str(caught.value)
