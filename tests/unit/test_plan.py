# SPDX-License-Identifier: Apache-2.0
"""plan.json: what is refused and how, the canonical form and its hash."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fairflare import presets, schema
from fairflare.errors import PlanError
from fairflare.methods import METHODS
from fairflare.plan import DifferentialPrivacy, Plan, model_words, names_of, network_of, parse_plan

HEART = json.loads(schema.pretty(presets.shipped("heart_flexfair")))
SKIN = json.loads(schema.pretty(presets.shipped("skin_flexfair")))


FUNDUS = json.loads(schema.pretty(presets.shipped("fundus_flexfair")))


def at(data: dict[str, Any], path: str) -> tuple[Any, Any]:
    *parents, last = path.split(".")
    for name in parents:
        data = data[int(name)] if name.isdigit() else data[name]
    return data, int(last) if last.isdigit() else last


def setting(path: str, value: Any, base: dict[str, Any] = HEART) -> str:
    data = copy.deepcopy(base)
    parent, key = at(data, path)
    parent[key] = value
    return json.dumps(data)


def without(path: str) -> str:
    data = copy.deepcopy(HEART)
    parent, key = at(data, path)
    del parent[key]
    return json.dumps(data)


def renamed(path: str, new: str) -> str:
    data = copy.deepcopy(HEART)
    parent, key = at(data, path)
    parent[new] = parent.pop(key)
    return json.dumps(data)


PENALTY = HEART["method"]["penalties"][0]
METHOD = HEART["method"]
FEATURES = HEART["task"]["input"]["features"]
STEP = {**METHOD, "refresh": "step"}


def two(path: str, value: Any, path2: str, value2: Any, base: dict[str, Any] = HEART) -> str:
    data = json.loads(setting(path, value, base))
    parent, key = at(data, path2)
    parent[key] = value2
    return json.dumps(data)


MLP = {"name": "mlp", "hidden": [4]}


def part(network: dict[str, Any], trained: str = "head", rank: int | None = None) -> dict[str, Any]:
    return {"name": "part", "network": network, "trained": trained, "rank": rank}


#: Defect -> (text of the plan, code, a word that the message must hold).
BROKEN: dict[str, tuple[str, str, str]] = {
    "not JSON": ("{", "FF-PLAN-JSON", "not valid JSON"),
    "a list": ("[]", "FF-PLAN-VALUE", "top level"),
    "empty": ("", "FF-PLAN-JSON", "not valid JSON"),
    "a key twice": ('{"name": "a", "name": "b"}', "FF-PLAN-JSON", "written twice"),
    "NaN": (setting("training.seed", float("nan")), "FF-PLAN-JSON", "NaN"),
    "infinity": (setting("federation.task_timeout_seconds", float("inf")), "FF-PLAN-JSON", "Infinity"),
    "number too large for a float": (
        setting("training.optimizer.lr", 0.5).replace("0.5, \"momentum", "1e999, \"momentum"), "FF-PLAN-VALUE", "lr",
    ),
    "misspelt key": (renamed("training.rounds", "round"), "FF-PLAN-UNKNOWN-KEY", "'rounds'"),
    "misspelt key at the top": (renamed("method", "methods"), "FF-PLAN-UNKNOWN-KEY", "'method'"),
    "misspelt key in a penalty": (renamed("method.penalties.0.strength", "lambda"), "FF-PLAN-UNKNOWN-KEY", "lambda"),
    "misspelt name of a method": (renamed("method.name", "nmae"), "FF-PLAN-UNKNOWN-KEY", "'name'"),
    "misspelt kind of input": (renamed("task.input.kind", "knd"), "FF-PLAN-UNKNOWN-KEY", "'kind'"),
    "missing name of a method": (without("method.name"), "FF-PLAN-MISSING-KEY", "method.name"),
    "missing field": (without("training.seed"), "FF-PLAN-MISSING-KEY", "training.seed"),
    "missing null": (without("differential_privacy"), "FF-PLAN-MISSING-KEY", "differential_privacy"),
    "text for a number": (setting("training.rounds", "20"), "FF-PLAN-VALUE", "training.rounds"),
    "truth for a number": (setting("training.rounds", True), "FF-PLAN-VALUE", "training.rounds"),
    "fraction for a count": (setting("training.rounds", 2.5), "FF-PLAN-VALUE", "training.rounds"),
    "no rounds": (setting("training.rounds", 0), "FF-PLAN-VALUE", "training.rounds"),
    "negative learning rate": (setting("training.optimizer.lr", -0.1), "FF-PLAN-VALUE", "lr"),
    "nesterov without momentum": (
        two("training.optimizer.nesterov", True, "training.optimizer.momentum", 0.0), "FF-PLAN-RULE", "momentum",
    ),
    "unknown optimiser": (setting("training.optimizer.name", "lion"), "FF-PLAN-VALUE", "optimizer"),
    "seed of another size": (setting("training.seed", 2**32), "FF-PLAN-VALUE", "seed"),
    "path as data set": (setting("task.data_set", "/data/heart"), "FF-PLAN-VALUE", "data_set"),
    "same label twice": (setting("task.labels", ["absent", "absent"]), "FF-PLAN-RULE", "label"),
    "three labels, two weights": (setting("task.labels", ["a", "b", "c"]), "FF-PLAN-RULE", "class_weights"),
    "one label": (setting("task.labels", ["a"]), "FF-PLAN-VALUE", "labels"),
    "feature twice": (setting("task.input.features.1", FEATURES[0]), "FF-PLAN-RULE", "feature"),
    "feature of scale zero": (setting("task.input.features.0.scale", 0.0), "FF-PLAN-VALUE", "scale"),
    "attribute twice": (setting("attributes.1", HEART["attributes"][0]), "FF-PLAN-RULE", "attribute"),
    "feature that is the label": (setting("task.input.features.0.name", "label"), "FF-PLAN-RULE", "label"),
    "attribute that is the patient": (setting("attributes.0.name", "patient"), "FF-PLAN-RULE", "patient"),
    "attribute with one value": (setting("attributes.0.values", ["female"]), "FF-PLAN-VALUE", "values"),
    "attribute named hospital": (setting("attributes.0.name", "hospital"), "FF-PLAN-RULE", "reserved"),
    "value twice": (setting("attributes.0.values", ["male", "male"]), "FF-PLAN-RULE", "male"),
    "too many edges": (setting("attributes.1.edges", [40.0, 60.0]), "FF-PLAN-RULE", "edges"),
    "edges out of order": (
        two("attributes.1.values", ["a", "b", "c"], "attributes.1.edges", [60.0, 40.0]), "FF-PLAN-RULE", "order",
    ),
    "negative minimum cell": (setting("cells.minimum", -1), "FF-PLAN-VALUE", "minimum"),
    "no site needed for a cell": (setting("cells.sites", 0), "FF-PLAN-VALUE", "sites"),
    "table for a convolutional network": (
        setting("model", {"name": "cnn", "widths": [16]}), "FF-PLAN-RULE", "mlp",
    ),
    "layer of a billion neurons": (setting("model.hidden", [10**9]), "FF-PLAN-VALUE", "65536"),
    "image network of endless width": (setting("model.widths", [2**20], SKIN), "FF-PLAN-VALUE", "4096"),
    "network from a class path": (setting("model", {"name": "os.system"}), "FF-PLAN-VALUE", "model"),
    "more halvings than pixels": (
        setting("model.widths", [8] * 7, SKIN), "FF-PLAN-RULE", "halvings",
    ),
    "two means for three channels": (setting("task.input.mean", [0.5, 0.5], SKIN), "FF-PLAN-RULE", "channels"),
    "image without pixels": (setting("task.input.height", 0, SKIN), "FF-PLAN-VALUE", "height"),
    "unknown method": (setting("method", {"name": "fedmagic"}), "FF-PLAN-VALUE", "method"),
    "unknown criterion": (setting("method.penalties.0.criterion", "dp"), "FF-PLAN-VALUE", "criterion"),
    "no penalty": (setting("method.penalties", []), "FF-PLAN-VALUE", "penalties"),
    "same penalty twice": (setting("method.penalties", [PENALTY, PENALTY]), "FF-PLAN-RULE", "twice"),
    "penalty on an undeclared attribute": (setting("method.penalties.0.attribute", "race"), "FF-PLAN-RULE", "race"),
    "negative strength": (setting("method.penalties.0.strength", -1.0), "FF-PLAN-VALUE", "strength"),
    "three weights for two groups": (setting("method.penalties.0.weights", [0.2, 0.3, 0.5]), "FF-PLAN-RULE", "weights"),
    "weights of zero": (setting("method.penalties.0.weights", [0.0, 0.0]), "FF-PLAN-RULE", "zero"),
    "fixed weights of hospitals": (
        two("method.penalties.0.attribute", "hospital", "method.penalties.0.weights", [0.5, 0.5]),
        "FF-PLAN-RULE", "hospital",
    ),
    "mean of the bounded form": (
        two("method.penalties.0.form", "bounded", "method.penalties.0.reduction", "mean"), "FF-PLAN-RULE", "bounded",
    ),
    "minimum weight above one": (setting("method.min_weight", 1.5), "FF-PLAN-VALUE", "min_weight"),
    "maximum weight below one": (setting("method.max_weight", 0.5), "FF-PLAN-VALUE", "max_weight"),
    "lock step with ragged epochs": (setting("method", STEP), "FF-PLAN-RULE", "step"),
    "lock step with a minimum cell": (two("method", STEP, "cells.minimum", 11), "FF-PLAN-RULE", "minimum cell"),
    "protection that does not exist yet": (setting("protection.update", "ckks"), "FF-PLAN-VALUE", "protection"),
    "masks for the statistics alone": (setting("protection.update", "none"), "FF-PLAN-RULE", "the same for both"),
    "masks without their settings": (setting("protection.masking", None), "FF-PLAN-RULE", "how masks work"),
    "settings of masks without masks": (
        two("protection.update", "none", "protection.statistics", "none"), "FF-PLAN-RULE", "nothing is masked",
    ),
    "masks between two sites": (setting("federation.min_sites", 2), "FF-PLAN-RULE", "of two sites"),
    "more colluders than three sites survive": (
        setting("protection.masking.colluders", 2), "FF-PLAN-RULE", "at most 1",
    ),
    "no clip": (setting("protection.masking.clip", 0.0), "FF-PLAN-VALUE", "clip"),
    "a clip that leaves no digits": (setting("protection.masking.clip", 2.0**21), "FF-PLAN-VALUE", "clip"),
    "no unit of weights": (setting("protection.masking.weight_unit", 0), "FF-PLAN-VALUE", "weight_unit"),
    "masks in lock step": (
        two("method", STEP, "training.batch", {"unit": "batches_per_epoch", "amount": 5}), "FF-PLAN-RULE", "lock step",
    ),
    "differential privacy without noise": (
        setting("differential_privacy", {"epsilon": 1.0}), "FF-PLAN-UNKNOWN-KEY", "epsilon",
    ),
    "intersection of an undeclared attribute": (
        setting("intersections", [{"name": "both", "of": ["sex", "race"]}]), "FF-PLAN-RULE", "race",
    ),
    "intersection of one attribute": (
        setting("intersections", [{"name": "both", "of": ["sex"]}]), "FF-PLAN-VALUE", "of",
    ),
    "intersection of an attribute with itself": (
        setting("intersections", [{"name": "both", "of": ["sex", "sex"]}]), "FF-PLAN-RULE", "more than once",
    ),
    "intersection named like an attribute": (
        setting("intersections", [{"name": "sex", "of": ["sex", "age"]}]), "FF-PLAN-RULE", "more than once",
    ),
    "intersection named like a column": (
        setting("intersections", [{"name": "mask", "of": ["sex", "age"]}]), "FF-PLAN-RULE", "mask",
    ),
    "intersection named like everybody": (
        setting("intersections", [{"name": "all", "of": ["sex", "age"]}]), "FF-PLAN-RULE", "reserved",
    ),
    "intersection of too many groups": (
        two("attributes", [{"name": n, "values": [f"v{k}" for k in range(20)], "edges": None} for n in ("sex", "b")],
            "intersections", [{"name": "both", "of": ["sex", "b"]}]),
        "FF-PLAN-RULE", "400 groups",
    ),
    "threshold from validation for three labels": (
        two("task.labels", ["a", "b", "c"], "training.class_weights", [1.0, 1.0, 1.0]), "FF-PLAN-RULE", "half",
    ),
    "refresh that does not exist": (setting("method.refresh", "sometimes"), "FF-PLAN-VALUE", "refresh"),
    "refresh every single round": (setting("method.refresh", {"rounds": 1}), "FF-PLAN-VALUE", "refresh"),
    "own part anew after no step": (setting("method.remeasure_own", 0), "FF-PLAN-VALUE", "remeasure_own"),
    "own part anew in lock step": (
        json.dumps({**json.loads(two("method", {**STEP, "remeasure_own": 3}, "protection", presets.UNPROTECTED)),
                    "training": {**HEART["training"], "work": {"unit": "steps", "amount": 2}}}),
        "FF-PLAN-RULE", "remeasure_own",
    ),
    "Dice of a label": (setting("method.penalties.0.utility", "dice_loss"), "FF-PLAN-RULE", "cross_entropy"),
    "hospitals as groups without consent": (setting("consents", [], FUNDUS), "FF-PLAN-RULE", "consent"),
    "two hospitals as groups": (setting("federation.min_sites", 2, FUNDUS), "FF-PLAN-RULE", "min_sites 2"),
    "four hospitals as groups, weighed by records": (
        json.dumps({**json.loads(setting("method.penalties.0.weights", "records", FUNDUS)),
                    "federation": {**FUNDUS["federation"], "min_sites": 4}}),
        "FF-PLAN-RULE", "at least 5",
    ),
    "a consent twice": (setting("consents", FUNDUS["consents"] * 2, FUNDUS), "FF-PLAN-RULE", "more than once"),
    "a consent that does not exist": (setting("consents", ["everything"], FUNDUS), "FF-PLAN-VALUE", "consents"),
    "mask values for other labels": (setting("task.mask_values", [0, 128, 255], FUNDUS), "FF-PLAN-RULE", "mask_values"),
    "mask value twice": (setting("task.mask_values", [0, 0], FUNDUS), "FF-PLAN-RULE", "more than once"),
    "mask value beyond a byte": (setting("task.mask_values", [0, 256], FUNDUS), "FF-PLAN-VALUE", "mask_values"),
    "masks from a network for labels": (setting("model", {"name": "resnet18"}, FUNDUS), "FF-PLAN-RULE", "unet"),
    "labels from a network for masks": (
        setting("model", {"name": "unet", "widths": [8, 16]}, SKIN), "FF-PLAN-RULE", "resnet18",
    ),
    "masks from a part of a network for labels": (
        setting("model", part({"name": "resnet18"}), FUNDUS), "FF-PLAN-RULE", "unet",
    ),
    "a part of a network that the images are too small for": (
        setting("model", part({"name": "cnn", "widths": [8] * 8}), SKIN), "FF-PLAN-RULE", "8 halvings",
    ),
    "a part of a part": (setting("model", part(part({"name": "resnet18"})), SKIN), "FF-PLAN-VALUE", "model"),
    "adapters without a rank": (
        setting("model", part(MLP, "adapters"), HEART), "FF-PLAN-RULE", "a number for adapters",
    ),
    "adapters of no rank": (setting("model", part(MLP, "adapters", 0), HEART), "FF-PLAN-VALUE", "rank"),
    "adapters of a huge rank": (setting("model", part(MLP, "adapters", 65), HEART), "FF-PLAN-VALUE", "rank"),
    "a head with a rank": (setting("model", part(MLP, "head", 4), HEART), "FF-PLAN-RULE", "null for a head"),
    "another part": (setting("model", part(MLP, "body"), HEART), "FF-PLAN-VALUE", "trained"),
    "pixels that do not halve": (setting("task.input.width", 100, FUNDUS), "FF-PLAN-RULE", "multiples of 8"),
    "a bottom of one pixel": (
        two("task.input.width", 8, "task.input.height", 8, FUNDUS), "FF-PLAN-RULE", "two by two",
    ),
    "cross-entropy of masks": (
        setting("method.penalties.0.utility", "cross_entropy", FUNDUS), "FF-PLAN-RULE", "dice_loss",
    ),
    "equal opportunity of masks": (
        setting("method.penalties.0.criterion", "equal_opportunity", FUNDUS), "FF-PLAN-RULE", "equal_accuracy",
    ),
    "threshold from validation for masks": (
        setting("evaluation.threshold", "validation_balanced_accuracy", FUNDUS), "FF-PLAN-RULE", "half",
    ),
    "a start from a path": (
        setting("start", {"kind": "file", "sha256": "weights.pt", "tensors": "all"}), "FF-PLAN-VALUE", "sha256",
    ),
    "a start from nowhere": (setting("start", {"kind": "download"}), "FF-PLAN-VALUE", "start"),
    "no site needed": (setting("federation.min_sites", 0), "FF-PLAN-VALUE", "min_sites"),
    "no time for a task": (setting("federation.task_timeout_seconds", 0.0), "FF-PLAN-VALUE", "task_timeout"),
    "odd number of score bins": (setting("evaluation.score_bins", 201), "FF-PLAN-VALUE", "score_bins"),
    "too few score bins": (setting("evaluation.score_bins", 10), "FF-PLAN-VALUE", "score_bins"),
    "another format": (setting("format", "fairflare/plan/9"), "FF-PLAN-VALUE", "format"),
    "name that is a path": (setting("name", "../x"), "FF-PLAN-VALUE", "name"),
}  # fmt: skip


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_plan_is_refused_with_code_got_expected_and_next_step(defect):
    text, code, word = BROKEN[defect]
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    assert caught.value.code == code
    assert word in caught.value.got + caught.value.expected
    assert caught.value.expected
    assert caught.value.next_step
    assert caught.value.code in str(caught.value)


def test_there_are_many_broken_plans():
    assert len(BROKEN) >= 50


@pytest.mark.parametrize(
    ("sites", "weights", "consents"),
    [
        (3, "uniform", ["pair_sums_of_three_hospitals"]),
        (4, "uniform", []),
        (5, "records", []),
        (2, "records", ["open_hospital_risks"]),
    ],
)
def test_hospitals_may_be_groups_where_they_are_enough_or_agree(sites, weights, consents):
    data = copy.deepcopy(FUNDUS)
    data["federation"]["min_sites"], data["consents"], data["protection"] = sites, consents, presets.UNPROTECTED
    data["method"]["penalties"][0]["weights"] = weights
    assert parse_plan(json.dumps(data)).consents == tuple(consents)


def test_groups_of_an_intersection_are_products_in_the_order_of_its_attributes():
    data = copy.deepcopy(HEART)
    data["intersections"] = [{"name": "age_sex", "of": ["age", "sex"]}]
    plan = parse_plan(json.dumps(data))
    assert list(plan.groups) == ["sex", "age", "age_sex"]
    assert plan.groups["age_sex"] == ("lt60+female", "lt60+male", "ge60+female", "ge60+male")
    assert plan.sizes == {"sex": 2, "age": 2, "age_sex": 4}
    data["method"]["penalties"][0]["attribute"] = "age_sex"
    assert parse_plan(json.dumps(data)).method.penalties[0].attribute == "age_sex"


def refusal(text: str) -> PlanError:
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    return caught.value


def test_all_defects_are_named_and_unknown_keys_first():
    data = json.loads(renamed("method.name", "nmae"))
    data["training"]["round"] = data["training"].pop("rounds")
    data["training"]["seed"] = -1
    data["task"]["input"]["features"][2]["scael"] = data["task"]["input"]["features"][2].pop("scale")
    data["model"]["hidden"] = ["32"]
    del data["cells"]["sites"]
    problem = refusal(json.dumps(data))
    assert problem.code == "FF-PLAN-UNKNOWN-KEY"
    assert problem.got.split("; ") == [
        "task.input.features.2: unknown key 'scael'", "the nearest valid name is 'scale'",
        "training: unknown key 'round'", "the nearest valid name is 'rounds'",
        "method: unknown key 'nmae'", "the nearest valid name is 'name'",
        "cells.sites: Field required",
        "model.hidden.0: Input should be a valid integer (got a text of 2 characters)",
        "training.seed: Input should be greater than or equal to 0 (got -1)",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["method.penalties.0.strength", "task.input.features.0.scale"])
def test_a_defect_in_an_item_is_not_an_item_too_few(path):
    data = json.loads(setting(path, -1.0))
    data["task"]["input"]["features"] = data["task"]["input"]["features"][:1]
    assert "at least" not in refusal(json.dumps(data)).got
    assert "at least 1 item" in refusal(setting("method.penalties", [])).got


SECRET = "/srv/anna mueller.csv"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**HEART, SECRET: 1}),
        setting("format", SECRET),
        setting("name", SECRET),
        setting("method.name", SECRET),
        setting("method.penalties.0.weights", SECRET),
        setting("method.penalties.0", {SECRET: 1}),
        setting("model", {SECRET: "mlp"}),
        setting("attributes.0.values.0", SECRET),
        f'{{"{SECRET}": 1, "{SECRET}": 2}}',
    ],
)
def test_what_is_no_identifier_is_not_repeated(text):
    problem = refusal(text)
    assert "anna" not in str(problem)
    assert "srv" not in str(problem)


def test_a_broken_rule_says_what_was_expected_of_it():
    problem = refusal(setting("attributes.1.edges", [40.0, 60.0]))
    assert (problem.got, problem.expected) == ("attributes.1: 2 edges for the 2 values of 'age'", "1")
    problem = refusal(setting("model", {"name": "cnn", "widths": [16]}))
    assert problem.got == "model 'cnn' for classification of tables"
    assert problem.expected == "mlp"
    both = json.loads(setting("attributes.1.edges", [40.0, 60.0]))
    both["cells"]["minimum"] = -1
    assert refusal(json.dumps(both)).expected == "1; a plan that follows its schema, every field written out"


def test_a_document_nested_too_deeply_is_refused():
    assert refusal("[" * 600 + "]" * 600).code in {"FF-PLAN-JSON", "FF-PLAN-VALUE"}
    assert refusal("[" * 100_000 + "]" * 100_000).code == "FF-PLAN-JSON"


@pytest.mark.parametrize("name", presets.JOBS)
def test_a_shipped_plan_reads_back_as_itself(name):
    plan = presets.shipped(name)
    assert parse_plan(schema.pretty(plan)) == plan
    assert parse_plan(schema.canonical(plan).decode()).sha256 == plan.sha256


@given(st.randoms())
def test_the_hash_does_not_depend_on_the_order_of_keys_or_on_spaces(random):
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(shuffled(HEART), indent=random.choice([None, 1, 4]))
    assert parse_plan(text).sha256 == presets.shipped("heart_flexfair").sha256


@pytest.mark.parametrize(
    ("path", "value"),
    [("training.seed", 1), ("training.rounds", 21), ("method.penalties.0.strength", 1.5), ("method.max_weight", None),
     ("attributes.1.edges", [61.0]), ("cells.minimum", 1), ("federation.min_sites", 4),
     ("protection.masking.weight_unit", 11), ("protection.masking.clip", 8.0)],
)  # fmt: skip
def test_every_change_of_a_field_changes_the_hash(path, value):
    assert parse_plan(setting(path, value)).sha256 != presets.shipped("heart_flexfair").sha256


def test_a_number_written_as_an_integer_is_the_same_plan():
    assert parse_plan(setting("method.penalties.0.strength", 1)).sha256 == presets.shipped("heart_flexfair").sha256


@pytest.mark.parametrize(
    "path",
    ["method.penalties.0.strength", "training.optimizer.weight_decay", "attributes.1.edges.0",
     "task.input.features.0.center"],
)  # fmt: skip
def test_zero_below_zero_is_the_same_plan(path):
    first, second = parse_plan(setting(path, 0.0)), parse_plan(setting(path, -0.0))
    assert first == second
    assert first.sha256 == second.sha256
    assert "-0.0" not in schema.pretty(second)


def test_equal_plans_made_from_objects_have_equal_hashes():
    zero = parse_plan(setting("training.optimizer.weight_decay", 0.0))
    below = zero.training.optimizer.model_copy(update={"weight_decay": -0.0})
    other = zero.model_copy(update={"training": zero.training.model_copy(update={"optimizer": below})})
    assert other == zero
    assert other.sha256 == zero.sha256


def test_a_part_of_a_network_is_of_a_network_and_bears_both_names():
    plan = parse_plan(setting("model", part({"name": "resnet18"}), SKIN))
    assert network_of(plan.model) == parse_plan(json.dumps(SKIN | {"model": {"name": "resnet18"}})).model
    assert names_of(plan.model) == ("part", "resnet18")
    assert model_words(plan.model) == "resnet18, trained: the head"
    adapters = parse_plan(setting("model", part(MLP, "adapters", 4))).model
    assert model_words(adapters) == "mlp, trained: adapters of rank 4 and the head"
    whole = parse_plan(json.dumps(HEART)).model
    assert network_of(whole) is whole
    assert (names_of(whole), model_words(whole)) == (("mlp",), "mlp")


def test_a_plan_cannot_be_changed():
    plan = presets.shipped("heart_fedavg")
    with pytest.raises(ValueError, match="frozen"):
        plan.name = "other"


def models_below(kind: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> set[type[BaseModel]]:
    seen = set() if seen is None else seen
    if kind in seen:
        return seen
    seen.add(kind)
    for field in kind.model_fields.values():
        stack = [field.annotation]
        while stack:
            one = stack.pop()
            if isinstance(one, type) and issubclass(one, BaseModel):
                models_below(one, seen)
            stack.extend(getattr(one, "__args__", ()))
    return seen


def test_no_field_of_a_plan_has_a_default():
    """No silent defaults: whatever a plan does not say is refused, so a reviewer sees every choice."""
    kinds = models_below(Plan)
    assert len(kinds) >= 18
    for kind in kinds:
        assert all(field.is_required() for field in kind.model_fields.values()), kind


# ------------------------------------------------------------------------------------------------ differential privacy

GROUPS = {"noise_multiplier": 10.0, "groups_per_unit": 1, "shared": False}
PRIVACY = {
    "clip": 1.0, "noise_multiplier": 1.0, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks",
    "groups": GROUPS,
}  # fmt: skip


def private(method: dict[str, Any] | None = None, job: str = "heart_flexfair", **changes: Any) -> str:
    """A plan with differential privacy, whose fields go by name; others of the plan as ``training__rounds``."""
    data = json.loads(schema.pretty(presets.shipped(job)))
    own = {key: changes.pop(key) for key in list(changes) if key in PRIVACY}
    measured = GROUPS if job == "heart_flexfair" else None
    data["differential_privacy"] = {**PRIVACY, "groups": measured, **own}
    data["method"].update(method or {})
    for path, value in changes.items():
        parent, key = at(data, path.replace("__", "."))
        parent[key] = value
    return json.dumps(data)


SHARED = {**GROUPS, "shared": True}
PRIVATE: dict[str, str] = {
    "flexfair": private(), "fedavg": private(job="heart_fedavg"), "fedprox": private(job="heart_fedprox"),
    "cut at both ends": private(training__class_weights=[0.5, 2.0], method={"min_weight": 0.5}),
    "shared noise": private(groups=SHARED, consents=["shared_noise"], cells__minimum=1),
    "group sums of the last round's model": private({"refresh": "round_lagged"}),
    "small groups held back": private(cells__minimum=11),
}  # fmt: skip

#: One for each line of the rules (``plan.rules.check_privacy``): what is written, and what the refusal says.
NOT_PRIVATE: dict[str, tuple[str, str]] = {
    "in clear": (private(protection=presets.UNPROTECTED), "noise is added to what masks hide"),
    **{
        f"with {name}": (private(job=f"heart_{name}"), f"with method '{name}'")
        for name in sorted(set(METHODS) - {"fedavg", "fedprox", "flexfair", "feasibility"})
    },
    "counting only": (private(job="heart_feasibility"), "with method 'feasibility'"),
    "a penalty of another utility": (
        private({"penalties": [{**PENALTY, "utility": "probability"}]}), "a penalty of probability on 'sex'",
    ),
    "a penalty between hospitals": (
        private({"penalties": [{**PENALTY, "attribute": "hospital", "criterion": "equal_accuracy"}]},
                federation__min_sites=5),
        "a penalty of cross_entropy on 'hospital'",
    ),
    "the second penalty is another": (
        private({"penalties": [PENALTY, {**PENALTY, "attribute": "age", "utility": "probability"}]}),
        "a penalty of probability on 'age'",
    ),
    "no least weight": (private({"min_weight": None}), "without min_weight, max_weight or utility_clip"),
    "no most weight": (private({"max_weight": None}), "without min_weight, max_weight or utility_clip"),
    "a loss without bound": (private({"utility_clip": None}), "without min_weight, max_weight or utility_clip"),
    "weights below zero": (private(training__class_weights=[0.5, 1.0]), "got weights down to -0.5"),
    "a site that measures its own part": (private({"remeasure_own": 5}), "each measurement is a release"),
    "group sums without noise": (private(groups=None), "without 'groups'"),
    "noise of groups that nobody sums": (private(job="heart_fedavg", groups=GROUPS), "the method has no group sums"),
    "shared noise that nobody agreed to": (private(groups=SHARED), "without the consent 'shared_noise'"),
    "shared noise and small groups": (
        private(groups=SHARED, consents=["shared_noise"], cells__minimum=2), "a smallest cell of 2",
    ),
    "shared noise and nobody to share it with": (
        private(groups=SHARED, consents=["shared_noise"], protection__masking__colluders=0), "with colluders 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE.values(), ids=PRIVATE)
def test_training_may_be_private(text):
    plan = parse_plan(text)
    assert plan.differential_privacy is not None
    assert parse_plan(schema.pretty(plan)).sha256 == plan.sha256


@pytest.mark.parametrize(("text", "words"), NOT_PRIVATE.values(), ids=NOT_PRIVATE)
def test_privacy_that_would_not_hold_is_refused(text, words):
    data = json.loads(text)
    with pytest.raises(PlanError, match="FF-PLAN-RULE") as caught:
        parse_plan(text)
    assert words in str(caught.value)
    if not words.endswith(("'shared_noise'", "cell of 2", "colluders 0")):  # the plan is sound without it
        parse_plan(json.dumps({**data, "differential_privacy": None}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip", 0.0), ("noise_multiplier", 0.0099), ("noise_multiplier", 0.0), ("count_noise", 0.0),
     ("records_per_unit", 0), ("gradients", "opacus"), ("groups", {**GROUPS, "groups_per_unit": 0}),
     ("groups", {**GROUPS, "noise_multiplier": 0.0}), ("groups", {**GROUPS, "shared": 1})],
)  # fmt: skip
def test_privacy_has_noise_and_bounds(field, value):
    with pytest.raises(PlanError, match="FF-PLAN-VALUE"):
        parse_plan(private(**{field: value}))


def test_no_seed_is_among_what_a_plan_says_of_privacy():
    fields = [name for kind in models_below(DifferentialPrivacy) for name in kind.model_fields]
    assert set(fields) == PRIVACY.keys() | GROUPS.keys()
    assert not [name for name in fields if "seed" in name]


def test_every_method_can_be_named_in_a_plan():
    counts = {"name": "feasibility", "claims": [], "alpha": 0.05, "power": 0.8}
    names = {"flexfair": METHOD, "feasibility": counts}
    for name in set(METHODS) - set(names):
        job = json.loads(schema.pretty(presets.shipped(f"heart_{name}")))
        assert parse_plan(json.dumps(job)).method.name == name
    for name, method in names.items():
        assert parse_plan(setting("method", method)).method.name == name


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"flexfair", "feasibility"}))
def test_a_preset_of_a_method_is_a_whole_one(name):
    job = presets.shipped(f"heart_{name}")
    text = json.dumps({**json.loads(schema.pretty(job)), "protection": presets.UNPROTECTED})
    paper = presets.method(name)
    assert parse_plan(json.dumps({**json.loads(text), "method": paper})).method.model_dump() == paper
    assert presets.method(name, seed=1)["seed"] == 1
    if name == "reweighting":
        with pytest.raises(KeyError):
            presets.method(name, "official")
        return
    official = presets.method(name, "official")
    assert parse_plan(json.dumps({**json.loads(text), "method": official})).method.model_dump() == official
    assert (official == paper) == (name == "fedavg")


def test_what_the_authors_code_does_is_what_the_official_presets_have():
    made = {name: presets.PRESETS[f"heart_{name}_official"](name).method for name in OFFICIAL}
    for name, choices in OFFICIAL.items():
        found = made[name].model_dump()
        assert {key: found[key] for key in choices} == choices, name
    assert not presets.PRESETS["heart_fairfed_official"]("x").protection.masked
    for name in presets.PRESETS:
        task, words = presets.described(name)
        assert 10 < len(words) < 120
        assert task
        assert ("authors' code" in words) == name.endswith("_official")


OFFICIAL = {
    "fedprox": {"mu": 0.001},
    "scaffold": {"correction": "after_step", "control_lr": 0.9},
    "fednova": {"normalize": False},
    "fairfed": {"gap": "one_vs_overall", "first_round": "plain", "min_weight": None, "max_weight": None},
    "fairmixup": {"direction": "to_mixed", "output": "sum", "criterion": "demographic_parity"},
}


def test_the_official_preset_names_the_authors_choices():
    for name in ("heart_flexfair_official", "skin_flexfair_official"):
        assert presets.PRESETS[name](name).method.lock_step
    official = presets.flexfair(presets.penalty("sex", "demographic_parity", 2.0), preset="official")
    data = json.loads(setting("method", official))
    data["training"]["batch"], data["protection"] = {"unit": "batches_per_epoch", "amount": 5}, presets.UNPROTECTED
    method = parse_plan(json.dumps(data)).method
    assert method.lock_step
    assert method.scaling == "official"
    assert method.penalties[0].criterion == "equalized_odds"
    assert method.penalties[0].reduction == "mean"
    assert method.min_weight is method.max_weight is None
