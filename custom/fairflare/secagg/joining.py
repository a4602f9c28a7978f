# SPDX-License-Identifier: Apache-2.0
"""How a site joins a session of masked aggregation, and what it can say in it afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.secagg.encoding import digest
from fairflare.secagg.identity import Identity, Trust
from fairflare.secagg.memory import Memory, State, Transition
from fairflare.secagg.params import Opener, Params
from fairflare.secagg.schedule import session_digest
from fairflare.secagg.state import Peer, Random, SiteStep, StepPhase
from fairflare.secagg.transcript import Join, Joining, Keys, Signed, parse_roster, refuse, signed_join, verify_signed


@dataclass
class _Proven:
    """How many events another site's memory has: those that it announced and the session's own, then one a state."""

    begun: int
    states: set[tuple[int, str]] = field(default_factory=set)


class JoinedSite:
    """One site in one session.

    Parameters
    ----------
    identity, trust
        Who the site is, and whom it believes.
    params
        From the site's own copy of the plan.
    memory
        What it has revealed before; see ``memory.py``.
    job
        Name of the session that the server wants to begin.
    cohort_changes
        How many other cohorts of the same statistic the site's policy allows.
    opener
        The sites' cipher, where the plan has statistics encrypted.
    random
        Source of secrets; the operating system's.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        params: Params,
        memory: Memory,
        job: str,
        *,
        cohort_changes: int = 0,
        opener: Opener | None = None,
        random: Random = os.urandom,
    ) -> None:
        self.params = params
        self._identity = identity
        self._trust = trust
        self._memory = memory
        self._job = job
        self._changes = cohort_changes
        self._opener = opener
        self._random = random
        self._channel = X25519PrivateKey.from_private_bytes(random(32))
        self._signing = Ed25519PrivateKey.from_private_bytes(random(32))
        self._joining: Joining | None = None
        self._peers: dict[int, Peer] = {}
        self._steps: dict[int, SiteStep] = {}
        self._last = -1
        self.session = b""
        self.index = 0

    @property
    def roster(self) -> tuple[str, ...]:
        """Names of the session's sites, sorted; empty before :meth:`begin`."""
        return tuple(self._peers[index].name for index in sorted(self._peers))

    def join(self, known: Sequence[str] | None = None) -> bytes:
        """JOIN: fresh session keys, signed with the kit's key, and what is known of other sites' memories.

        ``known`` names those that are told of; by default every site that this one has ever met.
        """
        if self.session:
            refuse("STATE", "a second JOIN of a session that has begun", "a new session, with new keys")
        seq, head = self._memory.head
        seen = [
            (name, *heard)
            for name in (self._memory.peers if known is None else known)
            if (heard := self._memory.peer(name)) is not None
        ]
        join = Join(
            self._job, self.params.encoded(), self._identity.name, self._identity.spki, self._random(32),
            self._channel.public_key().public_bytes_raw(), self._signing.public_key().public_bytes_raw(),
            seq, head, tuple(sorted(seen)), self.params.plan_sha256,
        )  # fmt: skip
        message = join.encoded()
        self._joining = Joining(message, self._identity.sign(signed_join(message)), self._identity.certificate)
        return self._joining.encoded()

    def begin(self, roster: bytes) -> None:
        """Verify everybody's JOIN and begin the session T; raises before anything is kept otherwise."""
        if self._joining is None or self.session:
            refuse("STATE", "a roster before this site joined, or a second one", "join, then one roster")
        joinings = parse_roster(roster)
        self.params.verify_sites(len(joinings))
        if self._opener is not None:
            self._opener.verify_sites(len(joinings))
        joins = [self._verified(one) for one in joinings]
        names = [join.name for join in joins]
        if names != sorted(set(names)):
            refuse("ROSTER", "a roster with a site twice, or out of order", "each site once, sorted by name")
        if [one for one in joinings if one.join == self._joining.join] != [self._joining]:
            refuse("ROSTER", "a roster without this site's own JOIN", "the JOIN that this site sent")
        for keys in ([one.channel_key for one in joins], [one.signing_key for one in joins], [o.spki for o in joins]):
            if len(set(keys)) != len(keys):
                refuse("ROSTER", "one key at two sites", "keys of their own at every site")
        self._verify_seen(joins)
        session = session_digest([one.join for one in joinings])
        # First what can still be refused: a session that does not begin must not end the one that is live.
        self._memory.remember_peers(
            {join.name: (join.seq, join.head) for join in joins if join.name != self._identity.name}
        )
        self._memory.begin(session, self.params.plan_sha256, digest("cohort", names))
        self._proven = {join.name: _Proven(join.seq + 1) for join in joins if join.name != self._identity.name}
        self.session = session
        self.index = 1 + names.index(self._identity.name)
        self._peers = {
            index: Peer(join.name, join.channel_key, join.signing_key) for index, join in enumerate(joins, start=1)
        }

    def _verified(self, joining: Joining) -> Join:
        join = Join.parse(joining.join)
        spki = self._trust.verify_signature(
            join.name, joining.certificate, signed_join(joining.join), joining.signature
        )  # fmt: skip
        if spki != join.spki:
            refuse("CERTIFICATE", f"a JOIN of {join.name} that names another key", "the key of its certificate")
        if join.job != self._job or join.plan_sha256 != self.params.plan_sha256:
            refuse("ROSTER", f"a JOIN of {join.name} for another session or plan", "this session and this plan")
        if join.params != self.params.encoded():
            refuse("PARAMS", f"other parameters at {join.name}", "those that follow from this site's copy of the plan")
        return join

    def _verify_seen(self, joins: Sequence[Join]) -> None:
        for join in joins:
            for name, seq, head in join.seen:
                if name == self._identity.name and not self._memory.has(seq, head):
                    refuse(
                        "ROLLBACK",
                        f"an event of this site's memory that {join.name} has seen and this site does not have",
                        "a memory that nobody has put back",
                        "restore the newest copy of this site's memory; until then it takes part in nothing",
                    )

    def _note(self, one: SiteStep, state: str, index: int) -> None:
        """A site has signed what it may sign only once its memory has an event for it."""
        if index != self.index:
            self._proven[self._peers[index].name].states.add((one.step.number, state))

    def _remember_active(self) -> None:
        """Before a vector leaves: what the others' memories must have from now on, or they were put back."""
        proven = {name: one.begun + len(one.states) for name, one in self._proven.items() if one.states}
        self._memory.remember_active(proven)

    def _verify_enough(self, one: SiteStep, members: Sequence[int] | dict[int, Keys]) -> None:
        sites = len(self._peers)
        least = sites if one.vector.mode == "closed" else self.params.least(sites)
        if len(members) < least:
            refuse(
                "QUORUM",
                f"{len(members)} sites for '{one.vector.label}'",
                f"at least {least} of {sites}" if least < sites else "all sites of the session",
            )

    # -------------------------------------------------------------------------------------------------------- helpers

    def _verify_begun(self) -> None:
        if not self.session:
            refuse("STATE", "a step before the session began", "the roster first; after a restart, join again")

    def _known(self, number: int) -> SiteStep:
        one = self._steps.get(number)
        if one is None:
            refuse("STATE", "a message for a step that is unknown", "a step that this site has keys for")
        return one

    def _step(self, number: int, phase: StepPhase) -> SiteStep:
        self._verify_begun()
        one = self._steps.get(number)
        if one is None or one.phase != phase:
            state = "unknown" if one is None else one.phase
            refuse("STATE", f"a message for a step that is {state}", f"a step that is {phase}")
        return one

    def _signed(self, message: bytes) -> Signed:
        return Signed(message, self._signing.sign(message))

    def _verify_signed(self, index: int, signed: Signed) -> None:
        if index not in self._peers:
            refuse("ROSTER", "a message of a site that is not in the session", "sites of the roster")
        verify_signed(self._peers[index].signing_key, signed, self._name(index))

    def _name(self, index: int) -> str:
        return self._peers[index].name

    def _commit(self, state: State, steps: Sequence[SiteStep], digests: Sequence[bytes]) -> None:
        transitions = []
        for one, found in zip(steps, digests, strict=True):
            cohort = one.survivors or tuple(one.members if one.vector.mode == "closed" else one.held)
            names = [self._name(index) for index in cohort]
            transitions.append(
                Transition(
                    state, self.session, one.step.number, self.params.plan_sha256, one.fl_round, one.vector.label,
                    one.vector.mode, digest("cohort", names), found, self._changes,
                )
            )  # fmt: skip
        self._memory.commit(transitions)
