# SPDX-License-Identifier: Apache-2.0
"""The smallest gap that a test set can show, by hand and by simulation; and what is said about a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.errors import PlanError, RunError
from fairflare.evaluation.feasibility import FeasibilitySummary, summarise_feasibility, to_json
from fairflare.evaluation.feasibility_text import feasibility_report
from fairflare.evaluation.power import records_in_each, records_needed, smallest_gap
from fairflare.evaluation.render import to_text
from fairflare.plan import Plan, parse_plan
from fairflare.record import OTHER, Feasibility, Refusal, RunRecord, Session, Use, VocabularyCell
from tests.unit.evaluation.records import make_without

CLAIM = {"attribute": "sex", "criterion": "equal_opportunity", "gap": 0.2}


def test_the_smallest_gap_is_the_textbook_one():
    # z(0.975) + z(0.8) = 1.959964 + 0.841621 = 2.801585; times sqrt(0.25 / 100 + 0.25 / 100) = 0.0707107
    assert smallest_gap(100, 100, 0.05, 0.8) == pytest.approx(0.198102, abs=1e-6)
    # 2.801585 x sqrt(0.25 / 42 + 0.25 / 124) = 2.801585 x 0.0892678
    assert smallest_gap(42, 124, 0.05, 0.8) == pytest.approx(0.250091, abs=1e-5)
    # z(0.995) + z(0.9) = 2.575829 + 1.281552
    assert smallest_gap(50, 200, 0.01, 0.9) == pytest.approx(3.857381 * np.sqrt(0.25 / 50 + 0.25 / 200), abs=1e-6)


def test_no_records_show_no_gap():
    assert smallest_gap(0, 100, 0.05, 0.8) is None
    assert smallest_gap(100, 0, 0.05, 0.8) is None
    assert smallest_gap(2, 3, 0.05, 0.8) is None


@pytest.mark.parametrize(("first", "second"), [(60, 60), (40, 200), (150, 90)])
def test_a_test_of_that_gap_has_at_least_the_power_asked_for(first, second):
    """Simulated: rates on both sides of 1/2, the worst case, and others, where the gap is found more often."""
    gap = smallest_gap(first, second, 0.05, 0.8)
    assert gap is not None
    random = np.random.default_rng(1)

    def found(middle: float) -> float:
        a = random.binomial(first, middle - gap / 2, 40_000) / first
        b = random.binomial(second, middle + gap / 2, 40_000) / second
        pooled = (first * a + second * b) / (first + second)
        error = np.sqrt(pooled * (1 - pooled) * (1 / first + 1 / second))
        return float((np.abs(a - b) > 1.959964 * error).mean())

    assert 0.78 < found(0.5) < 0.86  # counts are whole, so a power is never hit exactly
    assert found(0.75) > found(0.5)


@pytest.mark.parametrize("gap", [0.15, 0.2, 0.3])
def test_records_needed_are_the_fewest_that_show_the_gap(gap):
    needed = records_needed(gap, 250, 0.05, 0.8)
    assert needed is not None
    assert (smallest_gap(needed, 250, 0.05, 0.8) or 1) <= gap < (smallest_gap(needed - 1, 250, 0.05, 0.8) or 1)
    each = records_in_each(gap, 0.05, 0.8)
    assert (smallest_gap(each, each, 0.05, 0.8) or 1) <= gap < (smallest_gap(each - 1, each - 1, 0.05, 0.8) or 1)


def test_beside_too_few_others_no_number_is_enough():
    assert records_needed(0.1, 42, 0.05, 0.8) is None
    assert records_needed(0.1, 0, 0.05, 0.8) is None
    assert records_in_each(0.1, 0.05, 0.8) == 393  # 0.5 (2.801585 / 0.1)^2 = 392.4


# -------------------------------------------------------------------------------------------------------------- summary


def plan(*claims: presets.Json, minimum: int = 0) -> Plan:
    data = json.loads(schema.pretty(presets.feasibility(presets.shipped("heart_flexfair"), "count", *claims)))
    data["cells"]["minimum"], data["protection"] = minimum, presets.UNPROTECTED
    return parse_plan(json.dumps(data))


def summary(
    the_plan: Plan, records: dict[tuple[str, str, str], int], uses: dict[tuple[str, str], int] | None = None
) -> FeasibilitySummary:
    """Of test records by (attribute, value, label) at four hospitals."""
    cells = [
        VocabularyCell(split="test", attribute=a, value=v, label=label, sites=4 if n else 0, records=n)
        for (a, v, label), n in records.items()
    ]
    used = {**{(a, v): 4 for a, v, _ in records}, **(uses or {})}
    found = Feasibility(
        uses=tuple(Use(attribute=a, value=v, sites=n) for (a, v), n in used.items()), cells=tuple(cells)
    )
    return summarise_feasibility(record(the_plan, found))


def record(the_plan: Plan, found: Feasibility | None) -> RunRecord:
    session = Session(
        number=1, transport="local", started="", first_round=0, previous_record_sha256=None,
        roster=("a", "b", "c", "d"), join_refusals=(), identities=None, transcript=None,
        records={"training": 900.0, "validation": 300.0, "test": 300.0, "opted_out": 0.0},
    )  # fmt: skip
    return RunRecord(
        format="fairflare/record/2", plan=the_plan, plan_sha256=the_plan.sha256, software={}, notices=(),
        sessions=(session,), status="complete", reason=None, ended="", initial_model_sha256="0" * 64, rounds=(),
        lost_rounds=(), begun=1, final=None, feasibility=found,
    )  # fmt: skip


SEX = {
    ("sex", "female", "absent"): 98, ("sex", "female", "present"): 124,
    ("sex", "male", "absent"): 56, ("sex", "male", "present"): 42,
}  # fmt: skip
AGE = {("age", word, label): 80 for word in ("lt60", "ge60") for label in ("absent", "present")}


def codes(found: FeasibilitySummary) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_claim_below_the_smallest_gap_is_told_so_once_with_what_is_missing():
    found = summary(plan(CLAIM), SEX | AGE)
    assert codes(found) == ["FF-RUN-UNDERPOWERED"]
    assert not found.feasible
    (text,) = (finding.text for finding in found.findings)
    # 0.25 / ((0.2 / 2.801585)^2 - 0.25 / 124) = 81.2
    assert "42 test records ('present') of group 'male' and 124 others can show a gap of 0.25" in text
    assert "needs about 40 records more in group 'male'" in text
    assert "underpowered" in to_text(feasibility_report(found))


def test_where_the_others_are_too_few_as_well_both_sides_are_named():
    found = summary(plan({**CLAIM, "gap": 0.1}), SEX | AGE)
    assert "needs about 393 records of group 'male' and as many of the others" in found.findings[0].text


def test_what_is_withheld_may_be_what_a_claim_needs():
    """Of 300 test records 222 positive ones and 78 others; 180 of the former are shown, 42 of them of women."""
    everybody = {("all", "all", "absent"): 78, ("all", "all", "present"): 222}
    shown = {("sex", "female", "present"): 138, ("sex", "male", "present"): 42, ("sex", "female", "absent"): 78}
    found = summary(plan(CLAIM, minimum=11), everybody | shown)
    (one,) = (one for one in found.detectable if one.group == "male" and one.claim)
    assert (one.records, one.rest, one.hidden) == (42, 138, 42)
    assert one.best == smallest_gap(84, 138, 0.05, 0.8)
    assert one.verdict == "unknown"
    assert codes(found)[0] == "FF-RUN-POWER-UNKNOWN"
    assert not found.feasible  # what is not known to be enough is not claimed
    out_of_reach = summary(plan({**CLAIM, "gap": 0.1}, minimum=11), everybody | shown)
    assert codes(out_of_reach)[0] == "FF-RUN-UNDERPOWERED"


def test_a_claim_within_reach_is_feasible():
    found = summary(plan({**CLAIM, "gap": 0.3}), SEX | AGE)
    assert found.findings == ()
    assert found.feasible
    assert [one.verdict for one in found.detectable] == ["enough", "enough", "", ""]


def test_the_condition_of_the_criterion_decides_which_records_count():
    found = summary(plan({**CLAIM, "criterion": "equalized_odds"}, {**CLAIM, "criterion": "equal_accuracy"}), SEX)
    counts = {(one.criterion, one.group, one.condition): one.records for one in found.detectable}
    assert counts["equalized_odds", "male", "absent"] == 56
    assert counts["equalized_odds", "male", "present"] == 42
    assert counts["equal_accuracy", "male", "all"] == 98
    levels = {one.criterion: one.alpha for one in found.detectable if one.attribute == "sex"}
    assert levels == {"equalized_odds": 0.025, "equal_accuracy": 0.05}  # two tests stand behind the former


def test_attributes_without_a_claim_are_shown_for_everybody():
    found = summary(plan(), SEX | AGE)
    assert {(one.attribute, one.condition, one.claim) for one in found.detectable} == {
        ("sex", "all", None), ("age", "all", None),
    }  # fmt: skip
    assert found.feasible


def test_other_words_stop_the_plan_and_words_that_nobody_has_are_named():
    uses = {("sex", OTHER): 1, ("sex", "male"): 3, ("age", "ge60"): 0}
    found = summary(plan(), SEX | AGE, uses)
    assert codes(found)[:3] == ["FF-RUN-CODING", "FF-RUN-UNUSED", "FF-RUN-UNUSED"]
    assert "1 of 4 hospitals have words or numbers that the plan does not have" in found.findings[0].text
    assert not found.feasible
    assert [one.severity for one in found.findings[1:]] == ["warning"] * (len(found.findings) - 1)


def test_a_hospital_that_could_not_join_is_named():
    whole = record(plan(), Feasibility(uses=(), cells=()))
    refusal = Refusal(site="b", task="join", code="FF-DATA-COLUMN")
    session = whole.sessions[0].model_copy(update={"join_refusals": (refusal,)})
    found = summarise_feasibility(whole.model_copy(update={"sessions": (session,)}))
    assert found.sites == 3
    assert (found.findings[0].code, found.findings[0].text) == (
        "FF-DATA-COLUMN",
        "b could not join, and is not counted",
    )
    assert not found.feasible


def test_a_hospital_that_did_not_take_the_job_is_named():
    found = summarise_feasibility(make_without(record(plan(), Feasibility(uses=(), cells=()))))
    assert (found.findings[0].severity, found.findings[0].code) == ("error", "FF-POLICY-REFUSED")
    assert "lund" in found.findings[0].text
    assert found.sites == 4


def test_cells_of_which_nothing_is_shown_are_named():
    found = summary(plan(minimum=11), {**SEX, ("sex", "male", "present"): 0} | AGE)
    assert codes(found) == ["FF-RUN-SMALL-CELL"]
    assert found.findings[0].text == "test: no records, or too few to show: male/present"


def test_json_has_everything():
    data = json.loads(to_json(summary(plan(CLAIM), SEX | AGE)))
    assert data["feasible"] is False
    assert data["findings"][0]["code"] == "FF-RUN-UNDERPOWERED"
    assert data["detectable"][0]["gap"] == pytest.approx(0.250091, abs=1e-5)
    assert data["cells"][0] == {
        "split": "test", "attribute": "sex", "value": "female", "label": "absent", "sites": 4, "records": 98,
    }  # fmt: skip


def test_another_record_is_refused():
    with pytest.raises(RunError, match="FF-RUN-NOT-COUNTED"):
        summarise_feasibility(record(plan(), None))


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ([{**CLAIM, "attribute": "hospital"}], "no single hospital"),
        ([{**CLAIM, "attribute": "skin"}], "expected one of sex, age"),
        ([CLAIM, CLAIM], "each once"),
        ([{**CLAIM, "gap": 1.0}], "gap"),
    ],
)
def test_a_claim_that_cannot_be_examined_is_refused_with_the_plan(claims, word):
    with pytest.raises(PlanError) as caught:
        plan(*claims)
    assert word in str(caught.value)


def test_the_tables_fit_a_hundred_columns(tmp_path: Path):
    text = to_text(feasibility_report(summary(plan(CLAIM), SEX | AGE)))
    assert max(map(len, text.splitlines())) <= 100
    assert "124 (4)" in text
