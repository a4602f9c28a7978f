# SPDX-License-Identifier: Apache-2.0
"""Which cells are opened: none that is small, none that a subtraction would give, decided before any risk is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare import presets
from fairflare.engine.cells import CellRule, kept_at_site, kept_over_sites
from fairflare.engine.local import answer, local_masks, run_local
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Start
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.fairness.groups import HOSPITAL, EvaluationSums, unpack
from fairflare.methods import METHODS
from tests.unit.engine.hospitals import four, hospital, masked, plan

FAIR = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0))
HOSPITALS = presets.flexfair(presets.penalty(HOSPITAL, "equal_accuracy", 2.0, weights="uniform"))


def bits(*values):
    return [bool(value) for value in values]


@pytest.mark.parametrize(
    ("count", "total", "kept", "rest"),
    [
        ((20, 30), 50, (1, 1), False),  # nothing is missing
        ((20, 30), 55, (0, 1), True),  # five without a value: the smaller group hides them
        ((20, 30), 61, (1, 1), True),  # eleven without a value are a cell of their own
        ((5, 30), 35, (0, 0), True),  # a small group takes another one with it
        ((5, 30, 40), 75, (0, 0, 1), True),
        ((5, 7, 40), 52, (0, 0, 1), True),  # two small ones make twelve
        ((0, 30), 30, (0, 1), False),
        ((5, 0), 5, (0, 0), False),  # nobody to hide with: nothing is reported
        ((0, 0), 0, (0, 0), False),
    ],
)
def test_a_site_reports_no_cell_that_a_subtraction_would_give(count, total, kept, rest):
    found, found_rest = kept_at_site(np.array(count), total, 11)
    assert (found.tolist(), found_rest) == (bits(*kept), rest)


@pytest.mark.parametrize("minimum", [0, 1])
def test_without_a_minimum_every_cell_with_records_is_reported(minimum):
    found, rest = kept_at_site(np.array([3, 0, 1]), 9, minimum)
    assert (found.tolist(), rest) == ([True, False, True], True)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 40), st.integers(2, 20))
def test_what_a_subtraction_gives_is_never_a_small_cell(count, missing, minimum):
    total = sum(count) + missing
    kept, rest = kept_at_site(np.array(count), total, minimum)
    left = total - int(np.array(count)[kept].sum())
    assert left == 0 or left >= minimum or not kept.any()
    assert rest == (left >= minimum)
    assert (np.array(count)[kept] >= minimum).all()


@pytest.mark.parametrize(
    ("sites", "rest", "kept"),
    [
        ((4, 4), 0, (1, 1)),
        ((4, 2), 0, (0, 0)),  # the one of two sites would follow from the total
        ((4, 4, 2), 0, (0, 1, 0)),
        ((4, 4, 2), 3, (1, 1, 0)),  # three sites have a rest, so two sites' cell is not all that is hidden
        ((4, 4), 1, (0, 1)),
        ((4, 0), 0, (1, 0)),
        ((2, 1), 0, (0, 0)),
    ],
)
def test_over_sites_no_cell_of_too_few_of_them_is_opened(sites, rest, kept):
    assert kept_over_sites(np.array(sites), rest, 3).tolist() == bits(*kept)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(0, 8), st.integers(2, 5))
def test_what_is_hidden_over_sites_is_of_enough_of_them(sites, rest, least):
    kept = kept_over_sites(np.array(sites), rest, least)
    hidden = max([rest, *np.array(sites)[~kept].tolist()])
    assert (np.array(sites)[kept] >= least).all()
    assert hidden == 0 or hidden >= least or not kept.any()


def rule(method, **cells):
    the_plan = masked(plan(method, **{"min_sites": 4, **cells}))
    made = METHODS[the_plan.method.name](the_plan.method, the_plan.sizes, the_plan.cells.sites)
    return CellRule(the_plan, made.measures())


def test_nothing_is_asked_where_there_is_nothing_to_decide():
    assert rule(FAIR).length == 0
    assert rule(presets.FEDAVG).length == 0
    assert rule(HOSPITALS).length > 0  # too few hospitals with a label would show each other's risk


def test_bits_come_back_as_what_may_be_reported():
    data, of = hospital(60, 1), rule(FAIR, minimum=11, sites=3)
    vector, own = of.own(data)
    assert vector.shape == (of.length,)
    assert set(np.unique(vector)) <= {0.0, 1.0}
    everywhere = of.kept(vector * 4) & own
    for measure, kept in own.measures.items():
        assert (everywhere.measures[measure] <= kept).all()
    assert not any(kept.any() for kept in of.kept(vector * 2).measures.values())


def test_no_small_cell_reaches_the_server(tmp_path, monkeypatch):
    """Every opened sum of a masked run: a cell of three sites with at least eleven records each, or zeros."""
    from fairflare.engine.masked_server import MaskedServer

    opened, closed = [], MaskedServer.closed
    monkeypatch.setattr(
        MaskedServer, "closed", lambda masks, label, n: opened.append((label, closed(masks, label, n))) or opened[-1][1]
    )
    sizes = {"amber": 90, "beryl": 200, "coral": 25, "dune": 150}
    loaders = {name: (lambda n=n, k=k: hospital(n, 10 * k, 0.2)) for k, (name, n) in enumerate(sizes.items())}
    the_plan = masked(plan(FAIR, rounds=2, minimum=11, sites=3))
    record = run_local(the_plan, loaders, tmp_path)
    assert record.status == "complete", record.reason
    verify_run(tmp_path)
    made = METHODS["flexfair"](the_plan.method, the_plan.sizes, 3)
    labels = {label for label, _ in opened}
    assert {"counts", "cells", "risk_sums", "validation_sums", "test_sums"} <= labels
    for label, one in opened:
        if label == "risk_sums":
            for sums in unpack(made.measures(), one.total, the_plan.sizes).values():
                pairs = zip(sums.count, sums.sites, strict=True)
                assert all(count == 0 or (count >= 33 and sites >= 3) for count, sites in pairs)
        elif label in ("validation_sums", "test_sums"):
            tables = EvaluationSums.from_vector(one.total, the_plan.sizes, 200, 2).cells.values()
            for table in tables:
                count, sites = table[..., 0].ravel(), table[..., 1].ravel()
                assert all(c == 0 or (c >= 33 and s >= 3) for c, s in zip(count, sites, strict=True))
    assert any(one.total.any() for label, one in opened if label == "risk_sums")


def test_a_server_that_skips_the_counting_gets_nothing(tmp_path):
    """Not even the final evaluation: without the sites' bits nobody knows which cells are small."""
    the_plan = masked(plan(presets.FEDAVG, rounds=1, minimum=11, sites=3))
    coordinator = coordinator_of(the_plan, tmp_path / "server", Start("s", "local", {}))
    sites = {
        name: Site(name, the_plan, load, tmp_path / name, None, local_masks(the_plan, name))
        for name, load in four().items()
    }
    for phase in coordinator.phases(sorted(sites)):
        message, mask = phase.message, sites["amber"]._masked
        if message.task == "evaluate":
            mask._kept = None
        for name in phase.targets:
            answer(sites[name], phase)
        if message.task == "evaluate":
            assert {one.site: one.code for one in phase.collector.refusals} == {"amber": "FF-SECAGG-CELLS"}
            return
    pytest.fail("the task was never sent")


def test_hospitals_are_compared_only_if_enough_have_records(tmp_path):
    """Three of four hospitals have the label: with four asked for, no risk is opened and no penalty acts."""

    def without_label(load):
        data = load()
        data.training.labels[:] = 0
        return data

    loaders = {**four(), "dune": lambda: without_label(four()["dune"])}
    equal = presets.flexfair(presets.penalty(HOSPITAL, "equal_opportunity", 2.0, weights="uniform"))
    with_consent = plan(equal, rounds=1, min_sites=4)
    the_plan = masked(with_consent).model_copy(update={"consents": ()})
    record = run_local(the_plan, loaders, tmp_path / "a")
    clear = run_local(masked(plan(presets.FEDAVG, rounds=1, min_sites=4)), loaders, tmp_path / "b")
    assert record.status == "complete", record.reason
    assert record.rounds[0].model_sha256 == clear.rounds[0].model_sha256
