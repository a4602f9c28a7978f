# SPDX-License-Identifier: Apache-2.0
"""Everything in masked aggregation that takes bytes from others, with what must hold whatever the bytes are.

Only ``SecaggError`` comes out; what a parser accepts, it writes as the same bytes; a session that accepts a changed
message opens the plain sum, or nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np

from fairflare.errors import SecaggError
from fairflare.secagg import envelope
from fairflare.secagg.identity import DEVELOPMENT, KIT, LONGEST
from fairflare.secagg.state import Offer
from fairflare.secagg.transcript import (
    Dealt,
    Join,
    Joining,
    Keys,
    Shares,
    Signed,
    Unmask,
    Upload,
    confirms_message,
    dealers_message,
    parse_confirms,
    parse_dealers,
    parse_roster,
    parse_signed_list,
    roster_message,
    signed_list,
)
from tests.fuzz import certificates
from tests.fuzz.structure import Mutator
from tests.fuzz.world import first, plot, snapshots


class Changer(Protocol):
    """Makes an input out of another one; see ``structure.py``."""

    seeds: list[bytes]

    def __call__(self, data: bytes, rng: random.Random) -> bytes: ...

    def bytes(self, data: bytes, rng: random.Random) -> bytes: ...


@dataclass(frozen=True)
class Target:
    """One place that takes bytes.

    Attributes
    ----------
    name
        Its name.
    run
        Feeds it; True if the bytes were accepted. Raises what is no ``SecaggError``, or an ``AssertionError``.
    mutator
        How inputs are made, and the valid ones.
    functions
        The parser's own functions, whose branches are counted.
    cost
        How many times dearer than a parser an input is, roughly.
    """

    name: str
    run: Callable[[bytes], bool]
    mutator: Changer
    functions: tuple[str, ...] = ()
    cost: int = 1
    accepted: list[int] = field(default_factory=list, compare=False)


def _keys() -> dict[int, bytes]:
    sites = plot().given["sites"]
    return {i: bytes.fromhex(sites[n]["signing_secret"]) for i, n in enumerate(sorted(sites), start=1)}


def _message(kind: str, site: str = "hospital-a") -> bytes:
    return snapshots()[1][first(kind, site)]


# ------------------------------------------------------------------------------------------------------------- parsers


def _round_trip(parse: Callable[[bytes], Any], encode: Callable[[Any], bytes], data: bytes) -> bool:
    try:
        found = parse(data)
    except SecaggError:
        return False
    if encode(found) != data:
        raise AssertionError("what was accepted is written in other bytes")
    return True


def _unpack(data: bytes) -> bool:
    if not data:
        return envelope.unpack(data, envelope.DOWN) == []
    kinds = (*envelope.DOWN, *envelope.UP)
    return _round_trip(partial(envelope.unpack, kinds=kinds), envelope.pack, data)


def _item(kind: str, data: bytes) -> envelope.Item:
    return envelope.Item(kind, 3, data)


def _parsers() -> list[Target]:
    join = Joining.parse(_message("server.join")).join
    keys, shares = Signed.parse(_message("server.keys update")), Dealt.parse(_message("server.shares")).signed
    up, unmask = Signed.parse(_message("server.upload update")), Signed.parse(_message("server.unmask"))
    opening, risk = _message("site.opening"), plot().start().base.params.vectors[0]
    items = [envelope.Item("keyset", 5, _message("site.keyset update")), envelope.Item("offer", 2**63, b"")]
    offer = Offer(3, "update", 7)
    encoded = lambda one: one.encoded()  # noqa: E731
    table: list[tuple[str, str, Callable[[bytes], Any], Callable[[Any], bytes], list[bytes]]] = [
        ("signed", "Signed.parse", Signed.parse, encoded, [keys.encoded()]),
        ("join", "Join.parse", Join.parse, encoded, [join]),
        ("joining", "Joining.parse", Joining.parse, encoded, [_message("server.join")]),
        ("roster", "parse_roster Joining.read", parse_roster, roster_message,
         [_message("site.begin")]),
        ("keys", "Keys.parse", Keys.parse, encoded, [keys.message]),
        ("keyset", "parse_signed_list Signed.read", partial(parse_signed_list, "keyset"),
         partial(signed_list, "keyset"), [_message("site.keyset update")]),
        ("survivors", "parse_signed_list Signed.read", partial(parse_signed_list, "survivors"),
         partial(signed_list, "survivors"), [_message("site.confirm")]),
        ("shares", "Shares.parse", Shares.parse, encoded, [shares.message]),
        ("dealt", "Dealt.parse Dealt.read", Dealt.parse, encoded, [_message("server.shares")]),
        ("dealers", "parse_dealers Dealt.read", parse_dealers, dealers_message,
         [_message("site.dealers")]),
        ("up", "Upload.parse", Upload.parse, encoded,
         [up.message, Signed.parse(_message("server.upload risk")).message]),
        ("confirms", "parse_confirms", parse_confirms, confirms_message, [_message("site.unmask")]),
        ("unmask", "Unmask.parse", Unmask.parse, encoded, [unmask.message]),
        ("offer", "parse_offer", lambda data: envelope.parse_offer(_item("offer", data)), envelope.offer_data,
         [envelope.offer_data(offer)]),
        ("opening", "parse_opening", lambda data: envelope.parse_opening(_item("opening", data), risk),
         lambda found: envelope.opening_data(*found), [opening]),
    ]  # fmt: skip
    found = [
        Target(f"parse-{name}", partial(_round_trip, parse, encode), Mutator(seeds, _keys()), tuple(functions.split()))
        for name, functions, parse, encode, seeds in table
    ]
    seeds = [envelope.pack(items), envelope.pack([]), b""]
    return [*found, Target("parse-protocol", _unpack, Mutator(seeds, _keys()), ("unpack",))]


# -------------------------------------------------------------------------------------------------------- certificates

CHECKS = (
    "Trust.verify_certificate", "Trust._verified_key", "Trust._check", "_check_issued", "_check_period",
    "_check_constraints", "_check_role", "_check_name", "_rsa_key", "_marked", "_spki", "_refuse_pin",
)  # fmt: skip


def _certificate(kind: str, data: bytes) -> bool:
    accepted = False
    for name, pin in ((certificates.NAME, True), (certificates.NAME, False), ("other", True)):
        trust = _trust(kind, pin)
        try:
            spki = trust.verify_certificate(name, data)
        except SecaggError:
            continue
        if len(spki) != 32 or (pin and spki.hex() != trust.pinned[name]):
            raise AssertionError("another key than the pinned one")
        accepted = True
    return accepted


@lru_cache
def _trust(kind: str, pin: bool) -> Any:
    return certificates.trust(kind, pin)


def _certificates() -> list[Target]:
    found = []
    for kind, seeds in ((KIT, certificates.kit_seeds()), (DEVELOPMENT, certificates.development_seeds())):
        seeds.append(seeds[0] + bytes(LONGEST))
        mutator = certificates.CertificateMutator(kind, seeds)
        found.append(Target(f"certificate-{kind}", partial(_certificate, kind), mutator, CHECKS, 10))
    return found


# ------------------------------------------------------------------------------------------------------------- sessions

_SITE, _SECOND = "hospital-a", "Zentrum-1"


def _deliver(place: int, variant: str, data: bytes) -> bool:
    """Give ``data`` to its receiver instead of the honest message, and play what follows where that can matter."""
    story, (worlds, messages) = plot(variant), snapshots(variant)
    one, w = story.deliveries[place], worlds[place].copy()
    try:
        one.receive(w, data)
        accepted = True
    except SecaggError:
        accepted = False
        w.out.add(one.site)
    # A message that was refused changes nothing for the others; that is looked at now and then.
    if (accepted and data != messages[place]) or hashlib.sha256(data).digest()[0] == 0:
        story.play(w, place + 1)
        story.finish(w)
    return accepted


def _any_order(data: bytes) -> bool:
    """Give anything to anybody at any time: byte 0 says when, byte 1 to whom and as what, byte 2 which message it is.

    The message is one that was on its way before, changed or not (byte 2 is odd: the bytes that follow).
    """
    if len(data) < 3:
        return False
    story, (worlds, messages) = plot(), snapshots()
    when, where, which = data[0] % len(worlds), data[1] % len(worlds), data[2] >> 1
    one, w = story.deliveries[where], worlds[when].copy()
    message = data[3:] if data[2] & 1 else messages[which % (when + 1)]
    if one.kind.startswith("server.upload") and ("words", one.label, one.site) not in w.messages:
        return False  # nothing was uploaded yet
    try:
        one.receive(w, message)
        accepted = True
    except SecaggError:
        accepted = False
    if accepted or data[0] % 16 == 0:
        story.play(w, when)
        story.finish(w)
    return accepted


class _AnyOrder(Mutator):
    """Changes the three bytes at the front apart from the message behind them."""

    def __init__(self, keys: dict[int, bytes]) -> None:
        messages = snapshots()[1]
        super().__init__(messages, keys)
        self.seeds = [bytes([i, i, 2 * i]) for i in range(len(messages))]
        self._messages = messages

    def __call__(self, data: bytes, rng: random.Random) -> bytes:
        place = rng.randrange(len(self._messages))
        where = place if rng.random() < 0.5 else rng.randrange(len(self._messages))
        when = min(255, where + rng.choice((0, 1, 2, 4, 8, 16, 32))) % len(self._messages)
        if rng.random() < 0.5:
            return bytes([when, where, 2 * place])
        changed_message = Mutator.__call__(self, self._messages[place], rng)
        return bytes([when, where, 1]) + changed_message


def _words(place: int, data: bytes) -> bool:
    """Other words under an honest signature: a closed step must refuse them, an open one must keep its sum whole."""
    story, (worlds, messages) = plot(), snapshots()
    one, w = story.deliveries[place], worlds[place].copy()
    honest = w.messages["words", one.label, one.site]
    words = np.frombuffer(data[: len(data) // honest.itemsize * honest.itemsize], dtype=honest.dtype).copy()
    w.messages["words", one.label, one.site] = words
    try:
        one.receive(w, messages[place])
    except SecaggError:
        return False
    if words.shape != honest.shape or (one.label == "risk" and not np.array_equal(words, honest)):
        raise AssertionError("other words than were signed")
    return True


def _session(kind: str, variant: str) -> Target:
    names, site = plot().names, _SECOND if kind.endswith("risk") else _SITE
    messages = snapshots(variant)[1]
    same = [messages[i] for i, one in enumerate(plot(variant).deliveries) if one.kind == kind]
    honest = messages[first(kind, site, variant)]
    mutator = Mutator(list(dict.fromkeys([honest, *same])), _keys(), 1 + names.index(site))
    name = "-".join(filter(None, (*kind.split(" "), variant)))
    return Target(name, partial(_deliver, first(kind, site, variant), variant), mutator, cost=30)


def _sessions() -> list[Target]:
    found = []
    for kind in dict.fromkeys(one.kind for one in plot().deliveries):
        found.append(_session(kind, ""))
        if kind in ("server.join", "site.begin"):
            found.append(_session(kind, "careless"))
        if kind in ("site.confirm", "server.confirm", "site.unmask", "server.unmask"):
            found.append(_session(kind, "lossy"))
    found.append(Target("any-order", _any_order, _AnyOrder(_keys()), cost=60))
    for label in ("risk", "update"):
        place = first(f"server.upload {label}", _SITE)
        seeds = [snapshots()[0][place].messages["words", label, _SITE].tobytes()]
        found.append(Target(f"server.words-{label}", partial(_words, place), Mutator(seeds, _keys()), cost=30))
    return found


@lru_cache
def targets() -> dict[str, Target]:
    """All of them by name."""
    return {one.name: one for one in (*_parsers(), *_certificates(), *_sessions())}


def changed(target: Target, data: bytes, rng: random.Random) -> bytes:
    """Another input: two of three keep version and lengths, the others are changed anywhere."""
    if rng.random() < 0.65:
        return target.mutator(data, rng)
    return target.mutator.bytes(data, rng)
