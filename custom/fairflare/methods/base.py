# SPDX-License-Identifier: Apache-2.0
"""What every federated method is made of: frozen parameters, a half at the site, a half at the server.

The base classes *are* federated averaging; a method overrides what it does differently. Methods know numpy and sums
only: tensors, transport and protection belong to the engine. What a method sends besides its update travels in the
update's own secure sum, weighed like the update: the server opens one weighted sum and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fairflare.fairness.groups import Floats, GroupIndex, Integers, Measure, Sums
from fairflare.fairness.penalty import PenaltyState
from fairflare.schema import StrictModel

#: A model, an update or a control variate: float32, (P,).
Vector = NDArray[np.float32]
#: How a part of the update is weighed in its sum. ``aggregation``: as the plan weighs sites, p_s; ``own``: by a number
#: in [0, 1] that only the site knows, and nobody can check.
Weighing = Literal["aggregation", "own"]

UPDATE: Final = "update"
#: What hospitals agree to by taking part (``consents`` of a plan): to a second weighted sum of the same updates; that
#: of three hospitals each learns the sum of the two others' risks; that each hospital's risk may be known; that noise
#: of group sums is added by all hospitals together.
SECOND_SUM: Final = "second_sum_of_updates"
PAIR_SUMS: Final = "pair_sums_of_three_hospitals"
OPEN_RISKS: Final = "open_hospital_risks"
SHARED_NOISE: Final = "shared_noise"


@dataclass(frozen=True)
class Setting:
    """What a method must know of the rest of a plan to say whether it can be had with it.

    Attributes
    ----------
    sizes, labels, task
        Groups of each attribute; number of labels; ``classification`` or ``segmentation``.
    optimizer, momentum, state
        ``sgd`` or ``adamw``; momentum (0 for AdamW); whether its state goes on: ``keep`` or ``reset``.
    same_steps
        Whether every site makes the same number of local steps, whatever its number of records.
    masked, honest
        Whether the server sees sums only; and of how many sites, at least, if the plan's colluders help it.
    consents
        What hospitals agree to by taking part.
    norm_clip
        Whether an update is scaled down to a norm before it is summed.
    sites
        Fewest sites of a sum (``federation.min_sites``).
    """

    sizes: Mapping[str, int]
    labels: int
    task: str
    optimizer: str
    momentum: float
    state: str
    same_steps: bool
    masked: bool
    honest: int
    consents: tuple[str, ...] = ()
    norm_clip: bool = False
    sites: int = 3


class MethodParameters(StrictModel):
    """What a plan says about its method; each method declares its ``name`` as a literal."""

    name: str

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

    @property
    def compares_sites(self) -> bool:
        """Whether sites tell, between ``measure`` and ``train``, how far they are from the sums of all."""
        return False

    @property
    def settles(self) -> bool:
        """Whether a site must know whose updates were in the last model, to go on from its own state."""
        return False

    @property
    def mixing(self) -> Mixing | None:
        """A regulariser on mixed records of two groups, or none."""
        return None

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Say, one text each with got and expected, what does not fit the rest of the plan."""
        yield from ()


@dataclass(frozen=True)
class Mixing:
    """A regulariser on records mixed from two groups of a batch: its strength, whose groups, and within which labels.

    ``labels``: pairs are drawn among records of each of these labels, or of all together (-1). ``direction``: along
    x1 - x0 (``difference``), or from x0 to the mixed record (``to_mixed``). ``output``: the probability of the positive
    label, or the sum of both outputs.
    """

    attribute: str
    labels: tuple[int, ...]
    strength: float
    direction: Literal["difference", "to_mixed"]
    output: Literal["probability", "sum"]


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


@dataclass(frozen=True)
class Part:
    """One more vector beside the update, in the same secure sum: its length, float32, and its largest coordinate.

    ``clip``: ``None`` for the plan's own bound on updates.
    """

    length: int
    clip: float | None = None


@dataclass(frozen=True)
class Assignment:
    """What a site knows as a round of training begins.

    Attributes
    ----------
    round
        Its number.
    inputs
        Vectors of :meth:`Method.inputs`, the same at all sites.
    share
        p_s: the site's part of the aggregate as the plan weighs sites.
    typical_steps
        Local steps of a site with the mean number of records.
    distance, mean_distance
        For methods that compare sites: this site's distance, and the mean over all; ``None`` where none was opened.
    """

    round: int
    inputs: Mapping[str, Vector]
    share: float
    typical_steps: int
    distance: float | None = None
    mean_distance: float | None = None


@dataclass(frozen=True)
class Correction:
    """What is added to the gradient of every local step: pull (y - x) + shift, x being the round's model.

    ``after_step``: the shift does not enter the optimiser; -lr shift is added to the parameters after its step.
    """

    pull: float = 0.0
    shift: Vector | None = None
    after_step: bool = False


@dataclass(frozen=True)
class Work:
    """A site's finished local training: update y - x, float32 (P,); number of steps; the optimiser's own numbers."""

    update: Vector
    steps: int
    lr: float
    momentum: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True)
class Contribution:
    """What a site adds to a round: the update and further parts by label; its weight, where :data:`Weighing` is own."""

    parts: Mapping[str, Vector]
    weight: float | None = None


class SiteHalf:
    """A method at one site, for one session: what it adds to local training, and what it sends. Here: FedAvg."""

    def begin(self, assignment: Assignment) -> Correction:
        """Before local training."""
        return Correction()

    def finish(self, work: Work) -> Contribution:
        """After local training; the state that depends on it stays pending until :meth:`settle`."""
        return Contribution({UPDATE: work.update})

    def sent(self, parts: Mapping[str, Floats]) -> None:
        """What the parts became in the sum: clipped, and rounded as the protection does."""

    def settle(self, counted: bool) -> None:
        """Whether this site's last contribution is in the newest model."""

    def distance(self, totals: Mapping[Measure, Sums], own: Mapping[Measure, Sums]) -> float:
        """How far this site is from all, >= 0, from the sums of all sites and its own."""
        raise NotImplementedError


class ServerHalf:
    """A method at the server, for one session. Here: x <- x + sum_s p_s (y_s - x)."""

    def inputs(self) -> Mapping[str, Vector]:
        """Vectors that go to all sites with the model; see :meth:`Method.inputs`."""
        return {}

    def step(self, model: Vector, means: Mapping[str, Floats], share: float) -> Vector:
        """The next global model.

        Parameters
        ----------
        model
            float32, (P,).
        means
            Weighted means over the sites that counted, float64: ``update`` (P,), and the method's further parts.
        share
            Sum of p_s over the sites that counted, where p_s sum to 1 over the session; in (0, 1]. Says nothing where
            sites choose their own weights.
        """
        return moved(model, means[UPDATE])


def moved(model: Vector, step: Floats) -> Vector:
    """The model, float32 (P,), moved by a step in float64."""
    return (model.astype(np.float64) + step).astype(np.float32)


#: Every method by its name in a plan; ``fairflare.methods`` fills it.
METHODS: Final[dict[str, type[Method]]] = {}


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
    task
        ``classification`` or ``segmentation``.
    """

    #: The parameters of the methods' own class.
    parameters: Any
    of: ClassVar[type[MethodParameters]]

    def __init_subclass__(cls, *, of: type[MethodParameters] | None = None) -> None:
        """Enter a method in :data:`METHODS` under the name that its parameters declare."""
        super().__init_subclass__()
        if of is not None:
            cls.of = of
            (name,) = get_args(of.model_fields["name"].annotation)
            METHODS[name] = cls

    def __init__(
        self,
        parameters: MethodParameters,
        sizes: Mapping[str, int],
        min_sites: int,
        labels: int = 2,
        task: str = "classification",
    ) -> None:
        self.parameters = parameters
        self.sizes = dict(sizes)
        self.min_sites = min_sites
        self.labels = labels
        self.task = task

    # both halves
    def measures(self) -> Sequence[Measure]:
        """What sites add up before they train; fixed by the plan, the same everywhere."""
        return ()

    def parts(self, parameters: int) -> Mapping[str, Part]:
        """Further parts of the update of a network with so many parameters, by label."""
        return {}

    def inputs(self, parameters: int) -> Mapping[str, int]:
        """Lengths of the float32 vectors that go to all sites before they train."""
        return {}

    @property
    def weighing(self) -> Weighing:
        """How the update and its further parts are weighed."""
        return "aggregation"

    def at_site(self) -> SiteHalf:
        """The half at a site, at the beginning of a session."""
        return SiteHalf()

    def at_server(self, parameters: int) -> ServerHalf:
        """The half at the server, at the beginning of a session."""
        return ServerHalf()

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
    def states(self, totals: Mapping[Measure, Sums | None]) -> Sequence[NamedState]:
        """What the opened sums say about each penalty, for the record; ``None`` where only sites know them."""
        return ()
