# SPDX-License-Identifier: Apache-2.0
"""What a site keeps of private training: the ledger of each data set, and the records of runs that ended.

A ledger is copied and the copy is read: an audit changes nothing, neither rights nor files beside it. While a job pays,
the file is not whole; the audit waits a moment for it, as jobs wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairflare.audit.evidence import Kit
from fairflare.audit.folder import Problem, plain_name
from fairflare.audit.rule import Doubt
from fairflare.errors import FairFlareError, LedgerError
from fairflare.policy import CATALOG_NAME, SitePolicy, read_catalog
from fairflare.privacy.anchor import ANCHORS, ledger_anchor
from fairflare.privacy.ledger import Entry, Ledger
from fairflare.record import RunRecord, read_record

_DATA_SET: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ANCHOR: Final = "ledger-"
_LEDGER, _RECORD = "ledger.sqlite", "record.json"
#: Folders in which a site keeps the record of a job, from the job's own on.
_OF_JOB: Final = ("fairflare", "models", _RECORD)
#: Largest ledger and record that are read: a ledger has some 500 bytes for each release.
MOST_BYTES: Final = 256 * 2**20
_PATIENCE, _PAUSE = 3.0, 0.05


@dataclass(frozen=True)
class Account:
    """A data set's ledger: its releases; or the code of what is wrong with it; or why it could not be looked at."""

    data_set: str
    entries: tuple[Entry, ...] = ()
    broken: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Ended:
    """A run that ended with results at this site: FLARE's name of the job, and its record."""

    job: str
    record: RunRecord


def accounts(kit: Kit, policy: SitePolicy) -> Iterator[Account]:
    """Each ledger that the site has, or that its kit knows of; none where nothing private was ever released."""
    for name in sorted(_data_sets(kit, policy)):
        known = (kit.root / ANCHORS / f"{_ANCHOR}{name}", Path(policy.store) / name / _LEDGER)
        if not any(map(os.path.lexists, known)):
            continue
        try:
            file = policy.ledger_file(None, name, kit.root)
        except FairFlareError as problem:
            yield Account(name, doubt=f"the policy's store is refused ({problem.code})")
            continue
        yield _account(name, file, kit.root)


def ended(kit: Kit) -> Iterator[Ended | Doubt]:
    """The record of each run that ended at this site; a doubt for what cannot be read."""
    names, complete = kit.folder.named(lambda name: name == _RECORD)
    if not complete:
        yield Doubt(".", "not every folder could be searched for records of runs")
    for name in names:
        parts = Path(name).parts
        if parts[-3:] != _OF_JOB or len(parts) != len(_OF_JOB) + 1:
            continue
        place, file = plain_name(name), kit.root / name
        try:
            if not _is_file(file):
                yield Doubt(place, "is no file, or too large")
                continue
            yield Ended(parts[0], read_record(file))
        except (FairFlareError, OSError) as problem:
            yield Doubt(place, f"the record cannot be read ({getattr(problem, 'code', type(problem).__name__)})")


def _data_sets(kit: Kit, policy: SitePolicy) -> set[str]:
    """Names of the catalogue, of the kit's anchors, and of the store's folders."""
    found: set[str] = set()
    if not isinstance(kit.folder.content(f"local/{CATALOG_NAME}"), Problem):
        with suppress(FairFlareError):  # another rule speaks of a broken one
            found |= set(read_catalog(kit.root / "local" / CATALOG_NAME).data_sets or ())
    with suppress(OSError):
        names = (one.name for one in os.scandir(kit.root / ANCHORS))
        found |= {name.removeprefix(_ANCHOR) for name in names if name.startswith(_ANCHOR)}
    with suppress(OSError):
        found |= {one.name for one in os.scandir(policy.store) if os.path.lexists(Path(one.path) / _LEDGER)}
    return {name for name in found if _DATA_SET.fullmatch(name)}


def _account(name: str, file: Path, kit: Path) -> Account:
    with ExitStack() as stack:
        try:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / _LEDGER
            if os.path.lexists(file):
                if not _is_file(file):
                    return Account(name, doubt="the ledger is no file, or too large")
                if not _held(file.with_name(f"{_LEDGER}.lock"), stack):
                    return Account(name, doubt="a job pays from the ledger all the time; audit again when it has ended")
                for ending in ("", "-journal"):  # a journal that a dead job left is a part of the file
                    with suppress(FileNotFoundError):
                        shutil.copyfile(f"{file}{ending}", f"{copy}{ending}", follow_symlinks=False)
            return Account(name, Ledger(copy, ledger_anchor(kit, name), patience=0.0).entries())
        except LedgerError as problem:
            return Account(name, broken=problem.code)
        except OSError as problem:
            return Account(name, doubt=f"the ledger cannot be read ({type(problem).__name__})")


def _held(lock: Path, stack: ExitStack) -> bool:
    """Keep jobs out while the ledger is copied; without a lock's file nobody can be in."""
    try:
        opened = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    stack.callback(os.close, opened)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_PAUSE)


def _is_file(file: Path) -> bool:
    found = os.lstat(file)
    return stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES


__all__ = ["MOST_BYTES", "Account", "Ended", "accounts", "ended"]
