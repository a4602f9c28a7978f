# SPDX-License-Identifier: Apache-2.0
"""What happened round by round, as plain series of numbers that a page, a picture or a table can show.

Validation numbers belong to a model: 0 is the first model, r the model after r rounds, and the last one is the model
of the final evaluation. Penalties belong to the model at which a round's statistics were taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairflare.evaluation.remarks import collapse_in_words, collapsed_spans, collapses
from fairflare.evaluation.summary import RunSummary
from fairflare.evaluation.words import NAMES, small
from fairflare.fairness.groups import EVERYBODY, HOSPITAL
from fairflare.plan import Plan
from fairflare.record import GroupLine, RunRecord, group_lines

Worst = Literal["highest", "lowest", "none"]
Quantity = Literal["mean_loss", "roc_auc", "dice"]

_WORST: dict[Quantity, Worst] = {"mean_loss": "highest", "roc_auc": "lowest", "dice": "lowest"}


def _quantities(plan: Plan) -> dict[Quantity, str]:
    """What validation lines of a plan hold, and what it is called."""
    if plan.task.kind == "segmentation":
        return {"mean_loss": "Validation loss (risk)", "dice": NAMES["dice"]}
    name = "roc_auc" if len(plan.task.labels) == 2 else "macro_roc_auc"
    return {"mean_loss": "Validation loss (risk)", "roc_auc": NAMES[name]}


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
    best
        The place on the axis of the model that is best on validation data, if it is to be marked.
    collapsed
        Places on the axis of models that have learnt nothing; ``note`` says how.
    """

    key: str
    title: str
    x: tuple[int, ...]
    series: tuple[Series, ...]
    worst: Worst = "none"
    from_zero: bool = False
    chance: float | None = None
    note: str = ""
    best: int | None = None
    collapsed: tuple[int, ...] = ()

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
    titles = _quantities(record.plan)
    everybody = {quantity: _series(models, EVERYBODY, EVERYBODY, quantity, record.plan) for quantity in titles}
    spans = list(collapsed_spans(collapses(record)))
    shared = Chart(
        key="", title="", x=x, series=(),
        best=None if record.final is None else record.final.best_rounds,
        collapsed=tuple(at for _, first, last in spans for at in range(first, last + 1)),
        note=f"Collapse: {'; '.join(collapse_in_words(*one) for one in spans)}." if spans else "",
    )  # fmt: skip
    for attribute, groups in record.plan.groups.items():
        for quantity, title in titles.items():
            lines = [_series(models, attribute, group, quantity, record.plan) for group in groups]
            yield replace(
                shared,
                key=f"{attribute}-{quantity}",
                title=f"{title} by {attribute}",
                series=(*lines, everybody[quantity]),
                worst=_WORST[quantity],
                chance=0.5 if quantity == "roc_auc" else None,
            )
    if not record.plan.groups:
        for quantity, one in everybody.items():
            yield replace(
                shared, key=f"all-{quantity}", title=f"{titles[quantity]} of everybody", series=(one,),
                chance=0.5 if quantity == "roc_auc" else None,
            )  # fmt: skip


def _models(record: RunRecord) -> list[dict[tuple[str, str], GroupLine]]:
    """Validation results of every model that was evaluated: one per round, and the final one."""
    models = [line.validation for line in record.rounds]
    if record.final is not None and record.final.validation:
        models.append(group_lines(record.plan, record.evaluation("validation")))
    return [{(line.attribute, line.group): line for line in lines} for lines in models]


def _series(
    models: Sequence[dict[tuple[str, str], GroupLine]], attribute: str, group: str, quantity: Quantity, plan: Plan
) -> Series:
    everybody = attribute == EVERYBODY
    values = tuple(_value(model.get((attribute, group)), quantity, plan) for model in models)
    return Series("everybody" if everybody else group, values, reference=everybody)


def _value(line: GroupLine | None, quantity: Quantity, plan: Plan) -> float | None:
    if line is None:
        return None
    if quantity != "mean_loss":
        return line.auc if quantity == "roc_auc" else line.dice
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
    # Rounds without statistics would tear every line into single points.
    x = tuple(line.round for line in record.rounds if line.penalties)
    for place, (key, title) in enumerate((("gap", "Penalised gap F"), ("penalty", "Penalty P"))):
        lines = [
            Series(name, tuple(values.get(number, (None, None))[place] for number in x))
            for name, values in zip(names, parts.values(), strict=True)
        ]
        shown = tuple(one for one in lines if any(y is not None for y in one.y))
        hidden = [one.name for one in lines if one not in shown]
        note = f"Not shown, because only sums over hospitals are opened: {', '.join(hidden)}." if hidden else ""
        if len(x) < len(record.rounds):
            note = f"{note} Statistics were exchanged in {len(x)} of {len(record.rounds)} rounds.".strip()
        yield Chart(f"penalties-{key}", f"{title} on training records", x, shown, from_zero=True, note=note)


def _penalty_names(parts: Sequence[tuple[str, str, str]], plan: Plan) -> list[str]:
    """Names of penalties, as short as they can be told apart."""
    labels = {"all": "everybody", **{f"label{place}": label for place, label in enumerate(plan.task.labels)}}
    longer = []
    for attribute, criterion, measure in parts:
        what = "hospitals" if attribute == HOSPITAL else attribute
        condition = measure.split("/")[1] if measure.count("/") else ""
        among = f"{what}, {labels.get(condition, condition)}"
        longer.append((what, among, f"{what}: {criterion}, {measure}"))
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
    for quantity, what in _quantities(next(record.plan for name, record in runs if name in names)).items():
        found = {name: _everybody(run, quantity) for name, run in charts.items()}
        result.append(_overlay(f"all-{quantity}", f"{what} of everybody", found, quantity))
        for attribute in summaries[0].attributes:
            key = f"{attribute.attribute}-{quantity}"
            extreme = {name: (run[key].x, _extreme(run[key])) for name, run in charts.items()}
            title = f"{_WORST[quantity].capitalize()} {small(what)} by {attribute.attribute}"
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
