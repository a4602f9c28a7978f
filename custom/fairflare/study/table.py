# SPDX-License-Identifier: Apache-2.0
"""The table of one task under one protection: a row per method, with what was chosen, how it did, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fairflare.evaluation.statistics import PairedDifference, paired_difference
from fairflare.study.kept import Failure, Outcome, Result, Values
from fairflare.study.measures import SITE_MEAN, GapColumn, Measures, View, named
from fairflare.study.spec import MethodEntry

#: Configuration -> seed -> how its run ended.
Grid = Mapping[str, Mapping[int, Outcome]]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over the seeds that have a value; ``None`` where there are too few."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From one number per seed."""
        sd = stdev(values) if len(values) > 1 else None
        return cls(fmean(values) if values else None, sd, len(values))


@dataclass(frozen=True)
class Column:
    """One number of the chosen configuration on test data, and how it differs from the first method's, if it does.

    ``name``: of the value.
    """

    name: str
    values: Mapping[int, float]
    difference: PairedDifference | None

    @property
    def spread(self) -> Spread:
        """Over seeds."""
        return Spread.of(list(self.values.values()))


@dataclass(frozen=True)
class Worst:
    """Lowest group by ``metric``: its value over seeds, and in how many seeds it is which group."""

    attribute: str
    metric: str
    spread: Spread
    groups: Mapping[str, int]


@dataclass(frozen=True)
class Line:
    """A method's row.

    Attributes
    ----------
    configuration
        The chosen one; ``None`` if no run of any has a value to choose by.
    quality, gaps, worst
        Of the chosen configuration; ``gaps`` and ``worst`` in the order of the report's gaps.
    site_mean
        Mean over sites of each one's own quality: what a site that is alone has.
    seeds, runs
        Seeds of a configuration; runs of all.
    chosen_failed
        Seeds of the chosen configuration that have no results.
    failed
        Code -> failed runs of all configurations.
    collapsed, disturbed
        Seeds of the chosen configuration with a model that says the same of everything; with refused or missing answers
        or lost rounds.
    seconds
        Of a run of the chosen configuration.
    flare
        Whether FLARE gave the same model; "" if it was not asked.
    """

    method: str
    baseline: str
    configurations: int
    configuration: str | None
    quality: Column
    gaps: tuple[Column, ...]
    worst: tuple[Worst, ...]
    site_mean: Spread
    seeds: int
    runs: int
    chosen_failed: int
    failed: Mapping[str, int]
    collapsed: int
    disturbed: int
    seconds: Spread
    flare: str = ""


@dataclass(frozen=True)
class Board:
    """The table of one task under one protection; ``points``: every configuration's place in the picture."""

    task: str
    protection: str
    view: View
    lines: tuple[Line, ...]
    points: tuple[Point, ...]

    def with_flare(self, found: Mapping[str, str]) -> Board:
        """The same with FLARE's answer for each method."""
        lines = tuple(replace(line, flare=found.get(line.method, line.flare)) for line in self.lines)
        return replace(self, lines=lines)


@dataclass(frozen=True)
class Point:
    """A configuration in the picture: mean quality and mean of the first gap on test data, over seeds."""

    method: str
    configuration: str
    quality: float
    gap: float
    chosen: bool


def board(
    task: str,
    protection: str,
    measures: Measures,
    methods: Sequence[MethodEntry],
    grids: Mapping[str, Grid],
    chosen: Mapping[str, str | None],
) -> Board:
    """Make a table from how the runs of each method ended, and which configuration was chosen of each."""
    view = measures.report
    lines: list[Line] = []
    for method in methods:
        line = _line(method, grids[method.name], chosen[method.name], view)
        lines.append(_compared(line, lines[0]) if lines else line)
    points = [point for method in methods for point in _points(method, grids[method.name], chosen[method.name], view)]
    return Board(task, protection, view, tuple(lines), tuple(points))


def _line(method: MethodEntry, grid: Grid, chosen: str | None, view: View) -> Line:
    runs = grid[chosen] if chosen is not None else {}
    results = {seed: one for seed, one in runs.items() if isinstance(one, Result)}
    test = {seed: one.test for seed, one in results.items()}
    every = [outcome for seeds in grid.values() for outcome in seeds.values()]
    seeds = len(next(iter(grid.values())))
    return Line(
        method=method.name,
        baseline=method.baseline,
        configurations=len(grid),
        configuration=chosen,
        quality=_column(view.quality, test),
        gaps=tuple(_column(gap.value, test) for gap in view.gaps),
        worst=tuple(_worst(gap, test) for gap in view.gaps),
        site_mean=_column(named(SITE_MEAN, view.metric), test).spread,
        seeds=seeds,
        runs=len(every),
        chosen_failed=len(runs) - len(results),
        failed=dict(Counter(one.code for one in every if isinstance(one, Failure))),
        collapsed=sum(one.test_collapsed > 0 for one in results.values()),
        disturbed=sum(one.refusals + one.lost_rounds > 0 for one in results.values()),
        seconds=Spread.of([one.seconds for one in results.values()]),
    )


def _column(name: str, test: Mapping[int, Values]) -> Column:
    found = {seed: values.get(name) for seed, values in test.items()}
    return Column(name, {seed: value for seed, value in found.items() if value is not None}, None)


def _worst(gap: GapColumn, test: Mapping[int, Values]) -> Worst:
    lowest = []
    for values in test.values():
        found = [(values.get(gap.of_group(group)), group) for group in gap.groups]
        known = [(value, group) for value, group in found if value is not None]
        if len(known) > 1:
            lowest.append(min(known))
    groups = Counter(group for _, group in lowest)
    return Worst(gap.attribute, gap.worst_by, Spread.of([value for value, _ in lowest]), dict(groups.most_common()))


def _compared(line: Line, first: Line) -> Line:
    return replace(
        line,
        quality=_against(line.quality, first.quality),
        gaps=tuple(_against(one, other) for one, other in zip(line.gaps, first.gaps, strict=True)),
    )


def _against(column: Column, first: Column) -> Column:
    """With the paired difference over the seeds that both have."""
    seeds = [seed for seed in first.values if seed in column.values]
    if not seeds:
        return column
    pair = ([one.values[seed] for seed in seeds] for one in (first, column))
    return replace(column, difference=paired_difference(*pair))


def _points(method: MethodEntry, grid: Grid, chosen: str | None, view: View) -> Iterator[Point]:
    for label, runs in grid.items():
        test = {seed: one.test for seed, one in runs.items() if isinstance(one, Result)}
        quality = _column(view.quality, test).spread.mean
        gap = _column(view.gaps[0].value, test).spread.mean if view.gaps else None
        if quality is not None and gap is not None:
            yield Point(method.name, label, quality, gap, label == chosen)
