# SPDX-License-Identifier: Apache-2.0
"""FLARE's ``app_validator``: refuses whatever is no job of ours, and at a site what its policy does not allow.

FLARE asks it when a job is deployed, first at the server, then at every site, once the signatures hold and before
anything of the app is imported or built; never at submission. The text that it returns reaches the submitter, as
``job_deploy_detail`` in the job's meta data. So it holds codes and reasons, and never a path or a name of the site's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator

from fairflare.errors import CatalogError, FairFlareError, PolicyError
from fairflare.flare import shutters
from fairflare.flare.deploys import DEPLOYS, own_name, places_of, record
from fairflare.flare.permission import Asked, Places
from fairflare.jobs.check import check_app
from fairflare.jobs.defects import sentence
from fairflare.jobs.meta import is_job_id
from fairflare.plan import Plan
from fairflare.policy import CATALOG_NAME, POLICY_NAME, SitePolicy, read_catalog, read_policy
from fairflare.policy.approvals import approved_plans
from fairflare.policy.package import installed_digest

INTERNAL = "FF-JOB-INTERNAL ?: got an app that could not be checked, expected one that can be"
OPEN = "FF-SHUTTER-OPEN site: got open shutters, expected closed ones: this site's administrator must look at it"
_LOG = logging.getLogger("fairflare.validator")


class PlanValidator(AppValidator):  # type: ignore[misc]
    """Lists what is allowed; whatever else there is, or goes wrong, refuses the job.

    Parameters
    ----------
    policy
        Whether the site's policy decides as well: ``true`` in the kits of sites, ``false`` in the server's.
    """

    def __init__(self, policy: bool) -> None:
        super().__init__()
        if not isinstance(policy, bool):
            raise TypeError(f"policy must be true or false, got {type(policy).__name__}")
        self._policy = policy
        if policy:
            # What this process runs is what lies there now; what replaces it later, a job's own process finds.
            with suppress(PolicyError):
                installed_digest()

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """Why the app in ``app_folder`` is refused, or an empty text; and nothing that FLARE should add to the job."""
        try:
            folder = Path(app_folder)
            reasons = _decide(folder) if self._policy else [str(one) for one in check_app(folder)[0]]
        except Exception as problem:  # FLARE would send its text to the server
            code = problem.code if isinstance(problem, FairFlareError) else type(problem).__name__
            _LOG.warning("FF-JOB-INTERNAL: %s", code)
            reasons = [INTERNAL]
        return sentence(reasons), {}


def _decide(folder: Path) -> list[str]:
    """A site's reasons against the app, written into its list of decisions before anybody hears them."""
    job, places = _job_and_places(folder)
    defects, plan = check_app(folder)
    reasons = [str(one) for one in defects]
    if not shutters.is_shut():
        reasons.append(OPEN)
    try:
        policy = read_policy(places.local / POLICY_NAME)
    except PolicyError as problem:
        # Without a policy there is no place for a list of decisions.
        return [*reasons, _local(problem, "site_policy.json")]
    if plan is not None:
        reasons += [*_against(plan, policy, places)]
    if plan is not None and not reasons and not DEPLOYS.is_offered(job, plan):
        reasons.append(OPEN)
    try:
        record(places, policy, Asked(own_name(places), job, DEPLOYS.submitter(job)), plan, reasons)
    except FairFlareError as problem:
        reasons.append(_local(problem, "the list of decisions"))
    if reasons:
        DEPLOYS.forget(job)
    else:
        DEPLOYS.accept(job)
    return reasons


def _job_and_places(folder: Path) -> tuple[str, Places]:
    """FLARE unzips an app into ``<kit>/<job>/app_<site>``: from there to the kit, which must be this site's own."""
    real = folder.resolve()
    job, places = real.parent.name, places_of(real.parents[1])
    if not is_job_id(job) or real.name != f"app_{own_name(places)}":
        raise ValueError("no folder of a job's app")
    return job, places


def _against(plan: Plan, policy: SitePolicy, places: Places) -> Iterator[str]:
    approved = approved_plans(places.local, (places.startup / "client.crt").read_bytes())
    yield from (f"{found.code} {found}" for found in policy.check(plan, approved=approved))
    try:
        read_catalog(places.local / CATALOG_NAME).entry(own_name(places), plan.task.data_set)
    except CatalogError as problem:
        if problem.code == "FF-CAT-UNKNOWN-DATA-SET":  # the names of the others are the site's own business
            yield f"{problem.code} task.data_set: got '{plan.task.data_set}', expected a data set of this site"
        else:
            yield _local(problem, "data_catalog.json")


def _local(problem: FairFlareError, what: str) -> str:
    """A defect of the site's own files: the code is for the submitter, the rest for nobody but the site."""
    return f"{problem.code} {what}: got a site that cannot use its own files, expected one that is ready for this plan"
