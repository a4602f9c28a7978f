# SPDX-License-Identifier: Apache-2.0
"""Attacks that ask twice: retries without one site, restarts, redelivered tasks, memories that were put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairflare.privacy.reveals import RevealMemory
from fairflare.secagg.memory import Memory
from tests.attacks.federation import (
    INPUTS,
    Federation,
    Forgetful,
    make_site,
    plain_sum,
    refused,
    site_names,
    vectors,
)

VICTIM = "site-02"
NAMES = site_names(4)


def files(folder: Path) -> dict[str, RevealMemory]:
    return {name: RevealMemory(folder / f"{name}.sqlite") for name in NAMES}


def close(memories: dict[str, RevealMemory]) -> None:
    for memory in memories.values():
        memory.close()


# ---------------------------------------------------------------------------------- retries: attack 5 of the first list


def open_then_retry_without(federation: Federation, values: dict[str, np.ndarray]) -> np.ndarray:
    """Open a round, say that it failed, repeat it without the victim, subtract."""
    everybody, *_ = federation.run(values, {}, 0)
    others, *_ = federation.run(values, {VICTIM: "keys"}, 0)
    return everybody - others


def test_a_retry_without_one_site_is_refused() -> None:
    federation, values = Federation(4), vectors(NAMES)
    with refused("REUSED"):
        open_then_retry_without(federation, values)


def test_a_retry_without_one_site_gives_it_away_where_sites_forget() -> None:
    federation = Federation(4, memories={name: Forgetful() for name in NAMES})
    values = vectors(NAMES)
    assert np.array_equal(open_then_retry_without(federation, values), values[VICTIM])


@pytest.mark.parametrize("label", ["update", "risk"])
def test_a_vector_that_left_once_is_not_sent_in_another_step_opened_or_not(label: str) -> None:
    federation = Federation(4)
    bits = federation.params.vector(label).bits
    values = vectors(NAMES, bits)
    early = federation.to_upload(label, 0)  # begun before the first upload: only its keys have left
    federation.uploaded(values, label, 0)
    for name, site in federation.sites.items():
        words = values[name].copy()
        with refused("REUSED"):
            site.upload([(early.number, words)], INPUTS, "train")
        assert np.array_equal(words, values[name])
        with refused("REUSED"):
            site.keys([federation.server.offer(label, 0)])


# ----------------------------------------------------------- restarts: attack 6 of the first list, 3 of the second list


def run_restart_and_run_again(memories: Callable[[], dict[str, Memory]], values: dict[str, np.ndarray]) -> np.ndarray:
    """All sites restart after a round, and the server asks for the same round without the victim."""
    before = memories()
    everybody, *_ = Federation(4, memories=before).run(values, {}, 0)
    for memory in before.values():
        if isinstance(memory, RevealMemory):
            memory.close()
    others, *_ = Federation(4, memories=memories()).run(values, {VICTIM: "keys"}, 0)
    return everybody - others


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_round_is_not_asked_for_again_after_a_restart(tmp_path: Path) -> None:
    with refused("REUSED"):
        run_restart_and_run_again(lambda: dict(files(tmp_path)), vectors(NAMES))


def test_a_round_asked_for_again_gives_a_site_away_where_a_restart_forgets() -> None:
    values = vectors(NAMES)
    found = run_restart_and_run_again(lambda: {name: RevealMemory.volatile() for name in NAMES}, values)
    assert np.array_equal(found, values[VICTIM])


def test_an_open_step_never_goes_on_after_a_restart(tmp_path: Path) -> None:
    memories = files(tmp_path)
    federation = Federation(4, memories=memories)
    seen = federation.uploaded(vectors(NAMES))
    confirms = federation.confirm(seen)
    old = federation.sites[VICTIM]
    memories[VICTIM].close()
    with refused("MEMORY"):  # the old program, should it still run
        old.unmask(seen.number, confirms)
    with RevealMemory(tmp_path / f"{VICTIM}.sqlite") as memory:
        again = make_site(VICTIM, memory)
        with refused("STATE"):
            again.unmask(seen.number, confirms)
        old._memory = memory  # the old program with the file of the new one
        with refused("SESSION"):
            old.unmask(seen.number, confirms)
    close(memories)


def test_a_second_session_ends_the_first(tmp_path: Path) -> None:
    memory = RevealMemory(tmp_path / "one.sqlite")
    first = Federation(4, memories={VICTIM: memory})
    seen = first.to_upload()
    Federation(4, memories={VICTIM: memory})
    words = np.zeros(first.params.vectors[0].length, dtype=np.uint32)
    with refused("SESSION"):
        first.sites[VICTIM].upload([(seen.number, words)], INPUTS, "train")
    assert not words.any()
    memory.close()


def test_a_session_that_does_not_begin_leaves_the_live_one_alone() -> None:
    memory, peer = RevealMemory.volatile(), RevealMemory.volatile()
    other = next(name for name in NAMES if name != VICTIM)
    first = Federation(4, memories={VICTIM: memory, other: peer})
    Federation(4, memories={VICTIM: memory, other: peer})
    second = Federation(4, memories={VICTIM: memory, other: peer})
    with refused("ROLLBACK"):
        Federation(4, memories={VICTIM: memory})  # the other site shows up with an empty memory
    total, names, _ = second.run(vectors(NAMES), {}, 0)
    assert np.array_equal(total, plain_sum([vectors(NAMES)[name] for name in names]))
    assert first.sites[VICTIM].session != second.sites[VICTIM].session


# ------------------------------------------------------------------------------- redelivery: attack 6 of the first list


def ask_twice_for_one_step(federation: Federation, first: np.ndarray, second: np.ndarray, *, reopen: bool) -> object:
    """The same task twice: another order of batches gives another update; under one mask the difference shows."""
    seen = federation.to_upload()
    site = federation.sites[VICTIM]
    one, two = first.copy(), second.copy()
    site.upload([(seen.number, one)], INPUTS, "train")
    if reopen:
        site._steps[seen.number].phase = "dealt"
    site.upload([(seen.number, two)], INPUTS, "train")
    return one - two


def test_a_redelivered_task_is_not_masked_again() -> None:
    values = vectors(["first", "second"])
    with refused("STATE"):
        ask_twice_for_one_step(Federation(4), *values.values(), reopen=False)
    with refused("STATE"):  # the memory alone would stop it, too
        ask_twice_for_one_step(Federation(4), *values.values(), reopen=True)


def test_a_redelivered_task_masked_again_shows_the_difference() -> None:
    values = vectors(["first", "second"])
    federation = Federation(4, memories={VICTIM: Forgetful()})
    found = ask_twice_for_one_step(federation, *values.values(), reopen=True)
    assert np.array_equal(np.asarray(found), values["first"] - values["second"])


def test_a_redelivered_message_gets_the_identical_bytes_or_a_refusal() -> None:
    federation = Federation(4)
    seen = federation.offer()
    federation.keys(seen)
    site = federation.sites[VICTIM]
    federation.keyset(seen)
    assert site.deal(seen.number) == site.deal(seen.number)
    federation.shares(seen)
    assert federation.server._steps[seen.number].dealt[site.index].encoded() == site.deal(seen.number)
    federation.dealers(seen)
    with refused("STATE"):
        site.dealers(seen.number, seen.dealers)


# ------------------------------------------------------------------------------------------ memories that were put back


def run_with_files(folder: Path, values: dict[str, np.ndarray], lost: dict[str, str], *, seen: bool) -> np.ndarray:
    memories = files(folder)
    federation = Federation(4, memories=memories, begin=False)
    if not seen:
        federation.sites = {name: Unaware(name, memories[name]) for name in NAMES}  # type: ignore[misc]
    try:
        federation.begin()
        return federation.run(values, lost, 0)[0]
    finally:
        close(memories)


def put_back_and_ask_again(folder: Path, values: dict[str, np.ndarray], *, seen: bool) -> np.ndarray:
    """Run a round, put all memories but the victim's back to a copy two sessions old, and ask for the round again."""
    saved = folder / "saved"
    saved.mkdir()
    for copied in (True, False):
        memories = files(folder)
        Federation(4, memories=memories)
        close(memories)
        for name in NAMES if copied else ():
            shutil.copy(folder / f"{name}.sqlite", saved)
    everybody = run_with_files(folder, values, {}, seen=True)
    for name in NAMES:
        if name != VICTIM:
            shutil.copy(saved / f"{name}.sqlite", folder)
    return everybody - run_with_files(folder, values, {VICTIM: "keys"}, seen=seen)


def Unaware(name: str, memory: RevealMemory) -> object:
    """A site that tells nothing about its peers' memories, and remembers nothing of them."""
    site = make_site(name, memory)
    join = site.join
    site.join = lambda known=(): join(())  # type: ignore[method-assign]
    memory.remember_peers = lambda heads: None  # type: ignore[method-assign]
    return site


def test_a_memory_that_was_put_back_is_found_by_what_a_peer_has_seen(tmp_path: Path) -> None:
    with refused("ROLLBACK"):
        put_back_and_ask_again(tmp_path, vectors(NAMES), seen=True)


def test_a_memory_that_was_put_back_repeats_a_round_where_peers_tell_nothing(tmp_path: Path) -> None:
    values = vectors(NAMES)
    assert np.array_equal(put_back_and_ask_again(tmp_path, values, seen=False), values[VICTIM])


def test_the_site_that_was_put_back_stops_by_itself(tmp_path: Path) -> None:
    memories = files(tmp_path)
    Federation(4, memories=memories)
    memories[VICTIM].close()
    shutil.copy(tmp_path / f"{VICTIM}.sqlite", tmp_path / "old")
    memories[VICTIM] = RevealMemory(tmp_path / f"{VICTIM}.sqlite")
    Federation(4, memories=memories)
    Federation(4, memories=memories)
    memories[VICTIM].close()
    shutil.copy(tmp_path / "old", tmp_path / f"{VICTIM}.sqlite")
    memories[VICTIM] = RevealMemory(tmp_path / f"{VICTIM}.sqlite")
    federation = Federation(4, memories=memories, begin=False)
    for name, site in federation.sites.items():
        federation.server.join(name, site.join(NAMES))
    roster = federation.server.begin(NAMES)
    with refused("ROLLBACK", "has seen"):
        federation.sites[VICTIM].begin(roster)
    with refused("ROLLBACK"):
        federation.sites[NAMES[0]].begin(roster)
    close(memories)


@pytest.mark.parametrize("counted", [True, False])
def test_what_sites_did_after_their_last_join_cannot_be_put_back_unseen(
    counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers know the head of the last JOIN, and count what was signed since; without the count one round repeats."""
    if not counted:
        monkeypatch.setattr(RevealMemory, "remember_active", lambda memory, least: None)
    memories = files(tmp_path)
    federation = Federation(4, memories=memories)
    for name in NAMES:
        shutil.copy(tmp_path / f"{name}.sqlite", tmp_path / f"{name}.old")
    values = vectors(NAMES)
    everybody, *_ = federation.run(values, {}, 0)
    close(memories)
    for name in NAMES:
        if name != VICTIM:
            shutil.copy(tmp_path / f"{name}.old", tmp_path / f"{name}.sqlite")
    if counted:
        with refused("ROLLBACK", "where it had"):
            run_with_files(tmp_path, values, {VICTIM: "keys"}, seen=True)
    else:
        others = run_with_files(tmp_path, values, {VICTIM: "keys"}, seen=True)
        assert np.array_equal(everybody - others, values[VICTIM])
