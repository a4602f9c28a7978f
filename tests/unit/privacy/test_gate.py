# SPDX-License-Identifier: Apache-2.0
"""The one way out: exactly the vectors that the plan allows, written down first; anything else raises GateError."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairflare.errors import GateError
from fairflare.privacy import gate as module
from fairflare.privacy.gate import Release, ReleaseGate, ReleaseLog
from fairflare.secagg.plain import PlainSite
from fairflare.secagg.protection import Payload, SiteProtection, VectorSpec, Weighted

ALLOWED = {
    "train": {"update": VectorSpec("update", "float32", 3), "sums": VectorSpec("sums", "float64", 2)},
    "finish": {},
}
UPDATE = np.array([1.0, 2.0, 3.0], dtype=np.float32)
SUMS = np.array([4.0, 5.0])
GOOD = {"update": Weighted(UPDATE, 7.0), "sums": Weighted(SUMS)}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "site" / "releases.jsonl"


@pytest.fixture
def gate(log: Path) -> ReleaseGate:
    return ReleaseGate(ALLOWED, PlainSite(), ReleaseLog(log))


def test_what_the_plan_allows_comes_out_sealed(gate: ReleaseGate) -> None:
    release = gate.release("train", 2, 1, GOOD)
    release.verify_sealed()
    assert (release.task, release.round, release.step) == ("train", 2, 1)
    assert release.payloads["update"].values is UPDATE
    assert release.payloads["update"].weight == 7.0


def test_a_task_may_return_nothing_at_all(gate: ReleaseGate) -> None:
    assert gate.release("finish", 0, 0, {}).payloads == {}


def test_every_release_is_on_the_sites_list_without_its_numbers(gate: ReleaseGate, log: Path) -> None:
    gate.release("train", 2, 1, GOOD)
    gate.release("finish", 3, 0, {})
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {
        "event": "release", "task": "train", "round": 2, "step": 1, "vectors": {"update": 3, "sums": 2},
    }  # fmt: skip
    assert lines[1]["vectors"] == {}


def update(values: Any, weight: Any = 1.0) -> dict[str, Any]:
    return {**GOOD, "update": Weighted(values, weight)}


def masked() -> np.ndarray:
    return np.ma.masked_array([1.0, math.nan, 1.0], mask=[False, True, False], dtype=np.float32)


#: What wants out -> the code of its refusal.
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TYPE"),
    "a list of vectors": ([UPDATE, SUMS], "TYPE"),
    "a bare vector": (UPDATE, "TYPE"),
    "a text": ("update", "TYPE"),
    "the labels alone": ({"update", "sums"}, "TYPE"),
    "no vector where two are due": ({}, "LABEL"),
    "a missing label": ({"update": Weighted(UPDATE)}, "LABEL"),
    "an extra label": ({**GOOD, "records": Weighted(SUMS)}, "LABEL"),
    "another label": ({"update": Weighted(UPDATE), "totals": Weighted(SUMS)}, "LABEL"),
    "a label that is a number": ({**GOOD, 7: Weighted(SUMS)}, "LABEL"),
    "a label that is nothing": ({**GOOD, None: Weighted(SUMS)}, "LABEL"),
    "an array without a weight": ({**GOOD, "update": UPDATE}, "TYPE"),
    "null as a vector": ({**GOOD, "update": None}, "TYPE"),
    "a list as a vector": ({**GOOD, "update": [1.0, 2.0, 3.0]}, "TYPE"),
    "a mapping as a vector": ({**GOOD, "update": {"values": UPDATE, "weight": 1.0}}, "TYPE"),
    "a vector within a vector": (update(Weighted(UPDATE)), "DTYPE"),
    "a payload in disguise": ({**GOOD, "update": Payload(UPDATE, 1.0)}, "TYPE"),
    "weighted nothing": (update(None), "DTYPE"),
    "a weighted list": (update([1.0, 2.0, 3.0]), "DTYPE"),
    "a weighted mapping": (update({0: 1.0, 1: 2.0, 2: 3.0}), "DTYPE"),
    "weighted bytes": (update(bytes(12)), "DTYPE"),
    "a weighted text": (update("abc"), "DTYPE"),
    "a tensor": (update(torch.zeros(3)), "DTYPE"),
    "one number": (update(np.float32(1.0)), "DTYPE"),
    "float16": (update(UPDATE.astype(np.float16)), "DTYPE"),
    "float64 for float32": (update(UPDATE.astype(np.float64)), "DTYPE"),
    "float32 for float64": ({**GOOD, "sums": Weighted(SUMS.astype(np.float32))}, "DTYPE"),
    "int64": (update(np.arange(3)), "DTYPE"),
    "booleans": (update(np.ones(3, dtype=bool)), "DTYPE"),
    "complex numbers": (update(np.zeros(3, dtype=np.complex64)), "DTYPE"),
    "big-endian numbers": (update(UPDATE.astype(">f4")), "DTYPE"),
    "objects": (update(np.array([None, {}, []], dtype=object)), "DTYPE"),
    "texts": (update(np.array(["a", "b", "c"])), "DTYPE"),
    "records of a table": (update(np.zeros(3, dtype=[("age", "f4")])), "DTYPE"),
    "an array that hides NaN behind a mask": (update(masked()), "DTYPE"),
    "an empty vector": (update(np.zeros(0, np.float32)), "SHAPE"),
    "a shorter vector": (update(UPDATE[:2]), "SHAPE"),
    "a longer vector": (update(np.zeros(4, np.float32)), "SHAPE"),
    "a matrix": (update(UPDATE.reshape(1, 3)), "SHAPE"),
    "no dimension": (update(np.array(1.0, dtype=np.float32)), "SHAPE"),
    "NaN": (update(np.array([1, math.nan, 3], np.float32)), "NAN"),
    "infinity": (update(np.array([1, 2, math.inf], np.float32)), "NAN"),
    "minus infinity": (update(np.array([-math.inf, 2, 3], np.float32)), "NAN"),
    "a weight below zero": (update(UPDATE, -1.0), "WEIGHT"),
    "a weight of NaN": (update(UPDATE, math.nan), "WEIGHT"),
    "a weight of infinity": (update(UPDATE, math.inf), "WEIGHT"),
    "no weight": (update(UPDATE, None), "WEIGHT"),
    "a weight as text": (update(UPDATE, "1"), "WEIGHT"),
    "a weight that is an array": (update(UPDATE, np.ones(3)), "WEIGHT"),
    "a weight that is true": (update(UPDATE, True), "WEIGHT"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_and_leaves_no_line(what: str, gate: ReleaseGate, log: Path) -> None:
    vectors, code = REFUSED[what]
    with pytest.raises(GateError) as caught:
        gate.release("train", 0, 0, vectors)
    assert caught.value.code == f"FF-GATE-{code}"
    assert not log.exists()


@pytest.mark.parametrize("task", ["", "TRAIN", "join", "unknown", None])
def test_a_result_for_an_unknown_task_is_refused(task: Any, gate: ReleaseGate, log: Path) -> None:
    with pytest.raises(GateError, match="FF-GATE-TASK"):
        gate.release(task, 0, 0, {})
    assert not log.exists()


def test_a_refusal_repeats_no_number(gate: ReleaseGate) -> None:
    with pytest.raises(GateError) as caught:
        gate.release("train", 0, 0, update(np.array([247.125, math.nan, 3], np.float32), 31.0))
    assert "247" not in str(caught.value)
    assert "31" not in str(caught.value)


class Spy(SiteProtection):
    """A protection that notes whether the release was on the list before it."""

    def protect(
        self, specs: Mapping[str, VectorSpec], vectors: Mapping[str, Weighted]
    ) -> tuple[dict[str, Payload], bytes]:
        raise GateError("FF-GATE-KEYS", got="no keys", expected="keys", next_step="none")


def test_what_is_withheld_reaches_no_protection_and_no_list(gate: ReleaseGate, log: Path) -> None:
    release = gate.release("train", 2, 1, GOOD, withheld=("sums",))
    assert list(release.payloads) == ["update"]
    assert json.loads(log.read_text(encoding="utf-8"))["vectors"] == {"update": 3}


def test_a_protection_that_fails_leaves_no_line_and_no_release(log: Path) -> None:
    with pytest.raises(GateError, match="FF-GATE-KEYS"):
        ReleaseGate(ALLOWED, Spy(), ReleaseLog(log)).release("train", 0, 0, GOOD)
    assert not log.exists()


def test_the_line_is_on_disk_before_the_release_is_returned(
    gate: ReleaseGate, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module.os, "fsync", lambda _: seen.append(f"synced {len(log.read_bytes().splitlines())}"))
    real = module.Release

    def made(*arguments: Any) -> Release:
        seen.append("released")
        return real(*arguments)

    monkeypatch.setattr(module, "Release", made)
    gate.release("train", 0, 0, GOOD)
    assert seen == ["synced 1", "released"]


def test_an_unwritable_list_lets_nothing_out(gate: ReleaseGate, log: Path) -> None:
    log.mkdir()
    with pytest.raises(GateError, match="FF-GATE-LOG"):
        gate.release("train", 0, 0, GOOD)


def test_a_full_disk_lets_nothing_out(gate: ReleaseGate, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(GateError, match="FF-GATE-LOG"):
        gate.release("train", 0, 0, GOOD)


FORGED: Mapping[str, Any] = {"null": None, "a seal of one's own": object(), "true": True}


@pytest.mark.parametrize("seal", FORGED)
def test_a_forged_release_is_noticed(seal: str) -> None:
    forged = Release("train", 0, 0, {"update": Payload(UPDATE, 1.0)})
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        forged.verify_sealed()
    object.__setattr__(forged, "_seal", FORGED[seal])
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        forged.verify_sealed()


def test_a_release_cannot_be_given_other_contents(gate: ReleaseGate) -> None:
    release = gate.release("train", 0, 0, GOOD)
    other = dataclasses.replace(release, payloads={"update": Payload(UPDATE, 1.0)})
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        other.verify_sealed()
    with pytest.raises(TypeError):
        release.payloads["update"] = Payload(UPDATE, 1.0)


def test_a_release_does_not_show_its_seal(gate: ReleaseGate) -> None:
    assert "seal" not in repr(gate.release("finish", 0, 0, {}))
