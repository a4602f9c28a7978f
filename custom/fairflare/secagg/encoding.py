# SPDX-License-Identifier: Apache-2.0
"""The one encoding of everything that is hashed, signed or sent, and its strict parser.

``E(name, x...)`` is the fields "fairflare/sa/1", name, x..., each as its length (4 bytes, big-endian) and its bytes. A
text is UTF-8, a whole number 8 bytes big-endian, a list one field that holds the number of its items (8 bytes) and the
items as fields. So two different values never have the same bytes, and a message of another version never parses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

from fairflare.errors import SecaggError

#: Stands in every message, key and signature: another version of the protocol shares none of them.
VERSION = b"fairflare/sa/1"
#: No protocol message of 50 sites comes near, ciphertexts of all of them included; a longer one is not looked at.
LONGEST = 32 * 1024 * 1024
_WORD = 2**64

Field = bytes | str | int | Sequence["Field"]


def encode(name: str, *fields: Field) -> bytes:
    """E(name, fields...); ``TypeError`` or ``OverflowError`` for what is no field."""
    return b"".join(_field(_bytes(part)) for part in (VERSION, name, *fields))


def digest(name: str, *fields: Field) -> bytes:
    """SHA-256 of E(name, fields...), 32 bytes."""
    return hashlib.sha256(encode(name, *fields)).digest()


def _bytes(value: Field) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bool):
        raise TypeError("got a truth value, expected bytes, text, a whole number or a list of them")
    if isinstance(value, int):
        return value.to_bytes(8, "big")
    return len(value).to_bytes(8, "big") + b"".join(_field(_bytes(item)) for item in value)


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class Reader:
    """Takes the fields of one message in order; anything unexpected raises ``FF-SECAGG-FORM``.

    ``name`` is the message's name; call :meth:`end` after the last field.
    """

    def __init__(self, data: bytes, name: str) -> None:
        if type(data) is not bytes or len(data) > LONGEST:
            refuse_form(name)
        self._name = name
        self._data = data
        self._at = 0
        self._left: int | None = None
        if self.raw() != VERSION or self.raw() != name.encode():
            refuse_form(name)

    @classmethod
    def _list(cls, data: bytes, name: str, most: int) -> Reader:
        """A reader of the items of a list, whose number comes first."""
        inner = cls.__new__(cls)
        inner._name, inner._data, inner._at = name, data, 8
        inner._left = int.from_bytes(data[:8], "big")
        if len(data) < 8 or inner._left > most:
            refuse_form(name)
        return inner

    def raw(self, length: int | None = None) -> bytes:
        """The next field, of exactly ``length`` bytes if that is given."""
        start = self._at + 4
        size = int.from_bytes(self._data[self._at : start], "big")
        stop = start + size
        if stop > len(self._data) or self._left == 0 or (length is not None and size != length):
            refuse_form(self._name)
        self._at = stop
        if self._left is not None:
            self._left -= 1
        return self._data[start:stop]

    def number(self, limit: int = _WORD) -> int:
        """The next field as a whole number below ``limit``."""
        value = int.from_bytes(self.raw(8), "big")
        if value >= limit:
            refuse_form(self._name)
        return value

    def text(self, longest: int = 256) -> str:
        """The next field as a text of at most ``longest`` bytes, not empty."""
        data = self.raw()
        try:
            value = data.decode("utf-8")
        except UnicodeDecodeError:
            refuse_form(self._name)
        if not 0 < len(data) <= longest:
            refuse_form(self._name)
        return value

    def items(self, most: int) -> list[Reader]:
        """The next field as a list of at most ``most`` lists; each is to be read and ended like this one."""
        return [Reader._list(item, self._name, most) for item in self.raws(most)]

    def raws(self, most: int, length: int | None = None) -> list[bytes]:
        """The next field as a list of at most ``most`` byte strings, each of ``length`` bytes if that is given."""
        inner = Reader._list(self.raw(), self._name, most)
        parts = [inner.raw(length) for _ in range(inner._left or 0)]
        inner.end()
        return parts

    def end(self) -> None:
        """Refuse anything that is left."""
        if self._at != len(self._data) or self._left:
            refuse_form(self._name)


def refuse_form(name: str) -> NoReturn:
    """Raise ``FF-SECAGG-FORM`` for a message ``name``."""
    raise SecaggError(
        "FF-SECAGG-FORM",
        got=f"a message '{name}' that does not have its form",
        expected=f"a message of protocol version {VERSION.decode()}",
        next_step="check that server and sites run the same version; a message may have been changed on its way",
    )
