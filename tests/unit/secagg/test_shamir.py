# SPDX-License-Identifier: Apache-2.0
"""Secret sharing: any t shares give the secret, t - 1 shares leave every secret as likely as before."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare.errors import SecaggError
from fairflare.secagg import shamir
from fairflare.secagg.shamir import LARGEST_INDEX, PRIME, SHARE_BYTES, combine, lagrange_at_zero, split

SECRET = bytes(range(32))
HIGHEST = b"\xff" * 32

secrets_ = st.binary(min_size=32, max_size=32)
indices = st.lists(st.integers(1, LARGEST_INDEX), min_size=2, max_size=12, unique=True)


def point(x: int, points: dict[int, int]) -> int:
    """The value at ``x`` of the polynomial through ``points``, by Lagrange's formula as it is written."""
    value = 0
    for a, y in points.items():
        term = y
        for b in points:
            if b != a:
                term = term * (x - b) * pow(a - b, -1, PRIME) % PRIME
        value += term
    return value % PRIME


def numbers(shares: dict[int, bytes]) -> dict[int, int]:
    return {index: int.from_bytes(share, "big") for index, share in shares.items()}


def changed(share: bytes, by: int) -> bytes:
    return ((int.from_bytes(share, "big") + by) % PRIME).to_bytes(SHARE_BYTES, "big")


def recovered(shares: dict[int, bytes]) -> bytes | None:
    """What the shares give, or ``None`` where they are refused as not belonging together."""
    try:
        return combine(shares)
    except SecaggError as error:
        return None if error.code == "FF-SECAGG-SHARE" else error.code.encode()


def test_the_modulus_is_the_smallest_prime_above_every_secret() -> None:
    """Miller-Rabin with 64 fixed bases: an error below 4^-64 for a number that nobody chose to pass it."""
    bases = [random.Random(at).randrange(2, 2**256) for at in range(64)]

    def passes(number: int) -> bool:
        twos = (number - 1 & 1 - number).bit_length() - 1
        odd = number - 1 >> twos
        return all(
            pow(base, odd, number) == 1 or any(pow(base, odd << square, number) == number - 1 for square in range(twos))
            for base in bases
        )

    assert PRIME == 2**256 + 297
    assert passes(PRIME)
    assert not any(passes(2**256 + more) for more in range(1, 297, 2))


@pytest.mark.parametrize(("n", "t"), [(2, 2), (3, 3), (4, 3), (5, 4), (8, 6)])
@pytest.mark.parametrize("secret", [SECRET, bytes(32), HIGHEST])
def test_every_t_of_n_recover_the_secret(n: int, t: int, secret: bytes) -> None:
    shares = split(secret, t, range(1, n + 1))
    for size in range(t, n + 1):
        for chosen in itertools.combinations(shares, size):
            assert combine({index: shares[index] for index in chosen}) == secret


@given(secrets_, indices, st.data())
def test_any_t_shares_at_any_indices_recover_the_secret(secret: bytes, where: list[int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, len(where)))
    shares = split(secret, threshold, where)
    assert list(shares) == where
    assert all(type(share) is bytes and len(share) == SHARE_BYTES for share in shares.values())
    chosen = data.draw(st.lists(st.sampled_from(where), min_size=threshold, unique=True))
    picked = {index: shares[index] for index in chosen}
    assert combine(picked) == combine(picked, lagrange_at_zero(chosen)) == secret


def test_fifty_sites() -> None:
    shares = split(SECRET, 34, range(1, 51))
    assert combine({index: shares[index] for index in range(17, 51)}) == SECRET
    assert combine({index: shares[index] for index in range(18, 51)} | {LARGEST_INDEX: shares[1]}) != SECRET


@given(secrets_, secrets_, indices, st.data())
def test_fewer_shares_leave_every_secret_possible(
    secret: bytes, other: bytes, where: list[int], data: st.DataObject
) -> None:
    """For t - 1 shares and any other secret there is exactly one polynomial: the one that another draw gives."""
    threshold = data.draw(st.integers(2, len(where)))
    shares = split(secret, threshold, where)
    known = dict(list(shares.items())[: threshold - 1])
    through = numbers(known) | {0: int.from_bytes(other, "big")}
    drawn = coefficients(through)
    assert drawn[-1] == int.from_bytes(other, "big")
    again = shamir._split(other, threshold, where, lambda below: drawn.pop(0) if below == PRIME else -1)
    assert {index: again[index] for index in known} == known


def coefficients(points: dict[int, int]) -> list[int]:
    """The polynomial through ``points``, leading coefficient first."""
    total = [0] * len(points)
    for a, y in points.items():
        poly = [y]
        for b in points:
            if b != a:
                inverse = pow(a - b, -1, PRIME)
                longer = [*poly, 0]
                for at, value in enumerate(poly):
                    longer[at + 1] -= b * value
                poly = [value * inverse % PRIME for value in longer]
        total = [(x + y) % PRIME for x, y in zip(total, poly, strict=True)]
    return total


def test_shares_are_uniform_over_the_whole_field() -> None:
    """With every polynomial of a small seam drawn once, each value of a share occurs once."""
    seen = [shamir._split(SECRET, 2, [1, 2], lambda _, a=a: a)[1] for a in (0, 1, PRIME - 1)]
    secret = int.from_bytes(SECRET, "big")
    assert numbers(dict(enumerate(seen))) == {0: secret, 1: secret + 1, 2: secret - 1}


def test_every_coefficient_is_drawn_from_the_whole_field_zero_included() -> None:
    asked: list[int] = []
    shares = shamir._split(SECRET, 5, range(1, 8), lambda below: asked.append(below) or 0)
    assert asked == [PRIME] * 4
    assert set(shares.values()) == {b"\0" + SECRET}


def test_two_splits_have_nothing_in_common() -> None:
    first, second = (split(SECRET, 3, range(1, 6)) for _ in range(2))
    assert not set(first.values()) & set(second.values())


@given(secrets_, st.integers(1, PRIME - 1), st.data())
def test_a_changed_share_gives_another_secret_or_an_error(secret: bytes, by: int, data: st.DataObject) -> None:
    shares = split(secret, 3, range(1, 6))
    index = data.draw(st.integers(1, 5))
    shares[index] = changed(shares[index], by)
    assert recovered(shares) != secret


def test_two_exchanged_shares_give_another_secret() -> None:
    shares = split(SECRET, 3, range(1, 4))
    assert recovered({1: shares[2], 2: shares[1], 3: shares[3]}) != SECRET


@given(indices, st.integers(2**256, PRIME - 1), st.data())
def test_what_is_no_secret_is_refused(where: list[int], value: int, data: st.DataObject) -> None:
    """297 field elements are no 32 bytes; only changed shares lead there."""
    points = {0: value} | {index: data.draw(st.integers(0, PRIME - 1)) for index in where[1:]}
    points[where[0]] = point(where[0], points)
    shares = {index: points[index].to_bytes(SHARE_BYTES, "big") for index in where}
    with pytest.raises(SecaggError, match="FF-SECAGG-SHARE"):
        combine(shares)


@given(indices)
def test_the_coefficients_are_lagranges(where: list[int]) -> None:
    found = lagrange_at_zero(where)
    assert sorted(found) == sorted(where)
    for index in where:
        assert found[index] == point(0, {other: int(other == index) for other in where})


REFUSED_SPLITS: dict[str, tuple[bytes, int, Sequence[int], str]] = {
    "a short secret": (SECRET[1:], 2, [1, 2], "SECRET"),
    "a long secret": (SECRET + b"\0", 2, [1, 2], "SECRET"),
    "a secret that can change": (bytearray(SECRET), 2, [1, 2], "SECRET"),  # type: ignore[dict-item]
    "a threshold of one": (SECRET, 1, [1, 2], "THRESHOLD"),
    "a threshold of none": (SECRET, 0, [1, 2], "THRESHOLD"),
    "a threshold above all": (SECRET, 3, [1, 2], "THRESHOLD"),
    "a broken threshold": (SECRET, 2.0, [1, 2], "THRESHOLD"),  # type: ignore[dict-item]
    "nobody": (SECRET, 2, [], "THRESHOLD"),
    "the secret's own index": (SECRET, 2, [0, 1], "INDEX"),
    "a negative index": (SECRET, 2, [1, -1], "INDEX"),
    "an index too large": (SECRET, 2, [1, LARGEST_INDEX + 1], "INDEX"),
    "an index twice": (SECRET, 2, [1, 2, 1], "INDEX"),
    "an index that equals another modulo p": (SECRET, 2, [1, PRIME + 1], "INDEX"),
    "an index that is a truth value": (SECRET, 2, [True, 2], "INDEX"),
}


@pytest.mark.parametrize("what", REFUSED_SPLITS)
def test_a_split_that_cannot_be_is_refused(what: str) -> None:
    secret, threshold, where, code = REFUSED_SPLITS[what]
    with pytest.raises(SecaggError) as caught:
        split(secret, threshold, where)
    assert caught.value.code == f"FF-SECAGG-{code}"
    assert SECRET.hex()[2:12] not in str(caught.value)


SHARE = (5).to_bytes(SHARE_BYTES, "big")
REFUSED_SHARES = {
    "no share": ({}, "SHARE"),
    "one share": ({1: SHARE}, "SHARE"),
    "a short share": ({1: SHARE, 2: SHARE[1:]}, "SHARE"),
    "a long share": ({1: SHARE, 2: b"\0" + SHARE}, "SHARE"),
    "the modulus": ({1: SHARE, 2: PRIME.to_bytes(SHARE_BYTES, "big")}, "SHARE"),
    "above the modulus": ({1: SHARE, 2: b"\xff" * SHARE_BYTES}, "SHARE"),
    "a number": ({1: SHARE, 2: 5}, "SHARE"),
    "nothing": ({1: SHARE, 2: None}, "SHARE"),
    "a share that can change": ({1: SHARE, 2: bytearray(SHARE)}, "SHARE"),
    "the secret's own index": ({1: SHARE, 0: SHARE}, "INDEX"),
    "an index too large": ({1: SHARE, LARGEST_INDEX + 1: SHARE}, "INDEX"),
    "an index that is text": ({1: SHARE, "2": SHARE}, "INDEX"),
}


@pytest.mark.parametrize("what", REFUSED_SHARES)
def test_what_is_no_share_is_refused(what: str) -> None:
    shares, code = REFUSED_SHARES[what]
    with pytest.raises(SecaggError) as caught:
        combine(shares)  # type: ignore[arg-type]
    assert caught.value.code == f"FF-SECAGG-{code}"


@pytest.mark.parametrize("where", [[1, 2], [1, 2, 4], [1, 2, 3, 4]])
def test_coefficients_of_other_indices_are_refused(where: list[int]) -> None:
    shares = split(SECRET, 3, range(1, 4))
    with pytest.raises(SecaggError, match="FF-SECAGG-SHARE"):
        combine(shares, lagrange_at_zero(where))


def test_the_largest_share_is_one() -> None:
    highest = (PRIME - 1).to_bytes(SHARE_BYTES, "big")
    assert combine({1: highest, 2: changed(highest, -1)}) == bytes(32)
