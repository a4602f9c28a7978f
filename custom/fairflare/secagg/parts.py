# SPDX-License-Identifier: Apache-2.0
"""An update of several parts as one vector of words: each part with bounds of its own, one weight for all.

The words of the parts follow one another, then comes the weight W, as in a vector of one part
(:class:`~fairflare.secagg.fixedpoint.UpdateCodec`). All parts are summed over the same sites with the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairflare.secagg.fixedpoint import UPDATE_BITS, Floats, UpdateCodec
from fairflare.secagg.params import VectorParams

Words = NDArray[np.uint32]
Means = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class PartsCodec:
    """Codec of each part and its length, by label, in the order of the words; the first one is the update itself."""

    parts: Mapping[str, tuple[UpdateCodec, int]]

    def vector(self, label: str) -> VectorParams:
        """What JOIN says of the whole vector."""
        (first, length), *more = self.parts.values()
        return VectorParams(
            label, "open", length + sum(size for _, size in more) + 1, 32, first.fraction_bits, first.clip,
            tuple((size, codec.fraction_bits, codec.clip) for codec, size in more),
        )  # fmt: skip

    @property
    def first(self) -> UpdateCodec:
        """Codec of the update itself; its weights are those of all parts."""
        return next(iter(self.parts.values()))[0]

    def encode(self, values: Mapping[str, Floats], weight: int, rounding_key: bytes) -> Words:
        """Words of all parts and W; zeros for a weight of 0, which says nothing.

        Parameters
        ----------
        values
            Each part, float32 or float64, of its length, finite.
        weight
            W, from 0 to 2^30.
        rounding_key
            32 bytes for this vector alone; the first part is rounded with it, each further one with a key made of it.

        Raises
        ------
        SecaggError
            What :meth:`UpdateCodec.encode` raises.
        """
        if weight == 0:
            return np.zeros(sum(length for _, length in self.parts.values()) + 1, dtype=np.uint32)
        encoded = []
        for number, (label, (codec, _)) in enumerate(self.parts.items()):
            key = rounding_key if number == 0 else hashlib.sha256(rounding_key + label.encode("utf-8")).digest()
            encoded.append(codec.encode(values[label], weight, key)[0])
        if len(encoded) == 1:
            return encoded[0]
        return np.concatenate([*(words[:-1] for words in encoded), encoded[-1][-1:]])

    def parts_of(self, words: Words) -> Means:
        """What one site's words say, float64 by label: its parts as they are in the sum, clipped and rounded."""
        weight, found, start = int(words[-1]), {}, 0
        for label, (codec, length) in self.parts.items():
            part = words[start : start + length].view(np.int32).astype(np.float64)
            scale = np.ldexp(float(weight), codec.fraction_bits - UPDATE_BITS)
            found[label] = part / scale if weight else np.zeros(length)
            start += length
        return found

    def decode(self, total: Words, sites: int) -> tuple[Means, int]:
        """Weighted means by label, float64, and sum W, of an unmasked sum; raises as :meth:`UpdateCodec.decode`."""
        means: Means = {}
        start, weight = 0, 0
        for label, (codec, length) in self.parts.items():
            whole = total if len(self.parts) == 1 else np.concatenate([total[start : start + length], total[-1:]])
            means[label], weight = codec.decode(whole, sites)
            start += length
        return means, weight
