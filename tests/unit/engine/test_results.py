# SPDX-License-Identifier: Apache-2.0
"""What a site keeps of a finished run, and what a server cannot make it keep."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.engine import results
from fairflare.engine.local import answer, run_local
from fairflare.engine.messages import EVALUATE, FINISH, JOIN, MEASURE, Message
from fairflare.engine.results import FOLDER, received_record
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.errors import RoundError
from fairflare.models import initial_vector, to_vector_of, vector_sha256
from fairflare.models.weights import read_weights
from fairflare.record import read_record, results_of
from tests.unit.engine.hospitals import four, plan

FAIR = plan(presets.flexfair(presets.penalty("sex", "equal_opportunity", 1.0)), rounds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_local(FAIR, four(), folder)


def test_every_site_keeps_both_models_the_record_and_a_card(run):
    folder, record = run
    digest = hashlib.sha256(schema.canonical(results_of(record))).hexdigest()
    for name in four():
        kept = folder / "sites" / name / FOLDER
        assert sorted(file.name for file in kept.iterdir()) == [
            "best.safetensors", "final.safetensors", "model_card.md", "record.json",
        ]  # fmt: skip
        assert hashlib.sha256((kept / "record.json").read_bytes()).hexdigest() == digest
        assert read_record(kept).final == record.final.model_copy(update={"confirmed": ()})
        for kind, expected in (("final", record.final.model_sha256), ("best", record.final.best_model_sha256)):
            file = read_weights(kept / f"{kind}.safetensors")
            assert file.metadata["model_sha256"] == expected
            assert file.metadata["kind"] == kind
            assert file.metadata["record_sha256"] == digest
            assert vector_sha256(to_vector_of(FAIR, file)) == expected
        card = (kept / "model_card.md").read_text(encoding="utf-8")
        assert digest in card
        assert record.final.model_sha256 in card


class Finishing:
    """A site that has evaluated the final model and waits for the end, and the honest last message."""

    def __init__(self, folder):
        sites = {name: Site(name, FAIR, load, folder / name) for name, load in four().items()}
        for phase in Coordinator(FAIR, folder / "server", Start("s", "local", {})).phases(sorted(sites)):
            if phase.message.task == FINISH:
                self.site, self.honest = sites["amber"], phase.message
                return
            for name in phase.targets:
                answer(sites[name], phase)

    def refused(self, **vectors):
        honest = self.honest
        message = Message(
            honest.task, honest.round, honest.step, honest.session, honest.plan_sha256,
            {**honest.vectors, **vectors}, honest.numbers, honest.text,
        )  # fmt: skip
        with pytest.raises(RoundError) as caught:
            self.site.handle(message)
        assert not (self.site.folder / FOLDER).exists()
        return caught.value.code


@pytest.fixture
def finishing(tmp_path):
    return Finishing(tmp_path)


def record_with(finishing, **fields):
    record = json.loads(finishing.honest.vectors["record"].tobytes())
    for path, value in fields.items():
        part = record
        *parents, last = path.split("__")
        for name in parents:
            part = part[name]
        part[last] = value
    return np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)


def invented_best(finishing):
    best = finishing.honest.vectors["best"] + np.float32(1.0)
    return {"best": best, "record": record_with(finishing, final__best_model_sha256=vector_sha256(best))}


def beyond_number(finishing):
    cells = json.loads(finishing.honest.vectors["record"].tobytes())["final"]["test"]
    return [{**cell, "count": 2e300, "histogram": [1e298] * len(cell["histogram"])} for cell in cells]


def negative(finishing):
    cells = json.loads(finishing.honest.vectors["record"].tobytes())["final"]["test"]
    return [{**cells[0], "count": -cells[0]["count"]}, *cells[1:]]


def half_a_record(finishing):
    record = json.loads(finishing.honest.vectors["record"].tobytes())
    record["rounds"][0]["validation"][0]["records"] -= 0.5
    return np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)


HOSTILE = {
    "no record": lambda _: {"record": np.zeros(0, dtype=np.uint8)},
    "no text": lambda _: {"record": np.full(10, 255, dtype=np.uint8)},
    "no JSON": lambda _: {"record": np.frombuffer(b"[" * 5000, dtype=np.uint8)},
    "a record with another key": lambda f: {"record": record_with(f, patients=["x"])},
    "a record without results": lambda f: {"record": record_with(f, final=None)},
    "the record of another plan": lambda f: {"record": record_with(f, plan__training__seed=99)},
    "a record that names another final model": lambda f: {"record": record_with(f, final__model_sha256="0" * 64)},
    "a record that names another best model": lambda f: {"record": record_with(f, final__best_model_sha256="0" * 64)},
    "rounds that the best model was not trained for": lambda f: {"record": record_with(f, final__best_rounds=-4)},
    "an invented best model": lambda f: invented_best(f),
    "no rounds": lambda f: {"record": record_with(f, rounds=[])},
    "no cells": lambda f: {"record": record_with(f, final__test=[])},
    "records beyond number": lambda f: {"record": record_with(f, final__test=beyond_number(f))},
    "cells of a negative number of records": lambda f: {"record": record_with(f, final__test=negative(f))},
    "a validation line of half a record": lambda f: {"record": half_a_record(f)},
    "no session": lambda f: {"record": record_with(f, sessions=[])},
    "another best model": lambda f: {"best": f.honest.vectors["best"] + np.float32(1.0)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_site_keeps_nothing_that_the_record_does_not_name(finishing, what):
    assert finishing.refused(**HOSTILE[what](finishing)) == "FF-ROUND-RECORD"
    finishing.site.handle(finishing.honest)
    assert (finishing.site.folder / FOLDER / "final.safetensors").is_file()


def test_a_best_model_of_another_size_or_with_nan_is_refused(finishing):
    best = finishing.honest.vectors["best"]
    assert finishing.refused(best=best[:-1]) == "FF-ROUND-INPUT"
    assert finishing.refused(best=np.full_like(best, np.nan)) == "FF-ROUND-INPUT"
    assert finishing.refused(record=np.zeros(3)) == "FF-ROUND-INPUT"


def test_a_record_that_is_too_long_is_not_read(monkeypatch):
    monkeypatch.setattr(results, "_LONGEST_RECORD", 10)
    with pytest.raises(RoundError, match="FF-ROUND-RECORD"):
        received_record(b" " * 11, FAIR)


def test_a_final_model_that_this_site_did_not_evaluate_is_refused(tmp_path):
    site = Site("amber", FAIR, four()["amber"], tmp_path)
    site.handle(Message(JOIN, 0, 0, "s", FAIR.sha256))
    model = initial_vector(FAIR)
    text_of = {"model_sha256": vector_sha256(model)}
    site.handle(Message(EVALUATE, 2, 0, "s", FAIR.sha256, {"model": model}, {}, text_of))
    vectors = {"best": model, "record": np.frombuffer(b"{}", dtype=np.uint8)}
    with pytest.raises(RoundError, match="FF-ROUND-MODEL"):
        site.handle(Message(FINISH, 2, 0, "s", FAIR.sha256, vectors, {}, {"model_sha256": "0" * 64}))


@pytest.mark.parametrize(("task", "round_"), [(EVALUATE, 1), (EVALUATE, 3), (MEASURE, 2), (MEASURE, -1)])
def test_a_round_that_the_plan_does_not_have_is_refused(tmp_path, task, round_):
    site = Site("amber", FAIR, four()["amber"], tmp_path)
    site.handle(Message(JOIN, 0, 0, "s", FAIR.sha256))
    with pytest.raises(RoundError, match="FF-ROUND-ROUND"):
        site.handle(Message(task, round_, 0, "s", FAIR.sha256, {"model": initial_vector(FAIR)}))


def test_test_records_are_evaluated_once_in_a_session(finishing):
    site, honest = finishing.site, finishing.honest
    with pytest.raises(RoundError, match="FF-ROUND-REPEAT"):
        site.handle(Message(EVALUATE, honest.round, 0, honest.session, FAIR.sha256, {"model": initial_vector(FAIR)}))
