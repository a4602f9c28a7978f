# SPDX-License-Identifier: Apache-2.0
"""The training plan: everything a researcher chooses, in one reviewed file, ``plan.json``.

Server, sites, validator and auditor read the same plan through this schema. Every field is written out, unknown keys
are refused, and the vocabulary of each sensitive attribute is declared, so the layout of every vector that will ever
leave a site is fixed before anybody looks at data. A plan names a data set, never a path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import PlanError
from fairflare.fairness.groups import HOSPITAL
from fairflare.methods import AnyParameters
from fairflare.schema import StrictModel, rule

FORMAT = "fairflare/plan/1"
#: Columns that every manifest has for itself; a feature called "label" would train on the answer.
RESERVED = ("id", "patient", "label", "split", "file")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+<>=-]{0,63}$")]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Feature(StrictModel):
    """A column of a table, scaled by constants of the plan: the model sees ``(x - center) / scale`` and "known"."""

    name: Name
    center: float
    scale: Positive


class TableInput(StrictModel):
    """Rows of numbers. Each feature gives two inputs: its scaled value (0 if missing) and whether it is known."""

    kind: Literal["table"]
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=4096)]

    @model_validator(mode="after")
    def _check(self) -> TableInput:
        _refuse_repeats("feature", [feature.name for feature in self.features])
        return self


class ImageInput(StrictModel):
    """Images, resized to height x width pixels, scaled to [0, 1] and normalised per channel."""

    kind: Literal["image"]
    channels: Literal[1, 3]
    height: Annotated[int, Field(ge=8, le=1024)]
    width: Annotated[int, Field(ge=8, le=1024)]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    augmentation: Literal["none", "flips"]

    @model_validator(mode="after")
    def _check(self) -> ImageInput:
        if not len(self.mean) == len(self.std) == self.channels:
            raise rule(
                f"got {len(self.mean)} means and {len(self.std)} stds for {self.channels} channels, expected one each"
            )
        return self


class Task(StrictModel):
    """What is learnt: a label (the second of ``labels`` is the positive one) from the input, on a named data set."""

    kind: Literal["classification"]
    data_set: Name
    labels: tuple[Word, Word]
    input: Annotated[TableInput | ImageInput, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check(self) -> Task:
        _refuse_repeats("label", list(self.labels))
        return self


class Attribute(StrictModel):
    """A sensitive attribute and its closed vocabulary.

    ``edges`` is ``null`` for a categorical attribute. For a numeric one, value k is for numbers in
    ``[edges[k-1], edges[k])``, so there is one edge fewer than values. An empty cell of the manifest is "missing".
    """

    name: Name
    values: Annotated[tuple[Word, ...], Field(min_length=2, max_length=64)]
    edges: tuple[float, ...] | None

    @model_validator(mode="after")
    def _check(self) -> Attribute:
        _refuse_repeats(f"value of attribute '{self.name}'", list(self.values))
        if self.name == HOSPITAL:
            raise rule(
                f"got an attribute named '{HOSPITAL}', expected another name: it is reserved for the sites themselves"
            )
        if self.edges is not None:
            if len(self.edges) != len(self.values) - 1:
                values = f"the {len(self.values)} values of '{self.name}'"
                raise rule(f"got {len(self.edges)} edges for {values}, expected {len(self.values) - 1}")
            if list(self.edges) != sorted(set(self.edges)):
                raise rule(f"got edges of '{self.name}' out of order, expected strictly increasing numbers")
        return self


class Cells(StrictModel):
    """Smallest cells: zeros are sent below ``minimum`` records; a cell counts if ``sites`` sites or more have it."""

    minimum: Annotated[int, Field(ge=0)]
    sites: Count


class MlpModel(StrictModel):
    """Multi-layer perceptron for tables."""

    name: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=8)]


class CnnModel(StrictModel):
    """Small convolutional network for images: one stride-2 block (convolution, GroupNorm, ReLU) per width."""

    name: Literal["cnn"]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=8, le=4096, multiple_of=8)], ...], Field(min_length=1, max_length=8)
    ]


class ResNet18Model(StrictModel):
    """ResNet-18 with GroupNorm and without in-place operations (He et al. 2016; 11.2 million parameters)."""

    name: Literal["resnet18"]


class Sgd(StrictModel):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NotNegative
    state: Literal["keep", "reset"]

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise rule("got nesterov with momentum 0, expected momentum > 0 or nesterov false")
        return self


class AdamW(StrictModel):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    lr: Positive
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Positive
    weight_decay: NotNegative
    state: Literal["keep", "reset"]


class Work(StrictModel):
    """How much a site trains in a round."""

    unit: Literal["epochs", "steps"]
    amount: Annotated[int, Field(ge=1, le=100_000)]


class Batch(StrictModel):
    """Size of a batch: so many records, or records / amount (each site then makes the same number of steps)."""

    unit: Literal["records", "batches_per_epoch"]
    amount: Annotated[int, Field(ge=1, le=100_000)]


class Training(StrictModel):
    """Rounds, local work, optimiser. ``aggregation`` weighs sites by records (p_s = n_s / n) or uniformly.

    ``optimizer.state``: whether momentum survives from round to round at a site ("keep") or starts anew ("reset").
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    work: Work
    batch: Batch
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")]
    class_weights: tuple[Positive, Positive]
    aggregation: Literal["records", "uniform"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class Federation(StrictModel):
    """Fewest sites of a round, seconds a site may take for a task, missed tasks in a row until a site is dropped."""

    min_sites: Count
    task_timeout_seconds: Annotated[float, Field(ge=1, le=7 * 24 * 3600)]
    max_missed: Count


class Protection(StrictModel):
    """How vectors are protected on their way. ``none``: the server sees every site's vector."""

    update: Literal["none"]
    statistics: Literal["none"]


class Evaluation(StrictModel):
    """Score histograms (bins of equal width over [0, 1]) and how the decision threshold is chosen."""

    score_bins: Annotated[int, Field(ge=200, le=10_000, multiple_of=2)]
    threshold: Literal["half", "validation_balanced_accuracy"]


class Plan(StrictModel):
    """The whole of ``plan.json``; see the module's docstring."""

    format: Literal["fairflare/plan/1"]
    name: Name
    task: Task
    attributes: Annotated[tuple[Attribute, ...], Field(max_length=16)]
    cells: Cells
    model: Annotated[MlpModel | CnnModel | ResNet18Model, Field(discriminator="name")]
    training: Training
    method: Annotated[AnyParameters, Field(discriminator="name")]
    protection: Protection
    differential_privacy: None
    federation: Federation
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> Plan:
        _refuse_repeats("attribute", [attribute.name for attribute in self.attributes])
        _refuse_reserved(self)
        _check_model(self)
        _check_steps(self)
        for text in self.method.conflicts({attribute.name: len(attribute.values) for attribute in self.attributes}):
            raise rule(text)
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical form: what a site approves."""
        return hashlib.sha256(schema.canonical(self)).hexdigest()

    def attribute(self, name: str) -> Attribute:
        """The declared attribute called ``name``; ``KeyError`` if there is none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


def _refuse_reserved(plan: Plan) -> None:
    features = plan.task.input.features if isinstance(plan.task.input, TableInput) else ()
    for name in [*(one.name for one in features), *(one.name for one in plan.attributes)]:
        if name in RESERVED:
            raise rule(f"got a feature or attribute named '{name}', expected another name: manifests use this one")


def _refuse_repeats(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise rule(f"got the {what} '{name}' more than once, expected each once")


def _check_model(plan: Plan) -> None:
    kind, model = plan.task.input, plan.model
    if (model.name == "mlp") != (kind.kind == "table"):
        raise rule(
            f"got model '{model.name}' for {kind.kind} input, expected mlp for tables, cnn or resnet18 for images"
        )
    if (
        isinstance(kind, ImageInput)
        and isinstance(model, CnnModel)
        and min(kind.height, kind.width) < 2 ** len(model.widths)
    ):
        raise rule(
            f"got {len(model.widths)} halvings of {kind.height} x {kind.width} pixels, expected at least one pixel left"
        )


def _check_steps(plan: Plan) -> None:
    training = plan.training
    if plan.method.lock_step and plan.cells.minimum > 0:
        raise rule(
            f"got refresh 'step' with a minimum cell of {plan.cells.minimum}, expected 0: groups of a batch are "
            "smaller than any minimum, so lock step is for public data only"
        )
    if plan.method.lock_step and training.work.unit == "epochs" and training.batch.unit == "records":
        raise rule(
            "got refresh 'step' with epochs of batches of a fixed size, expected as many steps at every site: "
            "work in steps, or batch in batches_per_epoch"
        )


def parse_plan(text: str) -> Plan:
    """Read a plan from JSON text; raises :class:`PlanError`."""
    return schema.parse(Plan, text, error=PlanError, what="plan")


def read_plan(path: Path) -> Plan:
    """Read a plan from a file, or from a job's folder that holds one; raises :class:`PlanError`."""
    inside = path / "app" / "config" / "plan.json"
    return schema.read(Plan, inside if path.is_dir() else path, error=PlanError, what="plan")
