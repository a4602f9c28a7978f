# SPDX-License-Identifier: Apache-2.0
"""What is sent comes back the same; whatever else arrives raises WireError with a code, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fairflare.engine.messages import Message
from fairflare.errors import GateError, WireError
from fairflare.flare import wire
from fairflare.privacy.gate import Release, ReleaseGate, ReleaseLog
from fairflare.secagg.plain import PlainSite
from fairflare.secagg.protection import Payload, VectorSpec, Weighted

LARGE = 20_000  # float32 numbers that do not travel as bytes any more

labels = st.text(max_size=12)
words = st.text(max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
vectors = st.dictionaries(
    labels,
    st.one_of(
        arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)),
        arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats()),
        st.sampled_from([np.arange(LARGE, dtype=np.float32), np.zeros(LARGE, dtype=np.float64)]),
    ),
    max_size=3,
)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return set(left) == set(right) and all(
        left[label].dtype == right[label].dtype and left[label].tobytes() == right[label].tobytes() for label in left
    )


@given(words, st.integers(0, 2**40), st.integers(0, 2**40), words, words, vectors, st.dictionaries(labels, numbers))
def test_a_message_comes_back_as_it_was_sent(
    task: str, round_: int, step: int, session: str, plan: str, sent: dict[str, np.ndarray], given_numbers: dict
) -> None:
    message = Message(task, round_, step, session, plan, sent, given_numbers, {"model_sha256": "0" * 64})
    found = wire.decode_message(wire.encode_message(message))
    assert (found.task, found.round, found.step) == (task, round_, step)
    assert (found.session, found.plan_sha256, found.text) == (session, plan, message.text)
    assert found.numbers == given_numbers
    assert same(dict(found.vectors), sent)


def test_a_release_comes_back_as_a_reply_with_its_weights(tmp_path: Path) -> None:
    specs = {"update": VectorSpec("update", "float32", LARGE), "sums": VectorSpec("sums", "float64", 2)}
    gate = ReleaseGate({"train": specs}, PlainSite(), ReleaseLog(tmp_path / "log"))
    update, sums = np.linspace(-1, 1, LARGE, dtype=np.float32), np.array([0.1, -7.0])
    release = gate.release("train", 3, 1, {"update": Weighted(update, 17.0), "sums": Weighted(sums)})
    reply = wire.decode_reply(wire.encode_release(release, "session"))
    assert (reply.task, reply.round, reply.step, reply.session) == ("train", 3, 1, "session")
    assert same({label: payload.values for label, payload in reply.payloads.items()}, {"update": update, "sums": sums})
    assert {label: payload.weight for label, payload in reply.payloads.items()} == {"update": 17.0, "sums": 1.0}


def test_small_vectors_travel_as_bytes_and_large_ones_as_arrays() -> None:
    sent = wire.encode_message(
        Message("t", 0, 0, "s", "p", {"small": np.zeros(9, np.float32), "large": np.zeros(LARGE, np.float32)})
    )
    assert type(sent[wire.VECTOR + "small"]) is bytes
    assert type(sent[wire.VECTOR + "large"]) is np.ndarray


def test_what_did_not_pass_the_gate_is_not_encoded() -> None:
    forged = Release("train", 0, 0, {"update": Payload(np.zeros(2, np.float32), 1.0)})
    with pytest.raises(GateError, match="FF-GATE-SEAL"):
        wire.encode_release(forged, "session")


def reply(head: dict[str, Any] | None = None, **entries: Any) -> Shareable:
    """A good reply of two numbers, with changes to its head and its entries."""
    good = {
        "version": wire.VERSION, "task": "train", "round": 0, "step": 0, "session": "s",
        "weights": {"update": 1.0}, "vectors": {"update": ["<f4", 2]},
    }  # fmt: skip
    shareable = Shareable()
    shareable[wire.HEAD] = json.dumps({**good, **(head or {})})
    shareable[wire.VECTOR + "update"] = bytes(8)
    for key, value in entries.items():
        shareable[wire.VECTOR + key] = value
    return shareable


def with_entry(key: object, value: object) -> Shareable:
    shareable = reply()
    shareable[key] = value
    return shareable


def without(*keys: str) -> Shareable:
    shareable = reply()
    for key in keys:
        del shareable[key]
    return shareable


def without_head_entry(key: str) -> Shareable:
    shareable = reply()
    head = json.loads(shareable[wire.HEAD])
    del head[key]
    shareable[wire.HEAD] = json.dumps(head)
    return shareable


HEAD, KEYS, DTYPE, SHAPE = "FF-WIRE-HEAD", "FF-WIRE-KEYS", "FF-WIRE-DTYPE", "FF-WIRE-SHAPE"

HOSTILE: dict[str, tuple[Callable[[], Shareable], str]] = {
    "nothing at all": (Shareable, HEAD),
    "no head": (lambda: without(wire.HEAD), HEAD),
    "a head that is null": (lambda: with_entry(wire.HEAD, None), HEAD),
    "a head that is a number": (lambda: with_entry(wire.HEAD, 5), HEAD),
    "a head that is bytes": (lambda: with_entry(wire.HEAD, b"{}"), HEAD),
    "a head that is a mapping already": (lambda: with_entry(wire.HEAD, {"version": 1}), HEAD),
    "a head that is no JSON": (lambda: with_entry(wire.HEAD, "{"), HEAD),
    "a head that is a JSON list": (lambda: with_entry(wire.HEAD, "[]"), HEAD),
    "a head that is a JSON text": (lambda: with_entry(wire.HEAD, '"version"'), HEAD),
    "a head nested too deeply": (lambda: with_entry(wire.HEAD, '{"a":' * 5000 + "1" + "}" * 5000), HEAD),
    "a head with a number of 5,000 digits": (lambda: with_entry(wire.HEAD, '{"version": ' + "9" * 5000 + "}"), HEAD),
    "a head of a million characters": (lambda: with_entry(wire.HEAD, '"' + "a" * 1_000_000 + '"'), HEAD),
    "no version": (lambda: without_head_entry("version"), "FF-WIRE-VERSION"),
    "another version": (lambda: reply({"version": 1}), "FF-WIRE-VERSION"),
    "a version as text": (lambda: reply({"version": "1"}), "FF-WIRE-VERSION"),
    "no list of vectors": (lambda: without_head_entry("vectors"), HEAD),
    "vectors as pairs": (lambda: reply({"vectors": [["update", ["<f4", 2]]]}), HEAD),
    "vectors as a text of two letters": (lambda: reply({"vectors": ["ab"]}), HEAD),
    "no task": (lambda: without_head_entry("task"), HEAD),
    "a task that is a list": (lambda: reply({"task": ["train"]}), HEAD),
    "a task of a thousand letters": (lambda: reply({"task": "t" * 1000}), HEAD),
    "a round below zero": (lambda: reply({"round": -1}), HEAD),
    "a round that is a fraction": (lambda: reply({"round": 0.5}), HEAD),
    "a round that is true": (lambda: reply({"round": True}), HEAD),
    "a step that is a text": (lambda: reply({"step": "0"}), HEAD),
    "a session that is null": (lambda: reply({"session": None}), HEAD),
    "no weights": (lambda: without_head_entry("weights"), HEAD),
    "weights as a list": (lambda: reply({"weights": [1.0]}), HEAD),
    "a weight as text": (lambda: reply({"weights": {"update": "1"}}), HEAD),
    "a weight that is true": (lambda: reply({"weights": {"update": True}}), HEAD),
    "a weight that is null": (lambda: reply({"weights": {"update": None}}), HEAD),
    "a weight that is NaN": (lambda: reply({"weights": {"update": float("nan")}}), HEAD),
    "a weight that is infinite": (lambda: reply({"weights": {"update": float("-inf")}}), HEAD),
    "a weight that is no float any more": (lambda: reply({"weights": {"update": 10**400}}), HEAD),
    "weights of another vector": (lambda: reply({"weights": {"other": 1.0}}), KEYS),
    "one weight too many": (lambda: reply({"weights": {"update": 1.0, "other": 1.0}}), KEYS),
    "a vector that the head does not name": (lambda: reply(extra=bytes(8)), KEYS),
    "a vector that was not sent": (lambda: without(wire.VECTOR + "update"), KEYS),
    "a kind that is null": (lambda: reply({"vectors": {"update": None}}), DTYPE),
    "a kind of one part": (lambda: reply({"vectors": {"update": ["<f4"]}}), DTYPE),
    "a kind whose type is a list": (lambda: reply({"vectors": {"update": [["<f4"], 2]}}), DTYPE),
    "float16": (lambda: reply({"vectors": {"update": ["<f2", 2]}}), DTYPE),
    "big-endian numbers": (lambda: reply({"vectors": {"update": [">f4", 2]}}), DTYPE),
    "Python objects": (lambda: reply({"vectors": {"update": ["|O", 2]}}), DTYPE),
    "a length that is a fraction": (lambda: reply({"vectors": {"update": ["<f4", 2.0]}}), DTYPE),
    "a length that is true": (lambda: reply({"vectors": {"update": ["<f4", True]}}), DTYPE),
    "a length below zero": (lambda: reply({"vectors": {"update": ["<f4", -2]}}), SHAPE),
    "a length beyond all memory": (lambda: reply({"vectors": {"update": ["<f4", 2**70]}}), SHAPE),
    "fewer bytes than named": (lambda: reply(update=bytes(4)), SHAPE),
    "bytes of half a number": (lambda: reply(update=bytes(9)), SHAPE),
    "the other type's bytes": (lambda: reply(update=bytes(16)), SHAPE),
    "a vector that is null": (lambda: reply(update=None), DTYPE),
    "a vector that is a text": (lambda: reply(update="\0" * 8), DTYPE),
    "a vector that is a list": (lambda: reply(update=[0.0, 0.0]), DTYPE),
    "an array of another type": (lambda: reply(update=np.zeros(2)), DTYPE),
    "an array of float16": (lambda: reply(update=np.zeros(2, np.float16)), DTYPE),
    "an array of objects": (lambda: reply(update=np.array([None, None])), DTYPE),
    "an array that hides numbers behind a mask": (lambda: reply(update=np.ma.masked_array([1, 2], dtype="<f4")), DTYPE),
    "a matrix": (lambda: reply(update=np.zeros((1, 2), np.float32)), SHAPE),
    "a longer array": (lambda: reply(update=np.zeros(3, np.float32)), SHAPE),
    "a failure": (lambda: wire.error_reply("FF-DATA-FEW"), "FF-WIRE-FAILED"),
    "a failure of FLARE's": (lambda: make_reply(ReturnCode.TASK_ABORTED), "FF-WIRE-FAILED"),
    "headers that are no headers": (lambda: with_entry(ReservedHeaderKey.HEADERS, 5), "FF-WIRE-FAILED"),
}  # fmt: skip


def test_the_reply_that_the_table_breaks_is_good() -> None:
    assert wire.decode_reply(reply()).payloads["update"].values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("defect", HOSTILE)
def test_a_hostile_reply_is_refused_by_name(defect: str) -> None:
    make, code = HOSTILE[defect]
    with pytest.raises(WireError) as caught:
        wire.decode_reply(make())
    assert caught.value.code == code


HOSTILE_MESSAGES = {
    "no numbers": {"numbers": None},
    "a number that is a text": {"numbers": {"sites": "4"}},
    "texts as a list": {"text": ["model_sha256"]},
    "a text that is a number": {"text": {"model_sha256": 5}},
    "a text without an end": {"text": {"model_sha256": "0" * 5000}},
    "no plan": {"plan_sha256": None},
}


@pytest.mark.parametrize("defect", HOSTILE_MESSAGES)
def test_a_hostile_message_is_refused(defect: str) -> None:
    shareable = wire.encode_message(Message("train", 0, 0, "s", "p"))
    shareable[wire.HEAD] = json.dumps({**json.loads(shareable[wire.HEAD]), **HOSTILE_MESSAGES[defect]})
    with pytest.raises(WireError, match=HEAD):
        wire.decode_message(shareable)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
kinds = st.one_of(st.tuples(st.sampled_from(["<f4", "<f8", "<f2"]), st.integers(-1, 3)).map(list), json_values)
heads = st.fixed_dictionaries(
    {},
    optional={
        "version": st.just(wire.VERSION) | json_values,
        "task": st.just("train") | json_values,
        "round": st.integers(0, 3) | json_values,
        "step": st.integers(0, 3) | json_values,
        "session": st.text(max_size=5) | json_values,
        "plan_sha256": st.text(max_size=5) | json_values,
        "numbers": st.just({}) | json_values,
        "text": st.just({}) | json_values,
        "weights": st.dictionaries(st.sampled_from(["a", "b"]), st.floats() | json_values, max_size=2) | json_values,
        "vectors": st.dictionaries(st.sampled_from(["a", "b"]), kinds, max_size=2) | json_values,
    },
)
entries = st.dictionaries(
    st.sampled_from([wire.VECTOR + "a", wire.VECTOR + "b", wire.VECTOR, wire.CODE, "other"]),
    st.one_of(
        st.binary(max_size=24),
        st.text(max_size=4),
        st.none(),
        st.integers(),
        arrays.arrays(
            st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.complex128]), st.integers(0, 3)
        ),
        st.just(np.zeros((2, 2), dtype=np.float32)),
        st.just(np.array([object()])),
    ),
    max_size=3,
)


@given(heads.map(json.dumps) | st.text(max_size=30) | json_values, entries, st.sampled_from([None, {}, 5, "x"]))
def test_whatever_arrives_is_decoded_or_refused(head: object, found: dict[str, object], headers: object) -> None:
    shareable = Shareable()
    shareable.update(found)
    shareable[wire.HEAD] = head
    if headers is not None:
        shareable[ReservedHeaderKey.HEADERS] = headers
    for decode in (wire.decode_reply, wire.decode_message):
        try:
            decode(shareable)
        except WireError as problem:
            assert problem.code.startswith("FF-WIRE-")  # noqa: PT017 - the point is that it is no other exception
    code = wire.failure_code(shareable)
    assert code is None or code.startswith("FF-")


def test_a_site_says_why_it_failed_by_a_code() -> None:
    assert wire.failure_code(wire.error_reply("FF-DATA-FEW")) == "FF-DATA-FEW"


NO_CODES = {
    "none": None,
    "a number": 17,
    "a sentence": "patient 17 has a tumour",
    "lower case": "FF-data-few",
    "digits": "FF-PATIENT-17",
    "a code and more": "FF-DATA-FEW\n",
    "another tree": "XX-DATA-FEW",
    "too long": "FF-" + "A" * 62,
}


@pytest.mark.parametrize("what", NO_CODES)
def test_what_is_no_code_of_ours_is_not_repeated(what: str) -> None:
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    failed[wire.CODE] = NO_CODES[what]
    assert wire.failure_code(failed) == "FF-ROUND-SITE-ERROR"


def test_a_result_cannot_choose_the_name_of_its_refusal() -> None:
    assert wire.failure_code(with_entry(wire.CODE, "FF-DATA-FEW")) is None
