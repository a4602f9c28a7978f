# SPDX-License-Identifier: Apache-2.0
"""Reports for other programs: one long CSV table, and JSON with everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from fairflare.evaluation.summary import AttributeSummary, Comparison, GroupSummary, LabelSummary, RunSummary, Value
from fairflare.fairness.groups import EVERYBODY
from fairflare.fairness.images import of_label

FORMAT = "fairflare/report/1"
COLUMNS = ("run", "split", "attribute", "group", "metric", "n", "value", "low", "high", "note")

_Row = tuple[str, str, str, Value]


def to_csv(summaries: Sequence[RunSummary]) -> str:
    """Long form, a line per number; an empty ``value`` is "not estimable" and ``note`` says why.

    Gaps have no group, ``worst_group_*`` names it; ``METRIC/LABEL`` is about one of several labels; warnings are lines
    with the metric ``warning``, their text in ``note``.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for summary in summaries:
        for attribute, group, metric, value in _rows(summary):
            numbers = ["" if x is None else repr(x) for x in (value.value, value.low, value.high)]
            writer.writerow(
                [summary.name, summary.split, attribute, group, metric, value.records, *numbers, value.note]
            )
        for remark in summary.remarks:
            text = f"{remark.kind}: {remark.text}"
            writer.writerow([summary.name, summary.split, "", "", "warning", "", "", "", "", text])
    return stream.getvalue()


def _rows(summary: RunSummary) -> Iterator[_Row]:
    if summary.threshold is not None:
        yield EVERYBODY, "", "threshold", Value(summary.threshold.value, None, None, 0, summary.threshold.source)
    yield from _part_rows(summary)
    for part in summary.labels:
        for attribute, group, metric, value in _part_rows(part):
            yield attribute, group, of_label(metric, part.label), value


def _part_rows(part: RunSummary | LabelSummary) -> Iterator[_Row]:
    yield from _group_rows(EVERYBODY, part.overall)
    for attribute in part.attributes:
        yield from _attribute_rows(attribute)


def _group_rows(attribute: str, group: GroupSummary) -> Iterator[_Row]:
    for metric, value in group.metrics.items():
        yield attribute, group.group, metric, value


def _attribute_rows(attribute: AttributeSummary) -> Iterator[_Row]:
    for group in attribute.groups:
        yield from _group_rows(attribute.attribute, group)
    for metric, value in attribute.gaps.items():
        yield attribute.attribute, "", metric, value
    for metric, worst in attribute.worst.items():
        yield attribute.attribute, worst.group, f"worst_group_{metric}", worst.value


def to_json(summaries: Sequence[RunSummary], comparisons: Sequence[Comparison]) -> str:
    """Everything, with ``null`` for "not estimable"."""
    data = {
        "format": FORMAT,
        "runs": [asdict(summary) for summary in summaries],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
