# SPDX-License-Identifier: Apache-2.0
"""Takes off what an open message would tell besides what it is for: texts of errors, paths, configuration.

FLARE puts texts of exceptions into answers, and a site's merged configuration into its registration. Here every such
place is replaced by a code, or by nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, MessageType
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.admin_defs import Message as AdminMessage
from nvflare.private.admin_defs import MsgHeader, ReturnCode, error_reply
from nvflare.private.defs import (
    ERROR_MSG_PREFIX,
    CellMessageHeaderKeys,
    ClientRegMsgKey,
    ClientStatusKey,
    JobFailureMsgKey,
)
from nvflare.private.fed.client.client_executor import REPORTABLE_JOB_FAILURES
from nvflare.private.scheduler_constants import ShareableHeader

#: What stands where FLARE had the text of an error.
ERROR = "FF-SHUTTER-ERROR"
#: What stands where FLARE had the machine's inner address.
NO_ADDRESS = "0.0.0.0"  # noqa: S104  (a text in a message: nothing is bound to it)

#: All that the server needs to know of a process's context.
PEER_PROPS = frozenset(
    {
        ReservedKey.IDENTITY_NAME, ReservedKey.FQSN, ReservedKey.IS_LEAF, FLContextKey.CURRENT_RUN,
        FLContextKey.CURRENT_JOB_ID, FLContextKey.CLIENT_NAME, FLContextKey.TASK_NAME, FLContextKey.TASK_ID,
    }
)  # fmt: skip

_LONGEST = 4096
_OWN = re.compile(r"FF-[A-Z]+(-[A-Z0-9]+)*\b")
#: A path of some file system; our own messages name places inside of a job by plain names.
_PATH = re.compile(r"(^|[\s'\"=(\[:,])(([A-Za-z]:)?[/\\][^\s'\"]|~\w*[/\\])")
#: FLARE's refusals that hold nothing but names which the server sent.
_PLAIN = re.compile(
    r"unsigned job rejected - signed deploy is required|missing job meta|BYOC not permitted|not authorized"
    r"|app [\w.-]{1,64} does not pass signature verification|privacy scope '[\w.-]{0,64}' is not allowed"
    r"|Client app (has not started|already (started|stopped))\.?"
)
_TOKEN = re.compile(r"[0-9a-f-]{0,64}")


def own_text(text: object) -> str:
    """A text that FairFlare or FLARE's plain words wrote, or only a code.

    Texts with a code of ours are made for the submitter's eyes and pass whole, unless they hold something that looks
    like a path.
    """
    if not isinstance(text, str):
        return ERROR
    said = text.removeprefix(f"{ERROR_MSG_PREFIX}: ").strip()
    mark = f"{ERROR_MSG_PREFIX}: " if text.startswith(ERROR_MSG_PREFIX) else ""
    if _PLAIN.fullmatch(said):
        return mark + said
    code = _OWN.match(said)
    if code is None:
        return mark + ERROR
    return mark + (code.group() if _PATH.search(said) else said[:_LONGEST])


def admin_reply(topic: str, reply: object) -> AdminMessage:
    """The answer to an open admin request with nothing in it but what the request is for."""
    if not isinstance(reply, AdminMessage):
        return error_reply(ERROR)
    if reply.get_header(MsgHeader.RETURN_CODE, ReturnCode.OK) != ReturnCode.OK:
        return error_reply(own_text(reply.body))
    fresh = AdminMessage(topic=f"reply_{topic}", body=_BODIES.get(topic, _fixed("ok"))(reply.body))
    if reply.get_header(MsgHeader.RETURN_CODE) is not None:
        # FLARE's server takes some answers for failures as soon as there is any code at all.
        fresh.set_header(MsgHeader.RETURN_CODE, ReturnCode.OK)
    return fresh


def _fixed(word: str) -> Callable[[Any], object]:
    def body(said: Any) -> object:
        return own_text(said) if isinstance(said, str) and said.startswith(ERROR_MSG_PREFIX) else word

    return body


def _status(said: Any) -> str:
    found = json.loads(said)
    keys = (ClientStatusKey.APP_NAME, ClientStatusKey.JOB_ID, ClientStatusKey.STATUS)
    jobs = [{key: str(job.get(key, ""))[:128] for key in keys} for job in found.get(ClientStatusKey.RUNNING_JOBS, [])]
    name = str(found.get(ClientStatusKey.CLIENT_NAME, ""))
    return json.dumps({ClientStatusKey.CLIENT_NAME: name, ClientStatusKey.RUNNING_JOBS: jobs})


def _version(said: Any) -> str:
    return json.dumps({"version": str(json.loads(said).get("version", ""))[:32]})


def _resource(said: Any) -> Shareable:
    """Yes and a random token, or no and our own reason."""
    fresh = Shareable()
    enough = said.get_header(ShareableHeader.IS_RESOURCE_ENOUGH) is True
    token = said.get_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, "")
    if enough and not (isinstance(token, str) and _TOKEN.fullmatch(token)):
        enough, token = False, ERROR
    fresh.set_header(ShareableHeader.IS_RESOURCE_ENOUGH, enough)
    fresh.set_header(ShareableHeader.RESOURCE_RESERVE_TOKEN, token if enough else own_text(token))
    return fresh


def _cancelled(said: Any) -> Shareable:
    fresh = Shareable()
    fresh.set_return_code(said.get_return_code())
    return fresh


_BODIES: Mapping[str, Callable[[Any], object]] = {
    "train.check_status": _status,
    "sys.report_version": _version,
    "scheduler.check_resource": _resource,
    "scheduler.cancel_resource": _cancelled,
    "train.start_job": _fixed("OK"),
    "train.abort": _fixed("OK"),
}


def outgoing(message: Any) -> None:
    """Take off what a message of this process would tell too much; in place, before it is encoded.

    Raises whatever comes where a message has another form: then it does not leave.
    """
    headers = message.headers
    key = headers.get(MessageHeaderKey.CHANNEL), headers.get(MessageHeaderKey.TOPIC)
    for name in (StreamHeaderKey.ERROR_MSG, MessageHeaderKey.ERROR):
        text = headers.get(name)
        if text and not (isinstance(text, str) and _OWN.fullmatch(text)):
            headers[name] = ERROR
    original = headers.get(MessageHeaderKey.ORIGINAL_HEADERS)
    kind = headers.get(MessageHeaderKey.MSG_TYPE)
    if kind == MessageType.RETURN and isinstance(original, dict):
        kept = (MessageHeaderKey.CHANNEL, MessageHeaderKey.TOPIC, MessageHeaderKey.DESTINATION)
        headers[MessageHeaderKey.ORIGINAL_HEADERS] = {name: original.get(name) for name in kept}
    if kind != MessageType.REQ:
        return
    if key == (CellChannel.SERVER_MAIN, CellChannelTopic.Register):
        headers[CellMessageHeaderKeys.CLIENT_IP] = NO_ADDRESS
        if not isinstance(message.payload, Shareable):
            raise TypeError("a login that is encoded already")
        message.payload.pop(ClientRegMsgKey.SITE_CONFIG, None)
    if key == (CellChannel.SERVER_MAIN, CellChannelTopic.REPORT_JOB_FAILURE):
        message.payload = _failure(message.payload)


def _failure(said: Any) -> dict[str, Any]:
    code = said.get(JobFailureMsgKey.CODE)
    return {
        JobFailureMsgKey.JOB_ID: said.get(JobFailureMsgKey.JOB_ID),
        JobFailureMsgKey.CODE: code,
        JobFailureMsgKey.REASON: REPORTABLE_JOB_FAILURES.get(code),
    }


def peer_context(payload: object) -> None:
    """Leave in a payload's context only what the server needs; in place."""
    if not isinstance(payload, Shareable):
        return
    props = payload.get_header(ReservedHeaderKey.PEER_PROPS)
    if isinstance(props, dict):
        payload.set_header(ReservedHeaderKey.PEER_PROPS, _kept(props))
    context = payload.get_header(ReservedHeaderKey.PEER_CTX)
    if isinstance(context, FLContext):
        fresh = FLContext()
        fresh.set_public_props(_kept(context.get_all_public_props()))
        payload.set_header(ReservedHeaderKey.PEER_CTX, fresh)


def _kept(props: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in props.items() if name in PEER_PROPS}
