# SPDX-License-Identifier: Apache-2.0
"""What sites and server keep of a session while it lasts: the other sites, and each vector on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairflare.secagg.params import VectorParams
from fairflare.secagg.transcript import Dealt, Keys, Shares, Signed, Step, Unmask

Words = NDArray[np.uint32] | NDArray[np.uint64]
#: A vector as it travels: masked words, or what a cipher makes of them.
Sent = Words | NDArray[np.uint8]
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
    sealed: NDArray[np.uint8] | None = field(default=None, repr=False)
    confirm: bytes = b""
    survivors: tuple[int, ...] = ()

    def erase(self) -> None:
        """Forget every secret; the step can never go on."""
        self.mask = self.self_mask = self.own_share = self.sealed = None
        self.held = {}
        self.phase = "over"


@dataclass
class ServerStep:
    """One vector on its way, as the server knows it: no secret before the unmasking."""

    step: Step
    vector: VectorParams
    fl_round: int
    keys: dict[int, Signed] = field(default_factory=dict)
    keyset: bytes = b""
    members: dict[int, Keys] = field(default_factory=dict)
    dealt: dict[int, Dealt] = field(default_factory=dict)
    dealers: dict[int, Shares] = field(default_factory=dict)
    dealers_digest: bytes = b""
    view: bytes = b""
    uploads: dict[int, Signed] = field(default_factory=dict)
    payloads: dict[int, Sent] = field(default_factory=dict)
    total: Words | None = None
    survivors: tuple[int, ...] = ()
    confirm: bytes = b""
    confirms: dict[int, bytes] = field(default_factory=dict)
    shares: dict[int, Unmask] = field(default_factory=dict)


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
