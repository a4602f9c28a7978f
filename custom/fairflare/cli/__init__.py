# SPDX-License-Identifier: Apache-2.0
"""The ``fairflare`` command: one file per subcommand; the only place that prints.

Heavy imports wait for their command.
"""

from __future__ import annotations

import sys

import typer

from fairflare import __version__
from fairflare.cli import (
    audit,
    data,
    demo,
    evaluate,
    feasibility,
    he,
    jobs,
    kit,
    ledger,
    plan,
    policy,
    predict,
    pretrain,
    privacy,
    rehearse,
    report,
    run,
    secagg,
    server,
    study,
    worth,
)
from fairflare.cli.files import file_error, show_error
from fairflare.errors import FairFlareError

app = typer.Typer(
    name="fairflare",
    help="Train a fair medical-imaging model across hospitals on NVIDIA FLARE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(plan.app, name="plan")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(run.app, name="run")
app.add_typer(secagg.app, name="secagg")
app.add_typer(he.app, name="he")
app.add_typer(policy.app, name="policy")
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
app.add_typer(server.app, name="server")
app.add_typer(kit.app, name="kit")
plan.app.command(name="privacy")(privacy.plan_privacy)
plan.app.command(name="feasibility")(feasibility.plan_feasibility)
app.command(name="feasibility")(feasibility.feasibility)
app.command(name="rehearse")(rehearse.rehearse)
app.command(name="report")(report.report)
app.command(name="evaluate")(evaluate.evaluate)
app.command(name="predict")(predict.predict)
app.command(name="worth")(worth.worth)
app.command(name="study")(study.study)
app.command(name="pretrain")(pretrain.pretrain)
app.add_typer(pretrain.app, name="weights")
app.command(name="demo")(demo.demo)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"fairflare {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours, or of the file system, becomes four lines and exit status 1."""
    try:
        app()
    except FairFlareError as problem:
        show_error(problem)
        sys.exit(1)
    except OSError as problem:
        show_error(file_error(problem, sys.argv[1:]))
        sys.exit(1)
