# SPDX-License-Identifier: Apache-2.0
"""What is measured: three networks, each with its plan and its hospitals, and how often."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairflare import presets
from fairflare.data.sources import SOURCES
from fairflare.data.synthetic import write_hospitals
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog

ROOT = Path(__file__).resolve().parents[2]
SITES = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
#: Mean number of images of HAM10000's four sources: the synthetic stand-in is as large.
HAM10000_MEAN = 2504
#: The ratio of round times that FairFlare aims at, and the subject it is promised for.
AIM, AIMED_AT = 1.3, "cnn on skin"


@dataclass(frozen=True)
class Size:
    """How much is run."""

    heart_records: int
    heart_rounds: int
    skin_rounds: int
    skin_subset: bool
    resnet_records: int
    resnet_rounds: int
    bare_rounds: int
    memory_sites: tuple[int, int]
    memory_repeats: int
    accumulator_sites: tuple[int, int]


FULL = Size(600, 13, 13, False, 60, 7, 4, (4, 8), 3, (4, 64))
QUICK = Size(60, 3, 2, True, 20, 2, 2, (2, 4), 1, (2, 4))


@dataclass(frozen=True)
class Subject:
    """A plan, its hospitals' data, and rounds of the bare loop per run (FLARE's are the plan's)."""

    name: str
    data: str
    plan: Plan
    catalog: DataCatalog
    bare_rounds: int


def plan_of(job: str, rounds: int) -> Plan:
    """A shipped plan with another number of rounds, without masks: what those cost is measured by itself."""
    data = presets.shipped(job).model_dump(mode="json")
    data["training"]["rounds"], data["protection"] = rounds, presets.UNPROTECTED
    return parse_plan(json.dumps(data))


def resnet_plan(pixels: int, rounds: int, min_sites: int) -> Plan:
    """ResNet-18 on square images, otherwise the skin plan."""
    data = plan_of("skin_flexfair", rounds).model_dump(mode="json")
    data.update(name="bench_resnet18", model={"name": "resnet18"})
    data["task"]["input"].update(height=pixels, width=pixels)
    data["federation"]["min_sites"] = min_sites
    return parse_plan(json.dumps(data))


def mlp(size: Size, folder: Path) -> Subject:
    """The multi-layer perceptron on a table like the heart-disease study's."""
    plan = plan_of("heart_flexfair", size.heart_rounds)
    catalog = write_hospitals(folder, plan, SITES, size.heart_records, seed=1)
    words = f"synthetic table like heart disease, {size.heart_records} records a site"
    return Subject("mlp on heart", words, plan, catalog, max(size.heart_rounds, size.bare_rounds))


def cnn(size: Size, folder: Path) -> Subject:
    """The small convolutional network on HAM10000 by source; on synthetic images where that is not there."""
    plan = plan_of("skin_flexfair", size.skin_rounds)
    found = Path(os.environ.get("FAIRFLARE_DATA") or ROOT.parent / "shared" / "data") / "ham10000"
    if found.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        catalog = SOURCES["ham10000"](found, folder, subset=size.skin_subset)
        words = "HAM10000 by its four sources" + (" (small subset)" if size.skin_subset else "")
    else:
        records = 40 if size.skin_subset else HAM10000_MEAN
        catalog = write_hospitals(folder, plan, SITES, records, seed=1)
        words = f"SYNTHETIC images of the same size ({records} a site): FAIRFLARE_DATA has no ham10000"
    return Subject(AIMED_AT, words, plan, catalog, size.bare_rounds)


def resnet18(size: Size, folder: Path) -> Subject:
    """ResNet-18 on few small images: little work, much to send."""
    plan = resnet_plan(32, size.resnet_rounds, 2)
    catalog = write_hospitals(folder, plan, SITES, size.resnet_records, seed=1)
    words = f"synthetic images of 32 x 32, {size.resnet_records} a site"
    return Subject("resnet18", words, plan, catalog, size.bare_rounds)


def memory_hospitals(plan: Plan, sites: int, folder: Path) -> tuple[Sequence[str], DataCatalog]:
    """Hospitals of 20 records, so that a round is about what is sent."""
    names = [f"hospital-{number}" for number in range(1, sites + 1)]
    return names, write_hospitals(folder, plan, names, 20, seed=1)
