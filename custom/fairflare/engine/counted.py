# SPDX-License-Identifier: Apache-2.0
"""Whose updates were summed, as a site knows it itself: a server that tells another story is refused.

Where sites go on from what was counted (``settles``), such a server could choose, site by site, whose state moves; two
sums of the same model would then differ by one site's update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairflare.engine.incoming import refused


class CountedUpdates:
    """What one site signed in one masked session: which sets of updates it confirmed, and which it helped to open."""

    def __init__(self) -> None:
        self._sets: dict[int, frozenset[str]] = {}
        self._opened: set[int] = set()
        self._told: dict[str, int] = {}
        self._decided = -1

    def confirmed(self, round_: int, sites: Iterable[str]) -> None:
        """Note the set of updates that is summed, as this site agreed to it, or was shown that enough others did."""
        known = self._sets.setdefault(round_, frozenset(sites))
        if known != frozenset(sites):
            self._refuse("another set than this site confirmed")

    def opened(self, round_: int) -> None:
        """Note that this site saw enough others agree: all of the set had the same inputs."""
        self._opened.add(round_)

    def verify(self, told: Mapping[str, int], round_: int, name: str, sent_in: int | None) -> None:
        """Raise ``FF-ROUND-COUNTED`` unless ``told`` (site -> round last counted) can be true as ``round_`` begins.

        ``sent_in``: the round of this site's (``name``) last update, while it is open whether that was counted. A set
        was counted as a whole or not at all, never without its sum being opened, and what a site was told of a round
        stays so: otherwise it could be told one thing in a round that is lost, and another one together with all.
        """
        if sent_in is not None and told.get(name) == sent_in and sent_in not in self._opened:
            self._refuse("an update of this site that it did not help to open")
        if any(told.get(site, -1) < at for site, at in self._told.items()):
            self._refuse("an update less")
        if any(at < self._decided for site, at in told.items() if self._told.get(site) != at):
            self._refuse("an update that was not counted before")
        for at, sites in self._sets.items():
            claimed = {site for site, last in told.items() if last == at}
            if claimed - sites:
                self._refuse("an update outside the set that this site confirmed")
            if claimed and any(told.get(site, -1) < at for site in sites):
                self._refuse("a part of the set that this site confirmed")
        self._told, self._decided = dict(told), round_

    def _refuse(self, got: str) -> None:
        raise refused("COUNTED", f"{got}, as one that counts", "the sets of updates that this site helped to open")
