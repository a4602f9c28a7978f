# SPDX-License-Identifier: Apache-2.0
"""An aggregator that writes down every byte that it gets, before anything looks at it; for tests of masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fairflare.flare.aggregator import SITE, FlexFairAggregator
from fairflare.flare.wire import CODE, HEAD, PROTOCOL, VECTOR

PATH = "tests.federation.recording.RecordingAggregator"
FILE = "received.jsonl"
_OURS = (HEAD, PROTOCOL, CODE)


class RecordingAggregator(FlexFairAggregator):
    """The shipped aggregator, with a file beside the record that has what came in, as it came."""

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Write the reply down, then treat it as ever."""
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / "fairflare"
        line = {
            "site": fl_ctx.get_prop(SITE),
            "head": shareable.get(HEAD),
            "protocol": shareable.get(PROTOCOL, b"").hex(),
            "vectors": {key.removeprefix(VECTOR): _hex(shareable[key]) for key in shareable if key.startswith(VECTOR)},
            "others": {key: repr(shareable[key]) for key in shareable if _is_other(key)},
            "headers": {key: repr(value) for key, value in shareable.get(ReservedHeaderKey.HEADERS, {}).items()},
        }
        with (folder / FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return super().accept(shareable, fl_ctx)


def _is_other(key: str) -> bool:
    return key not in (*_OURS, ReservedHeaderKey.HEADERS, ReservedKey.TASK_NAME) and not key.startswith(VECTOR)


def _hex(data: bytes | np.ndarray) -> str:
    return data.hex() if isinstance(data, bytes) else data.tobytes().hex()


@dataclass(frozen=True)
class Received:
    """One reply as the server got it; ``head`` is empty where a site said that it failed."""

    site: str
    head: Mapping[str, Any]
    protocol: bytes
    vectors: Mapping[str, bytes]
    others: Mapping[str, str]
    headers: Mapping[str, str]
    head_length: int

    @property
    def task(self) -> str:
        return str(self.head.get("task", ""))

    @property
    def round(self) -> int:
        return int(self.head.get("round", -1))


def received(folder: Path) -> Iterator[Received]:
    """Every reply that the server of a run's records got, in order."""
    for text in (folder / FILE).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        head = json.loads(line["head"] or "{}")
        yield Received(
            line["site"], head, bytes.fromhex(line["protocol"]),
            {label: bytes.fromhex(data) for label, data in line["vectors"].items()},
            line["others"], line["headers"],
            # The number of the round is public, and has one digit or two.
            len(line["head"] or "") - len(str(head.get("round", ""))),
        )  # fmt: skip
