# SPDX-License-Identifier: Apache-2.0
"""A kit that cannot work is refused at the start of a process, in words."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from fairflare.errors import KitError
from fairflare.flare.kit import KitCheck
from fairflare.flare.kit_manifest import write_manifest
from fairflare.flare.kit_state import verify_kit

NOW = datetime.now(tz=timezone.utc)
DAY = timedelta(days=1)
YEAR = (NOW - DAY, NOW + 360 * DAY)
Period = tuple[datetime, datetime]
ROOT_KEY, KEY, OTHER_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3))


def certificate(name: str, issuer: str, key: rsa.RSAPrivateKey, signer: rsa.RSAPrivateKey, period: Period) -> bytes:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer)]
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(period[0])
        .not_valid_after(period[1])
    )
    return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def kit(
    base: Path,
    role: str = "client",
    period: Period = YEAR,
    root: Period = YEAR,
    signer: rsa.RSAPrivateKey = ROOT_KEY,
    issuer: str = "project",
    key: rsa.RSAPrivateKey = KEY,
) -> Path:
    """A kit's folder, good unless told otherwise."""
    startup = base / "startup"
    startup.mkdir()
    (startup / "rootCA.pem").write_bytes(certificate("project", "project", ROOT_KEY, ROOT_KEY, root))
    (startup / f"{role}.crt").write_bytes(certificate("hospital-1", issuer, KEY, signer, period))
    form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (startup / f"{role}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    (base / "local").mkdir()
    write_manifest(base, role)
    return startup


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_good_kit_passes_without_a_word(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kit(tmp_path, role)
    monkeypatch.chdir(tmp_path)
    KitCheck()
    assert caplog.text == ""


BAD: dict[str, tuple[dict[str, object], str]] = {
    "expired": ({"period": (NOW - 9 * DAY, NOW - DAY)}, "FF-KIT-EXPIRED: got client.crt that ended on"),
    "not valid yet": ({"period": (NOW + DAY, NOW + 9 * DAY)}, "FF-KIT-EARLY: got client.crt that begins on"),
    "a root that expired": ({"root": (NOW - 9 * DAY, NOW - DAY)}, "FF-KIT-EXPIRED: got rootCA.pem"),
    "a root that is not valid yet": ({"root": (NOW + DAY, NOW + 9 * DAY)}, "FF-KIT-EARLY: got rootCA.pem"),
    "signed by another key": ({"signer": OTHER_KEY}, "FF-KIT-ROOT"),
    "issued by another name": ({"issuer": "another"}, "FF-KIT-ROOT"),
    "another private key": ({"key": OTHER_KEY}, "FF-KIT-KEY"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_kit_that_cannot_work_starts_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, message = BAD[what]
    kit(tmp_path, **changes)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError) as caught:
        KitCheck()
    assert str(caught.value).startswith(message)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["client.crt", "client.key", "rootCA.pem"])
@pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\n"])
def test_a_kit_with_a_file_that_cannot_be_read_starts_nothing(text: str | None, name: str, tmp_path: Path) -> None:
    startup = kit(tmp_path)
    (startup / name).unlink()
    if text is not None:
        (startup / name).write_text(text, encoding="utf-8")
    with pytest.raises(KitError, match=f"FF-KIT-FILE: got {name} that cannot be read"):
        verify_kit(startup, NOW)


def test_outside_of_a_kit_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="FF-KIT-FILE"):
        KitCheck()


def test_the_clock_decides(tmp_path: Path) -> None:
    startup = kit(tmp_path)
    verify_kit(startup, NOW)
    with pytest.raises(KitError, match="this machine's clock says 1999-01-01 00:00 UTC"):
        verify_kit(startup, datetime(1999, 1, 1, tzinfo=timezone.utc))


@pytest.mark.parametrize(("own", "root"), [(7, 360), (360, 7)])
def test_a_kit_that_ends_soon_is_pointed_out(
    own: int, root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kit(tmp_path, period=(NOW - DAY, NOW + own * DAY), root=(NOW - DAY, NOW + root * DAY))
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        KitCheck()
    assert "FF-KIT-SOON: this kit's certificate expires in 6 days" in caplog.text
