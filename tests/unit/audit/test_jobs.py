# SPDX-License-Identifier: Apache-2.0
"""Jobs: every hostile or mistaken one is found, every shipped one is clean, and a policy's every field has a rule."""

from __future__ import annotations

import shutil
import time
from datetime import datetime, timedelta, timezone

import pytest

from fairflare.audit.auditor import audit_job
from fairflare.audit.evidence import PLAN
from fairflare.audit.rule import Severity
from fairflare.audit.rules import RULES
from fairflare.audit.rules.violations import rule_of
from fairflare.errors import AuditError
from fairflare.plan import read_plan
from fairflare.policy import open_policy, standard_policy, strict_policy, write_policy
from fairflare.policy.approvals import sign_approval
from fairflare.presets import shipped
from tests.hostile import CASES, WEAKER, terms
from tests.unit.audit import kits

JOBS = sorted(path.name for path in (kits.ROOT / "jobs").iterdir())
#: Cases that have a rule of their own; all others are rule 203's.
OWN = {
    "FFA-201": {
        "code in custom", "empty file in custom", "empty folder custom", "folder Custom in capitals",
        "code beside the configuration", "code at the top", "shared library", "pickled model", "image for docker",
        "image for kubernetes", "Python path of a launcher", "entry point of a launcher", "privileged container",
        "command of a slurm launcher", "code announced",
    },
    "FFA-802": {
        "mandatory clients", "fewer sites than the plan", "more sites than the plan", "no number of sites",
        "number of sites as text", "number of sites true", "some sites only", "two apps with two plans",
        "app of another name", "app named as a path",
    },
}  # fmt: skip


#: What is said of private jobs: that evaluation is exact, and of heart's few patients, that a batch is a fifth of them.
SAID = {"heart_private": {"FFA-405", "FFA-409"}, "skin_private": {"FFA-409"}}


@pytest.mark.parametrize("name", JOBS)
def test_nothing_is_found_in_a_shipped_job(name):
    report = audit_job(kits.ROOT / "jobs" / name)
    assert ({one.rule.id for one in report.findings}, report.undecided) == (SAID.get(name, set()), ())
    private = {"FFA-402", "FFA-405"} - SAID[name] if name in SAID else set()
    assert {one.id for one in report.hold} == private | {
        "FFA-100", "FFA-104", "FFA-201", "FFA-203", "FFA-601", "FFA-802",
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_hostile_job_is_found_by_name_and_code(tmp_path, name):
    job = kits.good_job(tmp_path)
    CASES[name].spoil(job)
    begin = time.monotonic()
    report = audit_job(job)
    assert time.monotonic() - begin < 3
    wanted = next((rule for rule, names in OWN.items() if name in names), "FFA-203")
    assert any(one.rule.id == wanted and CASES[name].code in one.got for one in report.findings)
    assert report.exit_status(Severity.high) == 1
    texts = [text for one in report.findings for text in (one.place, one.got, one.allowed)]
    assert all(text.isascii() and text.isprintable() and str(tmp_path) not in text for text in texts)


@pytest.mark.parametrize("name", WEAKER)
def test_a_plan_outside_a_policy_is_found_by_the_rule_of_that_field(tmp_path, name):
    plan = shipped("heart_flexfair")
    write_policy(tmp_path, terms(tmp_path / "store", plan, **WEAKER[name].terms))
    report = audit_job(kits.good_job(tmp_path / "jobs", plan), policy=tmp_path)
    field = WEAKER[name].field
    # A policy that is over is said once: of the policy, and not of the plan as well.
    whole = {"expires": "site_policy.json:expires", "plans": PLAN, "metrics": PLAN}
    place = whole.get(field, f"{PLAN}:{field}")
    assert {(one.rule.id, one.place) for one in report.findings} == {(rule_of(field), place)}
    assert {one.subject for one in report.findings} == {"policy" if field == "expires" else "job"}


def test_a_policy_that_fits_finds_nothing(tmp_path):
    plan = shipped("heart_flexfair")
    write_policy(tmp_path, terms(tmp_path / "store", plan))
    report = audit_job(kits.good_job(tmp_path / "jobs", plan), policy=tmp_path / "site_policy.json")
    assert (report.findings, report.undecided) == ((), ())
    assert list(report.evidence)[-1] == "policy/site_policy.json"


@pytest.mark.parametrize("name", JOBS)
def test_shipped_jobs_are_for_public_data_and_the_standard_policy_says_so(tmp_path, name):
    write_policy(tmp_path, standard_policy(tmp_path / "store"))
    found = {one.rule.id for one in audit_job(kits.ROOT / "jobs" / name, policy=tmp_path).findings}
    private = SAID[name] | {"FFA-410"} if name in SAID else set()  # neither template has a budget
    assert {"FFA-307", "FFA-501"} <= found - private <= {"FFA-307", "FFA-501", "FFA-503", "FFA-605"}
    write_policy(tmp_path, open_policy(tmp_path / "store"))
    assert {one.rule.id for one in audit_job(kits.ROOT / "jobs" / name, policy=tmp_path).findings} == private


def test_a_signed_approval_counts_until_the_policy_changes(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    plan = kits.good_plan()
    job = kits.good_job(tmp_path / "jobs", plan)
    kits.edit_policy(kit, plans=(), approvals="signed")
    assert [one.rule.id for one in audit_job(job, kit=kit).findings] == ["FFA-307"]
    sign_approval(kit, plan, by="Ada")
    assert audit_job(job, kit=kit).exit_status(Severity.high) == 0
    kits.edit_policy(kit, cells_minimum=12, cells_sites=3)
    assert "FFA-307" in {one.rule.id for one in audit_job(job, kit=kit).findings}


def test_the_kits_policy_given_by_name_is_the_kits(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    plan = kits.good_plan()
    kits.edit_policy(kit, plans=(), approvals="signed")
    sign_approval(kit, plan, by="Ada")
    report = audit_job(kits.good_job(tmp_path / "jobs", plan), kit=kit, policy=kit / "local" / "site_policy.json")
    assert (report.findings, report.undecided) == ((), ())


def test_an_approval_counts_on_the_audits_day(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    plan = kits.good_plan()
    kits.edit_policy(kit, plans=(), approvals="signed")
    now = datetime.now(timezone.utc)
    sign_approval(kit, plan, by="Ada", expires=now.date())
    job = kits.good_job(tmp_path / "jobs", plan)
    days = {days: audit_job(job, kit=kit, now=now + timedelta(days)) for days in (0, 1)}
    assert [[one.rule.id for one in report.findings] for report in days.values()] == [[], ["FFA-307"]]


def test_a_policy_of_its_own_is_compared_without_the_kits_approvals(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    plan = kits.good_plan()
    kits.edit_policy(kit, plans=(), approvals="signed")
    sign_approval(kit, plan, by="Ada")
    write_policy(tmp_path, strict_policy(tmp_path / "store"))
    report = audit_job(kits.good_job(tmp_path / "jobs", plan), kit=kit, policy=tmp_path)
    assert "FFA-307" in {one.rule.id for one in report.findings}


@pytest.mark.parametrize("text", ["", "[]", '{"format": "fairflare/policy/1"}', "\x00"])
def test_a_broken_policy_is_a_finding_and_leaves_the_plan_undecided(tmp_path, text):
    (tmp_path / "site_policy.json").write_text(text, encoding="utf-8")
    report = audit_job(kits.good_job(tmp_path / "jobs"), policy=tmp_path)
    assert [one.rule.id for one in report.findings] == ["FFA-305"]
    assert {one.rule.id for one in report.not_checked} >= {"FFA-304", "FFA-307", "FFA-401", "FFA-501", "FFA-803"}


def test_a_policy_that_is_not_there_is_no_audit(tmp_path):
    with pytest.raises(AuditError) as caught:
        audit_job(kits.good_job(tmp_path), policy=tmp_path / "site_policy.json")
    assert caught.value.code == "FF-AUDIT-POLICY"


def test_a_check_of_jobs_that_stops_is_no_pass(tmp_path, monkeypatch):
    def stop(_: object) -> None:
        raise OSError("/home/somebody")

    monkeypatch.setattr("fairflare.audit.evidence.check_job", stop)
    report = audit_job(kits.good_job(tmp_path))
    assert report.exit_status(Severity.low) == 2
    assert "FFA-100" in {one.rule.id for one in report.undecided}
    assert not any("somebody" in one.reason for one in report.undecided)


def test_a_private_key_in_a_job_is_critical(tmp_path):
    job = kits.good_job(tmp_path)
    (job / "app/config/notes.txt").write_text("-----BEGIN PRIVATE KEY-----\n", encoding="utf-8")
    report = audit_job(job)
    assert (report.findings[0].rule.id, report.findings[0].severity) == ("FFA-104", Severity.critical)


def test_encrypted_statistics_are_masked_ones(tmp_path):
    plan = kits.good_plan()
    protection = plan.protection.model_copy(update={"statistics": "ckks"})
    report = audit_job(kits.good_job(tmp_path, plan.model_copy(update={"protection": protection})))
    assert (report.findings, report.undecided) == ((), ())


def test_every_field_of_a_violation_has_a_rule():
    assert {rule_of(one.field) for one in WEAKER.values()} <= set(RULES)
    assert rule_of("something.new") == "FFA-304"


def test_the_plan_that_was_judged_is_named(tmp_path):
    job = kits.good_job(tmp_path)
    report = audit_job(job)
    assert read_plan(job).sha256 in report.subjects["job"]
    shutil.rmtree(job / "app")
    assert "cannot be read" in audit_job(job).subjects["job"]
