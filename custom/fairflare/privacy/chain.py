# SPDX-License-Identifier: Apache-2.0
"""A file of events that only grows: SQLite, each event's hash over the hash before it, one holder at a time.

A change in the middle of the file is found at opening. A copy of an older file is a valid chain: its anchor tells it
(:mod:`fairflare.privacy.anchor`), or somebody who was told its head.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from fairflare.errors import SecaggError
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.disk import make_folder

#: How many events, and the hash of the last one (32 bytes).
Head = tuple[int, bytes]
#: The head of an empty chain.
EMPTY: Final[Head] = (0, bytes(32))

#: Seconds to wait for somebody who reads the file.
_PATIENCE = 5.0

_SCHEMA = {
    "events": "CREATE TABLE events (seq INTEGER PRIMARY KEY, event TEXT NOT NULL, hash BLOB NOT NULL)",
    "no_update": "CREATE TRIGGER no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END",
    "no_delete": "CREATE TRIGGER no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END",
    # INSERT OR REPLACE would delete without the trigger above.
    "no_gap": "CREATE TRIGGER no_gap BEFORE INSERT ON events"
    " WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)"
    " BEGIN SELECT RAISE(ABORT, 'append only'); END",
}


class EventChain:
    """Events in order: objects of texts, whole numbers and lists.

    Parameters
    ----------
    path
        The file; made if it is absent (mode 0600, new folders 0700), with ``<path>.lock`` beside it. None: no file.
    replay
        Called with each event that the file holds, in order; whatever it raises makes the file a damaged one.
    anchor
        Where the newest event's hash is kept apart; None: nowhere.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-BUSY``: another object or process holds the file. ``FF-SECAGG-MEMORY``: unreadable, or changed.
        ``FF-SECAGG-ROLLBACK``: older than its anchor.
        Every method raises ``FF-SECAGG-MEMORY`` after close and after any error of the disk.
    """

    def __init__(
        self, path: Path | None, replay: Callable[[Mapping[str, Any]], None], anchor: Anchor | None = None
    ) -> None:
        self._anchor = anchor
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._head = EMPTY
        self._usable = True
        self._release: Callable[[], object] = lambda: None
        database = ":memory:"
        if path is not None:
            database = str(path.absolute())
            self._release = weakref.finalize(self, os.close, _hold(path.absolute()))  # also if nobody closes
        try:
            self._open(database, replay)
        except BaseException:
            self._release()
            raise

    def _open(self, database: str, replay: Callable[[Mapping[str, Any]], None]) -> None:
        try:
            # Transactions are ours (isolation_level), and calls come from several threads, one at a time (the mutex).
            self._connection = sqlite3.connect(
                database, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            _refuse_memory(error)
        try:
            self._prepare(database)
            self._verify(replay)
            old = self._is_older()
        except Exception as error:  # a damaged file can break the reader anywhere
            self._connection.close()
            _refuse_memory(error)
        if old:
            self._connection.close()
            _refuse_rollback()
        self._shut = weakref.finalize(self, self._connection.close)
        self._shut.atexit = False  # a forked child that ends must not touch its parent's transaction

    def _prepare(self, database: str) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode=DELETE")  # one file, whole whenever nobody writes
        run("PRAGMA synchronous=EXTRA")  # FULL, and the journal's removal is on disk too before COMMIT returns
        run("BEGIN IMMEDIATE")
        if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if os.path.exists(database) and os.path.getsize(database):  # SQLite takes a torn first page for no page
                raise ValueError("a damaged file")
            for statement in _SCHEMA.values():
                run(statement)
        run("COMMIT")
        if dict(run("SELECT name, sql FROM sqlite_master").fetchall()) != _SCHEMA:
            raise ValueError("another schema")
        if run("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise ValueError("a damaged file")

    def _verify(self, replay: Callable[[Mapping[str, Any]], None]) -> None:
        for seq, event, found in self._connection.execute("SELECT seq, event, hash FROM events ORDER BY seq"):
            head = self._head[0] + 1, _link(self._head[1], event)
            if (seq, found) != head:
                raise ValueError("a broken chain")
            replay(json.loads(event))
            self._head = head

    def _is_older(self) -> bool:
        """Whether the file lacks the event that its anchor holds; there are few events, and this is asked once."""
        wanted = self._anchor.read() if self._anchor is not None else None
        if wanted is None:
            return False
        query = "SELECT count(*) FROM events WHERE hash = ?"
        (found,) = self._connection.execute(query, (bytes.fromhex(wanted),)).fetchone()
        return bool(found == 0)

    def close(self) -> None:
        """Give the file free; a second call does nothing."""
        with self._mutex:
            self._usable = False
            self._shut()
            self._release()

    @property
    def head(self) -> Head:
        """The newest event; call it within :meth:`mine`."""
        return self._head

    def has(self, seq: int, head: bytes) -> bool:
        """Whether event ``seq`` has the hash ``head``; call it within :meth:`mine`."""
        if not 0 < seq <= self._head[0]:
            return (seq, head) == EMPTY
        try:
            (found,) = self._connection.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
        except (sqlite3.Error, TypeError) as error:
            self._usable = False
            _refuse_memory(error)
        return bool(found == head)

    @contextmanager
    def mine(self) -> Iterator[None]:
        """One thread at a time, in the process that opened the file (a forked child shares the lock), while usable."""
        with self._mutex:
            if os.getpid() != self._process:
                _refuse_busy()
            if not self._usable:
                _refuse_memory(None)
            yield

    @contextmanager
    def written(self, events: Sequence[Mapping[str, Any]]) -> Iterator[None]:
        """Append ``events`` in one transaction, on disk before the body runs; call it within :meth:`mine`.

        Whatever interrupts either leaves the object unusable: the events count as written.
        """
        self._usable = False
        seq, last = self._head
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for event in events:
                seq += 1
                text = json.dumps({"seq": seq, **event}, sort_keys=True, separators=(",", ":"))
                last = _link(last, text)
                self._connection.execute("INSERT INTO events VALUES (?, ?, ?)", (seq, text, last))
            self._connection.execute("COMMIT")
            if self._anchor is not None:
                self._anchor.write(last.hex())
        except (sqlite3.Error, OSError) as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            _refuse_memory(error)
        yield
        self._head = seq, last
        self._usable = True


def _hold(file: Path) -> int:
    """Make the folder and the file if they are absent, and take the lock; its descriptor."""
    lock = -1
    try:
        make_folder(file.parent)
        lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(made, 0o600)
        os.close(made)
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            _refuse_busy()
        _refuse_memory(error)
    return lock


def _link(last: bytes, event: str) -> bytes:
    return hashlib.sha256(last + event.encode()).digest()


def _refuse_busy() -> NoReturn:
    raise SecaggError(
        "FF-SECAGG-BUSY",
        got="a memory of reveals that another process holds",
        expected="one process at a time for each data set",
        next_step="wait for the other job on this data set, or stop it",
    )


def _refuse_rollback() -> NoReturn:
    raise SecaggError(
        "FF-SECAGG-ROLLBACK",
        got="a memory of reveals without the last event that this site wrote into it: an older copy, or a new file",
        expected="the newest file; its last event is noted in the kit's folder 'anchors'",
        next_step="send nothing; put the newest copy back; if it is lost, agree with the other hospitals first",
    )


def _refuse_memory(cause: BaseException | None) -> NoReturn:
    raise SecaggError(
        "FF-SECAGG-MEMORY",
        got="a memory of reveals that cannot be used: closed, damaged, changed, or the disk refused it",
        expected="the file as this site wrote it, and a disk that keeps what is written",
        next_step="send nothing; check the disk; if the file is damaged, agree with the other sites before a new one",
    ) from cause
