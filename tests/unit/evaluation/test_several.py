# SPDX-License-Identifier: Apache-2.0
"""Reports on more than two labels: each against all others, and the mean over labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fairflare.evaluation.macro import MACRO, coupled
from fairflare.evaluation.render import WIDTH, comparison_report, run_report, to_csv, to_json, to_text
from fairflare.evaluation.report import compare, summarise, summarise_sums
from fairflare.evaluation.summary import RunSummary
from fairflare.fairness.metrics import GAPS, METRICS
from fairflare.record import RunRecord
from tests.unit.evaluation.records import (
    SKIN_LABELS,
    Several,
    draw,
    draw_several,
    flexfair,
    make_plan,
    make_record,
    make_round,
    make_several,
)
from tests.unit.evaluation.test_render import check_golden


def report_on(record: RunRecord, **more: Any) -> RunSummary:
    return summarise(record, resamples=200, **more)


def test_each_label_is_judged_against_all_others_and_their_mean_is_the_main_number() -> None:
    records = draw_several()
    summary = report_on(make_record(make_several(), records))
    assert summary.kind == "several_labels"
    assert [part.label for part in summary.labels] == list(SKIN_LABELS)
    areas = []
    for place, part in enumerate(summary.labels):
        score = np.floor(records.probability[:, place] * 200)
        area = roc_auc_score(records.label == place, score)
        areas.append(area)
        assert part.overall.metrics["roc_auc"].value == pytest.approx(area)
        assert part.overall.positives == (records.label == place).sum()
        assert list(part.overall.metrics) == [*METRICS, "mean_loss"]
        assert [one.attribute for one in part.attributes] == ["sex", "age", "sex_and_age"]
        assert list(part.attributes[0].gaps) == list(GAPS)
    value = summary.overall.metrics["macro_roc_auc"]
    assert value.value == pytest.approx(np.mean(areas))
    assert value.low is not None
    assert value.high is not None
    assert value.low < value.value < value.high
    assert summary.overall.records == 1600
    assert summary.overall.metrics["mean_loss"].value is not None
    sex = summary.by_attribute("sex")
    means = [group.metrics["macro_roc_auc"].value for group in sex.groups]
    assert sex.gaps["macro_roc_auc_difference"].value == pytest.approx(max(means) - min(means))  # type: ignore[type-var, operator]
    assert sex.gaps["macro_roc_auc_difference"].low is not None
    assert set(sex.worst) == set(MACRO)
    assert sex.worst["macro_roc_auc"].group == "female"


def test_the_interval_of_the_mean_is_the_mean_of_the_intervals() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(place, place + 1, (500, 2)) for place in range(3)]
    found = coupled(parts)
    for quantile in (0.025, 0.5, 0.975):
        wanted = np.mean([np.quantile(part, quantile, axis=0) for part in parts], axis=0)
        np.testing.assert_allclose(np.quantile(found, quantile, axis=0), wanted)
    np.testing.assert_allclose(coupled([parts[0]]), parts[0])
    # Groups vary apart, as they do for the first label.
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.15
    lost = parts[0].copy()
    lost[3] = np.nan
    assert np.isnan(coupled([lost, parts[1]])).any(axis=1).sum() == 1


def test_a_label_that_a_group_lacks_makes_its_mean_not_estimable_and_is_named() -> None:
    records = draw_several()
    label = np.where((records.groups["sex"] == 0) & (records.label == 3), 0, records.label)
    summary = report_on(make_record(make_several(), Several(records.probability, label, records.groups)))
    female = summary.by_attribute("sex").groups[0]
    value = female.metrics["macro_roc_auc"]
    assert (value.value, value.note) == (None, "not estimable for carcinoma")
    assert summary.labels[3].attributes[0].groups[0].metrics["roc_auc"].note == "no record labelled carcinoma"
    assert summary.by_attribute("sex").gaps["macro_roc_auc_difference"].value is None
    assert female.metrics["mean_loss"].value is not None


def test_warnings_name_labels() -> None:
    records = draw_several()
    shuffled = records.probability.copy()
    shuffled[:, 3] = np.random.default_rng(5).random(1600) * 0.2
    summary = report_on(make_record(make_several(), Several(shuffled, records.label, records.groups)))
    text = {remark.kind: remark.text for remark in summary.remarks}
    assert text["chance"].startswith("not shown to be better than chance, area under the ROC curve: carcinoma (")
    assert "no record reaches the threshold for carcinoma" in text["never called"]
    assert "labelled carcinoma" in text["small cell"]
    assert "labelled not" not in text["small cell"]
    record = make_record(make_several(), records)
    assert record.final is not None
    record = record.model_copy(update={"final": record.final.model_copy(update={"test_collapse": "constant"})})
    text = {remark.kind: remark.text for remark in report_on(record).remarks}
    assert text["collapsed model"].startswith("on these test data the model gives every record the same score")


def test_text_csv_and_json_show_every_label() -> None:
    summary = report_on(make_record(make_several(), draw_several()))
    text = to_text(run_report(summary))
    assert "Means over labels by group" in text
    assert "Each label against all others" in text
    for label in SKIN_LABELS:
        assert f"{label}: worst group by area under ROC curve: sex female" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    rows = list(csv.DictReader(io.StringIO(to_csv([summary]))))
    found = {(row["attribute"], row["group"], row["metric"]) for row in rows}
    assert ("sex", "female", "roc_auc/melanoma") in found
    assert ("sex", "", "equalized_odds_difference/nevus") in found
    assert ("sex", "female", "worst_group_roc_auc/carcinoma") in found
    assert ("sex", "female", "macro_roc_auc") in found
    data = json.loads(to_json([summary], []))
    assert [part["label"] for part in data["runs"][0]["labels"]] == list(SKIN_LABELS)


def test_golden_report_of_several_labels(project_root: Path) -> None:
    record = make_record(make_several(), draw_several(missing=0.03))
    check_golden(project_root, "report_several.txt", to_text(run_report(summarise(record))))


def test_many_labels_take_fewer_resamples_each() -> None:
    labels = [f"label_{place}" for place in range(12)]
    task = {**make_plan().task.model_dump(mode="json"), "labels": labels}
    training = {**make_plan().training.model_dump(mode="json"), "class_weights": [1.0] * 12}
    plan = make_plan(task=task, training=training, attributes=[])
    generator = np.random.default_rng(0)
    probability = generator.dirichlet(np.ones(12), 600)
    sums = Several(probability, generator.integers(0, 12, 600), {}).sums(plan)
    summary = summarise_sums(plan, sums, split="test", name="many")
    assert len(summary.labels) == 12
    assert summary.overall.metrics["macro_roc_auc"].low is not None


def test_runs_of_several_labels_are_compared_label_by_label() -> None:
    first = report_on(make_record(make_several(), draw_several(skill=(0.8, 2.0))))
    fair = make_several(name="fair", method=flexfair("sex", "equalized_odds"))
    second = report_on(make_record(fair, draw_several(skill=(1.6, 1.8))))
    comparison = compare(first, second)
    changes = {(c.attribute, c.group, c.metric): c.change for c in comparison.changes}
    assert len(changes) == len(comparison.changes)
    assert changes["sex", "female", "macro_roc_auc"] > 0
    assert changes["sex", "female", "roc_auc/melanoma"] > 0
    text = to_text(comparison_report([first, second], [comparison]))
    assert "Mean balanced accuracy difference" in text
    assert "of 4 labels" in text


def test_penalties_under_every_condition_carry_their_gaps() -> None:
    plan = make_several(method=flexfair("sex", "equalized_odds"))
    (line,) = make_round(plan, 0).penalties
    lines = tuple(line.model_copy(update={"measure": f"sex/label{place}/cross_entropy"}) for place in range(4))
    rounds = tuple(make_round(plan, number, penalties=lines) for number in range(2))
    summary = report_on(make_record(plan, draw_several(), rounds=rounds))
    assert [one.measure for one in summary.penalties] == [one.measure for one in lines]
    # A round that exchanged no statistics says nothing about them.
    rounds = (rounds[0], make_round(plan, 1, penalties=()))
    assert report_on(make_record(plan, draw_several(), rounds=rounds)).penalties[3].last_gap == 0.2


def test_a_threshold_is_chosen_from_validation_sums_if_there_are_any() -> None:
    plan = make_plan(evaluation={"score_bins": 200, "threshold": "validation_balanced_accuracy"})
    test, shifted = draw().sums(plan), draw(seed=1, shift=(2.0, 2.0)).sums(plan)
    chosen = summarise_sums(plan, test, shifted, split="test", name="own", resamples=50).threshold
    assert chosen is not None
    assert (chosen.source, chosen.value > 0.7) == ("validation_balanced_accuracy", True)
    without = summarise_sums(plan, test, split="test", name="own", resamples=50)
    assert without.threshold is not None
    assert without.threshold.value == 0.5
    assert "no validation records" in without.remarks[0].text
