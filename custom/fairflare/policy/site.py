# SPDX-License-Identifier: Apache-2.0
"""A hospital's will, ``site_policy.json`` in its own ``local/`` folder: what a plan and the other sites must hold to.

A policy can only tighten a plan, never loosen it; a site without one takes part in nothing. It bounds what a plan may
ask for. How a model is trained (rates, batches, seeds, strengths of penalties, edges of groups) no policy bounds: that
is what approving a plan by its hash is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import PolicyError
from fairflare.plan import Consent, Plan, TableInput, names_of
from fairflare.policy.catalog import SITE, is_site_name
from fairflare.policy.former import refuse_former
from fairflare.policy.kinds import Kind, kinds_of
from fairflare.policy.package import installed_digest
from fairflare.policy.store import store_folder
from fairflare.schema import StrictModel, rule

POLICY_FORMAT = "fairflare/policy/3"
POLICY_NAME = "site_policy.json"
DECISIONS_NAME = "decisions.jsonl"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
#: No names: none is allowed. ``null``: any.
Names = tuple[Name, ...] | None
Protected = Literal["masked", "none"]
ProtectedStatistics = Literal["ckks", "masked", "none"]
#: From weak to strong: ``ckks`` is masked, and some totals are the hospitals' only.
STRENGTH: Final = ("none", "masked", "ckks")
Task = Literal["classification", "segmentation"]

#: Whoever submitted a plan reads why it was refused; what else this site has is its own business.
_OWN_NAMES: Final = {
    "task.data_set": "one that this site's policy names",
    "task.input.features": "columns that this site's policy names",
    "attributes": "attributes that this site's policy names",
}
#: Field of a violation -> code of the refusal; the first that is found counts. Any other field: ``FF-POLICY-REFUSED``.
_CODES: Final = {"package": "FF-POLICY-PACKAGE", "expires": "FF-POLICY-EXPIRED"}
_REFUSED: Final = "FF-POLICY-REFUSED"
#: Code -> what was expected, and the next step.
_ADVICE: Final = {
    "FF-POLICY-PACKAGE": (
        "the package that this site's policy names",
        "install that wheel; or, if the new one is meant, write the hash of 'fairflare policy package' into the policy",
    ),
    "FF-POLICY-EXPIRED": (
        "a policy that has not expired",
        "look the policy through, and give it a new day in 'expires'",
    ),
    _REFUSED: (
        "a plan within this site's policy",
        "ask the researcher to change the plan, or the site's owner to change the policy",
    ),
}


@dataclass(frozen=True)
class Violation:
    """What a plan asks for (``got``) in a ``field`` of its own, and what the policy allows (``expected``)."""

    field: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}, expected {self.expected}"

    @property
    def code(self) -> str:
        """The code of a refusal for this alone."""
        return _CODES.get(self.field, _REFUSED)

    @property
    def next_step(self) -> str:
        """What to do about it."""
        return _ADVICE[self.code][1]


class LeastProtection(StrictModel):
    """Least protection of the model's updates, and of all other vectors: ``masked``, or ``none`` for public data.

    Of statistics also ``ckks``: not even the server gets the totals that only hospitals need.
    """

    update: Protected
    statistics: ProtectedStatistics


class MostPrivacyLoss(StrictModel):
    """Most that all plans together may ever spend of a data set's privacy, for one patient more or less, or replaced.

    ``relation``: ``add_remove``, or ``replace``, by which the same plan costs more.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    relation: Literal["add_remove", "replace"]


class SitePolicy(StrictModel):
    """The whole of ``site_policy.json``. Every field is written out; ``null`` means "any" where it is allowed.

    Attributes
    ----------
    store
        Absolute path of the folder, outside any FLARE workspace and writable by nobody else, where this site keeps what
        must last: what it has revealed, by data set, and its decisions. Each site of a simulator gets a folder of its
        name in it.
    package
        SHA-256 (hex) over the files of the package that may run (``fairflare policy package``); ``null``: any. The
        package says it of itself, so it holds against accidents, not against whoever may write its files.
    identities
        Who must vouch for the sites' keys: ``kit`` (a start-up kit), or ``development`` (nobody, for simulators).
    peers
        Site name -> SHA-256 (hex) of its public key, exchanged between hospitals and not through the server; ``null``:
        whoever the project's root certificate vouches for. The site itself may be among them.
    least_sites
        Fewest sites of any sum that this site's numbers are in.
    tasks, data_sets, models, methods
        What may be learnt, from which data sets of the catalogue, with which networks and methods; ``null``: any.
    attributes
        Attributes whose groups may be looked at, parts of intersections too; ``null``: any.
    features
        Columns of a table that a model may see; ``null``: any.
    protection
        Least protection of updates and of statistics.
    colluders
        Sites that may collude with the server, at least.
    weight_unit
        Least unit to which its record count is rounded where it weighs an update.
    cells_minimum, cells_sites
        Fewest records of a group here, and fewest sites that have it, for sums of the group to be opened.
    cohort_changes
        How many other sets of sites may get exact statistics of a data set: the difference of two sums is the sum of
        the sites in which they differ.
    metrics
        Kinds of numbers that may leave (:data:`fairflare.policy.KINDS`); ``null``: any.
    most_score_bins
        Most bins of a histogram of scores; ``null``: any number. The finer, the fewer records in a bin.
    most_rounds
        Most rounds of one plan; ``null``: any number.
    differential_privacy
        The budget of each data set, for all plans and for ever; plans without differential privacy are refused.
        ``null``: none is asked for, and there is no limit; what is spent is counted all the same.
    plans
        SHA-256 (hex) of the plans that this site has approved (``fairflare plan hash``); ``null``: any that the rest
        of the policy allows. A site answers each question once for each plan: whoever may choose plans may ask again.
    approvals
        ``listed``: a plan in ``plans``, or with a signed approval, may run. ``signed``: only one with a valid signed
        approval (``fairflare policy approve``); ``plans`` must then be an empty list, since a hash there would look
        approved and not be, and ``null`` would say "any".
    consents
        Consents of a plan that this site gives.
    expires
        Last day (UTC, as 2030-12-31) on which anything runs under this policy; ``null``: it does not expire.
    """

    format: Literal["fairflare/policy/3"]
    store: str
    package: Hash | None
    identities: Literal["kit", "development"]
    peers: dict[str, Hash] | None
    least_sites: Annotated[int, Field(ge=1)]
    tasks: tuple[Task, ...] | None
    data_sets: Names
    models: Names
    methods: Names
    attributes: Names
    features: Names
    protection: LeastProtection
    colluders: Annotated[int, Field(ge=0)]
    weight_unit: Annotated[int, Field(ge=1)]
    cells_minimum: Annotated[int, Field(ge=0)]
    cells_sites: Annotated[int, Field(ge=1)]
    cohort_changes: Annotated[int, Field(ge=0)]
    metrics: tuple[Kind, ...] | None
    most_score_bins: Annotated[int, Field(ge=1)] | None
    most_rounds: Annotated[int, Field(ge=1)] | None
    differential_privacy: MostPrivacyLoss | None
    plans: tuple[Hash, ...] | None
    approvals: Literal["listed", "signed"]
    consents: tuple[Consent, ...]
    expires: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] | None

    @model_validator(mode="after")
    def _check(self) -> SitePolicy:
        if not Path(self.store).is_absolute():
            raise rule("got a relative path in 'store', expected an absolute one", "write the full path, from / on")
        if not self.store.isprintable():
            raise rule("got a path in 'store' with signs that no screen shows, expected a plain one")
        if self.peers == {}:
            raise rule("got 'peers' without a site, expected at least one, or null for whoever the project vouches for")
        for name in self.peers or ():
            if not is_site_name(name):
                raise rule(f"got a key that cannot stand among site names, expected keys that match {SITE.pattern}")
        for field, known in (("models", MODELS), ("methods", METHODS)):
            for name in getattr(self, field) or ():
                if name not in known:
                    raise rule(f"got '{name}' in '{field}', expected names among {', '.join(known)}")
        if self.approvals == "signed" and self.plans != ():
            what = "null" if self.plans is None else "hashes"
            raise rule(
                f"got {what} in 'plans' with approvals 'signed', expected an empty list: only signed approvals count",
                "write [] in 'plans', and approve plans with 'fairflare policy approve'",
            )
        if self.expires is not None and _day(self.expires) is None:
            raise rule("got a day in 'expires' that no calendar has, expected one such as 2030-12-31")
        return self

    @property
    def terms_sha256(self) -> str:
        """SHA-256 (hex) of everything in the policy but ``plans``: what a signed approval is bound to."""
        return _sha256(self.model_copy(update={"plans": ()}))

    def is_expired(self, today: date | None = None) -> bool:
        """Whether its last day is over; ``today`` is by default the clock's (UTC)."""
        last = None if self.expires is None else _day(self.expires)
        return last is not None and (today or utc_today()) > last

    def check(
        self, plan: Plan, *, today: date | None = None, approved: Collection[str] = frozenset()
    ) -> Iterator[Violation]:
        """Whatever ``plan`` asks for and this policy does not allow.

        Parameters
        ----------
        plan
            What a researcher wants to run.
        today
            The day, by default the clock's (UTC).
        approved
            Hashes of the plans with a valid signed approval (``approvals.approved_plans``).
        """
        yield from self._package()
        if self.is_expired(today):
            yield Violation("expires", (today or utc_today()).isoformat(), f"a day until {self.expires}")
        yield from self._approval(plan, approved)
        yield from self._names(plan)
        yield from self._protection(plan)
        yield from self._bounds(plan)

    def _package(self) -> Iterator[Violation]:
        if self.package is None:
            return
        try:
            own = installed_digest()
        except PolicyError as problem:
            own = problem.got
        if own != self.package:
            yield Violation("package", own, "the one that this site's policy names")

    def _approval(self, plan: Plan, approved: Collection[str]) -> Iterator[Violation]:
        digest = plan.sha256
        if self.plans is None or digest in self.plans or digest in approved:
            return
        wanted = f"one of the {len(self.plans)} that this site has approved"
        if self.approvals == "signed":
            wanted = "a plan with a valid signed approval of this site"
        yield Violation("plans", digest, wanted)

    def _names(self, plan: Plan) -> Iterator[Violation]:
        source = plan.task.input
        features = tuple(one.name for one in source.features) if isinstance(source, TableInput) else ()
        asked: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
            "task.kind": ((plan.task.kind,), self.tasks),
            "task.data_set": ((plan.task.data_set,), self.data_sets),
            "task.input.features": (features, self.features),
            # The parts of an intersection are among them: a plan cannot cross what it does not declare.
            "attributes": (tuple(one.name for one in plan.attributes), self.attributes),
            "model.name": (names_of(plan.model), self.models),
            "method.name": ((plan.method.name,), self.methods),
            "metrics": (kinds_of(plan), self.metrics),
            "consents": (plan.consents, self.consents),
        }
        for field, (names, allowed) in asked.items():
            for name in dict.fromkeys(names):
                if allowed is not None and name not in allowed:
                    yield Violation(field, f"'{name}'", _OWN_NAMES.get(field) or ", ".join(allowed) or "none")

    def _protection(self, plan: Plan) -> Iterator[Violation]:
        for field in ("update", "statistics"):
            least, got = getattr(self.protection, field), getattr(plan.protection, field)
            if STRENGTH.index(got) < STRENGTH.index(least):
                yield Violation(f"protection.{field}", f"'{got}'", f"'{least}'")
        if self.differential_privacy is not None and plan.differential_privacy is None:
            most = f"epsilon {self.differential_privacy.epsilon:g}, delta {self.differential_privacy.delta:g}"
            yield Violation("differential_privacy", "none", f"at most {most}")

    def _bounds(self, plan: Plan) -> Iterator[Violation]:
        least = {
            "federation.min_sites": (plan.federation.min_sites, self.least_sites),
            "cells.minimum": (plan.cells.minimum, self.cells_minimum),
            "cells.sites": (plan.cells.sites, self.cells_sites),
        }
        masking = plan.protection.masking
        if masking is not None:
            least["protection.masking.colluders"] = (masking.colluders, self.colluders)
            least["protection.masking.weight_unit"] = (masking.weight_unit, self.weight_unit)
        elif self.protection.update == self.protection.statistics == "none":
            # Without masks weights are exact, and hold against nobody; where masks are asked for, that is said above.
            least["protection.masking.colluders"] = (0, self.colluders)
            least["protection.masking.weight_unit"] = (1, self.weight_unit)
        for field, (got, wanted) in least.items():
            if got < wanted:
                yield Violation(field, str(got), f"at least {wanted}")
        most = {
            "evaluation.score_bins": (plan.evaluation.score_bins, self.most_score_bins),
            "training.rounds": (plan.training.rounds, self.most_rounds),
        }
        for field, (got, limit) in most.items():
            if limit is not None and got > limit:
                yield Violation(field, str(got), f"at most {limit}")

    def verify(self, plan: Plan, *, today: date | None = None, approved: Collection[str] = frozenset()) -> None:
        """Raise :class:`PolicyError` with everything that :meth:`check` finds.

        ``FF-POLICY-PACKAGE``, else ``FF-POLICY-EXPIRED``, where that is among it; else ``FF-POLICY-REFUSED``.
        """
        found = list(self.check(plan, today=today, approved=approved))
        if found:
            codes = {one.code for one in found}
            code = next(one for one in _ADVICE if one in codes)
            expected, next_step = _ADVICE[code]
            raise PolicyError(code, got="; ".join(map(str, found)), expected=expected, next_step=next_step)

    def memory_file(self, site: str | None, data_set: str, workspace: Path) -> Path:
        """Where the site remembers what it revealed of a data set; ``FF-POLICY-STORE`` if that is no safe place.

        ``site`` is for simulators, whose sites share a policy: a hospital has one memory of a data set, whatever its
        name in a project.
        """
        return store_folder(self.store, site, workspace, data_set) / "reveals.sqlite"

    def ledger_file(self, site: str | None, data_set: str, workspace: Path | None) -> Path:
        """Where the site counts what a data set's private releases cost; as :meth:`memory_file`."""
        return store_folder(self.store, site, workspace, data_set) / "ledger.sqlite"

    def decisions_file(self, site: str | None, workspace: Path | None) -> Path:
        """Where the site writes what it decided; as :meth:`memory_file`. Without a ``workspace``: for reading it."""
        return store_folder(self.store, site, workspace) / DECISIONS_NAME


def _tags(field: str) -> tuple[str, ...]:
    """The names that tell the members of a plan's section apart, such as those of all networks."""
    kinds = get_args(Plan.model_fields[field].annotation)
    return tuple(str(get_args(kind.model_fields["name"].annotation)[0]) for kind in kinds)


#: Every network and every method that a plan can name.
MODELS: Final = _tags("model")
METHODS: Final = _tags("method")


def utc_today() -> date:
    """The day by the clock, in UTC."""
    return datetime.now(tz=timezone.utc).date()


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _sha256(document: StrictModel) -> str:
    return hashlib.sha256(schema.canonical(document)).hexdigest()


def read_policy(path: Path) -> SitePolicy:
    """Read a policy from a file, or from a folder that holds one; raises :class:`PolicyError`.

    ``FF-POLICY-FORMAT``: a policy of an earlier version, which said less.
    """
    file = path / POLICY_NAME if path.is_dir() else path
    try:
        return schema.read(SitePolicy, file, error=PolicyError, what="site policy")
    except PolicyError:
        refuse_former(file, POLICY_FORMAT)
        raise


def write_policy(folder: Path, policy: SitePolicy) -> Path:
    """Write ``site_policy.json`` into ``folder`` and return its path."""
    path = folder / POLICY_NAME
    path.write_text(schema.pretty(policy), encoding="utf-8")
    return path
