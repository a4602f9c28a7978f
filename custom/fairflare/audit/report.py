# SPDX-License-Identifier: Apache-2.0
"""An audit's report: for people as text, and for programs as JSON of a format that stays.

Both say what was looked at, what was found, what could not be decided, what was not looked at, and what no file can
tell: a page that only lists findings would be read as a promise about all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fairflare.audit.findings import Report
from fairflare.audit.rule import Rule, Severity

FORMAT: Final = "fairflare/audit/1"

_STYLES: Final = {
    Severity.critical: "bold red",
    Severity.high: "red",
    Severity.medium: "yellow",
    Severity.low: "cyan",
}
_LIMITS: Final = {
    "kit": (
        "whether the processes that run were started from this kit, and with which environment variables",
        "whether the installed package is the reviewed one: compare its version and its wheel's digest",
        "whether the root certificate is the project's: compare its digest with other hospitals by telephone",
        "who else holds a copy of a private key: with central provisioning the provisioner made all of them",
        "the firewall, the disk's encryption, backups, and who may log in as the user who runs FLARE",
    ),
    "job": (
        "who hands it in: FLARE signs a job, and the sites check the signature, when it is handed in",
        "whether the job that runs is this one: the plan's hash in the run's record says so afterwards",
        "how many patients stand behind a sum, and what of this site's data would leave: fairflare rehearse says so",
        "what sums of all sites tell about patients: those of a plan without differential privacy, and of evaluation",
    ),
}


def limits(report: Report) -> list[str]:
    """What no file can tell about the subjects of a report."""
    return [text for subject in report.subjects for text in _LIMITS.get(subject, ())]


def to_json(report: Report) -> dict[str, Any]:
    """The report for programs; keys and their meaning stay as long as ``format`` does."""
    return {
        "format": FORMAT,
        "tool": f"fairflare {report.tool}",
        "time": f"{report.time:%Y-%m-%dT%H:%M:%SZ}",
        "subjects": dict(report.subjects),
        "facts": dict(report.facts),
        "summary": _summary(report),
        "findings": [
            {
                "rule": one.rule.id,
                "severity": one.severity.value,
                "title": one.rule.title,
                "subject": one.subject,
                "place": one.place,
                "got": one.got,
                "allowed": one.allowed,
                "why": one.rule.why,
                "remedy": one.rule.remedy,
                "standard": one.rule.standard,
            }
            for one in report.findings
        ],
        "undecided": [
            {"rule": one.rule.id, "title": one.rule.title, "subject": one.subject, "place": one.place,
             "reason": one.reason}
            for one in report.undecided
        ],
        "hold": [rule.id for rule in report.hold],
        "not_checked": [
            {"rule": one.rule.id, "title": one.rule.title, "reason": one.reason} for one in report.not_checked
        ],
        "limits": limits(report),
        "evidence": [
            {"file": name, "sha256": digest, "bytes": size} for name, (digest, size) in report.evidence.items()
        ],
    }  # fmt: skip


def rules_to_json(rules: list[Rule]) -> list[dict[str, Any]]:
    """Rules for programs."""
    return [
        {"rule": rule.id, "severity": rule.severity.value, "title": rule.title, "looks_at": list(rule.targets),
         "why": rule.why, "remedy": rule.remedy, "standard": rule.standard}
        for rule in rules
    ]  # fmt: skip


def to_text(report: Report) -> RenderableType:
    """The report for people."""
    return Group(*_parts(report))


def rules_to_text(rules: list[Rule]) -> RenderableType:
    """Rules for people: all that a data-protection officer needs to judge whether they are the right ones."""
    return Group(*(part for rule in rules for part in _rule(rule)))


def _summary(report: Report) -> dict[str, Any]:
    counts = {level.value: sum(one.severity is level for one in report.findings) for level in Severity}
    return {
        "findings": counts,
        "undecided": len(report.undecided),
        "hold": len(report.hold),
        "not_checked": len(report.not_checked),
    }


def _parts(report: Report) -> Iterator[RenderableType]:
    yield Text(f"Audit by fairflare {report.tool}, {report.time:%Y-%m-%d %H:%M:%S} UTC", style="bold")
    yield from _pairs(report.subjects)
    yield from _result(report)
    yield from _looked_at(report)
    yield from _found(report)
    yield from _list(
        "Not decided: none of this is a pass",
        [f"{one.rule.id} {one.rule.title}: {one.subject}/{one.place}: {one.reason}" for one in report.undecided],
    )
    reasons: dict[str, list[str]] = {}
    for one in report.not_checked:
        reasons.setdefault(one.reason, []).append(one.rule.id)
    yield from _list("Not looked at", [f"{', '.join(ids)}: {why}" for why, ids in reasons.items()])
    yield from _list("What no file can tell", limits(report))
    if report.facts:
        yield from _heading("To compare with what you know from elsewhere")
        yield from _pairs(report.facts)
    yield from _heading("Files that were read, by SHA-256")
    for name, (digest, _) in report.evidence.items():
        yield _line(f"{digest}  {name}")


def _looked_at(report: Report) -> Iterator[RenderableType]:
    yield from _heading("Looked at")
    table = Table.grid(padding=(0, 2))
    for rule in report.checked:
        own = [one for one in report.findings if one.rule is rule]
        outcome = Text("holds", style="green")
        if own:
            outcome = Text(f"does not hold ({own[0].severity.value})", style=_STYLES[own[0].severity])
        elif rule not in report.hold:
            outcome = Text("not decided", style="yellow")
        table.add_row(Text(f"  {rule.id}"), Text(rule.title), outcome)
    yield table


def _result(report: Report) -> Iterator[RenderableType]:
    numbers = _summary(report)
    kinds = [f"{count} {level}" for level, count in numbers["findings"].items() if count]
    found = f"{len(report.findings)} findings ({', '.join(kinds)})" if kinds else "no finding"
    text = (
        f"Result: {found}; {numbers['undecided']} not decided; {numbers['hold']} rules hold; "
        f"{numbers['not_checked']} not looked at."
    )
    worst = report.findings[0].severity if report.findings else None
    yield Text()
    yield Text(text, style=_STYLES[worst] if worst else "yellow" if report.undecided else "bold green")


def _found(report: Report) -> Iterator[RenderableType]:
    if not report.findings:
        return
    yield from _heading("Findings")
    for rule in dict.fromkeys(one.rule for one in report.findings):
        own = [one for one in report.findings if one.rule is rule]
        level = own[0].severity
        yield Text.assemble("  ", (level.value, _STYLES[level]), f"  {rule.id}  ", (rule.title, "bold"))
        for one in own:
            mild = "" if one.severity is level else f" ({one.severity.value})"
            text = f"{one.subject}/{one.place}: got {one.got}; allowed: {one.allowed}{mild}"
            yield Padding(Text(text), (0, 0, 0, 4))
        yield Padding(Text(f"why: {rule.why}"), (0, 0, 0, 4))
        yield Padding(Text(f"do:  {rule.remedy}"), (0, 0, 0, 4))
        yield Padding(Text(f"see: {rule.standard}"), (0, 0, 1, 4))


def _rule(rule: Rule) -> Iterator[RenderableType]:
    yield Text.assemble((rule.id, "bold"), "  ", (rule.severity.value, _STYLES[rule.severity]), f"  {rule.title}")
    for name, text in (
        ("why", rule.why), ("do", rule.remedy), ("see", rule.standard), ("looks at", ", ".join(rule.targets)),
    ):  # fmt: skip
        yield Padding(Text(f"{name}: {text}"), (0, 0, 0, 4))


def _heading(text: str) -> Iterator[RenderableType]:
    yield Text()
    yield Text(text, style="bold")


def _list(heading: str, lines: list[str]) -> Iterator[RenderableType]:
    if lines:
        yield from _heading(heading)
        yield from (Padding(Text(f"- {line}"), (0, 0, 0, 2)) for line in lines)


def _pairs(pairs: Mapping[str, str]) -> Iterator[RenderableType]:
    return (_line(f"  {name}: {value}") for name, value in pairs.items())


def _line(text: str) -> RenderableType:
    """A line that is never broken, so that a digest in it can be compared or copied whole."""
    return Text(text, no_wrap=True, overflow="ignore")
