# SPDX-License-Identifier: Apache-2.0
"""What every federated method is made of: frozen parameters, a half at the site, a half at the server.

The base class *is* federated averaging; a method overrides what it does differently. Methods know numpy and sums
only: tensors, transport and protection belong to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fairflare.fairness.groups import Floats, GroupIndex, Integers, Measure, Sums
from fairflare.fairness.penalty import PenaltyState
from fairflare.schema import StrictModel


class MethodParameters(StrictModel):
    """What a plan says about its method; ``name`` is declared by each method."""

    @property
    def lock_step(self) -> bool:
        """Whether all sites exchange statistics at every local step."""
        return False

    @property
    def lagged(self) -> bool:
        """Whether statistics of a round's first model ride with its update and act in the next round."""
        return False

    @property
    def measured_every(self) -> int:
        """Rounds from one exchange of statistics to the next."""
        return 1

    @property
    def remeasured_every(self) -> int | None:
        """Local steps after which a site measures its own part of the statistics anew; ``None``: never."""
        return None

    @property
    def counts_only(self) -> bool:
        """Whether a run counts records and ends, without a model."""
        return False

    @property
    def clip(self) -> float:
        """Upper bound of the utility of one record, where it is a cross-entropy."""
        return float("inf")

    @property
    def compares_hospitals(self) -> Literal["uniform", "records"] | None:
        """Whether hospitals are groups that are compared, and with which weights."""
        return None

    def conflicts(self, sizes: Mapping[str, int], task: str) -> Iterator[str]:
        """Say, one text each with got and expected, what does not fit ``task`` and attributes with ``sizes`` groups."""
        yield from ()


@dataclass(frozen=True)
class SampleTerms:
    """What a method adds to the loss of each record: sum over quantities of ``coefficient * quantity``.

    Attributes
    ----------
    coefficients
        Quantity (``Measure.quantity``) -> float64 array (n,), one number per record.
    weighed
        Number of weights computed: one per record and utility.
    at_minimum, at_maximum
        Number of these that were held at the plan's bound.
    """

    coefficients: Mapping[str, Floats] = field(default_factory=dict)
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
    labels
        Number of the task's labels.
    """

    def __init__(self, parameters: MethodParameters, sizes: Mapping[str, int], min_sites: int, labels: int = 2) -> None:
        self.sizes = dict(sizes)
        self.min_sites = min_sites
        self.labels = labels

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
