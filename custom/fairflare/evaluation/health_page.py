# SPDX-License-Identifier: Apache-2.0
"""The health of a server for a terminal, as one HTML file that loads and runs nothing, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fairflare.evaluation.health import CAUTION, Health, moment, parts, title, verdict
from fairflare.evaluation.phrases import visible
from fairflare.evaluation.rehearsal_page import shown_part
from fairflare.evaluation.rendering import rendered

FORMAT = "fairflare/health/1"


def to_html(found: Health, renew: int | None = None) -> str:
    """The page; with ``renew`` a browser reads it again after so many seconds."""
    return rendered(
        "health.html.j2", title=title(found), verdict=verdict(found), bad=not found.is_alive, made=moment(found.now),
        warnings=found.warnings, caution=CAUTION, parts=parts(found), renew=renew,
    )  # fmt: skip


def to_json(found: Health) -> str:
    """Every fact."""
    facts = {"format": FORMAT, "alive": found.is_alive, "warnings": list(found.warnings), "health": asdict(found)}
    return json.dumps(facts, indent=2, allow_nan=False, default=_text) + "\n"


def to_terminal(found: Health) -> Group:
    """The tables for a terminal."""
    style = "bold green" if found.is_alive and not found.warnings else "bold yellow" if found.is_alive else "bold red"
    shown: list[RenderableType] = [Text(visible(title(found)), style="bold"), Text(visible(verdict(found)), style)]
    shown += [Text(f"! {visible(one)}", style="bold") for one in found.warnings]
    for part in parts(found):
        shown += shown_part(part)
    return Group(*shown, Text(f"as of {moment(found.now)}", style="dim"))


def _text(value: Any) -> str:
    return str(value.isoformat())
