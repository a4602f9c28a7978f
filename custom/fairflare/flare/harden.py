# SPDX-License-Identifier: Apache-2.0
"""Hardens a start-up kit, whoever made it; imports nothing of FLARE.

:func:`harden_kit` is what ``nvflare provision`` runs through our builder, and :func:`harden_own` on a kit that
its holder made with ``nvflare package``: one function, so that both ways end in the same kit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from fairflare import schema
from fairflare.errors import FairFlareError, KitError, PolicyError
from fairflare.flare.kit_manifest import SIGNATURE_NAME, write_manifest
from fairflare.flare.provision_files import (
    Kind,
    Role,
    Settings,
    close_to_others,
    harden_local,
    harden_start,
    next_steps,
    start_texts,
)
from fairflare.policy.approvals import site_name
from fairflare.policy.catalog import is_site_name
from fairflare.policy.roster import ROSTER_FORMAT, ROSTER_NAME, Roster
from fairflare.secagg.identity import key_hash

README = "readme.txt"
#: FLARE's start-up file -> whose kit it is.
_STARTS: Mapping[str, Role] = {"fed_client.json": "site", "fed_server.json": "server", "fed_admin.json": "person"}
#: Whose kit -> how its certificate and key are called.
_FILES: Mapping[Role, str] = {"site": "client", "server": "server", "person": "client"}


def harden_kit(kit: Path, role: Role, name: str, sites: Mapping[str, str], settings: Settings) -> None:
    """Close what FLARE's template leaves open in a kit, but for modes; doing it again changes nothing.

    Parameters
    ----------
    kit
        The folder that holds ``startup/`` and ``local/``.
    role
        Whose it is.
    name
        Name of the participant.
    sites
        Site name -> SHA-256 (hex) of its public key, of all sites that are known.
    settings
        What the project chose.

    Raises
    ------
    ValueError
        For a kit that is not as FLARE 2.9 makes one; nothing has been changed then.
    """
    if role != "person":
        kind: Kind = role
        harden_start(kit / "startup")
        harden_local(kit / "local", kind, name, sites, settings)
    (kit / "startup" / README).unlink(missing_ok=True)  # FLARE's, for people, names files that are not there
    (kit / README).write_text(next_steps(role, name), encoding="utf-8")


def harden_own(kit: Path, settings: Settings, role: Role | None = None) -> tuple[Role, str]:
    """Harden a kit as its holder, and sign what it is now with its own key; twice gives the same bytes as once.

    Returns
    -------
    tuple
        Whose kit it is, and the participant's name.

    Raises
    ------
    KitError
        ``FF-KIT-ROLE``: no kit, or not of the role that was said. ``FF-KIT-NAME``: a site that no site can be called.
        ``FF-KIT-SIGNED``: the project's root signed the kit as it is. ``FF-KIT-HARDEN``: not a kit of FLARE 2.9.
    """
    found = kit_holder(kit)
    if role is not None and role != found:
        _refuse("ROLE", f"the kit of a {found}", f"that of a {role}", "name the other kit, or leave --role out")
    certificate = _certificate(kit, found)
    name = site_name(certificate) or ""
    if not name or (found == "site" and not is_site_name(name)):
        _refuse("NAME", "a certificate of a name that no site can have", "another, such as hospital-1", "request anew")
    try:
        if (kit / "startup" / SIGNATURE_NAME).exists() and found != "person":
            _verify_unchanged(kit / "startup")
        harden_kit(kit, found, name, _sites(kit, found, name, certificate), settings)
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as problem:
        got = str(problem) if type(problem) is ValueError and str(problem).isprintable() else "files that are not"
        _refuse("HARDEN", got, "a kit as NVIDIA FLARE 2.9 makes it", "make it with nvflare package, and harden that")
    if found != "person":
        write_manifest(kit, _FILES[found])
    close_to_others(kit)
    return found, name


def add_to_roster(kit: Path, hashes: Mapping[str, str], *, replace: bool = False) -> None:
    """Write other sites' key hashes into a kit's ``local/roster.json``.

    Raises
    ------
    KitError
        ``FF-KIT-ROLE``: a person's kit. ``FF-KIT-ROSTER``: no name, no hash, this site's own name with another key, or
        another hash than the one that is there and not ``replace``.
    """
    found = kit_holder(kit)
    if found == "person":
        _refuse("ROLE", "the kit of a person", "that of a site or the server", "name the other kit")
    certificate = _certificate(kit, found)
    known = _sites(kit, found, site_name(certificate) or "", certificate)
    own = site_name(certificate) if found == "site" else None
    for name, pin in hashes.items():
        changes = name in known and known[name] != pin
        if not is_site_name(name) or (changes and (name == own or not replace)):
            _refuse(
                "ROSTER",
                "a name that no site can have" if not is_site_name(name) else f"another key for {name} than it has",
                "names of sites, each with the hash that it told by telephone",
                "telephone; if its key is really new, add --replace, and correct 'peers' in the policy",
            )
    _write_roster(kit / "local", {**known, **hashes})


def kit_holder(kit: Path) -> Role:
    """Whose kit a folder is; raises ``FF-KIT-ROLE`` if it is nobody's, or of several."""
    found = [role for file, role in _STARTS.items() if (kit / "startup" / file).is_file()]
    if len(found) != 1 or not (kit / "local").is_dir():
        _refuse(
            "ROLE", "a folder that is no start-up kit of one participant", "startup/ and local/, as FLARE makes them",
            "name the folder that holds them, such as prod_00/hospital-1",
        )  # fmt: skip
    return found[0]


def _sites(kit: Path, role: Role, name: str, certificate: bytes) -> dict[str, str]:
    """The roster that is there, and the kit's own key, which may be a new one."""
    file = kit / "local" / ROSTER_NAME
    known = dict(schema.read(Roster, file, error=PolicyError, what="roster").sites) if file.exists() else {}
    if role != "site":
        return known
    try:
        return {**known, name: key_hash(certificate)}
    except FairFlareError:
        _refuse("FILE", "a certificate with another key than RSA of 2,048 bits", "one of nvflare cert", "request anew")


def _write_roster(local: Path, sites: Mapping[str, str]) -> None:
    try:
        roster = Roster(format=ROSTER_FORMAT, sites=dict(sorted(sites.items())))
    except ValueError:
        _refuse("ROSTER", "what is no SHA-256", "64 digits of 'fairflare policy key' for each site", "type it again")
    (local / ROSTER_NAME).write_text(schema.pretty(roster), encoding="utf-8")


def _verify_unchanged(startup: Path) -> None:
    if any(file.read_text(encoding="utf-8") != text for file, text in start_texts(startup).items()):
        _refuse(
            "SIGNED", "a startup/ that the project's root signed before it was hardened", "a hardened one, or unsigned",
            "ask for a kit made with FairFlare's builder; only the holder of the root's key can sign it again",
        )  # fmt: skip


def _certificate(kit: Path, role: Role) -> bytes:
    file = kit / "startup" / f"{_FILES[role]}.crt"
    try:
        return file.read_bytes()
    except OSError:
        _refuse("FILE", f"{file.name} that cannot be read", "a whole kit in the folder startup", "unpack the kit anew")


def _refuse(code: str, got: str, expected: str, next_step: str) -> NoReturn:
    raise KitError(f"FF-KIT-{code}", got=got, expected=expected, next_step=next_step)
