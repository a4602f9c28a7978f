# SPDX-License-Identifier: Apache-2.0
"""M: what encrypted statistics cost over masked ones: bytes, milliseconds, trips.

First the vector alone: 64 words, as group sums have them, at so many sites, with our parameters of CKKS and with those
of FLARE's builder. Then whole rounds of the table job in this process, masked and encrypted side by side, one round of
each in turn. The models must be the same to the bit; bytes are those of FLARE's serialisation, transport apart.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from nvflare.app_common.decomposers import common_decomposers

from fairflare import presets
from fairflare.data.manifest import load
from fairflare.he.ckks import SiteCipher, make_contexts
from fairflare.he.context import Files
from fairflare.he.parameters import FLARE, SMALL, Parameters
from fairflare.plan import parse_plan
from fairflare.schema import pretty
from fairflare.secagg.masking import add_masks
from tests.benchmarks import subjects
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.methods import Job, Seen
from tests.benchmarks.processes import say

SECTION = "M. Encrypted statistics against masked ones"
PARAMETERS: Mapping[str, Parameters] = {"4096 [54, 54] 2^30": SMALL, "8192 [60, 40, 40] 2^40": FLARE}
WORDS = 64
KINDS = ("masked", "ckks")


@dataclass(frozen=True)
class Size:
    """How much is run."""

    subjects: subjects.Size
    sites: tuple[int, ...]
    repeats: int
    rounds: int


FULL = Size(subjects.FULL, (4, 8, 50), 15, 21)
QUICK = Size(subjects.QUICK, (4,), 3, 3)


def cipher_of(parameters: Parameters) -> SiteCipher:
    """A site's cipher with a new key."""
    made = make_contexts(parameters)
    return SiteCipher(Files(made.client, made.record))


def all_figures(size: Size, folder: Path) -> list[Figure]:
    """The vector alone, then rounds."""
    figures: list[Figure] = []
    for words, parameters in PARAMETERS.items():
        figures += _alone(words, cipher_of(parameters), size)
    return [*figures, *_rounds(size, folder)]


# ----------------------------------------------------------------------------------------------------- the vector alone


def _alone(words: str, cipher: SiteCipher, size: Size) -> Iterator[Figure]:
    random = np.random.default_rng(1)
    for sites in size.sites:
        values = random.integers(0, 2**64, (sites, WORDS), dtype=np.uint64)
        payloads = [cipher.encrypt(one) for one in values]
        if not np.array_equal(cipher.total(payloads, WORDS), values.sum(axis=0, dtype=np.uint64)):
            raise RuntimeError(f"{words}: another sum of {sites} sites than that of the words")
        keys = [os.urandom(32) for _ in range(sites - 1)]
        mask = _times(partial(add_masks, values[0], keys, []), size.repeats)
        encrypt = _times(partial(cipher.encrypt, values[0]), size.repeats)
        add = _times(partial(_added, values), size.repeats)
        total = _times(partial(cipher.total, payloads, WORDS), size.repeats)
        make = partial(Figure, SECTION, f"{WORDS} words, {sites} sites, {words}")
        sent = float(np.median([one.size for one in payloads]))
        yield make("up", "up from a site, encrypted", sent / 1e3, "kB", remark=f"masked: {WORDS * 8 / 1e3:g} kB")
        yield make("down", "down to a site: everybody's", sites * sent / 1e3, "kB",
                   remark=f"masked: {sites * WORDS * 8 / 1e3:g} kB")  # fmt: skip
        yield make("mask", "a site masks", unit="ms", **spread(mask), remark="keystreams only; both kinds do it")
        yield make("encrypt", "a site encrypts on top", unit="ms", **spread(encrypt), remark="serialisation included")
        yield make("add", "a site adds everybody's words, masked", unit="ms", **spread(add))
        yield make("open", "a site adds everybody's ciphertexts and decrypts the sum", unit="ms", **spread(total))
        say(f"{words}, {sites} sites: {sent / 1e3:.1f} kB up, {np.median(encrypt):.2f} + {np.median(total):.2f} ms")


def _added(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.sum(axis=0, dtype=np.uint64))


def _times(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1e3)
    return found


# --------------------------------------------------------------------------------------------------------------- rounds


@dataclass
class Counted(Seen):
    """A job's rounds, and the messages to a site in each."""

    trips: list[int] = field(default_factory=list)


class CountingJob(Job):
    """A job that counts a round's trips."""

    trips = 0

    def _answer(self, weigh: object) -> float:
        self.trips += 1
        return super()._answer(weigh)  # type: ignore[arg-type]

    def counted(self, seen: Counted) -> None:
        """Play one round."""
        self.trips = 0
        self.round(seen)
        seen.trips.append(self.trips)


def _rounds(size: Size, folder: Path) -> Iterator[Figure]:
    common_decomposers.register()
    subject = subjects.mlp(size.subjects, folder / "data")
    data = {
        site: load(subject.plan, subject.catalog.entry(site, subject.plan.task.data_set))
        for site in sorted(subject.catalog.site_names)
    }
    cipher = cipher_of(SMALL)
    jobs, seen = {}, {kind: Counted() for kind in KINDS}
    for kind in KINDS:
        plan = json.loads(pretty(subject.plan))
        plan["protection"] = {**presets.MASKED, "statistics": kind}
        plan["training"]["rounds"] = size.rounds + 1
        jobs[kind] = CountingJob(parse_plan(json.dumps(plan)), data, folder / kind, cipher)
    for number in range(size.rounds):
        for kind in KINDS[:: 1 if number % 2 == 0 else -1]:
            jobs[kind].counted(seen[kind])
    models = {tuple(line.model_sha256 for line in jobs[kind].coordinator.record.rounds) for kind in KINDS}
    if len(models) != 1:
        raise RuntimeError("encrypted statistics give other models than masked ones")
    yield from _round_figures(f"{subject.name}, {len(data)} sites", seen)


def _round_figures(words: str, seen: Mapping[str, Counted]) -> Iterator[Figure]:
    make = partial(Figure, SECTION, words)
    masked, encrypted = (seen[kind] for kind in KINDS)
    for kind, one in seen.items():
        yield make(f"{kind}_seconds", f"{kind}, one round: all sites in turn, and the server", unit="s",
                   **spread(one.seconds), remark="the same models, to the bit")  # fmt: skip
        yield make(f"{kind}_down", f"{kind}, down to a site in a round", one.down / 1e3, "kB")
        yield make(f"{kind}_up", f"{kind}, up from a site in a round", one.up / 1e3, "kB")
        yield make(f"{kind}_trips", f"{kind}, trips of a round", float(np.median(one.trips)), "")
    added = [1e3 * (own - base) for own, base in zip(encrypted.seconds, masked.seconds, strict=True)]
    yield make("added", "encryption adds to a round of all sites", unit="ms", **spread(added))
    kb = {kind: one.bytes / 1e3 for kind, one in seen.items()}
    say(f"{words}: {np.median(added):.1f} ms a round more, {kb['ckks']:.0f} against {kb['masked']:.0f} kB")
