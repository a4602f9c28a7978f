# SPDX-License-Identifier: Apache-2.0
"""What methods beside FedAvg show: every byte that the server gets is searched for what only one site may know.

A masked job must show none of it, in no encoding, and no message may be longer for other data. The same search finds it
in a job without masks. Then orders of a hostile server: comparisons, distances and controls that no honest one sends.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairflare.data.manifest import SiteData
from fairflare.engine.local import local_masks, software
from fairflare.engine.local_work import LocalWork
from fairflare.engine.messages import Message, Reply
from fairflare.engine.roles import coordinator_of, site_of
from fairflare.engine.server import Phase, Start
from fairflare.engine.site import Site
from fairflare.errors import FairFlareError
from fairflare.fairness.groups import pack
from fairflare.methods import METHODS
from fairflare.methods.fednova import norm_of_steps
from fairflare.secagg.envelope import DOWN, UP, unpack
from fairflare.secagg.envelope import pack as packed
from fairflare.secagg.parts import PartsCodec
from tests.attacks.hostile import Hostile
from tests.attacks.test_engine import COLLUDER, OTHERS, VICTIM, TwoOpenings
from tests.attacks.test_leakage import known
from tests.unit.engine.hospitals import four, hospital
from tests.unit.methods.contract import ROWS, plan_of

Loaders = Mapping[str, Callable[[], SiteData]]
#: Where and when: site, task, round.
Place = tuple[str, str, int]
Change = Callable[[Message], Sequence[Message]]
ONE = 2**32
SEARCHED = [row for row in ROWS if row.trains]
FAIRFED = next(row for row in ROWS if row.name == "fairfed")
SCAFFOLD = next(row for row in ROWS if row.name == "scaffold")
methods = pytest.mark.parametrize("row", SEARCHED, ids=lambda row: row.name)


def other_four() -> Loaders:
    """Other hospitals under the same names: more records, other ones."""
    sizes = {"amber": 53, "beryl": 31, "coral": 72, "dune": 44}
    return {name: (lambda n=n, k=k: hospital(n, 1000 + 100 * k, -0.2 * k)) for k, (name, n) in enumerate(sizes.items())}


# ------------------------------------------------------------------------------------------- every byte at the server


@dataclass
class Seen:
    """Bytes that reached the server by place, and what each site knew as it sent them, by kind."""

    bytes_of: dict[Place, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    secrets: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    vectors: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    status: str = ""

    def sizes(self) -> dict[Place, list[int]]:
        return {place: [len(data) for data in found] for place, found in self.bytes_of.items()}


def watch(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down what a site knows: its share, records, steps, weight, update, controls, distance and group sums."""
    begin, finish, compare = LocalWork.begin, LocalWork.finish, LocalWork.compare
    encode, risk_sums = PartsCodec.encode, Site._risk_sums
    active: list[str] = []

    def begins(work: LocalWork, message: Message, share: float, typical: int, distances: Any) -> Any:
        active[:] = [work.name]
        seen.secrets[work.name, "share"].append(share)
        made = begin(work, message, share, typical, distances)
        if getattr(work.half, "control", None) is not None and np.any(work.half.control):
            seen.vectors[work.name, "own control"].append(work.half.control.copy())
        return made

    def finishes(work: LocalWork, update: np.ndarray, steps: int) -> Any:
        made = finish(work, update, steps)
        momentum = getattr(work.layout.plan.training.optimizer, "momentum", 0.0)
        seen.secrets[work.name, "steps"] += [steps, norm_of_steps(steps, momentum, False)]
        for label, one in made.items():
            kind = seen.vectors if one.values.size > 1 else seen.secrets
            kind[work.name, label] += [one.values.copy()] if one.values.size > 1 else one.values.tolist()
            seen.secrets[work.name, "weight"].append(one.weight)
        return made

    def compares(work: LocalWork, round_: int, totals: Any, own: Any) -> Any:
        made = compare(work, round_, totals, own)
        seen.secrets[work.name, "distance"].append(float(made["distances"].values[0]))
        gap = work.half._method.unfairness(own)
        seen.secrets[work.name, "gap"] += [] if gap is None else [gap]
        return made

    def encodes(codec: PartsCodec, values: Any, weight: int, key: bytes) -> Any:
        words = encode(codec, values, weight, key)
        seen.secrets[active[0], "word"].append(weight)
        seen.vectors[active[0], "words"].append(words.copy())
        return words

    def sums(site: Site, own: Any) -> Any:
        if own:
            numbers = pack(site.layout.method.measures(), own)
            seen.vectors[site.name, "group sums"].append(numbers)
        return risk_sums(site, own)

    for owner, name, new in (
        (LocalWork, "begin", begins), (LocalWork, "finish", finishes), (LocalWork, "compare", compares),
        (PartsCodec, "encode", encodes), (Site, "_risk_sums", sums),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, new)


def played(row: Any, protection: str, folder: Path, loaders: Loaders) -> Seen:
    """Run the row's plan with everything that reaches the server written down."""
    seen, the_plan = Seen(), plan_of(row.method, protection, row.training, 2)
    sites = {
        name: site_of(name, the_plan, load, folder / name, None, local_masks(the_plan, name))
        for name, load in loaders.items()
    }
    for name, load in loaders.items():
        seen.secrets[name, "records"].append(len(load().training))
    coordinator = coordinator_of(the_plan, folder / "server", Start("s", "local", software()))
    with pytest.MonkeyPatch.context() as patch:
        watch(seen, patch)
        for phase in coordinator.phases(sorted(sites)):
            for name in phase.targets:
                _answered(seen, sites[name], phase)
    seen.status = coordinator.record.status
    return seen


def _answered(seen: Seen, site: Site, phase: Phase) -> None:
    message = phase.message
    release = site.handle(message)
    place = (site.name, message.task, message.round)
    for _, payload in sorted(release.payloads.items()):
        seen.bytes_of[place].append(payload.values.tobytes())
        seen.bytes_of[place].append(b"" if payload.weight is None else struct.pack("<d", payload.weight))
    seen.bytes_of[place].append(release.protocol)
    reply = Reply(release.task, release.round, release.step, message.session, release.payloads, release.protocol)
    phase.collector.accept(site.name, reply)


def shapes(value: float) -> Iterator[bytes]:
    """How one number can stand in bytes."""
    for order in "<>":
        if value not in (0.0, 1.0):
            yield struct.pack(f"{order}d", value)
            yield struct.pack(f"{order}f", value)
            yield struct.pack(f"{order}q", round(value * ONE))
        if _is_whole(value) and value > 2**16:
            yield struct.pack(f"{order}i", int(value))
            yield struct.pack(f"{order}q", int(value))
    if len(repr(value)) > 4:
        yield repr(value).encode()


def _is_whole(value: float) -> bool:
    return float(value).is_integer()


def pairs(vector: np.ndarray) -> Iterator[bytes]:
    """Two neighbouring coordinates: eight bytes that nothing else has by chance."""
    size = np.abs(vector.view(np.int32).astype(np.float64) if vector.dtype == np.uint32 else vector)
    least = 2**16 if vector.dtype == np.uint32 else 1e-6
    chosen = np.flatnonzero(np.minimum(size[:-1], size[1:]) > least)[:200]
    forms = [vector] if vector.dtype == np.uint32 else [vector.astype(np.float32), vector.astype(np.float64)]
    if vector.dtype == np.float64:
        forms.append(np.rint(vector * ONE).astype(np.int64))
    for form in forms:
        for ordered in (form, form.byteswap()):
            yield from (ordered[at : at + 2].tobytes() for at in chosen)


def found_in(seen: Seen) -> set[tuple[str, str]]:
    """Whose secrets, of which kind, stand in the bytes of that site's messages.

    Small whole numbers are searched in vectors and weights only: a protocol message is full of counts and lengths.
    """
    vectors, everything = defaultdict(bytes), defaultdict(bytes)
    for (site, *_), (*payloads, protocol) in seen.bytes_of.items():
        vectors[site] += b"|".join(payloads) + b"|"
        everything[site] += b"|".join(payloads) + b"|" + protocol
    found = set()
    for (site, kind), values in seen.secrets.items():
        for value in values:
            where = vectors if _is_whole(value) and value < 2**16 else everything
            if any(shape in where[site] for shape in shapes(value)):
                found.add((site, kind))
    for (site, kind), arrays in seen.vectors.items():
        if any(pair in everything[site] for one in arrays for pair in pairs(one)):
            found.add((site, kind))
    return found


@methods
def test_no_byte_of_a_masked_job_shows_what_only_a_site_knows(tmp_path: Path, row: Any) -> None:
    """Four bytes can be there by chance, once; so what is found must be found in two runs, whose masks differ."""
    first = played(row, "masked", tmp_path / "first", four())
    again = played(row, "masked", tmp_path / "again", four())
    assert first.status == again.status == "complete"
    assert found_in(first) & found_in(again) == set()
    # What is searched for was there: every kind that the method has, of every site.
    kinds = {"share", "records", "steps", "weight", "word", "words", "update"}
    more = {"scaffold": {"controls", "own control"}, "fednova": {"normalizer"}, "fairfed": {"distance", "gap"}}
    kinds |= more.get(row.name, set()) | ({"group sums"} if "risk_sums" in row.sends else set())
    assert {kind for _, kind in (*first.secrets, *first.vectors)} == kinds


@methods
def test_no_message_of_a_masked_job_is_longer_for_other_data(tmp_path: Path, row: Any) -> None:
    one = played(row, "masked", tmp_path / "one", four())
    other = played(row, "masked", tmp_path / "other", other_four())
    assert one.sizes() == other.sizes()
    assert one.bytes_of != other.bytes_of


@methods
def test_without_masks_the_search_finds_what_a_site_sends(tmp_path: Path, row: Any) -> None:
    seen = played(row, "none", tmp_path, four())
    sent = {"update", *({"controls"} & row.sends), *({"normalizer"} & row.sends), "weight", "records"}
    sent |= {"group sums"} if "risk_sums" in row.sends else set()
    sent |= {"distance"} if "distances" in row.sends else set()
    found = found_in(seen)
    assert {(site, kind) for site in four() for kind in sent} - found <= _equal_to_all(seen)
    assert seen.status == "complete"


def _equal_to_all(seen: Seen) -> set[tuple[str, str]]:
    """Numbers that say nothing, and are not searched for: weights of 1."""
    return {key for key, values in seen.secrets.items() if set(values) <= {0.0, 1.0}}


@methods
def test_protocol_messages_have_no_field_for_more(tmp_path: Path, row: Any) -> None:
    """Whatever small number a site knows: the strict parsers read every message back to the last byte."""
    seen = played(row, "masked", tmp_path, four())
    kinds = set()
    for (_, task, _), data in seen.bytes_of.items():
        for item in unpack(data[-1], UP):
            if item.kind in ("keys", "shares", "upload", "unmask"):
                kinds.add(known(item.data))
            elif item.kind == "confirm":
                assert len(item.data) == 64, task
    assert kinds == {"keys", "dealt", "up", "unmask"}


# ------------------------------------------------------------------------------------------- orders of a hostile server


class Order:
    """A job in which one site gets other messages than a phase's own; ``codes``: its refusals, or what it sent."""

    def __init__(self, row: Any, folder: Path, rounds: int = 2, protection: str = "masked") -> None:
        self.job = Hostile(plan_of(row.method, protection, row.training, rounds), folder)
        self.codes: list[str] = []

    def run(self, task: str, number: int, change: Change, name: str = VICTIM) -> None:
        def act(site: str, phase: Phase) -> None:
            message = phase.message
            if (site, message.task, message.round) != (name, task, number):
                _quietly(self.job.sites[site], phase)
                return
            for one in change(message):
                try:
                    self.codes.append(",".join(self.job.sites[site].handle(one).payloads))
                except FairFlareError as problem:
                    self.codes.append(problem.code)
            phase.collector.refuse(site, "FF-TEST-DONE")

        self.job.attack(act)


def _quietly(site: Site, phase: Phase) -> None:
    try:
        release = site.handle(phase.message)
        message = phase.message
        reply = Reply(release.task, release.round, release.step, message.session, release.payloads, release.protocol)
        phase.collector.accept(site.name, reply)
    except FairFlareError as problem:
        phase.collector.refuse(site.name, problem.code)


def codes_of(
    row: Any, folder: Path, task: str, number: int, change: Callable[[Message], Sequence[Message]]
) -> list[str]:
    order = Order(row, folder)
    order.run(task, number, change)
    return order.codes


def test_a_comparison_is_answered_once(tmp_path: Path) -> None:
    """A second answer would need a second step; without one nothing leaves."""
    codes = codes_of(FAIRFED, tmp_path, "compare", 0, lambda m: [m, m, replace(m, protocol=b"")])
    assert codes == ["distances", "FF-SECAGG-STATE", ""]


def test_a_comparison_without_its_round_or_its_plan_is_refused(tmp_path: Path) -> None:
    def before(message: Message) -> list[Message]:
        words = {**message.text, "totals": "act"}
        return [replace(message, task="compare", vectors={}, text=words, protocol=b"")]

    assert codes_of(FAIRFED, tmp_path / "a", "measure", 0, before) == ["FF-ROUND-MODEL"]
    assert codes_of(FAIRFED, tmp_path / "b", "confirm", 0, before) == ["FF-ROUND-MODEL"]
    assert codes_of(SCAFFOLD, tmp_path / "c", "train", 0, before) == ["FF-ROUND-TASK"]
    assert codes_of(FAIRFED, tmp_path / "d", "compare", 0, lambda m: [replace(m, round=1)]) == ["FF-ROUND-MODEL"]


@pytest.mark.parametrize("text", [None, "none", "act ", "", "both"])
def test_totals_of_a_comparison_are_those_that_the_site_opened(tmp_path: Path, text: str | None) -> None:
    def change(message: Message) -> list[Message]:
        words = {key: value for key, value in message.text.items() if key != "totals"}
        return [replace(message, text=words if text is None else {**words, "totals": text})]

    assert codes_of(FAIRFED, tmp_path, "compare", 0, change) == ["FF-SECAGG-TOTALS"]


def test_totals_do_not_come_with_a_message_under_masks(tmp_path: Path) -> None:
    def change(message: Message) -> list[Message]:
        return [replace(message, vectors={**message.vectors, "totals": np.ones(9)}),
                replace(message, vectors={**message.vectors, "distances": np.array([0.1, 4.0])})]  # fmt: skip

    assert codes_of(FAIRFED, tmp_path / "a", "compare", 0, change) == ["FF-ROUND-INPUT"] * 2
    assert codes_of(FAIRFED, tmp_path / "b", "train", 0, change) == ["FF-ROUND-INPUT"] * 2


@pytest.mark.parametrize("text", [None, "none", "1", "act\0"])
def test_opened_distances_cannot_be_kept_from_a_site(tmp_path: Path, text: str | None) -> None:
    def change(message: Message) -> list[Message]:
        words = {key: value for key, value in message.text.items() if key != "distances"}
        return [replace(message, text=words if text is None else {**words, "distances": text})]

    assert codes_of(FAIRFED, tmp_path, "train", 0, change) == ["FF-SECAGG-TOTALS"]


def test_distances_that_a_site_did_not_open_do_not_act(tmp_path: Path) -> None:
    """The message with the opening lost it on the way: the site does not train."""

    def change(message: Message) -> list[Message]:
        items = [one for one in unpack(message.protocol, DOWN) if one.kind != "opening"]
        return [replace(message, protocol=packed(items))]

    assert codes_of(FAIRFED, tmp_path, "train", 0, change) == ["FF-SECAGG-TOTALS"]


@pytest.mark.parametrize("values", [
    np.zeros(3, dtype=np.float32), np.zeros(1426, dtype=np.float64), np.zeros((1426, 1), dtype=np.float32),
    np.full(1426, np.nan, dtype=np.float32), np.full(1426, -np.inf, dtype=np.float32), np.zeros(1426, dtype=np.float16),
    np.full(1426, 3e38, dtype=np.float32), np.full(1426, 1e3, dtype=np.float32),
], ids=["short", "float64", "matrix", "nan", "infinity", "half", "huge", "large"])  # fmt: skip
def test_controls_that_no_training_gives_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    def change(message: Message) -> list[Message]:
        return [replace(message, vectors={**message.vectors, "controls": values})]

    assert codes_of(SCAFFOLD, tmp_path, "train", 0, change) == ["FF-ROUND-INPUT"]


STORIES = [
    b"", b"{", b"null", b"[0]", b'{"beryl": 0.0}', b'{"beryl": true}', b'{"beryl": -1}', b'{"beryl": 1}',
    b'{"beryl": "0"}', b'{"beryl": NaN}', b'{"beryl": 1e999}', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe",
    b'{"beryl": ' + b"9" * 5000 + b"}", b"9" * 1_000_000,
]  # fmt: skip


@pytest.mark.parametrize("text", STORIES, ids=range(len(STORIES)))
def test_a_story_that_cannot_be_read_is_refused(tmp_path: Path, text: bytes) -> None:
    def change(message: Message) -> list[Message]:
        return [replace(message, vectors={**message.vectors, "counted": np.frombuffer(text, dtype=np.uint8)})]

    assert codes_of(SCAFFOLD, tmp_path, "train", 1, change) == ["FF-ROUND-INPUT"]


@pytest.mark.parametrize("what", ["controls", "counted"])
def test_two_sites_that_are_told_two_things_end_in_two_views(tmp_path: Path, what: str) -> None:
    """The victim is told something else in a well-formed message: nothing of that round can be opened."""
    job = Hostile(plan_of(SCAFFOLD.method, "masked", SCAFFOLD.training, 2), tmp_path)

    def act(name: str, phase: Phase) -> None:
        message = phase.message
        if (name, message.task, message.round) == (VICTIM, "train", 1):
            other = (
                np.frombuffer(b"{}", dtype=np.uint8) if what == "counted" else message.vectors[what] + np.float32(0.5)
            )
            message = replace(message, vectors={**message.vectors, what: other})
        _quietly(job.sites[name], replace(phase, message=message))

    job.attack(act)
    assert job.refused == [(VICTIM, "train", 1, "FF-SECAGG-VIEW")]


def test_two_sums_of_distances_end_in_two_views(tmp_path: Path) -> None:
    job = Hostile(plan_of(FAIRFED.method, "masked", FAIRFED.training, 1), tmp_path)
    delta = {VICTIM: lambda: np.array([ONE // 8, 0], dtype=np.uint64)}
    job.attack(TwoOpenings(job, "distances", delta))
    assert "FF-SECAGG-VIEW" in job.codes(VICTIM, *OTHERS)


@pytest.mark.parametrize("delta", [(9 * ONE, 0), (-9 * ONE, 0), (0, ONE), (0, -ONE), (0, -4 * ONE), (0, 1)])
def test_sums_of_distances_that_no_sites_can_have_are_refused(tmp_path: Path, delta: tuple[int, int]) -> None:
    """A distance of rates is at most 2, and each site tells one: at the server, and at a site if it passes them on."""
    words = np.array(delta, dtype=np.int64).astype(np.uint64)
    job = Hostile(plan_of(FAIRFED.method, "masked", FAIRFED.training, 1), tmp_path)
    job.attack(TwoOpenings(job, "distances", dict.fromkeys(four(), lambda: words)))
    trained = {(name, code) for name, task, _, code in job.refused if task == "train"}
    assert trained == {(name, "FF-SECAGG-RANGE") for name in four()}


def test_a_lying_distance_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = LocalWork.compare

    def lies(work: LocalWork, *arguments: Any) -> Any:
        made = compare(work, *arguments)
        if work.name == COLLUDER:
            made["distances"].values[:] = (99.0, 1.0)
        return made

    monkeypatch.setattr(LocalWork, "compare", lies)
    job = Hostile(plan_of(FAIRFED.method, "masked", FAIRFED.training, 1), tmp_path)
    job.attack()
    reason = job.coordinator.record.reason
    assert reason is not None
    assert reason.code == "FF-SECAGG-RANGE"
    assert job.sums == {}


def test_every_method_is_searched() -> None:
    assert {row.name for row in SEARCHED} == set(METHODS) - {"feasibility"}
