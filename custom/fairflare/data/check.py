# SPDX-License-Identifier: Apache-2.0
"""Look at a site's data before a job does: everything that is found, not only the first defect.

``error`` would stop a job or spoil its result, ``warning`` needs a person's judgement, ``info`` is worth
knowing. The texts hold counts of this site's records: they are for the hospital itself and never leave it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from fairflare.data.files import find, image_defects, image_root, mask_defects, place_defects
from fairflare.data.images import Progress, inspect_images
from fairflare.data.manifest import MISSING, SPLITS, Manifest, read_manifest, row_defects
from fairflare.data.masks import load_masks
from fairflare.data.table import count
from fairflare.errors import DataError
from fairflare.plan import ImageInput, Plan, SegmentationTask
from fairflare.policy import Entry

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found: how bad, a stable code, what, and what to do now."""

    severity: Severity
    code: str
    text: str
    next_step: str


def check(plan: Plan, entry: Entry, progress: Progress | None = None) -> list[Finding]:
    """Look at everything that the plan would use of ``entry``.

    Parameters
    ----------
    plan
        Vocabulary, features, image size and smallest cell.
    entry
        Where the data lie.
    progress
        Called with (images read, all images) now and then; for segmentation, then with masks.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then information. Data without errors are accepted by ``manifest.load``.
    """
    try:
        manifest = read_manifest(plan, entry)
        root = image_root(entry) if isinstance(plan.task.input, ImageInput) else None
    except DataError as problem:
        return [_error(problem)]
    found = [_error(problem) for problem in row_defects(plan, manifest)]
    if isinstance(plan.task.input, ImageInput) and root is not None:
        found += _images(plan.task.input, manifest, root, progress)
        if isinstance(plan.task, SegmentationTask):
            found += _masks(plan.task, manifest, root, progress)
    else:
        found += _copies(_rows(manifest), manifest)
    found += _sizes(manifest)
    found += _groups(plan, manifest)
    found += _features(plan, manifest)
    found += _opt_out(entry, manifest)
    return sorted(found, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def _error(problem: DataError) -> Finding:
    return Finding("error", problem.code, f"{problem.got}; expected {problem.expected}", problem.next_step)


def _images(size: ImageInput, manifest: Manifest, root: Path, progress: Progress | None) -> Iterator[Finding]:
    found = find(root, "file", manifest.table.columns["file"])
    there = [at for at, path in enumerate(found.paths) if path is not None]
    hashes = inspect_images([path for path in found.paths if path is not None], size, progress)
    for problem in (*place_defects(found), *image_defects(sum(content is None for content in hashes))):
        yield _error(problem)
    content: list[Hashable] = [None] * len(manifest)
    for at, value in zip(there, hashes, strict=True):
        content[at] = value
    yield from _copies(content, manifest)


def _masks(task: SegmentationTask, manifest: Manifest, root: Path, progress: Progress | None) -> Iterator[Finding]:
    """Defects of masks; those of pairs of which both files are there are looked into."""
    images = find(root, "file", manifest.table.columns["file"]).paths
    found = find(root, "mask", manifest.table.columns["mask"])
    pairs = [
        (image, mask, split)
        for image, mask, split in zip(images, found.paths, manifest.splits, strict=True)
        if image is not None and mask is not None
    ]
    masks, defects = load_masks([pair[0] for pair in pairs], [pair[1] for pair in pairs], task, progress)
    for problem in (*place_defects(found), *mask_defects(task, defects)):
        yield _error(problem)
    if any((defects.unreadable, defects.sizes, defects.values)):
        return  # a mask with a defect is empty here, and already told
    training = masks[[split == 0 for _, _, split in pairs]]
    if empty := int((~training.any(axis=(1, 2))).sum()):
        yield Finding(
            "warning",
            "FF-DATA-MASK-EMPTY",
            f"{empty} of {count(len(training), 'training mask')} without any pixel but {task.labels[0]}",
            "nothing, if there is nothing to be found in these images; or correct the masks",
        )


def _rows(manifest: Manifest) -> list[Hashable]:
    """Features and label of each row of a table, as one value."""
    # NaN is not equal to itself, so a missing value is None here.
    values = [[None if np.isnan(value) else float(value) for value in row] for row in manifest.values]
    return [(*row, int(label)) for row, label in zip(values, manifest.labels, strict=True)]


def _copies(contents: Sequence[Hashable], manifest: Manifest) -> Iterator[Finding]:
    """Records with the same content (``None``: not known), by whether they stand in different splits."""
    places: dict[Hashable, list[int]] = {}
    for content, split in zip(contents, manifest.splits, strict=True):
        if content is not None:
            places.setdefault(content, []).append(int(split))
    across = [splits for splits in places.values() if len(set(splits)) > 1]
    within = [splits for splits in places.values() if len(set(splits)) == 1 and len(splits) > 1]
    if across:
        yield Finding(
            "error",
            "FF-DATA-COPY-ACROSS",
            f"{sum(map(len, across))} records with the same content as a record of another split",
            "keep one record of each content: a test on copies measures what was memorised",
        )
    if within:
        yield Finding(
            "warning",
            "FF-DATA-COPY-WITHIN",
            f"{sum(map(len, within))} records with the same content as another one of their split",
            "remove copies that do not come from different examinations",
        )


def _sizes(manifest: Manifest) -> Iterator[Finding]:
    sizes = {name: int((manifest.splits == at).sum()) for at, name in enumerate(SPLITS)}
    text = ", ".join(f"{size} {name}" for name, size in sizes.items())
    yield Finding("info", "FF-DATA-SIZE", f"{count(len(manifest), 'record')}: {text}", "nothing")
    for name in SPLITS[1:]:  # an empty training split is an error, found with the rows
        if sizes[name] == 0:
            yield Finding(
                "warning",
                "FF-DATA-EMPTY-SPLIT",
                f"no {name} record",
                f"set some patients apart as '{name}', or this site does not count in {name} results",
            )


def _groups(plan: Plan, manifest: Manifest) -> Iterator[Finding]:
    """Missing share and absent groups of each attribute; then its small cells, one finding for each split."""
    # Segmentation has one cell for each group: every image can show every label.
    labels = list(enumerate(plan.task.labels)) if plan.task.kind == "classification" else [(0, "")]
    for attribute, words in plan.groups.items():
        group = manifest.groups[attribute]
        yield from _missing(f"attribute '{attribute}'", int((group == MISSING).sum()), len(manifest))
        here = [(value, word) for value, word in enumerate(words) if (group == value).any()]
        if absent := [word for value, word in enumerate(words) if (value, word) not in here]:
            text = f"attribute '{attribute}': no record with {', '.join(absent)}"
            yield Finding("info", "FF-DATA-ABSENT-GROUP", text, "nothing, if this is so at this hospital")
        for at, split in enumerate(SPLITS):
            small = []
            for (value, word), (label, name) in product(here, labels):
                size = int(((group == value) & (manifest.labels == label) & (manifest.splits == at)).sum())
                if size < plan.cells.minimum:
                    small.append(f"{word}/{name} {size}" if name else f"{word} {size}")
            if small:
                yield Finding(
                    "warning",
                    "FF-DATA-SMALL-CELL",
                    f"{split}, '{attribute}': cells under {plan.cells.minimum} records: {', '.join(small)}",
                    "nothing to correct: this site sends zeros for these cells until it has more records",
                )


def _features(plan: Plan, manifest: Manifest) -> Iterator[Finding]:
    """Missing share of each feature that is missing anywhere."""
    if isinstance(plan.task.input, ImageInput):
        return
    empty = (np.isnan(manifest.values) & ~manifest.wrong).sum(axis=0).tolist()
    for feature, rows in zip(plan.task.input.features, empty, strict=True):
        if rows:
            yield from _missing(f"feature '{feature.name}'", rows, len(manifest))
    if not any(empty):
        yield Finding("info", "FF-DATA-MISSING", "no feature is missing in any record", "nothing")


def _missing(name: str, rows: int, total: int) -> Iterator[Finding]:
    if total and rows == total:
        step = "check the export: this column is empty"
        yield Finding("warning", "FF-DATA-MISSING", f"{name} is missing in every record", step)
    else:
        share = f"{rows / max(total, 1):.1%}"
        yield Finding("info", "FF-DATA-MISSING", f"{name} is missing in {share} of the records", "nothing")


def _opt_out(entry: Entry, manifest: Manifest) -> Iterator[Finding]:
    if entry.opt_out is None:
        yield Finding("info", "FF-DATA-OPT-OUT", "no opt-out file in the catalogue", "nothing")
        return
    names = count(manifest.opt_out_lines, "name")
    text = f"{count(manifest.opted_out, 'record')} left out by {names} of the opt-out file"
    yield Finding("info", "FF-DATA-OPT-OUT", text, "nothing")
    if manifest.opt_out_unmatched:
        yield Finding(
            "info",
            "FF-DATA-OPT-OUT-UNMATCHED",
            f"{count(manifest.opt_out_unmatched, 'name')} of the opt-out file in no row of the manifest",
            "make sure that ids and patients are written in the same way in both files",
        )
