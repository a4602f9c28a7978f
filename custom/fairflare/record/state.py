# SPDX-License-Identifier: Apache-2.0
"""Where a job stands, for whoever looks after the server: two small files that hold no number of anybody's result.

The server writes ``state.json`` beside the record at every phase, and one file about itself every few seconds. Whoever
reads these needs neither record nor progress file, in which results stand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from fairflare.record.parts import Refusal
from fairflare.schema import StrictModel

STATE_NAME: Final = "state.json"
#: In the server's store: what its parent process says of itself.
SERVER_NAME: Final = "server.json"
#: Kinds of refusals that are told apart; sites and codes are few, and a file that grows without end is none of ours.
_MOST: Final = 256


class Refused(StrictModel):
    """A refusal, and how often there was the same."""

    refusal: Refusal
    times: int


class JobState(StrictModel):
    """Where a job stands.

    Attributes
    ----------
    plan, rounds
        Name of the plan, and its number of rounds.
    status, code
        As in the record; ``code`` says why a run stopped.
    round, task, since
        What the server waits for (``None`` before the first phase and after the last), since when (seconds since 1970).
    asked
        How many sites were asked.
    complete
        Rounds that gave a model.
    written
        When this was written.
    refusals
        Who gave no usable answer to what, by code.
    """

    format: Literal["fairflare/state/1"]
    plan: str
    rounds: int
    status: Literal["running", "complete", "stopped"]
    code: str | None
    round: int
    task: str | None
    since: float
    asked: int
    complete: int
    written: float
    refusals: tuple[Refused, ...]


class ServerState(StrictModel):
    """What the server's parent process says of itself.

    Attributes
    ----------
    started, written
        When it started, and when it wrote this (seconds since 1970).
    silence
        Seconds without a sign of life until it takes a site for lost.
    sites
        When each site gave its last sign of life; only those that did since the start.
    connected
        Those that the server counts as there.
    refusals
        Whatever the server itself refused, of jobs and of messages; ``site`` is empty where it was a person's.
    """

    format: Literal["fairflare/server/1"]
    started: float
    written: float
    silence: float
    sites: dict[str, float]
    connected: tuple[str, ...]
    refusals: tuple[Refused, ...]


def first_state(plan: str, now: float) -> JobState:
    """The state of a job of which nothing has happened."""
    return JobState(
        format="fairflare/state/1", plan=plan, rounds=0, status="running", code=None, round=0, task=None, since=now,
        asked=0, complete=0, written=now, refusals=(),
    )  # fmt: skip


def followed(state: JobState, event: str, facts: Mapping[str, Any], now: float) -> JobState:
    """The state after an event of the job; takes from its facts what it names, and no result."""
    fields: dict[str, Any] = {"written": now}
    if event == "start":
        fields |= {"rounds": facts["rounds"]}
    elif event == "phase":
        asked = len(facts.get("sites", ()))
        fields |= {"round": facts.get("round", state.round), "task": facts["task"], "asked": asked, "since": now}
    elif event == "round":
        fields |= {"complete": state.complete + 1}
    elif event == "refused":
        refusal = Refusal(site=facts["site"], task=facts["task"], code=facts["code"])
        fields |= {"refusals": counted(state.refusals, refusal)}
    elif event == "end":
        fields |= {"status": facts["status"], "code": facts.get("code"), "task": None, "since": now}
    return state.model_copy(update=fields)


def counted(refusals: tuple[Refused, ...], new: Refusal) -> tuple[Refused, ...]:
    """``refusals`` with one more; of more kinds than a job can have, the rest is not told apart."""
    for place, one in enumerate(refusals):
        if one.refusal == new:
            more = one.model_copy(update={"times": one.times + 1})
            return (*refusals[:place], more, *refusals[place + 1 :])
    return (*refusals, Refused(refusal=new, times=1)) if len(refusals) < _MOST else refusals


def write_state(file: Path, state: JobState | ServerState) -> None:
    """Replace the file; whoever reads it sees the old one or the new one.

    Not flushed to the disk: it is written often, nothing is decided by it, and after a crash it says what is over.
    """
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(json.dumps(state.model_dump(mode="json")) + "\n", encoding="utf-8")
    os.replace(temporary, file)
