# SPDX-License-Identifier: Apache-2.0
"""The record of a run, ``record.json``: what happened, who took part, what came out; success is decided from it.

The server writes it anew after every round (atomically), so it is complete at any moment. It names sites, never
their single results: every number is a sum over sites or derived from one.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fairflare import schema
from fairflare.errors import RunError
from fairflare.fairness.groups import EVERYBODY, HEAD, EvaluationSums, Floats
from fairflare.fairness.metrics import roc_auc
from fairflare.plan import Plan
from fairflare.schema import StrictModel

FILE_NAME = "record.json"
MODEL_NAME = "model.safetensors"
PROGRESS_NAME = "progress.jsonl"
_SESSION = "session-"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Refusal(StrictModel):
    """A site whose answer to a task was refused, or that gave none: who, to what, and a stable code."""

    site: str
    task: str
    code: str


class PenaltyRecord(StrictModel):
    """One penalty under one condition at the start of a round; arrays follow the attribute's values.

    ``risk`` is ``null`` for an absent group. All arrays and ``value`` and ``gap`` are ``null`` where the groups are
    hospitals: there only sums of risks are opened.
    """

    attribute: str
    criterion: str
    measure: str
    strength: float
    risk: tuple[float | None, ...] | None
    weight: tuple[float, ...] | None
    coefficient: tuple[float, ...] | None
    count: tuple[float, ...] | None
    value: float | None
    gap: float | None


class GroupLine(StrictModel):
    """Validation results of one group at the start of a round; ``null`` is "not estimable", or not of this task.

    Two labels: ``positives``, ``mean_score`` (mean probability of the positive one) and ``auc``. More labels: ``auc``
    is the mean over labels of each against all others. Segmentation: ``dice``, the mean over images and labels.
    """

    attribute: str
    group: str
    records: float
    positives: float | None
    loss: float | None
    mean_score: float | None
    auc: float | None
    dice: float | None


#: How a model fails that has learnt nothing: it says the same of every record (``constant``), or paints every image of
#: validation or test data with background, or with one label.
Collapse = Literal["constant", "all_background", "all_foreground"]


class Seconds(StrictModel):
    """Wall-clock seconds of a round's phases at the server, waiting for sites included; never a single site's."""

    measure: float
    train: float
    aggregate: float


class RoundRecord(StrictModel):
    """One round: statistics and validation at its first model, then training; ``model_sha256`` is its last model.

    ``weighed`` counts the weights that the method gave (per record and utility; once a round and again each time that a
    site measures its own part anew, or in lock step for every step that a record was in), ``at_minimum`` and
    ``at_maximum`` those of them held at the plan's bound.
    ``penalties`` is empty in a round that exchanged no statistics. ``collapse`` is about its first model.
    """

    round: int
    participants: dict[str, tuple[str, ...]]
    refusals: tuple[Refusal, ...]
    records: float
    train_loss: float
    weighed: float
    at_minimum: float
    at_maximum: float
    penalties: tuple[PenaltyRecord, ...]
    validation: tuple[GroupLine, ...]
    collapse: Collapse | None
    seconds: Seconds
    model_sha256: Sha256


class Cell(StrictModel):
    """Evaluation sums of one (attribute, group, stratum) over sites; zeros if absent or suppressed.

    With two labels the stratum is the true label; see ``fairness.groups.Stratum`` for other tasks.
    """

    attribute: str
    group: str
    stratum: int
    count: float
    sites: float
    loss: float
    value: float
    histogram: tuple[float, ...]


class Final(StrictModel):
    """The last model's hash, who took part in its evaluation, and evaluation sums per split.

    ``best_rounds``: rounds trained before the model that is best on validation data (see :func:`best_model`).
    """

    model_sha256: Sha256
    best_model_sha256: Sha256
    best_rounds: int
    participants: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    validation: tuple[Cell, ...]
    test: tuple[Cell, ...]
    validation_collapse: Collapse | None
    test_collapse: Collapse | None
    confirmed: tuple[str, ...]


class Session(StrictModel):
    """One start of the job; a resumed job is a new session that goes on from an earlier one's last complete round.

    ``roster`` are the sites that were asked to join; ``records``, empty before anybody has joined, are sums over those
    that did. A later session may have other sites.
    """

    number: int
    transport: Literal["flare", "local"]
    started: str
    first_round: int
    previous_record_sha256: Sha256 | None
    roster: tuple[str, ...]
    join_refusals: tuple[Refusal, ...]
    records: dict[str, float]

    @property
    def joined(self) -> tuple[str, ...]:
        """Sites of the roster that joined."""
        refused = {refusal.site for refusal in self.join_refusals}
        return tuple(site for site in self.roster if site not in refused)


class Reason(StrictModel):
    """Why a run stopped."""

    code: str
    text: str


class RunRecord(StrictModel):
    """The whole of ``record.json``; see the module's docstring."""

    format: Literal["fairflare/record/1"]
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
    final: Final | None

    @property
    def roster(self) -> tuple[str, ...]:
        """Sites that the newest session asked to join."""
        return self.sessions[-1].roster if self.sessions else ()

    @property
    def join_refusals(self) -> tuple[Refusal, ...]:
        """Sites that the newest session asked in vain."""
        return self.sessions[-1].join_refusals if self.sessions else ()

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
        values.append(validation_value(group_lines(record.plan, record.evaluation("validation"))))
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


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at ``path``; a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``record.json`` into ``folder``."""
    text = json.dumps(record.model_dump(mode="json"), allow_nan=False, separators=(",", ": "), indent=None)
    write_atomically(folder / FILE_NAME, text.encode() + b"\n")


def read_record(path: Path) -> RunRecord:
    """Read a record from its file or from the folder that holds it; raises :class:`RunError`."""
    file = path / FILE_NAME if path.is_dir() else path
    return schema.read(RunRecord, file, error=RunError, what="record")


def session_number(name: str) -> int:
    """N of a session's folder ``session-N``; 0 for any other name."""
    text = name.removeprefix(_SESSION)
    return int(text) if name.startswith(_SESSION) and text.isdecimal() else 0


def find_record(run: Path) -> Path:
    """The record of a run: ``run`` itself, the one in it, or one below it.

    Of several, the one written last names the run; where a run has several sessions (``session-N``), the one with the
    largest N is taken, since copying a folder changes its files' times.
    """
    if run.is_file():
        return run
    if (run / FILE_NAME).is_file():
        return run / FILE_NAME
    found = sorted(run.rglob(FILE_NAME), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    if not found:
        raise RunError(
            "FF-RUN-NO-RECORD",
            got="a folder without a record.json, in it or below",
            expected="a run's folder, a FLARE workspace or a record",
            next_step="name the folder that 'fairflare run' wrote; if it is this one, the job ended before its first "
            "phase: read the server's log",
        )
    place, _ = _place(run, found[-1])
    return max((file for file in found if _place(run, file)[0] == place), key=lambda file: _place(run, file)[1])


def _place(run: Path, file: Path) -> tuple[tuple[str, ...], int]:
    """Where a record lies below ``run``, with its session's number taken out, and that number."""
    parts = file.relative_to(run).parts
    numbers = [session_number(part) for part in parts]
    return tuple(_SESSION if number else part for part, number in zip(parts, numbers, strict=True)), max(numbers)


def changed(record: RunRecord, **fields: Any) -> RunRecord:
    """A copy of ``record`` with some fields replaced."""
    return record.model_copy(update=fields)
