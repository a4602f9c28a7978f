# SPDX-License-Identifier: Apache-2.0
"""What a site keeps of a session while it lasts: the other sites, and each vector on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairflare.secagg.params import VectorParams
from fairflare.secagg.transcript import (
    Dealt,
    Keys,
    Signed,
    Step,
)

Words = NDArray[np.uint32] | NDArray[np.uint64]
Random = Callable[[int], bytes]
StepPhase = Literal["started", "keyed", "dealt", "uploaded", "signed", "over"]


@dataclass(frozen=True)
class Offer:
    """A step that the server wants to begin: its number r, the vector's label, the round of training."""

    number: int
    label: str
    fl_round: int


@dataclass
class Peer:
    """Another site of the session, once its JOIN has been verified."""

    name: str
    channel_key: bytes
    signing_key: bytes


@dataclass
class SiteStep:
    """One vector on its way. Secrets are ``None`` once they are erased."""

    step: Step
    vector: VectorParams
    fl_round: int
    mask: bytes | None = field(repr=False)
    self_mask: bytes | None = field(repr=False)
    own: Signed
    phase: StepPhase = "started"
    keyset: bytes = b""
    members: dict[int, Keys] = field(default_factory=dict)
    own_share: tuple[bytes, bytes] | None = field(default=None, repr=False)
    dealt: Dealt | None = None
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    dealers: bytes = b""
    view: bytes = b""
    upload: Signed | None = None
    confirm: bytes = b""
    survivors: tuple[int, ...] = ()

    def erase(self) -> None:
        """Forget every secret; the step can never go on."""
        self.mask = self.self_mask = self.own_share = None
        self.held = {}
        self.phase = "over"


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
