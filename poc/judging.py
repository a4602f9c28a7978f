# SPDX-License-Identifier: Apache-2.0
"""What a run of the real study is judged by, on one split: from sums, or hospital by hospital from data.

Where hospitals are the groups, nobody but a hospital knows its own results. This study holds all of the data, so it
does what each hospital would do: it evaluates the final model on that hospital's images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairflare.data.manifest import load
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.evaluation.report import summarise
from fairflare.evaluation.summary import RunSummary, Split
from fairflare.fairness.groups import HOSPITAL, Floats
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord, find_record

GAPS = {"equal_opportunity": "equal_opportunity_difference", "equalized_odds": "equalized_odds_difference"}


@dataclass(frozen=True)
class Judged:
    """One run on one split.

    Attributes
    ----------
    quality, gap
        What strengths are chosen by: AUC or mean Dice, and the mean of what the penalties aim at.
    collapsed
        Whether the final model says the same of everything.
    rows
        Lines of the table.
    """

    split: Split
    quality: float
    gap: float
    collapsed: bool
    rows: dict[str, float]


def judge(candidate: Plan, folder: Path, record: RunRecord, catalog: DataCatalog, split: Split) -> Judged:
    """Judge the run whose record lies in ``folder`` by what the penalties of ``candidate`` aim at."""
    criteria = [(penalty.attribute, penalty.criterion) for penalty in candidate.method.penalties]
    if criteria == [(HOSPITAL, "equal_accuracy")]:
        return _by_hospital(folder, record, catalog, split)
    summary = summarise(record, split, resamples=200)
    gaps = [_gap(summary, attribute, criterion) for attribute, criterion in criteria]
    quality = _number(summary.overall.metrics["roc_auc"].value)
    rows = {"AUC": quality, "balanced accuracy": _number(summary.overall.metrics["balanced_accuracy"].value)}
    for (attribute, criterion), gap in zip(criteria, gaps, strict=True):
        rows[f"{GAPS[criterion].replace('_', ' ')} by {attribute}"] = gap
        rows[f"worst group's balanced accuracy by {attribute}"] = _worst(summary, attribute)
    return Judged(split, quality, float(np.mean(gaps)), _collapsed(record, split), rows)


def _by_hospital(folder: Path, record: RunRecord, catalog: DataCatalog, split: Split) -> Judged:
    """Dice and the paper's gap, max_s |Dice_s - Dice of all images|."""
    found = dict(_dice(folder, record, catalog, split))
    means = {site: float(values.mean()) for site, values in found.items()}
    everybody = float(np.concatenate(list(found.values())).mean())
    gap = max(abs(mean - everybody) for mean in means.values())
    rows = {"Dice": everybody, "largest gap to the mean by hospital": gap, "worst hospital's Dice": min(means.values())}
    rows |= {f"Dice at {site}": mean for site, mean in means.items()}
    return Judged(split, everybody, gap, _collapsed(record, split), rows)


def _dice(folder: Path, record: RunRecord, catalog: DataCatalog, split: Split) -> Iterator[tuple[str, Floats]]:
    """Dice of each image of each hospital, with the run's final model."""
    plan = record.plan
    model = read_model(find_record(folder).parent, plan, record.rounds[-1].model_sha256)
    for site in catalog.site_names:
        data = load(plan, catalog.entry(site, plan.task.data_set))
        trainer = Trainer(plan, site, data.training)
        trainer.start_round(model)
        yield site, trainer.scores(data.validation if split == "validation" else data.test).strata[0].value


def _collapsed(record: RunRecord, split: Split) -> bool:
    final = record.final
    return (
        final is not None and (final.validation_collapse if split == "validation" else final.test_collapse) is not None
    )


def _gap(summary: RunSummary, attribute: str, criterion: str) -> float:
    return _number(summary.by_attribute(attribute).gaps[GAPS[criterion]].value)


def _worst(summary: RunSummary, attribute: str) -> float:
    worst = summary.by_attribute(attribute).worst.get("balanced_accuracy")
    return float("nan") if worst is None else _number(worst.value.value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
