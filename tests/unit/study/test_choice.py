# SPDX-License-Identifier: Apache-2.0
"""How a configuration is chosen: by one rule, from validation data, never helped by a seed that failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from fairflare.study.choice import choose
from fairflare.study.measures import GapColumn, Measures, View
from fairflare.study.results import Findings
from fairflare.study.runs import Key
from fairflare.study.spec import Study
from tests.unit.study.small import FEDAVG, FLEXFAIR, result, study, task

SEX = GapColumn("sex", "equal_opportunity_difference", "true_positive_rate", ("female", "male"))
AGE = GapColumn("age", "equal_opportunity_difference", "true_positive_rate", ("lt60", "ge60"))
QUALITY, GAP, OLD = "all:roc_auc", SEX.value, AGE.value
Runs = Sequence[Mapping[str, float | None] | None]


def runs(*pairs: tuple[float | None, float | None] | None) -> list[dict[str, float | None] | None]:
    return [None if pair is None else {QUALITY: pair[0], GAP: pair[1], OLD: 0.0} for pair in pairs]


def chosen(tried: Mapping[str, Runs], allowed: float | None = 0.02, *gaps: GapColumn) -> str | None:
    view = View("roc_auc", gaps or ((SEX,) if allowed is not None else ()))
    return choose({label: [None if one is None else dict(one) for one in some] for label, some in tried.items()},
                  view, allowed)  # fmt: skip


def test_the_smallest_gap_within_the_loss_allowed() -> None:
    tried = {"best": runs((0.90, 0.3)), "fair": runs((0.885, 0.1)), "fairest": runs((0.87, 0.0))}
    assert chosen(tried) == "fair"
    assert chosen(tried, 0.0) == "best"
    assert chosen(tried, 0.03) == "fairest"
    assert chosen(tried, None) == "best"


def test_means_over_seeds_decide() -> None:
    tried = {"steady": runs((0.8, 0.2), (0.8, 0.2)), "lucky": runs((0.95, 0.0), (0.5, 0.6))}
    assert chosen(tried) == "steady"


def test_the_mean_of_several_gaps_decides() -> None:
    tried = {
        "a": [{QUALITY: 0.9, GAP: 0.0, OLD: 0.5}],
        "b": [{QUALITY: 0.9, GAP: 0.2, OLD: 0.2}],
    }
    assert chosen(tried, 0.02, SEX, AGE) == "b"
    assert chosen(tried, 0.02, SEX) == "a"


def test_a_configuration_does_not_gain_by_failing() -> None:
    tried = {"whole": runs((0.8, 0.2), (0.7, 0.3)), "half": runs((0.9, 0.0), None)}
    assert chosen(tried) == chosen(tried, None) == "whole"
    assert chosen({**tried, "whole": runs(None, None)}) == "half"


def test_a_number_that_is_not_estimable_is_no_zero() -> None:
    assert chosen({"a": runs((0.9, None)), "b": runs((0.9, 0.5))}) == "b"
    assert chosen({"a": runs((0.9, None))}) is None


def test_nothing_is_chosen_where_everything_failed() -> None:
    assert chosen({"a": runs(None), "b": []}) is None
    assert chosen({}) is None


def test_of_equals_the_first() -> None:
    assert chosen({"one": runs((0.9, 0.1)), "two": runs((0.9, 0.1))}) == "one"
    assert chosen({"one": runs((0.1 + 0.2, 0.1)), "two": runs((0.3, 0.1))}, None) == "one"


numbers = st.floats(0, 1)


@given(st.dictionaries(st.text("abc", min_size=1), st.lists(st.tuples(numbers, numbers), min_size=2, max_size=2)))
def test_what_is_chosen_is_within_the_bound_and_nothing_there_is_fairer(
    tried: dict[str, list[tuple[float, float]]],
) -> None:
    label = chosen({name: runs(*some) for name, some in tried.items()})
    means = {name: (sum(q for q, _ in some) / 2, sum(g for _, g in some) / 2) for name, some in tried.items()}
    if label is None:
        assert not tried
        return
    best = max(quality for quality, _ in means.values())
    able = {name: gap for name, (quality, gap) in means.items() if quality >= best - 0.02 - 1e-12}
    assert label in able
    assert able[label] <= min(able.values()) + 1e-12


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=4, max_size=4), st.permutations(range(4)))
def test_test_data_decide_nothing(seen: list[tuple[float, float, float, float]], other: list[int]) -> None:
    # The same validation numbers with the test numbers of other runs: the same configurations are chosen.
    assert findings(seen, list(range(4))).chosen == findings(seen, other).chosen


def findings(seen: list[tuple[float, float, float, float]], order: list[int]) -> Findings:
    data = study(tasks=[task()], methods=[FEDAVG, FLEXFAIR], seeds=[0])
    parsed = Study.model_validate_json(json.dumps(data))
    labels = [("fedavg", "slow"), ("fedavg", "fast"), ("flexfair", "s1"), ("flexfair", "s8")]
    outcomes = {
        Key("heart", "none", method, label, 0): result(
            {QUALITY: seen[at][0], GAP: seen[at][1]}, {QUALITY: seen[order[at]][2], GAP: seen[order[at]][3]}
        )
        for at, (method, label) in enumerate(labels)
    }
    view = View("roc_auc", (SEX,))
    return Findings.of(parsed, [], outcomes, {"heart": Measures("two_labels", view, view)})
