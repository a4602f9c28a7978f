# SPDX-License-Identifier: Apache-2.0
"""Masks at the server: which protocol messages go with the next task, and what replies add to which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

import numpy as np

from fairflare.engine.masked import (
    DECIDING,
    DISTANCES,
    KEEP,
    Acting,
    inputs_digest,
    is_noised,
    label_steps,
    opening_digest,
    params_of,
    update_codec,
)
from fairflare.engine.masked_site import verify_bits, verify_each_once
from fairflare.engine.messages import JOIN, Layout, Message, Reply
from fairflare.errors import RoundError
from fairflare.methods import UPDATE
from fairflare.secagg.envelope import UP, Item, offer_data, opening_data, pack, unpack, witness_data
from fairflare.secagg.fixedpoint import UPDATE_BITS, StatisticsCodec
from fairflare.secagg.identity import Trust
from fairflare.secagg.params import Cipher, is_payload
from fairflare.secagg.protection import Opened
from fairflare.secagg.server import ServerSession

RISK = "risk_sums"
#: Kind of a message down -> kind of the answer to it.
_ANSWERS = {"offer": "keys", "keyset": "shares", "survivors": "confirm", "confirms": "unmask"}


class MaskedServer:
    """The server's masks in one session of a job.

    Parameters
    ----------
    layout
        The job's vectors.
    trust
        Whom the server believes; a site that it would not is refused by name before the others see it.
    job
        Name of the session.
    cipher
        For a plan with encrypted statistics: what sites encrypt with. Nothing here can decrypt.
    """

    def __init__(self, layout: Layout, trust: Trust, job: str, cipher: Cipher | None = None) -> None:
        self.layout = layout
        self.params = params_of(layout, trust.kind, cipher)
        self._cipher = cipher
        self.session = ServerSession(self.params, job, trust)
        self._steps: dict[str, int] = {}
        self._items: list[Item] = []
        self._leaving: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._opened: dict[str, Item] = {}
        self._state = b""
        self._update = -1
        self._signed = b""
        self._witness = Item("witness", -1, b"")
        self._owed: dict[str, Item] = {}

    # --------------------------------------------------------------------------------------- what goes with a message

    def begin(self, sites: Sequence[str]) -> None:
        """Fix the roster; it goes with the next message."""
        if self._cipher is not None:
            self._cipher.verify_sites(len(sites))
        self._items.append(Item("roster", 0, self.session.begin(sites)))

    def offer(self, labels: Iterable[str], fl_round: int) -> None:
        """Begin a step for each label; sites answer the next message with keys."""
        for label in labels:
            offer = self.session.offer(label, fl_round)
            self._steps[label] = offer.number
            self._items.append(Item("offer", offer.number, offer_data(offer)))

    def keyset_closed(self, labels: Iterable[str]) -> None:
        """Let the next task bring these statistics, if every site of the session has keys for them."""
        for label in label_steps(dict.fromkeys(labels), self.params, "closed"):
            if self.has_keys([label], self.session.roster):
                number = self._steps[label]
                self._items.append(Item("keyset", number, self.session.keyset(number)))
                self._leaving[label] = number

    def keyset_open(self) -> None:
        """Fix who is in the update's step; sites answer the next message with shares."""
        number = self._steps[UPDATE]
        self._items.append(Item("keyset", number, self.session.keyset(number)))

    def dealers(self) -> None:
        """Let the next task bring the update: everybody who dealt shares is told who did."""
        number = self._steps[UPDATE]
        self._items.append(Item("dealers", number, self.session.dealers(number)))
        self._leaving[UPDATE] = number

    def opening(self, label: str) -> None:
        """Give every site what it needs to add a closed step up itself."""
        number = self._steps[label]
        item = Item("opening", number, opening_data(*self.session.opening(number)))
        self._items.append(item)
        self._opened[label] = item

    def pass_on(self, label: str, opened: Mapping[str, Opened]) -> Acting | None:
        """Let sites add a closed step of the last message up, if all of them sent their part (``None`` otherwise).

        Returns what acts from now on: the sums, or where only sites can know them the digest of what they open.
        """
        number = self._asked.get(label, -1)
        sealed = label in self._asked and bool(self.params.vector(label).cipher)
        if label not in opened and not (sealed and self.session.is_whole(number)):
            return None
        self.opening(label)
        return opening_digest(self._opened[label]) if sealed else opened[label].total

    def reopen(self) -> None:
        """Give what was opened last once more: a site may have missed the task that it went with."""
        self._items += [item for item in self._opened.values() if item not in self._items]

    def survivors(self) -> None:
        """Fix which updates will be summed; sites answer the next message with their consent."""
        number = self._steps[UPDATE]
        self._signed = self.session.survivors(number)
        self._items.append(Item("survivors", number, self._signed))
        self._update = number

    def confirms(self) -> None:
        """Pass the consents on; sites answer the next message with shares."""
        confirms = self.session.confirms(self._update)
        self._items.append(Item("confirms", self._update, confirms))
        self._witness = Item("witness", self._update, witness_data(self._signed, confirms))

    def owe(self, sites: Iterable[str]) -> None:
        """Remember who was in the last sum and was not there when it was opened: they must be shown that they were."""
        self._owed.update(dict.fromkeys(sites, self._witness))

    def show(self, sites: Iterable[str]) -> None:
        """Show these sites, with the next task, which sums they were in without knowing it."""
        owed = [self._owed[site] for site in sorted(sites) if site in self._owed]
        self._items += dict.fromkeys(owed)

    def shown(self, sites: Iterable[str]) -> None:
        """Forget what these sites were owed: they did the task that it went with."""
        for site in sites:
            self._owed.pop(site, None)

    def addressed(self, message: Message, acting: Mapping[str, Acting]) -> tuple[Message, MaskedSums]:
        """The message with everything queued for it, and what its replies are added to."""
        message = replace(message, protocol=pack(self._items) if self._items else b"")
        bound = self._openings
        if message.text.get("optimizer") == KEEP:
            bound["state"] = self._state
        for number in self._leaving.values():
            self.session.expect(number, inputs_digest(message, acting, bound), message.task)
        if UPDATE in self._leaving:
            self._state = self.session.view_of(self._leaving[UPDATE])
        sums = MaskedSums(self, dict(self._leaving), self._answers(message.task))
        self._asked = dict(self._leaving)
        self._items, self._leaving = [], {}
        return message, sums

    @property
    def _openings(self) -> dict[str, bytes]:
        return {label: opening_digest(item) for label, item in self._opened.items() if label in DECIDING}

    def _answers(self, task: str) -> set[tuple[str, int]]:
        """Kind and step of every protocol message that an answer to the next message must hold."""
        found = {("upload", number) for number in self._leaving.values()}
        for item in self._items:
            if item.kind in _ANSWERS and not (item.kind == "keyset" and item.number in self._leaving.values()):
                found.add((_ANSWERS[item.kind], item.number))
        return found | ({("join", 0)} if task == JOIN else set())

    def drop_queue(self) -> None:
        """Forget what was to go with the next message: the round is lost."""
        self._items, self._leaving, self._steps = [], {}, {}

    def drop_steps(self) -> None:
        """Forget steps that were begun; what else is queued stays."""
        self._items = [item for item in self._items if item.kind not in ("offer", "keyset")]
        self._steps, self._leaving = {}, {}

    # --------------------------------------------------------------------------------------------------- what is known

    def has_keys(self, labels: Iterable[str], sites: Iterable[str]) -> bool:
        """Whether all ``sites`` sent keys for the newest step of each label."""
        wanted = set(sites)
        return all(
            label in self._steps and wanted <= set(self.session.with_keys(self._steps[label])) for label in labels
        )

    def has_shares(self, sites: Iterable[str]) -> bool:
        """Whether all ``sites`` dealt shares for the newest step of the update."""
        return UPDATE in self._steps and set(sites) <= set(self.session.with_shares(self._steps[UPDATE]))

    def unmasked(self) -> tuple[dict[str, Opened], float]:
        """Weighted means over the survivors (weight 1) of the update and its parts; and their part of all weights."""
        words, sites = self.session.unmasked(self._update)
        means, weight = update_codec(self.layout).decode(words.astype(np.uint32, copy=False), len(sites))
        share = weight / (1 << UPDATE_BITS)
        return {label: Opened(mean, 1.0, sites) for label, mean in means.items()}, share

    def closed(self, label: str, number: int) -> Opened:
        """The sum of a closed step over the whole roster; raises while a site is missing."""
        sites = self.session.roster
        total = StatisticsCodec(len(sites)).decode(self.session.opened(number).astype(np.uint64, copy=False))
        if label == "cells":
            verify_bits(total, len(sites))
        if label == DISTANCES:
            verify_each_once(total, len(sites))
        if (total < 0).any() and not is_noised(self.layout.plan, label):
            raise RoundError(
                "FF-ROUND-RANGE",
                got=f"a negative sum in '{label}'",
                expected="sums of counts, losses or probabilities",
                next_step="a site sends what cannot be; masks hide which one: compare the sites' own logs",
            )
        return Opened(total, float(len(sites)), sites)


class MaskedSums:
    """Replies to one message: masked vectors by step, and protocol messages."""

    def __init__(self, masks: MaskedServer, numbers: Mapping[str, int], answers: Set[tuple[str, int]]) -> None:
        self._masks = masks
        self._numbers = numbers
        self._answers = answers

    def check(self, site: str, reply: Reply) -> None:
        """Refuse other vectors than were asked for, any weight in clear, and whatever the protocol does not allow."""
        if set(reply.payloads) != set(self._numbers):
            raise _refused("KEYS", "other vectors than were asked for", ", ".join(self._numbers) or "none")
        session, items = self._masks.session, unpack(reply.protocol, UP)
        if sorted((item.kind, item.number) for item in items) != sorted(self._answers):
            wanted = ", ".join(sorted({kind for kind, _ in self._answers})) or "none"
            raise _refused("KEYS", "other protocol messages than were asked for", f"each once: {wanted}")
        uploads = self._uploads(items)
        for label, number in self._numbers.items():
            payload = reply.payloads[label]
            if payload.weight is not None:
                raise _refused("WEIGHT", f"a weight of '{label}' in clear", "a weight inside the masked vector")
            if not is_payload(payload.values, self._masks.params.vector(label)):
                raise _refused("SHAPE", f"no masked words of '{label}'", "the length and the type of the plan")
            session.verify_upload(site, number, uploads[number], payload.values)
        for item in items:
            self._take(site, item)

    def _uploads(self, items: Sequence[Item]) -> dict[int, bytes]:
        return {item.number: item.data for item in items if item.kind == "upload"}

    def _take(self, site: str, item: Item) -> None:
        session = self._masks.session
        if item.kind == "join":
            session.join(site, item.data)
        elif item.kind == "keys":
            session.keys(site, item.number, item.data)
        elif item.kind == "shares":
            session.shares(site, item.number, item.data)
        elif item.kind == "confirm":
            session.confirm(site, item.number, item.data)
        elif item.kind == "unmask":
            session.unmask(site, item.number, item.data)

    def add(self, site: str, reply: Reply) -> None:
        """Add the masked words to their steps."""
        uploads = self._uploads(unpack(reply.protocol, UP))
        for label, number in self._numbers.items():
            self._masks.session.upload(site, number, uploads[number], reply.payloads[label].values)

    def opened(self) -> Mapping[str, Opened]:
        """Statistics of which every site sent its part; an update is opened by unmasking only, ciphertexts never."""
        session, params = self._masks.session, self._masks.params
        return {
            label: self._masks.closed(label, number)
            for label, number in self._numbers.items()
            if label != UPDATE and not params.vector(label).cipher and session.is_whole(number)
        }


def _refused(code: str, got: str, expected: str) -> RoundError:
    return RoundError(
        f"FF-ROUND-{code}",
        got=got,
        expected=expected,
        next_step="check that server and sites run the same version and plan; look at the site's own log",
    )
