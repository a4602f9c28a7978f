# SPDX-License-Identifier: Apache-2.0
"""HAM10000: 10,015 dermoscopy images from four real sources, "malignant or benign".

Owner: ViDIR Group, Department of Dermatology, Medical University of Vienna.

Terms: Creative Commons Attribution-NonCommercial 4.0. Not for commercial use; attribution is a condition.

Citation: Tschandl, P., Rosendahl, C., and Kittler, H. The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions. Sci. Data 5, 180161 (2018). https://doi.org/10.7910/DVN/DBW86T

Needs a folder with ``metadata.csv`` (columns ``id, image, site, lesion_id, malignant, age, sex, sha256, split``)
and the images that it names; they stay where they are. The "patient" is the lesion, and ``split`` keeps all images
of a lesion together. Malignant is melanoma, basal-cell carcinoma or actinic keratosis. Of images with the same
bytes (two pairs) the first one is taken. ``subset`` reads ``ci_subset.csv``: 583 images balanced by source, sex, age
and label. It has no validation images, so a fifth of its training lesions, by the SHA-256 of their names, becomes
validation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairflare.data.sources.writing import Row, write_sites
from fairflare.data.table import read_table
from fairflare.errors import DataError
from fairflare.policy import DataCatalog

DATA_SET = "skin"
SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
COLUMNS = ("id", "patient", "label", "split", "file", "age", "sex", "source")

_NEEDED = ("id", "image", "site", "lesion_id", "malignant", "age", "sex", "sha256", "split")
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_LABELS = {"0": "benign", "1": "malignant"}


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source``; see the module's docstring."""
    table = read_table(source / ("ci_subset.csv" if subset else "metadata.csv"), _NEEDED, "HAM10000 metadata")
    rows: dict[str, list[Row]] = {site: [] for site in SITES}
    seen: set[str] = set()
    for values in zip(*(table.columns[name] for name in _NEEDED), strict=True):
        cells = dict(zip(_NEEDED, values, strict=True))
        if cells["site"] not in rows or cells["split"] not in _SPLITS or cells["malignant"] not in _LABELS:
            raise _unusable()
        if cells["sha256"] not in seen:
            seen.add(cells["sha256"])
            rows[cells["site"]].append(_row(cells, subset))
    rows = {site: part for site, part in rows.items() if part}
    return write_sites(out, DATA_SET, COLUMNS, rows, dict.fromkeys(rows, source))


def _row(cells: dict[str, str], subset: bool) -> Row:
    split = _SPLITS[cells["split"]]
    if subset and split == "training" and _place(cells["lesion_id"]) < 0.2:
        split = "validation"
    return {
        "id": cells["id"],
        "patient": cells["lesion_id"],
        "label": _LABELS[cells["malignant"]],
        "split": split,
        "file": cells["image"],
        "age": cells["age"],
        "sex": cells["sex"] if cells["sex"] in ("female", "male") else "",
        "source": cells["site"],
    }


def _place(lesion: str) -> float:
    """A number in [0, 1) that depends on the lesion's name alone."""
    return int.from_bytes(hashlib.sha256(f"validation/{lesion}".encode()).digest()[:8], "big") / 2**64


def _unusable() -> DataError:
    return DataError(
        "FF-DATA-SOURCE",
        got="HAM10000 metadata with a source, a split or a label that this data set does not have",
        expected=f"sources {', '.join(SITES)}; splits {', '.join(_SPLITS)}; malignant 0 or 1",
        next_step="use the metadata file with the columns that the documentation of this source names",
    )
