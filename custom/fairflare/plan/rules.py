# SPDX-License-Identifier: Apache-2.0
"""Rules between the parts of a plan; a broken one says what was got and expected."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from fairflare.fairness.groups import HOSPITAL
from fairflare.methods.base import OPEN_RISKS, PAIR_SUMS, SHARED_NOISE, Setting
from fairflare.methods.flexfair import FlexFairParameters
from fairflare.plan.networks import MODELS, CnnModel, UNetModel, network_of
from fairflare.plan.task import ImageInput, TableInput
from fairflare.plan.words import refuse_repeats
from fairflare.schema import rule
from fairflare.secagg.params import FEWEST_SITES, most_colluders

if TYPE_CHECKING:
    from fairflare.plan import Plan
    from fairflare.plan.privacy import GroupNoise

#: Columns that every manifest has for itself; a feature called "label" would train on the answer.
RESERVED = ("id", "patient", "label", "split", "file", "mask")

#: What hospitals agree to by taking part (secure_aggregation 3.1 rule 9). ``pair_sums_of_three_hospitals``: with three
#: hospitals, each learns the sum of the two others' risks. ``open_hospital_risks``: each hospital's risk may be known
#: to all, as on public data.
#: ``second_sum_of_updates``: the server may get two different weighted sums of the same updates (``methods.scaffold``).
#: ``shared_noise``: noise of group sums is added by all hospitals together (``plan.privacy``).
Consent = Literal["pair_sums_of_three_hospitals", "open_hospital_risks", "second_sum_of_updates", "shared_noise"]
#: Methods that know a patient only through a weight on the loss, or not at all.
_PRIVATE_METHODS = ("fedavg", "fedprox", "flexfair")
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
    kind, model = plan.task.input, network_of(plan.model)
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


def check_privacy(plan: Plan) -> None:
    """Refuse differential privacy that would not hold, or not be about what the method learns from."""
    privacy = plan.differential_privacy
    if privacy is None:
        return
    if not plan.protection.masked:
        raise rule("got differential_privacy with update 'none', expected 'masked': noise is added to what masks hide")
    if plan.method.name not in _PRIVATE_METHODS:
        raise rule(
            f"got differential_privacy with method '{plan.method.name}', expected {', '.join(_PRIVATE_METHODS)}: the "
            "others send sums, or mix records, that no noise of this version hides"
        )
    if isinstance(plan.method, FlexFairParameters):
        _check_private_penalties(plan, plan.method)
        if privacy.groups is None:
            raise rule("got differential_privacy without 'groups', expected their noise: the method has group sums")
        _check_shared_noise(plan, privacy.groups)
    elif privacy.groups is not None:
        raise rule("got noise for 'groups', expected null: the method has no group sums")


def _check_private_penalties(plan: Plan, method: FlexFairParameters) -> None:
    """Fairness must act as a bounded weight on a record's own loss: that is what comes after the clip."""
    for penalty in method.penalties:
        if penalty.utility != "cross_entropy" or penalty.attribute == HOSPITAL:
            raise rule(
                f"got a penalty of {penalty.utility} on '{penalty.attribute}' with differential_privacy, expected "
                "cross_entropy between groups of patients: only then fairness is a weight on a record's own loss"
            )
    if method.min_weight is None or method.max_weight is None or method.utility_clip is None:
        raise rule(
            "got differential_privacy without min_weight, max_weight or utility_clip, expected all three: what a "
            "patient may change must have a bound"
        )
    if min(plan.training.class_weights) + method.min_weight < 1:
        raise rule(
            f"got weights down to {min(plan.training.class_weights) + method.min_weight - 1:g}, expected at least 0: "
            "raise min_weight (with class weights of 1 it may be 0)"
        )
    if method.remeasure_own is not None:
        raise rule("got remeasure_own with differential_privacy, expected null: each measurement is a release")


def _check_shared_noise(plan: Plan, groups: GroupNoise) -> None:
    if not groups.shared:
        return
    if SHARED_NOISE not in plan.consents:
        raise rule(f"got noise that hospitals share without the consent '{SHARED_NOISE}', expected it in 'consents'")
    masking = plan.protection.masking
    if masking is not None and masking.colluders == 0:
        raise rule(
            "got noise that hospitals share with colluders 0, expected at least 1: every hospital sees the totals, and "
            "takes its own part of the noise off them"
        )
    if plan.cells.minimum > 1:
        raise rule(
            f"got noise that hospitals share with a smallest cell of {plan.cells.minimum}, expected 0: what one "
            "hospital's groups are cannot be told from its part of the noise"
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
