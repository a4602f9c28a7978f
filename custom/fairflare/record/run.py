# SPDX-License-Identifier: Apache-2.0
"""The whole record of a run, and what follows from it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from fairflare.errors import RunError
from fairflare.fairness.groups import EVERYBODY, HEAD, EvaluationSums, Floats
from fairflare.fairness.metrics import roc_auc
from fairflare.plan import Plan
from fairflare.record.feasibility import Feasibility
from fairflare.record.parts import Cell, Final, GroupLine, LostRound, Reason, Refusal, RoundRecord, Session, Sha256
from fairflare.schema import StrictModel


class RunRecord(StrictModel):
    """The whole of ``record.json``; see the module's docstring.

    ``begun``: rounds begun, the final evaluation counted as one more. With masks a site answers once only, so a round
    that was begun by a session that broke off is lost. ``feasibility``: what a job counted that has no rounds.
    """

    format: Literal["fairflare/record/2"]
    plan: Plan
    plan_sha256: Sha256
    software: dict[str, str]
    notices: tuple[str, ...]
    sessions: tuple[Session, ...]
    status: Literal["running", "complete", "stopped"]
    reason: Reason | None
    ended: str | None
    initial_model_sha256: Sha256
    rounds: tuple[RoundRecord, ...]
    lost_rounds: tuple[LostRound, ...]
    begun: int
    final: Final | None
    feasibility: Feasibility | None = None

    @property
    def next_round(self) -> int:
        """Number of the round that comes next."""
        return len(self.rounds) + len(self.lost_rounds)

    @property
    def roster(self) -> tuple[str, ...]:
        """Sites that the newest session asked to join."""
        return self.sessions[-1].roster if self.sessions else ()

    @property
    def join_refusals(self) -> tuple[Refusal, ...]:
        """Sites that the newest session asked in vain."""
        return self.sessions[-1].join_refusals if self.sessions else ()

    @property
    def without(self) -> tuple[Refusal, ...]:
        """Sites of the project that the newest session ran without from its start on."""
        return self.sessions[-1].without if self.sessions else ()

    @property
    def records(self) -> dict[str, float]:
        """Records by split over the sites that joined the newest session."""
        return self.sessions[-1].records if self.sessions else {}

    def evaluation(self, split: Literal["validation", "test"]) -> EvaluationSums:
        """Evaluation sums of the final model; raises :class:`RunError` if the run has none."""
        if self.final is None:
            raise RunError(
                "FF-RUN-INCOMPLETE",
                got=f"a record with status '{self.status}' and no final evaluation",
                expected="a complete run",
                next_step="resume the run with 'fairflare run resume', or choose another one",
            )
        if not self.final.test:
            raise RunError(
                "FF-RUN-WITHHELD",
                got="a final evaluation that could not be opened, since a site of the session was missing",
                expected="sums over all sites of the session: exact statistics are opened over all or not at all",
                next_step="evaluate the model at each site with 'fairflare evaluate'",
            )
        return sums_from_cells(self.plan, self.final.validation if split == "validation" else self.final.test)


def cells_from_sums(plan: Plan, sums: EvaluationSums) -> tuple[Cell, ...]:
    """Evaluation sums in the record's form."""
    names = plan.groups
    cells = []
    for attribute, table in sums.cells.items():
        for group, value in enumerate(names.get(attribute, (attribute,))):
            for stratum, row in enumerate(table[group]):
                head = [float(number) for number in row[:HEAD]]
                cells.append(
                    Cell(
                        attribute=attribute, group=value, stratum=stratum, count=head[0], sites=head[1],
                        loss=head[2], value=head[3], histogram=tuple(float(n) for n in row[HEAD:]),
                    )
                )  # fmt: skip
    return tuple(cells)


def sums_from_cells(plan: Plan, cells: tuple[Cell, ...]) -> EvaluationSums:
    """Inverse of :func:`cells_from_sums`; raises :class:`RunError` for other cells than the plan's."""
    values, strata = {EVERYBODY: (EVERYBODY,), **plan.groups}, plan.task.strata
    wanted = [(name, group, part) for name, groups in values.items() for group in groups for part in range(strata)]
    rows = [[c.count, c.sites, c.loss, c.value, *c.histogram] for c in cells]
    try:
        if [(c.attribute, c.group, c.stratum) for c in cells] != wanted:
            raise ValueError("other cells, or in another order")
        vector = np.array(rows, dtype=np.float64).ravel()
        return EvaluationSums.from_vector(vector, plan.sizes, plan.evaluation.score_bins, strata)
    except ValueError:
        raise RunError(
            "FF-RUN-LAYOUT",
            got="evaluation cells that do not follow the plan's layout",
            expected="every (attribute, group, stratum) once, in the order of the plan",
            next_step="do not use this record: it was changed or cut off",
        ) from None


def best_model(record: RunRecord) -> tuple[int, str]:
    """Rounds trained before, and hash of, the model that is best on validation data among those that were evaluated.

    Classification: the largest area under the ROC curve (of more than two labels, the mean of each against all others);
    segmentation: the largest mean Dice; over everybody. Of equals the one trained longest: it has seen most. A value
    that is not estimable is never the best; if none is, the newest model is.
    """
    hashes = [record.initial_model_sha256, *(line.model_sha256 for line in record.rounds)]
    values = [validation_value(line.validation) for line in record.rounds]
    if record.final is not None:
        lines = group_lines(record.plan, record.evaluation("validation")) if record.final.validation else ()
        values.append(validation_value(lines))
    known = [(value, place) for place, value in enumerate(values) if value is not None]
    place = max(known)[1] if known else len(hashes) - 1
    return place, hashes[place]


def validation_value(lines: tuple[GroupLine, ...]) -> float | None:
    """What models are ranked by on validation data: everybody's area under the ROC curve, or mean Dice."""
    for line in lines:
        if line.attribute == EVERYBODY:
            return line.auc if line.dice is None else line.dice
    return None


def results_of(record: RunRecord) -> RunRecord:
    """A record as it is sent to the sites with the models: before anybody has confirmed them."""
    final = None if record.final is None else record.final.model_copy(update={"confirmed": ()})
    return record.model_copy(update={"status": "running", "reason": None, "ended": None, "final": final})


def group_lines(plan: Plan, sums: EvaluationSums) -> tuple[GroupLine, ...]:
    """Validation results of every group from sums over sites."""
    withheld = plan.cells.minimum > 1 or plan.cells.sites > 1
    describe = _images_line if plan.task.kind == "segmentation" else _labels_line
    return tuple(
        describe(attribute, name, table[group], withheld)
        for attribute, table in sums.cells.items()
        for group, name in enumerate(plan.groups.get(attribute, (attribute,)))
    )


def _labels_line(attribute: str, group: str, cell: Floats, withheld: bool) -> GroupLine:
    """Of a table (2 Q, 4 + bins): two strata for each label in question."""
    records = float(cell[:2, 0].sum())
    # Where a label may have been withheld, what is left would be half of the group's loss, shown as its own.
    whole = records > 0 and (not withheld or bool((cell[:, 0] > 0).all()))
    areas = [float(roc_auc(cell[place : place + 2, HEAD:])) for place in range(0, len(cell), 2)]
    auc = areas[0] if len(areas) == 1 else sum(areas) / len(areas)
    binary = len(areas) == 1
    return GroupLine(
        attribute=attribute, group=group, records=records, positives=float(cell[1, 0]) if binary else None,
        loss=float(cell[:2, 2].sum() / records) if whole else None,
        mean_score=float(cell[:, 3].sum() / records) if whole and binary else None,
        auc=None if math.isnan(auc) else auc, dice=None,
    )  # fmt: skip


def _images_line(attribute: str, group: str, cell: Floats, withheld: bool) -> GroupLine:
    """Of a table (F, 4 + bins): the same images for each label but the background."""
    records = float(cell[0, 0])
    known = records > 0
    return GroupLine(
        attribute=attribute, group=group, records=records, positives=None, mean_score=None, auc=None,
        loss=float(cell[0, 2] / records) if known else None,
        dice=float(cell[:, 3].sum() / cell[:, 0].sum()) if known else None,
    )  # fmt: skip


def changed(record: RunRecord, **fields: Any) -> RunRecord:
    """A copy of ``record`` with some fields replaced."""
    return record.model_copy(update=fields)
