# SPDX-License-Identifier: Apache-2.0
"""``fairflare pretrain``: public data only, members in the file, and a site that the model has seen does not join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.cli import run as run_command
from fairflare.data.manifest import load
from fairflare.data.members import from_metadata, members_of
from fairflare.engine import pretraining
from fairflare.engine.alone import alone_plan
from fairflare.engine.loading import PRETRAINED
from fairflare.engine.local import run_local
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.verify import verify_run
from fairflare.flare import names
from fairflare.flare.simulate import Simulation
from fairflare.jobs import write_job
from fairflare.models import initial_vector, read_weights, vector_sha256, write_weights
from fairflare.models.weights import FOLDER
from fairflare.plan import Plan, parse_plan
from fairflare.record import read_record
from tests.unit.cli.own import NAME, code, heart, hospitals, invoke, make_public, mode, model, shapes, trained
from tests.unit.engine.test_part import part_of

SITES = ("amber", "beryl", "coral")


def written(folder: Path, plan: Plan, name: str = "plan.json") -> Path:
    file = folder / name
    file.write_text(schema.pretty(plan), encoding="utf-8")
    return file


def started(plan: Plan, sha256: str, min_sites: int = 1) -> Plan:
    data = json.loads(schema.pretty(plan))
    data["start"] = {"kind": "file", "sha256": sha256, "tensors": "all"}
    data["federation"]["min_sites"], data["protection"] = min_sites, presets.UNPROTECTED
    return parse_plan(json.dumps(data))


@pytest.fixture(scope="module", params=[heart(), shapes(), part_of(heart(), "head")], ids=["heart", "shapes", "head"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Path]:
    """Folder, plan, and the weight file of a model that has seen amber, the only public site of three."""
    folder, plan = tmp_path_factory.mktemp("pre"), request.param
    hospitals(folder, plan, sites=SITES)
    catalog = make_public(folder, "amber")
    done = invoke(
        "pretrain", written(folder, plan), "--catalog", catalog, "--site", "amber", "--out", folder / "weights",
        "--name", "pretrained",
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    (file,) = (folder / "weights").iterdir()
    digest = file.name.removesuffix(".safetensors")
    assert f'"start": {{"kind": "file", "sha256": "{digest}", "tensors": "all"}}' in done.output
    assert "weights/ inside the folder local/" in done.output
    return folder, plan, file


def test_the_file_is_the_final_model_of_fedavg_and_lists_all_splits(
    pretrained: tuple[Path, Plan, Path], tmp_path: Path
) -> None:
    folder, plan, path = pretrained
    file = read_weights(path, path.name.removesuffix(".safetensors"))
    entry = run_command.read_catalog(folder / NAME).entry("amber", plan.task.data_set)
    used = alone_plan(plan.model_copy(update={"name": "pretrained"}))
    record = run_local(used, {"amber": lambda: load(plan, entry)}, tmp_path)
    assert record.final is not None
    assert file.metadata["format"] == PRETRAINED
    assert file.metadata["model_sha256"] == record.final.model_sha256
    assert parse_plan(file.metadata["plan"]) == used
    members = from_metadata(file.metadata)
    assert members == members_of(plan, entry, members.salt)
    assert vector_sha256(initial_vector(started(plan, file.sha256), path.parent)) == record.final.model_sha256


def test_nothing_in_the_file_names_a_patient(pretrained: tuple[Path, Plan, Path]) -> None:
    _, _, path = pretrained
    assert NAME.encode() not in path.read_bytes()
    shown = invoke("weights", "show", path)
    assert shown.exit_code == 0, shown.exception
    assert NAME not in shown.output
    for text in (path.name.removesuffix(".safetensors"), "plan pretrained", "salted hashes", PRETRAINED):
        assert text in shown.output


@pytest.mark.parametrize("min_sites", [2, 3])
def test_a_site_that_the_model_has_seen_does_not_join(
    pretrained: tuple[Path, Plan, Path], tmp_path: Path, min_sites: int
) -> None:
    """The others go on if they are enough; else the run stops."""
    folder, plan, path = pretrained
    job = written(tmp_path, started(plan, path.name.removesuffix(".safetensors"), min_sites))
    words = ("--catalog", folder / NAME, "--out", tmp_path / "run", "--weights", path.parent)
    done = invoke("run", "local", job, *words)
    record = read_record(tmp_path / "run")
    if min_sites == 2:
        assert done.exit_code == 0, done.exception
        assert [(one.site, one.code) for one in record.join_refusals] == [("amber", "FF-DATA-OVERLAP")]
        assert record.sessions[-1].joined == ("beryl", "coral")
        assert record.initial_model_sha256 == read_weights(path).metadata["model_sha256"]
        assert verify_run(tmp_path / "run", path.parent).status == "complete"
        assert code(invoke("run", "verify", tmp_path / "run")) == "FF-RUN-VERIFY"
        assert invoke("run", "verify", tmp_path / "run", "--weights", path.parent).exit_code == 0
        assert model(tmp_path / "run", "beryl").exists()
        worth = ("worth", model(tmp_path / "run", "beryl"), *words[:2], "--site", "beryl", "--resamples", 100)
        assert code(invoke(*worth, "--out", tmp_path / "none")) == "FF-WEIGHTS-MISSING"
        done = invoke(*worth, "--out", tmp_path / "worth", "--weights", path.parent)
        assert done.exit_code == 0, done.exception
    else:
        assert code(done) == "FF-RUN-VERIFY"
        assert record.status == "stopped"
        assert record.reason is not None
        assert "FF-DATA-OVERLAP" in record.reason.text
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or NAME.encode() not in file.read_bytes(), file


def test_private_data_are_refused_by_name_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = heart()
    hospitals(tmp_path, plan, sites=SITES)
    catalog = make_public(tmp_path, "amber")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun")

    for name in ("members_of", "train_alone"):
        monkeypatch.setattr(pretraining, name, never)
    words = ("pretrain", written(tmp_path, plan), "--catalog", catalog, "--out", tmp_path / "out")
    done = invoke(*words)
    assert code(done) == "FF-CAT-NOT-PUBLIC"
    assert "'heart' of beryl, coral" in str(done.exception)
    assert '"public": true' in str(done.exception)
    assert code(invoke(*words, "--site", "amber", "--site", "coral")) == "FF-CAT-NOT-PUBLIC"
    assert code(invoke(*words, "--site", "none")) == "FF-CAT-UNKNOWN-SITE"
    assert not (tmp_path / "out").exists()


def test_a_plan_that_starts_from_a_file_cannot_pretrain(tmp_path: Path) -> None:
    hospitals(tmp_path, heart(), sites=SITES)
    plan = written(tmp_path, started(heart(), "0" * 64))
    done = invoke("pretrain", plan, "--catalog", make_public(tmp_path, *SITES), "--out", tmp_path / "out")
    assert code(done) == "FF-PLAN-PRETRAIN-START"


def test_several_sites_are_hospitals_and_all_of_them_members(tmp_path: Path) -> None:
    plan = heart()
    catalog = hospitals(tmp_path, plan, sites=SITES)
    words = ("--catalog", make_public(tmp_path, "amber", "beryl"), "--site", "amber", "--site", "beryl")
    assert invoke("pretrain", written(tmp_path, plan), *words, "--out", tmp_path / "w").exit_code == 0
    (path,) = (tmp_path / "w").iterdir()
    found = from_metadata(read_weights(path).metadata)
    public = run_command.read_catalog(tmp_path / NAME)
    each = [members_of(plan, public.entry(site, "heart"), found.salt).hashes for site in ("amber", "beryl")]
    assert found.hashes == each[0] | each[1]
    assert json.loads(read_weights(path).metadata["plan"])["federation"]["min_sites"] == 2
    entries = {site: catalog.entry(site, "heart") for site in ("amber", "beryl")}
    loaders = {site: (lambda entry=entry: load(plan, entry)) for site, entry in entries.items()}
    record = run_local(alone_plan(plan, 2), loaders, tmp_path / "run")
    assert record.final is not None
    assert read_weights(path).metadata["model_sha256"] == record.final.model_sha256


def test_more_members_than_a_file_can_hold_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals(tmp_path, heart(), sites=("amber",))
    monkeypatch.setattr(pretraining, "MAX_HEADER", pretraining._RESERVE + 1000)
    done = invoke(
        "pretrain", written(tmp_path, heart()), "--catalog", make_public(tmp_path, "amber"), "--out", tmp_path / "w"
    )
    assert code(done) == "FF-DATA-MEMBERS-MANY"


@pytest.mark.parametrize("command", ["local", "simulate"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "FF-WEIGHTS-MISSING"),
        (b"x", "FF-WEIGHTS-HASH"),
        ("no folder", "FF-WEIGHTS-MISSING"),
    ],
)
def test_a_start_without_its_file_is_refused_before_a_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, content: Any, expected: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(run_command, "simulated", never)
    weights = tmp_path / "w"
    weights.mkdir()
    if isinstance(content, bytes):
        (weights / f"{'0' * 64}.safetensors").write_bytes(content)
    words = () if content == "no folder" else ("--weights", weights)
    done = invoke("run", command, written(tmp_path, started(heart(), "0" * 64)), "--out", tmp_path / "run", *words)
    assert code(done) == expected
    assert not (tmp_path / "run").exists()


def test_the_simulator_gets_the_plans_file_and_no_other(
    pretrained: tuple[Path, Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan, path = pretrained
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "w" / "other.safetensors").write_bytes(b"x")
    made: list[Simulation] = []

    def note(self: Simulation, *_: Any, **__: Any) -> int:
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", note)
    job = written(tmp_path, started(plan, path.name.removesuffix(".safetensors")))
    invoke("run", "simulate", job, "--catalog", folder / NAME, "--weights", tmp_path / "w", "--out", tmp_path / "run")
    own = made[0].workspace / "local" / "weights"
    assert [file.name for file in own.iterdir()] == [path.name]
    assert (own / path.name).read_bytes() == path.read_bytes()
    assert names.WEIGHTS == FOLDER == "weights"


def test_a_resumed_run_starts_from_the_file_of_its_last_session(
    pretrained: tuple[Path, Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan, path = pretrained
    starting = started(plan, path.name.removesuffix(".safetensors"))
    session = tmp_path / "run" / "session-1"
    start = Start("x", "flare", {}, weights=path.parent)
    coordinator = Coordinator(starting, session / "server" / "simulate_job" / "fairflare", start)
    coordinator.store.save(coordinator.record)
    write_job(starting, tmp_path / "run" / "job")
    (session / "local" / "weights").mkdir(parents=True)
    found: list[Any] = []
    monkeypatch.setattr(run_command, "simulated", lambda *_, **words: found.append(words["weights"]))
    words = ("run", "resume", tmp_path / "run", "--catalog", folder / NAME)
    assert code(invoke(*words)) == "FF-WEIGHTS-MISSING"
    kept = session / "local" / "weights" / path.name
    kept.write_bytes(path.read_bytes())
    assert invoke(*words).exit_code == 0
    assert found == [(kept,)]


def test_other_files_are_shown_for_what_they_are(tmp_path: Path) -> None:
    plan = heart()
    trained(tmp_path / "run", plan, hospitals(tmp_path, plan, sites=("amber",)))
    shown = invoke("weights", "show", model(tmp_path / "run"))
    assert "a model of a job" in shown.output
    assert plan.sha256 in shown.output
    write_weights(tmp_path / "x", {"a": np.zeros(3, dtype=np.float32)}, {"Anna": NAME})
    shown = invoke("weights", "show", tmp_path / "x")
    assert "from elsewhere" in shown.output
    assert NAME not in shown.output
    (tmp_path / "y").write_bytes(b"\x80\x04.")
    assert code(invoke("weights", "show", tmp_path / "y")) == "FF-WEIGHTS-PICKLE"
    assert mode(model(tmp_path / "run")) & 0o002 == 0
