# SPDX-License-Identifier: Apache-2.0
"""``fairflare predict``: what is written is what the network says, at the image's own size, for its owner only."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from fairflare.data.manifest import load, read_manifest
from fairflare.engine.at_site import read_model_file
from fairflare.models import build, load_vector
from fairflare.plan import Plan
from tests.unit.cli.own import NAME, code, heart, hospitals, invoke, mode, model, shapes, three_labels, trained


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def logits(folder: Path, inputs: np.ndarray) -> torch.Tensor:
    found = read_model_file(model(folder / "run"))
    network = build(found.plan)
    load_vector(network, found.vector)
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).double()


@pytest.mark.parametrize("plan", [heart(), three_labels()], ids=["two", "three"])
def test_probabilities_and_labels_are_those_of_the_network(tmp_path: Path, plan: Plan) -> None:
    catalog = hospitals(tmp_path, plan, records=150, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    out = tmp_path / "out"
    done = invoke("predict", model(tmp_path / "run"), "--catalog", tmp_path / NAME, "--out", out)
    assert done.exit_code == 0, done.output
    entry = catalog.entry("amber", "heart")
    data, manifest = load(plan, entry), read_manifest(plan, entry)
    found = rows(out / "predictions.csv")
    ids = [manifest.table.columns["id"][at] for at in np.flatnonzero(manifest.splits == 2)]
    assert [row["id"] for row in found] == ids
    assert not {"patient", "name", "label"} & set(found[0])
    labels = plan.task.labels
    written = np.array([[float(row[f"probability_{label}"]) for label in labels] for row in found])
    expected = logits(tmp_path, data.test.inputs).softmax(dim=1).numpy()
    assert np.abs(written - expected).max() < 1e-6
    called = [labels.index(row["predicted"]) for row in found]
    if len(labels) > 2:
        assert called == expected.argmax(axis=1).tolist()
    else:
        assert called == (expected[:, 1] >= best_threshold(tmp_path, data.validation)).astype(int).tolist()
    assert (mode(out), mode(out / "predictions.csv")) == (0o700, 0o600)
    assert NAME not in done.output


def best_threshold(folder: Path, records) -> float:
    """The bin's edge with the best balanced accuracy by scikit-learn; of equals the one nearest 0.5, then the lower."""
    probability = logits(folder, records.inputs).softmax(dim=1).numpy()[:, 1]
    edges = np.arange(1, 200) / 200
    value = [balanced_accuracy_score(records.labels, probability >= edge) for edge in edges]
    best = [edge for edge, one in zip(edges, value, strict=True) if one > max(value) - 1e-12]
    return min(best, key=lambda edge: (round(abs(edge - 0.5), 9), edge))


@pytest.mark.parametrize("labels", [2, 3])
def test_masks_have_the_images_own_size_and_the_plans_values(tmp_path: Path, labels: int) -> None:
    plan = shapes(labels=labels)
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    home, manifest = tmp_path / NAME / "amber", tmp_path / NAME / "amber" / "manifest.csv"
    for row in rows(manifest):
        if row["split"] == "test":
            for column in ("file", "mask"):
                with Image.open(home / row[column]) as image:
                    larger = image.resize((41, 23), Image.Resampling.NEAREST)
                larger.save(home / row[column])
    out = tmp_path / "out"
    done = invoke("predict", model(tmp_path / "run"), "--catalog", tmp_path / NAME, "--out", out, "--overlay")
    assert done.exit_code == 0, done.output
    data = load(plan, catalog.entry("amber", plan.task.data_set))
    inputs = (data.test.inputs.astype(np.float32) / 255 - np.array(plan.task.input.mean).reshape(3, 1, 1)) / np.array(
        plan.task.input.std
    ).reshape(3, 1, 1)
    maps = logits(tmp_path, inputs.astype(np.float32)).numpy()
    places = np.where(maps.max(axis=1) > 0, maps.argmax(axis=1) + 1, 0)
    index = rows(out / "index.csv")
    assert len(index) == len(data.test) > 0
    assert all(NAME in row["id"] for row in index)
    for at, row in enumerate(index):
        assert row["file"] == f"masks/{at + 1:06d}.png"
        with Image.open(out / row["file"]) as image:
            assert (image.mode, image.size) == ("L", (41, 23))
            assert image.info == {}
            found = np.asarray(image)
        wanted = Image.fromarray(np.array(plan.task.mask_values, dtype=np.uint8)[places[at]])
        assert np.array_equal(found, np.asarray(wanted.resize((41, 23), Image.Resampling.NEAREST)))
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 2 * len(index) + 1
    assert {mode(path) for path in written} == {0o600}
    assert {mode(path) for path in (out, out / "masks", out / "overlays")} == {0o700}
    assert not any(NAME in path.name for path in written)
    assert not any(NAME.encode() in path.read_bytes() for path in written if path.suffix == ".png")


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    catalog = hospitals(tmp_path, heart())
    trained(tmp_path / "run", heart(), catalog)
    words = ("predict", model(tmp_path / "run"), "--catalog", tmp_path / NAME)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine", encoding="utf-8")
    assert code(invoke(*words, "--site", "amber", "--out", full)) == "FF-RUN-OUT"
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert code(invoke(*words, "--out", tmp_path / "new")) == "FF-CAT-SITE"
    assert invoke(*words, "--site", "amber", "--out", tmp_path / "new", "--overlay").exit_code == 2
    assert not (tmp_path / "new").exists()
