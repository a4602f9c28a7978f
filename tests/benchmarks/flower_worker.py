# SPDX-License-Identifier: Apache-2.0
"""Flower's SecAgg+ (all clients as neighbours: SecAgg), its own workflow and client mod, in one process.

Runs under an interpreter that has ``flwr``; nothing of FairFlare is imported. Each line of standard input asks for one
round: ``{"shapes": [[...]...], "clients": n, "threshold": t, "lost": k}``; ``lost`` clients go after they shared keys.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

# The packages export functions under the names of these modules.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
workflow = importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")
WEIGHT, MOST = 500, 1000.0

seconds: dict[str, list[float]] = defaultdict(list)


def timed(where: Any, name: str, kind: str) -> None:
    """Let a function of theirs note how long each call takes."""
    inner: Callable[..., Any] = getattr(where, name)

    def call(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = inner(*given, **named)
        seconds[kind].append(time.perf_counter() - started)
        return result

    setattr(where, name, call)


timed(mod, "_setup", "setup")
timed(mod, "_share_keys", "share_keys")
timed(mod, "_collect_masked_vectors", "mask")
timed(mod, "ndarray_to_bytes", "write")
timed(workflow, "bytes_to_ndarray", "read")


class Proxy:
    """What the workflow wants to know of a client."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.cid = str(node_id)


class Everybody(FedAvg):  # type: ignore[misc]
    """Samples all clients and takes the sum as it is: its own averaging is no part of secure aggregation."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self.nodes = nodes

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """All clients, with nothing but an empty instruction."""
        return [(Proxy(node), FitIns(ndarrays_to_parameters([]), {})) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """The workflow's sum."""
        return results[0][1].parameters, {}


class Clients:
    """The grid: hands messages to the mod of every client and keeps the time that clients take."""

    def __init__(self, nodes: list[int], updates: list[np.ndarray]) -> None:
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in nodes}
        self.updates = updates
        self.lost: set[int] = set()
        self.seconds = 0.0

    def send_and_receive(self, messages: list[Message], timeout: float | None = None) -> list[Message]:
        """Answers of all clients that are not lost."""
        started = time.perf_counter()
        found = [self._answer(one) for one in messages if one.metadata.dst_node_id not in self.lost]
        self.seconds += time.perf_counter() - started
        return found

    def _answer(self, message: Message) -> Message:
        # A network would make the copy: clients take their message apart, and some of it is common to all.
        own = copy.deepcopy(message)
        return mod.secaggplus_mod(own, self.contexts[own.metadata.dst_node_id], self._fit)

    def _fit(self, message: Message, context: Context) -> Message:
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(self.updates), WEIGHT, {})
        return Message(compat.fitres_to_recorddict(result, True), reply_to=message)


def run(shapes: list[list[int]], clients: int, threshold: int, lost: int) -> dict[str, Any]:
    """One round; the sum must be right."""
    seconds.clear()
    random = np.random.default_rng(1)
    updates = [random.normal(0, 0.01, shape).astype(np.float32) for shape in shapes]
    nodes = list(range(1, clients + 1))
    grid = Clients(nodes, updates)
    state = RecordDict()
    state.config_records[workflow.MAIN_CONFIGS_RECORD] = workflow.ConfigRecord({workflow.WorkflowKey.CURRENT_ROUND: 1})
    state.array_records[workflow.MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([]), True
    )
    context = LegacyContext(Context(1, 0, {}, state, {}), None, Everybody(nodes), SimpleClientManager())
    flow = workflow.SecAggPlusWorkflow(1.0, threshold / clients, max_weight=MOST)
    work = workflow.WorkflowState()
    server: dict[str, float] = {}
    for name in ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage"):
        grid.lost = set(nodes[:lost]) if name in ("collect_masked_vectors_stage", "unmask_stage") else set()
        before, started = grid.seconds, time.perf_counter()
        if not getattr(flow, name)(grid, context, work):
            raise RuntimeError(f"Flower stopped at {name}")
        server[name] = time.perf_counter() - started - (grid.seconds - before)
    mean = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(context.state.array_records[workflow.MAIN_PARAMS_RECORD], True)
    )
    wrong = max(float(np.abs(a - b).max()) for a, b in zip(mean, updates, strict=True))
    if wrong > 1e-3:
        raise RuntimeError(f"Flower's mean is wrong by {wrong}")
    # Written as int64: eight bytes for each word of 32 bits.
    return {
        "mask": seconds["mask"], "write": sum(seconds["write"]) / len(seconds["mask"]), "read": sum(seconds["read"]),
        "sum": server["collect_masked_vectors_stage"], "unmask": server["unmask_stage"], "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write warnings to standard output
    # What Flower's launcher sets before it starts a server.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
