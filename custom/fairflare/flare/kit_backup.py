# SPDX-License-Identifier: Apache-2.0
"""A copy of what a site must not lose: what its people wrote, what it revealed and decided; imports nothing of FLARE.

A copy is whole at any moment, also while a job runs: databases by SQLite's own backup, lists under their lock. It is
never put over anything: a store that is there counts, whatever it holds. A copy that lacks an event of which the kit
has the anchor is refused: the site has revealed more since. Without anchors (a new machine) only the other hospitals
can tell, and refuse it (``FF-SECAGG-ROLLBACK``).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, NoReturn

from pydantic import Field

from fairflare import schema
from fairflare.errors import KitError
from fairflare.he.parameters import CLIENT_CONTEXT
from fairflare.policy import read_policy
from fairflare.policy.approvals import site_name
from fairflare.policy.site import DECISIONS_NAME, POLICY_NAME, Hash
from fairflare.policy.store import store_folder
from fairflare.privacy.anchor import ANCHORS, Anchor
from fairflare.privacy.disk import make_folder, sync_folder
from fairflare.schema import StrictModel

BACKUP_FORMAT: Final = "fairflare/backup/1"
_INDEX: Final = "backup.json"
#: Bytes of one file, and files, that a copy may have; the store of a hospital has a few megabytes.
_LARGEST, _MOST = 1 << 30, 100_000
_LOCK: Final = ".lock"
_DRAFT: Final = ".new"


class Backup(StrictModel):
    """What a copy says of itself: whose it is, when it was made, and the SHA-256 of each of its files by name."""

    format: Literal["fairflare/backup/1"]
    site: str
    made: str
    files: Annotated[dict[str, Hash], Field(min_length=1)]


def back_up(kit: Path, to: Path, *, with_key: bool = False) -> Backup:
    """Write a copy of a site's ``local/``, store and anchors into a new archive (tar.gz, mode 0600).

    Parameters
    ----------
    kit
        The site's kit; its policy says where the store is.
    to
        The archive, which must not be there yet.
    with_key
        Whether ``startup/`` and the key of encrypted statistics go in as well: then keep the archive like the key.

    Raises
    ------
    KitError
        ``FF-KIT-BACKUP``: no site's kit, or a database that cannot be read whole.
    PolicyError
        Where the policy cannot be read.
    OSError
        For files, as everywhere.
    """
    name = _site(kit)
    store = store_folder(read_policy(kit / "local").store, None, None)
    opened = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(opened, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            digests = {}
            for inside, data in _contents(kit, store, with_key):
                digests[inside] = hashlib.sha256(data).hexdigest()
                _add(archive, inside, data)
            made = datetime.now(timezone.utc).isoformat(timespec="seconds")
            index = Backup(format=BACKUP_FORMAT, site=name, made=made, files=digests)
            _add(archive, _INDEX, schema.canonical(index))
    except BaseException:
        to.unlink()
        raise
    return index


def restore(file: Path, kit: Path) -> tuple[Backup, tuple[str, ...]]:
    """Put a copy back into a kit and into a store that is not there.

    What is in ``local/`` and ``startup/`` already stays as it is.

    Returns
    -------
    tuple
        What the copy says of itself, and the names of the files that were written.

    Raises
    ------
    KitError
        ``FF-KIT-BACKUP``: damaged, or another site's. ``FF-KIT-BACKUP-STORE``: there is a store already.
        ``FF-KIT-BACKUP-OLD``: this kit's site has revealed or decided more since. The store is as it was then.
    """
    index, contents = _read(file)
    if index.site != _site(kit):
        _refuse("FF-KIT-BACKUP", f"a copy of {index.site}", "one of the site whose kit this is", "name the other kit")
    with tempfile.TemporaryDirectory(dir=kit, prefix=".restore-") as place:
        draft = Path(place)
        for name, data in contents.items():
            _write(draft / name, data)
        there = kit / "local" / POLICY_NAME
        policy = read_policy(there if there.exists() else draft / "local")
        store = store_folder(policy.store, None, kit)
        if any(store.glob("**/*")):
            _refuse_store()
        _verify_newest(draft / "store", kit / ANCHORS)
        written = [name for name, data in contents.items() if _put(name, data, kit, store)]
    return index, tuple(written)


def _put(name: str, data: bytes, kit: Path, store: Path) -> bool:
    top, _, rest = name.partition("/")
    target = (store if top == "store" else kit / top) / rest
    if os.path.lexists(target):
        if top == "store":  # a process of the site has begun a new one meanwhile
            _refuse_store()
        return False
    _write(target, data)
    return True


def _verify_newest(store: Path, anchors: Path) -> None:
    files = _files(anchors)
    for one in files:
        kind, _, data_set = one.name.partition("-")
        file = store / data_set / f"{kind}.sqlite" if data_set else store / DECISIONS_NAME  # reveals-X, ledger-X
        newest = Anchor(one).read()
        if newest is not None and newest not in _events(file):
            _refuse(
                "FF-KIT-BACKUP-OLD", "a copy without the last event that this site wrote", "a newer copy",
                "put the newest one back; if there is none, the site cannot go on under its name: agree with the other "
                "hospitals on a new name, and approve no plan that was run before",
            )  # fmt: skip


def _events(file: Path) -> set[str]:
    """Hashes of the events of a chain, whether a database's or a list's."""
    if not file.exists():
        return set()
    if file.suffix != ".sqlite":
        return {hashlib.sha256(line).hexdigest() for line in file.read_bytes().split(b"\n")}
    with suppress(sqlite3.Error, AttributeError), closing(sqlite3.connect(file)) as connection:
        return {found.hex() for (found,) in connection.execute("SELECT hash FROM events")}
    return set()


def _contents(kit: Path, store: Path, with_key: bool) -> Iterator[tuple[str, bytes]]:
    # Anchors first: the store's copy is then as new, or newer.
    for top in (ANCHORS, "local", *(["startup"] if with_key else [])):
        for file in _files(kit / top):
            if file.name == CLIENT_CONTEXT and not with_key:  # all hospitals' secret key of encrypted statistics
                continue
            try:
                data = file.read_bytes()
            except FileNotFoundError:  # a running job or a person took it away meanwhile
                continue
            yield f"{top}/{file.relative_to(kit / top).as_posix()}", data
    for file in _files(store):
        if file.name.endswith((_LOCK, "-journal")):
            continue
        yield f"store/{file.relative_to(store).as_posix()}", _whole(file)


def _files(folder: Path) -> list[Path]:
    """A folder's files, but for drafts: what is written as ``.new`` counts from its renaming on only."""
    return sorted(one for one in folder.rglob("*") if one.is_file() and not one.is_symlink() and one.suffix != _DRAFT)


def _whole(file: Path) -> bytes:
    """A file of the store as it was at one moment."""
    if file.suffix != ".sqlite":
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH)
            return opened.read()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / file.name
        try:
            with (
                closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as old,
                closing(sqlite3.connect(copy)) as new,
            ):
                old.backup(new)
                (said,) = new.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.Error:
            said = ""
        if said != "ok":
            _refuse(
                "FF-KIT-BACKUP", "a database of the store that cannot be read whole", "one that can", "check the disk"
            )
        return copy.read_bytes()


def _read(file: Path) -> tuple[Backup, Mapping[str, bytes]]:
    """What is in an archive, each file compared with its hash; nothing is unpacked."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r:gz") as archive:
            for member in archive:
                opened = archive.extractfile(member) if member.isreg() and member.size <= _LARGEST else None
                if opened is None or len(found) > _MOST:
                    raise ValueError("no plain files")
                found[member.name] = opened.read()
    except (tarfile.TarError, EOFError, ValueError):
        _refuse_damaged()
    text = found.pop(_INDEX, b"").decode("utf-8", errors="replace")
    index = schema.parse(Backup, text, error=KitError, what="backup")
    if {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} != index.files:
        _refuse_damaged()
    for name in found:
        path = PurePosixPath(name)
        top = path.parts[0] if len(path.parts) > 1 and "\0" not in name else None
        if top not in (ANCHORS, "local", "startup", "store") or ".." in path.parts:
            _refuse_damaged()
    return index, found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    archive.addfile(member, io.BytesIO(data))


def _write(target: Path, data: bytes) -> None:
    make_folder(target.parent)
    opened = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(opened, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if target.suffix == ".sh":
        target.chmod(0o700)
    sync_folder(target.parent)


def _site(kit: Path) -> str:
    try:
        name = site_name((kit / "startup" / "client.crt").read_bytes())
    except FileNotFoundError:
        name = None
    if name is None or not (kit / "startup" / "fed_client.json").exists():
        _refuse(
            "FF-KIT-BACKUP",
            "a folder that is no site's kit",
            "the folder that holds startup/ and local/",
            "name the kit",
        )
    return name


def _refuse_store() -> NoReturn:
    _refuse(
        "FF-KIT-BACKUP-STORE", "a store that is there", "none: what it holds may be newer",
        "start the site, which says what is wrong with it; a damaged one is moved away first, while the site stands",
    )  # fmt: skip


def _refuse_damaged() -> NoReturn:
    _refuse(
        "FF-KIT-BACKUP",
        "an archive that is damaged, or none of ours",
        "one that 'fairflare kit backup' wrote",
        "use another",
    )


def _refuse(code: str, got: str, expected: str, next_step: str) -> NoReturn:
    raise KitError(code, got=got, expected=expected, next_step=next_step)


__all__ = ["BACKUP_FORMAT", "Backup", "back_up", "restore"]
