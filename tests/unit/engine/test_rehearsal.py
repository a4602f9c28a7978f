# SPDX-License-Identifier: Apache-2.0
"""A rehearsal does the job's own work, tells what the job would send, and spends nothing."""

from __future__ import annotations

import json
import stat
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from fairflare import presets, schema
from fairflare.data.manifest import SiteData, load
from fairflare.data.synthetic import write_hospitals
from fairflare.engine import rehearsal, rehearsal_process, rehearsal_work
from fairflare.engine.local import run_local
from fairflare.engine.masked_site import MaskedSite
from fairflare.engine.messages import layout_of
from fairflare.engine.rehearsal import Question, rehearse, told
from fairflare.engine.rehearsal_cells import cells_of, missing_of
from fairflare.engine.rehearsal_process import answered, run_apart
from fairflare.engine.rehearsal_work import QUICK_STEPS, Request, peak_bytes, rehearse_work
from fairflare.engine.rounds import steps_of
from fairflare.engine.site import Site
from fairflare.errors import SecaggError
from fairflare.evaluation.rehearsal import Found, HeldCell, Work
from fairflare.fairness.groups import EVERYBODY, HOSPITAL, CellSums, EvaluationSums, unpack
from fairflare.models import build, named_arrays, parameter_count, to_vector
from fairflare.models.weights import write_weights
from fairflare.plan import Plan, parse_plan
from fairflare.policy import DataCatalog, open_policy, standard_policy
from fairflare.privacy.reveals import RevealMemory
from tests.unit.cli.own import heart, shapes, three_labels
from tests.unit.engine.hospitals import (
    four,
    image_plan,
    masked,
    of_several_labels,
    plan,
    several_labels,
    three_of_images,
)
from tests.unit.engine.test_part import part_of

FAIR: dict[str, Any] = presets.flexfair(
    presets.penalty("sex", "equalized_odds", 1.0), presets.penalty(HOSPITAL, "equal_accuracy", 1.0)
)
ODDS = presets.flexfair(presets.penalty("sex_age", "equalized_odds", 1.0))
DICE = presets.flexfair(presets.penalty("sex_age", "equal_accuracy", 1.0, utility="dice_loss"))
COUNTS = {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8}


def quiet(*_: object) -> None:
    """Nobody watches."""


# ---------------------------------------------------------------------------------------------------- what is held back


class Spy:
    """What each site of a run gave to its masks, before they were on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vectors: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        true = MaskedSite.protect

        def protect(site: MaskedSite, specs: Any, vectors: Any) -> Any:
            self.vectors[site.name].update({label: vectors[label].values for label in specs})
            return true(site, specs, vectors)

        monkeypatch.setattr(MaskedSite, "protect", protect)


def zeros_sent(of: Plan, data: SiteData, sent: dict[str, np.ndarray]) -> set[tuple[str, str, str, str]]:
    """Places with records of which a site sent zeros, found without the code of the rehearsal."""
    layout = layout_of(of, parameter_count(build(of)))
    found = set()
    measures = layout.method.measures()
    for measure, sums in unpack(measures, sent.get("risk_sums", np.zeros(0)), layout.sizes).items():
        training = data.training
        chosen = np.ones(len(training), bool) if measure.label < 0 else training.labels == measure.label
        label = "" if measure.label < 0 else of.task.labels[measure.label]
        if isinstance(sums, CellSums):
            everybody = measure.attribute == EVERYBODY
            groups = np.zeros(len(training)) if everybody else training.groups[measure.attribute]
            for k, word in enumerate([EVERYBODY] if everybody else of.groups[measure.attribute]):
                if (groups[chosen] == k).any() and sums.count[k] == 0:
                    found.add(("training", measure.attribute, word, label))
        elif chosen.any() and sums.sites == 0:
            found.add(("training", HOSPITAL, HOSPITAL, label))
    for split in ("validation", "test"):
        records = getattr(data, split)
        sums = EvaluationSums.from_vector(sent[f"{split}_sums"], of.sizes, of.evaluation.score_bins, of.task.strata)
        for name, table in sums.cells.items():
            for k, word in enumerate(of.groups.get(name, (EVERYBODY,))):
                here = np.ones(len(records), bool) if name == EVERYBODY else records.groups[name] == k
                if of.task.strata == 2 and of.task.kind == "classification":
                    for at, label in enumerate(of.task.labels):
                        if (here & (records.labels == at)).any() and not table[k, at].any():
                            found.add((split, name, word, label))
                elif here.any() and not table[k].any():
                    found.add((split, name, word, ""))
    return found


def place(one: HeldCell) -> tuple[str, str, str, str]:
    return one.split, one.attribute, one.group, one.label


EVERYBODYS = presets.method("fairfed", gap="one_vs_overall", **presets.SITE_BOUNDS)
PLANS = {
    "everybody's decisions": (lambda minimum: plan(EVERYBODYS, minimum=minimum, rounds=1, min_sites=4), four),
    "numbers of records": (
        lambda minimum: plan(presets.method("reweighting", balance="independence"), minimum=minimum, rounds=1),
        four,
    ),
    "two labels": (lambda minimum: plan(FAIR, minimum=minimum, rounds=1, min_sites=4), four),
    "several labels": (
        lambda minimum: several_labels(3, ODDS, minimum=minimum, rounds=1, min_sites=4),
        lambda: of_several_labels(3),
    ),
    "images": (lambda minimum: image_plan(DICE, maps=2, minimum=minimum, rounds=1), lambda: three_of_images(2)),
}


def consented(of: Plan) -> Plan:
    consents = ["open_hospital_risks", "second_sum_of_updates"]
    return parse_plan(json.dumps({**json.loads(schema.pretty(of)), "consents": consents}))


@pytest.mark.parametrize("minimum", [0, 3, 6, 11])
@pytest.mark.parametrize("kind", PLANS)
def test_the_groups_held_back_are_those_of_which_a_masked_run_sends_zeros(
    kind: str, minimum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, loaders = PLANS[kind]
    of = masked(consented(make(minimum)))
    spy = Spy(monkeypatch)
    record = run_local(of, loaders(), tmp_path)
    assert record.status == "complete", record.reason
    seen = 0
    for site, loader in loaders().items():
        held, kept = cells_of(of, loader())
        assert {place(one) for one in held} == zeros_sent(of, loader(), spy.vectors[site])
        assert not {place(one) for one in held} & {place(one) for one in kept}
        assert all(one.records > 0 for one in (*held, *kept))
        assert all(not one.small for one in kept)
        seen += len(held)
    assert (seen > 0) == (minimum > 0)


def test_a_group_is_held_back_for_a_smaller_one() -> None:
    """Of 6 minimum records: without the larger group too, the small one would be everybody minus what is shown."""
    held = [one for load in four().values() for one in cells_of(masked(plan(FAIR, minimum=6)), load())[0]]
    assert {one.small for one in held} == {True, False}


def test_without_masks_only_small_groups_are_held_back() -> None:
    data = four()["coral"]()
    held, _ = cells_of(plan(FAIR, minimum=6), data)
    assert held
    assert all(one.small and one.records < 6 for one in held)


def test_counting_jobs_hold_back_what_they_would_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = masked(plan(COUNTS, minimum=6, min_sites=4))
    spy = Spy(monkeypatch)
    assert run_local(of, four(), tmp_path).status == "complete"
    for site, loader in four().items():
        held, kept = cells_of(of, loader())
        assert held
        assert sum(one.records for one in kept) == spy.vectors[site]["vocabulary"].sum()


def test_a_stricter_policy_adds_to_what_is_held_back_and_takes_nothing_from_the_plan() -> None:
    data, of = four()["coral"](), masked(plan(FAIR, minimum=3))
    alone, kept = cells_of(of, data)
    both, same = cells_of(of, data, 11)
    assert (both[: len(alone)], same) == (alone, kept)
    assert {one.by for one in both[len(alone) :]} == {"policy"}
    assert cells_of(of, data, 3) == (alone, kept)


def test_unknown_attributes_are_counted() -> None:
    data, of = four()["amber"](), plan(FAIR)
    found = {(one.split, one.attribute): one.records for one in missing_of(of, data)}
    assert found["training", "sex"] == (data.training.groups["sex"] == -1).sum() > 0
    assert ("training", "age") not in found


# ------------------------------------------------------------------------------------------------------------- the work


def request_of(folder: Path, of: Plan, records: int = 60, **changes: Any) -> Request:
    """One of three synthetic hospitals."""
    catalog = write_hospitals(folder / "data", of, ("amber", "beryl", "coral"), records, seed=3)
    given = {"weights": None, "sites": 3, "policy_minimum": 0, "quick": False, **changes}
    return Request(of, "amber", catalog.entry("amber", of.task.data_set), **given)


def hidden(of: Plan) -> Plan:
    data = json.loads(schema.pretty(of))
    data["federation"]["min_sites"], data["protection"] = 3, presets.MASKED
    return parse_plan(json.dumps(data))


def with_method(of: Plan, **changes: Any) -> Plan:
    data = json.loads(schema.pretty(of))
    data["method"].update(changes)
    return parse_plan(json.dumps(data))


FAIRFED = presets.method("fairfed", **presets.SITE_BOUNDS)
PRIVATE_FAIR = {
    "penalties": [presets.penalty("sex", "equal_accuracy", 1.0)], "refresh": "round", "remeasure_own": None,
    **presets.PRIVATE_BOUNDS,
}  # fmt: skip
GROUP_NOISE = {"noise_multiplier": 5.0, "groups_per_unit": 1, "shared": False}
FAIRFED_CONSENTS = ["pair_sums_of_three_hospitals", "second_sum_of_updates"]
PLAIN = {"optimizer": presets.sgd(0.1, momentum=0.0), "work": {"unit": "steps", "amount": 3}}
JOBS = {
    "round": hidden(heart()),
    "lagged": hidden(with_method(heart(), refresh="round_lagged")),
    "every 2": hidden(with_method(heart(rounds=5), refresh={"rounds": 2})),
    "measured anew": hidden(with_method(heart(), remeasure_own=1)),
    "three labels": hidden(three_labels()),
    "images with masks": hidden(shapes()),
    "scaffold": hidden(heart(method=presets.method("scaffold"), consents=[], **PLAIN)),
    "fednova": hidden(heart(method=presets.method("fednova"), consents=[], optimizer=presets.sgd(0.1, state="reset"))),
    "fairfed": hidden(heart(method=FAIRFED, consents=FAIRFED_CONSENTS)),
    "fairfed in clear": heart(method=FAIRFED, consents=FAIRFED_CONSENTS),
    "fairmixup": hidden(heart(method=presets.method("fairmixup"), consents=[])),
    "reweighting": hidden(heart(method=presets.method("reweighting"), consents=[])),
    "private": presets.private(hidden(heart(method=presets.FEDAVG, consents=[])), 1.0, 3),
    "private and fair": presets.private(hidden(with_method(heart(), **PRIVATE_FAIR)), 1.0, 3, GROUP_NOISE),
    "in clear": heart(),
    "lock step": with_method(heart(work={"unit": "steps", "amount": 3}), refresh="step"),
}
TASKS = {
    "fairfed": {"join": 1, "measure": 2, "compare": 2, "train": 2, "evaluate": 1},
    "fairfed in clear": {"join": 1, "measure": 2, "compare": 2, "train": 2, "evaluate": 1},
    "reweighting": {"join": 1, "measure": 1, "train": 1, "train_alone": 1, "evaluate": 1},
    "round": {"join": 1, "measure": 2, "train": 2, "evaluate": 1},
    "lagged": {"join": 1, "train_alone": 2, "evaluate": 1},
    "every 2": {"join": 1, "measure": 3, "train": 3, "train_alone": 2, "evaluate": 1},
    "lock step": {"join": 1, "measure": 2, "step": 6, "train": 2, "evaluate": 1},
}


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("job", JOBS)
def test_one_round_is_really_done(job: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, done = JOBS[job], []
    true = Site.handle
    monkeypatch.setattr(Site, "handle", lambda site, message: done.append(message.task) or true(site, message))
    stages: list[str] = []
    work = rehearse_work(request_of(tmp_path, of, quick=quick), lambda stage, *_: stages.append(stage))
    times = {one.task: one.times for one in work.times}
    assert times == TASKS.get(job, TASKS["round"])
    assert set(done) | {"train_alone"} == set(times) | {"train_alone"}
    assert all(one.seconds > 0 for one in work.times)
    assert {one.scaled for one in work.times if one.task not in ("join", "train_alone")} <= {quick}
    assert (work.masks is not None) == of.protection.masked
    assert 0 < work.start_bytes <= work.peak_bytes
    assert work.seconds(of.training.rounds) > max(one.seconds for one in work.times)
    assert {"loading records", "the final evaluation"} <= set(stages)


def test_a_plan_that_only_counts_is_counted(tmp_path: Path) -> None:
    data = {**json.loads(schema.pretty(heart())), "method": COUNTS, "consents": []}
    of = hidden(parse_plan(json.dumps(data)))
    work = rehearse_work(request_of(tmp_path, of, quick=True), quiet)
    assert [one.task for one in work.times] == ["join", "measure"]
    assert work.weight is None
    assert work.disk_bytes < 10_000


def test_training_is_the_jobs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FedAvg needs nothing from others, so the rehearsal's update is to the bit that of a run."""
    of = heart(rounds=1, method=presets.FEDAVG, consents=[])
    updates: list[np.ndarray] = []
    true = Site.handle

    def handle(site: Site, message: Any) -> Any:
        release = true(site, message)
        if message.task == "train" and site.name == "amber":
            updates.append(release.payloads["update"].values)
        return release

    monkeypatch.setattr(Site, "handle", handle)
    request = request_of(tmp_path, of)
    rehearse_work(request, quiet)
    run_local(of, {"amber": lambda: load(of, request.entry)}, tmp_path / "run")
    rehearsed, real = updates
    assert np.array_equal(rehearsed, real)
    assert np.abs(real).max() > 0


def test_quick_makes_a_few_steps_of_the_plans_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairflare.engine.training import Trainer

    sizes: list[int] = []
    true = Trainer.step
    monkeypatch.setattr(
        Trainer,
        "step",
        lambda trainer, r, n, index, terms: sizes.append(index.size) or true(trainer, r, n, index, terms),
    )
    of = heart(work={"unit": "epochs", "amount": 3}, batch={"unit": "records", "amount": 4})
    work = rehearse_work(request_of(tmp_path, of, quick=True), quiet)
    assert sizes == [4] * QUICK_STEPS
    assert steps_of(of, work.records["training"]) == 3 * -(-work.records["training"] // 4)
    sizes.clear()
    few = heart(work={"unit": "steps", "amount": 2}, batch={"unit": "batches_per_epoch", "amount": 4})
    work = rehearse_work(request_of(tmp_path / "few", few, quick=True), quiet)
    assert sizes == [-(-work.records["training"] // 4)] * 2


def test_what_is_left_on_the_disk_is_what_a_run_leaves_but_for_its_record(tmp_path: Path) -> None:
    of = hidden(heart(rounds=4))
    request = request_of(tmp_path, of)
    said = rehearse_work(request, quiet).disk_bytes
    catalog = dict.fromkeys(("amber", "beryl", "coral"), request.entry)
    loaders = {name: (lambda entry=entry: load(of, entry)) for name, entry in catalog.items()}
    assert run_local(of, loaders, tmp_path / "run").status == "complete"
    left = {
        file.name: file.stat().st_size for file in (tmp_path / "run" / "sites" / "amber").rglob("*") if file.is_file()
    }
    models = left["final.safetensors"] + left["best.safetensors"]
    assert models < said < 1.2 * (models + left["releases.jsonl"])


def test_records_and_weight_are_told(tmp_path: Path) -> None:
    of = hidden(heart(cells={"minimum": 2, "sites": 2}))
    request = request_of(tmp_path, of)
    work, data = rehearse_work(request, quiet), load(of, request.entry)
    assert work.records == {"training": len(data.training), "validation": len(data.validation), "test": len(data.test)}
    assert work.weight == 10 * round(len(data.training) / 10)
    held, kept = cells_of(of, data)
    assert list(work.held) == held
    assert work.smallest is not None
    assert work.smallest.records == min(one.records for one in kept if one.attribute != EVERYBODY)


def test_a_plan_that_starts_from_a_weight_file(tmp_path: Path) -> None:
    of = heart()
    network = build(of)
    folder = tmp_path / "weights"
    folder.mkdir()
    tensors = named_arrays(network, to_vector(network))
    digest = write_weights(folder / "any.safetensors", tensors, {})
    (folder / "any.safetensors").rename(folder / f"{digest}.safetensors")
    data = json.loads(schema.pretty(of))
    data["start"] = {"kind": "file", "sha256": digest, "tensors": "all"}
    started = parse_plan(json.dumps(data))
    rehearse_work(request_of(tmp_path, started, weights=folder), quiet)
    found = rehearse_work(request_of(tmp_path, part_of(started, "head"), weights=folder), quiet)
    assert found.disk_bytes > 2 * sum(array.nbytes for array in tensors.values())  # files have the frozen part, too
    out = StringIO()
    answered(rehearsal_process._encoded(request_of(tmp_path, started, weights=tmp_path / "none"), ()), out)
    assert json.loads(out.getvalue().splitlines()[-1])["error"]["code"] == "FF-WEIGHTS-MISSING"


# ---------------------------------------------------------------------------------------------------------- the process


def test_the_process_does_the_same_work_in_its_own_memory(tmp_path: Path) -> None:
    request = request_of(tmp_path, hidden(heart(cells={"minimum": 2, "sites": 1})))
    own = np.ones(400_000_000 // 8)  # of this process: it must not count
    seen: list[tuple[str, int, int]] = []
    found = run_apart(request, (), lambda *at: seen.append(at))
    assert isinstance(found, Work), found
    same = rehearse_work(request, quiet)
    assert (found.held, found.records, found.reported) == (same.held, same.records, same.reported)
    assert found.peak_bytes < peak_bytes()
    assert own[0] == 1
    assert {"loading records", "one round of training", "masks"} <= {stage for stage, _, _ in seen}


def test_modules_of_a_job_count_as_memory(tmp_path: Path) -> None:
    request = request_of(tmp_path, heart())
    found = run_apart(request, ("json", "no.such.module"), quiet)
    assert isinstance(found, Found)
    assert (found.code, "ModuleNotFoundError" in found.text) == ("FF-SITE-INTERNAL", True)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import os; os.kill(os.getpid(), 9)", "FF-RUN-KILLED"),
        ("raise SystemExit(3)", "FF-RUN-REHEARSAL"),
        ('import os; os.write(1, b\'{"work": {"times"\'); os.kill(os.getpid(), 9)', "FF-RUN-KILLED"),
        ("import os, tempfile; tempfile.mkdtemp(); os.kill(os.getpid(), 9)", "FF-RUN-KILLED"),
    ],
)
def test_a_process_that_dies_is_a_finding(
    script: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(rehearsal_process.sys, "executable", str(program))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    found = run_apart(request_of(tmp_path, heart()), (), quiet)
    assert isinstance(found, Found)
    assert found.code == code
    assert list(here.iterdir()) == []


def test_an_error_of_unknown_text_does_not_reach_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(*_: object) -> Work:
        raise ValueError("/srv/Anna Mueller.png")

    monkeypatch.setattr(rehearsal_process, "rehearse_work", broken)
    request = request_of(tmp_path, heart())
    out = StringIO()
    answered(rehearsal_process._encoded(request, ()), out)
    assert "Mueller" not in out.getvalue()
    assert json.loads(out.getvalue())["error"]["code"] == "FF-SITE-INTERNAL"
    assert "Mueller" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- everything


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work in this process: starting another one takes seconds, and is tested above."""

    def run(request: Request, modules: Sequence[str], watch: Any) -> Work | Found:
        out = StringIO()
        answered(rehearsal_process._encoded(request, modules), out)
        said = json.loads(out.getvalue().splitlines()[-1])
        return TypeAdapter(Work).validate_python(said["work"]) if "work" in said else Found(**said["error"])

    monkeypatch.setattr(rehearsal, "run_apart", run)


def question(folder: Path, of: Plan, catalog: DataCatalog | None = None, **changes: Any) -> Question:
    made = catalog or write_hospitals(folder / "data", of, ("amber", "beryl", "coral"), 60, seed=3)
    given = {
        "plan": of, "summary": (), "site": "amber", "entry": made.entry("amber", of.task.data_set), "weights": None,
        "policy": None, "approved": frozenset(), "workspace": None, "sites": 3, "quick": True, **changes,
    }  # fmt: skip
    return Question(**given)


def within(of: Plan, store: Path, **changes: Any) -> Any:
    """A policy for patients' data that allows ``of`` but for its approval."""
    least = {"cells_minimum": 0, "cells_sites": 1, "plans": ()}
    return standard_policy(store).model_copy(update={**least, **changes})


def test_a_rehearsal_spends_no_question_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, store = hidden(heart()), tmp_path / "store"
    terms = within(of, store)
    file = terms.memory_file("amber", of.task.data_set, tmp_path / "workspace")
    file.parent.mkdir(parents=True)
    RevealMemory(file)
    asked = question(tmp_path, of, policy=terms)
    before = contents(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(here))
    found = rehearse(asked, quiet)
    assert found.work is not None
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("inside")
def test_a_plan_that_would_run(tmp_path: Path) -> None:
    of = hidden(heart())
    found = rehearse(question(tmp_path, of, policy=within(of, tmp_path / "store", plans=(of.sha256,))), quiet)
    assert found.refusals == ()
    assert found.policy is not None
    assert (found.policy.violations, found.policy.approval) == ((), "given")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("approved", "approval"), [(True, "given"), (False, "missing")])
def test_approvals_are_told_apart_from_what_the_plan_asks_for(approved: bool, approval: str, tmp_path: Path) -> None:
    of = hidden(heart())
    asked = question(
        tmp_path, of, policy=within(of, tmp_path / "s"), approved=frozenset({of.sha256} if approved else ())
    )
    found = rehearse(asked, quiet)
    assert found.policy is not None
    assert (found.policy.violations, found.policy.approval) == ((), approval)
    assert [one.code for one in found.refusals] == ([] if approved else ["FF-POLICY-REFUSED"])


@pytest.mark.usefixtures("inside")
def test_an_open_policy_asks_for_no_approval(tmp_path: Path) -> None:
    found = rehearse(question(tmp_path, heart(), policy=open_policy(tmp_path / "store")), quiet)
    assert found.policy is not None
    assert found.policy.approval == "not asked for"
    assert found.refusals == ()


@pytest.mark.usefixtures("inside")
def test_every_violation_is_told(tmp_path: Path) -> None:
    of = heart()
    terms = standard_policy(tmp_path / "store")
    found = rehearse(question(tmp_path, of, policy=terms), quiet)
    assert found.policy is not None
    assert {one.text for one in found.policy.violations} == {
        str(one) for one in terms.check(of) if one.field != "plans"
    }
    assert set(found.refusals) > set(found.policy.violations)
    assert found.work is not None  # what it would do is shown all the same
    assert any(one.by == "policy" for one in found.work.held)


@pytest.mark.usefixtures("inside")
def test_a_policy_that_has_expired_has_its_own_code(tmp_path: Path) -> None:
    of = hidden(heart())
    terms = within(of, tmp_path / "store", plans=(of.sha256,), expires="2020-01-01")
    assert [one.code for one in rehearse(question(tmp_path, of, policy=terms), quiet).refusals] == ["FF-POLICY-EXPIRED"]


@pytest.mark.usefixtures("inside")
def test_a_store_where_flare_would_erase_it_is_a_refusal(tmp_path: Path) -> None:
    of, kit = hidden(heart()), tmp_path / "kit"
    terms = within(of, kit / "store", plans=(of.sha256,))
    found = rehearse(question(tmp_path, of, policy=terms, workspace=kit), quiet)
    assert [one.code for one in found.refusals] == ["FF-POLICY-STORE"]
    assert not kit.exists()


@pytest.mark.usefixtures("inside")
def test_data_that_cannot_be_used_are_refused_before_any_work(tmp_path: Path) -> None:
    of = heart()
    catalog = write_hospitals(tmp_path / "data", of, ("amber",), 60, seed=3)
    manifest = Path(catalog.entry("amber", of.task.data_set).manifest)
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("training", "trainig"), encoding="utf-8")
    found = rehearse(question(tmp_path, of, catalog), quiet)
    assert (found.work, found.failure) == (None, None)
    assert found.refusals
    assert all(one.code.startswith("FF-DATA-") for one in found.refusals)
    assert found.leaving  # what would leave does not depend on data


@pytest.mark.usefixtures("inside")
def test_a_failure_in_the_work_is_a_refusal(tmp_path: Path) -> None:
    of = heart(batch={"unit": "batches_per_epoch", "amount": 5000})
    found = rehearse(question(tmp_path, of), quiet)
    assert (found.work, [one.code for one in found.refusals]) == (None, ["FF-DATA-FEW"])


@pytest.mark.usefixtures("inside")
def test_a_task_over_the_deadline_is_a_refusal_and_near_it_a_warning(tmp_path: Path) -> None:
    found = rehearse(question(tmp_path, heart()), quiet)
    assert found.work is not None
    slow = tuple(replace(one, seconds=2.0) for one in found.work.times)
    timed = replace(found, work=replace(found.work, times=slow))
    assert timed.refusals == ()
    late = replace(timed, plan=replace(found.plan, deadline=1.9))
    assert {one.code for one in late.refusals} == {"FF-ROUND-TIMEOUT"}
    assert len(late.refusals) == len(slow)
    near = replace(timed, plan=replace(found.plan, deadline=2.0))
    assert near.refusals == ()
    assert sum(one.code == "FF-ROUND-TIMEOUT" for one in near.warnings) == len(slow)


@pytest.mark.usefixtures("inside")
def test_masks_for_too_few_sites_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SecaggError) as caught:
        rehearse(question(tmp_path, hidden(heart()), sites=2), quiet)
    assert caught.value.code == "FF-SECAGG-SITES"


# ------------------------------------------------------------------------------------------------------------ sentences


def texts(of: Plan, work: Work | None = None) -> str:
    return "\n".join(line for part in asdict(told(of, 4, work)).values() for line in part)


def test_in_clear_is_said_in_clear() -> None:
    assert "IN CLEAR" in texts(heart())
    assert "IN CLEAR" not in texts(hidden(heart()))
    assert "before they are masked" in texts(hidden(heart()))
    assert "reconstruct" in texts(heart())
    counting = parse_plan(json.dumps({**json.loads(schema.pretty(heart())), "method": COUNTS, "consents": []}))
    assert "reconstruct" not in texts(counting)
    assert "nearly the same groups" in texts(hidden(counting))


def test_what_stays_is_named_by_what_it_is() -> None:
    assert "Rows of the table" in texts(heart())
    assert "Images and masks" in texts(shapes())
    assert "Images, names of files" in texts(presets.shipped("skin_fedavg"))


def test_groups_that_only_this_site_may_have_are_named(tmp_path: Path) -> None:
    one_site, two_sites = (hidden(heart(cells={"minimum": 2, "sites": sites})) for sites in (1, 2))
    work = rehearse_work(request_of(tmp_path, one_site), quiet)
    assert f"Ask the others about: {', '.join(work.reported)}" in texts(one_site, work)
    assert "Ask the others" not in texts(two_sites, work)
    assert f"weighs {work.weight}" in texts(one_site, work)
    mixed = replace(work, held=(held_cell(True), held_cell(False)))
    assert "between everybody and what is shown" in texts(one_site, mixed)
    assert "between everybody" not in texts(one_site, replace(work, held=(held_cell(True),)))


def held_cell(small: bool) -> HeldCell:
    return HeldCell("test", "sex", "male", "", 3, small, "plan")


def test_memory_is_read_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    true = peak_bytes()

    def absent(*_: object, **__: object) -> Iterator[str]:
        raise FileNotFoundError

    monkeypatch.setattr(rehearsal_work.Path, "read_text", absent)
    assert peak_bytes() == pytest.approx(true, rel=0.05)
