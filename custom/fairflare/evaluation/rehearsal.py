# SPDX-License-Identifier: Apache-2.0
"""What a hospital finds out about a plan on its own machine and data, before it approves it: facts and verdict.

Numbers of this site's own records are among these facts: they are for the hospital's own eyes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

#: A task that takes more than this part of the time allowed is a warning: the next one may have a busier machine.
CLOSE = 0.5

Approval = Literal["given", "missing", "not asked for"]


@dataclass(frozen=True)
class Found:
    """One thing that was found: how bad, a stable code, what, and what to do now."""

    severity: Literal["error", "warning", "info"]
    code: str
    text: str
    next_step: str


@dataclass(frozen=True)
class PolicyVerdict:
    """What the site's policy says: what is wrong apart from a missing approval, and whether approval is there."""

    violations: tuple[Found, ...]
    approval: Approval


@dataclass(frozen=True)
class TaskTime:
    """Seconds that one task takes here, and how often a job has it.

    ``scaled``: computed from a part of the work, and not measured whole.
    """

    task: str
    seconds: float
    times: int
    scaled: bool


@dataclass(frozen=True)
class HeldCell:
    """A group of patients (or all of them) of which this site sends zeros.

    Attributes
    ----------
    split, attribute, group, label
        Where; ``label`` is "" where records of all labels are meant.
    records
        This site's own number; it never leaves.
    small
        Fewer records than the minimum. Otherwise it is held back so that a smaller one cannot be worked out.
    by
        Whose minimum it is: ``plan``, or only the stricter one of the ``policy``.
    """

    split: str
    attribute: str
    group: str
    label: str
    records: int
    small: bool
    by: Literal["plan", "policy"]


@dataclass(frozen=True)
class Missing:
    """Records of a split of which an attribute is not known: they are in no group of it."""

    split: str
    attribute: str
    records: int


@dataclass(frozen=True)
class Work:
    """What the rehearsal did with this site's records, in a process of its own.

    Attributes
    ----------
    times
        One entry for each task that takes time.
    masks
        Seconds that masks add to one round, ``None`` without masks.
    start_bytes, peak_bytes
        Most resident memory before the data were read, and in the end.
    disk_bytes
        What the job leaves on this disk, without the run's record.
    records
        By split.
    opted_out, missing, held
        Records left out by the opt-out file; unknown attributes; cells that are sent as zeros.
    smallest
        The smallest cell of a group that does leave, or ``None``; ``reported`` are groups with such a cell.
    weight
        What weighs this site's update in the sum; ``None`` where all sites weigh the same, or nothing is trained.
    """

    times: tuple[TaskTime, ...]
    masks: float | None
    start_bytes: int
    peak_bytes: int
    disk_bytes: int
    records: dict[str, int]
    opted_out: int
    missing: tuple[Missing, ...]
    held: tuple[HeldCell, ...]
    smallest: HeldCell | None
    reported: tuple[str, ...]
    weight: int | None

    def seconds(self, rounds: int) -> float:
        """Of the whole job at this site, without waiting for others."""
        return sum(one.seconds * one.times for one in self.times) + (self.masks or 0.0) * rounds


@dataclass(frozen=True)
class Leaving:
    """One vector of one task: what leaves, how it is protected, how much, how often.

    Attributes
    ----------
    numbers, type
        How many numbers, and of which type, before protection.
    mode
        ``clear``; ``closed``: masked, opened over all sites or not at all; ``encrypted``: the same, and by the
        hospitals only; ``open``: masked, dropouts are survived.
    bits, clip
        Bits of a masked word, and where changes are cut off; 0 for none.
    bytes, times
        Of one message, and messages of a job.
    """

    task: str
    label: str
    numbers: int
    type: str
    mode: Literal["clear", "closed", "encrypted", "open"]
    bits: int
    clip: float
    bytes: int
    times: int


@dataclass(frozen=True)
class TaskBytes:
    """Messages of one task in a whole job: how many, bytes down and up; ``protocol``: what of these up is no vector."""

    task: str
    times: int
    down: int
    up: int
    protocol: int


@dataclass(frozen=True)
class PlanFacts:
    """What the page says of the plan itself; ``summary`` are lines for a person."""

    name: str
    sha256: str
    data_set: str
    summary: tuple[str, ...]
    method: str
    trains: bool
    masked: bool
    rounds: int
    deadline: float
    minimum: int
    cell_sites: int
    private: bool = False


@dataclass(frozen=True)
class Told:
    """Plain sentences: what whom the numbers could tell, and what stays."""

    server: tuple[str, ...]
    hospitals: tuple[str, ...]
    not_protected: tuple[str, ...]
    own: tuple[str, ...]
    stays: tuple[str, ...]


@dataclass(frozen=True)
class Rehearsal:
    """Everything that ``fairflare rehearse`` says.

    Attributes
    ----------
    site, sites
        This site's name in the catalogue, and how many sites masks were tried for.
    quick
        A few steps only, scaled.
    software
        Names and versions that the times depend on.
    policy
        ``None`` if no policy was given.
    data
        What ``fairflare data check`` finds.
    failure
        Why the work could not be done, if so; ``work`` is ``None`` then, and where the data have errors.
    leaving, messages
        Every vector of every task, and the bytes of each task's messages.
    """

    plan: PlanFacts
    site: str
    sites: int
    quick: bool
    software: dict[str, str]
    policy: PolicyVerdict | None
    data: tuple[Found, ...]
    failure: Found | None
    work: Work | None
    leaving: tuple[Leaving, ...]
    messages: tuple[TaskBytes, ...]
    told: Told

    @property
    def refusals(self) -> tuple[Found, ...]:
        """Why a job of this plan would be refused here, or be given up; nothing if it would run."""
        return tuple(_refusals(self))

    @property
    def warnings(self) -> tuple[Found, ...]:
        """What needs a person's judgement."""
        return tuple(_warnings(self))


def _refusals(found: Rehearsal) -> Iterator[Found]:
    yield from () if found.policy is None else found.policy.violations
    if found.policy is not None and found.policy.approval == "missing":
        yield Found(
            "error",
            "FF-POLICY-REFUSED",
            "this site has not approved the plan",
            "if all else on this page is as it should be: 'fairflare policy approve PLAN --kit KIT --by NAME', or, "
            "where approvals are 'listed', the plan's hash under 'plans' in the policy",
        )
    yield from (one for one in found.data if one.severity == "error")
    if found.failure is not None:
        yield found.failure
    for one in () if found.work is None else found.work.times:
        if one.seconds > found.plan.deadline:
            yield Found(
                "error",
                "FF-ROUND-TIMEOUT",
                f"task {one.task} takes {one.seconds:.0f} s here, and the plan waits {found.plan.deadline:g} s",
                "take a faster machine, or ask for a longer federation.task_timeout_seconds or less local work",
            )


def _warnings(found: Rehearsal) -> Iterator[Found]:
    yield from (one for one in found.data if one.severity == "warning")
    for one in () if found.work is None else found.work.times:
        if CLOSE * found.plan.deadline < one.seconds <= found.plan.deadline:
            yield Found(
                "warning",
                "FF-ROUND-TIMEOUT",
                f"task {one.task} takes {one.seconds:.0f} s here, more than half of the {found.plan.deadline:g} s that "
                "the plan waits",
                "keep this machine free of other work during the job",
            )
