# SPDX-License-Identifier: Apache-2.0
"""Jobs with encrypted statistics: the masked run's model to the bit, and a server that sees no group sums."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.engine import masked_site
from fairflare.engine.explain import explain
from fairflare.engine.local import run_local
from fairflare.engine.masked import inputs_digest, params_of
from fairflare.engine.masked_site import MaskedSite
from fairflare.engine.messages import Message, layout_of
from fairflare.engine.verify import verify_run
from fairflare.errors import PlanError, RunError, SecaggError
from fairflare.evaluation.exchanged import TRUST
from fairflare.fairness.groups import HOSPITAL
from fairflare.he.parameters import Parameters, nominal
from fairflare.plan import parse_plan
from fairflare.policy import standard_policy
from fairflare.policy.site import LeastProtection
from tests.unit.engine.hospitals import encrypted, four, masked, plan
from tests.unit.engine.test_masked import FAIR, HOSPITALS, LAGGED, SOMETIMES, drive

FAIRFED = {
    "name": "fairfed", "beta": 0.5, "attribute": "sex", "criterion": "equal_accuracy", "gap": "difference",
    "first_round": "corrected", "min_weight": 0.5, "max_weight": 2.0,
}  # fmt: skip
REWEIGHTING = {"name": "reweighting", "attribute": "sex", "balance": "groups", "max_weight": None}
METHODS = {
    "flexfair": FAIR, "lagged": LAGGED, "sometimes": SOMETIMES, "hospitals": HOSPITALS, "fairfed": FAIRFED,
    "reweighting": REWEIGHTING,
}  # fmt: skip


def both(method, **changes):
    hidden = masked(plan(method, **{"rounds": 3, "min_sites": 4, **changes}))
    return hidden, encrypted(hidden)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_model_is_the_masked_runs_to_the_bit(tmp_path, method):
    hidden, sealed = (run_local(one, four(), tmp_path / str(at)) for at, one in enumerate(both(method)))
    verify_run(tmp_path / "1")
    assert (hidden.status, sealed.status) == ("complete", "complete")
    assert [line.model_sha256 for line in sealed.rounds] == [line.model_sha256 for line in hidden.rounds]
    assert sealed.final.model_sha256 == hidden.final.model_sha256
    assert [line.totals for line in sealed.rounds] == [line.totals for line in hidden.rounds]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_server_opens_no_group_sum_of_training_records(tmp_path, method):
    opened, kinds = set(), {}

    def watch(coordinator):
        last = getattr(coordinator, "_last", None)
        opened.update({} if last is None else last.opened())
        for number, step in coordinator._masks.session._steps.items():
            for words in step.payloads.values():
                kinds.setdefault(step.vector.label, set()).add(str(words.dtype))
            assert number >= 0

    run_local(both(method)[1], four(), tmp_path, watch=watch)
    assert opened.isdisjoint({"risk_sums", "distances"})
    assert {"counts", "validation_sums"} <= opened
    assert kinds["risk_sums"] == {"uint8"}
    assert kinds.get("distances", {"uint8"}) == {"uint8"}
    assert kinds["counts"] == {"uint64"}


def test_the_record_names_penalties_and_holds_nothing_of_their_risks(tmp_path):
    record = run_local(both(FAIR)[1], four(), tmp_path)
    found = [penalty for line in record.rounds for penalty in line.penalties]
    assert len(found) == 6
    for one in found:
        assert (one.attribute, one.measure.split("/")[0]) == ("sex", "sex")
        assert (one.risk, one.weight, one.coefficient, one.count, one.value, one.gap) == (None,) * 6
    assert any("ckks" in notice for notice in record.notices)


def test_a_record_that_claims_to_know_them_is_refused(tmp_path):
    run_local(both(FAIR)[1], four(), tmp_path)
    file = tmp_path / "record.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["rounds"][0]["penalties"][0].update(risk=[0.5, 0.5], weight=[0.5, 0.5], coefficient=[0.0, 0.0], count=[9, 9])
    data["rounds"][0]["penalties"][0].update(value=0.0, gap=0.0)
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(RunError, match=r"PENALTY|follow"):
        verify_run(tmp_path)


@pytest.mark.parametrize("task", ["measure", "train", "confirm", "unmask"])
@pytest.mark.parametrize("method", [FAIR, FAIRFED, LAGGED], ids=["flexfair", "fairfed", "lagged"])
def test_whoever_is_missing_once_the_models_are_the_masked_runs(tmp_path, method, task):
    """Which totals act, and that each site has them, goes by the openings that everybody saw."""
    absent = lambda site, message: site == "beryl" and message.task == task and message.round == 1  # noqa: E731
    plans = both(method, rounds=4, min_sites=3)
    hidden, sealed = (drive(one, tmp_path / str(at), absent)[0] for at, one in enumerate(plans))
    verify_run(tmp_path / "1")
    assert [line.model_sha256 for line in sealed.rounds] == [line.model_sha256 for line in hidden.rounds]
    assert [line.totals for line in sealed.rounds] == [line.totals for line in hidden.rounds]
    assert [line.participants for line in sealed.rounds] == [line.participants for line in hidden.rounds]


def test_what_acts_is_bound_although_the_server_does_not_know_it():
    message = Message("train", 1, 0, "s", "p", text={"totals": "act"})
    found = [
        inputs_digest(message, acting, {})
        for acting in ({}, {"totals": b"a" * 32}, {"totals": b"b" * 32}, {"distances": b"a" * 32})
    ]
    assert len(set(found)) == 4
    assert inputs_digest(message, {"totals": np.zeros(2)}, {}) not in found


def test_a_site_that_adds_up_another_opening_than_the_server_passed_on_is_left_out(tmp_path, monkeypatch):
    """Its view differs, as it would if a colluding hospital had signed two versions of its part."""
    honest = MaskedSite._acting

    def other(self, message):
        acting = honest(self, message)
        return dict.fromkeys(acting, b"x" * 32) if self.name == "beryl" and message.task == "train" else acting

    monkeypatch.setattr(MaskedSite, "_acting", other)
    record, _ = drive(both(FAIR, min_sites=3)[1], tmp_path)
    codes = {(one.site, one.task, one.code) for line in record.rounds for one in line.refusals}
    assert ("beryl", "train", "FF-SECAGG-VIEW") in codes


def test_negative_totals_are_refused_by_the_sites_since_the_server_cannot_look(tmp_path, monkeypatch):
    monkeypatch.setattr(masked_site, "verify_not_negative", lambda total: masked_site.refuse("RANGE", "a", "b"))
    record, _ = drive(both(FAIR)[1], tmp_path)
    assert (record.status, record.reason.code) == ("stopped", "FF-ROUND-QUORUM")
    assert {one.code for one in record.lost_rounds[0].refusals} == {"FF-SECAGG-RANGE"}


def test_more_sites_than_the_context_can_add_begin_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Parameters, "has_room", lambda self, sites: sites < 4)
    record, _ = drive(both(FAIR)[1], tmp_path)
    assert (record.status, record.reason.code) == ("stopped", "FF-HE-ROOM")


# ---------------------------------------------------------------------------------------------------------------- plans


def _plan_with(protection, method=FAIR):
    data = json.loads(schema.pretty(masked(plan(method, min_sites=4))))
    return parse_plan(json.dumps({**data, "protection": {**data["protection"], **protection}}))


def test_encryption_without_masks_underneath_is_refused():
    with pytest.raises(PlanError, match="masks are underneath"):
        _plan_with({"update": "none", "statistics": "ckks", "masking": None})


@pytest.mark.parametrize("method", [presets.FEDAVG, {"name": "fedprox", "mu": 0.1}], ids=["fedavg", "fedprox"])
def test_a_method_without_group_sums_has_nothing_to_encrypt(method):
    with pytest.raises(PlanError, match="nothing to encrypt"):
        _plan_with({"statistics": "ckks"}, method)


def test_a_plan_with_masks_is_what_it_was():
    before = masked(plan(FAIR, min_sites=4))
    assert set(json.loads(schema.pretty(before))["protection"]) == {"update", "statistics", "masking"}
    assert params_of(layout_of(before, 10), "kit") == params_of(layout_of(before, 10), "kit", nominal(4))


def test_no_session_begins_without_a_context(tmp_path):
    with pytest.raises(SecaggError) as caught:
        params_of(layout_of(both(FAIR)[1], 10), "kit")
    assert caught.value.code == "FF-SECAGG-CIPHER"


def test_a_policy_that_asks_for_masks_takes_it_and_one_that_asks_for_it_takes_no_less(tmp_path):
    hidden, sealed = both(FAIR)
    policy = standard_policy(tmp_path)

    def fields(least, of):
        asked = policy.model_copy(update={"protection": LeastProtection(update="masked", statistics=least)})
        return {one.field for one in asked.check(of) if one.field.startswith("protection.")} - {
            "protection.masking.weight_unit", "protection.masking.colluders",
        }  # fmt: skip

    assert fields("masked", sealed) == fields("ckks", sealed) == fields("masked", hidden) == set()
    assert fields("ckks", hidden) == {"protection.statistics"}


# ------------------------------------------------------------------------------------------------------------- in words


def test_the_trust_model_is_said_where_it_is_explained():
    hidden, sealed = both(FAIRFED)
    found, plain = (explain(one, 4, measure=False) for one in (sealed, hidden))
    assert TRUST.server in found.server_learns
    assert TRUST.hospitals in found.hospitals_learn
    assert TRUST.not_protected in found.not_protected
    assert not any("decisions by group" in one for one in found.server_learns)
    assert any("decisions by group" in one for one in plain.server_learns)
    assert TRUST.server not in plain.server_learns
    up, most = found.traffic[1].up - plain.traffic[1].up, nominal(4).sizes(1)[1]
    assert 0 < up <= 2 * most


def test_equal_accuracy_between_hospitals_can_be_encrypted_too(tmp_path):
    sealed = both(HOSPITALS)[1]
    assert sealed.method.penalties[0].attribute == HOSPITAL
    assert explain(sealed, 4, measure=False).server_learns
