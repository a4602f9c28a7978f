# SPDX-License-Identifier: Apache-2.0
"""A hospital's half of a job with differential privacy: as any other, but what tells of training records is noised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fairflare.data.manifest import SiteData
from fairflare.engine.incoming import refused
from fairflare.engine.masked_site import Masks
from fairflare.engine.messages import MEASURE, Message
from fairflare.engine.private import PrivateWork, made_up, privacy_of
from fairflare.engine.site import Site
from fairflare.engine.site_round import SiteRound
from fairflare.errors import LedgerError
from fairflare.fairness.groups import Measure, Sums
from fairflare.models import build
from fairflare.plan import Plan
from fairflare.privacy.ledger import Account
from fairflare.privacy.preflight import verify_private
from fairflare.secagg.protection import Weighted


class PrivateSite(Site):
    """A site of a plan with differential privacy; see :class:`~fairflare.engine.site.Site`.

    Parameters
    ----------
    name, plan, load, folder, weights, masks
        As there.
    account
        What pays for releases; a plan with differential privacy is refused without.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        load: Callable[[], SiteData],
        folder: Path,
        weights: Path | None = None,
        masks: Masks | None = None,
        account: Account | None = None,
    ) -> None:
        super().__init__(name, plan, load, folder, weights, masks)
        if account is None:
            raise LedgerError(
                "FF-LEDGER-NONE",
                got="a plan with differential privacy at a site that counts nothing",
                expected="a privacy ledger, in the store that the site's policy names",
                next_step="report this as a defect of FairFlare",
            )
        self._account = account
        self._private: PrivateWork | None = None

    def _join(self, message: Message) -> dict[str, Weighted]:
        self._private = None
        verify_private(build(self.plan), made_up(self.plan), privacy_of(self.plan).gradients)
        told = super()._join(message)
        data, _ = self._parts()
        self._private = PrivateWork(self.plan, data.training, self._account)
        if self._masked is None:  # a rehearsal, in which one site plays alone, and nothing leaves
            self._private.begin_session(message.round, 1)
        return told

    def _work_of(self) -> PrivateWork:
        if self._private is None:
            raise refused("NOT-JOINED", "a task before join", "join first, also after a restart")
        return self._private

    def _prepare(self, message: Message) -> dict[str, Weighted]:
        data, _ = self._parts()
        if self._masked is None:
            raise refused("MASKS", "a plan with differential privacy and without masks", "masks")
        return self._masked.prepare(data, self._work_of().begin_session(message.round, self._masked.sites))

    def _start_round(self, message: Message) -> tuple[dict[str, Weighted], SiteRound]:
        self._verify_new(message)
        self._work_of().begin_round(message.round, message.task == MEASURE or self.plan.method.lagged)
        return super()._start_round(message)

    def _measured_sums(self) -> dict[Measure, Sums]:
        data, trainer = self._parts()
        if not self.layout.method.measures():
            return {}
        sums = self._work_of().sums(trainer.scores(data.training, finite=False))
        kept = None if self._masked is None else self._masked.kept
        return {measure: one if kept is None else kept.sums(measure, one) for measure, one in sums.items()}

    def _factor(self, message: Message, behind: int) -> float:
        return super()._factor(message, self._work_of().counted.units)

    def _train_freely(self, current: SiteRound, message: Message) -> None:
        data, trainer = self._parts()
        terms = self._terms(current, message, data.training, len(data.training))
        steps = self._work_of().train(trainer, current.number, terms, self._verify_going_on)
        current.losses = [(0.0, 0)] * steps  # how many there were is known; what they were is not told

    def _told(self, current: SiteRound) -> Mapping[str, Weighted]:
        return {}


__all__ = ["PrivateSite"]
