# SPDX-License-Identifier: Apache-2.0
"""What a feasibility job leaves in the record: which words hospitals use, and records by split, value and label."""

from __future__ import annotations

from fairflare.schema import StrictModel

#: Rows and columns that are no words of the plan, and that no word can look like: an empty cell; a word or number that
#: the plan does not have; what is kept back of a column; every label.
MISSING, OTHER, WITHHELD, ANY = "(missing)", "(other)", "(withheld)", "(any)"


class Use(StrictModel):
    """In how many hospitals (``sites``) at least one record has this value, in whatever split.

    ``attribute`` is an attribute of the plan, or ``split`` or ``label``.
    """

    attribute: str
    value: str
    sites: int


class VocabularyCell(StrictModel):
    """Hospitals that have at least the plan's smallest cell of these records, and how many records they have together.

    No records although there are hospitals: withheld. ``value`` ``(withheld)`` has no records: ``sites`` is the number
    of hospitals that keep back at least a smallest cell of the records with this label.
    """

    split: str
    attribute: str
    value: str
    label: str
    sites: int
    records: int


class Feasibility(StrictModel):
    """Everything that was counted, in the order of the plan."""

    uses: tuple[Use, ...]
    cells: tuple[VocabularyCell, ...]
