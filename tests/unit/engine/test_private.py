# SPDX-License-Identifier: Apache-2.0
"""Jobs with differential privacy through the local engine: what leaves, what is paid, and in which order."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from fairflare import presets, schema
from fairflare.data.manifest import SiteData
from fairflare.engine import private
from fairflare.engine.local import answer, local_account, local_masks, run_local, software
from fairflare.engine.masked import coarse_records
from fairflare.engine.masked_site import MaskedSite
from fairflare.engine.messages import MEASURE
from fairflare.engine.private import PrivateWork, most_weight
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.rounds import cleared
from fairflare.engine.server import Start
from fairflare.engine.site import Site
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.engine.verify import verify_run
from fairflare.errors import LedgerError, RoundError
from fairflare.fairness.groups import CellSums
from fairflare.plan import Plan, parse_plan
from fairflare.privacy import noise
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.bill import counting, measuring, sampling, training
from fairflare.privacy.dpsgd import Drawn
from fairflare.privacy.ledger import Account, Ledger
from fairflare.privacy.loss import Budget
from fairflare.privacy.release import SCALE
from tests.unit.engine.hospitals import hospital, masked, plan, three_of_images

SIZES = {"amber": 60, "beryl": 90, "coral": 45, "dune": 80}
FAIR = {
    **presets.flexfair(presets.penalty("sex", "equal_accuracy", 2.0)), "min_weight": 0.0, "max_weight": 3.0,
    "utility_clip": 4.0,
}  # fmt: skip
GROUPS = {"noise_multiplier": 2.0, "groups_per_unit": 1, "shared": False}
METHODS = {"fedavg": (presets.FEDAVG, None), "flexfair": (FAIR, GROUPS), "shared": (FAIR, {**GROUPS, "shared": True})}


def loaders(sizes=SIZES):
    return {
        name: (lambda n=n, place=place: hospital(n, 100 * place, 0.3 * place))
        for place, (name, n) in enumerate(sizes.items())
    }


def private_plan(
    method=FAIR, groups=GROUPS, *, rounds: int = 3, batches: int = 4, sigma: float = 0.7, **changes
) -> Plan:
    privacy = {
        "clip": 1.0, "noise_multiplier": sigma, "count_noise": 3.0, "records_per_unit": 1, "gradients": "hooks",
        "groups": groups,
    }  # fmt: skip
    data = json.loads(schema.pretty(masked(plan(method, rounds=rounds))))
    data["differential_privacy"] = {**privacy, **changes.pop("privacy", {})}
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": batches}
    data["training"].update(changes.pop("training", {}))
    data["consents"] = ["shared_noise"] if groups is not None and groups["shared"] else []
    data.update(changes)
    return parse_plan(json.dumps(data))


def ledger_of(folder, site: str) -> Ledger:
    return Ledger(folder / "sites" / site / "ledger.sqlite")


def drive(the_plan, folder, budgets=None, watch=lambda site, message: None, session="session"):
    """Run a job; ``budgets``: of single sites."""
    sites = {
        name: site_of(
            name, the_plan, load, folder / "sites" / name, None, local_masks(the_plan, name),
            local_account(the_plan, folder / "sites" / name, (budgets or {}).get(name)),
        )
        for name, load in loaders().items()
    }  # fmt: skip
    coordinator = coordinator_of(the_plan, folder, Start(session, "local", software()))
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets:
            watch(name, phase.message)
            answer(sites[name], phase)
    return coordinator.record


@pytest.mark.parametrize("name", METHODS)
def test_a_job_ends_and_its_record_holds_together(tmp_path, name):
    the_plan = private_plan(*METHODS[name])
    record = run_local(the_plan, loaders(), tmp_path)
    assert record.status == "complete", record.reason
    verify_run(tmp_path)
    assert [line.train_loss for line in record.rounds] == [None] * 3
    assert [line.records for line in record.rounds] == [None] * 3
    assert record.sessions[0].records["opted_out"] == 0
    groups = [] if name == "fedavg" else ["sex/all/cross_entropy"]
    wanted = [(0, "units"), *((0, f"{one} counts{', noise shared' * (name == 'shared')}") for one in groups)]
    for number in range(3):
        wanted += [
            (number, "model"),
            *((number, f"{one} sums{', noise shared' * (name == 'shared')}") for one in groups),
        ]
    for site in SIZES:
        found = [(one.release.round, one.release.what) for one in ledger_of(tmp_path, site).entries()]
        assert found == wanted


def test_the_ledger_says_what_dp_accounting_says_of_what_was_done(tmp_path):
    """Epsilon of a whole job, and of a second one on the same ledgers, by a composition written out here."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    the_plan = private_plan(sigma=1.1)
    for number in (1, 2):
        drive(the_plan, tmp_path, session=f"session{number}")
        accountant = PLDAccountant()
        steps = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.1))
        accountant.compose(steps, 3 * 4 * number)
        accountant.compose(dp_event.GaussianDpEvent(3.0), number)  # the number of units
        accountant.compose(dp_event.GaussianDpEvent(2.0), 4 * number)  # counts once, sums in three rounds
        expected = accountant.get_epsilon(1e-5)
        assert ledger_of(tmp_path, "amber").epsilon(1e-5).value == pytest.approx(expected, rel=0.005)


def test_without_noise_and_clip_it_is_plain_training(tmp_path, monkeypatch):
    """Weights, factors, shares, group sums: all of it is that of the job without differential privacy."""
    monkeypatch.setattr(noise, "add_gaussian", lambda values, deviation: values)
    monkeypatch.setattr(noise, "discrete_gaussian", lambda count, variance: np.zeros(count, dtype=np.int64))
    monkeypatch.setattr("fairflare.engine.rounds._CLEAR", 0.0)
    for name, (method, groups) in METHODS.items():
        hidden = private_plan(method, groups, batches=1, privacy={"clip": 1e6})
        open_plan = json.loads(schema.pretty(hidden))
        open_plan["differential_privacy"], open_plan["consents"] = None, []
        clear = parse_plan(json.dumps(open_plan))
        models = []
        for place, one in enumerate((hidden, clear)):
            record = run_local(one, loaders(), tmp_path / name / str(place))
            models.append(read_model(tmp_path / name / str(place), one, record.final.model_sha256))
        assert np.abs(models[0] - models[1]).max() < 2e-5
        if groups is not None:  # fairness did act
            plain = run_local(
                private_plan(*METHODS["fedavg"], batches=1, privacy={"clip": 1e6}), loaders(), tmp_path / "p"
            )
            assert np.abs(models[0] - read_model(tmp_path / "p", plain.plan, plain.final.model_sha256)).max() > 1e-3


def test_everything_is_paid_before_anything_is_drawn(tmp_path, monkeypatch):
    """At the first random number of a session, of a round's sums and of its steps, the ledger has them on disk."""
    the_plan = private_plan()
    site, drawn = {"name": ""}, []

    def seen(kind, draw):
        def watched(*args):
            if kind == "chosen" and args[0] == 0:  # nobody is asked, to see whether the rate is one
                return draw(*args)
            drawn.append((kind, [one.release.what for one in ledger_of(tmp_path, site["name"]).entries()]))
            return draw(*args)

        return watched

    for kind in ("discrete_gaussian", "add_gaussian", "chosen"):
        monkeypatch.setattr(noise, kind, seen(kind, getattr(noise, kind)))
    drive(the_plan, tmp_path, watch=lambda name, message: site.update(name=name))
    assert drawn[0] == ("discrete_gaussian", ["units", "sex/all/cross_entropy counts"])
    steps = [paid for kind, paid in drawn if kind == "chosen" and paid]
    assert len(steps) >= 4 * 3 * 4
    assert all(paid[-2:] == ["model", "sex/all/cross_entropy sums"] for paid in steps)
    assert {len(paid) for paid in steps} == {4, 6, 8}
    sums = [paid for kind, paid in drawn if kind == "discrete_gaussian" and len(paid) > 2]
    assert len(sums) == 4 * 3


def test_a_site_that_cannot_afford_the_next_round_says_so_and_does_not_train(tmp_path, monkeypatch):
    the_plan = private_plan(rounds=4, sigma=1.0)
    drawn, bill = sampling(the_plan, 1), the_plan.differential_privacy
    two = [how for _, how in counting(the_plan, bill)]
    two += 2 * [how for _, how in (training(bill, drawn), *measuring(the_plan, bill))]
    budget = Budget(epsilon(two, 1e-5).value + 0.01, 1e-5)
    trained = []
    monkeypatch.setattr(
        Trainer, "record_losses",
        lambda self, round_, *rest, losses=Trainer.record_losses: (
            trained.append((self.site, round_)), losses(self, round_, *rest),
        )[1],
    )  # fmt: skip
    record = drive(the_plan, tmp_path, {"coral": budget})
    assert record.status == "complete", record.reason
    refusals = {(line.round, one.site, one.task, one.code) for line in record.rounds for one in line.refusals}
    assert refusals == {(2, "coral", MEASURE, "FF-LEDGER-BUDGET"), (3, "coral", MEASURE, "FF-LEDGER-BUDGET")}
    assert {round_ for site, round_ in trained if site == "coral"} == {0, 1}
    assert len(ledger_of(tmp_path, "coral").entries()) == 2 + 2 * 2
    assert ledger_of(tmp_path, "coral").epsilon(1e-5).value <= budget.epsilon


def test_a_site_without_any_budget_left_takes_no_part(tmp_path):
    record = drive(private_plan(), tmp_path, {"coral": Budget(0.01, 1e-5)})
    assert record.status == "stopped"
    assert "coral: FF-LEDGER-BUDGET" in record.reason.text
    assert ledger_of(tmp_path, "coral").entries() == ()


def test_no_exact_number_of_training_units_leaves(tmp_path, monkeypatch):
    """With a lot of noise the sums that are opened, and the weights, are far from the exact ones; here and there."""
    told = []
    monkeypatch.setattr(
        MaskedSite, "prepare",
        lambda self, *data, prepare=MaskedSite.prepare: told.append(prepare(self, *data)) or told[-1],
    )  # fmt: skip
    the_plan = private_plan(privacy={"count_noise": 5000.0, "groups": {**GROUPS, "noise_multiplier": 5000.0}})
    record = drive(the_plan, tmp_path)
    exact = list(SIZES.values())
    found = [int(one["counts"].values[0]) for one in told]
    assert all(one != other for one, other in zip(found, exact, strict=True))  # alike once in ten thousand times
    unit = the_plan.protection.masking.weight_unit
    assert [int(one["counts"].values[4]) for one in told] == [coarse_records(one, unit) for one in found]
    assert [one["counts"].values[3] for one in told] == [0.0] * 4
    assert record.sessions[0].records["training"] == sum(found)
    assert record.sessions[0].records["validation"] == sum(n // 3 for n in exact)


def test_all_that_depends_on_the_number_of_units_follows_from_the_noised_one(tmp_path, monkeypatch):
    """Batches, steps, what a sum is divided by, and the factor of fairness: each could give the exact number away."""
    loud = private_plan(privacy={"count_noise": 5000.0}, training={"batch": {"unit": "records", "amount": 50}})
    one = work(loud, hospital(60, 4))
    while abs(one.counted.units - 60) < 200:
        one = work(loud, hospital(60, 4))
    units = one.counted.units
    assert (one.drawing.q, one.drawing.steps) == (min(1.0, 50 / units), math.ceil(units / 50))
    assert (
        one._private(Trainer(loud, "amber", hospital(60, 4).training), one.drawing).mechanism.expected
        == one.drawing.q * units
    )
    told, used = [], []
    monkeypatch.setattr(
        MaskedSite, "prepare",
        lambda self, *data, prepare=MaskedSite.prepare: told.append(data[1].units) or prepare(self, *data),
    )  # fmt: skip
    monkeypatch.setattr(
        Site, "_factor",
        lambda self, message, behind, factor=Site._factor: used.append(behind) or factor(self, message, behind),
    )  # fmt: skip
    drive(private_plan(rounds=1, privacy={"count_noise": 500.0}), tmp_path)
    assert used == told
    assert used != list(SIZES.values())


def test_group_counts_and_sums_are_noised_and_the_same_counts_all_session(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        PrivateWork, "sums",
        lambda self, scores, sums=PrivateWork.sums: found.append((self, sums(self, scores))) or found[-1][1],
    )  # fmt: skip
    drive(private_plan(), tmp_path)
    for site in {id(work) for work, _ in found}:
        rounds = [next(iter(sums.values())) for work, sums in found if id(work) == site]
        assert len(rounds) == 3
        assert all(np.array_equal(one.count, rounds[0].count) for one in rounds)
        assert all(np.array_equal(one.count, np.rint(one.count)) for one in rounds)
        assert len({one.total.tobytes() for one in rounds}) == 3
    exact = [np.bincount(work._records.groups["sex"] + 1, minlength=3)[1:] for work, _ in found[:4]]
    assert any((next(iter(sums.values())).count != one).any() for one, (_, sums) in zip(exact, found, strict=False))


def test_a_small_group_is_left_out_by_its_noised_count(monkeypatch):
    """The site's minimum holds for the noised count with a margin: 11, and 3.09 deviations of 2."""
    the_plan = private_plan(cells={"minimum": 11, "sites": 1})
    monkeypatch.setattr(noise, "discrete_gaussian", lambda count, variance: np.zeros(count, dtype=np.int64))
    data = hospital(80, 3)
    few = np.flatnonzero(data.training.groups["sex"] == 1)[:17]
    for left, kept in ((18, True), (17, False)):
        chosen = np.flatnonzero(data.training.groups["sex"] == 0)
        records = data.training.take(np.concatenate([chosen, few[: left - 1], few[:1]]))
        account = Account(Ledger(a_file()), None, "job")
        counted = PrivateWork(the_plan, records, account).begin_session(0, 4)
        assert next(iter(counted.kept.values())).tolist() == [kept, kept]  # the other one would give it away


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.unit.engine.test_private.FOLDER", tmp_path)


FOLDER = None
NUMBER = [0]


def a_file():
    NUMBER[0] += 1
    return FOLDER / f"ledger{NUMBER[0]}.sqlite"


def work(the_plan: Plan, data: SiteData, sites: int = 4) -> PrivateWork:
    made = PrivateWork(the_plan, data.training, Account(Ledger(a_file()), None, "job"))
    made.begin_session(0, sites)
    return made


def test_what_was_not_paid_is_refused():
    """Neither sums nor steps twice for one payment, nor sums of a round that measures nothing."""
    the_plan, data = private_plan(), hospital(40, 1)
    one, trainer = work(the_plan, data), Trainer(private_plan(), "amber", hospital(40, 1).training)
    scores = trainer.scores(data.training)
    terms = presets_terms()
    for call in (lambda: one.sums(scores), lambda: one.train(trainer, 0, terms, nothing)):
        with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
            call()
    one.begin_round(0, measured=True)
    one.sums(scores)
    assert one.train(trainer, 0, terms, nothing) == 4
    for call in (lambda: one.sums(scores), lambda: one.train(trainer, 0, terms, nothing)):
        with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
            call()
    one.begin_round(1, measured=False)
    with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
        one.sums(scores)
    steps = one._private(trainer, one.drawing)
    for left in range(4, -1, -1):
        if left == 0:
            with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
                steps.step(np.ones(40), private._losses(trainer, 1, left))
        else:
            steps.step(np.ones(40), private._losses(trainer, 1, left))
    assert steps.steps == 4


def test_a_batch_is_drawn_at_the_rate_that_was_paid(monkeypatch):
    """A server that asks for the session's numbers anew between payment and training moves nothing."""
    monkeypatch.setattr(noise, "discrete_gaussian", lambda count, variance: np.zeros(count, dtype=np.int64))
    rates, data = [], hospital(40, 1)
    the_plan = private_plan(*METHODS["fedavg"], training={"batch": {"unit": "records", "amount": 5}})
    one = work(the_plan, data)
    one.begin_round(0, measured=False)
    paid = one._account.ledger.entries()[-1].release.mechanism
    with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
        one.begin_session(0, 4)
    assert len(one._account.ledger.entries()) == 2
    one._counted = replace(one.counted, units=6)  # whatever else might change it
    monkeypatch.setattr(noise, "chosen", lambda count, rate: rates.append(rate) or np.zeros(count, dtype=np.bool_))
    assert one.train(Trainer(the_plan, "amber", data.training), 0, presets_terms(), nothing) == paid.steps
    assert set(rates) == {paid.q}


def nothing() -> None:
    pass


def presets_terms():
    from fairflare.methods import SampleTerms

    return SampleTerms()


def test_a_round_before_the_sessions_numbers_is_refused_and_not_paid():
    file = a_file()
    one = PrivateWork(private_plan(), hospital(40, 1).training, Account(Ledger(file), None, "job"))
    with pytest.raises(RoundError, match="FF-ROUND-NOT-JOINED"):
        one.begin_round(0, measured=True)
    assert not file.exists()


def test_a_payment_that_fails_leaves_nothing_of_the_last_one():
    one = work(private_plan(), hospital(40, 1))
    one.begin_round(0, measured=True)
    one._account = replace(one._account, budget=Budget(0.1, 1e-5))
    with pytest.raises(LedgerError, match="FF-LEDGER-BUDGET"):
        one.begin_round(1, measured=True)
    trainer = Trainer(private_plan(), "amber", hospital(40, 1).training)
    with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
        one.train(trainer, 1, presets_terms(), nothing)


def test_shared_noise_has_the_variance_that_the_honest_sites_owe():
    """Four sites of which one may collude: three parts together are the whole noise."""
    shared = private_plan(FAIR, {**GROUPS, "shared": True})
    for the_plan, sharing in ((private_plan(), 1), (shared, 3)):
        settings = private.group_noise(the_plan, 4)
        assert settings.sharing == sharing
        assert settings.deviation(sharing) == pytest.approx(2.0)
    assert private.group_noise(shared, 5).sharing == 4


def test_a_server_that_asks_again_or_sends_another_model_makes_nobody_pay(tmp_path):
    """It can break off sessions, each of which is paid for; within one it gets what was paid for, once."""
    the_plan, asked = private_plan(), []
    sites = {
        name: site_of(
            name, the_plan, load, tmp_path / "sites" / name, None, local_masks(the_plan, name),
            local_account(the_plan, tmp_path / "sites" / name),
        )
        for name, load in loaders().items()
    }  # fmt: skip
    coordinator = coordinator_of(the_plan, tmp_path, Start("session", "local", software()))
    for phase in coordinator.phases(sorted(sites)):
        for name in phase.targets:
            answer(sites[name], phase)
        if phase.message.task == MEASURE:
            again = replace(phase.message, protocol=b"")
            other = replace(again, round=again.round + 1, vectors={"model": again.vectors["model"] + 1})
            for message, code in ((again, "REPEAT"), (other, "MODEL-DIGEST"), (replace(other, round=9), "ROUND")):
                paid = len(ledger_of(tmp_path, "amber").entries())
                with pytest.raises(RoundError, match=f"FF-ROUND-{code}"):
                    sites["amber"].handle(message)
                assert len(ledger_of(tmp_path, "amber").entries()) == paid
                asked.append(code)
            break
    assert len(asked) == 3


def test_a_restart_pays_again(tmp_path):
    the_plan = private_plan(rounds=1)
    drive(the_plan, tmp_path)
    once = len(ledger_of(tmp_path, "dune").entries())
    drive(the_plan, tmp_path, session="another")
    assert len(ledger_of(tmp_path, "dune").entries()) == 2 * once


def test_patients_and_not_records_are_counted_and_drawn(monkeypatch):
    data = hospital(60, 4)
    training_ = replace(data.training, patients=np.arange(60, dtype=np.int64) // 3)
    monkeypatch.setattr(noise, "discrete_gaussian", lambda count, variance: np.zeros(count, dtype=np.int64))
    the_plan = private_plan(privacy={"records_per_unit": 2}, training={"batch": {"unit": "records", "amount": 5}})
    one = work(the_plan, replace(data, training=training_))
    assert one.counted.units == 20
    assert one.drawing.q == 0.25
    assert one.drawing.steps == 4
    counts = next(iter(one.counted.groups.values()))[0]
    sex = data.training.groups["sex"]
    assert counts.sum() <= 20  # a patient of two groups counts in one
    assert counts.sum() >= np.unique(training_.patients[sex >= 0]).size
    sampler = one._private(Trainer(the_plan, "amber", training_), one.drawing).sampler
    assert (sampler.units, sampler.records, sampler.cap) == (20, 60, 2)
    batch = sampler.draw()
    patients, each = np.unique(training_.patients[batch.records], return_counts=True)
    assert each.max(initial=2) == 2
    assert 0 <= patients.size <= 20


def test_groups_that_noise_alone_could_be_are_left_out():
    the_plan = private_plan()  # noise of 2 at each of four sites: 4 together
    sums = CellSums(np.array([90.0, -5.0, 70.0]), np.array([13.0, 40.0, 12.0]), np.array([4.0, 4.0, 4.0]))
    found = cleared(the_plan, sums)
    assert found.count.tolist() == [13.0, 40.0, 0.0]
    assert found.total.tolist() == [4.0 * 13, 0.0, 0.0]  # no risk is above 4, or below 0
    assert found.sites.tolist() == [4.0, 4.0, 0.0]
    shared = cleared(private_plan(FAIR, {**GROUPS, "shared": True}), sums)
    assert shared.count.tolist() == [13.0, 40.0, 12.0]  # together 4 parts of a third: 2.3
    clear = parse_plan(json.dumps({**json.loads(schema.pretty(the_plan)), "differential_privacy": None}))
    assert cleared(clear, sums) is sums


def test_the_bound_of_weights_holds_whatever_the_class():
    the_plan = private_plan(training={"class_weights": [0.5, 2.0]}, method={**FAIR, "min_weight": 0.5})
    assert most_weight(the_plan) == 4.0
    assert most_weight(private_plan(*METHODS["fedavg"])) == 1.0


@pytest.mark.parametrize(
    ("own", "most", "least"), [(0.69, 3.66, 0.4), (3.84, 1.02, 0.0), (0.01, 2.0, 0.99), (0.05, 2.0, 0.95)]
)
def test_no_record_at_a_bound_of_its_weight_is_refused(own, most, least):
    """Rounding must not put a weight outside of its range: a refusal would tell that there is such a record."""
    from fairflare.methods import SampleTerms

    fair = {**FAIR, "min_weight": least, "max_weight": most}
    the_plan = private_plan(method=fair, training={"class_weights": [own, own]})
    data, trainer = hospital(40, 1), Trainer(the_plan, "amber", hospital(40, 1).training)
    for bound in (least - 1.0, most - 1.0):  # as the method computes them
        one = work(the_plan, data)
        one.begin_round(0, measured=True)
        assert one.train(trainer, 0, SampleTerms({"cross_entropy": np.full(40, bound)}), nothing) == 4


def test_the_number_of_units_has_the_noise_that_is_accounted():
    """Normal noise, rounded afterwards. Whole-number noise costs up to 5 % more than the normal one of its width."""
    drawn = []

    def seen(count, variance):
        drawn.append((count, variance))
        return np.full(count, 3 * SCALE // 2 + 1, dtype=np.int64)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(noise, "discrete_gaussian", seen)
        one = work(private_plan(*METHODS["fedavg"], privacy={"count_noise": 0.7}), hospital(40, 1))
    assert drawn == [(1, Fraction(0.7) ** 2 * SCALE**2)]
    assert one.counted.units == 42


def test_a_model_that_cannot_be_trained_so_is_refused_before_data_are_read(tmp_path, monkeypatch):
    """A layer that works in place: Opacus cannot take it apart."""
    broken = torch.nn.Sequential(torch.nn.Linear(26, 4), torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 2))
    monkeypatch.setattr("fairflare.engine.private_site.build", lambda _: broken)
    monkeypatch.setattr("fairflare.engine.trainable.load_trainable", lambda *_: pytest.fail("read"))
    record = drive(private_plan(), tmp_path)
    assert record.status == "stopped"
    assert {one.code for one in record.sessions[0].join_refusals} == {"FF-PRIVACY-MODEL"}


def test_a_site_without_a_ledger_takes_no_part(tmp_path):
    the_plan = private_plan()
    with pytest.raises(LedgerError, match="FF-LEDGER-NONE"):
        site_of("amber", the_plan, lambda: hospital(40, 1), tmp_path, None, local_masks(the_plan, "amber"))


def test_fedprox_pulls_after_the_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "add_gaussian", lambda values, deviation: values)
    monkeypatch.setattr(noise, "discrete_gaussian", lambda count, variance: np.zeros(count, dtype=np.int64))
    models = []
    for place, privacy in enumerate((True, False)):
        one = private_plan({"name": "fedprox", "mu": 0.5}, None, batches=1, privacy={"clip": 1e6},
                           training={"work": {"unit": "epochs", "amount": 3}})  # fmt: skip
        if not privacy:
            one = parse_plan(json.dumps({**json.loads(schema.pretty(one)), "differential_privacy": None}))
        record = run_local(one, loaders(), tmp_path / str(place))
        models.append(read_model(tmp_path / str(place), one, record.final.model_sha256))
    assert np.abs(models[0] - models[1]).max() < 2e-5


@pytest.mark.parametrize("gradients", ["hooks", "ghost"])
def test_a_patient_more_does_not_flip_the_images_of_the_others(monkeypatch, gradients):
    """With augmentation, one image less moves the sum by its own part, whatever its place in the batch."""
    from tests.unit.engine.hospitals import image_records

    the_plan, records = private_images(gradients), image_records(21, 3, contrast=150.0)
    one = PrivateWork(the_plan, records, Account(Ledger(a_file()), None, "job"))
    one.begin_session(0, 3)
    trainer = Trainer(the_plan, "amber", records)
    steps, losses = one._private(trainer, one.drawing), private._losses(trainer, 0, 0)
    whole = steps.clipped_sum(Drawn(np.arange(21), np.ones(21)), np.ones(21), losses)
    for gone in (0, 7, 20):
        left = np.delete(np.arange(21), gone)
        rest = steps.clipped_sum(Drawn(left, np.ones(20)), np.ones(20), losses)
        assert np.linalg.norm(whole - rest) <= steps.mechanism.sensitivity
    plain = trainer.tensor(records.inputs)
    monkeypatch.setattr(trainer.objective, "quantities", lambda outputs, target, clip: {"task_loss": outputs})
    monkeypatch.setattr(trainer.model, "forward", lambda inputs: inputs)
    turned = [private._losses(trainer, 0, 0)(np.arange(21)) for _ in range(2)]
    assert not torch.equal(*turned)  # nobody can work it out from the plan
    assert all(bool((one != plain).any()) and bool((one == plain).flatten(1).all(dim=1).any()) for one in turned)


def test_segmentation_trains_privately(tmp_path):
    record = run_local(private_images("ghost"), three_of_images(), tmp_path)
    assert record.status == "complete", record.reason
    verify_run(tmp_path)
    assert [one.release.what for one in ledger_of(tmp_path, "amber").entries()] == ["units", "model"]


def private_images(gradients: str) -> Plan:
    """A plan of segmentation, with augmentation."""
    from tests.unit.engine.hospitals import image_plan

    data = json.loads(schema.pretty(masked(image_plan(presets.FEDAVG, rounds=1, min_sites=3))))
    data["consents"] = []
    data["differential_privacy"] = {
        "clip": 1.0, "noise_multiplier": 0.7, "count_noise": 3.0, "records_per_unit": 1, "gradients": gradients,
        "groups": None,
    }  # fmt: skip
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": 2}
    return parse_plan(json.dumps(data))
