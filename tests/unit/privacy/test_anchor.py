# SPDX-License-Identifier: Apache-2.0
"""A store that came back from a backup is found by what the kit remembers, before anything leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fairflare.errors import DecisionError, SecaggError
from fairflare.privacy.anchor import Anchor, decisions_anchor, reveals_anchor
from fairflare.privacy.decisions import DecisionLog, read_history
from fairflare.privacy.reveals import RevealMemory
from tests.unit.privacy.test_decisions import ACCEPTED, REFUSED
from tests.unit.privacy.test_reveals import OTHER_T, PLAN, ROSTER, STARTED, T, to


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    return reveals_anchor(tmp_path / "kit", "heart")


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises((SecaggError, DecisionError)) as caught:
        call()
    assert caught.value.code == code


def test_a_memory_goes_on_with_its_anchor_and_without_one_it_begins(tmp_path: Path, anchor: Anchor) -> None:
    file = tmp_path / "reveals.sqlite"
    assert anchor.read() is None
    with RevealMemory(file) as memory:  # from before there were anchors
        memory.begin(T, PLAN, ROSTER)
    with RevealMemory(file, anchor) as memory:
        memory.begin(OTHER_T, PLAN, ROSTER)
        assert anchor.read() == memory.head[1].hex()
        memory.commit([to(STARTED, session=OTHER_T)])
        assert anchor.read() == memory.head[1].hex()
    RevealMemory(file, anchor).close()


@pytest.mark.parametrize("what", ["older", "lost", "another"])
def test_an_older_a_lost_and_another_memory_are_refused(what: str, tmp_path: Path, anchor: Anchor) -> None:
    file, copy = tmp_path / "reveals.sqlite", tmp_path / "copy"
    with RevealMemory(file, anchor) as memory:
        memory.begin(T, PLAN, ROSTER)
    shutil.copy(file, copy)
    with RevealMemory(file, anchor) as memory:
        memory.begin(OTHER_T, PLAN, ROSTER)
    newest = file.read_bytes()
    if what == "another":
        copy.unlink()
        with RevealMemory(copy) as memory:
            for one in (b"\1" * 32, b"\2" * 32, b"\3" * 32):  # more events, others
                memory.begin(one, PLAN, ROSTER)
    file.unlink()
    if what != "lost":
        shutil.copy(copy, file)
    for _ in range(2):  # a refusal changes nothing
        refused("FF-SECAGG-ROLLBACK", lambda: RevealMemory(file, anchor))
    file.write_bytes(newest)
    RevealMemory(file, anchor).close()


def test_a_power_failure_between_event_and_anchor_is_no_rollback(
    tmp_path: Path, anchor: Anchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reveals.sqlite"
    memory = RevealMemory(file, anchor)
    memory.begin(T, PLAN, ROSTER)
    before = anchor.read()

    def fails(*_: object) -> None:
        raise OSError("the power fails")

    monkeypatch.setattr(Anchor, "write", fails)
    refused("FF-SECAGG-MEMORY", lambda: memory.begin(OTHER_T, PLAN, ROSTER))
    refused("FF-SECAGG-MEMORY", lambda: memory.commit([to(STARTED, session=OTHER_T)]))  # nothing leaves after it
    memory.close()
    assert anchor.read() == before
    monkeypatch.undo()
    with RevealMemory(file, anchor) as memory:
        assert memory.head[0] == 2  # it counts as written
        refused("FF-SECAGG-REPLAY", lambda: memory.begin(OTHER_T, PLAN, ROSTER))


@pytest.mark.parametrize("content", [b"", b"x", b"0" * 63 + b"\n", b"\xff" * 65, b"0" * 64])
def test_an_anchor_that_is_none_refuses(content: bytes, tmp_path: Path, anchor: Anchor) -> None:
    with RevealMemory(tmp_path / "a.sqlite", anchor) as memory:
        memory.begin(T, PLAN, ROSTER)
    (tmp_path / "kit" / "anchors" / "reveals-heart").write_bytes(content)
    refused("FF-SECAGG-MEMORY", lambda: RevealMemory(tmp_path / "a.sqlite", anchor))
    decided = decisions_anchor(tmp_path / "kit")
    DecisionLog(tmp_path / "decisions.jsonl", decided).append(ACCEPTED)
    (tmp_path / "kit" / "anchors" / "decisions").write_bytes(content)
    refused("FF-DECISION-LOG", lambda: DecisionLog(tmp_path / "decisions.jsonl", decided).append(ACCEPTED))
    refused("FF-DECISION-LOG", lambda: read_history(tmp_path / "decisions.jsonl", decided))


def test_decisions_that_were_cut_off_at_the_end_are_found(tmp_path: Path) -> None:
    file, anchor = tmp_path / "decisions.jsonl", decisions_anchor(tmp_path / "kit")
    log = DecisionLog(file, anchor)
    for one in (ACCEPTED, REFUSED, ACCEPTED):
        log.append(one)
    whole = file.read_bytes()
    assert len(read_history(file, anchor).decisions) == 3
    for data in (b"".join(whole.splitlines(keepends=True)[:2]), b""):
        file.write_bytes(data)
        assert len(read_history(file).decisions) < 3  # without an anchor nobody can tell
        refused("FF-DECISION-ROLLBACK", lambda: read_history(file, anchor))
        refused("FF-DECISION-ROLLBACK", lambda: log.append(REFUSED))
        assert file.read_bytes() == data
    file.unlink()
    refused("FF-DECISION-ROLLBACK", lambda: read_history(file, anchor))
    file.write_bytes(whole + b'{"torn')  # a power loss is none
    log.append(REFUSED)
    assert len(read_history(file, anchor).decisions) == 4


def test_each_data_set_has_its_own(tmp_path: Path) -> None:
    for name, session in (("heart", T), ("skin", OTHER_T)):
        with RevealMemory(tmp_path / name / "reveals.sqlite", reveals_anchor(tmp_path, name)) as memory:
            memory.begin(session, PLAN, ROSTER)
    for name in ("heart", "skin"):
        RevealMemory(tmp_path / name / "reveals.sqlite", reveals_anchor(tmp_path, name)).close()
    refused(
        "FF-SECAGG-ROLLBACK",
        lambda: RevealMemory(tmp_path / "skin" / "reveals.sqlite", reveals_anchor(tmp_path, "heart")),
    )
