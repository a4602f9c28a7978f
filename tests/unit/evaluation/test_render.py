# SPDX-License-Identifier: Apache-2.0
"""Reports as people and programs get them. ``FAIRFLARE_UPDATE_GOLDEN=1`` writes the golden files anew."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest

from fairflare.evaluation.export import COLUMNS
from fairflare.evaluation.macro import MACRO, MACRO_GAPS
from fairflare.evaluation.render import WIDTH, change_in_words, comparison_report, run_report, to_csv, to_json, to_text
from fairflare.evaluation.report import compare, summarise
from fairflare.evaluation.summary import RunSummary
from fairflare.evaluation.words import CRITERIA, HIGHER_IS_BETTER, LOWER_IS_BETTER, MEANINGS, NAMES
from fairflare.fairness import images
from fairflare.fairness.metrics import GAPS, METRICS
from tests.unit.evaluation.records import BINS, constant, draw, flexfair, make_plan, make_record

EVALUATION = {"score_bins": BINS, "threshold": "validation_balanced_accuracy"}


def fedavg(name: str = "skin_fedavg") -> RunSummary:
    plan = make_plan(name=name, evaluation=EVALUATION)
    return summarise(make_record(plan, draw(skill=(0.8, 2.2), missing=0.03), draw(seed=5)))


def fair(name: str = "skin_flexfair", criterion: str = "equal_opportunity") -> RunSummary:
    plan = make_plan(name=name, method=flexfair(criterion=criterion), evaluation=EVALUATION)
    return summarise(make_record(plan, draw(skill=(0.8, 1.0), missing=0.03), draw(seed=5)))


def guarded() -> RunSummary:
    """A small run with withheld cells."""
    plan = make_plan(name="small", cells={"minimum": 11, "sites": 1}, evaluation=EVALUATION)
    return summarise(make_record(plan, draw(90, seed=3), draw(seed=5), minimum=11))


def stuck() -> RunSummary:
    """A run whose model is constant."""
    return summarise(make_record(make_plan(name="stuck", attributes=[]), constant(draw(300))))


def check_golden(folder: Path, name: str, text: str) -> None:
    path = folder / "tests" / "golden" / name
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "set FAIRFLARE_UPDATE_GOLDEN=1 if the change is meant"


def side_by_side(*summaries: RunSummary) -> str:
    comparisons = [compare(summaries[0], other) for other in summaries[1:]]
    return to_text(comparison_report(summaries, comparisons))


def test_golden_report_of_a_run(project_root: Path) -> None:
    check_golden(project_root, "report_run.txt", to_text(run_report(fair())))


def test_golden_report_with_withheld_cells(project_root: Path) -> None:
    check_golden(project_root, "report_withheld.txt", to_text(run_report(guarded())))


def test_golden_comparison(project_root: Path) -> None:
    check_golden(project_root, "report_comparison.txt", side_by_side(fedavg(), fair()))


def test_reports_fit_into_a_hundred_columns_uncut() -> None:
    texts = [to_text(run_report(summary)) for summary in (fair(), guarded(), stuck())]
    texts.append(side_by_side(fedavg(), fair(), fair("third", "demographic_parity"), fair("fourth")))
    for text in texts:
        assert max(map(len, text.splitlines())) <= WIDTH
        assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_the_table_of_groups_keeps_its_words_whole() -> None:
    text = to_text(run_report(guarded()))
    for word in ("Sensitivity", "Accuracy", "(positive)", "estimable", "(unknown)"):
        assert re.search(rf"(^| ){re.escape(word)}( |$)", text, re.MULTILINE)


def test_many_runs_are_shown_in_blocks_that_each_begin_with_the_baseline() -> None:
    text = side_by_side(fedavg(), fair(), fair("third"), fair("fourth"))
    assert text.count("(fedavg, baseline)") == 2
    for name in ("skin_flexfair", "third", "fourth"):
        assert name in text


def test_a_comparison_shows_what_any_run_penalises() -> None:
    text = side_by_side(fedavg(), fair(criterion="demographic_parity"), fair("third", "equalized_odds"))
    for name in ("Demographic parity difference", "Equalized odds difference", "female: False positive rate"):
        assert name in text
    assert "Equal opportunity difference" not in text


def test_the_same_warning_of_two_runs_is_said_once() -> None:
    text = side_by_side(fedavg(), fair())
    assert len(re.findall("missing records", text)) == 1
    assert "skin_fedavg, skin_flexfair: sex:" in text


def test_a_constant_model_is_called_so_in_words() -> None:
    text = to_text(run_report(stuck()))
    assert "! constant model: 100% of the scores" in text
    assert "Gaps between groups" not in text


def test_no_warnings_is_said_too() -> None:
    text = to_text(run_report(summarise(make_record(make_plan(), draw()))))
    assert text.endswith("Warnings: none\n")
    assert "(fixed)" in text


def test_a_penalty_that_was_never_measured_is_left_out() -> None:
    plan = make_plan(method=flexfair())
    summary = summarise(make_record(plan, draw(), rounds=()))
    assert summary.penalties[0].last_gap is None
    assert "In training" not in to_text(run_report(summary))


def test_values_that_are_not_estimable_are_never_zero_in_any_form() -> None:
    summary = guarded()
    assert "not estimable" in side_by_side(summary, summary)
    rows = list(csv.DictReader(io.StringIO(to_csv([summary]))))
    empty = [row for row in rows if row["value"] == "" and row["metric"] != "warning"]
    assert empty
    assert all(row["note"] for row in empty)
    assert "NaN" not in to_json([summary], [])


def test_csv_has_a_line_per_number_and_warning() -> None:
    summary = fair()
    rows = list(csv.DictReader(io.StringIO(to_csv([fedavg(), summary]))))
    assert tuple(rows[0]) == COLUMNS
    mine = [row for row in rows if row["run"] == "skin_flexfair"]
    numbers = 1 + 6 * (len(METRICS) + 1) + 2 * (len(GAPS) + 2)
    assert len(mine) == numbers + len(summary.remarks)
    row = next(r for r in mine if (r["group"], r["metric"]) == ("female", "roc_auc"))
    value = summary.by_attribute("sex").groups[0].metrics["roc_auc"]
    assert (float(row["value"]), float(row["low"]), int(row["n"])) == (value.value, value.low, value.records)


def test_json_holds_runs_and_comparisons() -> None:
    first, second = fedavg(), fair()
    data = json.loads(to_json([first, second], [compare(first, second)]))
    assert data["format"] == "fairflare/report/1"
    assert [run["name"] for run in data["runs"]] == ["skin_fedavg", "skin_flexfair"]
    assert data["comparisons"][0]["other"] == "skin_flexfair"


def test_every_metric_has_a_name_in_words() -> None:
    assert set(NAMES) == {*METRICS, "mean_loss", *GAPS, *MACRO, *MACRO_GAPS, *images.METRICS, *images.GAPS}
    assert set(MEANINGS) == {*GAPS, *MACRO_GAPS, *images.GAPS}
    assert not HIGHER_IS_BETTER & LOWER_IS_BETTER
    for metrics, gaps in CRITERIA.values():
        assert {*metrics, *gaps} <= set(NAMES)
    assert not any(re.search(r"\b(DP|EO|AUC|TPR|FPR)\b", name) for name in NAMES.values())


@pytest.mark.parametrize(
    ("metric", "before", "after", "words"),
    [
        ("roc_auc", 0.70, 0.75, "+0.050 better"),
        ("roc_auc", 0.75, 0.70, "-0.050 worse"),
        ("equalized_odds_difference", 0.20, 0.10, "-0.100 better"),
        ("false_positive_rate", 0.20, 0.30, "+0.100 worse"),
        ("roc_auc", 0.700, 0.704, "+0.004 about equal"),
        ("selection_rate", 0.2, 0.4, "+0.200"),
        ("roc_auc", None, 0.7, ""),
        ("roc_auc", 0.7, None, ""),
    ],
)
def test_change_in_words(metric: str, before: float | None, after: float | None, words: str) -> None:
    assert change_in_words(metric, before, after) == words
