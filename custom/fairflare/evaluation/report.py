# SPDX-License-Identifier: Apache-2.0
"""From a run's record, or from sums alone, to what can be said about a model, and from two runs to what changed.

Everything is computed from sums: no image, no score of a single patient is needed or kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fairflare.errors import RunError
from fairflare.evaluation.image_results import ImageTable
from fairflare.evaluation.macro import Macro
from fairflare.evaluation.remarks import comparison_remarks, run_remarks, sums_remarks
from fairflare.evaluation.statistics import RESAMPLES
from fairflare.evaluation.summary import (
    AttributeSummary,
    Change,
    Comparison,
    GroupSummary,
    LabelSummary,
    PenaltySummary,
    RunSummary,
    Split,
    Threshold,
    Value,
)
from fairflare.evaluation.two_labels import LabelTable
from fairflare.evaluation.values import withheld
from fairflare.fairness.groups import EVERYBODY, HEAD, EvaluationSums, Measure
from fairflare.fairness.images import of_label
from fairflare.fairness.metrics import best_edge, half_edge
from fairflare.fairness.penalty import labels_of
from fairflare.plan import ClassificationTask, FlexFairParameters, Plan, SegmentationTask
from fairflare.record import Collapse, RunRecord

#: Up to so many labels have all resamples each; of more, at least so many.
_FEW, _LEAST = 4, 400


def summarise(
    record: RunRecord,
    split: Split = "test",
    *,
    name: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RunSummary:
    """Everything a report says about one run.

    Parameters
    ----------
    record
        Of a run with a final evaluation.
    split
        Which records to report on.
    name
        What to call the run; the plan's name by default.
    resamples, seed
        Of the bootstrap; the same numbers give the same intervals.

    Raises
    ------
    RunError
        ``FF-RUN-INCOMPLETE`` if the run has no final evaluation, ``FF-RUN-LAYOUT`` if it does not fit its
        plan.
    """
    final = record.final
    summary = summarise_sums(
        record.plan,
        record.evaluation(split),
        record.evaluation("validation"),
        split=split,
        name=name or record.plan.name,
        sites=final.participants if final else (),
        model_sha256=final.model_sha256 if final else "",
        collapse=None if final is None else final.test_collapse if split == "test" else final.validation_collapse,
        resamples=resamples,
        seed=seed,
    )
    summary = replace(
        summary,
        status=record.status,
        plan_sha256=record.plan_sha256,
        rounds=len(record.rounds),
        penalties=tuple(_penalties(record)),
    )
    return replace(summary, remarks=run_remarks(summary, record))


def summarise_sums(
    plan: Plan,
    sums: EvaluationSums,
    validation: EvaluationSums | None = None,
    *,
    split: Split,
    name: str,
    sites: Sequence[str] = (),
    model_sha256: str = "",
    collapse: Collapse | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RunSummary:
    """Everything that evaluation sums say about a model of ``plan``, without a run's record.

    Parameters
    ----------
    plan
        It names the task, the groups and how the threshold is chosen.
    sums
        Of the records to report on, such as one site's own.
    validation
        Sums of validation records, from which the threshold is chosen if the plan wants that; without them it is 0.5.
    split, name, sites, model_sha256
        What the sums are of: which records, what to call it, whose records, and which model.
    collapse
        How the model fails on these records, if it has learnt nothing.
    resamples, seed
        Of the bootstrap; the same numbers give the same intervals. Of many labels each has fewer resamples.
    """
    edge, threshold = _choose_threshold(plan, validation)
    labels = tuple(_label_summaries(plan, sums, edge, resamples, seed))
    overall, attributes = labels[0].overall, labels[0].attributes
    summary = RunSummary(
        name=name,
        method=plan.method.name,
        split=split,
        status="",
        plan_sha256=plan.sha256,
        model_sha256=model_sha256,
        task=plan.task.model_dump(mode="json"),
        vocabulary=tuple(one.model_dump(mode="json") for one in (*plan.attributes, *plan.intersections)),
        score_bins=plan.evaluation.score_bins,
        rounds=0,
        sites=tuple(sites),
        threshold=threshold,
        overall=overall,
        attributes=attributes,
        labels=labels[1:],
        penalties=(),
        remarks=(),
    )
    return replace(summary, remarks=sums_remarks(summary, plan, sums, collapse))


def _label_summaries(plan: Plan, sums: EvaluationSums, edge: int, resamples: int, seed: int) -> Iterator[LabelSummary]:
    """The whole, without a name; of more than two labels, where it is the mean over labels, then each label."""
    if isinstance(plan.task, SegmentationTask):
        images = float(sums.cells[EVERYBODY][0, 0, 0])
        parts = (
            ImageTable.of(
                attribute, _names(plan, attribute), plan.task.labels[1:], withheld(plan), table,
                seed=(seed, index), resamples=resamples,
            ).summary(images)
            for index, (attribute, table) in enumerate(sums.cells.items())
        )  # fmt: skip
        yield _label_summary("", list(parts))
        return
    many = len(plan.task.questions) / _FEW
    each = resamples if many <= 1 else max(round(resamples / many), min(resamples, _LEAST))
    tables = [
        list(_label_tables(plan, plan.task, place, sums.question(place), edge, each, seed))
        for place in range(len(plan.task.questions))
    ]
    if len(tables) > 1:
        means = [Macro.of(same) for same in zip(*tables, strict=True)]
        everybody = float(means[0].records.sum())
        yield _label_summary("", [one.summary(everybody) for one in means])
    for question, own in zip(plan.task.questions, tables, strict=True):
        counts = own[0].table[0, :, 0]
        yield _label_summary(plan.task.labels[question], [one.summary(counts) for one in own])


def _label_tables(
    plan: Plan, task: ClassificationTask, place: int, sums: EvaluationSums, edge: int, resamples: int, seed: int
) -> Iterator[LabelTable]:
    """The tables of the label in question number ``place``, of everybody first."""
    binary = len(task.labels) == 2
    labels = (task.labels[0], task.labels[1]) if binary else (f"not {task.labels[place]}", task.labels[place])
    for index, (attribute, table) in enumerate(sums.cells.items()):
        entropy = (seed, index) if binary else (seed, index, place)
        yield LabelTable.of(
            attribute, _names(plan, attribute), labels, withheld(plan), table,
            edge=edge, seed=entropy, resamples=resamples,
        )  # fmt: skip


def _names(plan: Plan, attribute: str) -> tuple[str, ...]:
    return plan.groups.get(attribute, (attribute,))


def _label_summary(label: str, parts: Sequence[AttributeSummary]) -> LabelSummary:
    return LabelSummary(label, parts[0].groups[0], tuple(parts[1:]))


def _choose_threshold(plan: Plan, validation: EvaluationSums | None) -> tuple[int, Threshold | None]:
    """The first bin that is called positive, and what a report says about it."""
    bins = plan.evaluation.score_bins
    edge = None
    if plan.task.kind == "segmentation":
        return half_edge(bins), None
    if plan.evaluation.threshold == "validation_balanced_accuracy" and validation is not None:
        edge = best_edge(validation.cells[EVERYBODY][0, :, HEAD:])
    if edge is None:
        edge = half_edge(bins)
        return edge, Threshold(edge / bins, "half")
    return edge, Threshold(edge / bins, "validation_balanced_accuracy")


def _penalties(record: RunRecord) -> Iterator[PenaltySummary]:
    """Every penalty under every condition that a round has measured, or that one would, if none has."""
    method, labels = record.plan.method, len(record.plan.task.labels)
    for penalty in method.penalties if isinstance(method, FlexFairParameters) else ():
        gaps: dict[str, list[float | None]] = {}
        for line in (line for part in record.rounds for line in part.penalties):
            quantity = line.measure.split("/")[2] if line.measure.count("/") > 1 else ""
            mine = (line.attribute, line.criterion) == (penalty.attribute, penalty.criterion)
            if mine and quantity.startswith(penalty.utility):
                gaps.setdefault(line.measure.removesuffix("/weighted"), []).append(line.gap)
        for label in () if gaps else labels_of(penalty.criterion, labels):
            gaps[Measure(penalty.attribute, label, penalty.utility).name] = [None]
        for measure, found in gaps.items():
            yield PenaltySummary(penalty.attribute, penalty.criterion, measure, penalty.strength, found[0], found[-1])


def compare(baseline: RunSummary, other: RunSummary) -> Comparison:
    """What changed from ``baseline`` to ``other``, number by number, and warnings such as levelling down.

    A change has no interval: two runs share their test records, and sums do not say which record is which.
    Runs with several seeds do: :func:`fairflare.evaluation.statistics.paired_difference`.

    Raises
    ------
    RunError
        ``FF-RUN-COMPARE`` if task, attributes, score bins or split differ.
    """
    verify_comparable(baseline, other)
    changes = list(_changes(baseline, other))
    for old, new in zip(baseline.labels, other.labels, strict=True):
        changes += [replace(one, metric=of_label(one.metric, old.label)) for one in _changes(old, new)]
    return Comparison(baseline.name, other.name, tuple(changes), comparison_remarks(baseline, other))


def _changes(baseline: RunSummary | LabelSummary, other: RunSummary | LabelSummary) -> Iterator[Change]:
    yield from _group_changes(EVERYBODY, baseline.overall, other.overall)
    for before, after in zip(baseline.attributes, other.attributes, strict=True):
        for old, new in zip(before.groups, after.groups, strict=True):
            yield from _group_changes(before.attribute, old, new)
        yield from (_change(before.attribute, "", gap, before.gaps[gap], after.gaps[gap]) for gap in before.gaps)
        for metric in before.worst:
            if metric in after.worst:
                pair = before.worst[metric].value, after.worst[metric].value
                yield _change(before.attribute, "", f"worst_group_{metric}", *pair)


def verify_comparable(baseline: RunSummary, other: RunSummary) -> None:
    """Refuse two runs whose numbers are not of the same things; raises ``FF-RUN-COMPARE``."""
    pairs = {
        "task": (baseline.task, other.task),
        "attributes": (baseline.vocabulary, other.vocabulary),
        "score_bins": (baseline.score_bins, other.score_bins),
        "split": (baseline.split, other.split),
    }
    different = [what for what, (first, second) in pairs.items() if first != second]
    if different:
        raise RunError(
            "FF-RUN-COMPARE",
            got=f"runs '{baseline.name}' and '{other.name}' with different {', '.join(different)}",
            expected="runs with the same task, attributes, score bins and split",
            next_step="report on these runs one at a time, or run one again with the other's settings",
        )


def _group_changes(attribute: str, old: GroupSummary, new: GroupSummary) -> list[Change]:
    return [_change(attribute, old.group, metric, old.metrics[metric], new.metrics[metric]) for metric in old.metrics]


def _change(attribute: str, group: str, metric: str, old: Value, new: Value) -> Change:
    change = None if old.value is None or new.value is None else new.value - old.value
    return Change(attribute, group, metric, old.value, new.value, change)
