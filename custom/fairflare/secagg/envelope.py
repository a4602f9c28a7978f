# SPDX-License-Identifier: Apache-2.0
"""Protocol messages on their way: a task, or an answer, carries several, each about one step.

Down: ``roster``, ``opening`` (of a closed step), ``keyset``, ``dealers``, ``survivors``, ``confirms``, ``witness`` (of
an open step that is over: who was in it, for a site that missed that), ``offer``. Up: ``join``, ``keys``, ``shares``,
``upload``, ``confirm``, ``unmask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairflare.secagg.encoding import Reader, encode, refuse_form
from fairflare.secagg.params import MOST_SITES, VectorParams
from fairflare.secagg.state import Offer, Sent

DOWN = ("roster", "opening", "keyset", "dealers", "survivors", "confirms", "witness", "offer")
UP = ("join", "keys", "shares", "upload", "confirm", "unmask")
#: Steps of a task times kinds of messages: a plan has few vectors.
_MOST_ITEMS = 256


@dataclass(frozen=True)
class Item:
    """One protocol message: its kind, the number of the step that it is about, its bytes."""

    kind: str
    number: int
    data: bytes


def pack(items: Sequence[Item]) -> bytes:
    """E(protocol, [[kind, number, bytes]...])."""
    return encode("protocol", [[one.kind, one.number, one.data] for one in items])


def unpack(data: bytes, kinds: Sequence[str]) -> list[Item]:
    """Inverse of :func:`pack`; another kind than ``kinds`` is refused. Nothing at all is no item."""
    if data == b"":
        return []
    reader, result = Reader(data, "protocol"), []
    for item in reader.items(_MOST_ITEMS):
        result.append(Item(item.text(16), item.number(), item.raw()))
        item.end()
    reader.end()
    if any(one.kind not in kinds for one in result):
        refuse_form("protocol")
    return result


def offer_data(offer: Offer) -> bytes:
    """E(offer, label, round)."""
    return encode("offer", offer.label, offer.fl_round)


def parse_offer(item: Item) -> Offer:
    """Inverse of :func:`offer_data`."""
    reader = Reader(item.data, "offer")
    result = Offer(item.number, reader.text(128), reader.number())
    reader.end()
    return result


def opening_data(survivors: bytes, payloads: Sequence[Sent]) -> bytes:
    """E(opening, survivors, [words, little-endian, or what a cipher made of them...])."""
    return encode("opening", survivors, [words.astype(words.dtype.newbyteorder("<")).tobytes() for words in payloads])


def witness_data(survivors: bytes, confirms: bytes) -> bytes:
    """E(witness, survivors, confirms)."""
    return encode("witness", survivors, confirms)


def parse_witness(item: Item) -> tuple[bytes, bytes]:
    """Inverse of :func:`witness_data`."""
    reader = Reader(item.data, "witness")
    found = reader.raw(), reader.raw()
    reader.end()
    return found


def parse_opening(item: Item, vector: VectorParams) -> tuple[bytes, list[Sent]]:
    """Inverse of :func:`opening_data`."""
    reader = Reader(item.data, "opening")
    survivors = reader.raw()
    size = vector.bits // 8
    parts = reader.raws(MOST_SITES, None if vector.cipher else vector.length * size)
    reader.end()
    if vector.cipher:
        return survivors, [np.frombuffer(part, dtype=np.uint8) for part in parts]
    return survivors, [np.frombuffer(part, dtype=f"<u{size}").astype(f"u{size}") for part in parts]
