# SPDX-License-Identifier: Apache-2.0
"""How two policies compare, field by field: the same, stricter, weaker, or neither."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from fairflare.policy.site import STRENGTH, LeastProtection, MostPrivacyLoss, SitePolicy
from fairflare.policy.templates import open_policy, standard_policy, strict_policy

Relation = Literal["same", "stricter", "weaker", "different"]

#: What an owner fills in: a template says only whether it must be there.
_FILLED: Final = ("package", "peers", "data_sets", "attributes", "features", "plans", "expires")
#: Says nothing about terms.
_ASIDE: Final = ("format", "store")


def compare(policy: SitePolicy, other: SitePolicy) -> dict[str, Relation]:
    """How each field of ``policy`` stands to the same field of ``other``."""
    return {
        field: _relation(field, getattr(policy, field), getattr(other, field))
        for field in SitePolicy.model_fields
        if field not in _ASIDE
    }


def to_template(policy: SitePolicy) -> tuple[str, dict[str, Relation]]:
    """The nearest template's name, and how the fields stand to it; of two as near, the stricter one."""
    store = Path(policy.store)
    templates = {
        "strict": strict_policy(store, package="0" * 64, peers={"site": "0" * 64}),
        "standard": standard_policy(store),
        "open": open_policy(store),
    }
    found = {name: _to_one(policy, template) for name, template in templates.items()}
    nearest = min(found, key=lambda name: sum(one != "same" for one in found[name].values()))
    return nearest, found[nearest]


def _to_one(policy: SitePolicy, template: SitePolicy) -> dict[str, Relation]:
    filled = {field: _given(getattr(policy, field), getattr(template, field)) for field in _FILLED}
    return {**compare(policy, template), **filled}


def _given(value: object, wanted: object) -> Relation:
    if (value is None) == (wanted is None):
        return "same"
    return "weaker" if value is None else "stricter"


def _relation(field: str, a: Any, b: Any) -> Relation:
    rule = _RULES[field]
    to, fro = rule(a, b), rule(b, a)
    if to and fro:
        return "same"
    return "stricter" if to else "weaker" if fro else "different"


# Each says whether ``a`` allows nothing that ``b`` does not.


def _at_least(a: int, b: int) -> bool:
    return a >= b


def _at_most(a: float | str | None, b: Any) -> bool:
    return b is None or (a is not None and a <= b)


def _among(a: Collection[str] | None, b: Collection[str] | None) -> bool:
    return b is None or (a is not None and set(a) <= set(b))


def _only(a: str | None, b: str | None) -> bool:
    return b is None or a == b


def _pinned(a: Mapping[str, str] | None, b: Mapping[str, str] | None) -> bool:
    return b is None or (a is not None and set(a.items()) <= set(b.items()))


def _protected(a: LeastProtection, b: LeastProtection) -> bool:
    pairs = ((a.update, b.update), (a.statistics, b.statistics))
    return all(STRENGTH.index(own) >= STRENGTH.index(other) for own, other in pairs)


def is_within(a: MostPrivacyLoss | None, b: MostPrivacyLoss | None) -> bool:
    """Whether budget ``a`` allows nothing that ``b`` does not; ``None``: no limit."""
    if a is None or b is None:
        return b is None
    # Every plan costs as much or more where one patient may stand in another's place.
    return a.epsilon <= b.epsilon and a.delta <= b.delta and (a.relation == b.relation or a.relation == "replace")


def _words(*from_weak: str) -> Callable[[str, str], bool]:
    return lambda a, b: from_weak.index(a) >= from_weak.index(b)


_RULES: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "identities": _words("development", "kit"),
    "package": _only,
    "peers": _pinned,
    **dict.fromkeys(("least_sites", "colluders", "weight_unit", "cells_minimum", "cells_sites"), _at_least),
    **dict.fromkeys(
        ("tasks", "data_sets", "models", "methods", "attributes", "features", "metrics", "plans", "consents"), _among
    ),
    "protection": _protected,
    "cohort_changes": _at_most,
    "most_score_bins": _at_most,
    "most_rounds": _at_most,
    "differential_privacy": is_within,
    "approvals": _words("listed", "signed"),
    "expires": _at_most,
}
