# SPDX-License-Identifier: Apache-2.0
"""Archives of an app as only a server can send them to a site; whoever submits a folder has FLARE make the archive."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes

_PLAN = "config/plan.json"


@dataclass(frozen=True)
class HostileArchive:
    """A good app's archive with one thing spoilt; ``flare``: FLARE's words where it refuses to unzip it."""

    spoil: Callable[[bytes], object]
    code: str
    flare: str | None = None


def archive_of(app: Path) -> bytes:
    """The archive of an app's folder, as FLARE's server makes it."""
    return bytes(zip_directory_to_bytes(str(app), ""))


def _with(change: Callable[[zipfile.ZipFile], None]) -> Callable[[bytes], bytes]:
    def spoil(good: bytes) -> bytes:
        file = io.BytesIO(good)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a name is there twice is the point
            with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
                change(archive)
        return file.getvalue()

    return spoil


def _adding(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[bytes], bytes]:
    def change(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)

    return _with(change)


def _many(archive: zipfile.ZipFile) -> None:
    for at in range(20_000):
        archive.writestr(f"config/{at}", b"")


def _without_plan(good: bytes) -> zipfile.ZipFile:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if info.filename != _PLAN:
                new.writestr(info, old.read(info))
    return zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED)


def _bomb(good: bytes) -> bytes:
    with _without_plan(good) as archive:
        archive.writestr(_PLAN, b" " * 500_000_000)
        file = archive.fp
    return file.getvalue()


def _lying_bomb(good: bytes) -> bytes:
    """A plan of 50 MB that its entries say has 100 bytes."""
    with _without_plan(good) as archive:
        archive.writestr(_PLAN, b" " * 50_000_000)
        file = archive.fp
    return file.getvalue().replace(struct.pack("<L", 50_000_000), struct.pack("<L", 100))


def _two_things(good: bytes) -> bytes:
    """The plan under a folder's name with a file's mode: its content is a good plan, and unpacked it is a folder."""
    with zipfile.ZipFile(io.BytesIO(good)) as old, _without_plan(good) as archive:
        info = zipfile.ZipInfo(f"{_PLAN}/")
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        archive.writestr(info, old.read(_PLAN))
        file = archive.fp
    return file.getvalue()


def _encrypted(good: bytes) -> bytes:
    """The flag of encryption in every entry of the directory."""
    data, at = bytearray(good), 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 8] |= 1
        at += 4
    return bytes(data)


def _broken(good: bytes) -> bytes:
    at = good.index(b'"format": "fairflare/plan/1"')
    return good[:at] + b'"format": "fairflare/plan/2"' + good[at + 28 :]


def _rare(archive: zipfile.ZipFile) -> None:
    archive.writestr("config/x", b"x" * 100, compress_type=zipfile.ZIP_LZMA)


_LINK = stat.S_IFLNK | 0o777
ARCHIVES: dict[str, HostileArchive] = {
    "name that climbs": HostileArchive(_adding("../../local/site_policy.json"), "FF-JOB-ARCHIVE", "unsafe '..'"),
    "name that climbs inside": HostileArchive(_adding("config/../../x"), "FF-JOB-ARCHIVE", "unsafe '..'"),
    "absolute name": HostileArchive(_adding("/opt/evil"), "FF-JOB-ARCHIVE", "unsafe absolute path"),
    "name with backslashes": HostileArchive(_adding("config\\..\\x"), "FF-JOB-ARCHIVE", "unsafe '..'"),
    "name of a drive": HostileArchive(_adding("c:evil"), "FF-JOB-ARCHIVE"),
    "name with an empty part": HostileArchive(_adding("config//plan.json"), "FF-JOB-ARCHIVE"),
    "name with a dot": HostileArchive(_adding("config/./plan.json"), "FF-JOB-ARCHIVE"),
    "name of nothing": HostileArchive(
        lambda good: good.replace(b"config/plan.json", b"\0onfig/plan.json"), "FF-JOB-ARCHIVE", "out of range"
    ),
    "same name twice": HostileArchive(_adding(_PLAN, b"{}"), "FF-JOB-ARCHIVE"),
    "same name as a folder": HostileArchive(_adding(f"{_PLAN}/"), "FF-JOB-ARCHIVE", "File exists"),
    "link": HostileArchive(_adding("config/x", b"/etc/passwd", _LINK), "FF-JOB-LINK", "unsafe symlink"),
    "link in the place of a file": HostileArchive(
        _adding(".__nvfl_sig.json", b"/etc/passwd", _LINK), "FF-JOB-LINK", "unsafe symlink"
    ),
    "device": HostileArchive(_adding("config/x", b"", stat.S_IFCHR | 0o666), "FF-JOB-FILE"),
    "folder that says it is a file": HostileArchive(_two_things, "FF-JOB-FILE"),
    "code": HostileArchive(_adding("custom/evil.py"), "FF-JOB-CODE"),
    "many entries": HostileArchive(_with(_many), "FF-JOB-SIZE"),
    "bomb": HostileArchive(_bomb, "FF-JOB-SIZE"),
    "bomb that lies about its size": HostileArchive(_lying_bomb, "FF-JOB-READ", "CRC"),
    "encrypted": HostileArchive(_encrypted, "FF-JOB-ARCHIVE", "encrypted"),
    "rare compression": HostileArchive(_with(_rare), "FF-JOB-ARCHIVE"),
    "bytes changed on the way": HostileArchive(_broken, "FF-JOB-READ", "CRC"),
    "cut off": HostileArchive(lambda good: good[: len(good) // 2], "FF-JOB-ARCHIVE", "not a zip file"),
    "no archive": HostileArchive(lambda good: b"hello", "FF-JOB-ARCHIVE", "not a zip file"),
    "nothing": HostileArchive(lambda good: b"", "FF-JOB-ARCHIVE", "not a zip file"),
    "a path": HostileArchive(lambda good: "/etc/passwd", "FF-JOB-ARCHIVE", "bytes-like"),
    "large": HostileArchive(lambda good: b"x" * 3_000_000 + good, "FF-JOB-SIZE"),
}
