# SPDX-License-Identifier: Apache-2.0
"""A federation in memory for attacks: real sites, a real server, and everything that a hostile server may try.

A hostile server is a program that holds what the server received and speaks the protocol itself: tests build its
messages with the functions of ``transcript.py`` and hand them to real :class:`SiteSession` objects.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray

from fairflare.errors import SecaggError
from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg import shamir
from fairflare.secagg.identity import DEVELOPMENT, KIT, Identity, Trust, development_identity, kit_identity
from fairflare.secagg.masking import add_masks
from fairflare.secagg.memory import Memory
from fairflare.secagg.params import Params, VectorParams
from fairflare.secagg.schedule import agree, pair_key, self_key
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import (
    Keys,
    Signed,
    Step,
    Unmask,
    Upload,
    confirm_message,
    confirms_message,
    parse_signed_list,
    signed_list,
)

Words = NDArray[np.unsignedinteger[Any]]
JOB = "job"
INPUTS = b"d" * 32
LENGTH = 6
#: Where a site can be lost, in order: the first message of it that never arrives.
STAGES = ("keys", "shares", "upload", "confirm", "unmask")


def params(length: int = LENGTH, least_sites: int = 3, colluders: int = 1, **changes: Any) -> Params:
    """A job with one update (open) and two statistics (closed)."""
    vectors = (
        VectorParams("update", "open", length, 32, 27, 8.0),
        VectorParams("risk", "closed", length, 64, 32, 0.0),
        VectorParams("size", "closed", length, 64, 32, 0.0),
    )
    return replace(Params("ab" * 32, DEVELOPMENT, least_sites, colluders, 1, 0.0, vectors), **changes)


@cache
def identity(name: str) -> Identity:
    """A development identity: making one takes a tenth of a second."""
    return development_identity(name)


def site_names(count: int) -> list[str]:
    return [f"site-{at:02d}" for at in range(count)]


def trust() -> Trust:
    return Trust(DEVELOPMENT)


def make_site(name: str, memory: Memory | None = None, asked: Params | None = None, **options: Any) -> SiteSession:
    memory = RevealMemory.volatile() if memory is None else memory
    return SiteSession(identity(name), trust(), asked or params(), memory, JOB, **options)


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """The body ends in this error, and in no other."""
    with pytest.raises(SecaggError, match=re.escape(text or "FF-")) as caught:
        yield
    assert caught.value.code == f"FF-SECAGG-{code}", caught.value


@dataclass
class Seen:
    """What the server holds of one step: all that a hostile one has to work with."""

    offer: Offer
    keyset: bytes = b""
    dealers: bytes = b""
    uploads: dict[str, Signed] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    survivors: bytes = b""
    confirms: dict[str, bytes] = field(default_factory=dict)
    unmasks: dict[str, bytes] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.offer.number


class Federation:
    """Sites and a server that has begun a session with all of them (``begin=False``: not yet)."""

    def __init__(
        self,
        sites: int | Sequence[str],
        asked: Params | None = None,
        *,
        memories: Mapping[str, Memory] | None = None,
        begin: bool = True,
        **options: Any,
    ) -> None:
        self.names = site_names(sites) if isinstance(sites, int) else list(sites)
        self.params = asked or params()
        memories = memories or {}
        self.sites = {name: make_site(name, memories.get(name), self.params, **options) for name in self.names}
        self.server = ServerSession(self.params, JOB, trust())
        if begin:
            self.begin()

    def begin(self) -> bytes:
        for name, site in self.sites.items():
            self.server.join(name, site.join(self.names))
        roster = self.server.begin(self.names)
        for site in self.sites.values():
            site.begin(roster)
        return roster

    def index(self, name: str) -> int:
        return 1 + sorted(self.names).index(name)

    def without(self, *names: str) -> list[str]:
        return [name for name in self.names if name not in names]

    # Stages of one step, each for the sites that still answer. The server's copy of everything is in `Seen`.

    def offer(self, label: str = "update", fl_round: int = 0) -> Seen:
        return Seen(self.server.offer(label, fl_round))

    def keys(self, seen: Seen, names: Collection[str] | None = None) -> None:
        for name in self.names if names is None else names:
            (keys,) = self.sites[name].keys([seen.offer])
            self.server.keys(name, seen.number, keys)
        seen.keyset = self.server.keyset(seen.number)

    def keyset(self, seen: Seen, names: Collection[str] | None = None) -> None:
        for name in self.names if names is None else names:
            self.sites[name].keyset(seen.number, seen.keyset)

    def shares(self, seen: Seen, names: Collection[str] | None = None) -> None:
        for name in self.names if names is None else names:
            self.server.shares(name, seen.number, self.sites[name].deal(seen.number))
        seen.dealers = self.server.dealers(seen.number)

    def dealers(self, seen: Seen, names: Collection[str] | None = None) -> None:
        for name in self.names if names is None else names:
            self.sites[name].dealers(seen.number, seen.dealers)

    def upload(
        self, seen: Seen, vectors: Mapping[str, Words], inputs: bytes = INPUTS, query: str = "train", add: bool = True
    ) -> None:
        """Every site of ``vectors`` uploads; the server verifies and adds it (``add=False``: only keeps it)."""
        if add:
            self.server.expect(seen.number, inputs, query)
        for name, values in vectors.items():
            words = values.copy()
            (seen.uploads[name],) = self.sites[name].upload([(seen.number, words)], inputs, query)
            words = self.sites[name].sealed(seen.number, words)
            seen.words[name] = words
            if add:
                self.server.verify_upload(name, seen.number, seen.uploads[name].encoded(), words)
                self.server.upload(name, seen.number, seen.uploads[name].encoded(), words)

    def confirm(self, seen: Seen, names: Collection[str] | None = None) -> bytes:
        seen.survivors = self.server.survivors(seen.number)
        for name in self.server.uploaded(seen.number) if names is None else names:
            seen.confirms[name] = self.sites[name].confirm(seen.number, seen.survivors)
            self.server.confirm(name, seen.number, seen.confirms[name])
        return self.server.confirms(seen.number)

    def unmask(self, seen: Seen, confirms: bytes, names: Collection[str] | None = None) -> None:
        for name in seen.confirms if names is None else names:
            seen.unmasks[name] = self.sites[name].unmask(seen.number, confirms)
            self.server.unmask(name, seen.number, seen.unmasks[name])

    def opened(self, seen: Seen) -> tuple[Words, tuple[str, ...]]:
        return self.server.unmasked(seen.number)

    # Several stages at once.

    def to_upload(self, label: str = "update", fl_round: int = 0) -> Seen:
        """A step in which every site may upload next."""
        seen = self.offer(label, fl_round)
        self.keys(seen)
        self.keyset(seen)
        if self.params.vector(label).mode == "open":
            self.shares(seen)
            self.dealers(seen)
        return seen

    def uploaded(self, vectors: Mapping[str, Words], label: str = "update", fl_round: int = 0) -> Seen:
        """A step in which the sites of ``vectors`` have uploaded."""
        seen = self.to_upload(label, fl_round)
        self.upload(seen, vectors)
        return seen

    def run(
        self,
        vectors: Mapping[str, Words],
        lost: Mapping[str, str] | None = None,
        fl_round: int = 0,
        label: str = "update",
        order: Sequence[str] | None = None,
    ) -> tuple[Words, tuple[str, ...], Seen]:
        """A whole open step. ``lost``: the stage (of ``STAGES``) from which on a site is silent."""
        lost = lost or {}
        names = list(order or self.names)

        def alive(stage: str) -> list[str]:
            return [one for one in names if one not in lost or STAGES.index(lost[one]) > STAGES.index(stage)]

        seen = self.offer(label, fl_round)
        self.keys(seen, alive("keys"))
        self.keyset(seen, alive("shares"))
        self.shares(seen, alive("shares"))
        self.dealers(seen, alive("upload"))
        self.upload(seen, {name: vectors[name] for name in alive("upload")})
        confirms = self.confirm(seen, alive("confirm"))
        self.unmask(seen, confirms, alive("unmask"))
        total, sites = self.opened(seen)
        return total, sites, seen


def vectors(names: Collection[str], bits: int = 32, length: int = LENGTH, seed: int = 1) -> dict[str, Words]:
    """Small whole numbers, as two's complement words: a vector that is recognised when it comes out."""
    generator = np.random.default_rng(seed)
    dtype = np.dtype(f"u{bits // 8}")
    return {name: generator.integers(-1000, 1000, length).astype(f"i{bits // 8}").view(dtype) for name in names}


def plain_sum(parts: Collection[Words]) -> Words:
    """The sum of whole numbers, modulo the word: what masked aggregation must give, word for word."""
    first = next(iter(parts))
    modulus = 1 << (8 * first.dtype.itemsize)
    rows = [[int(word) for word in part] for part in parts]
    return np.array([sum(column) % modulus for column in zip(*rows, strict=True)], dtype=first.dtype)


# ------------------------------------------------------------------------------------------------- the attacker's tools


def members(seen: Seen) -> dict[int, Keys]:
    """Public keys of a step, by index."""
    found = [Keys.parse(one.message) for one in parse_signed_list("keyset", seen.keyset)]
    return {keys.index: keys for keys in found}


def view_of(signed: Signed) -> bytes:
    return Upload.parse(signed.message).view


def unmask_of(message: bytes) -> Unmask:
    return Unmask.parse(Signed.parse(message).message)


def open_secret(shares: Mapping[int, bytes]) -> bytes:
    """A secret from shares by their holders' indices."""
    return shamir.combine(shares)


def stripped(
    seen: Seen,
    name: str,
    index: int,
    *,
    mask: bytes | None = None,
    others: Mapping[int, bytes] | None = None,
    self_mask: bytes | None = None,
    peers: Collection[int] | None = None,
) -> Words:
    """An upload without the masks that follow from what is known: its own mask key, or those of ``others``."""
    words, keys, view = seen.words[name].copy(), members(seen), view_of(seen.uploads[name])
    plus, minus = [], []
    for peer in keys if peers is None else peers:
        if peer == index:
            continue
        if mask is not None:
            shared = agree(X25519PrivateKey.from_private_bytes(mask), keys[peer].public)
        else:
            shared = agree(X25519PrivateKey.from_private_bytes((others or {})[peer]), keys[index].public)
        key = pair_key(shared, view, (index, keys[index].public), (peer, keys[peer].public))
        (minus if index < peer else plus).append(key)
    if self_mask is not None:
        minus.append(self_key(self_mask, view, index))
    add_masks(words, plus, minus)
    return words


def survivors_of(seen: Seen, names: Collection[str]) -> bytes:
    """A set of survivors as a hostile server likes it."""
    return signed_list("survivors", [seen.uploads[name] for name in sorted(names)])


def confirms_of(federation: Federation, signatures: Mapping[str, bytes]) -> bytes:
    return confirms_message(sorted((federation.index(name), signature) for name, signature in signatures.items()))


def confirm_text(federation: Federation, seen: Seen, names: Collection[str]) -> bytes:
    """What the sites sign for this set of survivors."""
    chosen = sorted(names)
    view = view_of(seen.uploads[chosen[0]])
    return confirm_message(view, [(federation.index(name), seen.uploads[name]) for name in chosen])


def signing_key(site: SiteSession) -> Ed25519PrivateKey:
    """A colluding site gives its session's signing key to the server."""
    return site._signing


def resigned(site: SiteSession, message: bytes) -> Signed:
    """A message of a colluding site that its own program would never send."""
    return Signed(message, signing_key(site).sign(message))


class Forgetful:
    """A memory that forgets everything: the defence that several attacks need away."""

    head = (0, bytes(32))

    def has(self, seq: int, head: bytes) -> bool:
        return True

    def begin(self, session: bytes, plan_sha256: str, roster_digest: bytes) -> None:
        pass

    def commit(self, transitions: object) -> None:
        pass

    def peer(self, name: str) -> tuple[int, bytes] | None:
        return None

    def remember_peers(self, heads: object) -> None:
        pass

    def remember_active(self, least: object) -> None:
        pass


class AnyStep(Step):
    """A step that is equal to every other: what a site believes that does not compare T, r and v."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def looks_random(words: Words) -> bool:
    """Whether the bytes pass a chi-square test for uniformity (at the 10^-6 level, both tails)."""
    counts = np.bincount(np.frombuffer(words.tobytes(), dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    return 255 - 110 < chi < 255 + 120


# -------------------------------------------------------------------------------------------------------- start-up kits


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _name(common: str, role: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if role is not None:
        parts.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role))
    return x509.Name(parts)


class Provisioner:
    """Whoever holds the project's root key: it can issue a certificate of any name for any key."""

    def __init__(self, name: str = "root") -> None:
        self._key = rsa_key(f"authority {name}")
        subject = _name(name, None)
        self._certificate = self._sign(subject, self._key.public_key(), 3650, subject, authority=True)
        self.root_pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self, subject: x509.Name, key: rsa.RSAPublicKey, days: int, issuer: x509.Name, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=days))
        )
        if authority:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        else:
            common = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(common)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def identity(self, name: str, key: str = "", days: int = 365, role: str | None = "client") -> Identity:
        """A certificate for ``name``; ``key`` names another key than the hospital's own."""
        private = rsa_key(key or name)
        made = self._sign(_name(name, role), private.public_key(), days, self._certificate.subject)
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return kit_identity(name, made.public_bytes(serialization.Encoding.PEM), pem)

    def trust(self, pinned: Mapping[str, str] | None = None) -> Trust:
        return Trust(KIT, self.root_pem, pinned or {})
