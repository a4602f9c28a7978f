# SPDX-License-Identifier: Apache-2.0
"""A finished model at one site: its file read with distrust, the site's own records scored as in a round.

Nothing here is sent: what is computed stays where it is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fairflare.data.manifest import SPLITS, Records, SiteData, read_manifest
from fairflare.engine.describe import collapse
from fairflare.engine.objective import Scores, predicted_labels
from fairflare.engine.results import MODEL_FORMAT
from fairflare.engine.training import Trainer
from fairflare.errors import DataError, PlanError, RoundError, WeightsError
from fairflare.evaluation.summary import Split
from fairflare.evaluation.worth import Predictions
from fairflare.fairness.groups import EVERYBODY, HEAD, EvaluationSums, Floats
from fairflare.fairness.metrics import best_edge, half_edge
from fairflare.models import (
    WeightFile,
    frozen_sha256,
    frozen_tensors_of,
    read_weights,
    to_vector_of,
    vector_sha256,
)
from fairflare.models.vector import Tensors, Vector
from fairflare.plan import Plan, parse_plan
from fairflare.policy import Entry
from fairflare.record import Collapse

#: Called with how many records are done, and of how many.
Progress = Callable[[int, int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROUNDS = re.compile(r"[0-9]{1,5}")
#: Records scored between two signs of progress: a multiple of every forward batch, so batches are those of a round.
_PART = 256
_IMAGES = 8


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model that a job left at a site; ``sha256`` is the file's hash, the others are what the file says of itself.

    Attributes
    ----------
    plan, vector, frozen
        The plan that it was trained with, its trained numbers, float32 (P,), and the tensors that were not trained.
    kind
        ``final``, or ``best`` on validation data.
    rounds
        Rounds trained before it.
    model_sha256
        Of the vector; checked. Frozen tensors are checked against the file's own hash of them only: what they should
        be, the plan's seed or weight file says.
    record_sha256
        Of the run's record, which lies beside it.
    """

    plan: Plan
    vector: Vector
    kind: str
    rounds: int
    model_sha256: str
    record_sha256: str
    sha256: str
    frozen: Tensors


def read_model_file(path: Path) -> ModelFile:
    """Read ``final.safetensors`` or ``best.safetensors``.

    Raises
    ------
    WeightsError
        What :func:`~fairflare.models.weights.read_weights` raises; ``FF-WEIGHTS-MODEL`` for a file that does not say
        whose model it is, or that says what is not so; ``FF-WEIGHTS-TENSORS`` if it does not hold its plan's network.
    PlanError
        ``FF-PLAN-*`` if its plan cannot be read.
    """
    file = _file(path)
    texts = file.metadata
    if texts.get("format") != MODEL_FORMAT or "plan" not in texts:
        raise _refused("a file that does not say which plan it belongs to")
    plan = _plan(texts["plan"])
    rounds, record = texts.get("rounds", ""), texts.get("record_sha256", "")
    if texts.get("plan_sha256") != plan.sha256:
        raise _refused("a file whose plan has another hash than the file says")
    if texts.get("kind") not in ("final", "best") or not _ROUNDS.fullmatch(rounds) or not _SHA256.fullmatch(record):
        raise _refused("a file that does not say which of a run's models it is")
    vector = to_vector_of(plan, file)
    if texts.get("model_sha256") != vector_sha256(vector):
        raise _refused("a file whose numbers have another hash than the file says")
    frozen = frozen_tensors_of(plan, file)
    if texts.get("frozen_sha256") != (frozen_sha256(frozen) if frozen else None):
        raise _refused("a file whose frozen tensors have another hash than the file says")
    return ModelFile(plan, vector, texts["kind"], int(rounds), texts["model_sha256"], record, file.sha256, frozen)


def _file(path: Path) -> WeightFile:
    try:
        return read_weights(path)
    except WeightsError as problem:
        if problem.code != "FF-WEIGHTS-MISSING":
            raise
        raise WeightsError(
            problem.code,
            got=problem.got,
            expected="a model that a job left in the site's folder 'models'",
            next_step="name final.safetensors or best.safetensors in it, and check that this user may read it",
        ) from None


def _plan(text: str) -> Plan:
    try:
        return parse_plan(text)
    except PlanError as problem:
        # Texts of a stranger's file stay out of messages; the code says what kind of defect it is.
        raise PlanError(
            problem.code,
            got="a model file whose plan this version cannot read",
            expected="a model that a job of this version left",
            next_step="evaluate it with the version that trained it, or get the file again",
        ) from None


def _refused(got: str) -> WeightsError:
    return WeightsError(
        "FF-WEIGHTS-MODEL",
        got=got,
        expected="final.safetensors or best.safetensors as a job leaves them in the site's folder 'models'",
        next_step="name that file; if it is that one, it was changed: do not use it",
    )


# ----------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, eq=False, repr=False)
class Named:
    """Records of one split with what the manifest calls them, in its order; not shown by ``repr``."""

    records: Records
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)


def part_of(data: SiteData, split: str) -> Records:
    """Records of ``training``, ``validation`` or ``test``."""
    return {"training": data.training, "validation": data.validation, "test": data.test}[split]


def named_records(plan: Plan, entry: Entry, data: SiteData, split: Split) -> Named:
    """The names of the records of ``split``; ``data`` were loaded from ``entry``.

    Raises
    ------
    DataError
        ``FF-DATA-CHANGED`` if the manifest is no longer the one that was loaded; ``FF-DATA-SPLIT-EMPTY`` for a split
        without records.
    """
    records = part_of(data, split)
    manifest = read_manifest(plan, entry)
    at = np.flatnonzero(manifest.splits == SPLITS.index(split)).tolist()
    same = len(at) == len(records) and np.array_equal(manifest.labels[at], records.labels)
    if not same:
        raise DataError(
            "FF-DATA-CHANGED",
            got="a manifest that was changed while it was read",
            expected="data that stay as they are",
            next_step="try again when nobody writes to the manifest",
        )
    verify_some(records, split)
    columns = manifest.table.columns
    files = columns.get("file", [""] * len(manifest))
    return Named(records, *(tuple(cells[k] for k in at) for cells in (columns["id"], columns["patient"], files)))


def verify_some(records: Records, split: str) -> None:
    """Refuse a split without records."""
    if len(records) == 0:
        raise DataError(
            "FF-DATA-SPLIT-EMPTY",
            got=f"no {split} record at this site",
            expected="at least one",
            next_step="choose another --split, or check the manifest's splits and the opt-out list",
        )


# ------------------------------------------------------------------------------------------------------------ scores


def score(model: ModelFile, records: Records, progress: Progress | None = None) -> Scores:
    """What a forward pass of the model says about records, by the same code and in the same batches as in a round."""
    trainer = _trainer(model, records)
    if len(records) == 0:
        return trainer.scores(records)
    parts = []
    for start in range(0, len(records), _PART):
        places = np.arange(start, min(start + _PART, len(records)))
        parts.append(trainer.scores(records.take(places)))
        if progress is not None:
            progress(start + places.size, len(records))
    return Scores.joined(parts)


def _trainer(model: ModelFile, records: Records) -> Trainer:
    # One thread, as in a site's round: the sums of a convolution depend on it.
    torch.set_num_threads(1)
    trainer = Trainer(model.plan, "at-site", records, model.frozen)
    trainer.start_round(model.vector)
    return trainer


@dataclass(frozen=True, eq=False)
class SiteSums:
    """Evaluation sums of one site's records, and how the model fails on them, if it has learnt nothing."""

    sums: EvaluationSums
    collapse: Collapse | None


def site_sums(plan: Plan, scores: Scores, records: Records, minimum: int) -> SiteSums:
    """Add up scores by group; cells under ``minimum`` records become zeros, as when a site sends them."""
    sums = EvaluationSums.measure(scores.strata, records.groups, plan.sizes, plan.evaluation.score_bins, minimum)
    return SiteSums(sums, collapse(plan, sums, scores.predictions * (len(records) >= minimum)))


def probabilities(plan: Plan, scores: Scores) -> Floats:
    """Probability of each label for each record, float64 (n, C), of a classification."""
    values = [scores.strata[place].value for place in range(0, len(scores.strata), 2)]
    if len(plan.task.labels) == 2:
        return np.stack([1 - values[0], values[0]], axis=1)
    return np.stack(values, axis=1)


def dice_of_images(scores: Scores) -> Floats:
    """Dice of each image, the mean over labels but the background, float64 (n,)."""
    mean: Floats = np.mean([stratum.value for stratum in scores.strata], axis=0)
    return mean


@dataclass(frozen=True)
class Decision:
    """From which bin of the score on a record of two labels is called the second one; ``chosen`` on validation data."""

    bins: int
    edge: int
    chosen: bool

    @property
    def threshold(self) -> float:
        """The bin's lower end."""
        return self.edge / self.bins

    def called(self, score: Floats) -> NDArray[np.bool_]:
        """Which scores (n,) are called the second label, by the bins that a report counts in."""
        return np.minimum((score * self.bins).astype(np.int64), self.bins - 1) >= self.edge


def decision_of(plan: Plan, validation: EvaluationSums) -> Decision:
    """The plan's threshold from this site's own validation records; 0.5 if the plan says so or they lack a label."""
    bins = plan.evaluation.score_bins
    if plan.evaluation.threshold == "validation_balanced_accuracy":
        edge = best_edge(validation.cells[EVERYBODY][0, :, HEAD:])
        if edge is not None:
            return Decision(bins, edge, chosen=True)
    return Decision(bins, half_edge(bins), chosen=False)


def predictions_of(plan: Plan, scores: Scores, decision: Decision) -> Predictions:
    """What the model says of each record: of more than two labels it decides for the most probable one."""
    if plan.task.kind == "segmentation":
        return Predictions(dice=dice_of_images(scores))
    probability = probabilities(plan, scores)
    if len(plan.task.labels) == 2:
        return Predictions(probability, decision.called(probability[:, 1]).astype(np.int64))
    return Predictions(probability, probability.argmax(axis=1).astype(np.int64))


def predicted_masks(model: ModelFile, records: Records) -> Iterator[NDArray[np.uint8]]:
    """The label of each pixel, (height, width) of the plan's input, one image after the other."""
    trainer = _trainer(model, records)
    with torch.no_grad():
        for start in range(0, len(records), _IMAGES):
            outputs = trainer.model(trainer.tensor(records.inputs[start : start + _IMAGES]))
            if not bool(torch.isfinite(outputs).all()):
                raise RoundError(
                    "FF-ROUND-DIVERGED",
                    got="a model whose outputs are NaN or infinite on this site's images",
                    expected="finite outputs",
                    next_step="do not use this model; lower the learning rate in the plan of a new run",
                )
            yield from predicted_labels(outputs.to(torch.float64)).numpy().astype(np.uint8)
