# SPDX-License-Identifier: Apache-2.0
"""A key's way from one hospital to another: whom it is for, whom it is from, and what changes on the way."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from fairflare import schema
from fairflare.cli import app
from fairflare.errors import HeError, SecaggError
from fairflare.flare.identities import server_cipher, site_masks
from fairflare.he.context import Files, holds_secret
from fairflare.he.parameters import CLIENT_CONTEXT, FLARE, RECORD_NAME, SERVER_CONTEXT, SMALL, record_of
from fairflare.he.parcels import Parcel, open_parcel, read_parcel, seal
from fairflare.policy import standard_policy, write_policy
from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.identity import key_hash
from tests.attacks.federation import Provisioner, rsa_key
from tests.unit.flare.test_encrypted import ENCRYPTED
from tests.unit.he.contexts import contexts

ROOT, OTHER = Provisioner(), Provisioner("other")
NORTH, SOUTH, WEST = (ROOT.identity(name) for name in ("north", "south", "west"))


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises((HeError, SecaggError)) as caught:
        yield
    assert caught.value.code == f"FF-{code}", caught.value


def files() -> Files:
    made = contexts(SMALL)
    return Files(made.client, made.record)


def parcel(**changes: Any) -> Parcel:
    sealed = seal(files(), NORTH, "south", SOUTH.certificate, ROOT.trust())
    return sealed.model_copy(update=changes)


def signed(one: Parcel, by: Any = NORTH) -> Parcel:
    """The same, signed again: what a sender can make that is not honest."""
    import base64

    return one.model_copy(update={"signature": base64.b64encode(by.sign(one.message)).decode()})


def test_the_receiver_gets_the_senders_context() -> None:
    assert open_parcel(parcel(), SOUTH, "north", ROOT.trust()) == files()


def test_nothing_of_the_key_is_in_the_parcel() -> None:
    text = schema.pretty(parcel())
    assert contexts(SMALL).client[200:232].hex() not in text
    assert len({parcel().data for _ in range(3)}) == 3


def test_a_parcel_is_sealed_to_nobodys_certificate_but_that_hospitals() -> None:
    impostor = ROOT.identity("south", key="impostor")
    pins = {"south": SOUTH.spki.hex(), "north": NORTH.spki.hex()}
    for name, identity, trust, code in (
        ("south", OTHER.identity("south"), ROOT.trust(), "SECAGG-CERTIFICATE"),
        ("south", WEST, ROOT.trust(), "SECAGG-CERTIFICATE"),
        ("south", impostor, ROOT.trust(pins), "SECAGG-PIN"),
        ("server", ROOT.identity("server", role="server"), ROOT.trust(), "SECAGG-ROLE"),
        ("south", ROOT.identity("south", days=-1), ROOT.trust(), "SECAGG-CERTIFICATE"),
    ):
        with refused(code):
            seal(files(), NORTH, name, identity.certificate, trust)


def test_another_hospital_opens_nothing() -> None:
    for one in (parcel(), signed(parcel(receiver="west")), signed(parcel(receiver_key=WEST.spki.hex()))):
        with pytest.raises(HeError, match="for another site"):
            open_parcel(one, WEST, "north", ROOT.trust())
    lured = signed(parcel(receiver="west", receiver_key=WEST.spki.hex()))
    with pytest.raises(HeError, match="key does not open"):  # renamed by the sender itself
        open_parcel(lured, WEST, "north", ROOT.trust())


def test_a_parcel_of_somebody_else_is_refused() -> None:
    with refused("HE-PARCEL"):
        open_parcel(parcel(), SOUTH, "west", ROOT.trust())
    forged = signed(parcel(sender="west"), NORTH)
    with refused("SECAGG-CERTIFICATE"):
        open_parcel(forged, SOUTH, "west", ROOT.trust())
    minted = ROOT.identity("north", key="impostor")
    theirs = seal(files(), minted, "south", SOUTH.certificate, ROOT.trust())
    with refused("SECAGG-PIN"):
        open_parcel(theirs, SOUTH, "north", ROOT.trust({"north": NORTH.spki.hex(), "south": SOUTH.spki.hex()}))


@pytest.mark.parametrize("field", ["data", "wrapped", "nonce", "record", "certificate", "signature"])
def test_a_changed_parcel_is_refused(field: str) -> None:
    good, other = parcel(), parcel()
    value: Any = record_of(FLARE, b"") if field == "record" else getattr(other, field)
    if field == "certificate":
        value = schema.pretty(good) and seal(files(), WEST, "south", SOUTH.certificate, ROOT.trust()).certificate
    changed = good.model_copy(update={field: value})
    if field == "signature":
        changed = changed.model_copy(update={"signature": "AAAA"})
    with pytest.raises((HeError, SecaggError)):
        open_parcel(changed, SOUTH, "north", ROOT.trust())
    if field not in ("signature", "certificate"):  # also where the sender signs it: the parts belong together
        with refused("HE-PARCEL"):
            open_parcel(signed(changed), SOUTH, "north", ROOT.trust())


def test_a_record_of_another_context_is_refused() -> None:
    made = contexts(SMALL)
    lying = seal(Files(made.client, record_of(SMALL, b"another")), NORTH, "south", SOUTH.certificate, ROOT.trust())
    with refused("HE-PARCEL"):
        open_parcel(lying, SOUTH, "north", ROOT.trust())


def test_what_is_no_parcel_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "parcel"
    for text in ("", "{}", json.dumps({**json.loads(schema.pretty(parcel())), "more": 1})):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(HeError):
            read_parcel(file)


# --------------------------------------------------------------------------------------------------------- the commands


def kit(folder: Path, name: str, pins: bool = True) -> Path:
    """A hospital's kit of this root, with a policy that pins the others."""
    identity = {"north": NORTH, "south": SOUTH, "west": WEST}[name]
    for part in ("startup", "local"):
        (folder / part).mkdir(parents=True)
    startup = folder / "startup"
    pem = x509.load_der_x509_certificate(identity.certificate).public_bytes(Encoding.PEM)
    (startup / "client.crt").write_bytes(pem)
    (startup / "rootCA.pem").write_bytes(ROOT.root_pem)
    (startup / "client.key").write_bytes(rsa_key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (startup / "client.key").chmod(0o600)
    peers = {one.name: one.spki.hex() for one in (NORTH, SOUTH, WEST)}
    if pins:
        write_policy(folder / "local", standard_policy(folder.parent / "s").model_copy(update={"peers": peers}))
    return folder


def run(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_key_is_made_sealed_opened_and_used(tmp_path: Path) -> None:
    north, south = kit(tmp_path / "north", "north"), kit(tmp_path / "south", "south")
    said = run("he", "make", "--kit", north, "--server-to", tmp_path / "server" / "local")
    assert "the server together with any one hospital" in said
    parcel = tmp_path / "parcel.json"
    run(
        "he", "seal", "--kit", north, "--to", "south", "--certificate", south / "startup" / "client.crt",
        "--out", parcel,
    )  # fmt: skip
    run("he", "open", parcel, "--kit", south, "--from", "north")
    shown = {line for folder in (north, south) for line in run("he", "show", folder).splitlines() if "finger" in line}
    assert len(shown) == 1
    for folder in (north, south):
        assert stat.S_IMODE((folder / "local" / CLIENT_CONTEXT).stat().st_mode) == 0o600
        assert not (folder / "local" / SERVER_CONTEXT).exists()
    assert not holds_secret((tmp_path / "server" / "local" / SERVER_CONTEXT).read_bytes())
    assert not (tmp_path / "server" / "local" / CLIENT_CONTEXT).exists()
    record = server_cipher(ENCRYPTED, tmp_path / "server" / "startup", tmp_path / "server" / "local")
    masks = site_masks(ENCRYPTED, standard_policy(tmp_path / "s"), "south", south / "startup", south / "local", south)
    assert record is not None
    assert masks is not None
    assert masks.opener is not None
    assert masks.opener.fingerprint == record.fingerprint
    assert isinstance(masks.memory, RevealMemory)
    masks.memory.remember_peers({"west": (1, bytes(32))})
    assert masks.memory.peers == ("west",)
    masks.memory.close()
    with RevealMemory(tmp_path / "s" / ENCRYPTED.task.data_set / "reveals.sqlite") as memory:
        assert memory.peers == (f"{key_hash((south / 'startup' / 'rootCA.pem').read_bytes())[:16]}/west",)


def test_a_kit_that_has_a_key_gets_no_second_one(tmp_path: Path) -> None:
    north = kit(tmp_path / "north", "north")
    run("he", "make", "--kit", north, "--server-to", tmp_path / "server")
    before = (north / "local" / CLIENT_CONTEXT).read_bytes()
    with pytest.raises(HeError, match="TWO"):
        run("he", "make", "--kit", north, "--server-to", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert (north / "local" / CLIENT_CONTEXT).read_bytes() == before


def test_without_pins_the_commands_say_so(tmp_path: Path) -> None:
    north = kit(tmp_path / "north", "north", pins=False)
    run("he", "make", "--kit", north, "--server-to", tmp_path / "server", "--sites", 100)
    south = kit(tmp_path / "south", "south")
    words = ("--certificate", south / "startup" / "client.crt", "--out", tmp_path / "p")
    assert "note: no pinned keys" in run("he", "seal", "--kit", north, "--to", "south", *words)
    assert "8192" in (north / "local" / RECORD_NAME).read_text(encoding="utf-8")


def test_a_refused_parcel_writes_nothing(tmp_path: Path) -> None:
    north, west = kit(tmp_path / "north", "north"), kit(tmp_path / "west", "west")
    run("he", "make", "--kit", north, "--server-to", tmp_path / "server")
    south = kit(tmp_path / "south", "south")
    words = ("--certificate", south / "startup" / "client.crt", "--out", tmp_path / "p")
    run("he", "seal", "--kit", north, "--to", "south", *words)
    with pytest.raises(HeError, match="PARCEL"):
        run("he", "open", tmp_path / "p", "--kit", west, "--from", "north")
    with pytest.raises(HeError, match="PARCEL"):
        run("he", "open", tmp_path / "p", "--kit", south, "--from", "west")
    for folder in (south, west):
        assert not (folder / "local" / CLIENT_CONTEXT).exists()
