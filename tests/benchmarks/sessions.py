# SPDX-License-Identifier: Apache-2.0
"""The whole masked protocol in one process: real sites, a real server, real signatures; every step is timed.

Nothing travels, and every site works alone on the machine, one after the other: seconds are those of one site, or of
the server for all of them.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.envelope import Item, offer_data, pack
from fairflare.secagg.fixedpoint import UpdateCodec
from fairflare.secagg.identity import DEVELOPMENT, Identity, Trust, development_identity
from fairflare.secagg.params import Params, VectorParams
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from fairflare.secagg.state import Offer

UPDATE, JOB, INPUTS = "update", "benchmark", b"d" * 32
CLIP = 8.0
#: Every site has as many records.
WEIGHT = 500


@cache
def identity(number: int) -> Identity:
    """A site's development identity: making one takes a tenth of a second."""
    return development_identity(f"site-{number:02d}")


@dataclass
class Seconds:
    """Seconds by part of the protocol: one number per site, and the server's for all sites together."""

    site: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def at_site(self, part: str) -> Iterator[None]:
        """Time one site; several calls of one site are added by the caller."""
        started = time.perf_counter()
        yield
        self.site[part].append(time.perf_counter() - started)

    @contextmanager
    def at_server(self, part: str) -> Iterator[None]:
        """Time the server."""
        started = time.perf_counter()
        yield
        self.server[part] += time.perf_counter() - started


@dataclass
class Bytes:
    """What one site gets and sends, by part."""

    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)

    def note(self, part: str, down: Sequence[Item], up: Sequence[Item], words: int = 0) -> None:
        """Protocol messages as they are packed, and words of a vector."""
        self.down[part], self.up[part] = len(pack(down)), len(pack(up)) + words


class Sessions:
    """Sites and a server that have begun a session about one update of ``parameters`` numbers.

    ``folder`` gets every site's memory on disk; without it they are volatile (no site waits for a disk then).
    """

    def __init__(self, sites: int, parameters: int, folder: Path | None = None) -> None:
        self.parameters = parameters
        self.codec = UpdateCodec(CLIP, None)
        vector = VectorParams(UPDATE, "open", parameters + 1, 32, self.codec.fraction_bits, CLIP)
        self.params = Params("ab" * 32, DEVELOPMENT, 3, 1, 1, 0.0, (vector,))
        self.seconds, self.bytes = Seconds(), Bytes()
        identities = [identity(number) for number in range(sites)]
        self.memories = [
            RevealMemory.volatile() if folder is None else RevealMemory(folder / f"{one.name}.sqlite")
            for one in identities
        ]
        trust = Trust(DEVELOPMENT, None, {})
        self.sites = {
            one.name: SiteSession(one, trust, self.params, memory, JOB)
            for one, memory in zip(identities, self.memories, strict=True)
        }
        self.names = sorted(self.sites)
        self.server = ServerSession(self.params, JOB, trust)
        self.round = -1
        self._begin()

    def close(self) -> None:
        """Give the memories free."""
        for memory in self.memories:
            memory.close()

    def _begin(self) -> None:
        data = b""
        for name, site in self.sites.items():
            with self.seconds.at_site("join"):
                data = site.join(self.names)
            with self.seconds.at_server("join"):
                self.server.join(name, data)
        with self.seconds.at_server("join"):
            roster = self.server.begin(self.names)
        for at, site in enumerate(self.sites.values()):
            started = time.perf_counter()
            site.begin(roster)
            self.seconds.site["join"][at] += time.perf_counter() - started
        self.bytes.note("join", [Item("roster", 0, roster)], [Item("join", 0, data)])

    # ------------------------------------------------------------------------------------------------------- one step

    def dealt(self) -> Offer:
        """A new step in which everybody has sent keys and dealt shares."""
        self.round += 1
        offer = self.server.offer(UPDATE, self.round)
        data = b""
        for name, site in self.sites.items():
            with self.seconds.at_site("keys"):
                data = site.keys([offer])[0]
            with self.seconds.at_server("keys"):
                self.server.keys(name, offer.number, data)
        with self.seconds.at_server("keys"):
            keyset = self.server.keyset(offer.number)
        self.bytes.note("keys", [Item("offer", offer.number, offer_data(offer))], [Item("keys", offer.number, data)])
        for name, site in self.sites.items():
            with self.seconds.at_site("shares"):
                site.keyset(offer.number, keyset)
                data = site.deal(offer.number)
            with self.seconds.at_server("shares"):
                self.server.shares(name, offer.number, data)
        with self.seconds.at_server("shares"):
            self.server.dealers(offer.number)
            self.server.expect(offer.number, INPUTS, "train")
        self.bytes.note("shares", [Item("keyset", offer.number, keyset)], [Item("shares", offer.number, data)])
        return offer

    def masked(self, offer: Offer, name: str, update: np.ndarray) -> tuple[np.ndarray, bytes]:
        """One site opens its shares, encodes, masks and signs."""
        site, dealers = self.sites[name], self.server.dealers(offer.number)
        with self.seconds.at_site("open shares"):
            site.dealers(offer.number, dealers)
        with self.seconds.at_site("mask"):
            weight = self.codec.weight(WEIGHT, WEIGHT * len(self.names))
            words, _ = self.codec.encode(update, weight, os.urandom(32))
            signed = site.upload([(offer.number, words)], INPUTS, "train")[0].encoded()
        up = [Item("upload", offer.number, signed)]
        self.bytes.note("mask", [Item("dealers", offer.number, dealers)], up, words.nbytes)
        return words, signed

    def collected(self, offer: Offer, update: np.ndarray, lost: int = 0) -> None:
        """All but ``lost`` sites upload; the server checks and adds."""
        for name in self.names[lost:]:
            words, signed = self.masked(offer, name, update)
            with self.seconds.at_server("mask"):
                self.server.verify_upload(name, offer.number, signed, words)
                self.server.upload(name, offer.number, signed, words)

    def opened(self, offer: Offer) -> np.ndarray:
        """Consent, shares, and the mean over the survivors."""
        number = offer.number
        with self.seconds.at_server("confirm"):
            survivors = self.server.survivors(number)
        left, data = self.server.uploaded(number), b""
        for name in left:
            with self.seconds.at_site("confirm"):
                data = self.sites[name].confirm(number, survivors)
            with self.seconds.at_server("confirm"):
                self.server.confirm(name, number, data)
        self.bytes.note("confirm", [Item("survivors", number, survivors)], [Item("confirm", number, data)])
        with self.seconds.at_server("unmask"):
            confirms = self.server.confirms(number)
        for name in left:
            with self.seconds.at_site("unmask"):
                data = self.sites[name].unmask(number, confirms)
            with self.seconds.at_server("unmask"):
                self.server.unmask(name, number, data)
        self.bytes.note("unmask", [Item("confirms", number, confirms)], [Item("unmask", number, data)])
        with self.seconds.at_server("unmask"):
            total, sites = self.server.unmasked(number)
            mean, _ = self.codec.decode(total, len(sites))
        self._end()
        return mean

    def whole(self, update: np.ndarray, lost: int = 0) -> None:
        """One step from keys to the mean, which must be right."""
        offer = self.dealt()
        self.collected(offer, update, lost)
        wrong = float(np.abs(self.opened(offer) - update).max())
        if wrong > 1e-5:
            raise RuntimeError(f"the mean is wrong by {wrong}")

    def _end(self) -> None:
        for site in self.sites.values():
            site.end_round(self.round)
        self.server.forget(self.round)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drawn(parameters: int) -> np.ndarray:
    """An update to be sent."""
    return np.random.default_rng(1).normal(0, 0.01, parameters).astype(np.float32)
