# SPDX-License-Identifier: Apache-2.0
"""Studies that compare noise: how it is written down, that FLARE's model may differ, and what the tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairflare import presets, schema
from fairflare.cli.report_privacy import cost_of, table_of
from fairflare.engine.alone import alone_plan
from fairflare.engine.verify import verify_run
from fairflare.errors import StudyError
from fairflare.evaluation.page import ReportedRun
from fairflare.evaluation.private import Place
from fairflare.evaluation.report import summarise
from fairflare.plan import parse_plan
from fairflare.record import read_record
from fairflare.study.conduct import conduct, prepare
from fairflare.study.kept import Failure, Result
from fairflare.study.results import NO_NOISE, NOISY, SAME, Findings
from fairflare.study.text import to_markdown
from tests.unit.study.small import FEDAVG, Json, baseline, study, task, written

PRIVACY: Json = {
    "clip": 1.0, "noise_multiplier": 1.0, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks",
    "groups": None,
}  # fmt: skip
BATCHES = task(changes={"training.rounds": 2, "model.hidden": [4],
                        "training.batch": {"unit": "batches_per_epoch", "amount": 4}})  # fmt: skip


def method(name: str, changes: Json, configuration: Json | None = None) -> Json:
    return {**FEDAVG, "name": name, "changes": changes,
            "configurations": [{"label": "only", "changes": configuration or {}}]}  # fmt: skip


NOISES = {"open": None, "little": 0.8, "much": 8.0}
METHODS = [
    method("open", {"differential_privacy": None}),
    method("little", {"differential_privacy": PRIVACY}, {"differential_privacy.noise_multiplier": 0.8}),
    method("much", {"differential_privacy": {**PRIVACY, "noise_multiplier": 8.0}}),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings, list[str]]:
    """A study of three noises, of which FLARE repeats the one without: its folder and what it found."""
    folder = tmp_path_factory.mktemp("private")
    file = written(folder, study(methods=METHODS, tasks=[BATCHES], protections=["masked"], flare=True))
    asked: list[str] = []

    def repeat(plan: Any, folder_: Path, *_: Any) -> str:
        asked.append(folder_.name)
        if plan.differential_privacy is not None:
            return "f" * 64
        return (
            read_record(folder / "out" / "runs" / "heart" / "masked" / "open" / "only" / "seed-0" / "record.json")
            .rounds[-1]
            .model_sha256
        )

    found = conduct(prepare(file), folder / "out", workers=2, watch=lambda _: None, repeat=repeat)
    return folder, found, asked


def test_every_noise_is_run_and_verifies(done: tuple[Path, Findings, list[str]]) -> None:
    folder, found, _ = done
    assert not found.failed
    for run in found.runs:
        record = verify_run(folder / "out" / "runs" / run.key.folder)
        privacy = record.plan.differential_privacy
        assert (None if privacy is None else privacy.noise_multiplier) == NOISES[run.key.method]
        assert run.private == (privacy is not None)
    starts = {(k.seed, one.initial_model_sha256) for k, one in found.outcomes.items() if isinstance(one, Result)}
    assert len(starts) == 2


def test_flare_gives_another_model_where_there_is_noise(done: tuple[Path, Findings, list[str]]) -> None:
    _, found, asked = done
    assert asked == ["open", "little", "much"]
    assert [found.flare["heart", "masked", name] for name in NOISES] == [SAME, NOISY, NOISY]
    found.verify_flare()
    text = to_markdown(found)
    assert "Noise is never the same twice" in text
    assert "With differential privacy: little, much." in text
    assert NOISY in text


def test_a_private_run_that_flare_repeats_has_no_noise(done: tuple[Path, Findings, list[str]]) -> None:
    folder, found, _ = done
    models = {key.method: one.single_model for key, one in found.outcomes.items()
              if isinstance(one, Result) and key.seed == 0}  # fmt: skip
    for name in NOISES:
        check = folder / "out" / "flare" / "heart" / "masked" / name / "check.json"
        data = json.loads(check.read_text(encoding="utf-8"))
        check.write_text(json.dumps({**data, "model_sha256": models[name]}), encoding="utf-8")
    with pytest.raises(StudyError, match="FF-STUDY-FLARE") as caught:
        conduct(prepare(folder / "study.json"), folder / "out", workers=1, watch=lambda _: None,
                repeat=lambda *_: pytest.fail("run again"))  # fmt: skip
    assert f"little: {NO_NOISE}" in caught.value.got
    assert "open" not in caught.value.got


def test_the_table_of_epsilon_reads_the_studys_runs(done: tuple[Path, Findings, list[str]]) -> None:
    folder, found, _ = done
    records = [read_record(folder / "out" / "runs" / run.key.folder / "record.json") for run in found.runs]
    runs = [ReportedRun(str(at), one, summarise(one, resamples=100)) for at, one in enumerate(records)]
    made = table_of(runs, 1e-5, None)
    assert [one.noise for one in made.settings] == [None, 0.8, 8.0]
    assert {one.seeds for one in made.settings} == {(0, 1)}
    for one in made.settings[1:]:
        own = [record for record in records if record.plan.differential_privacy is not None
               and record.plan.differential_privacy.noise_multiplier == one.noise]  # fmt: skip
        assert one.cost == cost_of(own[:1], 1e-5)
        assert one.differs == ()
        change = one.numbers[Place("all", "", "group")].change
        assert change is not None
        assert change.n == 2
        key = next(key for key in found.outcomes if NOISES[key.method] == one.noise and key.seed == 0)
        outcome = found.outcomes[key]
        assert isinstance(outcome, Result)
        assert own[0].rounds[-1].model_sha256 == outcome.single_model


def test_noise_without_masks_is_a_failed_run_and_not_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, study(methods=METHODS[1:2], tasks=[BATCHES], protections=["none"]))
    found = conduct(prepare(file), tmp_path / "out", workers=1, watch=lambda _: None)
    assert {one.code for one in found.outcomes.values() if isinstance(one, Failure)} == {"FF-PLAN-RULE"}
    assert len(found.failed) == 2
    assert "With differential privacy" in to_markdown(found)


def test_a_baseline_has_no_noise(tmp_path: Path) -> None:
    for kind in ("local_only", "pooled"):
        methods = [METHODS[0], {**METHODS[1], "name": kind, "baseline": kind}]
        with pytest.raises(StudyError, match="a baseline with differential_privacy"):
            prepare(written(tmp_path, study(methods=methods, tasks=[BATCHES])))


def test_noise_of_a_tasks_own_plan_is_no_methods(tmp_path: Path) -> None:
    """Also where the plan's groups have noise, which plain averaging could not have."""
    data = json.loads(schema.pretty(presets.shipped("heart_fedavg")))
    data["differential_privacy"] = PRIVACY
    plan = parse_plan(json.dumps(data))
    written(tmp_path, data, "own.json")
    runs = prepare(written(tmp_path, study(methods=[FEDAVG, baseline("pooled")], tasks=[task(plan="own.json")]))).runs
    assert not any(run.private for run in runs)
    assert alone_plan(plan).differential_privacy is None
