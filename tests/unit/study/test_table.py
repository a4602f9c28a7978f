# SPDX-License-Identifier: Apache-2.0
"""Tables, page and picture: nothing that failed goes missing, and names from a study file harm nobody."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fairflare.study.kept import Outcome
from fairflare.study.measures import GapColumn, Measures, View
from fairflare.study.page import to_html
from fairflare.study.results import Findings, to_csv, to_json
from fairflare.study.runs import NO_FEDERATION, Key
from fairflare.study.spec import Study
from fairflare.study.text import to_markdown, to_terminal
from tests.unit.study.small import FEDAVG, FLEXFAIR, baseline, failed, result, rows, study

SEX = GapColumn("sex", "equal_opportunity_difference", "true_positive_rate", ("female", "male"))
VIEW = View("roc_auc", (SEX,))
MEASURES = {"heart": Measures("two_labels", VIEW, VIEW)}


def values(quality: float | None, female: float, male: float) -> dict[str, float | None]:
    return {
        "all:roc_auc": quality, "sex:equal_opportunity_difference": abs(female - male),
        "sex:female:true_positive_rate": female, "sex:male:true_positive_rate": male, "site-mean:roc_auc": 0.5,
    }  # fmt: skip


def good(quality: float, female: float = 0.8, male: float = 0.6, **changes: Any) -> Outcome:
    return result(values(quality, female, male), values(quality, female, male), **changes)


def findings(grids: Mapping[str, Mapping[str, list[Outcome]]], **changes: Any) -> Findings:
    entries = {"fedavg": FEDAVG, "flexfair": FLEXFAIR, "pooled": baseline("pooled")}
    methods = [
        {**entries[name], "configurations": [{"label": label, "changes": {}} for label in grid]}
        for name, grid in grids.items()
    ]
    data = study(methods=methods, unequal_grids=True, **changes)
    parsed = Study.model_validate_json(json.dumps(data))
    outcomes = {
        Key("heart", NO_FEDERATION if name == "pooled" else "none", name, label, seed): outcome
        for name, grid in grids.items()
        for label, some in grid.items()
        for seed, outcome in enumerate(some)
    }
    return Findings.of(parsed, [], outcomes, MEASURES)


def plain(found: Findings) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(to_terminal(found))
    return console.export_text()


MIXED = {
    "fedavg": {"a": [good(0.8), good(0.9)], "b": [good(0.7), failed()]},
    "flexfair": {"a": [good(0.85, 0.7, 0.7), failed("FF-GATE-NAN")], "b": [failed(), failed()]},
}


def test_a_row_says_what_was_chosen_how_it_did_and_what_failed() -> None:
    (board,) = findings(MIXED).boards
    first, second = board.lines
    assert (first.configuration, first.chosen_failed, first.failed, first.runs) == ("a", 0, {"FF-ROUND-DIVERGED": 1}, 4)
    assert (first.quality.spread.mean, first.quality.spread.n) == (pytest.approx(0.85), 2)
    assert first.quality.difference is None
    assert (second.configuration, second.chosen_failed) == ("a", 1)
    assert second.failed == {"FF-GATE-NAN": 1, "FF-ROUND-DIVERGED": 2}
    # Only the seed that both have is compared.
    assert second.quality.difference is not None
    assert (second.quality.difference.n, second.quality.difference.difference) == (1, pytest.approx(0.05))
    assert (first.worst[0].groups, first.worst[0].spread.mean) == ({"male": 2}, pytest.approx(0.6))


@pytest.mark.parametrize("form", [plain, to_markdown, to_html], ids=["terminal", "markdown", "page"])
def test_every_form_shows_failures_and_the_seeds_that_are_missing(form: Any) -> None:
    text = " ".join(form(findings(MIXED)).replace("\\_", "_").split())
    for words in ("3 of 4", "1 of 4", "FF-GATE-NAN", "FF-ROUND-DIVERGED", "1 of 2 seeds failed", "(1 of 2 seeds)"):
        assert words in text, words


def test_a_mean_over_fewer_seeds_says_so() -> None:
    text = to_markdown(findings(MIXED))
    (row,) = [line for line in text.splitlines() if line.startswith("| flexfair")]
    assert "0.850<br>(1 of 2 seeds)<br>+0.050 (1 pairs)" in row


def test_a_method_without_results_has_its_row() -> None:
    found = findings({"fedavg": {"a": [good(0.8)]}, "flexfair": {"a": [failed()]}})
    assert found.boards[0].lines[1].configuration is None
    for text in (to_markdown(found), to_html(found), plain(found)):
        assert "none has results" in text
        assert "flexfair" in text
    assert "Without results: flexfair" in to_html(found)
    nothing = findings({"fedavg": {"a": [failed()]}, "flexfair": {"a": [failed()]}})
    assert "<svg" not in to_html(nothing)
    assert "none has results" in to_markdown(nothing)


def test_models_that_learnt_nothing_and_lost_answers_are_counted() -> None:
    found = findings(
        {"fedavg": {"a": [good(0.8, test_collapsed=1.0), good(0.7, refusals=1), good(0.7, lost_rounds=2)]}}
    )
    text = to_markdown(found)
    assert "1 of 3 seeds learnt nothing<br>2 of 3 seeds lost answers" in text


def test_a_baseline_stands_in_every_table_and_says_what_it_is() -> None:
    grids = {"fedavg": {"a": [good(0.8)]}, "pooled": {"a": [good(0.9)]}}
    (board,) = findings(grids).boards
    assert [line.method for line in board.lines] == ["fedavg", "pooled"]
    text = to_markdown(findings(grids))
    assert "exists in simulation only" in text
    assert "Mean over sites" in text


def test_unequal_grids_are_said() -> None:
    found = findings({"fedavg": {"a": [good(0.8)]}, "flexfair": {"a": [good(0.8)], "b": [good(0.8)]}})
    assert "UNEQUAL GRIDS" in to_markdown(found)
    assert "unequal grids" in to_html(found)
    assert "UNEQUAL" not in to_markdown(findings({"fedavg": {"a": [good(0.8)]}}))


def test_a_row_of_the_csv_for_each_run_and_seconds_last() -> None:
    table = rows(to_csv(findings(MIXED)))
    assert [(one["method"], one["configuration"], one["seed"], one["status"]) for one in table] == [
        ("fedavg", "a", "0", "done"), ("fedavg", "a", "1", "done"), ("fedavg", "b", "0", "done"),
        ("fedavg", "b", "1", "failed"), ("flexfair", "a", "0", "done"), ("flexfair", "a", "1", "failed"),
        ("flexfair", "b", "0", "failed"), ("flexfair", "b", "1", "failed"),
    ]  # fmt: skip
    assert {tuple(one) for one in table} == {tuple(table[0])}
    assert list(table[0])[-1] == "seconds"
    assert {one["seconds"] for one in table} == {"1.0"}
    assert [one["test:all:roc_auc"] for one in table[:5]] == ["0.8", "0.9", "0.7", "", "0.85"]
    assert [one["chosen"] for one in table] == ["yes", "yes", "no", "no", "yes", "yes", "no", "no"]
    assert table[3]["code"] == "FF-ROUND-DIVERGED"


def test_the_json_holds_every_run_and_no_number_that_is_none() -> None:
    data = json.loads(json.dumps(to_json(findings(MIXED)), allow_nan=False))
    assert len(data["runs"]) == 8
    assert data["tables"][0]["lines"][0]["quality"]["values"] == {"0": 0.8, "1": 0.9}


def test_the_picture_has_a_mark_for_each_configuration_and_fills_the_chosen_ones() -> None:
    page = to_html(findings(MIXED))
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])  # noqa: S314 - our own page
    marks = [
        one for one in svg.iter("path") if "mark" in one.get("class", "").split() and one.find("title") is not None
    ]
    assert len(marks) == 3
    assert sum("solid" in one.get("class", "") for one in marks) == 2
    places = [float(number) for one in marks for number in one.get("d", "")[1:].split("a")[0].split("L")[0].split()]
    assert all(0 < place < 400 for place in places)


def test_a_failures_text_cannot_break_out_of_a_form() -> None:
    hostile = "<script>alert(1)</script>|\u202e`x`"
    found = findings({"fedavg": {"a": [good(0.8), failed()]}})
    key = next(key for key, one in found.outcomes.items() if not hasattr(one, "test"))
    found.outcomes[key] = found.failed[key].model_copy(update={"text": hostile})  # type: ignore[index]
    page, markdown = to_html(found), to_markdown(found)
    assert "<script" not in page
    assert "<script" not in markdown.replace("\\<", "")
    assert "\u202e" not in page + markdown


def test_flare_is_said_for_each_method() -> None:
    grids = {"fedavg": {"a": [good(0.8)]}, "flexfair": {"a": [good(0.8)]}, "pooled": {"a": [good(0.9)]}}
    found = findings(grids, flare=True).with_flare(
        {("heart", "none", "fedavg"): "same model", ("heart", "none", "flexfair"): "another model"}
    )
    text = to_markdown(found)
    assert [word in text for word in ("same model", "another model", "does not federate")] == [True] * 3
    with pytest.raises(Exception, match="FF-STUDY-FLARE") as caught:
        found.verify_flare()
    assert "flexfair" in str(caught.value)
    assert "heart, none, fedavg" not in str(caught.value)
