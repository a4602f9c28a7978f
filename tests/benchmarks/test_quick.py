# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs and says everything it promises. Nothing here looks at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairflare.methods import METHODS, Feasibility
from fairflare.plan.networks import MODELS
from tests.benchmarks import (
    encrypted,
    masked_rounds,
    masks,
    methods,
    networks,
    private,
    server_path,
    staleness,
    subjects,
)
from tests.benchmarks.environments import Unavailable, Worker, interpreter
from tests.benchmarks.figures import Figure, as_markdown, as_text
from tests.benchmarks.subjects import AIMED_AT, QUICK
from tests.benchmarks.timeline import PARTS

PER_SUBJECT = {
    "flare_round", "bare_one", "bare_fair", "ratio_fair", "ratio_one", "ratio_ideal", "start_up", "teardown",
    "train_max", "train_sum", "bare_train_one", "bare_train_fair", "local_work", "waiting", "share_rest",
    "serialise_wire", "serialise_fobs", "bytes", "same_work", *(f"share_{part}" for part in PARTS),
}  # fmt: skip
MACHINE = {"cores", "cpu", "memory_gb", "torch", "torch_threads", "python", "date", "command", "load_before", "skipped",
           "seconds"}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--out", str(out)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def figures(bench: tuple[Path, str]) -> dict[tuple[str, str], dict[str, Any]]:
    data = json.loads((bench[0] / "bench.json").read_text(encoding="utf-8"))
    assert set(data["machine"]) == MACHINE
    return {(one["subject"], one["key"]): one for one in data["figures"]}


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(960)
def test_every_figure_is_there(figures: dict[tuple[str, str], dict[str, Any]]) -> None:
    for subject in ("mlp on heart", AIMED_AT, "resnet18"):
        assert {key for name, key in figures if name == subject} == PER_SUBJECT
    few, many = QUICK.memory_sites
    server = {"model", "growth", *(f"{kind}_{sites}" for kind in ("peak", "above") for sites in (few, many))}
    assert {key for name, key in figures if name == "resnet18 updates"} == server
    few, many = QUICK.accumulator_sites
    alone = {f"accumulator_{few}", f"accumulator_{many}", "accumulator_growth"}
    assert {key for name, key in figures if name == "accumulator alone"} == alone
    for network in networks.QUICK:
        assert {key for name, key in figures if name == network.name} == {
            "step",
            "peak",
            "parameters",
            "round",
            "bytes",
        }
    for kind in staleness.KINDS:
        found = {key: one["value"] for (name, key), one in figures.items() if name == kind}
        assert set(found) == {"trips", "down", "up", "stale_first", "stale_last"}
        assert found["trips"] == {"round_lagged": 1, "every 3 rounds": 1.5}.get(kind, 2)
        # Sums of float32 losses in another order are not quite those of the run.
        assert (found["stale_first"] < 1e-3) == (kind in ("round", "round, own part anew"))
    (job,) = masked_rounds.jobs(quick=True)
    (found,) = [
        {key for name, key in figures if name == subject} for subject, _ in figures if f"{job.name}," in subject
    ][:1]
    assert found == MASKED_ROUNDS
    assert {key for name, key in figures if name == "kits of four hospitals"} == {
        "provision", "connected", "deployed", "first_round", "ended", "phase",
    }  # fmt: skip
    assert {key for name, key in figures if name == "audit"} == {"job", "kit", "python"}
    for subject in ("mlp on heart", AIMED_AT):
        for kind in methods.KINDS:
            assert {key for name, key in figures if name == f"{subject}, {kind}"} == per_method(methods.ALL)
    assert {key for name, key in figures if name == "mlp on heart through FLARE, masked"} == {
        "fedavg_round", "fairfed_round", "fairfed_added",
    }  # fmt: skip
    assert {key for name, key in figures if name == "mlp on heart, 4 sites"} == ENCRYPTED
    few, many = server_path.QUICK
    path = {"growth", f"ratio_{many}", *(f"{kind}_{sites}" for kind in ("round", "peak") for sites in (few, many))}
    assert {key for name, key in figures if name == server_path.SUBJECTS["mlp"]} == path
    for case in private.QUICK.cases:
        assert {key for name, key in figures if name == case.name} == per_private(case)
    assert all(math.isfinite(one["value"]) for one in figures.values())


ENCRYPTED = {"added", *(f"{kind}_{key}" for kind in ("masked", "ckks") for key in ("seconds", "down", "up", "trips"))}
MASKED_ROUNDS = {
    "round_none", "round_masked", "added", "kernel", *(f"added_{key}" for key in masked_rounds.GROUPS),
    *(f"record_{key}" for key in ("measure", "train", "protect", "aggregate")),
}  # fmt: skip


def per_method(names: Iterable[str]) -> set[str]:
    """Keys of the figures of one job with these methods."""
    keys = {"seconds", "down", "up", "over", "bytes"}
    return {f"{name}_{key}" for name in names for key in keys} - {"fedavg_over", "fedavg_bytes"}


def per_private(case: private.Case) -> set[str]:
    """Keys of the figures of one network and its trained part."""
    keys = {"none", *(f"{kind}_over" for kind in case.kinds[1:]), *(f"{mode}_opacus" for mode in private.OURS)}
    return keys | ({f"{kind}_peak" for kind in private.KINDS} if case.memory else set())


def test_every_method_that_trains_is_measured() -> None:
    assert set(methods.ALL) == {name for name, one in METHODS.items() if one is not Feasibility}
    assert methods.FULL.flare_methods == methods.ALL
    assert methods.BASE in methods.QUICK.flare_methods
    assert set(methods.MOST) <= set(methods.ALL)


def test_methods_are_measured_side_by_side(tmp_path: Path) -> None:
    """What is known of the bytes: a pull sends nothing, a control as much as the model, in clear, each way."""
    names = ("fedavg", "fedprox", "scaffold")
    found = methods.side_by_side(subjects.mlp(QUICK, tmp_path), names, 3, 2, tmp_path / "jobs")
    figures = {(one.subject.rpartition(", ")[2], one.key): one for one in found}
    assert {key for _, key in figures} == per_method(names)
    for kind in methods.KINDS:
        value = {key: one.value for (of, key), one in figures.items() if of == kind}
        assert value["fedprox_bytes"] == 1
        # The model has 1,426 parameters; a name, a length, and in clear a weight, come with each vector.
        for way in ("down", "up"):
            assert 0 <= 1e3 * (value[f"scaffold_{way}"] - value[f"fedavg_{way}"]) - 4 * 1426 < 350
        assert all(one.value > 0 and one.low <= one.value <= one.high for (of, key), one in figures.items()
                   if of == kind and key.endswith(("seconds", "over")))  # fmt: skip
    assert {one.verdict for one in found if one.most is not None} == {"met"}


def test_encrypted_statistics_are_measured_side_by_side_with_masked_ones(tmp_path: Path) -> None:
    """The same trips; a ciphertext up, and everybody's down, beside which the masked words are few."""
    found = {(one.subject, one.key): one.value for one in encrypted.all_figures(encrypted.QUICK, tmp_path)}
    rounds = {key: value for (subject, key), value in found.items() if subject == "mlp on heart, 4 sites"}
    assert set(rounds) == ENCRYPTED
    assert rounds["ckks_trips"] == rounds["masked_trips"] == 4
    for words in encrypted.PARAMETERS:
        alone = {key: value for (subject, key), value in found.items() if subject.endswith(words)}
        assert set(alone) == {"up", "down", "mask", "encrypt", "add", "open"}
        assert alone["down"] == pytest.approx(4 * alone["up"])
    small, *_ = (value for (subject, key), value in found.items() if subject.endswith("2^30") and key == "up")
    assert rounds["ckks_up"] - rounds["masked_up"] == pytest.approx(small, rel=0.05)
    assert rounds["ckks_down"] - rounds["masked_down"] == pytest.approx(4 * small, rel=0.05)


def test_private_training_is_measured_side_by_side_with_opacus(tmp_path: Path) -> None:
    found = private.all_figures(private.QUICK, tmp_path)
    for case in private.QUICK.cases:
        assert {one.key for one in found if one.subject == case.name} == per_private(case)
    assert {one.key for one in found if one.subject == "10,000 numbers of noise"} == {"torch", "drawn", "added"}
    aimed = {(one.subject, one.key) for one in found if one.most is not None}
    assert aimed == {
        *(("cnn, head", f"{kind}_over") for kind in (*private.OURS, *private.CACHED)),
        *(("resnet18, all", f"{mode}_opacus") for mode in private.OURS),
        ("10,000 numbers of noise", "added"),
    }
    assert all(math.isfinite(one.value) and one.value > 0 for one in found)


def test_every_kind_takes_steps_of_its_own_network() -> None:
    """The same start and records for all, and what one kind does to its network is not seen by the next."""
    case = private.Case("cnn", "head", 1, 1)
    model, *given = private.made(case)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in case.kinds:
        private.step_of(kind, model, *given)(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_masks_are_measured_without_other_programs(tmp_path: Path) -> None:
    found, skipped = masks.all_figures(masks.QUICK, tmp_path)
    keys = {(one.section, one.key) for one in found}
    assert {key for section, key in keys if section == masks.CLIENT} == {
        "floor", "kernel", "over_floor", "kernel_default", "client_one", "client_default", "client_whole",
    }  # fmt: skip
    assert {key for section, key in keys if section == masks.SERVER} == {"server"}
    assert {key for section, key in keys if section == masks.UPLOAD} == {"upload", "upload_ratio"}
    parts = {f"{who}_{part}" for who in ("site", "server") for part in masks.PARTS}
    assert {key for section, key in keys if section == masks.SIZES} == {
        "join", "site_mask_large", "bytes_down", "bytes_up", *parts,
    }  # fmt: skip
    assert len({one.subject for one in found if one.section == masks.SIZES}) == len(masks.QUICK.sites)
    assert set(skipped) == {"Flower's SecAgg+", "TenSEAL"}
    assert all(math.isfinite(one.value) and one.value > 0 for one in found)
    assert {one.key for one in found if one.verdict != "-"} == {"over_floor", "upload_ratio"}


def test_masks_are_measured_on_the_model_of_the_aims() -> None:
    assert masks.full().large == 11_689_512
    assert len(masks.full().shapes) == 62
    assert masks.full().sites == (4, 8, 16, 32, 50)


def test_a_program_that_cannot_be_installed_is_said_to_be_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.benchmarks.environments.ROOT", tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(Unavailable, match="nothing==0 cannot be installed here"):
        interpreter("nothing", ("nothing==0",))
    assert not list(tmp_path.iterdir())


def test_a_program_that_ends_early_says_why() -> None:
    with Worker(Path(sys.executable), "flower_worker.py") as worker, pytest.raises(RuntimeError, match="flwr"):
        worker.ask()


def test_every_registered_network_is_measured() -> None:
    names = {name for names in MODELS.values() for name in names}
    assert {network.name for network in networks.FULL} == names


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(960)
def test_flare_and_the_bare_loop_did_the_same_work(figures: dict[tuple[str, str], dict[str, Any]]) -> None:
    for subject in ("mlp on heart", AIMED_AT, "resnet18"):
        assert figures[subject, "same_work"]["verdict"] == "met"


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(960)
def test_the_parts_of_a_round_add_up(figures: dict[tuple[str, str], dict[str, Any]]) -> None:
    for subject in ("mlp on heart", AIMED_AT, "resnet18"):
        shares = [figures[subject, f"share_{part}"]["value"] for part in PARTS]
        assert sum(shares) + figures[subject, "share_rest"]["value"] == pytest.approx(100)


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(960)
def test_what_is_aimed_at_has_a_verdict(
    figures: dict[tuple[str, str], dict[str, Any]], bench: tuple[Path, str]
) -> None:
    aimed = {(AIMED_AT, "ratio_fair"), ("resnet18 updates", "growth"), ("accumulator alone", "accumulator_growth")}
    with_aim = {name for name, one in figures.items() if one["most"] is not None}
    assert aimed <= with_aim
    assert {key for name, key in with_aim - aimed if key != "same_work"} == {
        "over_floor", "upload_ratio", "job", *(f"{name}_bytes" for name in methods.MOST),
        *(f"{kind}_over" for kind in (*private.OURS, *private.CACHED)), *(f"{mode}_opacus" for mode in private.OURS),
        "added",
    }  # fmt: skip
    assert all((one["verdict"] == "-") == (one["most"] is None and one["least"] is None) for one in figures.values())
    page, printed = (bench[0] / "bench.md").read_text(encoding="utf-8"), bench[1]
    assert all(one["what"] in page and one["what"] in printed for one in figures.values())
    assert not (bench[0] / "work").exists()


def test_a_verdict_follows_from_figure_and_aim() -> None:
    met, missed, free = (Figure("A", "s", "k", "what", value, "s", most=aim) for value, aim in
                         ((1.3, 1.3), (1.31, 1.3), (9.0, None)))  # fmt: skip
    assert (met.verdict, missed.verdict, free.verdict) == ("met", "not met", "-")
    least = [Figure("A", "s", "k", "what", value, "", least=8.0) for value in (8.0, 7.9)]
    assert [one.verdict for one in least] == ["met", "not met"]
    noise = Figure("A", "s", "k", "what", -1.5, "s", low=-2.9, high=1.2, most=3.0, resolved=False)
    assert noise.verdict == "not resolved"
    assert ">= 8" in as_text(least)
    assert "not met" in as_text([missed])
    facts = {"cores": 2, "cpu": "c", "memory_gb": 1, "torch": "t", "torch_threads": "1", "python": "3", "date": "d",
             "command": "x", "load_before": 0.0}  # fmt: skip
    assert "| what | 1.3 s | <= 1.3 s | met |  |" in as_markdown(facts, [met])
