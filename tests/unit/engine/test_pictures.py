# SPDX-License-Identifier: Apache-2.0
"""Pictures for reports: drawn anew, three panels, and nothing of any file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from fairflare import presets
from fairflare.engine.pictures import side_by_side, synthetic_pictures
from fairflare.models import initial_vector


def test_image_truth_and_prediction_stand_side_by_side():
    image = np.full((1, 20, 20), 90, dtype=np.uint8)
    truth, predicted = np.zeros((20, 20), dtype=np.int64), np.zeros((20, 20), dtype=np.int64)
    truth[5:15, 5:15] = 1
    with Image.open(BytesIO(side_by_side(image, truth, predicted))) as picture:
        pixels = np.asarray(picture)
    side = pixels.shape[0]
    assert pixels.shape == (side, 3 * side + 12, 3)
    plain, first, second = (pixels[:, at : at + side] for at in (0, side + 6, 2 * side + 12))
    assert (plain == 90).all()
    assert (second == 90).all()
    changed = (first != 90).any(axis=-1)
    assert 0 < changed.sum() < side * side // 4
    assert not changed[: side // 5].any()
    assert (first == 255).all(axis=-1).any()


def test_pictures_are_drawn_from_the_plan_and_the_model_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = presets.PRESETS["shapes_fedavg"]("shapes")
    found = synthetic_pictures(plan, initial_vector(plan), ("hospital-1", "hospital-2"))
    assert [one.site for one in found] == ["hospital-1", "hospital-1", "hospital-2", "hospital-2"]
    assert all(one.png.startswith(b"\x89PNG") and 0 <= one.dice <= 1 for one in found)
    again = synthetic_pictures(plan, initial_vector(plan), ("hospital-1", "hospital-2"))
    assert [one.png for one in again] == [one.png for one in found]
    assert list(tmp_path.iterdir()) == []
