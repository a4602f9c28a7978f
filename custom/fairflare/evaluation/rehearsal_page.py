# SPDX-License-Identifier: Apache-2.0
"""The page of a rehearsal for a terminal, and as one HTML file: no script, no network, no file beside it.

Names of plans, groups and labels come from other organisations, so they pass an escaping template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fairflare.evaluation.phrases import visible
from fairflare.evaluation.rehearsal import Rehearsal
from fairflare.evaluation.rehearsal_words import CAUTION, Grid, Part, answers, parts, title, verdict
from fairflare.evaluation.rendering import rendered

FORMAT = "fairflare/rehearsal/1"
_STYLES = {"yes": "bold green", "no": "bold red", "open": "bold yellow"}


def to_html(found: Rehearsal) -> str:
    """The page as HTML."""
    return rendered(
        "rehearsal.html.j2", title=title(found), verdict=verdict(found), refused=bool(found.refusals),
        answers=answers(found), caution=CAUTION, parts=parts(found), steps=_next_steps(found),
    )  # fmt: skip


def to_json(found: Rehearsal) -> str:
    """Every fact, and the verdict."""
    facts = {
        "format": FORMAT,
        "caution": CAUTION,
        "runs": not found.refusals,
        "codes": list(dict.fromkeys(one.code for one in found.refusals)),
        "refusals": [asdict(one) for one in found.refusals],
        "warnings": [asdict(one) for one in found.warnings],
        "seconds": None if found.work is None else found.work.seconds(found.plan.rounds),
        "bytes_up": sum(one.up for one in found.messages),
        "bytes_down": sum(one.down for one in found.messages),
        **asdict(found),
    }
    return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def to_terminal(found: Rehearsal) -> Group:
    """The page for a terminal."""
    shown: list[RenderableType] = [Text(visible(title(found)), style="bold"), Text()]
    shown.append(Text(visible(verdict(found)), style="bold red" if found.refusals else "bold green"))
    shown += [
        Text.assemble("  ", (f"{one.tag:<5}", _STYLES[one.tag]), (f"{one.what}: ", "bold"), visible(one.words))
        for one in answers(found)
    ]
    shown += [Text(f"next step: {visible(step)}") for step in _next_steps(found)]
    shown += [Text(), Text(f"! {CAUTION}", style="bold")]
    for part in parts(found):
        shown += shown_part(part)
    return Group(*shown)


def _next_steps(found: Rehearsal) -> list[str]:
    if found.refusals:
        return list(dict.fromkeys(one.next_step for one in found.refusals))
    if found.policy is None:
        return ["rehearse it again with --policy; then decide"]
    return [] if found.policy.approval == "given" else ["submit the job, or let the researcher know"]


def shown_part(part: Part) -> Iterator[RenderableType]:
    """A part of a page for a terminal."""
    yield Text()
    yield Text(part.heading, style="bold underline")
    for sentence in part.sentences:
        yield Text(visible(sentence))
    for point in part.points:
        yield Padding(Text(f"- {visible(point)}"), (0, 0, 0, 2))
    for grid in part.grids:
        # Not as the table's title, which would be broken at a narrow table's width.
        yield Text(f"\n{grid.caption}", style="italic")
        yield _table(grid)


def _table(grid: Grid) -> Table:
    named = any(grid.heads)
    table = Table(box=SIMPLE_HEAD, show_header=named)
    for place, head in enumerate(grid.heads):
        table.add_column(Text(head), justify="left" if place in grid.text else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


__all__ = ["shown_part", "to_html", "to_json", "to_terminal"]
