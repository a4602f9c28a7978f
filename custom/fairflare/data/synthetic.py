# SPDX-License-Identifier: Apache-2.0
"""Synthetic hospitals: real manifests and files, made from a plan's own vocabulary, to try and to test with.

Nobody is described: the records are drawn, and show what fairness methods are for.

* Hospitals differ in size, in prevalence and in their measurements (covariate shift).
* The last value of the first attribute is a *minority* (20 to 34 % of the records). Its label shows in other signs
  than everybody else's: other features, or another mark in the image. A model that minimises the mean loss
  learns these signs late and weakly, which leaves a clear gap between the groups, although what would close it is in
  the data (``test_tables_are_learnable_and_unequal`` measures both).
* For segmentation, the minority's shapes have less contrast; without attributes, those of the last hospital do.
* Of more than two labels, the record's sign decides which one it is, as with the stages of a disease.
* Some attributes and some features are missing; some patients have several records.

Everything follows from the seed, through one generator for each hospital.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fairflare.data.manifest import SPLITS, needed_columns
from fairflare.data.synthetic_images import write_image
from fairflare.data.synthetic_masks import write_pair
from fairflare.data.table import write_table
from fairflare.errors import DataError
from fairflare.plan import Attribute, ImageInput, Plan, SegmentationTask, TableInput
from fairflare.policy import DataCatalog, Entry, is_site_name, write_catalog
from fairflare.seeds import generator

FEWEST_RECORDS = 20
SHARES = (0.6, 0.2, 0.2)
ATTRIBUTE_MISSING = 0.02
FEATURE_MISSING = 0.04
#: Standard deviation of the label's log-odds: no score can have a larger AUC than about 0.95.
SIGNAL = 4.0
#: Smallest and largest share of the minority at a hospital.
MINORITY = (0.20, 0.34)
#: Contrast of the shapes of those whose images are hard to read, where everybody else's is 1.
FAINT = 0.25
#: How much of its strength a sign has in the group whose label does not follow it.
QUIET = 0.8

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class _Hospital:
    """What is drawn before features or images: two hidden signs per record, one of which makes the label."""

    signs: Floats  # (n, 2), about normal, shifted by site: everybody's sign, and the minority's
    labels: NDArray[np.int64]
    groups: dict[str, NDArray[np.int64]]
    minority: NDArray[np.bool_]
    patients: NDArray[np.int64]
    splits: NDArray[np.int64]
    contrast: Floats  # (n,), of the shapes in an image for segmentation, 1 at its best


def write_hospitals(folder: Path, plan: Plan, sites: Sequence[str], records: int, seed: int) -> DataCatalog:
    """Write one manifest (and the images) per site, and ``data_catalog.json`` in the form by site.

    Parameters
    ----------
    folder
        Gets one folder per site; made if it is not there.
    plan
        Features or image size, labels, attributes and the data set's name are the plan's.
    sites
        Names of the hospitals.
    records
        Mean number of records of a hospital; the first ones are larger, the last ones smaller.
    seed
        The same seed writes the same files.

    Raises
    ------
    DataError
        ``FF-DATA-SYNTHETIC`` for too few records, or for names that are not valid or not different.
    """
    named = {site for site in sites if is_site_name(site)}
    if records < FEWEST_RECORDS or len(named) != len(sites) or not sites:
        raise DataError(
            "FF-DATA-SYNTHETIC",
            got=f"{records} records for each of {len(sites)} sites with {len(named)} different, valid names",
            expected=f"at least {FEWEST_RECORDS} records per site; different names of letters, digits and _.-",
            next_step="ask for more records, or name each site once",
        )
    base = folder.resolve()
    columns = needed_columns(plan)
    entries: dict[str, dict[str, Entry]] = {}
    for place, site in enumerate(sites):
        home = base / site
        home.mkdir(parents=True, exist_ok=True)
        rng = generator(seed, "synthetic", site)
        size = _size(records, place, len(sites))
        rows = _rows(plan, site, _hospital(plan, size, place / max(len(sites) - 1, 1), rng), home, rng)
        write_table(home / "manifest.csv", columns, rows)
        root = str(home) if isinstance(plan.task.input, ImageInput) else None
        entries[site] = {plan.task.data_set: Entry(manifest=str(home / "manifest.csv"), root=root, opt_out=None)}
    catalog = DataCatalog(format="fairflare/catalog/1", data_sets=None, sites=entries)
    write_catalog(base, catalog)
    return catalog


def _size(records: int, place: int, sites: int) -> int:
    """From 1.4 times the mean at the first site to 0.6 times at the last one."""
    return round(records * (1.4 - 0.8 * place / (sites - 1))) if sites > 1 else records


def _hospital(plan: Plan, size: int, place: float, rng: np.random.Generator) -> _Hospital:
    groups = {attribute.name: _group(size, len(attribute.values), rng) for attribute in plan.attributes}
    minority = np.zeros(size, dtype=np.bool_)
    if plan.attributes:
        share = rng.uniform(*MINORITY)
        first, last = plan.attributes[0].name, len(plan.attributes[0].values) - 1
        groups[first] = np.where(rng.random(size) < share, last, _group(size, last, rng))
        minority = groups[first] == last
    signs = rng.normal(rng.normal(0.0, 0.25, size=2), 1.0, size=(size, 2))
    odds = SIGNAL * np.where(minority, signs[:, 1], signs[:, 0]) + rng.uniform(-0.8, 0.8)
    cuts = _cuts(len(plan.task.labels) if plan.task.kind == "classification" else 2)
    signs[~minority, 1] *= QUIET
    signs[minority, 0] *= QUIET
    labels = (rng.random((size, 1)) < 1.0 / (1.0 + np.exp(cuts - odds[:, None]))).sum(axis=1, dtype=np.int64)
    patients = np.cumsum(
        rng.random(size) > 0.1, dtype=np.int64
    )  # one in ten records belongs to the patient of the one before
    faint = minority if plan.attributes else np.full(size, place == 1.0)
    contrast = np.where(faint, FAINT, 1.0) * (1.0 - 0.1 * place)
    return _Hospital(signs, labels, groups, minority, patients, _splits(patients, rng), contrast)


def _cuts(labels: int) -> Floats:
    """Log-odds at which one label goes over into the next, as stages of a disease do; for two labels it is 0."""
    drawn = NormalDist(0.0, math.hypot(SIGNAL, math.pi / math.sqrt(3.0)))  # about: of the signs and of the draw
    return np.array([drawn.inv_cdf(place / labels) for place in range(1, labels)])


def _group(size: int, values: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(values, size=size, p=rng.dirichlet(np.full(values, 20.0))).astype(np.int64)


def _splits(patients: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Split (n,) of each record; all records of a patient in one, every split has somebody."""
    names, place = np.unique(patients, return_inverse=True)
    ends = np.cumsum(SHARES)[:-1] * len(names)
    of_patient = np.empty(len(names), dtype=np.int64)
    of_patient[rng.permutation(len(names))] = np.searchsorted(ends, np.arange(len(names)), side="right")
    return of_patient[place]


def _rows(plan: Plan, site: str, hospital: _Hospital, home: Path, rng: np.random.Generator) -> list[dict[str, str]]:
    kind = plan.task.input
    size = len(hospital.labels)
    columns: dict[str, list[str]] = {
        "id": [f"{site}-{at:06d}" for at in range(size)],
        "patient": [f"{site}-p{patient:06d}" for patient in hospital.patients],
        "split": [SPLITS[split] for split in hospital.splits],
    }
    # Attributes after features: where both have the same name, the attribute's numbers are the ones that count.
    if isinstance(plan.task, SegmentationTask):
        columns |= _pairs(plan.task, hospital, home, rng)
    else:
        columns["label"] = [plan.task.labels[label] for label in hospital.labels]
        columns |= _files(kind, hospital, home, rng) if isinstance(kind, ImageInput) else _features(kind, hospital, rng)
    for attribute in plan.attributes:
        cells = _cells(attribute, hospital.groups[attribute.name], rng)
        columns[attribute.name] = _with_gaps(cells, ATTRIBUTE_MISSING, rng)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _features(kind: TableInput, hospital: _Hospital, rng: np.random.Generator) -> dict[str, list[str]]:
    """Raw values: features with an even place show everybody's sign, the others the minority's."""
    shift = rng.normal(0.0, 0.2, size=len(kind.features))
    columns = {}
    for place, feature in enumerate(kind.features):
        sign = hospital.signs[:, place % 2]
        value = 0.8 * sign + 0.6 * rng.normal(size=len(sign)) + shift[place]
        cells = [f"{feature.center + feature.scale * one:.6g}" for one in value]
        columns[feature.name] = _with_gaps(cells, FEATURE_MISSING, rng)
    return columns


def _files(kind: ImageInput, hospital: _Hospital, home: Path, rng: np.random.Generator) -> dict[str, list[str]]:
    (home / "images").mkdir(exist_ok=True)
    light = rng.uniform(-15.0, 15.0, size=kind.channels)
    files = [f"images/{at:06d}.png" for at in range(len(hospital.labels))]
    for file, signs in zip(files, hospital.signs, strict=True):
        write_image(home / file, kind, (float(signs[0]), float(signs[1])), light, rng)
    return {"file": files}


def _pairs(task: SegmentationTask, hospital: _Hospital, home: Path, rng: np.random.Generator) -> dict[str, list[str]]:
    for name in ("images", "masks"):
        (home / name).mkdir(exist_ok=True)
    light = rng.uniform(-20.0, 20.0, size=task.input.channels)
    names = [f"{at:06d}.png" for at in range(len(hospital.labels))]
    for name, contrast in zip(names, hospital.contrast.tolist(), strict=True):
        write_pair(home / "images" / name, home / "masks" / name, task, contrast, light, rng)
    return {"file": [f"images/{name}" for name in names], "mask": [f"masks/{name}" for name in names]}


def _cells(attribute: Attribute, group: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """A word for each record, or a number between the edges of its group."""
    if attribute.edges is None:
        return [attribute.values[value] for value in group]
    edges = np.array(attribute.edges)
    width = float(np.diff(edges).mean()) if len(edges) > 1 else max(abs(float(edges[0])) / 4, 1.0)
    bounds = np.concatenate([[edges[0] - width], edges, [edges[-1] + width]])
    low, high = bounds[group], bounds[group + 1]
    drawn = low + (high - low) * rng.random(len(group))
    # Rounded as a form would hold it, where this does not move a number over an edge.
    rounded = np.floor(drawn)
    return [repr(float(one)) for one in np.where(rounded >= low, rounded, drawn)]


def _with_gaps(cells: Sequence[str], share: float, rng: np.random.Generator) -> list[str]:
    return ["" if gap else cell for cell, gap in zip(cells, rng.random(len(cells)) < share, strict=True)]
