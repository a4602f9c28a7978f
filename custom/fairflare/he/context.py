# SPDX-License-Identifier: Apache-2.0
"""TenSEAL's files as they lie on a disk: what is in a serialised context, and who can read the file.

A context is a protocol buffer of four fields: encryption parameters (SEAL's own form), public part, private part, kind
of encryption. It is read here without TenSEAL, so that a secret key in the wrong place is found before anything loads
it, and by an auditor who has no TenSEAL at all. What the parameters are is asked of SEAL itself (``ckks.py``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from fairflare import schema
from fairflare.errors import HeError
from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME, SERVER_CONTEXT, Record, read_record

#: No context of ours is as large as that: a server's, with keys that nobody needs, has 0.7 MB at degree 8192.
_MOST_BYTES: Final = 64 * 1024 * 1024
_OTHERS: Final = 0o077
_SYMMETRIC = 1

Value = int | bytes


@dataclass(frozen=True)
class ContextForm:
    """What a serialised context holds: SEAL's parameters, the scale, whether a secret key, whether symmetric."""

    parameters: bytes = field(repr=False)
    scale: float
    has_secret: bool
    symmetric: bool


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a protocol buffer; raises :class:`ValueError` for anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: Value
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            size, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("a field of an unknown kind")
        if at > len(data):
            raise ValueError("a field that ends too soon")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number that ends too soon, or never")


def each_once(data: bytes, known: frozenset[int]) -> dict[int, Value]:
    """Fields by number; :class:`ValueError` for an unknown one, or one that is there twice."""
    found: dict[int, Value] = {}
    for number, value in fields(data):
        if number not in known or number in found:
            raise ValueError("an unknown field, or one that is there twice")
        found[number] = value
    return found


def double(value: Value | None) -> float:
    """A field of type double; :class:`ValueError` for another one."""
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError("no double")
    return float(struct.unpack("<d", value)[0])


def parse_context(data: bytes) -> ContextForm:
    """What is in a serialised context; raises ``FF-HE-CONTEXT``."""
    try:
        whole = each_once(data, frozenset({1, 2, 3, 4}))
        parameters, public = whole.get(1), whole.get(2)
        if not isinstance(parameters, bytes) or not isinstance(public, bytes):
            raise ValueError("no parameters")
        scale = double(dict(fields(public)).get(3))
    except ValueError:
        _refuse_context("a file that is no context of TenSEAL")
    return ContextForm(parameters, scale, 3 in whole, whole.get(4) == _SYMMETRIC)


def holds_secret(data: bytes) -> bool:
    """Whether a secret key is in a serialised context; ``FF-HE-CONTEXT`` for a file that is none."""
    return parse_context(data).has_secret


@dataclass(frozen=True)
class Files:
    """A context and its record, as they lie beside each other."""

    context: bytes = field(repr=False)
    record: Record


def read_client(*folders: Path) -> Files:
    """A hospital's context, from the one of ``folders`` that has it.

    Raises
    ------
    HeError
        ``FF-HE-NONE`` without one, ``FF-HE-TWO`` with two, ``FF-HE-MODE`` where others on this machine could read or
        change it; what :func:`read_record` raises.
    """
    found = [folder for folder in folders if (folder / CLIENT_CONTEXT).exists()]
    if len(found) > 1:
        raise HeError(
            "FF-HE-TWO",
            got="two contexts of CKKS, one in the kit's startup/ and one in local/",
            expected="one: with two, nobody knows which key the other hospitals have",
            next_step="take the older one away, at every hospital the same",
        )
    file = _one(found, CLIENT_CONTEXT) / CLIENT_CONTEXT
    if file.is_symlink() or not file.is_file() or file.stat().st_mode & _OTHERS:
        raise HeError(
            "FF-HE-MODE",
            got="a context with the hospitals' secret key that others on this machine can read or change",
            expected="a plain file of mode 0600",
            next_step="chmod 600 it; if somebody else may have read it, make new contexts for all hospitals",
        )
    return Files(_content(file), _record(file.parent))


def read_server(*folders: Path, simulated: bool) -> Files:
    """The server's context, from the one of ``folders`` that has it.

    ``simulated``: one folder stands for all sites and the server, so it holds the hospitals' context too.

    Raises
    ------
    HeError
        ``FF-HE-SECRET`` where a secret key, or the hospitals' file, is at the server; else as :func:`read_client`.
    """
    found = [folder for folder in folders if (folder / SERVER_CONTEXT).exists()]
    if len(found) > 1:
        _refuse_context("two contexts at the server")
    folder = _one(found, SERVER_CONTEXT)
    data = _content(folder / SERVER_CONTEXT)
    own = [] if simulated else [one for one in folders if (one / CLIENT_CONTEXT).exists()]
    if own or holds_secret(data):
        refuse_secret()
    return Files(data, _record(folder))


def write_private(file: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read; ``FileExistsError`` if there is one."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)


def write_contexts(folder: Path, record: Record, *, client: bytes | None = None, server: bytes | None = None) -> None:
    """Write contexts and their record as :func:`read_client` and :func:`read_server` read them."""
    for name, data in ((CLIENT_CONTEXT, client), (SERVER_CONTEXT, server)):
        if data is not None:
            write_private(folder / name, data)
    write_private(folder / RECORD_NAME, schema.pretty(record).encode("utf-8"))


def refuse_secret() -> NoReturn:
    """Raise ``FF-HE-SECRET``."""
    raise HeError(
        "FF-HE-SECRET",
        got="the hospitals' secret key at the server",
        expected="a context without one: with it the server could decrypt what every hospital sends",
        next_step="take it away; make new contexts for all hospitals, since this key is no secret any more",
    )


def _one(found: list[Path], name: str) -> Path:
    if not found:
        raise HeError(
            "FF-HE-NONE",
            got=f"a plan with statistics 'ckks', and no {name}",
            expected="a context of CKKS in the kit's startup/ or local/",
            next_step="provision with HEBuilder, or let one hospital make contexts: fairflare he make",
        )
    return found[0]


def _content(file: Path) -> bytes:
    if file.stat().st_size > _MOST_BYTES:
        _refuse_context("a file far larger than any context")
    return file.read_bytes()


def _record(folder: Path) -> Record:
    if not (folder / RECORD_NAME).is_file():
        raise HeError(
            "FF-HE-RECORD",
            got=f"a context of CKKS without {RECORD_NAME} beside it",
            expected="the record of its parameters, which every hospital binds when it joins",
            next_step="name HEBuilder before fairflare's HardeningBuilder in project.yml, or use fairflare he make",
        )
    return read_record(folder / RECORD_NAME)


def _refuse_context(got: str) -> NoReturn:
    raise HeError(
        "FF-HE-CONTEXT",
        got=got,
        expected="one serialised context of CKKS with symmetric encryption, as the record beside it says",
        next_step="take the files of one provisioning; do not mix contexts",
    ) from None
