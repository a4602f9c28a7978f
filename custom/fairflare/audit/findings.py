# SPDX-License-Identifier: Apache-2.0
"""What an audit says: findings, doubts, and what was looked at. Data only; :mod:`fairflare.audit.report` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from fairflare.audit.rule import Rule, Severity


@dataclass(frozen=True)
class Finding:
    """A rule that does not hold: where (``subject`` is ``job``, ``kit`` or ``policy``), what, and what would do."""

    rule: Rule
    severity: Severity
    subject: str
    place: str
    got: str
    allowed: str


@dataclass(frozen=True)
class Undecided:
    """A rule of which nobody can say from these files whether it holds."""

    rule: Rule
    subject: str
    place: str
    reason: str


@dataclass(frozen=True)
class NotChecked:
    """A rule that was not looked at, and why."""

    rule: Rule
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of one audit.

    Attributes
    ----------
    tool, time
        Version of FairFlare, and when the audit was made (UTC).
    subjects
        Subject (``job``, ``kit``, ``policy``) -> what it is, in a few words.
    facts
        What a person compares with what they know, such as the digest of the kit's root certificate.
    checked
        Rules that were applied, in the catalogue's order.
    findings
        Worst first.
    undecided, not_checked
        What is open.
    evidence
        ``subject/relative path`` -> SHA-256 (hex) and bytes of each file that was read.
    """

    tool: str
    time: datetime
    subjects: Mapping[str, str]
    facts: Mapping[str, str]
    checked: tuple[Rule, ...]
    findings: tuple[Finding, ...]
    undecided: tuple[Undecided, ...]
    not_checked: tuple[NotChecked, ...]
    evidence: Mapping[str, tuple[str, int]]

    @property
    def hold(self) -> tuple[Rule, ...]:
        """Rules that were applied, found nothing, and left nothing open."""
        open_ = {one.rule.id for one in self.findings} | {one.rule.id for one in self.undecided}
        return tuple(rule for rule in self.checked if rule.id not in open_)

    def at_least(self, severity: Severity) -> Iterator[Finding]:
        """Findings of this severity or worse."""
        return (one for one in self.findings if one.severity.rank <= severity.rank)

    def exit_status(self, fail_on: Severity) -> int:
        """1: findings of ``fail_on`` or worse; 2: none of these, but something is undecided; 0: neither.

        Findings win over doubts: what is known to be wrong is not made better by what is not known.
        """
        if any(self.at_least(fail_on)):
            return 1
        return 2 if self.undecided else 0
