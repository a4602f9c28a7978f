# SPDX-License-Identifier: Apache-2.0
"""Differential privacy in words: at the plan, in a record's notices and on the page, with what it does not cover."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from fairflare import presets, schema
from fairflare.cli import app
from fairflare.engine.describe import notices
from fairflare.evaluation.exchanged import exchanged_words
from fairflare.evaluation.facts import consent_words, guards
from fairflare.evaluation.page import ReportedRun, to_html
from fairflare.evaluation.privacy_words import COVERED_NOTICE, NOT_COVERED, privacy_words, shared_words
from fairflare.plan import Plan, parse_plan
from tests.unit.evaluation.records import draw, make_plan, make_record


def private_plan(job: str = "heart_flexfair", *, shared: bool = False) -> Plan:
    """A shipped plan, private, with numbers that differ from each other."""
    groups = {"noise_multiplier": 9.0, "groups_per_unit": 4, "shared": shared} if job == "heart_flexfair" else None
    privacy = {
        "clip": 1.5, "noise_multiplier": 0.7, "count_noise": 3.0, "records_per_unit": 2, "gradients": "hooks",
        "groups": groups,
    }  # fmt: skip
    data = json.loads(schema.pretty(presets.shipped(job)))
    consents = ["shared_noise"] if shared else []
    return parse_plan(json.dumps({**data, "differential_privacy": privacy, "consents": consents}))


PLAIN, FAIR, SHARED = private_plan("heart_fedavg"), private_plan(), private_plan(shared=True)


def test_words_hold_every_number_of_the_plan() -> None:
    words = "; ".join(privacy_words(FAIR))
    assert "patients of the training split" in words
    assert "cut off at an L2 norm of 1.5; noise in the sum of each batch, 0.7 times what a patient may change" in words
    assert "A batch holds at most 2 records of a patient" in words
    assert "training patients is told with noise of 3;" in words
    assert "noise of 9 times what a patient may change, who counts in at most 4 groups of an attribute" in words
    assert "Group sums" not in "; ".join(privacy_words(PLAIN))
    assert list(privacy_words(presets.shipped("heart_fedavg"))) == []


def test_shared_noise_is_said_to_hold_as_long_as_hospitals_keep_their_parts() -> None:
    words = shared_words(SHARED)
    assert "only as long as at most 1 of them tell the server their parts; of 3 sites each adds 1/2" in words
    assert words in tuple(privacy_words(SHARED))
    assert words not in tuple(privacy_words(FAIR))
    masking = SHARED.protection.masking
    assert masking is not None
    weak = SHARED.protection.model_copy(update={"masking": masking.model_copy(update={"colluders": 2})})
    assert "no less noise" in shared_words(SHARED.model_copy(update={"protection": weak}))
    assert list(consent_words(SHARED)) == ["Noise of group sums is added by all hospitals together; each adds a part."]


def test_a_record_says_what_is_not_covered() -> None:
    assert COVERED_NOTICE in notices(PLAIN)
    assert [one for one in notices(PLAIN) if "no differential privacy" in one] == []
    assert [one for one in notices(SHARED) if one not in notices(FAIR)] == [shared_words(SHARED)]
    clear = notices(presets.shipped("heart_fedavg"))
    assert COVERED_NOTICE not in clear
    assert "no differential privacy: the sums themselves can reveal facts about single patients" in clear


def test_the_page_says_it_in_sentences() -> None:
    record = make_record(make_plan(), draw()).model_copy(update={"plan": FAIR, "final": None, "status": "stopped"})
    covered, evaluation = (one for one in guards(record) if one.what.startswith("Differential privacy"))
    assert covered.on
    assert not evaluation.on
    assert evaluation.words == f"{NOT_COVERED}."
    sentences = tuple(privacy_words(FAIR))
    assert covered.words == " ".join(f"{one}." for one in sentences if one != NOT_COVERED)
    page = to_html([ReportedRun("x", record, None)], [])
    assert "0.7 times what a patient may change" in page


def test_the_plan_command_says_it_before_anybody_approves(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(schema.pretty(SHARED), encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", "check", str(tmp_path / "plan.json")])
    assert done.exit_code == 0
    assert "  differential privacy: in training\n" in done.output
    for one in privacy_words(SHARED):
        assert f"    {one}\n" in done.output
    assert "the sum of its losses, and its patients, both with noise" in done.output
    assert "consent of the hospitals: shared noise" in done.output
    done = CliRunner().invoke(app, ["plan", "check", "jobs/heart_flexfair"])
    assert "  differential privacy: none\n" in done.output
    assert exchanged_words(FAIR) != exchanged_words(presets.shipped("heart_flexfair"))
