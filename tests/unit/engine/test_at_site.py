# SPDX-License-Identifier: Apache-2.0
"""A finished model at one site: what its file must say, and that its scores are those of the round."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fairflare.data.manifest import load
from fairflare.engine.at_site import (
    Decision,
    dice_of_images,
    named_records,
    predicted_masks,
    probabilities,
    read_model_file,
    score,
    site_sums,
)
from fairflare.errors import DataError, FairFlareError
from fairflare.models import build, load_vector, read_weights, write_weights
from tests.unit.cli.own import heart, hospitals, model, shapes, three_labels, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heart")
    trained(path / "run", heart(), hospitals(path, heart()))
    return path


def changed(source: Path, target: Path, **texts: str | None) -> Path:
    """A copy with other texts; ``None`` takes one away."""
    file = read_weights(source)
    metadata = {key: value for key, value in {**file.metadata, **texts}.items() if value is not None}
    write_weights(target, file.tensors, metadata)
    return target


def test_a_model_file_says_whose_it_is(folder: Path) -> None:
    record = json.loads((folder / "run" / "record.json").read_text(encoding="utf-8"))
    for kind, name in (("final", "model_sha256"), ("best", "best_model_sha256")):
        found = read_model_file(model(folder / "run", kind=kind))
        assert (found.kind, found.model_sha256, found.plan) == (kind, record["final"][name], heart())
    assert read_model_file(model(folder / "run")).rounds == 2


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ({"format": None}, "FF-WEIGHTS-MODEL"),
        ({"format": "fairflare/pretrained/1"}, "FF-WEIGHTS-MODEL"),
        ({"plan": None}, "FF-WEIGHTS-MODEL"),
        ({"plan": "{"}, "FF-PLAN-JSON"),
        ({"plan": '{"Anna Mueller": 1}'}, "FF-PLAN-UNKNOWN-KEY"),
        ({"plan_sha256": "0" * 64}, "FF-WEIGHTS-MODEL"),
        ({"model_sha256": "0" * 64}, "FF-WEIGHTS-MODEL"),
        ({"kind": "other"}, "FF-WEIGHTS-MODEL"),
        ({"rounds": "-1"}, "FF-WEIGHTS-MODEL"),
        ({"rounds": "\uff19"}, "FF-WEIGHTS-MODEL"),
        ({"record_sha256": None}, "FF-WEIGHTS-MODEL"),
    ],
)
def test_texts_that_are_missing_or_not_so_are_refused(
    folder: Path, tmp_path: Path, texts: dict[str, str | None], code: str
) -> None:
    with pytest.raises(FairFlareError) as caught:
        read_model_file(changed(model(folder / "run"), tmp_path / "x", **texts))
    assert caught.value.code == code
    assert "Mueller" not in str(caught.value)


def test_numbers_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    file = read_weights(model(folder / "run"))
    tensors = {name: array + np.float32(0.5) for name, array in file.tensors.items()}
    write_weights(tmp_path / "x", tensors, file.metadata)
    with pytest.raises(FairFlareError, match="FF-WEIGHTS-MODEL: got a file whose numbers have another hash"):
        read_model_file(tmp_path / "x")
    write_weights(tmp_path / "y", dict(list(file.tensors.items())[1:]), file.metadata)
    with pytest.raises(FairFlareError, match="FF-WEIGHTS-TENSORS"):
        read_model_file(tmp_path / "y")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "FF-WEIGHTS-EMPTY"),
        (pickle.dumps({"a": 1}), "FF-WEIGHTS-PICKLE"),
        (b"PK\x03\x04" + b"x" * 100, "FF-WEIGHTS-PICKLE"),
        (b"\xff" * 100, "FF-WEIGHTS-FORMAT"),
        (
            (72).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}      ',
            "FF-WEIGHTS-",
        ),
        (None, "FF-WEIGHTS-TRUNCATED"),
    ],
)
def test_hostile_files_are_refused(folder: Path, tmp_path: Path, content: bytes | None, code: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(model(folder / "run").read_bytes()[:-4] if content is None else content)
    with pytest.raises(FairFlareError) as caught:
        read_model_file(file)
    assert caught.value.code.startswith(code)


def test_a_file_that_is_not_there_names_where_models_lie(tmp_path: Path) -> None:
    with pytest.raises(FairFlareError, match=r"FF-WEIGHTS-MISSING.*final\.safetensors"):
        read_model_file(tmp_path / "none")


@pytest.mark.parametrize("plan", [heart(), three_labels(), shapes(), shapes(labels=3)], ids=lambda plan: plan.name)
def test_scores_of_one_site_are_those_of_its_run(tmp_path: Path, plan) -> None:
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    record = trained(tmp_path / "run", plan, catalog)
    found = read_model_file(model(tmp_path / "run"))
    data = load(plan, catalog.entry("amber", plan.task.data_set))
    steps: list[tuple[int, int]] = []
    for split, records in (("validation", data.validation), ("test", data.test)):
        scores = score(found, records, lambda *done: steps.append(done))
        own = site_sums(plan, scores, records, plan.cells.minimum)
        for name, table in record.evaluation(split).cells.items():  # type: ignore[arg-type]
            assert np.array_equal(own.sums.cells[name], table)
        assert own.collapse == getattr(record.final, f"{split}_collapse")
    assert steps[-1] == (len(data.test), len(data.test))


def test_progress_in_parts_changes_no_number(folder: Path, tmp_path: Path) -> None:
    catalog = hospitals(tmp_path, heart(), records=600, sites=("amber",))
    records = load(heart(), catalog.entry("amber", "heart")).training
    assert len(records) > 256
    found = read_model_file(model(folder / "run"))
    network = build(found.plan)
    load_vector(network, found.vector)
    with torch.no_grad():
        logits = [network(torch.from_numpy(records.inputs[at : at + 256])) for at in range(0, len(records), 256)]
    expected = torch.cat(logits).double().softmax(dim=1).numpy()
    assert np.allclose(probabilities(found.plan, score(found, records)), expected, rtol=0, atol=1e-12)


def test_predicted_masks_have_the_dice_that_is_scored(tmp_path: Path) -> None:
    plan = shapes(labels=3)
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    trained(tmp_path / "run", plan, catalog)
    found = read_model_file(model(tmp_path / "run"))
    records = load(plan, catalog.entry("amber", plan.task.data_set)).test
    masks = np.stack(list(predicted_masks(found, records)))
    dice = np.zeros((len(records), 2))
    for label in (1, 2):
        truth, own = records.masks == label, masks == label  # type: ignore[comparison-overlap]
        both, each = (truth & own).sum(axis=(1, 2)), truth.sum(axis=(1, 2)) + own.sum(axis=(1, 2))
        dice[:, label - 1] = np.where(each > 0, 2 * both / np.maximum(each, 1), 1.0)
    assert np.allclose(dice_of_images(score(found, records)), dice.mean(axis=1), atol=1e-12)


def test_names_follow_the_records(tmp_path: Path) -> None:
    plan = heart()
    catalog = hospitals(tmp_path, plan, sites=("amber",))
    entry = catalog.entry("amber", "heart")
    data = load(plan, entry)
    named = named_records(plan, entry, data, "test")
    assert len(named) == len(named.ids) == len(named.patients) == len(data.test)
    assert "Mueller" not in repr(named)
    manifest = Path(entry.manifest)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    manifest.write_text("\n".join(lines[:-20]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="FF-DATA-CHANGED"):
        named_records(plan, entry, data, "test")


def test_a_decision_counts_in_the_reports_bins() -> None:
    decision = Decision(bins=200, edge=58, chosen=True)
    score_ = np.array([0.2899999, 0.29, 58 / 200, 1.0, 0.0])
    assert decision.called(score_).tolist() == (np.minimum((score_ * 200).astype(int), 199) >= 58).tolist()
    assert decision.threshold == 0.29
