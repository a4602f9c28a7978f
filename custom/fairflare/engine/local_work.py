# SPDX-License-Identifier: Apache-2.0
"""A method's half at a site, within a session: told what it must know, asked for what is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from fairflare.engine.counted import CountedUpdates
from fairflare.engine.incoming import refused
from fairflare.engine.messages import COUNTED, Layout, Message
from fairflare.fairness.groups import Floats, Measure, Sums
from fairflare.methods import Assignment, Correction, Work
from fairflare.models.vector import Vector
from fairflare.plan import Sgd
from fairflare.secagg.protection import Weighted


class LocalWork:
    """One site's method in one session.

    Parameters
    ----------
    name, layout
        The site, and the job's vectors.
    known
        With masks, what this site knows of whose updates were counted.
    """

    def __init__(self, name: str, layout: Layout, known: CountedUpdates | None = None) -> None:
        self.name = name
        self.layout = layout
        self._known = known
        self.half = layout.method.at_site()
        self._sent_in: int | None = None
        self._distance: tuple[int, float] | None = None

    def compare(self, round_: int, totals: Mapping[Measure, Sums], own: Mapping[Measure, Sums]) -> dict[str, Weighted]:
        """How far this site is from all, for the sum of such distances."""
        distance = self.half.distance(totals, own)
        self._distance = round_, distance
        return {"distances": Weighted(np.array([distance, 1.0], dtype=np.float64))}

    def begin(self, message: Message, share: float, typical_steps: int, distances: Floats | None) -> Correction:
        """Before local training: settle what was sent last, then ask what is added to gradients.

        ``share``: p_s. ``distances``: sums of this round's distances and of the sites that told one, if opened.
        """
        if self.layout.plan.method.settles:
            told = _counted(message.vectors[COUNTED].tobytes(), message.round)
            if self._known is not None:
                self._known.verify(told, message.round, self.name, self._sent_in)
            if self._sent_in is not None:
                self.half.settle(told.get(self.name) == self._sent_in)
                self._sent_in = None
        inputs = {label: message.vectors[label] for label in self.layout.inputs_of_method}
        self._verify_reach(inputs, typical_steps)
        distance, mean = None, None
        if distances is not None and self._distance is not None and self._distance[0] == message.round:
            distance, mean = self._distance[1], _mean_distance(distances)
        return self.half.begin(Assignment(message.round, inputs, share, typical_steps, distance, mean))

    def _verify_reach(self, inputs: Mapping[str, Vector], typical_steps: int) -> None:
        """Raise ``FF-ROUND-INPUT`` for an input that alone would move a parameter by more than half of the clip.

        A server could otherwise put every update next to the clip, where the sum says for each parameter which sites
        are beyond it, and in a few rounds what each site's update is. What all sites know decides, and nothing else.
        """
        masking, optimizer = self.layout.plan.protection.masking, self.layout.plan.training.optimizer
        if masking is None:
            return
        reach = optimizer.lr * typical_steps / (1.0 - (optimizer.momentum if isinstance(optimizer, Sgd) else 0.0))
        for label, values in inputs.items():
            if float(np.abs(values).max(initial=0.0)) * reach > masking.clip / 2:
                raise refused("INPUT", f"'{label}' that would carry updates to the clip", "at most half way to it")

    def finish(self, update: np.ndarray, steps: int) -> dict[str, Weighted]:
        """After local training: the update and its further parts, weighed as the method says."""
        plan = self.layout.plan
        optimizer = plan.training.optimizer
        momentum, nesterov = (optimizer.momentum, optimizer.nesterov) if isinstance(optimizer, Sgd) else (0.0, False)
        made = self.half.finish(Work(update, steps, optimizer.lr, momentum, nesterov))
        weight = 1.0 if made.weight is None else made.weight
        return {label: Weighted(part, weight) for label, part in made.parts.items()}

    def sent(self, round_: int, parts: Mapping[str, Floats]) -> None:
        """What left this site in a round, as it is in the sum."""
        self._sent_in = round_
        self.half.sent(parts)


def _mean_distance(distances: Floats) -> float:
    """Mean of all sites' distances; raises ``FF-ROUND-INPUT`` for one that sites cannot have: rates differ by 1."""
    total, sites = (float(number) for number in distances)
    if not (sites >= 1 and 0 <= total <= 2 * sites):
        raise refused("INPUT", "a sum of distances that sites cannot have", "from 0 to 2 for each site")
    return total / sites


def _counted(data: bytes, round_: int) -> dict[str, int]:
    """Site -> round in which its update was last counted; raises ``FF-ROUND-INPUT`` for anything else."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        found = None
    rounds = isinstance(found, dict) and all(type(at) is int and 0 <= at < round_ for at in found.values())
    if not isinstance(found, dict) or not rounds:
        raise refused("INPUT", "no readable list of the updates that were counted", "an earlier round for each site")
    return found
