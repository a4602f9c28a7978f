# SPDX-License-Identifier: Apache-2.0
"""The authors' way, written with bare PyTorch: what lock step must equal.

All hospitals are in one process, with one joint loss, one backward pass through all models, one optimiser per hospital.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fairflare.engine.training import Trainer
from fairflare.fairness.groups import HOSPITAL
from fairflare.models import initial_vector, load_vector, to_vector

STEPS = 3


class Batch:
    """One hospital's batch at one step: the reference's own losses, labels and groups."""

    def __init__(self, trainer, records, round_, step, index, place):
        inputs, target = trainer.batch(round_, step, index)
        self.outputs = trainer.model(inputs)
        self.target = target
        self.labels = torch.from_numpy(records.labels[index])
        self.groups = {name: torch.from_numpy(group[index]) for name, group in records.groups.items()}
        self.groups[HOSPITAL] = torch.full((len(index),), place)

    def losses(self):
        if self.outputs.dim() == 2:
            return nn.functional.cross_entropy(self.outputs, self.labels, reduction="none")
        entropy, dice = self.parts()
        return entropy + dice

    def parts(self):
        entropy, dice = [], []
        for label in range(self.outputs.shape[1]):
            logit, truth = self.outputs[:, label], (self.target == label + 1).float()
            chance = logit.sigmoid()
            pixels = nn.functional.binary_cross_entropy_with_logits(logit, truth, reduction="none")
            entropy.append(pixels.mean(dim=(1, 2)))
            both, each = (chance * truth).sum(dim=(1, 2)), chance.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
            dice.append(1 - 2 * both / (each + 1))
        return torch.stack(entropy).mean(dim=0), torch.stack(dice).mean(dim=0)

    def utility(self, name, target):
        if name == "probability":
            return self.outputs.softmax(dim=1)[:, target]
        if name == "cross_entropy":
            return self.losses()
        entropy, dice = self.parts()
        return dice if name == "dice_loss" else entropy


def reference(the_plan, loaders):
    data = {name: load() for name, load in loaders.items()}
    n = sum(len(site.training) for site in data.values())
    weights = {name: len(site.training) / n for name, site in data.items()}
    vector = initial_vector(the_plan)
    trainers = {name: Trainer(the_plan, name, site.training) for name, site in data.items()}
    for round_ in range(the_plan.training.rounds):
        chosen = {name: list(trainer.batches(round_)) for name, trainer in trainers.items()}
        for trainer in trainers.values():
            load_vector(trainer.model, vector)
        for step in range(STEPS):
            batches = [
                Batch(trainer, data[name].training, round_, step, chosen[name][step], place)
                for place, (name, trainer) in enumerate(trainers.items())
            ]
            joint = the_plan.method.scaling == "joint"
            shares = weights.values() if joint else [1.0] * len(batches)
            loss = sum(share * batch.losses().mean() for share, batch in zip(shares, batches, strict=True))
            loss = loss + sum(penalty_value(the_plan, penalty, batches) for penalty in the_plan.method.penalties)
            for trainer in trainers.values():
                trainer.optimizer.zero_grad()
            loss.backward()
            for name, trainer in trainers.items():
                if joint:  # a site's own loss is 1 / p_s of its part of the joint one
                    for parameter in trainer.model.parameters():
                        parameter.grad /= weights[name]
                trainer.optimizer.step()
        vector = sum(w * to_vector(trainers[name].model).astype(np.float64) for name, w in weights.items())
        vector = vector.astype(np.float32)
    return vector


def penalty_value(the_plan, penalty, batches):
    kinds = len(the_plan.task.labels)
    every = range(kinds)
    conditions = {"equalized_odds": every, "equal_opportunity": [1] if kinds == 2 else every}.get(
        penalty.criterion, [None]
    )
    total = torch.zeros(())
    for label in conditions:
        targets = [-1]
        if penalty.utility == "probability":
            targets = [1] if kinds == 2 else [label] if penalty.criterion == "equal_opportunity" else every
        for target in targets:
            values = torch.cat([batch.utility(penalty.utility, target) for batch in batches])
            group = torch.cat([batch.groups[penalty.attribute] for batch in batches])
            labels = torch.cat([batch.labels for batch in batches])
            known = (group >= 0) & ((labels == label) if label is not None else True)
            present = sorted(set(group[known].tolist()))
            if len(present) < 2:
                continue
            risks = torch.stack([values[known & (group == k)].mean() for k in present])
            mean = values[known].mean() if penalty.weights == "records" else risks.mean()
            squares = (risks - mean) ** 2
            total = total + penalty.strength * (squares.mean() if penalty.reduction == "mean" else squares.sum())
    return total
