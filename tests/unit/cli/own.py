# SPDX-License-Identifier: Apache-2.0
"""Small hospitals on disk with a patient's name planted wherever one can stand, and runs over them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from typer.testing import CliRunner, Result

from fairflare import presets, schema
from fairflare.cli import app
from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.local import run_local
from fairflare.plan import ImageInput, Plan, parse_plan
from fairflare.policy import DataCatalog, read_catalog, write_catalog
from fairflare.record import RunRecord

NAME = "Mueller"
HOSPITALS = ("amber", "beryl")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def heart(**changes: Any) -> Plan:
    """Two labels from a table, FlexFair, two rounds; ``changes`` name fields of ``training`` or others."""
    return _small(presets.shipped("heart_flexfair"), **changes)


def shapes(labels: int = 2, side: int = 16, **changes: Any) -> Plan:
    """Segmentation of small images."""
    data = json.loads(schema.pretty(presets.shipped("fundus_fedavg")))
    data["task"]["labels"] = ["background", "vessel", "disc"][:labels]
    data["task"]["mask_values"] = [0, 255, 128][:labels]
    data["task"]["input"].update(height=side, width=side, augmentation="none")
    data["training"]["class_weights"] = [1.0] * labels
    data["model"]["widths"] = [8, 8]
    return _small(parse_plan(json.dumps(data)), **changes)


def three_labels(**changes: Any) -> Plan:
    data = json.loads(schema.pretty(presets.shipped("heart_fedavg")))
    data["task"]["labels"] = ["none", "mild", "severe"]
    data["training"]["class_weights"] = [1.0] * 3
    data["evaluation"]["threshold"] = "half"
    return _small(parse_plan(json.dumps(data)), **changes)


def _small(plan: Plan, **changes: Any) -> Plan:
    data = json.loads(schema.pretty(plan))
    data["training"]["rounds"] = 2
    data["federation"]["min_sites"], data["protection"] = 1, presets.UNPROTECTED
    for name, value in changes.items():
        part = data["training"] if name in data["training"] else data
        part[name] = value
    return parse_plan(json.dumps(data))


def hospitals(folder: Path, plan: Plan, records: int = 60, sites: tuple[str, ...] = HOSPITALS) -> DataCatalog:
    """Synthetic hospitals whose ids, patients, files and PNG texts hold :data:`NAME`, in a folder of that name."""
    home = folder / NAME
    catalog = write_hospitals(home, plan, sites, records, seed=3)
    for site in sites:
        _plant(home / site, isinstance(plan.task.input, ImageInput))
    return catalog


def _plant(home: Path, images: bool) -> None:
    manifest = home / "manifest.csv"
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["id"] = f"{NAME}/{row['id']} =1+1"
        row["patient"] = f"Anna {NAME} {row['patient']}"
        for column in ("file", "mask") if images else ():
            if row.get(column):
                row[column] = _renamed(home, row[column])
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _renamed(home: Path, file: str) -> str:
    old = home / file
    new = old.with_name(f"{NAME}-{old.name}")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", f"Anna {NAME}")
    with Image.open(old) as image:
        image.save(new, pnginfo=texts)
    old.unlink()
    return new.relative_to(home).as_posix()


def make_public(folder: Path, *sites: str) -> Path:
    """Declare these sites' data sets public; returns the catalogue's file."""
    home = folder / NAME
    catalog = read_catalog(home)
    entries = {
        site: {name: one.model_copy(update={"public": site in sites}) for name, one in sets.items()}
        for site, sets in (catalog.sites or {}).items()
    }
    return write_catalog(home, catalog.model_copy(update={"sites": entries}))


def trained(folder: Path, plan: Plan, catalog: DataCatalog, *sites: str) -> RunRecord:
    """A whole run in this process; models are in ``folder/sites/SITE/models``."""
    names = sites or catalog.site_names
    entries = {site: catalog.entry(site, plan.task.data_set) for site in names}
    loaders: dict[str, Callable[[], Any]] = {
        site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()
    }
    record = run_local(plan, loaders, folder)
    assert record.status == "complete", record.reason
    return record


def model(folder: Path, site: str = HOSPITALS[0], kind: str = "final") -> Path:
    return folder / "sites" / site / "models" / f"{kind}.safetensors"


def code(result: Result) -> str:
    """Code of the refusal."""
    return getattr(result.exception, "code", repr(result.exception))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
