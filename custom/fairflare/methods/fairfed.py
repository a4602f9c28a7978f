# SPDX-License-Identifier: Apache-2.0
"""FairFed: Ezzeldin et al., FairFed: Enabling Group Fairness in Federated Learning, AAAI 2023.

A site's weight falls where its own fairness differs from that of all sites together. Each round, before training, sites
add up decisions by group on their training records; from the totals each works out its distance from all (equation 6);
the sum of the distances is opened; then each site corrects its own weight, which only it knows, and sends its update
with it. The server sees sums: of decisions, of distances, of weighted updates and of weights.

Weights live as long as a session and begin as FedAvg's. A weight moves in each round in which its site's update counts.
What is used of it is held to [0, 1] (the paper has no upper bound), and to the plan's bounds.

What it costs in privacy. Weights follow from what a model does at a site, and the server chooses the models: it could
drive all weights but one to zero, so that the sum is one site's update. So under masks weights have bounds, the upper
one at most four times the lower. And a server that shows the same model twice gets two sums of nearly the same updates
with other weights, whose difference is about those sites whose weights moved: masks need the plan's consent
``second_sum_of_updates``. Of three sites each learns the sum of the two others' distances: that is a consent too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from fairflare.fairness.groups import EVERYBODY, HOSPITAL, CellSums, Measure, Quantity, Sums
from fairflare.methods.base import (
    OPEN_RISKS,
    PAIR_SUMS,
    SECOND_SUM,
    UPDATE,
    Assignment,
    Contribution,
    Correction,
    Method,
    MethodParameters,
    Setting,
    SiteHalf,
    Weighing,
    Work,
)

#: Most ``max_weight`` over ``min_weight`` under masks: of four equal sites none is more than 4/7 of a sum.
MOST_RATIO: Final = 4.0


class FairFedParameters(MethodParameters):
    """Parameters of FairFed. With ``beta`` = 0 it is FedAvg.

    ``beta``: fairness budget, the step by which weights move. ``attribute`` and ``criterion``: which rates are compared
    between groups (predicted positive, among all or among true positives; or correct ones); attribute ``hospital`` with
    ``equal_accuracy`` compares accuracy (or Dice) of a hospital with that of all. ``gap``: rate of the first of two
    groups minus that of the second (``difference``, the paper's), or the largest distance of a group from everybody
    (``one_vs_overall``, the FlexFair authors'). ``first_round``: whether the first model's gaps already move weights
    (``corrected``), or not (``plain``, the FlexFair authors'). ``min_weight`` and ``max_weight`` (``null``: none, as
    in the paper) bound a site's weight by these multiples of its p_s.
    """

    name: Literal["fairfed"]
    beta: Annotated[float, Field(ge=0, le=1000)]
    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    criterion: Literal["equal_accuracy", "demographic_parity", "equal_opportunity"]
    gap: Literal["difference", "one_vs_overall"]
    first_round: Literal["corrected", "plain"]
    min_weight: Annotated[float, Field(ge=0, le=1)] | None
    max_weight: Annotated[float, Field(ge=1, le=1000)] | None

    @property
    def compares_sites(self) -> bool:
        """Whether distances are exchanged."""
        return self.beta > 0

    @property
    def settles(self) -> bool:
        """A weight stays moved only where the update that it weighed was counted."""
        return self.beta > 0

    @property
    def compares_hospitals(self) -> Literal["uniform", "records"] | None:
        """Accuracies of hospitals are summed with their records, and so are distances from them."""
        return "records" if self.beta > 0 and self.attribute == HOSPITAL else None

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Attributes that the plan does not have, and rates that the task does not have."""
        size = setting.sizes.get(self.attribute)
        if self.attribute == HOSPITAL:
            if self.criterion != "equal_accuracy":
                yield f"got criterion '{self.criterion}' between hospitals, expected 'equal_accuracy'"
        elif size is None:
            known = ", ".join([*setting.sizes, HOSPITAL])
            yield f"got fairfed on '{self.attribute}', which the plan does not declare, expected one of {known}"
        elif self.gap == "difference" and size != 2:
            yield f"got the difference of {size} groups of '{self.attribute}', expected two groups or 'one_vs_overall'"
        if setting.masked and self.beta > 0:
            yield from self._of_masks(setting)
        if self.criterion != "equal_accuracy" and (setting.task == "segmentation" or setting.labels != 2):
            what = "segmentation" if setting.task == "segmentation" else f"{setting.labels} labels"
            yield f"got criterion '{self.criterion}' for {what}, expected 'equal_accuracy': there is no positive rate"

    def _of_masks(self, setting: Setting) -> Iterator[str]:
        low, high = self.min_weight or 0.0, self.max_weight
        if high is None or high > MOST_RATIO * low:
            yield (
                f"got fairfed under masks with weights from {low:g} to {'any' if high is None else format(high, 'g')} "
                f"times a site's share, expected a max_weight of at most {MOST_RATIO:g} times min_weight: otherwise a "
                "server that chooses its models could drive all weights but one to zero, and see one site's update"
            )
        if SECOND_SUM not in setting.consents:
            yield (
                f"got fairfed under masks without the consent '{SECOND_SUM}', expected it: a server that shows a model "
                "twice gets two sums of the same updates with other weights"
            )
        if self.attribute != HOSPITAL and setting.sites < 4 and not {PAIR_SUMS, OPEN_RISKS} & set(setting.consents):
            yield (
                f"got fairfed under masks with min_sites {setting.sites}, expected at least 4, or the consent "
                f"'{PAIR_SUMS}': each of three hospitals learns the sum of the two others' distances"
            )


class FairFedSite(SiteHalf):
    """Keeps its own weight: w <- w - beta (distance - mean distance) (equations 5 and 6)."""

    def __init__(self, method: FairFed) -> None:
        self._method = method
        self._share = 0.0
        self._settled: float | None = None
        self.weight: float | None = None

    def begin(self, assignment: Assignment) -> Correction:
        """Move the weight, if all sites' distances were opened."""
        parameters = self._method.parameters
        waits = parameters.first_round == "plain" and self._settled is None  # also as a resumed run begins anew
        if self._settled is None:
            self._settled = self._share = assignment.share
        self.weight = self._settled
        own, mean = assignment.distance, assignment.mean_distance
        if own is not None and mean is not None and not waits:
            self.weight -= parameters.beta * (own - mean)
        return Correction()

    def settle(self, counted: bool) -> None:
        """Keep the move of a round that was counted: in a lost one, sites could have been told different distances."""
        if counted:
            self._settled = self.weight

    def finish(self, work: Work) -> Contribution:
        """The update with this site's own weight, held to the bounds."""
        parameters = self._method.parameters
        least = self._share * (parameters.min_weight or 0.0)
        most = 1.0 if parameters.max_weight is None else min(self._share * parameters.max_weight, 1.0)
        return Contribution({UPDATE: work.update}, min(max(self.weight or 0.0, least), most))

    def distance(self, totals: Mapping[Measure, Sums], own: Mapping[Measure, Sums]) -> float:
        """|F - F_s|, or of accuracies where one of the two has no F: a group is missing or may not be shown."""
        method = self._method
        theirs, mine = method.unfairness(totals), method.unfairness(own)
        if theirs is None or mine is None:
            theirs, mine = method.overall(totals), method.overall(own)
        return 0.0 if theirs is None or mine is None else abs(theirs - mine)


class FairFed(Method, of=FairFedParameters):
    """Weights of sites corrected by fairness; only sums of them are seen (algorithms section 7)."""

    parameters: FairFedParameters

    @property
    def weighing(self) -> Weighing:
        """Weights are the sites' own, unless they cannot move."""
        return "own" if self.parameters.beta > 0 else "aggregation"

    def measures(self) -> Sequence[Measure]:
        """Rates of the groups under the criterion's condition, and correct decisions of everybody."""
        parameters = self.parameters
        if parameters.beta == 0:
            return ()
        right: Quantity = "dice" if self.task == "segmentation" else "correct"
        found = {Measure(EVERYBODY, -1, right)}
        if parameters.attribute != HOSPITAL:
            what: Quantity = right if parameters.criterion == "equal_accuracy" else "positive"
            label = 1 if parameters.criterion == "equal_opportunity" else -1
            found |= {Measure(parameters.attribute, label, what)}
            if parameters.gap == "one_vs_overall":
                found |= {Measure(EVERYBODY, label, what)}
        return sorted(found)

    def at_site(self) -> SiteHalf:
        """A site's weight."""
        return FairFedSite(self) if self.parameters.beta > 0 else SiteHalf()

    def overall(self, sums: Mapping[Measure, Sums]) -> float | None:
        """Accuracy (or mean Dice) of everybody in ``sums``; ``None`` without records."""
        for measure, one in sums.items():
            if measure.attribute == EVERYBODY and measure.utility in ("correct", "dice"):
                return _rates(one)[0]
        return None

    def unfairness(self, sums: Mapping[Measure, Sums]) -> float | None:
        """F of ``sums``; ``None`` where a group that it needs has no records, or hospitals are compared."""
        groups = {measure: one for measure, one in sums.items() if measure.attribute != EVERYBODY}
        for measure, one in groups.items():
            rates = _rates(one)
            if self.parameters.gap == "difference":
                first, second = rates
                return None if first is None or second is None else first - second
            everybody = _rates(sums[Measure(EVERYBODY, measure.label, measure.utility)])[0]
            known = [rate for rate in rates if rate is not None]
            if everybody is None or len(known) < 2:
                return None
            return max(abs(rate - everybody) for rate in known)
        return None


def _rates(sums: Sums) -> list[float | None]:
    """Mean of each group of ``sums``, ``None`` for a group of nobody."""
    if not isinstance(sums, CellSums):
        raise TypeError(f"got {type(sums).__name__}, expected CellSums")
    rates = sums.total / np.maximum(sums.count, 1.0)
    return [float(rate) if count > 0 else None for rate, count in zip(rates, sums.count, strict=True)]
