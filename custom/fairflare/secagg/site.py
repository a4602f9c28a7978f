# SPDX-License-Identifier: Apache-2.0
"""A site's half of masked aggregation: a state machine, message in, message out.

Nothing that the server says is believed: names, keys, sets and views are checked against the site's own, and whatever
does not fit raises :class:`~fairflare.errors.SecaggError` before anything leaves. Every answer is committed to the
site's memory first. Secrets of a step live in this process only, are erased after their use, and never come back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fairflare.secagg.dealing import DealingSite
from fairflare.secagg.masking import add_masks
from fairflare.secagg.params import Opener, VectorParams, is_payload, is_words, threshold
from fairflare.secagg.schedule import (
    agree,
    dealers_digest,
    keyset_digest,
    pair_key,
    self_commitment,
    self_key,
    view_digest,
)
from fairflare.secagg.state import Offer, Sent, SiteStep, StepPhase, Words, sha256
from fairflare.secagg.transcript import (
    Keys,
    Signed,
    Step,
    Unmask,
    Upload,
    confirm_message,
    parse_confirms,
    parse_signed_list,
    refuse,
)


class SiteSession(DealingSite):
    """One site in one session; see :class:`~fairflare.secagg.joining.JoinedSite` for its parameters."""

    def vector(self, number: int) -> VectorParams:
        """The vector of a step that this site has keys for; raises ``FF-SECAGG-STATE`` otherwise."""
        return self._known(number).vector

    def round_of(self, number: int) -> int:
        """The round of training that a step belongs to."""
        return self._known(number).fl_round

    def view_of(self, number: int) -> bytes:
        """V under which this site uploaded in a step; empty before."""
        return self._known(number).view

    def survivors(self, number: int) -> tuple[str, ...]:
        """Names of the sites whose uploads this site confirmed in a step; nobody's before."""
        return tuple(self._name(index) for index in self._known(number).survivors)

    def is_ready(self, number: int) -> bool:
        """Whether a vector can be uploaded in this step now."""
        one = self._steps.get(number)
        return one is not None and one.phase == ("keyed" if one.vector.mode == "closed" else "dealt")

    # ----------------------------------------------------------------------------------------------------------- keys

    def keys(self, offers: Sequence[Offer]) -> list[bytes]:
        """KEYS for each offered step: a fresh mask key and self-mask from the operating system."""
        self._verify_begun()
        started: list[SiteStep] = []
        for offer in offers:
            last = started[-1].step.number if started else self._last
            if type(offer.number) is not int or not last < offer.number < 2**64:
                refuse("STEP", "a step number that is not larger than the last one", "64-bit numbers that only grow")
            started.append(self._started(offer))
        self._commit("STARTED", started, [one.own.digest for one in started])
        for one in started:
            self._steps[one.step.number] = one
            self._last = one.step.number
        return [one.own.encoded() for one in started]

    def _started(self, offer: Offer) -> SiteStep:
        vector = self.params.vector(offer.label)
        step = Step(self.session, offer.number, offer.label)
        mask, self_mask = self._random(32), self._random(32)
        public = X25519PrivateKey.from_private_bytes(mask).public_key().public_bytes_raw()
        keys = Keys(step, self.index, public, self_commitment(step, self.index, self_mask))
        return SiteStep(step, vector, offer.fl_round, mask, self_mask, self._signed(keys.encoded()))

    def keyset(self, number: int, message: bytes) -> None:
        """U0 of a step: everybody's KEYS, each signed by its site; closed steps need the whole roster."""
        again = self._steps.get(number)
        if again is not None and again.phase == "keyed" and again.keyset == keyset_digest(message):
            return  # redelivered
        one = self._step(number, "started")
        members: dict[int, Keys] = {}
        for signed in parse_signed_list("keyset", message):
            keys = Keys.parse(signed.message)
            self._verify_signed(keys.index, signed)
            if keys.step != one.step or keys.index in members:
                refuse("KEYS", "keys of another step, or two of one site", "one KEYS of this step from each site")
            members[keys.index] = keys
        self._verify_members(one, members)
        for index in members:
            self._note(one, "STARTED", index)
        one.keyset, one.members, one.phase = keyset_digest(message), members, "keyed"

    def _verify_members(self, one: SiteStep, members: dict[int, Keys]) -> None:
        if list(members) != sorted(members) or members.get(self.index) != Keys.parse(one.own.message):
            refuse("KEYS", "a set of keys out of order, or without this site's own", "this site's own keys among them")
        if len({keys.public for keys in members.values()}) != len(members):
            refuse("KEYS", "one key at two sites", "keys of their own at every site")
        if one.mask is not None:  # a key of small order is refused now: later the vector would count as used
            own = X25519PrivateKey.from_private_bytes(one.mask)
            for index, keys in members.items():
                if index != self.index:
                    agree(own, keys.public)
        self._verify_enough(one, members)

    # ---------------------------------------------------------------------------------------------------------- upload

    def view(self, number: int, inputs: bytes, query: str) -> bytes:
        """V of a step, given D; a closed step needs its key set, an open one its dealers."""
        one = self._steps.get(number)
        ready: StepPhase = "keyed" if one is not None and one.vector.mode == "closed" else "dealt"
        one = self._step(number, ready)
        dealers = dealers_digest(one.keyset, None) if one.vector.mode == "closed" else one.dealers
        return view_digest(one.step, one.vector, dealers, inputs, one.fl_round, query)

    def upload(self, vectors: Sequence[tuple[int, Words]], inputs: bytes, query: str) -> list[Signed]:
        """Mask each (step number, words) in place and sign UP for it; all of one task are committed together.

        What a vector with a cipher is sent as is then to be had from :meth:`sealed`.

        Parameters
        ----------
        vectors
            Encoded words by step: uint32 or uint64, one-dimensional, as long as the plan says.
        inputs
            D: digest of every input of the local work.
        query
            What was asked, for the view. The memory of cohorts goes by the vector's label.
        """
        self._verify_begun()
        steps: list[SiteStep] = []
        views: list[bytes] = []
        for number, words in vectors:
            view = self.view(number, inputs, query)
            one = self._steps[number]
            self._opener_of(one.vector)
            if not is_words(words, one.vector) or not words.flags.writeable or any(one is other for other in steps):
                refuse("SHAPE", f"words that are no '{one.vector.label}'", "the plan's length and word size")
            steps.append(one)
            views.append(view)
        self._remember_active()
        self._commit("UPLOADED", steps, views)
        result = []
        for one, view, (_, words) in zip(steps, views, vectors, strict=True):
            self._mask(one, view, words)
            closed = one.vector.mode == "closed"
            opener = self._opener_of(one.vector)
            sent: Sent = words
            if opener is not None:
                sent = one.sealed = opener.encrypt(words.astype(np.uint64, copy=False))
            payload = sha256(sent.tobytes()) if closed else b""
            one.view, one.phase = view, "uploaded"
            one.upload = self._signed(Upload(view, self.index, one.vector.length, payload).encoded())
            if closed:  # nothing is left to reveal
                one.mask = one.self_mask = None
            result.append(one.upload)
        return result

    def sealed(self, number: int, words: Words) -> Sent:
        """What the masked ``words`` of an uploaded step travel as: themselves, or once, their encrypted form."""
        one = self._known(number)
        if not one.vector.cipher:
            return words
        sealed, one.sealed = one.sealed, None
        if sealed is None:
            refuse("STATE", "ciphertexts of a step without an upload, or that were fetched", "the upload first, once")
        return sealed

    def _opener_of(self, vector: VectorParams) -> Opener | None:
        """The cipher of a vector that has one; ``FF-SECAGG-CIPHER`` for another one than the parameters name."""
        if not vector.cipher:
            return None
        if self._opener is None or self._opener.fingerprint != vector.cipher:
            refuse("CIPHER", f"'{vector.label}' without its cipher", "the cipher that this site's JOIN named")
        return self._opener

    def _mask(self, one: SiteStep, view: bytes, words: Words) -> None:
        if one.mask is None or one.self_mask is None:
            refuse("STATE", "a step whose secrets are erased", "a new step")
        own = X25519PrivateKey.from_private_bytes(one.mask)
        mine = (self.index, one.members[self.index].public)
        plus: list[bytes] = []
        minus: list[bytes] = []
        closed = one.vector.mode == "closed"
        for index in one.members if closed else one.held:
            if index != self.index:
                other = one.members[index].public
                key = pair_key(agree(own, other), view, mine, (index, other))
                (plus if self.index < index else minus).append(key)
        if not closed:
            plus.append(self_key(one.self_mask, view, self.index))
        add_masks(words, plus, minus)

    def opening(self, number: int, uploads: bytes, payloads: Sequence[Sent]) -> Words:
        """The sum of a closed step, added up by this site itself from everybody's signed upload (rule 11)."""
        one = self._steps.get(number)
        if one is None or one.phase != "uploaded" or one.vector.mode != "closed":
            refuse("STATE", "an opening of a step to which this site gave nothing", "a step that it uploaded")
        signed = parse_signed_list("survivors", uploads)
        self._verify_uploads(one, signed, payloads)
        if [Upload.parse(item.message).index for item in signed] != list(one.members):
            refuse("QUORUM", "an opening without all sites", "every site of the session")
        opener = self._opener_of(one.vector)
        if opener is not None:
            total = opener.total([item.astype(np.uint8, copy=False) for item in payloads], one.vector.length)
        else:
            total = np.zeros(one.vector.length, dtype=payloads[0].dtype)
            for words in payloads:
                total += words
        one.erase()
        return total

    def _verify_uploads(self, one: SiteStep, signed: Sequence[Signed], payloads: Sequence[Sent] | None) -> None:
        if payloads is not None and len(payloads) != len(signed):
            refuse("OPENING", "signatures without vectors, or vectors without signatures", "one of each for each site")
        last = 0
        for place, item in enumerate(signed):
            upload = Upload.parse(item.message)
            self._verify_signed(upload.index, item)
            if upload.view != one.view or upload.length != one.vector.length or upload.index <= last:
                refuse("VIEW", f"an upload of {self._name(upload.index)} under another view", "the view of this site")
            if payloads is not None:
                words = payloads[place]
                if not is_payload(words, one.vector) or sha256(words.tobytes()) != upload.payload:
                    refuse("OPENING", f"another vector than {self._name(upload.index)} signed", "the one it signed")
            last = upload.index
            self._note(one, "UPLOADED", upload.index)
        if one.upload is None or one.upload not in signed:
            refuse("SURVIVORS", "a set of uploads without this site's own", "this site's upload among them")

    # --------------------------------------------------------------------------------------------------------- unmask

    def confirm(self, number: int, survivors: bytes) -> bytes:
        """CONFIRM: agree, once, to the set of uploads that will be summed; returns the signature only."""
        one = self._step(number, "uploaded")
        if one.vector.mode != "open":
            refuse("STATE", "a confirmation of a closed step", "open steps only")
        signed = parse_signed_list("survivors", survivors)
        self._verify_uploads(one, signed, None)
        found = [(Upload.parse(item.message).index, item) for item in signed]
        if any(index not in one.held for index, _ in found):
            refuse("SURVIVORS", "an upload of a site that dealt no shares", "survivors among the dealers")
        self._verify_enough(one, [index for index, _ in found])
        message = confirm_message(one.view, found)
        self._commit("SIGNED", [one], [sha256(message)])
        one.confirm, one.survivors, one.phase = message, tuple(index for index, _ in found), "signed"
        return self._signing.sign(message)

    def witness(self, number: int, survivors: bytes, confirms: bytes) -> tuple[str, ...]:
        """Who was in the sum of a step that this site uploaded to, as t of them confirmed; signs and reveals nothing.

        For a site that was not there when the others confirmed. Nobody, for a step that it gave nothing to, or whose
        sum went without it.
        """
        one = self._steps.get(number)
        signed = parse_signed_list("survivors", survivors)
        if one is None or one.upload is None or one.upload not in signed or one.vector.mode != "open":
            return ()
        self._verify_uploads(one, signed, None)
        found = [(Upload.parse(item.message).index, item) for item in signed]
        indices = [index for index, _ in found]
        self._verify_enough(one, indices)
        self._verify_confirms(one, confirms, confirm_message(one.view, found), indices)
        return tuple(self._name(index) for index in indices)

    def _verify_confirms(self, one: SiteStep, confirms: bytes, message: bytes, survivors: Collection[int]) -> None:
        confirmed = set()
        for index, signature in parse_confirms(confirms):
            if index not in survivors or index in confirmed:
                refuse("CONFIRM", "a confirmation of a site that is no survivor, or two of one", "survivors, each once")
            self._verify_signed(index, Signed(message, signature))
            self._note(one, "SIGNED", index)
            confirmed.add(index)
        least = threshold(len(self._peers))
        if len(confirmed) < least:
            refuse("CONFIRM", f"{len(confirmed)} confirmations of the same survivors", f"at least {least}")

    def unmask(self, number: int, confirms: bytes) -> bytes:
        """UNMASK: this site's shares, once, after at least t survivors confirmed the very same set."""
        one = self._step(number, "signed")
        self._verify_confirms(one, confirms, one.confirm, one.survivors)
        lost = [index for index in one.held if index not in one.survivors]
        message = Unmask(
            one.view, sha256(one.confirm), tuple(one.held[index][1] for index in one.survivors),
            tuple(one.held[index][0] for index in lost),
        ).encoded()  # fmt: skip
        self._remember_active()
        self._commit("REVEALED", [one], [sha256(message)])
        one.erase()
        return self._signed(message).encoded()

    def end_round(self, fl_round: int) -> None:
        """Erase the secrets of every step of this or an earlier round."""
        for one in self._steps.values():
            if one.fl_round <= fl_round:
                one.erase()
