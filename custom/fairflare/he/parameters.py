# SPDX-License-Identifier: Apache-2.0
"""Parameters of CKKS, what they are safe and exact for, and the record of them beside every context."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import HeError
from fairflare.schema import StrictModel, rule

#: Largest number of bits of the whole coefficient modulus for 128-bit security with ternary secrets, by degree
#: (Homomorphic Encryption Standard 2018, table 1; the bounds that Microsoft SEAL applies).
MOST_BITS: Final = {4096: 109, 8192: 218, 16384: 438}
#: A masked word of 64 bits travels as so many limbs of so many bits, one slot each.
LIMBS, LIMB_BITS = 4, 16
#: Beside each context; the same bytes at the server and at every hospital.
RECORD_NAME: Final = "he.json"
#: FLARE's names of the two contexts.
CLIENT_CONTEXT, SERVER_CONTEXT = "client_context.tenseal", "server_context.tenseal"
_FORMAT: Final = "fairflare/he/1"
#: Header and parameters of one serialised ciphertext, generously.
_HEAD = 1024
_LENGTH = 4


class Parameters(StrictModel):
    """Ring degree, bits of each prime of the coefficient modulus (the last one is for keys only), bits of the scale."""

    poly_modulus_degree: Literal[4096, 8192, 16384]
    coeff_mod_bit_sizes: Annotated[tuple[Annotated[int, Field(ge=30, le=60)], ...], Field(min_length=2, max_length=8)]
    scale_bits: Annotated[int, Field(ge=30, le=60)]

    @model_validator(mode="after")
    def _check(self) -> Parameters:
        total, most = sum(self.coeff_mod_bit_sizes), MOST_BITS[self.poly_modulus_degree]
        if total > most:
            raise rule(
                f"got {total} bits of coefficient modulus for degree {self.poly_modulus_degree}, expected at most "
                f"{most}: more is below 128-bit security"
            )
        return self

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.poly_modulus_degree // 2

    @property
    def least_modulus(self) -> int:
        """A lower bound of the modulus of ciphertexts: all primes but the last, each the largest below its power of 2.

        The largest primes of ``bits`` bits that are 1 modulo twice the degree lie above 2^bits (1 - 2^-8); whoever
        loads a context checks it on the primes themselves.
        """
        return math.prod((1 << bits) - (1 << (bits - 8)) for bits in self.coeff_mod_bit_sizes[:-1])

    def has_room(self, sites: int) -> bool:
        """Whether a sum of the limbs of so many sites stays clear of the modulus, beyond which it would wrap."""
        return sites * (1 << LIMB_BITS) * (1 << self.scale_bits) * 4 < self.least_modulus

    def verify_room(self, sites: int) -> None:
        """Raise ``FF-HE-ROOM`` unless :meth:`has_room`."""
        if not self.has_room(sites):
            raise HeError(
                "FF-HE-ROOM",
                got=f"{sites} sites, whose sum these parameters of CKKS could wrap without a sign",
                expected="sites * 2^16 * scale below a quarter of the modulus of ciphertexts",
                next_step="make contexts with a larger coefficient modulus or a smaller scale (fairflare he make)",
            )

    def ciphertexts(self, words: int) -> int:
        """How many ciphertexts hold so many words."""
        return -(-words * LIMBS // self.slots)

    @property
    def sizes(self) -> tuple[int, int]:
        """Fewest and most bytes of one serialised ciphertext.

        It is two polynomials that nobody can tell from random ones: it cannot be packed below the bits of its
        coefficients, and is never longer than their 64-bit words. Its length says nothing about what is in it.
        """
        data = self.coeff_mod_bit_sizes[:-1]
        fewest = 2 * self.poly_modulus_degree * sum(bits - 1 for bits in data) // 8
        return fewest, 2 * self.poly_modulus_degree * 8 * len(data) + _HEAD

    def payload(self, words: int) -> tuple[int, int]:
        """Fewest and most bytes of an encrypted vector of so many words."""
        number = self.ciphertexts(words)
        fewest, most = self.sizes
        return number * (fewest + _LENGTH), number * (most + _LENGTH)


#: What FLARE's own builder of contexts takes: for any number of sites.
FLARE: Final = Parameters(poly_modulus_degree=8192, coeff_mod_bit_sizes=(60, 40, 40), scale_bits=40)
#: A quarter of the bytes and a third of the time, for up to 63 sites: limbs of 16 bits need no more.
SMALL: Final = Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(54, 54), scale_bits=30)


def parameters_for(sites: int) -> Parameters:
    """The smaller of the two sets that can add so many sites' vectors."""
    return SMALL if SMALL.has_room(sites) else FLARE


class Record(StrictModel):
    """What stands beside a context (``he.json``): its parameters, and which secret key the hospitals share.

    ``context_sha256`` is that of the hospitals' file, so two hospitals with two keys are told apart when they join.
    Whoever loads a context proves the record by it: this file alone is believed by nobody.
    """

    format: Literal["fairflare/he/1"]
    parameters: Parameters
    context_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the record: what every JOIN of a session binds."""
        return hashlib.sha256(schema.canonical(self)).digest()

    def sizes(self, words: int) -> tuple[int, int]:
        """Fewest and most bytes of an encrypted vector of so many words."""
        return self.parameters.payload(words)

    def verify_sites(self, sites: int) -> None:
        """Raise ``FF-HE-ROOM`` for more sites than these parameters can add."""
        self.parameters.verify_room(sites)


def nominal(sites: int) -> Record:
    """For what is worked out before there is a context, such as the bytes of a plan's messages."""
    return Record(format=_FORMAT, parameters=parameters_for(sites), context_sha256="0" * 64)


def record_of(parameters: Parameters, client: bytes) -> Record:
    """The record of the hospitals' context ``client``."""
    return Record(format=_FORMAT, parameters=parameters, context_sha256=hashlib.sha256(client).hexdigest())


def read_record(file: Path) -> Record:
    """Read ``he.json``; raises ``FF-HE-*``."""
    return schema.read(Record, file, error=HeError, what="record of CKKS parameters")
