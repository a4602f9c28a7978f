# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder or in an archive, listed without following, opening or unpacking anything.

Both become the same list of :class:`Item`, so one check decides for a researcher's folder, for an app as FLARE unzips
it, and for the archive before FLARE does.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fairflare.jobs.defects import JobDefect, place_of

Kind = Literal["file", "folder", "link", "device"]

#: Most files and folders that are looked at; a job of ours has thirteen with FLARE's signatures.
MOST_ITEMS: Final = 64
#: Most bytes of an app's archive: its largest plan, its configurations and signatures, uncompressed.
MOST_ARCHIVE: Final = 2 * 2**20
_ENCRYPTED = 0x1
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Item:
    """A file or folder of a job.

    Attributes
    ----------
    path
        Relative to the job, parts separated by "/".
    kind
        What it is; a link is never followed. ``device``: a pipe, a socket, or an entry that says two things.
    size
        Bytes, as its folder or archive says.
    read
        Gives at most so many bytes; raises ``OSError`` if that fails.
    """

    path: str
    kind: Kind
    size: int
    read: Callable[[int], bytes]


def list_folder(folder: Path) -> tuple[list[Item], list[JobDefect]]:
    """Everything below ``folder``, parents first, and what stops it from being listed."""
    items: list[Item] = []
    try:
        if folder.is_symlink():
            return [], [JobDefect("FF-JOB-LINK", "?", "a link instead of a folder", "a folder")]
        for item in _walk(folder, ""):
            if len(items) == MOST_ITEMS:
                return items, [_too_many()]
            items.append(item)
    except OSError as problem:
        return items, [JobDefect("FF-JOB-READ", "?", type(problem).__name__, "a folder that can be read")]
    return items, []


def _walk(folder: Path, prefix: str) -> Iterator[Item]:
    with os.scandir(folder) as entries:
        # Not sorted before it is cut: a folder may have millions of entries.
        found = [entry for _, entry in zip(range(MOST_ITEMS + 1), entries, strict=False)]
    for entry in sorted(found, key=lambda one: one.name):
        path = prefix + entry.name
        mode = entry.stat(follow_symlinks=False)
        yield Item(path, _kind(mode.st_mode), mode.st_size, _reader(Path(entry.path)))
        if stat.S_ISDIR(mode.st_mode):
            yield from _walk(Path(entry.path), f"{path}/")


def _kind(mode: int) -> Kind:
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"


def _reader(path: Path) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        # What was a file when it was listed may be a link or a pipe now.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return file.read(most)

    return read


def list_archive(body: object) -> tuple[list[Item], list[JobDefect]]:
    """Everything in the archive that FLARE would unzip, and what is wrong with the archive itself.

    The library is the one that FLARE unzips with, and reads the same bytes: both see the same entries.
    """
    if type(body) is not bytes:
        return [], [_archive("?", f"a {type(body).__name__}", "the bytes of a zip archive")]
    if len(body) > MOST_ARCHIVE:
        return [], [JobDefect("FF-JOB-SIZE", "?", f"{len(body)} bytes", f"an archive of at most {MOST_ARCHIVE}")]
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as problem:
        return [], [_archive("?", f"bytes that are no zip archive ({type(problem).__name__})", "a zip archive")]
    if len(infos) > MOST_ITEMS:
        return [], [_too_many()]
    defects = [defect for info in infos for defect in _entry_defects(info)]
    names = [info.filename.rstrip("/") for info in infos]
    if len(set(names)) < len(names):
        defects.append(_archive("?", "two entries of one name", "each file once"))
    items = [_item(body, info) for info in infos]
    return sorted(items, key=lambda item: item.path), defects


def _entry_defects(info: zipfile.ZipInfo) -> Iterator[JobDefect]:
    name = info.orig_filename
    # The library cuts a name at a zero byte, so what is shown and what is unpacked would be two things.
    bad = name != info.filename or "\\" in name or name.startswith("/") or ":" in name
    if bad or any(part in ("", ".", "..") for part in name.rstrip("/").split("/")):
        yield _archive(place_of(name), "a name that leads out of the folder, or is no plain path", "plain paths")
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _COMPRESSIONS:
        yield _archive(place_of(name), "an entry that is encrypted, or compressed in a rare way", "a plain entry")


def _item(body: bytes, info: zipfile.ZipInfo) -> Item:
    # An archive without Unix modes has zero there: then only the trailing "/" tells folders from files.
    mode = info.external_attr >> 16
    is_folder = info.filename.endswith("/")  # as the library tells them apart, which an empty name would break
    kind = _kind(mode) if stat.S_IFMT(mode) else "folder" if is_folder else "file"
    if (kind == "folder") != is_folder:
        kind = "device"

    def read(most: int) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(body)) as archive, archive.open(info) as entry:
                return entry.read(most)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error) as problem:
            raise OSError(errno.EINVAL, type(problem).__name__) from None

    return Item(info.filename.rstrip("/"), kind, info.file_size, read)


def _too_many() -> JobDefect:
    return JobDefect("FF-JOB-SIZE", "?", f"more than {MOST_ITEMS} files and folders", "the files of one job")


def _archive(place: str, got: str, expected: str) -> JobDefect:
    return JobDefect("FF-JOB-ARCHIVE", place, got, expected)


__all__ = ["MOST_ARCHIVE", "MOST_ITEMS", "Item", "Kind", "list_archive", "list_folder"]
