# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a job runs: a line per round, and a bar with the time left on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Watcher:
    """Follows a run's ``progress.jsonl``; call it with the file's path as often as you like."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._read = 0
        self._rounds = 0
        self._first: tuple[int, float] | None = None
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(f"{title}: starting", total=None, left="")

    def __enter__(self) -> Watcher:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, path: Path) -> None:
        """Read what was added since the last call."""
        if not path.exists():
            return
        with path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._event(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._rounds = event["rounds"]
            self._bar.update(self._task, total=self._rounds)
            self._console.print(f"{self._title}: {len(event['roster'])} sites, {self._rounds} rounds", markup=False)
        elif kind == "phase":
            shown = f"{self._title}: {event['task']}, waiting for {len(event['sites'])} sites"
            self._bar.update(self._task, description=shown)
        elif kind == "refused":
            text = f"  {event['site']} gave no usable answer to {event['task']}: {event['code']}"
            self._console.print(text, markup=False, highlight=False)
        elif kind == "lost":
            which = f"  round {event['round'] + 1:>3}/{self._rounds}"
            text = f"{which} gave no model: {event['code']}; the next one goes on"
            self._console.print(text, markup=False, highlight=False)
        elif kind == "round":
            self._round(event)
        elif kind == "end" and event["status"] != "complete":
            self._console.print(f"  stopped: {event['code']}", style="bold")

    def _round(self, event: dict[str, Any]) -> None:
        done, now = event["round"] + 1, float(event["time"])
        self._first = self._first or (done, now)
        left = ""
        if done > self._first[0]:
            seconds = (now - self._first[1]) / (done - self._first[0]) * (self._rounds - done)
            left = f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
        self._bar.update(self._task, completed=done, left=left)
        for line in round_lines(event, left):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def round_lines(event: dict[str, Any], left: str) -> list[str]:
    """One round in a few lines: sites, loss, AUC or Dice, seconds; then validation loss of each group and its gap."""
    groups: dict[str, list[tuple[str, float]]] = {}
    name, quality = "AUC", None
    for line in event["validation"]:
        if line["attribute"] == "all":
            name, quality = ("AUC", line["auc"]) if line["dice"] is None else ("Dice", line["dice"])
        elif line["loss"] is not None:
            groups.setdefault(line["attribute"], []).append((line["group"], line["loss"]))
    parts = [
        f"  round {event['round'] + 1:>3}/{event['rounds']}",
        f"{len(list(event['sites'].values())[-1])} sites",
        "loss not opened" if event["loss"] is None else f"loss {event['loss']:.3f}",
        f"validation {name} {'n/a' if quality is None else f'{quality:.3f}'}",
        f"{sum(event['seconds'].values()):.1f} s",
    ]
    if event["at_bound"]:
        parts.append(f"{event['at_bound']:.0f} weights at their bound")
    if event["collapse"] and event["round"]:  # of the model that was drawn nobody expects more
        parts.append(f"its first model has learnt nothing ({event['collapse'].replace('_', ' ')})")
    lines = [" | ".join([*parts, left] if left else parts)]
    for attribute, found in groups.items():
        losses = [loss for _, loss in found]
        shown = ", ".join(f"{name} {loss:.2f}" for name, loss in found)
        lines.append(f"      risk by {attribute}: {shown}; gap {max(losses) - min(losses):.2f}")
    return lines
