# SPDX-License-Identifier: Apache-2.0
"""Encrypted words: exact sums, contexts that prove their record, and what is refused."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tenseal as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.errors import HeError
from fairflare.he import ckks
from fairflare.he.ckks import SiteCipher, verify_server
from fairflare.he.context import Files
from fairflare.he.parameters import FLARE, SMALL, Parameters, record_of
from tests.unit.he.contexts import NARROW, PARAMETERS, cipher, context_of, contexts, other_contexts, unsafe

ALL = pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(HeError) as caught:
        yield
    assert caught.value.code == f"FF-HE-{code}", caught.value


def words(sites: int, length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (sites, length), dtype=np.uint64)


def packed(*slots: float, context: ts.Context | None = None, scale: float | None = None) -> np.ndarray:
    """What a hostile hospital can make: any numbers in the slots, encrypted as a site would."""
    values = np.zeros(SMALL.slots)
    values[: len(slots)] = slots
    data = ts.ckks_vector(context or context_of(SMALL), values.tolist(), scale).serialize()
    return np.frombuffer(len(data).to_bytes(4, "big") + data, dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------------------- exact


@ALL
@pytest.mark.parametrize("sites", [3, 4, 8, 50])
def test_the_sum_is_exact_modulo_two_to_the_64(parameters: Parameters, sites: int) -> None:
    for length in (1, 64):
        values = words(sites, length)
        found = cipher(parameters).total([cipher(parameters).encrypt(one) for one in values], length)
        assert np.array_equal(found, values.sum(axis=0, dtype=np.uint64))


@ALL
def test_the_largest_words_of_the_most_sites_do_not_wrap(parameters: Parameters) -> None:
    values = np.full((63, 5), 2**64 - 1, dtype=np.uint64)
    found = cipher(parameters).total([cipher(parameters).encrypt(one) for one in values], 5)
    assert np.array_equal(found, values.sum(axis=0, dtype=np.uint64))


def test_a_long_vector_takes_several_ciphertexts() -> None:
    length = SMALL.slots // 4 * 2 + 1
    values = words(3, length)
    payloads = [cipher().encrypt(one) for one in values]
    fewest, most = SMALL.payload(length)
    assert SMALL.ciphertexts(length) == 3
    assert all(fewest <= one.size <= most for one in payloads)
    assert np.array_equal(cipher().total(payloads, length), values.sum(axis=0, dtype=np.uint64))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_words_of_any_sites(data: st.DataObject) -> None:
    sites, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    draw = st.lists(st.integers(0, 2**64 - 1), min_size=length, max_size=length)
    values = np.array([data.draw(draw) for _ in range(sites)], dtype=np.uint64)
    found = cipher().total([cipher().encrypt(one) for one in values], length)
    assert found.tolist() == [sum(int(word) for word in column) % 2**64 for column in values.T]


@ALL
def test_the_length_of_a_ciphertext_says_nothing_about_its_words(parameters: Parameters) -> None:
    fewest, most = parameters.payload(3)
    values = (np.zeros(3, dtype=np.uint64), np.full(3, 2**64 - 1, dtype=np.uint64), words(1, 3)[0])
    sizes = [cipher(parameters).encrypt(one).size for one in values for _ in range(5)]
    assert fewest <= min(sizes) <= max(sizes) <= most
    # All within a hundredth of each other; the lengths of the same words differ as much.
    assert max(sizes) - min(sizes) < min(sizes) / 100


# ----------------------------------------------------------------------------------------------------------- parameters


def test_parameters_that_would_wrap_are_refused() -> None:
    assert NARROW.has_room(3)
    for sites in (4, 8, 50):
        with refused("ROOM"):
            cipher(NARROW).verify_sites(sites)
        with refused("ROOM"):
            cipher(NARROW).total([cipher(NARROW).encrypt(words(1, 2)[0])] * sites, 2)


def test_without_that_check_fifty_sites_get_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEAL says nothing: the slots are whole numbers still, a multiple of the modulus away from the right ones."""
    full = ts.ckks_vector(context_of(NARROW), [65535.0] * NARROW.slots).serialize()
    total = ts.ckks_vector_from(context_of(NARROW), full)
    for _ in range(49):
        total = total + ts.ckks_vector_from(context_of(NARROW), full)
    wrong = np.array(total.decrypt())
    assert np.abs(wrong - np.rint(wrong)).max() < 2**-8
    assert np.abs(wrong - 50 * 65535).max() > 1e6


def test_a_context_below_128_bits_is_refused_whatever_its_record_says() -> None:
    with refused("SECURITY"):
        SiteCipher(unsafe())


def test_a_record_that_claims_other_parameters_is_not_believed() -> None:
    made = contexts(SMALL)
    lies = (
        FLARE,
        Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(55, 54), scale_bits=30),
        Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(53, 54), scale_bits=30),
        Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(54, 53), scale_bits=30),
        Parameters(poly_modulus_degree=4096, coeff_mod_bit_sizes=(54, 54), scale_bits=31),
    )
    for lie in lies:
        with refused("CONTEXT"):
            SiteCipher(Files(made.client, record_of(lie, made.client)))
        with refused("CONTEXT"):
            verify_server(Files(made.server, record_of(lie, made.client)))


def test_a_context_of_public_keys_is_refused() -> None:
    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[54, 54])
    context.global_scale = 2.0**30
    data = context.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    with refused("CONTEXT"):
        SiteCipher(Files(data, record_of(SMALL, data)))


def test_flares_own_builder_makes_contexts_that_are_accepted() -> None:
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC
    )
    context.generate_relin_keys()
    context.global_scale = 2**40
    keys = {"save_galois_keys": False, "save_relin_keys": True}
    client = context.serialize(save_public_key=True, save_secret_key=True, **keys)
    server = context.serialize(save_public_key=False, save_secret_key=False, **keys)
    record = record_of(FLARE, client)
    found = SiteCipher(Files(client, record))
    assert verify_server(Files(server, record)) == record
    assert found.total([found.encrypt(words(1, 2)[0])], 2).tolist() == words(1, 2)[0].tolist()


# -------------------------------------------------------------------------------------------------------------- who can


def test_the_servers_context_cannot_decrypt() -> None:
    made = contexts(SMALL)
    data = cipher().encrypt(words(1, 2)[0]).tobytes()[4:]
    captured = ts.ckks_vector_from(ts.context_from(made.server), data)
    with pytest.raises(ValueError, match="secret"):
        captured.decrypt()
    with refused("KEY"):
        SiteCipher(Files(made.server, record_of(SMALL, made.server)))


def test_a_secret_key_at_the_server_is_refused() -> None:
    made = contexts(SMALL)
    with refused("SECRET"):
        verify_server(Files(made.client, made.record))


def test_another_key_is_told_apart() -> None:
    mine, theirs = contexts(SMALL), other_contexts(SMALL)
    assert mine.record.fingerprint != theirs.record.fingerprint
    with refused("KEY"):
        SiteCipher(Files(theirs.client, mine.record))
    other = SiteCipher(Files(theirs.client, theirs.record))
    with refused("SLOTS"):
        cipher().total([other.encrypt(words(1, 2)[0])], 2)


# ----------------------------------------------------------------------------------------------------- hostile payloads


@pytest.mark.parametrize("slots", [(0.3,), (-1.0,), (70000.0,), (float(2**20),)])
def test_slots_that_are_no_limbs_are_refused(slots: tuple[float, ...]) -> None:
    with refused("SLOTS"):
        cipher().total([packed(*slots)], 1)


def test_slots_that_must_be_empty_are_refused_with_numbers() -> None:
    assert cipher().total([packed(1, 2, 3, 4)], 1).tolist() == [1 + (2 << 16) + (3 << 32) + (4 << 48)]
    with refused("SLOTS"):
        cipher().total([packed(1, 2, 3, 4, 5)], 1)


def test_a_slot_half_as_far_as_allowed_is_rounded_and_one_farther_is_refused() -> None:
    assert cipher().total([packed(7 + 2**-9)], 1).tolist() == [7]
    with refused("SLOTS"):
        cipher().total([packed(7 + 2**-7)], 1)


def _changed(payload: np.ndarray, place: int, value: int) -> np.ndarray:
    result = payload.copy()
    result[place] = value
    return result


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def _hostile() -> dict[str, np.ndarray]:
    good = cipher().encrypt(words(1, 1)[0])
    data = good.tobytes()
    small = ts.ckks_vector(context_of(SMALL), [1.0] * 8).serialize()
    two = ts.ckks_vector(context_of(SMALL), [1.0] * (SMALL.slots + 8)).serialize()
    return {
        "nothing": _bytes(b""),
        "cut off": _bytes(data[:-1]),
        "longer": _bytes(data + b"\0"),
        "twice": _bytes(data + data),
        "zeros": _bytes(bytes(good.size)),
        "random": np.random.default_rng(1).integers(0, 256, good.size).astype(np.uint8),
        "a length beyond the end": _changed(good, 0, 255),
        "another first field": _changed(good, 4, 0xFF),
        "fewer slots": _bytes(len(small).to_bytes(4, "big") + small),
        "two ciphertexts in one": _bytes(len(two).to_bytes(4, "big") + two),
        "a field twice": _bytes((len(data) - 4 + 4).to_bytes(4, "big") + data[4:8] + data[4:]),
        "another scale": packed(1.0, scale=2.0**29),
        "of other parameters": cipher(FLARE).encrypt(words(1, 1)[0]),
        "its coefficients changed": _changed(good, good.size // 2, int(good[good.size // 2]) ^ 1),
    }


@pytest.mark.parametrize("kind", _hostile())
def test_bytes_that_are_no_ciphertext_of_the_session_are_refused(kind: str) -> None:
    with pytest.raises(HeError) as caught:
        cipher().total([cipher().encrypt(words(1, 1)[0]), _hostile()[kind]], 1)
    allowed = {"FF-HE-FORM", "FF-HE-SLOTS"} if kind == "its coefficients changed" else {"FF-HE-FORM"}
    assert caught.value.code in allowed


@pytest.mark.parametrize("kind", ["fewer slots", "another scale", "two ciphertexts in one", "of other parameters"])
def test_they_are_refused_before_they_are_added_to_anything(kind: str) -> None:
    with refused("FORM"):
        cipher().total([_hostile()[kind]], 1)


def test_a_ciphertext_of_a_lower_level_is_refused() -> None:
    """Its modulus is smaller than that for which there is room."""
    data = (ts.ckks_vector(context_of(FLARE), [1.0] * FLARE.slots) * ([1.0] * FLARE.slots)).serialize()
    assert len(data) < FLARE.sizes[0]
    with refused("FORM"):
        cipher(FLARE).total([_bytes(len(data).to_bytes(4, "big") + data)], 1)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 70_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(place: int, value: int) -> None:
    good = cipher().encrypt(np.array([12345], dtype=np.uint64))
    try:
        found = cipher().total([_changed(good, place % good.size, value)], 1)
    except HeError:
        return
    assert found.tolist() == [12345]


# ------------------------------------------------------------------------------------------------- what leaves the file


def test_what_is_decrypted_is_rounded_where_it_is_decrypted() -> None:
    """Decrypted numbers are approximations that tell about the key: only one function ever holds them."""
    tree = ast.parse(Path(ckks.__file__).read_text(encoding="utf-8"))
    holders = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Attribute) and node.attr == "decrypt" for node in ast.walk(function))
    ]
    assert holders == ["_whole"]
    assert cipher()._whole([cipher().encrypt(words(1, 1)[0]).tobytes()[4:]]).dtype == np.int64
    package = Path(ckks.__file__).parents[1]
    users = {path.name for path in package.rglob("*.py") if ".decrypt()" in path.read_text(encoding="utf-8")}
    assert users == {"ckks.py"}


def test_neither_key_nor_context_is_in_a_repr() -> None:
    made = contexts(SMALL)
    for shown in (repr(made), repr(Files(made.client, made.record)), repr(cipher())):
        assert len(shown) < 1000


def test_without_tenseal_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with refused("MISSING"):
        ckks.make_contexts()
    made = contexts(SMALL)
    with refused("MISSING"):
        SiteCipher(Files(made.client, made.record))
