# SPDX-License-Identifier: Apache-2.0
"""Who took part in which round, and why somebody did not: one strip per site, equal rounds joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from fairflare.record import Refusal, RoundRecord, RunRecord

#: Width of a strip in the units of its view box; a letter, and a round that is cut off from the next, need so much.
WIDTH, _LETTER, _CUT = 320.0, 9.0, 4.0

Kind = Literal["trained", "measured", "missing"]

#: Code of a refusal -> what it means to a reader who knows no code.
MEANINGS = {
    "FF-ROUND-TIMEOUT": "no answer before the deadline",
    "FF-ROUND-SITE-ERROR": "an error at the site, told in the site's own log",
    "FF-ROUND-LATE": "an answer after the deadline",
    "FF-ROUND-OTHER": "an answer to something else than was asked",
    "FF-ROUND-KEYS": "other vectors than were asked for",
}
_UNKNOWN = "see the site's own log"
NOT_ASKED = "not asked"
NO_REASON = "no reason recorded"


@dataclass(frozen=True)
class State:
    """What a site did in a round: trained, sent statistics only, or was missing; ``why`` is a code or a few words."""

    kind: Kind
    why: str = ""
    task: str = ""


@dataclass(frozen=True)
class Segment:
    """Rounds in a row with one state.

    ``x`` and ``width`` are in units of the strip, ``letter`` is its key or "", ``cuts`` is a path that
    divides the rounds, "" where they are too narrow.
    """

    state: State
    x: float
    width: float
    letter: str
    words: str
    cuts: str


@dataclass(frozen=True)
class SiteRow:
    """One site: its strip, in how many rounds it trained, its absences in words, and the final evaluation."""

    site: str
    segments: tuple[Segment, ...]
    trained: int
    absences: tuple[str, ...]
    evaluated: str


@dataclass(frozen=True)
class Key:
    """What a letter in the strips stands for."""

    letter: str
    why: str
    meaning: str


@dataclass(frozen=True)
class Participation:
    """All strips of a run, over ``rounds`` rounds, and their key."""

    rounds: int
    rows: tuple[SiteRow, ...]
    keys: tuple[Key, ...]
    description: str


def participation(record: RunRecord) -> Participation:
    """Read off a record who took part."""
    sites = _sites(record)
    states = {site: [_state(record, line, site) for line in record.rounds] for site in sites}
    reasons = dict.fromkeys((one.why, one.task) for line in states.values() for one in line if one.kind != "trained")
    letters = {reason: _letter(place) for place, reason in enumerate(reasons)}
    rows = tuple(_row(record, site, states[site], letters) for site in sites)
    keys = tuple(Key(letter, _reason(*reason), _meaning(reason[0])) for reason, letter in letters.items())
    absent = sum(1 for row in rows if row.absences)
    words = f"{absent} of {len(rows)} sites were missing at times" if absent else "every site took part in every round"
    return Participation(len(record.rounds), rows, keys, f"Who took part in each round: {words}.")


def _sites(record: RunRecord) -> list[str]:
    """Everybody that the record names, sorted."""
    found = {*record.roster, *(refusal.site for refusal in record.join_refusals)}
    for line in record.rounds:
        found |= {site for sites in line.participants.values() for site in sites}
        found |= {refusal.site for refusal in line.refusals}
    return sorted(found)


def _state(record: RunRecord, line: RoundRecord, site: str) -> State:
    if site in line.participants.get("train", ()):
        return State("trained")
    refusal = _last(line.refusals, site)
    if site in line.participants.get("measure", ()):
        return State("measured", refusal.code if refusal else NO_REASON, refusal.task if refusal else "")
    if refusal is not None:
        return State("missing", refusal.code, refusal.task)
    if any(_last(one.refusals, site) for one in record.rounds if one.round < line.round):
        return State("missing", NOT_ASKED)
    joining = _last(record.join_refusals, site)
    return State("missing", joining.code, joining.task) if joining else State("missing", NO_REASON)


def _last(refusals: Sequence[Refusal], site: str) -> Refusal | None:
    found = [refusal for refusal in refusals if refusal.site == site]
    return found[-1] if found else None


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"{chr(ord('A') + place % 26)}{place // 26}"


def _reason(why: str, task: str) -> str:
    return f"{why} (task {task})" if task else why


def _meaning(why: str) -> str:
    if why == NOT_ASKED:
        return "it had missed as many tasks in a row as the plan allows, so it was left out"
    return "" if why == NO_REASON else MEANINGS.get(why, _UNKNOWN)


def _row(record: RunRecord, site: str, states: list[State], letters: dict[tuple[str, str], str]) -> SiteRow:
    segments, absences, start = [], [], 0
    unit = WIDTH / max(len(states), 1)
    for state, group in groupby(states):
        length = len(list(group))
        letter = letters.get((state.why, state.task), "")
        where = f"round {start + 1}" if length == 1 else f"rounds {start + 1} to {start + length}"
        what = {"trained": "took part", "measured": "statistics only", "missing": "missing"}[state.kind]
        words = f"{where}: {what}"
        if state.kind != "trained":
            words += f", {letter}: {_reason(state.why, state.task)}"
            absences.append(words)
        shown = letter if unit * length >= _LETTER * len(letter) else ""
        segments.append(Segment(state, start * unit, unit * length, shown, words, _cuts(start, length, unit)))
        start += length
    trained = sum(state.kind == "trained" for state in states)
    return SiteRow(site, tuple(segments), trained, tuple(absences), _evaluated(record, site))


def _cuts(start: int, length: int, unit: float) -> str:
    between = range(start + 1, start + length) if unit >= _CUT else ()
    return "".join(f"M{place * unit:.2f} 1V15" for place in between)


def _evaluated(record: RunRecord, site: str) -> str:
    if record.final is None:
        return "none took place"
    if site in record.final.participants:
        return "took part"
    refusal = _last(record.final.refusals, site)
    return f"missing, {_reason(refusal.code, refusal.task)}" if refusal else f"missing, {NO_REASON}"
