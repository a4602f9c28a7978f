# SPDX-License-Identifier: Apache-2.0
"""One figure of the benchmark: what was measured, in this run, against which aim; and the tables made of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import torch

HEADINGS = ("what", "figure", "aim", "verdict", "remark")


@dataclass(frozen=True)
class Figure:
    """One line.

    Attributes
    ----------
    section, subject, key
        Where it belongs; together the figure's name.
    what
        The same in words.
    value, unit
        The figure itself; ``low`` and ``high`` are the smallest and the largest of the repeats behind it.
    most, least
        Aim: the figure shall be at most, or at least, this, in the same unit; ``None`` where there is no aim.
    remark
        How it was measured, if the words do not say so.
    resolved
        ``False`` where the machine's noise is larger than what was to be measured: then no verdict is given.
    """

    section: str
    subject: str
    key: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    most: float | None = None
    remark: str = ""
    least: float | None = None
    resolved: bool = True

    @property
    def verdict(self) -> str:
        """``met``, ``not met``, ``not resolved``, or ``-`` where there is no aim."""
        if self.most is None and self.least is None:
            return "-"
        if not self.resolved:
            return "not resolved"
        low, high = (bound if bound is not None else self.value for bound in (self.least, self.most))
        return "met" if low <= self.value <= high else "not met"

    @property
    def cells(self) -> tuple[str, ...]:
        """The line's cells under :data:`HEADINGS`."""
        figure = f"{_short(self.value)} {self.unit}".strip()
        if self.low is not None and self.high is not None:
            figure += f" [{_short(self.low)} to {_short(self.high)}]"
        aims = [f"{sign} {_short(aim)} {self.unit}".strip() for sign, aim in ((">=", self.least), ("<=", self.most))
                if aim is not None]  # fmt: skip
        return (self.what, figure, ", ".join(aims) or "-", self.verdict, self.remark)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, as a figure's fields."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def _short(number: float) -> str:
    if number == 0:
        return "0"
    if abs(number) >= 1000:
        return f"{number:.0f}"
    # A ratio near one would lose what it is about.
    return f"{number:.5f}" if 0.999 < abs(number) < 1.01 and number != 1 else f"{number:.3g}"


def machine(command: str) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch": torch.__version__,
        "torch_threads": "1 per site and per worker",
        "python": platform.python_version(),
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def in_words(facts: dict[str, Any]) -> list[str]:
    """The machine, one line per fact worth reading."""
    load = f"load before {facts['load_before']}"
    lines = [
        f"machine: {facts['cores']} cores ({facts['cpu']}), {facts['memory_gb']} GB; {load}",
        f"torch {facts['torch']}, threads: {facts['torch_threads']}; Python {facts['python']}",
        f"date: {facts['date']}; command: {facts['command']}",
    ]
    if facts["load_before"] > 0.25 * facts["cores"]:
        lines.append("WARNING: the machine was not quiet when this began; times are too long, ratios may be off")
    return [*lines, *(f"SKIPPED: {part}: {reason}" for part, reason in facts.get("skipped", {}).items())]


def as_text(figures: Sequence[Figure]) -> str:
    """Tables for a terminal, one per section and subject."""
    lines = []
    for (section, subject), rows in _tables(figures):
        widths = [max(len(row[at]) for row in rows) for at in range(len(HEADINGS) - 1)]
        lines += ["", f"{section} | {subject}"]
        for row in rows:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join(["", *padded, row[-1]]).rstrip())
    return "\n".join(lines)


def as_markdown(facts: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The same as a page."""
    lines = ["# Benchmark", "", *(f"* {line}" for line in in_words(facts))]
    for (section, subject), rows in _tables(figures):
        lines += ["", f"## {section}: {subject}", "", f"| {' | '.join(rows[0])} |", "|---" * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def _tables(figures: Sequence[Figure]) -> Iterator[tuple[tuple[str, str], list[tuple[str, ...]]]]:
    for key in dict.fromkeys((figure.section, figure.subject) for figure in figures):
        yield key, [HEADINGS, *(one.cells for one in figures if (one.section, one.subject) == key)]


def write(folder: Path, facts: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Write ``bench.json`` and ``bench.md``."""
    data = {"machine": facts, "figures": [{**asdict(one), "verdict": one.verdict} for one in figures]}
    (folder / "bench.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(as_markdown(facts, figures), encoding="utf-8")
