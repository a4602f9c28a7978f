# SPDX-License-Identifier: Apache-2.0
"""FLARE's aggregator takes a phase's results; a refused one returns False and is remembered by its code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from fairflare.engine.collector import Collector, PlainSums
from fairflare.engine.messages import TRAIN, TRAINING_SUMS, Message, layout_of
from fairflare.engine.server import Phase
from fairflare.flare import wire
from fairflare.flare.aggregator import SITE, FlexFairAggregator
from fairflare.presets import FEDAVG
from tests.unit.engine.hospitals import plan

P = 4
MESSAGE = Message(TRAIN, round=1, step=0, session="session", plan_sha256="plan")
SITES = ("a", "b")


@pytest.fixture
def phase() -> Phase:
    layout = layout_of(plan(FEDAVG), P)
    return Phase(MESSAGE, SITES, 10.0, Collector(PlainSums(layout, MESSAGE.task, 64.0), MESSAGE, SITES))


@pytest.fixture
def aggregator(phase: Phase) -> FlexFairAggregator:
    found = FlexFairAggregator()
    found.begin(phase)
    return found


def context(authenticated: str | None, says: str | None = None) -> FLContext:
    """The context of a result: whom FLARE authenticated, and what the site says of itself."""
    ctx = FLContext()
    if authenticated is not None:
        ctx.set_prop(SITE, authenticated, private=True, sticky=False)
    if says is not None:
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, says, private=False, sticky=False)
        ctx.set_peer_context(peer)
    return ctx


def result(value: float = 1.0, **head: Any) -> Shareable:
    shareable = Shareable()
    good = {
        "version": wire.VERSION, "task": TRAIN, "round": 1, "step": 0, "session": "session",
        "weights": {"update": 16.0, "training_sums": 1.0},
        "vectors": {"update": ["<f4", P], "training_sums": ["<f8", len(TRAINING_SUMS)]},
    }  # fmt: skip
    shareable[wire.HEAD] = json.dumps({**good, **head})
    shareable[wire.VECTOR + "update"] = np.full(P, value, dtype="<f4").tobytes()
    shareable[wire.VECTOR + "training_sums"] = np.full(len(TRAINING_SUMS), value).tobytes()
    return shareable


def failed(code: object) -> Shareable:
    shareable = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    shareable[wire.CODE] = code
    return shareable


def test_results_are_added(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.accept(result(1.0), context("a")) is True
    assert aggregator.accept(result(2.0), context("b")) is True
    assert phase.collector.opened()["update"].total.tolist() == [48.0] * P
    assert aggregator.aggregate(FLContext())["sites"] == ["a", "b"]


REFUSED: dict[str, tuple[Shareable, str]] = {
    "nothing": (Shareable(), "FF-WIRE-HEAD"),
    "NaN": (result(float("nan")), "FF-ROUND-NAN"),
    "another round": (result(round=0), "FF-ROUND-OTHER"),
    "a weight beyond every float": (result(weights={"update": 10**400, "training_sums": 1.0}), "FF-WIRE-HEAD"),
    "a code of the site": (failed("FF-DATA-FEW"), "FF-DATA-FEW"),
    "a text of the site": (failed("patient 17 has no label"), "FF-ROUND-SITE-ERROR"),
    "no code at all": (make_reply(ReturnCode.EXECUTION_RESULT_ERROR), "FF-ROUND-SITE-ERROR"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_result_is_remembered_by_its_code(what: str, aggregator: FlexFairAggregator, phase: Phase) -> None:
    sent, code = REFUSED[what]
    assert aggregator.accept(sent, context("a")) is False
    assert [(refusal.site, refusal.code) for refusal in phase.collector.refusals] == [("a", code)]
    assert phase.collector.accepted == ()


def test_a_result_with_a_code_is_refused_by_what_is_wrong_with_it(aggregator: FlexFairAggregator, phase: Phase) -> None:
    bad = result(float("nan"))
    bad[wire.CODE] = "FF-DATA-FEW"
    aggregator.accept(bad, context("a"))
    assert phase.collector.refusals[0].code == "FF-ROUND-NAN"


def test_a_site_cannot_speak_for_another(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.accept(result(), context("a", says="b")) is True
    assert phase.collector.accepted == ("a",)


def test_without_the_controllers_word_the_peers_own_is_taken(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.accept(result(), context(None, says="b")) is True
    assert phase.collector.accepted == ("b",)


def test_a_result_of_nobody_is_refused(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.accept(result(), context(None)) is False
    assert phase.collector.accepted == ()


def test_a_second_result_is_refused(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.accept(result(1.0), context("a")) is True
    assert aggregator.accept(result(5.0), context("a")) is False
    assert phase.collector.opened()["update"].total.tolist() == [16.0] * P


def test_an_unforeseen_error_refuses_one_result_and_not_the_phase(
    aggregator: FlexFairAggregator, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "decode_reply", lambda _: 1 / 0)
    assert aggregator.accept(result(), context("a")) is False
    monkeypatch.undo()
    assert aggregator.accept(result(), context("b")) is True
    assert [(refusal.site, refusal.code) for refusal in phase.collector.refusals] == [("a", "FF-ROUND-INTERNAL")]


def test_between_phases_nothing_is_accepted(aggregator: FlexFairAggregator, phase: Phase) -> None:
    assert aggregator.aggregate(FLContext())["sites"] == []
    assert aggregator.accept(result(), context("a")) is False
    assert "sites" not in aggregator.aggregate(FLContext())
    assert {refusal.code for refusal in phase.collector.refusals} == {"FF-ROUND-TIMEOUT"}


def test_an_aggregate_holds_names_and_no_numbers(aggregator: FlexFairAggregator) -> None:
    aggregator.accept(result(), context("a"))
    assert dict(aggregator.aggregate(FLContext())) == {**Shareable(), "sites": ["a"]}
