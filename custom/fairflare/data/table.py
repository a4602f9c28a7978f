# SPDX-License-Identifier: Apache-2.0
"""One strict way to read a CSV file: text cells by column, nothing guessed, nothing dropped.

The standard library's reader instead of a data-frame: no word becomes "missing" (``None``, ``NA`` and ``nan``
are text), no number is inferred, a row that is too long or too short is refused. UTF-8 with or without a
byte-order mark, any line ending, comma as separator.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairflare.errors import DataError

# float() alone also takes "1_000", "infinity", "nan" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_. -]{0,63}")


@dataclass(frozen=True, repr=False)
class Table:
    """A CSV file as text: column -> one cell per row, stripped. Its ``repr`` shows no content."""

    columns: Mapping[str, Sequence[str]]
    rows: int

    def keep(self, wanted: Sequence[bool]) -> Table:
        """The rows that are wanted, in their order."""
        columns = {
            name: [cell for cell, kept in zip(cells, wanted, strict=True) if kept]
            for name, cells in self.columns.items()
        }
        return Table(columns, sum(wanted))


def read_table(path: Path, required: Sequence[str], what: str) -> Table:
    """Read the columns ``required`` of the CSV file at ``path``; others are ignored.

    Raises
    ------
    DataError
        ``FF-DATA-FILE`` (unreadable), ``FF-DATA-EMPTY``, ``FF-DATA-HEADER`` (no or ambiguous header),
        ``FF-DATA-COLUMN`` (a required column is missing) or ``FF-DATA-ROW`` (rows of another length, broken
        quotes).
    """
    rows = _rows(path, what)
    if not rows:
        raise DataError(
            "FF-DATA-EMPTY",
            got=f"a {what} without a line",
            expected=f"a header and at least one row; columns {', '.join(required)}",
            next_step=f"check that the export of the {what} was finished",
        )
    header = [name.strip() for name in rows[0]]
    _check_header(header, required, what)
    body = rows[1:]
    uneven = sum(len(row) != len(header) for row in body)
    if uneven:
        raise DataError(
            "FF-DATA-ROW",
            got=f"{count(uneven, 'row')} of a {what} with more or fewer cells than its header",
            expected=f"{len(header)} cells in every row",
            next_step="export it again, with quotes around cells that hold a comma or a line break",
        )
    if not body:
        raise DataError(
            "FF-DATA-EMPTY",
            got=f"a {what} with a header and no row",
            expected="at least one row",
            next_step=f"check that the export of the {what} was finished",
        )
    places = {name: header.index(name) for name in required}
    return Table({name: [row[at].strip() for row in body] for name, at in places.items()}, len(body))


def _rows(path: Path, what: str) -> list[list[str]]:
    try:
        # utf-8-sig drops the byte-order mark that spreadsheet programs write; newline="" leaves line ends to
        # csv.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [row for row in csv.reader(stream, strict=True) if any(cell.strip() for cell in row)]
    except (OSError, ValueError) as problem:
        raise DataError(
            "FF-DATA-FILE",
            got=f"a {what} that cannot be read ({type(problem).__name__})",
            expected="a readable CSV file in UTF-8",
            next_step=f"check that the {what} exists, may be read by this user and is stored as UTF-8",
        ) from None
    except csv.Error:
        raise DataError(
            "FF-DATA-ROW",
            got=f"a {what} with broken quotes, or with bytes that are no text",
            expected="a CSV file: comma between cells, cells in double quotes where they hold a comma",
            next_step="export it again as CSV",
        ) from None


def _check_header(header: Sequence[str], required: Sequence[str], what: str) -> None:
    missing = [name for name in required if name not in header]
    if len(missing) == len(required):
        # Perhaps no header at all: then the first line is a patient, and nothing of it may be repeated.
        separator = next((sign for sign in (";", "\t") if any(sign in cell for cell in header)), None)
        wrong = f"; its cells seem to be separated by {separator!r}" if separator else ""
        raise DataError(
            "FF-DATA-HEADER",
            got=f"a {what} whose first line has none of the needed column names{wrong}",
            expected=f"a first line with the columns {', '.join(required)}, separated by commas",
            next_step="export it with column names, and with commas",
        )
    if missing:
        near = _nearest(missing[0], [name for name in header if name not in required])
        raise DataError(
            "FF-DATA-COLUMN",
            got=f"a {what} without the columns {', '.join(missing)}{near}",
            expected=f"the columns {', '.join(required)}; others are ignored",
            next_step="rename or add the column",
        )
    repeated = sorted({name for name in required if header.count(name) > 1})
    if repeated:
        raise DataError(
            "FF-DATA-HEADER",
            got=f"a {what} with the columns {', '.join(repeated)} more than once",
            expected="each column once",
            next_step="remove or rename one of them",
        )


def _nearest(name: str, present: Iterable[str]) -> str:
    names = [one for one in present if _COLUMN.fullmatch(one)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; the nearest name it has to '{name}' is '{near[0]}'" if near else ""


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV file that :func:`read_table` reads back: exactly ``columns``, in this order."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def number(text: str) -> float | None:
    """The finite decimal number that ``text`` is, all of it; ``None`` if it is anything else."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def numbers(cells: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers (n,), NaN where a cell is empty; and which cells (n,) hold anything but a finite number."""
    values = np.full(len(cells), np.nan)
    wrong = np.zeros(len(cells), dtype=np.bool_)
    for at, cell in enumerate(cells):
        if not cell:
            continue
        value = number(cell)
        if value is None:
            wrong[at] = True
        else:
            values[at] = value
    return values, wrong


def codes(cells: Sequence[str], words: Sequence[str], empty: int, unknown: int) -> NDArray[np.int64]:
    """Place of each cell in ``words`` (n,); ``empty`` for an empty cell, ``unknown`` for any other text."""
    known = {"": empty, **{word: place for place, word in enumerate(words)}}
    return np.array([known.get(cell, unknown) for cell in cells], dtype=np.int64)


def count(number: int, word: str) -> str:
    """``1 row``, ``3 rows``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
