# SPDX-License-Identifier: Apache-2.0
"""Images and masks that a manifest names: where they lie, and what is wrong with them, in counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairflare.data.images import load_images, locate
from fairflare.data.masks import MaskDefects, load_masks, total
from fairflare.data.table import count
from fairflare.errors import DataError
from fairflare.plan import ImageInput, Plan, SegmentationTask
from fairflare.policy import Entry

Places = NDArray[np.int64]

_STEP = "correct these rows in the manifest"


@dataclass(frozen=True, eq=False, repr=False)
class Located:
    """Files of one column of a manifest, as :func:`~fairflare.data.images.locate` found them."""

    column: str
    paths: list[Path | None]
    outside: int
    missing: int


def image_root(entry: Entry) -> Path:
    """The folder that images lie in; raises :class:`DataError` if the catalogue names none."""
    if entry.root is None:
        raise DataError(
            "FF-DATA-ROOT",
            got="a catalogue entry without a root folder, for a plan that trains on images",
            expected="the absolute path of the folder that the column 'file' is relative to",
            next_step="write 'root' into this entry of the catalogue",
        )
    return Path(entry.root)


def find(root: Path, column: str, files: Sequence[str]) -> Located:
    """Find the files of ``column`` (``file`` or ``mask``) below ``root``."""
    return Located(column, *locate(root, files))


def place_defects(found: Located) -> Iterator[DataError]:
    """Refusals for files that may not be opened, or are not there."""
    name = found.column
    if found.outside:
        yield DataError(
            f"FF-DATA-{name.upper()}-OUTSIDE",
            got=f"{count(found.outside, 'row')} with a '{name}' that leaves the root folder",
            expected="relative paths without '..', and no symbolic link to the outside",
            next_step=_STEP,
        )
    if found.missing:
        yield DataError(
            f"FF-DATA-{name.upper()}-MISSING",
            got=f"{count(found.missing, 'row')} with a '{name}' that is empty or not there",
            expected="a file below the root folder, with exactly this name",
            next_step=_STEP,
        )


def image_defects(unreadable: int) -> Iterator[DataError]:
    """Refusal for so many files that are no images."""
    if unreadable:
        yield DataError(
            "FF-DATA-IMAGE",
            got=f"{count(unreadable, 'file')} that cannot be read as an image",
            expected="complete JPEG, PNG, TIFF, BMP, PPM, WebP or GIF files with 8 bits per channel",
            next_step="export these images again; 'fairflare data check' finds all that is wrong",
        )


def mask_defects(task: SegmentationTask, defects: MaskDefects) -> Iterator[DataError]:
    """Refusals for so many files that are no masks of their images."""
    if defects.unreadable:
        yield DataError(
            "FF-DATA-MASK",
            got=f"{count(defects.unreadable, 'file')} that cannot be read as a mask",
            expected="complete grey or binary images with 8 bits, one picture per file, without colours or alpha",
            next_step="export these masks again, as PNG without compression losses",
        )
    if defects.sizes:
        yield DataError(
            "FF-DATA-MASK-SIZE",
            got=f"{count(defects.sizes, 'mask')} of another size than the image",
            expected="as many pixels in height and in width as the image has, as both are stored",
            next_step="export these masks at the size of their images, and turned as these are",
        )
    if defects.values:
        values = ", ".join(f"{value} {label}" for value, label in zip(task.mask_values, task.labels, strict=True))
        yield DataError(
            "FF-DATA-MASK-VALUE",
            got=f"{count(defects.values, 'mask')} with grey values that the plan does not have",
            expected=f"only {values} (a binary image has 0 and 255)",
            next_step="export these masks without smoothing and without losses (no JPEG), or correct the plan",
        )


def load_files(
    plan: Plan, size: ImageInput, entry: Entry, cells: Mapping[str, Sequence[str]], parts: Sequence[Places]
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Images (n, channels, height, width) and, for segmentation, masks (n, height, width) of each part.

    Parameters
    ----------
    plan, size
        The plan, and its input.
    entry
        Where the files lie.
    cells
        Columns ``file`` and, for segmentation, ``mask`` of the manifest.
    parts
        Rows of each part that is wanted for itself, such as a split: no image is held twice.
    """
    root = image_root(entry)
    segments = isinstance(plan.task, SegmentationTask)
    found = {name: find(root, name, cells[name]) for name in (("file", "mask") if segments else ("file",))}
    for located in found.values():
        for defect in place_defects(located):
            raise defect
    paths = [{name: _there(located, part) for name, located in found.items()} for part in parts]
    images = [load_images(one["file"], size) for one in paths]
    for defect in image_defects(sum(unreadable for _, unreadable in images)):
        raise defect
    pixels = [part for part, _ in images]
    if not isinstance(plan.task, SegmentationTask):
        return [(part, None) for part in pixels]
    task = plan.task
    loaded = [load_masks(one["file"], one["mask"], task) for one in paths]
    for defect in mask_defects(task, total(defects for _, defects in loaded)):
        raise defect
    return [(part, masks) for part, (masks, _) in zip(pixels, loaded, strict=True)]


def _there(found: Located, part: Places) -> list[Path]:
    chosen = (found.paths[at] for at in part.tolist())
    return [path for path in chosen if path is not None]
