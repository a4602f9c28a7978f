# SPDX-License-Identifier: Apache-2.0
"""What a person asks of a data set's ledger, and how much noise a plan needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairflare import presets, schema
from fairflare.cli import app
from fairflare.errors import FairFlareError
from fairflare.plan import GroupNoise, read_plan
from fairflare.policy import open_policy, write_policy
from fairflare.policy.site import MostPrivacyLoss
from fairflare.privacy.anchor import ledger_anchor
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget, DpSgd, Gaussian, Release

JOBS = Path(__file__).resolve().parents[3] / "jobs"
PLAN = presets.heart(
    "fair", {
        **presets.flexfair(presets.penalty("sex", "equal_accuracy", 2.0)), "min_weight": 0.0, "max_weight": 3.0,
        "utility_clip": 4.0,
    },
)  # fmt: skip
#: A probability's gradient is no multiple of the loss's: clipping would mix the two.
ODDS = presets.flexfair({**presets.penalty("sex", "demographic_parity", 2.0), "utility": "probability"})
SPENT = [
    Release(PLAN.sha256, "job-1", 0, "model", DpSgd(0.05, 1.2, 100)),
    Release(PLAN.sha256, "job-1", 1, "sex", Gaussian(20.0, 1.0, 1)),
    Release(PLAN.sha256, "job-2", 0, "sex", Gaussian(20.0, 1.0, 1)),
]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    kit = tmp_path / "kit"
    (kit / "startup").mkdir(parents=True)
    (kit / "startup" / "client.crt").touch()
    (kit / "local").mkdir()
    (tmp_path / "store").mkdir(mode=0o700)
    policy = open_policy(tmp_path / "store", identities="kit")
    most = MostPrivacyLoss(epsilon=8.0, delta=1e-5, relation="add_remove")
    write_policy(kit / "local", policy.model_copy(update={"differential_privacy": most}))
    return kit


@pytest.fixture
def spent(kit: Path, tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "store" / "heart" / "ledger.sqlite", ledger_anchor(kit, "heart"))
    ledger.spend(Budget(8.0, 1e-5), *SPENT)
    return kit


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(schema.pretty(PLAN), encoding="utf-8")
    return tmp_path / "plan.json"


def fairflare(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(*words: object) -> str:
    result = fairflare(*words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def refused(code: str, *words: object) -> None:
    result = fairflare(*words)
    assert isinstance(result.exception, FairFlareError), result.output
    assert result.exception.code == code


def test_show_says_what_each_job_spent_and_what_is_left(spent: Path) -> None:
    text = said("ledger", "show", spent / "local", "heart")
    assert "heart: 3 private releases" in text
    assert f"job job-1, plan {PLAN.sha256[:16]}: rounds 0 to 1, 2 releases of model, sex" in text
    assert "job job-2" in text
    assert "of a patient who is in several" in text
    found = json.loads(said("ledger", "show", spent / "local", "heart", "--json"))
    both = found["epsilon"]
    assert 0 < both["add_remove"]["value"] < both["replace"]["value"]
    assert f"epsilon {both['replace']['value']:.3f} at delta 1e-05, one patient in another's place (pld)" in text
    assert f"budget: epsilon 8; {8 - both['add_remove']['value']:.3f} left" in text
    assert "left" not in said("ledger", "show", spent / "local", "heart", "--delta", "1e-7")


def test_verify_and_export(spent: Path, tmp_path: Path) -> None:
    file = tmp_path / "store" / "heart" / "ledger.sqlite"
    _, head = Ledger(file).head()
    assert f"last hash {head.hex()}" in said("ledger", "verify", spent / "local", "heart")
    said("ledger", "export", spent / "local", "heart", "--to", tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [json.loads(line) for line in said("ledger", "export", spent / "local", "heart").splitlines()]
    assert [one["release"]["job"] for one in lines] == ["job-1", "job-1", "job-2"]
    assert isinstance(
        fairflare("ledger", "export", spent / "local", "heart", "--to", tmp_path / "all.jsonl").exception,
        FileExistsError,
    )
    file.unlink()
    for command in ("show", "verify", "export"):
        refused("FF-LEDGER-ROLLBACK", "ledger", command, spent / "local", "heart")


def test_an_unused_ledger_is_empty_and_no_name_is_no_data_set(kit: Path, tmp_path: Path) -> None:
    assert "0 private releases" in said("ledger", "verify", kit / "local", "heart")
    assert "8.000 left" in said("ledger", "show", kit / "local", "heart")
    assert list((tmp_path / "store").iterdir()) == []
    for delta in (0, 1, -1, "nan"):
        refused("FF-LEDGER-FORM", "ledger", "show", kit / "local", "heart", "--delta", delta)
    for name in ("../heart", "", "Heart"):
        refused("FF-LEDGER-DATA-SET", "ledger", "show", kit / "local", name)


def test_a_policy_without_a_budget_is_named(tmp_path: Path, plan: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    policy = write_policy(tmp_path, open_policy(tmp_path / "store"))
    refused("FF-LEDGER-NO-BUDGET", "ledger", "show", policy, "heart", "--site", "site-1")
    assert "names none" in said("ledger", "show", policy, "heart", "--site", "site-1", "--delta", "1e-5")
    refused("FF-LEDGER-ASKED", "plan", "privacy", plan, "--records", 300)


def test_a_proposal_is_a_plan_that_is_forecast_as_it_said_and_covered_only_where_it_fits(
    spent: Path, plan: Path, tmp_path: Path
) -> None:
    words = ("plan", "privacy", plan, "--records", 300, "--policy", spent / "local", "--to", tmp_path / "new.json")
    text = said(*words, "--smallest-group", 40)
    made = read_plan(tmp_path / "new.json")
    assert made.differential_privacy is not None
    assert f"(sigma) {made.differential_privacy.noise_multiplier:.3f} times" in text
    assert "warning: a group of 40 patients is small" in text
    assert "not covered, exact sums of validation and test records among them: counts, evaluation sums" in text
    after = text.split("epsilon after the plan ")[1].split()[0]
    asked = ("--policy", spent / "local", "--records")
    forecast = said("ledger", "forecast", tmp_path / "new.json", *asked, 300)
    assert f"after the plan: epsilon {after} of 8 at delta 1e-05" in forecast
    assert "covered: all 20 rounds" in forecast
    refused("FF-LEDGER-ASKED", *words)  # nothing is overwritten
    fewer = fairflare("ledger", "forecast", tmp_path / "new.json", *asked, 250)
    assert fewer.exit_code == 1
    assert "NOT covered: 1" in fewer.output
    assert " of 20 rounds can be afforded" in fewer.output
    refused("FF-LEDGER-PLAN", "ledger", "forecast", plan, *asked, 300)
    kept = said("plan", "privacy", tmp_path / "new.json", "--keep", "--records", 250, *asked[:2])
    assert "more than the budget" in kept
    assert f"(sigma) {made.differential_privacy.noise_multiplier:.3f} times" in kept


def test_options_change_what_the_plan_says_and_its_rules_are_asked(plan: Path, tmp_path: Path) -> None:
    asked = ("plan", "privacy", plan, "--records", 300, "--epsilon", 8)
    said(
        *asked, "--clip", 0.5, "--count-noise", 20, "--records-per-unit", 3, "--gradients", "ghost",
        "--group-noise", 12, "--groups-per-unit", 2, "--shared-noise", "--to", tmp_path / "new.json",
    )  # fmt: skip
    made = read_plan(tmp_path / "new.json")
    privacy = made.differential_privacy
    assert privacy is not None
    assert (privacy.clip, privacy.count_noise, privacy.records_per_unit, privacy.gradients) == (0.5, 20.0, 3, "ghost")
    assert privacy.groups == GroupNoise(noise_multiplier=12.0, groups_per_unit=2, shared=True)
    assert made.consents == ("shared_noise",)
    again = ("plan", "privacy", tmp_path / "new.json", "--records", 300, "--epsilon", 3, "--to", tmp_path / "less.json")
    said(*again)
    less = read_plan(tmp_path / "less.json").differential_privacy
    assert less is not None
    assert less.noise_multiplier > privacy.noise_multiplier
    assert less.model_copy(update={"noise_multiplier": privacy.noise_multiplier}) == privacy
    (tmp_path / "odds.json").write_text(schema.pretty(presets.heart("x", ODDS)), encoding="utf-8")
    refused("FF-PLAN-RULE", "plan", "privacy", tmp_path / "odds.json", *asked[3:])


def test_options_that_make_no_sense_are_named(plan: Path, tmp_path: Path) -> None:
    asked = ("plan", "privacy", plan, "--records", 300, "--epsilon")
    refused("FF-LEDGER-FORM", *asked, -1)
    refused("FF-LEDGER-FORM", *asked, 8, "--delta", 2)
    refused("FF-PLAN-VALUE", *asked, 8, "--group-noise", 0)
    refused("FF-PLAN-VALUE", *asked, 8, "--clip", -1)
    refused("FF-PLAN-VALUE", *asked, 8, "--gradients", "functorch")
    refused("FF-LEDGER-ASKED", *asked, 8, "--keep")
    refused("FF-LEDGER-UNREACHABLE", *asked, 1, "--group-noise", 1)
    counting = tmp_path / "counting.json"
    counting.write_text(
        (JOBS / "heart_feasibility" / "app" / "config" / "plan.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    refused("FF-LEDGER-ASKED", "plan", "privacy", counting, "--records", 300, "--epsilon", 8)


def test_without_the_package_that_counts_it_is_named(spent: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairflare.privacy.accounting", None)
    monkeypatch.delitem(sys.modules, "fairflare.privacy.solver", raising=False)
    monkeypatch.delattr("fairflare.privacy.accounting", raising=False)
    refused("FF-LEDGER-ACCOUNTING", "plan", "privacy", plan, "--records", 300, "--epsilon", 8)
    refused("FF-LEDGER-ACCOUNTING", "ledger", "show", spent / "local", "heart")
    said("ledger", "verify", spent / "local", "heart")
