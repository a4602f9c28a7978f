# SPDX-License-Identifier: Apache-2.0
"""What a network's outputs mean: the loss of a batch, the quantities that groups are compared by, and the scores.

One class for each kind of task. The loss of a batch is the mean over its records of the task's loss, plus the method's
terms on quantities of the same records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from fairflare.data.manifest import Records
from fairflare.fairness.groups import Floats, Stratum, image_strata, label_strata
from fairflare.plan import Plan, SegmentationTask


@dataclass(frozen=True)
class Scores:
    """What is known about records after a forward pass.

    Attributes
    ----------
    loss
        Loss of each record without class weights, float64 (n,).
    quantities
        ``Measure.quantity`` -> float64 (n,); cross-entropies are bounded by the method's clip.
    strata
        For the evaluation sums.
    predictions
        For segmentation, float64 (3 F,): for each label but the background the number of images, of those in which no
        pixel is predicted, and of those in which all are. Empty for classification.
    """

    loss: Floats
    quantities: Mapping[str, Floats]
    strata: list[Stratum]
    predictions: Floats

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Several passes, at least one, in order."""
        first = parts[0]
        return cls(
            np.concatenate([part.loss for part in parts]),
            {name: np.concatenate([part.quantities[name] for part in parts]) for name in first.quantities},
            [
                Stratum(*(np.concatenate([getattr(one, field.name) for one in same]) for field in fields(Stratum)))
                for same in zip(*(part.strata for part in parts), strict=True)
            ],
            np.sum([part.predictions for part in parts], axis=0),
        )


class Objective(Protocol):
    """Losses and scores of one kind of task. Outputs are the network's, ``target`` is :meth:`target`'s."""

    def target(self, records: Records) -> torch.Tensor:
        """What the outputs of these records are compared with."""
        ...

    def task_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The task's loss of a batch, a scalar."""
        ...

    def quantities(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> dict[str, torch.Tensor]:
        """Each quantity of each record, (n,)."""
        ...

    def scores(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> Scores:
        """Everything about these records; outputs are float64."""
        ...

    def empty(self) -> torch.Tensor:
        """Outputs for no records at all."""
        ...


def objective_of(plan: Plan) -> Objective:
    """The objective of a plan's task."""
    weights = torch.tensor(plan.training.class_weights, dtype=torch.float32)
    return Masks(plan.task, weights) if isinstance(plan.task, SegmentationTask) else Labels(plan.task.outputs, weights)


class Labels:
    """Classification: outputs are logits (n, C), the target are labels (n,).

    The loss is the class-weighted cross-entropy; quantities are the cross-entropy and the probability of each label
    (of two: the second), the differentiable form of "predicted as" (algorithms section 8.6).
    """

    def __init__(self, labels: int, class_weights: torch.Tensor) -> None:
        self._labels = labels
        self._class_weights = class_weights

    def target(self, records: Records) -> torch.Tensor:
        """Labels (n,)."""
        return torch.from_numpy(records.labels)

    def task_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean_i w(y_i) l_i."""
        entropy = functional.cross_entropy(outputs, target, reduction="none")
        return (self._class_weights[target] * entropy).mean()

    def quantities(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> dict[str, torch.Tensor]:
        """``cross_entropy`` bounded by ``clip``, and ``probability``; of more than two labels ``probability0``, ...

        ``task_loss`` is the loss itself, class weight included.
        """
        entropy = functional.cross_entropy(outputs, target, reduction="none")
        probability = outputs.softmax(dim=1)
        weighed = self._class_weights.to(outputs.dtype)[target] * entropy
        found = {"cross_entropy": entropy.clamp(max=clip), "task_loss": weighed}
        if self._labels == 2:
            return {**found, "probability": probability[:, 1]}
        return {**found, **{f"probability{label}": probability[:, label] for label in range(self._labels)}}

    def scores(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> Scores:
        """Everything about these records."""
        loss = functional.cross_entropy(outputs, target, reduction="none").numpy()
        quantities = {name: value.numpy() for name, value in self.quantities(outputs, target, clip).items()}
        decided = outputs.argmax(dim=1)
        for name, said in (("positive", decided == 1), ("correct", decided == target)):
            quantities[name] = said.to(torch.float64).numpy()
        quantities["presence"] = np.ones(loss.shape)
        strata = label_strata(outputs.softmax(dim=1).numpy(), loss, target.numpy())
        return Scores(loss, quantities, strata, np.zeros(0))

    def empty(self) -> torch.Tensor:
        """(0, C)."""
        return torch.zeros(0, self._labels)


class Masks:
    """Segmentation: outputs are logit maps (n, F, height, width), the target are labels of pixels (n, height, width).

    F is the number of labels without the background. The loss of an image is its mean binary cross-entropy over
    pixels and maps (weighted by the class weight of each pixel's label) plus its soft Dice loss, the mean over maps
    of 1 - 2 sum(p m) / (sum p + sum m + 1), p = sigmoid(logit), m = 1 where the pixel has the label (algorithms
    section 2; with images of one size it is the authors' loss). Quantities are both parts, without class weights. A
    pixel is predicted to have the label with the largest logit, if that is above 0. Where a label is not in an image,
    its Dice loss is 1 whatever is predicted, and has no gradient: a group with many such images has a risk that
    training cannot lower. Dice of an image is 2 I / (P + G), and 1 where a label is neither there nor predicted.
    """

    def __init__(self, task: SegmentationTask, class_weights: torch.Tensor) -> None:
        self._maps = task.outputs
        self._size = (task.input.height, task.input.width)
        self._class_weights = class_weights
        self._weighted = bool((class_weights != 1).any())

    def target(self, records: Records) -> torch.Tensor:
        """Labels of pixels, int64 (n, height, width)."""
        if records.masks is None:
            raise TypeError("got records without masks, expected those of a segmentation task")
        return torch.from_numpy(records.masks.astype(np.int64))

    def _truth(self, target: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.stack([target == label + 1 for label in range(self._maps)], dim=1).to(dtype)

    def _entropy(self, outputs: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        entropy = functional.binary_cross_entropy_with_logits(outputs, truth, weight=weight, reduction="none")
        return entropy.mean(dim=(1, 2, 3))

    def _dice_loss(self, outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        predicted = outputs.sigmoid()
        both = (predicted * truth).sum(dim=(2, 3))
        each = predicted.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
        return (1 - 2 * both / (each + 1)).mean(dim=1)

    def task_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """mean_i of weighted cross-entropy plus Dice loss."""
        truth = self._truth(target, outputs.dtype)
        return (self._image_loss(outputs, target, truth) + self._dice_loss(outputs, truth)).mean()

    def quantities(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> dict[str, torch.Tensor]:
        """``binary_cross_entropy`` bounded by ``clip``, ``dice_loss``, and ``task_loss``: the loss of an image."""
        truth = self._truth(target, outputs.dtype)
        dice_loss = self._dice_loss(outputs, truth)
        return {
            "binary_cross_entropy": self._entropy(outputs, truth, None).clamp(max=clip),
            "dice_loss": dice_loss,
            "task_loss": self._image_loss(outputs, target, truth) + dice_loss,
        }

    def _image_loss(self, outputs: torch.Tensor, target: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Weighted cross-entropy of each image (n,)."""
        weight = self._class_weights.to(outputs.dtype)[target].unsqueeze(1) if self._weighted else None
        return self._entropy(outputs, truth, weight)

    def scores(self, outputs: torch.Tensor, target: torch.Tensor, clip: float) -> Scores:
        """Everything about these images."""
        truth = self._truth(target, outputs.dtype)
        entropy, dice_loss = self._entropy(outputs, truth, None), self._dice_loss(outputs, truth)
        predicted = self._truth(predicted_labels(outputs), outputs.dtype)
        both = (predicted * truth).sum(dim=(2, 3))
        painted = predicted.sum(dim=(2, 3))
        each = painted + truth.sum(dim=(2, 3))
        dice = torch.where(each > 0, 2 * both / each.clamp(min=1), torch.ones_like(each))
        pixels = self._size[0] * self._size[1]
        counts = [torch.full((self._maps,), len(target)), (painted == 0).sum(dim=0), (painted == pixels).sum(dim=0)]
        loss = (entropy + dice_loss).numpy()
        return Scores(
            loss=loss,
            quantities={
                "binary_cross_entropy": entropy.clamp(max=clip).numpy(),
                "dice_loss": dice_loss.numpy(),
                "dice": dice.mean(dim=1).numpy(),
                "presence": np.ones(loss.shape),
            },
            strata=image_strata(dice.numpy(), loss),
            predictions=torch.stack(counts, dim=1).to(torch.float64).numpy().ravel(),
        )

    def empty(self) -> torch.Tensor:
        """(0, F, height, width)."""
        return torch.zeros(0, self._maps, *self._size)


def predicted_labels(outputs: torch.Tensor) -> torch.Tensor:
    """The label of each pixel, int64 (n, height, width), from logit maps (n, F, height, width)."""
    best = outputs.max(dim=1)
    return torch.where(best.values > 0, best.indices + 1, torch.zeros_like(best.indices))


def batch_loss(
    objective: Objective, outputs: torch.Tensor, target: torch.Tensor, terms: Mapping[str, Floats], clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss to differentiate and its task part alone, both scalars: task loss + mean_i [ sum_u e_{i,u} u_i ].

    ``terms`` are the e_{i,u}, float64 (n,); without terms the two are the same tensor.
    """
    task = objective.task_loss(outputs, target)
    if not terms:
        return task, task
    values = objective.quantities(outputs, target, clip)
    loss = task
    for name, coefficient in terms.items():
        weight = torch.from_numpy(np.ascontiguousarray(coefficient)).to(outputs.dtype)
        loss = loss + (weight * values[name]).mean()
    return loss, task
