# SPDX-License-Identifier: Apache-2.0
"""Reports: committed texts, everything that an officer needs on the page, and nothing of this machine."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest
from rich.console import Console

from fairflare.audit.auditor import audit_job, audit_kit
from fairflare.audit.findings import Report
from fairflare.audit.report import limits, rules_to_json, rules_to_text, to_json, to_text
from fairflare.audit.rule import Severity
from fairflare.audit.rules import RULES
from fairflare.policy import standard_policy, write_policy
from tests.unit.audit import kits

GOLDEN = kits.ROOT / "tests" / "golden"
NOW = datetime(2026, 12, 1, 12, 0, tzinfo=timezone.utc)


def page(what: object) -> str:
    console = Console(width=100, color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(what, crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def steady(text: str) -> str:
    """Without what is new in every kit: digests of keys and certificates, days, sizes."""
    text = re.sub(r"[0-9a-f]{64}", "<sha256>", text)
    text = re.sub(r'"bytes": \d+', '"bytes": 0', text)
    return re.sub(r"valid until(\"?): (\"?)\d{4}-\d\d-\d\d", r"valid until\1: \2<day>", text)


def compare(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.fixture
def of_stock_kit(stock: Path, tmp_path: Path) -> Report:
    kit = kits.copy(stock, kits.SITE, tmp_path)
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o600 if path.suffix == ".key" else 0o644)
    return audit_kit(kit, now=NOW)


@pytest.fixture
def of_job(tmp_path: Path) -> Report:
    write_policy(tmp_path, standard_policy(Path("/var/lib/fairflare/hospital")))
    return audit_job(kits.ROOT / "jobs" / "heart_flexfair", policy=tmp_path, now=NOW)


def test_the_pages_are_the_committed_ones(of_stock_kit, of_job, hardened):
    compare("audit_stock_kit.txt", steady(page(to_text(of_stock_kit))))
    compare("audit_job.txt", page(to_text(of_job)))
    good = audit_job(kits.ROOT / "jobs" / "heart_flexfair", kit=hardened / "prod_00" / kits.SITE, now=NOW)
    compare("audit_job_at_kit.txt", steady(page(to_text(good))))
    compare("audit_rules.txt", page(rules_to_text(list(RULES.values()))))


def test_the_documents_are_the_committed_ones(of_stock_kit, of_job):
    compare("audit_stock_kit.json", steady(json.dumps(to_json(of_stock_kit), indent=2)) + "\n")
    compare("audit_job.json", json.dumps(to_json(of_job), indent=2) + "\n")


def test_two_audits_of_the_same_files_say_the_same(hardened):
    first, second = (audit_kit(hardened / "prod_00" / kits.SERVER, now=NOW) for _ in range(2))
    assert to_json(first) == to_json(second)


def test_a_page_says_what_was_looked_at_before_what_was_not(of_stock_kit):
    text = page(to_text(of_stock_kit))
    headings = ["Result:", "Looked at", "Findings", "Not looked at", "What no file can tell", "Files that were read"]
    places = [text.index(f"\n{heading}") for heading in headings]
    assert places == sorted(places)
    assert all(one in text for one in ("fairflare 0.", "2026-12-01 12:00:00 UTC", *of_stock_kit.facts))


def test_every_rule_is_named_once_as_looked_at_or_not(of_stock_kit, of_job):
    for report in (of_stock_kit, of_job):
        named = [one.id for one in report.checked] + [one.rule.id for one in report.not_checked]
        assert sorted(named) == sorted(RULES)
        data = to_json(report)
        told = {one["rule"] for part in ("findings", "undecided", "not_checked") for one in data[part]}
        assert told | set(data["hold"]) == set(RULES)


def test_nothing_of_this_machine_is_in_a_report(of_stock_kit, of_job, tmp_path):
    for report in (of_stock_kit, of_job):
        for text in (page(to_text(report)), json.dumps(to_json(report))):
            assert str(tmp_path) not in text
            assert "/tmp" not in text  # noqa: S108
            assert os.uname().nodename not in text


def test_doubts_stand_on_the_page(hardened, tmp_path):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / "local/roster.json").write_text("{", encoding="utf-8")
    report = audit_kit(kit)
    assert "Not decided: none of this is a pass\n  - FFA-603" in page(to_text(report))
    assert "FFA-603" not in {rule.id for rule in report.hold}
    assert [one["rule"] for one in to_json(report)["undecided"]] == ["FFA-603"]


@pytest.mark.parametrize(
    ("fail_on", "status"), [("critical", 2), ("high", 1), ("medium", 1), ("low", 1)], ids=lambda one: str(one)
)
def test_findings_win_over_doubts_and_milder_ones_do_not(hardened, tmp_path, fail_on, status):
    kit = kits.copy(hardened, kits.SITE, tmp_path)
    (kit / "local/roster.json").write_text("{", encoding="utf-8")
    kits.edit(kit / "local/privacy.json", lambda data: data.update(default_scope=None))  # high
    assert audit_kit(kit).exit_status(Severity(fail_on)) == status


def test_limits_are_told_for_each_subject(of_stock_kit, of_job):
    assert len(limits(of_stock_kit)) == 5
    assert len(limits(of_job)) == 4


def test_rules_are_listed_for_programs():
    assert [one["rule"] for one in rules_to_json(list(RULES.values()))] == list(RULES)
