# SPDX-License-Identifier: Apache-2.0
"""One phase at the server: whole replies to what was asked, once per site, before the deadline; or a named refusal."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairflare.engine.collector import Collector, PlainSums
from fairflare.engine.messages import TRAIN, TRAINING_SUMS, Layout, Message, Reply, layout_of
from fairflare.errors import RoundError
from fairflare.presets import FEDAVG, heart
from fairflare.record import Refusal
from fairflare.secagg.protection import Payload

P = 5
MESSAGE = Message(TRAIN, round=2, step=0, session="session", plan_sha256="plan")
SITES = ("a", "b", "c")


@pytest.fixture
def layout() -> Layout:
    return layout_of(heart("heart_test", FEDAVG), P)


@pytest.fixture
def collector(layout: Layout) -> Collector:
    return Collector(PlainSums(layout, MESSAGE.task, 128.0), MESSAGE, SITES)


def reply(value: float = 1.0, **changes: Any) -> Reply:
    payloads = {
        "update": Payload(np.full(P, value, np.float32), 16.0),
        "training_sums": Payload(np.full(len(TRAINING_SUMS), value), 1.0),
    }
    return replace(Reply(TRAIN, 2, 0, "session", payloads), **changes)


def with_payload(label: str, payload: Any) -> Reply:
    return reply(payloads={**reply().payloads, label: payload})


def state(collector: Collector) -> list[tuple[list[float], float, tuple[str, ...]]]:
    return [(one.total.tolist(), one.weight, one.sites) for one in collector.opened().values()]


def test_replies_are_added_as_they_come(collector: Collector) -> None:
    for site, value in (("c", 1.0), ("a", 2.0)):
        collector.accept(site, reply(value))
    collector.close()
    assert collector.accepted == ("a", "c")
    assert collector.opened()["update"].total.tolist() == [48.0] * P
    assert collector.opened()["update"].weight == 32.0
    assert collector.opened()["training_sums"].total.tolist() == [3.0] * len(TRAINING_SUMS)
    assert collector.refusals == (Refusal(site="b", task=TRAIN, code="FF-ROUND-TIMEOUT"),)


REFUSED: dict[str, tuple[Reply, str]] = {
    "another task": (reply(task="measure"), "OTHER"),
    "an earlier round": (reply(round=1), "OTHER"),
    "another step": (reply(step=1), "OTHER"),
    "an earlier session": (reply(session="before the crash"), "OTHER"),
    "no vectors": (reply(payloads={}), "KEYS"),
    "a vector too few": (reply(payloads={"update": reply().payloads["update"]}), "KEYS"),
    "a vector too many": (with_payload("risk_sums", Payload(np.zeros(4), 1.0)), "KEYS"),
    "something that is no payload": (with_payload("update", np.zeros(P, np.float32)), "KEYS"),
    "NaN": (with_payload("update", Payload(np.full(P, np.nan, np.float32), 16.0)), "NAN"),
    "another length": (with_payload("update", Payload(np.zeros(P + 1, np.float32), 10.0)), "SHAPE"),
    "another type": (with_payload("update", Payload(np.zeros(P), 10.0)), "DTYPE"),
    "more weight than there is": (with_payload("update", Payload(np.zeros(P, np.float32), 129.0)), "WEIGHT"),
    "numbers too large": (with_payload("update", Payload(np.full(P, 1e30, np.float32), 10.0)), "RANGE"),
    "a good update and bad sums": (
        with_payload("training_sums", Payload(np.full(len(TRAINING_SUMS), np.inf), 1.0)),
        "NAN",
    ),
    "good sums and a bad update": (with_payload("update", Payload(np.full(P, np.inf, np.float32), 1.0)), "NAN"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_reply_changes_no_sum_and_is_remembered_by_its_code(what: str, collector: Collector) -> None:
    bad, code = REFUSED[what]
    collector.accept("a", reply())
    before = state(collector)
    with pytest.raises(RoundError, match=f"FF-ROUND-{code}:"):
        collector.accept("b", bad)
    assert state(collector) == before
    assert collector.refusals == (Refusal(site="b", task=TRAIN, code=f"FF-ROUND-{code}"),)
    assert collector.accepted == ("a",)


def test_a_second_reply_of_a_site_is_not_used(collector: Collector) -> None:
    collector.accept("a", reply(1.0))
    with pytest.raises(RoundError, match="FF-ROUND-LATE"):
        collector.accept("a", reply(5.0))
    assert collector.opened()["update"].total.tolist() == [16.0] * P
    assert collector.refusals == ()


def test_a_bad_second_reply_takes_nothing_back(collector: Collector) -> None:
    collector.accept("a", reply())
    collector.refuse("a", "FF-WIRE-HEAD")
    assert collector.accepted == ("a",)
    assert collector.refusals == ()


def test_a_site_that_was_refused_may_answer_properly_in_time(collector: Collector) -> None:
    collector.refuse("a", "FF-WIRE-HEAD")
    collector.accept("a", reply())
    assert collector.accepted == ("a",)
    assert collector.refusals == ()


def test_a_site_that_nobody_asked_is_not_added(collector: Collector) -> None:
    with pytest.raises(RoundError, match="FF-ROUND-LATE"):
        collector.accept("stranger", reply())
    collector.refuse("stranger", "FF-WIRE-HEAD")
    collector.close()
    assert "stranger" not in {refusal.site for refusal in collector.refusals}
    assert collector.accepted == ()


def test_a_reply_after_the_deadline_is_not_used(collector: Collector) -> None:
    collector.close()
    with pytest.raises(RoundError, match="FF-ROUND-LATE"):
        collector.accept("a", reply())
    collector.refuse("a", "FF-WIRE-HEAD")
    assert collector.accepted == ()
    assert {refusal.code for refusal in collector.refusals} == {"FF-ROUND-TIMEOUT"}


def test_the_reason_that_a_site_gave_outlives_the_deadline(collector: Collector) -> None:
    collector.refuse("a", "FF-DATA-FEW")
    collector.close()
    assert {refusal.site: refusal.code for refusal in collector.refusals} == {
        "a": "FF-DATA-FEW",
        "b": "FF-ROUND-TIMEOUT",
        "c": "FF-ROUND-TIMEOUT",
    }


def test_half_of_a_reply_never_opens(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is checked can be added; should this ever be wrong, no sum of this phase is used.
    def broken(site: str, payload: Payload) -> None:
        raise MemoryError

    monkeypatch.setattr(collector._sums._sums["training_sums"], "add", broken)
    with pytest.raises(MemoryError):
        collector.accept("a", reply())
    with pytest.raises(RoundError, match="FF-ROUND-INTERNAL"):
        collector.opened()


def test_replies_from_many_threads_are_all_added(layout: Layout) -> None:
    sites = [f"site-{at}" for at in range(32)]
    collector = Collector(PlainSums(layout, MESSAGE.task, 128.0), MESSAGE, sites)
    start = threading.Barrier(len(sites))

    def send(site: str) -> None:
        start.wait()
        collector.accept(site, reply())

    threads = [threading.Thread(target=send, args=(site,)) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.accepted == tuple(sorted(sites))
    assert collector.opened()["update"].total.tolist() == [512.0] * P
