# SPDX-License-Identifier: Apache-2.0
"""Rules between the parts of a plan; a broken one says what was got and expected."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from fairflare.methods.base import OPEN_RISKS, PAIR_SUMS, Setting
from fairflare.plan.networks import MODELS, CnnModel, UNetModel
from fairflare.plan.task import ImageInput, TableInput
from fairflare.plan.words import refuse_repeats
from fairflare.schema import rule
from fairflare.secagg.params import FEWEST_SITES, most_colluders

if TYPE_CHECKING:
    from fairflare.plan import Plan

#: Columns that every manifest has for itself; a feature called "label" would train on the answer.
RESERVED = ("id", "patient", "label", "split", "file", "mask")

#: What hospitals agree to by taking part (secure_aggregation 3.1 rule 9). ``pair_sums_of_three_hospitals``: with three
#: hospitals, each learns the sum of the two others' risks. ``open_hospital_risks``: each hospital's risk may be known
#: to all, as on public data.
#: ``second_sum_of_updates``: the server may get two different weighted sums of the same updates (``methods.scaffold``).
Consent = Literal["pair_sums_of_three_hospitals", "open_hospital_risks", "second_sum_of_updates"]
_MOST_GROUPS = 256


def setting_of(plan: Plan) -> Setting:
    """What a method must know of the rest of its plan."""
    training, masking = plan.training, plan.protection.masking
    momentum = training.optimizer.momentum if training.optimizer.name == "sgd" else 0.0
    return Setting(
        sizes=plan.sizes, labels=len(plan.task.labels), task=plan.task.kind, optimizer=training.optimizer.name,
        momentum=momentum, state=training.optimizer.state,
        same_steps=training.work.unit == "steps" or training.batch.unit == "batches_per_epoch",
        masked=plan.protection.masked,
        honest=plan.federation.min_sites - (0 if masking is None else masking.colluders), consents=plan.consents,
        norm_clip=masking is not None and masking.norm_clip is not None, sites=plan.federation.min_sites,
    )  # fmt: skip


def check_intersections(plan: Plan) -> None:
    """Refuse intersections of undeclared attributes, and huge ones."""
    declared = [attribute.name for attribute in plan.attributes]
    for one in plan.intersections:
        for name in one.of:
            if name not in declared:
                known = ", ".join(declared) or "attributes, of which the plan has none"
                raise rule(f"got the intersection '{one.name}' of '{name}', expected declared attributes: {known}")
        size = math.prod(len(plan.attribute(name).values) for name in one.of)
        if size > _MOST_GROUPS:
            raise rule(f"got {size} groups in the intersection '{one.name}', expected at most {_MOST_GROUPS}")


def check_task(plan: Plan) -> None:
    """Refuse weights and thresholds that do not fit the task."""
    labels, weights = plan.task.labels, plan.training.class_weights
    if len(weights) != len(labels):
        raise rule(f"got {len(weights)} class_weights for {len(labels)} labels, expected one for each label")
    if plan.evaluation.threshold != "half" and (plan.task.kind == "segmentation" or len(labels) > 2):
        what = "segmentation" if plan.task.kind == "segmentation" else "more than two labels"
        raise rule(f"got threshold '{plan.evaluation.threshold}' for {what}, expected 'half'")


def check_consents(plan: Plan) -> None:
    """Equal accuracy between hospitals opens sums of their risks: few hospitals can work out each other's."""
    refuse_repeats("consent", list(plan.consents))
    least, needed = plan.federation.min_sites, fewest_hospitals(plan)
    if least < needed:
        raise rule(
            f"got a penalty between hospitals with min_sites {least}, expected at least {needed}: from the sum of the "
            f"risks each of three hospitals learns the sum of the two others', and each of two the other's; three need "
            f"the consent '{PAIR_SUMS}' (uniform weights only), risks that may be known need '{OPEN_RISKS}'"
        )


def fewest_hospitals(plan: Plan) -> int:
    """How many hospitals a sum of their risks must be of before any of them may see it."""
    if OPEN_RISKS in plan.consents or not plan.method.compares_hospitals:
        return 1
    return 5 if plan.method.compares_hospitals == "records" else 3 if PAIR_SUMS in plan.consents else 4


def check_reserved(plan: Plan) -> None:
    """Refuse features and attributes that bear the name of a manifest's own column."""
    features = plan.task.input.features if isinstance(plan.task.input, TableInput) else ()
    for name in [*(one.name for one in features), *plan.groups]:
        if name in RESERVED:
            raise rule(f"got a feature or attribute named '{name}', expected another name: manifests use this one")


def check_model(plan: Plan) -> None:
    """Refuse a network that does not fit the task, or the size of its images."""
    kind, model = plan.task.input, plan.model
    able = MODELS[plan.task.kind, kind.kind]
    if model.name not in able:
        raise rule(f"got model '{model.name}' for {plan.task.kind} of {kind.kind}s, expected {' or '.join(able)}")
    if not isinstance(kind, ImageInput):
        return
    if isinstance(model, CnnModel) and min(kind.height, kind.width) < 2 ** len(model.widths):
        raise rule(
            f"got {len(model.widths)} halvings of {kind.height} x {kind.width} pixels, expected at least one pixel left"
        )
    if isinstance(model, UNetModel) and min(kind.height, kind.width) < 2 ** len(model.widths):
        raise rule(
            f"got {len(model.widths) - 1} halvings of {kind.height} x {kind.width} pixels, expected at least two by "
            "two left: the norm of a single number is zero"
        )
    multiple = 2 ** (len(model.widths) - 1) if isinstance(model, UNetModel) else 32
    if plan.task.kind == "segmentation" and (kind.height % multiple or kind.width % multiple):
        raise rule(
            f"got {kind.height} x {kind.width} pixels for model '{model.name}', expected multiples of {multiple}: "
            "its last map is that much smaller"
        )


def check_masks(plan: Plan) -> None:
    """Refuse masks where they protect nobody, and with lock step."""
    masking, least = plan.protection.masking, plan.federation.min_sites
    if masking is None:
        return
    if least < FEWEST_SITES:
        raise rule(
            f"got masks with min_sites {least}, expected at least {FEWEST_SITES}: of two sites, each knows the other's "
            "vector from the sum"
        )
    if masking.colluders > most_colluders(least):
        raise rule(
            f"got {masking.colluders} colluders with min_sites {least}, expected at most {most_colluders(least)}"
        )
    if plan.method.lock_step:
        raise rule(
            "got masks with refresh 'step', expected protection 'none': lock step replays joint training on public "
            "data, and sums over single batches would protect nobody"
        )


def check_steps(plan: Plan) -> None:
    """Refuse lock step where sites would not make the same steps, or would reveal small cells."""
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
