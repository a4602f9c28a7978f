# SPDX-License-Identifier: Apache-2.0
"""``fairflare report --privacy``: what privacy cost whom, over finished runs; and epsilon of a single run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairflare.errors import LedgerError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairflare.evaluation.page import ReportedRun
    from fairflare.evaluation.private import Cost, PrivacyTable
    from fairflare.privacy.loss import Mechanism
    from fairflare.record import RunRecord

#: At which epsilon is counted unless another one is named.
DELTA = 1e-5


def cost_of(records: Sequence[RunRecord], delta: float) -> Cost | None:
    """Epsilon of all these runs together, at a site that took part in all of them; ``None`` if none is private.

    Raises
    ------
    LedgerError
        ``FF-LEDGER-ACCOUNTING`` without dp-accounting, which is imported here only, as it takes seconds;
        ``FF-LEDGER-VALUE`` for a delta that is none.
    """
    from fairflare.evaluation.private import Cost
    from fairflare.privacy.bill import drawn_in_public, spent
    from fairflare.privacy.ledger import load_accounting
    from fairflare.privacy.loss import Budget

    private = [one for one in records if one.plan.differential_privacy is not None]
    if not private:
        return None
    at = Budget(1.0, delta).delta
    if not all(drawn_in_public(one.plan) for one in private):
        return Cost(None, None)
    released: list[Mechanism] = []
    for one in private:
        privacy = one.plan.differential_privacy
        if privacy is not None:
            released += spent(one.plan, privacy, sessions=len(one.sessions), begun=one.begun)
    epsilon = load_accounting().epsilon
    return Cost(*(float(epsilon(released, at, relation).value) for relation in ("add_remove", "replace")))


def sentence_of(record: RunRecord, delta: float) -> str:
    """Epsilon of a run alone in words; "" for a run without differential privacy."""
    from fairflare.evaluation.private_page import cost_sentence

    try:
        cost = cost_of([record], delta)
    except LedgerError as problem:
        if problem.code != "FF-LEDGER-ACCOUNTING":
            raise
        # What a run achieved can be read without it.
        return "Epsilon is not counted here: the package dp-accounting is not installed."
    return "" if cost is None else cost_sentence(record.plan, cost, delta)


def table_of(runs: Sequence[ReportedRun], delta: float, metric: str | None) -> PrivacyTable:
    """The table of finished runs."""
    from fairflare.evaluation.private import PricedRun, privacy_table

    done = [(run.record, run.summary) for run in runs if run.summary is not None]
    priced = [PricedRun(record, summary, cost_of([record], delta)) for record, summary in done]
    return privacy_table(priced, delta, together=cost_of([record for record, _ in done], delta), metric=metric)


def written(table: PrivacyTable, csv: Path | None, json: Path | None, html: Path | None) -> RenderableType:
    """The table for the terminal; also writes the files that were asked for."""
    from fairflare.evaluation import private_page

    forms: tuple[tuple[Path | None, Callable[[PrivacyTable], str]], ...] = (
        (csv, private_page.to_csv), (json, private_page.to_json), (html, private_page.to_html),
    )  # fmt: skip
    for file, form in forms:
        if file is not None:
            file.write_text(form(table), encoding="utf-8")
    return private_page.to_terminal(table)


__all__ = ["DELTA", "cost_of", "sentence_of", "table_of", "written"]
