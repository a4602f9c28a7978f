# SPDX-License-Identifier: Apache-2.0
"""Epsilon is dp-accounting's own, for both relations, and never smaller where it is found in another way."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.errors import LedgerError
from fairflare.privacy import accounting
from fairflare.privacy.accounting import COARSE, epsilon
from fairflare.privacy.loss import Budget, DpSgd, Gaussian, Mechanism, Relation, Release, merged

#: sigma, q, steps, delta, and epsilon by PLD as the design measured it.
TABLE = [
    (1.0, 0.016, 3150, 5e-5, 5.057),
    (1.0, 0.01, 10000, 1e-5, 6.188),
    (0.6, 0.016, 1260, 5e-5, 11.328),
    (2.0, 0.064, 1600, 1e-5, 6.423),
]
NEIGHBOURS = {
    "add_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace": dp_accounting.NeighboringRelation.REPLACE_ONE,
}


def reference(mechanisms: list[Mechanism], delta: float, relation: Relation) -> float:
    """What dp-accounting says when it is told each release as it was."""
    accountant = PLDAccountant(NEIGHBOURS[relation])
    for one in mechanisms:
        if isinstance(one, DpSgd):
            noise = dp_accounting.GaussianDpEvent(one.sigma)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(one.q, noise), one.steps)
        else:
            accountant.compose(dp_accounting.GaussianDpEvent(one.sigma / one.sensitivity), one.count)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("sigma", "q", "steps", "delta", "wanted"), TABLE)
def test_the_settings_of_the_design_by_pld(sigma: float, q: float, steps: int, delta: float, wanted: float) -> None:
    found = epsilon([DpSgd(q, sigma, steps)], delta)
    assert found.method == "pld"
    assert found.value == pytest.approx(wanted, rel=0.005)
    assert found.value == pytest.approx(reference([DpSgd(q, sigma, steps)], delta, "add_remove"), rel=0.005)
    quick = epsilon([DpSgd(q, sigma, steps)], delta, interval=COARSE)
    assert found.value <= quick.value <= 1.005 * found.value


@pytest.mark.parametrize("relation", ["add_remove", "replace"])
def test_several_jobs_with_group_releases_cost_what_dp_accounting_says(relation: Relation) -> None:
    jobs: list[Mechanism] = [
        *[DpSgd(0.016, 1.0, 630)] * 2,  # job 1, by rounds
        *[Gaussian(10 * math.sqrt(2), math.sqrt(2), 5)] * 2,
        DpSgd(0.02, 1.4, 500),  # job 2, other noise
        *[Gaussian(20.0, 1.0, 2)] * 3,
        DpSgd(0.016, 1.0, 630),  # job 1 again
    ]
    found = epsilon(jobs, 1e-5, relation)
    assert found.method == "pld"
    assert found.value == pytest.approx(reference(jobs, 1e-5, relation), rel=0.005)


def test_the_composition_of_the_design() -> None:
    for z, alone, together in ((5.0, 6.03, 8.40), (10.0, 2.66, 5.98), (20.0, 1.21, 5.29)):
        groups = Gaussian(z, 1.0, 50)
        assert epsilon([groups], 5e-5).value == pytest.approx(alone, rel=0.005)
        assert epsilon([DpSgd(0.016, 1.0, 3150), groups], 5e-5).value == pytest.approx(together, rel=0.005)


def test_replace_costs_more_and_nothing_costs_nothing() -> None:
    one = [DpSgd(0.016, 1.0, 3150)]
    assert epsilon(one, 5e-5, "replace").value == pytest.approx(8.73, rel=0.005)
    assert epsilon([], 1e-5).value == 0
    # Another in one's place changes the sum by twice as much.
    assert epsilon([Gaussian(4.0, 1.0, 1)], 1e-5, "replace").value == pytest.approx(
        epsilon([Gaussian(2.0, 1.0, 1)], 1e-5).value, rel=1e-3
    )


@pytest.mark.parametrize("relation", ["add_remove", "replace"])
def test_without_pld_rdp_says_more_and_says_so(relation: Relation, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [DpSgd(0.016, 1.0, 300), Gaussian(10.0, 1.0, 3)]
    exact = epsilon(some, 3e-5, relation)

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(accounting, "_distribution", fails)
    accounting._epsilon.cache_clear()
    found = epsilon(some, 3e-5, relation)
    accounting._epsilon.cache_clear()
    assert (exact.method, found.method) == ("pld", "rdp")
    assert exact.value < found.value < (1.4 if relation == "add_remove" else 3) * exact.value


def test_a_delta_as_small_as_rounding_errors_is_not_counted_by_pld() -> None:
    some = [DpSgd(0.016, 1.0, 300)]
    tiny, small = epsilon(some, 1e-16), epsilon(some, 1e-11)
    assert (tiny.method, small.method) == ("rdp", "pld")
    assert tiny.value > small.value


def test_losses_beyond_all_use_are_rough_and_quick() -> None:
    for some in (Gaussian(0.01, 1.0, 10**6), DpSgd(0.5, 0.01, 10**8)):
        for relation in ("add_remove", "replace"):
            found = epsilon([some], 1e-5, relation)
            assert found.method == "rdp"
            assert found.value > 1000


def test_many_large_releases_never_count_as_fewer() -> None:
    assert merged([Gaussian(0.01, 1.0, 7), Gaussian(0.02, 1.0, 1)]) == (Gaussian(0.01, 1.0, 8),)


def test_nothing_is_logged_that_tells_how_many_records_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert not logging.getLogger("absl").isEnabledFor(logging.ERROR)
    epsilon([DpSgd(0.053333, 0.472, 380)], 1e-5, interval=COARSE)
    assert capfd.readouterr() == ("", "")


mechanisms = st.one_of(
    st.builds(DpSgd, st.floats(0.001, 1.0), st.floats(0.5, 50), st.integers(1, 5000)),
    st.builds(Gaussian, st.floats(1.0, 100), st.floats(0.1, 2.0), st.integers(1, 50)),
)


@given(st.lists(mechanisms, max_size=8), st.randoms())
@settings(deadline=None)
def test_the_order_does_not_matter(some: list[Mechanism], chance: object) -> None:
    shuffled = list(some)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merged(shuffled) == merged(some)
    steps = sum(one.steps for one in some if isinstance(one, DpSgd) and one.q < 1)
    assert sum(one.steps for one in merged(some) if isinstance(one, DpSgd)) == steps


@pytest.mark.parametrize(
    "make",
    [
        lambda: DpSgd(0.0, 1.0, 1),
        lambda: DpSgd(1.5, 1.0, 1),
        lambda: DpSgd(0.1, 0.0, 1),
        lambda: DpSgd(0.1, -1.0, 1),
        lambda: DpSgd(0.1, math.nan, 1),
        lambda: DpSgd(0.1, 0.001, 1),
        lambda: DpSgd(0.1, 1.0, 0),
        lambda: DpSgd(0.1, 1.0, True),
        lambda: DpSgd(0.1, 1.0, 1.0),  # type: ignore[arg-type]
        lambda: Gaussian(0.0, 1.0, 1),
        lambda: Gaussian(1.0, 0.0, 1),
        lambda: Gaussian(1.0, math.inf, 1),
        lambda: Gaussian(0.001, 1.0, 1),
        lambda: Gaussian(1.0, 1.0, -1),
        lambda: Budget(0.0, 1e-5),
        lambda: Budget(math.inf, 1e-5),
        lambda: Budget(1.0, 1.0),
        lambda: Budget(1.0, 1e-5, "any"),  # type: ignore[arg-type]
        lambda: Release("p", "j", -1, "model", DpSgd(0.1, 1.0, 1)),
        lambda: Release("", "j", 0, "model", DpSgd(0.1, 1.0, 1)),
        lambda: Release("p", "j", 0, "model", None),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_form_is_refused(make: object) -> None:
    with pytest.raises(LedgerError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code == "FF-LEDGER-FORM"


def test_only_counting_imports_the_heavy_package() -> None:
    code = "import sys, fairflare.privacy.ledger, fairflare.cli; print({'dp_accounting', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
