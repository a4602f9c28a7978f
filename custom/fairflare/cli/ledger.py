# SPDX-License-Identifier: Apache-2.0
"""``fairflare ledger``: what a data set's private releases have cost over all jobs, and what a plan would cost."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.errors import LedgerError
from fairflare.policy import SitePolicy, read_policy

if TYPE_CHECKING:
    from fairflare.privacy.ledger import Entry, Ledger
    from fairflare.privacy.loss import Budget, Mechanism

app = typer.Typer(
    help="Look at what a data set's private releases cost, over all jobs and for ever.", no_args_is_help=True
)

FORMAT = "fairflare/ledger/1"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

PolicyFile = Annotated[
    Path, typer.Argument(help="A site_policy.json, or the folder that holds it: it says where the ledger is.")
]
DataSet = Annotated[str, typer.Argument(help="Name of the data set in the site's catalogue.")]
Site = Annotated[
    str | None, typer.Option(help="The site, where a simulator's sites share the policy.", show_default=False)
]
Delta = Annotated[float | None, typer.Option(help="Delta to count at; by default the policy's.", show_default=False)]


@dataclass(frozen=True)
class Account:
    """A data set's ledger, and the site's budget for it (``None``: the policy names none)."""

    ledger: Ledger
    budget: Budget | None


def open_account(policy: Path, data_set: str, site: str | None) -> Account:
    """The account that a policy's store holds of a data set; ``FF-LEDGER-DATA-SET`` for what is no name of one."""
    from fairflare.privacy.anchor import ledger_anchor
    from fairflare.privacy.ledger import Ledger

    if _NAME.fullmatch(data_set) is None:
        raise LedgerError(
            "FF-LEDGER-DATA-SET",
            got="a text that is no name of a data set",
            expected="a name as the site's catalogue has it, such as heart",
            next_step="correct the name",
        )
    kit = (policy if policy.is_dir() else policy.parent).absolute().parent
    anchor = ledger_anchor(kit, data_set) if site is None and (kit / "startup" / "client.crt").is_file() else None
    found = read_policy(policy)
    return Account(Ledger(found.ledger_file(site, data_set, None), anchor), _budget(found))


def _budget(policy: SitePolicy) -> Budget | None:
    from fairflare.privacy.loss import Budget

    most = policy.differential_privacy
    return None if most is None else Budget(most.epsilon, most.delta, most.relation)


@app.command()
def show(
    policy: PolicyFile,
    data_set: DataSet,
    site: Site = None,
    delta: Delta = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON on standard output.")] = False,
) -> None:
    """Show what each job spent of a data set's budget, and epsilon of all of it for both relations.

    A ledger that is damaged, or older than the kit knows, is an error (exit status 1).
    """
    from fairflare.privacy.loss import RELATIONS, Budget

    account = open_account(policy, data_set, site)
    entries = account.ledger.entries()
    at = account.budget.delta if account.budget is not None else None
    if delta is not None:
        at = Budget(1.0, delta).delta
    if at is None:
        raise _no_delta()
    spent = {relation: account.ledger.epsilon(at, relation) for relation in RELATIONS}
    if as_json:
        epsilons = {relation: asdict(one) for relation, one in spent.items()}
        limit = None if account.budget is None else asdict(account.budget)
        print(json.dumps({"format": FORMAT, "data_set": data_set, "releases": len(entries), "delta": at,
                          "budget": limit, "epsilon": epsilons}, indent=2))  # fmt: skip
        return
    typer.echo(f"{data_set}: {len(entries)} private releases")
    for line in _jobs(entries):
        typer.echo(f"  {line}")
    for relation, one in spent.items():
        typer.echo(f"epsilon {one.value:.3f} at delta {at:g}, {_MEANING[relation]} ({one.method})")
    if spent["add_remove"].value > 0:
        typer.echo("for each data set alone: of a patient who is in several, here or elsewhere, they add up")
    if account.budget is None:
        typer.echo("budget: the policy names none (differential_privacy)")
    elif at == account.budget.delta:
        left = account.budget.epsilon - spent[account.budget.relation].value
        typer.echo(f"budget: epsilon {account.budget.epsilon:g}; {max(left, 0):.3f} left")


_MEANING = {"add_remove": "one patient more or less", "replace": "one patient in another's place"}


def _jobs(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for (job, plan), group in groupby(entries, key=lambda one: (one.release.job, one.release.plan_sha256)):
        some = list(group)
        what = ", ".join(sorted({one.release.what for one in some}))
        rounds = sorted({one.release.round for one in some})
        lines.append(
            f"{some[0].time}  job {job}, plan {plan[:16]}: rounds {rounds[0]} to {rounds[-1]}, {len(some)} "
            f"releases of {what}"
        )
    return lines


@app.command()
def verify(policy: PolicyFile, data_set: DataSet, site: Site = None) -> None:
    """Check a ledger's chain of hashes and its anchor: exit status 0 only if it is as this site wrote it.

    Outside a kit there is no anchor: compare the last hash with one that was noted elsewhere.
    """
    count, last = open_account(policy, data_set, site).ledger.head()
    typer.echo(f"{data_set}: {count} private releases, as they were written")
    typer.echo(f"last hash {last.hex()}")


@app.command()
def export(
    policy: PolicyFile,
    data_set: DataSet,
    site: Site = None,
    to: Annotated[Path | None, typer.Option(help="New file to write; by default standard output.")] = None,
) -> None:
    """Write every release as a line of JSON, oldest first, for whoever must answer for the data.

    It holds plans' hashes, job ids, names of attributes, sampling rates: from these the number of records follows.
    """
    lines = [json.dumps(asdict(one), sort_keys=True) for one in open_account(policy, data_set, site).ledger.entries()]
    text = "".join(f"{line}\n" for line in lines)
    if to is None:
        typer.echo(text, nl=False)
        return
    with to.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"wrote {len(lines)} releases to {to}")


@app.command()
def forecast(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    policy: Annotated[Path, typer.Option(help="The site's policy, or its folder: its ledger and its budget count.")],
    units: Annotated[int, typer.Option("--records", min=1, help="Patients in training here.")],
    site: Site = None,
) -> None:
    """Say what a plan would cost of a data set's budget: exit status 0 only if all its rounds can be afforded.

    It counts one session: a job that is interrupted and gone on with tells its numbers of patients anew. Nothing is
    written.
    """
    from fairflare.plan import read_plan
    from fairflare.privacy.bill import planned

    found = read_plan(plan)
    if found.differential_privacy is None:
        raise LedgerError(
            "FF-LEDGER-PLAN", got="a plan without differential privacy", expected="one that spends a budget",
            next_step="it costs the ledger nothing; 'fairflare plan privacy PLAN --to NEW' makes one that is private",
        )  # fmt: skip
    account = open_account(policy, found.task.data_set, site)
    if account.budget is None:
        raise _no_delta()
    rounds = planned(found, found.differential_privacy, units)
    budget = account.budget
    after = {}
    for name, some in (("now", 0), ("after the plan", len(rounds))):
        mechanisms = [one for round_ in rounds[:some] for one in round_]
        after[name] = account.ledger.epsilon(budget.delta, budget.relation, mechanisms).value
        other = account.ledger.epsilon(budget.delta, "replace", mechanisms).value
        typer.echo(
            f"{name}: epsilon {after[name]:.3f} of {budget.epsilon:g} at delta {budget.delta:g}, "
            f"{max(budget.epsilon - after[name], 0):.3f} left ({other:.3f}: {_MEANING['replace']})"
        )
    if after["after the plan"] > budget.epsilon:
        typer.echo(
            f"NOT covered: {_affordable(account.ledger, budget, rounds)} of {len(rounds)} rounds can be afforded"
        )
        sys.exit(1)
    typer.echo(f"covered: all {len(rounds)} rounds")


def _affordable(ledger: Ledger, budget: Budget, rounds: Sequence[Sequence[Mechanism]]) -> int:
    """How many of the first rounds fit, by halving."""
    low, high = 0, len(rounds)
    while high - low > 1:
        middle = (low + high) // 2
        mechanisms = [one for round_ in rounds[:middle] for one in round_]
        fits = ledger.epsilon(budget.delta, budget.relation, mechanisms).value <= budget.epsilon
        low, high = (middle, high) if fits else (low, middle)
    return low


def _no_delta() -> LedgerError:
    return LedgerError(
        "FF-LEDGER-NO-BUDGET",
        got="a site policy without a budget (differential_privacy is null)",
        expected="the most that a data set may cost: epsilon and delta",
        next_step="write them into the policy; 'ledger show' also takes --delta",
    )
