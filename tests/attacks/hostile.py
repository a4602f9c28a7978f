# SPDX-License-Identifier: Apache-2.0
"""A server that runs a masked job as it likes: the model, the controls and the story of each round are its own.

It keeps to the protocol, so sites see allowed messages only. What it opens is kept for the attacker to work with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fairflare.engine.local import answer
from fairflare.engine.server import Phase
from fairflare.models import vector_sha256
from fairflare.plan import Plan
from fairflare.secagg.protection import Opened
from tests.attacks.test_engine import Job
from tests.unit.engine.hospitals import four

Vector = np.ndarray
Sums = dict[str, np.ndarray]
#: One step over all records of a site: the update is -lr times the gradient, and the same whenever it is asked again.
ONE_STEP = {"work": {"unit": "steps", "amount": 1}, "batch": {"unit": "batches_per_epoch", "amount": 1}}


class Hostile(Job):
    """A job whose server chooses; by default every round has the same model, controls of 0 and the true story.

    ``models``, ``controls`` and ``stories`` say by round what sites are told instead; ``sums`` has what was opened, by
    round: means of the update and of the method's further parts, and ``weight``.
    """

    def __init__(self, plan: Plan, folder: Path, names: Sequence[str] = tuple(four())) -> None:
        super().__init__(plan, folder, names)
        self.start = self.coordinator.model.copy()
        self.models: dict[int, Vector] = {}
        self.controls: dict[int, Vector] = {}
        self.stories: dict[int, Mapping[str, int]] = {}
        self.sums: dict[int, Sums] = {}
        self.absent: Callable[[str, Phase], bool] = lambda name, phase: False
        self.round = 0
        self._play()

    def attack(self, act: Callable[[str, Phase], None] | None = None) -> None:
        """Play all rounds; the final evaluation is of no use to the server."""
        for phase in self.coordinator.phases(sorted(self.sites)):
            if phase.message.task == "evaluate":
                break
            for name in phase.targets:
                if self.absent(name, phase):
                    phase.collector.refuse(name, "FF-TEST-ABSENT")
                else:
                    (act or (lambda name, phase: answer(self.sites[name], phase)))(name, phase)
            message = phase.message
            self.refused += [(one.site, one.task, message.round, one.code) for one in phase.collector.refusals]

    def _play(self) -> None:
        coordinator = self.coordinator
        begin, lose = coordinator._round, getattr(coordinator, "_lose", None)

        def with_model(number: int):
            self.round = number
            model = self.models.get(number, self.start).copy()
            coordinator.model, coordinator._sha256 = model, vector_sha256(model)
            yield from begin(number)

        def keep(number: int, participants: object, risk: object, validated: object, trained: Mapping[str, Opened],
                 acted: int | None = None) -> None:  # fmt: skip
            labels = ("update", *coordinator.layout.parts)
            self.sums[number] = {label: trained[label].mean.copy() for label in labels}
            self.sums[number]["weight"] = np.array(coordinator._share)
            coordinator._counted.update(dict.fromkeys(trained["update"].sites, number))

        coordinator._round, coordinator._aggregate, coordinator._inputs = with_model, keep, self._told
        assert lose is not None

    def _told(self) -> dict[str, np.ndarray]:
        inputs: dict[str, np.ndarray] = {}
        for label, size in self.coordinator.layout.inputs_of_method.items():
            inputs[label] = self.controls.get(self.round, np.zeros(size)).astype(np.float32)
        if self.plan.method.settles:
            story = self.stories.get(self.round, self.coordinator._counted)
            inputs["counted"] = np.frombuffer(json.dumps(story).encode(), dtype=np.uint8)
        return inputs


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """1 for the same direction."""
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-300))
