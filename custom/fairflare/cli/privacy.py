# SPDX-License-Identifier: Apache-2.0
"""``fairflare plan privacy``: how much noise a plan needs at a site, and what it would leave of the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from fairflare import schema
from fairflare.cli.ledger import Account, open_account
from fairflare.errors import LedgerError
from fairflare.plan.privacy import PRIVACY_FORMAT, PrivacyDraft
from fairflare.policy.kinds import kinds_of

if TYPE_CHECKING:
    from fairflare.plan import Plan
    from fairflare.privacy.loss import Budget
    from fairflare.privacy.solver import Proposal

#: Kinds of numbers that the proposal makes private.
_PRIVATE = ("model_update", "group_records", "group_risks", "hospital_risks", "step_risks")
#: Noise in a measured risk, as a part of the largest risk, from which on a group is warned about.
_LOUD = 0.1


def plan_privacy(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or a job's folder that holds one.")],
    units: Annotated[
        int, typer.Option("--records", min=1, help="Training records at the smallest site, one for each patient.")
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
    clip: Annotated[float, typer.Option(help="L2 norm to which each record's gradient is cut off.")] = 1.0,
    group_noise: Annotated[float, typer.Option(help="Noise of group sums, as a multiple of their sensitivity.")] = 10.0,
    groups_per_unit: Annotated[int, typer.Option(min=1, help="Groups of an attribute that a patient may be in.")] = 1,
    smallest_group: Annotated[
        int | None, typer.Option(min=1, help="Training records here of the smallest group.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="New file for the proposal, for 'fairflare ledger forecast'.")] = None,
) -> None:
    """Find the least noise with which a plan keeps a privacy budget at a site; counted by privacy loss distributions.

    A proposal: no run of this version trains with differential privacy, and a plan cannot ask for it yet.
    """
    from fairflare.plan import method_of, read_plan
    from fairflare.plan.privacy import GroupNoise
    from fairflare.privacy.ledger import load_accounting

    load_accounting()
    from fairflare.privacy.solver import propose

    found = read_plan(plan)
    if found.method.counts_only:
        raise _refusal("a plan that trains nothing", "a plan that trains", "name the plan that comes after it")
    if to is not None and to.exists():
        raise _refusal("a file that exists already", "the name of a new file", "choose another name for --to")
    account = open_account(policy, found.task.data_set, site) if policy is not None else None
    budget = _budget(account, epsilon, delta, units)
    spent = [one.release.mechanism for one in account.ledger.entries()] if account is not None else []
    groups = None
    try:
        if method_of(found).measures():
            groups = GroupNoise(noise_multiplier=group_noise, groups_per_unit=groups_per_unit)
        made = propose(found, units, budget, clip=clip, groups=groups, spent=spent)
    except ValidationError:
        raise _refusal("a number that is no noise or norm", "positive numbers", "correct the option") from None
    for line in (*_lines(found, units, budget, made), *_warnings(units, made, smallest_group)):
        typer.echo(line)
    if to is not None:
        draft = PrivacyDraft(format=PRIVACY_FORMAT, plan=found.sha256, differential_privacy=made.privacy)
        to.write_text(schema.pretty(draft), encoding="utf-8")
        typer.echo(f"wrote {to}")


def _budget(account: Account | None, epsilon: float | None, delta: float | None, units: int) -> Budget:
    from fairflare.privacy.loss import Budget

    of_policy = account.budget if account is not None else None
    if epsilon is None and of_policy is None:
        raise _refusal("no budget", "--epsilon, or a --policy with differential_privacy", "say how much may be spent")
    most = epsilon if epsilon is not None or of_policy is None else of_policy.epsilon
    part = delta if delta is not None else of_policy.delta if of_policy is not None else min(1e-5, 0.1 / units)
    return Budget(float(most or 0), part)


def _lines(plan: Plan, units: int, budget: Budget, made: Proposal) -> Iterator[str]:
    drawn, rounds = made.drawn, plan.training.rounds
    yield f"{plan.name}: {rounds} rounds of {drawn.steps} steps at a site with {units} records"
    yield f"sample rate {drawn.q:.4g}: {drawn.q * units:.3g} records in a batch on average"
    yield f"noise in training (sigma) {made.privacy.noise_multiplier:.3f} times the norm {made.privacy.clip:g}"
    if made.privacy.groups is not None:
        yield f"noise in group sums {made.privacy.groups.noise_multiplier:g} times their sensitivity"
    yield f"epsilon now {made.now.value:.3f} of {budget.epsilon:g} at delta {budget.delta:g}"
    left = budget.epsilon - made.after.value
    after, other = made.after, made.replaced.value
    yield f"epsilon after the plan {after.value:.3f} ({after.method}), one record more or less: {left:.3f} left"
    yield f"  {other:.3f} for one record in another's place, which counts where numbers of records are public"
    exact = [kind for kind in kinds_of(plan) if kind not in _PRIVATE]
    if exact:
        yield f"not covered, exact as before: {', '.join(exact).replace('_', ' ')}"
    yield "a proposal: no run of this version trains with differential privacy"


def _warnings(units: int, made: Proposal, smallest: int | None) -> Iterator[str]:
    from fairflare.privacy.forecast import LEAST_BATCH, MOST_RATE, risk_noise

    batch = made.drawn.q * units
    if made.drawn.q > MOST_RATE:
        yield f"warning: more than {MOST_RATE:g} of all records in a batch: sampling protects little, so noise is high"
    if batch < LEAST_BATCH:
        yield f"warning: {batch:.3g} records in a batch, fewer than {LEAST_BATCH}: the noise is large beside them"
    groups = made.privacy.groups
    if groups is None:
        return
    enough = math.ceil(risk_noise(groups, 1) / _LOUD)
    yield f"a group of {enough} records: the noise in its risk is a tenth of the largest risk (standard deviation)"
    if smallest is not None and smallest < enough:
        noise = risk_noise(groups, smallest)
        yield f"warning: a group of {smallest} records is small: the noise is {noise:.0%} of the largest risk"


def _refusal(got: str, expected: str, next_step: str) -> LedgerError:
    return LedgerError("FF-LEDGER-ASKED", got=got, expected=expected, next_step=next_step)
