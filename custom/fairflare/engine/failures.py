# SPDX-License-Identifier: Apache-2.0
"""Failures at a site: the text and the trace go into the site's own file, only a code goes anywhere else.

Not into a logger: FLARE's stock kits stream its log files to the server.
"""

from __future__ import annotations

import os
import traceback
from datetime import datetime, timezone
from pathlib import Path

from fairflare.errors import FairFlareError

ERRORS = "errors.log"
INTERNAL = "FF-SITE-INTERNAL"


def note_failure(folder: Path, task: str, problem: BaseException) -> str:
    """Add what happened to ``errors.log`` (readable by this user only) and return the code that may leave."""
    code = problem.code if isinstance(problem, FairFlareError) else INTERNAL
    text = str(problem) if isinstance(problem, FairFlareError) else "".join(traceback.format_exception(problem))
    moment = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(file, "a", encoding="utf-8") as stream:
            stream.write(f"{moment} {task} {code}\n{text.rstrip()}\n\n")
    except OSError:
        return code  # a full disk must not turn a refusal into an answer
    return code
