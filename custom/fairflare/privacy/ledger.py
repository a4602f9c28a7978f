# SPDX-License-Identifier: Apache-2.0
"""A data set's privacy ledger: every private release of it, over all jobs and for ever, in one SQLite file at the site.

"Can it be afforded?" is asked, and the release written and on disk, under one lock, before its noise is drawn. So a
program that dies in between has paid for what it did not send: the ledger counts too much or exactly, never too little.
Nothing is given back, and the same round that runs again is paid again, since its noise is new.

The file is an :class:`EventChain`, opened anew for each question: jobs that run at the same time wait for each other
for as long as one question takes, and each sees what the others spent. Its anchor in the kit tells an older copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fairflare.errors import LedgerError, SecaggError
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.chain import EMPTY, EventChain, Head
from fairflare.privacy.loss import Budget, DpSgd, Gaussian, Mechanism, Relation, Release

if TYPE_CHECKING:
    from fairflare.privacy.accounting import Epsilon

_KINDS: Final[dict[str, Callable[..., Mechanism]]] = {"dpsgd": DpSgd, "gaussian": Gaussian}
_PAUSE: Final = 0.02


@dataclass(frozen=True)
class Entry:
    """A release as the ledger has it: its number from 1 on, when (UTC, ISO 8601), and the budget that allowed it.

    ``budget`` is ``None`` where the site's policy named none.
    """

    seq: int
    time: str
    release: Release
    budget: Budget | None


@dataclass(frozen=True)
class Account:
    """What one job may spend of a data set at a site: ledger, the policy's budget (``None``: no limit), its name."""

    ledger: Ledger
    budget: Budget | None
    job: str

    def pay(self, plan_sha256: str, round_: int, bill: Sequence[tuple[str, Mechanism]]) -> None:
        """Write all of ``bill`` (what, mechanism) down, or refuse all of it; as :meth:`Ledger.spend`."""
        self.ledger.spend(self.budget, *(Release(plan_sha256, self.job, round_, what, how) for what, how in bill))


class _Replay:
    """The entries of a file, as it is read."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event; whatever is raised makes the file a damaged one."""
        rest = dict(event)
        mechanism = _KINDS[rest.pop("kind")](**rest.pop("mechanism"))
        seq, when, limit = rest.pop("seq"), rest.pop("time"), rest.pop("budget")
        budget = None if limit is None else Budget(**limit)
        self.entries.append(Entry(int(seq), str(when), Release(mechanism=mechanism, **rest), budget))


class Ledger:
    """The ledger of one data set. Nothing is held between calls; threads and processes may share a file.

    Parameters
    ----------
    path
        The SQLite file, made by the first release (mode 0600, new folders 0700), with ``<path>.lock`` beside it.
    anchor
        Where its newest event's hash is kept apart from it, in the kit; None: nowhere, for simulators.
    patience
        Seconds to wait for others who ask.

    Raises
    ------
    LedgerError
        From every method. ``FF-LEDGER-BUSY``: others asked for longer than the patience. ``FF-LEDGER-DAMAGED``:
        unreadable or changed, or the disk refused it; what was being written counts as written.
        ``FF-LEDGER-ROLLBACK``: older than its anchor, or gone.
    """

    def __init__(self, path: Path, anchor: Anchor | None = None, patience: float = 120.0) -> None:
        self._path, self._anchor, self._patience = path, anchor, patience

    def spend(self, budget: Budget | None, *releases: Release) -> Epsilon | None:
        """Pay for ``releases``, all of them or none; call it before any of their noise is drawn.

        Parameters
        ----------
        budget
            What the site allows for everything; ``None``: no limit, so they are written down and not counted up.

        Returns
        -------
        Epsilon or None
            At most what everything costs from now on, at the budget's delta and relation; without a budget ``None``.

        Raises
        ------
        LedgerError
            ``FF-LEDGER-BUDGET``: it would cost more than the budget; nothing was written. ``FF-LEDGER-FORM``: nothing
            to pay for. ``FF-LEDGER-ACCOUNTING``: dp-accounting cannot be imported.
        """
        if not releases:
            _refuse("FORM", "no release", "at least one", "call this for what is to be released")
        # Once before anybody has to wait for it: what costs too much now always will, and the count is remembered.
        if budget is not None:
            _verify_affordable(self.entries(), releases, budget)
        with self._opened() as (chain, entries), chain.mine():
            after = None if budget is None else _verify_affordable(entries, releases, budget)
            with chain.written([_event(release, budget) for release in releases]):
                pass
            return after

    def entries(self) -> tuple[Entry, ...]:
        """All releases, oldest first, the chain and the anchor checked."""
        return self._read()[0]

    def head(self) -> Head:
        """The number of events and the last one's hash (32 bytes), all of it checked; nothing is written."""
        return self._read()[1]

    def epsilon(self, delta: float, relation: Relation = "add_remove", planned: Sequence[Mechanism] = ()) -> Epsilon:
        """What everything cost until now, and what is ``planned`` besides, at ``delta``; counted finely.

        Raises
        ------
        LedgerError
            ``FF-LEDGER-ACCOUNTING``: dp-accounting cannot be imported.
        """
        found = [entry.release.mechanism for entry in self.entries()]
        result: Epsilon = load_accounting().epsilon([*found, *planned], delta, relation)
        return result

    def _read(self) -> tuple[tuple[Entry, ...], Head]:
        if not self._path.exists():
            self._verify_new()
            return (), EMPTY
        with self._opened() as (chain, entries), chain.mine():
            return tuple(entries), chain.head

    def _verify_new(self) -> None:
        """A file that is gone is not made anew: a copy of it could not be put back then."""
        try:
            known = self._anchor.read() if self._anchor is not None else None
        except OSError:
            _refuse_as("MEMORY")
        if known is not None and not self._path.exists():
            _refuse_as("ROLLBACK")

    @contextmanager
    def _opened(self) -> Iterator[tuple[EventChain, list[Entry]]]:
        until = time.monotonic() + self._patience
        self._verify_new()
        while True:
            found = _Replay()
            try:
                chain = EventChain(self._path, found.add, self._anchor)
                break
            except SecaggError as problem:
                kind = problem.code.rpartition("-")[2]
                if kind != "BUSY" or time.monotonic() > until:
                    _refuse_as(kind)
            time.sleep(_PAUSE)
        try:
            yield chain, found.entries
        except SecaggError as problem:
            _refuse_as(problem.code.rpartition("-")[2])
        finally:
            chain.close()


def _verify_affordable(entries: Sequence[Entry], releases: Sequence[Release], budget: Budget) -> Epsilon:
    accounting = load_accounting()
    all_ = [*(entry.release.mechanism for entry in entries), *(release.mechanism for release in releases)]
    # Neither figure is ever too small, so the quick one may say yes.
    for interval in (accounting.COARSE, accounting.FINE):
        after: Epsilon = accounting.epsilon(all_, budget.delta, budget.relation, interval=interval)
        if after.value <= budget.epsilon:
            return after
    _refuse(
        "BUDGET",
        "a release that this data set's privacy budget does not cover",
        "all releases of the data set together within the site policy's epsilon and delta",
        "nothing was spent; 'fairflare ledger forecast' says what is left; more noise or fewer rounds cost less",
    )


def load_accounting() -> Any:
    """The module that counts, or ``FF-LEDGER-ACCOUNTING``: a site that cannot count spends nothing."""
    try:
        from fairflare.privacy import accounting
    except ImportError:
        _refuse(
            "ACCOUNTING",
            "an environment without the package dp-accounting",
            "dp-accounting, which counts privacy losses",
            "install FairFlare with its dependencies: pip install dp-accounting",
        )
    return accounting


def _event(release: Release, budget: Budget | None) -> dict[str, Any]:
    kind = "dpsgd" if isinstance(release.mechanism, DpSgd) else "gaussian"
    named = {name: value for name, value in asdict(release).items() if name != "mechanism"}
    now = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
    return {
        "kind": kind,
        "time": now,
        **named,
        "mechanism": asdict(release.mechanism),
        "budget": None if budget is None else asdict(budget),
    }


_WORDS: Final = {
    "BUSY": (
        "BUSY",
        "a ledger that other jobs use without a pause",
        "a ledger that is free within the time that this site waits",
        "nothing was spent; wait for the other jobs on this data set, or stop one that hangs",
    ),
    "ROLLBACK": (
        "ROLLBACK",
        "a privacy ledger without the last release that this site wrote into it: an older copy, a new file, or none",
        "the newest file; its last event is noted in the kit's folder 'anchors'",
        "release nothing; put the newest copy back; if it is lost, what was spent is not known: the data set's budget "
        "counts as spent",
    ),
    "DAMAGED": (
        "DAMAGED",
        "a privacy ledger that cannot be used: damaged, changed, or the disk refused it",
        "the file as this site wrote it, and a disk that keeps what is written",
        "release nothing; check the disk; put the newest copy back",
    ),
}


def _refuse_as(kind: str) -> NoReturn:
    _refuse(*_WORDS.get(kind, _WORDS["DAMAGED"]))


def _refuse(kind: str, got: str, expected: str, next_step: str) -> NoReturn:
    raise LedgerError(f"FF-LEDGER-{kind}", got=got, expected=expected, next_step=next_step) from None


__all__ = ["Account", "Entry", "Ledger", "load_accounting"]
