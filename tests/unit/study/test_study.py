# SPDX-License-Identifier: Apache-2.0
"""Whole studies of tiny tasks: what is compared is comparable, what fails stays, what was done is not done again."""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fairflare import presets, schema
from fairflare.data.manifest import load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine.verify import verify_run
from fairflare.errors import StudyError
from fairflare.evaluation.report import summarise
from fairflare.plan import read_plan
from fairflare.policy import read_catalog
from fairflare.record import read_record
from fairflare.study.conduct import prepare
from fairflare.study.kept import Failure, Result, read_outcome
from fairflare.study.pool import Job
from fairflare.study.results import Findings
from fairflare.study.work import perform
from tests.unit.study.small import FEDAVG, FLEXFAIR, SEX, baseline, rows, run, study, task, timeless, written

DIVERGES = {**FEDAVG, "name": "diverges", "configurations": [
    {"label": "never", "changes": {"training.optimizer.lr": 1e30}}, {"label": "well", "changes": {}},
]}  # fmt: skip
LOCK_STEP = {**FLEXFAIR, "name": "lock-step", "method": {**FLEXFAIR["method"], "refresh": "step"}}
STEPS = task(changes={"training.rounds": 2, "model.hidden": [4], "training.work.unit": "steps",
                      "training.work.amount": 2})  # fmt: skip
METHODS = [FEDAVG, FLEXFAIR, baseline("local_only"), baseline("pooled"), DIVERGES, LOCK_STEP]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Findings]:
    """A study with everything in it: its file, its folder, and what it found."""
    folder = tmp_path_factory.mktemp("study")
    file = written(folder, study(methods=METHODS, tasks=[STEPS], protections=["masked", "none"]))
    found, _ = run(file, folder / "out")
    return file, folder / "out", found


def copied(done: tuple[Path, Path, Findings], to: Path) -> tuple[Path, Path]:
    """The study in folders of its own."""
    shutil.copy(done[0], to / "study.json")
    shutil.copytree(done[1], to / "out")
    catalog = to / "out" / "data" / "heart" / "data_catalog.json"
    catalog.write_text(catalog.read_text(encoding="utf-8").replace(str(done[1]), str(to / "out")), encoding="utf-8")
    return to / "study.json", to / "out"


def runs_of(out: Path, *parts: str) -> list[Path]:
    return sorted(out.joinpath("runs", *parts).glob("**/seed-*"))


def test_every_run_has_a_folder_with_its_plan_and_how_it_ended(done: tuple[Path, Path, Findings]) -> None:
    file, out, found = done
    assert len(runs_of(out)) == len(found.outcomes) == len(prepare(file).runs)
    for one in prepare(file).runs:
        folder = out / "runs" / one.key.folder
        outcome = read_outcome(folder)
        assert outcome is not None
        assert outcome.plan_sha256 == one.sha256
        assert (folder / "plan.json").read_text(encoding="utf-8") == one.text
        if isinstance(outcome, Result) and one.baseline == "none":
            assert verify_run(folder).plan_sha256 == one.sha256
            assert not (folder / "sites").exists()


def test_what_failed_is_kept_and_shown(done: tuple[Path, Path, Findings]) -> None:
    _, out, found = done
    codes = {(key.method, key.protection): one.code for key, one in found.failed.items()}
    assert codes.pop(("lock-step", "masked")) == "FF-PLAN-RULE"
    assert set(codes) == {("diverges", "masked"), ("diverges", "none")}
    for key in found.failed:
        assert (out / "runs" / key.folder / "failure.json").exists()
    table = rows((out / "results.csv").read_text(encoding="utf-8"))
    assert sum(one["status"] == "failed" for one in table) == len(found.failed) == 4 + 4
    for name in ("table.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "FF-PLAN-RULE" in text.replace("\\", "")
        assert "none has results" in text  # lock step under masks
    assert found.chosen["heart", "none", "diverges"] == "well"


def test_methods_start_from_the_same_weights(done: tuple[Path, Path, Findings]) -> None:
    starts: dict[int, set[str]] = {}
    for key, one in done[2].outcomes.items():
        if isinstance(one, Result):
            starts.setdefault(key.seed, set()).add(one.initial_model_sha256)
    assert [len(some) for some in starts.values()] == [1, 1]
    assert len(set.union(*starts.values())) == 2


def test_other_first_weights_are_refused(done: tuple[Path, Path, Findings], monkeypatch: pytest.MonkeyPatch) -> None:
    from fairflare.study import conduct

    starts = {("heart", 0): "a"}
    key = next(iter(done[2].outcomes))
    conduct._verify_start(key, dict(starts), "a")
    with pytest.raises(StudyError, match="FF-STUDY-START"):
        conduct._verify_start(key, starts, "b")


@pytest.mark.parametrize("protection", ["none", "masked"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_numbers_are_those_of_the_runs_own_report(
    done: tuple[Path, Path, Findings], protection: str, split: str
) -> None:
    _, out, _ = done
    folder = runs_of(out, "heart", protection, "flexfair", "s8")[0]
    summary = summarise(read_record(folder), split, resamples=100)  # type: ignore[arg-type]
    outcome = read_outcome(folder)
    assert isinstance(outcome, Result)
    values = outcome.test if split == "test" else outcome.validation
    assert values["all:roc_auc"] == summary.overall.metrics["roc_auc"].value
    part = summary.by_attribute("sex")
    for gap in ("equal_opportunity_difference", "roc_auc_difference", "equalized_odds_difference"):
        assert values[f"sex:{gap}"] == part.gaps[gap].value
    for group in part.groups:
        assert values[f"sex:{group.group}:balanced_accuracy"] == group.metrics["balanced_accuracy"].value
        assert values[f"sex:{group.group}:records"] == group.records


def test_sites_alone_are_judged_on_their_own_records_and_together(done: tuple[Path, Path, Findings]) -> None:
    _, out, found = done
    folder = runs_of(out, "heart", "no_federation", "local_only", "fast")[0]
    outcome = read_outcome(folder)
    assert isinstance(outcome, Result)
    catalog = read_catalog(out / "data" / "heart")
    assert set(outcome.model_sha256) == set(catalog.site_names)
    assert len(set(outcome.model_sha256.values())) == 4
    plan, own = read_plan(folder / "plan.json"), []
    for site in catalog.site_names:
        record = verify_run(folder / "alone" / site)
        assert record.rounds[-1].model_sha256 == outcome.model_sha256[site]
        summary = summarise(record, "test", resamples=100)
        own.append(summary.overall.metrics["roc_auc"].value)
        assert outcome.test[f"hospital:{site}:roc_auc"] == own[-1]
        records = load(plan, catalog.entry(site, "heart"))
        assert outcome.test[f"hospital:{site}:records"] == len(records.test)
    known = [value for value in own if value is not None]
    assert outcome.test["site-mean:roc_auc"] == pytest.approx(sum(known) / len(known))
    assert outcome.test["site-mean:roc_auc:sites"] == len(known)
    federated = next(one for key, one in found.outcomes.items() if key.method == "fedavg")
    assert isinstance(federated, Result)
    assert outcome.test["all:records"] == federated.test["all:records"]


def test_pooled_is_one_model_of_all_records(done: tuple[Path, Path, Findings]) -> None:
    _, out, _ = done
    folder = runs_of(out, "heart", "no_federation", "pooled", "fast")[0]
    outcome, record = read_outcome(folder), verify_run(folder)
    assert isinstance(outcome, Result)
    assert record.roster == ("pooled",)
    assert outcome.model_sha256 == {"pooled": record.rounds[-1].model_sha256}
    assert record.records["training"] == sum(
        len(load(record.plan, read_catalog(out / "data" / "heart").entry(site, "heart")).training)
        for site in read_catalog(out / "data" / "heart").site_names
    )


def test_the_table_is_of_the_chosen_configuration_on_test_data(done: tuple[Path, Path, Findings]) -> None:
    _, out, found = done
    table = rows((out / "results.csv").read_text(encoding="utf-8"))
    for board in found.boards:
        for line in board.lines:
            if line.configuration is None:
                continue
            mine = [
                float(one["test:all:roc_auc"]) for one in table
                if (one["method"], one["chosen"], one["status"]) == (line.method, "yes", "done")
                and one["protection"] in (board.protection, "no_federation")
            ]  # fmt: skip
            assert list(line.quality.values.values()) == mine
    assert [board.protection for board in found.boards] == ["masked", "none"]


# --------------------------------------------------------------------------------------------------------- going on


def test_what_is_done_is_not_done_again(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out = copied(done, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*") if path.is_file()}
    names = ("results.csv", "table.md", "report.html", "results.json")
    texts = {name: (out / name).read_bytes() for name in names}
    _, events = run(file, out)
    assert all(event.kept for event in events)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*") if path.is_file()} == before
    assert {name: (out / name).read_bytes() for name in names} == texts


def _cut(folder: Path) -> None:
    (folder / "evaluation.json").write_text('{"format": "fairfl', encoding="utf-8")


def _no_record(folder: Path) -> None:
    (folder / "record.json").unlink()


def _changed_record(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record["rounds"][0]["validation"][0]["auc"] = 0.999
    record["rounds"].pop()
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")


def _no_model(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def _half(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    (folder / "sites").mkdir()


def _other_start(folder: Path) -> None:
    data = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    data["initial_model_sha256"] = "0" * 64
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")


def _other_plan(folder: Path) -> None:
    other = folder.parents[1] / "s8" / folder.name
    data = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    data["model_sha256"] = json.loads((other / "evaluation.json").read_text(encoding="utf-8"))["model_sha256"]
    for file in (other / "record.json", *other.glob("*.safetensors")):
        shutil.copy(file, folder)
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")


def _unexpected(folder: Path) -> None:
    plan = read_plan(folder / "plan.json")
    (folder / "evaluation.json").unlink()
    failure = Failure(
        format="fairflare/study-failure/1", plan_sha256=plan.sha256, code="FF-STUDY-UNEXPECTED", text="", seconds=0.0
    )
    (folder / "failure.json").write_text(schema.pretty(failure), encoding="utf-8")


@pytest.mark.parametrize(
    "break_it",
    [_cut, _no_record, _changed_record, _no_model, _half, _other_start, _other_plan, _unexpected],
    ids=lambda one: one.__name__,
)
def test_a_broken_run_is_done_again(
    done: tuple[Path, Path, Findings], tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    file, out = copied(done, tmp_path)
    folder = runs_of(out, "heart", "none", "flexfair", "s1")[0]
    before = read_outcome(folder)
    assert perform(_job(file, out, folder)) == (before, True)
    break_it(folder)
    outcome, kept = perform(_job(file, out, folder))
    assert not kept
    assert isinstance(outcome, Result)
    assert isinstance(before, Result)
    assert outcome.model_copy(update={"seconds": before.seconds}) == before
    assert perform(_job(file, out, folder)) == (outcome, True)
    assert not (folder / "failure.json").exists()


def _job(file: Path, out: Path, folder: Path) -> Job:
    one = next(one for one in prepare(file).runs if out / "runs" / one.key.folder == folder)
    return Job(one, folder, read_catalog(out / "data" / "heart"), None)


def test_a_failure_of_ours_is_not_tried_again(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out = copied(done, tmp_path)
    folder = runs_of(out, "heart", "none", "diverges", "never")[0]
    outcome, kept = perform(_job(file, out, folder))
    assert kept
    assert isinstance(outcome, Failure)


def test_a_failure_that_nobody_expected_is_kept_without_its_text(
    done: tuple[Path, Path, Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairflare.study import work

    def fail(*_: object) -> None:
        raise OSError("/home/anna/mueller.csv")

    monkeypatch.setattr(work, "_data", fail)
    file, out = copied(done, tmp_path)
    folder = runs_of(out, "heart", "none", "fedavg", "fast")[0]
    shutil.rmtree(folder)
    outcome, _ = perform(_job(file, out, folder))
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.text) == ("FF-STUDY-UNEXPECTED", "OSError")


def test_numbers_other_than_the_runs_own_are_no_result(
    done: tuple[Path, Path, Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairflare.study import work

    read = work.read_model
    monkeypatch.setattr(work, "read_model", lambda *arguments: -read(*arguments))
    file, out = copied(done, tmp_path)
    folder = runs_of(out, "heart", "masked", "fedavg", "fast")[0]
    shutil.rmtree(folder)
    outcome, _ = perform(_job(file, out, folder))
    assert isinstance(outcome, Failure)
    assert outcome.code == "FF-STUDY-EVALUATION"


def test_additions_go_on_and_a_change_is_refused(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out = copied(done, tmp_path)
    data = json.loads(file.read_text(encoding="utf-8"))
    more = json.loads(json.dumps(data))
    more["seeds"].append(2)
    found, events = run(written(tmp_path, more), out)
    assert sum(not event.kept for event in events) == len(events) // 3
    assert {line.seeds for board in found.boards for line in board.lines} == {3}
    for changed in (
        data,
        {**more, "tasks": [{**STEPS, "selection": {**STEPS["selection"], "quality_loss_allowed": 1.0}}]},
    ):
        with pytest.raises(StudyError, match="FF-STUDY-CHANGED"):
            run(written(tmp_path, changed), out)


def test_a_plan_that_was_changed_on_disk_is_refused(tmp_path: Path) -> None:
    plan = json.loads(schema.pretty(presets.shipped("heart_fedavg")))
    written(tmp_path, plan, "plan.json")
    file = written(tmp_path, study(tasks=[task(plan="plan.json")], methods=[FEDAVG], seeds=[0]))
    run(file, tmp_path / "out")
    plan["training"]["optimizer"]["momentum"] = 0.5
    written(tmp_path, plan, "plan.json")
    with pytest.raises(StudyError, match="FF-STUDY-CHANGED"):
        run(file, tmp_path / "out")


def test_data_that_were_changed_are_refused(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out = copied(done, tmp_path)
    manifest = Path(read_catalog(out / "data" / "heart").entry("hospital-1", "heart").manifest)
    before = manifest.read_bytes()
    assert manifest.is_relative_to(out)
    manifest.write_bytes(before + before.splitlines()[-1].replace(b"hospital-1-0", b"hospital-1-9") + b"\n")
    shutil.rmtree(runs_of(out, "heart", "none", "fedavg")[0])
    with pytest.raises(StudyError, match="FF-STUDY-DATA"):
        run(file, out)
    assert len(runs_of(out, "heart", "none", "fedavg")) == 3  # nothing was run


def test_a_study_may_move_with_its_synthetic_hospitals(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out, _ = done
    shutil.copytree(out, tmp_path / "moved")
    _, events = run(file, tmp_path / "moved")
    assert all(event.kept for event in events)
    found = read_catalog(tmp_path / "moved" / "data" / "heart")
    assert Path(found.entry("hospital-1", "heart").manifest).is_relative_to(tmp_path / "moved")


def test_data_that_change_while_the_study_runs_are_refused(tmp_path: Path) -> None:
    plan = presets.shipped("heart_fedavg")
    catalog = write_hospitals(tmp_path / "data", plan, ("a", "b", "c", "d"), 60, seed=1)
    file = written(tmp_path, study(tasks=[task(catalog="data/data_catalog.json", records=None)], methods=[FEDAVG]))
    run(file, tmp_path / "out")
    # As if the runs had been done on other data than those that the study knows.
    known = tmp_path / "out" / "data.json"
    known.unlink()
    manifest = Path(catalog.entry("a", "heart").manifest)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StudyError, match="FF-STUDY-DATA"):
        run(file, tmp_path / "out")


def test_runs_of_another_version_are_refused(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, out = copied(done, tmp_path)
    result = runs_of(out, "heart", "none", "fedavg")[0] / "evaluation.json"
    data = json.loads(result.read_text(encoding="utf-8"))
    data["software"]["torch"] = "1.0"
    result.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(StudyError, match="FF-STUDY-SOFTWARE"):
        run(file, out)


def test_a_folder_of_something_else_or_in_use_is_left_alone(tmp_path: Path) -> None:
    file = written(tmp_path, study(methods=[FEDAVG], seeds=[0]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(StudyError, match="FF-STUDY-FOLDER"):
        run(file, tmp_path / "out")
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "busy").mkdir()
    with (tmp_path / "busy" / ".lock").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="FF-STUDY-BUSY"):
            run(file, tmp_path / "busy")
    assert [one.name for one in (tmp_path / "busy").iterdir()] == [".lock"]


def test_too_few_sites_are_refused_before_anything_runs(tmp_path: Path) -> None:
    write_hospitals(tmp_path / "data", presets.shipped("heart_fedavg"), ("a", "b"), 60, seed=1)
    file = written(tmp_path, study(tasks=[task(catalog="data", records=None)], methods=[FEDAVG]))
    with pytest.raises(StudyError, match="FF-STUDY-SITES"):
        run(file, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ what must not matter


def test_parallel_equals_serial(done: tuple[Path, Path, Findings], tmp_path: Path) -> None:
    file, _, _ = done
    run(file, tmp_path / "serial", workers=1)
    assert timeless((tmp_path / "serial" / "results.csv").read_text(encoding="utf-8")) == timeless(
        (done[1] / "results.csv").read_text(encoding="utf-8")
    )


def test_labels_of_test_data_change_no_choice(tmp_path: Path) -> None:
    plan = presets.shipped("heart_fedavg")
    catalog = write_hospitals(tmp_path / "data", plan, ("a", "b", "c", "d"), 100, seed=1)
    data = study(tasks=[task(catalog="data/data_catalog.json", records=None)], seeds=[0])
    file = written(tmp_path, data)
    first, _ = run(file, tmp_path / "one")
    for site in catalog.site_names:
        _turn(Path(catalog.entry(site, "heart").manifest))
    second, _ = run(file, tmp_path / "two")
    assert first.chosen == second.chosen
    one, two = (
        {key: (o.validation, o.model_sha256) for key, o in found.outcomes.items() if isinstance(o, Result)}
        for found in (first, second)
    )
    assert one == two
    tests = [
        {key: o.test["all:roc_auc"] for key, o in found.outcomes.items() if isinstance(o, Result)}
        for found in (first, second)
    ]
    assert all(tests[0][key] != tests[1][key] for key in tests[0])


def _turn(manifest: Path) -> None:
    """Turn the label of every test record."""
    with manifest.open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    for row in found:
        if row["split"] == "test":
            row["label"] = {"absent": "present", "present": "absent"}[row["label"]]
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]))
        writer.writeheader()
        writer.writerows(found)


def test_images_with_hospitals_as_groups(tmp_path: Path) -> None:
    changes = {"training.rounds": 1, "task.input.height": 16, "task.input.width": 16, "model.widths": [8, 8]}
    shapes = task(
        name="shapes", plan="shapes_fedavg", changes=changes, records=50,
        selection={"metric": "dice", "gaps": [], "quality_loss_allowed": None},
        report={"metric": "dice", "gaps": [{"attribute": "hospital", "criterion": "equal_accuracy_to_overall"},
                                           {"attribute": "sex_age", "criterion": "equal_accuracy"}]},
    )  # fmt: skip
    methods = [{**one, "configurations": one["configurations"][1:]} for one in (FEDAVG, baseline("local_only"))]
    found, _ = run(written(tmp_path, study(tasks=[shapes], methods=methods, seeds=[0])), tmp_path / "out")
    assert not found.failed
    for one in found.outcomes.values():
        assert isinstance(one, Result)
        sites = [f"hospital-{number}" for number in range(1, 5)]
        dice = [one.test[f"hospital:{site}:dice"] for site in sites]
        records = [one.test[f"hospital:{site}:records"] for site in sites]
        overall = sum(d * n for d, n in zip(dice, records, strict=True) if d is not None and n is not None)
        overall /= sum(n for n in records if n is not None)
        assert one.test["all:dice"] == pytest.approx(overall)
        farthest = max(abs(d - overall) for d in dice if d is not None)
        assert one.test["hospital:dice_gap_to_overall"] == pytest.approx(farthest)


def test_a_study_is_selected_by_its_rule(done: tuple[Path, Path, Findings]) -> None:
    _, out, found = done
    table = rows((out / "results.csv").read_text(encoding="utf-8"))
    name = f"validation:sex:{SEX['criterion']}_difference"
    for method in ("fedavg", "flexfair"):
        means: dict[str, list[tuple[float, float]]] = {}
        for one in table:
            if (one["method"], one["protection"]) == (method, "none"):
                pair = float(one["validation:all:roc_auc"]), float(one[name])
                means.setdefault(one["configuration"], []).append(pair)
        average = {label: [sum(part) / 2 for part in zip(*some, strict=True)] for label, some in means.items()}
        best = max(quality for quality, _ in average.values())
        able = {label: gap for label, (quality, gap) in average.items() if quality >= best - 0.02 - 1e-12}
        assert found.chosen["heart", "none", method] == min(able, key=lambda label: able[label])
