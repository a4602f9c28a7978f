# SPDX-License-Identifier: Apache-2.0
"""Retinal vessels of three hospitals: CHASE_DB1, DRIVE and STARE as the three sites of one data set.

This is the FlexFair paper's fundus task; owners, terms and citations stand in the module of each data set. Needs a
folder with the sub-folders ``chase_db1``, ``drive`` and ``stare`` (a link to another folder will do), each in one of
the forms that its module takes.
"""

from __future__ import annotations

from pathlib import Path

from fairflare.data.sources import chase_db1, drive, stare
from fairflare.data.sources.vessels import unusable, write
from fairflare.data.sources.writing import refuse_subset
from fairflare.policy import DataCatalog

PARTS = {part.SITE: part.site_rows for part in (chase_db1, drive, stare)}


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source``; see the module's docstring."""
    refuse_subset("fundus", subset)
    absent = [site for site in PARTS if not (source / site).is_dir()]
    if absent:
        raise unusable("fundus", f"no sub-folder {', '.join(absent)}", f"the sub-folders {', '.join(PARTS)}")
    return write(out, {site: (source / site, site_rows(source / site)) for site, site_rows in PARTS.items()})
