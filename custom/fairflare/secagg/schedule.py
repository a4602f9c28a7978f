# SPDX-License-Identifier: Apache-2.0
"""The key schedule: what every digest binds, and which keys follow from which secrets.

Names are those of the protocol: T (session), K (key set), Z (dealers), D (task), V (view).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fairflare.errors import SecaggError
from fairflare.secagg.encoding import digest, encode
from fairflare.secagg.params import VectorParams
from fairflare.secagg.transcript import Signed, Step


def session_digest(joins: Sequence[bytes]) -> bytes:
    """T, of the JOINs in the order of their names."""
    return digest("session", list(joins))


def self_commitment(step: Step, index: int, secret: bytes) -> bytes:
    """H(E(b, T, r, v, i, b_i))."""
    return digest("b", step.session, step.number, step.label, index, secret)


def keyset_digest(keyset: bytes) -> bytes:
    """K, of the whole keyset message."""
    return hashlib.sha256(keyset).digest()


def share_commitment(kind: str, step: Step, dealer: int, holder: int, share: bytes) -> bytes:
    """H(E(sc, kind, T, r, v, i, j, share)); kind is ``sk`` or ``b``."""
    return digest("sc", kind, step.session, step.number, step.label, dealer, holder, share)


def share_context(step: Step, keyset: bytes, dealer: int, holder: int) -> bytes:
    """AAD of a ciphertext: E(share, T, r, v, K, i, j)."""
    return encode("share", step.session, step.number, step.label, keyset, dealer, holder)


def channel_key(own: X25519PrivateKey, other: bytes, step: Step, keyset: bytes, dealer: int, holder: int) -> bytes:
    """ek_ij = HKDF(DH(x, X), salt T, info E(ek, r, v, K, i, j))."""
    info = encode("ek", step.number, step.label, keyset, dealer, holder)
    return hkdf(agree(own, other), step.session, info)


def dealers_digest(keyset: bytes, signed: Sequence[Signed] | None) -> bytes:
    """Z: H(E(u1, K, signed SHARES of U1)); in closed mode H(E(u1, K))."""
    if signed is None:
        return digest("u1", keyset)
    return digest("u1", keyset, [one.parts() for one in signed])


def view_digest(step: Step, vector: VectorParams, dealers: bytes, inputs: bytes, fl_round: int, query: str) -> bytes:
    """V = H(E(view, T, r, v, mode, Z, D, FL round, query, dim, modulus, f, clip))."""
    mode, *rest = vector.encoded()
    return digest(
        "view", step.session, step.number, step.label, mode, dealers, inputs, fl_round, query, *rest
    )  # fmt: skip


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """X25519; a zero output, from a key of small order, is refused as ``FF-SECAGG-KEY``."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise SecaggError(
            "FF-SECAGG-KEY",
            got="a key of small order",
            expected="a key that its site drew at random",
            next_step="nothing was masked with it; find out who sent it",
        ) from None


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, 32 bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def pair_key(shared: bytes, view: bytes, first: tuple[int, bytes], second: tuple[int, bytes]) -> bytes:
    """HKDF(DH(sk_i, pk_j), salt V, info E(pair, lo, hi, pk_lo, pk_hi)); arguments are (index, pk)."""
    (low, low_key), (high, high_key) = sorted((first, second))
    return hkdf(shared, view, encode("pair", low, high, low_key, high_key))


def self_key(secret: bytes, view: bytes, index: int) -> bytes:
    """HKDF(b_i, salt V, info E(self, i))."""
    return hkdf(secret, view, encode("self", index))


def tensor_digest(name: str, dtype: str, shape: Sequence[int], data: bytes | memoryview) -> bytes:
    """H(E(tensor, name, dtype, shape, H(little-endian bytes))): of what was decoded, before any cast."""
    return digest("tensor", name, dtype, list(shape), hashlib.sha256(data).digest())


def task_digest(
    task: str, fl_round: int, step: int, tensors: Sequence[bytes], numbers: Sequence[tuple[str, bytes]]
) -> bytes:
    """D = H(E(task, name, FL round, local step, [tensor digests], [(name, bytes)])).

    The plan, and with it learning rate and all settings, stands in every JOIN, so T binds it.
    """
    return digest("task", task, fl_round, step, sorted(tensors), [list(one) for one in sorted(numbers)])
