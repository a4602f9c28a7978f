# SPDX-License-Identifier: Apache-2.0
"""What a report says about a run, what it refuses to say, and what it warns of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairflare.errors import RunError
from fairflare.evaluation.remarks import is_constant
from fairflare.evaluation.report import compare, summarise
from fairflare.evaluation.summary import NO_INTERVAL, AttributeSummary, Remark, RunSummary, Value
from fairflare.fairness.metrics import GAPS, METRICS
from fairflare.record import RunRecord
from tests.unit.evaluation.records import (
    BINS,
    SEX,
    SITES,
    Patients,
    constant,
    draw,
    flexfair,
    make_plan,
    make_record,
    make_round,
    make_without,
)

ON_VALIDATION = {"score_bins": BINS, "threshold": "validation_balanced_accuracy"}
GUARDED = {"minimum": 11, "sites": 1}


def report_on(record: RunRecord, split: Any = "test") -> RunSummary:
    return summarise(record, split, resamples=200)


def kinds(remarks: tuple[Remark, ...]) -> list[str]:
    return [remark.kind for remark in remarks]


def text_of(remarks: tuple[Remark, ...], kind: str) -> str:
    return "\n".join(remark.text for remark in remarks if remark.kind == kind)


def test_every_metric_and_gap_of_every_group_has_a_value_and_an_interval() -> None:
    summary = report_on(make_record(make_plan(), draw()))
    groups = [summary.overall, *(group for part in summary.attributes for group in part.groups)]
    assert [group.group for group in groups] == ["all", "female", "male", "under_40", "40_to_60", "over_60"]
    for group in groups:
        assert list(group.metrics) == [*METRICS, "mean_loss"]
        for name, value in group.metrics.items():
            assert value.value is not None
            if name != "mean_loss":
                assert value.low is not None
                assert value.high is not None
                assert value.low <= value.value <= value.high
    for part in summary.attributes:
        assert list(part.gaps) == list(GAPS)
        for gap in part.gaps.values():
            assert gap.value is not None
            assert gap.low is not None
            assert gap.high is not None
            assert gap.low <= gap.value <= gap.high
    assert summary.remarks == ()
    assert summary.overall.metrics["mean_loss"].note == "no interval: only the sum of the loss is known"


def test_a_report_is_the_same_twice() -> None:
    record = make_record(make_plan(), draw())
    assert report_on(record) == report_on(record)
    assert report_on(record) != summarise(record, resamples=200, seed=1)


def test_records_behind_a_number_are_those_it_is_about() -> None:
    patients = draw(missing=0.1)
    summary = report_on(make_record(make_plan(), patients))
    women = patients.groups["sex"] == 0
    group = summary.by_attribute("sex").groups[0]
    assert group.records == women.sum()
    assert group.positives == group.metrics["true_positive_rate"].records == (women & (patients.label == 1)).sum()
    assert group.metrics["false_positive_rate"].records == (women & (patients.label == 0)).sum()
    assert group.metrics["precision"].records == (women & (patients.score >= 0.5)).sum()
    assert group.metrics["roc_auc"].records == women.sum()
    known = patients.groups["sex"] >= 0
    gaps = summary.by_attribute("sex").gaps
    assert gaps["demographic_parity_difference"].records == known.sum()
    assert gaps["equal_opportunity_difference"].records == (known & (patients.label == 1)).sum()
    with pytest.raises(KeyError):
        summary.by_attribute("race")


def test_the_worst_group_is_named() -> None:
    summary = report_on(make_record(make_plan(), draw(skill=(0.5, 2.5))))
    for metric in ("roc_auc", "balanced_accuracy"):
        worst = summary.by_attribute("sex").worst[metric]
        assert worst.group == "female"
        assert worst.value == summary.by_attribute("sex").groups[0].metrics[metric]
        assert worst.certainty == 1.0


def test_the_threshold_comes_from_validation_and_not_from_the_test_records() -> None:
    plan = make_plan(evaluation=ON_VALIDATION)
    shifted = draw(seed=1, shift=(2.0, 2.0))
    summary = report_on(make_record(plan, draw(), shifted))
    assert summary.threshold.source == "validation_balanced_accuracy"
    assert summary.threshold.value > 0.7
    assert "threshold" not in kinds(summary.remarks)
    assert "chosen on these same records" in text_of(
        report_on(make_record(plan, draw(), shifted), "validation").remarks, "threshold"
    )


def test_the_threshold_is_a_half_where_the_plan_says_so_or_validation_cannot() -> None:
    assert report_on(make_record(make_plan(), draw())).threshold.value == 0.5
    healthy = draw(seed=1)
    healthy = Patients(healthy.score, np.zeros_like(healthy.label), healthy.groups)
    summary = report_on(make_record(make_plan(evaluation=ON_VALIDATION), draw(), healthy))
    assert (summary.threshold.value, summary.threshold.source) == (0.5, "half")
    assert "lack one of the labels" in text_of(summary.remarks, "threshold")


def few_women(positives: int, negatives: int) -> Patients:
    """1000 men, and a few women."""
    men = draw(1000, seed=2)
    label = np.array([1] * positives + [0] * negatives, dtype=np.int64)
    return Patients(
        np.concatenate([men.score, np.random.default_rng(3).uniform(0.2, 0.8, label.size)]),
        np.concatenate([men.label, label]),
        {
            "sex": np.concatenate([np.ones(1000, dtype=np.int64), np.zeros(label.size, dtype=np.int64)]),
            "age": np.concatenate([men.groups["age"], np.zeros(label.size, dtype=np.int64)]),
        },
    )


def women(summary: RunSummary) -> dict[str, Value]:
    return dict(summary.by_attribute("sex").groups[0].metrics)


def test_not_estimable_without_positives() -> None:
    summary = report_on(make_record(make_plan(), few_women(0, 40)))
    values = women(summary)
    for name in ("roc_auc", "balanced_accuracy", "true_positive_rate", "mean_score_of_positives"):
        assert values[name].value is None
        assert values[name].note == "no record labelled malignant"
    assert values["selection_rate"].value is not None
    gaps = summary.by_attribute("sex").gaps
    assert gaps["equal_opportunity_difference"].value is None
    assert gaps["equal_opportunity_difference"].note == "fewer than two groups"
    assert gaps["demographic_parity_difference"].value is not None
    assert summary.by_attribute("sex").worst == {}
    assert summary.by_attribute("sex").groups[0].positives == 0


def test_not_estimable_without_records() -> None:
    values = women(report_on(make_record(make_plan(), few_women(0, 0))))
    assert {value.value for value in values.values()} == {None}
    assert values["accuracy"].note == values["mean_loss"].note == "no record"


def test_not_estimable_when_nobody_is_called_positive() -> None:
    value = report_on(make_record(make_plan(), constant(draw()))).overall.metrics["precision"]
    assert (value.value, value.note) == (None, "no record is called positive")


def test_not_estimable_where_a_cell_was_withheld() -> None:
    summary = report_on(make_record(make_plan(cells=GUARDED), few_women(5, 40), minimum=11))
    values = women(summary)
    for name in ("selection_rate", "accuracy", "mean_score", "mean_loss", "roc_auc", "precision"):
        assert values[name].value is None
        assert "withheld (fewer than 11 at each site), or there is none" in values[name].note
    assert values["false_positive_rate"].value is not None
    assert summary.by_attribute("sex").groups[0].positives is None
    assert summary.by_attribute("sex").missing == 5
    assert text_of(summary.remarks, "missing records") == (
        "sex: 5 of 1045 records (0.5%), 5 of them malignant, are in no group, because the attribute is missing or the "
        "cell was too small to be released; rates that mix labels may be shifted by it"
    )


def test_withheld_by_too_few_sites_is_said() -> None:
    plan = make_plan(cells={"minimum": 0, "sites": 2})
    values = women(report_on(make_record(plan, few_women(0, 40))))
    assert "withheld (released by fewer than 2 sites)" in values["roc_auc"].note


def test_too_few_records_for_an_interval() -> None:
    values = women(report_on(make_record(make_plan(), few_women(1, 40))))
    assert values["roc_auc"].value is not None
    assert (values["roc_auc"].low, values["roc_auc"].note) == (None, NO_INTERVAL)


def test_a_gap_says_which_groups_it_leaves_out() -> None:
    patients = draw()
    nobody_young = Patients(patients.score, patients.label, patients.groups | {"age": patients.groups["age"] % 2 + 1})
    summary = report_on(make_record(make_plan(), nobody_young))
    gap = summary.by_attribute("age").gaps["roc_auc_difference"]
    assert gap.value is not None
    assert gap.note == "without under_40"


def test_equalized_odds_compares_a_group_by_the_rate_that_it_has() -> None:
    patients = draw()
    healthy = Patients(patients.score, patients.label * (patients.groups["age"] > 0), patients.groups)
    gap = report_on(make_record(make_plan(), healthy)).by_attribute("age").gaps["equalized_odds_difference"]
    assert gap.note == "one of the two rates without under_40"
    assert gap.records == 1200


def test_a_run_without_attributes_has_no_gaps() -> None:
    summary = report_on(make_record(make_plan(attributes=[]), draw()))
    assert summary.attributes == ()
    assert summary.overall.records == 1200


def test_a_run_without_a_final_evaluation_is_refused() -> None:
    with pytest.raises(RunError, match="FF-RUN-INCOMPLETE"):
        summarise(make_record(make_plan(), draw(), final=None))


def test_penalties_carry_their_gap_in_training() -> None:
    (penalty,) = report_on(make_record(make_plan(method=flexfair()), draw())).penalties
    assert (penalty.attribute, penalty.criterion) == ("sex", "equal_opportunity")
    assert (penalty.first_gap, penalty.last_gap) == (0.2, 0.1)


# ------------------------------------------------------------------------------------------------------------ warnings


def test_constant_model_says_exactly_why() -> None:
    remarks = report_on(make_record(make_plan(), constant(draw()))).remarks
    assert "100% of the scores lie in one bin of width 0.005" in text_of(remarks, "constant model")
    assert text_of(remarks, "constant decision").startswith("nobody is called positive")
    assert "chance" not in kinds(remarks)  # said already
    remarks = report_on(make_record(make_plan(), constant(draw(), 0.8))).remarks
    assert text_of(remarks, "constant decision").startswith("everybody is called positive")


def test_a_model_no_better_than_chance_is_called_that_and_not_constant() -> None:
    remarks = report_on(make_record(make_plan(), draw(skill=(0, 0)))).remarks
    assert text_of(remarks, "chance").startswith("not shown to be better than chance: the interval")
    assert "contains 0.5" in text_of(remarks, "chance")
    assert not {"constant model", "constant decision"} & set(kinds(remarks))
    worse = report_on(make_record(make_plan(), draw(skill=(-2, -2)))).remarks
    assert "lies below 0.5" in text_of(worse, "chance")


def test_a_model_that_tells_labels_apart_is_neither() -> None:
    remarks = report_on(make_record(make_plan(), draw())).remarks
    assert not {"constant model", "constant decision", "chance"} & set(kinds(remarks))


def test_one_bin_alone_is_constant() -> None:
    histogram = np.zeros((2, BINS))
    assert not is_constant(histogram)
    histogram[0, 50], histogram[1, 150] = 990, 10
    assert is_constant(histogram)
    histogram[0, 50] = 980
    assert not is_constant(histogram)


def test_small_cells_are_named() -> None:
    summary = report_on(make_record(make_plan(), few_women(29, 30)))
    assert text_of(summary.remarks, "small cell") == "sex: female has 29 records labelled malignant (fewer than 30)"
    assert "small cell" not in kinds(report_on(make_record(make_plan(), few_women(30, 30))).remarks)


def test_wide_intervals_are_named() -> None:
    text = text_of(report_on(make_record(make_plan(), few_women(10, 12))).remarks, "wide interval")
    assert text.splitlines()[0] == "area under the ROC curve: wider than 0.2 for sex female"


def test_missing_records_are_counted() -> None:
    patients = draw(missing=0.1)
    missing = int((patients.groups["sex"] < 0).sum())
    text = text_of(report_on(make_record(make_plan(), patients)).remarks, "missing records")
    assert text.startswith(f"sex: {missing} of 1200 records")
    assert text.endswith("because the attribute is missing")


def test_an_incomplete_run_and_missing_sites_are_named() -> None:
    record = make_record(make_plan(), draw())
    assert record.final is not None
    record = record.model_copy(
        update={
            "status": "stopped",
            "rounds": record.rounds[:1],
            "final": record.final.model_copy(update={"participants": SITES[:2]}),
        }
    )
    remarks = report_on(record).remarks
    assert text_of(remarks, "incomplete run") == "the run is 'stopped' after 1 of 2 rounds"
    assert text_of(remarks, "missing sites").startswith("uppsala took no part")


def test_a_site_that_did_not_take_the_job_is_named() -> None:
    remarks = report_on(make_without(make_record(make_plan(), draw()))).remarks
    assert text_of(remarks, "ran without").startswith("lund (FF-POLICY-REFUSED): the run and its results")
    assert "lund" not in " ".join(one.text for one in remarks if one.kind != "ran without")


def test_held_weights_are_pointed_out() -> None:
    plan = make_plan(method=flexfair())
    rounds = (make_round(plan, 0), make_round(plan, 1, at_minimum=400.0))
    assert "400 of 4000 record weights" in text_of(
        report_on(make_record(plan, draw(), rounds=rounds)).remarks, "held weights"
    )
    rounds = (make_round(plan, 0, at_minimum=400.0), make_round(plan, 1, at_minimum=40.0))
    assert "held weights" not in kinds(report_on(make_record(plan, draw(), rounds=rounds)).remarks)


def test_penalised_hospitals_cannot_be_shown() -> None:
    summary = report_on(
        make_record(make_plan(method=flexfair("hospital", "equal_accuracy"), consents=["open_hospital_risks"]), draw())
    )
    assert "no gap between them can be shown" in text_of(summary.remarks, "hospitals")


# ---------------------------------------------------------------------------------------------------------- comparison


def test_compare_gives_every_change() -> None:
    first = report_on(make_record(make_plan(), draw()))
    second = report_on(make_record(make_plan(name="other"), draw(skill=(1.0, 1.8))))
    comparison = compare(first, second)
    changes = {(c.attribute, c.group, c.metric): c for c in comparison.changes}
    assert len(changes) == len(comparison.changes) == 6 * (len(METRICS) + 1) + 2 * (len(GAPS) + 2)
    change = changes["sex", "female", "roc_auc"]
    assert change.change == pytest.approx(women(second)["roc_auc"].value - women(first)["roc_auc"].value)  # type: ignore[operator]
    assert changes["sex", "", "worst_group_roc_auc"].other == women(second)["roc_auc"].value
    assert comparison.remarks == ()


def test_a_change_of_what_is_not_estimable_is_none() -> None:
    first = report_on(make_record(make_plan(), few_women(0, 40)))
    second = report_on(make_record(make_plan(), few_women(5, 40)))
    changes = {(c.attribute, c.group, c.metric): c for c in compare(first, second).changes}
    change = changes["sex", "female", "true_positive_rate"]
    assert (change.baseline, change.change) == (None, None)
    assert change.other is not None
    assert ("sex", "", "worst_group_roc_auc") not in changes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attributes": [SEX]}, "attributes"),
        ({"evaluation": {"score_bins": 400, "threshold": "half"}}, "score_bins"),
        ({"task": "other"}, "task"),
    ],
)
def test_runs_that_differ_are_not_compared(changes: dict[str, Any], word: str) -> None:
    if "task" in changes:
        task = make_plan().task.model_dump(mode="json")
        changes = {"task": task | {"data_set": "other"}}
    first, second = (report_on(make_record(plan, draw())) for plan in (make_plan(), make_plan(**changes)))
    with pytest.raises(RunError, match=f"FF-RUN-COMPARE: .* with different {word};"):
        compare(first, second)


def test_splits_are_not_compared_with_each_other() -> None:
    record = make_record(make_plan(), draw())
    with pytest.raises(RunError, match="different split"):
        compare(report_on(record), report_on(record, "validation"))


def test_different_records_are_pointed_out() -> None:
    first, second = (report_on(make_record(make_plan(), draw(n))) for n in (1200, 900))
    assert "900 records" in text_of(compare(first, second).remarks, "different records")


def with_rates(summary: RunSummary, female: float, male: float) -> RunSummary:
    """The same run with other balanced accuracies by sex."""
    part = summary.by_attribute("sex")
    groups = tuple(
        replace(group, metrics={**group.metrics, "balanced_accuracy": Value(rate, rate, rate, 600, "")})
        for group, rate in zip(part.groups, (female, male), strict=True)
    )
    gaps = {**part.gaps, "balanced_accuracy_difference": Value(abs(female - male), 0, 1, 1200, "")}
    changed: AttributeSummary = replace(part, groups=groups, gaps=gaps)
    return replace(summary, attributes=(changed, *summary.attributes[1:]))


@pytest.mark.parametrize(
    ("after", "levelled"),
    [
        ((0.70, 0.72), True),  # the better group lost, the worse one gained nothing
        ((0.65, 0.66), True),  # both lost
        ((0.72, 0.60), False),  # the gap did not fall: it is as large, the other way round
        ((0.75, 0.78), False),  # the worst group gained
        ((0.70, 0.82), False),  # nothing changed
        ((0.70, 0.801), False),  # less than chance may do
        ((0.78, 0.82), False),  # levelling up
    ],
)
def test_levelling_down(after: tuple[float, float], levelled: bool) -> None:
    summary = report_on(make_record(make_plan(), draw()))
    remarks = compare(with_rates(summary, 0.70, 0.82), with_rates(summary, *after)).remarks
    assert ("levelling down" in kinds(remarks)) == levelled
    if levelled:
        assert "gaps fell (Balanced accuracy difference 0.120 to" in text_of(remarks, "levelling down")
        assert "better ones lost: male (0.820 to" in text_of(remarks, "levelling down")


def test_levelling_down_is_seen_in_real_sums() -> None:
    first = report_on(make_record(make_plan(), draw(4000, skill=(0.8, 2.0))))
    second = report_on(make_record(make_plan(), draw(4000, skill=(0.8, 0.9))))
    assert "levelling down" in kinds(compare(first, second).remarks)
    assert "levelling down" not in kinds(compare(second, first).remarks)
