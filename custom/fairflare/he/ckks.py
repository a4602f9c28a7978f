# SPDX-License-Identifier: Apache-2.0
"""The only file that knows TenSEAL: makes contexts, proves them, encrypts masked words and opens their sum.

CKKS computes with approximations. Masked words are whole numbers modulo 2^64, so each travels as four 16-bit limbs, and
a sum of limbs is rounded to the whole number that it is within 2^-8 of; anything else is refused. Decrypted numbers
leave this file as whole numbers only: how far they were from whole would say something about the secret key.
"""

from __future__ import annotations

import hashlib
import math
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from fairflare.errors import HeError
from fairflare.he.context import Files, each_once, fields, parse_context, refuse_secret
from fairflare.he.parameters import LIMB_BITS, LIMBS, MOST_BITS, SMALL, Parameters, Record, record_of

Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

#: How far a slot of a sum may be from the whole number that it stands for. The worst of 50 sites was 4e-6 away.
_NEAR: Final = 2.0**-8
_LENGTH = 4


@dataclass(frozen=True)
class Contexts:
    """The hospitals' context, which holds the secret key; the server's, which does not; the record of both."""

    client: bytes = field(repr=False)
    server: bytes
    record: Record


def make_contexts(parameters: Parameters = SMALL) -> Contexts:
    """A new secret key for all hospitals of a project; raises ``FF-HE-MISSING`` without TenSEAL."""
    ts = _tenseal()
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, parameters.poly_modulus_degree, coeff_mod_bit_sizes=list(parameters.coeff_mod_bit_sizes),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )  # fmt: skip
    context.global_scale = 2.0**parameters.scale_bits
    without = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    client = context.serialize(save_secret_key=True, **without)
    return Contexts(client, context.serialize(save_secret_key=False, **without), record_of(parameters, client))


def record_from(client: bytes) -> Record:
    """The record of a hospitals' context that somebody else made, such as FLARE's builder; raises ``FF-HE-*``.

    What it says is what SEAL reads in the context; 128-bit security is asked for here already.
    """
    form = parse_context(client)
    degree, primes = _primes(form.parameters)
    bits = tuple(prime.bit_length() for prime in primes)
    _verify_security(degree, sum(bits))
    scale = int(form.scale).bit_length() - 1
    try:
        parameters = Parameters.model_validate(
            {"poly_modulus_degree": degree, "coeff_mod_bit_sizes": bits, "scale_bits": scale}
        )
    except ValueError:
        _refuse_context("a context of parameters that are of no use here")
    record = record_of(parameters, client)
    SiteCipher(Files(client, record))
    return record


def verify_server(files: Files) -> Record:
    """The server's record, once its context proves it; raises ``FF-HE-SECRET`` for a secret key, else ``FF-HE-*``."""
    if _proved(files).is_private():
        refuse_secret()
    return files.record


class SiteCipher:
    """A hospital's cipher: encrypts its own masked words, and opens the sum of everybody's.

    Parameters
    ----------
    files
        The hospitals' context and its record.

    Raises
    ------
    HeError
        ``FF-HE-MISSING`` without TenSEAL; ``FF-HE-KEY``, ``-CONTEXT``, ``-SECURITY`` for a context that is not what its
        record says, or not safe.
    """

    def __init__(self, files: Files) -> None:
        self.record = files.record
        if hashlib.sha256(files.context).hexdigest() != files.record.context_sha256:
            _refuse_key("a context with another key than its record names")
        self._context = _proved(files)
        if not self._context.is_private():
            _refuse_key("a hospital's context without a secret key")

    @property
    def fingerprint(self) -> bytes:
        """What every JOIN of a session binds."""
        return self.record.fingerprint

    def sizes(self, words: int) -> tuple[int, int]:
        """Fewest and most bytes of an encrypted vector of so many words."""
        return self.record.sizes(words)

    def verify_sites(self, sites: int) -> None:
        """Raise ``FF-HE-ROOM`` for more sites than these parameters can add."""
        self.record.verify_sites(sites)

    @cached_property
    def _slots(self) -> int:
        return self.record.parameters.slots

    def encrypt(self, words: Words) -> Bytes:
        """Encrypt masked words, (L,), as uint8: each ciphertext after its length; unused slots hold zeros."""
        ts, limbs = _tenseal(), _limbs(words)
        parts = []
        for start in range(0, limbs.size, self._slots):
            chunk = np.zeros(self._slots)
            chunk[: limbs.size - start] = limbs[start : start + self._slots]
            data: bytes = ts.ckks_vector(self._context, chunk.tolist()).serialize()
            parts += [len(data).to_bytes(_LENGTH, "big"), data]
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def total(self, payloads: Sequence[Bytes], length: int) -> Words:
        """The sum modulo 2^64 of all sites' encrypted words, uint64 (length,).

        Parameters
        ----------
        payloads
            What :meth:`encrypt` gave at each site, this one's own among them.
        length
            Number of words of each.

        Raises
        ------
        HeError
            ``FF-HE-ROOM`` for too many sites, ``FF-HE-FORM`` for bytes that are no such ciphertexts, ``FF-HE-SLOTS``
            for a sum that no honest sites can have made.
        """
        self.verify_sites(len(payloads))
        number = self.record.parameters.ciphertexts(length)
        parts = [self._split(payload, number, place) for place, payload in enumerate(payloads, start=1)]
        whole = np.concatenate([self._whole([part[at] for part in parts]) for at in range(number)])
        limbs, unused = whole[: length * LIMBS], whole[length * LIMBS :]
        if unused.any():
            _refuse_slots("numbers in slots that hold none")
        return _joined(limbs)

    def _split(self, payload: Bytes, number: int, place: int) -> list[bytes]:
        """The ciphertexts of one site; their form is checked before SEAL reads them."""
        data, at, parts = payload.tobytes(), 0, []
        for _ in range(number):
            size = int.from_bytes(data[at : at + _LENGTH], "big")
            parts.append(data[at + _LENGTH : at + _LENGTH + size])
            at += _LENGTH + size
        if at != len(data):
            _refuse_form(place)
        for part in parts:
            self._verify_form(part, place)
        return parts

    def _verify_form(self, part: bytes, place: int) -> None:
        """One vector of all slots, in one ciphertext, at the scale of the context."""
        try:
            found = each_once(part, frozenset({1, 2, 3}))
            packed, scale = found.get(1), found.get(3)
            size = dict(fields(b"\x08" + packed)).get(1) if isinstance(packed, bytes) else None
        except ValueError:
            _refuse_form(place)
        fewest, most = self.record.parameters.sizes
        right = size == self._slots and scale == _double(2.0**self.record.parameters.scale_bits)
        if not right or not isinstance(found.get(2), bytes) or not fewest <= len(part) <= most:
            _refuse_form(place)

    def _whole(self, parts: Sequence[bytes]) -> NDArray[np.int64]:
        """The sum of one ciphertext of each site, as whole numbers; what was decrypted goes no further."""
        ts = _tenseal()
        total: Any = None
        for place, part in enumerate(parts, start=1):
            try:
                vector = ts.ckks_vector_from(self._context, part)
                total = vector if total is None else total + vector
            except Exception:  # SEAL raises what it likes for bytes that are no ciphertext of these parameters
                _refuse_form(place)
        try:
            slots = np.asarray(total.decrypt(), dtype=np.float64)
        except ValueError:
            _refuse_key("a context that cannot decrypt")
        whole = np.rint(slots) if slots.shape == (self._slots,) else np.full(1, np.nan)
        # Written so that NaN is refused too.
        if not (np.abs(slots - whole) <= _NEAR).all():
            _refuse_slots("a sum that is not made of whole numbers")
        if not ((whole >= 0) & (whole <= len(parts) * ((1 << LIMB_BITS) - 1))).all():
            _refuse_slots("a sum of limbs that is too large, or negative")
        return whole.astype(np.int64)


def _limbs(words: Words) -> NDArray[np.float64]:
    """Four limbs of 16 bits of each word, the lowest first, (4 L,)."""
    return words.astype("<u8").view("<u2").astype(np.float64)


def _joined(limbs: NDArray[np.int64]) -> Words:
    """Words modulo 2^64 from sums of limbs, (L,)."""
    table = limbs.astype(np.uint64).reshape(-1, LIMBS)
    total = np.zeros(table.shape[0], dtype=np.uint64)
    for place in range(LIMBS):
        total += table[:, place] << np.uint64(LIMB_BITS * place)
    return total


def _proved(files: Files) -> Any:
    """TenSEAL's context, once SEAL itself says that its parameters are the record's, and safe."""
    ts, parameters = _tenseal(), files.record.parameters
    form = parse_context(files.context)
    if not form.symmetric or form.scale != 2.0**parameters.scale_bits:
        _refuse_context("a context of another scale, or with a public key")
    degree, primes = _primes(form.parameters)
    bits = [prime.bit_length() for prime in primes]
    _verify_security(degree, sum(bits))
    if (degree, tuple(bits)) != (parameters.poly_modulus_degree, parameters.coeff_mod_bit_sizes):
        _refuse_context("a context of other parameters")
    if math.prod(primes[:-1]) < parameters.least_modulus:
        _refuse_context("a context whose primes are smaller than SEAL makes them")
    try:
        return ts.context_from(files.context, n_threads=1)
    except Exception:  # SEAL raises what it likes
        _refuse_context("a context that TenSEAL cannot load")


def _verify_security(degree: int, bits: int) -> None:
    if bits > MOST_BITS.get(degree, 0):
        raise HeError(
            "FF-HE-SECURITY",
            got=f"a context of degree {degree} with {bits} bits of coefficient modulus",
            expected="128-bit security: " + ", ".join(f"{most} bits at {one}" for one, most in MOST_BITS.items()),
            next_step="make new contexts with a larger degree or fewer bits (fairflare he make)",
        )


def _primes(parameters: bytes) -> tuple[int, list[int]]:
    """Degree and primes of SEAL's serialised parameters, read by SEAL. TenSEAL's own context does not tell them."""
    sealapi = _tenseal().sealapi
    found = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    with tempfile.NamedTemporaryFile() as file:  # nothing secret; SEAL's Python binding reads files only
        file.write(parameters)
        file.flush()
        try:
            found.load(file.name)
        except Exception:  # SEAL raises what it likes
            _refuse_context("parameters that SEAL cannot read")
    if found.scheme() != sealapi.SCHEME_TYPE.CKKS:
        _refuse_context("parameters of another scheme")
    return int(found.poly_modulus_degree()), [int(prime.value()) for prime in found.coeff_modulus()]


def _double(value: float) -> bytes:
    return struct.pack("<d", value)


def _tenseal() -> Any:
    try:
        import tenseal
        import tenseal.sealapi
    except ImportError:
        raise HeError(
            "FF-HE-MISSING",
            got="a plan with statistics 'ckks' where TenSEAL is not installed",
            expected="TenSEAL 0.3.15, as NVIDIA FLARE's extra HE names it",
            next_step="install fairflare[he]: at the server, and at every hospital",
        ) from None
    return tenseal


def _refuse_key(got: str) -> NoReturn:
    raise HeError(
        "FF-HE-KEY",
        got=got,
        expected="the context that all hospitals share, as its record names it",
        next_step="take context and record of one provisioning, the same at every hospital",
    ) from None


def _refuse_context(got: str) -> NoReturn:
    raise HeError(
        "FF-HE-CONTEXT",
        got=got,
        expected="a context of CKKS with symmetric encryption, with the parameters that its record says",
        next_step="take context and record of one provisioning, or make new ones (fairflare he make)",
    ) from None


def _refuse_form(place: int) -> NoReturn:
    raise HeError(
        "FF-HE-FORM",
        got=f"something that is no ciphertext of the session, from site {place} of the roster",
        expected="one vector of all slots, at the scale and level of the hospitals' context",
        next_step="check that this hospital has the same context and version as the others",
    ) from None


def _refuse_slots(got: str) -> NoReturn:
    raise HeError(
        "FF-HE-SLOTS",
        got=got,
        expected=f"whole numbers within 2^-8, of limbs below 2^{LIMB_BITS}",
        next_step="nothing was opened; a hospital encrypted with another key, or sent what no limbs can be",
    )
