# SPDX-License-Identifier: Apache-2.0
"""Whole runs in one process against references written from scratch with bare PyTorch."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from fairflare import presets, schema
from fairflare.engine.local import answer, run_local
from fairflare.engine.server import Coordinator, Start
from fairflare.engine.site import Site
from fairflare.engine.store import read_model
from fairflare.engine.training import Trainer
from fairflare.fairness.groups import unpack
from fairflare.models import build, initial_vector, load_vector, to_vector
from tests.unit.engine.hospitals import ADAMW, PLAIN_SGD, SGD, changed, four, hospital, plan
from tests.unit.engine.reference import reference

FAIR = presets.penalty("sex", "equalized_odds", 2.0)
TOLERANCE = 1e-6


def final_model(folder, record):
    assert record.status == "complete", record.reason
    return read_model(folder, record.plan, record.final.model_sha256)


def step_plan(**changes):
    method = presets.flexfair(FAIR, presets.penalty("age", "demographic_parity", 1.0), preset="official")
    method = {**method, **{key: changes.pop(key) for key in ("scaling",) if key in changes}}
    data = json.loads(schema.pretty(presets.heart("test", presets.FEDAVG)))
    data["method"], data["protection"] = method, presets.UNPROTECTED
    data["training"]["work"] = {"unit": "steps", "amount": 3}
    data["cells"]["minimum"] = 0
    return changed(data, **{"rounds": 2, **changes})


@pytest.mark.parametrize("scaling", ["official", "joint"])
@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_lock_step_is_the_joint_training_of_the_authors(tmp_path, scaling, optimizer):
    """Refresh 'step' over 2 rounds of 3 steps: parameters within 1e-6 of one process with one backward pass."""
    the_plan = step_plan(scaling=scaling, optimizer=optimizer)
    record = run_local(the_plan, four(), tmp_path)
    found, expected = final_model(tmp_path, record), reference(the_plan, four())
    assert np.abs(expected - initial_vector(the_plan)).max() > 1e-3
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_one_site_is_centralized_training(tmp_path, optimizer):
    the_plan = plan(presets.FEDAVG, rounds=3, optimizer=optimizer, min_sites=1)
    data = hospital(50, 1)
    found = final_model(tmp_path, run_local(the_plan, {"alone": lambda: data}, tmp_path))
    model = build(the_plan)
    load_vector(model, initial_vector(the_plan))
    kind = torch.optim.SGD if optimizer is SGD else torch.optim.AdamW
    names = ("lr", "momentum", "weight_decay") if optimizer is SGD else ("lr", "weight_decay")
    bare = kind(model.parameters(), **{name: optimizer[name] for name in names})
    batches = Trainer(the_plan, "alone", data.training)
    for round_ in range(3):
        for index in batches.batches(round_):
            logits = model(torch.from_numpy(data.training.inputs[index]))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.training.labels[index]))
            bare.zero_grad()
            loss.backward()
            bare.step()
    assert np.abs(found - to_vector(model)).max() <= TOLERANCE


def test_one_full_batch_step_at_each_site_is_one_gradient_step_on_all_records(tmp_path):
    the_plan = plan(
        presets.FEDAVG, rounds=1, optimizer=PLAIN_SGD, work={"unit": "steps", "amount": 1},
        batch={"unit": "records", "amount": 1000},
    )  # fmt: skip
    found = final_model(tmp_path, run_local(the_plan, four(), tmp_path))
    sites = [load() for load in four().values()]
    inputs = torch.from_numpy(np.concatenate([site.training.inputs for site in sites]))
    labels = torch.from_numpy(np.concatenate([site.training.labels for site in sites]))
    model = build(the_plan)
    load_vector(model, initial_vector(the_plan))
    nn.functional.cross_entropy(model(inputs), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    assert np.abs(found - to_vector(model)).max() <= TOLERANCE


@pytest.mark.parametrize("refresh", ["round", "step"])
def test_flexfair_of_strength_zero_is_fedavg_bit_by_bit(tmp_path, refresh):
    method = presets.flexfair(
        {**FAIR, "strength": 0.0}, presets.penalty("hospital", "equal_accuracy", 0.0), refresh=refresh
    )
    changes = {"rounds": 3, "work": {"unit": "steps", "amount": 4}, "minimum": 0}
    fair = run_local(plan(method, **changes), four(), tmp_path / "fair")
    plain = run_local(plan(presets.FEDAVG, **changes), four(), tmp_path / "plain")
    assert fair.final.model_sha256 == plain.final.model_sha256
    other = run_local(plan(presets.flexfair(FAIR, refresh=refresh), **changes), four(), tmp_path / "other")
    assert other.final.model_sha256 != plain.final.model_sha256


def test_every_order_of_arrival_gives_the_same_hash_and_so_does_a_second_run(tmp_path):
    the_plan = plan(presets.flexfair(FAIR, presets.penalty("hospital", "equal_accuracy", 1.0)), rounds=1)
    orders = [*itertools.permutations(four()), tuple(four())]
    hashes = {
        run_local(the_plan, four(), tmp_path / str(number), order=lambda _, __, order=order: order).final.model_sha256
        for number, order in enumerate(orders)
    }
    assert len(orders) == 25
    assert len(hashes) == 1


def test_statistics_and_records_too_do_not_depend_on_the_order_of_arrival(tmp_path):
    the_plan = plan(presets.flexfair(FAIR), rounds=2)
    records = [
        run_local(the_plan, four(), tmp_path / str(number), order=lambda _, sites, turn=turn: sites[::turn])
        for number, turn in enumerate((1, -1))
    ]
    lines = [[(line.penalties, line.validation, line.train_loss) for line in record.rounds] for record in records]
    assert lines[0] == lines[1]
    assert records[0].final == records[1].final


class Unreliable:
    """A site that fails at one task of one round, and otherwise does its work."""

    def __init__(self, site, task, round_, step=0):
        self.site, self.when = site, (task, round_, step)
        self.name, self.folder = site.name, site.folder

    def handle(self, message):
        if (message.task, message.round, message.step) == self.when:
            raise ValueError("a text that must not leave: patient 4711")
        return self.site.handle(message)


def run_with_a_failure(the_plan, folder, name, task, round_, step=0):
    sites = {key: Site(key, the_plan, load, folder / key) for key, load in four().items()}
    sites[name] = Unreliable(sites[name], task, round_, step)
    coordinator = Coordinator(the_plan, folder, Start("s", "local", {}))
    for phase in coordinator.phases(sorted(sites)):
        for key in phase.targets:
            answer(sites[key], phase)
    return coordinator.record


@pytest.mark.parametrize("aggregation", ["records", "uniform"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_lock_step_goes_on_exactly_after_a_site_is_lost(tmp_path, aggregation, step):
    """Totals, records and sites are those of the sites that are left: penalty and weights belong together."""
    the_plan = step_plan(rounds=1, aggregation=aggregation, scaling="joint")
    record = run_with_a_failure(the_plan, tmp_path / "lost", "dune", "step", 0, step)
    found = final_model(tmp_path / "lost", record)
    assert [(r.site, r.code) for r in record.rounds[0].refusals] == [("dune", "FF-SITE-INTERNAL")]
    if step == 0:
        three = {name: load for name, load in four().items() if name != "dune"}
        expected = final_model(tmp_path / "three", run_local(the_plan, three, tmp_path / "three"))
        assert np.abs(found - expected).max() <= TOLERANCE


def test_a_failure_in_one_round_is_named_and_the_site_comes_back_in_the_next(tmp_path):
    the_plan = plan(presets.flexfair(FAIR), rounds=3)
    record = run_with_a_failure(the_plan, tmp_path, "coral", "train", 1)
    assert record.status == "complete"
    assert ["coral" in line.participants["train"] for line in record.rounds] == [True, False, True]
    assert [len(line.refusals) for line in record.rounds] == [0, 1, 0]
    assert "patient 4711" not in (tmp_path / "record.json").read_text(encoding="utf-8")
    errors = tmp_path / "coral" / "errors.log"
    assert "patient 4711" in errors.read_text(encoding="utf-8")
    assert errors.stat().st_mode & 0o077 == 0


def test_groups_that_too_few_sites_report_are_not_sent_to_the_sites(tmp_path):
    the_plan = plan(presets.flexfair(FAIR), rounds=1, sites=4)
    sites = {key: Site(key, the_plan, load, tmp_path / key) for key, load in four().items()}
    lonely = sites["amber"]._load()
    for split in (lonely.training, lonely.validation, lonely.test):
        split.groups["sex"][:] = 0
    sites["amber"]._load = lambda: lonely
    seen = []
    for phase in Coordinator(the_plan, tmp_path, Start("s", "local", {})).phases(sorted(sites)):
        if phase.message.task == "train":
            seen.append(unpack(sites["amber"].layout.method.measures(), phase.message.vectors["totals"], {"sex": 2}))
        for key in phase.targets:
            answer(sites[key], phase)
    for sums in seen[0].values():
        assert sums.sites.tolist() == [4.0, 0.0]
        assert sums.count[1] == sums.total[1] == 0


def test_uniform_sites_are_weighed_alike_and_the_record_still_counts_records(tmp_path):
    record = run_local(plan(presets.flexfair(FAIR), rounds=1, aggregation="uniform"), four(), tmp_path)
    assert record.rounds[0].records == 180
    assert record.rounds[0].weighed == 180


def test_a_bug_at_one_site_is_a_refusal_not_the_end_of_the_run(tmp_path):
    loaders = four()
    loaders["beryl"] = lambda: (_ for _ in ()).throw(KeyError("patient 4711"))
    record = run_local(plan(presets.FEDAVG, rounds=1), loaders, tmp_path)
    assert record.status == "complete"
    assert [(r.site, r.code) for r in record.join_refusals] == [("beryl", "FF-SITE-INTERNAL")]
