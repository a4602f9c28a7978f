# SPDX-License-Identifier: Apache-2.0
"""The manifest: one CSV file says which records a hospital offers; nothing wrong with it is passed over.

======================  ====================================================================================
column                  cell
======================  ====================================================================================
``id``                  the record's own name, each once
``patient``             who (or which lesion) it comes from; all records of one patient stand in one split
``label``               a word of the plan's ``task.labels`` (classification)
``split``               ``training``, ``validation`` or ``test``
``file`` (images)       path relative to the catalogue's root folder, which it may not leave
``mask`` (segmentation) path of the image's mask, below the same folder
each feature (tables)   a decimal number, or empty for "not measured"
each attribute          a word of its vocabulary (a decimal number if it has ``edges``), or empty: not known
======================  ====================================================================================

Other columns are allowed and ignored. An intersection of attributes has no column: it follows from theirs. Whoever is
named in the opt-out file (``fairflare.data.opt_out``) is left out before anything else is looked at; an ``id`` or
``patient`` that no opt-out file could hold is refused. Refusals count rows; they never repeat a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairflare.data.files import load_files
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
        int64 (n,): the place in the plan's ``task.labels``; zeros for segmentation.
    groups
        Attribute, then intersection -> int64 (n,): the place in ``plan.groups``, -1 where missing.
    masks
        Segmentation: uint8 (n, height, width), the place in ``task.labels`` of each pixel; ``None`` for classification.
    patients
        int64 (n,): equal numbers for records of one patient, and no other meaning; ``None``: each record has its own.
    """

    inputs: NDArray[Any]
    labels: Integers
    groups: dict[str, Integers]
    masks: NDArray[np.uint8] | None = None
    patients: Integers | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Integers) -> Records:
        """The records at these places, in this order."""
        groups = {name: group[index] for name, group in self.groups.items()}
        masks = None if self.masks is None else self.masks[index]
        patients = None if self.patients is None else self.patients[index]
        return Records(self.inputs[index], self.labels[index], groups, masks, patients)

    @property
    def units(self) -> Integers:
        """Whose each record is, (n,): what differential privacy protects."""
        return np.arange(len(self), dtype=np.int64) if self.patients is None else self.patients


@dataclass(frozen=True, eq=False, repr=False)
class SiteData:
    """What a site works with; ``opted_out`` counts the records that its opt-out file takes away.

    ``elsewhere``: records in no split of the plan, where these are counted rather than refused.
    """

    training: Records
    validation: Records
    test: Records
    opted_out: int
    elsewhere: Records | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """A manifest as numbers, before anything is refused.

    Attributes
    ----------
    table
        Its cells as text, without the records that were opted out.
    splits, labels
        int64 (n,): place in :data:`SPLITS` and in the plan's labels, :data:`UNKNOWN` for any other word; labels are
        zeros for segmentation.
    groups
        Attribute, then intersection -> int64 (n,), :data:`MISSING` or :data:`UNKNOWN` where there is no group.
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
    loaded: Sequence[tuple[NDArray[Any], NDArray[np.uint8] | None]]
    if isinstance(plan.task.input, ImageInput):
        loaded = load_files(plan, plan.task.input, entry, manifest.table.columns, places)
    else:
        loaded = [(_table_inputs(manifest.values[part]), None) for part in places]
    patients = _patients(manifest.table.columns["patient"])
    training, validation, test = (
        Records(
            inputs, manifest.labels[at], {name: group[at] for name, group in manifest.groups.items()}, masks,
            patients[at],
        )
        for (inputs, masks), at in zip(loaded, places, strict=True)
    )  # fmt: skip
    return SiteData(training, validation, test, manifest.opted_out)


def _patients(names: Sequence[str]) -> Integers:
    """A number for each patient; a record without a patient's name is one of its own."""
    known = {name: number for number, name in enumerate(dict.fromkeys(name for name in names if name))}
    return np.array([known.get(name, len(known) + place) for place, name in enumerate(names)], dtype=np.int64)


def load_counted(plan: Plan, entry: Entry) -> SiteData:
    """Read the manifest only, for records that are counted and not used: no image or mask is opened.

    ``inputs`` have no columns. Labels and groups may be :data:`UNKNOWN`: such words are counted, not refused. Records
    of which the split is unknown are ``elsewhere``.

    Raises
    ------
    DataError
        ``FF-DATA-*`` for rows without a name of their own: nobody could tell whether they opted out.
    """
    manifest = read_manifest(plan, entry)
    for defect in row_defects(plan, manifest):
        if defect.code in _NAMELESS:
            raise defect
    parts = []
    for split in (*range(len(SPLITS)), UNKNOWN):
        at = np.flatnonzero(manifest.splits == split)
        groups = {name: group[at] for name, group in manifest.groups.items()}
        parts.append(Records(np.zeros((at.size, 0), dtype=np.float32), manifest.labels[at], groups))
    training, validation, test, elsewhere = parts
    return SiteData(training, validation, test, manifest.opted_out, elsewhere)


_NAMELESS = ("FF-DATA-NO-ID", "FF-DATA-ID-TEXT", "FF-DATA-DUPLICATE-ID")


def needed_columns(plan: Plan) -> tuple[str, ...]:
    """Columns that a manifest must have for this plan, each once."""
    kind = plan.task.input
    features = [] if isinstance(kind, ImageInput) else [feature.name for feature in kind.features]
    named = [*features, *(attribute.name for attribute in plan.attributes)]
    if plan.task.kind == "segmentation":
        unused = {"label"}
    else:
        unused = {"mask"} if isinstance(kind, ImageInput) else {"mask", "file"}
    own = [name for name in RESERVED if name not in unused]
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
        labels=_labels(plan, table),
        groups=_groups(plan, table),
        values=values,
        wrong=wrong,
        opted_out=len(kept) - table.rows,
        opt_out_lines=len(names),
        opt_out_unmatched=len(names - present),
    )


def _labels(plan: Plan, table: Table) -> Integers:
    if plan.task.kind == "segmentation":
        return np.zeros(table.rows, dtype=np.int64)
    return codes(table.columns["label"], plan.task.labels, UNKNOWN, UNKNOWN)


def _groups(plan: Plan, table: Table) -> dict[str, Integers]:
    groups = {attribute.name: _group(table, attribute) for attribute in plan.attributes}
    for crossed in plan.intersections:
        place = np.zeros(table.rows, dtype=np.int64)
        unknown = np.zeros(table.rows, dtype=np.bool_)
        for name in crossed.of:  # the last attribute changes fastest, as in plan.groups
            place = place * len(plan.attribute(name).values) + groups[name]
            unknown |= groups[name] < 0
        groups[crossed.name] = np.where(unknown, MISSING, place)
    return groups


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
