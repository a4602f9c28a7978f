# SPDX-License-Identifier: Apache-2.0
"""Differential privacy at a site: what a session or a round costs is paid first, then noise is drawn.

Everything about training records that leaves a site of such a plan comes out of here: the number of its units, its
group sums, and the steps of which the update is made. No loss, no exact number and no time of a step is among it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fairflare.data.manifest import Records
from fairflare.engine.incoming import refused
from fairflare.engine.objective import Scores
from fairflare.engine.training import Trainer
from fairflare.fairness.groups import CellSums, Floats, Integers, Measure, group_index, groups_of
from fairflare.methods import FlexFairParameters, SampleTerms
from fairflare.plan import ImageInput, Plan, method_of
from fairflare.plan.privacy import DifferentialPrivacy
from fairflare.privacy import noise, release
from fairflare.privacy.bill import Sampling, counting, measuring, sampling, training
from fairflare.privacy.dpsgd import DpSgd, Mechanism, UnitSampler
from fairflare.privacy.ledger import Account

#: Records of one forward and backward pass. More of them need more memory, since each has a gradient of its own.
_AT_ONCE: Final = {"image": 32, "table": 256}


@dataclass(frozen=True, eq=False)
class Counted:
    """What a site told of its training units in a session, noised and rounded to whole numbers.

    Attributes
    ----------
    units
        How many there are, at least one.
    groups
        How many in each group, (K,), perhaps below zero; and which groups it may report, (K,).
    """

    units: int
    groups: Mapping[Measure, tuple[Floats, NDArray[np.bool_]]]

    @property
    def kept(self) -> dict[Measure, NDArray[np.bool_]]:
        """Which groups the site may report."""
        return {measure: kept for measure, (_, kept) in self.groups.items()}


class PrivateWork:
    """One site's private training in one session.

    Parameters
    ----------
    plan
        A plan with differential privacy.
    records
        Training records.
    account
        What pays.
    """

    def __init__(self, plan: Plan, records: Records, account: Account) -> None:
        self.plan = plan
        self._records, self._account = records, account
        self._units = np.unique(records.units).size
        self._counted: Counted | None = None
        self._settings: release.GroupNoise | None = None
        self._paid: Sampling | None = None
        self._may_measure = False
        self._cohorts = {measure: self._cohort(measure) for measure in method_of(plan).measures()}

    @property
    def privacy(self) -> DifferentialPrivacy:
        """The plan's."""
        return privacy_of(self.plan)

    def begin_session(self, round_: int, sites: int) -> Counted:
        """Pay for, and draw, the noised numbers of a session of so many sites, once: later payments rest on them."""
        if self._counted is not None:
            raise refused("REPEAT", "this session's numbers again", "prepare once after each join")
        self._account.pay(self.plan.sha256, round_, counting(self.plan, self.privacy))
        if self.privacy.groups is not None:
            self._settings = group_noise(self.plan, sites)
        # Finely, and rounded then: noise of whole numbers would cost up to a twentieth more than the ledger has.
        variance = Fraction(self.privacy.count_noise) ** 2 * release.SCALE**2
        finely = self._units * release.SCALE + int(noise.discrete_gaussian(1, variance)[0])
        units = max(1, round(finely / release.SCALE))
        self._counted = Counted(units, {one: self._group_counts(cohort) for one, cohort in self._cohorts.items()})
        return self._counted

    @property
    def counted(self) -> Counted:
        """What was told in this session; refused before."""
        if self._counted is None:
            raise refused("NOT-JOINED", "a task before this session's numbers", "prepare first")
        return self._counted

    @property
    def drawing(self) -> Sampling:
        """How batches are drawn: from numbers that are known, or noised."""
        return sampling(self.plan, self.counted.units)

    def begin_round(self, round_: int, measured: bool) -> None:
        """Pay for a round's steps, and its group sums if it measures them, all or nothing; before anything is drawn."""
        drawing = self.drawing
        bill = [training(self.privacy, drawing), *(measuring(self.plan, self.privacy) if measured else ())]
        self._paid, self._may_measure = None, False
        self._account.pay(self.plan.sha256, round_, bill)
        self._paid, self._may_measure = drawing, measured

    def sums(self, scores: Scores) -> dict[Measure, CellSums]:
        """Noised group sums of the model that was scored: total utility, number of units, "reported"."""
        settings = self._settings
        if settings is None or not self._may_measure:
            raise refused("REPEAT", "group sums that were not paid for", "one measurement of each round")
        self._may_measure = False
        result = {}
        for measure, cohort in self._cohorts.items():
            count, kept = self.counted.groups[measure]
            values = scores.quantities[measure.quantity]
            moved = release.noised_sums(cohort, values, kept, settings) / release.SCALE
            half = settings.bound / 2
            result[measure] = CellSums(*(np.where(kept, part, 0.0) for part in (half * (count + moved), count, kept)))
        return result

    def train(self, trainer: Trainer, round_: int, terms: SampleTerms, stop: Callable[[], None]) -> int:
        """The steps that were paid for; returns how many. ``stop`` may raise between two of them."""
        drawing, self._paid = self._paid, None
        if drawing is None:
            raise refused("REPEAT", "training that was not paid for", "one training of each round")
        weights = self._weights(trainer, terms)
        private = self._private(trainer, drawing)
        try:
            with trainer.corrected():
                for number in range(drawing.steps):
                    stop()
                    private.step(weights, _losses(trainer, round_, number))
        finally:
            private.close()
        return drawing.steps

    def _private(self, trainer: Trainer, drawing: Sampling) -> DpSgd:
        privacy = self.privacy
        return DpSgd(
            trainer.network,
            trainer.optimizer,
            Mechanism(privacy.clip, most_weight(self.plan), privacy.noise_multiplier, self._expected(drawing)),
            UnitSampler(self._records.units, drawing.q, privacy.records_per_unit),
            mode=privacy.gradients,
            at_once=_AT_ONCE[self.plan.task.input.kind],
            charge=_metered(drawing.steps),
        )

    def _expected(self, drawing: Sampling) -> float:
        """Units in a batch on average, as far as anybody may know."""
        return drawing.q * self.counted.units

    def _weights(self, trainer: Trainer, terms: SampleTerms) -> Floats:
        """Weight of each record's own loss, (n,), from 0 to :func:`most_weight`."""
        own = trainer.record_weights(self._records)
        extra = terms.coefficients.get("cross_entropy")
        # Their sum can be outside by a rounding error; a refusal would tell that there is such a record.
        return own if extra is None else (own + extra).clip(0.0, most_weight(self.plan))

    def _group_counts(self, cohort: release.Cohort) -> tuple[Floats, NDArray[np.bool_]]:
        settings = self._settings
        if settings is None:  # the plan's rules
            raise refused("PLAN", "group sums without noise for them", "a plan that says how much")
        counts = release.noised_counts(cohort, settings)
        kept = np.ones(cohort.size, dtype=np.bool_)
        if self.plan.cells.minimum > 1:
            kept = release.kept_by_noised(counts, np.zeros(cohort.size, dtype=np.int64), settings, 1)
        return np.rint(counts / release.SCALE), kept

    def _cohort(self, measure: Measure) -> release.Cohort:
        records, size = self._records, groups_of(measure, self.plan.sizes)
        chosen = np.ones(len(records), dtype=bool) if measure.label < 0 else records.labels == measure.label
        group = np.where(chosen, group_index(measure, records.groups, len(records)), -1)
        groups = self.privacy.groups
        return release.Cohort(records.units, group, size, 1 if groups is None else groups.groups_per_unit)


def privacy_of(plan: Plan) -> DifferentialPrivacy:
    """The plan's differential privacy; ``FF-ROUND-PLAN`` for a plan without."""
    if plan.differential_privacy is None:
        raise refused("PLAN", "a plan without differential privacy", "one that says how much noise")
    return plan.differential_privacy


def group_noise(plan: Plan, sites: int) -> release.GroupNoise:
    """Noise of a site's group sums, in a session of so many sites.

    What is shared is shared by all but the colluders: group sums are opened over all sites or not at all.
    """
    groups, masking = privacy_of(plan).groups, plan.protection.masking
    if groups is None:
        raise refused("PLAN", "a plan without noise for its group sums", "one that says how much")
    sharing = max(sites - masking.colluders, 1) if groups.shared and masking is not None else 1
    return release.GroupNoise(
        bound=plan.method.clip, multiplier=groups.noise_multiplier, most_groups=groups.groups_per_unit,
        minimum=max(plan.cells.minimum, 1), sharing=sharing,
    )  # fmt: skip


def most_weight(plan: Plan) -> float:
    """Bound of a record's weight: of its class, and of what fairness adds to it."""
    own = max(plan.training.class_weights) if plan.task.kind == "classification" else 1.0
    if isinstance(plan.method, FlexFairParameters) and plan.method.max_weight is not None:
        return own + plan.method.max_weight - 1.0
    return own


def made_up(plan: Plan) -> torch.Tensor:
    """Two records of nobody in the form that the plan's network takes."""
    given = plan.task.input
    shape = (given.channels, given.height, given.width) if isinstance(given, ImageInput) else (2 * len(given.features),)
    size = 2 * int(np.prod(shape))
    values = np.sin(np.arange(1, size + 1, dtype=np.float64) * 0.7).astype(np.float32)
    return torch.from_numpy(values.reshape(2, *shape))


def _losses(trainer: Trainer, round_: int, number: int) -> Callable[[Integers], torch.Tensor]:
    """Losses of a step's records, each flipped by coins of its own that nobody knows.

    What the plan's seed gives goes by the place in the batch: with one patient more all others would be flipped anew,
    and the sum would move by far more than that patient's part.
    """
    flips = None
    if trainer.is_augmented:
        coins = noise.words(len(trainer.records))
        flips = np.stack([coins & np.uint64(1), coins & np.uint64(2)]).astype(np.bool_)
    return lambda index: trainer.record_losses(round_, number, index, flips)


def _metered(steps: int) -> Callable[[], None]:
    """Lets as many steps through as were paid for when the round began, and no more."""
    left = steps

    def charge() -> None:
        nonlocal left
        if left == 0:
            raise refused("REPEAT", "a step that was not paid for", "the steps of the round's bill")
        left -= 1

    return charge


__all__ = ["Counted", "PrivateWork", "group_noise", "made_up", "most_weight", "privacy_of"]
