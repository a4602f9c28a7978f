# SPDX-License-Identifier: Apache-2.0
"""Attacks by arithmetic on methods: several sums of the same updates, from which a server works out one of them.

Its means: the same model again, controls and stories of its own, one colluding site, and what the method opens itself.
Each rule is tested twice: with it nothing comes out, without it the victim's numbers do. What no rule prevents is shown
as well, so that what the manual says of it stays true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare import schema
from fairflare.engine.cells import CellRule
from fairflare.engine.counted import CountedUpdates
from fairflare.engine.local import answer
from fairflare.engine.local_work import LocalWork
from fairflare.engine.masked_server import MaskedServer
from fairflare.engine.rounds import steps_of
from fairflare.engine.server import Phase
from fairflare.errors import PlanError, RoundError
from fairflare.fairness.groups import EVERYBODY, CellSums, unpack
from fairflare.methods import fairfed
from fairflare.methods.fairfed import FairFedSite
from fairflare.methods.scaffold import ScaffoldParameters
from fairflare.plan import Plan, parse_plan
from tests.attacks import test_engine
from tests.attacks.hostile import ONE_STEP, Hostile, cosine
from tests.attacks.test_engine import COLLUDER, ONE, OTHERS, VICTIM, TwoOpenings
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, four, masked, plan
from tests.unit.methods.contract import EQUAL_STEPS

LR, CLIP = 0.5, 16.0
NORM = 0.087
THREE = ("amber", VICTIM, COLLUDER)
RECORDS = {"amber": 40, "beryl": 64, "coral": 25, "dune": 51}
ALL = sum(RECORDS.values())
SHARE = {name: RECORDS[name] / sum(RECORDS[one] for one in THREE) for name in THREE}
SGD_STEP: dict[str, Any] = {"optimizer": {**PLAIN_SGD, "lr": LR}, **ONE_STEP}
SCAFFOLD = {"name": "scaffold", "global_lr": 1.0, "correction": "gradient", "control_lr": None, "control_clip": 64.0}
FEDNOVA = {"name": "fednova", "normalize": True}
FAIRFED = {
    "name": "fairfed", "beta": 5.0, "attribute": "sex", "criterion": "equal_accuracy", "gap": "difference",
    "first_round": "corrected", "min_weight": 0.5, "max_weight": 2.0,
}  # fmt: skip
Own = Mapping[tuple[str, str, int], np.ndarray]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, int], np.ndarray]:
    """What a site's method sends, before anything protects it, by site, vector and round."""
    found: dict[tuple[str, str, int], np.ndarray] = {}
    begin, finish = LocalWork.begin, LocalWork.finish
    now: dict[str, int] = {}

    def begins(work: LocalWork, message: Any, *arguments: Any) -> Any:
        now[work.name] = message.round
        return begin(work, message, *arguments)

    def finishes(work: LocalWork, update: np.ndarray, steps: int) -> Any:
        made = finish(work, update, steps)
        for label, one in made.items():
            found[work.name, label, now[work.name]] = one.values.astype(np.float64)
        found[work.name, "raw", now[work.name]] = update.astype(np.float64)
        found[work.name, "weight", now[work.name]] = np.array(made["update"].weight)
        return made

    monkeypatch.setattr(LocalWork, "begin", begins)
    monkeypatch.setattr(LocalWork, "finish", finishes)
    return found


def without_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the plan's rules for SCAFFOLD away."""
    monkeypatch.setattr(ScaffoldParameters, "conflicts", lambda self, setting: iter(()))


def with_consents(the_plan: Plan, *consents: str, **changes: Any) -> Plan:
    data = json.loads(schema.pretty(the_plan))
    return parse_plan(json.dumps({**data, "consents": [*data["consents"], *consents], **changes}))


# --------------------------------------------------------------------- SCAFFOLD: updates and controls of the same round


def test_with_equal_steps_the_sum_of_controls_follows_from_the_sum_of_updates(tmp_path: Path, own: dict) -> None:
    job = Hostile(masked(plan(SCAFFOLD, rounds=3, optimizer={**PLAIN_SGD, "lr": LR}, **EQUAL_STEPS)), tmp_path)
    size = job.start.size
    job.controls = {number: np.full(size, 0.01 * number) for number in range(3)}
    job.models = {number: job.start * (1 + number) for number in range(3)}
    job.attack()
    assert not job.refused
    for number, sums in job.sums.items():
        follows = -job.controls[number] - sums["update"] / (4 * LR)
        # One step of each of both codecs, per site: 2^-26 and 2^-24 over shares that add up to one.
        assert np.abs(sums["controls"] - follows).max() < 4 * (2.0**-24 + 2.0**-26 / (4 * LR)) + 1e-6


DIFFERENT = {"optimizer": {**PLAIN_SGD, "lr": LR}, "work": {"unit": "epochs", "amount": 1},
             "batch": {"unit": "records", "amount": 16}}  # fmt: skip


def test_with_different_steps_server_and_colluder_work_out_both_others(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_conflicts(monkeypatch)
    the_plan = masked(plan(SCAFFOLD, rounds=1, **DIFFERENT))
    job = Hostile(the_plan, tmp_path, THREE)
    job.attack()
    steps = {name: steps_of(the_plan, RECORDS[name]) for name in THREE}
    assert steps["amber"] != steps[VICTIM]
    # The colluder takes its own part out of both sums: two equations for two updates.
    updates = job.sums[0]["update"] - SHARE[COLLUDER] * own[COLLUDER, "update", 0]
    controls = -LR * (job.sums[0]["controls"] - SHARE[COLLUDER] * own[COLLUDER, "controls", 0])
    for name, other in (("amber", VICTIM), (VICTIM, "amber")):
        part = (controls - updates / steps[other]) / (1 / steps[name] - 1 / steps[other])
        secret = own[name, "update", 0]
        assert np.abs(part / SHARE[name] - secret).max() < 1e-4 * np.abs(secret).max()


#: Every way to a plan whose two sums are different sums of the same updates.
ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no consent": (DIFFERENT, {}, []),
    "another consent": (DIFFERENT, {}, ["open_hospital_risks", "pair_sums_of_three_hospitals"]),
    "two honest sites": (DIFFERENT, {}, ["second_sum_of_updates"]),
    "norm, no consent": (EQUAL_STEPS, {"norm_clip": 1.0}, []),
    "norm, two honest sites": (EQUAL_STEPS, {"norm_clip": 1.0}, ["second_sum_of_updates"]),
    "epochs": ({"work": {"unit": "epochs", "amount": 3}, "batch": {"unit": "records", "amount": 4096}}, {}, []),
}


@pytest.mark.parametrize("correction", ["gradient", "after_step"])
@pytest.mark.parametrize("route", ROUTES)
def test_every_way_to_a_second_sum_is_refused(route: str, correction: str) -> None:
    training, masking, consents = ROUTES[route]
    allowed = plan({**SCAFFOLD, "correction": correction}, **{"optimizer": PLAIN_SGD, **training})
    with pytest.raises(PlanError, match="two different sums of the same updates"):
        with_consents(masked(with_consents(allowed, *consents), **masking))


def test_consent_and_three_honest_sites_allow_it() -> None:
    training = {"optimizer": PLAIN_SGD, **DIFFERENT, "min_sites": 4}
    assert masked(with_consents(plan(SCAFFOLD, **training), "second_sum_of_updates"))


def test_a_norm_makes_a_second_sum_that_shows_whose_update_was_scaled(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Honest server, nobody colludes: what was cut off the updates is still in the controls."""
    without_conflicts(monkeypatch)
    job = Hostile(masked(plan(SCAFFOLD, rounds=1, **SGD_STEP), norm_clip=NORM), tmp_path)
    job.attack()
    norms = {name: float(np.linalg.norm(own[name, "raw", 0])) for name in four()}
    assert [name for name in four() if norms[name] > NORM] == [VICTIM]
    cut = -LR * job.sums[0]["controls"] - job.sums[0]["update"]
    assert cosine(cut, own[VICTIM, "raw", 0]) > 0.9999


# ----------------------------------------------------------------- SCAFFOLD: the server says whose updates were counted


def _told(job: Hostile, how: str) -> None:
    everybody_else = dict.fromkeys(sorted({*OTHERS, COLLUDER}), 0)
    if how == "all but one":
        job.stories[1] = everybody_else
    elif how == "one is late":
        job.stories = {1: {}, 2: everybody_else}
    elif how == "a lost round":  # the victim is left out, nobody confirms, nothing is opened
        job.stories[1] = everybody_else
        job.absent = lambda name, phase: (
            phase.message.round == 0
            and ((name, phase.message.task) == (VICTIM, "train") or phase.message.task == "confirm")
        )


STORIES = {"all but one": 1, "one is late": 2, "a lost round": 1}


@pytest.mark.parametrize("how", STORIES)
def test_a_false_story_of_what_was_counted_is_refused(tmp_path: Path, own: dict, how: str) -> None:
    """With least sites of three or four: nobody's control moves apart from the others'."""
    job = Hostile(masked(plan(SCAFFOLD, rounds=1 + STORIES[how], max_missed=9, **SGD_STEP)), tmp_path)
    _told(job, how)
    job.attack()
    assert "FF-ROUND-COUNTED" in job.codes("amber", *OTHERS)
    for number, sums in job.sums.items():
        if number:
            assert cosine(sums["update"], own[VICTIM, "update", 0]) < 0.98


@pytest.mark.parametrize("how", ["all but one", "a lost round"])
def test_where_sites_believe_it_the_sum_is_the_victims_update(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The others take their gradients away from themselves, one does not: one more round of the same model."""
    monkeypatch.setattr(CountedUpdates, "verify", lambda *_: None)
    job = Hostile(masked(plan(SCAFFOLD, rounds=1 + STORIES[how], max_missed=9, **SGD_STEP)), tmp_path)
    _told(job, how)
    job.attack()
    secret = own[VICTIM, "update", 1] * RECORDS[VICTIM] / ALL
    assert np.abs(job.sums[1]["update"] - secret).max() < 1e-4 * np.abs(secret).max()


def test_a_site_that_did_not_help_to_open_a_sum_does_not_go_on_from_it(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps the agreement of the others from it: whether its control should move, it cannot know."""
    monkeypatch.setattr(MaskedServer, "show", lambda masks, sites: None)
    job = Hostile(masked(plan(SCAFFOLD, rounds=3, max_missed=9, **SGD_STEP)), tmp_path)
    job.absent = lambda name, phase: (name, phase.message.task, phase.message.round) == (VICTIM, "unmask", 0)
    job.attack()
    told = [(task, at, code) for name, task, at, code in job.refused if name == VICTIM]
    assert told == [("unmask", 0, "FF-TEST-ABSENT"), ("train", 1, "FF-ROUND-COUNTED"), ("train", 2, "FF-ROUND-COUNTED")]
    # To say that it was not counted is no way out: the others confirmed that it was.
    job = Hostile(masked(plan(SCAFFOLD, rounds=2, max_missed=9, **SGD_STEP)), tmp_path / "again")
    job.absent = lambda name, phase: (name, phase.message.task, phase.message.round) == (VICTIM, "unmask", 0)
    job.stories[1] = dict.fromkeys(sorted({*OTHERS, COLLUDER}), 0)
    job.attack()
    assert job.codes(*OTHERS) == {"FF-ROUND-COUNTED"}
    assert 1 not in job.sums


def tell_one_site_apart(folder: Path) -> Hostile:
    """All four are needed. In a round that is lost for it, only the victim is told that nothing was counted before."""
    job = Hostile(masked(plan(SCAFFOLD, rounds=3, min_sites=4, max_missed=9, **SGD_STEP)), folder)

    def act(name: str, phase: Phase) -> None:
        message = phase.message
        if (name, message.task, message.round) == (VICTIM, "train", 1):
            nothing = np.frombuffer(b"{}", dtype=np.uint8)
            message = replace(message, vectors={**message.vectors, "counted": nothing})
        answer(job.sites[name], replace(phase, message=message))

    job.attack(act)
    return job


def test_what_a_site_was_told_in_a_lost_round_it_is_not_told_otherwise_later(tmp_path: Path, own: dict) -> None:
    job = tell_one_site_apart(tmp_path)
    assert (VICTIM, "train", 2, "FF-ROUND-COUNTED") in job.refused
    assert set(job.sums) == {0}


def test_where_it_is_the_sum_of_all_four_is_the_victims_update(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedUpdates, "verify", lambda *_: None)
    job = tell_one_site_apart(tmp_path)
    secret = own[VICTIM, "update", 2] * RECORDS[VICTIM] / ALL
    assert np.abs(job.sums[2]["update"] - secret).max() < 1e-4 * np.abs(secret).max()


def test_what_was_counted_once_is_counted_for_ever() -> None:
    known = CountedUpdates()
    known.confirmed(0, ["amber", "beryl"])
    known.opened(0)
    known.verify({"amber": 0, "beryl": 0}, 1, "amber", 0)
    for told in ({}, {"amber": 0}, {"beryl": 0}, {"amber": 0, "beryl": 0, "coral": 0}):
        with pytest.raises(RoundError, match="FF-ROUND-COUNTED"):
            known.verify(told, 3, "amber", None)
    known.verify({"amber": 0, "beryl": 2, "coral": 1}, 3, "amber", None)
    with pytest.raises(RoundError, match="FF-ROUND-COUNTED"):
        known.verify({"amber": 1, "beryl": 2, "coral": 1}, 4, "amber", None)
    known.confirmed(4, ["amber", "beryl", "coral"])
    with pytest.raises(RoundError, match="outside the set"):
        known.verify(dict.fromkeys(("amber", "beryl", "coral", "dune"), 4), 5, "dune", None)


# --------------------------------------------------------------------- SCAFFOLD: the server says what the controls are


class Comparing(Hostile):
    """Controls that carry every update to the clip: what is cut off there depends on which sites are beyond it."""

    STEP = 3e-5

    def __init__(self, folder: Path, own: Own) -> None:
        super().__init__(masked(plan(SCAFFOLD, rounds=3, max_missed=9, **SGD_STEP)), folder, THREE)
        self.own = own
        self.stories = {number: {} for number in range(3)}  # nobody's own control moves

    def _told(self) -> dict[str, np.ndarray]:
        if self.round and 0 in self.sums:
            self.controls[self.round] = (CLIP - self._level(self.round)) / LR
        return super()._told()

    def _level(self, number: int) -> np.ndarray:
        """Minus the mean of the two honest updates, and a little more the second time."""
        both = self.sums[0]["update"] - SHARE[COLLUDER] * self.own[COLLUDER, "update", 0]
        return -both / (1 - SHARE[COLLUDER]) + (number - 1) * self.STEP

    def _below(self, number: int) -> np.ndarray:
        """Sum over the honest sites of p_s max(level + update, 0)."""
        level = self._level(number)
        all_ = self.sums[number]["update"] + CLIP
        return all_ - SHARE[COLLUDER] * np.maximum(level + self.own[COLLUDER, "update", 0], 0)

    def recovered(self) -> dict[str, np.ndarray]:
        first = self._below(1)
        slope = (self._below(2) - first) / self.STEP
        low = np.abs(slope - SHARE["amber"]) < np.abs(slope - SHARE[VICTIM])
        sign = {"amber": np.where(low, 1, -1), VICTIM: np.where(low, -1, 1)}
        return {name: sign[name] * first / SHARE[name] - self._level(1) for name in sign}


def test_controls_that_carry_updates_to_the_clip_are_refused(tmp_path: Path, own: dict) -> None:
    job = Comparing(tmp_path, own)
    job.attack()
    assert job.codes(*THREE) == {"FF-ROUND-INPUT"}
    assert set(job.sums) == {0}


def test_where_they_are_not_three_rounds_show_both_honest_updates(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWork, "_verify_reach", lambda *_: None)
    job = Comparing(tmp_path, own)
    job.attack()
    for name, found in job.recovered().items():
        assert cosine(found, own[name, "update", 0]) > 0.9999
    assert cosine(job.sums[0]["update"], own["amber", "update", 0]) < 0.95


def test_the_bound_of_controls_is_far_from_what_training_needs(tmp_path: Path) -> None:
    """Half of the clip: controls of updates that are clipped themselves."""
    reach = LR * 1
    edge = CLIP / 2 / reach
    for value, code in ((edge, set()), (np.nextafter(np.float32(edge), np.float32(99)), {"FF-ROUND-INPUT"})):
        job = Hostile(masked(plan(SCAFFOLD, rounds=1, **SGD_STEP)), tmp_path / f"{value}")
        job.controls[0] = np.full(job.start.size, value)
        job.attack()
        assert job.codes(*four()) == code


ADAM_STEP: dict[str, Any] = {"optimizer": {**ADAMW, "weight_decay": 0.0, "state": "reset"}, **ONE_STEP}
ADAM_SCAFFOLD = {**SCAFFOLD, "control_lr": 0.1}


def test_adamw_takes_no_controls_into_its_gradients_under_masks() -> None:
    with pytest.raises(PlanError, match="nearly the sign of gradient and control"):
        masked(plan(ADAM_SCAFFOLD, **ADAM_STEP))
    assert masked(plan({**ADAM_SCAFFOLD, "correction": "after_step"}, **ADAM_STEP))
    assert plan(ADAM_SCAFFOLD, **ADAM_STEP)


def test_where_it_does_the_server_finds_each_gradient_by_halving(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first step of AdamW is a sign, so each round says of each parameter which sites are above the control."""
    rounds, lr = 16, ADAM_STEP["optimizer"]["lr"]
    without_conflicts(monkeypatch)
    sgd = Hostile(masked(plan(SCAFFOLD, rounds=1, **SGD_STEP)), tmp_path / "sgd", THREE)
    sgd.attack()
    secret = -own[VICTIM, "update", 0] / LR
    job = Hostile(masked(plan(ADAM_SCAFFOLD, rounds=rounds, **ADAM_STEP)), tmp_path / "adam", THREE)
    low, high = np.full(secret.size, -0.25), np.full(secret.size, 0.25)
    job.stories = {number: {} for number in range(rounds)}
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)])
    inputs = job._told

    def told() -> dict[str, np.ndarray]:
        if job.round:
            mid = (low + high) / 2
            honest = (
                -job.sums[job.round - 1]["update"] / lr + SHARE[COLLUDER] * own[COLLUDER, "update", job.round - 1] / lr
            )
            sums = signs @ [SHARE["amber"], SHARE[VICTIM]]
            above = signs[np.abs(honest[:, None] - sums).argmin(axis=1), 1] > 0
            low[above], high[~above] = mid[above], mid[~above]
        job.controls[job.round] = -(low + high) / 2
        return inputs()

    job.coordinator._inputs = told
    job.attack()
    found = (low + high) / 2
    used = np.abs(secret) > 1e-6
    assert np.abs(found - secret)[used & (np.abs(secret) < 0.25)].max() < 1e-3
    assert cosine(found[used], secret[used]) > 0.9999


# ------------------------------------------------------------------------------------------------------------- FedNova


def test_fednova_shows_numbers_of_records_to_a_server_with_one_colluder_of_three(tmp_path: Path, own: dict) -> None:
    """Known, and said in the manual: the sum of p_s a_s is a sum of squares of records. Whose is whose stays open."""
    the_plan = masked(plan(FEDNOVA, rounds=1, **DIFFERENT))
    job = Hostile(the_plan, tmp_path, THREE)
    job.attack()
    total = sum(RECORDS[name] for name in THREE)
    rest, typical = total - RECORDS[COLLUDER], steps_of(the_plan, total / 3)
    opened = float(job.sums[0]["normalizer"][0])

    def expected(amber: int) -> float:
        sizes = (amber, rest - amber, RECORDS[COLLUDER])
        return sum(n * (steps_of(the_plan, n) / typical - 1) for n in sizes) / total

    able = [amber for amber in range(1, rest // 2 + 1) if abs(expected(amber) - opened) < 1e-5]
    assert RECORDS["amber"] in able
    assert len(able) <= 2


def test_fednova_opens_one_sum_of_updates(tmp_path: Path, own: dict) -> None:
    """Its second sum is one number that follows from records and steps; no update is in it."""
    job = Hostile(masked(plan(FEDNOVA, rounds=2, **DIFFERENT)), tmp_path)
    job.models[1] = job.start * 3
    job.attack()
    assert job.sums[0]["normalizer"].size == 1
    assert job.sums[0]["normalizer"][0] == pytest.approx(job.sums[1]["normalizer"][0], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- FairFed


def lie_in_lost_rounds(folder: Path, own: Own, method: dict[str, Any]) -> Hostile:
    """Three rounds in which the victim is told another sum of distances than the rest: none of them can be opened."""
    job = Hostile(masked(plan(method, rounds=4, max_missed=9, **SGD_STEP)), folder)

    def words(distance: float) -> np.ndarray:
        return np.array([int(distance * ONE), 0], dtype=np.int64).astype(np.uint64)

    lie = TwoOpenings(
        job, "distances", {VICTIM: lambda: words(3.0), **dict.fromkeys((*OTHERS, COLLUDER), lambda: words(-0.54))}
    )
    compared = job.coordinator._compared

    def not_in_the_last(number: int, cohort: Any) -> Any:
        return cohort if number == 3 else (yield from compared(number, cohort))

    job.coordinator._compared = not_in_the_last

    def act(name: str, phase: Phase) -> None:
        if phase.message.round < 3:
            lie(name, phase)
        else:
            answer(job.sites[name], phase)

    job.attack(act)
    return job


def test_distances_of_lost_rounds_move_no_weight(tmp_path: Path, own: dict) -> None:
    job = lie_in_lost_rounds(tmp_path, own, FAIRFED)
    assert set(job.sums) == {3}
    for name in four():
        assert own[name, "weight", 3] == pytest.approx(RECORDS[name] / ALL)


def test_where_they_do_the_sum_is_the_victims_update(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = FairFedSite.begin

    def settled(half: FairFedSite, assignment: Any) -> Any:
        made = begin(half, assignment)
        half._settled = half.weight
        return made

    monkeypatch.setattr(FairFedSite, "begin", settled)
    job = lie_in_lost_rounds(tmp_path, own, wide(monkeypatch))
    assert cosine(job.sums[3]["update"], own[VICTIM, "update", 3]) > 0.999
    assert own[VICTIM, "weight", 3] == 1.0


def wide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """FairFed with bounds that no plan may have."""
    monkeypatch.setattr(fairfed, "MOST_RATIO", 1000.0)
    return {**FAIRFED, "min_weight": 0.1, "max_weight": 4.0}


def test_a_server_that_repeats_its_model_sees_the_update_of_the_weight_that_moves_last(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known: this is what the consent to a second sum is about; nobody has to collude or to drop out."""
    the_plan = masked(plan({**wide(monkeypatch), "beta": 0.5}, rounds=16, **SGD_STEP))
    job = Hostile(the_plan, tmp_path)
    job.attack()
    assert not job.refused
    sums = [job.sums[number]["weight"] * job.sums[number]["update"] for number in range(16)]
    moved = [
        number for number in range(1, 16) if abs(job.sums[number]["weight"] - job.sums[number - 1]["weight"]) > 1e-6
    ]
    last = sums[moved[-1]] - sums[moved[-1] - 1]
    assert max(cosine(last, own[name, "update", 0]) for name in four()) > 0.9999


def test_no_weight_falls_below_its_bound(tmp_path: Path, own: dict) -> None:
    """With a large beta weights are at one of their bounds; the others' part is then a half of their share."""
    the_plan = masked(plan({**FAIRFED, "beta": 1000.0}, rounds=1, **SGD_STEP))
    job = Hostile(the_plan, tmp_path)
    job.attack()
    weights = {name: float(own[name, "weight", 0]) for name in four()}
    assert min(weights.values()) == pytest.approx(0.5 * RECORDS["coral"] / ALL)
    assert all(weights[name] >= 0.5 * RECORDS[name] / ALL * (1 - 1e-9) for name in four())


def test_of_three_each_hospital_knows_the_sum_of_the_other_distances(
    tmp_path: Path, own: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known: the attribute is no matter; a plan that compares sites needs four of them, or hospitals that agree."""
    told: dict[str, float] = {}
    compare = LocalWork.compare

    def watch(work: LocalWork, *arguments: Any) -> Any:
        made = compare(work, *arguments)
        told[work.name] = float(made["distances"].values[0])
        return made

    monkeypatch.setattr(LocalWork, "compare", watch)
    job = Hostile(masked(plan(FAIRFED, rounds=1, **SGD_STEP)), tmp_path, THREE)
    job.attack()
    found = job.masks("amber")._distances
    assert found is not None
    assert float(found[1][0]) - told["amber"] == pytest.approx(told[VICTIM] + told[COLLUDER], abs=1e-8)


# ------------------------------------------------------------------------------------------------------- small groups


SMALL = {"minimum": 11, "sites": 2, "min_sites": 4}


@pytest.mark.parametrize("gap", ["difference", "one_vs_overall"])
@pytest.mark.parametrize("criterion", ["equal_accuracy", "demographic_parity", "equal_opportunity"])
def test_decisions_of_small_groups_are_not_opened(tmp_path: Path, criterion: str, gap: str) -> None:
    method = {**FAIRFED, "criterion": criterion, "gap": gap}
    job = Hostile(masked(plan(method, rounds=1, **SMALL, **SGD_STEP)), tmp_path)
    job.attack()
    assert not job.refused
    totals = job.masks(VICTIM)._totals
    assert totals is not None
    sums = unpack(job.coordinator.layout.method.measures(), totals, job.plan.sizes)
    shown = 0
    for one in sums.values():
        assert isinstance(one, CellSums)
        kept = one.count > 0
        shown += int(kept.sum())
        assert (one.sites[kept] >= 2).all()
        assert (one.count[kept] >= 11 * one.sites[kept]).all()
        assert not one.total[~kept].any()
        assert not one.sites[~kept].any()
    assert shown


def few_of_one_label() -> Mapping[str, Any]:
    """Two records of the first label at each site."""

    def load(name: str) -> Any:
        data = four()[name]()
        data.training.labels[:] = 1
        data.training.labels[:2] = 0
        data.training.groups["sex"][:] = np.arange(len(data.training)) % 2
        return data

    return {name: (lambda name=name: load(name)) for name in four()}


@pytest.mark.parametrize("gap", ["difference", "one_vs_overall"])
def test_decisions_of_everybody_do_not_give_the_other_label_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: str
) -> None:
    """Right decisions of all minus those among true positives are those of the true negatives: eight records."""
    monkeypatch.setattr(test_engine, "four", few_of_one_label)
    method = {**FAIRFED, "criterion": "equal_opportunity", "gap": gap}

    def others(folder: Path) -> float:
        job = Hostile(masked(plan(method, rounds=1, **SMALL, **SGD_STEP)), folder)
        job.attack()
        totals = job.masks(VICTIM)._totals
        assert totals is not None
        sums = unpack(job.coordinator.layout.method.measures(), totals, job.plan.sizes)
        counts = {(one.attribute, one.label): found.count.sum() for one, found in sums.items()}
        return counts[EVERYBODY, -1] - counts["sex", 1]

    assert others(tmp_path / "with") < 0
    monkeypatch.setattr(CellRule, "_left", lambda *_: None)
    assert others(tmp_path / "without") == 8


def test_a_site_is_shown_no_other_set_than_it_confirmed() -> None:
    known = CountedUpdates()
    known.confirmed(0, ["amber", "beryl"])
    known.confirmed(0, ["beryl", "amber"])  # once more, by a witness
    with pytest.raises(RoundError) as caught:
        known.confirmed(0, ["amber", "coral"])
    assert caught.value.code == "FF-ROUND-COUNTED"
