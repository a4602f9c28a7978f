# SPDX-License-Identifier: Apache-2.0
"""Nothing that a feasibility job withholds follows from what it shows, however unequal the hospitals are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from fairflare import presets, schema
from fairflare.data.manifest import Records, SiteData
from fairflare.engine import vocabulary as module
from fairflare.engine.vocabulary import Shown, Tally, Vocabulary
from fairflare.plan import Plan, parse_plan

#: Every kind of record: sex and age (each with missing and coded otherwise), and label (with coded otherwise).
SEX, AGE, LABEL = (0, 1, -1, -2), (0, 1, -1, -2), (0, 1, -2)
KINDS = list(itertools.product(range(4), range(4), range(3)))
NAMES = ("all", "sex", "age", "sex_age")
SPLIT = "test"


def crossed(minimum: int, sites: int) -> Plan:
    data = json.loads(schema.pretty(presets.shipped("heart_feasibility")))
    data["cells"] = {"minimum": minimum, "sites": sites}
    data["intersections"] = [{"name": "sex_age", "of": ["sex", "age"]}]
    return parse_plan(json.dumps(data))


def place(name: str, kind: tuple[int, int, int]) -> tuple[int, int]:
    """Row and column of a kind of record in a table."""
    sex, age, label = kind
    both = 2 * sex + age if sex < 2 and age < 2 else 4
    return {"all": 0, "sex": sex, "age": age, "sex_age": both}[name], label


def hospital(random: np.random.Generator) -> SiteData:
    """Groups and labels of any shares; often nobody is missing, or coded otherwise."""

    def shares(size: int, ours: int) -> np.ndarray:
        drawn = random.dirichlet(np.full(size, random.choice([0.3, 1.0, 3.0])))
        drawn[ours:] *= random.random() < 0.4
        return np.asarray(drawn / drawn.sum())

    def records(n: int) -> Records:
        sex, age = random.choice(SEX, n, p=of_sex), random.choice(AGE, n, p=of_age)
        both = np.where((sex < 0) | (age < 0), -1, 2 * sex + age)
        labels = random.choice(LABEL, n, p=of_label)
        return Records(np.zeros((n, 0), dtype=np.float32), labels, {"sex": sex, "age": age, "sex_age": both})

    of_sex, of_age, of_label = shares(4, 2), shares(4, 2), shares(3, 2)
    n = int(random.choice([20, 60, 200]))
    return SiteData(records(n), records(n // 2), records(n), 0, records(0))


@dataclass
class Opened:
    """What hospitals have, what each may show, and what all may."""

    vocabulary: Vocabulary
    tallies: list[Tally]
    own: list[Shown]
    bits: np.ndarray
    shown: Shown

    def row(self, name: str, cell: tuple[int, int], sites: Iterator[int] | tuple[int, ...]) -> np.ndarray:
        """One cell over some sites, as a combination of the records of each kind at each site."""
        result = np.zeros((len(self.own), len(KINDS)))
        result[list(sites)] = [place(name, kind) == cell for kind in KINDS]
        return result.ravel()

    def sites(self, name: str, cell: tuple[int, int]) -> tuple[int, ...]:
        return tuple(at for at, own in enumerate(self.own) if own[SPLIT, name][cell])

    def value(self, name: str, cell: tuple[int, int]) -> int:
        return sum(int(self.tallies[at][SPLIT, name][cell]) for at in self.sites(name, cell))

    def cells(self, name: str) -> list[tuple[int, int]]:
        return [(int(r), int(c)) for r, c in zip(*np.nonzero(self.shown[SPLIT, name]), strict=True)]


def opened(seed: int, minimum: int, least: int, sites: int) -> Opened:
    random = np.random.default_rng(seed)
    vocabulary = Vocabulary(crossed(minimum, least))
    data = [hospital(random) for _ in range(sites)]
    tallies = [vocabulary.tally(one) for one in data]
    pairs = [vocabulary.own(one, tally) for one, tally in zip(data, tallies, strict=True)]
    bits = np.sum([pair[0] for pair in pairs], axis=0)
    return Opened(vocabulary, tallies, [pair[1] for pair in pairs], bits, vocabulary.shown(bits))


def known(found: Opened) -> Iterator[np.ndarray]:
    """What anybody learns who knows which sites are in which sum: sums, and whatever must be zero because of them."""
    sites = tuple(range(len(found.own)))
    yield np.ones(len(sites) * len(KINDS))  # the records of the split are opened as well
    for name in NAMES:
        for cell in found.cells(name):
            yield found.row(name, cell, found.sites(name, cell))
    for at, (attribute, word) in enumerate(found.vocabulary._uses):
        if found.bits[at] == 0 and attribute in ("sex", "age"):
            row = [one for name, one in found.vocabulary._uses if name == attribute].index(word)
            for site, label in itertools.product(sites, range(3)):
                yield from unit_rows(found, attribute, (row, label), (site,))
    for name, label in itertools.product(NAMES[1:], range(3)):
        if not found.shown[SPLIT, "all"][0, label]:
            continue
        parts = [cell for cell in found.cells(name) if cell[1] == label]
        if sum(found.value(name, cell) for cell in parts) == found.value("all", (0, label)):
            for row in range(found.shown[SPLIT, name].shape[0]):
                if (row, label) not in parts:
                    yield from unit_rows(found, name, (row, label), found.sites("all", (0, label)))


def unit_rows(found: Opened, name: str, cell: tuple[int, int], sites: tuple[int, ...]) -> Iterator[np.ndarray]:
    for row in np.diag(found.row(name, cell, sites)):
        if row.any():
            yield row


def leaks(found: Opened, minimum: int, least: int) -> int:
    """Cells of too few records, or of too few hospitals, that follow from what is known."""
    basis, scale, _ = np.linalg.svd(np.array(list(known(found))).T, full_matrices=False)
    basis, count = basis[:, scale > 1e-9], 0
    for name in NAMES:
        for cell in np.ndindex(found.shown[SPLIT, name].shape):
            having = [at for at, tally in enumerate(found.tallies) if tally[SPLIT, name][cell]]
            for size in range(1, len(having) + 1):
                for sites in itertools.combinations(having, size):
                    total = sum(int(found.tallies[at][SPLIT, name][cell]) for at in sites)
                    if total < minimum or len(sites) < least:
                        target = found.row(name, (int(cell[0]), int(cell[1])), sites)
                        count += bool(np.linalg.norm(target - basis @ (basis.T @ target)) < 1e-7)
    return count


CASES = [(5, 1, 1), (11, 1, 1), (5, 2, 3), (3, 2, 4), (5, 1, 2), (0, 2, 3)]


@pytest.mark.parametrize(("minimum", "least", "sites"), CASES)
def test_no_small_cell_and_no_single_hospital_follows_from_what_is_shown(minimum, least, sites):
    runs = [opened(seed, minimum, least, sites) for seed in range(10)]
    assert sum(len(one.cells(name)) for one in runs for name in NAMES) > 10
    assert [leaks(one, minimum, least) for one in runs] == [0] * len(runs)


def test_without_complementary_suppression_small_cells_would_follow(monkeypatch):
    monkeypatch.setattr(module, "kept_at_site", lambda count, total, minimum: (count >= max(minimum, 1), False))
    assert sum(leaks(opened(seed, 5, 1, 1), 5, 1) for seed in range(12)) > 0


def test_without_a_minimum_everything_is_shown_and_adds_up():
    found = opened(3, 0, 1, 3)
    for name in NAMES:
        total = np.sum([tally[SPLIT, name] for tally in found.tallies], axis=0)
        assert (found.shown[SPLIT, name] == (total > 0)).all()
        assert total.sum() == sum(tally[SPLIT, "all"].sum() for tally in found.tallies)


def test_a_record_of_the_counts_reads_back_as_the_same_vectors():
    found = opened(3, 5, 2, 3)
    counts = np.sum(
        [found.vocabulary.vector(t, s, found.shown) for t, s in zip(found.tallies, found.own, strict=True)], 0
    )
    assert counts.shape == (found.vocabulary.length,)
    assert found.bits.shape == (found.vocabulary.bits,)
    bits, again = found.vocabulary.vectors(found.vocabulary.record(found.bits, counts))
    assert (bits == found.bits).all()
    assert (again == counts).all()
