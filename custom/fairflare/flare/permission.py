# SPDX-License-Identifier: Apache-2.0
"""Whether a site may go on with a job: its policy as it stands now, asked at the first task and before each release.

A hospital that changes its mind edits, expires or deletes its policy, or withdraws a signed approval; from then on
nothing more leaves in jobs that run already. What was decided goes into the site's list of decisions before it is
acted upon; a list that cannot be written is a refusal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey

from fairflare.errors import FairFlareError, PolicyError
from fairflare.flare.identities import is_site_kit
from fairflare.plan import Plan
from fairflare.policy import POLICY_NAME, SitePolicy, read_policy
from fairflare.policy.approvals import FOLDER, approved_plans
from fairflare.policy.compare import is_within
from fairflare.policy.site import utc_today
from fairflare.privacy.anchor import decisions_anchor
from fairflare.privacy.decisions import Decision, DecisionLog, Depth, utc_now

_CERTIFICATE = "client.crt"
#: What tells one state of a file from another, without reading it; ``None``: it cannot be looked at.
_Stamp = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Asked:
    """Who asks a site for what: its own name, FLARE's job id, and the job's submitter as far as FLARE names one."""

    site: str
    job: str
    submitter: str | None


@dataclass(frozen=True)
class Places:
    """The site's own folder with its policy, its start-up kit, and FLARE's workspace."""

    local: Path
    startup: Path
    workspace: Path


def asked(fl_ctx: FLContext) -> Asked:
    """What FLARE's context says about the job at hand."""
    meta = fl_ctx.get_prop(FLContextKey.JOB_META)
    submitter = meta.get(JobMetaKey.SUBMITTER_NAME.value) if isinstance(meta, dict) else None
    return Asked(fl_ctx.get_identity_name(), fl_ctx.get_job_id(), submitter if isinstance(submitter, str) else None)


def decision_log(policy: SitePolicy, site: str, startup: Path, workspace: Path) -> DecisionLog:
    """The site's list of decisions: in the policy's store, and in a simulator below the site's name."""
    if not is_site_kit(startup):
        return DecisionLog(policy.decisions_file(site, workspace))
    return DecisionLog(policy.decisions_file(None, workspace), decisions_anchor(startup.parent))


class Permission:
    """One job's permission at one site.

    Parameters
    ----------
    plan, who
        What is to run, and who asks.
    places
        Where policy, kit and workspace are.
    today
        The clock.

    Raises
    ------
    PolicyError
        At construction: no policy that can be read, so there is nowhere to write a decision. ``FF-POLICY-STORE``.
    DecisionError
        What was decided cannot be written. A plan that the policy does not allow is for :meth:`verify`.
    """

    def __init__(self, plan: Plan, who: Asked, places: Places, *, today: Callable[[], date] = utc_today) -> None:
        self.plan, self.places = plan, places
        self._who = who
        self._today = today
        self._seen = self._now()
        self.policy = read_policy(places.local / POLICY_NAME)
        self._log = decision_log(self.policy, who.site, places.startup, places.workspace)
        self._joined = False
        self._refusal = self._refused(self.policy)
        self._decide(self._refusal)

    def verify(self) -> None:
        """Raise unless the policy, as it stands now, allows the job.

        The first time that it does is the decision to join, under the terms of :attr:`policy`. A server may ask as
        often as it likes: without a change there is no new decision.

        Raises
        ------
        PolicyError
            Its own code: expired, absent, broken, or it does not allow the plan (any more). ``FF-POLICY-CHANGED``: it
            became tighter in something that a job takes over once, when it joins.
        DecisionError
            What was decided cannot be written.
        """
        now = self._now()
        if now != self._seen:
            refusal = self._changed()
            # A new day, or an approval of another plan, is no decision of its own.
            if now[1] != self._seen[1] or _code(refusal) != _code(self._refusal):
                self._decide(refusal)
            self._seen, self._refusal = now, refusal
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    def _changed(self) -> FairFlareError | None:
        try:
            policy = read_policy(self.places.local / POLICY_NAME)
            if not self._joined:
                self._log = decision_log(policy, self._who.site, self.places.startup, self.places.workspace)
                self.policy = policy
        except FairFlareError as problem:
            return problem
        return self._refused(policy)

    def _refused(self, policy: SitePolicy) -> FairFlareError | None:
        try:
            self._verify(policy)
            if self._joined:
                _verify_not_tighter(self.policy, policy)
        except FairFlareError as problem:
            return problem
        return None

    def _verify(self, policy: SitePolicy) -> None:
        today = self._today()
        try:
            certificate = (self.places.startup / _CERTIFICATE).read_bytes()
        except OSError:
            certificate = None
        policy.verify(self.plan, today=today, approved=approved_plans(self.places.local, certificate, today=today))

    def _decide(self, refusal: FairFlareError | None) -> None:
        depth: Depth = "release" if self._joined else "join"
        self._log.append(
            Decision(
                time=utc_now(), site=self._who.site, job=self._who.job, plan_sha256=self.plan.sha256,
                plan_name=self.plan.name, submitter=self._who.submitter, depth=depth,
                verdict="accepted" if refusal is None else "refused", code=_code(refusal),
                reasons=() if refusal is None else (refusal.got,),
            )
        )  # fmt: skip
        self._joined = self._joined or refusal is None

    def _now(self) -> tuple[date, _Stamp, tuple[tuple[str, _Stamp], ...]]:
        """The day, and the states of the policy, and of approvals and the certificate that they are checked with."""
        folder = self.places.local / FOLDER
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        files = [*(folder / name for name in names), self.places.startup / _CERTIFICATE]
        return (
            self._today(),
            _stamp(self.places.local / POLICY_NAME),
            tuple((file.name, _stamp(file)) for file in files),
        )


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _code(problem: FairFlareError | None) -> str | None:
    return None if problem is None else problem.code


def _verify_not_tighter(joined: SitePolicy, now: SitePolicy) -> None:
    """Refuse a policy that became tighter in what a job took over at its start, and cannot take over again."""
    kept = joined.peers or {}
    tighter = {
        "store": now.store != joined.store,
        "identities": now.identities == "kit" != joined.identities,
        "cohort_changes": now.cohort_changes < joined.cohort_changes,
        "differential_privacy": not is_within(joined.differential_privacy, now.differential_privacy),
        "peers": now.peers is not None
        and (joined.peers is None or any(now.peers.get(name) != pin for name, pin in kept.items())),
    }
    found = [field for field, is_tighter in tighter.items() if is_tighter]
    if found:
        raise PolicyError(
            "FF-POLICY-CHANGED",
            got=f"a policy that was changed during this job in {', '.join(found)}",
            expected="the terms under which this site joined, or looser ones",
            next_step="nothing more leaves in this job; the new terms hold for the next one",
        )
