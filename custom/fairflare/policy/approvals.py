# SPDX-License-Identifier: Apache-2.0
"""Signed approvals: ``local/approvals/<plan's SHA-256>.json``, signed with the key of the site's start-up kit.

An approval says that a person of this hospital has read this plan under this policy. It is bound to

* the plan, by its hash, and the site, by the name in its certificate;
* the policy's terms (everything in it but ``plans``): whoever signed looked at what the policy lets a plan do together
  with peers, cohort changes and the rest, which no plan says. A policy that is changed later makes it void: a looser
  one must not turn an old signature into one for more, and a stricter one is a reason to look again. Listing another
  plan changes nothing for this one, so ``plans`` is left out.

Approvals are read anew wherever they matter; whatever is wrong with one makes it none, and never an error.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from pydantic import Field

from fairflare import schema
from fairflare.errors import FairFlareError, PolicyError
from fairflare.plan import Plan
from fairflare.policy.site import Hash, SitePolicy, read_policy, utc_today
from fairflare.schema import StrictModel
from fairflare.secagg.identity import Identity, kit_identity

APPROVAL_FORMAT = "fairflare/approval/1"
FOLDER = "approvals"

#: No message of masked aggregation begins like this, and they are signed with the same key.
_DOMAIN: Final = b"fairflare/approval/1\n"
_FILE: Final = re.compile(r"([0-9a-f]{64})\.json")
_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
#: An approval has about 1,500 bytes, and nobody approves thousands of plans.
_LONGEST, _MOST = 16 * 1024, 4096


class Approval(StrictModel):
    """One file of ``local/approvals``; ``signature`` is base64, RSA-PSS-SHA256, over all other fields."""

    format: Literal["fairflare/approval/1"]
    plan_sha256: Hash
    plan_name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    site: Annotated[str, Field(min_length=1, max_length=128)]
    approved_by: Annotated[str, Field(min_length=1, max_length=200)]
    approved_on: Annotated[str, Field(pattern=_DAY)]
    expires: Annotated[str, Field(pattern=_DAY)] | None
    policy_sha256: Hash
    signature: Annotated[str, Field(max_length=2048)]

    @property
    def message(self) -> bytes:
        """What is signed: the domain, and the canonical form of everything but the signature."""
        return _DOMAIN + schema.canonical(self.model_copy(update={"signature": ""}))


@dataclass(frozen=True)
class Found:
    """A file in ``local/approvals``: the plan that it is named for, and why it does not count ("": it does)."""

    plan_sha256: str
    defect: str
    approval: Approval | None = None


def approved_plans(local: Path, certificate: bytes | None, *, today: date | None = None) -> frozenset[str]:
    """Hashes of the plans that have a valid signed approval in ``local/approvals``; never raises.

    Parameters
    ----------
    local
        The site's folder, with its ``site_policy.json``.
    certificate
        The kit's ``client.crt`` (PEM); ``None``: a site without a kit, which can have approved nothing.
    today
        The day, by default the clock's (UTC).
    """
    return frozenset(one.plan_sha256 for one in check_approvals(local, certificate, today=today) if not one.defect)


def check_approvals(local: Path, certificate: bytes | None, *, today: date | None = None) -> Iterator[Found]:
    """Every file of ``local/approvals`` with what is wrong with it; never raises."""
    names = _names(local / FOLDER)
    if not names:
        return
    try:
        terms = read_policy(local).terms_sha256
    except FairFlareError:
        terms = None
    for name in names:
        approval, defect = _read(local / FOLDER / f"{name}.json")
        if approval is not None:
            defect = _defect(approval, name, certificate, terms, today or utc_today())
        yield Found(name, defect, approval)


def sign_approval(
    kit: Path,
    plan: Plan,
    *,
    by: str,
    expires: date | None = None,
    policy: SitePolicy | None = None,
    today: date | None = None,
) -> Path:
    """Sign an approval of ``plan`` with the kit's own key, write it into ``local/approvals``, and return its path.

    Whether the plan is within ``policy`` (by default the kit's) is for the caller to look at first; at run the kit's
    policy is checked anyway, and must have the same terms.

    Raises
    ------
    PolicyError
        ``FF-POLICY-KEY``: the private key is readable by others, or not at all. ``FF-POLICY-APPROVAL``: no name, or a
        last day that is over.
    SecaggError
        ``FF-SECAGG-CERTIFICATE``: the key does not belong to the certificate.
    """
    local, today = kit / "local", today or utc_today()
    if not by.strip() or len(by) > 200 or not by.isprintable() or (expires is not None and expires < today):
        raise PolicyError(
            "FF-POLICY-APPROVAL",
            got="an approval without a name, or one that has expired already",
            expected="the name of the person who approves, in one line, and a last day from today on, or none",
            next_step="correct --by or --expires",
        )
    identity = own_identity(kit)
    approval = Approval(
        format="fairflare/approval/1", plan_sha256=plan.sha256, plan_name=plan.name, site=identity.name,
        approved_by=by.strip(), approved_on=today.isoformat(), expires=None if expires is None else expires.isoformat(),
        policy_sha256=(policy or read_policy(local)).terms_sha256, signature="",
    )  # fmt: skip
    signature = base64.b64encode(identity.sign(approval.message)).decode("ascii")
    (local / FOLDER).mkdir(exist_ok=True)
    path = local / FOLDER / f"{plan.sha256}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(schema.pretty(approval.model_copy(update={"signature": signature})), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def own_identity(kit: Path) -> Identity:
    """Who this kit's hospital is; raises ``FF-POLICY-KEY`` for a private key that others can read."""
    certificate, key = _kit_file(kit / "startup" / "client.crt"), _private(kit / "startup" / "client.key")
    return kit_identity(site_name(certificate) or "", certificate, key)


def site_name(certificate: bytes) -> str | None:
    """The site's name in a certificate (PEM), its CN; ``None`` if there is none to be read."""
    try:
        names = x509.load_pem_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return None
    return str(names[0].value) if len(names) == 1 else None


def _names(folder: Path) -> list[str]:
    try:
        found = [_FILE.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return []
    return sorted(one.group(1) for one in found if one is not None)[:_MOST]


def _read(file: Path) -> tuple[Approval | None, str]:
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > _LONGEST:
            return None, "no plain file of an approval's size"
        return schema.read(Approval, file, error=PolicyError, what="approval"), ""
    except (FairFlareError, OSError) as problem:
        return None, f"cannot be read as an approval ({getattr(problem, 'code', type(problem).__name__)})"


def _defect(approval: Approval, name: str, certificate: bytes | None, terms: str | None, today: date) -> str:
    """Why an approval does not count, or an empty text."""
    if approval.plan_sha256 != name:
        return "is of another plan than its name says"
    if certificate is None:
        return "cannot be checked: the site has no start-up kit"
    if approval.site != site_name(certificate):
        return "is of another site"
    if not _is_signed(approval, certificate):
        return "has no valid signature by this site's key"
    if approval.policy_sha256 != terms:
        return "was given under another policy: look at the plan again, and approve it anew"
    if approval.expires is not None and today.isoformat() > approval.expires:
        return f"has expired on {approval.expires}"
    return ""


def _is_signed(approval: Approval, certificate: bytes) -> bool:
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
        signature = base64.b64decode(approval.signature, validate=True)
        if not isinstance(key, rsa.RSAPublicKey):
            return False
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
        key.verify(signature, approval.message, pss, hashes.SHA256())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, binascii.Error):
        return False
    return True


def _private(file: Path) -> bytes:
    """The private key, if nobody else can read it."""
    try:
        mode = file.stat().st_mode
    except OSError:
        mode = 0
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PolicyError(
            "FF-POLICY-KEY",
            got="a private key (startup/client.key) that other users of this machine can read or change",
            expected="a file with mode 0600",
            next_step="chmod 600 it; if somebody else may have read it, ask for a new start-up kit",
        )
    return _kit_file(file)


def _kit_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise PolicyError(
            "FF-POLICY-KEY",
            got=f"a start-up kit whose {file.name} cannot be read ({type(problem).__name__})",
            expected="a hospital's start-up kit, with startup/client.crt and startup/client.key",
            next_step="give the kit's folder, as the user to whom it belongs",
        ) from None
