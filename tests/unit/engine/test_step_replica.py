# SPDX-License-Identifier: Apache-2.0
"""Lock step against the authors' way, for masks, several labels and intersections of attributes.

The reference stands in ``reference.py``.
"""

from __future__ import annotations

import numpy as np
import pytest

from fairflare import presets
from fairflare.engine.local import run_local
from fairflare.engine.store import read_model
from fairflare.engine.verify import verify_run
from fairflare.fairness.groups import HOSPITAL
from fairflare.models import initial_vector
from tests.unit.engine.hospitals import ADAMW, SGD, image_plan, of_several_labels, several_labels, three_of_images
from tests.unit.engine.reference import STEPS, reference

TOLERANCE = 1e-6
# AdamW divides a gradient by its own size, so where that is float32's noise, the noise is what is compared: which CPU
# adds in which order decides then. A larger epsilon keeps such parameters still and all others moving.
STEADY_ADAMW = {**ADAMW, "epsilon": 1e-2}


def images_with(utility, maps, optimizer, preset):
    penalties = (
        presets.penalty("sex_age", "equal_accuracy", 2.0, utility=utility),
        presets.penalty(HOSPITAL, "equal_accuracy", 3.0, utility=utility, weights="uniform"),
    )
    method = presets.flexfair(*penalties, preset=preset, refresh="step")
    work = {"unit": "steps", "amount": STEPS}
    return image_plan(
        method, maps, rounds=2, work=work, batch={"unit": "batches_per_epoch", "amount": STEPS}, optimizer=optimizer
    )


def labels_with(criterion, utility, optimizer, preset):
    penalty = presets.penalty("sex_age", criterion, 2.0, utility=utility)
    method = presets.flexfair(penalty, preset=preset, refresh="step")
    return several_labels(3, method, rounds=2, work={"unit": "steps", "amount": STEPS}, optimizer=optimizer)


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize(("utility", "optimizer"), [("dice_loss", STEADY_ADAMW), ("binary_cross_entropy", SGD)])
def test_masks(tmp_path, utility, optimizer, maps, preset):
    check(tmp_path, images_with(utility, maps, optimizer, preset), three_of_images(maps))


@pytest.mark.parametrize(("criterion", "optimizer"), [("equal_opportunity", SGD), ("equalized_odds", ADAMW)])
@pytest.mark.parametrize("utility", ["cross_entropy", "probability"])
def test_several_labels(tmp_path, criterion, utility, optimizer):
    check(tmp_path, labels_with(criterion, utility, optimizer, "paper"), of_several_labels(3))


@pytest.mark.parametrize("utility", ["cross_entropy", "probability"])
def test_several_labels_without_a_condition(tmp_path, utility):
    check(tmp_path, labels_with("demographic_parity", utility, SGD, "paper"), of_several_labels(3))


def check(folder, the_plan, loaders):
    record = run_local(the_plan, loaders, folder)
    assert record.status == "complete", record.reason
    found = read_model(folder, the_plan, record.final.model_sha256)
    expected = reference(the_plan, loaders)
    assert np.abs(expected - initial_vector(the_plan)).max() > 1e-3
    assert np.abs(found - expected).max() <= TOLERANCE
    verify_run(folder)
