# SPDX-License-Identifier: Apache-2.0
"""What all sites of a session must agree on before anything is masked; each takes it from its own copy of the plan.

The server chooses nothing here: the parameters stand inside every site's signed JOIN, and a site goes on only if all of
them are its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fairflare.errors import SecaggError
from fairflare.secagg.encoding import Field, encode

#: ``closed``: exact statistics, all of the roster or nothing. ``open``: updates, dropouts are survived.
Mode = Literal["closed", "open"]
#: With two sites each knows the other's vector from the sum.
FEWEST_SITES = 3
#: The bound of every list in a message.
MOST_SITES = 1024


def threshold(sites: int) -> int:
    """The t of the protocol, floor(2 n / 3) + 1: shares that open a secret, and fewest sites of an open sum."""
    return 2 * sites // 3 + 1


def most_colluders(sites: int) -> int:
    """Sites that may collude with an active server without opening more than the sum of the others (rule 8)."""
    t = threshold(sites)
    return min(2 * t - sites - 1, t - 2)


@dataclass(frozen=True)
class VectorParams:
    """One vector of a job: its label, mode, number of words, bits of a word, fraction bits and clip (0: none).

    ``more``: length, fraction bits and clip of each further part of an update, in the order of its words. ``cipher``:
    for a vector whose masked words travel encrypted, the fingerprint of the cipher (32 bytes), and ``sizes``: fewest
    and most bytes of what it makes of them.
    """

    label: str
    mode: Mode
    length: int
    bits: int
    fraction_bits: int
    clip: float
    more: tuple[tuple[int, int, float], ...] = ()
    cipher: bytes = b""
    sizes: tuple[int, int] = (0, 0)

    @property
    def most_bytes(self) -> int:
        """Bytes of the vector as it travels; of ciphertexts, which differ by a tenth, the most."""
        return self.sizes[1] if self.cipher else self.length * self.bits // 8

    def encoded(self) -> list[Field]:
        """Fields in the order of the view V: mode, dim, modulus, f, clip; then further parts and cipher, if any."""
        fields: list[Field] = [self.mode, self.length, self.bits, self.fraction_bits, struct.pack(">d", self.clip)]
        more: list[Field] = [[length, bits, struct.pack(">d", clip)] for length, bits, clip in self.more]
        if self.cipher:
            return [*fields, more, [self.cipher, *self.sizes]]
        return [*fields, more] if more else fields


@dataclass(frozen=True)
class Params:
    """Everything that JOIN binds besides keys: who may vouch for identities, sizes, threshold rule, codec, vectors.

    Attributes
    ----------
    plan_sha256
        Hash of the plan (hex).
    identities
        ``kit`` or ``development`` (see ``identity.py``).
    least_sites
        Fewest sites of any opened sum (``federation.min_sites`` of the plan).
    colluders
        c: sites that may collude with the server.
    weight_unit
        Unit to which a site's record count is rounded before it weighs its update.
    norm_clip
        Bound of an update's L2 norm, 0 for none.
    vectors
        Every vector of the job by label.
    """

    plan_sha256: str
    identities: str
    least_sites: int
    colluders: int
    weight_unit: int
    norm_clip: float
    vectors: tuple[VectorParams, ...]

    def encoded(self) -> bytes:
        """Canonical bytes; equal only for equal parameters."""
        return encode(
            "params", self.plan_sha256, self.identities, self.least_sites, "floor(2n/3)+1", self.colluders,
            self.weight_unit, struct.pack(">d", self.norm_clip), [[one.label, *one.encoded()] for one in self.vectors],
        )  # fmt: skip

    def vector(self, label: str) -> VectorParams:
        """The vector called ``label``; raises ``FF-SECAGG-LABEL``."""
        for one in self.vectors:
            if one.label == label:
                return one
        raise SecaggError(
            "FF-SECAGG-LABEL",
            got="a vector that this job does not have",
            expected="one of the plan's vectors",
            next_step="check that server and sites run the same version and plan",
        )

    def verify_sites(self, sites: int) -> None:
        """Raise ``FF-SECAGG-SITES`` unless a session of so many sites protects each of them."""
        least = max(FEWEST_SITES, self.least_sites)
        if not least <= sites <= MOST_SITES:
            raise SecaggError(
                "FF-SECAGG-SITES",
                got=f"{sites} sites",
                expected=f"{least} to {MOST_SITES}: of two, each would know the other's vector from the sum",
                next_step="wait until more sites have joined, then start again",
            )
        if self.colluders > most_colluders(sites):
            raise SecaggError(
                "FF-SECAGG-COLLUDERS",
                got=f"{self.colluders} colluding sites to be survived among {sites}",
                expected=f"at most {most_colluders(sites)}",
                next_step="lower protection.colluders in the plan, or take more sites",
            )

    def least(self, sites: int) -> int:
        """Fewest sites of a sum in open mode, for a roster of ``sites``: max(t, least_sites)."""
        return max(threshold(sites), self.least_sites)


class Cipher(Protocol):
    """What the masked words of some statistics travel in, so that sites open their sum and the server does not."""

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that name parameters and key; sites with others do not begin a session together."""
        ...

    def sizes(self, words: int) -> tuple[int, int]:
        """Fewest and most bytes of an encrypted vector of so many words."""
        ...

    def verify_sites(self, sites: int) -> None:
        """Raise a :class:`~fairflare.errors.FairFlareError` for more sites than it can add without a wrong sum."""
        ...


class Opener(Cipher, Protocol):
    """A site's cipher, with the key that all sites share."""

    def encrypt(self, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Masked words as they travel."""
        ...

    def total(self, payloads: Sequence[NDArray[np.uint8]], length: int) -> NDArray[np.uint64]:
        """The sum of all sites' words modulo 2^64; raises for anything but whole numbers."""
        ...


def is_payload(values: object, vector: VectorParams) -> bool:
    """Whether ``values`` can be ``vector`` as it travels: masked words, or the bytes of its cipher."""
    if not vector.cipher:
        return is_words(values, vector)
    if type(values) is not np.ndarray or not values.flags.c_contiguous or values.ndim != 1:
        return False
    fewest, most = vector.sizes
    return bool(values.dtype == np.uint8) and fewest <= values.size <= most


def is_words(words: object, vector: VectorParams) -> bool:
    """Whether ``words`` are the encoded or masked form of ``vector``: type, shape, and a plain array in one piece."""
    if type(words) is not np.ndarray or not words.flags.c_contiguous:
        return False
    return bool(words.dtype == np.dtype(f"<u{vector.bits // 8}")) and words.shape == (vector.length,)
