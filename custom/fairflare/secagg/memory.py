# SPDX-License-Identifier: Apache-2.0
"""What a site must remember about its masks across restarts; ``fairflare.privacy.reveals`` keeps it on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fairflare.secagg.params import Mode

State = Literal["STARTED", "UPLOADED", "SIGNED", "REVEALED"]


@dataclass(frozen=True)
class Transition:
    """A step that goes on: which one of which session, to which state, about what.

    Attributes
    ----------
    state
        ``STARTED`` (keys leave), ``UPLOADED`` (the masked vector leaves), and in open mode ``SIGNED`` (the site agrees
        to a set of survivors) and ``REVEALED`` (its shares leave).
    session, step
        T (32 bytes) and r.
    plan_sha256, round, label, mode
        What the vector is.
    cohort
        Digest (32 bytes) of the sites that it is about.
    digest
        What the state binds, 32 bytes: keys, V, the survivors, the shares.
    cohort_changes
        How many other cohorts of the same label the site's policy allows, for ``UPLOADED`` in closed mode.
    """

    state: State
    session: bytes
    step: int
    plan_sha256: str
    round: int
    label: str
    mode: Mode
    cohort: bytes
    digest: bytes
    cohort_changes: int = 0

    @property
    def query(self) -> tuple[str, int, str]:
        """What can be asked once only: plan, round, label."""
        return self.plan_sha256, self.round, self.label


class Memory(Protocol):
    """The memory of one data set at one site. Every method raises ``SecaggError`` rather than forget."""

    @property
    def head(self) -> tuple[int, bytes]:
        """Number and hash of the newest event."""
        ...

    def has(self, seq: int, head: bytes) -> bool:
        """Whether this event is in the memory's own chain."""
        ...

    def begin(self, session: bytes, plan_sha256: str, roster_digest: bytes) -> None:
        """Begin a session; every earlier one is over."""
        ...

    def commit(self, transitions: Sequence[Transition]) -> None:
        """Write all of them, on disk before this returns, or none."""
        ...

    def peer(self, name: str) -> tuple[int, bytes] | None:
        """The newest event of another site's memory that this site was told of."""
        ...

    @property
    def peers(self) -> tuple[str, ...]:
        """Names of all sites of which :meth:`peer` knows something, sorted."""
        ...

    def remember_peers(self, heads: Mapping[str, tuple[int, bytes]]) -> None:
        """Remember what other sites say about their memories."""
        ...

    def remember_active(self, least: Mapping[str, int]) -> None:
        """Remember how many events other sites' memories have at least, by what they signed since."""
        ...
