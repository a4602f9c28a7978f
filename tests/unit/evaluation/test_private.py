# SPDX-License-Identifier: Apache-2.0
"""The table of epsilon: which runs are alike, what is compared with what, and that no gap stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pytest

from fairflare.errors import RunError
from fairflare.evaluation import private_page as page
from fairflare.evaluation.private import Cost, Place, PricedRun, PrivacyTable, Setting, differences, privacy_table
from fairflare.evaluation.render import to_text
from fairflare.evaluation.report import summarise
from fairflare.record import RunRecord
from tests.unit.evaluation.private_runs import private_plan, private_record
from tests.unit.evaluation.records import flexfair

EVERYBODY, MEN = Place("all", "", "group"), Place("sex", "male", "group")
WORST, GAP = Place("sex", "", "worst"), Place("sex", "", "gap")


def priced(record: RunRecord, epsilon: float | None = None, name: str = "run") -> PricedRun:
    private = record.plan.differential_privacy is not None
    cost = Cost(epsilon, None if epsilon is None else 2 * epsilon) if private else None
    return PricedRun(record, summarise(record, name=name, resamples=200), cost)


def table(runs: list[PricedRun], **options: Any) -> PrivacyTable:
    return privacy_table(runs, 1e-5, **{"together": None, **options})


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def runs() -> list[PricedRun]:
    """Two private settings and one that is not, three seeds each, in no order."""
    settings = [(2.0, 0.8, 1.0), (None, 1.4, None), (1.0, 1.1, 3.0)]
    return [priced(private_record(s, seed, skill), e) for seed in (1, 2, 3) for s, skill, e in settings]


@pytest.fixture(scope="module")
def made(runs: list[PricedRun]) -> PrivacyTable:
    return table(runs, together=Cost(5.0, 9.0))


def test_seeds_are_one_setting_and_settings_are_ordered_by_epsilon(made: PrivacyTable) -> None:
    assert [(one.noise, one.seeds) for one in made.settings] == [(s, (1, 2, 3)) for s in (None, 1.0, 2.0)]
    assert [one.cost for one in made.settings] == [None, Cost(3.0, 6.0), Cost(1.0, 2.0)]


def test_a_setting_costs_what_its_dearest_run_does(runs: list[PricedRun]) -> None:
    """A run of two sessions costs more than one of the same plan that was never broken off."""
    costs = {1: 3.0, 2: 4.0, 3: 3.5}
    some = [replace(run, cost=Cost(costs[run.record.plan.training.seed], 7.0)) for run in runs if run.cost]
    assert [one.cost for one in table(some).settings] == [Cost(4.0, 7.0)] * 2
    unknown = [replace(run, cost=Cost(None, None)) if at == 0 else run for at, run in enumerate(some)]
    assert Cost(None, None) in [one.cost for one in table(unknown).settings]


def test_numbers_are_means_over_seeds(made: PrivacyTable, runs: list[PricedRun]) -> None:
    own = [run.summary.by_attribute("sex").groups[1].metrics["roc_auc"] for run in runs if run.cost == Cost(3.0, 6.0)]
    mean = made.settings[1].numbers[MEN]
    values = [one.value for one in own if one.value is not None]
    assert (mean.value, mean.sd, mean.seeds) == (fmean(values), stdev(values), 3)
    assert mean.low == fmean(one.low for one in own if one.low is not None)
    assert mean.high == fmean(one.high for one in own if one.high is not None)
    assert mean.records == (own[0].records, own[0].records)  # of one run, not of three


def test_changes_are_paired_by_seed_with_the_run_without_noise(made: PrivacyTable, runs: list[PricedRun]) -> None:
    by_seed = {
        (run.record.plan.training.seed, run.cost is None): run.summary.overall.metrics["roc_auc"].value or 0.0
        for run in runs
        if run.cost in (None, Cost(3.0, 6.0))
    }
    change = made.settings[1].numbers[EVERYBODY].change
    assert change is not None
    assert change.difference == pytest.approx(fmean(by_seed[s, False] - by_seed[s, True] for s in (1, 2, 3)))
    assert change.n == 3
    assert change.low is not None
    assert change.low < change.difference < 0
    assert all(mean.change is None for mean in made.settings[0].numbers.values())
    assert {one.baseline for one in made.settings[1:]} == {made.settings[0].name}


def test_seeds_that_only_one_of_both_has_are_left_out(runs: list[PricedRun]) -> None:
    few = [run for run in runs if run.cost is not None or run.record.plan.training.seed == 2]
    change = table(few).settings[1].numbers[EVERYBODY].change
    assert change is not None
    assert (change.n, change.low) == (1, None)
    assert "(1 pair)" in plain(to_text(page.to_terminal(table(few))))
    none = [run for run in runs if (run.cost is None) == (run.record.plan.training.seed == 2)]
    shown = plain(to_text(page.to_terminal(table(none))))
    assert "has no seed in common with" in shown


def test_noise_may_be_drawn_twice_for_a_seed_but_a_run_counts_once(runs: list[PricedRun]) -> None:
    again = priced(private_record(1.0, 1, 0.9, model="abc"), 3.0)
    found = table([*runs, again]).settings[1]
    assert found.seeds == (1, 2, 3, 1)
    change = found.numbers[EVERYBODY].change
    assert change is not None
    assert change.n == 4
    with pytest.raises(RunError, match="FF-RUN-COMPARE"):
        table([*runs, runs[0]])


def test_the_most_similar_run_of_the_same_method_is_the_baseline() -> None:
    slow = private_record(None, 1, 1.0, training={"rounds": 1}, name="slow")
    same, other = private_record(None, 1, 1.4, name="same"), private_record(None, 1, name="fair", method=flexfair())
    private = priced(private_record(1.0, 1, 1.1), 3.0)
    for clear, baseline in (([slow, same, other], "same"), ([slow, other], "slow"), ([other], "")):
        made = table([private, *(priced(one) for one in clear)])
        assert next(one for one in made.settings if one.cost is not None).baseline == baseline
        shown = plain(to_text(page.to_terminal(made)))
        assert ("differs from slow in more than privacy: training.rounds" in shown) == (baseline == "slow")
        assert ("no run of fedavg without differential privacy is here" in shown) == (baseline == "")


def test_consent_to_shared_noise_is_a_part_of_privacy() -> None:
    shared = {"noise_multiplier": 2.0, "groups_per_unit": 1, "shared": True}
    method = {**flexfair(criterion="equal_accuracy"), "max_weight": 3.0}
    clear = private_plan(None, method=method)
    privacy = {**json.loads(private_plan(1.0).model_dump_json())["differential_privacy"], "groups": shared}
    private = private_plan(None, method=method, differential_privacy=privacy, consents=["shared_noise"])
    assert differences(private, clear) == ()
    record = private_record(1.0).model_copy(update={"plan": private, "plan_sha256": private.sha256})
    made = table([priced(record, 3.0)])
    colluders = private.protection.masking.colluders if private.protection.masking else 0
    assert made.settings[0].colluders == colluders + 1
    assert f"if {colluders + 1} tell theirs, epsilon fails" in plain(to_text(page.to_terminal(made)))


def test_no_gap_stands_alone(made: PrivacyTable) -> None:
    for place in made.settings[0].numbers:
        same = [one for one in made.settings[0].numbers if one.attribute == place.attribute]
        if place.kind == "gap":
            assert [one.kind for one in same] == [*["group"] * (len(same) - 2), "worst", "gap"]
            assert len(same) >= 4
    rows = [row.name for block in page.view(made).blocks for row in block.rows]
    assert {"male (n = 606)", "Worst group by area under ROC curve"} <= set(rows)
    assert "Area under ROC curve difference (n = 1200)" in rows


def test_the_worst_group_is_named_and_counted(made: PrivacyTable) -> None:
    assert made.settings[0].numbers[WORST].groups == {"male": 3}
    found = next(row for block in page.view(made).blocks for row in block.rows if row.name.startswith("Worst"))
    assert found.cells[0].name == "male, n = 606"


def test_a_model_that_learnt_nothing_is_pointed_out(runs: list[PricedRun]) -> None:
    final = runs[0].record.final
    assert final is not None
    dead = final.model_copy(update={"test_collapse": "constant"})
    one = replace(runs[0], record=runs[0].record.model_copy(update={"final": dead}))
    made = table([one, *runs[1:]])
    assert [setting.collapsed for setting in made.settings] == [0, 0, 1]
    assert "1 of 3 models say the same of everything" in plain(to_text(page.to_terminal(made)))


def test_where_sites_differ_epsilon_is_not_invented() -> None:
    records = {"batch": {"unit": "records", "amount": 32}}
    made = table([priced(private_record(1.0, training=records)), priced(private_record(None, training=records))],
                 together=Cost(None, None))  # fmt: skip
    shown = plain(to_text(page.to_terminal(made)))
    assert "fairflare ledger show" in shown
    assert made.settings[1].cost == Cost(None, None)
    assert page.view(made).blocks[0].rows[0].cells[1].number == page.UNKNOWN


def test_one_without_any_private_run_is_a_table_too() -> None:
    made = table([priced(private_record(None, 1))])
    assert "none: no bound" in plain(to_text(page.to_terminal(made)))
    assert not any("together" in line for line in page.warnings(made))


def test_runs_of_other_things_and_other_metrics_are_refused(runs: list[PricedRun]) -> None:
    other = priced(private_record(None, 5))
    strange = replace(other, summary=replace(other.summary, score_bins=100))
    with pytest.raises(RunError, match="FF-RUN-COMPARE"):
        table([*runs, strange])
    with pytest.raises(RunError, match="FF-RUN-METRIC"):
        table(runs, metric="accuracy")
    assert table(runs, metric="balanced_accuracy").metric == "balanced_accuracy"


def test_the_terminal_says_every_number_in_100_columns(made: PrivacyTable) -> None:
    text = to_text(page.to_terminal(made))
    assert max(map(len, text.splitlines())) <= 100
    for one in made.settings:
        for mean in one.numbers.values():
            assert f"{mean.value:.3f}" in text
            if mean.change is not None and mean.change.low is not None:
                assert f"[{mean.change.low:+.3f}," in text
    for value in ("3.000", "6.000", "1.000", "2.000"):
        assert value in text
    assert "all 6 private runs together cost patients who were in training epsilon 5.000" in plain(text)
    assert "if released as well, nothing is bounded" in plain(text)


def test_files_say_the_same(made: PrivacyTable) -> None:
    lines = list(csv.DictReader(io.StringIO(page.to_csv(made))))
    assert list(lines[0]) == list(page.CSV_HEAD)
    assert len(lines) == sum(len(one.numbers) for one in made.settings)
    for line in lines:
        one = next(one for one in made.settings if one.name == line["setting"])
        mean = one.numbers[Place(line["attribute"], line["group"] if line["kind"] == "group" else "", line["kind"])]
        assert line["value"] == repr(mean.value)
        assert line["change"] == ("" if mean.change is None else repr(mean.change.difference))
        assert line["epsilon_replace"] == ("" if one.cost is None else repr(one.cost.replace))
    data = json.loads(page.to_json(made))
    assert data["together"] == {"add_remove": 5.0, "replace": 9.0}
    assert [len(one["numbers"]) for one in data["settings"]] == [len(one.numbers) for one in made.settings]


def test_the_page_has_the_table_and_runs_nothing(runs: list[PricedRun]) -> None:
    evil = [replace(run, record=run.record.model_copy(update={"plan": run.record.plan.model_copy(
        update={"name": "<script>x</script>"})})) for run in runs]  # fmt: skip
    text = page.to_html(table(evil))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    for words in ("Worst group by area under ROC curve", "no privacy:", "epsilon 3:"):
        assert words in text


def test_settings_with_one_name_are_told_apart(made: PrivacyTable) -> None:
    names = [one.name for one in made.settings]
    assert len(set(names)) == len(names)


def test_unknown_costs_come_last(runs: list[PricedRun]) -> None:
    records = {"batch": {"unit": "records", "amount": 32}}
    made = table([priced(private_record(1.0, training=records)), *runs])
    assert [one.cost for one in made.settings][-1] == Cost(None, None)
    assert isinstance(made.settings[-1], Setting)


def test_a_run_with_shared_noise_says_who_can_break_it() -> None:
    shared = {"noise_multiplier": 2.0, "groups_per_unit": 1, "shared": True}
    privacy = {**json.loads(private_plan(1.0).model_dump_json())["differential_privacy"], "groups": shared}
    method = {**flexfair(criterion="equal_accuracy"), "max_weight": 3.0}
    plan = private_plan(None, method=method, differential_privacy=privacy, consents=["shared_noise"])
    assert "tell theirs, it fails" in page.cost_sentence(plan, Cost(1.0, 2.0), 1e-5)
    assert "it fails" not in page.cost_sentence(private_plan(1.0), Cost(1.0, 2.0), 1e-5)
