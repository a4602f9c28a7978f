# SPDX-License-Identifier: Apache-2.0
"""Public data sets with real sites: one file each, which names the owner, the terms and the citation.

A converter writes one manifest per real site and a catalogue in the form by site. It downloads nothing and copies no
image: whoever converts a data set has fetched it, and has accepted its terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fairflare.data.sources import chase_db1, drive, fundus, ham10000, stare, uci_heart
from fairflare.policy import DataCatalog


class Converter(Protocol):
    """Write manifests and ``data_catalog.json`` into ``out`` for the data set that lies in ``source``.

    ``subset``: the small, balanced part of the data set, where it has one. Raises
    :class:`~fairflare.errors.DataError`.
    """

    def __call__(self, source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
        """Convert."""
        ...


SOURCES: dict[str, Converter] = {
    "uci_heart": uci_heart.convert,
    "ham10000": ham10000.convert,
    "chase_db1": chase_db1.convert,
    "drive": drive.convert,
    "stare": stare.convert,
    "fundus": fundus.convert,
}
"""Name of a public data set -> its converter."""

__all__ = ["SOURCES", "Converter"]
