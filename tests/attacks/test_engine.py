# SPDX-License-Identifier: Apache-2.0
"""Attacks on whole jobs: a hostile server, with or without one site, against real sites of the engine.

The protocol below can be right and the job still give a site away: by what a site took over earlier and no view names,
by statistics of one job that are subtracted from those of another, or by the words with which a site refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.data.manifest import SiteData
from fairflare.engine import masked_server, masked_site
from fairflare.engine.local import answer, local_masks, software
from fairflare.engine.masked import inputs_digest
from fairflare.engine.masked_coordinator import MaskedCoordinator
from fairflare.engine.masked_server import MaskedServer, MaskedSums
from fairflare.engine.masked_site import MaskedSite
from fairflare.engine.messages import Message, Reply
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.server import Coordinator, Phase, Start
from fairflare.engine.site import Site
from fairflare.engine.vocabulary import SPLITS, Vocabulary
from fairflare.errors import DataError, FairFlareError
from fairflare.models import build, named_arrays, vector_sha256
from fairflare.plan import Plan, parse_plan
from fairflare.privacy import reveals
from fairflare.record import RunRecord
from fairflare.secagg.envelope import DOWN, UP, Item, opening_data, pack, parse_opening, unpack
from fairflare.secagg.protection import Opened, Weighted
from fairflare.secagg.state import sha256
from fairflare.secagg.transcript import Joining, Keys, Signed, Upload, parse_signed_list, signed_list
from tests.unit.engine.hospitals import ADAMW, four, masked, plan

VICTIM, COLLUDER = "beryl", "dune"
OTHERS = ("amber", "coral")
FAIR = presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0))
ONE = 2**32  # a whole number one, as a word of a statistic
Act = Callable[[str, Phase], None]
Change = Callable[[Message, Sequence[Item]], Sequence[Item]]


class Job:
    """One job over real sites; ``act`` is how a site gets a phase's message, and how its answer comes back."""

    def __init__(self, the_plan: Plan, folder: Path, names: Sequence[str] = tuple(four()), **masks: object) -> None:
        self.plan = the_plan
        self.sites = {
            name: site_of(
                name, the_plan, four()[name], folder / name, None, masks.get(name) or local_masks(the_plan, name)
            )
            for name in names
        }
        self.coordinator: Coordinator = coordinator_of(the_plan, folder / "server", Start("s", "local", software()))
        self.refused: list[tuple[str, str, int, str]] = []
        self.opened: dict[str, np.ndarray] = {}

    def run(self, act: Act | None = None) -> RunRecord:
        act = act or (lambda name, phase: answer(self.sites[name], phase))
        for phase in self.coordinator.phases(sorted(self.sites)):
            for name in phase.targets:
                act(name, phase)
            message = phase.message
            self.refused += [(one.site, one.task, message.round, one.code) for one in phase.collector.refusals]
        return self.coordinator.record

    def masks(self, name: str) -> MaskedSite:
        found = self.sites[name]._masked
        assert found is not None
        return found

    def codes(self, *names: str) -> set[str]:
        return {code for name, _, _, code in self.refused if name in names}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, int], np.ndarray]:
    """What each site put under its masks, by site, vector and round: what an attacker would like to know."""
    found: dict[tuple[str, str, int], np.ndarray] = {}
    encoded = MaskedSite._encoded

    def watch(site: MaskedSite, label: str, vectors: Mapping[str, Weighted], message: Message) -> np.ndarray:
        found[site.name, label, message.round] = vectors[label].values.astype(np.float64)
        return encoded(site, label, vectors, message)

    monkeypatch.setattr(MaskedSite, "_encoded", watch)
    return found


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The last sum of each vector that the server could open."""
    found: dict[str, np.ndarray] = {}
    closed, unmasked = MaskedServer.closed, MaskedServer.unmasked

    def watch_closed(masks: MaskedServer, label: str, number: int) -> Opened:
        opened = closed(masks, label, number)
        found[label] = opened.total.copy()
        return opened

    def watch_update(masks: MaskedServer) -> tuple[dict[str, Opened], float]:
        opened, share = unmasked(masks)
        found["update"] = opened["update"].mean.copy()
        return opened, share

    monkeypatch.setattr(MaskedServer, "closed", watch_closed)
    monkeypatch.setattr(MaskedServer, "unmasked", watch_update)
    return found


# ----------------------------------------------- two openings: a colluder signs two versions of its part of a statistic


class TwoOpenings:
    """The colluder's part of ``label`` differs between the victim and the rest; ``deltas`` are added to it."""

    def __init__(self, job: Job, label: str, deltas: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self.job, self.label, self.deltas = job, label, deltas

    def __call__(self, name: str, phase: Phase) -> None:
        items = unpack(phase.message.protocol, DOWN)
        number = self.job.masks(name)._steps.get(self.label)
        changed = [self._forged(name, one) if (one.kind, one.number) == ("opening", number) else one for one in items]
        message = replace(phase.message, protocol=pack(changed)) if items else phase.message
        answer(self.job.sites[name], replace(phase, message=message))

    def _forged(self, name: str, item: Item) -> Item:
        if name not in self.deltas:
            return item
        session = self.job.masks(COLLUDER)._session
        assert session is not None
        uploads, words = parse_opening(item, session.params.vector(self.label))
        signed, at = parse_signed_list("survivors", uploads), session.index - 1
        words[at] = words[at] + self.deltas[name]()
        upload = replace(Upload.parse(signed[at].message), payload=sha256(words[at].tobytes()))
        signed[at] = session._signed(upload.encoded())
        if name == COLLUDER:  # its own program believes what it likes
            session._steps[item.number].upload = signed[at]
        return Item("opening", item.number, opening_data(signed_list("survivors", signed), words))


def forget_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the defence out: D of a task without what was opened before."""
    for module in (masked_site, masked_server):
        monkeypatch.setattr(module, "inputs_digest", lambda message, totals, _: inputs_digest(message, totals, {}))


def weigh_the_others_next_to_nothing(folder: Path) -> Job:
    """The victim sees the true total of weights, the others one that is a million times larger."""
    job = Job(masked(plan(presets.FEDAVG, rounds=1)), folder)

    def heavy() -> np.ndarray:
        return np.array([0, 0, 0, 0, int(job.coordinator._records) * 2**20 * ONE], dtype=np.uint64)

    job.run(TwoOpenings(job, "counts", dict.fromkeys((*OTHERS, COLLUDER), heavy)))
    return job


def test_two_totals_of_the_weights_end_in_two_views(tmp_path: Path, own: dict, sums: dict) -> None:
    job = weigh_the_others_next_to_nothing(tmp_path)
    assert "FF-SECAGG-VIEW" in job.codes(*OTHERS)
    assert "update" not in sums


def test_two_totals_of_the_weights_give_the_victims_update_where_views_do_not_name_openings(
    tmp_path: Path, own: dict, sums: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_openings(monkeypatch)
    assert not weigh_the_others_next_to_nothing(tmp_path).refused
    secret = own[VICTIM, "update", 0]
    assert np.abs(sums["update"] - secret).max() < 1e-3 * np.abs(secret).max()


def keep_the_victims_cells_only(folder: Path, own: dict) -> Job:
    """Four sites are needed behind a cell: the victim is told that they are there, the others that they are not."""
    job = Job(masked(plan(FAIR, rounds=1, minimum=5, sites=4, min_sites=4)), folder)

    def bits() -> np.ndarray:
        return own[COLLUDER, "cells", 0].astype(np.uint64) * np.uint64(ONE)

    deltas = {
        VICTIM: lambda: np.uint64(ONE) - bits(),
        **dict.fromkeys((*OTHERS, COLLUDER), lambda: np.uint64(0) - bits()),
    }
    job.run(TwoOpenings(job, "cells", deltas))
    return job


def test_two_versions_of_the_cells_end_in_two_views(tmp_path: Path, own: dict, sums: dict) -> None:
    job = keep_the_victims_cells_only(tmp_path, own)
    assert "FF-SECAGG-VIEW" in job.codes(VICTIM, *OTHERS)
    assert not {"risk_sums", "validation_sums", "update"} & set(sums)


def test_two_versions_of_the_cells_give_the_victims_sums_where_views_do_not_name_openings(
    tmp_path: Path, own: dict, sums: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_openings(monkeypatch)
    keep_the_victims_cells_only(tmp_path, own)
    secret = own[VICTIM, "risk_sums", 0]
    assert np.abs(secret).max() > 1
    found = sums["risk_sums"] - own[COLLUDER, "risk_sums", 0]
    assert np.allclose(found, secret, atol=1e-6)


# -------------------------------------------------- what is no bit: a site counts for several, or for less than nothing


def send_no_bits(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    encoded = MaskedSite._encoded

    def change(site: MaskedSite, label: str, vectors: Mapping[str, Weighted], message: Message) -> np.ndarray:
        words = encoded(site, label, vectors, message)
        return words + np.array(times * ONE).astype(np.uint64) if (site.name, label) == (COLLUDER, "cells") else words

    monkeypatch.setattr(MaskedSite, "_encoded", change)


@pytest.mark.parametrize("times", [100, -100])
def test_a_sum_of_cells_that_is_none_of_bits_stops_the_job(
    tmp_path: Path, sums: dict, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    send_no_bits(monkeypatch, times)
    record = Job(masked(plan(FAIR, rounds=1, minimum=5, sites=3)), tmp_path).run()
    assert record.reason is not None
    assert record.reason.code == "FF-SECAGG-RANGE"
    assert "update" not in sums


def test_a_server_that_passes_such_a_sum_on_gets_nothing(
    tmp_path: Path, sums: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_no_bits(monkeypatch, 100)
    monkeypatch.setattr(masked_server, "verify_bits", lambda *_: None)
    job = Job(masked(plan(FAIR, rounds=1, minimum=5, sites=3)), tmp_path)
    job.run()
    measured = {name: code for name, task, _, code in job.refused if task == "measure"}
    assert measured == dict.fromkeys(four(), "FF-SECAGG-RANGE")
    assert not {"risk_sums", "validation_sums", "update"} & set(sums)


# ----------------------------------------- the optimiser's state: rounds that one site was left out of count against it


class Poison:
    """Round 0 has a model of huge gradients for all but the victim: AdamW's steps of the others are tiny ever after.

    ``apart``: the victim is not left out of round 0, but trains on the usual model; nobody waits for its update.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, own: dict, *, apart: bool = False) -> None:
        self.job = Job(masked(plan(presets.FEDAVG, rounds=9, optimizer=ADAMW)), folder)
        self.apart, self.own = apart, own
        self.cosines: list[float] = []
        self.usual = self.job.coordinator.model.copy()
        self._set_model(self._huge())
        self._hide_statistics(monkeypatch)
        aggregate = self.job.coordinator._aggregate

        def next_model(number: int, participants: Mapping[str, Sequence[str]], risk, validated, trained, acted=None):
            self._compare(number, participants["train"], trained["update"].mean)
            aggregate(number, participants, risk, validated, trained, acted)
            if number == 0:
                self._set_model(self.usual)

        monkeypatch.setattr(self.job.coordinator, "_aggregate", next_model)
        monkeypatch.setattr(MaskedCoordinator, "_state", lambda _, number, targets: "keep" if number else "reset")
        self.job.run(self._act)

    def _huge(self) -> np.ndarray:
        parts = {name: values.copy() for name, values in named_arrays(build(self.job.plan), self.usual).items()}
        for name, values in parts.items():
            if values.ndim == 1:
                parts[name] = np.full_like(values, 1e4)  # no unit is silent
            elif len(values) <= 2:
                parts[name] = values * np.float32(1e4)  # the last layer makes the gradients of all others
        return np.concatenate([values.ravel() for values in parts.values()]).astype(np.float32)

    def _set_model(self, model: np.ndarray) -> None:
        self.job.coordinator.model = model.copy()
        self.job.coordinator._sha256 = vector_sha256(model)

    def _hide_statistics(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A hostile server asks for no statistic of round 0: their numbers would be out of range."""
        closed, coordinator = MaskedServer.keyset_closed, self.job.coordinator

        def few(masks: MaskedServer, labels: Sequence[str]) -> None:
            if "counts" in list(labels) or not np.array_equal(coordinator.model, self._huge()):
                closed(masks, labels)

        monkeypatch.setattr(MaskedServer, "keyset_closed", few)

    def _act(self, name: str, phase: Phase) -> None:
        message = phase.message
        if name == VICTIM and message.round == 0 and message.task in ("measure", "train"):
            if not self.apart and message.task == "train":
                phase.collector.refuse(name, "FF-TEST-ABSENT")
                return
            if self.apart:
                vectors = {label: self.usual if label == "model" else one for label, one in message.vectors.items()}
                text = {**message.text, "model_sha256": vector_sha256(self.usual)}
                phase = replace(phase, message=replace(message, vectors=vectors, text=text))
        answer(self.job.sites[name], phase)

    def _compare(self, number: int, who: Sequence[str], mean: np.ndarray) -> None:
        if VICTIM in who:
            secret = self.own[VICTIM, "update", number]
            self.cosines.append(float(mean @ secret / np.linalg.norm(mean) / np.linalg.norm(secret)))


def test_a_site_keeps_no_state_of_a_round_that_it_was_left_out_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict
) -> None:
    attack = Poison(tmp_path, monkeypatch, own)
    assert (VICTIM, "train", 1, "FF-SECAGG-OPTIMIZER") in attack.job.refused
    assert attack.cosines == []


def test_a_sum_is_the_victims_update_where_sites_keep_any_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict
) -> None:
    monkeypatch.setattr(MaskedSite, "keeps_state", lambda site, message: True)
    for module in (masked_site, masked_server):  # and the past of the state is bound into no view
        monkeypatch.setattr(
            module,
            "inputs_digest",
            lambda message, totals, bound: inputs_digest(
                message, totals, {label: found for label, found in bound.items() if label != "state"}
            ),
        )
    assert max(Poison(tmp_path, monkeypatch, own).cosines) > 0.98


def test_a_site_keeps_no_state_of_a_round_in_which_it_trained_on_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict
) -> None:
    attack = Poison(tmp_path, monkeypatch, own, apart=True)
    # In round 0 nobody can use the victim's update, and nobody needs to: it is to count as trained, no more.
    assert max(attack.cosines, default=0.0) < 0.98


# ------------------------------------------------------ two statistics: counts of a vocabulary minus numbers of records


def subtract_two_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch, sums: dict) -> tuple[list[int], set[str]]:
    """A feasibility job over four sites without ``counts``, then ``counts`` over three; returns the differences."""
    train = masked(plan(FAIR, rounds=1))
    method = {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8}
    count = parse_plan(json.dumps({**json.loads(schema.pretty(train)), "method": method, "name": "count"}))
    masks, hidden = {name: local_masks(train, name) for name in four()}, {"counts"}
    offer, opening, opened = MaskedServer.offer, MaskedServer.opening, MaskedSums.opened

    def zeros_where_hidden(one: MaskedSums) -> Mapping[str, Opened]:
        return {"counts": Opened(np.zeros(5), 1.0, ()), **opened(one)}

    def offer_few(one: MaskedServer, labels: Sequence[str], number: int) -> None:
        offer(one, [label for label in labels if label not in hidden], number)

    monkeypatch.setattr(MaskedServer, "offer", offer_few)
    monkeypatch.setattr(MaskedServer, "opening", lambda one, label: None if label in hidden else opening(one, label))
    monkeypatch.setattr(MaskedSums, "opened", zeros_where_hidden)
    Job(count, folder / "first", **masks).run()
    hidden = {"cells"}
    second = Job(train, folder / "second", [name for name in four() if name != VICTIM], **masks)
    second.run()
    if "counts" not in sums:
        return [], second.codes(*OTHERS, COLLUDER)
    tables = Vocabulary(count).tables(sums["vocabulary"])
    everybody = [next(table for key, table in tables.items() if key[0] == split).sum() for split in SPLITS]
    return [round(all_ - few) for all_, few in zip(everybody, sums["counts"], strict=False)], set()


def test_another_statistic_is_not_opened_over_all_sites_but_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: dict
) -> None:
    found, codes = subtract_two_jobs(tmp_path, monkeypatch, sums)
    assert "vocabulary" in sums
    assert (found, codes) == ([], {"FF-SECAGG-COHORT"})


def test_two_statistics_give_a_sites_records_where_each_label_has_cohorts_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: dict
) -> None:
    def per_label(known: reveals._Known, to: reveals.Transition) -> None:
        one = (to.label, to.cohort)
        before = [other for other in known.cohorts if other[0] == to.label]
        if before and one not in before:
            reveals._refuse("COHORT", "another cohort of this label", "none")
        known.cohorts = known.cohorts | {one}

    monkeypatch.setattr(reveals._Known, "_meet", per_label)
    found, _ = subtract_two_jobs(tmp_path, monkeypatch, sums)
    victim = four()[VICTIM]()
    assert found == [len(victim.training), len(victim.validation), len(victim.test)]


# ------------------------------------------------------------- honest failures, and one site that would stop all others


def test_a_site_that_missed_the_first_round_is_back_in_the_second(tmp_path: Path) -> None:
    """The openings of ``counts`` and ``cells`` went with a message that it did not get."""
    job = Job(masked(plan(FAIR, rounds=2, minimum=5, sites=3)), tmp_path)

    def act(name: str, phase: Phase) -> None:
        if (name, phase.message.task, phase.message.round) == (VICTIM, "measure", 0):
            phase.collector.refuse(name, "FF-TEST-ABSENT")
        else:
            answer(job.sites[name], phase)

    record = job.run(act)
    assert job.refused == [(VICTIM, "measure", 0, "FF-TEST-ABSENT")]
    assert [len(line.participants["unmask"]) for line in record.rounds] == [3, 4]
    assert record.final is not None
    assert record.final.test


def lie(job: Job, change: Change) -> RunRecord:
    """The colluder's protocol messages are changed on their way out."""

    def act(name: str, phase: Phase) -> None:
        if name != COLLUDER:
            answer(job.sites[name], phase)
            return
        message = phase.message
        try:
            found = job.sites[name].handle(message)
            items = change(message, unpack(found.protocol, UP))
            protocol = pack(items) if items else b""
            reply = Reply(found.task, found.round, found.step, message.session, found.payloads, protocol)
            phase.collector.accept(name, reply)
        except FairFlareError as problem:
            phase.collector.refuse(name, problem.code)

    return job.run(act)


def test_a_join_with_a_bad_signature_is_refused_alone(tmp_path: Path) -> None:
    def change(message: Message, items: Sequence[Item]) -> Sequence[Item]:
        if message.task != "join":
            return items
        return [Item("join", 0, replace(Joining.parse(one.data), signature=bytes(256)).encoded()) for one in items]

    job = Job(masked(plan(FAIR, rounds=1)), tmp_path)
    record = lie(job, change)
    assert job.refused == [(COLLUDER, "join", 0, "FF-SECAGG-SIGNATURE")]
    assert (record.status, record.sessions[0].joined) == ("complete", ("amber", "beryl", "coral"))


def small_order(job: Job, first: str) -> Change:
    """KEYS of the update whose public key is zero, from the first message of task ``first`` on."""
    begun: list[str] = []

    def change(message: Message, items: Sequence[Item]) -> Sequence[Item]:
        begun.extend([first] if message.task == first else [])
        session = job.masks(COLLUDER)._session
        assert session is not None
        result = []
        for one in items:
            if begun and one.kind == "keys" and session.vector(one.number).label == "update":
                keys = replace(Keys.parse(Signed.parse(one.data).message), public=bytes(32))
                one = Item("keys", one.number, session._signed(keys.encoded()).encoded())
            result.append(one)
        return result

    return change


def test_a_key_of_small_order_is_refused_alone(tmp_path: Path) -> None:
    job = Job(masked(plan(FAIR, rounds=3)), tmp_path)
    record = lie(job, small_order(job, "confirm"))
    assert {name for name, *_ in job.refused} == {COLLUDER}
    assert "FF-SECAGG-KEY" in job.codes(COLLUDER)
    assert record.status == "complete"
    assert [len(line.participants["unmask"]) for line in record.rounds] == [3, 3, 3]


def test_a_key_of_small_order_at_the_start_stops_the_job_and_names_the_site(tmp_path: Path) -> None:
    job = Job(masked(plan(FAIR, rounds=1)), tmp_path)
    record = lie(job, small_order(job, "session"))
    assert job.refused == [(COLLUDER, "session", 0, "FF-SECAGG-KEY")]
    assert record.reason is not None
    assert f"{COLLUDER}: FF-SECAGG-KEY" in record.reason.text


def test_a_site_that_is_silent_about_one_statistic_is_refused(tmp_path: Path) -> None:
    """Without its keys nobody's ``risk_sums`` could be opened, and the penalty would never act."""
    job = Job(masked(plan(FAIR, rounds=2)), tmp_path)

    def change(message: Message, items: Sequence[Item]) -> Sequence[Item]:
        session = job.masks(COLLUDER)._session
        assert session is not None
        if message.task == "session":
            return items
        return [one for one in items if one.kind != "keys" or session.vector(one.number).label != "risk_sums"]

    record = lie(job, change)
    assert {name for name, *_ in job.refused} == {COLLUDER}
    assert job.codes(COLLUDER) >= {"FF-ROUND-KEYS"}
    assert record.status == "complete"


# -------------------------------------------------------------- refusals as answers: what a site says that cannot join


def test_every_reason_of_the_data_leaves_a_masked_job_under_one_code(tmp_path: Path) -> None:
    found = [_refusal(tmp_path, FAIR, amount=4096), _refusal(tmp_path, FAIR, code="FF-DATA-FEATURE")]
    assert found[0] == found[1]
    assert found[0][0] == "FF-DATA-REFUSED"
    assert "FF-DATA-FEATURE" in (tmp_path / "errors.log").read_text(encoding="utf-8")


def test_so_does_it_from_a_job_that_only_counts(tmp_path: Path) -> None:
    method = {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8}
    assert _refusal(tmp_path, method, code="FF-DATA-FEATURE")[0] == "FF-DATA-REFUSED"


def _refusal(folder: Path, method: dict, amount: int = 0, code: str = "") -> tuple[str, str]:
    """Code and text with which the victim refuses to join."""
    batch = {"batch": {"unit": "batches_per_epoch", "amount": amount}} if amount else {}
    data = json.loads(schema.pretty(masked(plan(FAIR, rounds=1, **batch))))
    the_plan = parse_plan(json.dumps({**data, "method": method}))

    def load() -> SiteData:
        if code:
            raise DataError(code, got="a value", expected="another", next_step="look")
        return four()[VICTIM]()

    site: Site = site_of(VICTIM, the_plan, load, folder, None, local_masks(the_plan, VICTIM))
    with pytest.raises(FairFlareError) as caught:
        site.handle(Message("join", 0, 0, "s", the_plan.sha256))
    return caught.value.code, str(caught.value)
