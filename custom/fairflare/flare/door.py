# SPDX-License-Identifier: Apache-2.0
"""What a server may ask a site's parent process for, once the shutters let a request through.

FLARE's own validator of apps never sees a job's meta data, from which the site's launcher takes an image, paths and an
entry point; and FLARE reads an app's configurations, in any language it knows, before that validator is asked. So the
whole app is checked here first, in memory, and its meta data with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.lighter.tool_consts import NVFLARE_SUBMITTER_CRT_FILE
from nvflare.private.defs import RequestHeader, TrainingTopic
from nvflare.private.fed.client.client_status import ClientStatus
from nvflare.private.scheduler_constants import ShareableHeader

from fairflare.flare.deploys import DEPLOYS, Offer, record_at_the_door
from fairflare.jobs.check import MOST_SIGNATURE, check_archive
from fairflare.jobs.content import list_archive
from fairflare.jobs.defects import JobDefect, name_of, sentence
from fairflare.jobs.meta import VOLATILE, check_meta, is_job_id, is_same, plain
from fairflare.plan import Plan
from fairflare.policy.revoked import read_revoked

APP: Final = "app"
#: Jobs with a process at a site. The server of a hardened kit runs one at a time, and one may still be ending.
MOST_RUNNING: Final = 4
_LOG = logging.getLogger("fairflare.door")
_SUBMITTER: Final = {
    "submitter_name": (RequestHeader.SUBMITTER_NAME, RequestHeader.USER_NAME),
    "submitter_org": (RequestHeader.SUBMITTER_ORG, RequestHeader.USER_ORG),
    "submitter_role": (RequestHeader.SUBMITTER_ROLE, RequestHeader.USER_ROLE),
}
_SUBJECT: Final = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.UNSTRUCTURED_NAME)
_LONGEST_TOKEN: Final = 128
Headers = Mapping[str, Any]


def inspect_request(topic: str, headers: Headers, body: object) -> str | None:
    """Why an admin request that the shutters allow is refused, or ``None``.

    Parameters
    ----------
    topic
        FLARE's name of the request, such as ``train.deploy``.
    headers, body
        As FLARE decoded them. Nothing in them is trusted.

    Returns
    -------
    str | None
        Codes and reasons for the job's submitter, in one line of bounded length without any path; never raises.
    """
    try:
        defects = list(_INSPECTORS.get(topic, _other)(headers, body))
    except Exception as problem:  # its text may hold anything, and the answer leaves the site
        _LOG.warning("FF-JOB-INTERNAL: %s in a request of the server", type(problem).__name__)
        defects = [_internal()]
    return sentence(defects) if defects else None


def inspect_running(topic: str, running: Callable[[], Collection[str]]) -> str | None:
    """Why no further job may start at this site beside those that run, or ``None``.

    Parameters
    ----------
    topic
        FLARE's name of the request; only a start is looked at.
    running
        The ids of the jobs that have a process here. FLARE's server runs as many at once as it likes: each is a
        process with a network and data in memory.
    """
    if topic != TrainingTopic.START_JOB or len(running()) < MOST_RUNNING:
        return None
    return str(_request(topic, f"a start beside {MOST_RUNNING} jobs that run here", "one when another has ended"))


def _deploy(headers: Headers, body: object) -> Iterator[JobDefect]:
    job = headers.get(RequestHeader.JOB_ID)
    if not is_job_id(job):
        yield _no_id()
        return
    plan: Plan | None = None
    try:
        found, plan = check_archive(body)
        meta = headers.get(RequestHeader.JOB_META)
        found += check_meta(meta if isinstance(meta, Mapping) else {}, plan)
        found += _asked_for(headers, AdminCommandNames.SUBMIT_JOB)
        if headers.get(RequestHeader.REQUIRE_AUTHZ) != "true":
            found.append(_request(RequestHeader.REQUIRE_AUTHZ, "a deployment that need not be permitted", "'true'"))
        if headers.get(RequestHeader.APP_NAME) != APP:
            found.append(_request(RequestHeader.APP_NAME, name_of(headers.get(RequestHeader.APP_NAME)), f"'{APP}'"))
        if isinstance(meta, Mapping):
            found += _same_job(plain(meta), job)
            found += _same_submitter(plain(meta), headers, body)
            # FLARE's parent process works in its kit, and unzips the app into a folder there.
            if plan is not None and not found:
                found += _let_in(job, plan, plain(meta))
    except Exception as problem:
        _LOG.warning("FF-JOB-INTERNAL: %s in a deployment", type(problem).__name__)
        found = [_internal()]
    if found:
        record_at_the_door(job, headers.get(RequestHeader.SUBMITTER_NAME), plan, found)
    yield from found


def _let_in(job: str, plan: Plan, meta: Mapping[str, Any]) -> Iterator[JobDefect]:
    if not DEPLOYS.has_room():
        yield _request("train.deploy", "more jobs in an hour than a project can run", "fewer")
    elif Path(job).exists() or not DEPLOYS.offer(job, plan, meta):
        yield JobDefect("FF-JOB-ID", "job_id", "the id of a job that was here before", "a new one")


def _same_job(meta: Mapping[str, Any], job: str) -> Iterator[JobDefect]:
    if meta.get("job_id") != job:
        yield JobDefect("FF-JOB-META", "meta.json:job_id", "the id of another job", "the one of the request")


def _same_submitter(meta: Mapping[str, Any], headers: Headers, body: object) -> Iterator[JobDefect]:
    """FLARE permits by the headers, and we write down who it was: all must name the one who signed."""
    for key, names in _SUBMITTER.items():
        if any(headers.get(name) != meta.get(key) for name in names):
            yield JobDefect("FF-JOB-META", f"meta.json:{key}", "another submitter than the request's", "the same one")
    try:
        certificates = _certificates(body)
        if not certificates:
            return  # unsigned: FLARE refuses it, unless this site's kit says that it need not be signed
        signers = [x509.load_pem_x509_certificate(one) for one in certificates]
        subject = signers[0].subject
    except (OSError, ValueError):
        yield JobDefect("FF-JOB-READ", NVFLARE_SUBMITTER_CRT_FILE, "no certificate", "the one of the signer")
        return
    # As everywhere in this process: it works in its kit. A list that is not the root's raises, and so refuses.
    if any(map(read_revoked(Path()).holds, signers)):
        expected = "a certificate that counts: telephone whoever asks, and the holder of the root"
        yield JobDefect("FF-JOB-REVOKED", NVFLARE_SUBMITTER_CRT_FILE, "a signer whom the root has revoked", expected)
    if len(set(certificates)) > 1:
        yield JobDefect("FF-JOB-META", "app", "folders that different people signed", "one signer")
    for key, oid in zip(_SUBMITTER, _SUBJECT, strict=True):
        values = [attribute.value for attribute in subject.get_attributes_for_oid(oid)]
        if (values[0] if values else "") != meta.get(key):
            expected = "the one who signed it: whoever wants to run a job of somebody else's submits it anew"
            yield JobDefect("FF-JOB-META", f"meta.json:{key}", "another submitter than the job's signer", expected)


def _certificates(body: object) -> list[bytes]:
    """The certificates in an app, at its top and in its folder: whoever signed each."""
    items, _ = list_archive(body)
    own = [one for one in items if one.path.split("/")[-1] == NVFLARE_SUBMITTER_CRT_FILE and one.kind == "file"]
    return [one.read(MOST_SIGNATURE) for one in own]


def _start(headers: Headers, body: object) -> Iterator[JobDefect]:
    job = headers.get(RequestHeader.JOB_ID)
    if not is_job_id(job):
        yield _no_id()
        return
    offer = DEPLOYS.accepted(job)
    if offer is None:
        yield _no_start()
        return
    found = [*_no_resources(body), *_token(headers), *_same_meta(offer, headers.get(RequestHeader.JOB_META))]
    yield from found
    if not found and not DEPLOYS.take(job):
        yield _no_start()


def _same_meta(offer: Offer, meta: object) -> Iterator[JobDefect]:
    """What FLARE's launcher goes by at the start must be what was looked at when the job was deployed."""
    if not isinstance(meta, Mapping):
        yield JobDefect("FF-JOB-META", "meta.json", name_of(meta), "the meta data of the deployment")
        return
    yield from check_meta(meta, offer.plan)
    now = plain(meta)
    for key in {**offer.meta, **now}:
        if key not in VOLATILE and not (key in now and key in offer.meta and is_same(now[key], offer.meta[key])):
            place = f"meta.json:{key}" if isinstance(key, str) and key.isidentifier() else "meta.json:?"
            yield JobDefect("FF-JOB-META", place, "another value than at the deployment", "the same one")


def _check_resource(headers: Headers, body: object) -> Iterator[JobDefect]:
    if not is_job_id(headers.get(RequestHeader.JOB_ID)):
        yield _no_id()
    yield from _asked_for(headers, AdminCommandNames.CHECK_RESOURCES)
    yield from _no_resources(body)


def _cancel_resource(headers: Headers, body: object) -> Iterator[JobDefect]:
    yield from _other(headers, body)
    yield from _no_resources(body)
    yield from _token(headers)


def _of_a_job(headers: Headers, body: object) -> Iterator[JobDefect]:
    if not is_job_id(headers.get(RequestHeader.JOB_ID)):
        yield _no_id()


def _job_status(headers: Headers, body: object) -> Iterator[JobDefect]:
    yield from _of_a_job(headers, body)
    status = headers.get(RequestHeader.JOB_STATUS)
    if type(status) is not int or status not in ClientStatus.status_messages:
        yield _request(RequestHeader.JOB_STATUS, name_of(status), "a state of a job")


def _other(headers: Headers, body: object) -> Iterator[JobDefect]:
    """A request that needs no job; where it names one, the name must be one."""
    job = headers.get(RequestHeader.JOB_ID)
    if job is not None and not is_job_id(job):
        yield _no_id()


_INSPECTORS: Final[dict[str, Callable[[Headers, object], Iterator[JobDefect]]]] = {
    TrainingTopic.DEPLOY: _deploy,
    TrainingTopic.START_JOB: _start,
    TrainingTopic.CHECK_RESOURCE: _check_resource,
    TrainingTopic.CANCEL_RESOURCE: _cancel_resource,
    TrainingTopic.NOTIFY_JOB_STATUS: _job_status,
    TrainingTopic.ABORT: _of_a_job,
    TrainingTopic.ABORT_TASK: _of_a_job,
    TrainingTopic.DELETE_RUN: _of_a_job,
    TrainingTopic.CONFIGURE_JOB_LOG: _of_a_job,
}


def _asked_for(headers: Headers, command: str) -> Iterator[JobDefect]:
    if headers.get(RequestHeader.ADMIN_COMMAND) != command:
        got = name_of(headers.get(RequestHeader.ADMIN_COMMAND))
        yield _request(RequestHeader.ADMIN_COMMAND, got, f"'{command}'")


def _no_resources(body: object) -> Iterator[JobDefect]:
    if type(body) is not dict or body:
        yield _request("resource_spec", "resources", "none: a site decides itself what a job may use")


def _token(headers: Headers) -> Iterator[JobDefect]:
    token = headers.get(ShareableHeader.RESOURCE_RESERVE_TOKEN)
    if token is not None and not (isinstance(token, str) and len(token) <= _LONGEST_TOKEN):
        yield _request(ShareableHeader.RESOURCE_RESERVE_TOKEN, name_of(token), "a token of this site")


def _no_id() -> JobDefect:
    return JobDefect("FF-JOB-ID", "job_id", "no id of a job, and it would become a folder's name", "a UUID of FLARE's")


def _no_start() -> JobDefect:
    got = "a job that was not deployed here, was refused, or was started before"
    expected = "one that this process accepted; after a restart of the site it must be submitted anew"
    return JobDefect("FF-JOB-START", "job_id", got, expected)


def _request(place: str, got: str, expected: str) -> JobDefect:
    return JobDefect("FF-JOB-REQUEST", place, got, expected)


def _internal() -> JobDefect:
    return JobDefect("FF-JOB-INTERNAL", "?", "a request that could not be checked", "one that can be")
