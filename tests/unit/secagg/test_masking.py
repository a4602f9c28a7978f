# SPDX-License-Identifier: Apache-2.0
"""Masks: the keystream that the protocol names, added and taken away without a trace, whatever the length."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fairflare.errors import SecaggError
from fairflare.secagg import masking
from fairflare.secagg.masking import CHUNK_BYTES, Scratch, add_masks, cipher_of, keystream

DTYPES = (np.uint32, np.uint64)
SOME = [hashlib.sha256(bytes([at])).digest() for at in range(8)]

keys = st.binary(min_size=32, max_size=32)
dtypes = st.sampled_from(DTYPES)


def oracle(key: bytes, length: int, dtype: type) -> np.ndarray:
    """The mask by its definition: one AES call per block of the counter, then little-endian words."""
    size = np.dtype(dtype).itemsize
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block at a time is the definition
    stream = b"".join(block.update(at.to_bytes(16, "big")) for at in range(-(-length * size // 16)))
    return np.array([int.from_bytes(stream[at * size : (at + 1) * size], "little") for at in range(length)], dtype)


def words(length: int, dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, length, dtype, endpoint=True)


def test_the_keystream_is_aes_256_of_the_counter_as_published() -> None:
    """Blocks 0 (FIPS 197 software vectors) and 1, 2 (test cases 13 and 14 of the GCM specification), all-zero key."""
    blocks = "dc95c078a2408989ad48a21492842087 530f8afbc74536b9a963b4f1c4cb738b cea7403d4d606b6e074ec5d3baf39d18"
    assert keystream(bytes(32), 12, np.uint32).astype("<u4").tobytes() == bytes.fromhex(blocks)
    assert keystream(bytes(32), 6, np.uint64).astype("<u8").tobytes() == bytes.fromhex(blocks)
    assert keystream(bytes(32), 1, np.uint32)[0] == 0x78C095DC


@given(keys, st.integers(0, 70), dtypes)
def test_the_keystream_is_its_definition_at_every_length(key: bytes, length: int, dtype: type) -> None:
    assert np.array_equal(keystream(key, length, dtype), oracle(key, length, dtype))
    assert keystream(key, length, dtype).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("more", [-5, -1, 0, 1, 5])
def test_nothing_happens_at_the_end_of_a_chunk_or_of_a_thread(dtype: type, chunks: int, more: int) -> None:
    length = chunks * CHUNK_BYTES // np.dtype(dtype).itemsize + more
    wanted = before = words(length, dtype)
    for key in SOME[:2]:
        wanted = wanted + oracle(key, length, dtype)
    wanted = wanted - oracle(SOME[2], length, dtype)
    for threads in (None, 1, 2, 3, 7):
        masked = before.copy()
        add_masks(masked, SOME[:2], SOME[2:3], threads=threads)
        assert np.array_equal(masked, wanted), threads


@given(st.integers(0, 200), dtypes, st.lists(keys, max_size=4), st.lists(keys, max_size=4))
def test_what_is_added_can_be_subtracted(length: int, dtype: type, plus: list[bytes], minus: list[bytes]) -> None:
    masked = words(length, dtype)
    add_masks(masked, plus, minus)
    add_masks(masked, minus, plus)
    assert np.array_equal(masked, words(length, dtype))
    add_masks(masked, plus, plus)
    assert np.array_equal(masked, words(length, dtype))


@given(st.data(), dtypes)
def test_sums_are_those_of_python_numbers_modulo_the_word(data: st.DataObject, dtype: type) -> None:
    modulus = 2 ** (8 * np.dtype(dtype).itemsize)
    before = data.draw(st.lists(st.integers(0, modulus - 1), max_size=20))
    plus, minus = data.draw(st.lists(keys, max_size=3)), data.draw(st.lists(keys, max_size=3))
    masked = np.array(before, dtype=dtype)
    add_masks(masked, plus, minus)
    masks = [(1, oracle(key, len(before), dtype)) for key in plus]
    masks += [(-1, oracle(key, len(before), dtype)) for key in minus]
    wanted = [(value + sum(sign * int(mask[at]) for sign, mask in masks)) % modulus for at, value in enumerate(before)]
    assert masked.tolist() == wanted


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(1, 40), dtypes)
def test_the_masks_of_a_full_graph_cancel(sites: int, length: int, dtype: type) -> None:
    pair = {(a, b): hashlib.sha256(bytes([sites, a, b])).digest() for a in range(sites) for b in range(a + 1, sites)}
    total = np.zeros(length, dtype)
    for site in range(sites):
        masked = np.full(length, 5, dtype)
        plus = [key for (low, _), key in pair.items() if low == site]
        minus = [key for (_, high), key in pair.items() if high == site]
        add_masks(masked, plus, minus)
        assert length < 4 or not np.array_equal(masked, np.full(length, 5, dtype))
        total += masked
    assert total.tolist() == [5 * sites] * length


def test_wrapping_around_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in DTYPES:
            highest = np.full(100, np.iinfo(dtype).max, dtype)
            add_masks(highest, SOME, [])
            add_masks(highest, [], SOME)
            assert (highest == np.iinfo(dtype).max).all()


def test_every_bit_of_the_key_reaches_the_cipher() -> None:
    """A seed folded to 32 bits, as elsewhere, would give equal masks for keys that differ outside of them."""
    seen = {keystream(SOME[0], 8, np.uint32).tobytes()}
    for bit in range(256):
        other = int.from_bytes(SOME[0], "big") ^ (1 << bit)
        seen.add(keystream(other.to_bytes(32, "big"), 8, np.uint32).tobytes())
    assert len(seen) == 257


def test_masks_of_different_keys_have_nothing_in_common() -> None:
    first, second = (keystream(key, 4096, np.uint32) for key in SOME[:2])
    bits = int(np.unpackbits((first ^ second).view(np.uint8)).sum())
    assert abs(bits - 4096 * 16) < 6 * (4096 * 32 / 4) ** 0.5


def test_the_keystream_can_start_at_any_block() -> None:
    whole = keystream(SOME[0], 64, np.uint32)
    scratch = Scratch(64)
    assert np.array_equal(scratch.words(cipher_of(SOME[0], 160), 16, np.dtype(np.uint32)), whole[40:56])
    scratch.wipe()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_keystream_is_wiped_from_memory(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    made: list[Scratch] = []

    class Watched(Scratch):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            made.append(self)

    monkeypatch.setattr(masking, "Scratch", Watched)
    add_masks(np.zeros(CHUNK_BYTES // 2, np.uint32), SOME, [], threads=threads)
    assert len(made) == threads
    assert not any(one._bytes.any() for one in made)


def test_the_keystream_is_wiped_when_the_work_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Scratch] = []

    class Failing(Scratch):
        def words(self, *arguments: object) -> np.ndarray:
            made.append(self)
            super().words(*arguments)  # type: ignore[arg-type]
            raise MemoryError

    monkeypatch.setattr(masking, "Scratch", Failing)
    with pytest.raises(MemoryError):
        add_masks(np.zeros(100, np.uint32), SOME, [])
    assert made
    assert not made[0]._bytes.any()


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 2), (64, 2)])
def test_a_second_thread_is_for_long_vectors(monkeypatch: pytest.MonkeyPatch, cores: int | None, threads: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert masking._default_threads(masking._THREADS_FROM) == threads
    assert masking._default_threads(masking._THREADS_FROM - 1) == 1


def test_no_more_threads_than_chunks_and_never_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "ThreadPoolExecutor", None)
    for threads in (0, -1, 1, 100):
        masked = np.zeros(10, np.uint32)
        add_masks(masked, SOME[:1], [], threads=threads)
        assert np.array_equal(masked, oracle(SOME[0], 10, np.uint32))


class Subclass(np.ndarray):
    """An array that may do something else when it is added to."""


def read_only() -> np.ndarray:
    array = np.zeros(4, np.uint32)
    array.flags.writeable = False
    return array


REFUSED = {
    "signed": (np.zeros(4, np.int32), "DTYPE"),
    "shorter words": (np.zeros(4, np.uint16), "DTYPE"),
    "floats": (np.zeros(4, np.float32), "DTYPE"),
    "the other byte order": (np.zeros(4, np.dtype(np.uint32).newbyteorder()), "DTYPE"),
    "the other byte order, long": (np.zeros(4, np.dtype(np.uint64).newbyteorder()), "DTYPE"),
    "a list": ([0, 0], "DTYPE"),
    "nothing": (None, "DTYPE"),
    "one word": (np.uint32(0), "DTYPE"),
    "a masked array": (np.ma.masked_array(np.zeros(4, np.uint32)), "DTYPE"),
    "a subclass": (np.zeros(4, np.uint32).view(Subclass), "DTYPE"),
    "no dimension": (np.array(0, np.uint32), "SHAPE"),
    "a matrix": (np.zeros((2, 2), np.uint32), "SHAPE"),
    "every second word": (np.zeros(8, np.uint32)[::2], "SHAPE"),
    "backwards": (np.zeros(8, np.uint32)[::-1], "SHAPE"),
    "read-only": (read_only(), "SHAPE"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_masked_is_refused(what: str) -> None:
    given_words, code = REFUSED[what]
    with pytest.raises(SecaggError) as caught:
        add_masks(given_words, SOME[:1], [])  # type: ignore[arg-type]
    assert caught.value.code == f"FF-SECAGG-{code}"


BAD_KEYS = {
    "short": SOME[0][:31],
    "long": SOME[0] + b"\0",
    "AES-128": SOME[0][:16],
    "empty": b"",
    "text": SOME[0].hex()[:32],
    "changeable": bytearray(SOME[0]),
    "nothing": None,
}


@pytest.mark.parametrize("what", BAD_KEYS)
@pytest.mark.parametrize("side", ["plus", "minus"])
def test_a_bad_key_among_good_ones_changes_nothing_and_is_not_repeated(what: str, side: str) -> None:
    masked = np.zeros(4, np.uint32)
    bad = [SOME[0], BAD_KEYS[what]]
    with pytest.raises(SecaggError) as caught:
        add_masks(masked, *((bad, SOME) if side == "plus" else (SOME, bad)))  # type: ignore[arg-type]
    assert caught.value.code == "FF-SECAGG-KEY"
    assert SOME[0].hex()[:8] not in str(caught.value)
    assert not masked.any()


def test_a_keystream_is_of_words() -> None:
    with pytest.raises(SecaggError, match="FF-SECAGG-DTYPE"):
        keystream(SOME[0], 4, np.int64)
    with pytest.raises(SecaggError, match="FF-SECAGG-KEY"):
        keystream(SOME[0][1:], 4, np.uint32)
