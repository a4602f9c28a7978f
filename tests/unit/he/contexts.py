# SPDX-License-Identifier: Apache-2.0
"""Contexts of CKKS for tests, made once in a process: our own parameters, FLARE's, and some that must be refused."""

from __future__ import annotations

import tempfile
from functools import cache

import tenseal as ts
from tenseal import sealapi

from fairflare.he.ckks import Contexts, SiteCipher, make_contexts
from fairflare.he.context import Files
from fairflare.he.parameters import FLARE, SMALL, Parameters, record_of

#: Safe, but with room for three sites only: of more the sum of limbs comes near the modulus, and of 16 it wraps.
NARROW = Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(60, 49), scale_bits=40)
PARAMETERS = {"small": SMALL, "flare": FLARE}


@cache
def contexts(parameters: Parameters = SMALL) -> Contexts:
    return make_contexts(parameters)


@cache
def other_contexts(parameters: Parameters = SMALL) -> Contexts:
    """The same parameters, another key."""
    return make_contexts(parameters)


@cache
def cipher(parameters: Parameters = SMALL) -> SiteCipher:
    made = contexts(parameters)
    return SiteCipher(Files(made.client, made.record))


@cache
def unsafe() -> Files:
    """A context of 4096 with 120 bits of modulus, whose record lies."""
    found = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    found.set_poly_modulus_degree(4096)
    found.set_coeff_modulus(sealapi.CoeffModulus.Create(4096, [60, 60]))
    with tempfile.NamedTemporaryFile() as file:
        found.save(file.name)
        weak = file.read()
    good = contexts(SMALL)
    head, rest = good.client[:1], good.client[2 + good.client[1] :]
    data = head + bytes([len(weak)]) + weak + rest
    return Files(data, record_of(SMALL, data))


def context_of(parameters: Parameters) -> ts.Context:
    """TenSEAL's own context of the hospitals."""
    return ts.context_from(contexts(parameters).client)
