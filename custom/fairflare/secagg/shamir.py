# SPDX-License-Identifier: Apache-2.0
"""Shamir's secret sharing of 32-byte secrets: any t of n shares give the secret, t - 1 shares say nothing about it.

The field is that of p = 2^256 + 297, the smallest prime above every secret, so a secret is one field element and a
share is 33 bytes. A share carries no proof of its own: the caller checks shares against their commitments, and the
secret against what was announced of it (Shamir 1979).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

from fairflare.errors import SecaggError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
LARGEST_INDEX = 65535


def split(secret: bytes, threshold: int, indices: Sequence[int]) -> dict[int, bytes]:
    """Share ``secret`` (32 bytes) so that any ``threshold`` of ``indices`` can recover it.

    Parameters
    ----------
    secret
        32 bytes.
    threshold
        t, from 2 to the number of indices.
    indices
        Where the polynomial is read: different whole numbers from 1 to 65535.

    Returns
    -------
    dict
        Index -> share, 33 bytes, big-endian.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-SECRET``, ``FF-SECAGG-INDEX`` or ``FF-SECAGG-THRESHOLD``.
    """
    return _split(secret, threshold, indices, secrets.randbelow)


def _split(secret: bytes, threshold: int, indices: Sequence[int], randbelow: Callable[[int], int]) -> dict[int, bytes]:
    if type(secret) is not bytes or len(secret) != SECRET_BYTES:
        raise _refused("SECRET", "a secret of another type or length", f"{SECRET_BYTES} bytes")
    _check_indices(indices)
    if not (type(threshold) is int and 2 <= threshold <= len(indices)):
        raise _refused("THRESHOLD", "a threshold outside its range", f"a whole number from 2 to {len(indices)}")
    # Every coefficient over the whole field, the leading one too: a leading one that is never 0 would say something.
    coefficients = [randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return {index: _value(coefficients, index).to_bytes(SHARE_BYTES, "big") for index in indices}


def _value(coefficients: Sequence[int], x: int) -> int:
    """The polynomial at ``x``, leading coefficient first (Horner)."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


def lagrange_at_zero(indices: Collection[int]) -> dict[int, int]:
    """Index -> its coefficient in the value at 0 of the polynomial through these indices; ``FF-SECAGG-INDEX``.

    Compute it once for a set of sites, and recover all their secrets with it.
    """
    _check_indices(indices)
    product = 1
    for index in indices:
        product = product * index % PRIME
    denominators = {}
    for index in indices:
        denominator = index
        for other in indices:
            if other != index:
                denominator = denominator * (other - index) % PRIME
        denominators[index] = denominator
    inverses = _inverses(denominators)
    return {index: product * inverse % PRIME for index, inverse in inverses.items()}


def _inverses(values: Mapping[int, int]) -> dict[int, int]:
    """All inverses for the price of one (Montgomery 1987); no value is 0."""
    before, product = {}, 1
    for key, value in values.items():
        before[key] = product
        product = product * value % PRIME
    inverse = pow(product, -1, PRIME)
    found = {}
    for key in reversed(list(values)):
        found[key] = inverse * before[key] % PRIME
        inverse = inverse * values[key] % PRIME
    return found


def combine(shares: Mapping[int, bytes], coefficients: Mapping[int, int] | None = None) -> bytes:
    """Recover the secret (32 bytes) from all of ``shares``, at least as many as the threshold of the split.

    Fewer shares, or a wrong one, give another secret or an error: which, this function cannot know.

    Parameters
    ----------
    shares
        Index -> share of 33 bytes.
    coefficients
        :func:`lagrange_at_zero` of exactly these indices; computed here if it is not given.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-SHARE`` for something that is no share, for fewer than two, for the coefficients of other indices,
        or if what comes out cannot be a secret; ``FF-SECAGG-INDEX``.
    """
    if len(shares) < 2:
        raise _refused("SHARE", "fewer shares than any threshold", "at least two shares")
    numbers = {index: _number(share) for index, share in shares.items()}
    if coefficients is None:
        coefficients = lagrange_at_zero(shares.keys())
    elif coefficients.keys() != numbers.keys():
        raise _refused("SHARE", "coefficients of other indices than the shares'", "those of exactly these indices")
    value = sum(coefficients[index] * number for index, number in numbers.items()) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise _refused("SHARE", "shares that do not belong together", "shares of one secret, none of them changed")
    return value.to_bytes(SECRET_BYTES, "big")


def _number(share: bytes) -> int:
    if type(share) is not bytes or len(share) != SHARE_BYTES or int.from_bytes(share, "big") >= PRIME:
        raise _refused("SHARE", "bytes that are no share", f"{SHARE_BYTES} bytes, a number below the prime")
    return int.from_bytes(share, "big")


def _check_indices(indices: Collection[int]) -> None:
    if not all(type(index) is int and 1 <= index <= LARGEST_INDEX for index in indices):
        raise _refused("INDEX", "an index outside its range", f"whole numbers from 1 to {LARGEST_INDEX}")
    if len(set(indices)) != len(indices):
        raise _refused("INDEX", "the same index twice", "different indices")


def _refused(code: str, got: str, expected: str) -> SecaggError:
    return SecaggError(
        f"FF-SECAGG-{code}",
        got=got,
        expected=expected,
        next_step="end the round and keep nothing of it; if it comes again, look for a site with another version",
    )
