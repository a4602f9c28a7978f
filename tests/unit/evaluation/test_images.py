# SPDX-License-Identifier: Apache-2.0
"""Reports on segmentations: numbers equal those of the single images, intervals hold, and failures are named."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairflare.evaluation.image_results import ImageCells, bootstrap_images
from fairflare.evaluation.render import WIDTH, comparison_report, run_report, to_csv, to_text
from fairflare.evaluation.report import compare, summarise, summarise_sums
from fairflare.evaluation.statistics import percentile_interval
from fairflare.evaluation.summary import RunSummary
from fairflare.fairness.groups import EvaluationSums, Floats, image_strata
from fairflare.fairness.images import GAPS, METRICS, ImageSums, dice_gaps, image_metrics
from fairflare.record import RunRecord
from tests.unit.evaluation.records import BINS, TOGETHER, Images, flexfair, make_painted, make_record, make_round, paint
from tests.unit.evaluation.test_render import check_golden

DISCS = ("background", "disc", "cup")


def report_on(record: RunRecord, **more: Any) -> RunSummary:
    return summarise(record, resamples=200, **more)


def kinds(summary: RunSummary) -> list[str]:
    return [remark.kind for remark in summary.remarks]


def table_of(dice: Floats, group: np.ndarray, size: int) -> Floats:
    sums = EvaluationSums.measure(image_strata(dice, 1 - dice[:, 0]), {"a": group}, {"a": size}, BINS, 0)
    return np.array(sums.cells["a"])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_metrics_and_gaps_are_those_of_the_single_images(n: int, size: int, labels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    dice = np.where(
        generator.random((n, labels)) < 0.2, generator.integers(0, 2, (n, labels)), generator.random((n, labels))
    )
    group = generator.integers(-1, size, n)
    table = table_of(dice, group, size)
    names = [f"label{place}" for place in range(labels)]
    found = image_metrics(ImageSums.of(table), names)
    known = [k for k in range(size) if (group == k).any()]
    means = [dice[group == k].mean() for k in known]
    for k in range(size):
        own = dice[group == k]
        if not len(own):
            assert all(np.isnan(values[k]) for values in found.values())
            continue
        assert found["dice"][k] == pytest.approx(own.mean())
        assert found["low_dice"][k] == pytest.approx((own < 0.5).mean())
        for place, name in enumerate(names if labels > 1 else []):
            assert found[f"dice/{name}"][k] == pytest.approx(own[:, place].mean())
    gaps = dice_gaps(table)
    if len(known) < 2:
        assert np.isnan(list(gaps.values())).all()
    else:
        overall = dice[group >= 0].mean()
        assert gaps["dice_difference"] == pytest.approx(max(means) - min(means))
        assert gaps["dice_gap_to_overall"] == pytest.approx(max(abs(mean - overall) for mean in means))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_alike_images_have_the_sums_of_the_images(n: int, labels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = table_of(generator.random((n, labels)), generator.integers(0, 2, n), 2)
    cells, sums = ImageCells.of(table), ImageSums.of(table)
    again = cells.sums(cells.count)
    for part in ("images", "dice", "low"):
        np.testing.assert_allclose(getattr(again, part), getattr(sums, part), atol=1e-9)


def test_the_interval_is_scipys_bootstrap_of_the_images() -> None:
    dice = np.random.default_rng(1).beta(3, 1.5, (120, 1))
    table = table_of(dice, np.zeros(120, dtype=np.int64), 1)
    drawn = bootstrap_images(table, ["x"], seed=(0,), resamples=4000)
    found = percentile_interval(drawn.metrics["dice"][:, 0])
    expected = stats.bootstrap(
        (dice[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_labels_of_an_image_are_taken_to_vary_together() -> None:
    dice = np.random.default_rng(1).beta(3, 1.5, (300, 1))
    group = np.zeros(300, dtype=np.int64)
    alone = bootstrap_images(table_of(dice, group, 1), ["x"], seed=(0,), resamples=1000).metrics["dice"].std()
    both = np.concatenate([dice, np.random.default_rng(3).permutation(dice)], axis=1)
    spread = bootstrap_images(table_of(both, group, 1), ["x", "y"], seed=(0,), resamples=1000).metrics["dice"].std()
    assert spread == pytest.approx(alone, rel=0.05)


def test_every_group_has_dice_with_an_interval_and_the_loss_without() -> None:
    images = paint(missing=0.1)
    summary = report_on(make_record(make_painted(), images))
    assert summary.kind == "images"
    assert summary.threshold is None
    groups = [summary.overall, *(group for part in summary.attributes for group in part.groups)]
    for group in groups:
        assert list(group.metrics) == [*METRICS]
        assert group.positives is None
        for name in ("dice", "low_dice"):
            value = group.metrics[name]
            assert value.value is not None
            assert value.low is not None
            assert value.high is not None
            assert value.low < value.value < value.high
            assert value.records == group.records
    women = images.groups["sex"] == 0
    female = summary.by_attribute("sex").groups[0]
    assert female.metrics["dice"].value == pytest.approx(images.dice[women].mean())
    assert female.metrics["mean_loss"].value == pytest.approx(images.loss[women].mean())
    low = stats.binomtest(int((images.dice[women] < 0.5).sum()), int(women.sum())).proportion_ci(method="wilson")
    assert (female.metrics["low_dice"].low, female.metrics["low_dice"].high) == pytest.approx((low.low, low.high))
    sex = summary.by_attribute("sex")
    assert list(sex.gaps) == list(GAPS)
    assert all(gap.low is not None for gap in sex.gaps.values())
    assert sex.worst["dice"].group == "female"
    assert sex.missing == (images.groups["sex"] < 0).sum()
    assert "images" in next(remark.text for remark in summary.remarks if remark.kind == "missing records")


def test_several_labels_are_named_one_by_one() -> None:
    images = paint(labels=2)
    summary = report_on(make_record(make_painted(DISCS), images))
    metrics = summary.overall.metrics
    assert {"dice/disc", "dice/cup", "low_dice/disc", "low_dice/cup"} < set(metrics)
    assert metrics["dice/cup"].value == pytest.approx(images.dice[:, 1].mean())
    assert metrics["dice"].value == pytest.approx(images.dice.mean())
    text = to_text(run_report(summary))
    assert "Painted: disc, cup" in text
    assert "Dice of" in text
    rows = list(csv.DictReader(io.StringIO(to_csv([summary]))))
    assert {"dice", "dice/disc", "low_dice/cup", "dice_gap_to_overall", "worst_group_dice"} <= {
        r["metric"] for r in rows
    }
    assert "threshold" not in {row["metric"] for row in rows}


def few(count: int) -> RunSummary:
    """100 men, and a few women."""
    images = paint(100 + count)
    sex = np.array([1] * 100 + [0] * count, dtype=np.int64)
    return report_on(make_record(make_painted(), Images(images.dice, images.loss, images.groups | {"sex": sex})))


def test_golden_report_of_a_segmentation(project_root: Path) -> None:
    rounds = collapsing("all_background", "all_background", None, None).rounds
    record = make_record(make_painted(DISCS), paint(labels=2, missing=0.03), rounds=rounds)
    check_golden(project_root, "report_images.txt", to_text(run_report(summarise(record))))


def test_few_images_have_no_interval_and_none_no_value() -> None:
    nobody = few(0).by_attribute("sex")
    assert {value.value for value in nobody.groups[0].metrics.values()} == {None}
    assert nobody.groups[0].metrics["dice"].note == "no image"
    assert nobody.gaps["dice_difference"].note == "fewer than two groups"
    assert nobody.worst == {}
    one = few(1).by_attribute("sex").groups[0].metrics["dice"]
    assert one.value is not None
    assert (one.low, one.high) == (None, None)
    summary = few(12)
    assert summary.by_attribute("sex").groups[0].metrics["dice"].low is not None
    assert "sex: female has 12 (fewer than 30 images)" in [r.text for r in summary.remarks if r.kind == "small group"]


def test_withheld_groups_say_so() -> None:
    plan = make_painted(cells={"minimum": 200, "sites": 1})
    summary = report_on(make_record(plan, paint(500), minimum=200))
    value = summary.by_attribute("age").groups[0].metrics["dice"]
    assert value.note == "no image: withheld (fewer than 200 at each site), or there is none"


def collapsing(*found: str | None, final: str | None = None) -> RunRecord:
    """A run whose models failed in some rounds."""
    training = {**make_painted().training.model_dump(mode="json"), "rounds": len(found)}
    plan = make_painted(training=training)
    rounds = tuple(make_round(plan, number, collapse=how) for number, how in enumerate(found))
    record = make_record(plan, paint(), rounds=rounds)
    assert record.final is not None
    return record.model_copy(
        update={"final": record.final.model_copy(update={"validation_collapse": final, "test_collapse": final})}
    )


def test_collapse_is_told_from_which_round_to_which() -> None:
    nothing = "all_background"
    text = {r.kind: r.text for r in report_on(collapsing(nothing, nothing, None, nothing, final=None)).remarks}
    assert text["collapse"].startswith(
        "on validation data, after 1 round the model calls every pixel of every image background; "
        "after 3 rounds the model calls"
    )
    assert "collapsed model" not in text
    # That the first model has learnt nothing is no news.
    assert "collapse" not in kinds(report_on(collapsing(nothing, None, None)))
    text = {r.kind: r.text for r in report_on(collapsing(None, None, "all_foreground", final="all_foreground")).remarks}
    assert "after 2 to 3 rounds the model paints one label over the whole of every image" in text["collapse"]
    assert text["collapsed model"].startswith("on these test data the model paints one label")


def test_a_label_that_is_never_found_is_named() -> None:
    images = paint(labels=2)
    images = replace(images, dice=images.dice * np.array([1.0, 0.0]))
    remarks = report_on(make_record(make_painted(DISCS), images)).remarks
    assert "Dice of cup is 0 in each image: the model finds no pixel of it" in [remark.text for remark in remarks]


def test_runs_are_compared_by_dice_and_levelling_down_is_seen() -> None:
    penalties = flexfair("sex", "equal_accuracy")
    penalties["penalties"][0]["utility"] = "dice_loss"
    first = report_on(make_record(make_painted(), paint(3000, skill=(2.0, 6.0))))
    second = report_on(make_record(make_painted(name="fair", method=penalties), paint(3000, skill=(2.0, 2.1))))
    comparison = compare(first, second)
    changes = {(c.attribute, c.group, c.metric): c.change for c in comparison.changes}
    assert changes["sex", "male", "dice"] < 0
    assert changes["sex", "", "dice_gap_to_overall"] < 0
    assert ("sex", "", "worst_group_dice") in changes
    assert "levelling down" in [remark.kind for remark in comparison.remarks]
    text = to_text(comparison_report([first, second], [comparison]))
    assert "female: Mean Dice" in text
    assert "Dice gap to overall" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_sites_own_sums_need_no_record() -> None:
    plan = make_painted(intersections=[TOGETHER])
    images = paint()
    images = Images(
        images.dice, images.loss, images.groups | {"sex_and_age": images.groups["sex"] * 3 + images.groups["age"]}
    )
    record = make_record(plan, images)
    whole = report_on(record)
    alone = summarise_sums(plan, images.sums(plan), split="test", name="own", sites=("lyon",), resamples=200)
    assert alone.overall == whole.overall
    assert alone.attributes == whole.attributes
    assert [part.attribute for part in alone.attributes] == ["sex", "age", "sex_and_age"]
    assert alone.by_attribute("sex_and_age").groups[5].group == "male+over_60"
    text = to_text(run_report(alone))
    assert text.startswith("Run own: fedavg\ntest images of polyp_images at lyon: 400 images\n")


def test_a_report_fits_into_a_hundred_columns() -> None:
    names = ("background", *(f"organ_with_a_long_name_{place}" for place in range(3)))
    text = to_text(run_report(report_on(make_record(make_painted(names), paint(labels=3)))))
    assert max(map(len, text.splitlines())) <= WIDTH
