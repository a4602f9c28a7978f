# SPDX-License-Identifier: Apache-2.0
"""How often statistics are exchanged: what travels when, what acts when, and what is written down."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.engine.local import answer, run_local
from fairflare.engine.messages import JOIN, Message
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.engine.store import read_model
from fairflare.engine.verify import verify_run
from fairflare.fairness.groups import exchanged, pack, unpack
from fairflare.plan import parse_plan
from tests.unit.engine.hospitals import four, plan

FAIR = (presets.penalty("sex", "equalized_odds", 2.0), presets.penalty("hospital", "equal_accuracy", 1.0))
EVERY = {"rounds": 3}


def fair_plan(refresh, **changes):
    method = {key: changes.pop(key) for key in ("remeasure_own",) if key in changes}
    return plan(presets.flexfair(*FAIR, refresh=refresh, **method), **{"rounds": 5, **changes})


def watched(the_plan, folder, lost=None):
    """Run a plan by hand; returns its record and every (message, totals opened at the server) in order.

    ``lost`` = (site, round): from that round on the site is silent.
    """
    sites = {name: Site(name, the_plan, load, folder / name) for name, load in four().items()}
    coordinator, seen = Coordinator(the_plan, folder, Start("s", "local", {})), []
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets:
            if lost is None or (name, phase.message.round >= lost[1]) != (lost[0], True):
                answer(sites[name], phase)
        opened = phase.collector.opened() if phase.collector.accepted else {}
        seen.append((phase.message, {label: one.total for label, one in opened.items()}, phase.collector.accepted))
    return coordinator.record, seen


def tasks(seen):
    return [(message.task, message.round) for message, _, _ in seen]


def test_lagged_statistics_ride_with_the_update_and_act_one_round_later(tmp_path):
    record, seen = watched(fair_plan("round_lagged"), tmp_path)
    assert record.status == "complete", record.reason
    assert tasks(seen) == [("join", 0), *(("train_alone", r) for r in range(5)), ("evaluate", 5), ("finish", 5)]
    alone = [one for one in seen if one[0].task == "train_alone"]
    assert not alone[0][0].vectors["totals"].any()
    for before, after in itertools.pairwise(alone):
        assert np.array_equal(before[1]["risk_sums"], after[0].vectors["totals"])
        assert before[1]["risk_sums"].any()
    assert all(set(line.participants) == {"train_alone"} and line.penalties for line in record.rounds)
    verify_run(tmp_path)


def test_the_first_lagged_round_is_fedavg_and_the_others_are_not(tmp_path):
    plain = run_local(plan(presets.FEDAVG, rounds=5), four(), tmp_path / "plain")
    lagged = run_local(fair_plan("round_lagged"), four(), tmp_path / "lagged")
    same = [a.model_sha256 == b.model_sha256 for a, b in zip(plain.rounds, lagged.rounds, strict=True)]
    assert same == [True, False, False, False, False]


def test_a_lagged_round_of_unchanged_totals_is_the_measured_one(tmp_path):
    """With totals of the round's own model in its hands, a site trains exactly as after ``measure``."""
    lagged, measured = fair_plan("round_lagged"), fair_plan("round")
    _, first = watched(measured, tmp_path / "measured")
    message = next(m for m, _, _ in first if m.task == "train")
    totals, numbers = message.vectors["totals"], message.numbers
    model = next(m for m, _, _ in first if m.task == "measure").vectors["model"]
    update = next(opened["update"] for m, opened, _ in first if m.task == "train")

    sites = {name: Site(name, lagged, load, tmp_path / name) for name, load in four().items()}
    for phase in Coordinator(lagged, tmp_path / "server", Start("s", "local", {})).phases(sorted(sites)):
        if phase.message.task == "train_alone":
            phase.message.vectors.update(model=model, totals=totals)
            phase.message.numbers.update(numbers)
            for site in sites.values():  # a site knows its own part of the totals
                site._own = own_part(site, measured, model, tmp_path)
        for name in phase.targets:
            answer(sites[name], phase)
        if phase.message.task == "train_alone":
            assert np.array_equal(phase.collector.opened()["update"].total, update)
            break


def own_part(site, the_plan, model, folder):
    twin = Site(site.name, the_plan, four()[site.name], folder / "twins" / site.name)
    twin.handle(Message(JOIN, 0, 0, "s", the_plan.sha256))
    twin._trainer.start_round(model)
    return twin._measured_sums()


def test_every_third_round_is_measured_and_the_others_use_its_totals(tmp_path):
    record, seen = watched(fair_plan(EVERY), tmp_path)
    assert tasks(seen) == [
        ("join", 0), ("measure", 0), ("train", 0), ("train_alone", 1), ("train_alone", 2),
        ("measure", 3), ("train", 3), ("train_alone", 4), ("evaluate", 5), ("finish", 5),
    ]  # fmt: skip
    totals = {message.round: message.vectors["totals"] for message, _, _ in seen if "totals" in message.vectors}
    assert np.array_equal(totals[0], totals[1])
    assert np.array_equal(totals[0], totals[2])
    assert not np.array_equal(totals[2], totals[3])
    assert all("risk_sums" not in opened for message, opened, _ in seen if message.task == "train_alone")
    assert [bool(line.penalties) for line in record.rounds] == [True, False, False, True, False]
    assert all(line.validation for line in record.rounds)
    verify_run(tmp_path)


@pytest.mark.parametrize("refresh", ["round_lagged", EVERY], ids=["lagged", "every"])
def test_strength_zero_is_fedavg_bit_by_bit(tmp_path, refresh):
    method = presets.flexfair(*({**one, "strength": 0.0} for one in FAIR), refresh=refresh, remeasure_own=2)
    fair = run_local(plan(method, rounds=4), four(), tmp_path / "fair")
    plain = run_local(plan(presets.FEDAVG, rounds=4), four(), tmp_path / "plain")
    assert fair.final.model_sha256 == plain.final.model_sha256


@pytest.mark.parametrize("refresh", ["round_lagged", EVERY], ids=["lagged", "every"])
@pytest.mark.parametrize("round_", [0, 1, 2, 3])
def test_a_run_goes_on_and_verifies_when_a_site_falls_silent(tmp_path, refresh, round_):
    the_plan = fair_plan(refresh, max_missed=2)
    record, _ = watched(the_plan, tmp_path, lost=("beryl", round_))
    assert record.status == "complete", record.reason
    verify_run(tmp_path)


@pytest.mark.parametrize("refresh", ["round", "round_lagged", EVERY], ids=["round", "lagged", "every"])
def test_the_own_part_measured_anew_changes_training_and_nothing_that_is_sent(tmp_path, refresh):
    frozen = run_local(fair_plan(refresh), four(), tmp_path / "frozen")
    fresh = run_local(fair_plan(refresh, remeasure_own=2), four(), tmp_path / "fresh")
    assert frozen.final.model_sha256 != fresh.final.model_sha256
    assert releases(tmp_path / "frozen") == releases(tmp_path / "fresh")
    verify_run(tmp_path / "fresh")


def releases(folder):
    lines = (folder / "sites" / "amber" / "releases.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "release"]


def test_one_site_that_measures_at_every_step_is_lock_step(tmp_path):
    """Alone, a site's own part is everything: remeasured before each full batch, it has the exact joint gradient."""
    alone = {"amber": four()["amber"]}
    changes = {
        "rounds": 2, "min_sites": 1, "work": {"unit": "steps", "amount": 4},
        "batch": {"unit": "batches_per_epoch", "amount": 1},
    }  # fmt: skip
    sex = presets.penalty("sex", "equalized_odds", 2.0)
    step = run_local(plan(presets.flexfair(sex, refresh="step"), **changes), alone, tmp_path / "step")
    fresh = run_local(plan(presets.flexfair(sex, remeasure_own=1), **changes), alone, tmp_path / "fresh")
    assert step.status == fresh.status == "complete"
    assert np.abs(vector(tmp_path / "step", step) - vector(tmp_path / "fresh", fresh)).max() <= 1e-6


def vector(folder, record):
    return read_model(folder, record.plan, record.final.model_sha256)


def test_totals_of_groups_that_are_held_back_stay_held_back(tmp_path):
    """Where too few sites report a group its total is zero, and a site's own fresh part must not come in its place."""
    the_plan = fair_plan("round", rounds=1, sites=5)
    site = Site("amber", the_plan, four()["amber"], tmp_path)
    site.handle(Message(JOIN, 0, 0, "s", the_plan.sha256))
    measures = site.layout.method.measures()
    own = site._measured_sums()
    kept = {measure: one.keep(the_plan.cells.sites) for measure, one in own.items()}
    for measure, total in unpack(measures, pack(measures, kept), the_plan.sizes).items():
        if measure.attribute != "hospital":
            assert not exchanged(total, own[measure], own[measure]).vector().any()


@pytest.mark.parametrize(
    ("refresh", "missed", "back"), [("round_lagged", 1, 2), (EVERY, 3, 4)], ids=["lagged", "every"]
)
def test_a_site_does_not_replace_a_part_that_is_not_in_the_totals(tmp_path, refresh, missed, back):
    """Back after a round that it missed, a site's last part is of an older model, and the totals are without it."""
    the_plan = fair_plan(refresh, remeasure_own=2, max_missed=3)
    sites = {name: Site(name, the_plan, load, tmp_path / name) for name, load in four().items()}
    known = {}
    for phase in Coordinator(the_plan, tmp_path / "server", Start("s", "local", {})).phases(sorted(sites)):
        message = phase.message
        for name in phase.targets:
            if name == "beryl" and message.round == missed and message.task != JOIN:
                continue
            spied = sites[name]._train

            def train(message, name=name, spied=spied):
                known[name, message.round] = bool(sites[name]._round.own)
                return spied(message)

            sites[name]._train = train
            answer(sites[name], phase)
            sites[name]._train = spied
    assert not known["beryl", back]
    assert known["amber", back]
    assert known["beryl", missed - 1] == (refresh != "round_lagged")
    assert ("beryl", missed) not in known


def test_risks_of_too_few_hospitals_are_not_sent_on(tmp_path):
    """A hospital with few records is in no sum, so four that take part may be two whose risks are added."""
    method = presets.flexfair(presets.penalty("hospital", "equal_accuracy", 1.0, weights="uniform"))
    data = json.loads(schema.pretty(plan(method, rounds=1, minimum=45, min_sites=4)))
    data["consents"] = []
    _, seen = watched(parse_plan(json.dumps(data)), tmp_path)
    measured = next(opened for message, opened, _ in seen if message.task == "measure")
    sent = next(message.vectors["totals"] for message, _, _ in seen if message.task == "train")
    assert measured["risk_sums"][1] == 2.0
    assert not sent.any()
