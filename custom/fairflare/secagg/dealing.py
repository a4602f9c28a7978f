# SPDX-License-Identifier: Apache-2.0
"""How a site deals shares of its secrets, and holds those of others, so that a sum survives dropouts."""

from __future__ import annotations

from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fairflare.secagg import shamir
from fairflare.secagg.joining import JoinedSite
from fairflare.secagg.params import threshold
from fairflare.secagg.schedule import channel_key, dealers_digest, share_commitment, share_context
from fairflare.secagg.state import SiteStep, sha256
from fairflare.secagg.transcript import Dealt, Shares, Signed, parse_dealers, refuse


class DealingSite(JoinedSite):
    """A joined site that deals and holds shares."""

    def deal(self, number: int) -> bytes:
        """SHARES of an open step: both secrets in Shamir shares, one to each member of U0, encrypted to it."""
        one = self._step(number, "keyed")
        if one.dealt is not None:
            return one.dealt.encoded()  # redelivered: the identical bytes
        if one.vector.mode != "open" or one.mask is None or one.self_mask is None:
            refuse("STATE", "a dealing of a closed step", "shares of open steps only")
        t = threshold(len(self._peers))
        shares = [shamir.split(secret, t, list(one.members)) for secret in (one.mask, one.self_mask)]
        ciphers = [
            self._encrypted(one, holder, shares[0][holder] + shares[1][holder])
            for holder in one.members
            if holder != self.index
        ]
        commitments = [
            tuple(share_commitment(kind, one.step, self.index, holder, share) for holder, share in part.items())
            for kind, part in zip(("sk", "b"), shares, strict=True)
        ]
        hashes = tuple(sha256(cipher) for cipher in ciphers)
        message = Shares(one.step, one.keyset, self.index, hashes, commitments[0], commitments[1])
        one.own_share = (shares[0][self.index], shares[1][self.index])
        one.dealt = Dealt(self._signed(message.encoded()), tuple(ciphers))
        return one.dealt.encoded()

    def _encrypted(self, one: SiteStep, holder: int, shares: bytes) -> bytes:
        key = channel_key(
            self._channel, self._peers[holder].channel_key, one.step, one.keyset, self.index, holder
        )  # fmt: skip
        nonce = self._random(12)
        return nonce + AESGCM(key).encrypt(nonce, shares, share_context(one.step, one.keyset, self.index, holder))

    def dealers(self, number: int, message: bytes) -> None:
        """U1 of an open step: who dealt. Opens this site's own shares; a bad one names its dealer and ends the step."""
        one = self._step(number, "keyed")
        if one.own_share is None or one.dealt is None:
            refuse("STATE", "dealers of a step in which this site dealt nothing", "shares first")
        held: dict[int, tuple[bytes, bytes]] = {}
        signed: list[Signed] = []
        for dealt in parse_dealers(message):
            index = self._verify_dealt(one, dealt)
            if index in held:
                refuse("SHARES", "two dealings of one site", "one from each site")
            held[index] = one.own_share if index == self.index else self._opened(one, index, dealt)
            signed.append(dealt.signed)
        if list(held) != sorted(held) or one.dealt.signed not in signed:
            refuse("SHARES", "dealers out of order, or without this site", "this site's own shares among them")
        self._verify_enough(one, list(held))
        one.held, one.phase = held, "dealt"
        one.dealers = dealers_digest(one.keyset, signed)

    def _verify_dealt(self, one: SiteStep, dealt: Dealt) -> int:
        shares = Shares.parse(dealt.signed.message)
        if shares.index not in one.members:
            refuse("SHARES", "shares of a site that sent no keys", "shares of members of U0")
        self._verify_signed(shares.index, dealt.signed)
        if shares.step != one.step or shares.keyset != one.keyset:
            refuse("SHARES", "shares of another step or of another set of keys", "shares of this step")
        size = len(one.members)
        if (len(shares.ciphers), len(shares.key_commitments), len(shares.self_commitments)) != (size - 1, size, size):
            refuse("SHARES", f"too few or too many shares of {self._name(shares.index)}", "one for each member of U0")
        if tuple(sha256(cipher) for cipher in dealt.ciphers) != shares.ciphers:
            refuse("SHARES", f"other ciphertexts than {self._name(shares.index)} signed", "the ones that it signed")
        return shares.index

    def _opened(self, one: SiteStep, dealer: int, dealt: Dealt) -> tuple[bytes, bytes]:
        """The two shares that ``dealer`` dealt to this site, checked against its commitments."""
        members = list(one.members)
        place = members.index(self.index)
        others = [index for index in members if index != dealer]
        cipher = dealt.ciphers[others.index(self.index)]
        key = channel_key(
            self._channel, self._peers[dealer].channel_key, one.step, one.keyset, dealer, self.index
        )  # fmt: skip
        context = share_context(one.step, one.keyset, dealer, self.index)
        try:
            plain = AESGCM(key).decrypt(cipher[:12], cipher[12:], context)
        except InvalidTag:
            self._culprit(one, dealer, "a share that cannot be decrypted")
        pair = plain[: len(plain) // 2], plain[len(plain) // 2 :]
        shares = Shares.parse(dealt.signed.message)
        promised = shares.key_commitments[place], shares.self_commitments[place]
        found = tuple(
            share_commitment(kind, one.step, dealer, self.index, share)
            for kind, share in zip(("sk", "b"), pair, strict=True)
        )
        if found != promised:
            self._culprit(one, dealer, "a share that is not the one committed to")
        return pair

    def _culprit(self, one: SiteStep, dealer: int, got: str) -> NoReturn:
        one.erase()
        refuse("DEALER", f"{got}, from {self._name(dealer)}", "shares that agree with their dealer's commitments")
