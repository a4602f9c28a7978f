# SPDX-License-Identifier: Apache-2.0
"""Curves over the rounds, as numbers and as ink; who took part."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare.evaluation import drawing
from fairflare.evaluation.curves import Chart, Series, comparison_charts, run_charts
from fairflare.evaluation.drawing import MOST_LINES, apart, clip, describe, thinned
from fairflare.evaluation.drawing import draw as lay_out
from fairflare.evaluation.participation import NO_REASON, NOT_ASKED, WIDTH, participation
from fairflare.evaluation.report import summarise
from fairflare.evaluation.tables import curve_table
from fairflare.record import Refusal
from tests.unit.evaluation.records import SITES, draw, flexfair, make_plan, make_record, make_round
from tests.unit.evaluation.test_page import four_labels, make_run, painted, reported, rounds, stopped, two_runs


def chart(*series: Series, **changes: Any) -> Chart:
    return replace(Chart("key", "Title", tuple(range(len(series[0].y))), series), **changes)


def by_key(charts: tuple[Chart, ...]) -> dict[str, Chart]:
    return {one.key: one for one in charts}


def test_charts_hold_the_records_numbers_and_end_with_the_final_evaluation() -> None:
    record = make_run()
    charts = by_key(run_charts(record))
    assert list(charts) == ["sex-mean_loss", "sex-roc_auc", "age-mean_loss", "age-roc_auc", "penalties-gap",
                            "penalties-penalty"]  # fmt: skip
    final = summarise(record, "validation", resamples=20)
    for attribute in final.attributes:
        for quantity, name in (("mean_loss", "loss"), ("roc_auc", "auc")):
            one = charts[f"{attribute.attribute}-{quantity}"]
            assert one.x == (0, 1, 2)
            assert [series.name for series in one.series] == [*(g.group for g in attribute.groups), "everybody"]
            for group, series in zip((*attribute.groups, final.overall), one.series, strict=True):
                asked = ("all", "all") if series.reference else (attribute.attribute, group.group)
                for line, y in zip(record.rounds, series.y, strict=False):
                    (found,) = (g for g in line.validation if (g.attribute, g.group) == asked)
                    assert y == getattr(found, name)
                assert series.y[-1] == pytest.approx(group.metrics[quantity].value, abs=1e-12)
    assert charts["penalties-gap"].series == (Series("sex", (0.2, 0.1)),)
    assert charts["penalties-penalty"].series == (Series("sex", (0.01, 0.01)),)


def test_charts_of_a_segmentation_are_of_loss_and_dice_and_mark_collapse_and_the_best_model() -> None:
    record = painted()
    charts = by_key(run_charts(record))
    assert list(charts) == ["sex-mean_loss", "sex-dice", "age-mean_loss", "age-dice", "penalties-gap",
                            "penalties-penalty"]  # fmt: skip
    final = summarise(record, "validation", resamples=20)
    dice = charts["sex-dice"]
    assert (dice.title, dice.worst, dice.chance) == ("Mean Dice by sex", "lowest", None)
    for group, series in zip(final.by_attribute("sex").groups, dice.series, strict=False):
        assert series.y[-1] == pytest.approx(group.metrics["dice"].value, abs=1e-12)
    assert (dice.best, dice.collapsed) == (4, (1, 2))
    assert dice.note == "Collapse: after 1 to 2 rounds the model calls every pixel of every image background."
    assert charts["penalties-gap"].x == (0, 2, 4)
    assert charts["penalties-gap"].note == "Statistics were exchanged in 3 of 6 rounds."
    found = lay_out(dice)
    (span,) = found.spans
    assert span.words == "collapse"
    assert span.x >= drawing.LEFT
    assert found.best is not None
    assert found.best > span.x + span.width
    assert found.description.endswith("Best on validation data after 4 rounds.")


def test_charts_of_several_labels_and_intersections() -> None:
    charts = by_key(run_charts(four_labels()))
    assert [key for key in charts if key.startswith("sex_and_age")] == ["sex_and_age-mean_loss", "sex_and_age-roc_auc"]
    assert charts["sex-roc_auc"].title == "Mean area under ROC curve over labels by sex"
    assert [one.name for one in charts["sex_and_age-roc_auc"].series][:2] == ["female+under_40", "female+40_to_60"]


def test_collapse_that_comes_and_goes_has_spans_inside_the_axes() -> None:
    one = chart(Series("a", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)), collapsed=(0, 2, 5), best=0)
    spans = lay_out(one).spans
    assert len(spans) == 3
    assert spans[0].x == drawing.LEFT
    assert spans[-1].x + spans[-1].width == drawing.WIDTH - drawing.RIGHT
    assert lay_out(one).best == drawing.LEFT
    # An untrained model outside the axes is neither marked nor spanned.
    far = chart(Series("a", (0.4, 0.90, 0.91, 0.92)), collapsed=(0,), best=0)
    assert lay_out(far).spans == ()
    assert lay_out(far).best is None


def test_a_group_of_which_one_label_may_be_withheld_has_no_loss() -> None:
    plan = make_plan(cells={"minimum": 60, "sites": 1})
    record = make_record(plan, draw(300, seed=3), rounds=rounds(plan, draw(300, seed=3)), minimum=60)
    lines = {(line.attribute, line.group): line for line in record.rounds[0].validation}
    assert any(line.positives == 0 and line.records > 0 for line in lines.values())
    for one in run_charts(record):
        if one.key == "age-mean_loss":
            for series in one.series[:-1]:
                half = lines["age", series.name].positives == 0
                assert (series.y[0] is None) == half
                assert (series.y[-1] is None) == half


def test_hospitals_as_groups_are_named_as_not_shown() -> None:
    plan = make_plan(method=flexfair("hospital", "equal_accuracy"), consents=["open_hospital_risks"])
    (penalty,) = make_round(plan, 0).penalties
    hidden = penalty.model_copy(update=dict.fromkeys(("risk", "weight", "coefficient", "count", "value", "gap")))
    record = make_record(plan, draw(), rounds=(make_round(plan, 0, penalties=(hidden,)),))
    assert "penalties-gap" not in by_key(run_charts(record))
    both = make_round(plan, 0, penalties=(hidden, penalty.model_copy(update={"attribute": "sex"})))
    gap = by_key(run_charts(make_record(plan, draw(), rounds=(both,))))["penalties-gap"]
    assert [one.name for one in gap.series] == ["sex"]
    assert gap.note == "Not shown, because only sums over hospitals are opened: hospitals."


def test_penalties_are_named_as_shortly_as_they_can_be_told_apart() -> None:
    plan = make_plan(method=flexfair())
    (first,) = make_round(plan, 0).penalties
    parts = [first.model_copy(update={"measure": f"sex/label{label}/cross_entropy"}) for label in (0, 1)]
    record = make_record(plan, draw(), rounds=(make_round(plan, 0, penalties=tuple(parts)),))
    assert [s.name for s in by_key(run_charts(record))["penalties-gap"].series] == ["sex, benign", "sex, malignant"]
    parts = [first, first.model_copy(update={"criterion": "equalized_odds"})]
    record = make_record(plan, draw(), rounds=(make_round(plan, 0, penalties=tuple(parts)),))
    names = [s.name for s in by_key(run_charts(record))["penalties-gap"].series]
    assert names == [f"sex: {one}, sex/label1/cross_entropy" for one in ("equal_opportunity", "equalized_odds")]


def test_runs_are_compared_by_everybody_and_by_the_worst_group() -> None:
    runs = two_runs()
    summaries = [run.summary for run in runs if run.summary is not None]
    charts = by_key(comparison_charts([(run.name, run.record) for run in runs], summaries))
    own = [by_key(run_charts(run.record)) for run in runs]
    assert len(charts) == 6
    assert charts["runs-all-roc_auc"].series[1].y == own[1]["sex-roc_auc"].series[-1].y
    for place, run in enumerate(runs):
        groups = own[place]["sex-mean_loss"].series[:-1]
        assert charts["runs-worst-sex-mean_loss"].series[place] == Series(
            run.name, tuple(max(ys) for ys in zip(*(one.y for one in groups), strict=True))
        )
    shorter = runs[1].record.model_copy(update={"rounds": runs[1].record.rounds[:1]})
    mixed = by_key(comparison_charts([("skin_fedavg", runs[0].record), ("skin_flexfair", shorter)], summaries))
    assert mixed["runs-all-roc_auc"].series[1].y[2] is None


def test_the_worst_line_needs_two_different_values() -> None:
    one = chart(Series("a", (1.0, 2.0, None, 3.0)), Series("b", (2.0, 2.0, 1.0, None)),
                Series("all", (9.0, 9.0, 9.0, 9.0), reference=True), worst="highest")  # fmt: skip
    assert [one.worst_at(place) for place in range(4)] == [1, None, None, None]
    assert replace(one, worst="lowest").worst_at(0) == 0
    assert replace(one, worst="none").worst_at(0) is None
    assert curve_table(one).blocks[0].rows[1].cells[-1].number == "none"


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]


@pytest.mark.parametrize(
    "series",
    [
        (Series("a", (0.5, 0.5, 0.5)),),
        (Series("a", (0.0,)), Series("b", (0.0,))),
        (Series("a", (1e-9, 2e-9, 5e-9)),),
        (Series("a", (1e6, 3e6, None, 2e6)), Series("b", (None, None, None, 2e6))),
        (Series("a", (-1.0, None, 4.0, 4.1)), Series("all", (1.0, 2.0, 3.0, 3.0), reference=True)),
    ],
)
def test_all_ink_is_inside_the_box(series: tuple[Series, ...]) -> None:
    for from_zero in (False, all((y or 0) >= 0 for one in series for y in one.y)):
        found = lay_out(chart(*series, from_zero=from_zero))
        assert 2 <= len(found.y_ticks) <= 8
        assert len({tick.text for tick in found.y_ticks}) == len(found.y_ticks)
        for tick in found.y_ticks:
            assert drawing.TOP - 0.1 <= tick.at <= drawing.HEIGHT - drawing.BOTTOM + 0.1
        for line in found.lines:
            places = numbers(line.path)
            assert all(drawing.LEFT <= x <= drawing.WIDTH - drawing.RIGHT for x in places[::2])
            assert all(drawing.TOP - 0.1 <= y <= drawing.HEIGHT - drawing.BOTTOM + 0.1 for y in places[1::2])


def test_a_missing_value_is_a_gap_and_a_lonely_one_a_mark() -> None:
    found = lay_out(chart(Series("a", (0.1, 0.2, None, 0.3, None, 0.1, 0.2)), from_zero=True))
    (line,) = found.lines
    assert line.path.count("M") == 3
    assert any("after 3 rounds: 0.300" in mark.words for mark in line.marks)
    absent = lay_out(chart(Series("a", (0.1, 0.2)), Series("b", (None, None))))
    assert [one.label for one in absent.lines] == ["a"]
    assert absent.notes == ("Not estimable in any round: b.",)
    assert "b is not estimable" in absent.description


def test_an_untrained_model_that_would_flatten_the_rest_is_left_out_and_told() -> None:
    far = chart(Series("a", (0.4, 0.90, 0.91, 0.92)), Series("b", (None, 0.89, 0.9, 0.9)))
    found = lay_out(far)
    assert found.notes == ("The first, untrained model lies outside the axes: a 0.400, b not estimable.",)
    assert numbers(found.lines[0].path)[0] > drawing.LEFT
    assert "a from 0.400 to 0.920" in found.description
    for whole in (replace(far, from_zero=True), chart(Series("a", (0.85, 0.9, 0.91, 0.98)))):
        assert lay_out(whole).notes == ()


def test_a_tangle_is_cut_to_the_worst_lines() -> None:
    many = [Series(f"group_{k}", (0.5, 0.3 + k / 100)) for k in range(20)]
    lowest = lay_out(chart(*many, Series("everybody", (0.5, 0.4), reference=True), worst="lowest"))
    groups = [line.label for line in lowest.lines if line.style >= 0]
    assert groups == [f"group_{k}" for k in range(MOST_LINES)]
    assert lowest.notes == ("8 of 20 lines are drawn: the worst at the end. The table has all.",)
    highest = lay_out(chart(*many, worst="highest"))
    assert {line.label for line in highest.lines} == {f"group_{k}" for k in range(12, 20)}
    assert "the first" in lay_out(chart(*many)).notes[0]
    # Told apart without colour: no two of the lines that are drawn look alike.
    assert len({(line.dash, re.sub(r"[\d. -]+", "", line.sample), line.label) for line in lowest.lines}) == 9


def test_long_names_are_cut_in_the_middle_and_given_in_full_below() -> None:
    name = "a_very_long_value_of_an_attribute_female"
    found = lay_out(chart(Series(name, (0.1, 0.2))))
    assert found.lines[0].label == "a_very_l\N{HORIZONTAL ELLIPSIS}_female"
    assert found.notes == (f"Names in full: {name}.",)
    assert clip("short", 5) == "short"


def test_labels_keep_their_distance() -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        wanted = list(generator.uniform(10, 100, 6))
        found = sorted(apart(wanted, top=0.0, bottom=100.0, step=12.0))
        assert all(after - before >= 12.0 - 1e-9 for before, after in pairwise(found))
        assert found[0] >= 0.0
        assert found[-1] <= 100.0
    assert apart([50.0], top=0.0, bottom=100.0, step=12.0) == [50.0]


def test_thinning_keeps_both_ends() -> None:
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    assert thinned(1000, 100)[-1] == 999
    assert len(thinned(1000, 100)) <= 101
    assert thinned(0, 10) == []


def test_a_chart_in_words() -> None:
    one = chart(Series("a", (0.5, 0.7)), Series("b", (0.5, 0.6)), worst="lowest")
    assert describe(one) == (
        "Title, models after 0 to 1 round: a from 0.500 to 0.700; b from 0.500 to 0.600, the worst at the end."
    )


# ------------------------------------------------------------------------------------------------------ who took part


def test_participation_accounts_for_every_site_and_round() -> None:
    found = participation(stopped())
    assert found.rounds == 4
    for row in found.rows:
        assert sum(one.width for one in row.segments) == pytest.approx(WIDTH)
    assert [row.trained for row in found.rows] == [4, 3, 0, 1]
    assert [key.letter for key in found.keys] == ["A", "B", "C", "D"]
    assert found.keys[3].why == NOT_ASKED
    assert found.keys[2].meaning == "no answer before the deadline"
    assert found.keys[1].meaning == "see the site's own log"
    assert found.description == "Who took part in each round: 3 of 4 sites were missing at times."


def test_everybody_present_is_said() -> None:
    found = participation(make_run())
    assert "every site took part in every round" in found.description
    assert found.keys == ()
    assert {row.evaluated for row in found.rows} == {"took part"}


def test_statistics_that_ride_with_the_update_are_told() -> None:
    plan = make_plan(method={**flexfair(), "refresh": "round_lagged"})
    lines = tuple(make_round(plan, n, participants={"train_alone": SITES}) for n in range(3))
    found = participation(make_record(plan, draw(), rounds=lines))
    assert {row.trained for row in found.rows} == {3}
    assert [band.words for band in found.bands] == ["sent with the update, for the next round (U): rounds 1 to 3"]
    assert participation(make_run()).bands == ()


def test_absences_without_a_reason_and_from_the_evaluation_are_told() -> None:
    record = make_run()
    lines = tuple(line.model_copy(update={"participants": {"measure": SITES[:2], "train": SITES[:1]}})
                  for line in record.rounds)  # fmt: skip
    assert record.final is not None
    refused = (Refusal(site="lyon", task="evaluate", code="FF-ROUND-LATE"),)
    final = record.final.model_copy(update={"participants": ("charite",), "refusals": refused})
    found = participation(record.model_copy(update={"rounds": lines, "final": final}))
    assert [key.why for key in found.keys] == [NO_REASON]
    assert [row.segments[0].state.kind for row in found.rows] == ["trained", "measured", "missing"]
    evaluated = [row.evaluated for row in found.rows]
    assert evaluated == ["took part", "missing, FF-ROUND-LATE (task evaluate)", f"missing, {NO_REASON}"]


def test_narrow_rounds_lose_their_letters_and_lines_but_not_their_words() -> None:
    plan = make_plan()
    late = Refusal(site="lyon", task="measure", code="FF-ROUND-TIMEOUT")
    lines = [make_round(plan, n, participants={"measure": SITES, "train": SITES}) for n in range(200)]
    lines[7] = make_round(plan, 7, participants={"measure": ("charite",), "train": ("charite",)}, refusals=(late,))
    found = participation(make_record(plan, draw(), rounds=tuple(lines)))
    lyon = found.rows[1]
    assert [one.letter for one in lyon.segments] == ["", "", ""]
    assert {one.cuts for one in lyon.segments} == {""}
    assert lyon.absences == ("round 8: missing, A: FF-ROUND-TIMEOUT (task measure)",)
    many = tuple(Refusal(site="lyon", task="measure", code=f"FF-X-{n}") for n in range(30))
    absent = {"measure": ("charite",), "train": ("charite",)}
    lines = [make_round(plan, n, participants=absent, refusals=(many[n],)) for n in range(30)]
    assert [key.letter for key in participation(make_record(plan, draw(), rounds=tuple(lines))).keys][25:28] == [
        "Z", "A1", "B1",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- PNG files


def test_pictures_are_drawn_whatever_the_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from fairflare.evaluation.pictures import write_png

    charts = [("run1", one) for one in run_charts(reported(make_run()).record)]
    hostile = chart(Series("$\\frac{", (0.1, 0.2, None, 0.4, 0.5)), Series("\u4e2d <b>", (0.3,) * 5), worst="lowest",
                    chance=0.25, title="$x_", note="$y^", key="../../up")  # fmt: skip
    files = write_png([*charts, ("run2", hostile)], tmp_path / "new")
    assert [file.name for file in files][::6] == ["run1-sex-mean_loss.png", "run2-______up.png"]
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert image.size == (1500, 960)
    again = write_png(charts[:1], tmp_path / "again")
    for number, collapsed in enumerate(run_charts(painted())):
        assert write_png([(str(number), collapsed)], tmp_path / "images")
    assert again[0].read_bytes() == files[0].read_bytes()
