# SPDX-License-Identifier: Apache-2.0
"""What the record says of a round and of the end, from sums over sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fairflare.engine import describe
from fairflare.engine.messages import TRAINING_SUMS, Layout
from fairflare.fairness.groups import EvaluationSums, Floats, unpack
from fairflare.record import Refusal, RoundRecord, Seconds, cells_from_sums, group_lines
from fairflare.secagg.protection import Opened


def round_line(
    layout: Layout,
    number: int,
    participants: Mapping[str, tuple[str, ...]],
    refusals: tuple[Refusal, ...],
    risk: Floats | bytes | None,
    validated: Mapping[str, Opened],
    trained: Mapping[str, Opened],
    acted: int | None,
    seconds: Seconds,
    model_sha256: str,
) -> RoundRecord:
    """One round's line.

    ``risk``: group sums, ``None`` if nothing was measured, bytes where only sites know them. With masks ``acted`` is
    the round whose totals acted, and statistics may be missing.
    """
    sums: dict[str, float | None] = dict.fromkeys(TRAINING_SUMS)
    if "training_sums" in trained:
        sums.update(zip(TRAINING_SUMS, trained["training_sums"].total.tolist(), strict=True))
    measures = layout.method.measures()
    known = unpack(measures, risk, layout.sizes) if isinstance(risk, np.ndarray) else dict.fromkeys(measures)
    states = [] if risk is None else layout.method.states(known)
    evaluation = evaluation_of(layout, validated["validation_sums"]) if "validation_sums" in validated else None
    predicted = _total(validated, "validation_predictions")
    return RoundRecord(
        round=number, participants=dict(participants), refusals=refusals, records=sums["records"],
        train_loss=_mean(sums["loss"], sums["seen"]), weighed=sums["weighed"], at_minimum=sums["at_minimum"],
        at_maximum=sums["at_maximum"], totals=acted,
        penalties=tuple(describe.penalty_record(state) for state in states),
        validation=() if evaluation is None else group_lines(layout.plan, evaluation),
        collapse=None if evaluation is None else describe.collapse(layout.plan, evaluation, predicted),
        seconds=seconds, model_sha256=model_sha256,
    )  # fmt: skip


def final_results(layout: Layout, opened: Mapping[str, Opened]) -> dict[str, object]:
    """Fields of the final results that follow from sums over sites."""
    found: dict[str, object] = {}
    for split in ("validation", "test"):
        sums = evaluation_of(layout, opened[f"{split}_sums"])
        found[split] = cells_from_sums(layout.plan, sums)
        found[f"{split}_collapse"] = describe.collapse(layout.plan, sums, _total(opened, f"{split}_predictions"))
    return found


def evaluation_of(layout: Layout, opened: Opened) -> EvaluationSums:
    """Evaluation sums without the cells that too few sites report."""
    plan = layout.plan
    sums = EvaluationSums.from_vector(opened.total, layout.sizes, plan.evaluation.score_bins, plan.task.strata)
    return sums.keep(plan.cells.sites)


def _total(opened: Mapping[str, Opened], label: str) -> Floats:
    return opened[label].total if label in opened else np.zeros(0)


def _mean(total: float | None, count: float | None) -> float | None:
    return None if total is None or count is None else total / max(count, 1.0)
