# SPDX-License-Identifier: Apache-2.0
"""Noise: the right distributions, nothing to seed, never the same twice, no value left in the last bits."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fairflare.errors import PrivacyError
from fairflare.privacy import noise

#: One false alarm in a million runs for each test of a distribution.
RARE = 1e-6
DRAWS: dict[str, Callable[[], bytes]] = {
    "words": lambda: noise.words(4).tobytes(),
    "gaussian": lambda: noise.gaussian(4, 1.0).tobytes(),
    "add_gaussian": lambda: noise.add_gaussian(np.zeros(16), 1.0).tobytes(),
    "discrete_gaussian": lambda: noise.discrete_gaussian(8, Fraction(2**60)).tobytes(),
    "chosen": lambda: noise.chosen(256, 0.5).tobytes(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_no_two_calls_draw_the_same(draw):
    assert len({draw() for _ in range(200)}) == 200


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_no_seed_of_any_library_decides(draw):
    drawn = set()
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what must not matter
        drawn.add(draw())
    assert len(drawn) == 2


def test_nothing_here_takes_a_seed_or_keeps_a_state():
    functions = [one for _, one in inspect.getmembers(noise, inspect.isfunction) if one.__module__ == noise.__name__]
    taken = {name for one in functions for name in inspect.signature(one).parameters}
    assert taken.isdisjoint({"seed", "generator", "key", "rng", "random"})
    kept = [one for one in vars(noise).values() if isinstance(one, noise._Keystream)]
    assert kept == []


def test_a_stream_cannot_be_copied():
    """A copy would draw the same numbers again."""
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            copied(noise._Keystream())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_fork_draws_on_its_own(draw):
    """Parent and three children go on from the same memory, in the middle of drawing."""
    draw()
    drawn = []
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, draw())
            os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as stream:
            drawn.append(stream.read())
        drawn.append(draw())
    assert len(set(drawn)) == 6


def test_a_restart_draws_anew():
    code = "from fairflare.privacy import noise; print(noise.gaussian(4, 1.0).tobytes().hex())"
    drawn = [subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(3)]
    assert len(set(drawn)) == 3


def test_threads_draw_each_on_its_own():
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: noise.words(2).tobytes(), range(400)))
    assert len(set(drawn)) == 400


def test_every_call_takes_a_whole_key_from_the_operating_system(monkeypatch):
    """With a key that can be foreseen, so can the noise: it comes from nowhere else."""
    asked = []

    def fixed(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(noise.os, "urandom", fixed)
    for draw in DRAWS.values():
        assert draw() == draw()
    assert asked == [32] * (2 * len(DRAWS))


def test_the_keystream_is_aes_256_ctr(monkeypatch):
    """Known answer: AES-256 of the zero block under the zero key (NIST AESAVS, and any other implementation)."""
    monkeypatch.setattr(noise.os, "urandom", bytes)
    assert noise.words(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2 * noise._PAIRS, 2 * noise._PAIRS + 1])
def test_there_are_as_many_as_asked_for(count):
    assert noise.gaussian(count, 1.0).shape == (count,)
    assert np.isfinite(noise.gaussian(count, 1.0)).all()


@pytest.mark.parametrize("deviation", [1e-6, 1.0, 1e6])
def test_normal_numbers_are_normal(deviation):
    drawn = noise.gaussian(100_001, deviation)
    assert stats.kstest(drawn / deviation, "norm").pvalue > RARE
    assert abs(np.mean(drawn / deviation)) < 5 / math.sqrt(drawn.size)
    assert abs(np.std(drawn / deviation) - 1) < 5 / math.sqrt(2 * drawn.size)
    assert abs(stats.kurtosis(drawn)) < 5 * math.sqrt(24 / drawn.size)


def test_the_tail_is_normal():
    beyond = int((np.abs(noise.gaussian(1_000_000, 1.0)) > 4).sum())
    expected = 1_000_000 * 2 * stats.norm.sf(4)
    assert stats.poisson.cdf(beyond, expected) > RARE
    assert stats.poisson.sf(beyond - 1, expected) > RARE


def test_neighbours_are_independent():
    drawn = noise.gaussian(2 * noise._PAIRS, 1.0)
    first, second = drawn[: noise._PAIRS], drawn[noise._PAIRS :]
    for one, other in ((first, second), (drawn[1:], drawn[:-1]), (first**2, second**2)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(noise._PAIRS)


def test_uniform_numbers_have_their_whole_mantissa_however_small():
    """Numbers of the form k 2^-53 would have as many zero bits at the end as they have at the front."""
    small = noise._uniform(np.full(64, 1 << 24, dtype=np.uint64), noise.words(64))
    assert ((small > 0) & (small < 2**-38)).all()
    last = small.view(np.uint64) & np.uint64(0xFFFF)
    assert np.unique(last).size > 50
    drawn = noise._uniform(noise.words(100_000), noise.words(100_000))
    assert stats.kstest(drawn, "uniform").pvalue > RARE


def test_the_smallest_and_the_largest_uniform_number_have_a_logarithm():
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    least, most = noise._uniform(ends, ends)
    assert 0 < least <= 2**-53
    assert 0.5 < most < 1


@pytest.mark.parametrize("deviation", [0.3, 1.0, 1.999, 7e5])
def test_noised_values_stand_on_a_grid_that_the_values_do_not_decide(deviation):
    grid = noise.grid_of(deviation)
    assert deviation * 2**-21 < grid <= deviation * 2**-20
    for value in (0.0, 1 / 3, math.pi * deviation, 1e-300):
        noised = noise.add_gaussian(np.full(2000, value), deviation)
        assert np.array_equal(noised / grid, np.rint(noised / grid))
        assert stats.kstest((noised - value) / deviation, "norm").pvalue > RARE


def test_the_values_themselves_stay_as_they_are():
    values = np.arange(5.0)
    noise.add_gaussian(values, 1.0)
    assert np.array_equal(values, np.arange(5.0))


@pytest.mark.parametrize("values", [np.array([1.0, np.nan]), np.array([np.inf]), np.zeros(2, np.float32), np.eye(2)])
def test_values_that_cannot_be_noised_are_refused(values):
    with pytest.raises(PrivacyError, match="FF-PRIVACY-VALUES"):
        noise.add_gaussian(values, 1.0)


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_no_noise_is_refused(deviation):
    for draw in (lambda: noise.gaussian(1, deviation), lambda: noise.add_gaussian(np.zeros(1), deviation)):
        with pytest.raises(PrivacyError, match="FF-PRIVACY-NOISE"):
            draw()


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1), Fraction(37, 10), Fraction(50)])
def test_the_discrete_gaussian_has_its_probabilities(variance):
    drawn = noise.discrete_gaussian(10_000, variance)
    reach = math.ceil(6 * math.sqrt(variance)) + 1
    numbers = np.arange(-reach, reach + 1)
    weight = np.exp(-(numbers**2) / (2 * float(variance)))
    expected = drawn.size * weight / weight.sum()
    common = expected > 10
    found = np.array([(drawn == number).sum() for number in numbers[common]])
    rest = drawn.size - expected[common].sum()
    assert stats.chisquare([*found, drawn.size - found.sum()], [*expected[common], rest]).pvalue > RARE


def test_the_discrete_gaussian_is_as_wide_as_asked_for_at_the_scale_of_sums():
    variance = Fraction(2**44) * Fraction(13, 7)
    drawn = noise.discrete_gaussian(3000, variance)
    assert stats.kstest(drawn / math.sqrt(variance), "norm").pvalue > RARE
    assert np.unique(drawn % 16).size == 16


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2)])
def test_an_event_happens_as_often_as_its_exponent_says(exponent):
    stream = noise._Keystream()
    happened = sum(noise._happens(stream, exponent) for _ in range(10_000))
    assert stats.binomtest(happened, 10_000, math.exp(-exponent)).pvalue > RARE


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 255, 256, 257])
def test_whole_numbers_below_a_bound_are_equally_likely(bound):
    stream = noise._Keystream()
    drawn = np.bincount([stream.below(bound) for _ in range(20 * bound)], minlength=bound)
    assert drawn.size == bound
    assert bound == 1 or stats.chisquare(drawn).pvalue > RARE


def test_whole_numbers_have_no_largest_bound():
    bound = 3 * 2**100
    drawn = [noise._Keystream().below(bound) for _ in range(2000)]
    assert max(drawn) < bound
    assert stats.kstest([one / bound for one in drawn], "uniform").pvalue > RARE


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(2**105)])
def test_a_discrete_variance_that_is_no_noise_is_refused(variance):
    with pytest.raises(PrivacyError, match="FF-PRIVACY-NOISE"):
        noise.discrete_gaussian(1, variance)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.999])
def test_everybody_is_chosen_at_the_rate(rate):
    chosen = noise.chosen(100_000, rate)
    assert stats.binomtest(int(chosen.sum()), chosen.size, rate).pvalue > RARE


def test_who_is_chosen_does_not_depend_on_the_others():
    """The number of the chosen varies as it does for independent coins; a fixed batch size would not vary at all."""
    sizes = [int(noise.chosen(100, 0.3).sum()) for _ in range(2000)]
    assert abs(np.var(sizes) / 21 - 1) < 5 * math.sqrt(2 / 2000)


def test_at_rate_one_everybody_is_chosen():
    assert noise.chosen(50, 1.0).all()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(PrivacyError, match="FF-PRIVACY-RATE"):
        noise.chosen(3, rate)
