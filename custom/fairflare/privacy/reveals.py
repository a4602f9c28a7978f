# SPDX-License-Identifier: Apache-2.0
"""A site's memory of every step of secure aggregation: what once left the site is never asked out a second time.

The masks protect one sum. Two sums over nearly the same sites, or the same sum twice, can give one site away by
subtraction, so the site remembers, per data set and over all jobs, and it writes down each step *before* the first
byte of it leaves. Nothing is ever changed or deleted: an aborted step stays used, because an opening may have been
withheld from the site.

The events stand in an :class:`EventChain`, which finds changes of its file. That it is a copy of an older one is told
by its anchor, which stands elsewhere, and by the peers: they remember the head that the site last announced
(:meth:`RevealMemory.has`), and how much it has signed since (:meth:`RevealMemory.remember_active`).
"""

from __future__ import annotations

import json
import sqlite3
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar, cast

from fairflare.errors import SecaggError
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.chain import EMPTY, EventChain, Head
from fairflare.secagg.memory import Transition

#: States of a step, in order. A closed step ends with UPLOADED, which counts as revealed.
STARTED: Final = "STARTED"
UPLOADED: Final = "UPLOADED"
SIGNED: Final = "SIGNED"
REVEALED: Final = "REVEALED"
CLOSED: Final = "closed"
OPEN: Final = "open"

_ORDER = {CLOSED: (STARTED, UPLOADED), OPEN: (STARTED, UPLOADED, SIGNED, REVEALED)}
_SESSION, _PEER, _LEAST = "SESSION", "PEER", "LEAST"
_WORD = 2**64
_LONGEST_TEXT = 256
_K = TypeVar("_K")
_V = TypeVar("_V")
_Query = tuple[str, int, str]


@dataclass
class _Known:
    """What the events add up to, and the rules. A refusal changes nothing."""

    sessions: dict[bytes, str] = field(default_factory=dict)  # T and its plan
    live: bytes | None = None
    last_step: int = -1
    steps: MutableMapping[int, Transition] = field(default_factory=dict)  # of the live session: where each stands
    uploaded: MutableMapping[_Query, bytes] = field(default_factory=dict)  # and in which session
    cohorts: frozenset[bytes] = frozenset()  # of closed steps, whatever their labels
    peers: dict[str, Head] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)  # events that peers have at least, whatever they announced

    def check_new(self, session: bytes) -> None:
        if session in self.sessions:
            _refuse("REPLAY", "a session that this site has joined before", "a session with a fresh nonce of this site")

    def begin(self, session: bytes, plan: str) -> None:
        self.sessions[session] = plan
        self.live, self.last_step, self.steps = session, -1, {}

    def draft(self) -> _Known:
        """A copy to try transitions on; it shares what it does not change."""
        return replace(
            self,
            steps=ChainMap({}, self.steps),
            uploaded=ChainMap({}, self.uploaded),
        )

    def adopt(self, draft: _Known) -> None:
        """Make a draft's changes one's own."""
        self.last_step = draft.last_step
        self.steps.update(_changes(draft.steps))
        self.uploaded.update(_changes(draft.uploaded))
        self.cohorts = draft.cohorts

    def advance(self, to: Transition) -> None:
        if self.live is None or to.session != self.live or to.plan_sha256 != self.sessions[self.live]:
            _refuse("SESSION", "a step of another session, plan or start of the program", "a step of the live session")
        self._check_order(to)
        if to.state in (STARTED, UPLOADED) and to.query in self.uploaded:
            _refuse("REUSED", f"a second step for {_asked(to)}", "each vector to leave the site once, failed or not")
        if to.state == UPLOADED:
            if to.mode == CLOSED:
                self._meet(to)
            self.uploaded[to.query] = to.session
        self.steps[to.step] = to
        self.last_step = max(self.last_step, to.step)

    def _check_order(self, to: Transition) -> None:
        before = self.steps.get(to.step)
        order = _ORDER[to.mode]
        expected: str | None = STARTED
        if before is not None:
            same = (before.query, before.mode) == (to.query, to.mode)
            expected = dict(pairwise(order)).get(before.state) if same else None
        if to.state != expected:
            _refuse("STATE", f"{to.state} for {_asked(to)}, out of order", f"the states {', '.join(order)}, each once")
        if to.state == STARTED and to.step <= self.last_step:
            _refuse("STEP", f"step {to.step} after step {self.last_step}", "step numbers that only grow")

    def _meet(self, to: Transition) -> None:
        # Whatever the label: counts of one cohort and another statistic of the next one can be subtracted as well.
        cohorts = self.cohorts | {to.cohort}
        if to.cohort not in self.cohorts and len(cohorts) - 1 > to.cohort_changes:
            _refuse(
                "COHORT",
                f"statistic {to.label!r} for cohort number {len(cohorts)}",
                f"the sites that got statistics before; the policy allows {to.cohort_changes} other cohorts",
            )
        self.cohorts = cohorts

    def news(self, heads: Mapping[str, Head]) -> dict[str, Head]:
        """The heads that are not known yet; refuses one that went back."""
        for name, head in heads.items():
            seq, known = self.peers.get(name, EMPTY)
            least = max(seq, self.least.get(name, 0))
            if head[0] < least or (head[0] == seq and head[1] != known):
                site = name.rpartition("/")[2]
                _refuse(
                    "ROLLBACK",
                    f"from site {site!r} a memory of {head[0]} events, where it had {least} before, or others",
                    "a memory that only grows",
                )
        return {name: head for name, head in heads.items() if self.peers.get(name) != head}

    def replay(self, event: Mapping[str, Any]) -> None:
        """Apply an event from the file, under the same rules."""
        kind = event["kind"]
        if kind == _SESSION:
            session = bytes.fromhex(event["session"])
            self.check_new(session)
            self.begin(session, event["plan"])
        elif kind == _PEER:
            self.peers.update(self.news({name: (seq, bytes.fromhex(head)) for name, (seq, head) in event["heads"]}))
        elif kind == _LEAST:
            self.least.update(event["events"])
        else:
            self.advance(_transition(event))


class RevealMemory:
    """The memory of one data set; one object at a time holds it, and it survives restarts.

    Parameters
    ----------
    path
        The SQLite file. Made if it is absent (mode 0600, new folders 0700). A file ``<path>.lock`` stands beside it.
    anchor
        Where its newest event's hash is kept apart from it; None: nowhere.
    project
        Of which project peers' names are, ended by "/": another one's may mean other hospitals. "": there is one only.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-BUSY``: another object or process holds it. ``FF-SECAGG-MEMORY``: unreadable, or changed.
        ``FF-SECAGG-ROLLBACK``: older than its anchor.
        Every method raises ``FF-SECAGG-MEMORY`` after close, and after any error of the disk: then the event counts
        as written, and nothing may leave the site.
    """

    def __init__(self, path: Path, anchor: Anchor | None = None, project: str = "") -> None:
        self._open(path, anchor, project)

    @classmethod
    def volatile(cls) -> RevealMemory:
        """A memory without a file, under the same rules: for runs whose data are all in one place."""
        memory = cls.__new__(cls)
        memory._open(None)
        return memory

    def _open(self, path: Path | None, anchor: Anchor | None = None, project: str = "") -> None:
        self._project = project
        self._known = _Known()
        self._chain = EventChain(path, self._known.replay, anchor)
        self._known.live = None  # a session does not survive the program that joined it

    def __enter__(self) -> RevealMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory free; a second call does nothing."""
        self._chain.close()

    @property
    def head(self) -> tuple[int, bytes]:
        """The number of events and the last one's hash (32 bytes); (0, 32 zero bytes) when there is none."""
        with self._chain.mine():
            return self._chain.head

    def has(self, seq: int, head: bytes) -> bool:
        """Whether event ``seq`` of this memory has the hash ``head``; (0, 32 zero bytes) always is.

        A peer that saw a head which is not here saw a newer memory: this one was set back.
        """
        with self._chain.mine():
            return self._chain.has(seq, head)

    def begin(self, session: bytes, plan_sha256: str, roster_digest: bytes) -> None:
        """Join session T (32 bytes) of a plan, with a roster (digest, 32 bytes). Earlier sessions are closed for ever.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-REPLAY``: T was joined before. ``FF-SECAGG-FORM``, ``FF-SECAGG-MEMORY``.
        """
        _check_form(_is_digest(session), _is_text(plan_sha256), _is_digest(roster_digest))
        with self._chain.mine():
            self._known.check_new(session)
            event = {"kind": _SESSION, "session": session.hex(), "plan": plan_sha256, "roster": roster_digest.hex()}
            with self._chain.written([event]):
                self._known.begin(session, plan_sha256)

    def commit(self, transitions: Sequence[Transition]) -> None:
        """Write down all ``transitions`` in one transaction, on disk when this returns; a refusal writes nothing.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-SESSION``: not the session that this object began last, or not its plan. ``FF-SECAGG-STATE``:
            out of order. ``FF-SECAGG-STEP``: a step number that does not grow. ``FF-SECAGG-REUSED``: this plan's
            vector of this round has left before. ``FF-SECAGG-COHORT``: an exact query for other sites.
            ``FF-SECAGG-FORM``, ``FF-SECAGG-MEMORY``.
        """
        for transition in transitions:
            _check_transition(transition)
        with self._chain.mine():
            draft = self._known.draft()
            for transition in transitions:
                draft.advance(transition)
            with self._chain.written([_event(transition) for transition in transitions]):
                self._known.adopt(draft)

    def peer(self, name: str) -> tuple[int, bytes] | None:
        """The last head seen of a peer, None if none was."""
        with self._chain.mine():
            return self._known.peers.get(self._project + name)

    @property
    def peers(self) -> tuple[str, ...]:
        """Every peer whose head was seen, sorted."""
        with self._chain.mine():
            mine = [name for name in self._known.peers if name.startswith(self._project)]
            return tuple(sorted(name.removeprefix(self._project) for name in mine))

    def remember_peers(self, heads: Mapping[str, tuple[int, bytes]]) -> None:
        """Keep the heads that peers announced: name, number of events, hash (32 bytes). All of them or none.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-ROLLBACK``: fewer events than before, or as many but others. ``FF-SECAGG-FORM``,
            ``FF-SECAGG-MEMORY``.
        """
        for name, (seq, head) in heads.items():
            _check_form(_is_text(name), _is_word(seq), _is_digest(head), seq > 0 or (seq, head) == EMPTY)
        heads = {self._project + name: head for name, head in heads.items()}
        with self._chain.mine():
            news = self._known.news(heads)
            if not news:
                return
            event = {"kind": _PEER, "heads": [(name, (seq, head.hex())) for name, (seq, head) in sorted(news.items())]}
            with self._chain.written([event]):
                self._known.peers.update(news)

    def remember_active(self, least: Mapping[str, int]) -> None:
        """Keep how many events peers' memories have at least; fewer than are known already change nothing.

        Raises
        ------
        SecaggError
            ``FF-SECAGG-FORM``, ``FF-SECAGG-MEMORY``.
        """
        _check_form(*(_is_text(name) and _is_word(seq) for name, seq in least.items()))
        least = {self._project + name: seq for name, seq in least.items()}
        with self._chain.mine():
            more = {name: seq for name, seq in sorted(least.items()) if seq > self._known.least.get(name, 0)}
            if more:
                with self._chain.written([{"kind": _LEAST, "events": more}]):
                    self._known.least.update(more)


def has_sent(path: Path, plan_sha256: str) -> bool:
    """Whether a memory's file, if there is one, says that vectors of a plan have left; nothing is written or held.

    Raises
    ------
    SecaggError
        ``FF-SECAGG-MEMORY``: unreadable. Its chain is not verified: that is for whoever uses it.
    """
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            events = [json.loads(event) for (event,) in connection.execute("SELECT event FROM events")]
            return any((one["kind"], one.get("plan")) == (UPLOADED, plan_sha256) for one in events)
    except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError):
        raise SecaggError(
            "FF-SECAGG-MEMORY",
            got="a memory of reveals that cannot be read",
            expected="the file as this site wrote it",
            next_step="check the disk and the file's access rights; no job with masks runs without it",
        ) from None


def _changes(draft: MutableMapping[_K, _V]) -> Mapping[_K, _V]:
    """What was written to a draft's mapping: copying all of it would take time that grows with the memory."""
    return cast("ChainMap[_K, _V]", draft).maps[0]


def _event(transition: Transition) -> dict[str, Any]:
    return {
        "kind": transition.state,
        "session": transition.session.hex(),
        "step": transition.step,
        "plan": transition.plan_sha256,
        "round": transition.round,
        "label": transition.label,
        "mode": transition.mode,
        "cohort": transition.cohort.hex(),
        "digest": transition.digest.hex(),
        "cohort_changes": transition.cohort_changes,
    }


def _transition(event: Mapping[str, Any]) -> Transition:
    return Transition(
        state=event["kind"],
        session=bytes.fromhex(event["session"]),
        step=event["step"],
        plan_sha256=event["plan"],
        round=event["round"],
        label=event["label"],
        mode=event["mode"],
        cohort=bytes.fromhex(event["cohort"]),
        digest=bytes.fromhex(event["digest"]),
        cohort_changes=event["cohort_changes"],
    )


def _check_transition(to: Transition) -> None:
    _check_form(
        to.mode in _ORDER,
        to.state in _ORDER[OPEN],
        *(_is_digest(value) for value in (to.session, to.cohort, to.digest)),
        *(_is_word(value) for value in (to.step, to.round, to.cohort_changes)),
        *(_is_text(value) for value in (to.plan_sha256, to.label)),
    )


def _is_digest(value: object) -> bool:
    return type(value) is bytes and len(value) == 32


def _is_word(value: object) -> bool:
    return type(value) is int and 0 <= value < _WORD


def _is_text(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= _LONGEST_TEXT


def _check_form(*good: bool) -> None:
    if not all(good):
        _refuse("FORM", "an event that does not have its form", "32-byte digests, 64-bit numbers, texts, known states")


def _asked(to: Transition) -> str:
    return f"{to.label!r} of round {to.round}"


def _refuse(code: str, got: str, expected: str) -> NoReturn:
    raise SecaggError(
        f"FF-SECAGG-{code}",
        got=got,
        expected=expected,
        next_step="nothing left this site; ask who runs the server why it asks for this, before any new run",
    )
