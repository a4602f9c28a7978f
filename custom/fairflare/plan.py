# SPDX-License-Identifier: Apache-2.0
"""The training plan: everything a researcher chooses, in one reviewed file, ``plan.json``.

Server, sites, validator and auditor read the same plan through this schema. Every field is written out, unknown keys
are refused, and the vocabulary of each sensitive attribute is declared, so the layout of every vector that will ever
leave a site is fixed before anybody looks at data. A plan names a data set, never a path.
"""

from __future__ import annotations

import hashlib
import math
from itertools import product
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from fairflare import schema
from fairflare.errors import PlanError
from fairflare.fairness.groups import EVERYBODY, HOSPITAL
from fairflare.methods import AnyParameters
from fairflare.schema import StrictModel, rule

FORMAT = "fairflare/plan/1"
#: Columns that every manifest has for itself; a feature called "label" would train on the answer.
RESERVED = ("id", "patient", "label", "split", "file", "mask")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+<>=-]{0,63}$")]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
PAIR_SUMS: Final = "pair_sums_of_three_hospitals"
OPEN_RISKS: Final = "open_hospital_risks"
#: What hospitals agree to by taking part (secure_aggregation 3.1 rule 9). ``pair_sums_of_three_hospitals``: with three
#: hospitals, each learns the sum of the two others' risks. ``open_hospital_risks``: each hospital's risk may be known
#: to all, as on public data.
Consent = Literal["pair_sums_of_three_hospitals", "open_hospital_risks"]
_MOST_GROUPS = 256


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


class ClassificationTask(StrictModel):
    """One label for each record. Of two labels the second is the positive one; of more, each is judged against all."""

    kind: Literal["classification"]
    data_set: Name
    labels: Annotated[tuple[Word, ...], Field(min_length=2, max_length=64)]
    input: Annotated[TableInput | ImageInput, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check(self) -> ClassificationTask:
        _refuse_repeats("label", list(self.labels))
        return self

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for a record: one logit per label (softmax)."""
        return len(self.labels)

    @property
    def questions(self) -> tuple[int, ...]:
        """Labels that are evaluated against all others: the positive one of two, else each."""
        return (1,) if len(self.labels) == 2 else tuple(range(len(self.labels)))

    @property
    def strata(self) -> int:
        """Parts of a group in the evaluation sums: for each question, records of other labels and of this one."""
        return 2 * len(self.questions)


class SegmentationTask(StrictModel):
    """A label for each pixel: the first of ``labels`` is the background, ``mask_values`` are their grey values.

    A mask is an 8-bit image of the same place as its image; a pixel with any other value is refused. The network gives
    one logit for each label but the background (sigmoid), so labels are learnt and measured one by one.
    """

    kind: Literal["segmentation"]
    data_set: Name
    labels: Annotated[tuple[Word, ...], Field(min_length=2, max_length=16)]
    mask_values: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(min_length=2, max_length=16)]
    input: ImageInput

    @model_validator(mode="after")
    def _check(self) -> SegmentationTask:
        _refuse_repeats("label", list(self.labels))
        _refuse_repeats("mask value", [str(value) for value in self.mask_values])
        if len(self.mask_values) != len(self.labels):
            raise rule(
                f"got {len(self.mask_values)} mask_values for {len(self.labels)} labels, expected one for each label"
            )
        return self

    @property
    def outputs(self) -> int:
        """Logits per pixel: one for each label but the background."""
        return len(self.labels) - 1

    @property
    def strata(self) -> int:
        """Parts of a group in the evaluation sums: one for each label but the background."""
        return len(self.labels) - 1


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
        _refuse_own_words(self.name)
        if self.edges is not None:
            if len(self.edges) != len(self.values) - 1:
                values = f"the {len(self.values)} values of '{self.name}'"
                raise rule(f"got {len(self.edges)} edges for {values}, expected {len(self.values) - 1}")
            if list(self.edges) != sorted(set(self.edges)):
                raise rule(f"got edges of '{self.name}' out of order, expected strictly increasing numbers")
        return self


class Intersection(StrictModel):
    """Groups that share the values of several attributes, such as women over 60: named like ``female+ge60``.

    Whoever has a missing value in one of them is in none of its groups.
    """

    name: Name
    of: Annotated[tuple[Name, ...], Field(min_length=2, max_length=4)]

    @model_validator(mode="after")
    def _check(self) -> Intersection:
        _refuse_own_words(self.name)
        _refuse_repeats(f"attribute of '{self.name}'", list(self.of))
        return self


def _refuse_own_words(name: str) -> None:
    if name in (HOSPITAL, EVERYBODY):
        what = "the sites themselves" if name == HOSPITAL else "all records"
        raise rule(f"got an attribute named '{name}', expected another name: it is reserved for {what}")


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


class ResNet50Model(StrictModel):
    """ResNet-50 with GroupNorm (23.5 million parameters): the FlexFair paper's network for skin images."""

    name: Literal["resnet50"]


class UNetModel(StrictModel):
    """Small U-Net (Ronneberger et al. 2015) with GroupNorm: one level per width, the last one is the bottom."""

    name: Literal["unet"]
    widths: Annotated[
        tuple[Annotated[int, Field(ge=8, le=4096, multiple_of=8)], ...], Field(min_length=2, max_length=6)
    ]


class SanetLightModel(StrictModel):
    """MobileNetV3-small with SANet's product head of ``head`` channels: a light stand-in for SANet on a processor."""

    name: Literal["sanet_light"]
    head: Annotated[int, Field(ge=8, le=512, multiple_of=8)]


class SanetModel(StrictModel):
    """SANet (Wei et al. 2021): Res2Net-50 and the product of three levels; 23.9 million parameters."""

    name: Literal["sanet"]


AnyModel = MlpModel | CnnModel | ResNet18Model | ResNet50Model | UNetModel | SanetLightModel | SanetModel
#: Networks for each kind of task and input.
_MODELS = {
    ("classification", "table"): ("mlp",),
    ("classification", "image"): ("cnn", "resnet18", "resnet50"),
    ("segmentation", "image"): ("unet", "sanet_light", "sanet"),
}


class SeedStart(StrictModel):
    """The first model is drawn from the plan's seed."""

    kind: Literal["seed"]


class FileStart(StrictModel):
    """The first model comes from a safetensors file that server and sites hold, found by its SHA-256.

    ``tensors``: ``all`` wants every tensor of the network in the file, and no other; ``matching`` takes those with the
    name and shape of one of the network's (an ImageNet backbone), at least one, and draws the others from the seed.
    """

    kind: Literal["file"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tensors: Literal["all", "matching"]


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

    ``class_weights`` multiply the loss, one for each label: of records, or in segmentation of pixels.
    ``optimizer.state``: whether momentum survives from round to round at a site ("keep") or starts anew ("reset").
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    work: Work
    batch: Batch
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="name")]
    class_weights: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=64)]
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
    """Histograms of scores, or of each image's Dice (bins of equal width over [0, 1]), and the decision threshold."""

    score_bins: Annotated[int, Field(ge=200, le=10_000, multiple_of=2)]
    threshold: Literal["half", "validation_balanced_accuracy"]


class Plan(StrictModel):
    """The whole of ``plan.json``; see the module's docstring."""

    format: Literal["fairflare/plan/1"]
    name: Name
    task: Annotated[ClassificationTask | SegmentationTask, Field(discriminator="kind")]
    attributes: Annotated[tuple[Attribute, ...], Field(max_length=16)]
    intersections: Annotated[tuple[Intersection, ...], Field(max_length=16)]
    cells: Cells
    model: Annotated[AnyModel, Field(discriminator="name")]
    start: Annotated[SeedStart | FileStart, Field(discriminator="kind")]
    training: Training
    method: Annotated[AnyParameters, Field(discriminator="name")]
    protection: Protection
    differential_privacy: None
    consents: tuple[Consent, ...]
    federation: Federation
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check(self) -> Plan:
        _refuse_repeats("attribute", [one.name for one in (*self.attributes, *self.intersections)])
        _check_intersections(self)
        _refuse_reserved(self)
        _check_task(self)
        _check_model(self)
        _check_steps(self)
        _check_consents(self)
        for text in self.method.conflicts(self.sizes, self.task.kind):
            raise rule(text)
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical form: what a site approves."""
        return hashlib.sha256(schema.canonical(self)).hexdigest()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the groups of each attribute, then of each intersection, in the order of every vector."""
        values = {attribute.name: attribute.values for attribute in self.attributes}
        crossed = {
            one.name: tuple("+".join(parts) for parts in product(*(values[name] for name in one.of)))
            for one in self.intersections
        }
        return {**values, **crossed}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of groups of each attribute and intersection."""
        return {name: len(values) for name, values in self.groups.items()}

    def attribute(self, name: str) -> Attribute:
        """The declared attribute called ``name``; ``KeyError`` if there is none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


def _check_intersections(plan: Plan) -> None:
    declared = [attribute.name for attribute in plan.attributes]
    for one in plan.intersections:
        for name in one.of:
            if name not in declared:
                known = ", ".join(declared) or "attributes, of which the plan has none"
                raise rule(f"got the intersection '{one.name}' of '{name}', expected declared attributes: {known}")
        size = math.prod(len(plan.attribute(name).values) for name in one.of)
        if size > _MOST_GROUPS:
            raise rule(f"got {size} groups in the intersection '{one.name}', expected at most {_MOST_GROUPS}")


def _check_task(plan: Plan) -> None:
    labels, weights = plan.task.labels, plan.training.class_weights
    if len(weights) != len(labels):
        raise rule(f"got {len(weights)} class_weights for {len(labels)} labels, expected one for each label")
    if plan.evaluation.threshold != "half" and (plan.task.kind == "segmentation" or len(labels) > 2):
        what = "segmentation" if plan.task.kind == "segmentation" else "more than two labels"
        raise rule(f"got threshold '{plan.evaluation.threshold}' for {what}, expected 'half'")


def _check_consents(plan: Plan) -> None:
    """Equal accuracy between hospitals opens sums of their risks: few hospitals can work out each other's."""
    _refuse_repeats("consent", list(plan.consents))
    if OPEN_RISKS in plan.consents or not plan.method.compares_hospitals:
        return
    least = plan.federation.min_sites
    needed = 5 if plan.method.compares_hospitals == "records" else 3 if PAIR_SUMS in plan.consents else 4
    if least < needed:
        raise rule(
            f"got a penalty between hospitals with min_sites {least}, expected at least {needed}: from the sum of the "
            f"risks each of three hospitals learns the sum of the two others', and each of two the other's; three need "
            f"the consent '{PAIR_SUMS}' (uniform weights only), risks that may be known need '{OPEN_RISKS}'"
        )


def _refuse_reserved(plan: Plan) -> None:
    features = plan.task.input.features if isinstance(plan.task.input, TableInput) else ()
    for name in [*(one.name for one in features), *plan.groups]:
        if name in RESERVED:
            raise rule(f"got a feature or attribute named '{name}', expected another name: manifests use this one")


def _refuse_repeats(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise rule(f"got the {what} '{name}' more than once, expected each once")


def _check_model(plan: Plan) -> None:
    kind, model = plan.task.input, plan.model
    able = _MODELS[plan.task.kind, kind.kind]
    if model.name not in able:
        raise rule(f"got model '{model.name}' for {plan.task.kind} of {kind.kind}s, expected {' or '.join(able)}")
    if not isinstance(kind, ImageInput):
        return
    if isinstance(model, CnnModel) and min(kind.height, kind.width) < 2 ** len(model.widths):
        raise rule(
            f"got {len(model.widths)} halvings of {kind.height} x {kind.width} pixels, expected at least one pixel left"
        )
    multiple = 2 ** (len(model.widths) - 1) if isinstance(model, UNetModel) else 32
    if plan.task.kind == "segmentation" and (kind.height % multiple or kind.width % multiple):
        raise rule(
            f"got {kind.height} x {kind.width} pixels for model '{model.name}', expected multiples of {multiple}: "
            "its last map is that much smaller"
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
