# SPDX-License-Identifier: Apache-2.0
"""FedProx: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fairflare.methods.base import Assignment, Correction, Method, MethodParameters, SiteHalf


class FedProxParameters(MethodParameters):
    """``mu`` >= 0: strength of the pull towards the round's model (equation 2). With ``mu`` = 0 it is FedAvg."""

    name: Literal["fedprox"]
    mu: Annotated[float, Field(ge=0)]


class FedProxSite(SiteHalf):
    """Adds the gradient of mu / 2 ||y - x||^2 over the parameters: mu (y - x)."""

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def begin(self, assignment: Assignment) -> Correction:
        """The pull, the same in every step."""
        return Correction(pull=self._mu)


class FedProx(Method, of=FedProxParameters):
    """FedAvg whose sites stay near the round's model; traffic and aggregation are FedAvg's (algorithms section 4)."""

    parameters: FedProxParameters

    def at_site(self) -> SiteHalf:
        """The pull at a site; it has no state."""
        return FedProxSite(self.parameters.mu)
