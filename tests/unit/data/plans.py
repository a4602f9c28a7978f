# SPDX-License-Identifier: Apache-2.0
"""Plans for the tests of the data layer, and a manifest that is right, to be broken in one place."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairflare.plan import Plan, parse_plan
from fairflare.policy import Entry

SECRET_PATIENT = "PATIENT-SECRET-17"
SECRET_ID = "RECORD-SECRET-23"
SECRET_VALUE = "VALUE-SECRET-42"
SECRET_FOLDER = "FOLDER-SECRET-99"
SECRETS = (SECRET_PATIENT, SECRET_ID, SECRET_VALUE, SECRET_FOLDER, "SECRET")

SEX = {"name": "sex", "values": ["female", "male"], "edges": None}
AGE = {"name": "age", "values": ["under_40", "40_to_64", "65_up"], "edges": [40.0, 65.0]}

Row = dict[str, str]


def table_input(names: Sequence[str] = ("heart_rate", "pressure")) -> dict[str, Any]:
    features = [{"name": name, "center": 100.0, "scale": 20.0} for name in names]
    return {"kind": "table", "features": features}


def image_input(channels: int = 3, height: int = 16, width: int = 24) -> dict[str, Any]:
    half = [0.5] * channels
    size = {"channels": channels, "height": height, "width": width}
    return {"kind": "image", **size, "mean": half, "std": half, "augmentation": "none"}


def plan_dict(kind: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    table = kind["kind"] == "table"
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "state": "reset"}
    plan = {
        "format": "fairflare/plan/1",
        "name": "data_layer_test",
        "task": {"kind": "classification", "data_set": "demo", "labels": ["absent", "present"], "input": kind},
        "attributes": [SEX, AGE],
        "intersections": [],
        "cells": {"minimum": 2, "sites": 1},
        "model": {"name": "mlp", "hidden": [16]} if table else {"name": "cnn", "widths": [8, 16]},
        "start": {"kind": "seed"},
        "training": {
            "rounds": 2,
            "work": {"unit": "epochs", "amount": 1},
            "batch": {"unit": "records", "amount": 32},
            "optimizer": optimizer,
            "class_weights": [1.0, 1.0],
            "aggregation": "records",
            "seed": 1,
        },
        "method": {"name": "fedavg"},
        "protection": {"update": "none", "statistics": "none", "masking": None},
        "differential_privacy": None,
        "consents": [],
        "federation": {"min_sites": 1, "task_timeout_seconds": 60.0, "max_missed": 1},
        "evaluation": {"score_bins": 200, "threshold": "half"},
    }
    return {**plan, **changes}


def make_plan(kind: Mapping[str, Any], **changes: Any) -> Plan:
    return parse_plan(json.dumps(plan_dict(kind, **changes)))


def segmentation_plan(
    kind: Mapping[str, Any] | None = None,
    labels: Sequence[str] = ("background", "vessel"),
    values: Sequence[int] = (0, 255),
    **changes: Any,
) -> Plan:
    kind = kind or image_input(3, 16, 32)
    task = {"kind": "segmentation", "data_set": "demo", "labels": labels, "mask_values": values, "input": kind}
    data = plan_dict(kind, task=task, model={"name": "unet", "widths": [8, 16]})
    data["training"]["class_weights"] = [1.0] * len(labels)
    return parse_plan(json.dumps({**data, **changes}))


def good_rows() -> list[Row]:
    """Eight rows: four of training, two of validation, two of test; one patient has two records."""
    splits = ["training"] * 4 + ["validation"] * 2 + ["test"] * 2
    rows = []
    for at, split in enumerate(splits):
        rows.append(
            {
                "id": f"{SECRET_ID}-{at}",
                "patient": f"{SECRET_PATIENT}-{max(at, 1)}",
                "label": "present" if at % 2 else "absent",
                "split": split,
                "file": f"{SECRET_VALUE}-{at}.png",
                "mask": f"{SECRET_VALUE}-mask-{at}.png",
                "heart_rate": f"{60 + at}",
                "pressure": f"{120.5 + at}",
                "sex": "female" if at < 3 else "male",
                "age": f"{35 + 6 * at}",
                "remark": SECRET_VALUE,
            }
        )
    return rows


def write_manifest(folder: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_entry(
    folder: Path, rows: Sequence[Mapping[str, str]], opt_out: str | None = None, root: bool = True
) -> Entry:
    manifest = write_manifest(folder, rows)
    if opt_out is not None:
        (folder / "opt_out.txt").write_text(opt_out, encoding="utf-8")
    return Entry(
        manifest=str(manifest),
        root=str(folder) if root else None,
        opt_out=None if opt_out is None else str(folder / "opt_out.txt"),
    )
