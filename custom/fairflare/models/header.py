# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, read with distrust: every length and offset is checked before it is used.

The format: eight bytes with the header's length, the header (a JSON object: type, shape and place of each tensor),
the numbers. The library's own reader lets through what we do not: the same key twice, keys without a meaning, empty
tensors, tensors of any type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fairflare.errors import WeightsError

#: The largest networks here have some hundred tensors, with less than 200 bytes of header each.
MAX_HEADER = 4 * 1024**2
MAX_TENSORS = 10_000
_MAX_DIMENSIONS = 8
_MAX_NUMBERS = 2**31
#: Beginnings of files whose loading runs code: pickles from protocol 2 on, zip archives (torch), arrays of numpy.
_PICKLES = (*(bytes((0x80, protocol)) for protocol in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
_TYPES = frozenset(
    (
        "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "I16", "U16", "F16", "BF16",
        "I32", "U32", "F32", "C64", "F64", "I64", "U64",
    )
)  # fmt: skip
_METADATA = "__metadata__"
_COUNTER = "num_batches_tracked"

Shape = tuple[int, ...]


def read(data: bytes) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes of the float32 tensors in their order in the file, and the texts; raises :class:`WeightsError`."""
    start = 8 + _length(data)
    entries = _json(data[8:start])
    metadata = _texts(entries.pop(_METADATA, {}))
    if len(entries) > MAX_TENSORS:
        raise malformed(f"{len(entries)} tensors, more than {MAX_TENSORS}")
    places = {name: _place(name, entry) for name, entry in entries.items()}
    names = sorted(places, key=lambda name: places[name][1])
    _check_cover([places[name][1:] for name in names], len(data) - start)
    shapes = {name: places[name][0] for name in names if not _is_counter(name, entries[name])}
    if not shapes:
        raise empty("a weight file without tensors")
    return shapes, metadata


def write(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> bytes:
    """Length and header for float32 tensors that follow in the order of ``shapes``, in a multiple of eight bytes."""
    if _METADATA in shapes:
        raise malformed("a tensor with the name of the texts")
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _length(data: bytes) -> int:
    """The header's length; refuses what is no safetensors file at all."""
    if not data:
        raise empty("an empty file")
    length = int.from_bytes(data[:8], "little")
    # A header of 640 bytes begins like a pickle, so a beginning alone does not make one.
    plausible = len(data) > 8 and data[8:9] == b"{" and length <= MAX_HEADER
    if not plausible and data.startswith(_PICKLES):
        raise WeightsError(
            "FF-WEIGHTS-PICKLE",
            got="a pickle, or an archive or array that may hold one: loading such a file can run code",
            expected="a safetensors file",
            next_step="do not load it; ask its author for a safetensors file",
        )
    if len(data) < 8:
        raise _truncated()
    if not 2 <= length <= MAX_HEADER:
        raise malformed(f"a header's length that is not between 2 and {MAX_HEADER}: this is no safetensors file")
    if len(data) < 8 + length:
        raise _truncated()
    if not plausible:
        raise malformed("a header that is no JSON object")
    return length


def _json(text: bytes) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, a key twice, a number of too many digits
        raise malformed("a header that is not valid JSON, each key once") from None
    return entries  # an object: _length has seen its brace


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is written twice")
    return result


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise malformed("metadata that are not texts")
    return metadata


def _place(name: str, entry: Any) -> tuple[Shape, int, int]:
    """Shape, first and last byte of a tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise malformed("a tensor without exactly a type, a shape and offsets")
    kind, shape, offsets = entry["dtype"], _whole(entry["shape"]), _whole(entry["data_offsets"])
    if not isinstance(kind, str) or kind not in _TYPES:
        raise malformed("a tensor of a type that safetensors does not have")
    counter = _is_counter(name, entry)
    if kind != "F32" and not counter:
        raise wrong_type(kind)
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) > _MAX_NUMBERS:
        raise malformed("a tensor with too many dimensions or numbers")
    if len(offsets) != 2 or offsets[1] - offsets[0] != (8 if counter else 4) * math.prod(shape):
        raise malformed("offsets that do not fit a tensor's shape")
    if 0 in shape:
        raise empty("a tensor without numbers")
    return shape, offsets[0], offsets[1]


def _whole(numbers: Any) -> Shape:
    """A list of whole numbers from 0 on; JSON's true is a number to Python, but not here."""
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise malformed("a shape or offsets that are not lists of whole numbers")
    return tuple(numbers)


def _is_counter(name: str, entry: Mapping[str, Any]) -> bool:
    return name.split(".")[-1] == _COUNTER and entry["dtype"] == "I64" and entry["shape"] == []


def _check_cover(places: list[tuple[int, int]], size: int) -> None:
    """Each byte after the header belongs to exactly one tensor: no overlaps, no gaps, nothing hidden behind."""
    at = 0
    for start, stop in places:
        if start != at:
            raise malformed("tensors that overlap or leave gaps")
        at = stop
    if at > size:
        raise _truncated()
    if at < size:
        raise malformed("bytes that belong to no tensor")


def malformed(got: str) -> WeightsError:
    """The refusal of a file that is not well-formed."""
    return WeightsError(
        "FF-WEIGHTS-FORMAT",
        got=got,
        expected="a well-formed safetensors file, each byte of it in one tensor",
        next_step="do not use this file; write it again with the safetensors library",
    )


def wrong_type(kind: str) -> WeightsError:
    """The refusal of tensors of another type."""
    return WeightsError(
        "FF-WEIGHTS-DTYPE",
        got=f"a tensor of {kind}",
        expected="float32 (F32) tensors only",
        next_step="convert the tensors to float32 and write the file again",
    )


def empty(got: str) -> WeightsError:
    """The refusal of nothing."""
    return WeightsError(
        "FF-WEIGHTS-EMPTY", got=got, expected="at least one tensor, each with numbers",
        next_step="copy the file again from where it came from",
    )  # fmt: skip


def _truncated() -> WeightsError:
    return WeightsError(
        "FF-WEIGHTS-TRUNCATED",
        got="a file that is shorter than its header says",
        expected="the whole file",
        next_step="copy the file again from where it came from",
    )
