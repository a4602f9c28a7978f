# SPDX-License-Identifier: Apache-2.0
"""What a hospital says in its own ``local/`` folder: which data sets it offers, and on which terms.

:class:`SitePolicy`, ``site_policy.json``, is its will: a policy can only tighten a plan, never loosen it. A site
without one takes part in nothing. :class:`DataCatalog` lists its data sets.

A plan names a data set, never a path; the catalogue says where that data set lies on this site's disk. A
hospital's catalogue has the flat form (``data_sets``). NVIDIA FLARE's simulator gives every site the same
``local/`` folder, so there a catalogue has the form by site (``sites``). No message of this module holds a
path: paths name people's folders, and sometimes people.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import CatalogError, PolicyError
from fairflare.plan import Consent, Plan
from fairflare.schema import StrictModel, rule

FORMAT = "fairflare/catalog/1"
CATALOG_NAME = "data_catalog.json"

POLICY_FORMAT = "fairflare/policy/1"
POLICY_NAME = "site_policy.json"

_DATA_SET = re.compile(r"[a-z][a-z0-9_]{0,63}")  # the plan's `Name`
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
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
            for name, part in _objects(sites, _SITE, "site names"):
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
    return _SITE.fullmatch(name) is not None


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


# -------------------------------------------------------------------------------------------------------------- policy


class SitePolicy(StrictModel):
    """The whole of ``site_policy.json``: what a plan, and the other sites, must hold to.

    Attributes
    ----------
    store
        Absolute path of the folder, outside any FLARE workspace, where this site keeps what must last: what it has
        revealed, by data set. Each site of a simulator gets a folder of its name in it.
    protection
        Least protection of every vector: ``masked``, or ``none`` for public data.
    identities
        Who must vouch for the sites' keys: ``kit`` (a start-up kit), or ``development`` (nobody, for simulators).
    peers
        Site name -> SHA-256 (hex) of its public key, exchanged between hospitals and not through the server; ``null``:
        whoever the project's root certificate vouches for. The site itself may be among them.
    least_sites
        Fewest sites of any sum that this site's numbers are in.
    colluders
        Sites that may collude with the server, at least.
    weight_unit
        Least unit to which its record count is rounded where it weighs an update.
    cells_minimum, cells_sites
        Fewest records of a group here, and fewest sites that have it, for sums of the group to be opened.
    cohort_changes
        How many other sets of sites may get exact statistics of a data set: the difference of two sums is the sum of
        the sites in which they differ.
    plans
        SHA-256 (hex) of the plans that this site has approved (``fairflare plan hash``); ``null``: any that the rest
        of the policy allows. A site answers each question once for each plan: whoever may choose plans may ask again.
    consents
        Consents of a plan that this site gives.
    """

    format: Literal["fairflare/policy/1"]
    store: str
    protection: Literal["masked", "none"]
    identities: Literal["kit", "development"]
    peers: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] | None
    least_sites: Annotated[int, Field(ge=1)]
    colluders: Annotated[int, Field(ge=0)]
    weight_unit: Annotated[int, Field(ge=1)]
    cells_minimum: Annotated[int, Field(ge=0)]
    cells_sites: Annotated[int, Field(ge=1)]
    cohort_changes: Annotated[int, Field(ge=0)]
    plans: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None
    consents: tuple[Consent, ...]

    @model_validator(mode="after")
    def _check(self) -> SitePolicy:
        if not Path(self.store).is_absolute():
            raise rule("got a relative path in 'store', expected an absolute one", "write the full path, from / on")
        if self.peers == {}:
            raise rule("got 'peers' without a site, expected at least one, or null for whoever the project vouches for")
        for name in self.peers or ():
            if not is_site_name(name):
                raise rule(f"got a key that cannot stand among site names, expected keys that match {_SITE.pattern}")
        return self

    def check(self, plan: Plan) -> Iterator[str]:
        """Whatever ``plan`` asks for and this policy does not allow, each as "field: got ..., expected ..."."""
        masking = plan.protection.masking
        if self.plans is not None and plan.sha256 not in self.plans:
            yield f"plans: got {plan.sha256}, expected one of the {len(self.plans)} that this site has approved"
        for consent in plan.consents:
            if consent not in self.consents:
                yield f"consents: got '{consent}', expected {', '.join(self.consents) or 'none'}"
        if self.protection == "masked" and masking is None:
            yield f"protection: got '{plan.protection.update}', expected 'masked'"
        least = {
            "federation.min_sites": (plan.federation.min_sites, self.least_sites),
            "cells.minimum": (plan.cells.minimum, self.cells_minimum),
            "cells.sites": (plan.cells.sites, self.cells_sites),
        }
        if masking is not None:
            least["protection.masking.colluders"] = (masking.colluders, self.colluders)
            least["protection.masking.weight_unit"] = (masking.weight_unit, self.weight_unit)
        for field, (got, wanted) in least.items():
            if got < wanted:
                yield f"{field}: got {got}, expected at least {wanted}"

    def verify(self, plan: Plan) -> None:
        """Raise ``FF-POLICY-REFUSED`` with everything that :meth:`check` finds."""
        found = list(self.check(plan))
        if found:
            raise PolicyError(
                "FF-POLICY-REFUSED",
                got="; ".join(found),
                expected="a plan within this site's policy",
                next_step="ask the researcher to change the plan, or the site's owner to change the policy",
            )

    def memory_file(self, site: str | None, data_set: str, workspace: Path) -> Path:
        """Where the site remembers what it revealed of a data set; ``FF-POLICY-STORE`` if FLARE could erase it.

        ``site`` is for simulators, whose sites share a policy: a hospital has one memory of a data set, whatever its
        name in a project.
        """
        store = Path(os.path.realpath(self.store))
        if store.is_relative_to(os.path.realpath(workspace)):
            raise PolicyError(
                "FF-POLICY-STORE",
                got="a 'store' inside FLARE's workspace, which is erased or replaced",
                expected="a folder outside of it",
                next_step="choose another folder in site_policy.json, and move what is in the old one",
            )
        return (store if site is None else store / site) / data_set / "reveals.sqlite"


def open_policy(store: Path, *, identities: Literal["kit", "development"] = "development") -> SitePolicy:
    """A policy for public data: no more than the plan asks for."""
    return SitePolicy(
        format="fairflare/policy/1", store=str(store), protection="none", identities=identities, peers=None,
        least_sites=1, colluders=0, weight_unit=1, cells_minimum=0, cells_sites=1, cohort_changes=1_000_000,
        plans=None, consents=get_args(Consent),
    )  # fmt: skip


def standard_policy(store: Path) -> SitePolicy:
    """A policy for patients' data: masks, start-up kits, cells of at least 11 records and three sites, one cohort.

    It approves no plan yet.
    """
    return SitePolicy(
        format="fairflare/policy/1", store=str(store), protection="masked", identities="kit", peers=None,
        least_sites=3, colluders=1, weight_unit=10, cells_minimum=11, cells_sites=3, cohort_changes=0,
        plans=(), consents=(),
    )  # fmt: skip


def read_policy(path: Path) -> SitePolicy:
    """Read a policy from a file, or from a folder that holds one; raises :class:`PolicyError`."""
    file = path / POLICY_NAME if path.is_dir() else path
    return schema.read(SitePolicy, file, error=PolicyError, what="site policy")


def write_policy(folder: Path, policy: SitePolicy) -> Path:
    """Write ``site_policy.json`` into ``folder`` and return its path."""
    path = folder / POLICY_NAME
    path.write_text(schema.pretty(policy), encoding="utf-8")
    return path
