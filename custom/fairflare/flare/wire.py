# SPDX-License-Identifier: Apache-2.0
"""Messages as FLARE Shareables. The only file that knows the keys.

A Shareable holds one JSON head and one entry per vector. Small vectors go as raw little-endian bytes (FLARE sends
arrays through a download service, one more request each), large ones as numpy arrays. Nothing else is read, and
nothing is trusted: what does not have this form raises :class:`~fairflare.errors.WireError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from fairflare.engine.messages import Message, Reply
from fairflare.errors import WireError
from fairflare.privacy.gate import Release
from fairflare.secagg.protection import Payload

HEAD = "fairflare.head"
VECTOR = "fairflare.vector."
CODE = "fairflare.code"
#: Messages of masked aggregation; absent where there are none.
PROTOCOL = "fairflare.protocol"
VERSION = 2

#: Vectors of fewer bytes travel as bytes.
_INLINE = 65_536
#: A head names a few vectors and numbers; a longer one is not read.
_LONGEST_HEAD = 65_536
_TYPES = {"<f4": np.float32, "<f8": np.float64, "|u1": np.uint8, "<u4": np.uint32, "<u8": np.uint64}
#: The types of numbers that a vector can have, in numpy's short form.
NUMBERS = frozenset(_TYPES)
_KINDS = {np.dtype(dtype): kind for kind, dtype in _TYPES.items()}
_CODE_FORM = re.compile(r"FF-[A-Z]+(-[A-Z]+)*")
_NO_CODE = "FF-ROUND-SITE-ERROR"


def encode_message(message: Message) -> Shareable:
    """A message on its way down."""
    head = {
        "version": VERSION, "task": message.task, "round": message.round, "step": message.step,
        "session": message.session, "plan_sha256": message.plan_sha256,
        "numbers": dict(message.numbers), "text": dict(message.text),
    }  # fmt: skip
    return _pack(head, message.vectors, message.protocol)


def decode_message(shareable: Shareable) -> Message:
    """Inverse of :func:`encode_message`; raises :class:`WireError`."""
    head, vectors = _unpack(shareable)
    return Message(
        task=_text(head, "task"), round=_number(head, "round"), step=_number(head, "step"),
        session=_text(head, "session"), plan_sha256=_text(head, "plan_sha256"), vectors=vectors,
        numbers=_numbers(head, "numbers"), text=_texts(head, "text"), protocol=_protocol(shareable),
    )  # fmt: skip


def encode_release(release: Release, session: str) -> Shareable:
    """A release on its way up; raises :class:`~fairflare.errors.GateError` unless the gate made it."""
    release.verify_sealed()
    known = {label: payload.weight for label, payload in release.payloads.items()}
    weights = {label: weight for label, weight in known.items() if weight is not None}
    head = {
        "version": VERSION, "task": release.task, "round": release.round, "step": release.step,
        "session": session, "weights": weights,
    }  # fmt: skip
    return _pack(head, {label: payload.values for label, payload in release.payloads.items()}, release.protocol)


def decode_reply(shareable: Shareable) -> Reply:
    """Inverse of :func:`encode_release`; raises :class:`WireError`."""
    if failure_code(shareable) is not None:
        raise _bad("FAILED", "an answer that says it failed", "a result")
    head, vectors = _unpack(shareable)
    weights = _numbers(head, "weights")
    if weights and set(weights) != set(vectors):
        raise _bad("KEYS", "weights of other vectors than were sent", "one weight per vector, or none at all")
    payloads = {label: Payload(values, weights.get(label)) for label, values in vectors.items()}
    return Reply(
        _text(head, "task"), _number(head, "round"), _number(head, "step"), _text(head, "session"), payloads,
        _protocol(shareable),
    )  # fmt: skip


def error_reply(code: str) -> Shareable:
    """What a site answers when it refuses: a code, never a text."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply[CODE] = code
    return reply


def failure_code(shareable: Shareable) -> str | None:
    """Why a site says that it failed, or ``None`` for an answer that says it did not.

    Anything that is no code of ours is replaced. A code in an answer that claims to be a result is not read: a site
    cannot choose the name under which its result is refused.
    """
    try:
        said = shareable.get_return_code(ReturnCode.OK)
    except ValueError:  # FLARE's word for headers that are no headers
        return _NO_CODE
    if said == ReturnCode.OK:
        return None
    code = shareable.get(CODE)
    known = isinstance(code, str) and len(code) <= 64 and _CODE_FORM.fullmatch(code)
    return str(code) if known else _NO_CODE


def _pack(head: dict[str, Any], vectors: Mapping[str, np.ndarray], protocol: bytes) -> Shareable:
    shareable = Shareable()
    if protocol:
        shareable[PROTOCOL] = protocol
    kinds = {}
    for label, values in vectors.items():
        kind = _KINDS.get(values.dtype)
        if kind is None:
            raise _bad("DTYPE", f"a vector '{label}' of type {values.dtype}", f"one of {', '.join(_TYPES)}")
        kinds[label] = [kind, values.size]
        plain = np.ascontiguousarray(values, dtype=kind)
        shareable[VECTOR + label] = plain.tobytes() if plain.nbytes < _INLINE else plain
    shareable[HEAD] = json.dumps({**head, "vectors": kinds}, allow_nan=False)
    return shareable


def _unpack(shareable: Shareable) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    head = _head(shareable.get(HEAD))
    if head.get("version") != VERSION:
        raise _bad("VERSION", "a message of another version", f"version {VERSION}")
    kinds = _mapping(head, "vectors")
    sent = {key.removeprefix(VECTOR) for key in shareable if isinstance(key, str) and key.startswith(VECTOR)}
    if sent != set(kinds):
        raise _bad("KEYS", "other vectors than the head names", "every vector named in the head")
    return head, {label: _vector(shareable[VECTOR + label], kind) for label, kind in kinds.items()}


def _protocol(shareable: Shareable) -> bytes:
    data = shareable.get(PROTOCOL, b"")
    if type(data) is not bytes:
        raise _bad("PROTOCOL", "protocol messages that are no bytes", "bytes, or nothing")
    return data


def _head(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > _LONGEST_HEAD:
        raise _bad("HEAD", "a message without a head", "a message of FairFlare")
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise _bad("HEAD", "a message without a readable head", "a message of FairFlare")
    return head


def _vector(data: object, kind: object) -> np.ndarray:
    known = isinstance(kind, list) and len(kind) == 2 and isinstance(kind[0], str) and kind[0] in _TYPES
    if not isinstance(kind, list) or not known or type(kind[1]) is not int:
        raise _bad("DTYPE", "a vector of an unknown type", f"one of {', '.join(_TYPES)}")
    dtype = np.dtype(_TYPES[kind[0]])
    if isinstance(data, bytes):
        if len(data) != kind[1] * dtype.itemsize:
            raise _bad("SHAPE", "a vector of another length than the head says", "as many bytes as named")
        return np.frombuffer(data, dtype=kind[0]).astype(dtype)
    if type(data) is not np.ndarray or data.dtype != dtype:
        raise _bad("DTYPE", "a vector of another type than the head says", str(dtype))
    if data.shape != (kind[1],):
        raise _bad("SHAPE", "a vector of another shape than the head says", "one dimension, as long as named")
    return data


def _text(head: Mapping[str, Any], key: str) -> str:
    value = head.get(key)
    if not isinstance(value, str) or len(value) > 256:
        raise _bad("HEAD", f"no readable '{key}' in the head", "a short text")
    return value


def _number(head: Mapping[str, Any], key: str) -> int:
    value = head.get(key)
    if type(value) is not int or value < 0:
        raise _bad("HEAD", f"no readable '{key}' in the head", "an integer >= 0")
    return value


def _mapping(head: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = head.get(key)
    if not isinstance(value, dict):
        raise _bad("HEAD", f"no readable '{key}' in the head", "a mapping of names to values")
    return value


def _texts(head: Mapping[str, Any], key: str) -> dict[str, str]:
    values = _mapping(head, key)
    return {name: _text(values, name) for name in values}


def _numbers(head: Mapping[str, Any], key: str) -> dict[str, float]:
    return {name: _finite(key, value) for name, value in _mapping(head, key).items()}


def _finite(key: str, value: object) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer that is no float
        number = math.inf
    if not math.isfinite(number):
        raise _bad("HEAD", f"no readable '{key}' in the head", "a mapping of names to finite numbers")
    return number


def _bad(code: str, got: str, expected: str) -> WireError:
    return WireError(
        f"{WireError.prefix}{code}",
        got=got,
        expected=expected,
        next_step="check that server and sites run the same version",
    )
