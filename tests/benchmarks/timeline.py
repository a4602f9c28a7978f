# SPDX-License-Identifier: Apache-2.0
"""Where the time of FLARE's rounds went, from what a run left behind.

Three clocks of one machine are put side by side: ``progress.jsonl`` (our server: a phase begins, a round is complete),
FLARE's ``log.json`` of the server and of every site (milliseconds), and each site's own ``releases.jsonl`` (``work``).
A phase is cut where the reply that came last went from hand to hand; the parts add up to the phase exactly::

    phase event (server) | polling | download | site's executor | upload | noticing | our server | next event

* ``polling``: phase event until FLARE's server says "sent task assignment": the site has not asked before;
* ``download``: from there until "invoking task executor" at the site: serialising, transfer, reading;
* ``work``: from "invoking task executor" to "finished processing task";
* ``upload``: from there until the server has finished processing the reply;
* ``noticing``: until FLARE's server sees that the task is complete;
* ``server``: until the next event: opening the sums, aggregating, writing record and model.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

PARTS = ("polling", "download", "work", "upload", "noticing", "server")
#: With masks a round has the last two as well.
PHASES = ("measure", "compare", "train", "confirm", "unmask")
_TASK = re.compile(r"task_name=(\w+)")
_PEER = re.compile(r"peer=([\w.-]+)")
_EXIT = re.compile(r"task (\w+) exit with status")


@dataclass(frozen=True)
class Phase:
    """One phase of one round: seconds of each part, and each site's own seconds of work."""

    task: str
    round: int
    parts: Mapping[str, float]
    work: Mapping[str, float]


@dataclass(frozen=True)
class Timeline:
    """A run: seconds of each round, its phases, seconds before the first phase and after the last event."""

    rounds: Sequence[float]
    phases: Sequence[Phase]
    losses: Sequence[float]
    start_up: float
    teardown: float

    def per_round(self, first: int = 1) -> dict[str, list[float]]:
        """Seconds of every part in each round from ``first`` on."""
        kept = range(first, len(self.rounds))
        return {
            part: [sum(phase.parts[part] for phase in self.phases if phase.round == number) for number in kept]
            for part in PARTS
        }

    def work(self, task: str, first: int = 1) -> list[dict[str, float]]:
        """Every site's own seconds for ``task`` in each round from ``first`` on."""
        return [dict(phase.work) for phase in self.phases if phase.task == task and phase.round >= first]


def read(workspace: Path, sites: Sequence[str], started: float, ended: float) -> Timeline:
    """The timeline of the run in ``workspace``, which was started and had ended at these times (``time.time``)."""
    events = _lines(workspace / "server" / "simulate_job" / "fairflare" / "progress.jsonl")
    server = _server(workspace / "server" / "log.json")
    at_sites = {site: _site(workspace / site / "log.json") for site in sites}
    work = {site: _work(workspace / site / "simulate_job" / "fairflare" / "releases.jsonl") for site in sites}
    phases, number = [], dict.fromkeys(PHASES, 0)
    for event, after in pairwise(events):
        task = event.get("task")
        if event["event"] == "phase" and task in PHASES:
            place = number[task]
            number[task] += 1
            parts = _parts(event["time"], after["time"], server, at_sites, (task, place))
            own = {site: work[site][task, event["round"]] for site in sites}
            phases.append(Phase(task, event["round"], parts, own))
    first = next(event["time"] for event in events if event["event"] == "phase" and event["task"] == "measure")
    marks = [first, *(event["time"] for event in events if event["event"] == "round")]
    rounds = [after - before for before, after in pairwise(marks)]
    losses = [event["loss"] for event in events if event["event"] == "round"]
    return Timeline(rounds, phases, losses, first - started, ended - events[-1]["time"])


def _parts(begin: float, end: float, server: Any, at_sites: Any, key: tuple[str, int]) -> dict[str, float]:
    task, place = key
    done = {site: server[site, task][place] for site in at_sites}
    last = max(done, key=lambda site: done[site])
    invoked, finished = (at_sites[last][kind, task][place] for kind in ("invoked", "finished"))
    sent, noticed = server[f"sent {last}", task][place], server["exit", task][place]
    return {
        "polling": sent - begin, "download": invoked - sent, "work": finished - invoked,
        "upload": done[last] - finished, "noticing": noticed - done[last], "server": end - noticed,
    }  # fmt: skip


def _server(file: Path) -> dict[tuple[str, str], list[float]]:
    """When each task was sent ("sent SITE", task), its reply done with (SITE, task), all complete ("exit", task)."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in _lines(file):
        text, context = line["message"], line["fl_ctx"]
        if left := _EXIT.search(text):
            found["exit", left[1]].append(_time(line))
        elif (task := _TASK.search(context)) and (peer := _PEER.search(context)):
            if text.startswith("sent task assignment"):
                found[f"sent {peer[1]}", task[1]].append(_time(line))
            elif text.startswith("finished processing client result"):
                found[peer[1], task[1]].append(_time(line))
    return found


def _site(file: Path) -> dict[tuple[str, str], list[float]]:
    """When each task was begun ("invoked", task) and done with ("finished", task)."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in _lines(file):
        text, task = line["message"], _TASK.search(line["fl_ctx"])
        if task and text.startswith("invoking task executor"):
            found["invoked", task[1]].append(_time(line))
        elif task and text == "finished processing task":
            found["finished", task[1]].append(_time(line))
    return found


def _work(file: Path) -> dict[tuple[str, int], float]:
    lines = [line for line in _lines(file) if line["event"] == "work"]
    return {(line["task"], line["round"]): line["seconds"] for line in lines}


def _lines(file: Path) -> list[dict[str, Any]]:
    return list(_readable(file.read_text(encoding="utf-8")))


def _readable(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # the trace of an exception in FLARE's own log
            continue
        if isinstance(value, dict):
            yield value


def _time(line: Mapping[str, Any]) -> float:
    return datetime.strptime(line["asctime"], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
