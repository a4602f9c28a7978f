# SPDX-License-Identifier: Apache-2.0
"""``report.html``: the tables, a picture for each, failed runs and the study file, as one page that needs nothing else.

Names come from whoever wrote the study, so they pass an escaping template, and the page's own policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairflare.evaluation.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from fairflare.evaluation.phrases import visible
from fairflare.study.results import Findings
from fairflare.study.scatter import scatter
from fairflare.study.spec import json_of
from fairflare.study.text import TITLE, failure_lines, sheets, summary_line

CAUTION = (
    "A study is done where all data are in one place, and simulates the hospitals. Its intervals are over seeds: they "
    "say how much training varies, not how much other patients would. Judge by quality and the worst group, never by "
    "a gap alone."
)


def to_html(found: Findings) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("fairflare.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("page.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    parts = [(sheet, scatter(board)) for sheet, board in zip(sheets(found), found.boards, strict=True)]
    return environment.get_template("study.html.j2").render(
        title=f"{TITLE} {found.study.name}",
        summary=summary_line(found),
        unequal=len(set(found.study.grids.values())) > 1,
        caution=CAUTION,
        parts=parts,
        failures=failure_lines(found),
        study=json.dumps(json_of(found.study), indent=2, ensure_ascii=False),
        box={
            "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP,
            "bottom": HEIGHT - BOTTOM,
        },
        style_sha256=digest,
    )  # fmt: skip


def _visible(value: Any) -> Any:
    return visible(value) if type(value) is str else value
