# SPDX-License-Identifier: Apache-2.0
"""The model card: it says what a reader needs, keeps names text, and is quick."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from fairflare.evaluation.card import model_card, plain
from fairflare.record import RunRecord, cells_from_sums
from tests.unit.evaluation.records import (
    AGE,
    SEX,
    SKIN_LABELS,
    Patients,
    draw,
    draw_several,
    flexfair,
    make_painted,
    make_plan,
    make_record,
    make_round,
    make_several,
    make_without,
    paint,
)

DIGEST = "d" * 64


def rows(card: str, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``first``."""
    lines = card.splitlines()
    start = lines.index(next(line for line in lines if line.startswith(f"| {first} |")))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def run(plan_name: str = "skin_flexfair") -> RunRecord:
    plan = make_plan(name=plan_name, method=flexfair())
    record = make_record(plan, draw(skill=(0.8, 2.0)), notices=("protection.update is none: seen",))
    assert record.final is not None
    final = record.final.model_copy(update={"best_rounds": 1, "best_model_sha256": "c" * 64})
    return record.model_copy(update={"final": final})


def test_a_card_names_a_site_that_did_not_take_the_job() -> None:
    line = "- Ran without: lund: FF-POLICY-REFUSED, the site's policy does not allow the plan\n"
    assert line in model_card(make_without(run()), DIGEST)
    assert "Ran without" not in model_card(run(), DIGEST)


def test_a_card_says_what_a_reader_needs() -> None:
    record = run()
    card = model_card(record, DIGEST)
    assert card.startswith("# Model card: skin\\_flexfair\n")
    for part in (
        "not a medical device",
        "tells benign, malignant apart in data like those of the data set skin\\_lesions. 3 sites trained it",
        f"`{record.plan_sha256}`",
        f"| Record of the run (SHA-256) | `{DIGEST}` |",
        f"| Final model, after 2 rounds (SHA-256) | `{'b' * 64}` |",
        f"| Best model on validation data, after 1 of 2 rounds (SHA-256) | `{'c' * 64}` |",
        "The results below are the final model's.",
        "- Sites: charite, lyon, uppsala",
        "flexfair; equal opportunity between groups of sex, strength 2",
        "- Starting weights: drawn from the plan's seed",
        "- No: Hiding each site's model update.",
        "- The record's notice: protection.update is none: seen",
        "- Worst group by area under ROC curve: sex female",
        "## Warnings\n\nNone.",
    ):
        assert part in card
    found = {row[0]: row for row in rows(card, "Group")}
    assert list(found) == [
        "everybody", "sex: female", "sex: male", "age: under\\_40", "age: 40\\_to\\_60", "age: over\\_60",
    ]  # fmt: skip
    assert re.fullmatch(r"\d+ \(\d+ positive\)", found["sex: male"][1])
    assert re.fullmatch(r"0\.\d{3} \(0\.\d\d to 0\.\d\d\)", found["sex: male"][2])
    assert "Equal opportunity difference" in [row[1] for row in rows(card, "Attribute")]
    assert model_card(record, DIGEST) == card


def test_a_card_says_which_part_of_a_network_was_trained() -> None:
    network = {"name": "mlp", "hidden": [8]}
    for rank, words in ((None, "the head"), (4, "adapters of rank 4 and the head")):
        part = {"name": "part", "network": network, "trained": "adapters" if rank else "head", "rank": rank}
        card = model_card(make_record(make_plan(model=part), draw()), DIGEST)
        assert f"| Network | mlp, trained: {words} |" in card


def test_groups_too_small_to_judge_are_named() -> None:
    patients = draw()
    few = np.where(np.arange(1200) < 20, 0, 1)
    small = Patients(patients.score, patients.label, {**patients.groups, "sex": few})
    card = model_card(make_record(make_plan(), small), DIGEST)
    assert re.search(r"Groups too small to be judged, .*: sex female \(\d+ records of a label\)", card)
    nobody = Patients(patients.score, patients.label, {**patients.groups, "sex": np.ones(1200, dtype=np.int64)})
    assert "sex female (no record)" in model_card(make_record(make_plan(), nobody), DIGEST)
    assert "It was not judged by patient group" in model_card(make_record(make_plan(attributes=[]), draw()), DIGEST)


def test_cards_of_other_tasks() -> None:
    plan = make_painted()
    record = make_record(plan, paint(), rounds=(make_round(plan, 0), make_round(plan, 1, collapse="all_background")))
    card = model_card(record, DIGEST)
    assert "This model marks polyp in images like those of the data set polyp\\_images." in card
    assert "collapse: on validation data, after 1 round the model calls every pixel" in card
    assert [row[1] for row in rows(card, "Attribute")][:2] == ["Dice difference", "Dice gap to overall"]
    card = model_card(make_record(make_several(), draw_several()), DIGEST)
    assert [row[0] for row in rows(card, "Label")] == list(SKIN_LABELS)
    assert "Mean area under ROC curve over labels" in card


HOSTILE = (
    "<script>alert(1)</script>", "`code` | cell", "[a](javascript:alert(1))", "![i](http://x.example/p.png)",
    "one\ntwo\r\n# heading", "*bold* _it_ ~~s~~", "&lt;b&gt;", "https://x.example", "www.x.example", "@team",
    "\u202edrow", "# top", "1. list", "- item", "> quote", "$x$", "back\\slash", "=====",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    text = plain(name)
    assert "\n" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert "<" not in text
    # What is left of markup after its backslash is taken away is nothing.
    bare = re.sub(r"\\[\\`*_{}\[\]!|~$@#+=/.-]", "x", text)
    assert not re.search(r"[`*_\[\]|~$@]|://|^[#+=-]|^\d+[.)]|www\.|&(?!amp;|lt;|gt;)", bare)


def test_no_name_reaches_the_card_unescaped() -> None:
    for name in HOSTILE:
        record = run()
        plan = record.plan
        attributes = tuple(
            one.model_copy(update={"name": f"{name}{k}", "values": tuple(f"{name}{value}" for value in one.values)})
            for k, one in enumerate(plan.attributes)
        )
        task = plan.task.model_copy(update={"labels": (f"{name}0", f"{name}1"), "data_set": name})
        changed = plan.model_copy(update={"name": name, "attributes": attributes, "task": task})
        assert record.final is not None
        old = record.evaluation("test").cells
        sums = type(record.evaluation("test"))(dict(zip(["all", *changed.groups], old.values(), strict=True)))
        cells = cells_from_sums(changed, sums)
        session = record.sessions[0].model_copy(update={"roster": (name, "lyon")})
        hostile = record.model_copy(
            update={
                "plan": changed, "notices": (name,), "sessions": (session,),
                "final": record.final.model_copy(update={"validation": cells, "test": cells}),
            }
        )  # fmt: skip
        card = model_card(hostile, DIGEST)
        expected = model_card(record, DIGEST)
        assert plain(name) in card
        assert "<" not in card
        # The card keeps its shape: as many headings, tables and their rows.
        for mark in ("# ", "## ", "|"):
            count = [sum(line.startswith(mark) for line in text.splitlines()) for text in (card, expected)]
            assert count[0] == count[1], (name, mark)


def test_a_card_is_quick() -> None:
    training = {**make_plan().training.model_dump(mode="json"), "rounds": 20}
    stage = {"name": "stage", "values": ["one", "two", "three"], "edges": None}
    plan = make_plan(training=training, attributes=[SEX, AGE, stage])
    patients = draw(4000)
    groups = {**patients.groups, "stage": patients.groups["age"]}
    record = make_record(plan, Patients(patients.score, patients.label, groups))
    model_card(record, DIGEST)  # modules are loaded once
    started = time.process_time()
    model_card(record, DIGEST)
    assert time.process_time() - started < 2


def test_a_card_written_during_the_last_task_does_not_call_the_run_incomplete() -> None:
    plan = make_painted()
    rounds = tuple(make_round(plan, number) for number in range(plan.training.rounds))
    record = make_record(plan, paint(), rounds=rounds).model_copy(update={"status": "running", "ended": None})
    assert "incomplete run" not in model_card(record, "0" * 64)
    cut = record.model_copy(update={"rounds": rounds[:-1]})
    assert "incomplete run" in model_card(cut, "0" * 64)
