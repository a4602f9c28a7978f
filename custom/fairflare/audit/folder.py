# SPDX-License-Identifier: Apache-2.0
"""A folder as evidence: listed without following links, read with limits, and each file that was read has its digest.

A broken, huge or unreadable file is evidence as well: it becomes a :class:`Problem`, never an exception. What comes
from such a folder may be hostile, so names and values are shown only if they are plain (:func:`plain_name`,
:func:`shown`); nothing that could be a path of this machine is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

#: Largest file that is read. FLARE's and our own configuration files are a hundred times smaller.
MOST_BYTES = 2**20
#: Most bytes of all files together: a hostile job may have thousands of files.
MOST_BYTES_IN_ALL = 16 * 2**20
#: Most entries of a folder that are listed, and how deep: a start-up kit has some thirty, on two levels.
MOST_ENTRIES = 5_000
MOST_DEPTH = 16
#: Most entries among which a file is searched by its name: a kit that works has a folder for each job that it ran.
MOST_NAMES = 200_000

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}|\.[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,126}")
_VALUE = re.compile(r"[A-Za-z0-9_.:@+<>=*,;()' -]{0,100}")


@dataclass(frozen=True)
class Entry:
    """What one name in a folder is: ``kind`` is ``file``, ``folder``, ``link`` or ``other``; ``mode`` its bits."""

    kind: str
    mode: int
    owner: int
    size: int


@dataclass(frozen=True)
class Problem:
    """Why a piece of evidence could not be used; ``absent``: it is simply not there."""

    text: str
    absent: bool = False


class Folder:
    """A folder's names, and the content of those files that a rule asks for."""

    def __init__(self, root: Path, parts: tuple[str, ...] | None = None) -> None:
        """List ``root``: all of it, or only what stands directly in it and in the sub-folders ``parts``."""
        self._root = os.path.realpath(root)
        self._parts = parts
        self._entries: dict[str, Entry] = {}
        self._problems: list[tuple[str, Problem]] = []
        self._read: dict[str, bytes | Problem] = {}
        self._total = 0
        self._list("", 0)
        self._entries = dict(sorted(self._entries.items()))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Relative path (with ``/``) -> what it is, sorted by path."""
        return MappingProxyType(self._entries)

    @property
    def problems(self) -> Iterator[tuple[str, Problem]]:
        """What could not be listed, or was asked for and could not be read although it is there."""
        yield from self._problems
        told = {name for name, _ in self._problems}
        for name, found in self._read.items():
            if isinstance(found, Problem) and not found.absent and name not in told:
                yield name, found

    @property
    def digests(self) -> dict[str, tuple[str, int]]:
        """Relative path -> SHA-256 (hex) and number of bytes of each file that was read."""
        done = {name: found for name, found in self._read.items() if isinstance(found, bytes)}
        return {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(done.items())}

    @property
    def owner(self) -> int:
        """User number of the folder's owner."""
        return os.stat(self._root).st_uid

    @property
    def mode(self) -> int:
        """Access rights of the folder itself."""
        return stat.S_IMODE(os.stat(self._root).st_mode)

    def files(self, *folders: str) -> list[str]:
        """Paths of all files (and links) below the named folders."""
        starts = tuple(f"{name}/" for name in folders)
        return [name for name, entry in self.entries.items() if name.startswith(starts) and entry.kind != "folder"]

    def named(self, is_meant: Callable[[str], bool]) -> tuple[list[str], bool]:
        """Paths of all files of a meant name, also below folders that are not listed; and whether all were seen."""
        found: list[str] = []
        errors: list[OSError] = []
        seen = 0
        for folder, folders, files in os.walk(self._root, onerror=errors.append):
            seen += len(folders) + len(files)
            if seen > MOST_NAMES:
                return sorted(found), False
            found += [os.path.relpath(os.path.join(folder, name), self._root) for name in files if is_meant(name)]
        return sorted(found), not errors

    def is_same(self, name: str, other: str) -> bool:
        """Whether two names in this folder are one file, links followed."""
        paths = [os.path.join(self._root, one) for one in (name, other)]
        return os.path.realpath(paths[0]) == os.path.realpath(paths[1])

    def content(self, name: str) -> bytes | Problem:
        """Content of a file, read once."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def json(self, name: str) -> Any | Problem:
        """Value of a JSON file; a key that is written twice is a problem: which one counts is a matter of taste."""
        data = self.content(name)
        if isinstance(data, Problem):
            return data
        try:
            return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError:
            return Problem("is no UTF-8 text")
        except (ValueError, RecursionError) as problem:
            line = getattr(problem, "lineno", None)
            return Problem("is no JSON that every reader understands alike" + (f" (line {line})" if line else ""))

    def _list(self, below: str, depth: int) -> None:
        try:
            with os.scandir(os.path.join(self._root, below)) as found:
                names = sorted(entry.name for entry in found)
        except OSError as problem:
            self._problems.append((below or ".", Problem(f"cannot be listed ({type(problem).__name__})")))
            return
        for name in names:
            if len(self._entries) >= MOST_ENTRIES:
                self._problems.append(
                    (below or ".", Problem(f"has more than {MOST_ENTRIES} entries; the rest is unseen"))
                )
                return
            self._take(f"{below}/{name}" if below else name, depth)

    def _take(self, name: str, depth: int) -> None:
        try:
            entry = self._stat(name)
        except OSError as problem:
            self._problems.append((name, Problem(f"cannot be looked at ({type(problem).__name__})")))
            return
        self._entries[name] = entry
        if entry.kind == "other" or (entry.kind == "link" and not self._inside(os.path.join(self._root, name))):
            text = "neither a file nor a folder" if entry.kind == "other" else "a link that leads out of the folder"
            self._problems.append((name, Problem(f"is {text}")))
        if entry.kind != "folder" or (self._parts is not None and depth == 0 and name not in self._parts):
            return
        if depth >= MOST_DEPTH:
            self._problems.append((name, Problem(f"is more than {MOST_DEPTH} folders deep; the rest is unseen")))
            return
        self._list(name, depth + 1)

    def _stat(self, name: str) -> Entry:
        path = os.path.join(self._root, name)
        found = os.lstat(path)
        # FLARE's start script can run a kit through links from its workspace to the kit inside it.
        if stat.S_ISLNK(found.st_mode) and name in (self._parts or ()) and self._inside(path) and os.path.isdir(path):
            found = os.stat(path)
        kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
        kind = next((word for test, word in kinds if test(found.st_mode)), "other")
        return Entry(kind, stat.S_IMODE(found.st_mode), found.st_uid, found.st_size)

    def _inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _load(self, name: str) -> bytes | Problem:
        path = os.path.join(self._root, name)
        if not os.path.lexists(path):
            return Problem("is not there", absent=True)
        if self._total > MOST_BYTES_IN_ALL:
            return Problem("was not read: there is too much beside it")
        if not self._inside(path):
            return Problem("is a link that leads out of the folder")
        try:
            # Without waiting: opening a pipe would. Without a link as the last step: it may have come since.
            handle = os.open(os.path.realpath(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    return Problem("is no file")
                data = file.read(MOST_BYTES + 1)
        except OSError as problem:
            return Problem(f"cannot be read ({type(problem).__name__})")
        self._total += len(data)
        if len(data) > MOST_BYTES:
            return Problem(f"has more than {MOST_BYTES} bytes")
        return data


def plain_name(name: str) -> str:
    """``name``, a relative path, if each part is a plain name; each part that is not is shown as ``?``."""
    return "/".join(part if _NAME.fullmatch(part) else "?" for part in name.split("/"))


def shown(value: object) -> str:
    """A value of a file as a report may show it: numbers, and short plain texts that are no path."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else ""
        return text or "a huge number"
    if isinstance(value, str):
        return f"'{value}'" if _VALUE.fullmatch(value) else f"a text of {len(value)} characters"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"an object of {len(value)} keys" if isinstance(value, Mapping) else "something else"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result
