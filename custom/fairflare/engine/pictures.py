# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a segmentation model does: image, truth and prediction, side by side, of synthetic images only.

The images are drawn anew for the picture, so no file of a hospital is opened: a report that travels cannot show a
patient. Pictures of a hospital's own images are made there, by ``fairflare predict --overlay``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fairflare.data.manifest import Records, load
from fairflare.data.synthetic import FEWEST_RECORDS, write_hospitals
from fairflare.engine.objective import objective_of, predicted_labels
from fairflare.engine.training import Trainer
from fairflare.models.vector import Vector
from fairflare.plan import PartModel, Plan, SeedStart

#: Smallest height of a picture's image in pixels, and the gap between two.
_HEIGHT, _GAP = 160, 6
#: Outlines are told apart by colour and by how often they are broken: blue, vermilion, green, purple, ...
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233))


@dataclass(frozen=True)
class SyntheticPicture:
    """A PNG of image, truth and prediction; ``dice`` is the mean over labels."""

    site: str
    png: bytes
    dice: float


def synthetic_pictures(plan: Plan, model: Vector, sites: Sequence[str], each: int = 2) -> list[SyntheticPicture]:
    """Draw new images in the manner of the synthetic hospitals and paint what ``model`` finds in them.

    Parameters
    ----------
    plan
        Of a segmentation.
    model
        float32 (P,).
    sites
        Names of synthetic hospitals: each has its own lighting.
    each
        Images of a hospital: those with the lowest and the highest Dice, and what lies between.

    There are none of a network whose frozen part lies in a weight file: only its sites and its server have that.
    """
    if isinstance(plan.model, PartModel) and not isinstance(plan.start, SeedStart):
        return []
    found: list[SyntheticPicture] = []
    with tempfile.TemporaryDirectory() as folder:
        catalog = write_hospitals(Path(folder), plan, sites, FEWEST_RECORDS * 2, seed=plan.training.seed + 1)
        for site in sites:
            records = load(plan, catalog.entry(site, plan.task.data_set)).training
            trainer = Trainer(plan, site, records)
            trainer.start_round(model)
            found += _of_site(trainer, site, records, each)
    return found


def _of_site(trainer: Trainer, site: str, records: Records, each: int) -> list[SyntheticPicture]:
    dice = np.mean([stratum.value for stratum in trainer.scores(records).strata], axis=0)
    order = np.argsort(dice, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, each).round().astype(np.int64))]
    part = records.take(chosen)
    with torch.no_grad():
        outputs = trainer.model(trainer.tensor(part.inputs))
    predicted = predicted_labels(outputs).numpy()
    truth = objective_of(trainer.plan).target(part).numpy()
    return [
        SyntheticPicture(site, side_by_side(part.inputs[at], truth[at], predicted[at]), float(dice[place]))
        for at, place in enumerate(chosen)
    ]


def side_by_side(image: NDArray[np.uint8], truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> bytes:
    """PNG of an image (channels, h, w): alone, with outlines of the truth (h, w), and with those of the prediction."""
    plain = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)).astype(np.uint8)
    factor = max(1, -(-_HEIGHT // plain.shape[0]))
    large = _enlarged(plain, factor)
    first, second = (_outlined(large, _enlarged(labels, factor)) for labels in (truth, predicted))
    gap = np.full((large.shape[0], _GAP, 3), 255, dtype=np.uint8)
    joined = np.concatenate([large, gap, first, gap, second], axis=1)
    stream = BytesIO()
    Image.fromarray(joined).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _enlarged(values: NDArray[np.uint8] | NDArray[np.int64], factor: int) -> NDArray[np.uint8]:
    return np.repeat(np.repeat(values, factor, axis=0), factor, axis=1).astype(np.uint8)


def _outlined(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two pixels along the inner edge of each label, white outside and its colour inside."""
    result = image.copy()
    for label in np.unique(labels[labels > 0]).tolist():
        inside = labels == label
        once, twice = _shrunk(inside), _shrunk(_shrunk(inside))
        result[inside & ~once] = 255
        result[once & ~twice] = _COLOURS[(label - 1) % len(_COLOURS)]
    return result


def _shrunk(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1, constant_values=True)
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray(np.logical_and.reduce([inside, *around]), dtype=np.bool_)
