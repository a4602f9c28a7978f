# SPDX-License-Identifier: Apache-2.0
"""The FlexFair penalty and its exact gradient, from group risks alone.

With group risks R_k, weights w_k, mean risk Rbar = sum_k w_k R_k and D_k = R_k - Rbar:

* paper form (FlexFair, Nat. Commun. 2025, eq. 9): P = sum_k D_k^2, dP/dR_k = 2 (D_k - w_k sum_j D_j);
* bounded form: P_w = sum_k w_k D_k^2, dP_w/dR_k = 2 w_k (D_k - sum_j w_j D_j), which is 2 w_k D_k when sum w = 1.

``reduction="mean"`` divides by the number of groups K, as the authors' code does. Weights are constants: nothing is
differentiated through them. The largest gap F = max_k |D_k| (eq. 4) satisfies F <= sqrt(P) <= sqrt(K) F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairflare.fairness.groups import CellSums, Floats, HospitalSums

Form = Literal["paper", "bounded"]
Reduction = Literal["sum", "mean"]
Weights = Literal["records", "uniform"] | tuple[float, ...]


@dataclass(frozen=True)
class PenaltyState:
    """A penalty at one model: arrays of shape (K,), NaN / 0 where a group is absent.

    Attributes
    ----------
    present
        Which groups count (reported by enough sites).
    risk, weight, coefficient
        R_k (NaN if absent), w_k, and dP/dR_k (0 if absent).
    count
        N_k, records behind each risk.
    value, gap
        P and F; 0 when fewer than two groups are present.
    """

    present: np.ndarray
    risk: Floats
    weight: Floats
    coefficient: Floats
    count: Floats
    value: float
    gap: float

    @property
    def per_record(self) -> Floats:
        """a_k = (dP/dR_k) / N_k, shape (K,): gradient of P with respect to one record's utility."""
        return np.divide(self.coefficient, self.count, out=np.zeros_like(self.count), where=self.present)


def group_weights(weights: Weights, count: Floats, present: np.ndarray) -> Floats:
    """w_k of the groups that are present, 0 elsewhere; shape (K,).

    ``records``: n_k / n over known records. ``uniform``: 1 / K over present groups. Fixed numbers: those of absent
    groups are shared out in proportion, so that the declared sum is kept.
    """
    if weights == "records":
        raw = np.where(present, count, 0.0)
        return np.asarray(raw / max(float(raw.sum()), 1.0), dtype=np.float64)
    if weights == "uniform":
        return np.asarray(present / max(int(present.sum()), 1), dtype=np.float64)
    fixed = np.array(weights, dtype=np.float64)
    kept = np.where(present, fixed, 0.0)
    if present.all() or kept.sum() == 0:
        return kept
    return np.asarray(kept * (float(fixed.sum()) / float(kept.sum())), dtype=np.float64)


def penalty_value(risk: Floats, weight: Floats, form: Form, reduction: Reduction) -> float:
    """P for K >= 2 present groups (arrays of shape (K,)); 0 for fewer."""
    if risk.size < 2:
        return 0.0
    gap = risk - weight @ risk
    value = float((gap**2).sum() if form == "paper" else weight @ gap**2)
    return value / risk.size if reduction == "mean" else value


def penalty_gradient(risk: Floats, weight: Floats, form: Form, reduction: Reduction) -> Floats:
    """dP/dR_k for K >= 2 present groups (arrays of shape (K,)); zeros for fewer."""
    if risk.size < 2:
        return np.zeros(risk.size)
    gap = risk - weight @ risk
    gradient = 2 * (gap - weight * gap.sum()) if form == "paper" else 2 * weight * (gap - weight @ gap)
    return gradient / risk.size if reduction == "mean" else gradient


def evaluate(sums: CellSums, weights: Weights, form: Form, reduction: Reduction, min_sites: int) -> PenaltyState:
    """Risks, weights, coefficients, P and F from sums over sites.

    Groups that nobody, or fewer than ``min_sites`` sites, report are dropped from K and from w.
    """
    present = (sums.count > 0) & (sums.sites >= min_sites)
    risk = np.divide(sums.total, sums.count, out=np.full(sums.count.shape, np.nan), where=present)
    weight = group_weights(weights, sums.count, present)
    some_risk, some_weight = risk[present], weight[present]
    coefficient = np.zeros_like(risk)
    gap = value = 0.0
    # Without weight there is no mean to be fair to: the penalty would pull every risk to 0 instead.
    if some_risk.size >= 2 and some_weight.any():
        coefficient[present] = penalty_gradient(some_risk, some_weight, form, reduction)
        gap = float(np.abs(some_risk - some_weight @ some_risk).max())
        value = penalty_value(some_risk, some_weight, form, reduction)
    return PenaltyState(present, risk, weight, coefficient, np.where(present, sums.count, 0.0), value, gap)


def hospital_coefficient(own: HospitalSums, sums: HospitalSums, form: Form, reduction: Reduction) -> float:
    """dP/dR_s of one hospital, computed at that hospital from sums over hospitals and its own risk.

    Uniform weights need the sum of risks only; weights n_s / n also the sums of utility and of records. A hospital
    without enough records, or alone, gets 0. (Algorithms section 8.6; secure_aggregation 3.1 rule 9.)
    """
    if own.sites == 0 or sums.sites < 2:
        return 0.0
    hospitals = sums.sites
    if sums.total is not None and sums.count is not None and own.count is not None:
        mean = sums.total / sums.count
        weight = own.count / sums.count
    else:
        mean = sums.risk / hospitals
        weight = 1.0 / hospitals
    gap = own.risk - mean
    coefficient = 2 * (gap - weight * (sums.risk - hospitals * mean)) if form == "paper" else 2 * weight * gap
    return coefficient / hospitals if reduction == "mean" else coefficient


def labels_of(criterion: str, labels: int = 2) -> Sequence[int]:
    """Conditions of a criterion in a task with so many labels: -1 is everybody, c is "true label c"."""
    return {
        "equal_accuracy": (-1,),
        "demographic_parity": (-1,),
        "equal_opportunity": (1,) if labels == 2 else tuple(range(labels)),
        "equalized_odds": tuple(range(labels)),
    }[criterion]
