# SPDX-License-Identifier: Apache-2.0
"""Masks through FLARE's processes: what the server gets tells it nothing, what it adds up is right, dropouts or not.

Two runs. In the first everybody is honest, and every byte that the server got is looked at. In the second, sites raise
or answer too late in each task of a round; once, in a round that is lost anyway, all send their words without masks,
which shows that the tests of the first run would notice.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fairflare import presets
from fairflare.engine.local import answer
from fairflare.engine.masked import update_codec
from fairflare.engine.messages import (
    CONFIRM,
    EVALUATE,
    FINISH,
    JOIN,
    KEYS,
    MEASURE,
    PREPARE,
    SESSION,
    SHARE,
    TRAIN,
    UNMASK,
    layout_of,
)
from fairflare.engine.server import Coordinator, Phase
from fairflare.engine.site import Site
from fairflare.engine.verify import verify_run
from fairflare.flare.names import ALLOWED
from fairflare.flare.simulate import STORE, Simulation
from fairflare.jobs import write_job
from fairflare.models.vector import Vector
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord
from fairflare.secagg.envelope import UP, Item, unpack
from fairflare.secagg.protection import Weighted
from fairflare.secagg.transcript import Dealt, Join, Joining, Keys, Shares, Signed, Unmask, Upload
from tests.federation import recording
from tests.federation.faulty import FAILING, SECRET
from tests.federation.recording import Received, received
from tests.federation.support import (
    ROOT,
    SITES,
    changed,
    files_with,
    hooked,
    make_hospitals,
    models,
    remembered,
    replay,
)

pytestmark = pytest.mark.federation

ROUNDS = 3
DEADLINE = 8.0
#: Four sites, threshold 3: one may be missing in a round. Rounds 0 and 11 are nobody's fault.
FAULTS = {
    "hospital-1": {"10 train": "raises"},
    "hospital-2": {"1 measure": "raises", "4 unmask": "raises", "7 confirm": "late", "9 confirm": "raises"},
    "hospital-3": {"2 train": "raises", "5 measure": "late", "8 unmask": "late", "10 train": "raises"},
    "hospital-4": {"3 confirm": "raises", "6 train": "late", "9 confirm": "raises"},
}
#: In a round that is lost later nobody masks anything. Nothing else shows it: masks of statistics add up to nothing.
PLAIN = {site: {"9 train": "plain"} for site in SITES}
CODES = {"raises": "FF-ROUND-SITE-ERROR", "late": "FF-ROUND-TIMEOUT"}
#: Round -> site, task and fault of the rounds that one site failed in.
ALONE = {
    int(asked.split()[0]): (site, asked.split()[1], fault)
    for site, faults in FAULTS.items()
    for asked, fault in faults.items()
    if not asked.startswith(("9 ", "10 "))
}
LOST = {9: (CONFIRM, ("hospital-2", "hospital-4")), 10: (TRAIN, ("hospital-1", "hospital-3"))}
TASKS = {JOIN, SESSION, PREPARE, MEASURE, TRAIN, CONFIRM, UNMASK, EVALUATE, FINISH}


@dataclass
class Run:
    plan: Plan
    catalog: DataCatalog
    simulation: Simulation
    received: list[Received]


@dataclass
class Replay:
    """The same in one process: the record, the model after every round, and what an honest server would make."""

    record: RunRecord
    after: list[Vector]
    means: list[Vector]


def _plan(rounds: int, **federation: float) -> Plan:
    plan = presets.shipped("heart_flexfair")
    masking = {**presets.MASKED["masking"], "weight_unit": 1}
    return changed(
        plan, training={"rounds": rounds}, protection={"masking": masking},
        federation={"task_timeout_seconds": 60.0, **federation},
    )  # fmt: skip


def _run(base: Path, plan: Plan, records: int, faults: Mapping[str, Mapping[str, str]]) -> Run:
    catalog = make_hospitals(base / "hospitals", plan, SITES, records)
    job = hooked(write_job(plan, base / "job"), aggregator=recording.PATH)
    if faults:
        hooked(job, executor=FAILING, faults=faults, late=DEADLINE + 1.5)
    simulation = Simulation(
        job, base / "run", catalog, SITES, allowed=[*ALLOWED, recording.PATH, FAILING],
        environment={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    simulation.run(timeout=300)
    return Run(plan, catalog, simulation, list(received(simulation.records)))


def _replay(run: Run, folder: Path, plan: Plan, faults: Mapping[str, Mapping[str, str]]) -> Replay:
    updates: dict[str, Weighted] = {}
    after: list[Vector] = []
    means: list[Vector] = []

    def answering(site: Site, phase: Phase) -> None:
        _answer(site, phase, faults.get(site.name, {}).get(f"{phase.message.round} {phase.message.task}"), updates)

    def note(coordinator: Coordinator) -> None:
        if len(coordinator.record.rounds) > len(after):
            means.append(_mean(updates, coordinator.record.rounds[-1].participants[TRAIN]))
            after.append(coordinator.model)

    return Replay(replay(plan, run.catalog, folder, answering, note), after, means)


def _mean(updates: Mapping[str, Weighted], names: Iterable[str]) -> Vector:
    """The mean that a server would make which sees the updates."""
    chosen = [updates[name] for name in names]
    total = sum(np.float64(one.weight) * one.values.astype(np.float64) for one in chosen)
    return np.asarray(total / sum(one.weight for one in chosen))


def _answer(site: Site, phase: Phase, fault: str | None, updates: dict[str, Weighted]) -> None:
    """Let a site answer, unless it fails; and look at the update that it would like to hide."""
    if fault == "raises":
        phase.collector.refuse(site.name, CODES[fault])
        return
    if fault == "late":
        site.handle(phase.message)
        phase.collector.refuse(site.name, CODES[fault])
        return
    if phase.message.task == TRAIN:
        train = site._train

        def spied(message: object) -> dict[str, Weighted]:
            vectors = train(message)  # type: ignore[arg-type]
            updates[site.name] = Weighted(vectors["update"].values.copy(), vectors["update"].weight)
            return vectors

        site._train = spied  # type: ignore[method-assign, assignment]
    answer(site, phase)
    if phase.message.task == TRAIN:
        site._train = train  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _run(tmp_path_factory.mktemp("honest"), _plan(ROUNDS), 90, {})


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _run(
        tmp_path_factory.mktemp("faulty"),
        _plan(12, task_timeout_seconds=DEADLINE, max_missed=3),
        60,
        {site: {**FAULTS[site], **PLAIN[site]} for site in SITES},
    )


@pytest.fixture(scope="module")
def honest_record(honest: Run) -> RunRecord:
    return verify_run(honest.simulation.workspace)


@pytest.fixture(scope="module")
def faulty_record(faulty: Run) -> RunRecord:
    return verify_run(faulty.simulation.workspace)


@pytest.fixture(scope="module")
def alike(faulty: Run, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """The second run's replay in one process; without masks left off, which changes nothing that is opened."""
    return _replay(faulty, tmp_path_factory.mktemp("alike"), faulty.plan, FAULTS)


# ----------------------------------------------------------------------------------------------------- everybody honest


def test_masks_give_the_model_of_the_local_engine(honest: Run, honest_record: RunRecord, tmp_path: Path) -> None:
    assert models(honest_record) == models(_replay(honest, tmp_path, honest.plan, {}).record)
    assert len(models(honest_record)) == ROUNDS


def test_masks_give_the_model_of_no_masks(honest: Run, honest_record: RunRecord, tmp_path: Path) -> None:
    masked = _replay(honest, tmp_path / "masked", honest.plan, {})
    plain = _replay(honest, tmp_path / "plain", changed(honest.plan, protection=presets.UNPROTECTED), {})
    assert models(honest_record) == models(masked.record)
    # Each site is off by one unit of its word at most; later rounds start from models that differ by so much.
    step = len(SITES) * 2.0 ** -update_fraction(honest.plan)
    assert np.abs(masked.after[0] - plain.after[0]).max() <= step + np.finfo(np.float32).eps
    assert np.abs(masked.after[-1] - plain.after[-1]).max() <= 100 * step
    assert masked.record.records == plain.record.records == honest_record.records


def update_fraction(plan: Plan) -> int:
    return update_codec(layout_of(plan, 1)).first.fraction_bits


def test_a_simulation_says_that_nobody_vouches_for_its_sites(honest_record: RunRecord) -> None:
    assert honest_record.sessions[-1].identities == "development"
    assert honest_record.notices[0].startswith("unauthenticated identities")


def chance(data: bytes) -> float:
    """Chance that uniform bytes look as uneven as these; of few bytes, by their upper half only."""
    values = np.frombuffer(data, dtype=np.uint8)
    places = 256 if values.size >= 256 * 8 else 16
    return float(stats.chisquare(np.bincount(values // (256 // places), minlength=places)).pvalue)


def words(replies: Iterable[Received]) -> dict[tuple[str, ...], bytes]:
    """Masked vectors to be tested: each for itself, short ones together with those of the same label and task."""
    found: dict[tuple[str, ...], bytes] = {}
    for reply in replies:
        for label, data in reply.vectors.items():
            alone = (reply.site, str(reply.round)) if len(data) >= 2048 else ()
            key = (label, reply.task, *alone)
            found[key] = found.get(key, b"") + data
    return found


def test_every_vector_that_the_server_got_looks_like_noise(honest: Run) -> None:
    found = words(honest.received)
    labels = {label for label, *_ in found}
    assert labels == {
        "counts", "risk_sums", "training_sums", "update", "validation_sums", "test_sums",
    }  # fmt: skip
    assert len([key for key in found if key[0] == "update"]) == len(SITES) * ROUNDS
    assert {key: p for key, data in found.items() if (p := chance(data)) <= 1e-6} == {}


def test_words_without_masks_do_not_look_like_noise(faulty: Run) -> None:
    plain = words(one for one in faulty.received if one.task == TRAIN and one.round == 9)
    assert set(plain) == {("training_sums", TRAIN), *(("update", TRAIN, site, "9") for site in SITES)}
    assert all(chance(data) < 1e-20 for data in plain.values())


def test_no_two_vectors_have_a_mask_in_common(honest: Run) -> None:
    # Masks drawn twice would cancel in the difference of two vectors of one site.
    updates = {(one.site, one.round): np.frombuffer(one.vectors["update"], "<u4") for one in honest.received
               if "update" in one.vectors}  # fmt: skip
    keys = sorted(updates)
    for place, first in enumerate(keys):
        for second in keys[place + 1 :]:
            assert chance((updates[first] - updates[second]).tobytes()) > 1e-6


def test_sizes_do_not_depend_on_the_data(honest: Run, faulty: Run) -> None:
    def sizes(run: Run) -> dict[tuple[str, str], set[tuple[int, ...]]]:
        found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
        for one in run.received:
            vectors = (len(data) for _, data in sorted(one.vectors.items()))
            if one.task in TASKS and (one.round in (0, 12) or run is honest):
                found.setdefault((one.site, one.task), set()).add((one.head_length, len(one.protocol), *vectors))
        return found

    first, second = sizes(honest), sizes(faulty)
    assert {task for _, task in first} == TASKS
    # Only the last round of training brings other keys along: those of the final evaluation.
    for (site, task), found in second.items():
        assert found <= first[site, task], (site, task)
    for (site, task), found in first.items():
        assert len({size[1:] for size in found}) <= (2 if task in (CONFIRM, UNMASK) else 1), (site, task)
    for task in TASKS:
        assert len({frozenset(first[site, task]) for site in SITES}) == 1


HEAD_KEYS = {"version", "task", "round", "step", "session", "weights", "vectors"}
#: What FLARE puts around an answer: names of the task, the site and the job; two are the server's own objects.
FLARE_HEADERS = {
    "__audit_event_id__", "__cookie_jar__", "__task_name__", "__task_id__", "__msg_root_id__", "__peer_props__",
    "__peer_ctx__", "fl_client",
}  # fmt: skip
PEER = {"__run_num__", "__identity_name__", "__fqsn__", "__is_leaf__", "__client_name__", "__current_job_id__"}


def test_a_replys_head_names_the_task_and_the_vectors_and_nothing_else(honest: Run) -> None:
    assert len(honest.received) > 50
    for one in honest.received:
        assert set(one.head) == HEAD_KEYS
        assert one.head["weights"] == {}
        assert (one.head["version"], one.head["step"]) == (2, 0)
        assert {label: size for label, (_, size) in one.head["vectors"].items()} == {
            label: len(data) // (4 if label == "update" else 8) for label, data in one.vectors.items()
        }
        assert one.others == {}


def test_flares_own_headers_hold_no_result(honest: Run) -> None:
    for one in honest.received:
        assert set(one.headers) == FLARE_HEADERS
        assert one.headers["__audit_event_id__"] == "None"
        assert set(ast.literal_eval(one.headers["__cookie_jar__"])) == {"__workflow__", "__task_id__"}
        assert set(ast.literal_eval(one.headers["__peer_props__"])) == PEER


FIELDS = {
    Join: {
        "job", "params", "name", "spki", "nonce", "channel_key", "signing_key", "seq", "head", "seen", "plan_sha256",
    },
    Keys: {"step", "index", "public", "commitment"},
    Shares: {"step", "keyset", "index", "ciphers", "key_commitments", "self_commitments"},
    Upload: {"view", "index", "length", "payload"},
    Unmask: {"view", "confirm", "self_shares", "key_shares"},
}  # fmt: skip


def parsed(item: Item) -> object:
    """The one protocol message in an item, which holds nothing besides: its fields give all its bytes again."""
    if item.kind == "confirm":
        return item.data
    if item.kind == "join":
        joining = Joining.parse(item.data)
        assert joining.encoded() == item.data
        return Join.parse(joining.join)
    signed = Dealt.parse(item.data).signed if item.kind == "shares" else Signed.parse(item.data)
    kind = {"keys": Keys, "shares": Shares, "upload": Upload, "unmask": Unmask}[item.kind]
    message = kind.parse(signed.message)
    assert message.encoded() == signed.message
    return message


def test_protocol_messages_hold_keys_hashes_and_places_only(honest: Run) -> None:
    assert {kind: {one.name for one in dataclasses.fields(kind)} for kind in FIELDS} == FIELDS
    seen = set()
    for one in honest.received:
        for item in unpack(one.protocol, UP):
            seen.add(item.kind)
            message = parsed(item)
            if isinstance(message, bytes):
                assert len(message) == 64
            if isinstance(message, Join):
                assert (message.name, message.seen, one.task) == (one.site, (), JOIN)
            if isinstance(message, Upload):
                assert message.length in {size for _, size in one.head["vectors"].values()}
    assert seen == set(UP)


def test_the_numbers_of_a_vector_come_with_no_weight(honest: Run) -> None:
    # The weight is one more word of the masked update.
    parameters = {len(one.vectors["update"]) // 4 for one in honest.received if "update" in one.vectors}
    assert parameters == {1 + 26 * 32 + 32 + 32 * 16 + 16 + 16 * 2 + 2}


def test_every_site_remembers_what_it_gave_away(honest: Run) -> None:
    store = honest.simulation.workspace.parent / STORE
    for site in SITES:
        assert remembered(store, site, honest.plan) == {(number, "update") for number in range(ROUNDS)}


# ------------------------------------------------------------------------------------------------------ sites that fail


def test_the_job_completes_and_loses_two_rounds(faulty_record: RunRecord) -> None:
    assert faulty_record.status == "complete"
    assert [line.round for line in faulty_record.rounds] == [*range(9), 11]
    assert [(lost.round, lost.code) for lost in faulty_record.lost_rounds] == [
        (number, "FF-ROUND-QUORUM") for number in LOST
    ]
    assert faulty_record.final is not None
    assert faulty_record.final.confirmed == SITES
    assert faulty_record.final.test


@pytest.mark.parametrize("number", sorted(ALONE))
def test_one_site_that_fails_is_named_and_left_out(faulty_record: RunRecord, number: int) -> None:
    site, task, fault = ALONE[number]
    line = next(line for line in faulty_record.rounds if line.round == number)
    assert [(one.site, one.task, one.code) for one in line.refusals] == [(site, task, CODES[fault])]
    # Who fails once its masked words are in the sum is in the sum: three others opened it.
    summed = tuple(name for name in SITES if name != site or task in (CONFIRM, UNMASK))
    assert line.participants[TRAIN] == summed
    assert line.participants[task] == tuple(name for name in SITES if name != site)


def test_statistics_are_of_everybody_or_of_nobody(faulty_record: RunRecord) -> None:
    measured = {line.round for line in faulty_record.rounds if line.validation}
    assert measured == {line.round for line in faulty_record.rounds} - {1, 5}
    trained = {line.round for line in faulty_record.rounds if line.train_loss is not None}
    assert trained == measured - {2, 6}
    # Without fresh group sums, those of the round before act.
    assert {line.round: line.totals for line in faulty_record.rounds if line.totals != line.round} == {1: 0, 5: 4}


@pytest.mark.parametrize("number", sorted(LOST))
def test_one_dropout_too_many_loses_the_round_by_name(faulty_record: RunRecord, number: int) -> None:
    task, sites = LOST[number]
    lost = next(one for one in faulty_record.lost_rounds if one.round == number)
    assert [(one.site, one.task, one.code) for one in lost.refusals] == [
        (site, task, CODES["raises"]) for site in sites
    ]


def test_nothing_is_given_away_in_a_lost_round(faulty: Run) -> None:
    store = faulty.simulation.workspace.parent / STORE
    for site in SITES:
        assert {number for number, _ in remembered(store, site, faulty.plan)} & set(LOST) == set()


def test_after_lost_rounds_the_next_one_goes_on_with_everybody(faulty_record: RunRecord) -> None:
    assert faulty_record.rounds[-1].participants == dict.fromkeys((KEYS, SHARE, MEASURE, TRAIN, CONFIRM, UNMASK), SITES)
    assert faulty_record.rounds[-1].refusals == ()


def test_the_result_is_that_of_the_local_engine_with_the_same_survivors(
    faulty_record: RunRecord, alike: Replay
) -> None:
    assert models(faulty_record) == models(alike.record)
    assert faulty_record.lost_rounds == alike.record.lost_rounds
    assert [line.participants for line in faulty_record.rounds] == [line.participants for line in alike.record.rounds]
    assert faulty_record.final == alike.record.final


def test_each_model_is_the_exact_mean_of_the_survivors(faulty: Run, alike: Replay) -> None:
    step = len(SITES) * 2.0 ** -update_codec(layout_of(faulty.plan, 1)).first.fraction_bits
    for before, after, mean in zip(alike.after, alike.after[1:], alike.means[1:], strict=False):
        assert np.abs(after - (before + mean)).max() <= step + 4 * np.finfo(np.float32).eps


def test_the_text_of_an_exception_stays_at_its_site(faulty: Run) -> None:
    assert files_with(faulty.simulation.workspace / "server", SECRET) == []
