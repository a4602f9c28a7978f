# SPDX-License-Identifier: Apache-2.0
"""A hostile server's own job process: before its work it gives every site tasks that no job of ours has.

:func:`inject` makes a folder for the server's ``PYTHONPATH``. The ``sitecustomize`` in it changes nothing but the
controller in the server's process for a job; its configuration and its classes are named as ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_CUSTOMIZE = """import sys
if any(one.endswith("runner_process") for one in sys.orig_argv):
    sys.path.append({root!r})
    from tests.federation.hostile_tasks import patch
    patch({answers!r}, {names!r}, {sites!r})
"""


def inject(folder: Path, names: Sequence[str], sites: Sequence[str]) -> Path:
    """The folder for ``PYTHONPATH`` of a server whose jobs begin with tasks of these ``names``, for all ``sites``."""
    place = folder / "modules"
    place.mkdir(parents=True)
    text = _CUSTOMIZE.format(root=str(ROOT), answers=str(_file(folder)), names=list(names), sites=list(sites))
    (place / "sitecustomize.py").write_text(text, encoding="utf-8")
    return place


def answers(folder: Path) -> list[dict[str, Any]]:
    """What each site answered: ``{"task", "site", "code", "content"}``."""
    lines = _file(folder).read_text(encoding="utf-8").splitlines() if _file(folder).exists() else []
    return [json.loads(line) for line in lines]


def _file(folder: Path) -> Path:
    return folder / "answers.jsonl"


def patch(file: str, names: Sequence[str], sites: Sequence[str]) -> None:
    """Put the tasks before the controller's own work."""
    from nvflare.apis.controller_spec import ClientTask, Task
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable

    from fairflare.flare.controller import FairFlareController

    work = FairFlareController.control_flow

    def note(client_task: ClientTask, fl_ctx: FLContext) -> None:
        result = client_task.result
        content = {key: repr(value)[:200] for key, value in result.items() if key != "__headers__"}
        line = {"task": client_task.task.name, "site": client_task.client.name, "code": result.get_return_code()}
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**line, "content": content}) + "\n")

    def control_flow(self: Any, abort_signal: Any, fl_ctx: FLContext) -> None:
        for name in names:
            task = Task(name=name, data=Shareable({"path": "/etc/passwd"}), timeout=60, result_received_cb=note)
            self.broadcast_and_wait(
                task=task, fl_ctx=fl_ctx, targets=list(sites), min_responses=len(sites), abort_signal=abort_signal
            )
        work(self, abort_signal, fl_ctx)

    FairFlareController.control_flow = control_flow
