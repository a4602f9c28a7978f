# SPDX-License-Identifier: Apache-2.0
"""Changes a message where it hurts: takes it apart, changes one place, puts it together with the right lengths.

Random bytes hardly ever get past the version of a message. These do, and they are signed again where that is asked
for, as a dishonest site would.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fairflare.secagg.encoding import VERSION

_HEAD = len(VERSION).to_bytes(4, "big") + VERSION
#: Where the index of the signer stands in a signed message.
_SIGNER = {b"keys": 5, b"shares": 6, b"up": 3}
_SIGNED = (*_SIGNER, b"unmask")
_INTERESTING = [0, 1, 2, 3, 4, 5, 255, 1023, 1024, 1025, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@dataclass
class Node:
    """A field: a leaf (``parts`` is None), a message, or a list, whose count may lie."""

    data: bytes = b""
    parts: list[Node] | None = None
    is_list: bool = False
    lie: int = 0
    fixed: bool = field(default=False)

    def encoded(self) -> bytes:
        if self.parts is None:
            return self.data
        found = [part.encoded() for part in self.parts]
        body = b"".join(len(one).to_bytes(4, "big") + one for one in found)
        return ((len(found) + self.lie) % 2**64).to_bytes(8, "big") + body if self.is_list else body

    def walk(self) -> Iterator[Node]:
        yield self
        for part in self.parts or ():
            yield from part.walk()


def _fields(data: bytes) -> list[bytes] | None:
    found, at = [], 0
    while at < len(data):
        stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if stop > len(data):
            return None
        found.append(data[at + 4 : stop])
        at = stop
    return found


def take_apart(data: bytes) -> Node | None:
    """The tree of a message; None if its version or a length is wrong."""
    if not data.startswith(_HEAD):
        return None
    fields = _fields(data)
    if fields is None or len(fields) < 2:
        return None
    parts = [_node(one) for one in fields]
    parts[0] = Node(fields[0], fixed=True)
    parts[1] = Node(fields[1], fixed=True)
    return Node(parts=parts)


def _node(data: bytes) -> Node:
    message = take_apart(data)
    if message is not None:
        return message
    if len(data) > 8:
        items = _fields(data[8:])
        if items and len(items) == int.from_bytes(data[:8], "big"):
            return Node(parts=[_node(one) for one in items], is_list=True)
    return Node(data)


class Mutator:
    """Changes messages.

    Parameters
    ----------
    seeds
        Valid messages.
    keys
        The sites' signing keys by index.
    own
        Index of the site that signs what names no signer.
    """

    def __init__(self, seeds: list[bytes], keys: dict[int, bytes], own: int = 1) -> None:
        self.seeds = seeds
        self._keys = {index: Ed25519PrivateKey.from_private_bytes(key) for index, key in keys.items()}
        self._own = own

    def __call__(self, data: bytes, rng: random.Random) -> bytes:
        """``data``, or a seed where that is no message, with one or a few changes."""
        tree = take_apart(data)
        if tree is None or rng.random() < 0.2:
            tree = take_apart(rng.choice(self.seeds))
        if tree is None:  # a bare signature, or words
            return self.bytes(data, rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change(tree, rng)
        choice = rng.random()
        if choice < 0.75:
            self._repair(tree, hashes=choice < 0.4)
        return tree.encoded()

    @staticmethod
    def bytes(data: bytes, rng: random.Random) -> bytes:
        """``data`` with bytes changed anywhere."""
        return _change_bytes(data, rng)

    def _repair(self, tree: Node, hashes: bool) -> None:
        """Sign every signed message in ``tree`` again; make its hashes of ciphertexts right first, if asked."""
        for node in tree.walk():
            parts = node.parts or []
            for place, (part, signature) in enumerate(itertools.pairwise(parts)):
                name = part.parts[1].data if part.parts and not part.is_list and len(part.parts) > 1 else b""
                if name not in _SIGNED or part.parts is None or signature.parts is not None:
                    continue
                if hashes and name == b"shares" and place + 2 < len(parts) and len(part.parts) > 7:
                    _hash_ciphers(part.parts[7], parts[place + 2])
                signature.data = self._signer(part).sign(part.encoded())

    def _signer(self, message: Node) -> Ed25519PrivateKey:
        parts = message.parts or []
        place = _SIGNER.get(parts[1].data, 0)
        index = int.from_bytes(parts[place].data, "big") if 0 < place < len(parts) else self._own
        return self._keys.get(index, self._keys[self._own])


def _hash_ciphers(hashes: Node, ciphers: Node) -> None:
    hashes.is_list, hashes.lie = True, 0
    hashes.parts = [Node(hashlib.sha256(one.encoded()).digest()) for one in ciphers.parts or ()]


def _change(tree: Node, rng: random.Random) -> None:
    nodes = [node for node in tree.walk() if not node.fixed]
    node = rng.choice(nodes)
    if node.parts is None:
        _change_leaf(node, [one for one in nodes if one.parts is None], rng)
    else:
        _change_parts(node, rng)


def _change_leaf(node: Node, leaves: list[Node], rng: random.Random) -> None:
    data = node.data
    alike = [one.data for one in leaves if len(one.data) == len(data)]
    changes: list[Callable[[], bytes]] = [
        lambda: _change_bytes(data, rng),
        lambda: rng.choice(alike),
        lambda: rng.choice(leaves).data,
        lambda: rng.randbytes(len(data)),
        lambda: bytes(len(data)),
        lambda: b"\xff" * len(data),
        lambda: data[:-1],
        lambda: data + b"\0",
        lambda: b"",
        lambda: rng.choice(_INTERESTING).to_bytes(8, "big"),
        lambda: ((int.from_bytes(data[:8], "big") + rng.choice((-1, 1))) % 2**64).to_bytes(8, "big"),
        lambda: rng.choice((32, 33, 64, 94, 129, 257)) * b"x",
    ]
    node.data = rng.choice(changes)()


def _change_parts(node: Node, rng: random.Random) -> None:
    parts = node.parts
    if parts is None:
        return
    low = 0 if node.is_list else min(2, len(parts))  # a message keeps its version and name
    what = rng.randrange(8)
    if what == 0 and node.is_list:
        node.lie = rng.choice((-1, 1, 2**64 - 1 - len(parts), 1024))
        return
    if what == 1:
        parts.append(Node(rng.choice((b"", bytes(8), bytes(32), bytes(64)))))
        return
    if len(parts) <= low:
        return
    place, other = rng.randrange(low, len(parts)), rng.randrange(low, len(parts))
    if what == 2:
        parts[place], parts[other] = parts[other], parts[place]
    elif what == 3:
        parts.insert(other, parts[place])
    elif what == 4 and rng.random() < 0.03:
        parts[low:] = [parts[place]] * rng.choice((1024, 1025))
    elif what == 5:
        parts[place] = parts[other]
    elif what == 6 and node.is_list:
        parts.reverse()
    else:
        del parts[place]


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        what, place = rng.randrange(5), rng.randrange(len(changed) + 1)
        if what == 0:
            changed[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif what == 1:
            del changed[place : place + rng.choice((1, 1, 4, 32))]
        elif place < len(changed):
            changed[place] = changed[place] ^ 1 << rng.randrange(8) if what == 2 else rng.randrange(256)
    return bytes(changed)
