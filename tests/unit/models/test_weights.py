# SPDX-License-Identifier: Apache-2.0
"""Weight files: what is read is what was written, everything else is refused by a code, and nothing runs code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fairflare.errors import WeightsError
from fairflare.models import find_weights, header, read_weights, weights, write_weights

TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.bias": np.array([1.5, -2.5], dtype=np.float32),
    "scale": np.array(0.25, dtype=np.float32),
}
TEXTS = {"plan": "abc", "about": "a test", "round": "3"}


def raw(entries: object, numbers: bytes = b"") -> bytes:
    """A file with this header (JSON text, or what becomes it) and these bytes of tensors."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def entry(start: int, stop: int, shape: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


ONE = {"a": entry(0, 4, [1])}
GOOD = raw(ONE, bytes(4))


def refused(tmp_path: Path, data: bytes, sha256: str | None = None) -> str:
    """Code of the refusal of a file with these bytes; its text is checked for what must not be in it."""
    path = tmp_path / "secretplace.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_weights(path, sha256)
    text = str(caught.value)
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert len(text) < 500
    return caught.value.code.removeprefix(WeightsError.prefix)


# ------------------------------------------------------------------------------------------------- what is written


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "one.safetensors"
    sha256 = write_weights(path, TENSORS, TEXTS)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    file = read_weights(path, sha256)
    assert file.sha256 == sha256
    assert file.metadata == TEXTS
    assert file.tensors.keys() == TENSORS.keys()
    for name, array in file.tensors.items():
        assert array.dtype == np.float32
        assert array.shape == TENSORS[name].shape
        assert np.array_equal(array, TENSORS[name])
        assert not array.flags.writeable


def test_the_library_reads_it_too(tmp_path):
    write_weights(tmp_path / "one", TENSORS, TEXTS)
    read = load((tmp_path / "one").read_bytes())
    assert {name: array.tolist() for name, array in read.items()} == {k: v.tolist() for k, v in TENSORS.items()}


def test_what_the_library_writes_is_read(tmp_path):
    (tmp_path / "one").write_bytes(save(TENSORS, TEXTS))
    file = read_weights(tmp_path / "one")
    assert file.metadata == TEXTS
    assert {name: array.tolist() for name, array in file.tensors.items()} == {k: v.tolist() for k, v in TENSORS.items()}


def test_the_same_tensors_and_texts_give_the_same_bytes(tmp_path):
    first = write_weights(tmp_path / "one", TENSORS, TEXTS)
    second = write_weights(tmp_path / "two", dict(reversed(TENSORS.items())), dict(reversed(TEXTS.items())))
    turned = {**TENSORS, "layer.weight": np.asfortranarray(TENSORS["layer.weight"])}
    assert first == second == write_weights(tmp_path / "three", turned, TEXTS)
    assert first == "637322ed4c42a450ee2007bca06fa684a28f09cb4e0b8278cec5ac829ab384dc"
    assert first != write_weights(tmp_path / "four", TENSORS, {})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "one"
    sha256 = write_weights(path, TENSORS, {})

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_weights(path, {"a": np.ones(3, dtype=np.float32)}, {})
    assert read_weights(path).sha256 == sha256
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tensors", "texts", "code"),
    [
        ({}, {}, "EMPTY"),
        ({"a": np.zeros((0, 3), dtype=np.float32)}, {}, "EMPTY"),
        ({"a": np.zeros(3)}, {}, "DTYPE"),
        ({"a": np.zeros(3, dtype=np.float16)}, {}, "DTYPE"),
        ({"a": np.array([1, np.nan], dtype=np.float32)}, {}, "VALUES"),
        ({"a": np.array([1, -np.inf], dtype=np.float32)}, {}, "VALUES"),
        ({"__metadata__": np.ones(1, dtype=np.float32)}, {}, "FORMAT"),
        ({"a": np.ones(1, dtype=np.float32)}, {"round": 3}, "FORMAT"),
        ({"\ud800": np.ones(1, dtype=np.float32)}, {}, "FORMAT"),
        ({"a": np.ones((1,) * 9, dtype=np.float32)}, {}, "FORMAT"),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path, tensors, texts, code):
    with pytest.raises(WeightsError) as caught:
        write_weights(tmp_path / "one", tensors, texts)
    assert caught.value.code == f"FF-WEIGHTS-{code}"
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- what is found


def test_a_file_is_found_by_its_hash(tmp_path):
    sha256 = write_weights(tmp_path / "one", TENSORS, {})
    (tmp_path / "one").rename(tmp_path / f"{sha256}.safetensors")
    assert read_weights(find_weights(tmp_path, sha256), sha256).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("folder", [None, "empty", "absent"])
def test_a_file_that_is_not_there_is_asked_for(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="copy the file into the weights folder of this site") as caught:
        find_weights(None if folder is None else tmp_path / folder, "0" * 64)
    assert caught.value.code == "FF-WEIGHTS-MISSING"
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("text", ["", "0" * 63, "A" * 64, "../" * 20 + "aaaa", "0" * 64 + "\n"])
def test_only_a_hash_is_looked_for(tmp_path, text):
    with pytest.raises(WeightsError) as caught:
        find_weights(tmp_path, text)
    assert caught.value.code == "FF-WEIGHTS-HASH"


def test_a_link_is_followed(tmp_path):
    write_weights(tmp_path / "one", TENSORS, {})
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert read_weights(tmp_path / "link").sha256 == read_weights(tmp_path / "one").sha256


@pytest.mark.parametrize("kind", ["absent", "folder", "broken link", "loop", "pipe", "nul", "file as folder"])
def test_what_is_no_file_is_missing(tmp_path, kind):
    path = tmp_path / "secret"
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "nul":
        path = tmp_path / "secret\0"
    elif kind == "file as folder":
        path.write_bytes(GOOD)
        path = path / "one"
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert caught.value.code == "FF-WEIGHTS-MISSING"
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- what is refused


class _Harm:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def _torch_file(thing: object, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _numpy_file(thing: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([thing], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        *(lambda harm, protocol=protocol: pickle.dumps(harm, protocol=protocol) for protocol in (2, 3, 4, 5)),
        lambda harm: _torch_file(harm, zipped=True),
        lambda harm: _torch_file(harm, zipped=False),
        lambda harm: _torch_file({"a": torch.zeros(3)}, zipped=True),
        _numpy_file,
        lambda harm: pickle.dumps(None, protocol=2),
    ],
)
def test_pickles_are_refused_and_never_loaded(tmp_path, make):
    harmed = tmp_path / "harmed"
    data = make(_Harm(harmed))
    assert refused(tmp_path, data) == "PICKLE"
    assert refused(tmp_path, data, "0" * 64) == "HASH"
    assert not harmed.exists()


def test_pickles_of_old_protocols_are_refused_as_well(tmp_path):
    harmed = tmp_path / "harmed"
    for protocol in (0, 1):
        assert refused(tmp_path, pickle.dumps(_Harm(harmed), protocol=protocol)) == "FORMAT"
    assert not harmed.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path, protocol):
    """A header of 640 bytes begins with 80 02, as a pickle of protocol 2 does."""
    text = json.dumps(ONE).encode().ljust(0x80 + 256 * protocol)
    (tmp_path / "one").write_bytes(raw(text, bytes(4)))
    assert read_weights(tmp_path / "one").tensors["a"].tolist() == [0.0]


def test_the_hash_is_compared_first(tmp_path):
    right = hashlib.sha256(GOOD).hexdigest()
    assert refused(tmp_path, GOOD, "0" * 64) == "HASH"
    assert refused(tmp_path, GOOD, right.upper()) == "HASH"
    assert refused(tmp_path, b"", right) == "HASH"
    assert refused(tmp_path, b"no tensors at all", right) == "HASH"


def test_the_size_is_looked_at_before_the_file_is_read(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(GOOD)
    os.truncate(path, weights.MAX_BYTES + 1)  # a hole, which takes no space
    with pytest.raises(WeightsError) as caught:
        read_weights(path, "0" * 64)
    assert caught.value.code == "FF-WEIGHTS-SIZE"


def test_a_model_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_BYTES", 100)
    with pytest.raises(WeightsError) as caught:
        write_weights(tmp_path / "one", TENSORS, TEXTS)
    assert caught.value.code == "FF-WEIGHTS-SIZE"


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write_weights(tmp_path / "one", TENSORS, TEXTS)
    data = (tmp_path / "one").read_bytes()
    codes = [refused(tmp_path, data[:length]) for length in range(len(data))]
    assert codes == ["EMPTY", *["TRUNCATED"] * (len(data) - 1)]


@pytest.mark.parametrize("length", [0, 1, header.MAX_HEADER + 1, 2**31, 2**32, 2**63, 2**64 - 1])
def test_an_absurd_length_of_the_header_is_refused(tmp_path, length):
    assert refused(tmp_path, length.to_bytes(8, "little") + GOOD[8:]) == "FORMAT"


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{]",
        b'"a"',
        b"  " + json.dumps(ONE).encode(),
        json.dumps(ONE).encode() + b"{}",
        json.dumps(ONE).encode()[:-1] + b"\0",
        json.dumps(ONE).encode("utf-16"),
        b'{"\xff\xfe": 1}',
        b'{"a": ' + DEEP + b"}",
        b'{"a": {"dtype": "F32", "shape": ' + DEEP + b', "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"b": ' + b'{"c":' * 100_000 + b"1" + b"}" * 100_000 + b"}}",
        b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 10_000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"\\u0061": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"secret": "1", "secret": "2"}, '
        b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_no_clean_json_object_is_refused(tmp_path, text):
    assert refused(tmp_path, raw(text, bytes(4))) == "FORMAT"


@pytest.mark.parametrize(
    "entries",
    [
        {"a": None},
        {"a": [0, 4]},
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {**entry(0, 4, [1]), "secret": 1}},
        {"a": entry(0, 4, [1], dtype="secret")},
        {"a": entry(0, 4, [1], dtype="f32")},
        {"a": {**entry(0, 4, [1]), "dtype": ["F32"]}},
        {"a": {**entry(0, 4, [1]), "dtype": None}},
        {"a": {**entry(0, 4, [1]), "shape": 1}},
        {"a": {**entry(0, 4, [1]), "shape": "1"}},
        {"a": {**entry(0, 4, [1]), "data_offsets": [0]}},
        {"a": {**entry(0, 4, [1]), "data_offsets": [0, 4, 4]}},
        {"a": {**entry(0, 4, [1]), "data_offsets": {"0": 4}}},
        {"a": entry(0, 4, [-1])},
        {"a": entry(0, 4, [-1, -1])},
        {"a": entry(0, 4, [1.0])},
        {"a": entry(0, 4, [True])},
        {"a": entry(False, 4, [1])},
        {"a": entry(0, 4, ["1"])},
        {"a": entry(0, 4, [None])},
        {"a": entry(0, 4, [float("nan")])},
        {"a": entry(0, 4, [2])},
        {"a": entry(0, 4, [1] * 9)},
        {"a": entry(0, 4, [2**62, 2**62])},
        {"a": entry(0, 4 * 2**62, [2**62])},
        {"a": entry(0, 2**33 + 4, [2**31 + 1])},
        {"a": entry(4, 0, [1])},
        {"a": entry(-4, 0, [1])},
        {"a": entry(4, 8, [1])},
        {"a": entry(2**64, 2**64 + 4, [1])},
        {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])},
        {"a": entry(0, 4, [1]), "b": entry(2, 6, [1])},
        {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])},
        {**ONE, "__metadata__": None},
        {**ONE, "__metadata__": []},
        {**ONE, "__metadata__": {"a": 1}},
        {**ONE, "__metadata__": {"a": None}},
        {**ONE, "__metadata__": {"a": {"b": "c"}}},
        {f"t{at}": entry(4 * at, 4 * at + 4, [1]) for at in range(header.MAX_TENSORS + 1)},
    ],
)
def test_entries_that_do_not_describe_tensors_are_refused(tmp_path, entries):
    assert refused(tmp_path, raw(entries, bytes(4))) == "FORMAT"


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path):
    assert refused(tmp_path, GOOD + b"\0") == "FORMAT"
    assert refused(tmp_path, GOOD + GOOD) == "FORMAT"


@pytest.mark.parametrize("entries", [{}, {"__metadata__": {}}, {"__metadata__": {"a": "b"}}])
def test_a_file_without_tensors_is_empty(tmp_path, entries):
    assert refused(tmp_path, raw(entries)) == "EMPTY"
    assert refused(tmp_path, raw({"a": entry(0, 0, [0])})) == "EMPTY"
    assert refused(tmp_path, raw({"a": entry(0, 0, [0, 3]), "b": entry(0, 4, [1])}, bytes(4))) == "EMPTY"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "U16", "BOOL", "F8_E4M3"])
def test_other_types_are_refused_by_name(tmp_path, dtype):
    size = {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F64": 8, "I64": 8, "I32": 4}.get(dtype, 1)
    data = raw({"a": entry(0, size, [1], dtype=dtype)}, bytes(size))
    assert refused(tmp_path, data) == "DTYPE"
    with pytest.raises(WeightsError, match=f"a tensor of {dtype};"):
        read_weights(tmp_path / "secretplace.safetensors")


def test_batchnorms_counters_are_passed_over_and_nothing_like_them(tmp_path):
    """A file of a known network, converted as it is, has an int64 per BatchNorm."""
    numbers = np.int64(7).tobytes() + np.float32(2).tobytes()
    weight = entry(8, 12, [1])
    (tmp_path / "one").write_bytes(raw({"bn1.num_batches_tracked": entry(0, 8, [], "I64"), "w": weight}, numbers))
    assert dict(read_weights(tmp_path / "one").tensors) == {"w": np.float32(2)}
    assert refused(tmp_path, raw({"bn1.num_batches": entry(0, 8, [], "I64"), "w": weight}, numbers)) == "DTYPE"
    assert refused(tmp_path, raw({"bn1.num_batches_tracked": entry(0, 8, [1], "I64"), "w": weight}, numbers)) == "DTYPE"
    assert refused(tmp_path, raw({"num_batches_tracked": entry(0, 8, [], "I64")}, bytes(8))) == "EMPTY"
    assert refused(tmp_path, raw({"num_batches_tracked": entry(0, 4, [], "I64"), **ONE}, bytes(4))) == "FORMAT"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    assert refused(tmp_path, raw(ONE, np.float32(value).tobytes())) == "VALUES"


# ----------------------------------------------------------------------------------------------------- fuzzing

BYTES = raw(
    {"__metadata__": {"plan": "x"}, "a": entry(0, 8, [2]), "b.num_batches_tracked": entry(8, 16, [], "I64"),
     "c": entry(16, 40, [2, 3])},
    np.arange(10, dtype=np.float32).tobytes(),
)  # fmt: skip
PIECES = st.one_of(
    st.binary(min_size=0, max_size=4),
    st.sampled_from([b"-", b"0", b"9" * 20, b"1e9", b"F16", b"[", b"{", b"}", b'"', b",", b"null", b"\\ud800"]),
)


@st.composite
def mutated(draw):
    """A good file in which up to four places were cut out and replaced, its header's length kept right or not."""
    data = BYTES
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(PIECES) + data[at + draw(st.integers(0, 6)) :]
    if draw(st.booleans()) and b"}}" in data:
        length = data.rindex(b"}}") + 2 - 8
        data = max(length, 0).to_bytes(8, "little") + data[8:]
    return data


def _faithful(file: weights.WeightFile, data: bytes) -> None:
    """Tensors are the bytes between their offsets, by the plainest reading of the header that there is."""
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    for name, array in file.tensors.items():
        first, last = entries[name]["data_offsets"]
        assert array.tobytes() == data[start + first : start + last]
        assert list(array.shape) == entries[name]["shape"]
    left_out = entries.keys() - file.tensors.keys() - {"__metadata__"}
    assert all(name.endswith("num_batches_tracked") for name in left_out)


@given(st.one_of(mutated(), st.binary(max_size=200), st.binary(max_size=80).map(lambda text: raw(text))))
@settings(max_examples=400, deadline=None)
@example(BYTES)
@example(GOOD)
def test_any_bytes_are_read_faithfully_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(data)
    try:
        file = read_weights(path)
    except WeightsError:
        return
    _faithful(file, data)
    again = read_weights(path, file.sha256)
    assert {k: v.tobytes() for k, v in again.tensors.items()} == {k: v.tobytes() for k, v in file.tensors.items()}
    if data != BYTES:
        with pytest.raises(WeightsError, match="FF-WEIGHTS-HASH"):
            read_weights(path, hashlib.sha256(BYTES).hexdigest())
