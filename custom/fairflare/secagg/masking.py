# SPDX-License-Identifier: Apache-2.0
"""Adds masks to a vector: the only part of secure aggregation that touches every coordinate once per peer.

A mask is the AES-256-CTR keystream of its key (first counter block 0), read as little-endian words. The vector is
worked through in chunks that stay in the cache, each under all keys before the next; the keystream is written into
memory that is there already, since new memory for it costs five times as much as the cipher. CTR can start anywhere, so
long vectors are split over threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import DTypeLike, NDArray

from fairflare.errors import SecaggError

Words = NDArray[np.uint32] | NDArray[np.uint64]

KEY_BYTES = 32
_BLOCK = 16
#: 512 KiB: small enough for the caches, and large enough that threads seldom wait for the interpreter's lock.
CHUNK_BYTES = 1 << 19
#: Keystream (vector times keys) from which a second thread gains surely: about 10 ms of work. It costs up to 1 ms.
_THREADS_FROM = 1 << 26
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class Scratch:
    """Memory for one chunk of keystream, used again for the next one; :meth:`wipe` it after use."""

    def __init__(self, size: int) -> None:
        # Older releases of the cipher library want room for one block more than they write.
        self._bytes = np.zeros(min(size, CHUNK_BYTES) + _BLOCK, dtype=np.uint8)

    def words(self, cipher: CipherContext, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The next ``count`` little-endian words of the keystream, (count,); valid until the next call."""
        size = count * dtype.itemsize
        cipher.update_into(_ZEROS[:size], self._bytes.data)
        return self._bytes[:size].view(dtype.newbyteorder("<"))

    def wipe(self) -> None:
        """Overwrite with zeros. Copies that the interpreter made are out of reach."""
        self._bytes.fill(0)


def cipher_of(key: bytes, first_byte: int = 0) -> CipherContext:
    """The keystream of a 32-byte key from ``first_byte`` (a multiple of 16); ``FF-SECAGG-KEY`` for another key."""
    if type(key) is not bytes or len(key) != KEY_BYTES:
        raise SecaggError(
            "FF-SECAGG-KEY",
            got="a mask key of another type or length",
            expected=f"{KEY_BYTES} bytes",
            next_step="derive mask keys as the protocol says; report this as a defect of FairFlare",
        )
    counter = (first_byte // _BLOCK).to_bytes(_BLOCK, "big")
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()


def keystream(key: bytes, length: int, dtype: DTypeLike) -> Words:
    """The mask of ``key`` alone: ``length`` words of ``dtype`` (uint32 or uint64), (length,)."""
    words: Words = np.zeros(length, dtype=dtype)
    add_masks(words, [key], [])
    return words


def add_masks(words: Words, plus: Sequence[bytes], minus: Sequence[bytes], *, threads: int | None = None) -> None:
    """Add the masks of the keys ``plus`` to ``words`` and subtract those of ``minus``, in place.

    Parameters
    ----------
    words
        uint32 or uint64, (length,), in one piece and writeable; sums are modulo 2^32 or 2^64.
    plus, minus
        Keys of 32 bytes, one per mask.
    threads
        How many threads; the default is two (one on a machine of one core) where the vector is long enough, else one.
        The result does not depend on it.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-DTYPE``, ``FF-SECAGG-SHAPE`` or ``FF-SECAGG-KEY``; ``words`` is then unchanged. After any other
        exception (no memory) it is of no use.
    """
    _check_words(words)
    for key in (*plus, *minus):
        cipher_of(key)
    chunks = -(-words.nbytes // CHUNK_BYTES)
    if threads is None:
        threads = _default_threads(words.nbytes * (len(plus) + len(minus)))
    threads = max(1, min(threads, chunks))
    if threads == 1:
        _add_from(words, 0, plus, minus)
        return
    step = -(-chunks // threads) * CHUNK_BYTES // words.itemsize
    parts = [(words[start : start + step], start * words.itemsize) for start in range(0, words.size, step)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_add_from, part, first_byte, plus, minus) for part, first_byte in parts]:
            done.result()


def _default_threads(work: int) -> int:
    return min(2, os.cpu_count() or 1) if work >= _THREADS_FROM else 1


def _add_from(words: Words, first_byte: int, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add the masks to a range of the vector that begins at ``first_byte``."""
    adding = [cipher_of(key, first_byte) for key in plus]
    subtracting = [cipher_of(key, first_byte) for key in minus]
    scratch = Scratch(words.nbytes)
    step = CHUNK_BYTES // words.itemsize
    try:
        for start in range(0, words.size, step):
            part = words[start : start + step]
            for cipher in adding:
                np.add(part, scratch.words(cipher, part.size, words.dtype), out=part)
            for cipher in subtracting:
                np.subtract(part, scratch.words(cipher, part.size, words.dtype), out=part)
    finally:
        scratch.wipe()


def _check_words(words: Words) -> None:
    # A subclass may do something else than add; a foreign byte order would put the mask on the wrong bytes.
    if type(words) is not np.ndarray or words.dtype not in (np.dtype(np.uint32), np.dtype(np.uint64)):
        raise _refused("DTYPE", "words of another type or byte order")
    if words.ndim != 1 or not words.flags.c_contiguous or not words.flags.writeable:
        raise _refused("SHAPE", "words in another shape, in pieces, or read-only")


def _refused(code: str, got: str) -> SecaggError:
    return SecaggError(
        f"FF-SECAGG-{code}",
        got=got,
        expected="a one-dimensional array of uint32 or uint64 in this machine's byte order, in one piece, writeable",
        next_step="encode the vector before it is masked; report this as a defect of FairFlare",
    )
