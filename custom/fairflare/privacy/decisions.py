# SPDX-License-Identifier: Apache-2.0
"""What a site decided about plans: one JSON line for each decision, in a file that only grows.

Each line holds the SHA-256 of the line before it, so a line that was changed, or taken out of the middle, is found.
That lines were cut off at the end, or the last one changed, is told by the anchor (:mod:`fairflare.privacy.anchor`), or
by somebody who was told the last line's hash. A line that a power loss tore stays as it is, and the next append
adds a line that says so.

The site's parent process (at deploy) and its job processes write to one file, so every append locks it. The whole
chain is read before each append: a site whose log was changed decides nothing more. A decision counts once it is on
disk; what cannot be written is an error, and the caller refuses.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from fairflare.errors import DecisionError
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.disk import make_folder, sync_folder

Depth = Literal["deploy", "join", "release"]
Verdict = Literal["accepted", "refused"]

#: What stands for the hash of the line before the first one.
START: Final = "0" * 64
_PREVIOUS, _TORN = "previous", "torn_sha256"
#: Characters of a text (some come from outside, such as a submitter's name), and reasons of one decision.
_LONGEST, _MOST = 512, 64


@dataclass(frozen=True)
class Decision:
    """One decision of a site.

    Attributes
    ----------
    time
        UTC, ISO 8601 (:func:`utc_now`).
    site, job
        The site's name, and FLARE's job id.
    plan_sha256, plan_name
        The plan; ``None`` where none could be read.
    submitter
        Whom FLARE's job names as its submitter; ``None`` if it does not. Not checked by the site.
    depth
        Where it was decided: before the job starts (``deploy``), at its first task (``join``), or when a result was to
        leave and something had changed (``release``).
    verdict, code, reasons
        ``accepted`` without a code, or ``refused`` with one, and with reasons in words.
    """

    time: str
    site: str
    job: str
    plan_sha256: str | None
    plan_name: str | None
    submitter: str | None
    depth: Depth
    verdict: Verdict
    code: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """A site's decisions in order, and how many lines were torn (by a power loss, while they were written)."""

    decisions: tuple[Decision, ...]
    torn: int
    head: str


def utc_now() -> str:
    """The time by the clock, as a decision holds it."""
    return datetime.now(tz=timezone.utc).isoformat(timespec="seconds")


class DecisionLog:
    """Appends to a site's decisions; the file (mode 0600) and its folder (0700) are made when they are needed."""

    def __init__(self, path: Path, anchor: Anchor | None = None) -> None:
        self._path, self._anchor = path, anchor

    def append(self, decision: Decision) -> None:
        """Add one decision, and return once it is on disk.

        Raises
        ------
        DecisionError
            ``FF-DECISION-LOG``: it cannot be written, by access rights or a full disk. ``FF-DECISION-CHAIN``: the file
            was changed. ``FF-DECISION-ROLLBACK``: it is older than its anchor. In each case nothing was decided: the
            caller refuses.
        """
        try:
            with _locked(self._path) as file:
                data = _content(file)
                history, torn = _replay(data)
                _verify_newest(data, _anchored(self._anchor))
                lines = _lines(data, history.head, torn, decision)
                _write(file, lines)
                if self._anchor is not None:
                    self._anchor.write(_hash(lines.splitlines()[-1]))
        except OSError as problem:
            _refuse_log(problem)


def read_history(path: Path, anchor: Anchor | None = None) -> History:
    """The decisions in a file, its chain checked; none if there is no file.

    Raises
    ------
    DecisionError
        ``FF-DECISION-CHAIN``: changed, or no such log. ``FF-DECISION-LOG``: it cannot be read.
        ``FF-DECISION-ROLLBACK``: it is older than its anchor.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # not in the middle of somebody's line, or before its anchor is written
            data = file.read()
            wanted = _anchored(anchor)
    except FileNotFoundError:
        data, wanted = b"", _anchored(anchor)
    except OSError as problem:
        _refuse_log(problem)
    history = _replay(data)[0]
    _verify_newest(data, wanted)
    return history


def read_decisions(path: Path) -> tuple[Decision, ...]:
    """The decisions in a file, in order; as :func:`read_history`."""
    return read_history(path).decisions


def _anchored(anchor: Anchor | None) -> str | None:
    try:
        return anchor.read() if anchor is not None else None
    except OSError as problem:
        _refuse_log(problem)


def _verify_newest(data: bytes, wanted: str | None) -> None:
    if wanted is not None and all(_hash(line) != wanted for line in data.split(b"\n")):
        raise DecisionError(
            "FF-DECISION-ROLLBACK",
            got="a list of decisions without the last one that this site wrote: an older copy, or a new file",
            expected="the newest file; its last line's hash is noted in the kit's folder 'anchors'",
            next_step="put the newest copy back; if it is lost, write down why, and then remove that note",
        )


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file's descriptor, while no other process appends."""
    make_folder(path.parent)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if stat.S_IMODE(os.fstat(file).st_mode) != 0o600:
            os.fchmod(file, 0o600)
        sync_folder(path.parent)
        yield file
    finally:
        os.close(file)


def _content(file: int) -> bytes:
    data = b""
    while part := os.pread(file, 1 << 20, len(data)):
        data += part
    return data


def _write(file: int, data: bytes) -> None:
    while data:  # a full disk takes a part, then raises; the part is healed as torn
        data = data[os.write(file, data) :]
    os.fsync(file)


def _lines(data: bytes, head: str, torn: bytes | None, decision: Decision) -> bytes:
    """What to append: the decision, and before it, where the file ends in a torn line, a line that says so."""
    result = b"" if not data or data.endswith(b"\n") else b"\n"
    if torn is not None:
        note = _line({_TORN: _hash(torn), "time": decision.time}, head)
        result, head = result + note + b"\n", _hash(note)
    limited = {name: text[:_LONGEST] if isinstance(text, str) else text for name, text in asdict(decision).items()}
    limited["reasons"] = [reason[:_LONGEST] for reason in decision.reasons[:_MOST]]
    return result + _line(limited, head) + b"\n"


def _line(event: dict[str, Any], head: str) -> bytes:
    return json.dumps({**event, _PREVIOUS: head}, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _replay(data: bytes) -> tuple[History, bytes | None]:
    """The decisions in ``data``, and what is torn at its end, of which no line speaks yet.

    The beginning of a line is no JSON, so it is told apart from a line that was changed. It may be followed by the
    beginning of the line that was to speak of it.
    """
    decisions: list[Decision] = []
    head, healed, torn = START, 0, list[bytes]()
    lines = data.split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
        event = _event(line)
        if event is None:
            torn.append(line)
            continue
        wanted = _hash(b"\n".join(torn)) if torn else None
        if event.get(_PREVIOUS) != head or event.get(_TORN) != wanted:
            _refuse_chain(number)
        if torn:
            healed += 1
            torn.clear()
        else:
            decisions.append(_decision(event, number))
        head = _hash(line)
    return History(tuple(decisions), healed + bool(torn), head), b"\n".join(torn) if torn else None


def _event(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a whole line; ``None`` for anything else."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _decision(event: dict[str, Any], number: int) -> Decision:
    found = {name: value for name, value in event.items() if name != _PREVIOUS}
    reasons = found.pop("reasons", None)
    texts = all(value is None or isinstance(value, str) for value in found.values())
    if {*found, "reasons"} != {field.name for field in fields(Decision)} or not isinstance(reasons, list) or not texts:
        _refuse_chain(number)
    return Decision(**found, reasons=tuple(map(str, reasons)))


def _refuse_log(problem: OSError) -> NoReturn:
    raise DecisionError(
        "FF-DECISION-LOG",
        got=f"a list of decisions that cannot be read or written ({type(problem).__name__})",
        expected="a file and a disk that keep what this site decides",
        next_step="nothing was accepted; make room, or correct the access rights of the policy's 'store'",
    ) from None


def _refuse_chain(number: int) -> NoReturn:
    raise DecisionError(
        "FF-DECISION-CHAIN",
        got=f"a list of decisions whose line {number} is not the one that was written there",
        expected="every line as this site wrote it",
        next_step="find out who changed it; keep it as evidence under another name, then a new list begins",
    )
