# SPDX-License-Identifier: Apache-2.0
"""What a site must not lose can be copied at any moment, and never comes back older than it was."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from fairflare import schema
from fairflare.cli import app
from fairflare.errors import KitError
from fairflare.flare import kit_backup
from fairflare.flare.kit_backup import back_up, restore
from fairflare.he.parameters import CLIENT_CONTEXT
from fairflare.policy import open_policy, write_policy
from fairflare.privacy.anchor import decisions_anchor, ledger_anchor, reveals_anchor
from fairflare.privacy.decisions import DecisionLog, read_history
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget, Gaussian, Release
from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.identity import development_identity
from tests.unit.privacy.test_decisions import ACCEPTED, REFUSED
from tests.unit.privacy.test_reveals import PLAN, ROSTER

SITE = "hospital-1"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make(tmp_path / "machine", SITE)


def make(machine: Path, name: str) -> Path:
    kit = machine / "kit"
    (kit / "startup").mkdir(parents=True)
    (kit / "local" / "approvals").mkdir(parents=True)
    (machine / "store").mkdir(mode=0o700)
    certificate = x509.load_der_x509_certificate(development_identity(name).certificate)
    (kit / "startup" / "client.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (kit / "startup" / "client.key").write_text("KEY", encoding="utf-8")
    (kit / "startup" / "fed_client.json").write_text("{}", encoding="utf-8")
    (kit / "local" / "approvals" / "x.json").write_text("approved", encoding="utf-8")
    write_policy(kit / "local", open_policy(machine / "store", identities="kit"))
    live(kit, 1)
    return kit


def live(kit: Path, session: int) -> None:
    """A job: something is decided, revealed and paid for."""
    store = kit.parent / "store"
    DecisionLog(store / "decisions.jsonl", decisions_anchor(kit)).append(ACCEPTED)
    with RevealMemory(store / "heart" / "reveals.sqlite", reveals_anchor(kit, "heart")) as memory:
        memory.begin(bytes([session]) * 32, PLAN, ROSTER)
    paid = Release(PLAN, "job", session, "model", Gaussian(20.0, 1.0, 1))
    Ledger(store / "heart" / "ledger.sqlite", ledger_anchor(kit, "heart")).spend(Budget(8.0, 1e-5), paid)


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(KitError) as caught:
        call()
    assert caught.value.code == code


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_a_lost_store_comes_back_and_goes_on(kit: Path, tmp_path: Path) -> None:
    made = back_up(kit, tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").stat().st_mode & 0o077 == 0
    assert made.site == SITE
    assert "startup/client.key" not in made.files
    before = contents(kit.parent / "store")
    shutil.rmtree(kit.parent / "store")
    index, written = restore(tmp_path / "a.tgz", kit)
    assert index == made
    assert set(written) == {"store/decisions.jsonl", "store/heart/ledger.sqlite", "store/heart/reveals.sqlite"}
    after = contents(kit.parent / "store")
    assert after["decisions.jsonl"] == before["decisions.jsonl"]
    live(kit, 2)
    assert len(read_history(kit.parent / "store" / "decisions.jsonl", decisions_anchor(kit)).decisions) == 2
    assert not list(kit.glob(".restore-*"))


def test_a_copy_from_before_the_last_job_is_refused(kit: Path, tmp_path: Path) -> None:
    back_up(kit, tmp_path / "old.tgz")
    live(kit, 2)
    back_up(kit, tmp_path / "new.tgz")
    shutil.rmtree(kit.parent / "store")
    for anchor in ("decisions", "ledger-heart", "reveals-heart"):  # each alone
        kept = {one.name: one.read_bytes() for one in (kit / "anchors").iterdir()}
        for name in kept:
            if name != anchor:
                (kit / "anchors" / name).unlink()
        refused("FF-KIT-BACKUP-OLD", lambda: restore(tmp_path / "old.tgz", kit))
        for name, data in kept.items():
            (kit / "anchors" / name).write_bytes(data)
    assert not (kit.parent / "store").exists()
    restore(tmp_path / "new.tgz", kit)
    live(kit, 3)


def test_a_store_that_is_there_is_never_replaced(kit: Path, tmp_path: Path) -> None:
    back_up(kit, tmp_path / "a.tgz")
    before = contents(kit.parent)
    refused("FF-KIT-BACKUP-STORE", lambda: restore(tmp_path / "a.tgz", kit))
    assert contents(kit.parent) == before


def test_a_store_that_a_running_site_begins_meanwhile_is_not_mixed_with_the_copy(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(kit, tmp_path / "a.tgz")
    store = kit.parent / "store"
    shutil.rmtree(store)

    def meanwhile(draft: Path, anchors: Path) -> None:
        (store / "heart").mkdir(parents=True, mode=0o700)
        (store / "heart" / "reveals.sqlite").touch()

    monkeypatch.setattr(kit_backup, "_verify_newest", meanwhile)
    refused("FF-KIT-BACKUP-STORE", lambda: restore(tmp_path / "a.tgz", kit))
    assert (store / "heart" / "reveals.sqlite").read_bytes() == b""


@pytest.mark.parametrize("name", [".", "local", "local/\0x", "/local/x", "local/../../x"])
def test_an_archive_with_a_strange_name_is_damaged(name: str, kit: Path, tmp_path: Path) -> None:
    index = kit_backup.Backup(
        format="fairflare/backup/1", site=SITE, made="x", files={name: hashlib.sha256(b"").hexdigest()}
    )
    inside_of = {name: b"", "backup.json": schema.canonical(index)}
    with tarfile.open(tmp_path / "bad.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for inside, data in inside_of.items():
            member = tarfile.TarInfo(inside)
            member.pax_headers, member.size = {"path": inside}, len(data)
            archive.addfile(member, io.BytesIO(data))
    shutil.rmtree(kit.parent / "store")
    refused("FF-KIT-BACKUP", lambda: restore(tmp_path / "bad.tgz", kit))


def test_on_a_new_machine_everything_comes_back_but_the_key_only_if_it_was_asked_for(kit: Path, tmp_path: Path) -> None:
    back_up(kit, tmp_path / "a.tgz")
    back_up(kit, tmp_path / "key.tgz", with_key=True)
    before = contents(kit)
    shutil.rmtree(kit.parent / "store")
    for archive in ("a.tgz", "key.tgz"):
        for part in ("local", "anchors"):
            shutil.rmtree(kit / part)
        (kit / "startup" / "client.key").unlink()
        restore(tmp_path / archive, kit)
        assert contents(kit) == {n: d for n, d in before.items() if archive == "key.tgz" or n != "startup/client.key"}
        assert all(one.stat().st_mode & 0o077 == 0 for one in (kit / "local").rglob("*"))
        shutil.rmtree(kit.parent / "store")
        (kit / "startup" / "client.key").touch()


def test_the_hospitals_shared_key_goes_only_where_a_key_was_asked_for(kit: Path, tmp_path: Path) -> None:
    (kit / "local" / CLIENT_CONTEXT).write_bytes(b"SECRET OF ALL HOSPITALS")
    assert f"local/{CLIENT_CONTEXT}" not in back_up(kit, tmp_path / "a.tgz").files
    with tarfile.open(tmp_path / "a.tgz") as archive:
        parts = [archive.extractfile(one) for one in archive]
        assert all(b"SECRET" not in part.read() for part in parts if part is not None)
    assert f"local/{CLIENT_CONTEXT}" in back_up(kit, tmp_path / "key.tgz", with_key=True).files


def test_another_sites_copy_is_refused(kit: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", "hospital-2")
    back_up(other, tmp_path / "a.tgz")
    shutil.rmtree(kit.parent / "store")
    refused("FF-KIT-BACKUP", lambda: restore(tmp_path / "a.tgz", kit))
    refused("FF-KIT-BACKUP", lambda: back_up(tmp_path, tmp_path / "b.tgz"))
    assert not (tmp_path / "b.tgz").exists()


@pytest.mark.parametrize("spoil", ["cut", "no archive", "another byte", "outside", "a link", "one more", "no index"])
def test_a_damaged_or_hostile_archive_writes_nothing(spoil: str, kit: Path, tmp_path: Path) -> None:
    file, bad = tmp_path / "a.tgz", tmp_path / "bad.tgz"
    back_up(kit, file)
    shutil.rmtree(kit.parent / "store")
    before = contents(tmp_path / "machine")
    if spoil == "cut":
        bad.write_bytes(file.read_bytes()[:-200])
    elif spoil == "no archive":
        bad.write_bytes(b"x" * 100)
    else:
        shutil.rmtree(tmp_path / "open", ignore_errors=True)
        with tarfile.open(file) as archive:
            archive.extractall(tmp_path / "open", filter="data")
        index = json.loads((tmp_path / "open" / "backup.json").read_text(encoding="utf-8"))
        name = "local/approvals/x.json"
        if spoil == "another byte":
            (tmp_path / "open" / name).write_text("forged", encoding="utf-8")
        elif spoil == "a link":
            (tmp_path / "open" / name).unlink()
            (tmp_path / "open" / name).symlink_to("/etc/passwd")
        elif spoil == "one more":
            (tmp_path / "open" / "local" / "resources.json").write_text("{}", encoding="utf-8")
        elif spoil == "no index":
            (tmp_path / "open" / "backup.json").unlink()
        with tarfile.open(bad, "w:gz") as archive:
            for one in sorted(two for two in (tmp_path / "open").rglob("*") if two.is_file() or two.is_symlink()):
                inside = one.relative_to(tmp_path / "open").as_posix()
                if spoil == "outside" and inside == name:
                    inside = "local/../../escaped"
                if spoil == "outside" and inside == "backup.json":
                    index["files"]["local/../../escaped"] = index["files"].pop(name)
                    one.write_text(json.dumps(index), encoding="utf-8")
                archive.add(one, inside)
    with pytest.raises(KitError) as caught:
        restore(bad, kit)
    assert caught.value.code.startswith("FF-KIT-")
    assert contents(tmp_path / "machine") == before


def test_a_file_half_written_or_taken_away_meanwhile_is_left_out(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kit / "anchors" / "decisions.new").write_text("half", encoding="ascii")
    (kit / "local" / "approvals" / "y.new").write_text("half", encoding="ascii")
    gone = kit / "local" / "approvals" / "withdrawn.json"
    gone.write_text("{}", encoding="utf-8")
    read = Path.read_bytes

    def taken_away(path: Path) -> bytes:
        if path == gone:
            path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", taken_away)
    index = back_up(kit, tmp_path / "a.tgz")
    assert "anchors/decisions" in index.files
    assert not [one for one in index.files if one.endswith(".new") or "withdrawn" in one]


def test_a_copy_while_jobs_write_is_whole(kit: Path, tmp_path: Path) -> None:
    ends = threading.Event()

    def jobs() -> None:
        session = 2
        while not ends.is_set() and session < 250:
            live(kit, session)
            session += 1

    busy = threading.Thread(target=jobs)
    busy.start()
    try:
        for number in range(5):
            back_up(kit, tmp_path / f"{number}.tgz")
    finally:
        ends.set()
        busy.join()
    for number in range(5):
        copy = make(tmp_path / f"copy-{number}", SITE)
        shutil.rmtree(copy.parent / "store")
        shutil.rmtree(copy / "anchors")
        restore(tmp_path / f"{number}.tgz", copy)
        live(copy, 251)  # the anchors that came with it are no newer than the store that did


def test_the_commands(kit: Path, tmp_path: Path) -> None:
    run = CliRunner()
    archive = tmp_path / "a.tgz"
    assert (
        "holds the private keys"
        in run.invoke(app, ["kit", "backup", str(kit), "--to", str(archive), "--with-key"]).output
    )
    again = run.invoke(app, ["kit", "backup", str(kit), "--to", str(archive)])
    assert again.exit_code != 0  # nothing is overwritten
    shutil.rmtree(kit.parent / "store")
    assert "3 of " in run.invoke(app, ["kit", "restore", str(archive), str(kit)]).output
    DecisionLog(kit.parent / "store" / "decisions.jsonl", decisions_anchor(kit)).append(REFUSED)
