# SPDX-License-Identifier: Apache-2.0
"""Start-up kits for the audit's tests: FLARE's stock kits and hardened ones, made once by ``nvflare provision``."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from fairflare import presets, schema
from fairflare.jobs import write_job
from fairflare.plan import Plan, parse_plan
from fairflare.policy import Entry, SitePolicy, read_policy, standard_policy, write_catalog, write_policy
from fairflare.policy.catalog import DataCatalog

ROOT = Path(__file__).resolve().parents[3]
SITE, SERVER, PERSON = "hospital-1", "fl-server", "researcher@example.org"


def provision(folder: Path, *, stock: bool) -> Path:
    """Make the kits of ``provision/project.yml``, or the same ones without our builder; return ``<project>``."""
    text = (
        (ROOT / "provision" / "project.yml").read_text(encoding="utf-8").replace("fl-server.example.org", "localhost")
    )
    if stock:
        lines = text.splitlines(keepends=True)
        start = next(at for at, line in enumerate(lines) if "HardeningBuilder" in line)
        end = next(at for at, line in enumerate(lines) if "SignatureBuilder" in line)
        text = "".join(lines[:start] + lines[end:]).replace("      require_signed_jobs: true\n", "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yml").write_text(text, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("nvflare")), "provision", "-p", "project.yml", "-w", "kits"]
    environment = {**os.environ, "HOME": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
    return folder / "kits" / "fairflare"


def good_plan() -> Plan:
    """A plan that the good policy allows and has approved."""
    plan = presets.shipped("heart_flexfair")
    return plan.model_copy(update={"cells": plan.cells.model_copy(update={"minimum": 11, "sites": 3})})


def private_plan(**changes: Any) -> Plan:
    """The good plan with differential privacy, at an epsilon below 3; ``changes`` of its differential privacy."""
    groups = {"noise_multiplier": 20.0, "groups_per_unit": 1, "shared": False}
    privacy = {
        "clip": 1.0, "noise_multiplier": 2.5, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks",
        "groups": groups, **changes,
    }  # fmt: skip
    data = json.loads(schema.pretty(good_plan()))
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": 20}
    data["consents"] = ["shared_noise"] if privacy["groups"]["shared"] else []
    return parse_plan(json.dumps({**data, "differential_privacy": privacy}))


def good_policy(kit: Path) -> SitePolicy:
    """A policy with which nothing is to be found: pins of the roster, one approved plan."""
    peers = json.loads((kit / "local" / "roster.json").read_text(encoding="utf-8"))["sites"]
    policy = standard_policy(Path("/var/lib/fairflare/hospital-1"))
    return policy.model_copy(update={"peers": peers, "plans": (good_plan().sha256,)})


def finish(kit: Path) -> Path:
    """Write into a site's hardened kit what the hospital itself has to write."""
    write_policy(kit / "local", good_policy(kit))
    entry = Entry(manifest="/data/heart/manifest.csv", root=None, opt_out=None, public=False)
    write_catalog(kit / "local", DataCatalog(format="fairflare/catalog/1", data_sets={"heart": entry}, sites=None))
    for path in kit.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    return kit


def copy(kits: Path, name: str, to: Path) -> Path:
    """A copy of one kit, to break."""
    return Path(shutil.copytree(kits / "prod_00" / name, to / name, symlinks=True))


def good_job(folder: Path, plan: Plan | None = None) -> Path:
    """A job's folder, as written."""
    return write_job(plan or good_plan(), folder)


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place, with the mode it had."""
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def edit_policy(kit: Path, **changes: Any) -> None:
    """Change fields of the kit's policy."""
    policy = read_policy(kit / "local")
    write_policy(kit / "local", SitePolicy.model_validate({**policy.model_dump(), **changes}))


class Authority:
    """The project's root: it can sign a startup folder, and issue certificates, once more."""

    def __init__(self, kits: Path) -> None:
        state = json.loads((kits / "state" / "cert.json").read_text(encoding="utf-8"))
        self.key: Any = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
        self.root = x509.load_pem_x509_certificate(state["root_cert"].encode())

    def sign(self, kit: Path) -> None:
        """Sign the startup folder as it is now, so that only the change itself is to be found."""
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
        files = [file for file in (kit / "startup").iterdir() if file.name != "signature.json"]
        signed = {file.name: self.key.sign(file.read_bytes(), pss, hashes.SHA256()) for file in files}
        text = json.dumps({name: base64.b64encode(one).decode() for name, one in signed.items()})
        (kit / "startup" / "signature.json").write_text(text, encoding="utf-8")

    def reissue(
        self, kit: Path, first: timedelta, last: timedelta, key: Any = None, name: str = "client", public: Any = None
    ) -> None:
        """Give a kit a certificate for its own key that is valid from now + ``first`` to now + ``last``."""
        file = kit / "startup" / f"{name}.crt"
        old = x509.load_pem_x509_certificate(file.read_bytes())
        now = datetime.now(timezone.utc)
        made = (
            x509.CertificateBuilder()
            .subject_name(old.subject)
            .issuer_name(self.root.subject)
            .public_key(public.public_key() if public else old.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + first)
            .not_valid_after(now + last)
            .sign(key or self.key, hashes.SHA256())
        )
        file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.sign(kit)
