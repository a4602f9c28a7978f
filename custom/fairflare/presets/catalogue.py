# SPDX-License-Identifier: Apache-2.0
"""The shipped jobs, and everything else that a new plan can start from, each with a line that says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from fairflare.plan import Plan
from fairflare.presets.methods import BOUNDS, FEDAVG, SITE_BOUNDS, Json, Name, flexfair, method, penalty
from fairflare.presets.private import heart_private, skin_private
from fairflare.presets.tasks import UNPROTECTED, feasibility, fundus, heart, plan_of, sgd, shapes, skin

Maker = Callable[[str], Plan]

_TASKS: Mapping[str, Callable[..., Plan]] = {"fundus": fundus, "heart": heart, "skin": skin}
_SAID: Mapping[str, str] = {
    "fundus": "retinal vessels, 3 hospitals", "heart": "heart disease from a table, 4 hospitals",
    "skin": "skin lesions, 4 hospitals", "shapes": "shapes in synthetic images",
}  # fmt: skip
#: What differs from the method's preset, by task: whom FairFed and the others compare, and bounds.
_OF_TASK: Mapping[str, Mapping[str, Json]] = {
    "fundus": {"fedprox": {"mu": 0.01}, "fairfed": {"attribute": "hospital", "criterion": "equal_accuracy"}},
    "heart": {},
    "skin": {
        "fedprox": {"mu": 0.01}, "fairfed": {"attribute": "age"}, "fairmixup": {"attribute": "age"},
        "reweighting": {"attribute": "age", "balance": "independence"},
    },
}  # fmt: skip
#: Local work that a method needs, by task. SCAFFOLD: plain steps, as many at every site; FedNova: momentum that begins
#: anew in each round, or none where sites differ tenfold: the first steps of momentum are short, which FedNova makes up
#: for, and so the few steps of the smallest source of skin images would outweigh all others. AdamW is for neither.
_TRAINING: Mapping[str, Mapping[str, Json]] = {
    "fundus": {
        "scaffold": {"optimizer": sgd(0.2, momentum=0.0), "work": {"unit": "steps", "amount": 4}},
        "fednova": {"optimizer": sgd(0.1, state="reset")},
    },
    "heart": {
        "scaffold": {"optimizer": sgd(0.2, momentum=0.0), "work": {"unit": "steps", "amount": 10}},
        "fednova": {"optimizer": sgd(0.05, state="reset")},
    },
    "skin": {
        "scaffold": {"optimizer": sgd(0.05, momentum=0.0), "work": {"unit": "steps", "amount": 40}},
        "fednova": {"optimizer": sgd(0.05, momentum=0.0, state="reset")},
    },
}  # fmt: skip
#: Batches of an epoch in the authors' setting, of proportional size at each site (70 are theirs on skin images).
_BATCHES: Mapping[str, int] = {"fundus": 5, "heart": 5, "skin": 70}
_NAMES: tuple[Name, ...] = ("fedprox", "scaffold", "fednova", "fairfed", "fairmixup", "reweighting")
#: The shipped jobs are masked, and bounded where masks ask for it.
_SHIPPED: Mapping[str, Json] = {"fairfed": SITE_BOUNDS, "reweighting": {"max_weight": BOUNDS["max_weight"]}}
_WORDS: Mapping[str, str] = {
    "fedavg": "FedAvg: the mean of the hospitals' models",
    "fedprox": "FedProx: sites stay near the round's model",
    "scaffold": "SCAFFOLD: client drift corrected by control variates; plain SGD, as many steps at every site",
    "fednova": "FedNova: updates divided by how far their steps lead",
    "fairfed": "FairFed: a site weighs less where its fairness differs from that of all",
    "fairmixup": "fair mixup, inside a site: the output is kept from changing between two groups",
    "reweighting": "FedAvg on records weighed for equal groups",
    "flexfair": "FlexFair: a penalty on differences of groups' losses",
}
_PRIVATE: Mapping[str, str] = {"heart": "FlexFair", "skin": "FedAvg"}
_DEFECTS: Mapping[str, str] = {
    "fedprox": "FedProx is as the paper's; mu 0.001 is their default",
    "scaffold": "SCAFFOLD corrects after the optimiser's step; controls have another learning rate (0.9)",
    "fednova": "FedNova's model is overwritten by the plain average: it is FedAvg",
    "fairfed": "FairFed without bounds on weights (no masks); largest gap to everybody; first round plain",
    "fairmixup": "fair mixup along a shortened direction, of the sum of both outputs, for all labels alike",
    "flexfair": "FlexFair in lock step (no masks); label strata, mean over groups, no n / n_s",
}


def _plain(task: str, name: Name, plan_name: str) -> Plan:
    """A job: the paper's method on a task."""
    parameters = {**_OF_TASK[task].get(name, {}), **_SHIPPED.get(name, {})}
    return _TASKS[task](plan_name, method(name, **parameters), **_TRAINING[task].get(name, {}))


def _official(task: str, name: Name, plan_name: str) -> Plan:
    """The authors' form of a method on a task, in their setting: their optimiser is the same for all methods."""
    whose = {key: value for key, value in _OF_TASK[task].get(name, {}).items() if key in ("attribute", "criterion")}
    made, consents = method(name, "official", **whose), list(_plain(task, name, plan_name).consents)
    protection = UNPROTECTED if name == "fairfed" else None
    plan = _TASKS[task](plan_name, FEDAVG)
    return _as_the_authors(plan, _BATCHES[task], protection, method=made, consents=consents)


def _as_the_authors(plan: Plan, batches: int, protection: Json | None = None, **changes: Any) -> Plan:
    """``batches`` of proportional size per epoch at each site, and no weights of labels."""
    data = json.loads(plan.model_dump_json())
    training = {"batch": {"unit": "batches_per_epoch", "amount": batches}, "class_weights": [1.0, 1.0]}
    return plan_of({**data, **changes, "protection": protection or data["protection"]}, training)


def _flexfair_official(make: Maker, batches: int, name: str) -> Plan:
    plan = make(name)
    penalties = [{**one, "strength": 2.0} for one in json.loads(plan.model_dump_json())["method"]["penalties"]]
    return _as_the_authors(plan, batches, UNPROTECTED, method=flexfair(*penalties, preset="official"))


def _heart_flexfair(name: str) -> Plan:
    return heart(name, flexfair(penalty("sex", "equal_opportunity", 1.0), **BOUNDS))


def _heart_feasibility(name: str) -> Plan:
    claims = ({"attribute": "sex", "criterion": "equal_opportunity", "gap": 0.2},)
    return feasibility(_heart_flexfair("heart_flexfair"), name, *claims)


def _skin_flexfair(name: str) -> Plan:
    return skin(name, flexfair(penalty("age", "equalized_odds", 1.0), penalty("sex", "equalized_odds", 1.0), **BOUNDS))


def _skin_flexfair_site(name: str) -> Plan:
    return skin(name, flexfair(penalty("source", "equal_opportunity", 2.0, form="bounded"), **BOUNDS))


def _fundus_flexfair(name: str) -> Plan:
    equal = penalty("hospital", "equal_accuracy", 2.0, utility="dice_loss", weights="uniform")
    return fundus(name, flexfair(equal, **BOUNDS))


def _shapes_flexfair(name: str) -> Plan:
    equal = penalty("sex_age", "equal_accuracy", 2.0, utility="dice_loss")
    return shapes(name, flexfair(equal, refresh="round_lagged", **BOUNDS))


def _possible(task: str) -> Iterator[Name]:
    """Methods that a task can have: fair mixup and reweighting need groups of patients, which fundus has not."""
    return (name for name in _NAMES if task != "fundus" or name not in ("fairmixup", "reweighting"))


def _jobs() -> Iterator[tuple[str, Maker]]:
    for task in _TASKS:
        yield f"{task}_fedavg", partial(_TASKS[task], method=FEDAVG)
        yield from ((f"{task}_{name}", partial(_plain, task, name)) for name in _possible(task))
    yield "fundus_flexfair", _fundus_flexfair
    yield "heart_feasibility", _heart_feasibility
    yield "heart_flexfair", _heart_flexfair
    yield "heart_private", heart_private
    yield "skin_flexfair", _skin_flexfair
    yield "skin_private", skin_private
    yield "skin_flexfair_site", _skin_flexfair_site


def _more() -> Iterator[tuple[str, Maker]]:
    yield "shapes_fedavg", partial(shapes, method=FEDAVG)
    yield "shapes_flexfair", _shapes_flexfair
    yield "heart_flexfair_official", partial(_flexfair_official, _heart_flexfair, _BATCHES["heart"])
    yield "skin_flexfair_official", partial(_flexfair_official, _skin_flexfair, _BATCHES["skin"])
    for task in _TASKS:
        official = (name for name in _possible(task) if name != "reweighting")
        yield from ((f"{task}_{name}_official", partial(_official, task, name)) for name in official)


#: Job name -> what makes its plan.
JOBS: dict[str, Maker] = dict(sorted(_jobs()))

#: Everything a new plan can start from: the jobs, a small segmentation of synthetic images, and the authors' own
#: versions of the methods.
PRESETS: dict[str, Maker] = {**JOBS, **dict(_more())}


#: What is asked for and cannot be, with the reason.
REFUSED: Mapping[str, str] = {
    "fundus_fairmixup": "fair mixup mixes records of two groups, and the only groups of these data are hospitals, "
    "whose records never are in one place; nor has a segmentation a positive label",
    "fundus_reweighting": "records are weighed by group, and these data have no groups inside a hospital",
}


def described(name: str) -> tuple[str, str]:
    """What a preset is about, and its method in a line: with what is wrong in the authors' version, if it is that."""
    task, kind, *rest = name.split("_")
    if kind == "feasibility":
        words = "counts records by group, and trains nothing: can a gap be seen at all?"
    elif kind == "private":
        words = f"{_PRIVATE[task]}, differential privacy: epsilon 8 for one patient of training more or less"
    elif rest == ["official"]:
        words = f"the authors' code: {_DEFECTS[kind]}"
    else:
        words = _WORDS[kind] + (", between sources" if rest == ["site"] else "")
    return _SAID[task], words


def shipped(name: str) -> Plan:
    """The plan of a shipped job; ``KeyError`` if there is none of that name."""
    return JOBS[name](name)
