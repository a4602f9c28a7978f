# SPDX-License-Identifier: Apache-2.0
"""The seal: a site's own filter lets a result pass only if this process's release gate made exactly it.

The executor answers through :func:`release` and :func:`refusal`, which remember a digest of the answer together with
the job, the site and the task it is for. FLARE runs :class:`SealFilter` of the site's privacy scope on what the
executor gave back: what it does not remember, byte for byte and for this very task, does not leave. The memory lasts
for one look, and nothing of it travels.

It is a check on everything between the gate and FLARE's sender, not on code that is in the same process and means
harm: such code can call the gate too. Against that, only the site's list of allowed classes helps.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fairflare.engine.failures import note_failure
from fairflare.errors import GateError
from fairflare.flare import wire

if TYPE_CHECKING:
    from nvflare.apis.workspace import Workspace

    from fairflare.engine.messages import Message
    from fairflare.privacy.gate import Release

#: What FLARE itself answers in place of a result. It holds no key but the code, and is made anew here.
BARE = frozenset(
    {
        ReturnCode.BAD_PEER_CONTEXT, ReturnCode.BAD_TASK_DATA, ReturnCode.EXECUTION_EXCEPTION,
        ReturnCode.EXECUTION_RESULT_ERROR, ReturnCode.MISSING_PEER_CONTEXT, ReturnCode.RUN_MISMATCH,
        ReturnCode.TASK_ABORTED, ReturnCode.TASK_DATA_FILTER_ERROR, ReturnCode.TASK_RESULT_FILTER_ERROR,
        ReturnCode.TASK_UNKNOWN, ReturnCode.UNSAFE_JOB,
    }
)  # fmt: skip

_HEADERS = ReservedHeaderKey.HEADERS


class _Memory:
    """The newest answer of each job and site, by its digest; asked for once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[tuple[str, str], bytes] = {}

    def put(self, owner: tuple[str, str], digest: bytes) -> None:
        with self._lock:
            self._digests[owner] = digest

    def take(self, owner: tuple[str, str]) -> bytes | None:
        with self._lock:
            return self._digests.pop(owner, None)


_MEMORY = _Memory()


def release(made: Release, message: Message, fl_ctx: FLContext) -> Shareable:
    """The answer that carries a release; raises :class:`GateError` unless the gate made it, for this message."""
    if (made.task, made.round, made.step) != (message.task, message.round, message.step):
        raise _refused("TASK", "a release for another task, round or step", "a release that answers the message")
    return _remember(wire.encode_release(made, message.session), fl_ctx)


def refusal(code: str, fl_ctx: FLContext) -> Shareable:
    """The answer that carries a code and nothing else."""
    return _remember(wire.error_reply(code), fl_ctx)


class SealFilter(Filter):  # type: ignore[misc]
    """Filter of results for the privacy scope of a site (``local/privacy.json``); takes no arguments.

    It raises :class:`GateError` on any doubt: FLARE then sends ``TASK_RESULT_FILTER_ERROR`` in place of the result. As
    anything else than a site's filter of outgoing results it refuses everything, and so it does the second time that
    it sees an answer: name it once per scope.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A fresh copy of what the executor made, without anything that was put on top."""
        remembered = _MEMORY.take(_owner(fl_ctx))  # whatever comes of it, that was the one look
        try:
            self._verify_place(fl_ctx)
            verify_public(fl_ctx)
            return _passed(shareable, remembered, fl_ctx)
        except Exception as problem:  # FLARE logs the text of what is raised here, so it must be one of ours
            note_failure(_folder(fl_ctx), str(fl_ctx.get_prop(FLContextKey.TASK_NAME)), problem)
            raise (problem if isinstance(problem, GateError) else _unsealed()) from None

    def _verify_place(self, fl_ctx: FLContext) -> None:
        chain, source = self.get_prop(FilterContextKey.CHAIN_TYPE), self.get_prop(FilterContextKey.SOURCE)
        direction = fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION)
        wanted = (FilterChainType.TASK_RESULT_CHAIN, FilterSource.SITE, FilterKey.OUT)
        if (chain, source, direction) != wanted:
            raise _refused("PLACE", "a seal's filter in another place", "task_result_filters of the site's own scope")


def verify_public(fl_ctx: FLContext) -> None:
    """Raise :class:`GateError` if FLARE's public context says more than which site and which job.

    FLARE attaches every public property to results, requests for tasks and other messages.
    """
    job, site = fl_ctx.get_job_id(), fl_ctx.get_identity_name()
    for key, value in fl_ctx.get_all_public_props().items():
        if key in (ReservedKey.RUN_NUM, ReservedKey.CURRENT_JOB_ID):
            known = value == job
        elif key in (ReservedKey.IDENTITY_NAME, ReservedKey.CLIENT_NAME):
            known = value == site
        elif key == ReservedKey.FQSN:  # the names of the relays above a site, then its own
            known = type(value) is str and value.split("/")[-1] == site
        else:
            known = key == ReservedKey.IS_LEAF and type(value) is bool
        if not known:
            raise _refused("CONTEXT", "a public property that is none of FLARE's own", "job, site and its place")


def _passed(shareable: object, remembered: bytes | None, fl_ctx: FLContext) -> Shareable:
    if not isinstance(shareable, Shareable) or type(shareable) is not Shareable:
        raise _unsealed()
    bare = _bare_code(shareable)
    if bare is not None:
        return make_reply(bare)
    place = (*_owner(fl_ctx), *_task(fl_ctx))
    if not all(place) or remembered is None or remembered != _digest(shareable, place):
        raise _unsealed()
    code = wire.failure_code(shareable)
    if code is not None:
        return wire.error_reply(code)
    return Shareable({key: value for key, value in shareable.items() if key != _HEADERS})


def _bare_code(shareable: Shareable) -> str | None:
    """The return code of an answer that holds nothing else."""
    headers = shareable.get(_HEADERS)
    if set(shareable) != {_HEADERS} or type(headers) is not dict or set(headers) != {ReservedHeaderKey.RC}:
        return None
    code = headers[ReservedHeaderKey.RC]
    return code if type(code) is str and code in BARE else None


def _remember(shareable: Shareable, fl_ctx: FLContext) -> Shareable:
    owner = _owner(fl_ctx)
    digest = _digest(shareable, (*owner, *_task(fl_ctx)))
    _MEMORY.put(owner, digest)
    return shareable


def _owner(fl_ctx: FLContext) -> tuple[str, str]:
    return str(fl_ctx.get_job_id("")), str(fl_ctx.get_identity_name())


def _task(fl_ctx: FLContext) -> tuple[str, str]:
    """Name and number of the task at hand; FLARE gives every task that it hands to a site another number."""
    return str(fl_ctx.get_prop(FLContextKey.TASK_NAME, "")), str(fl_ctx.get_prop(FLContextKey.TASK_ID, ""))


def _digest(shareable: Shareable, place: tuple[str, ...]) -> bytes:
    """SHA-256 over all that an answer holds and where it belongs; raises for what no answer of ours can hold."""
    entries = dict(shareable)
    headers = entries.pop(_HEADERS, None)
    failed = {ReservedHeaderKey.RC: ReturnCode.EXECUTION_EXCEPTION}
    wanted = failed if set(entries) == {wire.CODE} else {}
    if type(headers) is not dict or headers != wanted or not all(type(key) is str for key in entries):
        raise _unsealed()
    digest = hashlib.sha256()
    for text in place:
        _add(digest, b"place", text.encode())
    for key in sorted(entries):
        _add(digest, b"key", key.encode())
        _add(digest, *_plain(key, entries[key]))
    return digest.digest()


def _plain(key: str, value: object) -> tuple[bytes, bytes | np.ndarray]:
    """Type and bytes of one entry; only types whose bytes are all there is to them."""
    if key in (wire.HEAD, wire.CODE) and type(value) is str:
        return b"text", value.encode()
    if (key == wire.PROTOCOL or key.startswith(wire.VECTOR)) and type(value) is bytes:
        return b"bytes", value
    if key.startswith(wire.VECTOR) and type(value) is np.ndarray and value.ndim == 1 and value.flags.c_contiguous:
        kind = value.dtype
        if kind.str in wire.NUMBERS and kind.metadata is None:
            return kind.str.encode(), value.view(np.uint8)
    raise _unsealed()


def _add(digest: Any, kind: bytes, data: bytes | np.ndarray) -> None:
    """Add one field; its lengths go before it, so that no two lists of fields give the same bytes."""
    for part in (kind, data):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)


def _folder(fl_ctx: FLContext) -> Path:
    workspace: Workspace = fl_ctx.get_engine().get_workspace()
    return Path(workspace.get_run_dir(fl_ctx.get_job_id())) / "fairflare"


def _unsealed() -> GateError:
    return _refused("SEAL", "a result that the gate did not make, or not for this task", "the gate's own answer")


def _refused(code: str, got: str, expected: str) -> GateError:
    return GateError(
        f"FF-GATE-{code}",
        got=got,
        expected=expected,
        next_step="nothing was sent; find out what in this job or site made it, or report a defect of FairFlare",
    )
