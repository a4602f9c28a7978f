# SPDX-License-Identifier: Apache-2.0
"""Certificates to begin with, and changes to them that a reader of DER has to look at; half are signed again.

Who holds the root's key can put anything into a certificate and sign it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fairflare.secagg.identity import DEVELOPMENT, KIT, MARK, Trust
from tests.fuzz.structure import Mutator

DAY = datetime(2030, 6, 1, tzinfo=timezone.utc)
NAME = "hospital-a"


#: What has to be added to the hash of a label so that it is a prime of 1024 bits.
_STEPS = {"root p": 2740, "root q": 2538, "site p": 510, "site q": 218}


@lru_cache
def key(which: str) -> rsa.RSAPrivateKey:
    """The same RSA-2048 key in every process, of ``root`` or ``site``."""
    p, q, e = _prime(f"{which} p"), _prime(f"{which} q"), 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key()


def _prime(label: str) -> int:
    return (int.from_bytes(hashlib.shake_256(label.encode()).digest(128), "big") | 3 << 1022 | 1) + _STEPS[label]


def _name(*parts: tuple[Any, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _builder(subject: x509.Name, issuer: x509.Name, public: Any) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public).serial_number(7)
        .not_valid_before(DAY - timedelta(days=10)).not_valid_after(DAY + timedelta(days=10))
    )  # fmt: skip


def _der(builder: x509.CertificateBuilder, signer: Any) -> bytes:
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


_ROOT_NAME = ((NameOID.COMMON_NAME, "root"), (NameOID.ORGANIZATION_NAME, "project"))


@lru_cache
def root_pem() -> bytes:
    name = _name(*_ROOT_NAME)
    builder = _builder(name, name, key("root").public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key("root"), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def kit_seeds() -> list[bytes]:
    """Two valid certificates of a kit, then some that each rule refuses."""
    root, public, cn = key("root"), key("site").public_key(), (NameOID.COMMON_NAME, NAME)
    issuer = _name(*_ROOT_NAME)
    plain = _builder(_name(cn), issuer, public)
    alternative = x509.SubjectAlternativeName([x509.DNSName(NAME)])
    good = plain.add_extension(alternative, critical=False)
    usage = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    server = x509.SubjectAlternativeName([x509.DNSName("server"), x509.DNSName(NAME)])
    many = [
        good,
        _builder(_name(cn, (NameOID.UNSTRUCTURED_NAME, "client")), issuer, public)
        .add_extension(alternative, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
        plain,
        _builder(_name(cn, (NameOID.UNSTRUCTURED_NAME, "project_admin")), issuer, public),
        _builder(_name(cn, (NameOID.ORGANIZATIONAL_UNIT_NAME, MARK)), issuer, public),
        _builder(_name((NameOID.COMMON_NAME, "other")), issuer, public),
        _builder(_name(cn), issuer, ec.derive_private_key(12345, ec.SECP256R1()).public_key()),
        good.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True),
        good.add_extension(usage, critical=True),
        good.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False),
        good.add_extension(x509.NameConstraints([x509.DNSName("x")], None), critical=True),
        plain.add_extension(server, critical=False),
    ]
    old = x509.CertificateBuilder().subject_name(_name(cn)).issuer_name(issuer).public_key(public).serial_number(7)
    weak = good.sign(root, hashes.SHA224()).public_bytes(serialization.Encoding.DER)
    many.append(old.not_valid_before(DAY - timedelta(days=9)).not_valid_after(DAY - timedelta(days=8)))
    return [_der(one, root) for one in many] + [_der(good, key("site")), weak]


def development_seeds() -> list[bytes]:
    """A valid development certificate, one without its mark, one of another name."""
    public, found = key("site").public_key(), []
    for name, mark in ((NAME, MARK), (NAME, "other"), ("other", MARK)):
        subject = _name((NameOID.COMMON_NAME, name), (NameOID.ORGANIZATIONAL_UNIT_NAME, mark))
        found.append(_der(_builder(subject, subject, public), key("site")))
    return found


def trust(kind: str, pin: bool = True) -> Trust:
    """Trust on the day on which the seeds are valid."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    spki = hashlib.sha256(key("site").public_key().public_bytes(*form))
    pinned = {NAME: spki.hexdigest()} if pin else {}
    return Trust(kind, root_pem() if kind == KIT else None, pinned, now=lambda: DAY)


@dataclass
class Element:
    """A DER element: its first byte, and its contents or its elements."""

    tag: int
    data: bytes
    parts: list[Element] | None = None

    def encoded(self) -> bytes:
        body = self.data if self.parts is None else b"".join(part.encoded() for part in self.parts)
        size = len(body)
        if size < 128:
            return bytes([self.tag, size]) + body
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        return bytes([self.tag, 0x80 | len(length)]) + length + body

    def walk(self) -> list[Element]:
        return [self, *(each for part in self.parts or () for each in part.walk())]


def elements(data: bytes) -> list[Element] | None:
    """The elements of ``data``, if it is DER throughout."""
    found, at = [], 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, size, start = data[at], data[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, start = int.from_bytes(data[start : start + more], "big"), start + more
        at = start + size
        if at > len(data):
            return None
        body = data[start:at]
        found.append(Element(tag, body, elements(body) if tag & 0x20 else None))
    return found


class CertificateMutator:
    """Changes one element of a certificate, or bytes of it; signs it again with the root's key, or its own."""

    def __init__(self, kind: str, seeds: list[bytes]) -> None:
        self.seeds = seeds
        self._signer = key("site" if kind == DEVELOPMENT else "root")

    def __call__(self, data: bytes, rng: random.Random) -> bytes:
        tree = elements(data if rng.random() < 0.7 else rng.choice(self.seeds))
        if not tree or len(tree[0].parts or ()) != 3:
            tree = elements(rng.choice(self.seeds)) or []
        certificate = tree[0]
        self._change(certificate, rng)
        parts = certificate.parts or []
        if rng.random() < 0.6 and len(parts) == 3:
            signature = self._signer.sign(parts[0].encoded(), padding.PKCS1v15(), hashes.SHA256())
            parts[2] = Element(3, b"\0" + signature)
        return certificate.encoded()

    @staticmethod
    def bytes(data: bytes, rng: random.Random) -> bytes:
        return Mutator.bytes(data, rng)

    @staticmethod
    def _change(certificate: Element, rng: random.Random) -> None:
        nodes = certificate.walk()[1:]
        for _ in range(rng.choice((1, 1, 2))):
            node, other = rng.choice(nodes), rng.choice(nodes)
            what = rng.randrange(7)
            if what == 0 and node.parts:
                del node.parts[rng.randrange(len(node.parts))]
            elif what == 1 and node.parts:
                node.parts.append(rng.choice(node.parts))
            elif what == 2:
                node.tag = rng.choice((1, 2, 3, 4, 5, 6, 12, 19, 22, 23, 24, 48, 49, 0xA0, 0xA3, rng.randrange(256)))
            elif what == 3 and other.parts is None:
                node.tag, node.data, node.parts = other.tag, other.data, None
            elif node.parts is None:
                node.data = Mutator.bytes(node.data, rng) if what < 6 else b""
