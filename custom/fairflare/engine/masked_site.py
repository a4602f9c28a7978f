# SPDX-License-Identifier: Apache-2.0
"""Masks at the site: runs the protocol's half beside the site's work, and turns its vectors into masked words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fairflare.data.manifest import SiteData
from fairflare.engine.cells import CellRule, Kept
from fairflare.engine.counted import CountedUpdates
from fairflare.engine.incoming import refused
from fairflare.engine.masked import (
    ACT,
    DECIDING,
    DISTANCES,
    KEEP,
    TOTALS,
    Acting,
    coarse_records,
    inputs_digest,
    is_noised,
    label_steps,
    masking_of,
    oldest_totals,
    opening_digest,
    params_of,
    sums_in,
    update_codec,
)
from fairflare.engine.messages import JOIN, Layout, Message
from fairflare.errors import SecaggError
from fairflare.fairness.groups import Floats
from fairflare.methods import UPDATE
from fairflare.secagg.envelope import DOWN, Item, pack, parse_offer, parse_opening, parse_witness, unpack
from fairflare.secagg.fixedpoint import StatisticsCodec
from fairflare.secagg.identity import Identity, Trust
from fairflare.secagg.memory import Memory
from fairflare.secagg.params import Opener
from fairflare.secagg.protection import Payload, SiteProtection, VectorSpec, Weighted
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Words
from fairflare.secagg.transcript import refuse
from fairflare.seeds import seed_for

if TYPE_CHECKING:
    from fairflare.engine.private import Counted


@dataclass(frozen=True)
class Masks:
    """What a site needs for masks: who it is, whom it believes, what it revealed before, and what its policy allows.

    ``cohort_changes``: other cohorts of the same statistic that the policy allows. ``opener``: the cipher that the
    sites share, for a plan with encrypted statistics.
    """

    identity: Identity
    trust: Trust
    memory: Memory
    cohort_changes: int = 0
    opener: Opener | None = None


class MaskedSite(SiteProtection):
    """One site's masks in one job; a new session at every ``join``.

    Parameters
    ----------
    name, layout
        The site and the job's vectors.
    masks
        Who signs for it, whom it believes, what it revealed before.
    """

    def __init__(self, name: str, layout: Layout, masks: Masks) -> None:
        self.name = name
        self.layout = layout
        self.params = params_of(layout, masks.identity.kind, masks.opener)
        self.rule = CellRule(layout.plan, layout.method.measures())
        self.totals_round = -1
        self.sent: dict[str, Floats] = {}
        self.counted = CountedUpdates()
        self._kept: Kept | None = None
        self.cells: Floats | None = None
        self._own_kept: Kept | None = None
        self._masks = masks
        self._digests: dict[str, bytes] = {}
        self._session: SiteSession | None = None
        self._steps: dict[str, int] = {}
        self._answers: list[Item] = []
        self._later: list[Item] = []
        self._message: Message | None = None
        self._totals: Floats | None = None
        self._distances: tuple[int, Floats] | None = None
        self._weights: tuple[int, int] = (0, 0)
        self._records = 0.0
        self._openings: dict[str, bytes] = {}
        self._trained: int | None = None
        self._state = b""

    # -------------------------------------------------------------------------------------------- before the local work

    def receive(self, message: Message) -> None:
        """Do what the protocol messages of a task ask for; raises before the local work if one of them is wrong."""
        self._message, self._answers, self._later = message, [], []
        items = unpack(message.protocol, DOWN)
        if message.task == JOIN:
            self._join(message)
            return
        session = self._running()
        for kind in DOWN:
            for item in items:
                if item.kind == kind:
                    self._handle(session, item)
        if message.round > 0:
            session.end_round(message.round - 1)

    def _join(self, message: Message) -> None:
        masks = self._masks
        session = SiteSession(
            masks.identity, masks.trust, self.params, masks.memory, message.session,
            cohort_changes=masks.cohort_changes, opener=masks.opener,
        )  # fmt: skip
        self._session, self._steps, self._totals, self.totals_round = session, {}, None, -1
        self._kept, self.cells, self._weights, self._records = None, None, (0, 0), 0.0
        self._distances, self.sent, self.counted = None, {}, CountedUpdates()
        self._openings, self._trained, self._state, self._digests = {}, None, b"", {}
        self._answers = [Item("join", 0, session.join())]

    def _handle(self, session: SiteSession, item: Item) -> None:
        if item.kind == "roster":
            session.begin(item.data)
        elif item.kind == "opening":
            self._open(session, item)
        elif item.kind == "keyset":
            session.keyset(item.number, item.data)
            if session.vector(item.number).mode == "open":
                self._answers.append(Item("shares", item.number, session.deal(item.number)))
        elif item.kind == "dealers":
            session.dealers(item.number, item.data)
        elif item.kind == "survivors":
            self._answers.append(Item("confirm", item.number, session.confirm(item.number, item.data)))
            self.counted.confirmed(session.round_of(item.number), session.survivors(item.number))
        elif item.kind == "confirms":
            self._answers.append(Item("unmask", item.number, session.unmask(item.number, item.data)))
            self.counted.opened(session.round_of(item.number))
        elif item.kind == "witness":
            sites = session.witness(item.number, *parse_witness(item))
            if sites:
                self.counted.confirmed(session.round_of(item.number), sites)
                self.counted.opened(session.round_of(item.number))
        else:
            self._later.append(item)

    def _open(self, session: SiteSession, item: Item) -> None:
        vector = session.vector(item.number)
        round_ = session.round_of(item.number)
        again = vector.label == "risk_sums" and self.totals_round == round_
        again |= vector.label == DISTANCES and self._distances is not None and self._distances[0] == round_
        if again or self._openings.get(vector.label) == opening_digest(item):
            return  # this site has these already; the message is for one that does not
        if vector.label in self._openings:
            refuse("OPENING", f"a second opening of '{vector.label}'", "one in a session")
        survivors, payloads = parse_opening(item, vector)
        words = session.opening(item.number, survivors, payloads)
        total = StatisticsCodec(len(session.roster)).decode(words.astype(np.uint64))
        if vector.cipher and not is_noised(self.layout.plan, vector.label):  # else the server looks at it
            verify_not_negative(total)
        self._digests[vector.label] = opening_digest(item)
        if vector.label in DECIDING:
            self._openings[vector.label] = opening_digest(item)
        if vector.label == "counts":
            self._weights = (self._weights[0], round(total[-1]))
            self._records = float(total[0])
        elif vector.label == "cells":
            verify_bits(total, len(session.roster))
            self.cells = total
            if self._own_kept is not None:
                self._kept = self.rule.kept(total) & self._own_kept
        elif vector.label == "risk_sums":
            self._totals, self.totals_round = total, round_
        elif vector.label == DISTANCES:
            verify_each_once(total, len(session.roster))
            self._distances = round_, total

    # --------------------------------------------------------------------------------------------- for the local work

    @property
    def sites(self) -> int:
        """How many sites the session has."""
        return len(self._running().roster)

    def counts(self, data: SiteData, private: Counted | None = None) -> dict[str, Weighted]:
        """``counts``: records by split, and what weighs this site's update.

        ``private``: what is told of training instead. Then nobody hears who opted out either: it would say who is gone.
        """
        training, opted_out = (len(data.training), data.opted_out) if private is None else (private.units, 0)
        own = coarse_records(training, masking_of(self.layout.plan).weight_unit)
        self._weights = (own, 0)
        counts = [training, len(data.validation), len(data.test), opted_out, own]
        return {"counts": Weighted(np.array(counts, dtype=np.float64))}

    def prepare(self, data: SiteData, private: Counted | None = None) -> dict[str, Weighted]:
        """``counts`` and ``cells``: what is opened before anything else, and frozen for the session."""
        vectors = self.counts(data, private)
        if self.rule.length:
            bits, self._own_kept = self.rule.own(data, None if private is None else private.kept)
            vectors["cells"] = Weighted(bits)
        return vectors

    @property
    def kept(self) -> Kept | None:
        """Which cells may be opened, ``None`` for all; raises ``FF-SECAGG-CELLS`` while that is not known."""
        if self.rule.length and self._kept is None:
            refuse("CELLS", "a task before the cells were counted", "the opening of 'cells' first")
        return self._kept

    def keeps_state(self, message: Message) -> bool:
        """Whether the optimiser's state goes on; refused unless this site uploaded an update in the round before.

        The view of that update is bound into this one's: it names the model and all else that the state came from.
        """
        keep = message.text.get("optimizer") == KEEP
        if keep and (self._trained is None or self._trained != message.round - 1):
            refuse("OPTIMIZER", "a state to be kept of a round that this site was not in", "a new state at all sites")
        return keep

    @property
    def share(self) -> float:
        """The site's part p_s of the aggregate, from verified openings; raises ``FF-SECAGG-WEIGHT`` without them."""
        own, total = self._weight()
        return own / total

    @property
    def mean_records(self) -> float:
        """Training records of a site in the mean, from the verified opening of all sites' counts."""
        sites = self.sites
        if self._records < 1:
            refuse("WEIGHT", "a task before the counts were opened", "the verified sum of all sites' counts")
        return self._records / sites

    def _weight(self) -> tuple[int, int]:
        sites = len(self._running().roster)
        own, total = self._weights
        if self.layout.plan.training.aggregation == "uniform":
            return 1, sites
        if not 0 < own <= total:
            refuse("WEIGHT", "a total of weights that cannot be", "the verified sum of all sites' weights")
        return own, total

    def totals(self, message: Message) -> Floats:
        """The group sums that act in this round, as this site added them up itself; zeros where none may act."""
        plan = self.layout.plan
        masking, method = masking_of(plan), plan.method
        length = self.layout.vectors["risk_sums"].length if "risk_sums" in self.layout.vectors else 0
        oldest = oldest_totals(plan)
        usable = self._totals is not None and message.round - self.totals_round <= oldest
        act = message.text.get("totals") == ACT
        none_yet = self._totals is None and method.lagged
        if act != usable or (not act and length and not none_yet and masking.when_stale == "stop"):
            got = "a round that is to go on with totals this site does not have" if act else "a round without totals"
            refuse("TOTALS", got, f"totals that are at most {oldest} rounds old, or none where there are none")
        return np.zeros(length) if self._totals is None or not act else self._totals

    def distances(self, message: Message) -> Floats | None:
        """Sums of this round's distances, as this site added them up itself; ``None`` where none were opened."""
        known = self._distances is not None and self._distances[0] == message.round
        if (message.text.get(DISTANCES) == ACT) != known:
            got = "a round that is to go on with distances this site does not have" if not known else "a round without"
            refuse("TOTALS", got, "this round's distances, or none where they were not opened")
        return self._distances[1] if known and self._distances is not None else None

    def _acting(self, message: Message) -> dict[str, Acting]:
        """Sums of all sites that act in a task, by the names under which its D binds them."""
        acting: dict[str, Acting] = {}
        encrypted = self.layout.plan.protection.encrypted
        for name in sums_in(message.task):
            if name == TOTALS:
                acting[name] = self.totals(message)
                if encrypted and message.text.get(TOTALS) == ACT:
                    acting[name] = self._digests["risk_sums"]
            elif self.layout.plan.method.compares_sites:
                found = self.distances(message)
                if found is not None:
                    acting[name] = self._digests[DISTANCES] if encrypted else found
        return acting

    # -------------------------------------------------------------------------------------------- after the local work

    def withheld(self, task: str) -> tuple[str, ...]:
        """Statistics that do not leave in this task, because not every site of the session can take part in them."""
        closed = label_steps(self.layout.tasks[task], self.params, "closed")
        session = self._running() if closed else None
        return tuple(label for label in closed if session is None or not session.is_ready(self._steps.get(label, -1)))

    def protect(
        self, specs: Mapping[str, VectorSpec], vectors: Mapping[str, Weighted]
    ) -> tuple[dict[str, Payload], bytes]:
        """Encode and mask the vectors of a task, and answer the offers of its message."""
        message = self._message
        if message is None:
            raise RuntimeError("protect() before receive()")
        payloads: dict[str, Payload] = {}
        if specs:
            labels = [label for label in specs if label not in self.layout.parts]
            words = {label: self._encoded(label, vectors, message) for label in labels}
            payloads = self._uploaded(message, words)
        if self._later:
            self._start(self._later, message)
        return payloads, pack(self._answers)

    def _uploaded(self, message: Message, words: Mapping[str, Words]) -> dict[str, Payload]:
        session = self._running()
        order = [(self._steps.get(label, -1), words[label]) for label in words]
        # The memory knows a question by its round, and the step's round is what the server offered it as.
        if any(session.round_of(number) != message.round for number, _ in order):
            refuse("ROUND", "a step of another round than the task", "steps of the task's own round")
        bound = dict(self._openings)
        if message.text.get("optimizer") == KEEP:
            bound["state"] = self._state
        signed = session.upload(order, inputs_digest(message, self._acting(message), bound), message.task)
        if UPDATE in words:
            self._trained, self._state = message.round, session.view_of(self._steps[UPDATE])
        for (number, _), one in zip(order, signed, strict=True):
            self._answers.append(Item("upload", number, one.encoded()))
        sent = {label: session.sealed(*one) for label, one in zip(words, order, strict=True)}
        return {label: Payload(values, None) for label, values in sent.items()}

    def _encoded(self, label: str, vectors: Mapping[str, Weighted], message: Message) -> Words:
        sites = len(self._running().roster)
        if label != UPDATE:
            return StatisticsCodec(sites).encode(vectors[label].values)
        codec = update_codec(self.layout)
        if self.layout.method.weighing == "own":  # nobody checks it, but sites together cannot overflow
            weight = int(codec.first.weight(1, sites) * vectors[UPDATE].weight)
        else:
            weight = codec.first.weight(*self._weight())
        seed = seed_for(self.layout.plan.training.seed, "rounding", self.name, message.round)
        # Rounding is not secret: seeded, it lets the same plan give the same model twice.
        key = hashlib.sha256(seed.to_bytes(16, "little")).digest()
        parts = {name: vectors[name].values for name in (UPDATE, *self.layout.parts)}
        words = codec.encode(parts, weight, key)
        self.sent = codec.parts_of(words) if self.layout.parts else {}
        return words

    def _start(self, items: list[Item], message: Message) -> None:
        offers = [parse_offer(item) for item in items]
        if any(offer.fl_round - message.round not in (0, 1) for offer in offers):
            refuse("ROUND", "keys for another round than this or the next one", "steps of these rounds")
        for offer, keys in zip(offers, self._running().keys(offers), strict=True):
            self._steps[offer.label] = offer.number
            self._answers.append(Item("keys", offer.number, keys))

    def _running(self) -> SiteSession:
        if self._session is None:
            raise SecaggError(
                "FF-SECAGG-SESSION",
                got="a task before join",
                expected="join first, also after a restart",
                next_step="the server must begin a new session",
            )
        return self._session


def verify_bits(total: Floats, sites: int) -> None:
    """Raise ``FF-SECAGG-RANGE`` unless ``total`` can be a sum of one bit of each site."""
    if not ((total >= 0) & (total <= sites) & (total == np.floor(total))).all():
        refuse("RANGE", "a sum of bits that no sites can have sent", f"whole numbers from 0 to {sites}")


def verify_not_negative(total: Floats) -> None:
    """Raise ``FF-SECAGG-RANGE`` unless ``total`` can be a sum of counts, losses or probabilities."""
    if (total < 0).any():
        refuse("RANGE", "a negative sum that no sites can have sent", "sums of counts, losses or probabilities")


def verify_each_once(total: Floats, sites: int) -> None:
    """Raise ``FF-SECAGG-RANGE`` unless ``total`` can be a sum of one distance of each site."""
    if total[1] != sites or not 0 <= total[0] <= 2.000001 * sites:
        refuse("RANGE", "a sum of distances that no sites can have sent", "one distance, up to 2, of each site")


def masked_site(name: str, layout: Layout, masks: Masks | None) -> MaskedSite | None:
    """The site's half of the masks, for a plan that has them."""
    if not layout.plan.protection.masked:
        return None
    if masks is None:
        raise refused("MASKS", "a plan with masks at a site without an identity", "a start-up kit, and a policy")
    return MaskedSite(name, layout, masks)
