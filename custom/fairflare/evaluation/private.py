# SPDX-License-Identifier: Apache-2.0
"""What privacy costs whom: finished runs by their epsilon, with each group's numbers and its change.

Runs of one plan but for seed and name are one setting. A setting's number is the mean over its seeds; its interval is
the mean of theirs, which is about other patients, and its standard deviation is about other seeds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from fairflare.errors import RunError
from fairflare.evaluation.report import verify_comparable
from fairflare.evaluation.statistics import PairedDifference, paired_difference
from fairflare.evaluation.summary import Kind, RunSummary, Split, Value
from fairflare.evaluation.words import VOCABULARIES
from fairflare.fairness.groups import EVERYBODY
from fairflare.plan import Plan
from fairflare.record import RunRecord

#: Which run of a setting: its seed, and how many there were of the same seed before.
_Key = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """Epsilon for one unit more or less, and for one in another's place; ``None`` where each site's differs."""

    add_remove: float | None
    replace: float | None


@dataclass(frozen=True)
class PricedRun:
    """A finished run; ``cost`` is ``None`` without differential privacy."""

    record: RunRecord
    summary: RunSummary
    cost: Cost | None


@dataclass(frozen=True)
class Mean:
    """A number of a setting over its seeds.

    Attributes
    ----------
    value, sd
        Mean and standard deviation (n - 1) over the seeds that have a value; ``None`` where too few have.
    low, high
        Mean ends of their 95 % intervals; ``None`` unless all of them have one.
    records
        Fewest and most records behind the number in a run.
    seeds
        How many runs have a value.
    note
        Why there is no value, or no interval.
    groups
        Whose the number is, and in how many runs: of worst groups only.
    change
        From the setting without differential privacy, over the seeds that both have.
    """

    value: float | None
    sd: float | None
    low: float | None
    high: float | None
    records: tuple[int, int]
    seeds: int
    note: str
    groups: Mapping[str, int]
    change: PairedDifference | None = None


@dataclass(frozen=True)
class Place:
    """Which number: ``kind`` is ``group``, ``worst`` or ``gap``; ``group`` is "" but for groups."""

    attribute: str
    group: str
    kind: str


@dataclass(frozen=True)
class Setting:
    """Runs of one plan with different seeds.

    Attributes
    ----------
    name, method, noise
        Of the plan; ``noise`` is its noise multiplier in training, ``None`` without differential privacy.
    cost
        The largest of its runs; ``None`` without differential privacy.
    colluders
        How many sites must tell their part of shared noise to break epsilon; ``None`` where each adds its own.
    seeds, collapsed
        Number of runs, and of those whose model says the same of everything.
    numbers
        Every number, in the order of the plan.
    baseline, differs
        Name of the setting without differential privacy that changes are counted from, "" for none; and where its
        plan differs in something else.
    """

    name: str
    method: str
    noise: float | None
    cost: Cost | None
    colluders: int | None
    seeds: tuple[int, ...]
    collapsed: int
    numbers: Mapping[Place, Mean]
    baseline: str = ""
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivacyTable:
    """All settings, those without differential privacy first, then by falling epsilon.

    ``together``: epsilon of all private runs at a site that took part in each; ``None`` without any.
    """

    data_set: str
    split: Split
    kind: Kind
    metric: str
    delta: float
    settings: tuple[Setting, ...]
    together: Cost | None


def privacy_table(
    runs: Sequence[PricedRun], delta: float, *, together: Cost | None, metric: str | None = None
) -> PrivacyTable:
    """Group runs by setting, and compare each with the one without differential privacy that is most like it.

    Parameters
    ----------
    runs
        Finished ones of the same task, at least one.
    delta, together
        What epsilon was counted at, and epsilon of all private runs.
    metric
        By which groups are compared: the task's main one by default.

    Raises
    ------
    RunError
        ``FF-RUN-COMPARE`` if the runs are of different things, or a run is there twice; ``FF-RUN-METRIC`` for a metric
        that the task has not.
    """
    first = runs[0].summary
    for run in runs[1:]:
        verify_comparable(first, run.summary)
    _verify_different(runs)
    words = VOCABULARIES[first.kind]
    chosen = _known_metric(metric or words.main, words.worst_by)
    parts: dict[str, list[PricedRun]] = {}
    for run in runs:
        parts.setdefault(_canonical(run.record.plan), []).append(run)
    found = [(some[0].record.plan, _keyed(some), _setting(some, chosen)) for some in parts.values()]
    named = _named([one for _, _, one in found])
    found = [(plan, keyed, one) for (plan, keyed, _), one in zip(found, named, strict=True)]
    clear = [one for one in found if one[0].differential_privacy is None]
    settings = [_compared(one, _nearest(one[0], clear), chosen) for one in found]
    task = str(first.task["data_set"])
    return PrivacyTable(
        task, first.split, first.kind, chosen, delta, tuple(sorted(settings, key=_order)), together
    )  # fmt: skip


def _verify_different(runs: Sequence[PricedRun]) -> None:
    """A run that is there twice would make its seeds look alike."""
    seen = Counter((run.record.plan_sha256, run.summary.model_sha256) for run in runs)
    for run in runs:
        if seen[run.record.plan_sha256, run.summary.model_sha256] > 1:
            raise RunError(
                "FF-RUN-COMPARE",
                got=f"the run '{run.summary.name}' more than once: two have the same plan and the same model",
                expected="each run once",
                next_step="leave copies of a run out",
            )


def _known_metric(metric: str, known: Sequence[str]) -> str:
    if metric not in known:
        raise RunError(
            "FF-RUN-METRIC",
            got="a metric by which this task's groups are not compared",
            expected=f"one of {', '.join(known)}",
            next_step="name one of these with --metric, or none",
        )
    return metric


def _plain(plan: Plan) -> dict[str, Any]:
    """A plan without its name and seed."""
    data: dict[str, Any] = plan.model_dump(mode="json")
    del data["name"], data["training"]["seed"]
    return data


def _canonical(plan: Plan) -> str:
    return json.dumps(_plain(plan), sort_keys=True)


def _keyed(runs: Sequence[PricedRun]) -> dict[_Key, PricedRun]:
    """Runs by seed; with differential privacy a seed may be there several times, each with other noise."""
    found: dict[_Key, PricedRun] = {}
    for run in runs:
        seed = run.record.plan.training.seed
        found[seed, sum(known == seed for known, _ in found)] = run
    return found


_Found = tuple[Plan, dict[_Key, PricedRun], Setting]


def _setting(runs: Sequence[PricedRun], metric: str) -> Setting:
    plan = runs[0].record.plan
    privacy, split = plan.differential_privacy, runs[0].summary.split
    finals = [run.record.final for run in runs]
    collapses = [one and (one.test_collapse if split == "test" else one.validation_collapse) for one in finals]
    return Setting(
        name=plan.name,
        method=plan.method.name,
        noise=None if privacy is None else privacy.noise_multiplier,
        cost=_most([run.cost for run in runs if run.cost is not None]),
        colluders=colluders_of(plan),
        seeds=tuple(run.record.plan.training.seed for run in runs),
        collapsed=sum(one is not None for one in collapses),
        numbers={place: _mean([_value(run.summary, place, metric) for run in runs]) for place in _places(runs[0])},
    )


def colluders_of(plan: Plan) -> int | None:
    """How many sites must tell their part of shared noise to break epsilon; ``None`` where each adds its own."""
    privacy, masking = plan.differential_privacy, plan.protection.masking
    shared = privacy is not None and privacy.groups is not None and privacy.groups.shared
    return masking.colluders + 1 if shared and masking is not None else None


def _most(costs: Sequence[Cost]) -> Cost | None:
    """Each run's own number of sessions counts, so runs of a plan may cost more or less."""

    def most(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return max(known) if len(known) == len(values) else None

    return Cost(most([c.add_remove for c in costs]), most([c.replace for c in costs])) if costs else None


def _named(settings: Sequence[Setting]) -> list[Setting]:
    """Settings whose plans have the same name are told apart by a number."""
    used: Counter[str] = Counter()
    result = []
    for one in settings:
        used[one.name] += 1
        result.append(one if used[one.name] == 1 else replace(one, name=f"{one.name} #{used[one.name]}"))
    return result


def _order(one: Setting) -> tuple[bool, bool, float]:
    value = None if one.cost is None else one.cost.add_remove
    return one.cost is not None, value is None and one.cost is not None, -(value or 0.0)


# ------------------------------------------------------------------------------------------------------------- numbers


def _places(run: PricedRun) -> Iterator[Place]:
    yield Place(EVERYBODY, "", "group")
    for one in run.summary.attributes:
        yield from (Place(one.attribute, group.group, "group") for group in one.groups)
        yield Place(one.attribute, "", "worst")
        yield Place(one.attribute, "", "gap")


def _value(summary: RunSummary, place: Place, metric: str) -> tuple[str, Value]:
    """A run's own number, and whose it is where it is a worst group's."""
    if place.attribute == EVERYBODY:
        return "", summary.overall.metrics[metric]
    part = summary.by_attribute(place.attribute)
    if place.kind == "gap":
        return "", part.gaps[f"{metric}_difference"]
    if place.kind == "group":
        return "", next(one.metrics[metric] for one in part.groups if one.group == place.group)
    worst = part.worst.get(metric)
    return ("", _NOBODY) if worst is None else (worst.group, worst.value)


_NOBODY = Value(None, None, None, 0, "no worst group: fewer than two groups have a value, or all are equal")


def _mean(values: Sequence[tuple[str, Value]]) -> Mean:
    known = [one for _, one in values if one.value is not None]
    numbers = [one.value for one in known if one.value is not None]
    ends = [(one.low, one.high) for one in known if one.low is not None and one.high is not None]
    sure = bool(ends) and len(ends) == len(known)
    records = [one.records for one in known or [one for _, one in values]]
    notes = dict.fromkeys(one.note for _, one in values if one.note)
    return Mean(
        value=fmean(numbers) if numbers else None,
        sd=stdev(numbers) if len(numbers) > 1 else None,
        low=fmean(low for low, _ in ends) if sure else None,
        high=fmean(high for _, high in ends) if sure else None,
        records=(min(records), max(records)),
        seeds=len(numbers),
        note="; ".join(notes),
        groups=dict(Counter(name for name, one in values if name and one.value is not None).most_common()),
    )


# ------------------------------------------------------------------------------------------------------------- changes


def _nearest(plan: Plan, clear: Sequence[_Found]) -> tuple[_Found, tuple[str, ...]] | None:
    """The setting of the same method without differential privacy whose plan differs least, and in what."""
    if plan.differential_privacy is None:
        return None
    of_method = [(one, differences(plan, one[0])) for one in clear if one[0].method.name == plan.method.name]
    return min(of_method, key=lambda pair: len(pair[1]), default=None)


def differences(private: Plan, other: Plan) -> tuple[str, ...]:
    """Fields in which two plans differ beside name, seed and differential privacy, dotted, such as training.batch."""
    one, two = _plain(private), _plain(other)
    for data in (one, two):
        data["differential_privacy"] = None
        # A consent to noise that is shared is a part of it.
        data["consents"] = [consent for consent in data["consents"] if consent != "shared_noise"]
    return tuple(_different(one, two, ""))


def _different(one: Mapping[str, Any], two: Mapping[str, Any], where: str) -> Iterator[str]:
    for name in dict.fromkeys([*one, *two]):
        first, second, place = one.get(name), two.get(name), f"{where}{name}"
        if first != second and not where and isinstance(first, dict) and isinstance(second, dict):
            yield from _different(first, second, f"{place}.")
        elif first != second:
            yield place


def _compared(found: _Found, nearest: tuple[_Found, tuple[str, ...]] | None, metric: str) -> Setting:
    _, keyed, setting = found
    if nearest is None:
        return setting
    (_, before, baseline), differs = nearest
    numbers = {
        place: replace(mean, change=_change(before, keyed, place, metric)) for place, mean in setting.numbers.items()
    }
    return replace(setting, numbers=numbers, baseline=baseline.name, differs=differs)


def _change(
    before: Mapping[_Key, PricedRun], after: Mapping[_Key, PricedRun], place: Place, metric: str
) -> PairedDifference | None:
    """Over seeds that both have; runs of a seed without noise are all alike, so its first stands for each."""
    pairs = [(before[seed, 0], run) for (seed, _), run in after.items() if (seed, 0) in before]
    values = [[_value(run.summary, place, metric)[1].value for run in pair] for pair in pairs]
    known = [(old, new) for old, new in values if old is not None and new is not None]
    return paired_difference([old for old, _ in known], [new for _, new in known]) if known else None


__all__ = [
    "Cost", "Mean", "Place", "PricedRun", "PrivacyTable", "Setting", "colluders_of", "differences", "privacy_table",
]  # fmt: skip
