# SPDX-License-Identifier: Apache-2.0
"""What happened round by round, as plain series of numbers that a page, a picture or a table can show.

Validation numbers belong to a model: 0 is the first model, r the model after r rounds, and the last one is the model
of the final evaluation. Penalties belong to the model at which a round's statistics were taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairflare.evaluation.summary import RunSummary
from fairflare.evaluation.words import NAMES
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL
from fairflare.fairness.metrics import mean_loss, roc_auc
from fairflare.plan import Plan
from fairflare.record import GroupLine, RunRecord

Worst = Literal["highest", "lowest", "none"]
Quantity = Literal["mean_loss", "roc_auc"]

_WORST: dict[Quantity, Worst] = {"mean_loss": "highest", "roc_auc": "lowest"}
_TITLES: dict[Quantity, str] = {"mean_loss": "Validation loss (risk)", "roc_auc": NAMES["roc_auc"]}


@dataclass(frozen=True)
class Series:
    """One line: a value per place on the axis, ``None`` where not estimable; ``reference``: everybody, not a group."""

    name: str
    y: tuple[float | None, ...]
    reference: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over the number of rounds trained.

    Attributes
    ----------
    key
        Name for a file: letters, digits, ``-`` and ``_``.
    title, note
        What is shown, and what a reader has to know about it.
    x
        Rounds trained before the model that the values belong to.
    worst
        Which of the lines is the worst at a place: the highest, the lowest, or none of them.
    from_zero
        Whether the axis begins at 0.
    chance
        A value that guessing would reach, if there is one.
    """

    key: str
    title: str
    x: tuple[int, ...]
    series: tuple[Series, ...]
    worst: Worst = "none"
    from_zero: bool = False
    chance: float | None = None
    note: str = ""

    def worst_at(self, place: int) -> int | None:
        """Index of the worst line at a place; ``None`` if fewer than two have a value there, or all have the same."""
        known = {k: one.y[place] for k, one in enumerate(self.series) if not one.reference}
        found = {k: y for k, y in known.items() if y is not None}
        if self.worst == "none" or len(set(found.values())) < 2:
            return None
        pick = max if self.worst == "highest" else min
        return pick(found, key=found.__getitem__)

    @property
    def last(self) -> int | None:
        """The last place at which any line has a value."""
        places = [p for p in range(len(self.x)) if any(one.y[p] is not None for one in self.series)]
        return places[-1] if places else None


def run_charts(record: RunRecord) -> tuple[Chart, ...]:
    """The charts of one run: loss and area under the ROC curve of every group, and the penalties' F and P."""
    charts = [*_validation_charts(record), *_penalty_charts(record)]
    return tuple(chart for chart in charts if chart.last is not None)


def _validation_charts(record: RunRecord) -> Iterator[Chart]:
    models = _models(record)
    x = tuple(range(len(models)))
    everybody = {quantity: _series(models, EVERYBODY, EVERYBODY, quantity, record.plan) for quantity in _WORST}
    for attribute in record.plan.attributes:
        for quantity, worst in _WORST.items():
            lines = [_series(models, attribute.name, value, quantity, record.plan) for value in attribute.values]
            yield Chart(
                key=f"{attribute.name}-{quantity}",
                title=f"{_TITLES[quantity]} by {attribute.name}",
                x=x,
                series=(*lines, everybody[quantity]),
                worst=worst,
                chance=0.5 if quantity == "roc_auc" else None,
            )
    if not record.plan.attributes:
        for quantity, one in everybody.items():
            title = f"{_TITLES[quantity]} of everybody"
            yield Chart(f"all-{quantity}", title, x, (one,), chance=0.5 if quantity == "roc_auc" else None)


def _models(record: RunRecord) -> list[dict[tuple[str, str], GroupLine]]:
    """Validation results of every model that was evaluated: one per round, and the final one."""
    models = [line.validation for line in record.rounds]
    if record.final is not None:
        models.append(tuple(_final_lines(record)))
    return [{(line.attribute, line.group): line for line in lines} for lines in models]


def _final_lines(record: RunRecord) -> Iterator[GroupLine]:
    values = {attribute.name: attribute.values for attribute in record.plan.attributes}
    for attribute, table in record.evaluation("validation").cells.items():
        losses, areas = mean_loss(table), roc_auc(table[..., HEAD:])
        for k, group in enumerate(values.get(attribute, (attribute,))):
            records, positive = float(table[k, :, 0].sum()), float(table[k, 1, 0])
            loss, area = (None if np.isnan(one) else float(one) for one in (losses[k], areas[k]))
            yield GroupLine(
                attribute=attribute, group=group, records=records, positives=positive, loss=loss, mean_score=None,
                auc=area,
            )  # fmt: skip


def _series(
    models: Sequence[dict[tuple[str, str], GroupLine]], attribute: str, group: str, quantity: Quantity, plan: Plan
) -> Series:
    everybody = attribute == EVERYBODY
    values = tuple(_value(model.get((attribute, group)), quantity, plan) for model in models)
    return Series("everybody" if everybody else group, values, reference=everybody)


def _value(line: GroupLine | None, quantity: Quantity, plan: Plan) -> float | None:
    if line is None:
        return None
    if quantity == "roc_auc":
        return line.auc
    # Where cells may be withheld, the loss of one label alone would be that of half a group: as in the results.
    withheld = plan.cells.minimum > 1 or plan.cells.sites > 1
    return None if withheld and line.positives in (0.0, line.records) else line.loss


def _penalty_charts(record: RunRecord) -> Iterator[Chart]:
    parts: dict[tuple[str, str, str], dict[int, tuple[float | None, float | None]]] = {}
    for line in record.rounds:
        for one in line.penalties:
            part = (one.attribute, one.criterion, one.measure)
            parts.setdefault(part, {})[line.round] = (one.gap, one.value)
    names = _penalty_names(list(parts), record.plan)
    x = tuple(line.round for line in record.rounds)
    for place, (key, title) in enumerate((("gap", "Penalised gap F"), ("penalty", "Penalty P"))):
        lines = [
            Series(name, tuple(values.get(number, (None, None))[place] for number in x))
            for name, values in zip(names, parts.values(), strict=True)
        ]
        shown = tuple(one for one in lines if any(y is not None for y in one.y))
        hidden = [one.name for one in lines if one not in shown]
        note = f"Not shown, because only sums over hospitals are opened: {', '.join(hidden)}." if hidden else ""
        yield Chart(f"penalties-{key}", f"{title} on training records", x, shown, from_zero=True, note=note)


def _penalty_names(parts: Sequence[tuple[str, str, str]], plan: Plan) -> list[str]:
    """Names of penalties, as short as they can be told apart."""
    labels = {"all": "everybody", "label0": plan.task.labels[0], "label1": plan.task.labels[1]}
    longer = []
    for attribute, criterion, measure in parts:
        what = "hospitals" if attribute == HOSPITAL else attribute
        condition = measure.split("/")[1] if measure.count("/") else ""
        longer.append((what, f"{what}, {labels.get(condition, condition)}", f"{what}: {criterion}, {measure}"))
    for names in zip(*longer, strict=True):
        if len(set(names)) == len(names):
            return list(names)
    return [f"{names[-1]} #{place}" for place, names in enumerate(longer, start=1)]


def comparison_charts(runs: Sequence[tuple[str, RunRecord]], summaries: Sequence[RunSummary]) -> tuple[Chart, ...]:
    """Runs in one chart: everybody's loss and area under the ROC curve, and the worst group's of each attribute."""
    names = {summary.name for summary in summaries}
    charts = {
        name: {chart.key: chart for chart in _validation_charts(record)} for name, record in runs if name in names
    }
    result = []
    for quantity, worst in _WORST.items():
        found = {name: _everybody(run, quantity) for name, run in charts.items()}
        result.append(_overlay(f"all-{quantity}", f"{_TITLES[quantity]} of everybody", found, quantity))
        for attribute in summaries[0].attributes:
            key = f"{attribute.attribute}-{quantity}"
            extreme = {name: (run[key].x, _extreme(run[key])) for name, run in charts.items()}
            which, what = worst.capitalize(), _TITLES[quantity]
            title = f"{which} {what[:1].lower()}{what[1:]} by {attribute.attribute}"
            result.append(_overlay(f"worst-{key}", title, extreme, quantity))
    return tuple(chart for chart in result if chart.last is not None)


_Line = tuple[tuple[int, ...], tuple[float | None, ...]]


def _everybody(charts: dict[str, Chart], quantity: Quantity) -> _Line:
    chart = next(one for key, one in charts.items() if key.endswith(f"-{quantity}"))
    return chart.x, chart.series[-1].y


def _extreme(chart: Chart) -> tuple[float | None, ...]:
    """The worst value among the groups at every place."""
    pick = max if chart.worst == "highest" else min
    columns = zip(*(one.y for one in chart.series if not one.reference), strict=True)
    return tuple(pick((y for y in column if y is not None), default=None) for column in columns)


def _overlay(key: str, title: str, lines: dict[str, _Line], quantity: Quantity) -> Chart:
    longest = max((x for x, _ in lines.values()), key=len)
    series = tuple(Series(name, y + (None,) * (len(longest) - len(x))) for name, (x, y) in lines.items())
    return Chart(f"runs-{key}", title, longest, series, chance=0.5 if quantity == "roc_auc" else None)
