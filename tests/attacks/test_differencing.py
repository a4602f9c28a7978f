# SPDX-License-Identifier: Apache-2.0
"""Attacks by arithmetic on sums that were opened rightly: over nearly the same sites, or of too much at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.fixedpoint import StatisticsCodec
from fairflare.secagg.memory import Memory
from fairflare.secagg.params import VectorParams
from tests.attacks.federation import LENGTH, Federation, Forgetful, params, refused, site_names, vectors

VICTIM = "site-02"
NAMES = site_names(5)


# --------------------------------------------------------------------------- differencing: attack 12 of the second list


def closed_sum(federation: Federation, values: Mapping[str, np.ndarray], fl_round: int) -> np.ndarray:
    seen = federation.uploaded({name: values[name] for name in federation.names}, "risk", fl_round)
    return federation.server.opened(seen.number)


def ask_with_and_without(memories: Mapping[str, Memory], changes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same statistic over all sites, and, in a later round and a session of its own, over all but one."""
    values = vectors(NAMES, 64)
    everybody = closed_sum(Federation(NAMES, memories=memories, cohort_changes=changes), values, 0)
    fewer = [name for name in NAMES if name != VICTIM]
    others = closed_sum(Federation(fewer, memories=memories, cohort_changes=changes), values, 1)
    return everybody - others, values[VICTIM]


def test_a_statistic_is_not_opened_over_all_sites_but_one() -> None:
    memories = {name: RevealMemory.volatile() for name in NAMES}
    with refused("COHORT"):
        ask_with_and_without(memories)
    # Not over other sites either, and still over the first ones.
    with refused("COHORT"):
        closed_sum(Federation(NAMES[1:], memories=memories), vectors(NAMES, 64), 2)
    closed_sum(Federation(NAMES, memories=memories), vectors(NAMES, 64), 2)


def test_a_statistic_over_all_sites_but_one_gives_it_away_where_cohorts_are_forgotten() -> None:
    found, secret = ask_with_and_without({name: Forgetful() for name in NAMES})
    assert np.array_equal(found, secret)


def test_a_policy_that_allows_another_cohort_allows_the_attack_once() -> None:
    """The number is the site's, it is written down, and it is used up."""
    memories = {name: RevealMemory.volatile() for name in NAMES}
    found, secret = ask_with_and_without(memories, changes=1)
    assert np.array_equal(found, secret)
    with refused("COHORT"):
        closed_sum(Federation(NAMES[1:], memories=memories, cohort_changes=1), vectors(NAMES, 64), 2)


def test_another_job_or_plan_is_no_way_around() -> None:
    memories = {name: RevealMemory.volatile() for name in NAMES}
    values = vectors(NAMES, 64)
    closed_sum(Federation(NAMES, memories=memories), values, 0)
    fewer = [name for name in NAMES if name != VICTIM]
    other = params(plan_sha256="cd" * 32)
    with refused("COHORT"):
        closed_sum(Federation(fewer, other, memories=memories), values, 0)


# --------------------------------------------------------------------------- equal accuracy: attack 9 of the first list


def ask_for_squares(federation: Federation, risks: Mapping[str, float]) -> tuple[float, float]:
    """Open the sum of the sites' risks, and the sum of their squares, too."""
    codec, found = StatisticsCodec(len(federation.names)), []
    for label, power in (("risk", 1), ("risk_squares", 2)):
        values = {name: codec.encode(np.full(LENGTH, risk**power)) for name, risk in risks.items()}
        seen = federation.uploaded(values, label)
        found.append(float(codec.decode(federation.server.opened(seen.number))[0]))
    return found[0], found[1]


RISKS = {"site-00": 0.375, "site-01": 0.25, "site-02": 0.8125}


def two_others(total: float, squares: float, own: float) -> list[float]:
    """Two numbers from their sum and the sum of their squares."""
    rest, rest_squares = total - own, squares - own**2
    root = (2 * rest_squares - rest**2) ** 0.5
    return sorted([(rest - root) / 2, (rest + root) / 2])


def test_the_sum_of_squares_is_no_vector_of_the_job() -> None:
    """The plan's vectors stand in every JOIN; the server cannot add one."""
    federation = Federation(3)
    with refused("LABEL"):
        ask_for_squares(federation, RISKS)
    site = federation.sites["site-00"]
    with refused("LABEL"):
        site.keys([replace(federation.server.offer("risk", 1), label="risk_squares")])


def test_with_the_sum_of_squares_each_of_three_sites_reads_the_other_two() -> None:
    squares = VectorParams("risk_squares", "closed", LENGTH, 64, 32, 0.0)
    federation = Federation(3, replace(params(), vectors=(*params().vectors, squares)))
    total, sum_of_squares = ask_for_squares(federation, RISKS)
    found = two_others(total, sum_of_squares, RISKS["site-00"])
    assert found == pytest.approx([RISKS["site-01"], RISKS["site-02"]], abs=1e-6)


def test_a_plan_for_four_groups_is_not_opened_over_three_sites() -> None:
    federation = Federation(3, params(least_sites=4), begin=False)
    with refused("SITES", "3 sites"):
        federation.begin()
