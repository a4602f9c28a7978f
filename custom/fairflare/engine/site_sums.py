# SPDX-License-Identifier: Apache-2.0
"""What a site adds up about its records at the current model, with zeros for whatever may not be shown."""

from __future__ import annotations

import numpy as np

from fairflare.data.manifest import Records
from fairflare.engine.cells import Kept
from fairflare.engine.messages import Layout
from fairflare.engine.objective import Scores
from fairflare.fairness.groups import (
    HOSPITAL,
    CellSums,
    EvaluationSums,
    HospitalSums,
    Measure,
    Sums,
    group_index,
    groups_of,
)
from fairflare.secagg.protection import Weighted


def group_sums(layout: Layout, scores: Scores, records: Records, kept: Kept | None) -> dict[Measure, Sums]:
    """Sums of the method's measures; ``kept`` says which cells may be opened, ``None``: all."""
    result: dict[Measure, Sums] = {}
    minimum = layout.plan.cells.minimum
    for measure in layout.method.measures():
        chosen = np.ones(len(records), dtype=bool) if measure.label < 0 else records.labels == measure.label
        values = scores.quantities[measure.quantity][chosen]
        if measure.attribute == HOSPITAL:
            result[measure] = HospitalSums.measure(values, minimum, measure.weighted)
        else:
            group = group_index(measure, records.groups, len(records))[chosen]
            result[measure] = CellSums.measure(values, group, groups_of(measure, layout.sizes), minimum)
    return result if kept is None else {measure: kept.sums(measure, sums) for measure, sums in result.items()}


def evaluation_vectors(
    layout: Layout, split: str, scores: Scores, records: Records, kept: Kept | None
) -> dict[str, Weighted]:
    """Vectors of ``validation`` or ``test`` records."""
    bins, minimum = layout.plan.evaluation.score_bins, layout.plan.cells.minimum
    sums = EvaluationSums.measure(scores.strata, records.groups, layout.sizes, bins, minimum)
    if kept is not None:
        sums = kept.evaluation(split, sums)
    vectors = {f"{split}_sums": Weighted(sums.vector())}
    if scores.predictions.size:
        enough = len(records) >= minimum and (kept is None or kept.everybody(split))
        vectors[f"{split}_predictions"] = Weighted(scores.predictions * enough)
    return vectors
