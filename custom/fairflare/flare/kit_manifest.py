# SPDX-License-Identifier: Apache-2.0
"""Whether a kit's files are as they were when it was made or hardened; imports nothing of FLARE.

``nvflare provision`` signs ``startup/`` with the project's root. A kit of ``nvflare package`` has no such signature:
its holder alone makes it. So ``fairflare kit harden`` writes ``local/kit_manifest.json``, signed with the kit's own
key: the SHA-256 of every file of ``startup/`` but that key, and of what it hardened in ``local/``.

It finds a change by somebody, or something, without the kit's private key. It finds none by its holder, nor by whoever
can replace key, certificate, root and manifest together, or the installed package.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field

from fairflare import schema
from fairflare.errors import KitError
from fairflare.policy.site import Hash
from fairflare.schema import StrictModel

MANIFEST_NAME: Final = "kit_manifest.json"
MANIFEST_FORMAT: Final = "fairflare/kit-manifest/1"
#: FLARE's own signature of ``startup/``, by the project's root.
SIGNATURE_NAME: Final = "signature.json"
_SUBMITTER: Final = ".__nvfl_submitter.crt"
#: Nothing else that is signed with a kit's key begins like this.
_DOMAIN: Final = b"fairflare/kit-manifest/1\x00"
#: Files of ``local/`` that no person writes: FLARE's fallbacks, the scope, and what adds components.
_LOCAL: Final = ("*.default", "privacy.json", "*__*resources.json", "job_resources.json")
#: FLARE takes the first file of a configuration's name that it finds, in any folder, with any of these endings.
_ENDINGS: Final = tuple(f"{one}{last}" for last in ("", ".default") for one in (".json", ".conf", ".yml", ".yaml"))
#: Configuration -> the files that may be it. Each is searched for in the whole kit.
_HOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "fed_client": ("startup/fed_client.json",),
    "fed_server": ("startup/fed_server.json",),
    "resources": ("local/resources.json", "local/resources.json.default"),
    "comm_config": ("local/comm_config.json",),
}
#: Private keys: that the own one is the certificate's is checked elsewhere, and an auditor reads none.
_KEYS: Final = ("client.key", "server.key")
#: Length of the signature's salt: none, so that hardening twice gives the same bytes.
_SALT: Final = 0


class KitManifest(StrictModel):
    """Path in the kit -> SHA-256 (hex); ``signature`` is base64, RSA-PSS-SHA256, over the other fields."""

    format: Literal["fairflare/kit-manifest/1"]
    files: Annotated[dict[str, Hash], Field(min_length=1)]
    signature: Annotated[str, Field(max_length=2048)]

    @property
    def message(self) -> bytes:
        """What is signed: the domain, and the canonical form of everything but the signature."""
        return _DOMAIN + schema.canonical(self.model_copy(update={"signature": ""}))


def write_manifest(kit: Path, role: str) -> None:
    """Write the manifest of a kit as it is now.

    Parameters
    ----------
    kit
        The folder that holds ``startup/`` and ``local/``.
    role
        ``client`` or ``server``: how the kit's certificate and key are called.

    Raises
    ------
    KitError
        ``FF-KIT-FILE``: no RSA key that can be read. ``FF-KIT-LINK``: a link stands in ``startup/``.
    """
    try:
        key = load_pem_private_key((kit / "startup" / f"{role}.key").read_bytes(), None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        _refuse("FILE", f"{role}.key that is no RSA key without a password", "a whole kit", "make the kit again")
    made = KitManifest(format=MANIFEST_FORMAT, files=_digests(kit), signature="")
    raw = key.sign(made.message, _pss(_SALT), hashes.SHA256())
    signature = base64.b64encode(raw).decode("ascii")
    text = schema.pretty(made.model_copy(update={"signature": signature}))
    (kit / "local" / MANIFEST_NAME).write_text(text, encoding="utf-8")


def verify_files(kit: Path, role: str) -> None:
    """Raise :class:`KitError` unless the kit's files are those that were signed.

    By the kit's own key where there is a manifest, and by the project's root where there is FLARE's ``signature.json``.

    Raises
    ------
    KitError
        ``FF-KIT-OPEN``: neither is there. ``FF-KIT-MANIFEST``, ``FF-KIT-SIGNATURE``: one of them cannot be believed.
        ``FF-KIT-CHANGED``, ``FF-KIT-ADDED``, ``FF-KIT-MISSING``: a file. ``FF-KIT-LINK``: a link in ``startup/``.
    """
    startup = kit / "startup"
    signed, listed = (os.path.lexists(one) for one in (startup / SIGNATURE_NAME, kit / "local" / MANIFEST_NAME))
    if not signed and not listed:
        _refuse(
            "OPEN", "a kit with neither FLARE's signature nor a manifest of its files", "a hardened kit",
            "run 'fairflare kit harden' on it, once, before it starts",
        )  # fmt: skip
    if listed:
        _verify_manifest(kit, role)
    if signed:
        _verify_signature(startup, whole=not listed)


def verify_unhidden(kit: Path) -> None:
    """Raise ``FF-KIT-HIDDEN`` if another file could be taken for one of the kit's configurations.

    FLARE would find it first, and build its components in place of those that everybody reads.
    """
    for folder, folders, names in os.walk(kit, onerror=_unlisted):
        folders.sort()
        for name in names:
            base = name.split(".")[0]
            if base not in _HOMES or name.removeprefix(base) not in _ENDINGS:
                continue
            found = os.path.realpath(os.path.join(folder, name))
            if all(found != os.path.realpath(kit / home) for home in _HOMES[base]):
                _refuse(
                    "HIDDEN", f"a second configuration '{base}'", f"only {_HOMES[base][0]}",
                    "'fairflare audit kit' says where; move it out of the kit, and ask who put it there",
                )  # fmt: skip


def _verify_manifest(kit: Path, role: str) -> None:
    manifest = schema.read(KitManifest, kit / "local" / MANIFEST_NAME, error=KitError, what="kit manifest")
    public = _public_key(kit / "startup" / f"{role}.crt")
    if not _is_signed(public, manifest.signature, manifest.message, _SALT):
        _refuse(
            "MANIFEST", f"local/{MANIFEST_NAME} that this kit's key did not sign", "the one of this kit",
            "find out who changed it; then make the kit again, and harden it",
        )  # fmt: skip
    digests = _digests(kit)
    _verify_names(manifest.files, digests)
    for name, digest in digests.items():
        if manifest.files[name] != digest:
            _changed(name)


def _verify_signature(startup: Path, *, whole: bool) -> None:
    """As FLARE does for single files; ``whole``: a file that was added or taken out is found as well.

    Not where a manifest names them all: its holder may have prepared the kit for a container since.
    """
    try:
        listed: Any = json.loads((startup / SIGNATURE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict):
        _refuse("SIGNATURE", f"{SIGNATURE_NAME} that cannot be read", "a whole kit", "unpack the kit anew")
    public = _public_key(startup / "rootCA.pem")
    own = {SIGNATURE_NAME, _SUBMITTER}
    files = {name: file for name, file in _below(startup).items() if name not in own}
    if whole:
        _verify_names({f"startup/{name}" for name in listed}, {f"startup/{name}" for name in files})
    for name, file in files.items():
        if name in listed and not _is_signed(public, listed[name], _content(file), padding.PSS.MAX_LENGTH):
            _changed(f"startup/{name}")


def _verify_names(wanted: Iterable[str], found: Iterable[str]) -> None:
    more, less = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if more:
        _refuse(
            "ADDED", f"{_plain(more[0])}, which was not there when the kit was signed", "the kit's own files",
            "find out who put it there; take it out, or harden the kit again if it is meant",
        )  # fmt: skip
    if less:
        _refuse("MISSING", f"no {_plain(less[0])}", "every file that was signed", "unpack or make the kit again")


def _digests(kit: Path) -> dict[str, str]:
    """Path in the kit -> SHA-256 of every file that nobody but a provisioner writes."""
    files = {f"startup/{name}": file for name, file in _below(kit / "startup").items() if name not in _KEYS}
    for file in (kit / "local").iterdir():
        if any(fnmatch.fnmatchcase(file.name, one) for one in _LOCAL):
            files[f"local/{file.name}"] = file
    return {name: hashlib.sha256(_content(files[name])).hexdigest() for name in sorted(files)}


def _below(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, onerror=_unlisted):
        for name in (*folders, *names):
            path = Path(place) / name
            if path.is_symlink():
                _refuse("LINK", "a link in startup/", "plain files", "unpack the kit anew")
            if name in names:
                found[path.relative_to(folder).as_posix()] = path
    return found


def _content(file: Path) -> bytes:
    try:
        if not file.is_file():  # to open a pipe could wait for ever
            raise OSError
        return file.read_bytes()
    except OSError:
        _refuse("FILE", f"{_plain(file.name)} that cannot be read", "a whole kit", "unpack the kit anew")


def _unlisted(problem: OSError) -> NoReturn:
    del problem
    _refuse("FILE", "a folder of the kit that cannot be listed", "a whole kit", "correct its owner and its rights")


def _public_key(file: Path) -> Any:
    try:
        return x509.load_pem_x509_certificate(_content(file)).public_key()
    except (ValueError, UnsupportedAlgorithm):
        _refuse("FILE", f"{file.name} that cannot be read", "a whole kit", "unpack the kit anew")


def _is_signed(public: object, signature: object, message: bytes, salt: Any) -> bool:
    if not isinstance(public, rsa.RSAPublicKey) or not isinstance(signature, str):
        return False
    try:
        public.verify(base64.b64decode(signature, validate=True), message, _pss(salt), hashes.SHA256())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _pss(salt: Any) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt)


def _changed(name: str) -> NoReturn:
    _refuse(
        "CHANGED", f"{_plain(name)} that is not the one that was signed", "every file as it was signed",
        "find out who changed it; unpack or make the kit again, or harden it again if the change is meant",
    )  # fmt: skip


def _plain(name: str) -> str:
    """A name for a message: a hostile one could hold anything."""
    return name if all(one.isalnum() or one in "/._-@+" for one in name) and len(name) <= 100 else "a file"


def _refuse(code: str, got: str, expected: str, next_step: str) -> NoReturn:
    raise KitError(f"FF-KIT-{code}", got=got, expected=expected, next_step=next_step)


__all__ = [
    "MANIFEST_FORMAT", "MANIFEST_NAME", "SIGNATURE_NAME", "KitManifest", "verify_files", "verify_unhidden",
    "write_manifest",
]  # fmt: skip
