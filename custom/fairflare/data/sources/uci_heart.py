# SPDX-License-Identifier: Apache-2.0
"""UCI Heart Disease: 920 patients of four hospitals, 13 features, "is there a stenosis of more than 50 %".

Owner: A. Janosi (Hungarian Institute of Cardiology, Budapest), W. Steinbrunn (University Hospital Zurich),
M. Pfisterer (University Hospital Basel), R. Detrano (V.A. Medical Center Long Beach and Cleveland Clinic
Foundation). Their names must be given in publications.

Terms: Creative Commons Attribution 4.0 (UCI Machine Learning Repository, data set 45).

Citation: Janosi, A., Steinbrunn, W., Pfisterer, M., and Detrano, R. (1989). Heart Disease. UCI Machine Learning
Repository. https://doi.org/10.24432/C52P4X

Needs the four files ``processed.*.data`` of the original archive. The two repeated rows (one in ``hungarian``, one
in ``va``) are taken once. A cholesterol or a blood pressure of 0 is "not measured": Switzerland has no other
cholesterol. Age and sex are features and attributes. There is no official split: this one is 60/20/20 by the
SHA-256 of the record's id.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from fairflare.data.sources.writing import Row, refuse_subset, write_sites
from fairflare.data.table import number
from fairflare.errors import DataError
from fairflare.policy import DataCatalog

DATA_SET = "heart"
SITES = ("cleveland", "hungarian", "switzerland", "va")
#: Feature columns of the manifest, in the order of the original file's first 13 columns.
FEATURES = (
    "age_years", "sex_male", "cp", "trestbps", "chol", "fbs", "restecg",
    "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
COLUMNS = ("id", "patient", "label", "split", *FEATURES, "age", "sex")

_ZERO_IS_MISSING = ("trestbps", "chol")


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source`` with the four original files; see the module's docstring."""
    refuse_subset("uci_heart", subset)
    rows = {site: _site(site, source / f"processed.{site}.data") for site in SITES}
    return write_sites(out, DATA_SET, COLUMNS, rows, {})


def _site(site: str, path: Path) -> list[Row]:
    try:
        with path.open(encoding="ascii", newline="") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except (OSError, ValueError, csv.Error) as problem:
        raise _unusable(site, f"cannot be read ({type(problem).__name__})") from None
    rows: list[Row] = []
    seen: set[tuple[str, ...]] = set()
    for at, line in enumerate(lines):
        if len(line) != len(FEATURES) + 1 or line[-1].strip() == "?":
            raise _unusable(site, "has a line of another length, or without a diagnosis")
        cells = tuple(_cell(site, one) for one in line)
        if cells not in seen:
            seen.add(cells)
            rows.append(_row(f"{site}_{at:03d}", cells))
    return rows


def _cell(site: str, text: str) -> str:
    """A number in its shortest form, or an empty cell."""
    if text.strip() == "?":
        return ""
    value = number(text.strip())
    if value is None:
        raise _unusable(site, "has a cell that is neither a number nor a question mark")
    return f"{value:g}"


def _row(name: str, cells: tuple[str, ...]) -> Row:
    features = dict(zip(FEATURES, cells[:-1], strict=True))
    for feature in _ZERO_IS_MISSING:
        if features[feature] == "0":
            features[feature] = ""
    return {
        "id": name,
        "patient": name,
        "label": "absent" if cells[-1] == "0" else "present",
        "split": _split(name),
        **features,
        "age": features["age_years"],
        "sex": {"0": "female", "1": "male"}.get(features["sex_male"], ""),
    }


def _split(name: str) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "training" if place < 0.6 else "validation" if place < 0.8 else "test"


def _unusable(site: str, why: str) -> DataError:
    return DataError(
        "FF-DATA-SOURCE",
        got=f"a file processed.{site}.data that {why}",
        expected="the four original files processed.*.data of the UCI archive 'heart disease' in the source folder",
        next_step="fetch data set 45 from the UCI Machine Learning Repository and unpack it",
    )
