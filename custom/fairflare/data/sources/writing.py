# SPDX-License-Identifier: Apache-2.0
"""What every converter does at its end: one manifest per site, and the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fairflare.data.table import write_table
from fairflare.errors import DataError
from fairflare.policy import DataCatalog, Entry, write_catalog

Row = Mapping[str, str]


def write_sites(
    out: Path, data_set: str, columns: Sequence[str], rows: Mapping[str, Sequence[Row]], roots: Mapping[str, Path]
) -> DataCatalog:
    """Write ``out/<site>/manifest.csv`` for each site of ``rows``, and ``out/data_catalog.json``.

    ``roots``: the folder of each site's images; a site of tables has none. All entries are declared public.
    """
    base = out.resolve()
    entries: dict[str, dict[str, Entry]] = {}
    for site, part in rows.items():
        (base / site).mkdir(parents=True, exist_ok=True)
        manifest = base / site / "manifest.csv"
        write_table(manifest, columns, part)
        folder = str(roots[site].resolve()) if site in roots else None
        entries[site] = {data_set: Entry(manifest=str(manifest), root=folder, opt_out=None, public=True)}
    catalog = DataCatalog(format="fairflare/catalog/1", data_sets=None, sites=entries)
    write_catalog(base, catalog)
    return catalog


def refuse_subset(name: str, subset: bool) -> None:
    """Refuse the option ``subset`` for a data set that has none."""
    if subset:
        raise DataError(
            "FF-DATA-SUBSET",
            got=f"a subset of {name}, which has none",
            expected="the whole data set: it is small",
            next_step="leave the option out",
        )
