# SPDX-License-Identifier: Apache-2.0
"""A hospital's policy: read strictly, never looser than it says, and every field of a plan bounded or named as not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from fairflare import presets, schema
from fairflare.errors import PolicyError
from fairflare.methods import METHODS as ALL
from fairflare.plan import Plan
from fairflare.policy import (
    POLICY_NAME,
    LeastProtection,
    MostPrivacyLoss,
    SitePolicy,
    open_policy,
    read_policy,
    standard_policy,
    strict_policy,
    write_policy,
)
from fairflare.policy.package import installed_digest
from fairflare.policy.site import METHODS, MODELS
from tests.unit.policy.support import CELLS, STORE, plan, standard

TODAY = date(2030, 5, 17)


def found(policy: SitePolicy, wanted: Plan, **more: Any) -> list[str]:
    return [str(one) for one in policy.check(wanted, today=TODAY, **more)]


def test_an_open_policy_takes_every_shipped_plan() -> None:
    for name in presets.JOBS:
        open_policy(STORE).verify(presets.shipped(name))


def test_the_standard_policy_takes_a_plan_that_holds_small_cells_back() -> None:
    standard().verify(plan(cells=CELLS))


def test_the_standard_policy_takes_no_plan_that_was_not_approved() -> None:
    wanted = plan(cells=CELLS)
    policy = standard_policy(STORE)
    assert found(policy, wanted) == [f"plans: got {wanted.sha256}, expected one of the 0 that this site has approved"]
    policy.model_copy(update={"plans": (wanted.sha256,)}).verify(wanted)
    policy.verify(wanted, approved={wanted.sha256})
    assert found(policy, wanted, approved={"ab" * 32}) != []


def test_where_approvals_are_signed_no_list_counts() -> None:
    wanted = plan(cells=CELLS)
    policy = standard_policy(STORE).model_copy(update={"approvals": "signed"})
    refused = f"plans: got {wanted.sha256}, expected a plan with a valid signed approval of this site"
    assert found(policy, wanted) == [refused]
    policy.verify(wanted, approved=frozenset({wanted.sha256}))


LOCKED = plan(presets.PRESETS["heart_flexfair_official"]("locked"))
SEGMENTS = presets.shipped("fundus_flexfair")
LISTS = {"data_sets": ("heart",), "attributes": ("sex", "age"), "features": ("chol",)}

OTHER_DATA = "task.data_set: got 'heart', expected one that this site's policy names"
OTHER_GROUPS = "attributes: got 'age', expected attributes that this site's policy names"
HEAD_OF_MLP = {"name": "part", "network": {"name": "mlp", "hidden": [4]}, "trained": "head", "rank": None}

#: What a plan asks for, under a policy that is open but for one field -> exactly what is said of it.
WEAKER: dict[str, tuple[dict[str, Any], Plan, list[str]]] = {
    "a plan that is not listed": (
        {"plans": ("ab" * 32,)},
        plan(),
        [f"plans: got {plan().sha256}, expected one of the 1 that this site has approved"],
    ),
    "no masks": (
        {"protection": LeastProtection(update="masked", statistics="masked")},
        plan(protection=presets.UNPROTECTED),
        [f"protection.{field}: got 'none', expected 'masked'" for field in ("update", "statistics")],
    ),
    "no masks of updates": (
        {"protection": LeastProtection(update="masked", statistics="none")},
        plan(protection=presets.UNPROTECTED),
        ["protection.update: got 'none', expected 'masked'"],
    ),
    "no masks of statistics": (
        {"protection": LeastProtection(update="none", statistics="masked")},
        plan(protection=presets.UNPROTECTED),
        ["protection.statistics: got 'none', expected 'masked'"],
    ),
    "small cells": ({"cells_minimum": 1}, plan(), ["cells.minimum: got 0, expected at least 1"]),
    "cells of one site": ({"cells_sites": 2}, plan(), ["cells.sites: got 1, expected at least 2"]),
    "few may collude": (
        {"colluders": 2},
        plan(),
        ["protection.masking.colluders: got 1, expected at least 2"],
    ),
    "exact weights": (
        {"weight_unit": 11},
        plan(),
        ["protection.masking.weight_unit: got 10, expected at least 11"],
    ),
    "nobody may collude without masks": (
        {"colluders": 1},
        LOCKED,
        ["protection.masking.colluders: got 0, expected at least 1"],
    ),
    "exact weights without masks": (
        {"weight_unit": 10},
        LOCKED,
        ["protection.masking.weight_unit: got 1, expected at least 10"],
    ),
    "few sites": ({"least_sites": 4}, plan(), ["federation.min_sites: got 3, expected at least 4"]),
    "another task": (
        {"tasks": ("classification",)},
        SEGMENTS,
        ["task.kind: got 'segmentation', expected classification"],
    ),
    "another data set": (
        {"data_sets": ("skin", "fundus")},
        plan(),
        [OTHER_DATA],
    ),
    "a data set where none is allowed": ({"data_sets": ()}, plan(), [OTHER_DATA]),
    "another network": ({"models": ("unet",)}, plan(), ["model.name: got 'mlp', expected unet"]),
    "a part of a network, where only the network is allowed": (
        {"models": ("mlp",)},
        plan(model=HEAD_OF_MLP),
        ["model.name: got 'part', expected mlp"],
    ),
    "a part of another network": (
        {"models": ("part", "cnn")},
        plan(model=HEAD_OF_MLP),
        ["model.name: got 'mlp', expected part, cnn"],
    ),
    "another method": ({"methods": ("fedavg",)}, plan(), ["method.name: got 'flexfair', expected fedavg"]),
    "another attribute": ({"attributes": ("sex",)}, plan(), [OTHER_GROUPS]),
    "a part of an intersection": (
        {"attributes": ("sex",)},
        plan(intersections=[{"name": "both", "of": ["sex", "age"]}]),
        [OTHER_GROUPS],
    ),
    "another column": (
        {"features": tuple(one.name for one in plan().task.input.features[1:])},  # type: ignore[union-attr]
        plan(),
        ["task.input.features: got 'age_years', expected columns that this site's policy names"],
    ),
    "another kind of numbers": (
        {"metrics": ("counts", "cells", "model_update", "training_loss", "evaluation_sums")},
        plan(),
        ["metrics: got 'group_risks', expected counts, cells, model_update, training_loss, evaluation_sums"],
    ),
    "sums of single batches": (
        {"metrics": standard_policy(STORE).metrics},
        LOCKED,
        [f"metrics: got 'step_risks', expected {', '.join(standard_policy(STORE).metrics or ())}"],
    ),
    "fine histograms": (
        {"most_score_bins": 200},
        plan(evaluation__score_bins=202),
        ["evaluation.score_bins: got 202, expected at most 200"],
    ),
    "many rounds": ({"most_rounds": 19}, plan(), ["training.rounds: got 20, expected at most 19"]),
    "a consent": (
        {"consents": ()},
        SEGMENTS,
        ["consents: got 'pair_sums_of_three_hospitals', expected none"],
    ),
    "no differential privacy": (
        {"differential_privacy": MostPrivacyLoss(epsilon=3.0, delta=1e-5, relation="add_remove")},
        plan(),
        ["differential_privacy: got none, expected at most epsilon 3, delta 1e-05"],
    ),
    "another package": (
        {"package": "ab" * 32},
        plan(),
        [f"package: got {installed_digest()}, expected the one that this site's policy names"],
    ),
    "a policy that is over": (
        {"expires": "2030-05-16"},
        plan(),
        ["expires: got 2030-05-17, expected a day until 2030-05-16"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "wanted", "words"), WEAKER.values(), ids=WEAKER)
def test_a_weaker_plan_is_refused_by_what_is_weak(changes: dict[str, Any], wanted: Plan, words: list[str]) -> None:
    policy = open_policy(STORE).model_copy(update=changes)
    assert found(policy, wanted) == words
    assert found(open_policy(STORE), wanted) == []
    with pytest.raises(PolicyError, match=r"FF-POLICY-(REFUSED|EXPIRED|PACKAGE)") as caught:
        policy.verify(wanted, today=TODAY)
    assert caught.value.got == "; ".join(words)


#: Fields that bind the site and its peers while a job runs, and no plan can ask for.
NOT_OF_PLANS = {"format", "store", "identities", "peers", "cohort_changes", "approvals"}


def test_every_field_of_the_policy_has_a_plan_that_it_refuses() -> None:
    assert {field for changes, _, _ in WEAKER.values() for field in changes} == set(
        SitePolicy.model_fields
    ) - NOT_OF_PLANS


ENOUGH = ("tasks", "data_sets", "models", "methods", "metrics", "features", "most_rounds", "most_score_bins")


@pytest.mark.parametrize("field", ENOUGH)
def test_what_the_plan_asks_for_is_enough(field: str) -> None:
    exact = {
        "most_rounds": 20, "most_score_bins": 200,
        "tasks": ("classification",), "data_sets": ("heart",), "models": ("mlp",), "methods": ("flexfair",),
        "metrics": ("counts", "model_update", "training_loss", "group_risks", "evaluation_sums"),
        "features": tuple(one.name for one in plan().task.input.features),  # type: ignore[union-attr]
    }  # fmt: skip
    assert found(open_policy(STORE).model_copy(update={field: exact[field]}), plan()) == []


#: Field of a plan -> what bounds it: a field of the policy, or why none does. A field of a plan that is not here fails
#: the test below: whoever adds one decides.
READ = "approval: it says how a model is trained, which a person must read"
FORM = "the schema allows one value, or a name without meaning"
BOUND = {
    "format": FORM, "name": FORM, "task.kind": "tasks", "task.data_set": "data_sets",
    "task.labels": "the manifest: a record with a label that is not declared is refused",
    "task.mask_values": "the data: a pixel with another value is refused",
    "task.input.kind": "models", "task.input.features.name": "features", "task.input.features.center": READ,
    "task.input.features.scale": READ, "task.input.channels": READ, "task.input.height": READ,
    "task.input.width": READ, "task.input.mean": READ, "task.input.std": READ, "task.input.augmentation": READ,
    "attributes.name": "attributes", "attributes.values": "cells_minimum", "attributes.edges": "cells_minimum",
    "intersections.name": FORM, "intersections.of": "attributes", "cells.minimum": "cells_minimum",
    "cells.sites": "cells_sites", "model.name": "models", "model.hidden": READ, "model.widths": READ,
    "model.head": READ, "model.network.name": "models", "model.network.hidden": READ, "model.network.widths": READ,
    "model.network.head": READ, "model.trained": READ, "model.rank": READ, "start.kind": READ,
    "start.sha256": "the site: it starts only from a weight file that lies in its own local/weights",
    "start.tensors": READ, "training.rounds": "most_rounds", "training.work.unit": READ,
    "training.work.amount": READ, "training.batch.unit": READ, "training.batch.amount": READ,
    "training.optimizer.name": READ, "training.optimizer.lr": READ, "training.optimizer.momentum": READ,
    "training.optimizer.nesterov": READ, "training.optimizer.weight_decay": READ, "training.optimizer.state": READ,
    "training.optimizer.beta1": READ, "training.optimizer.beta2": READ, "training.optimizer.epsilon": READ,
    "training.class_weights": READ, "training.aggregation": READ, "training.seed": READ, "method.name": "methods",
    "method.penalties.attribute": "metrics", "method.penalties.criterion": READ, "method.penalties.utility": READ,
    "method.penalties.weights": READ, "method.penalties.reduction": READ, "method.penalties.form": READ,
    "method.penalties.strength": READ, "method.refresh": "metrics", "method.refresh.rounds": READ,
    "method.remeasure_own": READ, "method.scaling": READ, "method.min_weight": READ, "method.max_weight": READ,
    "method.utility_clip": READ, "method.claims.attribute": "attributes", "method.claims.criterion": READ,
    "method.claims.gap": READ, "method.alpha": READ,
    "method.mu": READ, "method.global_lr": READ, "method.correction": READ, "method.control_lr": READ,
    "method.control_clip": READ, "method.normalize": "metrics", "method.beta": "metrics",
    "method.attribute": "attributes", "method.criterion": READ, "method.gap": READ, "method.first_round": READ,
    "method.strength": READ, "method.direction": READ, "method.output": READ, "method.balance": READ,
    "method.power": READ, "protection.update": "protection",
    "protection.statistics": "protection", "protection.masking.colluders": "colluders",
    "protection.masking.clip": READ, "protection.masking.norm_clip": READ,
    "protection.masking.weight_unit": "weight_unit", "protection.masking.max_stale": READ,
    "protection.masking.when_stale": READ, "differential_privacy.clip": READ,
    **dict.fromkeys(  # by the site's ledger, which refuses what costs more than is left
        (f"differential_privacy.{one}" for one in ("noise_multiplier", "count_noise", "groups.noise_multiplier")),
        "differential_privacy",
    ),
    **dict.fromkeys(
        (f"differential_privacy.{one}" for one in ("records_per_unit", "gradients", "groups.groups_per_unit")), READ
    ),
    "differential_privacy.groups.shared": "consents", "consents": "consents",
    "federation.min_sites": "least_sites", "federation.task_timeout_seconds": READ, "federation.max_missed": READ,
    "evaluation.score_bins": "most_score_bins", "evaluation.threshold": READ,
}  # fmt: skip


def _leaves(annotation: Any, place: str) -> Iterator[str]:
    models = [one for one in _inside(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    if not models or any(not (isinstance(one, type) and issubclass(one, BaseModel)) for one in _plain(annotation)):
        yield place
    for model in models:
        for name, field in model.model_fields.items():
            yield from _leaves(field.annotation, f"{place}.{name}")


def _plain(annotation: Any) -> list[Any]:
    return [] if _inside(annotation) == [annotation] else [one for one in get_args(annotation) if one is not type(None)
            and not any(isinstance(part, type) and issubclass(part, BaseModel) for part in _inside(one))
            and one is not ...]  # fmt: skip


def _inside(annotation: Any) -> list[Any]:
    parts = get_args(annotation)
    return [annotation] if not parts else [one for part in parts for one in _inside(part)]


def test_every_field_of_a_plan_is_bounded_or_known_not_to_be() -> None:
    leaves = {leaf.removeprefix(".") for leaf in _leaves(Plan, "")}
    assert leaves == set(BOUND)
    assert {bound for bound in BOUND.values() if bound.isidentifier()} <= set(SitePolicy.model_fields)


def test_a_policy_is_what_was_written(tmp_path: Path) -> None:
    for policy in (
        standard_policy(STORE).model_copy(update={"peers": {"north": "ab" * 32}, "models": ("mlp", "cnn")}),
        open_policy(STORE),
        strict_policy(STORE, peers={"north": "ab" * 32}, **LISTS),  # type: ignore[arg-type]
    ):
        write_policy(tmp_path, policy)
        assert read_policy(tmp_path) == policy == read_policy(tmp_path / POLICY_NAME)


BROKEN = {
    "a relative store": ({"store": "data"}, "FF-POLICY-RULE"),
    "a store that no system has": ({"store": "/srv/\u0000"}, "FF-POLICY-RULE"),
    "a store that is an order to a terminal": ({"store": "/srv/\u001b[2J"}, "FF-POLICY-RULE"),
    "nobody as a peer": ({"peers": {}}, "FF-POLICY-RULE"),
    "a plan that is no hash": ({"plans": ["heart"]}, "FF-POLICY-VALUE"),
    "an unknown consent": ({"consents": ["everything"]}, "FF-POLICY-VALUE"),
    "a short key": ({"peers": {"north": "ab"}}, "FF-POLICY-VALUE"),
    "a site that is a path": ({"peers": {"../north": "ab" * 32}}, "FF-POLICY-RULE"),
    "another word": ({"protection": {"update": "secret", "statistics": "masked"}}, "FF-POLICY-VALUE"),
    "the protection of the version before": ({"protection": "masked"}, "FF-POLICY-VALUE"),
    "a negative number": ({"cohort_changes": -1}, "FF-POLICY-VALUE"),
    "an unknown key": ({"cohort_change": 1}, "FF-POLICY-UNKNOWN-KEY"),
    "an unknown network": ({"models": ["resnet"]}, "FF-POLICY-RULE"),
    "an unknown method": ({"methods": ["fedproxy"]}, "FF-POLICY-RULE"),
    "an unknown kind of numbers": ({"metrics": ["everything"]}, "FF-POLICY-VALUE"),
    "signed approvals, and any plan": ({"approvals": "signed", "plans": None}, "FF-POLICY-RULE"),
    "signed approvals, and a list": ({"approvals": "signed", "plans": ["ab" * 32]}, "FF-POLICY-RULE"),
    "a day that is none": ({"expires": "2030-02-30"}, "FF-POLICY-RULE"),
    "a day in another form": ({"expires": "31.12.2030"}, "FF-POLICY-VALUE"),
    "nothing to spend": (
        {"differential_privacy": {"epsilon": 0.0, "delta": 1e-5, "relation": "replace"}},
        "FF-POLICY-VALUE",
    ),
    "a budget that does not say what for": (
        {"differential_privacy": {"epsilon": 1.0, "delta": 1e-5}},
        "FF-POLICY-MISSING-KEY",
    ),
    "a package that is no hash": ({"package": "0.1.0"}, "FF-POLICY-VALUE"),
    "no format": ({"format": "fairflare/policy/4"}, "FF-POLICY-VALUE"),
}


@pytest.mark.parametrize(("changes", "code"), BROKEN.values(), ids=BROKEN)
def test_a_broken_policy_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    data = {**json.loads(schema.pretty(standard_policy(STORE))), **changes}
    (tmp_path / POLICY_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        read_policy(tmp_path)
    assert caught.value.code == code


@pytest.mark.parametrize("field", sorted(SitePolicy.model_fields))
def test_a_missing_key_is_refused(tmp_path: Path, field: str) -> None:
    data = json.loads(schema.pretty(standard_policy(STORE)))
    del data[field]
    (tmp_path / POLICY_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError, match="FF-POLICY-MISSING-KEY"):
        read_policy(tmp_path)


def test_a_policy_of_the_version_before_says_what_to_do(tmp_path: Path) -> None:
    former = {"format": "fairflare/policy/1", "store": "/var/lib/fairflare", "protection": "masked", "plans": []}
    (tmp_path / POLICY_NAME).write_text(json.dumps(former), encoding="utf-8")
    with pytest.raises(PolicyError, match="fairflare policy new") as caught:
        read_policy(tmp_path)
    assert caught.value.code == "FF-POLICY-FORMAT"


def test_a_policy_without_a_package_is_told_which_line_it_lacks(tmp_path: Path) -> None:
    former = {**json.loads(schema.pretty(standard_policy(STORE))), "format": "fairflare/policy/2"}
    del former["package"]
    (tmp_path / POLICY_NAME).write_text(json.dumps(former), encoding="utf-8")
    with pytest.raises(PolicyError, match='a line "package": null') as caught:
        read_policy(tmp_path)
    assert caught.value.code == "FF-POLICY-FORMAT"
    # Doing as it says is enough.
    written = {**former, "format": "fairflare/policy/3", "package": None}
    (tmp_path / POLICY_NAME).write_text(json.dumps(written), encoding="utf-8")
    assert read_policy(tmp_path) == standard_policy(STORE)


def test_of_several_codes_the_package_comes_first() -> None:
    policy = open_policy(STORE).model_copy(update={"package": "ab" * 32, "expires": "2030-05-16", "least_sites": 9})
    codes = [one.code for one in policy.check(plan(), today=TODAY)]
    assert codes == ["FF-POLICY-PACKAGE", "FF-POLICY-EXPIRED", "FF-POLICY-REFUSED"]
    with pytest.raises(PolicyError, match="install that wheel") as caught:
        policy.verify(plan(), today=TODAY)
    assert caught.value.code == "FF-POLICY-PACKAGE"
    with pytest.raises(PolicyError, match="a new day in 'expires'"):
        policy.model_copy(update={"package": installed_digest()}).verify(plan(), today=TODAY)


def test_a_package_that_cannot_be_read_is_none_that_a_policy_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread() -> str:
        raise PolicyError("FF-POLICY-PACKAGE", got="one that hides", expected="a plain one", next_step="look")

    monkeypatch.setattr("fairflare.policy.site.installed_digest", unread)
    (one,) = open_policy(STORE).model_copy(update={"package": "ab" * 32}).check(plan(), today=TODAY)
    assert str(one) == "package: got one that hides, expected the one that this site's policy names"
    open_policy(STORE).verify(plan(), today=TODAY)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", None], ids=["no text", "no JSON", "no file"])
def test_what_is_no_policy_says_so(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / POLICY_NAME).write_bytes(content)
    with pytest.raises(PolicyError, match=r"FF-POLICY-(FILE|JSON)"):
        read_policy(tmp_path / POLICY_NAME)


def test_a_policy_holds_through_its_last_day() -> None:
    policy = open_policy(STORE).model_copy(update={"expires": "2030-05-17"})
    assert not policy.is_expired(TODAY)
    assert policy.is_expired(date(2030, 5, 18))
    assert not policy.is_expired()
    assert open_policy(STORE).model_copy(update={"expires": "2020-01-01"}).is_expired()
    with pytest.raises(PolicyError, match="FF-POLICY-EXPIRED"):
        policy.verify(plan(protection=presets.UNPROTECTED), today=date(2030, 5, 18))


def test_terms_are_everything_but_the_list_of_plans() -> None:
    policy = standard_policy(STORE)
    assert policy.model_copy(update={"plans": ("ab" * 32,)}).terms_sha256 == policy.terms_sha256
    assert policy.model_copy(update={"plans": None}).terms_sha256 == policy.terms_sha256
    changes = {"cohort_changes": 1, "peers": {"north": "ab" * 32}, "store": "/elsewhere", "expires": "2030-01-01"}
    for field, value in changes.items():
        assert policy.model_copy(update={field: value}).terms_sha256 != policy.terms_sha256


def test_a_part_of_a_network_is_allowed_where_both_its_names_are() -> None:
    open_policy(STORE).model_copy(update={"models": ("mlp", "part")}).verify(plan(model=HEAD_OF_MLP))


def test_the_names_of_networks_and_methods_are_the_plans() -> None:
    assert "mlp" in MODELS and "sanet" in MODELS and "part" in MODELS  # noqa: PT018 - one list
    assert set(METHODS) == set(ALL) and len(METHODS) == len(ALL)  # noqa: PT018 - no more, and each once


def test_the_schema_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        standard_policy(STORE).store = "/"  # type: ignore[misc]
    assert SitePolicy.model_config["extra"] == "forbid"


def test_a_submitter_is_not_told_what_else_a_site_has() -> None:
    changes = {"data_sets": ("hiv_clinic",), "attributes": ("religion",), "features": ("postcode",)}
    words = " ".join(found(open_policy(STORE).model_copy(update=changes), plan()))
    assert not [name for names in changes.values() for name in names if name in words]
