# SPDX-License-Identifier: Apache-2.0
"""FedNova.

Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020.

A site that makes more local steps than others pulls the model towards its own optimum. FedNova divides each update by
the norm of its steps' coefficients a_s before averaging, and multiplies the mean by the mean of the a_s.

Both are sums, and the server needs nothing else: a site sends (a / a_s) dy_s and a_s / a - 1, weighed like an update,
where a is that of a site with the mean number of records, which all sites know. So where all a_s are equal the numbers
sent are FedAvg's, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import numpy as np

from fairflare.errors import RoundError
from fairflare.fairness.groups import Floats
from fairflare.methods.base import (
    UPDATE,
    Assignment,
    Contribution,
    Correction,
    Method,
    MethodParameters,
    Part,
    ServerHalf,
    Setting,
    SiteHalf,
    Vector,
    Work,
    moved,
)

NORMALIZER: Final = "normalizer"
#: Largest a_s / a - 1. A site has at most all records of n sites, so it is below n, but for the rounding of batches.
_MOST: Final = 64.0


class FedNovaParameters(MethodParameters):
    """``normalize`` false is what the FlexFair authors' code does: its FedNova model is overwritten by FedAvg's."""

    name: Literal["fednova"]
    normalize: bool

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Optimisers whose accumulated step has no such norm."""
        if not self.normalize:
            return
        if setting.optimizer != "sgd":
            yield (
                f"got fednova with {setting.optimizer}, expected sgd: an update is normalised by the coefficients of "
                "its gradients, which adaptive steps do not have"
            )
        elif setting.momentum > 0 and setting.state == "keep":
            yield (
                "got fednova with momentum whose state is kept, expected state 'reset': gradients of earlier rounds "
                "would be in an update that is normalised by this round's steps"
            )


def norm_of_steps(steps: int, momentum: float, nesterov: bool) -> float:
    """||a||_1 for so many steps of SGD: how far they lead if every gradient is 1 and the learning rate is 1.

    Without momentum it is the number of steps; with momentum rho [T - rho (1 - rho^T) / (1 - rho)] / (1 - rho)
    (section 4 of the paper; Nesterov's form by the same sum).
    """
    velocity = reached = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        reached += 1.0 + momentum * velocity if nesterov else velocity
    return reached


class FedNovaSite(SiteHalf):
    """Normalises its update before it is weighed."""

    def __init__(self) -> None:
        self._typical = 0

    def begin(self, assignment: Assignment) -> Correction:
        """Training itself is FedAvg's."""
        self._typical = assignment.typical_steps
        return Correction()

    def finish(self, work: Work) -> Contribution:
        """(a / a_s) dy_s, and a_s / a - 1; raises ``FF-ROUND-STEPS`` where that is out of all proportion."""
        own = norm_of_steps(work.steps, work.momentum, work.nesterov)
        typical = norm_of_steps(self._typical, work.momentum, work.nesterov)
        excess = own / typical - 1.0
        if excess > _MOST:
            raise RoundError(
                "FF-ROUND-STEPS",
                got=f"more than {_MOST:g} times the local work of a site with the mean number of records",
                expected="less",
                next_step="train a number of steps instead of epochs at every site (training.work in the plan)",
            )
        update = (work.update.astype(np.float64) * (typical / own)).astype(np.float32)
        return Contribution({UPDATE: update, NORMALIZER: np.array([excess], dtype=np.float32)})


class FedNovaServer(ServerHalf):
    """x <- x + (sum p_s a_s / a) sum p_s (a / a_s) dy_s (equation 7, with the paper's tau_eff = sum p_s a_s)."""

    def step(self, model: Vector, means: Mapping[str, Floats], share: float) -> Vector:
        """Move the model."""
        return moved(model, means[UPDATE] * (1.0 + float(means[NORMALIZER][0])))


class FedNova(Method, of=FedNovaParameters):
    """Normalised averaging; with equal steps at all sites it is FedAvg, for every momentum (algorithms section 6)."""

    parameters: FedNovaParameters

    def parts(self, parameters: int) -> Mapping[str, Part]:
        """One number: the site's a_s over the typical one, less 1."""
        return {NORMALIZER: Part(1, _MOST)} if self.parameters.normalize else {}

    def at_site(self) -> SiteHalf:
        """The normalising half, if there is one."""
        return FedNovaSite() if self.parameters.normalize else SiteHalf()

    def at_server(self, parameters: int) -> ServerHalf:
        """The half that multiplies by the mean."""
        return FedNovaServer() if self.parameters.normalize else ServerHalf()
