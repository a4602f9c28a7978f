# SPDX-License-Identifier: Apache-2.0
"""SCAFFOLD against numbers worked by hand, the paper's algorithm in fractions, and FLARE's helper; then dropouts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper
from torch import nn

from fairflare import presets
from fairflare.engine.training import Trainer
from fairflare.methods import Assignment, Scaffold, ScaffoldParameters, Work
from fairflare.methods.scaffold import CONTROLS, ScaffoldSite
from fairflare.models import build, initial_vector, load_vector, to_vector
from tests.unit.engine.hospitals import PLAIN_SGD, four, masked, plan
from tests.unit.methods.driving import (
    ABSENT,
    BATCH,
    BREAKS,
    LOST,
    Bowl,
    Run,
    bowl_plan,
    bowls,
    completed,
    drive,
    exact,
    failing,
    of_bowls,
    one_number,
    with_consent,
)

SCAFFOLD = {"name": "scaffold", "global_lr": 1.0, "correction": "gradient", "control_lr": None, "control_clip": 64.0}
AFTER = {**SCAFFOLD, "correction": "after_step"}
EQUAL = {"optimizer": {**PLAIN_SGD, "lr": 0.5}, "work": {"unit": "steps", "amount": 3}}
#: With these clips (16 and 64) a word has 26 and 24 fraction bits; four sites round it by less than one unit each.
STEP, CONTROL_STEP = 4 * 2.0**-26, 4 * 2.0**-24

# ------------------------------------------------------------------------------------------------------ worked by hand

# Two sites that weigh the same, f1 = (y - 4)^2 / 2 with one step and f2 = (y + 4)^2 / 2 with two, learning rate 1/2.
# Round 0: x = 0, c = c1 = c2 = 0.
#   Site 1: y = 0 - (0 - 4)/2 = 2.        dy =  2.  dc = -c - dy/(T lr) = -2/(1/2) = -4, so c1 = -4 = f1'(0).
#   Site 2: y = 0 - (0 + 4)/2 = -2, then -2 - (-2 + 4)/2 = -3.  dy = -3.  dc = 3/(2/2) = 3, so c2 = 3.
#   x = 0 + (2 - 3)/2 = -1/2.  c = 0 + (-4 + 3)/2 = -1/2.
# Round 1: x = -1/2, c - c1 = 7/2, c - c2 = -7/2.
#   Site 1: g = -9/2 + 7/2 = -1, y = 0.  dy = 1/2.  dc = 1/2 - (1/2)/(1/2) = -1/2, c1 = -9/2.
#   Site 2: g = 7/2 - 7/2 = 0 twice.     dy = 0.    dc = 1/2, c2 = 7/2.
#   x = -1/2 + (1/2)/2 = -1/4.  c = -1/2 + 0 = -1/2.
# Round 2: x = -1/4, c - c1 = 4, c - c2 = -4.
#   Site 1: g = -17/4 + 4 = -1/4, y = -1/8.  dy = 1/8.  dc = 1/2 - (1/8)/(1/2) = 1/4, c1 = -17/4.
#   Site 2: g = 15/4 - 4 = -1/4, y = -1/8; g = 31/8 - 4 = -1/8, y = -1/16.  dy = 3/16.  dc = 1/2 - 3/16 = 5/16.
#   x = -1/4 + (1/8 + 3/16)/2 = -3/32.  c = -1/2 + (1/4 + 5/16)/2 = -7/32.
SITES = {"amber": Bowl(1.0, 4.0, BATCH), "beryl": Bowl(1.0, -4.0, 2 * BATCH)}
MODELS = [0.0, -1 / 2, -1 / 4, -3 / 32]
SERVER = [0.0, -1 / 2, -1 / 2, -7 / 32]
OWN = {"amber": [0.0, -4.0, -9 / 2, -17 / 4], "beryl": [0.0, 3.0, 7 / 2, 61 / 16]}


def test_the_halves_do_what_was_worked_out_by_hand() -> None:
    method = Scaffold(ScaffoldParameters(**SCAFFOLD), {}, 1)
    server, halves = method.at_server(1), {name: method.at_site() for name in SITES}
    model = np.zeros(1, dtype=np.float32)
    for number in range(3):
        sums: dict[str, np.ndarray] = {"update": np.zeros(1), CONTROLS: np.zeros(1)}
        assert server.inputs()[CONTROLS].tolist() == [SERVER[number]]
        for name, bowl in SITES.items():
            correction = halves[name].begin(Assignment(number, server.inputs(), 0.5, 1))
            assert correction.shift.tolist() == [SERVER[number] - OWN[name][number]]
            y, steps = model.copy(), bowl.records // BATCH
            for _ in range(steps):
                y = (y - np.float32(0.5) * (bowl.a * (y - bowl.b) + correction.shift)).astype(np.float32)
            made = halves[name].finish(Work(y - model, steps, 0.5))
            halves[name].sent({label: part.astype(np.float64) for label, part in made.parts.items()})
            halves[name].settle(counted=True)
            assert halves[name].control.tolist() == [OWN[name][number + 1]]
            for label, part in made.parts.items():
                sums[label] += 0.5 * part
        model = server.step(model, sums, 1.0)
        assert model.tolist() == [MODELS[number + 1]]


@pytest.mark.parametrize("method", [SCAFFOLD, AFTER], ids=["gradient", "after_step"])
def test_the_engine_does_what_was_worked_out_by_hand(tmp_path, method) -> None:
    """Every number is a sum of few powers of two, so none is rounded anywhere."""
    the_plan = bowl_plan(method, 0.5, rounds=4, aggregation="uniform", min_sites=2)
    with bowls(0.0):
        run = completed(the_plan, tmp_path, of_bowls(SITES))
    assert [one_number(model) for model in run.models[:4]] == MODELS
    for begun in run.begun:
        assert one_number(begun.control) == OWN[begun.site][begun.round]
        assert one_number(begun.inputs[CONTROLS]) == SERVER[begun.round]


# ------------------------------------------------------------------------------------- the paper's algorithm, weighed

THREE = {"amber": Bowl(1.0, 4.0, BATCH), "beryl": Bowl(2.0, -4.0, 2 * BATCH), "coral": Bowl(0.5, 1.0, 3 * BATCH)}


def scaffold(sites: Mapping[str, Bowl], lr: Fraction, rounds: int, x: Fraction, server_lr: Fraction) -> list[Fraction]:
    """Algorithm 1 with option II, means weighed by records: the model after each round."""
    n = sum(one.records for one in sites.values())
    c, own, models = Fraction(0), dict.fromkeys(sites, Fraction(0)), [x]
    for _ in range(rounds):
        dx, dc = Fraction(0), Fraction(0)
        for name, one in sites.items():
            y, steps, p = x, one.records // BATCH, Fraction(one.records, n)
            for _ in range(steps):
                y -= lr * (exact(one.a) * (y - exact(one.b)) - own[name] + c)
            new = own[name] - c + (x - y) / (steps * lr)
            dx, dc = dx + p * (y - x), dc + p * (new - own[name])
            own[name] = new
        x, c = x + server_lr * dx, c + dc
        models.append(x)
    return models


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
@pytest.mark.parametrize("method", [SCAFFOLD, AFTER], ids=["gradient", "after_step"])
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_unequal_steps_and_weights_are_those_of_the_paper(tmp_path, method, server_lr, hidden) -> None:
    the_plan = bowl_plan({**method, "global_lr": server_lr}, 0.25, rounds=6)
    if hidden:
        the_plan = masked(with_consent(the_plan, "second_sum_of_updates"), colluders=0)
    with bowls(2.0):
        run = completed(the_plan, tmp_path, of_bowls(THREE))
    expected = scaffold(THREE, Fraction(1, 4), 6, Fraction(2), exact(server_lr))
    for found, model in zip(run.models, expected, strict=True):
        # Under masks parameters are rounded each for itself, by STEP at most; rounds add up, and so do controls.
        assert np.abs(found - float(model)).max() <= (1e-6 if not hidden else 20 * CONTROL_STEP)
    assert {int(run.updates[name, 0]["steps"]) for name in THREE} == {1, 2, 3}


def test_it_ends_at_the_optimum_and_fedavg_does_not(tmp_path) -> None:
    """The optimum of sum p a/2 (y - b)^2 is sum p a b / sum p a: with p = 1/6, 2/6, 3/6 it is -10.5/6.5."""
    best = (1 * 1 * 4 + 2 * 2 * -4 + 3 * 0.5 * 1) / (1 * 1 + 2 * 2 + 3 * 0.5)
    with bowls(2.0):
        ours = completed(bowl_plan(SCAFFOLD, 0.25, rounds=60), tmp_path / "ours", of_bowls(THREE))
        plain = completed(bowl_plan(presets.FEDAVG, 0.25, rounds=60), tmp_path / "plain", of_bowls(THREE))
    assert np.abs(ours.models[-1] - best).max() < 1e-5
    assert np.abs(plain.models[-1] - plain.models[-2]).max() < 1e-5
    assert np.abs(plain.models[-1] - best).min() > 0.1
    for begun in ours.begun[-3:]:  # each control is the site's own gradient there
        assert np.abs(begun.control - THREE[begun.site].a * (best - THREE[begun.site].b)).max() < 1e-4


# --------------------------------------------------------------------------------------------------------- FLARE's own


@pytest.mark.parametrize("method", [SCAFFOLD, AFTER], ids=["gradient", "after_step"])
def test_local_models_and_controls_are_those_of_flares_helper(tmp_path, method) -> None:
    """Plain SGD, equal steps, equal weights; tolerance: float32 noise of 4 rounds of 3 steps."""
    the_plan = plan(method, rounds=4, aggregation="uniform", **EQUAL)
    run = completed(the_plan, tmp_path)
    data = {name: load().training for name, load in four().items()}
    lr, x = the_plan.training.optimizer.lr, initial_vector(the_plan)
    networks = {name: build(the_plan) for name in data}
    helpers = {name: PTScaffoldHelper() for name in data}
    for name, helper in helpers.items():
        helper.init(networks[name])
    control = {key: torch.zeros_like(one) for key, one in networks["amber"].named_parameters()}
    batches = {name: Trainer(the_plan, name, records) for name, records in data.items()}
    for round_ in range(4):
        deltas, updates = [], []
        for name, helper in helpers.items():
            network = networks[name]
            load_vector(network, x)
            first = copy.deepcopy(network)
            helper.load_global_controls(control)
            known = helper.get_params()
            optimizer = torch.optim.SGD(network.parameters(), lr=lr)
            for index in batches[name].batches(round_):
                logits = network(torch.from_numpy(data[name].inputs[index]))
                loss = nn.functional.cross_entropy(logits, torch.from_numpy(data[name].labels[index]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                helper.model_update(network, lr, *known)
            helper.terms_update(network, lr, *known, first)
            deltas.append(helper.get_delta_controls())
            updates.append(to_vector(network) - x)
            ours = run.updates[name, round_]
            assert np.abs(ours["dy"] - updates[-1]).max() <= 1e-6
            flat = np.concatenate([deltas[-1][key].ravel() for key, _ in network.named_parameters()])
            assert np.abs(ours[CONTROLS] - flat).max() <= 2e-6
        x = (x + np.mean(updates, axis=0)).astype(np.float32)
        control = {
            key: one + torch.from_numpy(np.mean([delta[key] for delta in deltas], axis=0))
            for key, one in control.items()
        }
        assert np.abs(run.models[round_ + 1] - x).max() <= 1e-6
    assert max(float(one.abs().max()) for one in control.values()) > 1e-3


# ------------------------------------------------------------------------------------------------------------- limits


class Still(ScaffoldSite):
    """A site whose control stays zero."""

    def finish(self, work):
        made = super().finish(work)
        made.parts[CONTROLS][:] = 0
        return made


@pytest.mark.parametrize("method", [SCAFFOLD, AFTER], ids=["gradient", "after_step"])
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_with_controls_of_zero_it_is_fedavg_bit_by_bit(tmp_path, monkeypatch, method, hidden) -> None:
    def run(one, folder):
        the_plan = plan(one, rounds=4, **EQUAL)
        return completed(masked(the_plan) if hidden else the_plan, tmp_path / folder)

    plain, ours = run(presets.FEDAVG, "plain"), run(method, "ours")
    assert [a.tobytes() == b.tobytes() for a, b in zip(plain.models, ours.models, strict=True)] == [
        True, True, False, False, False,
    ]  # fmt: skip
    monkeypatch.setattr(Scaffold, "at_site", lambda own: Still(own.parameters))
    still = run(method, "still")
    assert still.record.final.model_sha256 == plain.record.final.model_sha256


def test_where_a_control_may_change_by_so_much_only_it_is_cut_off_with_masks_and_without(tmp_path) -> None:
    """The bound is a parameter of the method: what it does must not depend on the protection."""
    the_plan = plan({**SCAFFOLD, "control_clip": 2.0**-6}, rounds=3, **EQUAL)
    runs = [completed(one, tmp_path / str(at)) for at, one in enumerate((the_plan, masked(the_plan)))]
    for run in runs:
        largest = max(float(np.abs(parts[CONTROLS]).max()) for parts in run.sent.values())
        assert 2.0**-6 - 1e-6 < largest <= 2.0**-6 + 2.0**-27
    # Two rounds more, and clips that make small differences no larger.
    assert np.abs(runs[0].models[-1] - runs[1].models[-1]).max() <= 20 * STEP


def test_halves_that_were_not_asked_in_order() -> None:
    half = ScaffoldSite(ScaffoldParameters(**SCAFFOLD))
    with pytest.raises(RuntimeError, match="before begin"):
        half.finish(Work(np.zeros(2, dtype=np.float32), 1, 0.1))
    half.settle(counted=True)  # nothing was sent: nothing is taken over
    assert half.control is None
    half.begin(Assignment(0, {CONTROLS: np.zeros(2, dtype=np.float32)}, 1.0, 1))
    half.sent({CONTROLS: np.ones(2)})
    half.settle(counted=True)
    half.settle(counted=True)
    assert half.control.tolist() == [1.0, 1.0]
    half.sent({CONTROLS: np.ones(2)})
    half.settle(counted=False)
    half.settle(counted=True)
    assert half.control.tolist() == [1.0, 1.0]


def test_a_control_has_a_learning_rate_of_its_own_where_the_plan_says_so() -> None:
    half = ScaffoldSite(ScaffoldParameters(**{**SCAFFOLD, "control_lr": 0.25}))
    half.begin(Assignment(0, {CONTROLS: np.array([1.0], dtype=np.float32)}, 1.0, 1))
    made = half.finish(Work(np.array([2.0], dtype=np.float32), 4, 0.5))
    assert made.parts[CONTROLS].tolist() == [-1.0 - 2.0 / (4 * 0.25)]


# ----------------------------------------------------------------------------------------------------------- dropouts


@dataclass(frozen=True)
class Case:
    """What fails in round 1; whether beryl's update of that round is in a model; whether the round is lost."""

    faults: Mapping[tuple[str, int], Mapping[str, str]]
    counted: bool = False
    lost: bool = False


@pytest.fixture(scope="module")
def dropped(tmp_path_factory) -> Callable[[str, str], Run]:
    """A run with the faults of a case; each is made once."""
    done: dict[tuple[str, str], Run] = {}

    def get(protection: str, name: str) -> Run:
        if (protection, name) not in done:
            the_plan = plan(SCAFFOLD, rounds=5, max_missed=5, **EQUAL)
            the_plan = masked(the_plan) if protection == "masked" else the_plan
            folder = tmp_path_factory.mktemp("run")
            done[protection, name] = drive(the_plan, folder, None, failing(HIDDEN[name].faults))
        return done[protection, name]

    return get


def _one(task: str, fault: str, **said: bool) -> Case:
    return Case({(task, 1): {"beryl": fault}}, **said)


def _two(task: str, fault: str) -> Case:
    return Case({(task, 1): {"beryl": fault, "dune": fault}}, lost=True)


OPEN = {
    "measure": _one("measure", ABSENT),
    "measured, and lost": _one("measure", LOST),
    "never asked": _one("train", ABSENT),
    "trained, not sent": _one("train", BREAKS),
    "sent, not received": _one("train", LOST),
    "two rounds, then back": Case({("train", 1): {"beryl": LOST}, ("train", 2): {"beryl": BREAKS}}),
}
HIDDEN = {
    **OPEN,
    "uploaded, not confirmed": _one("confirm", ABSENT, counted=True),
    "confirmed, and lost": _one("confirm", LOST, counted=True),
    "counted, not unmasked": _one("unmask", ABSENT, counted=True),
    "counted, unmasked, and lost": _one("unmask", LOST, counted=True),
    "round lost in train": _two("train", LOST),
    "round lost in confirm": _two("confirm", ABSENT),
    "round lost in unmask": _two("unmask", LOST),
    "uploaded, then away for a round": Case(
        {("confirm", 1): {"beryl": LOST}, ("keys", 2): {"beryl": ABSENT}}, counted=True
    ),
}
CASES = [*(("none", name) for name in OPEN), *(("masked", name) for name in HIDDEN)]


def verify_controls(run: Run) -> None:
    """The server's c is the weighted mean of the sites' controls, which are the sums of their changes that counted."""
    sizes = {name: len(load().training) for name, load in four().items()}
    counted, total = run.counted, sum(sizes.values())
    shares = {name: size / total for name, size in sizes.items()}
    if run.record.plan.protection.masked:  # weights are whole parts of 2^30, and a control is what its words say
        shares = {name: (2**30 * size // total) / 2**30 for name, size in sizes.items()}

    def own(site: str, before: float) -> np.ndarray:
        """Changes of this site in the models before a round, added in their order."""
        result = np.zeros(run.models[0].size)
        for round_ in sorted(at for name, at in counted if name == site and at < before):
            result = result + run.sent[site, round_][CONTROLS]
        return result

    for begun in run.begun:
        assert np.array_equal(begun.control, own(begun.site, begun.round)), (begun.site, begun.round)
        mean = sum(share * own(name, begun.round) for name, share in shares.items())
        assert np.abs(begun.inputs[CONTROLS] - mean).max() <= 1e-8, begun.round  # float32 on the way
    mean = sum(share * own(name, np.inf) for name, share in shares.items())
    assert np.abs(run.coordinator._half.control - mean).max() <= 1e-11  # without masks words have steps of 2^-40
    assert np.abs(mean).max() > 1e-3


@pytest.mark.parametrize(("protection", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_controls_stay_the_mean_of_the_sites_controls_whoever_drops_out(dropped, protection, name) -> None:
    case, run = HIDDEN[name], dropped(protection, name)
    assert run.record.status == "complete", run.record.reason
    assert [lost.round for lost in run.record.lost_rounds] == ([1] if case.lost else [])
    assert (("beryl", 1) in run.counted) == case.counted
    if case.lost:
        assert not [at for _, at in run.counted if at == 1]
        assert [at for _, at in run.sent if at == 1]  # controls were sent, and must not be taken over
    verify_controls(run)


@pytest.mark.parametrize(("protection", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_site_is_back_once_it_does_not_fail(dropped, protection, name) -> None:
    assert {("beryl", 3), ("beryl", 4)} <= dropped(protection, name).counted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hidden", [False, True], ids=["none", "masked"])
def test_controls_after_many_faults(tmp_path, seed, hidden) -> None:
    """Up to two sites fail somewhere in each round but the last one."""
    random = np.random.default_rng(seed)
    tasks = ("measure", "train", "confirm", "unmask", "keys") if hidden else ("measure", "train")
    faults: dict[tuple[str, int], dict[str, str]] = {}
    for round_ in range(9):
        for site in random.choice(list(four()), size=random.integers(0, 3 if hidden else 2), replace=False):
            task = str(random.choice(tasks))
            faults.setdefault((task, round_), {})[str(site)] = str(random.choice([ABSENT, LOST]))
    the_plan = plan(SCAFFOLD, rounds=10, max_missed=20, **EQUAL)
    run = drive(masked(the_plan) if hidden else the_plan, tmp_path, None, failing(faults))
    assert run.record.status == "complete", run.record.reason
    assert len(run.counted) < 40
    verify_controls(run)


def sequence_of(run: Run, label: str) -> Sequence[float]:
    return [float(np.abs(begun.inputs[label]).max()) for begun in run.begun]


def test_a_new_session_begins_with_controls_of_zero(tmp_path) -> None:
    """The same sites join once more: nothing of the first session is left, at the server or at a site."""
    the_plan = plan(SCAFFOLD, rounds=2, **EQUAL)
    first = completed(the_plan, tmp_path / "a")
    second = completed(
        the_plan, tmp_path / "b", {name: lambda site=site: site._load() for name, site in first.sites.items()}
    )
    assert sequence_of(first, CONTROLS) == sequence_of(second, CONTROLS)
    assert first.record.final.model_sha256 == second.record.final.model_sha256
