# SPDX-License-Identifier: Apache-2.0
"""Fair mixup: Chuang and Mroueh, Fair Mixup: Fairness via Interpolation, ICLR 2021; inside each hospital.

Records of two groups are mixed, x_t = t x0 + (1 - t) x1 with t uniform over [0, 1] (one for a batch), and the output is
kept from changing along the way from one group to the other: loss + strength |mean <grad f(x_t), x1 - x0>| (section
4). Pairs are drawn inside a site, between the groups of its own batch, so nothing is exchanged that FedAvg does not
exchange. A site without both groups in a batch adds nothing.

Equal accuracy between hospitals cannot be had this way: records of two hospitals would have to be in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fairflare.fairness.groups import HOSPITAL
from fairflare.fairness.penalty import labels_of
from fairflare.methods.base import Method, MethodParameters, Mixing, Setting


class FairMixupParameters(MethodParameters):
    """Parameters of fair mixup. With ``strength`` = 0 it is FedAvg.

    ``criterion``: pairs among all records (``demographic_parity``), among records of the second label
    (``equal_opportunity``), or of each label (``equalized_odds``; the regularisers are added). ``direction``: the
    derivative along x1 - x0 (``difference``, the paper's) or along x_t - x0 (``to_mixed``, the FlexFair authors', which
    shrinks it by 1 - t). ``output``: the positive label's probability, or the ``sum`` of a sigmoid of each output (the
    FlexFair authors').
    """

    name: Literal["fairmixup"]
    attribute: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    criterion: Literal["demographic_parity", "equal_opportunity", "equalized_odds"]
    strength: Annotated[float, Field(ge=0)]
    direction: Literal["difference", "to_mixed"]
    output: Literal["probability", "sum"]

    @property
    def mixing(self) -> Mixing | None:
        """The regulariser."""
        if self.strength == 0:
            return None
        return Mixing(self.attribute, tuple(labels_of(self.criterion, 2)), self.strength, self.direction, self.output)

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Hospitals as groups, and tasks without a positive label."""
        if self.attribute == HOSPITAL:
            yield (
                "got fairmixup between hospitals, expected a declared attribute: records of two hospitals would have "
                "to be mixed, and no record leaves a hospital"
            )
        elif setting.sizes.get(self.attribute) != 2:
            size = setting.sizes.get(self.attribute)
            got = "which the plan does not declare" if size is None else f"which has {size} groups"
            yield f"got fairmixup on '{self.attribute}', {got}, expected a declared attribute with two groups"
        if setting.task != "classification" or setting.labels != 2:
            what = setting.task if setting.task != "classification" else f"{setting.labels} labels"
            yield f"got fairmixup for {what}, expected a classification of two labels: it compares a positive rate"


class FairMixup(Method, of=FairMixupParameters):
    """FedAvg with the regulariser in each site's loss (algorithms section 9)."""
