# SPDX-License-Identifier: Apache-2.0
"""Which package is installed: one number over its files, the same for a wheel and for what an installer made of it.

It is the SHA-256 of a list, one line for each file, sorted by the file's path: its SHA-256 in hex, two blanks, its
path from ``fairflare/`` on. Nobody has to believe this module to compute it. In the folder that holds ``fairflare/``::

    find fairflare -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum

What a site's own package says of itself holds against accidents: another version, a file that was changed, a wheel
from elsewhere. It holds against nobody who may write the package's files: theirs need not ask, and Python may run a
compiled copy in ``__pycache__`` whose source is the old one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NoReturn

from fairflare.errors import PolicyError

#: The folder of the package that this process imported.
PACKAGE: Final = Path(__file__).resolve().parents[1]
_NAME: Final = "fairflare"
#: Compiled copies that Python writes beside the sources, at any time.
_CACHE: Final = "__pycache__"
#: Where a wheel keeps what pip puts elsewhere than into the package's folder, or only reads.
_ASIDE: Final = re.compile(rf"{_NAME}-[^/]+\.dist-info/.+")


@cache
def installed_digest() -> str:
    """The digest (hex) of the package that this process runs, read once; raises as :func:`folder_digest`."""
    return folder_digest(PACKAGE)


def folder_digest(package: Path) -> str:
    """The digest (hex) of a folder ``fairflare``, installed or a source tree.

    Raises
    ------
    PolicyError
        ``FF-POLICY-PACKAGE``: a file that cannot be read, a link to a folder, or what is no plain file.
    """
    lines = {}
    for folder, folders, names in os.walk(package, onerror=_unread):
        folders[:] = [name for name in folders if name != _CACHE]
        if any(os.path.islink(os.path.join(folder, name)) for name in folders):
            _refuse("a package with a link to another folder", "plain files and folders")
        for name in names:
            file = Path(folder, name)
            lines[f"{_NAME}/{file.relative_to(package).as_posix()}"] = _content(file)
    return _digest(lines)


def wheel_digest(wheel: Path) -> str:
    """The digest (hex) that the package of a wheel has once it is installed.

    Raises
    ------
    PolicyError
        ``FF-POLICY-PACKAGE``: no wheel of this package that can be read, or one that would install more than it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = [one.filename for one in archive.infolist() if not one.is_dir()]
            lines = {name: archive.read(name) for name in files if name.startswith(f"{_NAME}/")}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError):
        _refuse("a file that is no wheel, or a broken one", "a wheel of fairflare")
    strange = [name for name in files if name not in lines and not _ASIDE.fullmatch(name)]
    if strange or len(set(files)) != len(files) or any(part in name.split("/") for name in files for part in _BAD):
        _refuse("a wheel that would install more than the package", "one that 'make wheel' built")
    return _digest(lines)


#: What no path of a wheel of ours has among its parts; a compiled copy would be run and not be counted.
_BAD: Final = ("", ".", "..", _CACHE)


def is_editable() -> bool:
    """Whether the package is a tree of sources: then its digest changes with every edit."""
    try:
        origin = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return True  # imported from a folder that no installer knows
    try:
        return bool(json.loads(origin or "{}").get("dir_info", {}).get("editable", False))
    except (ValueError, AttributeError):
        return False


def _digest(files: dict[str, bytes]) -> str:
    if f"{_NAME}/__init__.py" not in files:
        _refuse("no package fairflare", "its folder, or its wheel")
    if not all(name.isprintable() and "\\" not in name for name in files):
        # A name with a line's end could stand for two files, and 'sha256sum' writes such a name in another way.
        _refuse("a package with a name of a file that no screen shows", "plain files and folders")
    return hashlib.sha256("".join(_lines(files)).encode()).hexdigest()


def _lines(files: dict[str, bytes]) -> Iterable[str]:
    # By bytes, as LC_ALL=C sorts, not by characters.
    for name in sorted(files, key=os.fsencode):
        yield f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n"


def _content(file: Path) -> bytes:
    try:
        if not file.is_file():  # to open a pipe could wait for ever
            _refuse("a package with what is no plain file", "plain files and folders")
        return file.read_bytes()
    except OSError as problem:
        _unread(problem)


def _unread(problem: OSError) -> NoReturn:
    del problem
    _refuse("a package of which not every file can be read", "one that FLARE's user may read")


def _refuse(got: str, expected: str) -> NoReturn:
    raise PolicyError(
        "FF-POLICY-PACKAGE",
        got=got,
        expected=expected,
        next_step="install fairflare's wheel anew, into an environment of its own",
    )
