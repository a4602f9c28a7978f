# SPDX-License-Identifier: Apache-2.0
"""Plans with a change or two, and a start-up kit as small as policies need one."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fairflare import presets, schema
from fairflare.plan import Plan, parse_plan
from fairflare.policy import SitePolicy, standard_policy, write_policy
from fairflare.secagg.identity import key_hash

STORE = Path("/var/lib/fairflare")
CELLS = {"minimum": 11, "sites": 3}


def plan(base: Plan | None = None, **changes: Any) -> Plan:
    """The shipped plan of heart_flexfair, or another one, with changes: ``training__rounds=3``."""
    data = json.loads(schema.pretty(base or presets.shipped("heart_flexfair")))
    for path, value in changes.items():
        *sections, field = path.split("__")
        target = data
        for part in sections:
            target = target[part]
        target[field] = value
    return parse_plan(json.dumps(data))


def standard() -> SitePolicy:
    """The standard policy of a site that does not list plans."""
    return standard_policy(STORE).model_copy(update={"plans": None})


def make_kit(folder: Path, site: str = "north", policy: SitePolicy | None = None) -> Path:
    """A kit with certificate, key, a policy of the standard template, and a roster of two."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    for part in ("startup", "local"):
        (folder / part).mkdir(parents=True)
    for file in ("client.crt", "rootCA.pem"):
        (folder / "startup" / file).write_bytes(certificate.public_bytes(Encoding.PEM))
    private = folder / "startup" / "client.key"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    private.chmod(0o600)
    write_policy(folder / "local", policy or standard_policy(STORE))
    sites = {site: key_hash(certificate.public_bytes(Encoding.PEM)), "south": "ab" * 32}
    write_roster(folder, sites)
    return folder


def write_roster(kit: Path, sites: dict[str, str]) -> None:
    roster = {"format": "fairflare/roster/1", "sites": sites}
    (kit / "local" / "roster.json").write_text(json.dumps(roster), encoding="utf-8")


def certificate(kit: Path) -> bytes:
    return (kit / "startup" / "client.crt").read_bytes()
