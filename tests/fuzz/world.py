# SPDX-License-Identifier: Apache-2.0
"""One session of four sites and a server as a list of deliveries; before each, the whole world can be copied.

So any message can be replaced by another one, and what follows be played to its end: with the site left out that
refused, or was refused. Whatever happens, what is opened must be the plain sum over the sites that it is said to be of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fairflare.errors import SecaggError
from fairflare.secagg.envelope import Item, opening_data, parse_opening
from fairflare.secagg.fixedpoint import StatisticsCodec, UpdateCodec
from fairflare.secagg.identity import Trust
from fairflare.secagg.state import Offer
from tests.vectors.replay import Replay, coefficients
from tests.vectors.straight import FOLDER

#: Who is lost in a lossy session.
LOST = "hospital-b"


class CarelessTrust(Trust):
    """Believes every signature of a kit: behind it, no JOIN is safe from changes."""

    def verify_signature(self, name: str, certificate: bytes, message: bytes, signature: bytes) -> bytes:
        return certificate[:32]


def copied(thing: Any, memo: dict[int, Any]) -> Any:
    """A copy that shares only what never changes."""
    if id(thing) in memo:
        return memo[id(thing)]
    kind = type(thing)
    if kind is dict:
        made: Any = memo.setdefault(id(thing), {})
        made.update((key, copied(value, memo)) for key, value in thing.items())
    elif kind is list:
        made = memo[id(thing)] = [copied(value, memo) for value in thing]
    elif kind is set or kind is np.ndarray:
        made = memo[id(thing)] = thing.copy()
    elif kind.__module__.startswith(("fairflare.secagg", "tests.")) and not _is_frozen(kind):
        made = memo[id(thing)] = kind.__new__(kind)
        for key, value in vars(thing).items():
            object.__setattr__(made, key, copied(value, memo))
    else:
        made = thing
    return made


def _is_frozen(kind: type) -> bool:
    return is_dataclass(kind) and kind.__dataclass_params__.frozen


class World:
    """The parties, the messages on their way, and who is out."""

    def __init__(self, given: dict[str, Any], careless: bool) -> None:
        base = Replay(given)
        self.base = base
        if careless:
            loose = CarelessTrust(base.trust.kind, None, {}, now=base.trust.now)
            base.server._trust = loose
            for name, site in base.sites.items():
                site._trust = loose
                identity = copy(site._identity)
                object.__setattr__(identity, "certificate", bytes.fromhex(given["sites"][name]["spki_sha256"]))
                site._identity = identity
        self.sites, self.server = base.sites, base.server
        self.messages: dict[Any, Any] = {}
        self.out: set[str] = set()
        self.failed: set[str] = set()
        self.words: dict[tuple[str, str], Any] = {}

    def copy(self) -> World:
        made = World.__new__(World)
        made.base, made.out, made.failed = self.base, set(self.out), set(self.failed)
        memo: dict[int, Any] = {}
        for what in ("sites", "server", "messages", "words"):
            setattr(made, what, copied(getattr(self, what), memo))
        return made

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.messages:
            self.messages[key] = make()
        return self.messages[key]


@dataclass(frozen=True)
class Delivery:
    """One message: from a site to the server (``up``) or back."""

    kind: str
    site: str
    label: str
    send: Callable[[World], bytes]
    receive: Callable[[World, bytes], Any]

    @property
    def up(self) -> bool:
        return self.kind.startswith("server.")


class Plot:
    """All deliveries of a session, in order.

    Parameters
    ----------
    careless
        Kits' signatures are not checked.
    lossy
        One site is lost after its shares, before its upload.
    """

    def __init__(self, careless: bool = False, lossy: bool = False) -> None:
        given = json.loads((FOLDER / "session_late_loss.json").read_text(encoding="utf-8"))["inputs"]
        self.given = {**given, "lost_before_upload": [], "lost_before_shares": []}
        self.names = sorted(self.given["sites"])
        self.number = {step["label"]: step["number"] for step in self.given["steps"]}
        self.deliveries: list[Delivery] = []
        self.careless = careless
        self._list()
        if lossy:
            late = [one.kind for one in self.deliveries].index("server.upload update")
            self.deliveries[late:] = [one for one in self.deliveries[late:] if one.site != LOST]

    def start(self) -> World:
        return World(self.given, self.careless)

    def _add(self, kind: str, label: str, send: Any, receive: Any) -> None:
        """``send`` and ``receive`` for each site."""
        for n in self.names:
            self.deliveries.append(
                Delivery(
                    kind, n, label, lambda w, n=n: send(w, n), lambda w, message, n=n: receive(w, n, message)
                )
            )  # fmt: skip

    def _list(self) -> None:
        number, names = self.number, self.names
        self._add(
            "server.join", "",
            lambda w, n: w.sites[n].join([m for m in names if m != n]), lambda w, n, m: w.server.join(n, m),
        )  # fmt: skip
        self._add(
            "site.begin", "",
            lambda w, n: w.once("roster", lambda: w.server.begin([m for m in names if m not in w.out])),
            lambda w, n, m: w.sites[n].begin(m),
        )  # fmt: skip
        for label, r in number.items():
            self._add(
                f"server.keys {label}", label, lambda w, n, label=label: self._keys(w, n)[label],
                lambda w, n, m, r=r: w.server.keys(n, r, m),
            )  # fmt: skip
        for label, r in number.items():
            self._add(
                f"site.keyset {label}", label,
                lambda w, n, label=label, r=r: w.once(("keyset", label), lambda: w.server.keyset(r)),
                lambda w, n, m, r=r: w.sites[n].keyset(r, m),
            )  # fmt: skip
        self._open_shares(number["update"])
        self._closed(number["risk"])
        self._open_rest(number["update"])

    def _keys(self, w: World, n: str) -> dict[str, bytes]:
        fl_round = self.given["fl_round"]

        def offers() -> list[Offer]:
            label_of = {number: label for label, number in self.number.items()}
            made = [w.server.offer(label_of.get(r, "risk"), fl_round) for r in range(max(label_of) + 1)]
            return [offer for offer in made if offer.number in label_of]

        made = w.once("offers", offers)
        messages = w.once(("keys", n), lambda: w.sites[n].keys(made))
        return {offer.label: message for offer, message in zip(made, messages, strict=True)}

    def _open_shares(self, r: int) -> None:
        def deal(w: World, n: str) -> bytes:
            step = self.given["sites"][n]["steps"]["update"]
            with coefficients(step["mask_coefficients"] + step["self_coefficients"]):
                return w.sites[n].deal(r)

        self._add("server.shares", "update", deal, lambda w, n, m: w.server.shares(n, r, m))
        self._add(
            "site.dealers", "update", lambda w, n: w.once("dealers", lambda: w.server.dealers(r)),
            lambda w, n, m: w.sites[n].dealers(r, m),
        )  # fmt: skip

    def _upload(self, label: str, r: int) -> None:
        def send(w: World, n: str) -> bytes:
            inputs, query = w.base.inputs[label], w.base.query[label]
            w.once(("expect", label), lambda: w.server.expect(r, inputs, query))
            plain = w.base.words(n, label)
            words = plain.copy()
            (signed,) = w.sites[n].upload([(r, words)], inputs, query)
            w.words[label, n] = plain
            w.messages["words", label, n] = words
            return signed.encoded()

        def receive(w: World, n: str, message: bytes) -> None:
            words = w.messages["words", label, n]
            w.server.verify_upload(n, r, message, words)
            w.server.upload(n, r, message, words)

        self._add(f"server.upload {label}", label, send, receive)

    def _closed(self, r: int) -> None:
        self._upload("risk", r)
        vector = next(one for one in Replay(self.given).params.vectors if one.label == "risk")

        def opened(w: World, n: str, message: bytes) -> None:
            survivors, payloads = parse_opening(Item("opening", r, message), vector)
            total = w.sites[n].opening(r, survivors, payloads)
            _same(total, w, "risk", w.sites[n].roster)

        def opening(w: World) -> bytes:
            total = w.server.opened(r)
            _same(total, w, "risk", w.server.roster)
            StatisticsCodec(len(self.names)).decode(total)
            return opening_data(*w.server.opening(r))

        self._add("site.opening", "risk", lambda w, n: w.once("opening", lambda: opening(w)), opened)

    def _open_rest(self, r: int) -> None:
        self._upload("update", r)
        self._add(
            "site.confirm", "update", lambda w, n: w.once("survivors", lambda: w.server.survivors(r)),
            lambda w, n, m: w.messages.__setitem__(("confirm", n), w.sites[n].confirm(r, m)),
        )  # fmt: skip
        self._add(
            "server.confirm", "update", lambda w, n: w.messages["confirm", n],
            lambda w, n, m: w.server.confirm(n, r, m),
        )  # fmt: skip
        self._add(
            "site.unmask", "update", lambda w, n: w.once("confirms", lambda: w.server.confirms(r)),
            lambda w, n, m: w.messages.__setitem__(("unmask", n), w.sites[n].unmask(r, m)),
        )  # fmt: skip
        self._add(
            "server.unmask", "update", lambda w, n: w.messages["unmask", n], lambda w, n, m: w.server.unmask(n, r, m)
        )

    # ------------------------------------------------------------------------------------------------------ playing

    def play(self, w: World, start: int, stop: int | None = None) -> None:
        """Play the deliveries from ``start`` honestly; a site that refuses or is refused is left out."""
        for one in self.deliveries[start:stop]:
            if one.site in w.out or one.label in w.failed:
                continue
            try:
                message = one.send(w)
            except SecaggError:
                if one.up:
                    w.out.add(one.site)
                else:
                    w.failed.add(one.label)
                    if not one.label:  # no session
                        return
                continue
            try:
                one.receive(w, message)
            except SecaggError:
                w.out.add(one.site)

    def finish(self, w: World) -> bool:
        """Open the open step; whether there was a sum (it is checked), or none."""
        if "update" in w.failed:
            return False
        try:
            total, who = w.server.unmasked(self.number["update"])
        except SecaggError:
            return False
        _same(total, w, "update", who)
        UpdateCodec(8.0, None).decode(total, len(who))
        return True


def _same(total: Any, w: World, label: str, who: Any) -> None:
    words = [w.words[label, n] for n in who]
    plain = np.zeros_like(words[0])
    for one in words:
        plain += one
    if total.dtype != plain.dtype or not np.array_equal(total, plain):
        raise AssertionError(f"the sum of '{label}' over {list(who)} is not the plain sum")


@lru_cache
def plot(variant: str = "") -> Plot:
    """The session, ``careless`` or ``lossy`` or neither."""
    return Plot(careless=variant == "careless", lossy=variant == "lossy")


@lru_cache
def snapshots(variant: str = "") -> tuple[list[World], list[bytes]]:
    """The world before each delivery, and the message that is about to be delivered."""
    story, w = plot(variant), plot(variant).start()
    worlds, messages = [], []
    for one in story.deliveries:
        message = one.send(w)
        worlds.append(w.copy())
        messages.append(message)
        one.receive(w, message)
    if not story.finish(w):
        raise AssertionError("the honest session opened nothing")
    return worlds, messages


def first(kind: str, site: str, variant: str = "") -> int:
    """Number of the delivery of ``kind`` to or from ``site``."""
    return next(i for i, one in enumerate(plot(variant).deliveries) if (one.kind, one.site) == (kind, site))
