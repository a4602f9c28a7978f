# SPDX-License-Identifier: Apache-2.0
"""What the models of a run are worth on every hospital's records: one way for federated models and for baselines.

Each site's records are scored by the model that this site would use: the common one, or its own where it trained alone.
Sums are then added over sites, as a federation adds them, so that groups are of all hospitals. A study holds all data,
so nothing is withheld, and hospitals are groups as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairflare.data.manifest import Records, SiteData
from fairflare.engine.at_site import ModelFile, part_of, score, site_sums
from fairflare.engine.describe import collapse
from fairflare.evaluation.report import summarise_sums
from fairflare.evaluation.summary import AttributeSummary, GroupSummary, LabelSummary, RunSummary, Split
from fairflare.fairness.groups import EVERYBODY, HEAD, HOSPITAL, EvaluationSums
from fairflare.fairness.images import of_label
from fairflare.plan import Attribute, Cells, Plan
from fairflare.record import RunRecord
from fairflare.study.kept import Values
from fairflare.study.measures import SITE_MEAN, named

SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True, eq=False)
class Judged:
    """Every number of a run, and the share of its models that say the same of everything, on one split."""

    values: Values
    collapsed: float
    sums: EvaluationSums


def judge(plan: Plan, models: Mapping[str, ModelFile], data: Mapping[str, SiteData]) -> dict[Split, Judged]:
    """Judge a run by the records of every site; ``models`` and ``data``: site -> its own."""
    sites = tuple(sorted(data))
    shown = _with_hospitals(plan, sites)
    parts = {
        split: [_of_site(shown, models[site], part_of(data[site], split), place) for place, site in enumerate(sites)]
        for split in SPLITS
    }
    one_model = len({models[site].model_sha256 for site in sites}) == 1
    totals = {split: _total([one.sums for one in found]) for split, found in parts.items()}
    result = {}
    for split in SPLITS:
        summary = _summary(shown, totals[split], totals["validation"], split)
        own = [
            _summary(shown, one.sums, tried.sums, split)
            for one, tried in zip(parts[split], parts["validation"], strict=True)
        ]
        values = {**dict(_flat(summary)), **dict(_site_means(own))}
        result[split] = Judged(values, _collapsed(shown, parts[split], one_model), totals[split])
    return result


def same_as_record(judged: Mapping[Split, Judged], record: RunRecord, sites: Sequence[str]) -> bool:
    """Whether a federated run's own final evaluation counts the same scores; true where they cannot be compared."""
    final, cells = record.final, record.plan.cells
    if final is None or not final.test or list(final.participants) != list(sites):
        return True
    if cells.minimum > 1 or cells.sites > 1:
        return True
    return all(
        np.array_equal(
            np.rint(record.evaluation(split).cells[EVERYBODY][..., HEAD:]),
            judged[split].sums.cells[EVERYBODY][..., HEAD:],
        )
        for split in SPLITS
    )


def _with_hospitals(plan: Plan, sites: tuple[str, ...]) -> Plan:
    """The plan as if hospitals were an attribute and no cell too small."""
    # Not validated: a plan that people write may not call an attribute so, and a site's name may be any folder's.
    hospitals = Attribute.model_construct(name=HOSPITAL, values=sites, edges=None)
    return plan.model_copy(
        update={"attributes": (*plan.attributes, hospitals), "cells": Cells(minimum=0, sites=1)}
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """One site's sums, the images that a model paints empty and full (a classification has none), and its collapse."""

    sums: EvaluationSums
    collapsed: bool
    painted: np.ndarray


def _of_site(shown: Plan, model: ModelFile, records: Records, place: int) -> _Part:
    scores = score(model, records)
    groups = {**records.groups, HOSPITAL: np.full(len(records), place, dtype=np.int64)}
    known = Records(records.inputs, records.labels, groups, records.masks)
    found = site_sums(shown, scores, known, minimum=0)
    return _Part(found.sums, found.collapse is not None, np.asarray(scores.predictions))


def _collapsed(shown: Plan, parts: Sequence[_Part], one_model: bool) -> float:
    if not one_model:
        return sum(one.collapsed for one in parts) / len(parts)
    painted = np.sum([one.painted for one in parts], axis=0)
    return float(collapse(shown, _total([one.sums for one in parts]), painted) is not None)


def _total(sums: Sequence[EvaluationSums]) -> EvaluationSums:
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    return total


def _summary(shown: Plan, sums: EvaluationSums, validation: EvaluationSums, split: Split) -> RunSummary:
    # No interval is kept of a single run (a study's are over seeds), so one resample is as good as many.
    return summarise_sums(shown, sums, validation, split=split, name="run", resamples=1)


def _flat(summary: RunSummary) -> Iterator[tuple[str, float | None]]:
    """Every number by name; of one of several labels, as ``METRIC/LABEL``."""
    yield from _flat_part(summary)
    for part in summary.labels:
        for name, value in _flat_part(part):
            yield of_label(name, part.label), value


def _flat_part(part: RunSummary | LabelSummary) -> Iterator[tuple[str, float | None]]:
    yield from _flat_group((EVERYBODY,), part.overall)
    for attribute in part.attributes:
        yield from _flat_attribute(attribute)


def _flat_attribute(attribute: AttributeSummary) -> Iterator[tuple[str, float | None]]:
    for gap, value in attribute.gaps.items():
        yield named(attribute.attribute, gap), value.value
    for group in attribute.groups:
        yield from _flat_group((attribute.attribute, group.group), group)


def _flat_group(place: tuple[str, ...], group: GroupSummary) -> Iterator[tuple[str, float | None]]:
    yield named(*place, "records"), float(group.records)
    for metric, value in group.metrics.items():
        yield named(*place, metric), value.value


def _site_means(own: Sequence[RunSummary]) -> Iterator[tuple[str, float | None]]:
    """Mean over sites of each one's own number (with a threshold of its own), and over how many sites it is."""
    for metric in own[0].overall.metrics:
        found = [one.overall.metrics[metric].value for one in own]
        known = [value for value in found if value is not None]
        yield named(SITE_MEAN, metric), sum(known) / len(known) if known else None
        yield named(SITE_MEAN, metric, "sites"), float(len(known))
