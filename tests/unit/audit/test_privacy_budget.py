# SPDX-License-Identifier: Apache-2.0
"""Rules 402 to 410: a private job at a good site, and breaks of one thing; ledgers that lack what a record says."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fairflare import schema
from fairflare.audit import store
from fairflare.audit.auditor import audit_job, audit_kit
from fairflare.audit.findings import Report
from fairflare.audit.rule import Severity
from fairflare.audit.rules import privacy_budget
from fairflare.engine.local import run_local
from fairflare.plan import Plan, parse_plan
from fairflare.policy import read_catalog, write_catalog
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.anchor import ledger_anchor
from fairflare.privacy.bill import counting, measuring, planned, sampling, training
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import DpSgd, Release
from fairflare.record import LostRound, Reason, RunRecord, Seconds, write_record
from fairflare.record import RoundRecord as Round
from tests.unit.audit import kits
from tests.unit.audit.kits import edit_policy
from tests.unit.engine.test_private import FAIR, ledger_of, loaders, private_plan
from tests.unit.evaluation.records import make_session

BUDGET = {"epsilon": 3.0, "delta": 1e-5, "relation": "add_remove"}


def severities(report: Report) -> dict[str, str]:
    return {one.rule.id: one.severity.value for one in report.findings}


def texts(report: Report, rule: str) -> list[str]:
    return [f"{one.place}: {one.got}, {one.allowed}" for one in report.findings if one.rule.id == rule]


def changed(plan: Plan, **changes: Any) -> Plan:
    data = json.loads(schema.pretty(plan))
    for path, value in changes.items():
        *sections, field = path.split("__")
        target = data
        for part in sections:
            target = target[part]
        target[field] = value
    return parse_plan(json.dumps(data))


# --------------------------------------------------------------------------------------------------------- jobs, policy


@pytest.fixture
def site(hardened: Path, tmp_path: Path) -> Path:
    """A kit whose policy has a budget, and has approved every plan of these tests by its hash."""
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    edit_policy(kit, differential_privacy=BUDGET, store=str(tmp_path / "store"))
    return kit


def judged(kit: Path, plan: Plan, **terms: Any) -> Report:
    edit_policy(kit, plans=(plan.sha256,), **terms)
    return audit_job(kits.good_job(kit.parent / "jobs", plan), kit=kit)


#: The tests' own store lies in a folder that every user shares.
SHARED_STORE = {"FFA-804": "high"}


def without_store(report: Report) -> dict[str, str]:
    return {rule: worst for rule, worst in severities(report).items() if rule not in SHARED_STORE}


def test_of_a_good_private_job_only_is_said_what_no_noise_covers(site: Path) -> None:
    report = judged(site, kits.private_plan())
    assert without_store(report) == {"FFA-409": "low"}
    assert report.undecided == ()
    held = {one.id for one in report.hold}
    assert {"FFA-401", "FFA-402", "FFA-403", "FFA-405", "FFA-410"} <= held
    assert report.exit_status(Severity.medium) == int("FFA-804" in severities(report))


def test_what_a_plan_costs_is_what_the_site_would_pay() -> None:
    plan = kits.private_plan()
    privacy = plan.differential_privacy
    assert privacy is not None
    rounds = [one for round_ in planned(plan, privacy, 1) for one in round_]
    assert epsilon(privacy_budget._cost(plan, privacy), 1e-5) == epsilon(rounds, 1e-5)
    for refresh in ("round_lagged", {"rounds": 3}):
        other = changed(plan, method__refresh=refresh)
        rounds = [one for round_ in planned(other, privacy, 1) for one in round_]
        assert epsilon(privacy_budget._cost(other, privacy), 1e-5) == epsilon(rounds, 1e-5)


@dataclass(frozen=True)
class Break:
    rule: str
    plan: Plan
    worst: str
    words: str
    terms: dict[str, Any]


def broken(rule: str, plan: Plan, worst: str, words: str, **terms: Any) -> Break:
    return Break(f"FFA-{rule}", plan, worst, words, terms)


GOOD, QUIET = kits.private_plan(), kits.private_plan(noise_multiplier=9.0)
NULL = {"differential_privacy": None}
LOUD = {"noise_multiplier": 0.5, "groups_per_unit": 1, "shared": False}
BREAKS = {
    "little noise": broken("402", kits.private_plan(noise_multiplier=0.4), "critical", "by the plan alone, at most 3"),
    "little noise, and a larger budget": broken(
        "402", kits.private_plan(noise_multiplier=0.4), "critical", "by the plan alone, at most 8",
        differential_privacy={**BUDGET, "epsilon": 100.0},
    ),
    "more than the budget": broken(
        "402", GOOD, "critical", "at most 0.5", differential_privacy={**BUDGET, "epsilon": 0.5}
    ),
    "loud group sums": broken(
        "402", changed(kits.private_plan(groups=LOUD), training__batch={"unit": "records", "amount": 64}), "critical",
        "by its counts and group sums alone",
    ),
    "large batches": broken(
        "405", changed(QUIET, training__batch={"unit": "batches_per_epoch", "amount": 9}),
        "medium", "a batch of 1/9 of the patients, at most 0.1",
    ),
    "small batches": broken(
        "405", changed(GOOD, training__batch={"unit": "records", "amount": 63}), "medium", "63 patients in a batch",
    ),
    "no budget": broken("410", GOOD, "medium", "site_policy.json:differential_privacy: null", **NULL),
}  # fmt: skip


@pytest.mark.parametrize("one", BREAKS.values(), ids=BREAKS)
def test_one_broken_thing_is_found_by_exactly_its_rule(site: Path, one: Break) -> None:
    report = judged(site, one.plan, **one.terms)
    assert set(without_store(report)) == {one.rule, "FFA-409"}
    assert severities(report)[one.rule] == one.worst
    assert any(one.words in text for text in texts(report, one.rule))


@pytest.mark.parametrize("batch", [{"unit": "batches_per_epoch", "amount": 10}, {"unit": "records", "amount": 64}])
def test_limits_are_inclusive(site: Path, batch: dict[str, Any]) -> None:
    report = judged(site, changed(QUIET, training__batch=batch))
    assert without_store(report) == {"FFA-409": "low"}
    edit_policy(site, differential_privacy={"epsilon": 8.0, "delta": 1e-5, "relation": "replace"})
    assert not {"FFA-402", "FFA-403"} & set(severities(audit_kit(site)))


def test_shared_noise_is_said_to_need_trust(site: Path) -> None:
    groups = {"noise_multiplier": 20.0, "groups_per_unit": 1, "shared": True}
    plan = changed(kits.private_plan(), cells={"minimum": 0, "sites": 3})
    data = json.loads(schema.pretty(plan))
    data["differential_privacy"]["groups"], data["consents"] = groups, ["shared_noise"]
    report = judged(site, parse_plan(json.dumps(data)), cells_minimum=0, consents=("shared_noise",))
    assert any("at most 1 hospitals that tell the server" in text for text in texts(report, "FFA-409"))
    assert len(texts(judged(site, GOOD), "FFA-409")) == 1


def test_public_data_need_no_budget(site: Path) -> None:
    catalog = read_catalog(site / "local" / "data_catalog.json")
    sets = {name: one.model_copy(update={"public": True}) for name, one in (catalog.data_sets or {}).items()}
    write_catalog(site / "local", catalog.model_copy(update={"data_sets": sets}))
    (site / "local" / "data_catalog.json").chmod(0o600)
    assert "FFA-410" not in severities(judged(site, GOOD, **NULL))


def test_what_cannot_be_counted_is_no_pass(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairflare.errors import LedgerError

    def broken_() -> None:
        raise LedgerError("FF-LEDGER-ACCOUNTING", got="x", expected="y", next_step="z")

    monkeypatch.setattr(privacy_budget, "load_accounting", broken_)
    assert {one.rule.id for one in judged(site, GOOD).undecided} == {"FFA-402"}


# -------------------------------------------------------------------------------------------------------------- ledgers

JOB = "5f0c2d9e-1111-2222-3333-444455556666"
ROUNDS = 3
SMALL = changed(GOOD, training__rounds=ROUNDS)


def releases(plan: Plan = SMALL, job: str = JOB, rounds: Sequence[int] = range(ROUNDS)) -> list[Release]:
    """What an honest site pays for, in one session."""
    privacy = plan.differential_privacy
    assert privacy is not None
    found = [(min(rounds), line) for line in counting(plan, privacy)]
    for number in rounds:
        found.append((number, training(privacy, sampling(plan, 1))))
        found += [(number, line) for line in measuring(plan, privacy)]
    return [Release(plan.sha256, job, number, what, how) for number, (what, how) in found]


def paid(kit: Path, wanted: Sequence[Release]) -> Path:
    """Write a ledger as the site would; returns its file."""
    file = kit.parent / "store" / "heart" / "ledger.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o700)
    for one in wanted:
        Ledger(file, ledger_anchor(kit, "heart")).spend(None, one)
    return file


def line(number: int, sites: tuple[str, ...] = (kits.SITE, "hospital-2")) -> Round:
    none = dict.fromkeys(("records", "train_loss", "weighed", "at_minimum", "at_maximum", "totals", "collapse"))
    seconds = Seconds.model_validate(dict.fromkeys(Seconds.model_fields, 0.0))
    return Round.model_validate(
        {
            **none, "round": number, "participants": {"measure": sites, "train": sites}, "refusals": (),
            "penalties": (), "validation": (), "seconds": seconds.model_dump(), "model_sha256": "c" * 64,
        }
    )  # fmt: skip


def recorded(
    kit: Path,
    rounds: Sequence[Round],
    *,
    first: int = 0,
    job: str = JOB,
    plan: Plan = SMALL,
    lost: tuple[LostRound, ...] = (),
) -> None:
    """The record that a job left in its folder at the site."""
    session = make_session().model_copy(update={"roster": (kits.SITE, "hospital-2"), "first_round": first})
    sessions = (session,) if first == 0 else (session.model_copy(update={"first_round": 0}), session)
    record = RunRecord(
        format="fairflare/record/2", plan=plan, plan_sha256=plan.sha256, software={}, notices=(), sessions=sessions,
        status="stopped", reason=Reason.model_validate(dict.fromkeys(Reason.model_fields, "FF-RUN-X")), ended=None,
        initial_model_sha256="a" * 64, rounds=tuple(rounds), lost_rounds=lost, begun=len(rounds), final=None,
    )  # fmt: skip
    folder = kit / job / "fairflare" / "models"
    folder.mkdir(parents=True, mode=0o700)
    write_record(folder, record)
    for one in (kit / job, kit / job / "fairflare", folder):
        one.chmod(0o700)
    (folder / "record.json").chmod(0o600)


def ledger_findings(kit: Path) -> list[str]:
    return texts(audit_kit(kit), "FFA-407")


def undecided(kit: Path) -> list[str]:
    return [one.reason for one in audit_kit(kit).undecided if one.rule.id == "FFA-407"]


@pytest.mark.parametrize("method", [FAIR, {**FAIR, "refresh": "round_lagged"}, {**FAIR, "refresh": {"rounds": 2}}],
                         ids=["every round", "lagged", "every second round"])  # fmt: skip
def test_what_a_run_of_the_engine_pays_is_what_its_record_implies(tmp_path: Path, method: Any) -> None:
    plan = private_plan(method, batches=4, rounds=3)
    record = run_local(plan, loaders(), tmp_path)
    assert record.status == "complete", record.reason
    for site in record.roster:
        entries = ledger_of(tmp_path, site).entries()
        assert privacy_budget._missing(store.Ended("local", record), site, entries) == []
        for left_out in range(len(entries)):
            rest = [one for number, one in enumerate(entries) if number != left_out]
            assert privacy_budget._missing(store.Ended("local", record), site, rest)


def test_a_ledger_with_everything_that_the_record_implies_holds(site: Path) -> None:
    file = paid(site, releases())
    before = {one.name: (one.stat().st_mtime_ns, one.stat().st_mode) for one in file.parent.iterdir()}
    recorded(site, [line(number) for number in range(ROUNDS)])
    report = audit_kit(site)
    assert "FFA-407" in {one.id for one in report.hold}
    assert without_store(report) == {}
    after = {one.name: (one.stat().st_mtime_ns, one.stat().st_mode) for one in file.parent.iterdir()}
    assert after == before


def no_model(number: int) -> Callable[[list[Release]], list[Release]]:
    return lambda all_: [one for one in all_ if (one.round, one.what) != (number, "model")]


def other_noise(one: Release) -> Release:
    how = one.mechanism
    return replace(one, mechanism=replace(how, sigma=how.sigma * 2))


def fewer_steps(one: Release) -> Release:
    return replace(one, mechanism=replace(one.mechanism, steps=1)) if isinstance(one.mechanism, DpSgd) else one


UNPAID: dict[str, tuple[Callable[[list[Release]], list[Release]], str]] = {
    "a round's steps": (no_model(1), "round 2: "),
    "the last round": (no_model(ROUNDS - 1), "round 3: "),
    "group sums": (lambda all_: [one for one in all_ if not (one.round == 2 and "sums" in one.what)], "round 3: "),
    "the number of patients": (lambda all_: [one for one in all_ if one.what != "units"], "round 1: "),
    "numbers of groups": (lambda all_: [one for one in all_ if "counts" not in one.what], "round 1: "),
    "noise that was not there": (lambda all_: [other_noise(one) for one in all_], "round 1, 2, 3: "),
    "steps that were not counted": (lambda all_: [fewer_steps(one) for one in all_], "round 1, 2, 3: "),
    "another plan's releases": (lambda all_: [replace(one, plan_sha256="0" * 64) for one in all_], "round 1, 2, 3: "),
    "another job's": (lambda all_: [replace(one, job="another") for one in all_], "round 1, 2, 3: "),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), UNPAID.values(), ids=UNPAID)
def test_a_round_that_was_trained_and_not_paid_is_found(site: Path, change: Any, words: str) -> None:
    paid(site, change(releases()))
    recorded(site, [line(number) for number in range(ROUNDS)])
    (text,) = ledger_findings(site)
    assert words in text
    assert severities(audit_kit(site))["FFA-407"] == "critical"


def test_a_run_without_any_ledger_is_found(site: Path) -> None:
    recorded(site, [line(0)])
    (text,) = ledger_findings(site)
    assert "private training, and no ledger of the data set" in text


def test_only_rounds_of_this_site_must_be_paid_here(site: Path) -> None:
    paid(site, releases(rounds=range(2)))
    recorded(site, [line(0), line(1), line(2, ("hospital-2", "hospital-3"))])
    assert ledger_findings(site) == []


def test_a_lost_round_was_paid_too(site: Path) -> None:
    paid(site, releases(rounds=[0]))
    lost = LostRound(round=1, code="FF-RUN-X", participants={"measure": (kits.SITE,)}, refusals=())
    recorded(site, [line(0)], lost=(lost,))
    assert "round 2: " in ledger_findings(site)[0]


def test_what_was_done_before_a_run_was_resumed_stands_under_another_job(site: Path) -> None:
    paid(site, [*releases(job="earlier", rounds=[0, 1]), *releases(rounds=[2])])
    recorded(site, [line(0), line(1), line(2)], first=2)
    assert ledger_findings(site) == []


def test_where_batches_depend_on_the_number_of_patients_noise_is_compared(site: Path) -> None:
    plan = changed(SMALL, training__batch={"unit": "records", "amount": 64})
    here = [
        replace(one, mechanism=replace(one.mechanism, q=0.123, steps=9)) if isinstance(one.mechanism, DpSgd) else one
        for one in releases(plan)
    ]
    paid(site, here)
    recorded(site, [line(number) for number in range(ROUNDS)], plan=plan)
    assert ledger_findings(site) == []
    recorded(site, [line(0)], plan=plan, job="second")
    assert "second/fairflare/models/record.json" in ledger_findings(site)[0]
    quiet = [
        replace(other_noise(one), job="second") if one.what == "model" else replace(one, job="second") for one in here
    ]
    paid(site, quiet)
    assert "second/fairflare/models/record.json" in ledger_findings(site)[0]


def test_a_run_without_differential_privacy_needs_no_ledger(site: Path) -> None:
    recorded(site, [line(0)], plan=changed(SMALL, differential_privacy=None))
    report = audit_kit(site)
    assert (texts(report, "FFA-407"), "FFA-407" in {one.rule.id for one in report.not_checked}) == ([], True)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file: file.write_bytes(b"no ledger" * 99), "FF-LEDGER-DAMAGED"),
        (lambda file: file.unlink(), "FF-LEDGER-ROLLBACK"),
        (lambda file: file.write_bytes(file.with_name("older").read_bytes()), "FF-LEDGER-ROLLBACK"),
    ],
    ids=["damaged", "gone", "rolled back"],
)
def test_a_ledger_that_does_not_verify_is_found(site: Path, spoil: Any, code: str) -> None:
    file = paid(site, releases()[:2])
    file.with_name("older").write_bytes(file.read_bytes())
    paid(site, releases()[2:])
    spoil(file)
    (text,) = ledger_findings(site)
    assert code in text
    assert str(site) not in text


def test_a_ledger_that_a_job_holds_is_waited_for_and_then_undecided(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = paid(site, releases())
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    handle = os.open(f"{file}.lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert "pays from the ledger" in undecided(site)[0]
    finally:
        os.close(handle)
    assert undecided(site) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: os.symlink("/etc/passwd", file)], ids=["pipe", "link"])
def test_a_ledger_or_record_that_is_no_file_is_undecided(site: Path, make: Any) -> None:
    file = paid(site, releases())
    file.unlink()
    make(file)
    recorded(site, [line(0)])
    place = site / JOB / "fairflare" / "models" / "record.json"
    place.unlink()
    make(place)
    assert len(undecided(site)) == 2


def test_a_record_in_another_folder_is_none_of_a_job(site: Path) -> None:
    recorded(site, [line(0)])
    (site / JOB / "fairflare").rename(site / JOB / "another")
    assert ledger_findings(site) == []


def test_what_a_dead_job_left_half_written_is_read_as_the_site_would(site: Path) -> None:
    file = paid(site, releases())
    recorded(site, [line(number) for number in range(ROUNDS)])
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("PRAGMA cache_size=1")
    writer.execute("BEGIN IMMEDIATE")
    (last,) = writer.execute("SELECT max(seq) FROM events").fetchone()
    for number in range(1, 50):
        writer.execute("INSERT INTO events VALUES (?, ?, ?)", (last + number, "x" * 4000, b"x"))
    journal = Path(f"{file}-journal").read_bytes()
    writer.execute("COMMIT")
    writer.close()
    torn = file.read_bytes()
    assert len(ledger_findings(site)) == 1
    Path(f"{file}-journal").write_bytes(journal)  # as if the power had failed before COMMIT took it away
    assert ledger_findings(site) == []
    assert undecided(site) == []
    assert file.read_bytes() == torn


def test_a_record_that_cannot_be_read_is_undecided(site: Path) -> None:
    recorded(site, [line(0)])
    (site / JOB / "fairflare" / "models" / "record.json").write_text("{", encoding="utf-8")
    assert ["cannot be read" in one for one in undecided(site)] == [True]


def test_a_store_that_is_no_safe_place_is_undecided(site: Path) -> None:
    paid(site, releases())
    (site.parent / "store").chmod(0o777)
    assert "FF-POLICY-STORE" in undecided(site)[0]
