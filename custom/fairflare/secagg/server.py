# SPDX-License-Identifier: Apache-2.0
"""The server's half of masked aggregation: it passes messages on, adds masked words, and opens a sum or nothing.

It can be hostile for all that the sites care. What it checks here is for an honest server's sake: that a broken or
lying site is named, and that no wrong sum is taken for a right one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.secagg import shamir
from fairflare.secagg.identity import Trust
from fairflare.secagg.masking import add_masks
from fairflare.secagg.params import Mode, Params, is_payload, threshold
from fairflare.secagg.schedule import (
    agree,
    dealers_digest,
    keyset_digest,
    pair_key,
    self_commitment,
    self_key,
    session_digest,
    share_commitment,
    view_digest,
)
from fairflare.secagg.state import Offer, Sent, ServerStep, Words
from fairflare.secagg.transcript import (
    Dealt,
    Join,
    Joining,
    Keys,
    Shares,
    Signed,
    Step,
    Unmask,
    Upload,
    confirm_message,
    confirms_message,
    dealers_message,
    refuse,
    roster_message,
    signed_join,
    signed_list,
    verify_signed,
)


class ServerSession:
    """The server in one session.

    Parameters
    ----------
    params
        From the server's copy of the plan.
    job
        Name of the session; every site's JOIN must repeat it.
    trust
        Whom the server believes, or ``None``: then the sites alone verify certificates.
    """

    def __init__(self, params: Params, job: str, trust: Trust | None = None) -> None:
        self.params = params
        self.job = job
        self._trust = trust
        self._joinings: dict[str, Joining] = {}
        self._joins: dict[str, Join] = {}
        self._names: tuple[str, ...] = ()
        self._steps: dict[int, ServerStep] = {}
        self._next = 0
        self.session = b""

    # -------------------------------------------------------------------------------------------------------- session

    @property
    def roster(self) -> tuple[str, ...]:
        """Sites of the session, sorted; empty before :meth:`begin`."""
        return self._names

    def join(self, site: str, message: bytes) -> None:
        """Take a site's JOIN; refused if it is not for this session, or not by the site that FLARE authenticated."""
        if self.session:
            refuse("STATE", f"a JOIN from {site} after the session began", "JOINs before it, or a new session")
        joining = Joining.parse(message)
        join = Join.parse(joining.join)
        if join.name != site or join.job != self.job or join.params != self.params.encoded():
            refuse("ROSTER", f"a JOIN from {site} of another site, session or plan", "this session's own parameters")
        if self._trust is not None:
            self._trust.verify_signature(site, joining.certificate, signed_join(joining.join), joining.signature)
        self._joinings[site], self._joins[site] = joining, join

    def begin(self, sites: Sequence[str]) -> bytes:
        """Fix the roster and return the message that every site gets; raises ``FF-SECAGG-SITES`` for too few."""
        if self.session or len(set(sites)) != len(sites) or not set(sites) <= set(self._joinings):
            refuse("STATE", "a second beginning, or sites that did not join", "sites that joined, once")
        self.params.verify_sites(len(sites))
        self._names = tuple(sorted(sites))
        self.session = session_digest([self._joinings[site].join for site in self._names])
        return roster_message([self._joinings[site] for site in self._names])

    def offer(self, label: str, fl_round: int) -> Offer:
        """A new step for a vector."""
        if not self.session:
            refuse("STATE", "a step before the session began", "the roster first")
        number, self._next = self._next, self._next + 1
        step = Step(self.session, number, label)
        self._steps[number] = ServerStep(step, self.params.vector(label), fl_round)
        return Offer(number, label, fl_round)

    # ----------------------------------------------------------------------------------------------------------- keys

    def keys(self, site: str, number: int, message: bytes) -> None:
        """Take a site's KEYS for a step."""
        one, index = self._step(number), self._index(site)
        signed = Signed.parse(message)
        keys = Keys.parse(signed.message)
        self._verify_signed(index, signed)
        if keys.step != one.step or keys.index != index or one.keyset:
            refuse("KEYS", f"keys from {site} of another step or site, or too late", "keys of the step asked for")
        agree(X25519PrivateKey.generate(), keys.public)  # a key of small order would make every other site refuse
        one.keys[index] = signed

    def with_keys(self, number: int) -> tuple[str, ...]:
        """Sites that sent KEYS for a step."""
        return tuple(self._names[index - 1] for index in sorted(self._step(number).keys))

    def keyset(self, number: int) -> bytes:
        """U0: fix the members of a step (everybody whose KEYS are there); the message that they get."""
        one = self._step(number)
        if not one.keyset:
            self._verify_enough(one, one.keys)
            signed = [one.keys[index] for index in sorted(one.keys)]
            one.keyset = signed_list("keyset", signed)
            one.members = {index: Keys.parse(one.keys[index].message) for index in sorted(one.keys)}
        return one.keyset

    # --------------------------------------------------------------------------------------------------------- shares

    def shares(self, site: str, number: int, message: bytes) -> None:
        """Take a site's SHARES for an open step."""
        one, index = self._step(number, "open"), self._index(site)
        dealt = Dealt.parse(message)
        shares = Shares.parse(dealt.signed.message)
        self._verify_signed(index, dealt.signed)
        size = len(one.members)
        right = (shares.step, shares.index, shares.keyset) == (one.step, index, keyset_digest(one.keyset))
        sizes = (len(shares.ciphers), len(shares.key_commitments), len(shares.self_commitments))
        if not right or index not in one.members or sizes != (size - 1, size, size) or one.dealers:
            refuse("SHARES", f"shares from {site} of another step or size, or too late", "one for each member of U0")
        if tuple(hashlib.sha256(cipher).digest() for cipher in dealt.ciphers) != shares.ciphers:
            refuse("SHARES", f"other ciphertexts than {site} signed", "the ones that it signed")
        one.dealt[index] = dealt

    def with_shares(self, number: int) -> tuple[str, ...]:
        """Sites that dealt shares for a step."""
        return tuple(self._names[index - 1] for index in sorted(self._step(number).dealt))

    def dealers(self, number: int) -> bytes:
        """U1: fix the dealers of an open step; the message that they get before they upload."""
        one = self._step(number, "open")
        order = sorted(one.dealt)
        if not one.dealers:
            self._verify_enough(one, order)
            one.dealers = {index: Shares.parse(one.dealt[index].signed.message) for index in order}
            signed = [one.dealt[index].signed for index in order]
            one.dealers_digest = dealers_digest(keyset_digest(one.keyset), signed)
        return dealers_message([one.dealt[index] for index in order])

    # --------------------------------------------------------------------------------------------------------- upload

    def expect(self, number: int, inputs: bytes, query: str) -> None:
        """Work out V, from D of the task as it was sent; only uploads under it are added."""
        one = self._step(number)
        closed = one.vector.mode == "closed"
        if not (one.keyset if closed else one.dealers):
            refuse("STATE", f"a view of '{one.vector.label}' before its members are fixed", "keys and shares first")
        dealers = dealers_digest(keyset_digest(one.keyset), None) if closed else one.dealers_digest
        view = view_digest(one.step, one.vector, dealers, inputs, one.fl_round, query)
        if one.uploads and view != one.view:
            refuse("STATE", f"another view of '{one.vector.label}' after the first upload", "one view for all sites")
        one.view = view

    def view_of(self, number: int) -> bytes:
        """V that uploads of a step must have; empty before :meth:`expect`."""
        return self._step(number).view

    def verify_upload(self, site: str, number: int, message: bytes, words: Sent) -> None:
        """Raise unless this upload can be added: right form, signed, under this view, once. Changes nothing."""
        one, index = self._step(number), self._index(site)
        signed = Signed.parse(message)
        upload = Upload.parse(signed.message)
        self._verify_signed(index, signed)
        able = one.members if one.vector.mode == "closed" else one.dealers
        if index not in able or index in one.uploads or one.survivors or upload.index != index:
            refuse("LATE", f"an upload of {site} that nobody waits for", "one from each site that was asked")
        if upload.view != one.view:
            refuse(
                "VIEW",
                f"an upload of {site} under another view: it worked on other inputs than were sent",
                "the model and totals of this task",
                "check that messages reach the site unchanged (no quantising filters)",
            )
        if not is_payload(words, one.vector) or upload.length != one.vector.length:
            refuse("SHAPE", f"words of {site} that are no '{one.vector.label}'", "the plan's length and word size")
        closed = one.vector.mode == "closed"
        if upload.payload != (hashlib.sha256(words.tobytes()).digest() if closed else b""):
            refuse("PAYLOAD", f"another vector than {site} signed", "the one that it signed")

    def upload(self, site: str, number: int, message: bytes, words: Sent) -> None:
        """Verify an upload and add it. Open steps keep one accumulator, closed ones every site's few words."""
        self.verify_upload(site, number, message, words)
        one, index = self._step(number), self._index(site)
        if one.vector.mode == "closed":
            one.payloads[index] = words
        elif one.total is None:
            one.total = cast("Words", words).copy()
        else:
            one.total += words
        one.uploads[index] = Signed.parse(message)

    # -------------------------------------------------------------------------------------------------- closed openings

    def is_whole(self, number: int) -> bool:
        """Whether every site of the session uploaded to a closed step."""
        one = self._step(number)
        return len(one.uploads) == len(self._names)

    def opening(self, number: int) -> tuple[bytes, list[Sent]]:
        """What sites need to add a closed step up themselves: signed uploads and their words, in order."""
        one = self._step(number, "closed")
        order = sorted(one.uploads)
        return signed_list("survivors", [one.uploads[index] for index in order]), [one.payloads[i] for i in order]

    def opened(self, number: int) -> Words:
        """The sum of a closed step; raises ``FF-SECAGG-QUORUM`` unless all sites of the session are in it."""
        one = self._step(number, "closed")
        if one.vector.cipher:
            refuse("CIPHER", f"'{one.vector.label}' to be opened at the server", "sites, which have its key")
        if not self.is_whole(number):
            refuse(
                "QUORUM", f"{len(one.uploads)} of {len(self._names)} sites in '{one.vector.label}'",
                "all of them: exact statistics are opened over the whole roster or not at all",
            )  # fmt: skip
        total = np.zeros(one.vector.length, dtype=f"<u{one.vector.bits // 8}")
        for words in one.payloads.values():
            total += words
        return total

    # ------------------------------------------------------------------------------------------------------- unmasking

    def survivors(self, number: int) -> bytes:
        """U2: fix the set of uploads of an open step; the message that these sites get."""
        one = self._step(number, "open")
        order = tuple(sorted(one.uploads))
        self._verify_enough(one, order)
        one.survivors = order
        one.confirm = confirm_message(one.view, [(index, one.uploads[index]) for index in order])
        return signed_list("survivors", [one.uploads[index] for index in order])

    def uploaded(self, number: int) -> tuple[str, ...]:
        """Sites whose uploads are in a step."""
        return tuple(self._names[index - 1] for index in sorted(self._step(number).uploads))

    def confirm(self, site: str, number: int, signature: bytes) -> None:
        """Take a survivor's signature over the set of survivors."""
        one, index = self._step(number, "open"), self._index(site)
        if index not in one.survivors or type(signature) is not bytes or len(signature) != 64:
            refuse("CONFIRM", f"a confirmation of {site}, which is no survivor", "confirmations of survivors")
        self._verify_signed(index, Signed(one.confirm, signature))
        one.confirms[index] = signature

    def confirms(self, number: int) -> bytes:
        """What survivors get before they unmask; raises ``FF-SECAGG-QUORUM`` for fewer than t confirmations."""
        one = self._step(number, "open")
        least = threshold(len(self._names))
        if len(one.confirms) < least:
            self._too_few(one, len(one.confirms), least, "confirmations")
        return confirms_message(sorted(one.confirms.items()))

    def unmask(self, site: str, number: int, message: bytes) -> None:
        """Take a survivor's shares, each checked against its dealer's commitments; a wrong one is refused by name."""
        one, index = self._step(number, "open"), self._index(site)
        signed = Signed.parse(message)
        found = Unmask.parse(signed.message)
        self._verify_signed(index, signed)
        lost = self._lost(one)
        confirm = hashlib.sha256(one.confirm).digest()
        sizes = (len(found.self_shares), len(found.key_shares))
        if (found.view, found.confirm, sizes) != (one.view, confirm, (len(one.survivors), len(lost))):
            refuse("UNMASK", f"shares of {site} for another set of survivors", "shares for the set that it confirmed")
        if index not in one.survivors:
            refuse("UNMASK", f"shares of {site}, which is no survivor", "shares of survivors")
        holder = list(one.members).index(index)
        for kind, dealers, shares in (("b", one.survivors, found.self_shares), ("sk", lost, found.key_shares)):
            for dealer, share in zip(dealers, shares, strict=True):
                promised = one.dealers[dealer]
                promises = promised.self_commitments if kind == "b" else promised.key_commitments
                if share_commitment(kind, one.step, dealer, index, share) != promises[holder]:
                    refuse("CULPRIT", f"a share from {site} that was not dealt to it", "the shares that it was dealt")
        one.shares[index] = found

    def unmasked(self, number: int) -> tuple[Words, tuple[str, ...]]:
        """The sum of an open step over its survivors, and who they are; raises before anything is opened otherwise."""
        one = self._step(number, "open")
        least = threshold(len(self._names))
        if one.shares and one.total is None:
            refuse("STATE", f"a second opening of '{one.vector.label}'", "one opening of each step")
        if len(one.shares) < least or one.total is None:
            self._too_few(one, len(one.shares), least, "sets of shares")
        holders = sorted(one.shares)[:least]
        coefficients = shamir.lagrange_at_zero(holders)
        minus: list[bytes] = []
        plus: list[bytes] = []
        for place, dealer in enumerate(one.survivors):
            secret = self._recovered(one, dealer, {h: one.shares[h].self_shares[place] for h in holders}, coefficients)
            if self_commitment(one.step, dealer, secret) != one.members[dealer].commitment:
                self._culprit(dealer, "self-mask")
            minus.append(self_key(secret, one.view, dealer))
        for place, dealer in enumerate(self._lost(one)):
            secret = self._recovered(one, dealer, {h: one.shares[h].key_shares[place] for h in holders}, coefficients)
            self._add_lost(one, dealer, secret, plus, minus)
        add_masks(one.total, plus, minus)
        sites = tuple(self._names[index - 1] for index in one.survivors)
        total, one.total = one.total, None
        return total, sites

    def _recovered(
        self, one: ServerStep, dealer: int, shares: Mapping[int, bytes], coefficients: Mapping[int, int]
    ) -> bytes:
        try:
            return shamir.combine(shares, coefficients)
        except Exception:
            self._culprit(dealer, "secret")

    def _add_lost(self, one: ServerStep, dealer: int, secret: bytes, plus: list[bytes], minus: list[bytes]) -> None:
        """Take what every survivor added for its pair with a lost site out again."""
        private = X25519PrivateKey.from_private_bytes(secret)
        public = one.members[dealer].public
        if private.public_key().public_bytes_raw() != public:
            self._culprit(dealer, "mask key")
        for index in one.survivors:
            other = one.members[index].public
            key = pair_key(agree(private, other), one.view, (dealer, public), (index, other))
            (minus if index < dealer else plus).append(key)

    def _culprit(self, dealer: int, what: str) -> NoReturn:
        refuse(
            "CULPRIT",
            f"shares of {self._names[dealer - 1]} that do not give the {what} it committed to",
            "a site that deals shares of its own secrets",
            "leave that site out until it has been looked at; nothing was opened",
        )

    # --------------------------------------------------------------------------------------------------------- helpers

    def forget(self, fl_round: int) -> None:
        """Drop everything about steps of this or an earlier round."""
        self._steps = {number: one for number, one in self._steps.items() if one.fl_round > fl_round}

    def _lost(self, one: ServerStep) -> list[int]:
        return [index for index in one.dealers if index not in one.survivors]

    def _step(self, number: int, mode: Mode | None = None) -> ServerStep:
        one = self._steps.get(number)
        if one is None or mode not in (None, one.vector.mode):
            refuse("STATE", "a step that is unknown or forgotten, or of the other mode", "a step of the live rounds")
        return one

    def _index(self, site: str) -> int:
        if site not in self._names:
            refuse("ROSTER", f"a message of {site}, which is not in the session", "sites of the roster")
        return self._names.index(site) + 1

    def _verify_signed(self, index: int, signed: Signed) -> None:
        name = self._names[index - 1]
        verify_signed(self._joins[name].signing_key, signed, name)

    def _verify_enough(self, one: ServerStep, members: Sequence[int] | Mapping[int, Signed]) -> None:
        sites = len(self._names)
        least = sites if one.vector.mode == "closed" else self.params.least(sites)
        if len(members) < least:
            self._too_few(one, len(members), least, "sites")

    def _too_few(self, one: ServerStep, found: int, least: int, what: str) -> NoReturn:
        refuse(
            "QUORUM",
            f"{found} {what} for '{one.vector.label}'",
            f"at least {least} of {len(self._names)} sites",
            "nothing was opened; the next round can go on",
        )
