# SPDX-License-Identifier: Apache-2.0
"""What every federated method is made of: frozen parameters, a half at the site, a half at the server.

The base class *is* federated averaging; a method overrides what it does differently. Methods know numpy and sums
only: tensors, transport and protection belong to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fairflare.fairness.groups import Floats, GroupIndex, Integers, Measure, Sums, Utility
from fairflare.fairness.penalty import PenaltyState
from fairflare.schema import StrictModel


class MethodParameters(StrictModel):
    """What a plan says about its method; ``name`` is declared by each method."""

    @property
    def lock_step(self) -> bool:
        """Whether all sites exchange statistics at every local step."""
        return False

    @property
    def clip(self) -> float:
        """Upper bound of the cross-entropy utility of one record."""
        return float("inf")

    def conflicts(self, sizes: Mapping[str, int]) -> Iterator[str]:
        """Say, one text each with got and expected, what does not fit attributes with ``sizes`` groups."""
        yield from ()


@dataclass(frozen=True)
class SampleTerms:
    """What a method adds to the loss of each record: sum over utilities of ``coefficient * utility``.

    Attributes
    ----------
    coefficients
        Utility -> float64 array (n,), one number per record.
    weighed
        Number of weights computed: one per record and utility.
    at_minimum, at_maximum
        Number of these that were held at the plan's bound.
    """

    coefficients: Mapping[Utility, Floats] = field(default_factory=dict)
    weighed: int = 0
    at_minimum: int = 0
    at_maximum: int = 0


@dataclass(frozen=True)
class NamedState:
    """A penalty's state with its name, for the record; ``state`` is ``None`` where only sites may know it."""

    attribute: str
    criterion: str
    measure: Measure
    strength: float
    state: PenaltyState | None


class Method:
    """Federated averaging (McMahan et al. 2017), and the shape of every other method.

    Parameters
    ----------
    parameters
        The plan's ``method``.
    sizes
        Attribute name -> number of its groups.
    min_sites
        Sites that must report a group before it counts (``cells.sites`` of the plan).
    """

    def __init__(self, parameters: MethodParameters, sizes: Mapping[str, int], min_sites: int) -> None:
        self.sizes = dict(sizes)
        self.min_sites = min_sites

    # both halves
    def measures(self) -> Sequence[Measure]:
        """What sites add up before they train; fixed by the plan, the same everywhere."""
        return ()

    # at the site
    def sample_terms(
        self,
        totals: Mapping[Measure, Sums],
        own: Mapping[Measure, Sums],
        groups: GroupIndex,
        labels: Integers,
        factor: float,
    ) -> SampleTerms:
        """Loss terms of this site's records (shape (n,)), from sums over sites and the site's own sums.

        ``factor`` (from :meth:`factor`) turns the gradient of the joint penalty into this site's mean loss.
        """
        return SampleTerms()

    def factor(self, behind: float, share: float) -> float:
        """n_s / p_s: records ``behind`` a site's mean loss over its ``share`` of the aggregate."""
        return behind / share

    # at the server
    def states(self, totals: Mapping[Measure, Sums]) -> Sequence[NamedState]:
        """What the opened sums say about each penalty, for the record."""
        return ()

    def step(self, model: np.ndarray, mean_update: Floats) -> np.ndarray:
        """The next global model (float32, (P,)) from the weighted mean of the sites' updates (float64, (P,))."""
        return (model.astype(np.float64) + mean_update).astype(np.float32)
