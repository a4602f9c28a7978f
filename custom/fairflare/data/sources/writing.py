# SPDX-License-Identifier: Apache-2.0
"""What every converter does at its end: one manifest per site, and the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fairflare.data.table import write_table
from fairflare.policy import DataCatalog, Entry, write_catalog

Row = Mapping[str, str]


def write_sites(
    out: Path, data_set: str, columns: Sequence[str], rows: Mapping[str, Sequence[Row]], root: Path | None
) -> DataCatalog:
    """Write ``out/<site>/manifest.csv`` for each site of ``rows``, and ``out/data_catalog.json``."""
    base = out.resolve()
    entries: dict[str, dict[str, Entry]] = {}
    for site, part in rows.items():
        (base / site).mkdir(parents=True, exist_ok=True)
        manifest = base / site / "manifest.csv"
        write_table(manifest, columns, part)
        folder = None if root is None else str(root.resolve())
        entries[site] = {data_set: Entry(manifest=str(manifest), root=folder, opt_out=None)}
    catalog = DataCatalog(format="fairflare/catalog/1", data_sets=None, sites=entries)
    write_catalog(base, catalog)
    return catalog
