# SPDX-License-Identifier: Apache-2.0
"""``report.html``: the tables, a picture for each, failed runs and the study file, as one page that needs nothing else.

Names come from whoever wrote the study, so they pass an escaping template, and the page's own policy forbids the rest.
"""

from __future__ import annotations

import json

from fairflare.evaluation.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from fairflare.evaluation.rendering import rendered
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
    parts = [(sheet, scatter(board)) for sheet, board in zip(sheets(found), found.boards, strict=True)]
    return rendered(
        "study.html.j2",
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
    )  # fmt: skip
