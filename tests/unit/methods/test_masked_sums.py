# SPDX-License-Identifier: Apache-2.0
"""Every method with masks is the method without, but for the rounding of words: bounded exactly for one round.

Of each site s a word holds q = floor(W x 2^(f-30) + u), so q is W x 2^(f-30) with an error below 1. Here n is the
number of sites, W_s = floor(2^30 p_s), and p_s are the same without masks (``weight_unit`` 1).

* The mean is sum q / (sum W 2^(f-30)). Rounding changes it by less than n 2^(30-f) / sum W.
* W_s / sum W is p_s but for (p_s D - d_s) / sum W, with 0 <= d_s < 1 and D = sum d_s < n; over all sites these errors
  add up to less than 2 n / sum W. They change the mean by as much times the largest |x|.
* Without masks words have 40 fraction bits, which is far below; and a model is rounded to float32 each time.

sum W > 2^30 - n. A clip of C gives f = 30 - log2 C fraction bits.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from fairflare import presets
from fairflare.models.vector import Vector
from tests.unit.engine.hospitals import PLAIN_SGD, SGD, four, masked, plan
from tests.unit.methods.driving import Json, Run, completed
from tests.unit.methods.test_fairfed import BOUNDED
from tests.unit.methods.test_fairmixup import FAIRMIXUP
from tests.unit.methods.test_fednova import FEDNOVA
from tests.unit.methods.test_reweighting import REWEIGHTING
from tests.unit.methods.test_scaffold import SCAFFOLD

SITES = len(four())
EQUAL: Json = {"work": {"unit": "steps", "amount": 4}}
METHODS: dict[str, tuple[Json, Json]] = {
    "fedavg": (presets.FEDAVG, {}),
    "fedprox": ({"name": "fedprox", "mu": 0.5}, {}),
    "scaffold": (SCAFFOLD, EQUAL),
    "scaffold, server rate": ({**SCAFFOLD, "global_lr": 1.5}, EQUAL),
    "fednova": (FEDNOVA, {}),
    "fairmixup": (FAIRMIXUP, {}),
    "reweighting": (REWEIGHTING, {}),
    "flexfair of strength 0": (presets.flexfair(presets.penalty("sex", "equalized_odds", 0.0)), {}),
}
_CLIP = presets.MASKED["masking"]["clip"]


def mean_bound(largest: float, clip: float, total: float = 2.0**30 - SITES) -> float:
    """Error of one masked mean per coordinate, of vectors whose coordinates are at most ``largest``."""
    fraction = 30 - math.ceil(math.log2(clip))
    return (SITES * 2.0 ** (30 - fraction) + 2 * SITES * largest) / total


def float_noise(*models: Vector) -> float:
    """Half a unit in the last place of both models' float32 numbers."""
    return 2 * max(float(np.abs(model).max()) for model in models) * 2.0**-24


def both(tmp_path, method: Json, changes: Json, rounds: int) -> tuple[Run, Run]:
    the_plan = plan(method, rounds=rounds, **{"optimizer": {**PLAIN_SGD, "lr": 0.5}, **changes})
    return completed(the_plan, tmp_path / "none"), completed(masked(the_plan), tmp_path / "masked")


def largest(run: Run, label: str) -> float:
    return max(float(np.abs(parts[label]).max()) for parts in run.updates.values())


@pytest.mark.parametrize(("method", "changes"), METHODS.values(), ids=METHODS)
def test_one_round_with_masks_is_one_without_but_for_the_words_rounding(tmp_path, method, changes) -> None:
    clear, hidden = both(tmp_path, method, changes, 1)
    bound = mean_bound(largest(clear, "update"), _CLIP)
    if method["name"] == "scaffold":
        bound *= method["global_lr"]
        controls = np.abs(clear.coordinator._half.control - hidden.coordinator._half.control).max()
        # Without masks the change is float32 on the way, with them as well: the same numbers are rounded.
        assert controls <= mean_bound(largest(clear, "controls"), method["control_clip"]) + 1e-12
    if method["name"] == "fednova":
        # x + (1 + m) u: both means are off, m by its own words of 24 fraction bits.
        further = mean_bound(largest(clear, "normalizer"), 64.0)
        bound = (1 + largest(clear, "normalizer")) * bound + (largest(clear, "update") + bound) * further
    off = np.abs(clear.models[1] - hidden.models[1]).max()
    assert 0 < off <= bound + float_noise(clear.models[1], hidden.models[1])


def test_one_round_with_weights_of_the_sites_own(tmp_path) -> None:
    """W_s = floor(floor(2^30 / n) w_s): weights that add up to 1 are worth 2^30 / n, and each is off by less than 2."""
    clear, hidden = both(tmp_path, {**BOUNDED, "beta": 0.01, "criterion": "equal_accuracy"}, {}, 1)
    assert [one.weight for one in clear.begun] == pytest.approx([one.weight for one in hidden.begun], abs=1e-11)
    total = 2.0**30 / SITES - 2 * SITES
    bound = mean_bound(2 * largest(clear, "update"), _CLIP, total)
    off = np.abs(clear.models[1] - hidden.models[1]).max()
    assert 0 < off <= bound + float_noise(clear.models[1], hidden.models[1])


@pytest.mark.parametrize(("method", "changes"), [
    *METHODS.values(),
    ({**BOUNDED, "beta": 0.05, "criterion": "equal_accuracy"}, {}),
    (FEDNOVA, {"optimizer": {**SGD, "state": "reset"}}),
    (presets.flexfair(presets.penalty("sex", "equalized_odds", 1.0)), {}),
], ids=[*METHODS, "fairfed", "fednova, momentum", "flexfair"])  # fmt: skip
def test_five_rounds_with_masks_are_five_without_but_for_a_little_more(tmp_path, method, changes) -> None:
    """Later rounds begin from models that differ by so much; at these rates they make no more than tenfold of it."""
    clear, hidden = both(tmp_path, method, changes, 5)
    off = np.abs(clear.models[5] - hidden.models[5]).max()
    assert off <= 10 * 5 * mean_bound(largest(clear, "update"), _CLIP)
    assert np.abs(clear.models[5] - clear.models[0]).max() > 1e-2
