# SPDX-License-Identifier: Apache-2.0
"""``fairflare audit``: exit statuses, both forms of the report, explanations, and how soon it answers."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fairflare.audit.rules import RULES
from fairflare.policy import standard_policy, write_policy
from tests.unit.audit import kits
from tests.unit.cli.test_cli import fairflare

JOB = "jobs/heart_flexfair"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = kits.provision(tmp_path_factory.mktemp("kits"), stock=False)
    return kits.finish(made / "prod_00" / kits.SITE)


def test_a_clean_job_and_a_clean_kit_give_0(kit):
    assert fairflare("audit", "job", JOB).returncode == 0
    done = fairflare("audit", "kit", str(kit))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Result: no finding; 0 not decided" in done.stdout


def test_findings_give_1_unless_they_are_milder_than_asked_for(tmp_path):
    write_policy(tmp_path, standard_policy(tmp_path / "store"))
    done = fairflare("audit", "job", JOB, "--policy", str(tmp_path))
    assert done.returncode == 1
    assert "FFA-501" in done.stdout
    (tmp_path / "site_policy.json").write_text("{}", encoding="utf-8")
    assert fairflare("audit", "job", JOB, "--policy", str(tmp_path)).returncode == 1
    assert fairflare("audit", "job", JOB, "--policy", str(tmp_path), "--fail-on", "critical").returncode == 0


def test_what_is_undecided_gives_2_and_findings_win(kit, tmp_path):
    broken = kits.copy(kit.parent.parent, kits.SITE, tmp_path)
    (broken / "local/roster.json").write_text("{", encoding="utf-8")
    done = fairflare("audit", "kit", str(broken))
    assert done.returncode == 2
    assert "Not decided: none of this is a pass" in done.stdout
    (broken / "local/privacy.json").unlink()
    assert fairflare("audit", "kit", str(broken)).returncode == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["kit"], "FF-AUDIT-FOLDER"),
        (["job"], "FF-AUDIT-FOLDER"),
        (["kit", "none"], "FF-AUDIT-FOLDER"),
        (["job", "none"], "FF-AUDIT-FOLDER"),
        (["kit", "."], "FF-AUDIT-KIT"),
        (["job", ".", "--kit", "."], "FF-AUDIT-KIT"),
        (["job", ".", "--policy", "none"], "FF-AUDIT-POLICY"),
        (["kit", "--rule", "FFA-999"], "FF-AUDIT-RULE"),
        ([], "Usage"),
        (["nothing"], "Usage"),
        (["kit", "--nothing"], "Usage"),
        (["kit", "a", "b"], "Usage"),
        (["job", ".", "--fail-on", "worst"], "Usage"),
        (["job", "--policy"], "requires an argument"),
    ],
)
def test_an_audit_that_cannot_begin_gives_4(tmp_path, words, code):
    done = fairflare("audit", *words, cwd=tmp_path)
    assert done.returncode == 4
    assert code in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_auditor_that_breaks_has_passed_nothing(monkeypatch, capsys):
    from fairflare.cli import app

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fairflare.audit.auditor._audit", broken)
    with pytest.raises(SystemExit) as caught:
        app(["audit", "job", str(kits.ROOT / JOB)])
    assert caught.value.code == 4
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_report_for_programs(kit):
    done = fairflare("audit", "job", JOB, "--kit", str(kit), "--json")
    data = json.loads(done.stdout)
    assert done.returncode == 1
    assert data["format"] == "fairflare/audit/1"
    assert {one["rule"] for one in data["findings"]} == {"FFA-307", "FFA-501"}
    assert str(kit) not in done.stdout


@pytest.mark.parametrize("name", ["FFA-206", "ffa-206", "206"])
def test_a_rule_is_explained(name):
    done = fairflare("audit", "kit", "--rule", name)
    assert done.returncode == 0
    assert done.stdout.startswith("FFA-206  critical")
    assert "GDPR 32" in done.stdout
    assert json.loads(fairflare("audit", "job", "--rule", name, "--json").stdout)[0]["rule"] == "FFA-206"


def test_all_rules_are_listed():
    done = fairflare("audit", "rules", "--json")
    assert [one["rule"] for one in json.loads(done.stdout)] == list(RULES)
    text = fairflare("audit", "rules").stdout
    assert all(rule.id in text for rule in RULES.values())


def test_nothing_hostile_reaches_the_terminal(tmp_path):
    job = kits.good_job(tmp_path)
    name = "\x1b[2J[bold]x"
    (job / "app" / name).mkdir()
    (job / "app/config" / f"{name}.json").touch()
    for words in ([], ["--json"]):
        done = fairflare("audit", "job", str(job), *words)
        assert done.returncode == 1
        assert "\x1b" not in done.stdout
        assert "bold" not in done.stdout


def test_the_audit_of_a_job_takes_no_second():
    # Seconds of the processor, Python's start included: on the clock they mean something on an idle machine only.
    command = [str(Path(sys.executable).with_name("fairflare")), "audit", "job", JOB]
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=kits.ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1


def test_the_auditor_is_imported_only_when_it_is_asked():
    code = "import sys, fairflare.cli; print(*sorted(one for one in sys.modules if one.startswith('fairflare.audit')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fairflare.audit", "fairflare.audit.rule"]
