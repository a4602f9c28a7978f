# SPDX-License-Identifier: Apache-2.0
"""One synthetic image: a noisy background, a blob, and two signs of which a record's label follows one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairflare.plan import ImageInput

NOISE = 10.0


def write_image(
    path: Path,
    kind: ImageInput,
    signs: tuple[float, float],
    light: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Write a PNG of the plan's size.

    Parameters
    ----------
    path
        Where to.
    kind
        Channels, height and width.
    signs
        How strong everybody's sign (the blob is darker) and the minority's sign (stripes beside it) are.
    light
        The hospital's own lighting, one number per channel.
    rng
        Source of place, size and noise.
    """
    rows = np.linspace(-1.0, 1.0, kind.height)[:, None]
    columns = np.linspace(-1.0, 1.0, kind.width)[None, :]
    y, x = rng.uniform(-0.3, 0.3, size=2)
    radius = rng.uniform(0.4, 0.55)
    blob = 1.0 / (1.0 + np.exp(12.0 * (np.hypot(rows - y, columns - x) - radius)))
    stripes = np.where(np.arange(kind.width)[None, :] // 2 % 2 == 0, 1.0, -1.0) * (1.0 - blob)
    grey = 165.0 - blob * _strength(signs[0], 30.0, 130.0) + stripes * _strength(signs[1], 0.0, 40.0)
    pixels = grey[:, :, None] + light + rng.normal(0.0, NOISE, size=(kind.height, kind.width, kind.channels))
    data = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    Image.fromarray(data[:, :, 0] if kind.channels == 1 else data).save(path, compress_level=1)


def _strength(sign: float, lowest: float, highest: float) -> float:
    """From ``lowest`` to ``highest`` as the sign goes from minus to plus infinity."""
    return lowest + (highest - lowest) / (1.0 + float(np.exp(-1.2 * sign)))
