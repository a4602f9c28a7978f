# SPDX-License-Identifier: Apache-2.0
"""``fairflare plan feasibility``, the run, and ``fairflare feasibility``: from a plan to an exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fairflare import presets, schema
from fairflare.cli import app
from fairflare.errors import PlanError, RunError
from fairflare.plan import read_plan

PLAN = presets.shipped("heart_flexfair")


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    file.write_text(schema.pretty(PLAN), encoding="utf-8")
    return file


def test_the_plan_is_the_same_but_for_name_and_method(source, tmp_path):
    made = tmp_path / "count.json"
    done = invoke(
        "plan", "feasibility", source, "--claim", "sex=0.2", "--claim", "age:equalized_odds=0.3", "--to", made
    )
    assert done.exit_code == 0, done.output
    plan = read_plan(made)
    assert [(one.attribute, one.criterion, one.gap) for one in plan.method.claims] == [
        ("sex", "equal_opportunity", 0.2), ("age", "equalized_odds", 0.3),
    ]  # fmt: skip
    assert plan.name == "heart_flexfair_feasibility"
    assert plan.model_copy(update={"name": PLAN.name, "method": PLAN.method}) == PLAN
    assert "records are counted, and nothing is trained" in invoke("plan", "check", made).output
    assert isinstance(invoke("plan", "feasibility", source, "--to", made).exception, PlanError)  # it is there already


@pytest.mark.parametrize("claim", ["sex", "sex=large", "age=0.2"])
def test_a_claim_that_does_not_say_enough_is_refused(source, claim):
    problem = invoke("plan", "feasibility", source, "--claim", claim).exception
    assert isinstance(problem, PlanError)
    assert problem.code == "FF-PLAN-CLAIM"


def test_from_a_plan_to_an_exit_status(tmp_path):
    jobs = Path(__file__).resolve().parents[3] / "jobs"
    folder = tmp_path / "run"
    done = invoke("run", "local", jobs / "heart_feasibility", "--out", folder, "--records", "60")
    assert done.exit_code == 0, done.output
    assert invoke("run", "verify", folder).exit_code == 0
    shown = invoke("feasibility", folder, "--json", tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert "FF-RUN-UNDERPOWERED" in shown.output  # 48 test records are never enough for a gap of 0.2
    assert shown.exit_code == 1
    assert answer["feasible"] is False
    refused = invoke("report", folder).exception
    assert isinstance(refused, RunError)
    assert refused.code == "FF-RUN-ONLY-COUNTED"
