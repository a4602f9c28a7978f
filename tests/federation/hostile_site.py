# SPDX-License-Identifier: Apache-2.0
"""A hospital that does its work and, beside it, sends the server's job far more than any answer of a plan has.

A component of that hospital's own ``resources.json``. It uses a kind of message that every run needs, so that no
shutters stop it: whoever holds a hospital's machine can send whatever it likes.
"""

from __future__ import annotations

import contextlib
import threading
import time

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.message import Message
from nvflare.private.fed.client.client_runner import ClientRunner, TaskAssignment

from fairflare.engine.messages import MEASURE

#: Bytes of one message that is too long.
HUGE = 64 * 1024 * 1024


class Sender(FLComponent):
    """``flood``: hundreds of small messages in a second; ``huge``: one very long message after the other.

    It begins with the first round: whoever is lost before, while a session begins, stops the run for all.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        begun = threading.Event()
        before, process = Cell.__init__, ClientRunner._process_task

        def remember(cell: Cell, *args: object, **more: object) -> None:
            before(cell, *args, **more)
            name = str(cell.get_fqcn())
            if "." in name:  # the job's process
                threading.Thread(target=_send, args=(cell, name.split(".")[1], how, begun), daemon=True).start()

        def notice(runner: ClientRunner, task: TaskAssignment, fl_ctx: FLContext) -> Shareable:
            if task.name == MEASURE:
                begun.set()
            return process(runner, task, fl_ctx)

        Cell.__init__, ClientRunner._process_task = remember, notice


def _send(cell: Cell, job: str, how: str, begun: threading.Event) -> None:
    begun.wait()
    target, channel, topic = f"server.{job}", "aux_communication", "__task_check__"
    while True:
        with contextlib.suppress(Exception):
            if how == "flood":
                for _ in range(100):
                    cell.core_cell.fire_and_forget(channel, topic, target, Message(payload=None), optional=True)
                time.sleep(0.1)
            else:
                long = Message(payload=Shareable({"x": bytes(HUGE)}))
                cell.send_request(channel, topic, target, long, 5.0, optional=True)
