# SPDX-License-Identifier: Apache-2.0
"""Whom joining helped: the metrics are scikit-learn's, and a verdict needs patients, labels and an interval."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from fairflare.evaluation.summary import Remark
from fairflare.evaluation.worth import Predictions, Worth, chance, compare_models, group_masks, metrics_of, sentences
from fairflare.evaluation.worth_page import Section, to_html, worth_page, worth_tables

RANDOM = np.random.default_rng(5)


def two_labels(labels: np.ndarray, strength: float, seed: int) -> Predictions:
    score = 1 / (1 + np.exp(-(labels - 0.5) * strength - np.random.default_rng(seed).normal(size=labels.size)))
    return Predictions(np.stack([1 - score, score], axis=1), (score >= 0.5).astype(np.int64))


def example(n: int = 300, second: float = 4.0, first: float = 0.5, resamples: int = 200) -> Worth:
    """Group "old" has 8 patients, nobody is "none", and the second model is better."""
    labels = RANDOM.integers(0, 2, n)
    places = np.where(np.arange(n) < 8, 1, 0).astype(np.int64)
    groups = group_masks({"age": ("young", "old", "none")}, {"age": places}, n)
    patients = [f"p{at // 2}" if at >= 8 else f"q{at}" for at in range(n)]
    one, two = two_labels(labels, first, 1), two_labels(labels, second, 2)
    return compare_models(("alone", "federated"), one, two, labels, patients, groups, resamples=resamples)


def verdicts(worth: Worth, metric: str = "roc_auc") -> dict[str, str]:
    return {row.group: row.verdict for row in worth.by_metric(metric)}


def test_metrics_are_those_of_scikit_learn() -> None:
    labels = RANDOM.integers(0, 2, 80)
    predictions = two_labels(labels, 1.0, 3)
    assert predictions.probability is not None
    found = metrics_of(predictions, labels)
    places = np.arange(80)
    assert found["roc_auc"](places) == pytest.approx(roc_auc_score(labels, predictions.probability[:, 1]))
    assert found["balanced_accuracy"](places) == pytest.approx(balanced_accuracy_score(labels, predictions.called))
    several = RANDOM.integers(0, 3, 90)
    probability = RANDOM.dirichlet(np.ones(3), 90)
    called = probability.argmax(axis=1)
    found = metrics_of(Predictions(probability, called), several)
    expected = roc_auc_score(several, probability, multi_class="ovr", average="macro")
    assert found["macro_roc_auc"](np.arange(90)) == pytest.approx(expected)
    assert found["accuracy"](np.arange(90)) == pytest.approx(accuracy_score(several, called))
    dice = RANDOM.random(10)
    assert metrics_of(Predictions(dice=dice), several)["dice"](np.arange(10)) == pytest.approx(dice.mean())


def test_a_better_model_helped_and_a_worse_one_hurt() -> None:
    assert verdicts(example())["all"] == "helped"
    assert verdicts(example(first=4.0, second=0.5))["all"] == "hurt"
    assert verdicts(example(first=1.0, second=1.0))["all"] == "no clear difference"


def test_too_few_patients_and_nobody_at_all_cannot_be_judged() -> None:
    worth = example()
    assert verdicts(worth) == {
        "all": "helped", "young": "helped", "old": "cannot be judged", "none": "cannot be judged",
    }  # fmt: skip
    why = {row.group: row.why for row in worth.by_metric("roc_auc")}
    assert (why["old"], why["none"]) == ("fewer than 20 patients", "no records")


def test_many_images_of_few_patients_cannot_be_judged() -> None:
    dice = RANDOM.random(100)
    groups = group_masks({}, {}, 100)
    patients = [f"p{at % 19}" for at in range(100)]
    one, two = Predictions(dice=dice), Predictions(dice=dice + 0.2)
    labels = np.zeros(100, dtype=np.int64)
    assert compare_models(("a", "b"), one, two, labels, patients, groups, resamples=100).rows[0].verdict == (
        "cannot be judged"
    )


def test_a_rare_label_cannot_be_judged_and_equal_models_do_not_differ() -> None:
    labels = np.zeros(100, dtype=np.int64)
    labels[:4] = 1
    one = two_labels(labels, 1.0, 1)
    patients = [str(at) for at in range(100)]
    groups = group_masks({}, {}, 100)
    rare = compare_models(("a", "b"), one, two_labels(labels, 3.0, 2), labels, patients, groups, resamples=100)
    assert {row.why for row in rare.rows} == {"fewer than 5 records of a label"}
    labels[:50] = 1
    same = compare_models(("a", "b"), one, one, labels, patients, groups, resamples=100)
    assert {row.verdict for row in same.rows} == {"no clear difference"}


def test_the_answer_names_everybody_it_is_about() -> None:
    first, second = sentences(example())
    assert first.startswith("By area under ROC curve, federated instead of alone helped everybody (+0.")
    assert "hurt nobody clearly" in first
    assert "Cannot be judged, fewer than 20 patients (number of patients in brackets): age old (8). " in first
    assert first.endswith("Cannot be judged, no records (number of patients in brackets): age none (0).")
    assert second.startswith("By balanced accuracy, ")
    assert "4 differences are judged here" in chance([example()])
    assert "about 0.2 of them" in chance([example()])


def test_the_page_escapes_what_it_is_given_and_needs_nothing_else() -> None:
    evil = "<script>alert(1)</script>\u202e"
    worth = example()
    named = Worth(evil, worth.second, worth.metrics, worth.rows)
    sections = [Section(evil, (evil,), worth_tables(named, "test"))]
    page = to_html(worth_page(evil, [evil], [], [Remark(evil, evil)], sections))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "http" not in page.replace('http-equiv="Content', "")
    for text in ("helped", "cannot be judged", "fewer than 20 patients", "8 patients", "Do not send this on"):
        assert text in page
    assert page.count("<table") == 2
