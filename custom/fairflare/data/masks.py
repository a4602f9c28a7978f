# SPDX-License-Identifier: Apache-2.0
"""Masks: the label of each pixel of an image, from a grey image of the same size.

A mask is checked at its own size, before it is made smaller: a value that the plan does not declare is refused even
if it stands in one pixel. It is resized by taking nearest neighbours of the stored values. An average of two labels
would be a third one, or none; and what is taken as it stands keeps each label's share of the pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairflare.data.images import Progress, in_threads, opened, stored_size
from fairflare.plan import SegmentationTask

#: Binary, grey, palette, and colours that must turn out to be grey: as RGB many programs export a mask.
_MODES = ("1", "L", "P", "RGB")


class MaskSizeError(ValueError):
    """A mask of another size than its image."""


class MaskValueError(ValueError):
    """A mask with a grey value that the plan does not declare."""


@dataclass(frozen=True)
class MaskDefects:
    """How many masks cannot be read as grey images, have another size than their image, or have other values."""

    unreadable: int
    sizes: int
    values: int


def total(defects: Iterable[MaskDefects]) -> MaskDefects:
    """Defects of several parts, added."""
    parts = list(defects)
    return MaskDefects(
        sum(one.unreadable for one in parts), sum(one.sizes for one in parts), sum(one.values for one in parts)
    )


def decode_mask(path: Path, size: tuple[int, int], task: SegmentationTask) -> NDArray[np.uint8]:
    """One mask as (height, width) of the plan's input: the place of each pixel's label in ``task.labels``.

    Parameters
    ----------
    path
        The file. A binary image has the values 0 and 255; a palette counts by its colours, not by their places.
    size
        Width and height of its image as stored.
    task
        Labels, their values, and the size that is wanted.

    Raises
    ------
    ValueError
        :class:`MaskSizeError`, :class:`MaskValueError`, or another for colours, for an alpha channel and for several
        pictures in one file. Pillow raises ``OSError`` and others for broken files.
    """
    with opened(path, single=True) as image:
        if image.size != size:
            raise MaskSizeError("not the size of its image")
        grey = _grey(image)
        declared = np.zeros(256, dtype=np.bool_)
        declared[list(task.mask_values)] = True
        if np.asarray(grey.histogram())[~declared].any():
            raise MaskValueError("a value that no label has")
        wanted = (task.input.width, task.input.height)
        values = np.asarray(grey if grey.size == wanted else grey.resize(wanted, Image.Resampling.NEAREST))
    places = np.zeros(256, dtype=np.uint8)
    places[list(task.mask_values)] = np.arange(len(task.mask_values))
    labels: NDArray[np.uint8] = places[values]
    return labels


def _grey(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES or "transparency" in image.info:
        raise ValueError("not an 8-bit grey image without alpha")
    if image.mode in ("1", "L"):
        return image.convert("L")
    red, green, blue = image.convert("RGB").split()
    if not red.tobytes() == green.tobytes() == blue.tobytes():
        raise ValueError("colours")
    return red


def load_masks(
    images: Sequence[Path], masks: Sequence[Path], task: SegmentationTask, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], MaskDefects]:
    """Masks (n, height, width) in the order of ``masks``, 0 where there is a defect; and the defects.

    A mask whose image cannot be read has no size to be compared with; it is counted with the images, not here.
    """
    result = np.zeros((len(masks), task.input.height, task.input.width), dtype=np.uint8)

    def one(at: int) -> str:
        try:
            size = stored_size(images[at])
        except Exception:
            return ""
        try:
            result[at] = decode_mask(masks[at], size, task)
        except MaskSizeError:
            return "size"
        except MaskValueError:
            return "value"
        except Exception:
            return "unreadable"  # decoders raise whatever their format's parser does, and could name the file
        return ""

    found = in_threads(one, len(masks), progress)
    return result, MaskDefects(*(found.count(kind) for kind in ("unreadable", "size", "value")))
