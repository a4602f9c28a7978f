# SPDX-License-Identifier: Apache-2.0
"""The jobs that a server handed to this process: offered at the door, accepted by the validator, started once.

Door and validator run in a site's parent process and see different things: the door a job's meta data, the validator
the site's policy. A job starts only if both let it pass, in this process; after a restart the server must deploy it
again. What they decide goes into the site's list of decisions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fairflare.errors import FairFlareError, JobError
from fairflare.flare.identities import is_site_kit
from fairflare.flare.permission import Asked, Places, decision_log
from fairflare.jobs.defects import clipped
from fairflare.plan import Plan
from fairflare.policy import POLICY_NAME, SitePolicy, read_policy
from fairflare.policy.approvals import site_name
from fairflare.privacy.decisions import Decision, utc_now

_LOG = logging.getLogger("fairflare.deploys")
#: Jobs that are remembered; of the older ones only the folder tells that their id was used.
_MOST: Final = 4096
#: Refusals that are written in so many seconds. A hostile server can ask without end, and must not fill the disk.
_MOST_REFUSALS, _PERIOD = 64, 3600.0
#: Jobs that a site lets in, in as many seconds: each leaves a folder, which FLARE never deletes. A project's jobs
#: run one after the other and are far fewer.
_MOST_JOBS: Final = 240
#: Characters of one reason in the list of decisions.
_LONGEST: Final = 500


@dataclass
class Offer:
    """A job whose deployment the door let pass."""

    plan: Plan
    meta: Mapping[str, Any]
    accepted: bool = False


@dataclass
class _Bounded:
    """When something was done that a server can ask for without end, so that it is not done without end."""

    most: int = _MOST_REFUSALS
    clock: Callable[[], float] = time.monotonic
    _times: deque[float] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> int:
        """How many more may be done now, this one included; 1 is the last one."""
        with self._lock:
            now = self.clock()
            while self._times and now - self._times[0] > _PERIOD:
                self._times.popleft()
            left = self.most - len(self._times)
            if left > 0:
                self._times.append(now)
            return left


class Deploys:
    """What this process was offered and has accepted, by job id; safe between threads.

    An id counts once: FLARE empties the folder of a job that is deployed again, also while it runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: OrderedDict[str, Offer | None] = OrderedDict()
        self._let_in = _Bounded(most=_MOST_JOBS)

    def has_room(self) -> bool:
        """Whether one more job may come in, as one of those of the last hour."""
        return self._let_in.left() > 0

    def offer(self, job: str, plan: Plan, meta: Mapping[str, Any]) -> bool:
        """Remember what was handed over, not accepted yet; ``False`` if the id was offered before."""
        with self._lock:
            if job in self._offers:
                return False
            self._offers[job] = Offer(plan, meta)
            while len(self._offers) > _MOST:
                self._offers.popitem(last=False)
            return True

    def forget(self, job: str) -> None:
        """The job was refused: it will not start, and its id is not taken again."""
        with self._lock:
            self._offers[job] = None

    def submitter(self, job: str) -> str | None:
        """Who submitted the job, as its meta data and its signature say."""
        with self._lock:
            offer = self._offers.get(job)
        name = None if offer is None else offer.meta.get("submitter_name")
        return name if isinstance(name, str) else None

    def is_offered(self, job: str, plan: Plan) -> bool:
        """Whether the door let this plan pass for the job."""
        with self._lock:
            offer = self._offers.get(job)
            return offer is not None and offer.plan == plan

    def accept(self, job: str) -> None:
        """The job that was offered may start."""
        with self._lock:
            offer = self._offers.get(job)
            if offer is not None:
                offer.accepted = True

    def accepted(self, job: str) -> Offer | None:
        """The accepted job, unless it was started."""
        with self._lock:
            offer = self._offers.get(job)
            return offer if offer is not None and offer.accepted else None

    def take(self, job: str) -> bool:
        """Start an accepted job; ``False`` if somebody else did just now."""
        with self._lock:
            offer = self._offers.get(job)
            if offer is None or not offer.accepted:
                return False
            self._offers[job] = None
            return True


#: Those of this process.
DEPLOYS = Deploys()


_REFUSALS = _Bounded()


def places_of(workspace: Path) -> Places:
    """The folders of the kit that is FLARE's workspace; ``FF-JOB-INTERNAL`` if it is no hospital's kit."""
    root = workspace.resolve()
    if not is_site_kit(root / "startup") or not (root / "local").is_dir():
        raise JobError(
            "FF-JOB-INTERNAL",
            got="a workspace of FLARE that is no hospital's start-up kit",
            expected="startup with client.crt, client.key and rootCA.pem, and local",
            next_step="start this site from its kit",
        )
    return Places(local=root / "local", startup=root / "startup", workspace=root)


def own_name(places: Places) -> str:
    """The site's name, from its own certificate and from nobody's message."""
    return site_name((places.startup / "client.crt").read_bytes()) or "?"


def record(places: Places, policy: SitePolicy, who: Asked, plan: Plan | None, reasons: Sequence[object]) -> None:
    """Write the decision about a deployment: accepted without ``reasons``; a refusal's code begins its first reason.

    Raises
    ------
    PolicyError, DecisionError
        It cannot be written: whoever wanted to accept must refuse.
    """
    texts = [clipped(str(reason), _LONGEST) for reason in reasons]
    code = texts[0].split()[0] if texts else None
    if code is not None:
        left = _REFUSALS.left()
        if left <= 0:
            return
        texts += [] if left > 1 else ["refusals of the next hour are not written: there are too many"]
    decision = Decision(
        time=utc_now(), site=who.site, job=who.job, plan_sha256=None if plan is None else plan.sha256,
        plan_name=None if plan is None else plan.name, submitter=who.submitter, depth="deploy",
        verdict="accepted" if code is None else "refused", code=code, reasons=tuple(texts),
    )  # fmt: skip
    decision_log(policy, who.site, places.startup, places.workspace).append(decision)


def record_at_the_door(job: str, submitter: object, plan: Plan | None, reasons: Sequence[object]) -> None:
    """Write a refusal at the door, where the working folder is the kit: FLARE's parent process goes there first.

    The job is refused anyway, so a failure to write is only logged, as a code.
    """
    try:
        places = places_of(Path.cwd())
        who = Asked(own_name(places), job, clipped(submitter, _LONGEST) if isinstance(submitter, str) else None)
        record(places, read_policy(places.local / POLICY_NAME), who, plan, reasons)
    except FairFlareError as problem:
        _LOG.warning("%s: a refusal could not be written", problem.code)
    except OSError as problem:
        _LOG.warning("%s: a refusal could not be written", type(problem).__name__)


__all__ = ["DEPLOYS", "Deploys", "Offer", "own_name", "places_of", "record", "record_at_the_door"]
