# SPDX-License-Identifier: Apache-2.0
"""Certificates that no longer count: ``local/revoked.pem`` of a kit, a certificate revocation list (RFC 5280).

A stolen key stays valid until its certificate ends; a project's root can say earlier that it no longer counts. The list
is signed by the root, holds no secret, and may travel any way. Every party puts it into its own kit: nobody has to
believe that another one did.

A list has a number that only grows, and holds everything that any list before it held. ``nextUpdate`` is the end of the
root's own certificate: a list counts until there is a newer one. Whoever can write into ``local/`` can take it away.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fairflare.errors import KitError

REVOKED_NAME: Final = "revoked.pem"
#: Bytes of a list that are read: enough for some 50,000 certificates.
LONGEST: Final = 2 * 1024 * 1024


@dataclass(frozen=True)
class Revoked:
    """Serial numbers of certificates of one root that no longer count.

    Attributes
    ----------
    serials
        The certificates' serial numbers.
    number
        The list's own number (CRLNumber); 0 where there is no list.
    """

    serials: frozenset[int] = frozenset()
    number: int = 0

    def holds(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate is on the list."""
        return certificate.serial_number in self.serials


#: What counts where a kit has no list.
NOBODY: Final = Revoked()


def read_revoked(kit: Path, root_pem: bytes | None = None) -> Revoked:
    """The list in a kit, ``NOBODY`` if there is none.

    Parameters
    ----------
    kit
        The folder that holds ``startup/`` and ``local/``.
    root_pem
        The root's certificate; ``None``: the kit's own ``rootCA.pem``.

    Raises
    ------
    KitError
        ``FF-KIT-REVOCATION``: there is a list that cannot be read, or that the kit's root did not sign.
    """
    file = kit / "local" / REVOKED_NAME
    if not os.path.lexists(file):
        return NOBODY
    try:
        data = _read(file)
        root = (kit / "startup" / "rootCA.pem").read_bytes() if root_pem is None else root_pem
    except OSError:
        _refuse("a list, or a root certificate, that cannot be read", "take the list over again, or unpack the kit")
    return parse_revoked(data, root)


def parse_revoked(data: bytes, root_pem: bytes) -> Revoked:
    """A list that the root signed; raises ``FF-KIT-REVOCATION`` for anything else."""
    with suppress(Exception):  # whatever a parser finds wrong, the answer is the same
        root = x509.load_pem_x509_certificate(root_pem)
        found = x509.load_pem_x509_crl(data)
        key = root.public_key()
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        signed = isinstance(key, rsa.RSAPublicKey) and found.is_signature_valid(key) and found.issuer == root.subject
        plain = all(one.oid in _UNDERSTOOD for one in found.extensions if one.critical)
        if signed and plain and number > 0:
            return Revoked(frozenset(one.serial_number for one in found), number)
    _refuse("no list that this project's root signed", "get the list from the holder of the root again")


def revoke(
    root_pem: bytes, key_pem: bytes, certificates: Iterable[bytes], before: bytes | None
) -> tuple[bytes, Revoked]:
    """A new list: everything that was on the one before, and these certificates.

    Parameters
    ----------
    root_pem, key_pem
        The root's certificate and private key.
    certificates
        Certificates (PEM) that the root issued.
    before
        The last list (PEM), ``None`` for the first one.

    Returns
    -------
    tuple
        The list (PEM), and what it says.

    Raises
    ------
    KitError
        ``FF-KIT-REVOCATION``: a key that is not the root's, a list that is not, or a certificate of somebody else.
    """
    old = NOBODY if before is None else parse_revoked(before, root_pem)
    root, key = _authority(root_pem, key_pem)
    serials = set(old.serials)
    for pem in certificates:
        serials.add(_issued(root, pem))
    now = datetime.now(timezone.utc).replace(microsecond=0)
    made = x509.CertificateRevocationListBuilder().issuer_name(root.subject).last_update(now)
    made = made.next_update(max(root.not_valid_after_utc, now)).add_extension(x509.CRLNumber(old.number + 1), False)
    for serial in sorted(serials):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        made = made.add_revoked_certificate(one)
    text = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return text, Revoked(frozenset(serials), old.number + 1)


def read_authority(folder: Path) -> tuple[bytes, bytes]:
    """The root's certificate and private key (PEM), as ``nvflare cert init`` or ``nvflare provision`` keeps them.

    Raises
    ------
    OSError
        If a file cannot be read.
    KitError
        ``FF-KIT-REVOCATION``: a provisioner's file without them.
    """
    state = folder / "cert.json"
    if not state.is_file():
        return (folder / "rootCA.pem").read_bytes(), (folder / "rootCA.key").read_bytes()
    try:
        kept = json.loads(state.read_text(encoding="utf-8"))
        return str(kept["root_cert"]).encode(), str(kept["root_pri_key"]).encode()
    except (ValueError, KeyError, TypeError):
        _refuse("a cert.json without the root's certificate and key", "name the folder of the root's holder")


def read_certificate(file: Path) -> bytes:
    """A certificate (PEM) from a file of its own, or from the archive that ``nvflare cert approve`` wrote."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        names = [one for one in archive.infolist() if one.filename.endswith(".crt") and one.file_size <= LONGEST]
        if len(names) == 1:
            return archive.read(names[0])
    _refuse("an archive that does not hold one certificate", "name the party's .signed.zip, or its client.crt")


def take_over(kit: Path, data: bytes) -> Revoked:
    """Put a list into a kit, if it is newer than the one that is there.

    Raises
    ------
    KitError
        ``FF-KIT-REVOCATION``: not the root's. ``FF-KIT-REVOCATION-OLD``: not newer, or it forgets a certificate.
    """
    old = read_revoked(kit)
    try:
        root = (kit / "startup" / "rootCA.pem").read_bytes()
    except OSError:
        _refuse("a kit without a root certificate", "name a whole kit: the folder that holds startup/ and local/")
    new = parse_revoked(data, root)
    if new == old:
        return new
    if new.number <= old.number or not old.serials <= new.serials:
        raise KitError(
            "FF-KIT-REVOCATION-OLD", got=f"list number {new.number}, where number {old.number} is in the kit",
            expected="a newer list that forgets no certificate", next_step="ask the holder of the root for the newest",
        )  # fmt: skip
    file = kit / "local" / REVOKED_NAME
    write_list(file, data)
    file.chmod(0o600)
    return new


def write_list(file: Path, data: bytes) -> None:
    """Write a list, whole or not at all, also if the power fails: with half of one nobody is let in."""
    draft = file.with_name(f"{file.name}.new")
    with draft.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)


_UNDERSTOOD = (x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid)


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        data = opened.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise OSError
    return data


def _authority(root_pem: bytes, key_pem: bytes) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    with suppress(Exception):
        root = x509.load_pem_x509_certificate(root_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        if isinstance(key, rsa.RSAPrivateKey) and key.public_key() == root.public_key():
            return root, key
    _refuse("a root certificate and a key that do not belong together", "name the folder of 'nvflare cert init'")


def _issued(root: x509.Certificate, pem: bytes) -> int:
    with suppress(Exception):
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(root)
        if certificate.subject != root.subject:
            return certificate.serial_number
    _refuse("a file that is no certificate of this root's", "name the party's certificate (client.crt), not a key")


def _refuse(got: str, next_step: str) -> NoReturn:
    raise KitError(
        "FF-KIT-REVOCATION", got=got, expected="certificates and lists of one project's root", next_step=next_step
    ) from None


__all__ = [
    "LONGEST", "NOBODY", "REVOKED_NAME", "Revoked", "parse_revoked", "read_authority", "read_certificate",
    "read_revoked", "revoke", "take_over",
]  # fmt: skip
