# SPDX-License-Identifier: Apache-2.0
"""The list of certificates that no longer count: who may write it, what it may forget, what OpenSSL says of it."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from typer.testing import CliRunner

from fairflare.cli import app
from fairflare.errors import KitError
from fairflare.flare.kit_state import verify_start
from fairflare.policy.revoked import (
    NOBODY,
    REVOKED_NAME,
    parse_revoked,
    read_authority,
    read_certificate,
    read_revoked,
    revoke,
    take_over,
)
from tests.unit.audit import kits as provisioned


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provisioned.provision(tmp_path_factory.mktemp("project"), stock=False) / "prod_00"


@pytest.fixture
def state(project: Path) -> Path:
    """The folder that only the provisioner has."""
    return project.parent / "state"


@pytest.fixture
def kit(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project / "hospital-1", tmp_path / "hospital-1"))


def certificate(project: Path, name: str) -> bytes:
    return (project / name / "startup" / ("server.crt" if name == "fl-server" else "client.crt")).read_bytes()


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def made(state: Path, *pems: bytes, before: bytes | None = None) -> bytes:
    return revoke(*read_authority(state), pems, before)[0]


def refused(code: str, call: object, *arguments: object) -> None:
    with pytest.raises(KitError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code


def test_a_list_says_who_and_only_grows(project: Path, state: Path, kit: Path) -> None:
    two, three = (certificate(project, f"hospital-{n}") for n in (2, 3))
    first = made(state, two)
    assert read_revoked(kit) == NOBODY
    assert take_over(kit, first).serials == {serial(two)}
    second = made(state, three, before=first)
    assert take_over(kit, second).serials == {serial(two), serial(three)}
    found = read_revoked(kit)
    assert found.number == 2
    assert found.holds(x509.load_pem_x509_certificate(two))
    assert not found.holds(x509.load_pem_x509_certificate(certificate(project, "hospital-1")))
    assert take_over(kit, second) == found  # again: nothing changes
    refused("FF-KIT-REVOCATION-OLD", take_over, kit, first)
    forgetful = made(state, before=made(state, three))  # number 2 as well, and without the other
    refused("FF-KIT-REVOCATION-OLD", take_over, kit, forgetful)
    forgetful = made(state, before=forgetful)
    refused("FF-KIT-REVOCATION-OLD", take_over, kit, forgetful)
    assert read_revoked(kit) == found
    assert (kit / "local" / REVOKED_NAME).stat().st_mode & 0o077 == 0


def test_openssl_reads_it_and_agrees(project: Path, state: Path, tmp_path: Path) -> None:
    listed, root, two = (tmp_path / name for name in ("list.pem", "root.pem", "two.pem"))
    listed.write_bytes(made(state, certificate(project, "hospital-2")))
    root.write_bytes(read_authority(state)[0])
    for name, ok in (("hospital-1", True), ("hospital-2", False)):
        two.write_bytes(certificate(project, name))
        command = ["openssl", "verify", "-crl_check", "-CAfile", str(root), "-CRLfile", str(listed), str(two)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        assert ok or "certificate revoked" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "spoil", ["text", "cut", "another root's", "a bit", "no number", "partial", "a folder", "empty"]
)
def test_what_the_root_did_not_sign_so_is_no_list(spoil: str, project: Path, state: Path, kit: Path) -> None:
    good = made(state, certificate(project, "hospital-2"))
    root, key_pem = read_authority(state)
    file = kit / "local" / REVOKED_NAME
    if spoil == "a folder":
        file.mkdir()
    elif spoil in ("no number", "partial", "another root's"):
        now = datetime.now(timezone.utc)
        key = serialization.load_pem_private_key(key_pem, None)
        if spoil == "another root's":
            key_pem = (project / "hospital-2" / "startup" / "client.key").read_bytes()
            key = serialization.load_pem_private_key(key_pem, None)
        name = x509.load_pem_x509_certificate(root).subject
        builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now)
        builder = builder.next_update(now + timedelta(days=1))
        if spoil != "no number":
            builder = builder.add_extension(x509.CRLNumber(9), False)
        if spoil == "partial":  # a list of some certificates only, which does not say what this one needs to know
            builder = builder.add_extension(x509.DeltaCRLIndicator(1), True)
        file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))  # type: ignore[arg-type]
    else:
        middle = len(good) // 2
        turned = good[:middle] + (b"A" if good[middle : middle + 1] != b"A" else b"B") + good[middle + 1 :]
        file.write_bytes({"text": b"nobody", "cut": good[:-40], "a bit": turned, "empty": b""}[spoil])
    refused("FF-KIT-REVOCATION", read_revoked, kit)


def test_no_process_starts_from_a_kit_whose_own_certificate_was_revoked(project: Path, state: Path, kit: Path) -> None:
    first = made(state, certificate(project, "hospital-2"))
    take_over(kit, first)
    verify_start(kit)  # another's
    take_over(kit, made(state, certificate(project, "hospital-1"), before=first))
    refused("FF-KIT-REVOKED", verify_start, kit)
    (kit / "local" / REVOKED_NAME).write_bytes(b"no list")
    refused("FF-KIT-REVOCATION", verify_start, kit)


def test_only_the_roots_key_revokes_and_only_what_the_root_issued(project: Path, state: Path) -> None:
    root, key = read_authority(state)
    two = certificate(project, "hospital-2")
    refused(
        "FF-KIT-REVOCATION", revoke, root, (project / "hospital-2" / "startup" / "client.key").read_bytes(), [two], None
    )
    refused("FF-KIT-REVOCATION", revoke, root, key, [root], None)
    refused("FF-KIT-REVOCATION", revoke, root, key, [b"no certificate"], None)
    refused("FF-KIT-REVOCATION", revoke, root, key, [two], b"no list")
    with pytest.raises(KitError):
        parse_revoked(b"x", root)


def test_the_commands(project: Path, state: Path, kit: Path, tmp_path: Path) -> None:
    run = CliRunner()
    listed = tmp_path / "revoked.pem"
    words = [
        "kit",
        "revoke",
        str(project / "hospital-2" / "startup" / "client.crt"),
        "--ca",
        str(state),
        "--to",
        str(listed),
    ]
    assert run.invoke(app, words).exit_code == 0
    again = run.invoke(app, [*words[:2], str(project / "fl-server" / "startup" / "server.crt"), *words[3:]])
    assert "list number 2, 2 certificates" in again.output
    assert "list number 0" in run.invoke(app, ["kit", "revoked", str(kit)]).output
    taken = run.invoke(app, ["kit", "revoked", str(kit), str(listed)])
    assert taken.exit_code == 0
    assert f"serial {serial(certificate(project, 'hospital-2')):x}" in taken.output


def test_an_archive_with_one_certificate_will_do(tmp_path: Path) -> None:
    file = tmp_path / "x.signed.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hospital-1.crt", b"pem")
        archive.writestr("rootCA.pem", b"root")
    assert read_certificate(file) == b"pem"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("hospital-2.crt", b"pem")
    refused("FF-KIT-REVOCATION", read_certificate, file)
