# SPDX-License-Identifier: Apache-2.0
"""A site's decisions: on disk before they count, whole or marked as torn, and every change in the middle is found."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare.errors import DecisionError
from fairflare.privacy import decisions
from fairflare.privacy.decisions import Decision, DecisionLog, read_decisions, read_history, utc_now

ACCEPTED = Decision(
    time="2030-05-17T08:00:00+00:00", site="north", job="5f0c", plan_sha256="ab" * 32, plan_name="heart",
    submitter="lead@example.org", depth="join", verdict="accepted", code=None, reasons=(),
)  # fmt: skip
REFUSED = replace(
    ACCEPTED, depth="deploy", verdict="refused", code="FF-POLICY-REFUSED", reasons=("cells.minimum: got 0",)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "north" / "decisions.jsonl"


def fill(path: Path, count: int) -> list[Decision]:
    made = [replace(REFUSED if n % 2 else ACCEPTED, job=f"job {n}") for n in range(count)]
    for one in made:
        DecisionLog(path).append(one)
    return made


def chain_is_broken(path: Path) -> bool:
    with pytest.raises(DecisionError) as caught:
        read_decisions(path)
    with pytest.raises(DecisionError) as again:
        DecisionLog(path).append(ACCEPTED)
    return caught.value.code == again.value.code == "FF-DECISION-CHAIN"


def test_decisions_are_read_as_they_were_written(path: Path) -> None:
    assert read_decisions(path) == ()
    made = fill(path, 3)
    assert read_decisions(path) == tuple(made)
    assert read_history(path).torn == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_could_read_is_closed(path: Path) -> None:
    fill(path, 1)
    path.chmod(0o644)
    fill(path, 1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_decision_has_a_time() -> None:
    assert utc_now().endswith("+00:00")


def test_every_change_of_a_line_is_found(path: Path) -> None:
    fill(path, 4)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for number in range(len(lines) - 1):
        for spoiled in (
            [*lines[:number], *lines[number + 1 :]],  # taken out
            [*lines[:number], lines[number].replace(b"north", b"south"), *lines[number + 1 :]],
            [*lines[:number], b"\n", *lines[number + 1 :]],
            [*lines[:number], lines[number][:-20] + b"\n", *lines[number + 1 :]],
            [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]],
        ):
            path.write_bytes(b"".join(spoiled))
            assert chain_is_broken(path), number
    path.write_bytes(data)
    assert len(read_decisions(path)) == 4


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_in_the_middle_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    fill(path, 3)
    data = bytearray(path.read_bytes())
    at %= data.rindex(b"\n", 0, len(data) - 1)  # in any line but the last
    if data[at] == value:
        return
    data[at] = value
    path.write_bytes(data)
    assert chain_is_broken(path)


def cut(path: Path, left: int) -> bytes:
    """What a power loss leaves of the last line; returns that part."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    return lines[-1][:left]


@pytest.mark.parametrize("left", [1, 17, 200])
def test_a_torn_line_stays_and_is_spoken_of(path: Path, left: int) -> None:
    made = fill(path, 3)
    torn = cut(path, left)
    assert read_decisions(path) == tuple(made[:2])
    assert read_history(path).torn == 1
    DecisionLog(path).append(REFUSED)
    assert read_decisions(path) == (*made[:2], REFUSED)
    assert read_history(path).torn == 1
    assert torn in path.read_bytes().splitlines()
    fill(path, 2)
    assert (len(read_decisions(path)), read_history(path).torn) == (5, 1)
    # The line that speaks of it is part of the chain.
    lines = path.read_bytes().splitlines(keepends=True)
    note = next(n for n, line in enumerate(lines) if b"torn_sha256" in line)
    other = [*lines[: note - 1], b"{" + bytes(5) + b"\n", *lines[note:]]
    for spoiled in (lines[:note] + lines[note + 1 :], lines[: note - 1] + lines[note:], other):
        path.write_bytes(b"".join(spoiled))
        assert chain_is_broken(path)


def test_a_whole_line_that_only_lacks_its_end_counts(path: Path) -> None:
    made = fill(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_decisions(path) == tuple(made)
    fill(path, 1)
    assert (len(read_decisions(path)), read_history(path).torn) == (3, 0)


def test_power_can_be_lost_twice(path: Path) -> None:
    fill(path, 2)
    cut(path, 30)
    before = path.read_bytes()
    DecisionLog(path).append(REFUSED)
    whole = path.read_bytes()
    for left in range(len(before), len(whole)):
        path.write_bytes(whole[:left])
        read_history(path)
        DecisionLog(path).append(REFUSED)
        assert read_decisions(path)[-1] == REFUSED
        assert read_history(path).torn >= 1


def test_a_disk_that_filled_a_block_with_zeros_is_a_torn_line(path: Path) -> None:
    fill(path, 1)
    path.write_bytes(path.read_bytes() + bytes(100))
    fill(path, 1)
    assert (len(read_decisions(path)), read_history(path).torn) == (2, 1)


def test_a_full_disk_is_an_error_and_the_next_decision_is_whole(path: Path) -> None:
    made = fill(path, 2)
    size = path.stat().st_size
    code = (
        "import resource, sys, signal; from pathlib import Path\n"
        "from fairflare.privacy.decisions import Decision, DecisionLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 50}, {size + 50}))\n"
        "one = Decision('t', 'n', 'j', None, None, None, 'join', 'accepted', None, ())\n"
        "DecisionLog(Path(sys.argv[1])).append(one)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "FF-DECISION-LOG" in done.stderr
    assert str(path) not in done.stderr.splitlines()[-1]
    assert path.stat().st_size == size + 50
    made += fill(path, 1)
    assert len(read_decisions(path)) == 3
    assert read_history(path).torn == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != size + 50


def test_what_cannot_be_put_on_disk_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 1)
    calls = []

    def fail(file: int) -> None:
        calls.append(file)
        if len(calls) > 1:  # the folder first
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DecisionError, match="FF-DECISION-LOG"):
        DecisionLog(path).append(ACCEPTED)
    assert len(calls) == 2


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def a_link(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(path.parent / "elsewhere")


def a_file_as_folder(path: Path) -> None:
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("", encoding="utf-8")


@pytest.mark.parametrize("spoil", [a_folder, a_link, a_file_as_folder])
def test_a_log_that_is_none_is_an_error(path: Path, spoil: Any) -> None:
    spoil(path)
    with pytest.raises(DecisionError, match="FF-DECISION-LOG"):
        DecisionLog(path).append(ACCEPTED)


def test_a_log_that_cannot_be_read_is_an_error(path: Path) -> None:
    a_folder(path)
    with pytest.raises(DecisionError, match="FF-DECISION-LOG"):
        read_history(path)


CHANGED: dict[str, dict[str, Any]] = {
    "another key": {"more": 1},
    "reasons that are no list": {"reasons": "none"},
    "a number for a text": {"site": 17},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_a_line_with_the_right_hash_and_another_form_is_none_of_ours(path: Path, changes: dict[str, Any]) -> None:
    fill(path, 1)
    event = json.loads(path.read_bytes())
    path.write_text(json.dumps({**event, **changes}) + "\n", encoding="utf-8")
    assert chain_is_broken(path)
    path.write_text(json.dumps({key: value for key, value in event.items() if key != "site"}) + "\n", encoding="utf-8")
    assert chain_is_broken(path)


@pytest.mark.parametrize("line", ["[1]", '"text"', "[" * 100_000, "nul"])
def test_json_that_is_no_line_is_torn(path: Path, line: str) -> None:
    fill(path, 1)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
    assert (len(read_decisions(path)), read_history(path).torn) == (1, 1)


def test_a_decision_has_a_size(path: Path) -> None:
    many = tuple("x" * 10_000 for _ in range(1000))
    DecisionLog(path).append(replace(REFUSED, reasons=many, submitter="y" * 10_000))
    DecisionLog(path).append(replace(ACCEPTED, submitter=None))
    first, second = read_decisions(path)
    assert len(first.reasons) == 64
    assert {len(reason) for reason in first.reasons} == {512}
    assert len(first.submitter or "") == 512
    assert second.submitter is None


def test_processes_and_threads_append_to_one_chain(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fairflare.privacy.decisions import Decision, DecisionLog\n"
        "for n in range(20):\n"
        "    one = Decision('t', 'n', f'{sys.argv[2]} {n}', None, None, None, 'deploy', 'accepted', None, ())\n"
        "    DecisionLog(Path(sys.argv[1])).append(one)\n"
    )
    parts = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("a", "b")]
    threads = [threading.Thread(target=fill, args=(path, 20)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [part.wait() for part in parts] == [0, 0]
    found = read_decisions(path)
    assert len(found) == 80
    assert [one.job for one in found if one.job.startswith("a ")] == [f"a {n}" for n in range(20)]


def test_the_head_is_what_an_owner_notes_elsewhere(path: Path) -> None:
    assert read_history(path).head == decisions.START
    fill(path, 2)
    head = read_history(path).head
    cut(path, 0)
    assert read_history(path).head != head
