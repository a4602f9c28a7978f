# SPDX-License-Identifier: Apache-2.0
"""Was joining worth it? The federated model beside ones trained on this site alone, on this site's test records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairflare.data.manifest import SiteData
from fairflare.engine.alone import alone_plan
from fairflare.engine.at_site import ModelFile, Named, decision_of, predictions_of, score, site_sums
from fairflare.evaluation.report import compare, summarise_sums
from fairflare.evaluation.statistics import RESAMPLES
from fairflare.evaluation.summary import Remark, RunSummary
from fairflare.evaluation.worth import Predictions, Worth, compare_models, group_masks
from fairflare.plan import Plan


@dataclass(frozen=True, eq=False)
class Contender:
    """A model on this site's test records: what it says of each, and what a report says of it."""

    name: str
    model: ModelFile
    predictions: Predictions
    summary: RunSummary


def contender(name: str, model: ModelFile, data: SiteData) -> Contender:
    """Score validation records, for the model's own threshold, and test records."""
    # Nothing leaves, so nothing is withheld.
    plan = alone_plan(model.plan).model_copy(update={"method": model.plan.method})
    tried = site_sums(plan, score(model, data.validation), data.validation, minimum=0).sums
    scores = score(model, data.test)
    own = site_sums(plan, scores, data.test, minimum=0)
    summary = summarise_sums(
        plan, own.sums, tried, split="test", name=name, model_sha256=model.model_sha256, collapse=own.collapse
    )
    return Contender(name, model, predictions_of(plan, scores, decision_of(plan, tried)), summary)


def comparisons_of(plan: Plan) -> int:
    """How many numbers one comparison of two models has: groups times metrics."""
    metrics = 1 if plan.task.kind == "segmentation" else 2
    return metrics * (1 + sum(plan.sizes.values()))


def worth_of(
    plan: Plan,
    first: Contender,
    second: Contender,
    named: Named,
    *,
    resamples: int = RESAMPLES,
    progress: Callable[[], None] = lambda: None,
) -> Worth:
    """How ``second`` differs from ``first`` for everybody and for each group among these test records."""
    records = named.records
    return compare_models(
        (first.name, second.name), first.predictions, second.predictions, records.labels, named.patients,
        group_masks(plan.groups, records.groups, len(records)), resamples=resamples, progress=progress,
    )  # fmt: skip


def levelled_down(first: Contender, second: Contender) -> Sequence[Remark]:
    """Gaps that are smaller with ``second`` only because better groups lost."""
    return [
        Remark(remark.kind, f"{second.name} against {first.name}: {remark.text}. The tables say what may be chance")
        for remark in compare(first.summary, second.summary).remarks
        if remark.kind == "levelling down"
    ]
