# SPDX-License-Identifier: Apache-2.0
"""Whether a process may start from a start-up kit, in words where FLARE would be silent; imports nothing of FLARE.

With a certificate that has expired, or on a machine whose clock is wrong, FLARE 2.9 tries to connect for ever and
prints nothing. About that this is no protection: the other end of a connection looks at certificates itself.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fairflare.errors import KitError
from fairflare.flare.kit_manifest import verify_files, verify_unhidden
from fairflare.policy.revoked import read_revoked

#: A certificate that ends sooner is pointed out at every start.
SOON = timedelta(days=30)

_ROOT = "rootCA.pem"
_ROLES = ("client", "server")
_RENEW = "ask the project's provisioner for a new kit; memory and lists of decisions lie outside of it and stay"
_LOG = logging.getLogger("fairflare.kit")


def verify_start(kit: Path) -> None:
    """Raise :class:`KitError` unless a process may start from ``kit``, the folder with ``startup/`` and ``local/``.

    Points out in the log a certificate that expires soon.
    """
    startup, now = kit / "startup", datetime.now(tz=timezone.utc)
    verify_kit(startup, now)
    verify_files(kit, kit_role(startup))
    verify_unhidden(kit)
    verify_unrevoked(kit)
    left = _until(startup) - now
    if left < SOON:
        _LOG.warning("FF-KIT-SOON: this kit's certificate expires in %d days: %s", left.days, _RENEW)


def verify_person(kit: Path) -> None:
    """Raise :class:`KitError` unless a person's certificate is good; nothing of FairFlare's runs from such a kit."""
    verify_kit(kit / "startup", datetime.now(tz=timezone.utc))
    verify_unrevoked(kit)


def verify_kit(startup: Path, now: datetime) -> None:
    """Raise :class:`KitError` unless the kit's certificate is its root's and its key's, and valid now.

    Parameters
    ----------
    startup
        The kit's folder with certificates and key.
    now
        The present moment, with a time zone.
    """
    role = kit_role(startup)
    own, root = _certificate(startup / f"{role}.crt"), _certificate(startup / _ROOT)
    try:
        own.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise _refused(
            "ROOT", "a certificate that another project's root has signed", "files of one kit", "unpack the kit anew"
        ) from None
    try:
        key = load_pem_private_key((startup / f"{role}.key").read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise _unreadable(f"{role}.key") from None
    if key.public_key() != own.public_key():
        raise _refused("KEY", "a private key of another certificate", "files of one kit", "unpack the kit anew")
    _verify_period(own, f"{role}.crt", now)
    _verify_period(root, _ROOT, now)


def verify_unrevoked(kit: Path) -> None:
    """Raise ``FF-KIT-REVOKED`` if the kit's own certificate was revoked, and ``FF-KIT-REVOCATION`` for a false list."""
    role = kit_role(kit / "startup")
    if read_revoked(kit).holds(_certificate(kit / "startup" / f"{role}.crt")):
        raise _refused(
            "REVOKED", f"{role}.crt, which the project's root has revoked", "the certificate that this party has now",
            "if you asked for it, start the new kit; if not, telephone the holder of the root",
        )  # fmt: skip


def days_left(kit: Path) -> int:
    """Whole days until the kit's certificate, or its root's, ends; negative once it has."""
    return (_until(kit / "startup") - datetime.now(tz=timezone.utc)).days


def _until(startup: Path) -> datetime:
    """When the kit ends to work."""
    files = (f"{kit_role(startup)}.crt", _ROOT)
    return min(_certificate(startup / name).not_valid_after_utc for name in files)


def kit_role(startup: Path) -> str:
    """How the kit's certificate and key are called: ``client`` or ``server``."""
    return next((role for role in _ROLES if (startup / f"{role}.crt").exists()), _ROLES[0])


def _certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        raise _unreadable(file.name) from None


def _verify_period(certificate: x509.Certificate, name: str, now: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now > last:
        raise _refused("EXPIRED", f"{name} that ended on {last:%Y-%m-%d}; {clock}", "a valid certificate", _RENEW)
    if now < first:
        raise _refused(
            "EARLY", f"{name} that begins on {first:%Y-%m-%d}; {clock}", "a clock that is right", "set the clock"
        )


def _unreadable(name: str) -> KitError:
    return _refused("FILE", f"{name} that cannot be read", "a whole kit in the folder startup", "unpack the kit anew")


def _refused(code: str, got: str, expected: str, next_step: str) -> KitError:
    return KitError(f"FF-KIT-{code}", got=got, expected=expected, next_step=next_step)
