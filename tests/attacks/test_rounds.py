# SPDX-License-Identifier: Apache-2.0
"""A question under another number: the server offers steps of rounds that no task is of, to ask the same thing again.

A site's memory knows a question by (plan, round, label). If the round were the one that the server offers a step as,
and not the task's, a second session could ask for the same update again, leave a site out, and subtract.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairflare import presets
from fairflare.engine.local import answer, local_masks, software
from fairflare.engine.masked_server import MaskedServer
from fairflare.engine.masked_site import MaskedSite
from fairflare.engine.roles import coordinator_of
from fairflare.engine.server import Start
from fairflare.engine.site import Site
from fairflare.secagg.server import ServerSession
from fairflare.secagg.site import SiteSession
from tests.unit.engine.hospitals import four, masked, plan

VICTIM = "beryl"


class Attack:
    """Two sessions over the same sites; in the second one every offer is shifted and the victim is left out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan = masked(plan(presets.FEDAVG, rounds=1))
        self.sites = {
            name: Site(name, self.plan, load, folder / name, None, local_masks(self.plan, name))
            for name, load in four().items()
        }
        self.folder = folder
        self.sums: list[np.ndarray] = []
        self.secret: list[np.ndarray] = []
        self.refused: list[tuple[str, str]] = []
        opened, encoded = ServerSession.unmasked, MaskedSite._encoded

        def watch_sum(session, number):
            found = opened(session, number)
            self.sums.append(found[0].copy())
            return found

        def watch_victim(site, label, values, message):
            words = encoded(site, label, values, message)
            if (site.name, label) == (VICTIM, "update"):
                self.secret.append(words.copy())
            return words

        monkeypatch.setattr(ServerSession, "unmasked", watch_sum)
        monkeypatch.setattr(MaskedSite, "_encoded", watch_victim)

    def session(self, name: str, shift: int, leave_out: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        offer = MaskedServer.offer

        def shifted(masks, labels, number):
            # One round ahead, the first session's evaluation used the other labels up; an attacker can do without them.
            offer(masks, [one for one in labels if shift != 1 or one in ("counts", "update")], number + shift)

        with monkeypatch.context() as patch:
            patch.setattr(MaskedServer, "offer", shifted)
            coordinator = coordinator_of(self.plan, self.folder / name, Start(name, "local", software()))
            for phase in coordinator.phases(sorted(self.sites)):
                for site in phase.targets:
                    if site == leave_out and phase.message.task == "train":
                        phase.collector.refuse(site, "FF-TEST-ABSENT")
                    else:
                        answer(self.sites[site], phase)
                self.refused += [(one.task, one.code) for one in phase.collector.refusals]


@pytest.mark.parametrize(("shift", "task"), [(1, "prepare"), (1000, "session")], ids=["next round", "no round"])
def test_a_step_of_another_round_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, task: str
) -> None:
    """Keys may be asked for one round ahead, so this is looked at again when the vector would leave."""
    attack = Attack(tmp_path, monkeypatch)
    attack.session("first", 0, None, monkeypatch)
    attack.session("second", shift, VICTIM, monkeypatch)
    assert len(attack.sums) == 1
    assert attack.refused == [(task, "FF-SECAGG-ROUND")] * 4


def test_without_the_comparison_the_difference_is_the_victims_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(masks, items, message):
        from fairflare.secagg.envelope import Item, parse_offer

        offers = [parse_offer(item) for item in items]
        for offer, keys in zip(offers, masks._running().keys(offers), strict=True):
            masks._steps[offer.label] = offer.number
            masks._answers.append(Item("keys", offer.number, keys))

    uploaded = MaskedSite._uploaded

    def any_round(masks, message, words):
        with monkeypatch.context() as patch:
            patch.setattr(SiteSession, "round_of", lambda session, number: message.round)
            return uploaded(masks, message, words)

    monkeypatch.setattr(MaskedSite, "_start", unchecked)
    monkeypatch.setattr(MaskedSite, "_uploaded", any_round)
    attack = Attack(tmp_path, monkeypatch)
    attack.session("first", 0, None, monkeypatch)
    attack.session("second", 1000, VICTIM, monkeypatch)
    assert np.array_equal(attack.sums[0] - attack.sums[1], attack.secret[0])
