# SPDX-License-Identifier: Apache-2.0
"""The release gate: the one way out of a site.

Only a :class:`Release` can be put on the wire, and only :meth:`ReleaseGate.release` makes one. Anything the gate does
not recognise is refused by an exception, never passed on: another task, label, type, length, NaN, infinity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fairflare.errors import GateError
from fairflare.secagg.protection import Payload, SiteProtection, VectorSpec, Weighted, check_numbers, describe

_SEAL: Final = object()


@dataclass(frozen=True)
class Release:
    """What may leave: which task of which round it answers, protected vectors by label, and protocol messages."""

    task: str
    round: int
    step: int
    payloads: Mapping[str, Payload]
    protocol: bytes = b""
    # No argument of __init__: dataclasses.replace() gives an object without a seal.
    _seal: object = field(repr=False, default=None, init=False)

    def verify_sealed(self) -> None:
        """Raise :class:`GateError` unless the release gate of this process made this object."""
        if self._seal is not _SEAL:
            raise GateError(
                "FF-GATE-SEAL",
                got="a result that did not pass the release gate",
                expected="a Release made by ReleaseGate.release",
                next_step="send results through the gate only; report this as a defect of FairFlare",
            )


class ReleaseLog:
    """The site's own list of releases: one JSON line each, on disk before the first byte leaves.

    It holds labels, lengths and times; never a number of the vectors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, event: Mapping[str, object]) -> None:
        """Write one event and wait until it is on disk; raises :class:`GateError` otherwise: nothing may be sent."""
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event, sort_keys=True) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as problem:
            raise GateError(
                "FF-GATE-LOG",
                got=f"a list of releases that cannot be written ({type(problem).__name__})",
                expected="a writable folder with space left",
                next_step="nothing was sent; make room or correct the access rights at this site",
            ) from None


class ReleaseGate:
    """Checks, protects and records every vector of one job at one site.

    Parameters
    ----------
    allowed
        Task -> label -> specification of the vectors that may answer it; fixed by the plan.
    protection
        The protection the plan asks for.
    log
        Where releases are recorded.
    """

    def __init__(
        self, allowed: Mapping[str, Mapping[str, VectorSpec]], protection: SiteProtection, log: ReleaseLog
    ) -> None:
        self._allowed = allowed
        self._protection = protection
        self._log = log

    def release(
        self,
        task: str,
        round_: int,
        step: int,
        vectors: Mapping[str, Weighted],
        withheld: Collection[str] = (),
    ) -> Release:
        """Let exactly the vectors that ``task`` may return out; raises :class:`GateError` otherwise.

        ``withheld`` names those of them that do not leave this time, since their protection is not to be had.
        """
        specs = self._allowed.get(task)
        if specs is None:
            raise _refused("TASK", "a result for an unknown task", f"one of {', '.join(self._allowed)}")
        if not isinstance(vectors, Mapping):
            raise _refused("TYPE", f"{type(vectors).__name__} for task {task}", "a mapping of labels to vectors")
        if set(vectors) != set(specs):
            raise _refused("LABEL", f"vectors {sorted(map(str, vectors))} for task {task}", describe(specs))
        for label, spec in specs.items():
            _verify(spec, vectors[label])
        leaving = {label: spec for label, spec in specs.items() if label not in withheld}
        payloads, protocol = self._protection.protect(leaving, vectors)
        lengths = {label: spec.length for label, spec in leaving.items()}
        self._log.append({"event": "release", "task": task, "round": round_, "step": step, "vectors": lengths})
        release = Release(task, round_, step, MappingProxyType(payloads), protocol)
        object.__setattr__(release, "_seal", _SEAL)
        return release


def _verify(spec: VectorSpec, vector: Weighted) -> None:
    if not isinstance(vector, Weighted):
        raise _refused("TYPE", f"{type(vector).__name__} as '{spec.label}'", "a Weighted vector")
    defect = check_numbers(spec, vector.values)
    if defect is not None:
        words = {"DTYPE": "another number type", "SHAPE": "another length", "NAN": "NaN or infinity"}[defect]
        raise _refused(defect, f"{words} in '{spec.label}'", f"{spec.length} finite numbers of type {spec.dtype}")
    if type(vector.weight) is not float or not 0 <= vector.weight < float("inf"):
        raise _refused(
            "WEIGHT", f"a weight of '{spec.label}' that is no finite number >= 0", "the site's record count, or 1"
        )


def _refused(code: str, got: str, expected: str) -> GateError:
    hint = (
        "training diverged: lower the learning rate" if code == "NAN" else "nothing was sent; report this as a defect"
    )
    return GateError(f"FF-GATE-{code}", got=got, expected=expected, next_step=hint)
