# SPDX-License-Identifier: Apache-2.0
"""The manifest: one CSV file says which records a hospital offers; nothing wrong with it is passed over.

======================  ====================================================================================
column                  cell
======================  ====================================================================================
``id``                  the record's own name, each once
``patient``             who (or which lesion) it comes from; all records of one patient stand in one split
``label``               a word of the plan's ``task.labels``
``split``               ``training``, ``validation`` or ``test``
``file`` (images)       path relative to the catalogue's root folder, which it may not leave
each feature (tables)   a decimal number, or empty for "not measured"
each attribute          a word of its vocabulary (a decimal number if it has ``edges``), or empty: not known
======================  ====================================================================================

Other columns are allowed and ignored. Whoever is named in the opt-out file (``fairflare.data.opt_out``) is left out
before anything else is looked at; an ``id`` or ``patient`` that no opt-out file could hold is refused. Refusals count
rows; they never repeat a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairflare.data.images import load_images, locate
from fairflare.data.opt_out import is_plain_name, normal, read_opt_outs, verify_found
from fairflare.data.table import Table, codes, count, numbers, read_table
from fairflare.errors import DataError
from fairflare.plan import RESERVED, Attribute, Feature, ImageInput, Plan
from fairflare.policy import Entry

SPLITS = ("training", "validation", "test")
MISSING, UNKNOWN = -1, -2

_WHAT = "manifest"

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Records:
    """Records of one split, in the order of the manifest.

    Attributes
    ----------
    inputs
        Tables: float32 (n, 2 F), first the F scaled values ``(x - center) / scale`` (0 where missing), then F
        times 1 for "known" or 0. Images: uint8 (n, channels, height, width).
    labels
        int64 (n,): 0 or 1, the place in the plan's ``task.labels``.
    groups
        Attribute -> int64 (n,): the place in its ``values``, -1 where missing.
    """

    inputs: NDArray[Any]
    labels: Integers
    groups: dict[str, Integers]
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Integers) -> Records:
        """The records at these places, in this order."""
        groups = {name: group[index] for name, group in self.groups.items()}
        return Records(self.inputs[index], self.labels[index], groups)


@dataclass(frozen=True, eq=False, repr=False)
class SiteData:
    """What a site works with; ``opted_out`` counts the records that its opt-out file takes away."""

    training: Records
    validation: Records
    test: Records
    opted_out: int


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """A manifest as numbers, before anything is refused.

    Attributes
    ----------
    table
        Its cells as text, without the records that were opted out.
    splits, labels
        int64 (n,): place in :data:`SPLITS` and in the plan's labels, :data:`UNKNOWN` for any other word.
    groups
        Attribute -> int64 (n,), :data:`MISSING` or :data:`UNKNOWN` where there is no group.
    values, wrong
        Features (n, F): scaled, NaN where missing; and which cells are no finite number. F is 0 for images.
    opted_out, opt_out_lines, opt_out_unmatched
        Records left out; lines of the opt-out file; how many of these name no record of the manifest.
    """

    table: Table
    splits: Integers
    labels: Integers
    groups: dict[str, Integers]
    values: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    opted_out: int
    opt_out_lines: int
    opt_out_unmatched: int

    def __len__(self) -> int:
        return self.table.rows


def load(plan: Plan, entry: Entry) -> SiteData:
    """Read a site's records as the plan describes them; the opt-out file is read anew each time.

    Raises
    ------
    DataError
        ``FF-DATA-*`` for the first defect found; ``fairflare data check`` lists all of them.
    """
    manifest = read_manifest(plan, entry)
    for defect in row_defects(plan, manifest):
        raise defect
    places = [np.flatnonzero(manifest.splits == split) for split in range(len(SPLITS))]
    inputs: Sequence[NDArray[Any]]
    if isinstance(plan.task.input, ImageInput):
        files = manifest.table.columns["file"]
        inputs = _images(plan.task.input, entry, [[files[at] for at in part.tolist()] for part in places])
    else:
        inputs = [_table_inputs(manifest.values[part]) for part in places]
    training, validation, test = (
        Records(part, manifest.labels[at], {name: group[at] for name, group in manifest.groups.items()})
        for part, at in zip(inputs, places, strict=True)
    )
    return SiteData(training, validation, test, manifest.opted_out)


def needed_columns(plan: Plan) -> tuple[str, ...]:
    """Columns that a manifest must have for this plan, each once."""
    kind = plan.task.input
    features = [] if isinstance(kind, ImageInput) else [feature.name for feature in kind.features]
    named = [*features, *(attribute.name for attribute in plan.attributes)]
    own = RESERVED if isinstance(kind, ImageInput) else RESERVED[:-1]
    return tuple(dict.fromkeys([*own, *named]))


def read_manifest(plan: Plan, entry: Entry) -> Manifest:
    """Read the manifest, leave out who opted out; raises :class:`DataError` if there is no table to look at."""
    table = read_table(Path(entry.manifest), needed_columns(plan), _WHAT)
    ids, patients = ([normal(cell) for cell in table.columns[name]] for name in ("id", "patient"))
    names = frozenset[str]() if entry.opt_out is None else read_opt_outs(Path(entry.opt_out))
    present = {*ids, *patients}
    verify_found(names, present)
    kept = [record not in names and patient not in names for record, patient in zip(ids, patients, strict=True)]
    table = Table({**table.columns, "id": ids, "patient": patients}, table.rows).keep(kept)
    kind = plan.task.input
    values, wrong = _features(table, () if isinstance(kind, ImageInput) else kind.features)
    return Manifest(
        table=table,
        splits=codes(table.columns["split"], SPLITS, UNKNOWN, UNKNOWN),
        labels=codes(table.columns["label"], plan.task.labels, UNKNOWN, UNKNOWN),
        groups={attribute.name: _group(table, attribute) for attribute in plan.attributes},
        values=values,
        wrong=wrong,
        opted_out=len(kept) - table.rows,
        opt_out_lines=len(names),
        opt_out_unmatched=len(names - present),
    )


def _group(table: Table, attribute: Attribute) -> Integers:
    cells = table.columns[attribute.name]
    if attribute.edges is None:
        return codes(cells, attribute.values, MISSING, UNKNOWN)
    values, wrong = numbers(cells)
    group = np.searchsorted(np.array(attribute.edges), values, side="right").astype(np.int64)
    group[np.isnan(values)] = MISSING
    group[wrong] = UNKNOWN
    return group


def _features(table: Table, features: Sequence[Feature]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.full((table.rows, len(features)), np.nan)
    wrong = np.zeros(values.shape, dtype=np.bool_)
    for at, feature in enumerate(features):
        raw, bad = numbers(table.columns[feature.name])
        with np.errstate(over="ignore"):
            values[:, at] = ((raw - feature.center) / feature.scale).astype(np.float32)
        wrong[:, at] = bad | np.isinf(values[:, at])
    return values, wrong


def _table_inputs(values: NDArray[np.float64]) -> NDArray[np.float32]:
    known = ~np.isnan(values)
    return np.concatenate([np.where(known, values, 0.0), known], axis=1).astype(np.float32)


def row_defects(plan: Plan, manifest: Manifest) -> Iterator[DataError]:
    """Everything that is wrong with the rows, apart from files; nothing if they can be used."""
    columns = manifest.table.columns
    for name, what in (("id", "record"), ("patient", "patient")):
        if empty := sum(not cell for cell in columns[name]):
            yield _defect("NO-ID", f"{count(empty, 'row')} without '{name}'", f"the {what}'s own name in every row")
        if odd := sum(not is_plain_name(cell) for cell in columns[name]):
            expected = "names without quotes, commas, semicolons, tabs, invisible characters or '#' in front"
            yield DataError(
                "FF-DATA-ID-TEXT",
                got=f"{count(odd, 'row')} with an '{name}' that no line of an opt-out file could hold",
                expected=expected,
                next_step=f"rename them in the manifest: this {what} could not say no",
            )
    if repeated := len(columns["id"]) - len(set(columns["id"])):
        yield _defect("DUPLICATE-ID", f"{count(repeated, 'row')} with an id that another row has", "each id once")
    if unknown := int((manifest.splits == UNKNOWN).sum()):
        yield _defect("SPLIT", f"{count(unknown, 'row')} with another word in 'split'", f"one of {', '.join(SPLITS)}")
    if torn := _torn_patients(columns["patient"], columns["split"]):
        yield DataError(
            "FF-DATA-PATIENT-SPLIT",
            got=f"{count(torn, 'patient')} with records in more than one split",
            expected="all records of a patient in one split, or the test would measure what was memorised",
            next_step="split by patient, not by record",
        )
    if unknown := int((manifest.labels == UNKNOWN).sum()):
        words = " or ".join(plan.task.labels)
        yield _defect("LABEL", f"{count(unknown, 'row')} with a label that the plan does not have", words)
    yield from _group_defects(plan, manifest.groups)
    yield from _feature_defects(plan, manifest.wrong)
    if not (manifest.splits == SPLITS.index("training")).any():
        left = f" after {count(manifest.opted_out, 'record')} opted out" if manifest.opted_out else ""
        yield DataError(
            "FF-DATA-NO-TRAINING",
            got=f"no training record{left}",
            expected="at least one row with 'training' in 'split'",
            next_step="check the column 'split', or do not offer this data set",
        )


def _torn_patients(patients: Sequence[str], splits: Sequence[str]) -> int:
    seen: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if patient:
            seen.setdefault(patient, set()).add(split)
    return sum(len(where) > 1 for where in seen.values())


def _group_defects(plan: Plan, groups: Mapping[str, Integers]) -> Iterator[DataError]:
    for attribute in plan.attributes:
        if unknown := int((groups[attribute.name] == UNKNOWN).sum()):
            words = ", ".join(attribute.values) if attribute.edges is None else "a decimal number"
            got = f"{count(unknown, 'row')} with a value of attribute '{attribute.name}' that the plan lacks"
            yield _defect("ATTRIBUTE", got, f"{words}, or an empty cell")


def _feature_defects(plan: Plan, wrong: NDArray[np.bool_]) -> Iterator[DataError]:
    kind = plan.task.input
    names = [] if isinstance(kind, ImageInput) else [feature.name for feature in kind.features]
    for name, bad in zip(names, wrong.sum(axis=0), strict=True):
        if bad:
            got = f"{count(int(bad), 'row')} with a cell of feature '{name}' that is no finite number"
            yield _defect("FEATURE", got, "a decimal number with a point, or an empty cell")


def _defect(code: str, got: str, expected: str) -> DataError:
    return DataError(f"FF-DATA-{code}", got=got, expected=expected, next_step="correct these rows in the manifest")


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


def file_defects(outside: int, missing: int, unreadable: int) -> Iterator[DataError]:
    """Refusals for so many files that may not be opened, are not there, or are no images."""
    if outside:
        got = f"{count(outside, 'row')} with a 'file' that leaves the root folder"
        expected = "relative paths without '..', and no symbolic link to the outside"
        yield _defect("FILE-OUTSIDE", got, expected)
    if missing:
        got = f"{count(missing, 'row')} with a 'file' that is empty or not there"
        yield _defect("FILE-MISSING", got, "a file below the root folder, with exactly this name")
    if unreadable:
        yield DataError(
            "FF-DATA-IMAGE",
            got=f"{count(unreadable, 'file')} that cannot be read as an image",
            expected="complete JPEG, PNG, TIFF, BMP, PPM, WebP or GIF files with 8 bits per channel",
            next_step="export these images again; 'fairflare data check' finds all that is wrong",
        )


def _images(size: ImageInput, entry: Entry, files: Sequence[Sequence[str]]) -> list[NDArray[np.uint8]]:
    root = image_root(entry)
    located = [locate(root, part) for part in files]
    outside, missing = sum(part[1] for part in located), sum(part[2] for part in located)
    for defect in file_defects(outside, missing, 0):
        raise defect
    loaded = [load_images([path for path in paths if path is not None], size) for paths, _, _ in located]
    for defect in file_defects(0, 0, sum(unreadable for _, unreadable in loaded)):
        raise defect
    return [pixels for pixels, _ in loaded]
