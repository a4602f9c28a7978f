# SPDX-License-Identifier: Apache-2.0
"""What a method sends beside its update is said wherever a person decides: neither less nor more than is sent."""

from __future__ import annotations

import json

import pytest

from fairflare import presets, schema
from fairflare.engine.messages import layout_of
from fairflare.evaluation.card import model_card, plain
from fairflare.evaluation.exchanged import exchanged_words, server_words
from fairflare.evaluation.facts import facts
from fairflare.plan import Plan, parse_plan
from tests.unit.evaluation.records import draw, make_plan, make_record

NOTHING = ("nothing: what FedAvg sends",)
PLANS = {name: make(name) for name, make in presets.PRESETS.items()}
#: Methods with the parameters that make them FedAvg.
LIMITS = {"heart_fednova": {"normalize": False}, "heart_fairfed": {"beta": 0.0}}


def fedavg(of: Plan) -> Plan:
    data = {**json.loads(schema.pretty(of)), "method": presets.FEDAVG}
    if data["differential_privacy"] is not None:  # FedAvg has no group sums that noise could hide
        data["differential_privacy"]["groups"] = None
    return parse_plan(json.dumps(data))


def sends_more(of: Plan) -> bool:
    """Whether vectors leave, or weights are hidden, that FedAvg does not have."""
    own, plain = layout_of(of, 1000), layout_of(fedavg(of), 1000)
    return set(own.vectors) - {"cells"} != set(plain.vectors) - {"cells"} or own.method.weighing != "aggregation"


@pytest.mark.parametrize("name", PLANS)
def test_words_are_there_where_more_is_sent_than_by_fedavg(name: str) -> None:
    assert (exchanged_words(PLANS[name]) != NOTHING) == sends_more(PLANS[name])


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_case_sends_what_fedavg_sends(name: str) -> None:
    data = json.loads(schema.pretty(PLANS[name]))
    data["method"].update(LIMITS[name])
    limit = parse_plan(json.dumps(data))
    assert exchanged_words(limit) == NOTHING
    assert list(server_words(limit)) == []
    assert not sends_more(limit)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "reweighting"])
def test_a_card_and_a_report_say_it(name: str) -> None:
    plan = PLANS[f"heart_{name}"]
    method = json.loads(schema.pretty(plan))["method"]
    training = {**json.loads(schema.pretty(make_plan()))["training"], "work": {"unit": "steps", "amount": 3}}
    training["optimizer"] = presets.sgd(0.1, momentum=0.0)
    record = make_record(make_plan(method=method, training=training), draw())
    (fact,) = [one for one in facts("any", record, None) if one.term == "Sent beside the update"]
    assert fact.values == exchanged_words(plan) != NOTHING
    assert f"- Sent beside the update: {plain('; '.join(fact.values))}" in model_card(record, "d" * 64)
