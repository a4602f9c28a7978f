# SPDX-License-Identifier: Apache-2.0
"""Masked jobs through the local engine: the same result as in clear, whoever drops out, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fairflare import presets
from fairflare.engine.local import answer, local_masks, local_record, run_local, software
from fairflare.engine.masked_coordinator import MaskedCoordinator
from fairflare.engine.messages import TRAINING_SUMS, Message
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Start
from fairflare.engine.site import Site
from fairflare.engine.store import read_model
from fairflare.engine.verify import verify_run
from fairflare.errors import RoundError, RunError, SecaggError
from fairflare.fairness.groups import HOSPITAL
from fairflare.record import read_record
from fairflare.secagg.envelope import UP, unpack
from fairflare.secagg.fixedpoint import StatisticsCodec
from tests.unit.engine.hospitals import PLAIN_SGD, four, hospital, image_plan, masked, plan, three_of_images

FAIR = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0))
LAGGED = {**FAIR, "refresh": "round_lagged"}
SOMETIMES = {**FAIR, "refresh": {"rounds": 2}}
HOSPITALS = presets.flexfair(presets.penalty(HOSPITAL, "equal_accuracy", 2.0, weights="uniform"))
METHODS = {"fedavg": presets.FEDAVG, "flexfair": FAIR, "lagged": LAGGED, "sometimes": SOMETIMES, "hospitals": HOSPITALS}
#: Of the model after four rounds: statistics are rounded to 2^-32, updates to 2^-26 of a weight of one.
STEP = 2e-6
LOSSES = len(TRAINING_SUMS)


def drive(the_plan, folder, fails=lambda site, message: False, loaders=None, session="session"):
    """Run a job; ``fails`` says who gives no answer to what."""
    loaders = loaders or four()
    sites = {
        name: Site(name, the_plan, load, folder / "sites" / name, None, local_masks(the_plan, name))
        for name, load in loaders.items()
    }
    coordinator = coordinator_of(the_plan, folder, Start(session, "local", software(), cipher=local_record(the_plan)))
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets:
            if fails(name, phase.message):
                phase.collector.refuse(name, "FF-TEST-ABSENT")
            else:
                answer(sites[name], phase)
    return coordinator.record, sites


def final(folder, record):
    return read_model(folder, record.plan, record.final.model_sha256)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("aggregation", ["records", "uniform"])
def test_masks_change_nothing_but_what_the_server_sees(tmp_path, method, aggregation):
    open_plan = plan(method, rounds=4, aggregation=aggregation, min_sites=4)
    hidden, clear = run_local(masked(open_plan), four(), tmp_path / "a"), run_local(open_plan, four(), tmp_path / "b")
    verify_run(tmp_path / "a")
    assert (hidden.status, clear.status) == ("complete", "complete")
    assert np.abs(final(tmp_path / "a", hidden) - final(tmp_path / "b", clear)).max() <= STEP
    assert [line.validation[0].records for line in hidden.rounds] == [
        line.validation[0].records for line in clear.rounds
    ]
    assert [line.records for line in hidden.rounds] == [line.records for line in clear.rounds]
    assert hidden.records == clear.records
    assert hidden.notices[0].startswith("unauthenticated identities")


def test_the_same_plan_gives_the_same_model_twice(tmp_path):
    first, second = (run_local(masked(plan(FAIR, rounds=2)), four(), tmp_path / name) for name in "ab")
    assert first.final.model_sha256 == second.final.model_sha256
    assert first.sessions[0].transcript != second.sessions[0].transcript


def test_the_record_shows_risks_with_three_decimals(tmp_path):
    record = run_local(masked(plan(FAIR, rounds=2)), four(), tmp_path)
    risks = [risk for line in record.rounds for penalty in line.penalties for risk in penalty.risk]
    assert len(risks) == 8
    assert all(abs(risk * 1000 - round(risk * 1000)) < 1e-9 for risk in risks)


def test_three_hospitals_of_images(tmp_path):
    equal = presets.penalty(HOSPITAL, "equal_accuracy", 2.0, utility="dice_loss", weights="uniform")
    open_plan = image_plan(presets.flexfair(equal), rounds=2)
    hidden = run_local(masked(open_plan), three_of_images(), tmp_path / "a")
    clear = run_local(open_plan, three_of_images(), tmp_path / "b")
    verify_run(tmp_path / "a")
    assert np.abs(final(tmp_path / "a", hidden) - final(tmp_path / "b", clear)).max() <= STEP


ONCE = {
    "measure": ("measure", {"measure": 3, "train": 3, "confirm": 3, "unmask": 3}, 0),
    "train": ("train", {"measure": 4, "train": 3, "confirm": 3, "unmask": 3}, 1),
    "confirm": ("confirm", {"measure": 4, "train": 4, "confirm": 3, "unmask": 3}, 1),
    "unmask": ("unmask", {"measure": 4, "train": 4, "confirm": 4, "unmask": 3}, 1),
}


@pytest.mark.parametrize(("task", "answers", "totals"), ONCE.values(), ids=ONCE)
def test_a_site_that_is_missing_once(tmp_path, task, answers, totals):
    """The round has the exact mean of the others; the site is back in the next one, with new keys.

    Without momentum: with masks, all optimisers start anew when somebody comes back.
    """
    open_plan = plan(FAIR, rounds=3, optimizer=PLAIN_SGD)
    absent = lambda site, message: site == "beryl" and message.task == task and message.round == 1  # noqa: E731
    record, _ = drive(masked(open_plan), tmp_path / "a", absent)
    verify_run(tmp_path / "a")
    line = record.rounds[1]
    assert {name: len(sites) for name, sites in line.participants.items()} == answers
    assert (line.totals, len(line.validation) > 0) == (totals, task != "measure")
    assert (line.train_loss is None) == (task in ("measure", "train"))
    assert set(record.rounds[2].participants) == {"keys", "share", "measure", "train", "confirm", "unmask"}
    assert all(len(sites) == 4 for sites in record.rounds[2].participants.values())
    if task in ("train", "confirm", "unmask"):  # the same survivors in clear
        gone = lambda site, message: absent(site, message) and task == "train"  # noqa: E731
        clear, _ = drive(open_plan, tmp_path / "b", gone)
        assert np.abs(final(tmp_path / "a", record) - final(tmp_path / "b", clear)).max() <= STEP


@pytest.mark.parametrize("method", [FAIR, LAGGED, SOMETIMES], ids=["round", "lagged", "sometimes"])
@pytest.mark.parametrize("task", ["train", "confirm", "unmask"])
def test_a_round_with_one_dropout_too_many_is_lost_and_the_next_one_goes_on(tmp_path, method, task):
    trains = {"train": ("train", "train_alone")}.get(task, (task,))
    absent = lambda site, message: site in ("beryl", "dune") and message.task in trains and message.round == 1  # noqa: E731
    record, _ = drive(masked(plan(method, rounds=4)), tmp_path, absent)
    verify_run(tmp_path)
    assert [(lost.round, lost.code) for lost in record.lost_rounds] == [(1, "FF-ROUND-QUORUM")]
    assert [line.round for line in record.rounds] == [0, 2, 3]
    assert record.rounds[0].model_sha256 not in {line.model_sha256 for line in record.rounds[1:]}


def test_a_site_that_never_comes_back(tmp_path):
    """The last statistics act for two rounds more, then none; nothing is evaluated, and every site gets the models."""
    absent = lambda site, message: site == "beryl" and message.round > 0  # noqa: E731
    record, _ = drive(masked(plan(FAIR, rounds=5)), tmp_path, absent)
    verify_run(tmp_path)
    assert [line.totals for line in record.rounds] == [0, 0, 0, None, None]
    assert [len(line.participants["train"]) for line in record.rounds] == [4, 3, 3, 3, 3]
    assert (record.status, record.final.test, record.final.confirmed) == ("complete", (), ("amber", "coral", "dune"))
    with pytest.raises(RunError, match="FF-RUN-WITHHELD"):
        record.evaluation("test")
    card = (tmp_path / "sites" / "amber" / "models" / "model_card.md").read_text(encoding="utf-8")
    assert "This model was not judged" in card


def test_optimisers_go_on_together_or_start_anew_together(tmp_path):
    """Momentum goes on while everybody trains; after a round that one site missed, nobody's does."""
    texts = {}

    def watch(site, message):
        if message.task == "train":
            texts[message.round] = message.text["optimizer"]
        return site == "beryl" and message.task == "train" and message.round == 2

    drive(masked(plan(FAIR, rounds=6)), tmp_path, watch)
    # beryl is asked again in round 3, for which nothing can go on; in round 2 it was asked as well.
    assert texts == {0: "reset", 1: "keep", 2: "keep", 3: "reset", 4: "keep", 5: "keep"}


def test_a_site_keeps_no_state_of_a_round_that_it_was_not_in(tmp_path):
    def change(message):
        return replace(message, text={**message.text, "optimizer": "keep"})

    codes, _ = hostile(tmp_path, "train", change, round_=0)
    assert codes[0] == "FF-SECAGG-OPTIMIZER"


def test_stale_statistics_stop_the_run_where_the_plan_says_so(tmp_path):
    the_plan = masked(plan(FAIR, rounds=4), max_stale=0, when_stale="stop")
    record, _ = drive(the_plan, tmp_path, lambda site, message: site == "beryl" and message.round == 1)
    assert record.reason.code == "FF-ROUND-STALE"
    assert len(record.rounds) == 1


@pytest.mark.parametrize("task", ["session", "prepare"])
def test_without_everybody_nothing_is_counted(tmp_path, task):
    record, _ = drive(masked(plan(FAIR, rounds=2)), tmp_path, lambda site, m: site == "beryl" and m.task == task)
    assert (record.reason.code, record.rounds, record.begun) == ("FF-ROUND-QUORUM", (), 0 if task == "session" else 1)
    assert "beryl: FF-TEST-ABSENT" in record.reason.text


def test_a_site_that_did_not_join_is_not_missed(tmp_path):
    record, _ = drive(masked(plan(FAIR, rounds=2)), tmp_path, lambda site, m: site == "beryl" and m.task == "join")
    verify_run(tmp_path)
    assert record.sessions[0].joined == ("amber", "coral", "dune")
    assert len(record.rounds) == 2


def test_two_sites_are_refused(tmp_path):
    record, _ = drive(
        masked(plan(FAIR, rounds=2)), tmp_path, loaders={name: four()[name] for name in ("amber", "dune")}
    )
    assert record.reason.code == "FF-ROUND-QUORUM"


def test_weights_are_rounded_records(tmp_path):
    """With a unit of 50, hospitals of 40, 64, 25 and 51 weigh 50, 50, 50 and 50."""
    coarse = run_local(masked(plan(presets.FEDAVG, rounds=2), weight_unit=50), four(), tmp_path / "a")
    equal = run_local(plan(presets.FEDAVG, rounds=2, aggregation="uniform"), four(), tmp_path / "b")
    assert np.abs(final(tmp_path / "a", coarse) - final(tmp_path / "b", equal)).max() <= STEP


# ------------------------------------------------------------------------------------------------- what the server sees


class Seen:
    """Every reply that reaches the server."""

    def __init__(self):
        self.replies = []

    def __call__(self, collector, site, reply):
        self.replies.append((site, reply))
        return self.accept(collector, site, reply)


@pytest.fixture
def seen(monkeypatch):
    from fairflare.engine.collector import Collector

    spy = Seen()
    spy.accept = Collector.accept
    monkeypatch.setattr(Collector, "accept", lambda collector, site, reply: spy(collector, site, reply))
    return spy


def test_the_server_gets_masked_words_and_nothing_else(tmp_path, seen):
    run_local(masked(plan(FAIR, rounds=2)), four(), tmp_path)
    words = {"update": np.uint32}
    for _, reply in seen.replies:
        for label, payload in reply.payloads.items():
            assert payload.weight is None
            assert payload.values.dtype == words.get(label, np.uint64)
        for item in unpack(reply.protocol, UP):
            assert item.kind in UP
    every = np.concatenate([p.values.view(np.uint8) for _, reply in seen.replies for p in reply.payloads.values()])
    counts = np.bincount(every, minlength=256)
    expected = every.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_sizes_say_nothing_about_data(tmp_path, seen):
    run_local(masked(plan(FAIR, rounds=1)), four(), tmp_path / "a")
    first, seen.replies = sizes(seen), []
    others = {name: (lambda n=n: hospital(n, n, 0.1)) for name, n in zip(four(), (90, 31, 77, 42), strict=True)}
    run_local(masked(plan(FAIR, rounds=1)), others, tmp_path / "b")
    assert sizes(seen) == first


def changed_by_one_site(tmp_path, monkeypatch, change):
    """A run in which ``change`` is made to what beryl sends in round 1; the code of its refusal, and the record."""
    from fairflare.engine.collector import Collector

    codes, accept = [], Collector.accept

    def spy(collector, site, reply):
        if site == "beryl" and reply.round == 1 and reply.payloads:
            reply = change(reply)
        try:
            accept(collector, site, reply)
        except (RoundError, SecaggError) as problem:
            codes.append(problem.code)
            raise

    monkeypatch.setattr(Collector, "accept", spy)
    return codes, run_local(masked(plan(FAIR, rounds=2)), four(), tmp_path)


def test_a_weight_in_clear_is_refused(tmp_path, monkeypatch):
    def told(reply):
        return replace(reply, payloads={k: replace(p, weight=64.0) for k, p in reply.payloads.items()})

    codes, record = changed_by_one_site(tmp_path, monkeypatch, told)
    assert codes == ["FF-ROUND-WEIGHT"]
    assert "beryl" not in record.rounds[1].participants["measure"]


def test_a_statistic_below_zero_is_not_opened(tmp_path, monkeypatch):
    """One site takes from the others' sums; under masks only the total can show it."""
    encode = StatisticsCodec.encode
    monkeypatch.setattr(
        StatisticsCodec, "encode", lambda codec, values: encode(codec, values - 1e6 * (values.size == LOSSES))
    )
    record = run_local(masked(plan(FAIR, rounds=2)), four(), tmp_path)
    assert (record.status, record.reason.code) == ("stopped", "FF-ROUND-RANGE")
    assert record.rounds == ()


def sizes(seen):
    return [
        (site, r.task, {k: p.values.nbytes for k, p in r.payloads.items()}, len(r.protocol)) for site, r in seen.replies
    ]


# --------------------------------------------------------------------------------------------------- hostile messages


def hostile(tmp_path, task, change, method=FAIR, rounds=2, round_=1):
    """Let the server change one task for one site; returns the code with which that site refuses, and the record."""
    the_plan, codes = masked(plan(method, rounds=rounds)), []
    sites = {
        name: Site(name, the_plan, load, tmp_path / name, None, local_masks(the_plan, name))
        for name, load in four().items()
    }
    coordinator = coordinator_of(the_plan, tmp_path / "server", Start("s", "local", {}))
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets:
            message = phase.message
            if (name, message.task, message.round) == ("beryl", task, round_):
                message = change(message)
            answer(sites[name], replace(phase, message=message))
        codes += [one.code for one in phase.collector.refusals if one.site == "beryl"]
    return codes, coordinator.record


def test_another_model_for_one_site_is_noticed(tmp_path):
    def change(message):
        return replace(message, vectors={"model": message.vectors["model"] + np.float32(1)})

    assert hostile(tmp_path / "a", "measure", change)[0][0] == "FF-ROUND-MODEL-DIGEST"

    def consistent(message):
        from fairflare.models import vector_sha256

        model = message.vectors["model"] + np.float32(1)
        return replace(message, vectors={"model": model}, text={"model_sha256": vector_sha256(model)})

    codes, record = hostile(tmp_path / "b", "measure", consistent)
    assert codes[0] == "FF-SECAGG-VIEW"
    assert [len(line.participants["train"]) for line in record.rounds] == [4, 3]


@pytest.mark.parametrize("text", [{"totals": "none"}, {"totals": "other"}, {}])
def test_the_server_cannot_switch_the_penalty_off(tmp_path, text):
    change = lambda message: replace(message, text={"model_sha256": message.text["model_sha256"], **text})  # noqa: E731
    codes, _ = hostile(tmp_path, "train", change)
    assert codes[0] == "FF-SECAGG-TOTALS"


def test_a_task_without_its_protocol_messages_gives_nothing(tmp_path):
    codes, _ = hostile(tmp_path, "train", lambda message: replace(message, protocol=b""))
    assert codes[0] in ("FF-SECAGG-STATE", "FF-SECAGG-TOTALS")


def test_a_plan_with_masks_needs_an_identity(tmp_path):
    with pytest.raises(RoundError, match="FF-ROUND-MASKS"):
        Site("amber", masked(plan(FAIR)), four()["amber"], tmp_path)


def test_protocol_messages_of_the_wrong_direction_are_refused(tmp_path):
    the_plan = masked(plan(FAIR))
    site = Site("amber", the_plan, four()["amber"], tmp_path, None, local_masks(the_plan, "amber"))
    release = site.handle(Message("join", 0, 0, "s", the_plan.sha256))
    with pytest.raises(SecaggError, match="FF-SECAGG-FORM"):
        site.handle(Message("session", 0, 0, "s", the_plan.sha256, protocol=release.protocol))


# ------------------------------------------------------------------------------------------------------------- resuming


def test_an_interrupted_round_is_lost_and_the_run_goes_on(tmp_path):
    """With the sites' memories as they were: whoever answered once does not answer again."""
    the_plan = masked(plan(FAIR, rounds=4))
    sites = {
        name: Site(name, the_plan, load, tmp_path / name, None, local_masks(the_plan, name))
        for name, load in four().items()
    }
    first = MaskedCoordinator(the_plan, tmp_path / "one", Start("s1", "local", software()))
    for phase in first.phases(sorted(sites)):
        for name in phase.targets:
            answer(sites[name], phase)
        if (phase.message.task, phase.message.round) == ("train", 1):
            break  # the server dies after the updates have reached it
    earlier = read_record(tmp_path / "one")
    assert (earlier.status, len(earlier.rounds), earlier.begun) == ("running", 1, 2)
    model = read_model(tmp_path / "one", the_plan, earlier.rounds[0].model_sha256)
    start = Start("s2", "local", software(), (earlier, model, "0" * 64), model)
    second = MaskedCoordinator(the_plan, tmp_path / "two", start)
    for phase in second.phases(sorted(sites)):
        for name in phase.targets:
            answer(sites[name], phase)
    record = second.record
    assert record.status == "complete", record.reason
    assert [(lost.round, lost.code) for lost in record.lost_rounds] == [(1, "FF-RUN-INTERRUPTED")]
    assert [line.round for line in record.rounds] == [0, 2, 3]
    verify_run(tmp_path / "two")


def test_a_site_does_not_answer_the_same_round_again(tmp_path):
    the_plan = masked(plan(FAIR, rounds=2))
    masks = {name: local_masks(the_plan, name) for name in four()}

    def run(session, folder):
        sites = {n: Site(n, the_plan, load, folder / n, None, masks[n]) for n, load in four().items()}
        coordinator = coordinator_of(the_plan, folder / "server", Start(session, "local", software()))
        for phase in coordinator.phases(sorted(sites)):
            for name in phase.targets:
                answer(sites[name], phase)
        return coordinator.record

    assert run("s1", tmp_path / "a").status == "complete"
    again = run("s2", tmp_path / "b")
    assert again.status == "stopped"
    assert "FF-SECAGG-REUSED" in json.dumps(again.reason.text)
