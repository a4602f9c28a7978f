# SPDX-License-Identifier: Apache-2.0
"""Which data sets a hospital offers, and where they lie: ``data_catalog.json`` in its own ``local/`` folder.

A plan names a data set, never a path; the catalogue says where that data set lies on this site's disk. A
hospital's catalogue has the flat form (``data_sets``). NVIDIA FLARE's simulator gives every site the same
``local/`` folder, so there a catalogue has the form by site (``sites``). No message of this module holds a
path: paths name people's folders, and sometimes people.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from fairflare import schema
from fairflare.errors import CatalogError
from fairflare.schema import StrictModel, rule

FORMAT = "fairflare/catalog/1"
CATALOG_NAME = "data_catalog.json"

#: Form of a site's name: it becomes a folder's name.
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DATA_SET = re.compile(r"[a-z][a-z0-9_]{0,63}")  # the plan's `Name`
_PATHS = ("manifest", "root", "opt_out")


class Entry(StrictModel):
    """Where one data set lies at one site; all paths are absolute.

    ``manifest`` is the CSV file (``fairflare.data.manifest``), ``root`` the folder that its column ``file``
    is relative to (``null`` for tables), ``opt_out`` a text file of ids or patients that must never be used
    (``null``: there is none). ``public``: declared public, so models may be pretrained on it and the salted list of
    its members published (``fairflare.data.members``). It is the only field with a default: an entry that does not say
    that it is public, such as one written before there was this field, is not.
    """

    manifest: str
    root: str | None
    opt_out: str | None
    public: bool = False

    @model_validator(mode="after")
    def _check(self) -> Entry:
        for name in _PATHS:
            value = getattr(self, name)
            if value is not None and not Path(value).is_absolute():
                raise rule(
                    f"got a relative path in '{name}', expected an absolute one: "
                    "what a relative path means depends on who starts the process",
                    "write the full path, from / on",
                )
        return self


class DataCatalog(StrictModel):
    """The whole of ``data_catalog.json``; one of ``data_sets`` (flat form) and ``sites`` is not ``null``."""

    format: Literal["fairflare/catalog/1"]
    data_sets: dict[str, Entry] | None
    sites: dict[str, dict[str, Entry]] | None

    @model_validator(mode="before")
    @classmethod
    def _check_shape(cls, data: Any) -> Any:
        # Before the fields are looked at one by one: pydantic knows no names of sites and data sets, only any keys.
        if isinstance(data, dict):
            data_sets, sites = data.get("data_sets"), data.get("sites")
            if "data_sets" in data and "sites" in data and (data_sets is None) == (sites is None):
                both = "neither" if sites is None else "both"
                raise rule(f"got {both} of 'data_sets' and 'sites', expected exactly one, and null for the other")
            for name, part in _objects(sites, SITE, "site names"):
                _check_data_sets(part, f" of the site '{name}'")
            _check_data_sets(data_sets, "")
        return data

    @property
    def site_names(self) -> tuple[str, ...]:
        """Sites of the form by site, in the file's order; empty for the flat form."""
        return tuple(self.sites or ())

    def entry(self, site: str, data_set: str) -> Entry:
        """Where ``data_set`` lies at ``site``; the flat form, a site's own, does not look at ``site``.

        Raises
        ------
        CatalogError
            ``FF-CAT-UNKNOWN-SITE``, ``FF-CAT-UNKNOWN-DATA-SET``, or ``FF-CAT-MISSING-FILE`` when the manifest
            or its root folder is not there (or not for this user), so that this is known before work starts.
        """
        data_sets = self.data_sets if self.sites is None else self.sites.get(site)
        if data_sets is None:
            raise _unknown("SITE", "site", site, self.sites or {})
        if data_set not in data_sets:
            raise _unknown("DATA-SET", "data set", data_set, data_sets)
        found = data_sets[data_set]
        # os.path answers where pathlib raises, for example below a folder that this user may not enter.
        readable = os.path.isfile(found.manifest) and os.access(found.manifest, os.R_OK)
        missing = [] if readable else ["manifest"]
        if found.root is not None and not os.path.isdir(found.root):
            missing.append("root folder")
        if missing:
            raise CatalogError(
                "FF-CAT-MISSING-FILE",
                got=f"an entry '{data_set}' for site '{site}' whose {' and '.join(missing)} cannot be found",
                expected="a manifest and a root folder that exist and may be read by this user",
                next_step=f"correct '{data_set}' in the catalogue, or the access rights of its folders",
            )
        return found


def read_catalog(path: Path) -> DataCatalog:
    """Read a catalogue from a file, or from a folder that holds one; raises :class:`CatalogError`."""
    file = path / CATALOG_NAME if path.is_dir() else path
    return schema.read(DataCatalog, file, error=CatalogError, what="data catalogue")


def write_catalog(folder: Path, catalog: DataCatalog) -> Path:
    """Write ``data_catalog.json`` into ``folder`` and return its path."""
    path = folder / CATALOG_NAME
    path.write_text(schema.pretty(catalog), encoding="utf-8")
    return path


def is_site_name(name: str) -> bool:
    """Whether ``name`` can be a site in a catalogue (and so a folder's name)."""
    return SITE.fullmatch(name) is not None


def _objects(value: Any, name: re.Pattern[str], what: str) -> list[tuple[str, Any]]:
    """Items of a JSON object whose keys match ``name``; refused without repeating what is not a name."""
    if value is None:
        return []
    if not isinstance(value, dict):
        raise rule(f"got no JSON object, expected one with {what} as keys")
    if not value:
        raise rule(f"got an object without entries, expected {what} as keys, at least one")
    for key in value:
        if not name.fullmatch(key):
            raise rule(f"got a key that cannot stand among {what}, expected keys that match {name.pattern}")
    return list(value.items())


def _check_data_sets(value: Any, where: str) -> None:
    for name, entry in _objects(value, _DATA_SET, "data-set names"):
        if not isinstance(entry, Entry | dict):
            raise rule(f"got no JSON object for the data set '{name}'{where}, expected {', '.join(_PATHS)}")


def _unknown(code: str, what: str, name: str, known: Mapping[str, object]) -> CatalogError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; the nearest valid name is '{near[0]}'" if near else ""
    return CatalogError(
        f"FF-CAT-UNKNOWN-{code}",
        got=f"the {what} '{name}', which the catalogue does not have{hint}",
        expected=f"one of {', '.join(known)}",
        next_step=f"correct the name, or add the {what} to the catalogue",
    )
