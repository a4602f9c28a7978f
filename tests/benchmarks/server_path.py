# SPDX-License-Identifier: Apache-2.0
"""N: the server of a masked job with 4, 16 and 50 sites: its own seconds in a round, and its memory.

``server_worker`` runs each in a process of its own, in turn, so a load on the machine is not one number's alone. The
seconds are those in which the server does something; that sites work and that anything travels is not in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import say, script

SECTION = "N. The server with many sites"
FULL, QUICK = (4, 16, 50), (4, 6)
SUBJECTS = {"mlp": "server, masked mlp on heart", "cnn": "server, masked cnn on skin"}


def all_figures(quick: bool) -> Sequence[Figure]:
    """Each network with each number of sites, in turn."""
    counts, repeats = (QUICK, 1) if quick else (FULL, 3)
    figures: list[Figure] = []
    for subject in ("mlp",) if quick else SUBJECTS:
        found: dict[int, list[Mapping[str, Any]]] = {sites: [] for sites in counts}
        for repeat in range(repeats):
            for sites in counts if repeat % 2 == 0 else counts[::-1]:
                arguments = ("--subject", subject, "--sites", str(sites), "--rounds", "3" if quick else "5")
                found[sites].append(script("server_worker", *arguments))
                one = found[sites][-1]
                say(f"{subject}, {sites} sites: {one['round']:.3f} s a round, peak {one['peak_mb']:.0f} MB")
        figures += _figures(subject, found)
    print("\n".join(table(figures)), flush=True)
    return figures


def table(figures: Sequence[Figure]) -> list[str]:
    """The figures as the table in the manual of the server's operator, line by line."""
    found = {(one.subject, one.key): one for one in figures}
    lines = [
        "| job | sites | server's seconds in a round | to the fewest | memory above the start |",
        "|---|---|---|---|---|",
    ]
    for subject in dict.fromkeys(one.subject for one in figures):
        counts = sorted(int(key.split("_")[1]) for name, key in found if name == subject and key.startswith("round_"))
        for sites in counts:
            seconds, memory = found[(subject, f"round_{sites}")], found[(subject, f"peak_{sites}")]
            ratio = found.get((subject, f"ratio_{sites}"))
            times = "1" if ratio is None else f"{ratio.value:.1f} ({ratio.low:.1f} to {ratio.high:.1f})"
            name = subject.removeprefix("server, ")
            lines.append(f"| {name} | {sites} | {seconds.value:.2f} | {times} | {memory.value:.1f} MB |")
    return lines


def _figures(subject: str, found: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    make = partial(Figure, SECTION, SUBJECTS[subject])
    few, *others = sorted(found)
    most = others[-1]
    lines = []
    for sites, runs in sorted(found.items()):
        how = f"{len(runs)} run(s), each in a process of its own, in turn; answers are checked, decoded and added"
        lines += [
            make(f"round_{sites}", f"the server's own seconds in a round, {sites} sites", unit="s",
                 **spread([one["round"] for one in runs]), remark=how),
            make(f"peak_{sites}", f"the server's memory above that before the job, {sites} sites", unit="MB",
                 **spread([one["peak_mb"] - one["before_mb"] for one in runs]),
                 remark=f"VmHWM; one model {runs[0]['model_mb']:.2f} MB"),
        ]  # fmt: skip
    for sites in others:
        pairs = list(zip(found[sites], found[few], strict=True))
        ratio = [a["round"] / b["round"] for a, b in pairs]
        lines.append(
            make(f"ratio_{sites}", f"seconds in a round, {sites} sites to {few}", unit="x", **spread(ratio),
                 most=1.25 * sites / few if sites == most and few == 4 and most == 50 else None,
                 remark=f"{sites / few:.1f} times as many answers")
        )  # fmt: skip
    memory = [a["peak_mb"] - b["peak_mb"] for a, b in zip(found[most], found[few], strict=True)]
    answers = statistics.median(one["answer"] for one in found[most])
    lines.append(
        make("growth", f"growth of the server's peak from {few} to {most} sites", unit="MB", **spread(memory),
             remark=f"an answer takes {1e3 * answers:.1f} ms")
    )  # fmt: skip
    return lines
