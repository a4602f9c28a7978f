# SPDX-License-Identifier: Apache-2.0
"""``fairflare plan privacy``: how much noise a plan needs at a site, and what it would leave of the budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fairflare.cli.files import write_new_plan
from fairflare.cli.ledger import Account, open_account
from fairflare.errors import LedgerError
from fairflare.policy.kinds import exact_kinds

if TYPE_CHECKING:
    from fairflare.plan import Plan
    from fairflare.privacy.loss import Budget
    from fairflare.privacy.solver import Proposal

#: Noise in a measured risk, as a part of the largest risk, from which on a group is warned about.
_LOUD = 0.1
#: What a plan without differential privacy gets, where no option says otherwise.
_USUAL = {"clip": 1.0, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks"}
_USUAL_GROUPS = {"noise_multiplier": 10.0, "groups_per_unit": 1, "shared": False}


def plan_privacy(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    units: Annotated[
        int, typer.Option("--records", min=1, help="Patients in training at the smallest site: the units protected.")
    ],
    epsilon: Annotated[
        float | None, typer.Option(help="Most to spend in all; by default the policy's.", show_default=False)
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="By default the policy's; without one, min(1e-5, 1 / (10 records)).", show_default=False),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A site's policy, or its folder: what its ledger holds counts as spent.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="The site, where a simulator's sites share the policy.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the plan's own noise, and say what it costs.")] = False,
    clip: Annotated[
        float | None, typer.Option(help="L2 norm to which each record's gradient is cut off (1).", show_default=False)
    ] = None,
    count_noise: Annotated[
        float | None, typer.Option(help="Noise of the number of a site's patients (10).", show_default=False)
    ] = None,
    records_per_unit: Annotated[
        int | None, typer.Option(help="Most records of a patient in a batch (1).", show_default=False)
    ] = None,
    gradients: Annotated[
        str | None, typer.Option(help="'hooks', or 'ghost': less memory, more time (hooks).", show_default=False)
    ] = None,
    group_noise: Annotated[
        float | None, typer.Option(help="Noise of group sums over their sensitivity (10).", show_default=False)
    ] = None,
    groups_per_unit: Annotated[
        int | None, typer.Option(help="Groups of an attribute in which a patient counts (1).", show_default=False)
    ] = None,
    shared: Annotated[
        bool | None,
        typer.Option("--shared-noise/--own-noise", help="Hospitals add noise of groups together.", show_default=False),
    ] = None,
    smallest_group: Annotated[
        int | None, typer.Option(min=1, help="Patients here in the smallest group.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="New file for the plan with its differential privacy.")] = None,
) -> None:
    """Find the least noise with which a plan keeps a privacy budget at a site; counted by privacy loss distributions.

    What the plan says of its differential privacy already stays as it is, but for the noise in training (also that
    with --keep). Patients of training are covered; sums over validation and test records stay exact.
    """
    from fairflare.plan import read_plan
    from fairflare.privacy.ledger import load_accounting

    load_accounting()
    from fairflare.privacy.solver import foreseen, propose

    found = read_plan(plan)
    if found.method.counts_only:
        raise _refusal("a plan that trains nothing", "a plan that trains", "name the plan that comes after it")
    if keep and found.differential_privacy is None:
        raise _refusal("--keep and a plan without differential privacy", "a plan that has noise", "leave --keep out")
    if to is not None and to.exists():
        raise _refusal("a file that exists already", "the name of a new file", "choose another name for --to")
    account = open_account(policy, found.task.data_set, site) if policy is not None else None
    budget = _budget(account, epsilon, delta, units)
    spent = [one.release.mechanism for one in account.ledger.entries()] if account is not None else []
    own = {"clip": clip, "count_noise": count_noise, "records_per_unit": records_per_unit, "gradients": gradients}
    groups = {"noise_multiplier": group_noise, "groups_per_unit": groups_per_unit, "shared": shared}
    asked = _asked(found, _given(own), _given(groups))
    if asked.differential_privacy is None:
        raise _refusal("a plan without differential privacy", "one with it", "report this as a defect of FairFlare")
    make = foreseen if keep else propose
    made = make(asked, units, budget, asked.differential_privacy, spent)
    for line in (*_lines(asked, units, budget, made), *_warnings(units, made, smallest_group)):
        typer.echo(line)
    if to is not None:
        write_new_plan(_with(asked, made), to)


def _given(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _asked(found: Plan, own: Mapping[str, object], groups: Mapping[str, object]) -> Plan:
    """The plan with everything but its noise in training settled; raises :class:`PlanError` as its rules do."""
    from fairflare.plan import method_of, parse_plan

    data = found.model_dump(mode="json")
    before = data["differential_privacy"] or {**_USUAL, "noise_multiplier": 1.0, "groups": None}
    section = {**before, **own}
    if method_of(found).measures():
        section["groups"] = {**(before["groups"] or _USUAL_GROUPS), **groups}
        if section["groups"]["shared"] and "shared_noise" not in data["consents"]:
            data["consents"] = [*data["consents"], "shared_noise"]
    return parse_plan(json.dumps({**data, "differential_privacy": section}))


def _with(plan: Plan, made: Proposal) -> Plan:
    return plan.model_copy(update={"differential_privacy": made.privacy})


def _budget(account: Account | None, epsilon: float | None, delta: float | None, units: int) -> Budget:
    from fairflare.privacy.loss import Budget

    of_policy = account.budget if account is not None else None
    if epsilon is None and of_policy is None:
        raise _refusal("no budget", "--epsilon, or a --policy with differential_privacy", "say how much may be spent")
    most = epsilon if epsilon is not None or of_policy is None else of_policy.epsilon
    part = delta if delta is not None else of_policy.delta if of_policy is not None else min(1e-5, 0.1 / units)
    return Budget(float(most or 0), part, _relation(of_policy))


def _relation(of_policy: Budget | None) -> Literal["add_remove", "replace"]:
    return "add_remove" if of_policy is None else of_policy.relation


def _lines(plan: Plan, units: int, budget: Budget, made: Proposal) -> Iterator[str]:
    drawn, rounds, privacy = made.drawn, plan.training.rounds, made.privacy
    yield f"{plan.name}: {rounds} rounds of {drawn.steps} steps at a site with {units} patients in training"
    yield f"sample rate {drawn.q:.4g}: {drawn.q * units:.3g} patients in a batch on average"
    yield f"noise in training (sigma) {privacy.noise_multiplier:.3f} times what a patient may change"
    yield f"noise in the number of patients: {privacy.count_noise:g}"
    if privacy.groups is not None:
        shared = ", shared by the hospitals" if privacy.groups.shared else ""
        yield f"noise in group sums {privacy.groups.noise_multiplier:g} times their sensitivity{shared}"
    yield f"epsilon now {made.now.value:.3f} of {budget.epsilon:g} at delta {budget.delta:g}"
    left = budget.epsilon - made.after.value
    kept = f"{left:.3f} left" if left >= 0 else f"{-left:.3f} more than the budget"
    relation = "one patient more or less" if budget.relation == "add_remove" else "one patient in another's place"
    yield f"epsilon after the plan {made.after.value:.3f} ({made.after.method}), {relation}: {kept}"
    if budget.relation == "add_remove":
        yield f"  {made.replaced.value:.3f} for one patient in another's place"
    exact = ", ".join(exact_kinds(plan)).replace("_", " ")
    yield f"not covered, exact sums of validation and test records among them: {exact}"


def _warnings(units: int, made: Proposal, smallest: int | None) -> Iterator[str]:
    from fairflare.privacy.bill import LEAST_BATCH, MOST_RATE, risk_noise

    batch = made.drawn.q * units
    if made.drawn.q > MOST_RATE:
        yield f"warning: more than {MOST_RATE:g} of all patients in a batch: sampling protects little, so noise is high"
    if batch < LEAST_BATCH:
        yield f"warning: {batch:.3g} patients in a batch, fewer than {LEAST_BATCH}: the noise is large beside them"
    groups = made.privacy.groups
    if groups is None:
        return
    enough = math.ceil(risk_noise(groups, 1) / _LOUD)
    yield f"a group of {enough} patients: the noise in its risk is a tenth of the largest risk (standard deviation)"
    if smallest is not None and smallest < enough:
        noise = risk_noise(groups, smallest)
        yield f"warning: a group of {smallest} patients is small: the noise is {noise:.0%} of the largest risk"


def _refusal(got: str, expected: str, next_step: str) -> LedgerError:
    return LedgerError("FF-LEDGER-ASKED", got=got, expected=expected, next_step=next_step)
