# SPDX-License-Identifier: Apache-2.0
"""What every kind of result is made of: values with intervals, gaps with the groups they leave out, worst groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fairflare.evaluation.statistics import Interval, gap_interval
from fairflare.evaluation.summary import NO_INTERVAL, TOO_FEW_GROUPS, GroupSummary, Value, WorstGroup
from fairflare.fairness.groups import Floats
from fairflare.fairness.metrics import Booleans, worst_group
from fairflare.plan import Plan

ONLY_THE_SUM = "no interval: only the sum of the loss is known"


def withheld(plan: Plan) -> str:
    """Why a cell may be empty although there are records; "" where every record counts."""
    cells, reasons = plan.cells, []
    if cells.minimum > 1:
        reasons.append(f"fewer than {cells.minimum} at each site")
    if cells.sites > 1:
        reasons.append(f"released by fewer than {cells.sites} sites")
    return f"withheld ({' or '.join(reasons)}), or there is none" if reasons else ""


def absent(records: float, note: str) -> Value:
    """No value, and why."""
    return Value(None, None, None, round(records), note)


def value_of(value: float, interval: Interval | None, records: float) -> Value:
    """A value with its interval, or with the reason why there is none."""
    if interval is None:
        return Value(value, None, None, round(records), NO_INTERVAL)
    return Value(value, interval.low, interval.high, round(records), "")


def gap_of(gap: float, drawn: Floats, records: float, compared: Sequence[Booleans], names: Sequence[str]) -> Value:
    """A gap between groups with its interval from resamples ``drawn`` (n,), and the groups that it leaves out.

    ``compared``: which groups (K,) have a value, for each metric that the gap compares.
    """
    if np.isnan(gap):
        return absent(records, TOO_FEW_GROUPS)
    found = value_of(gap, gap_interval(gap, drawn), records)
    # Equalized odds compares two rates, and a group may have only one of them.
    inside = np.sum(compared, axis=0)
    without = ", ".join(names[int(k)] for k in np.flatnonzero(inside == 0))
    partly = ", ".join(names[int(k)] for k in np.flatnonzero((inside > 0) & (inside < len(compared))))
    notes = [found.note, without and f"without {without}", partly and f"one of the two rates without {partly}"]
    return replace(found, note="; ".join(filter(None, notes)))


def worst_of(
    metric: str, values: Floats, drawn: Floats, groups: Sequence[GroupSummary]
) -> Iterator[tuple[str, WorstGroup]]:
    """The group with the lowest of ``values`` (K,), and in which share of resamples ``drawn`` (n, K) it is the lowest.

    Nothing where fewer than two groups have a value, or all have the same.
    """
    index = worst_group(values)
    if index is None:
        return
    known = np.flatnonzero(~np.isnan(values))
    drawn = drawn[:, known]
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    share = float((known[drawn.argmin(axis=1)] == index).mean()) if len(drawn) else None
    yield metric, WorstGroup(groups[index].group, groups[index].metrics[metric], share)
