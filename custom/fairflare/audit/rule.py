# SPDX-License-Identifier: Apache-2.0
"""What a rule is: data that a data-protection officer can read, and one function for each thing that it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fairflare.audit.evidence import Evidence

#: What a rule can look at: a researcher's job, or the start-up kit of a site, of the server, or of a person.
Target = Literal["job", "site", "server", "admin"]


class Severity(str, Enum):
    """How bad a finding is. ``critical``: somebody can read what nobody agreed to. ``low``: worth a tidy-up."""

    critical = "critical"
    high = "high"
    medium = "medium"
    low = "low"

    @property
    def rank(self) -> int:
        """0 for the worst; larger is milder."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Defect:
    """What a check found at a place: ``got`` and ``allowed`` are short, without paths; ``severity``: not the rule's."""

    place: str
    got: str
    allowed: str
    severity: Severity | None = None


@dataclass(frozen=True)
class Doubt:
    """What a check could not decide, and why. It is never a pass."""

    place: str
    reason: str


@dataclass(frozen=True)
class Skip:
    """There is nothing that a check could look at, and nothing wrong with that; ``reason`` says so."""

    reason: str


Outcome = Defect | Doubt | Skip


@dataclass(frozen=True)
class Check:
    """One function of a rule, and the targets it looks at.

    ``needs_policy``: it runs only where there is a site policy. ``of_policy``: what it finds stands in that policy.
    """

    targets: tuple[Target, ...]
    function: Callable[[Evidence], Iterable[Outcome]]
    needs_policy: bool = False
    of_policy: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule of the audit.

    Attributes
    ----------
    id
        ``FFA-`` and three digits; never reused for another meaning.
    severity
        Of its findings, where a finding does not say otherwise.
    title, why, remedy
        What must hold; what happens if it does not; what to do.
    standard
        The regulation, standard or product rule that asks for it.
    checks
        What is looked at.
    """

    id: str
    severity: Severity
    title: str
    why: str
    remedy: str
    standard: str
    checks: tuple[Check, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Everything that the rule's checks look at."""
        return tuple(dict.fromkeys(target for check in self.checks for target in check.targets))
