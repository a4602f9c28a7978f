# SPDX-License-Identifier: Apache-2.0
"""C: every registered network: seconds of a training step, a FLARE round, peak memory, bytes.

``python -m tests.benchmarks.networks --plan FILE --batch N`` measures one network in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairflare import presets, schema
from fairflare.data.manifest import Records
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.training import Trainer
from fairflare.plan import ImageInput, Plan, parse_plan, read_plan
from tests.benchmarks.accumulator import MB, rss
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.processes import flare, say, script

SECTION = "C. Every registered network"
SITES = ("hospital-1", "hospital-2")


@dataclass(frozen=True)
class Network:
    """A network as it is measured: one step with ``batch`` images of ``pixels`` a side, FLARE with ``small`` ones."""

    model: dict[str, Any]
    pixels: int
    batch: int
    small: int
    steps: int = 3

    @property
    def name(self) -> str:
        """The registry's."""
        return str(self.model["name"])

    def plan(self, pixels: int, rounds: int) -> Plan:
        """A shipped plan with this network; two sites are enough."""
        base = "heart_fedavg" if self.name == "mlp" else "skin_fedavg"
        if self.name in ("unet", "sanet_light", "sanet"):
            base = "fundus_fedavg"
        data = json.loads(schema.pretty(presets.shipped(base)))
        data.update(name=f"bench_{self.name}", model=self.model)
        if pixels:
            data["task"]["input"].update(height=pixels, width=pixels)
        data["training"]["rounds"], data["training"]["batch"]["amount"] = rounds, self.batch
        data["federation"]["min_sites"], data["protection"] = len(SITES), presets.UNPROTECTED
        return parse_plan(json.dumps(data))


#: The two large networks are timed once at the size of the papers; their rounds are about what is sent.
FULL = (
    Network({"name": "mlp", "hidden": [32, 16]}, 0, 16, 0),
    Network({"name": "cnn", "widths": [16, 32, 64, 128]}, 64, 32, 64),
    Network({"name": "resnet18"}, 64, 16, 64),
    Network({"name": "resnet50"}, 224, 4, 32, steps=1),
    Network({"name": "unet", "widths": [16, 32, 64, 128]}, 192, 4, 64),
    Network({"name": "sanet_light", "head": 32}, 192, 4, 64),
    Network({"name": "sanet"}, 256, 2, 64, steps=1),
)
QUICK = (FULL[0], Network({"name": "unet", "widths": [8, 16]}, 32, 2, 16, steps=1))


def all_figures(networks: tuple[Network, ...], folder: Path) -> list[Figure]:
    """Measure every network, one after the other."""
    figures: list[Figure] = []
    for network in networks:
        figures += _figures(network, folder / network.name)
    return figures


def _figures(network: Network, folder: Path) -> Iterator[Figure]:
    make = partial(Figure, SECTION, network.name)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.write_text(schema.pretty(network.plan(network.pixels, 3)), encoding="utf-8")
    step = script("networks", "--plan", file, "--batch", str(network.batch), "--steps", str(network.steps))
    size = f"batch of {network.batch}" + (f", {network.pixels} x {network.pixels} pixels" if network.pixels else "")
    say(f"{network.name}: {statistics.median(step['seconds']):.3f} s a step ({size})")
    yield make("step", "forward, backward and optimiser step", unit="s", **spread(step["seconds"]),
               remark=f"train only, one thread; {size}; after {step['warm_up']} step to warm up")  # fmt: skip
    yield make("peak", "peak memory of that process above its start", step["peak_mb"], "MB",
               remark="model, gradients, optimiser state and activations")  # fmt: skip
    yield make("parameters", "parameters", float(step["parameters"]), "")
    plan = network.plan(network.small, 3)
    catalog = write_hospitals(folder / "data", plan, SITES, 20, seed=1)
    run = flare(plan, catalog, SITES, folder / "flare")
    small = f"; images of {network.small} x {network.small}" if network.small else ""
    yield make("round", f"FLARE, {len(SITES)} sites of 20 records, one round", unit="s", **spread(run.rounds[1:]),
               remark=f"start-up apart{small}: what a round costs beside training")  # fmt: skip
    yield make("bytes", "model, as it travels down and up once a round", 4 * step["parameters"] / MB, "MB",
               remark="float32")  # fmt: skip


def _records(plan: Plan, number: int) -> Records:
    given, random = plan.task.input, np.random.default_rng(0)
    labels = random.integers(0, 2, number).astype(np.int64)
    if not isinstance(given, ImageInput):
        return Records(random.normal(size=(number, 2 * len(given.features))).astype(np.float32), labels, {})
    pixels = random.integers(0, 256, (number, given.channels, given.height, given.width), dtype=np.uint8)
    masks = (pixels[:, 0] > 200).astype(np.uint8) if plan.task.kind == "segmentation" else None
    return Records(pixels, labels, {}, masks)


def main() -> None:
    """Print one JSON object: seconds of each step, peak memory, parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = read_plan(given.plan)
    records, before = _records(plan, given.batch), rss("VmRSS")
    trainer, index = Trainer(plan, "bench", records), np.arange(given.batch)
    warm_up, seconds = 1, []
    for number in range(warm_up + given.steps):
        started = time.perf_counter()
        trainer.step(0, number, index, {})
        seconds.append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    peak = max(0.0, rss("VmHWM") - before)
    print(json.dumps({"seconds": seconds[warm_up:], "warm_up": warm_up, "peak_mb": peak, "parameters": parameters}))


if __name__ == "__main__":
    main()
