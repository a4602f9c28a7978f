# SPDX-License-Identifier: Apache-2.0
"""How one hospital hands the hospitals' context to another: nobody on the way, the server included, gets the key.

A parcel is for one hospital: the context under AES-256-GCM with a fresh key, that key under RSA-OAEP to the receiver's
certificate, and all of it signed with the sender's kit key. The receiver names the sender whom it expects. Where kits
are made by the hospitals themselves (``nvflare cert``), nobody else ever holds the key; a central provisioner made
every private key, and so can open every parcel.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from fairflare import schema
from fairflare.errors import HeError, SecaggError
from fairflare.he.context import Files
from fairflare.he.parameters import Record
from fairflare.schema import StrictModel
from fairflare.secagg.identity import Identity, Trust, wrap

_FORMAT: Final = "fairflare/he-parcel/1"
#: No other message that a kit's key signs begins like this; also the label of the wrapped key.
_DOMAIN: Final = b"fairflare/he-parcel/1\n"
#: A context with its parcel's signature and base64 has a third more than the context.
_LONGEST: Final = 8 * 1024 * 1024

Name = Annotated[str, Field(min_length=1, max_length=64)]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")]


class Parcel(StrictModel):
    """One file for one hospital; ``receiver_key`` is the SHA-256 of the public key that it is wrapped to."""

    format: Literal["fairflare/he-parcel/1"]
    sender: Name
    receiver: Name
    receiver_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    record: Record
    certificate: Base64
    wrapped: Base64
    nonce: Base64
    data: Base64
    signature: str

    @property
    def head(self) -> bytes:
        """What the encryption binds: everything that is known before it."""
        empty = dict.fromkeys(("wrapped", "nonce", "data", "signature"), "")
        return _DOMAIN + schema.canonical(self.model_copy(update=empty))

    @property
    def message(self) -> bytes:
        """What is signed: everything but the signature."""
        return _DOMAIN + schema.canonical(self.model_copy(update={"signature": ""}))


def seal(files: Files, sender: Identity, receiver: str, certificate: bytes, trust: Trust) -> Parcel:
    """Make a parcel for the site ``receiver`` with this certificate (DER).

    Raises
    ------
    SecaggError
        As :meth:`Trust.verify_certificate`: nothing is sealed to a certificate that is not that site's.
    """
    spki = trust.verify_certificate(receiver, certificate)
    key, nonce = AESGCM.generate_key(256), os.urandom(12)
    parcel = Parcel(
        format=_FORMAT, sender=sender.name, receiver=receiver, receiver_key=spki.hex(), record=files.record,
        certificate=_text(sender.certificate), wrapped=_text(wrap(certificate, key, _DOMAIN)), nonce=_text(nonce),
        data=_text(b"-"), signature="",
    )  # fmt: skip
    parcel = parcel.model_copy(update={"data": _text(AESGCM(key).encrypt(nonce, files.context, parcel.head))})
    return parcel.model_copy(update={"signature": _text(sender.sign(parcel.message))})


def open_parcel(parcel: Parcel, own: Identity, sender: str, trust: Trust) -> Files:
    """The context in a parcel for this site, from the site whom it expects one from.

    Raises
    ------
    HeError
        ``FF-HE-PARCEL`` for another sender or receiver, a signature that is not the sender's, or a changed parcel.
    SecaggError
        For a sender's certificate that the kit's root, or the policy's pins, do not vouch for.
    """
    if parcel.sender != sender:
        _refuse(f"a parcel of {parcel.sender!r}", f"one of {sender!r}, as was said")
    if parcel.receiver != own.name or parcel.receiver_key != own.spki.hex():
        _refuse("a parcel for another site, or for another key of this one", "one sealed to this kit's certificate")
    try:
        trust.verify_signature(sender, _raw(parcel.certificate), parcel.message, _raw(parcel.signature))
    except SecaggError as problem:
        if problem.code != "FF-SECAGG-SIGNATURE":
            raise
        _refuse("a parcel that was changed, or that its sender did not make", "the file as its sender made it")
    try:
        key = own.unwrap(_raw(parcel.wrapped), _DOMAIN)
        context = AESGCM(key).decrypt(_raw(parcel.nonce), _raw(parcel.data), parcel.head)
    except (InvalidTag, ValueError):
        _refuse("a parcel that this kit's key does not open", "one sealed to this kit's certificate")
    if hashlib.sha256(context).hexdigest() != parcel.record.context_sha256:
        _refuse("a parcel with another context than its record names", "the sender's own context and record")
    return Files(context, parcel.record)


def read_parcel(file: Path) -> Parcel:
    """Read a parcel from a file; raises ``FF-HE-*``."""
    if file.is_file() and file.stat().st_size > _LONGEST:
        _refuse("a file far larger than any parcel", "a file that 'fairflare he seal' wrote")
    return schema.read(Parcel, file, error=HeError, what="parcel")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _raw(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        _refuse("a parcel with a field that is no base64", "the file as its sender made it")


def _refuse(got: str, expected: str) -> NoReturn:
    raise HeError(
        "FF-HE-PARCEL",
        got=got,
        expected=expected,
        next_step="nothing was written; ask the sender by telephone, and let it seal a new parcel",
    ) from None
