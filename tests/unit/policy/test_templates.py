# SPDX-License-Identifier: Apache-2.0
"""Graded means: whatever strict allows, standard allows, and open allows; and kinds of numbers are the layouts'."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare import presets
from fairflare.engine.messages import layout_of
from fairflare.errors import PolicyError
from fairflare.fairness.groups import EVERYBODY, HOSPITAL, Measure
from fairflare.methods import METHODS, Part, Scaffold
from fairflare.plan import Plan
from fairflare.policy import KINDS, SitePolicy, kinds_of, open_policy, standard_policy, strict_policy
from fairflare.policy.compare import compare, to_template
from fairflare.policy.kinds import MEANINGS, WITH_PRIVACY, exact_kinds
from fairflare.policy.package import installed_digest
from fairflare.policy.words import NOT_PREVENTED, against_template, explain, kinds_in_words
from tests.unit.policy.support import STORE, plan

TODAY = date(2030, 5, 17)
PEERS = {"north": "ab" * 32}
STRICT = strict_policy(
    STORE, package=installed_digest(), peers=PEERS, data_sets=("heart", "skin"), attributes=("sex", "age"),
    features=("chol",), today=TODAY,
)  # fmt: skip
PLANS = {name: make(name) for name, make in presets.PRESETS.items()}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans that a strict policy may like, or not."""
    base = draw(st.sampled_from([PLANS["heart_flexfair"], PLANS["skin_flexfair"], PLANS["heart_feasibility"]]))
    changes: dict[str, Any] = {
        "cells": {
            "minimum": draw(st.sampled_from([0, 10, 11, 20])), "sites": draw(st.sampled_from([2, 3, 4])),
        },
        "federation__min_sites": draw(st.sampled_from([3, 4, 6])),
        "training__rounds": draw(st.sampled_from([1, 200, 201, 1001])),
        "evaluation__score_bins": draw(st.sampled_from([200, 202, 1002])),
    }  # fmt: skip
    if base.task.data_set == "heart":
        wanted = draw(st.sampled_from(["chol", "postcode"]))
        changes["task__input__features"] = [{"name": wanted, "center": 0.0, "scale": 1.0}]
    if draw(st.integers(0, 9)) == 0:
        changes["protection"] = presets.UNPROTECTED
    else:
        changes["protection__masking__weight_unit"] = draw(st.sampled_from([1, 10]))
    return plan(base, **changes)


def allows(policy: SitePolicy, wanted: Plan, approved: frozenset[str]) -> bool:
    return not list(policy.check(wanted, today=TODAY, approved=approved))


@given(plans(), st.booleans())
def test_what_a_stricter_template_allows_the_next_one_allows_too(wanted: Plan, signed: bool) -> None:
    approved = frozenset({wanted.sha256}) if signed else frozenset()
    graded = [allows(policy, wanted, approved) for policy in (STRICT, standard_policy(STORE), open_policy(STORE))]
    assert graded == sorted(graded)


def test_the_templates_differ_by_what_they_allow() -> None:
    """The property above is empty if strict allows nothing."""
    cells = {"minimum": 11, "sites": 4}
    features = [{"name": "chol", "center": 0.0, "scale": 1.0}]
    careful = plan(cells=cells, federation__min_sites=4, task__input__features=features)
    for policy in (STRICT, standard_policy(STORE)):
        policy.verify(careful, today=TODAY, approved={careful.sha256})
    three = plan(cells={"minimum": 11, "sites": 3})
    assert not allows(STRICT, three, frozenset({three.sha256}))
    assert allows(standard_policy(STORE), three, frozenset({three.sha256}))


STEPS = {
    "standard to strict": (
        STRICT,
        standard_policy(STORE),
        {"package", "peers", "least_sites", "data_sets", "attributes", "features", "cells_sites", "most_score_bins",
         "most_rounds", "approvals", "expires"},
    ),
    "open to standard": (
        standard_policy(STORE),
        open_policy(STORE),
        {"identities", "least_sites", "protection", "colluders", "weight_unit", "cells_minimum", "cells_sites",
         "cohort_changes", "metrics", "most_score_bins", "most_rounds", "plans", "consents"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("strict", "loose", "fields"), STEPS.values(), ids=STEPS)
def test_every_field_is_graded(strict: SitePolicy, loose: SitePolicy, fields: set[str]) -> None:
    relations = compare(strict, loose)
    assert {field for field, relation in relations.items() if relation == "stricter"} == fields
    assert set(relations.values()) == {"same", "stricter"}
    assert set(compare(loose, strict).values()) == {"same", "weaker"}
    assert list(relations) == [field for field in SitePolicy.model_fields if field not in ("format", "store")]


def test_the_strict_template_holds_for_a_year_and_allows_nothing_before_it_names_data() -> None:
    assert STRICT.expires == "2031-05-17"
    empty = strict_policy(STORE, peers=PEERS, today=TODAY)
    wanted = plan(cells={"minimum": 11, "sites": 4}, federation__min_sites=4)
    fields = {one.field for one in empty.check(wanted, today=TODAY, approved={wanted.sha256})}
    assert fields == {"task.data_set", "attributes", "task.input.features"}
    assert strict_policy(STORE).expires is not None


UNMASKED = {"protection": {"update": "none", "statistics": "none", "masking": None}}
CELLS = [{"minimum": 0, "sites": 1}, {"minimum": 1, "sites": 1}, {"minimum": 2, "sites": 1}, {"minimum": 0, "sites": 2}]


@pytest.mark.parametrize("cells", CELLS, ids=str)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_kinds_are_those_of_the_vectors_that_leave(name: str, masked: bool, cells: dict[str, int]) -> None:
    wanted = PLANS[name]
    masked |= wanted.differential_privacy is not None  # there is none without masks
    if cells["minimum"] == 0 or not wanted.method.lock_step:
        wanted = plan(wanted, cells=cells, **({} if masked else UNMASKED))
    layout = layout_of(wanted, 1000)
    risks = {risk_of(wanted, measure) for measure in layout.method.measures()}
    kinds = {
        "counts": {"counts"}, "present_records": {"counts"}, "cells": {"cells"}, "vocabulary": {"vocabulary"},
        "update": {"model_update"}, "controls": {"control_variate"}, "normalizer": {"local_steps"},
        "training_sums": {"training_loss"}, "risk_sums": risks, "distances": {"site_distance"},
        "batch_sums": {*risks, "step_risks"}, "validation_sums": {"evaluation_sums"},
        "test_sums": {"evaluation_sums"}, "validation_predictions": {"prediction_counts"},
        "test_predictions": {"prediction_counts"},
    }  # fmt: skip
    leaving = {kind for label in layout.vectors for kind in kinds[label]}
    assert set(kinds_of(wanted)) == leaving
    assert kinds_of(wanted) == tuple(kind for kind in KINDS if kind in leaving)


GROUPS = {"noise_multiplier": 10.0, "groups_per_unit": 1, "shared": False}
PRIVACY = {
    "clip": 1.0, "noise_multiplier": 1.0, "count_noise": 10.0, "records_per_unit": 1, "gradients": "hooks",
    "groups": None,
}  # fmt: skip
COVERED = {"fedavg": {"model_update"}, "flexfair": {"model_update", "group_risks"}}


@pytest.mark.parametrize("name", COVERED)
def test_with_differential_privacy_only_numbers_of_validation_and_test_are_exact(name: str) -> None:
    groups = GROUPS if name == "flexfair" else None
    clear = plan(PLANS[f"heart_{name}"], cells={"minimum": 11, "sites": 1})
    wanted = plan(clear, differential_privacy={**PRIVACY, "groups": groups})
    layout = layout_of(wanted, 1000)
    assert set(kinds_of(clear)) - set(kinds_of(wanted)) == {"training_loss"}
    assert "training_sums" not in layout.vectors
    assert exact_kinds(clear) == kinds_of(clear)
    # Cells of validation and test are decided by exact numbers, whatever is done about training.
    assert exact_kinds(wanted) == tuple(kind for kind in kinds_of(wanted) if kind not in COVERED[name])
    assert set(exact_kinds(wanted)) - {"cells"} == {"counts", "evaluation_sums"}
    assert set(kinds_of(clear)) <= set(WITH_PRIVACY)


def test_words_say_what_a_kind_is_with_differential_privacy_too() -> None:
    lines = {line.partition(":")[0]: line for line in kinds_in_words(standard_policy(STORE))}
    assert list(lines) == list(KINDS)
    assert lines["training_loss"].endswith("; with differential privacy: does not leave")
    assert "with differential privacy: exact" in lines["evaluation_sums"]
    assert "with differential privacy" not in lines["vocabulary"]
    assert lines["step_risks"].startswith("step_risks: never leaves: ")


def risk_of(wanted: Plan, measure: Measure) -> str:
    """The kind of what is summed over training records before a round."""
    if measure.utility == "presence":
        return "group_records"
    compared = {HOSPITAL} | ({EVERYBODY} if wanted.method.model_dump().get("attribute") == HOSPITAL else set())
    return "hospital_risks" if measure.attribute in compared else "group_risks"


#: Kinds that each method adds to FedAvg's, in the shipped jobs.
ADDED: dict[str, set[str]] = {
    "fedprox": set(), "scaffold": {"control_variate"}, "fednova": {"local_steps"},
    "fairfed": {"group_risks", "site_distance"}, "fairmixup": set(), "reweighting": {"group_records"},
    "flexfair": {"group_risks"},
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_what_a_method_sends_beside_an_update_is_of_kinds_of_its_own(name: str) -> None:
    plain = set(kinds_of(PLANS["heart_fedavg"]))
    assert set(kinds_of(PLANS[f"heart_{name}"])) - plain == ADDED[name]
    policy = open_policy(STORE).model_copy(update={"metrics": tuple(sorted(plain))})
    assert {one.field for one in policy.check(PLANS[f"heart_{name}"])} == ({"metrics"} if ADDED[name] else set())


def test_hospitals_that_are_compared_by_fairfed_are_told_so() -> None:
    assert {"hospital_risks", "site_distance"} <= set(kinds_of(PLANS["fundus_fairfed"]))
    assert "group_risks" not in kinds_of(PLANS["fundus_fairfed"])
    nothing = {**PLANS["fundus_fairfed"].method.model_dump(), "beta": 0.0}
    assert set(kinds_of(plan(PLANS["fundus_fairfed"], method=nothing))) == set(kinds_of(PLANS["fundus_fedavg"]))


def test_every_method_is_in_a_preset() -> None:
    """So the comparison above has seen whatever a method sends."""
    assert {wanted.method.name for wanted in PLANS.values()} == set(METHODS)


def test_a_part_that_no_kind_is_known_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scaffold, "parts", lambda self, parameters: {"secrets": Part(1)})
    with pytest.raises(PolicyError, match="FF-POLICY-KIND"):
        kinds_of(PLANS["heart_scaffold"])


def test_every_kind_is_of_some_plan_and_has_a_meaning() -> None:
    assert {kind for wanted in PLANS.values() for kind in kinds_of(wanted)} == set(KINDS) == set(MEANINGS)


# ---------------------------------------------------------------------------------------------------------- comparison

CHANGES: dict[str, tuple[object, str]] = {
    "package": ("ab" * 32, "stricter"),
    "identities": ("development", "weaker"),
    "peers": ({"north": "ab" * 32}, "stricter"),
    "least_sites": (2, "weaker"),
    "tasks": (("segmentation",), "stricter"),
    "data_sets": (("heart",), "stricter"),
    "models": ((), "stricter"),
    "methods": (("fedavg",), "stricter"),
    "attributes": (("sex",), "stricter"),
    "features": (("chol",), "stricter"),
    "colluders": (2, "stricter"),
    "weight_unit": (1, "weaker"),
    "cells_minimum": (5, "weaker"),
    "cells_sites": (4, "stricter"),
    "cohort_changes": (1, "weaker"),
    "metrics": (None, "weaker"),
    "most_score_bins": (None, "weaker"),
    "most_rounds": (10, "stricter"),
    "plans": (None, "weaker"),
    "approvals": ("signed", "stricter"),
    "consents": (("open_hospital_risks",), "weaker"),
    "expires": ("2031-01-01", "stricter"),
}


@pytest.mark.parametrize(("field", "value", "relation"), [(field, *rest) for field, rest in CHANGES.items()])
def test_a_field_is_stricter_or_weaker_than_standard(field: str, value: object, relation: str) -> None:
    standard = standard_policy(STORE)
    policy = standard.model_copy(update={field: value})
    assert compare(policy, standard) == {**dict.fromkeys(compare(policy, standard), "same"), field: relation}
    name, relations = to_template(policy)
    assert (name, relations[field]) == ("standard", relation)
    assert f"{relation.capitalize()} than standard in {field}." in against_template(policy)


def test_pairs_are_compared_part_by_part() -> None:
    from fairflare.policy import LeastProtection, MostPrivacyLoss

    standard = standard_policy(STORE)
    half = standard.model_copy(update={"protection": LeastProtection(update="masked", statistics="none")})
    other = standard.model_copy(update={"protection": LeastProtection(update="none", statistics="masked")})
    assert compare(half, standard)["protection"] == "weaker"
    assert compare(half, other)["protection"] == "different"
    sealed = standard.model_copy(update={"protection": LeastProtection(update="masked", statistics="ckks")})
    assert compare(sealed, standard)["protection"] == "stricter"
    assert compare(standard, sealed)["protection"] == "weaker"
    few, more, fewer, strange = (
        standard.model_copy(
            update={"differential_privacy": MostPrivacyLoss(epsilon=epsilon, delta=delta, relation=relation)}
        )
        for epsilon, delta, relation in [
            (1.0, 1e-5, "add_remove"), (2.0, 1e-6, "add_remove"), (1.0, 1e-5, "replace"), (1.5, 1e-5, "replace"),
        ]
    )  # fmt: skip
    assert compare(fewer, few)["differential_privacy"] == "stricter"
    assert compare(few, fewer)["differential_privacy"] == "weaker"
    assert compare(few, strange)["differential_privacy"] == "different"
    assert compare(few, standard)["differential_privacy"] == "stricter"
    assert compare(standard, few)["differential_privacy"] == "weaker"
    assert compare(few, more)["differential_privacy"] == "different"
    pinned = standard.model_copy(update={"peers": {"north": "ab" * 32}})
    both = standard.model_copy(update={"peers": {"north": "ab" * 32, "south": "cd" * 32}})
    another = standard.model_copy(update={"peers": {"north": "cd" * 32}})
    assert compare(pinned, both)["peers"] == "stricter"
    assert compare(pinned, another)["peers"] == "different"
    packages = (standard.model_copy(update={"package": one * 32}) for one in ("ab", "cd"))
    assert compare(*packages)["package"] == "different"
    tasks = (
        standard.model_copy(update={"tasks": ("classification",)}),
        standard.model_copy(update={"tasks": ("segmentation",)}),
    )
    assert compare(*tasks)["tasks"] == "different"


def test_what_an_owner_fills_in_is_no_difference_to_a_template() -> None:
    standard = standard_policy(STORE).model_copy(update={"plans": ("ab" * 32, "cd" * 32)})
    assert against_template(standard) == ("Nearest template: standard.", "It is as strict as standard in every field.")
    assert to_template(STRICT)[0] == "strict"
    assert set(to_template(STRICT)[1].values()) == {"same"}
    assert to_template(strict_policy(STORE))[1]["peers"] == "weaker"
    assert to_template(strict_policy(STORE))[1]["package"] == "weaker"
    assert to_template(open_policy(STORE))[0] == "open"


def test_a_difference_that_is_neither_is_told_too() -> None:
    from fairflare.policy import KINDS as ALL

    policy = standard_policy(STORE).model_copy(update={"metrics": ALL[1:]})
    assert "Other than standard in metrics." in against_template(policy)


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "policy", [open_policy(STORE), standard_policy(STORE), STRICT], ids=["open", "standard", "strict"]
)
def test_every_field_is_explained_once(policy: SitePolicy) -> None:
    said = [one for section in explain(policy) for one in section.fields]
    assert sorted(one.field for one in said) == sorted(field for field in SitePolicy.model_fields if field != "format")
    assert all(one.allows and one.forbids for one in said)
    assert all("  " not in text for one in said for text in (one.allows, one.forbids, one.limits))
    assert NOT_PREVENTED


def words(policy: SitePolicy, field: str) -> str:
    (one,) = [one for section in explain(policy) for one in section.fields if one.field == field]
    return f"{one.allows} | {one.forbids} | {one.limits}"


def test_words_follow_the_policy() -> None:
    from fairflare.policy import LeastProtection, MostPrivacyLoss

    standard = standard_policy(Path("/var/lib/fairflare"))
    half = standard.model_copy(update={"protection": LeastProtection(update="none", statistics="masked")})
    assert words(half, "protection").startswith("plans that mask statistics: the server sees sums only")
    sealed = standard.model_copy(update={"protection": LeastProtection(update="masked", statistics="ckks")})
    assert "of training records by group not even those" in words(sealed, "protection")
    assert "by group" not in words(standard, "protection")
    assert "sums of groups with 1 to 10 records" in words(standard, "cells_minimum")
    assert "a group of one patient" in words(standard.model_copy(update={"cells_minimum": 1}), "cells_minimum")
    most = MostPrivacyLoss(epsilon=3.0, delta=1e-5, relation="replace")
    spent = words(standard.model_copy(update={"differential_privacy": most}), "differential_privacy")
    assert "epsilon 3, delta 1e-05 of a data set, for one patient in another's place" in spent
    assert "sums of validation and test records stay exact" in spent
    assert "at any cost" in words(standard, "differential_privacy")
    assert "no numbers" in words(standard.model_copy(update={"metrics": ()}), "metrics")
    assert words(standard, "metrics").endswith("| step_risks | ")
    assert "nothing" in words(open_policy(STORE), "metrics")
    assert "1 plans" in words(standard.model_copy(update={"plans": ("ab" * 32,)}), "plans")
    assert words(standard.model_copy(update={"tasks": ("segmentation",)}), "tasks").startswith("segmentation | every")
