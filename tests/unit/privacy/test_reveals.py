# SPDX-License-Identifier: Apache-2.0
"""The memory of reveals: nothing leaves twice, also after a restart, a crash, a full disk or a changed file."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fairflare.errors import SecaggError
from fairflare.privacy.reveals import EMPTY, REVEALED, SIGNED, STARTED, UPLOADED, RevealMemory, Transition, has_sent

PLAN = "ab" * 32
EVERY = (STARTED, UPLOADED, SIGNED, REVEALED)


def digest(*of: object) -> bytes:
    return hashlib.sha256(repr(of).encode()).digest()


T, OTHER_T, ROSTER = digest("T"), digest("other T"), digest("roster")


def to(
    state: str,
    step: int = 0,
    *,
    session: bytes = T,
    plan: str = PLAN,
    fl_round: int | None = None,
    label: str = "update",
    mode: str = "open",
    cohort: bytes = ROSTER,
    changes: int = 0,
) -> Transition:
    fl_round = step if fl_round is None else fl_round
    return Transition(state, session, step, plan, fl_round, label, mode, cohort, digest(state, step), changes)  # type: ignore[arg-type]


def closed(step: int, *, cohort: bytes = ROSTER, changes: int = 0, **more: object) -> list[Transition]:
    """Both states of an exact statistic."""
    given = {"mode": "closed", "label": "risk", "cohort": cohort, "changes": changes, **more}
    return [to(STARTED, step, **given), to(UPLOADED, step, **given)]  # type: ignore[arg-type]


def refused(code: str, call: Callable[[], object]) -> SecaggError:
    with pytest.raises(SecaggError) as caught:
        call()
    assert caught.value.code == f"FF-SECAGG-{code}"
    return caught.value


def rejected(memory: RevealMemory, code: str, *transitions: Transition) -> SecaggError:
    """The refusal of a commit that wrote nothing."""
    before = memory.head
    error = refused(code, lambda: memory.commit(transitions))
    assert memory.head == before
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "reveals" / "heart.sqlite"


@pytest.fixture(params=["file", "volatile"])
def memory(request: pytest.FixtureRequest, path: Path) -> Iterator[RevealMemory]:
    """A memory in session T."""
    with RevealMemory(path) if request.param == "file" else RevealMemory.volatile() as memory:
        memory.begin(T, PLAN, ROSTER)
        yield memory


# ---------------------------------------------------------------------------------------------------------------- order


def test_a_step_goes_through_its_states_in_order_each_once(memory: RevealMemory) -> None:
    for done, state in enumerate(EVERY):
        for wrong in EVERY:
            if wrong != state:
                rejected(memory, "STATE", to(wrong))
        memory.commit([to(state)])
        assert memory.head[0] == 2 + done
    for wrong in EVERY:
        rejected(memory, "STATE", to(wrong))


def test_all_states_may_come_in_one_commit(memory: RevealMemory) -> None:
    memory.commit([to(state) for state in EVERY] + [to(state, 1) for state in EVERY])
    assert memory.head[0] == 9
    memory.commit([])
    assert memory.head[0] == 9


def test_a_closed_step_ends_with_its_upload(memory: RevealMemory) -> None:
    for transition in closed(0):
        memory.commit([transition])
    for state in (SIGNED, REVEALED, UPLOADED, STARTED):
        rejected(memory, "STATE", to(state, mode="closed", label="risk"))


@pytest.mark.parametrize("change", [{"label": "other"}, {"fl_round": 7}, {"mode": "closed"}])
def test_a_step_keeps_its_question_and_mode(memory: RevealMemory, change: dict[str, object]) -> None:
    memory.commit([to(STARTED)])
    rejected(memory, "STATE", to(UPLOADED, **change))  # type: ignore[arg-type]


def test_step_numbers_grow(memory: RevealMemory) -> None:
    memory.commit([to(STARTED, 5)])
    rejected(memory, "STEP", to(STARTED, 4))
    rejected(memory, "STATE", to(UPLOADED, 4))
    rejected(memory, "STEP", to(STARTED, 7), to(STARTED, 6))
    memory.commit([to(STARTED, 2**64 - 1), to(UPLOADED, 5)])  # steps may overlap


def test_a_refusal_writes_nothing_of_the_whole_commit(memory: RevealMemory) -> None:
    rejected(memory, "STATE", *closed(1, fl_round=0), to(STARTED, 2), to(SIGNED, 2))
    # The refused steps, queries and cohorts are all still free.
    memory.commit([*closed(1, fl_round=0, cohort=digest("others")), to(STARTED, 2)])


# ---------------------------------------------------------------------------------------------------- sessions, replays


def test_a_step_belongs_to_the_live_session_and_its_plan(memory: RevealMemory) -> None:
    memory.commit([to(STARTED)])
    rejected(memory, "SESSION", to(STARTED, 1, session=OTHER_T))
    rejected(memory, "SESSION", to(STARTED, 1, plan="cd" * 32))
    memory.begin(OTHER_T, PLAN, ROSTER)
    rejected(memory, "SESSION", to(UPLOADED))
    memory.commit([to(STARTED, 0, session=OTHER_T)])  # numbers begin again


def test_without_a_session_nothing_goes() -> None:
    with RevealMemory.volatile() as memory:
        rejected(memory, "SESSION", to(STARTED))


def test_a_session_is_joined_once(memory: RevealMemory) -> None:
    refused("REPLAY", lambda: memory.begin(T, PLAN, ROSTER))
    memory.begin(OTHER_T, PLAN, ROSTER)
    refused("REPLAY", lambda: memory.begin(T, PLAN, ROSTER))
    assert memory.head[0] == 2


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_restart_closes_every_open_step_for_ever(path: Path, done: int) -> None:
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        memory.commit([to(state) for state in EVERY[:done]])
        head = memory.head
    with RevealMemory(path) as memory:
        assert memory.head == head
        rejected(memory, "SESSION", to(EVERY[done]))
        refused("REPLAY", lambda: memory.begin(T, PLAN, ROSTER))
        memory.begin(OTHER_T, PLAN, ROSTER)
        rejected(memory, "SESSION", to(EVERY[done]))
        rejected(memory, "STATE", to(EVERY[done], session=OTHER_T))


# --------------------------------------------------------------------------------------------------------------- reuse


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("last", [2, 3, 4])
def test_what_left_once_is_not_asked_again(path: Path, last: int, restart: bool) -> None:
    memory = RevealMemory(path)
    memory.begin(T, PLAN, ROSTER)
    memory.commit([to(STARTED, 1, fl_round=0)])  # a second offer of the same vector, still free
    memory.commit([to(state, 2, fl_round=0) for state in EVERY[:last]])
    rejected(memory, "REUSED", to(UPLOADED, 1, fl_round=0))
    rejected(memory, "REUSED", to(STARTED, 3, fl_round=0))
    if restart:
        memory.close()
        memory = RevealMemory(path)
    memory.begin(OTHER_T, PLAN, ROSTER)
    rejected(memory, "REUSED", to(STARTED, 9, session=OTHER_T, fl_round=0))
    rejected(memory, "REUSED", *closed(9, session=OTHER_T, fl_round=0, label="update"))
    memory.commit([to(STARTED, 9, session=OTHER_T, fl_round=1), to(UPLOADED, 9, session=OTHER_T, fl_round=1)])
    memory.commit([to(STARTED, 10, session=OTHER_T, fl_round=0, label="another")])
    memory.close()


def test_two_steps_of_one_query_do_not_pass_in_one_commit(memory: RevealMemory) -> None:
    both = [to(STARTED, 0, fl_round=0), to(STARTED, 1, fl_round=0)]
    rejected(memory, "REUSED", *both, to(UPLOADED, 0, fl_round=0), to(UPLOADED, 1, fl_round=0))
    memory.commit([*both, to(UPLOADED, 1, fl_round=0)])


def test_another_plan_may_ask_the_same_round(memory: RevealMemory) -> None:
    memory.commit([to(STARTED), to(UPLOADED)])
    memory.begin(OTHER_T, "cd" * 32, ROSTER)
    memory.commit([to(STARTED, session=OTHER_T, plan="cd" * 32), to(UPLOADED, session=OTHER_T, plan="cd" * 32)])


def test_keys_that_left_do_not_use_up_a_query(memory: RevealMemory) -> None:
    memory.commit([to(STARTED, step, fl_round=0) for step in range(3)])
    memory.commit([to(UPLOADED, 2, fl_round=0)])


# -------------------------------------------------------------------------------------------------------------- cohorts


@pytest.mark.parametrize("changes", [0, 1, 2])
def test_an_exact_query_meets_no_more_cohorts_than_the_policy_allows(path: Path, changes: int) -> None:
    step = 0
    for cohort in range(changes + 1):
        with RevealMemory(path) as memory:  # over sessions, plans and restarts
            plan = digest(cohort).hex()
            memory.begin(digest("T", cohort), plan, ROSTER)
            for _ in range(2):  # an equal cohort never counts
                step += 1
                more = {"session": digest("T", cohort), "plan": plan}
                memory.commit(closed(step, cohort=digest(cohort), changes=changes, **more))
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        rejected(memory, "COHORT", *closed(1, cohort=digest("one site fewer"), changes=changes))
        memory.commit(closed(1, cohort=digest(0), changes=changes))
        rejected(memory, "COHORT", *closed(2, cohort=digest("one site fewer"), changes=changes, label="count"))
        memory.commit(closed(3, cohort=digest("one site fewer"), changes=changes + 1))  # a policy that allows more


def test_a_known_cohort_passes_under_a_stricter_policy(memory: RevealMemory) -> None:
    memory.commit(closed(0, cohort=digest(0), changes=1) + closed(1, cohort=digest(1), changes=1))
    memory.commit(closed(2, cohort=digest(0)) + closed(3, cohort=digest(1)))
    rejected(memory, "COHORT", *closed(4, cohort=digest(2), changes=1))


def test_a_started_exact_query_counts_no_cohort(memory: RevealMemory) -> None:
    memory.commit([closed(0, cohort=digest(0))[0]])
    memory.commit(closed(1, cohort=digest(1)))


def test_updates_may_change_cohorts(memory: RevealMemory) -> None:
    memory.commit([to(state, step, cohort=digest(step)) for step in range(3) for state in EVERY])


# ---------------------------------------------------------------------------------------------------------------- peers


def test_a_peers_memory_only_grows(memory: RevealMemory) -> None:
    assert memory.peer("b") is None
    memory.remember_peers({"b": (5, digest(5)), "c": EMPTY})
    assert (memory.peer("b"), memory.peer("c")) == ((5, digest(5)), EMPTY)
    before = memory.head
    for back in ((4, digest(4)), (5, digest("fork")), EMPTY):
        refused("ROLLBACK", lambda back=back: memory.remember_peers({"d": (1, digest(1)), "b": back}))
    assert memory.peer("d") is None
    memory.remember_peers({"b": (5, digest(5))})
    assert memory.head == before  # nothing new, nothing written
    memory.remember_peers({"b": (6, digest(6)), "c": EMPTY, "d": (1, digest(1))})
    assert memory.peer("b") == (6, digest(6))
    assert memory.head[0] == before[0] + 1


def test_a_peer_has_at_least_what_it_signed(path: Path) -> None:
    with RevealMemory(path) as memory:
        memory.remember_peers({"b": (5, digest(5)), "c": EMPTY})
        memory.remember_active({"b": 8, "c": 2})
        before = memory.head
        memory.remember_active({"b": 7})
        assert memory.head == before  # fewer change nothing
        refused("FORM", lambda: memory.remember_active({"b": -1}))
    with RevealMemory(path) as memory:
        for back in ({"b": (5, digest(5))}, {"b": (7, digest(7))}, {"c": EMPTY}, {"c": (1, digest(1))}):
            refused("ROLLBACK", lambda back=back: memory.remember_peers(back))
        memory.remember_peers({"b": (8, digest(8)), "c": (3, digest(3))})


def test_names_of_another_project_are_other_hospitals(path: Path) -> None:
    with RevealMemory(path, project="one/") as memory:
        memory.remember_peers({"b": (5, digest(5)), "only_here": (1, digest(1))})
        memory.remember_active({"b": 9})
    with RevealMemory(path, project="two/") as memory:
        assert (memory.peers, memory.peer("b")) == ((), None)  # nor is anybody told whom else this site has met
        memory.remember_peers({"b": (1, digest(1))})
        memory.remember_active({"b": 2})
    with RevealMemory(path, project="one/") as memory:
        assert memory.peers == ("b", "only_here")
        found = refused("ROLLBACK", lambda: memory.remember_peers({"b": (8, digest(8))}))
        assert "from site 'b' a memory of 8 events, where it had 9" in str(found)
        memory.remember_peers({"b": (9, digest(9))})


def test_peers_heads_survive_a_restart(path: Path) -> None:
    with RevealMemory(path) as memory:
        memory.remember_peers({"b": (5, digest(5)), "\u00e4\udc80": (1, digest(1))})
    with RevealMemory(path) as memory:
        assert memory.peer("b") == (5, digest(5))
        assert memory.peer("\u00e4\udc80") == (1, digest(1))
        refused("ROLLBACK", lambda: memory.remember_peers({"b": (4, digest(4))}))


# ----------------------------------------------------------------------------------------------------------------- form


@pytest.mark.parametrize(
    "change",
    [
        {"state": "DONE"},
        {"mode": "ajar"},
        {"session": T[:31]},
        {"cohort": bytearray(32)},
        {"digest": b""},
        {"step": -1},
        {"step": 2**64},
        {"step": True},
        {"round": 1.0},
        {"cohort_changes": -1},
        {"label": ""},
        {"label": "x" * 257},
        {"plan_sha256": b"bytes"},
    ],
)
def test_a_transition_has_its_form(memory: RevealMemory, change: dict[str, object]) -> None:
    rejected(memory, "FORM", replace(to(STARTED), **change))  # type: ignore[arg-type]


def test_sessions_and_heads_have_their_form(memory: RevealMemory) -> None:
    refused("FORM", lambda: memory.begin(b"short", PLAN, ROSTER))
    refused("FORM", lambda: memory.begin(OTHER_T, "", ROSTER))
    refused("FORM", lambda: memory.begin(OTHER_T, PLAN, b""))
    for name, head in (("b", (0, digest(0))), ("b", (1, b"")), ("b", (-1, digest(1))), ("", (1, digest(1)))):
        refused("FORM", lambda name=name, head=head: memory.remember_peers({name: head}))
    assert memory.head[0] == 1


# ---------------------------------------------------------------------------------------------------------------- chain


def test_the_head_is_the_hash_of_everything_before(path: Path) -> None:
    with RevealMemory(path) as memory:
        assert memory.head == EMPTY
        heads = [EMPTY]
        memory.begin(T, PLAN, ROSTER)
        heads.append(memory.head)
        for state in EVERY:
            memory.commit([to(state)])
            heads.append(memory.head)
        assert all(memory.has(*head) for head in heads)
        assert not any(memory.has(seq, digest("other")) for seq in range(7))
        assert not any(memory.has(seq, heads[1][1]) for seq in (0, 2, 6, -1, 2**64))
    last = bytes(32)
    with sqlite3.connect(path) as rows:
        for seq, event, found in rows.execute("SELECT seq, event, hash FROM events ORDER BY seq"):
            last = hashlib.sha256(last + event.encode()).digest()
            assert (seq, found, json.loads(event)["seq"]) == (*heads[seq], seq)
            assert found == last
    rows.close()


def test_a_file_and_a_volatile_memory_agree(path: Path) -> None:
    heads = []
    for memory in (RevealMemory(path), RevealMemory.volatile()):
        with memory:
            memory.begin(T, PLAN, ROSTER)
            memory.commit([*closed(0), to(STARTED, 1)])
            memory.remember_peers({"c": (3, digest(3)), "b": EMPTY})
            heads.append(memory.head)
    assert heads[0] == heads[1]
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.lock"]


def test_an_older_copy_opens_but_a_peer_that_saw_more_finds_out(path: Path) -> None:
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        memory.commit([to(STARTED)])
        seen_early = memory.head
    old = path.read_bytes()
    with RevealMemory(path) as memory:
        memory.begin(OTHER_T, PLAN, ROSTER)
        memory.commit([to(STARTED, session=OTHER_T), to(UPLOADED, session=OTHER_T)])
        seen = memory.head
    path.write_bytes(old)
    with RevealMemory(path) as memory:
        assert memory.head == seen_early
        assert memory.has(*seen_early)
        assert not memory.has(*seen)
        memory.begin(digest("later"), PLAN, ROSTER)
        memory.commit([to(STARTED, step, session=digest("later")) for step in range(9)])
        assert not memory.has(*seen)  # also when the chain has grown past it


def test_a_lost_file_is_found_out_the_same_way(path: Path) -> None:
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        seen = memory.head
    path.unlink()
    with RevealMemory(path) as memory:
        assert not memory.has(*seen)


# -------------------------------------------------------------------------------------------------------- changed files


@pytest.fixture
def written(path: Path) -> tuple[Path, tuple[int, bytes]]:
    """A file with eleven events, and its head."""
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        memory.commit([to(state, step) for step in range(2) for state in EVERY])
        memory.remember_peers({"b": (5, digest(5))})
        memory.begin(OTHER_T, PLAN, ROSTER)
        return path, memory.head


def rewrite(path: Path, *statements: str) -> None:
    """Change the file as somebody would who knows it."""
    rows = sqlite3.connect(path)
    triggers = rows.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        rows.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        rows.execute(statement)
    for _, sql in triggers:
        rows.execute(sql)
    rows.commit()
    rows.close()


def test_rewriting_without_a_change_is_harmless(written: tuple[Path, tuple[int, bytes]]) -> None:
    path, head = written
    rewrite(path)
    with RevealMemory(path) as memory:
        assert memory.head == head


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE seq = 5",
        "DELETE FROM events WHERE seq = 1",
        "UPDATE events SET event = replace(event, '\"UPLOADED\"', '\"STARTED\"') WHERE seq = 3",
        "UPDATE events SET hash = zeroblob(32) WHERE seq = 11",
        "UPDATE events SET event = CAST(event AS BLOB) WHERE seq = 3",
        "UPDATE events SET event = 7 WHERE seq = 3",
        "UPDATE events SET event = CAST(x'ff' AS TEXT) WHERE seq = 3",
        "UPDATE events SET seq = 100 WHERE seq = 11",
        "INSERT INTO events VALUES (12, '{}', zeroblob(32))",
        "CREATE TABLE more (one)",
        "ALTER TABLE events ADD COLUMN more",
        "DROP TABLE events",
    ],
)
def test_a_changed_file_is_refused(written: tuple[Path, tuple[int, bytes]], statement: str) -> None:
    path, _ = written
    if statement.startswith("DROP"):
        path.unlink()
        rewrite(path, "CREATE TABLE other (one)")
    else:
        rewrite(path, statement)
    for _ in range(2):  # and gives the lock back
        refused("MEMORY", lambda: RevealMemory(path))


def test_a_file_without_its_triggers_is_refused(written: tuple[Path, tuple[int, bytes]]) -> None:
    path, _ = written
    rows = sqlite3.connect(path)
    rows.execute("DROP TRIGGER no_delete")
    rows.close()
    refused("MEMORY", lambda: RevealMemory(path))


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "OTHER"},
        {"kind": "SESSION", "session": T.hex(), "plan": PLAN},
        {"kind": "PEER", "heads": [["b", [4, digest(4).hex()]]]},
        {"kind": "SESSION", "session": "zz", "plan": PLAN},
        [],
        "text",
    ],
)
def test_a_rechained_event_that_breaks_a_rule_is_refused(
    written: tuple[Path, tuple[int, bytes]], event: object
) -> None:
    path, (seq, head) = written
    text = json.dumps(event)
    link = hashlib.sha256(head + text.encode()).hexdigest()
    rewrite(path, f"INSERT INTO events VALUES ({seq + 1}, '{text}', x'{link}')")  # noqa: S608  # made by the test
    refused("MEMORY", lambda: RevealMemory(path))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "UPDATE events SET hash = hash",
        "INSERT OR REPLACE INTO events VALUES (3, '{}', zeroblob(32))",
        "INSERT INTO events VALUES (13, '{}', zeroblob(32))",
    ],
)
def test_the_file_itself_refuses_changes(written: tuple[Path, tuple[int, bytes]], statement: str) -> None:
    rows = sqlite3.connect(written[0])
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        rows.execute(statement)
    rows.close()


def test_a_changed_byte_is_found_or_changes_nothing(written: tuple[Path, tuple[int, bytes]]) -> None:
    path, head = written
    whole = path.read_bytes()
    chance = random.Random(3)
    found = 0
    for at in sorted({*range(100), *(chance.randrange(len(whole)) for _ in range(300))}):
        changed = bytearray(whole)
        changed[at] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            with RevealMemory(path) as memory:
                assert memory.head == head
        except SecaggError as error:
            assert error.code == "FF-SECAGG-MEMORY"  # noqa: PT017  # or nothing is raised
            found += 1
    assert found > 100


def test_a_cut_file_is_refused(written: tuple[Path, tuple[int, bytes]]) -> None:
    path, _ = written
    whole = path.read_bytes()
    for length in [1, 50, 100, *range(512, len(whole), 512)]:
        path.write_bytes(whole[:length])
        refused("MEMORY", lambda: RevealMemory(path))


def test_what_is_no_memory_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("not a database, but long enough to be looked at" * 20)
    refused("MEMORY", lambda: RevealMemory(path))
    path.unlink()
    path.mkdir()
    refused("MEMORY", lambda: RevealMemory(path))
    refused("MEMORY", lambda: RevealMemory(Path(os.devnull) / "below" / "a.sqlite"))


def test_a_memory_that_cannot_connect_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", fail)
        refused("MEMORY", lambda: RevealMemory(path))
    RevealMemory(path).close()


# ----------------------------------------------------------------------------------------------------------- the holder


def test_files_are_private(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch(mode=0o644)
    nested = path.parent / "a" / "b" / "m.sqlite"
    for file in (path, nested):
        RevealMemory(file).close()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(f"{file}.lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(nested.parent.stat().st_mode) == stat.S_IMODE(nested.parent.parent.stat().st_mode) == 0o700


def test_one_object_holds_it(path: Path) -> None:
    with RevealMemory(path) as memory:
        refused("BUSY", lambda: RevealMemory(path))
        memory.begin(T, PLAN, ROSTER)
    with RevealMemory(path):
        pass


def test_an_object_that_is_gone_gives_it_back(path: Path) -> None:
    memory = RevealMemory(path)
    memory.begin(T, PLAN, ROSTER)
    del memory
    gc.collect()
    RevealMemory(path).close()


def test_after_close_every_method_refuses(path: Path) -> None:
    memory = RevealMemory(path)
    memory.close()
    memory.close()
    every_method_refuses(memory)


def every_method_refuses(memory: RevealMemory, code: str = "MEMORY") -> None:
    for call in (
        lambda: memory.head,
        lambda: memory.has(*EMPTY),
        lambda: memory.begin(digest("new"), PLAN, ROSTER),
        lambda: memory.commit([]),
        lambda: memory.peer("b"),
        lambda: memory.remember_peers({}),
    ):
        refused(code, call)


def test_a_forked_child_cannot_use_it(memory: RevealMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        every_method_refuses(memory, "BUSY")
    memory.commit([to(STARTED)])


def test_threads_take_turns(memory: RevealMemory) -> None:
    wins: list[int] = []

    def run(number: int) -> None:
        for step in range(50):
            try:
                memory.commit([to(STARTED, step)])
                wins.append(step)
            except SecaggError as error:
                assert error.code in {"FF-SECAGG-STATE", "FF-SECAGG-STEP"}  # noqa: PT017  # one of two

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == sorted(set(wins))
    assert memory.head[0] == 1 + len(wins)


# ----------------------------------------------------------------------------------------------------- errors of a disk


@pytest.mark.parametrize("what", ["begin", "commit", "peers"])
def test_after_a_full_disk_nothing_goes(path: Path, what: str) -> None:
    memory = RevealMemory(path)
    memory.begin(T, PLAN, ROSTER)
    head = memory.head
    pages = memory._chain._connection.execute("PRAGMA page_count").fetchone()[0]
    memory._chain._connection.execute(f"PRAGMA max_page_count = {pages}")
    many = {f"site-{number}": (1, digest(number)) for number in range(200)}
    calls: dict[str, Callable[[], object]] = {
        "begin": lambda: [memory.begin(digest(number), PLAN, ROSTER) for number in range(200)],
        "commit": lambda: memory.commit([to(STARTED, step) for step in range(200)]),
        "peers": lambda: memory.remember_peers(many),
    }
    error = refused("MEMORY", calls[what])
    assert isinstance(error.__cause__, sqlite3.Error)
    every_method_refuses(memory)
    memory.close()
    with RevealMemory(path) as memory:
        assert memory.has(*head)
        assert what == "begin" or memory.head == head


def test_after_an_interruption_in_the_middle_nothing_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = RevealMemory(path)
    memory.begin(T, PLAN, ROSTER)

    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", interrupt)  # the transaction has begun
        with pytest.raises(KeyboardInterrupt):
            memory.commit([to(STARTED)])
    every_method_refuses(memory)
    memory.close()
    with RevealMemory(path) as memory:
        assert memory.head[0] == 1


def test_a_memory_that_cannot_be_looked_up_is_refused_for_ever(memory: RevealMemory) -> None:
    head = memory.head
    memory._chain._connection.set_progress_handler(lambda: 1, 1)
    refused("MEMORY", lambda: memory.has(*head))
    memory._chain._connection.set_progress_handler(None, 1)
    every_method_refuses(memory)


def test_a_file_that_changes_under_its_holder_is_refused(path: Path) -> None:
    old = b""
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
    old = path.read_bytes()
    with RevealMemory(path) as memory:
        memory.begin(OTHER_T, PLAN, ROSTER)
        path.write_bytes(old)
        refused("MEMORY", lambda: memory.commit([to(STARTED, session=OTHER_T)]))
        every_method_refuses(memory)


def test_somebody_may_read_meanwhile(path: Path) -> None:
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        rows = sqlite3.connect(path)
        assert len(rows.execute("SELECT * FROM events").fetchall()) == 1
        memory.commit([to(STARTED)])
        assert len(rows.execute("SELECT * FROM events").fetchall()) == 2
        rows.close()


# ------------------------------------------------------------------------------------------------ crashes, in processes


WRITER = """
import hashlib, os, signal, sys
from pathlib import Path
from fairflare.privacy.reveals import RevealMemory, Transition

path, die_at = Path(sys.argv[1]), sys.argv[2]
memory = RevealMemory(path)
session = os.urandom(32)
plan = session.hex()
memory.begin(session, plan, bytes(32))
print(*memory.head[:1], memory.head[1].hex(), flush=True)
if die_at:
    def trace(statement):
        if statement.startswith(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
    memory._chain._connection.set_trace_callback(trace)
for step in range(100_000):
    for state in ("STARTED", "UPLOADED", "SIGNED", "REVEALED"):
        memory.commit([Transition(state, session, step, plan, step, "update", "open", bytes(32), bytes(32))])
        print(*memory.head[:1], memory.head[1].hex(), flush=True)
"""


def writer(path: Path, die_at: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, path, die_at], stdout=subprocess.PIPE, text=True)


def test_what_a_commit_promised_survives_a_kill_at_any_moment(path: Path) -> None:
    chance = random.Random(4)
    promised: list[tuple[int, bytes]] = []
    for _ in range(6):
        with writer(path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            lines += process.stdout.readlines()
        whole = [line.split() for line in lines if line.endswith("\n")]
        promised += [(int(seq), bytes.fromhex(head)) for seq, head in whole]
        with RevealMemory(path) as memory:
            assert memory.head[0] - promised[-1][0] in (0, 1)  # at most the one that was not announced yet
            assert all(memory.has(*head) for head in promised)
    assert len(promised) > 10


@pytest.mark.parametrize(("die_at", "kept"), [("BEGIN", 1), ("INSERT", 1), ("COMMIT", 1)])
def test_a_kill_inside_a_commit_leaves_all_or_nothing(path: Path, die_at: str, kept: int) -> None:
    with writer(path, die_at) as process:
        assert process.stdout is not None
        announced = process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    assert len(announced) == kept
    with RevealMemory(path) as memory:
        assert memory.head[0] == kept


def test_a_kill_with_half_of_a_commit_on_disk_takes_it_back(path: Path) -> None:
    """A hot journal: pages of the transaction are in the file, COMMIT never came."""
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        head = memory.head
        memory._chain._connection.execute("PRAGMA cache_size = 1")
        memory._chain._connection.execute("BEGIN IMMEDIATE")
        for seq in range(2, 40):
            memory._chain._connection.execute("INSERT INTO events VALUES (?, ?, ?)", (seq, "x" * 2000, bytes(32)))
        copy = path.with_name("copy.sqlite")
        shutil.copyfile(path, copy)
        shutil.copyfile(f"{path}-journal", f"{copy}-journal")
        memory._chain._connection.execute("ROLLBACK")
    assert copy.stat().st_size > 40_000
    with RevealMemory(copy) as memory:
        assert memory.head == head


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(path: Path) -> None:
    with writer(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused("BUSY", lambda: RevealMemory(path))
        process.kill()
    RevealMemory(path).close()


def test_a_commit_is_quick(path: Path) -> None:
    taken = []
    with RevealMemory(path) as memory:
        memory.begin(T, PLAN, ROSTER)
        for step in range(50):
            started = time.perf_counter()
            memory.commit([to(STARTED, step)])
            taken.append(time.perf_counter() - started)
    assert sorted(taken)[25] < 0.25  # about a millisecond on a solid-state disk; a busy machine gets room


# ------------------------------------------------------------------------------------------------- a look from outside


def test_what_has_left_can_be_seen_without_a_hold(tmp_path: Path) -> None:
    file = tmp_path / "reveals.sqlite"
    assert not has_sent(file, PLAN)
    assert not file.exists()
    with RevealMemory(file) as memory:
        memory.begin(T, PLAN, ROSTER)
        memory.commit([to(STARTED)])
        assert not has_sent(file, PLAN)
        memory.commit([to(UPLOADED)])
        assert has_sent(file, PLAN)
        assert not has_sent(file, "cd" * 32)


@pytest.mark.parametrize("content", [b"", b"no memory", b"SQLite format 3\0" + bytes(100)])
def test_a_memory_that_cannot_be_read_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "reveals.sqlite"
    file.write_bytes(content)
    with pytest.raises(SecaggError) as caught:
        has_sent(file, PLAN)
    assert caught.value.code == "FF-SECAGG-MEMORY"
    assert str(tmp_path) not in str(caught.value)
