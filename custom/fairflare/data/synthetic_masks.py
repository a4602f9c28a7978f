# SPDX-License-Identifier: Apache-2.0
"""One synthetic image for segmentation and its mask: shapes of the plan's labels on a ground with false shadows.

Odd labels are blobs, even ones are bent bands, as vessels are. The shadows look like faint shapes and belong to no
label, so where contrast is low it takes more than a threshold to find what is there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairflare.plan import SegmentationTask

NOISE = 12.0
#: Grey levels between the ground and a shape, at a contrast of 1.
DEPTH = 70.0
SHADOWS = 4

Floats = NDArray[np.float64]


def write_pair(
    image: Path,
    mask: Path,
    task: SegmentationTask,
    contrast: float,
    light: Floats,
    rng: np.random.Generator,
) -> None:
    """Write an image and its mask as PNGs of the plan's size.

    Parameters
    ----------
    image, mask
        Where to.
    task
        Labels, their values in the mask, channels, height and width.
    contrast
        How clearly the shapes stand out, 1 at best. The shadows do not depend on it.
    light
        The hospital's own lighting, one number per channel.
    rng
        Source of places, sizes and noise.
    """
    rows = np.linspace(-1.0, 1.0, task.input.height)[:, None]
    columns = np.linspace(-1.0, 1.0, task.input.width)[None, :]
    slope = rng.uniform(-12.0, 12.0, size=2)
    grey = 140.0 + slope[0] * rows + slope[1] * columns
    for _ in range(SHADOWS):
        grey = grey + rng.uniform(-14.0, 14.0) * _blob(rows, columns, rng.uniform(-0.9, 0.9, size=2), rng)
    labels = np.zeros(grey.shape, dtype=np.int64)
    shapes = task.outputs
    turn = rng.uniform(0.0, 2.0 * np.pi)
    for label in range(1, shapes + 1):
        angle = turn + 2.0 * np.pi * label / shapes
        reach = rng.uniform(0.0, 0.4) if shapes == 1 else rng.uniform(0.4, 0.55)
        centre = reach * np.array([np.sin(angle), np.cos(angle)])
        shape = (_blob if label % 2 else _band)(rows, columns, centre, rng) > 0.5
        grey = np.where(shape, 140.0 + _tone(label, shapes) * DEPTH * contrast, grey)
        labels[shape] = label
    size = (*grey.shape, task.input.channels)
    pixels = grey[:, :, None] + light + rng.normal(0.0, NOISE, size=size)
    data = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    Image.fromarray(data[:, :, 0] if task.input.channels == 1 else data).save(image, compress_level=1)
    Image.fromarray(np.array(task.mask_values, dtype=np.uint8)[labels]).save(mask, compress_level=1)


def _tone(label: int, shapes: int) -> float:
    """Darker than the ground for odd labels, brighter for even ones; the later, the fainter."""
    return (-1.0 if label % 2 else 1.0) * (1.0 - 0.6 * ((label - 1) // 2) / max(shapes // 2, 1))


def _blob(rows: Floats, columns: Floats, centre: Floats, rng: np.random.Generator) -> Floats:
    """An ellipse with a wavy rim: 1 inside, 0 outside, and soft between."""
    height, width = rng.uniform(0.2, 0.4, size=2)
    y, x = (rows - centre[0]) / height, (columns - centre[1]) / width
    rim = 1.0 + 0.15 * np.sin(3.0 * np.arctan2(y, x) + rng.uniform(0.0, 2.0 * np.pi))
    soft: Floats = 1.0 / (1.0 + np.exp(12.0 * np.clip(np.hypot(y, x) - rim, -4.0, 4.0)))
    return soft


def _band(rows: Floats, columns: Floats, centre: Floats, rng: np.random.Generator) -> Floats:
    """A bent band through ``centre``: 1 inside, 0 outside, and soft between."""
    angle, bend, phase = rng.uniform(0.0, np.pi), rng.uniform(0.05, 0.2), rng.uniform(0.0, 2.0 * np.pi)
    y, x = rows - centre[0], columns - centre[1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    middle = bend * (np.sin(4.0 * along + phase) - np.sin(phase))
    inside = (np.abs(across - middle) - rng.uniform(0.08, 0.14)) / 0.05
    soft: Floats = (np.abs(along) < 0.6) / (1.0 + np.exp(np.clip(inside, -40.0, 40.0)))
    return soft
