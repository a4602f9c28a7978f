# SPDX-License-Identifier: Apache-2.0
"""Who took part in which round, and why somebody did not: one strip per site, equal rounds joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

from fairflare.evaluation.remarks import collapses
from fairflare.evaluation.words import COLLAPSES_SHORT
from fairflare.record import ABSENT, Refusal, RoundRecord, RunRecord

#: Width of a strip in the units of its view box; a letter, and a round that is cut off from the next, need so much.
WIDTH, _LETTER, _CUT = 320.0, 9.0, 4.0
#: Places of a band that are told in words.
_MOST_PLACES = 12

#: Tasks in which a site trains; in the second one it has no statistics of the round to train with.
TRAINING: Final = ("train", "train_alone")
Kind = Literal["trained", "measured", "missing"]

#: Code of a refusal -> what it means to a reader who knows no code.
MEANINGS = {
    "FF-ROUND-TIMEOUT": "no answer before the deadline",
    "FF-ROUND-SITE-ERROR": "an error at the site, told in the site's own log",
    "FF-ROUND-LATE": "an answer after the deadline",
    "FF-ROUND-OTHER": "an answer to something else than was asked",
    "FF-ROUND-KEYS": "other vectors than were asked for",
    "FF-SECAGG-VIEW": "it worked on other inputs than the server sent to the others",
    "FF-SECAGG-REUSED": "it had answered this before, and answers once",
    "FF-SECAGG-TOTALS": "it did not have the group sums that were to act",
    "FF-POLICY-REFUSED": "the site's policy does not allow the plan",
    "FF-POLICY-PACKAGE": "the site runs another package than its policy names",
    "FF-POLICY-EXPIRED": "the site's policy has expired",
    "FF-POLICY-CHANGED": "the site's policy became tighter during the job",
    "FF-GATE-PARENT": "the site was stopped during the job",
    "FF-DECISION-LOG": "the site cannot write down what it decides",
    ABSENT: "it was not connected to the server, or not free, when the job was handed out",
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
class Band:
    """What is the same for all sites, round by round: its name, its strip, and all of it in words."""

    name: str
    segments: tuple[Segment, ...]
    words: str


@dataclass(frozen=True)
class Key:
    """What a letter in the strips stands for."""

    letter: str
    why: str
    meaning: str


@dataclass(frozen=True)
class Participation:
    """All strips of a run, over ``rounds`` rounds, and their key; ``bands`` is empty if nothing was special."""

    rounds: int
    rows: tuple[SiteRow, ...]
    keys: tuple[Key, ...]
    description: str
    bands: tuple[Band, ...]


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
    bands = tuple(one for one in (_statistics(record), _models(record)) if one is not None)
    return Participation(len(record.rounds), rows, keys, f"Who took part in each round: {words}.", bands)


def _statistics(record: RunRecord) -> Band | None:
    """When group statistics were exchanged; ``None`` if that was at the start of each round, or at every step."""
    kinds: list[tuple[Kind, str, str]] = []
    for line in record.rounds:
        if "train_alone" not in line.participants:
            kinds.append(("trained", "exchanged before training", ""))
        elif line.penalties:
            kinds.append(("measured", "sent with the update, for the next round", "U"))
        else:
            kinds.append(("measured", "none, the last ones acted if there were any", "N"))
    if all(kind == "trained" for kind, _, _ in kinds):
        return None
    return Band("Group statistics", *_band(kinds))


def _models(record: RunRecord) -> Band | None:
    """Which rounds began with a model that had learnt nothing; ``None`` if none did."""
    found = collapses(record)[: len(record.rounds)]
    if not any(found):
        return None
    kinds: list[tuple[Kind, str, str]] = [
        ("trained", "no collapse", "") if how is None else ("missing", f"collapse: {COLLAPSES_SHORT[how]}", "C")
        for how in found
    ]
    return Band("Model at the start of the round", *_band(kinds))


def _band(kinds: Sequence[tuple[Kind, str, str]]) -> tuple[tuple[Segment, ...], str]:
    """Segments of equal rounds in a row, and in which rounds each kind was, in words."""
    segments: list[Segment] = []
    places: dict[str, list[str]] = {}
    unit, start = WIDTH / max(len(kinds), 1), 0
    for (kind, what, letter), group in groupby(kinds):
        length = len(list(group))
        words = f"{_where(start, length)}: {what}"
        shown = letter if letter and unit * length >= _LETTER else ""
        cuts = _cuts(start, length, unit)
        segments.append(Segment(State(kind, what), start * unit, unit * length, shown, words, cuts))
        named = f"{what} ({letter})" if letter else what
        places.setdefault(named, []).append(_where(start, length).split(" ", 1)[1])
        start += length
    return tuple(segments), "; ".join(f"{what}: rounds {_listed(where)}" for what, where in places.items())


def _listed(places: Sequence[str]) -> str:
    more = f" and {len(places) - _MOST_PLACES} more" if len(places) > _MOST_PLACES else ""
    return ", ".join(places[:_MOST_PLACES]) + more


def _where(start: int, length: int) -> str:
    return f"round {start + 1}" if length == 1 else f"rounds {start + 1} to {start + length}"


def _sites(record: RunRecord) -> list[str]:
    """Everybody that the record names, sorted."""
    found = {*record.roster, *(refusal.site for refusal in (*record.without, *record.join_refusals))}
    for line in record.rounds:
        found |= {site for sites in line.participants.values() for site in sites}
        found |= {refusal.site for refusal in line.refusals}
    return sorted(found)


def _state(record: RunRecord, line: RoundRecord, site: str) -> State:
    if any(site in line.participants.get(task, ()) for task in TRAINING):
        return State("trained")
    refusal = _last(line.refusals, site)
    if site in line.participants.get("measure", ()):
        return State("measured", refusal.code if refusal else NO_REASON, refusal.task if refusal else "")
    if refusal is not None:
        return State("missing", refusal.code, refusal.task)
    if any(_last(one.refusals, site) for one in record.rounds if one.round < line.round):
        return State("missing", NOT_ASKED)
    joining = _last((*record.without, *record.join_refusals), site)
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


def without_in_words(record: RunRecord) -> Iterator[str]:
    """Each site of the project that the newest session ran without from its start on, and why."""
    for one in record.without:
        yield f"{one.site}: {one.code}, {MEANINGS.get(one.code, _UNKNOWN)}"


def _row(record: RunRecord, site: str, states: list[State], letters: dict[tuple[str, str], str]) -> SiteRow:
    segments, absences, start = [], [], 0
    unit = WIDTH / max(len(states), 1)
    for state, group in groupby(states):
        length = len(list(group))
        letter = letters.get((state.why, state.task), "")
        what = {"trained": "took part", "measured": "statistics only", "missing": "missing"}[state.kind]
        words = f"{_where(start, length)}: {what}"
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
    refusal = _last((*record.without, *record.final.refusals), site)
    return f"missing, {_reason(refusal.code, refusal.task)}" if refusal else f"missing, {NO_REASON}"
