# SPDX-License-Identifier: Apache-2.0
"""The report page: it needs nothing else, runs nothing, hides nothing, and says the same numbers as the summary.

``FAIRFLARE_UPDATE_GOLDEN=1`` writes its outline anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fairflare.engine.describe import notices
from fairflare.evaluation.page import Picture, ReportedRun, to_html
from fairflare.evaluation.report import compare, summarise
from fairflare.evaluation.summary import RunSummary, Value
from fairflare.evaluation.words import COLUMNS, GLOSSARY, NAMES
from fairflare.plan import Plan
from fairflare.record import (
    Reason,
    Refusal,
    RoundRecord,
    RunRecord,
    cells_from_sums,
    group_lines,
    read_record,
    write_record,
)
from tests.unit.evaluation.records import (
    BINS,
    SITES,
    Patients,
    draw,
    draw_several,
    flexfair,
    make_painted,
    make_plan,
    make_record,
    make_round,
    make_session,
    make_several,
    make_without,
    paint,
)

EVALUATION = {"score_bins": BINS, "threshold": "validation_balanced_accuracy"}
VOID = {"meta", "br", "wbr", "img"}
#: Elements that load, run or send something, or that change what other addresses mean.
ACTIVE = {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form", "input", "button", "video",
          "audio", "source", "track", "use", "foreignobject", "portal", "template", "noscript"}  # fmt: skip
#: All attributes that the page may have. None of them can load or run anything.
PASSIVE = {
    "lang", "charset", "content", "name", "http-equiv", "class", "id", "aria-label", "aria-labelledby", "role",
    "tabindex", "scope", "colspan", "href", "viewbox", "d", "x", "y", "width", "height", "stroke-dasharray",
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></svg></table><b>",
    "<!-- --> <![CDATA[ ]]>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &#60;script&#62;",
    "javascript:alert(1)",
)


@dataclass
class Element:
    """An element with its text; enough of a document to ask questions."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        found = [self] if self.tag in tags else []
        return found + [one for child in self.children for one in child.all(*tags)]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.parts)).strip()

    def get(self, name: str) -> str:
        return self.attributes.get(name) or ""


class Document(HTMLParser):
    """Parses a page; unclosed, misplaced or repeated things fail the test."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.everything: list[Element] = []
        self.feed(text)
        self.close()
        assert self.open == [self.root], [one.tag for one in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self.everything.append(element)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def by_id(self, name: str) -> Element:
        (found,) = (one for one in self.everything if one.get("id") == name)
        return found


def rounds(plan: Plan, patients: Patients, count: int = 2) -> tuple[RoundRecord, ...]:
    """Rounds with the validation lines that a coordinator would write."""
    lines = group_lines(plan, patients.sums(plan, plan.cells.minimum))
    everywhere = {"measure": SITES, "train": SITES}
    return tuple(make_round(plan, n, validation=lines, participants=everywhere) for n in range(count))


def make_run(name: str = "skin_flexfair", skill: tuple[float, float] = (0.8, 1.0), **changes: Any) -> RunRecord:
    plan = make_plan(name=name, **{"method": flexfair(), "evaluation": EVALUATION} | changes)
    minimum = plan.cells.minimum
    record = make_record(plan, draw(skill=skill, missing=0.03), draw(seed=5), minimum=minimum)
    session = make_session().model_copy(update={"transport": "flare"})
    return record.model_copy(
        update={"rounds": rounds(plan, draw(seed=5)), "notices": notices(plan), "sessions": (session,)}
    )


def reported(record: RunRecord, name: str | None = None) -> ReportedRun:
    summary = None if record.final is None else summarise(record, name=name, resamples=200)
    return ReportedRun(name or record.plan.name, record, summary)


def page(*runs: ReportedRun) -> str:
    summaries = [run.summary for run in runs if run.summary is not None]
    return to_html(runs, [compare(summaries[0], other) for other in summaries[1:]])


def two_runs() -> tuple[ReportedRun, ReportedRun]:
    first = make_run("skin_fedavg", (0.8, 2.2), method={"name": "fedavg"})
    return reported(first), reported(make_run())


def empty_record() -> RunRecord:
    """A run before anybody joined."""
    nobody = make_session().model_copy(update={"roster": (), "records": {}})
    return make_record(make_plan(), draw(), final=None, rounds=(), sessions=(nobody,))


def stopped() -> RunRecord:
    """A run that lost a site for good, another one for a round, and then its quorum."""
    plan = make_plan(method=flexfair(), training={**make_plan().training.model_dump(mode="json"), "rounds": 9})
    lost = Refusal(site="uppsala", task="measure", code="FF-ROUND-TIMEOUT")
    failed = Refusal(site="lyon", task="train", code="FF-ROUND-SITE-ERROR")
    some, lines = SITES[:2], rounds(plan, draw(seed=5), 4)
    changes: list[dict[str, Any]] = [
        {},
        {"participants": {"measure": some, "train": some}, "refusals": (lost,)},
        {"participants": {"measure": some, "train": some[:1]}, "refusals": (failed,)},
        {"participants": {"measure": some, "train": some}},
    ]
    return make_record(
        plan, draw(), final=None, status="stopped", notices=notices(plan),
        reason=Reason(code="FF-ROUND-QUORUM", text="got 1 usable answers to measure; expected at least 2"),
        rounds=tuple(line.model_copy(update=change) for line, change in zip(lines, changes, strict=True)),
        sessions=(
            make_session().model_copy(
                update={
                    "roster": (*SITES, "never_came"),
                    "join_refusals": (Refusal(site="never_came", task="join", code="FF-PLAN-VALUE"),),
                }
            ),
        ),
    )  # fmt: skip


def painted(name: str = "polyps") -> RunRecord:
    """A segmentation whose first models painted nothing, with statistics in every second round."""
    method = {**flexfair("sex", "equal_accuracy"), "refresh": {"rounds": 2}}
    method["penalties"][0]["utility"] = "dice_loss"
    training = {**make_painted().training.model_dump(mode="json"), "rounds": 6}
    plan = make_painted(name=name, method=method, training=training, consents=["open_hospital_risks"])
    lines = group_lines(plan, paint(seed=5).sums(plan))
    alone: dict[str, Any] = {"participants": {"train_alone": SITES}, "penalties": ()}
    measured: dict[str, Any] = {"participants": {"measure": SITES, "train": SITES}}
    rounds = tuple(
        make_round(
            plan, n, validation=lines, collapse="all_background" if n < 3 else None, **(alone if n % 2 else measured)
        )
        for n in range(6)
    )
    record = make_record(plan, paint(missing=0.05), paint(seed=5), rounds=rounds)
    assert record.final is not None
    final = record.final.model_copy(update={"best_rounds": 4, "best_model_sha256": "c" * 64})
    return record.model_copy(update={"final": final})


def four_labels() -> RunRecord:
    plan = make_several()
    lines = group_lines(plan, draw_several(seed=5).sums(plan))
    rounds = tuple(make_round(plan, n, validation=lines) for n in range(2))
    return make_record(plan, draw_several(), draw_several(seed=5), rounds=rounds)


#: A PNG file of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def comparison() -> str:
    return page(*two_runs())


@pytest.fixture(scope="module")
def pages(comparison: str) -> dict[str, str]:
    guarded = make_run(cells={"minimum": 200, "sites": 1})
    return {
        "one": page(reported(make_run())),
        "comparison": comparison,
        "withheld": page(reported(guarded)),
        "stopped": page(reported(stopped())),
        "mixed": page(reported(stopped(), "early"), *two_runs()),
        "no attributes": page(reported(make_run(attributes=[], method={"name": "fedavg"}))),
        "nothing": page(ReportedRun("new", empty_record(), None)),
        "images": page(reported(painted()), reported(painted("again"))),
        "several labels": page(reported(four_labels())),
    }


# ------------------------------------------------------------------------------------------- it needs nothing else


def test_nothing_outside_the_page_is_named(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        for one in Document(text).everything:
            assert one.tag not in ACTIVE, (name, one.tag)
            assert set(one.attributes) <= PASSIVE, (name, one.tag, set(one.attributes) - PASSIVE)
            for value in one.attributes.values():
                assert not re.search(r"//|https?:|data:|javascript:|url\(", value or "", re.IGNORECASE), (name, value)
            assert one.get("href").startswith("#") or "href" not in one.attributes
            assert one.get("http-equiv") in ("", "Content-Security-Policy")
        (style,) = Document(text).root.all("style")
        assert not re.search(r"url\(|@import|@font-face|expression|//|\\", style.text, re.IGNORECASE)


def test_the_policy_allows_this_style_sheet_and_nothing_else(comparison: str) -> None:
    document = Document(comparison)
    (policy,) = (one for one in document.everything if one.get("http-equiv") == "Content-Security-Policy")
    (style,) = re.findall(r"<style>(.*?)</style>", comparison, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.get("content") == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    head = [one.tag for one in document.root.all("head")[0].children]
    assert head.index("meta") < head.index("style")
    assert comparison.startswith("<!DOCTYPE html>\n")


def test_pictures_are_in_the_page_and_only_then_allowed() -> None:
    run = reported(painted())
    shown = [Picture("Image 1", "image / truth / prediction", PIXEL), Picture('"><b>', "'<script>", PIXEL)]
    document = Document(to_html([run], [], shown))
    policy = next(one for one in document.everything if one.get("http-equiv") == "Content-Security-Policy")
    assert "; img-src data:; base-uri 'none'" in policy.get("content")
    found = document.root.all("img")
    assert [one.get("alt") for one in found] == ["Image 1. image / truth / prediction", "\"><b>. '<script>"]
    for one in found:
        assert set(one.attributes) == {"src", "alt", "width", "height"}
        assert one.get("src") == f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
        assert (one.get("width"), one.get("height")) == ("1", "1")
    assert "no patient is shown" in document.root.text
    with pytest.raises(ValueError, match="no PNG file"):
        Picture("x", "y", b"<svg onload=alert(1)>")


# -------------------------------------------------------------------------------------------------- names stay text


def hostile_record(tmp_path: Path, names: Sequence[str]) -> RunRecord:
    """A record as another organisation could send it: read from its file, with ``names`` wherever text is free."""
    data = json.loads(make_run().model_dump_json())
    session = data["sessions"][0]
    session["roster"] = data["final"]["participants"] = data["final"]["confirmed"] = list(names)
    data["notices"] = list(names)
    session["join_refusals"] = [{"site": name, "task": name, "code": name} for name in names]
    data["software"] = {name: name for name in names}
    session["records"] = dict.fromkeys(names, 1.0)
    data["ended"] = data["sessions"][0]["started"] = names[0]
    data["reason"] = {"code": names[0], "text": names[-1]}
    for line in data["rounds"]:
        line["participants"] = {"measure": list(names), "train": list(names[1:])}
        line["refusals"] = [{"site": names[0], "task": names[1], "code": names[2]}]
    (tmp_path / "record.json").write_text(json.dumps(data), encoding="utf-8")
    record = read_record(tmp_path)
    assert record.final is not None
    # The schema refuses a hash that is none; the page must not depend on it.
    final = record.final.model_copy(update={"model_sha256": names[0]})
    return record.model_copy(update={"initial_model_sha256": names[0], "final": final})


def with_hostile_plan(record: RunRecord, names: Sequence[str]) -> RunRecord:
    """The same with names that a plan's schema refuses: the page must not depend on the schema."""
    plan = record.plan
    attributes = tuple(
        attribute.model_copy(update={"values": tuple(f"{name}{k}" for name, k in zip(names, attribute.values,
                                                                                  strict=False))})
        for attribute in plan.attributes
    )  # fmt: skip
    task = plan.task.model_copy(update={"labels": (names[0], names[1]), "data_set": names[2]})
    changed = plan.model_copy(update={"name": names[3], "attributes": attributes, "task": task})
    assert record.final is not None
    cells = {split: cells_from_sums(changed, record.evaluation(split)) for split in ("validation", "test")}
    return record.model_copy(update={"plan": changed, "final": record.final.model_copy(update=cells)})


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    plain = [f"site_{number}" for number in range(len(HOSTILE))]
    pages = []
    for names in (plain, HOSTILE):
        record = with_hostile_plan(hostile_record(tmp_path, names), names)
        run = ReportedRun(names[3], record, summarise(record, name=names[3], resamples=50))
        pages.append(Document(page(run)))
    expected, found = pages
    text = found.root.text
    for name in HOSTILE:
        assert re.sub(r"\s+", " ", name) in text
    assert [one.tag for one in found.root.all("script", "img", "b", "style")] == ["style"]
    for document in pages:
        assert {name for one in document.everything for name in one.attributes} <= PASSIVE
    # Sites are sorted by name and long labels explained, so kinds of elements can be compared, but not their order.
    assert {one.tag for one in found.everything} == {one.tag for one in expected.everything}


def test_letters_that_reorder_hide_or_cannot_be_encoded_are_written_out(tmp_path: Path) -> None:
    names = ("\u202etfel", "nul\x00", "esc\x1b[31m", "bell\x07", "\u2066isolate", "nel\x85")
    record = hostile_record(tmp_path, names)
    # What strict parsing refuses could still come from another reader.
    record = record.model_copy(update={"notices": (*record.notices, "half \ud800")})
    text = page(reported(record))
    text.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    for shown in (r"\u202etfel", r"nul\u0000", r"esc\u001b[31m", r"\u2066isolate", r"half \ud800"):
        assert shown in text


# -------------------------------------------------------------------------------------- it says what the summary says


def cells(document: Document, table: str) -> dict[tuple[str, str], list[Element]]:
    """(heading of the block, name of the row) -> cells."""
    found, heading = {}, ""
    for row in document.by_id(table).all("tr"):
        if row.all("th") and row.all("th")[0].get("scope") == "rowgroup":
            heading = row.text
        elif row.all("td"):
            found[heading, row.all("th")[0].text] = row.all("td")
    return found


def shown(value: Value) -> str:
    number = "not estimable" if value.value is None else f"{value.value:.3f}"
    return number if value.low is None else f"{number} {value.low:.2f} to {value.high:.2f}"


def words(cell: Element) -> str:
    """A cell without its notes and flags."""
    return re.sub(r" \[\d+\]| worst group", "", cell.text)


def check_groups(document: Document, table: str, summary: RunSummary, metrics: Sequence[str]) -> None:
    rows = cells(document, table)
    groups = [("", "everybody", summary.overall)]
    groups += [(part.attribute, group.group, group) for part in summary.attributes for group in part.groups]
    assert list(rows) == [(heading, name) for heading, name, _ in groups]
    for heading, name, group in groups:
        positives = "positives unknown" if group.positives is None else f"{group.positives} positive"
        wanted = [f"{group.records} {positives}", *(shown(group.metrics[metric]) for metric in metrics)]
        assert [words(cell) for cell in rows[heading, name]] == wanted


@pytest.mark.parametrize("minimum", [0, 200])
def test_every_number_of_a_run_is_the_summarys(minimum: int) -> None:
    run = reported(make_run(cells={"minimum": minimum, "sites": 1}))
    summary, document = run.summary, Document(page(run))
    assert summary is not None
    check_groups(document, "run-1-groups", summary, list(COLUMNS))
    check_groups(document, "run-1-others", summary, [name for name in summary.overall.metrics if name not in COLUMNS])
    assert {*COLUMNS, *(set(summary.overall.metrics) - set(COLUMNS))} == set(summary.overall.metrics)
    rows = cells(document, "run-1-gaps")
    assert len(rows) == sum(len(part.gaps) for part in summary.attributes)
    for part in summary.attributes:
        for gap, value in part.gaps.items():
            assert words(rows[part.attribute, NAMES[gap]][0]) == shown(value)


def test_the_page_of_a_segmentation_says_the_summarys_numbers(pages: dict[str, str]) -> None:
    run = reported(painted())
    assert run.summary is not None
    document = Document(page(run))
    rows = cells(document, "run-1-groups")
    for part in run.summary.attributes:
        for group in part.groups:
            wanted = [str(group.records), *(shown(group.metrics[m]) for m in ("dice", "low_dice", "mean_loss"))]
            assert [words(cell) for cell in rows[part.attribute, group.group]] == wanted
        for gap, value in part.gaps.items():
            assert words(cells(document, "run-1-gaps")[part.attribute, NAMES[gap]][0]) == shown(value)
    text = document.root.text
    assert "the mean Dice is" in text
    assert "positive" not in document.by_id("run-1-groups").text
    assert "Other numbers by group" not in text
    assert "Mean Dice by sex" in text
    assert "everybody's mean Dice" in Document(pages["images"]).root.text


def test_what_a_plan_agreed_to_and_began_with_is_said() -> None:
    text = Document(page(reported(painted()))).root.text
    assert "Group statistics at the start of every 2 rounds; the rounds between use the last ones" in text
    assert "Starting weights drawn from the plan's seed" in text
    assert "Agreed to by taking part Each hospital's risk (mean loss) may be known to all." in text
    assert f"Best on validation (SHA-256) {'c' * 64} Best on validation is after 4 of 6 rounds" in text
    start = {"kind": "file", "sha256": "e" * 64, "tensors": "matching"}
    text = Document(page(reported(make_run(start=start)))).root.text
    assert f"from a file of weights with SHA-256 {'e' * 64}: those tensors that fit the network" in text
    text = Document(page(reported(make_run(method={**flexfair(), "refresh": "round_lagged"})))).root.text
    assert "with each update, for the next round: one round old, none in the first" in text


def test_collapse_and_the_best_model_are_told_in_words() -> None:
    document = Document(page(reported(painted())))
    assert "collapse: on validation data, after 1 to 2 rounds the model calls every pixel" in document.root.text
    assert "Collapse: after 1 to 2 rounds the model calls every pixel of every image background." in document.root.text
    table = document.by_id("run-1-f1-v")
    assert [head.text for head in table.all("thead")[0].all("th")][-2:] == ["Best on validation", "Collapse"]
    last = [[cell.text for cell in row.all("td")][-2:] for row in table.all("tr")[1:]]
    assert last == [["", ""], ["", "yes"], ["", "yes"], ["", ""], ["yes", ""], ["", ""], ["", ""]]
    assert [one.text for one in document.by_id("run-1-rounds").all("th")][2:] == [
        "Group statistics", "Model at the start of the round",
    ]  # fmt: skip
    said = [one.text for one in document.root.all("li")]
    assert (
        "Group statistics: exchanged before training: rounds 1, 3, 5; "
        "none, the last ones acted if there were any (N): rounds 2, 4, 6"
    ) in said
    assert (
        "Model at the start of the round: no collapse: rounds 1, 4 to 6; collapse: paints nothing (C): rounds 2 to 3"
    ) in said
    rows = {row.all("th")[0].text: row for row in document.by_id("run-1-sites").all("tr")[1:]}
    assert "6 of 6 none took part" in rows["lyon"].text


def test_several_labels_have_closed_parts_of_their_own(pages: dict[str, str]) -> None:
    document = Document(pages["several labels"])
    titles = [one.text for one in document.root.all("summary") if "against all others" in one.text]
    assert [title.split()[0] for title in titles] == ["melanoma", "nevus", "keratosis", "carcinoma"]
    assert "Results by group, means over labels" in [one.text for one in document.root.all("h3")]
    assert ("sex", "female") in cells(document, "run-1-l2-groups")
    assert ("sex_and_age", "male+over_60") in cells(document, "run-1-groups")
    closed = [one for one in document.root.all("details") if one.all("summary")[0].text == titles[0]]
    assert "open" not in closed[0].attributes
    assert list(cells(document, "run-1-labels")) == [
        ("", label) for label in ("melanoma", "nevus", "keratosis", "carcinoma")
    ]


def test_the_worst_group_is_marked_in_words() -> None:
    run = reported(make_run(skill=(0.8, 2.2)))
    assert run.summary is not None
    rows = cells(document := Document(page(run)), "run-1-groups")
    marked = {(heading, name, list(COLUMNS)[place - 1]) for (heading, name), row in rows.items()
              for place, cell in enumerate(row) if "worst group" in cell.text}  # fmt: skip
    assert marked == {
        (part.attribute, worst.group, metric) for part in run.summary.attributes for metric, worst in part.worst.items()
    }
    assert "of resamples" in document.root.text


def test_what_cannot_be_estimated_says_why() -> None:
    run = reported(make_run(cells={"minimum": 200, "sites": 1}))
    document = Document(page(run))
    rows = cells(document, "run-1-groups")
    empty = [cell for row in rows.values() for cell in row if "not estimable" in cell.text]
    assert empty
    for cell in empty:
        (link,) = cell.all("a")
        assert "fewer than 200 at each site" in document.by_id(link.get("href")[1:]).text


def test_runs_side_by_side_with_changes_in_words(comparison: str) -> None:
    first, second = two_runs()
    assert first.summary is not None
    assert second.summary is not None
    document = Document(comparison)
    heads = [head.text for head in document.by_id("comparison-table").all("thead")[0].all("th")]
    assert heads == ["Metric", "skin_fedavg (fedavg, baseline)", "skin_flexfair (flexfair)"]
    rows = cells(document, "comparison-table")
    for group in first.summary.by_attribute("sex").groups:
        assert ("sex", f"{group.group}: {NAMES['true_positive_rate']}") in rows
    pair = [one.overall.metrics["roc_auc"] for one in (first.summary, second.summary)]
    old, new = rows["everybody", NAMES["roc_auc"]]
    assert words(old) == shown(pair[0])
    assert words(new) == f"{shown(pair[1])} {pair[1].value - pair[0].value:+.3f} worse"
    gap = [one.by_attribute("sex").gaps["equal_opportunity_difference"] for one in (first.summary, second.summary)]
    sentence = f"equal opportunity difference by sex {gap[1].value:.3f}, was {gap[0].value:.3f}"
    assert sentence in document.root.text
    assert [one.text for one in document.root.all("h2")][2:5] == ["Comparison", "Run skin_fedavg", "Run skin_flexfair"]


def test_protection_and_warnings_stand_before_any_table(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        order = [text.find(part) for part in ("<h1", 'id="protection"', 'id="warnings"', "<nav", "<table")]
        assert [at for at in order if at >= 0] == sorted(at for at in order if at >= 0), name
        assert "<strong>Differential privacy.</strong>" in text
        assert "The server saw every site's model update." in Document(text).root.text
    first = Document(pages["one"]).root.text
    for notice in notices(make_run().plan):
        assert notice in first
    assert "missing records: skin_fedavg, skin_flexfair: sex: 31 of 1200" in Document(pages["comparison"]).root.text


def test_runs_that_were_protected_differently_are_told_apart() -> None:
    first = reported(make_run("one"))
    second = reported(make_run("two", cells={"minimum": 11, "sites": 2}))
    document = Document(page(first, second))
    box = document.root.all("section")[0]
    assert [one.text for one in box.all("strong") if one.text in ("one", "two")] == ["one", "two"]
    assert "Groups with fewer than 11 records at a site were sent as zeros." in box.text
    assert "A group counts only if 2 sites or more report it." in box.text
    tags = [one.text for one in box.all("span") if one.get("class").startswith("tag")]
    assert tags == ["NO"] * 4 + ["NO"] * 3 + ["YES"] * 2


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("FF-POLICY-REFUSED", "the site's policy does not allow the plan"),
        ("FF-RUN-ABSENT", "it was not connected to the server, or not free, when the job was handed out"),
        ("FF-ROUND-TIMEOUT", "no answer before the deadline"),
        ("FF-JOB-CODE", "see the site's own log"),
    ],
)
def test_a_site_that_did_not_take_the_job_is_named_with_its_code(code: str, meaning: str) -> None:
    text = Document(page(reported(make_without(make_run(), code=code)))).root.text
    assert f"Ran without lund: {code}, {meaning}" in text
    assert f"missing, {code} (task deploy)" in text  # in the final evaluation
    assert f"missing, A: {code} (task deploy)" in text  # in each round
    assert "1 of 4 sites were missing at times" in text


def test_a_run_that_had_everybody_says_nothing_of_others() -> None:
    assert "Ran without" not in Document(page(reported(make_run()))).root.text


def test_a_run_in_one_process_had_no_separate_sites() -> None:
    record = make_run()
    local = record.sessions[0].model_copy(update={"number": 2, "transport": "local", "first_round": 1})
    document = Document(page(reported(record.model_copy(update={"sessions": (*record.sessions, local)}))))
    assert "NO Separate sites." in document.root.all("section")[0].text
    assert "2: one process, started 2025-01-01T00:00:00Z, goes on after round 1" in document.root.text


def test_protections_that_this_version_does_not_know_are_shown_as_the_plan_says() -> None:
    record = make_run()
    protection = record.plan.protection.model_copy(update={"update": "sealed"})
    plan = record.plan.model_copy(update={"protection": protection, "differential_privacy": {"epsilon": 3}})
    run = ReportedRun("x", record.model_copy(update={"plan": plan}), None)
    with pytest.warns(UserWarning, match="serialized value"):
        box = Document(page(run)).root.all("section")[0].text
    assert "YES Hiding each site's model update. By 'sealed', as the plan says." in box
    assert 'YES Differential privacy. As the plan says: {"epsilon": 3}' in box


def test_a_record_whose_plan_was_changed_is_called_so() -> None:
    record = make_run().model_copy(update={"plan_sha256": "0" * 64})
    assert "changed record: the record names another plan hash" in Document(page(reported(record))).root.text


# ----------------------------------------------------------------------------------------------- a run that stopped


def test_a_run_that_stopped_early_has_a_page_without_results(pages: dict[str, str]) -> None:
    document = Document(pages["stopped"])
    text = document.root.text
    assert "stopped (FF-ROUND-QUORUM) after 4 of 9 rounds: it has no final evaluation" in text
    assert "stopped: FF-ROUND-QUORUM: got 1 usable answers" in text
    assert "None: the run has no final evaluation." in text
    assert "Last model (SHA-256)" in text
    rows = {row.all("th")[0].text: row for row in document.by_id("run-1-sites").all("tr")[1:]}
    assert list(rows) == ["charite", "lyon", "never_came", "uppsala"]
    assert "4 of 4 none none took place" in rows["charite"].text
    assert "round 3: statistics only, A: FF-ROUND-SITE-ERROR (task train)" in rows["lyon"].text
    assert "rounds 1 to 4: missing, B: FF-PLAN-VALUE (task join)" in rows["never_came"].text
    assert "round 2: missing, C: FF-ROUND-TIMEOUT (task measure); rounds 3 to 4: missing, D" in rows["uppsala"].text
    assert [one.text for one in rows["uppsala"].all("text")] == ["C", "D"]


def test_runs_with_and_without_results_share_a_page(pages: dict[str, str]) -> None:
    document = Document(pages["mixed"])
    headings = [one.text for one in document.root.all("h2")]
    assert headings[2:6] == ["Comparison", "Run early", "Run skin_fedavg", "Run skin_flexfair"]
    assert "early: the run has no final evaluation" in document.root.text


# ------------------------------------------------------------------------------------------------- everybody can read


def test_headings_tables_and_pictures_are_accessible(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        document = Document(text)
        levels = [int(one.tag[1]) for one in document.root.all("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels)), name
        ids = [one.get("id") for one in document.everything if one.get("id")]
        assert len(ids) == len(set(ids))
        for one in document.everything:
            assert not one.get("href") or one.get("href")[1:] in ids
            assert all(part in ids for part in one.get("aria-labelledby").split())
        for table in document.root.all("table"):
            assert table.all("caption")[0].text
            assert all(head.get("scope") in ("col", "row", "rowgroup") for head in table.all("th"))
        for picture in document.root.all("svg"):
            assert picture.get("role") == "img"
            assert picture.get("aria-label") or (picture.all("title")[0].text and picture.all("desc")[0].text)
        scrolling = [one for one in document.everything if one.get("class") == "scroll"]
        assert len(scrolling) == len(document.root.all("table"))
        assert all(one.get("tabindex") == "0" and one.get("aria-label") for one in scrolling)


def test_words_used_are_explained(comparison: str) -> None:
    text = Document(comparison).root.text
    for term, meaning in GLOSSARY:
        assert f"{term}{meaning}" in text
    assert "fairflare run verify" in text


def _colours(style: str, dark: bool) -> dict[str, tuple[float, ...]]:
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    pairs = re.findall(r"--([a-z0-9-]+): #([0-9a-f]{6})", blocks[1 if dark else 0])
    return {name: tuple(int(value[k : k + 2], 16) / 255 for k in (0, 2, 4)) for name, value in pairs}


def _contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Contrast ratio of WCAG 2.2."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast(comparison: str, dark: bool) -> None:
    (style,) = Document(comparison).root.all("style")
    colours = _colours(style.text, dark)
    for ink, papers in {
        "ink": ("paper", "band", "warn"), "soft": ("paper", "band"), "link": ("paper",), "bad-ink": ("paper", "bad"),
        "warn-ink": ("paper", "warn"), "good-ink": ("good",),
    }.items():  # fmt: skip
        for paper in papers:
            assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for number in range(8):
        assert _contrast(colours[f"s{number}"], colours["paper"]) >= 3


def test_phone_paper_and_darkness_are_provided_for(comparison: str) -> None:
    (style,) = Document(comparison).root.all("style")
    for rule in ("@media (max-width: 34rem)", "@media print", "@media screen and (prefers-color-scheme: dark)",
                 "details::details-content", "overflow-x: auto"):  # fmt: skip
        assert rule in style.text
    viewport = [one.get("content") for one in Document(comparison).everything if one.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]


# --------------------------------------------------------------------------------------------------- golden outline


def outline(text: str) -> str:
    """Headings, captions, heads of tables and names of charts, in order."""
    lines = []
    for one in Document(text).everything:
        if one.tag in ("h1", "h2", "h3", "summary", "figcaption"):
            lines.append(f"{one.tag}: {one.text}")
        elif one.tag == "table":
            lines.append(f"table: {' | '.join(head.text for head in one.all('thead')[0].all('th'))}")
            lines.append(f"  {len(one.all('tr')) - 1} rows: {one.all('caption')[0].text}")
    return "\n".join(lines) + "\n"


def test_golden_outline(project_root: Path, comparison: str) -> None:
    path = project_root / "tests" / "golden" / "report_page.txt"
    if os.environ.get("FAIRFLARE_UPDATE_GOLDEN") == "1":
        path.write_text(outline(comparison), encoding="utf-8")
    assert outline(comparison) == path.read_text(encoding="utf-8"), "set FAIRFLARE_UPDATE_GOLDEN=1 if this is meant"


def test_a_page_is_the_same_twice(comparison: str) -> None:
    assert page(*two_runs()) == comparison


def test_a_long_run_makes_a_page_of_bearable_size(tmp_path: Path) -> None:
    plan = make_plan(training={**make_plan().training.model_dump(mode="json"), "rounds": 3000})
    record = make_record(plan, draw(), rounds=rounds(plan, draw(200, seed=5), 3000))
    text = page(reported(record))
    assert len(text) < 600_000
    assert "of 3001 rows; the record has all" in text
    write_record(tmp_path, record)
    assert len(text) < (tmp_path / "record.json").stat().st_size
