# SPDX-License-Identifier: Apache-2.0
"""Seeds for everything that is drawn but not secret: one per (plan's seed, site, round, purpose).

Privacy noise and keys never come from here: they use the operating system's randomness.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 128-bit seed from the plan's seed and a purpose, such as ``("batches", site, round)``."""
    text = "\0".join(["fairflare/seed/1", str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator (Philox) of its own for this purpose."""
    return np.random.Generator(np.random.Philox(key=seed_for(seed, *purpose)))
