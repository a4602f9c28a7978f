# SPDX-License-Identifier: Apache-2.0
"""``fairflare audit``: whether a job, or a start-up kit, is what a hospital has agreed to.

The auditor itself is imported when a command runs: other commands need not wait for it.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fairflare.audit.rule import Severity
from fairflare.errors import AuditError, FairFlareError

if TYPE_CHECKING:
    from fairflare.audit.findings import Report

_UNDECIDED, _USAGE = 2, 4
_STATUS = "Exit status 0: nothing; 1: findings; 2: none, but something is undecided; 4: the audit could not begin."


class _Group(TyperGroup):
    """Exit status 4 for whatever keeps an audit from beginning: 1 and 2 are results of an audit."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _usage():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage():
                return super().invoke(ctx)
        except (FairFlareError, OSError) as problem:
            from fairflare.cli.files import file_error, show_error

            show_error(problem if isinstance(problem, FairFlareError) else file_error(problem, ctx.args))
            raise typer.Exit(_USAGE) from None
        except Exception as problem:
            if hasattr(problem, "exit_code") or isinstance(problem, typer.Abort):
                raise
            traceback.print_exc()  # an auditor that breaks has found nothing, and passed nothing
            raise typer.Exit(_USAGE) from None


@contextmanager
def _usage() -> Iterator[None]:
    """Give exit status 4 to typer's errors about the command line, which have 2."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as problem:
        if getattr(problem, "exit_code", None) == _UNDECIDED:
            problem.exit_code = _USAGE  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    cls=_Group,
    help="Say whether a job, or a start-up kit, is what a hospital has agreed to. " + _STATUS,
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="The report for programs, on standard output.")]
FailOn = Annotated[Severity, typer.Option(help="Mildest severity of a finding that gives exit status 1.")]
OneRule = Annotated[str, typer.Option("--rule", help="Explain this rule (FFA-...) instead; see 'audit rules'.")]


@app.command()
def job(
    job: Annotated[Path | None, typer.Argument(help="A job's folder, with meta.json and app/.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="The site's policy to compare with; by default the kit's, if --kit is given.")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="The start-up kit of a site that would run it.")] = None,
    fail_on: FailOn = Severity.low,
    as_json: Json = False,
    rule: OneRule = "",
) -> None:
    """Audit a job before it is handed in, or before it is approved."""
    if rule:
        _explain(rule, as_json)
        return
    from fairflare.audit.auditor import audit_job

    _show(audit_job(_given(job, "a job's folder"), policy=policy, kit=kit), fail_on, as_json)


@app.command()
def kit(
    kit: Annotated[Path | None, typer.Argument(help="A start-up kit's folder, with startup/ and local/.")] = None,
    fail_on: FailOn = Severity.low,
    as_json: Json = False,
    rule: OneRule = "",
) -> None:
    """Audit a start-up kit: a site's, the server's or a person's, with the policy and files in its local/."""
    if rule:
        _explain(rule, as_json)
        return
    from fairflare.audit.auditor import audit_kit

    _show(audit_kit(_given(kit, "a start-up kit's folder")), fail_on, as_json)


@app.command()
def rules(as_json: Json = False) -> None:
    """List every rule: how severe, why, what to do, and which standard asks for it."""
    from fairflare.audit.report import rules_to_json, rules_to_text
    from fairflare.audit.rules import RULES

    found = list(RULES.values())
    _print(rules_to_json(found) if as_json else rules_to_text(found), as_json)


def _given(folder: Path | None, what: str) -> Path:
    if folder is None:
        raise AuditError(
            "FF-AUDIT-FOLDER", got="no folder", expected=what, next_step="name the folder, or a rule with --rule"
        )
    return folder


def _explain(name: str, as_json: bool) -> None:
    from fairflare.audit.report import rules_to_json, rules_to_text
    from fairflare.audit.rules import RULES

    wanted = name.upper() if name.upper().startswith("FFA-") else f"FFA-{name}"
    if wanted not in RULES:
        raise AuditError(
            "FF-AUDIT-RULE",
            got="the id of a rule that this version does not have",
            expected=f"one of {', '.join(RULES)}",
            next_step="see 'fairflare audit rules'",
        )
    found = [RULES[wanted]]
    _print(rules_to_json(found) if as_json else rules_to_text(found), as_json)


def _show(report: Report, fail_on: Severity, as_json: bool) -> None:
    from fairflare.audit.report import to_json, to_text

    _print(to_json(report) if as_json else to_text(report), as_json)
    status = report.exit_status(fail_on)
    if status:
        raise typer.Exit(status)


def _print(what: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(what, indent=2, ensure_ascii=True))
    else:
        # Without markup: names in a hostile job must not be read as orders to the terminal.
        Console(highlight=False, markup=False).print(what, crop=False)
