# SPDX-License-Identifier: Apache-2.0
"""What turning a round's vectors into messages and back costs, in this process, without any network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.decomposers import common_decomposers
from nvflare.fuel.utils import fobs

from fairflare.engine.messages import MEASURE, TRAIN, Layout, Message, layout_of
from fairflare.flare import wire
from fairflare.models import initial_vector, vector_sha256
from fairflare.plan import Plan
from fairflare.privacy.gate import Release, ReleaseGate, ReleaseLog
from fairflare.secagg.plain import PlainSite
from fairflare.secagg.protection import VectorSpec, Weighted


class _Silent(ReleaseLog):
    """The gate's log without a disk: writing it is no serialisation."""

    def __init__(self) -> None:
        pass

    def append(self, event: Any) -> None:
        pass


@dataclass(frozen=True)
class Cost:
    """Seconds of one round for all sites together: ours (``wire``) and FLARE's (FOBS), and bytes a site gets, sends."""

    wire: float
    fobs: float
    down: int
    up: int


def cost(plan: Plan, sites: int, repeats: int) -> Cost:
    """Messages are encoded once for all sites by us (FLARE serialises them for each); replies once per site."""
    flare_decomposers.register()
    common_decomposers.register()
    layout = layout_of(plan, initial_vector(plan).size)
    own = flare = 0.0
    down = up = 0
    for task in (MEASURE, TRAIN):
        message, release = _message(plan, layout, task), _release(layout, task)
        packed, encode = _timed(partial(wire.encode_message, message), repeats)
        _, decode = _timed(partial(wire.decode_message, packed), repeats)
        answer, encode_up = _timed(partial(wire.encode_release, release, "0" * 32), repeats)
        _, decode_up = _timed(partial(wire.decode_reply, answer), repeats)
        own += encode + sites * (decode + encode_up + decode_up)
        for shareable in (packed, answer):
            seconds, size = _fobs(shareable, repeats)
            flare += sites * seconds
            down, up = (down + size, up) if shareable is packed else (down, up + size)
    return Cost(own, flare, down, up)


def _message(plan: Plan, layout: Layout, task: str) -> Message:
    model = initial_vector(plan)
    text = {"model_sha256": vector_sha256(model)}
    risk = layout.vectors["risk_sums"].length
    vectors = {"model": model} if task == MEASURE else {"totals": np.zeros(risk)}
    return Message(task, 1, 0, "0" * 32, plan.sha256, vectors, {"records": 1.0, "sites": 4.0}, text)


def _release(layout: Layout, task: str) -> Release:
    def drawn(spec: VectorSpec) -> np.ndarray:
        return np.random.default_rng(0).normal(size=spec.length).astype(spec.dtype)

    gate = ReleaseGate(layout.tasks, PlainSite(), _Silent())
    return gate.release(task, 1, 0, {label: Weighted(drawn(spec)) for label, spec in layout.tasks[task].items()})


def _fobs(shareable: Shareable, repeats: int) -> tuple[float, int]:
    data, dumping = _timed(lambda: fobs.dumps(shareable), repeats)
    _, loading = _timed(lambda: fobs.loads(data), repeats)
    return dumping + loading, len(data)


def _timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What ``work`` gives, and the median of its seconds."""
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)
