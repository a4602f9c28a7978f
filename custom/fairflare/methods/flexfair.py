# SPDX-License-Identifier: Apache-2.0
"""FlexFair: Achieving flexible fairness metrics in federated medical imaging, Nat. Commun. 2025; truly federated.

Sites send sums per group; from their totals each site derives what one of its records adds to the gradient of
lambda P, so that the weighted sum of the sites' gradients is the gradient of the joint objective
(1/n) sum_i l_i + lambda P, exactly at the model at which the sums were taken (algorithms section 8.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fairflare.fairness.groups import (
    HOSPITAL,
    CellSums,
    Floats,
    GroupIndex,
    HospitalSums,
    Integers,
    Measure,
    Sums,
    Utility,
    group_index,
)
from fairflare.fairness.penalty import Form, Reduction, evaluate, hospital_coefficient, labels_of
from fairflare.methods.base import Method, MethodParameters, NamedState, SampleTerms, Setting
from fairflare.schema import StrictModel

Weight = Annotated[float, Field(ge=0)]


class Penalty(StrictModel):
    """One fairness penalty: strength x P over the groups of an attribute, under a criterion's conditions.

    ``weights`` are the w_k of the mean risk; ``form`` and ``reduction`` are explained in ``fairness.penalty``.
    """

    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    criterion: Literal["equal_accuracy", "demographic_parity", "equal_opportunity", "equalized_odds"]
    utility: Utility
    weights: Literal["records", "uniform"] | tuple[Weight, ...]
    reduction: Reduction
    form: Form
    strength: Annotated[float, Field(ge=0)]


class Every(StrictModel):
    """Group sums at the start of every ``rounds``-th round; the rounds between use the last ones."""

    rounds: Annotated[int, Field(ge=2, le=1000)]


class FlexFairParameters(MethodParameters):
    """FlexFair's parameters. With every ``strength`` 0 it is FedAvg.

    ``refresh`` (algorithms section 8.5): group sums at the start of each round (``round``); at every local step
    (``step``: lock step, exact replica of joint training); with the update, for the next round (``round_lagged``: no
    trip of their own, one round old, none in a session's first one); or every few rounds. ``remeasure_own``: after so
    many local steps a site measures its own part of the sums anew and replaces it in the totals, if it took part in
    them (``null``: never; exact for its own risk where hospitals are the groups). ``scaling``: ``joint`` is the exact
    gradient; ``official`` mimics the authors' code, whose penalty has no factor n / n_s. ``min_weight`` and
    ``max_weight`` (``null``: no bound) hold the factor 1 + lambda n a_k that multiplies the part of a record's loss
    that is the utility, the task's class weight aside; with the utility probability they hold the coefficient lambda n
    a_k to [min_weight - 1, max_weight - 1]. Once a bound binds, the gradient is no longer the joint one; the record
    counts how often. ``utility_clip`` (``null``: none) bounds the (binary) cross-entropy of one record, so that a
    single outlier cannot dominate a group.
    """

    name: Literal["flexfair"]
    penalties: Annotated[tuple[Penalty, ...], Field(min_length=1, max_length=16)]
    refresh: Literal["round", "step", "round_lagged"] | Every
    remeasure_own: Annotated[int, Field(ge=1, le=100_000)] | None
    scaling: Literal["joint", "official"]
    min_weight: Annotated[float, Field(le=1)] | None
    max_weight: Annotated[float, Field(ge=1)] | None
    utility_clip: Annotated[float, Field(gt=0)] | None

    @property
    def lock_step(self) -> bool:
        """Whether all sites exchange statistics at every local step."""
        return self.refresh == "step"

    @property
    def lagged(self) -> bool:
        """Whether statistics of a round's first model ride with its update and act in the next round."""
        return self.refresh == "round_lagged"

    @property
    def measured_every(self) -> int:
        """Rounds from one exchange of statistics to the next."""
        return self.refresh.rounds if isinstance(self.refresh, Every) else 1

    @property
    def remeasured_every(self) -> int | None:
        """Local steps after which a site measures its own part of the statistics anew."""
        return self.remeasure_own

    @property
    def clip(self) -> float:
        """Upper bound of the utility of one record, where it is a cross-entropy."""
        return float("inf") if self.utility_clip is None else self.utility_clip

    @property
    def compares_hospitals(self) -> Literal["uniform", "records"] | None:
        """Whether hospitals are groups that are compared, and with which weights."""
        found = [penalty.weights for penalty in self.penalties if penalty.attribute == HOSPITAL]
        return None if not found else "uniform" if set(found) == {"uniform"} else "records"

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Penalties on undeclared attributes, weights of the wrong number, and combinations without a meaning."""
        if self.lock_step and self.remeasure_own is not None:
            yield "got remeasure_own with refresh 'step', expected null: every step measures everything anew"
        seen = set()
        for penalty in self.penalties:
            where = f"the penalty on '{penalty.attribute}'"
            key = (penalty.attribute, penalty.criterion, penalty.utility)
            if key in seen:
                yield f"got {where} twice for {penalty.criterion}, expected each once"
            seen.add(key)
            yield from _task_conflicts(penalty, where, setting.task)
            yield from _penalty_conflicts(penalty, where, setting.sizes)


_UTILITIES: Mapping[str, tuple[Utility, ...]] = {
    "classification": ("cross_entropy", "probability"),
    "segmentation": ("dice_loss", "binary_cross_entropy"),
}


def _task_conflicts(penalty: Penalty, where: str, task: str) -> Iterator[str]:
    able = _UTILITIES[task]
    if penalty.utility not in able:
        yield f"got utility {penalty.utility} for {where} in {task}, expected {' or '.join(able)}"
    if task == "segmentation" and penalty.criterion != "equal_accuracy":
        expected = "expected equal_accuracy: images have no label"
        yield f"got criterion {penalty.criterion} for {where} in segmentation, {expected}"


def _penalty_conflicts(penalty: Penalty, where: str, sizes: Mapping[str, int]) -> Iterator[str]:
    fixed = isinstance(penalty.weights, tuple)
    if penalty.attribute != HOSPITAL and penalty.attribute not in sizes:
        declared = ", ".join([*sizes, HOSPITAL])
        yield f"got {where}, which the plan does not declare, expected one of {declared}"
    elif penalty.attribute == HOSPITAL and fixed:
        yield f"got fixed weights for {where}, expected records or uniform: a plan does not know who will take part"
    elif fixed and len(penalty.weights) != sizes.get(penalty.attribute):
        yield f"got {len(penalty.weights)} weights for {where}, expected {sizes.get(penalty.attribute)}, one per value"
    if fixed and not any(float(weight) > 0 for weight in penalty.weights if not isinstance(weight, str)):
        yield f"got weights of zero for {where}, expected at least one above zero"
    if penalty.form == "bounded" and penalty.reduction == "mean":
        yield f"got reduction mean with the bounded form for {where}, expected sum: its weights average already"


class FlexFair(Method, of=FlexFairParameters):
    """FlexFair over FLARE; the limit case strength = 0 is FedAvg, bit by bit."""

    parameters: FlexFairParameters

    @cached_property
    def compared(self) -> list[tuple[Penalty, Measure]]:
        """Each penalty with each of the measures it needs."""
        return [(one, measure) for one in self.parameters.penalties for measure in measures_of(one, self.labels)]

    def measures(self) -> Sequence[Measure]:
        """Each needed (attribute, condition, utility) once, in a fixed order."""
        return sorted({measure for _, measure in self.compared})

    def factor(self, behind: float, share: float) -> float:
        """As the base class; without the share in the ``official`` scaling of the authors' code (section 8.4)."""
        return behind if self.parameters.scaling == "official" else behind / share

    def sample_terms(
        self,
        totals: Mapping[Measure, Sums],
        own: Mapping[Measure, Sums],
        groups: GroupIndex,
        labels: Integers,
        factor: float,
    ) -> SampleTerms:
        """Coefficient lambda f a_k(i) of each record's utility, summed over penalties and bounded by the plan."""
        extra: dict[str, Floats] = {}
        for penalty, measure in self.compared:
            per_group = self._per_record(penalty, totals[measure], own.get(measure))
            group = group_index(measure, groups, labels.size)
            affected = (group >= 0) & ((measure.label < 0) | (labels == measure.label))
            term = np.where(affected, penalty.strength * factor * per_group[np.maximum(group, 0)], 0.0)
            extra[measure.quantity] = extra.get(measure.quantity, np.zeros(labels.shape)) + term
        return self._bounded(extra)

    def _per_record(self, penalty: Penalty, total: Sums, own: Sums | None) -> Floats:
        if isinstance(total, CellSums):
            return evaluate(total, penalty.weights, penalty.form, penalty.reduction, self.min_sites).per_record
        if not isinstance(own, HospitalSums) or own.sites == 0:
            return np.zeros(1)
        return np.array([hospital_coefficient(own, total, penalty.form, penalty.reduction) / own.local_count])

    def _bounded(self, extra: Mapping[str, Floats]) -> SampleTerms:
        low = -np.inf if self.parameters.min_weight is None else self.parameters.min_weight - 1.0
        high = np.inf if self.parameters.max_weight is None else self.parameters.max_weight - 1.0
        at_minimum = sum(int((term < low).sum()) for term in extra.values())
        at_maximum = sum(int((term > high).sum()) for term in extra.values())
        terms = {name: np.clip(term, low, high) for name, term in extra.items() if term.any()}
        return SampleTerms(terms, sum(term.size for term in extra.values()), at_minimum, at_maximum)

    def states(self, totals: Mapping[Measure, Sums | None]) -> Sequence[NamedState]:
        """Risks, weights, coefficients, P and F of each penalty; hospitals' own risks stay unknown."""
        result = []
        for penalty, measure in self.compared:
            total = totals[measure]
            state = None
            if isinstance(total, CellSums):
                state = evaluate(total, penalty.weights, penalty.form, penalty.reduction, self.min_sites)
            result.append(NamedState(penalty.attribute, penalty.criterion, measure, penalty.strength, state))
        return result


def measures_of(penalty: Penalty, labels: int) -> Iterator[Measure]:
    """What a penalty compares between groups, each with a penalty P of its own (algorithms section 8.6).

    With two labels, probability is that of the positive one. With C > 2: demographic parity compares the probability of
    each label among all records, equal opportunity that of label c among records with label c, equalized odds that of
    each label among records with each label; a cross-entropy is compared under the same conditions.
    """
    weighted = penalty.attribute == HOSPITAL and penalty.weights == "records"
    for label in labels_of(penalty.criterion, labels):
        targets: Sequence[int] = (-1,)
        if penalty.utility == "probability" and labels > 2:
            targets = (label,) if penalty.criterion == "equal_opportunity" else range(labels)
        for target in targets:
            yield Measure(penalty.attribute, label, penalty.utility, weighted, target)
