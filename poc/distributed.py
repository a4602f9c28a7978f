# SPDX-License-Identifier: Apache-2.0
"""A federation in which every party makes its own key and its own kit: nobody ever holds another's private key.

Each party works in a folder of its own, with a home of its own, as if it were its own machine. Only what is put into
the folder ``post`` goes from one to another: requests without keys, and signed certificates.

1. The holder of the root makes it: ``nvflare cert init``, and tells everybody its fingerprint.
2. Each party makes a key and a request: ``nvflare cert request``.
3. The holder of the root signs: ``nvflare cert approve``.
4. Each party makes its kit, ``nvflare package``, hardens it, ``fairflare kit harden``, and checks it.
5. The hospitals tell one another the hashes of their keys: ``fairflare kit roster``.
6. One hospital makes the key for encrypted statistics, ``fairflare he make``, and seals it to the others' certificates,
   ``he seal`` and ``he open``. The server gets a context without it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization

from fairflare.he.context import fields
from fairflare.he.parameters import CLIENT_CONTEXT
from fairflare.policy import CATALOG_NAME, DataCatalog, write_catalog
from fairflare.policy.roster import read_roster
from fairflare.secagg.identity import key_hash
from poc.federation import HEARTBEAT, RESEARCHER, ROOT, SERVER, Federation, FederationError

TEMPLATES = ROOT / "provision" / "distributed"
#: Who holds the project's root.
AUTHORITY = "authority"
#: How the server is reached on this machine, and so how it is called.
HOST = "localhost"
_FAIRFLARE = (sys.executable, "-c", "from fairflare.cli import main; main()")
_NVFLARE = (sys.executable, "-m", "nvflare.cli")


class Party:
    """Somebody with a folder and a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir(parents=True, mode=0o700, exist_ok=True)

    def run(self, *command: str, timeout: float = 120) -> str:
        """Run a command here; returns what it printed, and fails if it failed."""
        environment = {**os.environ, "HOME": str(self.folder / "home")}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise FederationError(f"{self.folder.name}: {' '.join(command[3:6])}: {said}")
        return done.stdout

    def nvflare(self, *arguments: str) -> dict[str, Any]:
        """Run a command of FLARE's; returns the data that it printed."""
        printed = self.run(*_NVFLARE, *arguments, "--format", "json")
        return dict(json.loads(printed.strip().splitlines()[-1])["data"])

    def fairflare(self, *arguments: str) -> str:
        """Run a command of ours."""
        return self.run(*_FAIRFLARE, *arguments)


class Authority(Party):
    """Holds the project's root, and signs requests."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder)
        self._profile = folder / "profile.yaml"
        profile = _template("profile")
        profile["server"].update(host=HOST, fed_learn_port=port, admin_port=port)
        self._profile.write_text(yaml.safe_dump(profile), encoding="utf-8")
        made = self.nvflare("cert", "init", "--profile", str(self._profile), "-o", "ca")
        #: What every party compares, and hears by telephone.
        self.fingerprint = str(made["rootca_fingerprint_sha256"])

    def approve(self, request: Path, signed: Path) -> None:
        """Sign a request."""
        self.nvflare("cert", "approve", str(request), "-c", "ca", "--profile", str(self._profile), "--out", str(signed))


def request(party: Party, participant: Mapping[str, Any], post: Path, folder: str = "request") -> Path:
    """Make a party's key and its request in a ``folder`` of its own, and post the request; returns it."""
    document = {"name": _template("profile")["name"], "participants": [dict(participant)]}
    (party.folder / "participant.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    party.nvflare("cert", "request", "-p", "participant.yaml", "--out", folder)
    made = party.folder / folder / f"{participant['name']}.request.zip"
    posted = post / made.name
    posted.write_bytes(made.read_bytes())
    return posted


def package(
    party: Party, signed: Path, fingerprint: str, *, harden: bool = True, folder: str = "request", to: str = "kits"
) -> Path:
    """Make a party's kit from its own key and its certificate, harden and check it; returns its folder."""
    made = party.nvflare("package", str(signed), "--request-dir", folder, "--fingerprint", fingerprint, "-w", to)
    kit = Path(made["output_dir"])
    if harden:
        party.fairflare("kit", "harden", str(kit), "--heartbeat", str(HEARTBEAT))
        party.fairflare("kit", "check", str(kit))
    return kit


class Distributed(Federation):
    """A federation whose parties make their own kits; there is no admin of the project: FLARE's requests know none."""

    @property
    def homes(self) -> dict[str, Path]:
        """Each party's folder, and that of the root's holder."""
        return {name: self.base / "parties" / name for name in (AUTHORITY, SERVER, RESEARCHER, *self.sites)}

    def _made(self, project: Path) -> dict[str, Path]:
        participants = {one["name"]: one for one in yaml.safe_load(project.read_text(encoding="utf-8"))["participants"]}
        port = int(participants[SERVER]["fed_learn_port"])
        wanted: dict[str, dict[str, Any]] = {SERVER: {**_template("server")["participants"][0], "name": HOST}}
        wanted[RESEARCHER] = _template("researcher")["participants"][0]
        for site in self.sites:
            changes = {"name": site, "org": participants[site]["org"]}
            wanted[site] = {**_template("hospital")["participants"][0], **changes}
        post = self.base / "post"
        post.mkdir(parents=True)
        self._authority = Authority(self.homes[AUTHORITY], port)

        with ThreadPoolExecutor(2) as pool:
            kits = dict(zip(wanted, pool.map(self._make, wanted, wanted.values()), strict=True))
        self._exchange(kits)
        self._share_he_key(kits)
        return kits

    def _share_he_key(self, kits: Mapping[str, Path]) -> None:
        """The first hospital's key goes to the others by post, where only they can open it."""
        first, post = self.sites[0], self.base / "post"
        sender = self.party(first)
        sender.fairflare("he", "make", "--kit", str(kits[first]), "--server-to", str(post / "for-server"))
        for file in (post / "for-server").iterdir():
            shutil.copyfile(file, kits[SERVER] / "local" / file.name)
        for site in self.sites[1:]:
            certificate, parcel = post / f"{site}.crt", post / f"{site}.parcel"
            shutil.copyfile(kits[site] / "startup" / "client.crt", certificate)
            sender.fairflare(
                "he", "seal", "--kit", str(kits[first]), "--to", site, "--certificate", str(certificate),
                "--out", str(parcel),
            )  # fmt: skip
            self.party(site).fairflare("he", "open", str(parcel), "--kit", str(kits[site]), "--from", first)

    def _make(self, name: str, participant: Mapping[str, Any]) -> Path:
        party = Party(self.homes[name])
        asked = request(party, participant, self.base / "post")
        self._authority.approve(asked, self.signed(name))
        return package(party, self.signed(name), self._authority.fingerprint)

    def party(self, name: str) -> Party:
        """Somebody, where they work."""
        return Party(self.homes[name])

    def signed(self, name: str) -> Path:
        """What the root's holder sent to a party, and keeps."""
        called = HOST if name == SERVER else name
        return self.base / "post" / f"{called}.signed.zip"

    def admit(self, site: str, data: DataCatalog) -> None:
        """A hospital comes later, with its own data: it makes its kit, and the others write down one more hash."""
        self.sites = (*self.sites, site)
        changes = {"name": site, "org": re.sub(r"\W", "_", site)}
        self.kits[site] = self._make(site, {**_template("hospital")["participants"][0], **changes})
        self.peers = {**self.peers, site: key_hash((self.kits[site] / "startup" / "client.crt").read_bytes())}
        write_catalog(self.kits[site] / "local", data)
        self._exchange(self.kits)
        for one in self.sites:
            self.set_policy(one)

    def revoke(self, *names: str) -> Path:
        """The root's holder declares what they sent to these parties void; returns the list, which nobody has yet."""
        listed = self.base / "post" / "revoked.pem"
        sent = [str(self.signed(name)) for name in names]
        self._authority.fairflare("kit", "revoke", *sent, "--ca", "ca", "--to", str(listed))
        return listed

    def renew(self, site: str) -> None:
        """Give one hospital, which is stopped, a new key, certificate and kit; the others change one hash.

        Its policy, catalogue and roster move with it; its store stays where it is.
        """
        party, old, post = self.party(site), self.kits[site], self.base / "post"
        (participant,) = yaml.safe_load((party.folder / "participant.yaml").read_text(encoding="utf-8"))["participants"]
        signed = post / f"{site}.again.signed.zip"  # what was signed before is kept: it may have to be revoked
        self._authority.approve(request(party, participant, post, "request-2"), signed)
        new = package(party, signed, self._authority.fingerprint, folder="request-2", to="kits-2")
        shutil.copyfile(old / "local" / CATALOG_NAME, new / "local" / CATALOG_NAME)
        self.kits[site] = new
        self.peers = {**self.peers, site: key_hash((new / "startup" / "client.crt").read_bytes())}
        self._exchange(self.kits, "--replace")
        for one in self.sites:
            self.set_policy(one)

    def _exchange(self, kits: Mapping[str, Path], *more: str) -> None:
        """Tell everybody the hashes of all hospitals' keys, as their people do by telephone."""
        told = {site: key_hash((kits[site] / "startup" / "client.crt").read_bytes()) for site in self.sites}
        words = [word for site, pin in told.items() for word in ("--add", f"{site}={pin}")]
        for name in (SERVER, *self.sites):
            self.party(name).fairflare("kit", "roster", str(kits[name]), *words, *more)
        for site in self.sites:
            if read_roster(kits[site]) != told:
                raise FederationError(f"{site}: another roster than was told")


def verify_keys_at_home(folder: Path, homes: Mapping[str, Path]) -> tuple[int, int]:
    """Search every file below ``folder``, and inside of archives, for every private key that is there.

    Returns
    -------
    tuple
        How many different private keys there are, and how many files were searched.

    Raises
    ------
    FederationError
        If a key is in another folder than that of the one party that has it, a party has none, or two have the same.
    """
    owners: dict[bytes, str] = {}
    for name, home in homes.items():
        marks = {mark for file in home.rglob("*.key") for mark in _marks(file)}
        if not marks:
            raise FederationError(f"{name} has no private key")
        for mark in marks:
            if owners.setdefault(mark, name) != name:
                raise FederationError(f"{name} and {owners[mark]} have the same private key")
    files = 0
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        files += 1
        for content in _contents(file):
            text = content.replace(b"\\n", b"").translate(None, b"\r\n \t")
            for mark, name in owners.items():
                if (mark in content or mark in text) and not file.is_relative_to(homes[name]):
                    raise FederationError(f"the private key of {name} is in {file.relative_to(folder)}")
    return len(set(owners.values())), files


def verify_he_key_at_hospitals(folder: Path, homes: Mapping[str, Path], sites: Collection[str]) -> int:
    """Search every file below ``folder`` for the hospitals' secret key of encrypted statistics.

    Returns
    -------
    int
        How many copies there are: one at each hospital.

    Raises
    ------
    FederationError
        If it is anywhere else, or a hospital has none or another one.
    """
    files = [homes[site].rglob(CLIENT_CONTEXT) for site in sites]
    contexts = {file.read_bytes() for found in files for file in found}
    if len(contexts) != 1:
        raise FederationError(f"{len(contexts)} contexts with a secret key, expected the same one at every hospital")
    marks = set(_he_marks(contexts.pop()))
    having: set[str] = set()
    copies = 0
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        if not any(mark in content for content in _contents(file) for mark in marks):
            continue
        owner = next((site for site in sites if file.is_relative_to(homes[site])), None)
        if owner is None:
            raise FederationError(f"the hospitals' secret key is in {file.relative_to(folder)}")
        having.add(owner)
        copies += 1
    if having != set(sites):
        raise FederationError("a hospital without the key")
    return copies


def _he_marks(context: bytes) -> Iterator[bytes]:
    """What gives the secret key away: a piece of it, as bytes and in base64 wherever that begins."""
    secret = dict(fields(context)).get(3)
    if not isinstance(secret, bytes) or len(secret) < 10_000:
        raise FederationError("a hospital's context without a secret key")
    middle = secret[len(secret) // 2 :][:96]
    yield middle
    for shift in range(3):
        yield base64.b64encode(middle[shift : shift + 90])[:-4]


def _marks(file: Path) -> Iterator[bytes]:
    """What gives a private key away: its bytes, in both forms that there are, and as text; and its prime."""
    key: Any = serialization.load_pem_private_key(file.read_bytes(), None)
    prime = max(key.private_numbers().p, key.private_numbers().q)
    yield prime.to_bytes(key.key_size // 16, "big")
    plain = serialization.NoEncryption()
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        der = key.private_bytes(serialization.Encoding.DER, form, plain)
        yield der
        yield base64.b64encode(der)


def _contents(file: Path) -> Iterator[bytes]:
    yield file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                yield archive.read(name)


def _template(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8")))
