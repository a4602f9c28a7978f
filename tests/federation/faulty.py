# SPDX-License-Identifier: Apache-2.0
"""Executors that misbehave on purpose, for tests; no code of the product knows of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeJobError
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fairflare.flare.executor import FairFlareExecutor
from fairflare.flare.wire import HEAD, VECTOR
from fairflare.secagg import site as masks

PATH = "tests.federation.faulty.FaultyExecutor"
FAILING = "tests.federation.faulty.FailingExecutor"
#: What the exceptions of a misbehaving site say; it must not be found at the server.
SECRET = "SECRETDIAGNOSIS"
_UPDATE = VECTOR + "update"


class FaultyExecutor(FairFlareExecutor):
    """Does ``faults[site][round]`` to the task ``train`` of that round, and is honest otherwise.

    Parameters
    ----------
    faults
        Site -> round (as text, since it comes from JSON) -> name of a fault.
    late
        Seconds that the fault ``late`` waits before it sends an honest result.
    """

    def __init__(self, faults: Mapping[str, Mapping[str, str]], late: float) -> None:
        super().__init__()
        self._faults = faults
        self._late = late

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        site, round_ = fl_ctx.get_identity_name(), json.loads(shareable[HEAD])["round"]
        fault = self._faults.get(site, {}).get(str(round_)) if task_name == "train" else None
        if fault == "raises inside the site":
            self._site._train = _raise  # the shipped executor has to deal with it
        result = None if fault == "never" else super().execute(task_name, shareable, fl_ctx, abort_signal)
        return self._spoil(fault, result, fl_ctx)

    def _spoil(self, fault: str | None, result: Shareable, fl_ctx: FLContext) -> Shareable:
        if fault == "raises":
            _raise()
        if fault == "unsafe":
            raise UnsafeJobError(SECRET)
        if fault == "never":
            time.sleep(600)
        if fault == "late":
            time.sleep(self._late)
        if fault == "says it is another site":
            fl_ctx.set_prop(ReservedKey.IDENTITY_NAME, "hospital-1", private=False, sticky=False)
        if fault in _SPOILT:
            head = json.loads(result[HEAD])
            _SPOILT[fault](head, result)
            result[HEAD] = json.dumps(head)
        return result


class FailingExecutor(FairFlareExecutor):
    """Fails in the tasks that ``faults`` names, and is honest otherwise.

    Parameters
    ----------
    faults
        Site -> "round task" -> ``raises`` (before it does anything), ``late`` (an honest answer, after the deadline)
        or ``plain`` (honest words without their masks).
    late
        Seconds that ``late`` waits.
    """

    def __init__(self, faults: Mapping[str, Mapping[str, str]], late: float) -> None:
        super().__init__()
        self._faults = faults
        self._late = late

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        asked = f"{json.loads(shareable[HEAD])['round']} {task_name}"
        fault = self._faults.get(fl_ctx.get_identity_name(), {}).get(asked)
        if fault == "raises":
            _raise()
        honest = masks.add_masks
        masks.add_masks = _no_masks if fault == "plain" else honest
        try:
            result = super().execute(task_name, shareable, fl_ctx, abort_signal)
        finally:
            masks.add_masks = honest
        if fault == "late":
            time.sleep(self._late)
        return result


def _no_masks(*_: object) -> None:
    """In place of ``add_masks``."""


def _raise(*_: object) -> Any:
    raise ValueError(f"{SECRET} of patient 17")


def _nan(head: dict[str, Any], result: Shareable) -> None:
    values = np.frombuffer(result[_UPDATE], dtype="<f4").copy()
    values[3] = np.nan
    result[_UPDATE] = values.tobytes()


def _longer(head: dict[str, Any], result: Shareable) -> None:
    result[_UPDATE] += bytes(4)
    head["vectors"]["update"][1] += 1


def _cut(head: dict[str, Any], result: Shareable) -> None:
    result[_UPDATE] = result[_UPDATE][:-4]


def _renamed(head: dict[str, Any], result: Shareable) -> None:
    for part in ("vectors", "weights"):
        head[part]["gradient"] = head[part].pop("update")
    result[VECTOR + "gradient"] = result.pop(_UPDATE)


def _extra(head: dict[str, Any], result: Shareable) -> None:
    result[VECTOR + "records"] = b""


def _half(head: dict[str, Any], result: Shareable) -> None:
    result[_UPDATE] = np.frombuffer(result[_UPDATE], dtype="<f4").astype(np.float16)
    head["vectors"]["update"][0] = "<f2"


def _words(head: dict[str, Any], result: Shareable) -> None:
    result[_UPDATE] = np.array([SECRET] * head["vectors"]["update"][1])


_SPOILT = {
    "NaN": _nan, "longer": _longer, "cut": _cut, "other key": _renamed, "one key more": _extra,
    "float16": _half, "words": _words,
}  # fmt: skip
