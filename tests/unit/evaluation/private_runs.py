# SPDX-License-Identifier: Apache-2.0
"""Runs with differential privacy that never took place."""

from __future__ import annotations

import json
from typing import Any

from fairflare import presets
from fairflare.plan import Plan, parse_plan
from fairflare.record import RunRecord
from tests.unit.evaluation.records import draw, make_plan, make_record

Json = dict[str, Any]


def private_plan(sigma: float | None, seed: int = 1, *, training: Json | None = None, **changes: Any) -> Plan:
    """Twenty batches an epoch, so that the plan alone says what it costs; without noise for ``None``."""
    data = json.loads(make_plan().model_dump_json())
    data["protection"] = {**presets.MASKED, "masking": {**presets.MASKED["masking"]}}
    data["federation"]["min_sites"] = 3
    data["training"]["seed"] = seed
    data["training"]["batch"] = {"unit": "batches_per_epoch", "amount": 20}
    if sigma is not None:
        data["differential_privacy"] = {
            "clip": 1.0, "noise_multiplier": sigma, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks",
            "groups": None,
        }  # fmt: skip
    data["training"].update(training or {})
    return parse_plan(json.dumps({**data, **changes}))


def private_record(
    sigma: float | None, seed: int = 1, skill: float = 1.4, *, model: str | None = None, **plan: Any
) -> RunRecord:
    """A complete run whose model tells labels apart by ``skill``, for men a little worse."""
    record = make_record(private_plan(sigma, seed, **plan), draw(seed=7, skill=(skill + seed / 20, skill - 0.3)))
    sha256 = (model or f"{round(100 * (sigma or 0)):x}{seed:x}").rjust(64, "0")
    return record.model_copy(
        update={"final": None if record.final is None else record.final.model_copy(update={"model_sha256": sha256})}
    )
