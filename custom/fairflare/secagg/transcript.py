# SPDX-License-Identifier: Apache-2.0
"""The messages of masked aggregation, their digests, and the keys that follow from them.

Every message is E(name, ...) of ``encoding.py``. "Signed" is Ed25519 by the session's key S_i, over the message.
Sites are known by their index: 1 + the rank of their name in the roster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fairflare.errors import SecaggError
from fairflare.secagg.encoding import Reader, encode, refuse_form
from fairflare.secagg.params import MOST_SITES

JOIN_PREFIX = b"FFSA1-JOIN\0"
SHARE_BYTES = 33
_NONCE = 12
_TAG = 16
#: nonce, share of the mask key, share of the self-mask, tag
CIPHER_BYTES = _NONCE + 2 * SHARE_BYTES + _TAG
_SIGNATURE = 64


@dataclass(frozen=True)
class Signed:
    """A message and its Ed25519 signature."""

    message: bytes
    signature: bytes

    def parts(self) -> list[bytes]:
        """As a list inside another message."""
        return [self.message, self.signature]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the message."""
        return hashlib.sha256(self.message).digest()

    def encoded(self) -> bytes:
        """As a message of its own."""
        return encode("signed", self.message, self.signature)

    @classmethod
    def parse(cls, data: bytes) -> Signed:
        """Inverse of :meth:`encoded`; the signature is not looked at."""
        reader = Reader(data, "signed")
        result = cls(reader.raw(), reader.raw(_SIGNATURE))
        reader.end()
        return result

    @classmethod
    def read(cls, reader: Reader) -> Signed:
        """From a list inside another message."""
        result = cls(reader.raw(), reader.raw(_SIGNATURE))
        reader.end()
        return result


def verify_signed(key: bytes, signed: Signed, site: str) -> None:
    """Raise ``FF-SECAGG-SIGNATURE`` unless ``key`` (Ed25519, 32 bytes) signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, signed.message)
    except (InvalidSignature, ValueError):
        raise SecaggError(
            "FF-SECAGG-SIGNATURE",
            got=f"a message in the name of {site} that it did not sign",
            expected="messages signed with the key of that site's JOIN",
            next_step="nothing was opened; ask the server's operator what changed messages on their way",
        ) from None


# ------------------------------------------------------------------------------------------------------------ sessions


@dataclass(frozen=True)
class Join:
    """What a site says of itself when a session begins (JOIN_i); ``seen`` are its peers' memories as it knows them."""

    job: str
    params: bytes
    name: str
    spki: bytes
    nonce: bytes
    channel_key: bytes
    signing_key: bytes
    seq: int
    head: bytes
    seen: tuple[tuple[str, int, bytes], ...]
    plan_sha256: str

    def encoded(self) -> bytes:
        """JOIN_i = E(join, job, plan, params, CN, H(SPKI), nonce, X_i, S_i, seq, head, seen)."""
        return encode(
            "join", self.job, self.plan_sha256, self.params, self.name, self.spki, self.nonce, self.channel_key,
            self.signing_key, self.seq, self.head, [list(one) for one in sorted(self.seen)],
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Join:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "join")
        job, plan_sha256, params, name = reader.text(), reader.text(64), reader.raw(), reader.text(128)
        spki, nonce, channel, signing = (reader.raw(32) for _ in range(4))
        seq, head, seen = reader.number(), reader.raw(32), []
        for item in reader.items(MOST_SITES):
            seen.append((item.text(128), item.number(), item.raw(32)))
            item.end()
        reader.end()
        result = cls(job, params, name, spki, nonce, channel, signing, seq, head, tuple(seen), plan_sha256)
        if result.encoded() != data:
            refuse_form("join")
        return result


@dataclass(frozen=True)
class Joining:
    """JOIN with the kit's signature over it and the kit's certificate."""

    join: bytes
    signature: bytes
    certificate: bytes

    def parts(self) -> list[bytes]:
        """As a list inside the roster message."""
        return [self.join, self.signature, self.certificate]

    def encoded(self) -> bytes:
        """As a message of its own."""
        return encode("joining", *self.parts())

    @classmethod
    def parse(cls, data: bytes) -> Joining:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "joining")
        return cls.read(reader)

    @classmethod
    def read(cls, reader: Reader) -> Joining:
        """From a list inside the roster message."""
        result = cls(reader.raw(), reader.raw(), reader.raw())
        reader.end()
        return result


def signed_join(join: bytes) -> bytes:
    """What the kit's key signs."""
    return JOIN_PREFIX + hashlib.sha256(join).digest()


def roster_message(joinings: Sequence[Joining]) -> bytes:
    """What every site gets: all JOINs, in the order of their names."""
    return encode("roster", [one.parts() for one in joinings])


def parse_roster(data: bytes) -> list[Joining]:
    """Inverse of :func:`roster_message`."""
    reader = Reader(data, "roster")
    result = [Joining.read(item) for item in reader.items(MOST_SITES)]
    reader.end()
    return result


# ---------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class Step:
    """Which vector of which session a message is about: T, r, v."""

    session: bytes
    number: int
    label: str


@dataclass(frozen=True)
class Keys:
    """KEYS_i: a fresh mask key for one step, and the commitment to a fresh self-mask."""

    step: Step
    index: int
    public: bytes
    commitment: bytes

    def encoded(self) -> bytes:
        """KEYS_i = E(keys, T, r, v, i, pk_i, H(E(b, T, r, v, i, b_i)))."""
        one = self.step
        return encode("keys", one.session, one.number, one.label, self.index, self.public, self.commitment)

    @classmethod
    def parse(cls, data: bytes) -> Keys:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "keys")
        step = Step(reader.raw(32), reader.number(), reader.text(128))
        result = cls(step, reader.number(MOST_SITES + 1), reader.raw(32), reader.raw(32))
        reader.end()
        return result


def signed_list(name: str, signed: Sequence[Signed]) -> bytes:
    """E(name, [signed...]): the forms ``keyset`` and ``survivors``."""
    return encode(name, [one.parts() for one in signed])


def parse_signed_list(name: str, data: bytes) -> list[Signed]:
    """Inverse of :func:`signed_list`."""
    reader = Reader(data, name)
    result = [Signed.read(item) for item in reader.items(MOST_SITES)]
    reader.end()
    return result


# -------------------------------------------------------------------------------------------------------------- shares


@dataclass(frozen=True)
class Shares:
    """SHARES_i: hashes of the ciphertexts that a site deals (to others, in order), commitments to all its shares.

    ``key_commitments`` and ``self_commitments`` have one entry for each member of U0, the dealer included.
    """

    step: Step
    keyset: bytes
    index: int
    ciphers: tuple[bytes, ...]
    key_commitments: tuple[bytes, ...]
    self_commitments: tuple[bytes, ...]

    def encoded(self) -> bytes:
        """SHARES_i = E(shares, T, r, v, K, i, [H(C_ij)], [H(E(sc, sk, ...))], [H(E(sc, b, ...))])."""
        one = self.step
        return encode(
            "shares", one.session, one.number, one.label, self.keyset, self.index,
            list(self.ciphers), list(self.key_commitments), list(self.self_commitments),
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Shares:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "shares")
        step = Step(reader.raw(32), reader.number(), reader.text(128))
        keyset, index = reader.raw(32), reader.number(MOST_SITES + 1)
        lists = [tuple(reader.raws(MOST_SITES, 32)) for _ in range(3)]
        reader.end()
        return cls(step, keyset, index, *lists)


@dataclass(frozen=True)
class Dealt:
    """One dealer's signed SHARES and its ciphertexts, in the order of the other members of U0."""

    signed: Signed
    ciphers: tuple[bytes, ...]

    def encoded(self) -> bytes:
        """As a message of its own: what a site sends."""
        return encode("dealt", *self.signed.parts(), list(self.ciphers))

    @classmethod
    def parse(cls, data: bytes) -> Dealt:
        """Inverse of :meth:`encoded`."""
        return cls.read(Reader(data, "dealt"))

    @classmethod
    def read(cls, reader: Reader) -> Dealt:
        """From a list inside another message."""
        signed = Signed(reader.raw(), reader.raw(_SIGNATURE))
        result = cls(signed, tuple(reader.raws(MOST_SITES, CIPHER_BYTES)))
        reader.end()
        return result


def dealers_message(dealt: Sequence[Dealt]) -> bytes:
    """What every site gets before it uploads: U1, their commitments and all ciphertexts."""
    return encode("dealers", [[*one.signed.parts(), list(one.ciphers)] for one in dealt])


def parse_dealers(data: bytes) -> list[Dealt]:
    """Inverse of :func:`dealers_message`."""
    reader = Reader(data, "dealers")
    result = [Dealt.read(item) for item in reader.items(MOST_SITES)]
    reader.end()
    return result


# ------------------------------------------------------------------------------------------- uploads, survivors, shares


@dataclass(frozen=True)
class Upload:
    """UP_i: a site says that it uploaded under a view; ``payload`` is H(payload), empty for an update."""

    view: bytes
    index: int
    length: int
    payload: bytes

    def encoded(self) -> bytes:
        """UP_i = E(up, V, i, dim, H(payload))."""
        return encode("up", self.view, self.index, self.length, self.payload)

    @classmethod
    def parse(cls, data: bytes) -> Upload:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "up")
        result = cls(reader.raw(32), reader.number(MOST_SITES + 1), reader.number(), reader.raw())
        reader.end()
        if len(result.payload) not in (0, 32):
            refuse_form("up")
        return result


def confirm_message(view: bytes, uploads: Sequence[tuple[int, Signed]]) -> bytes:
    """CONFIRM = E(confirm, V, U2, [H(UP_j)]): the same bytes at every site that saw the same survivors."""
    return encode("confirm", view, [index for index, _ in uploads], [signed.digest for _, signed in uploads])


def confirms_message(signatures: Sequence[tuple[int, bytes]]) -> bytes:
    """Who confirmed: E(confirms, [[i, signature]...])."""
    return encode("confirms", [[index, signature] for index, signature in signatures])


def parse_confirms(data: bytes) -> list[tuple[int, bytes]]:
    """Inverse of :func:`confirms_message`."""
    reader = Reader(data, "confirms")
    result = []
    for item in reader.items(MOST_SITES):
        result.append((item.number(MOST_SITES + 1), item.raw(_SIGNATURE)))
        item.end()
    reader.end()
    return result


@dataclass(frozen=True)
class Unmask:
    """UNMASK_i: shares of the survivors' self-masks and of the lost sites' mask keys, each in the order of indices."""

    view: bytes
    confirm: bytes
    self_shares: tuple[bytes, ...] = field(repr=False)
    key_shares: tuple[bytes, ...] = field(repr=False)

    def encoded(self) -> bytes:
        """UNMASK_i = E(unmask, V, H(CONFIRM), [b-shares of U2], [sk-shares of U1 without U2])."""
        return encode("unmask", self.view, self.confirm, list(self.self_shares), list(self.key_shares))

    @classmethod
    def parse(cls, data: bytes) -> Unmask:
        """Inverse of :meth:`encoded`."""
        reader = Reader(data, "unmask")
        view, confirm = reader.raw(32), reader.raw(32)
        selves, keys = (tuple(reader.raws(MOST_SITES, SHARE_BYTES)) for _ in range(2))
        reader.end()
        return cls(view, confirm, selves, keys)


def refuse(
    code: str, got: str, expected: str, next_step: str = "nothing was sent; the next round can go on"
) -> NoReturn:
    """Raise ``FF-SECAGG-<code>``."""
    raise SecaggError(f"FF-SECAGG-{code}", got=got, expected=expected, next_step=next_step)
