# SPDX-License-Identifier: Apache-2.0
"""No party takes the server's line, memory or disk from the others; whoever tries is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

from fairflare.engine.job_traffic import largest_answers
from fairflare.engine.messages import layout_of
from fairflare.errors import ServerError
from fairflare.flare import limits, quota
from fairflare.flare.limits import HEADERS, MESSAGES, RATE, SIZE, SLACK, Gate, sender
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD, Limits, read_limits
from fairflare.flare.presence import REFUSALS
from fairflare.flare.quota import ServerQuota, verify_room
from fairflare.models import initial_vector
from fairflare.presets import FEDAVG, shipped
from fairflare.schema import pretty
from tests.unit.engine.hospitals import plan

JOB = "server.job"
MB = 1024 * 1024
SMALL = STANDARD.model_copy(update={"messages_per_minute": 1000, "bytes_per_minute": 8 * MB})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def message(size: int = 0, stream: object = None, to: str = JOB, origin: object = "hospital-1.job") -> Any:
    headers = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.DESTINATION: to}
    if stream is not None:
        headers[StreamHeaderKey.STREAM_ID] = stream
    return SimpleNamespace(headers=headers, payload=bytes(size))


class World:
    """A gate with a clock of its own; remembers what it noted."""

    def __init__(self, most: int | None = None, granted: Limits = STANDARD) -> None:
        self.clock = Clock()
        self.gate = Gate(granted, self.clock)
        self.noted: list[tuple[str, str]] = []
        if most is not None:
            self.phase(most)

    def phase(self, most: int, down: int = 0) -> None:
        self.gate.begin(most, down, lambda site, code: self.noted.append((site, code)))

    def send(self, size: int = 0, times: int = 1, site: str = "hospital-1", **more: Any) -> int:
        """How many of these messages were taken."""
        origin = f"{site}.job"
        return sum(not self.gate.refuses(JOB, "server", message(size, origin=origin, **more)) for _ in range(times))


# -------------------------------------------------------------------------------------------------------------- phases


def test_an_answer_of_the_plans_length_passes() -> None:
    world = World(most=40 * MB)
    assert world.send(MB, times=40, stream=7) == 40
    assert world.noted == []


def test_a_longer_answer_is_cut_off_and_named_once() -> None:
    world = World(most=8 * MB)
    assert 8 <= world.send(MB, times=200, stream=7) <= 10
    assert world.noted == [("hospital-1", SIZE)]


def test_one_message_that_is_too_long_is_not_taken() -> None:
    world = World(most=MB)
    assert world.send(MB + MB // 8 + SLACK - HEADERS) == 1
    assert world.send(1, site="hospital-2") == 1
    assert world.send(MB + MB // 8 + SLACK - HEADERS + 1, site="hospital-2") == 0
    assert world.noted == [("hospital-2", SIZE)]


def test_many_answers_are_no_more_than_a_few() -> None:
    world = World(most=8 * MB)
    taken = sum(world.send(MB, times=8, stream=stream) for stream in range(100))
    assert 24 <= taken <= 28
    assert world.noted == [("hospital-1", SIZE)]


def test_too_many_small_messages_are_none_of_the_protocol() -> None:
    world = World(most=1000)
    taken = world.send(times=5000)
    assert taken == 500
    assert world.noted == [("hospital-1", MESSAGES)]
    assert world.send() == 0


def test_the_others_are_listened_to() -> None:
    world = World(most=1000)
    world.send(times=5000)
    assert world.send(times=100, site="hospital-2") == 100


def test_signs_of_life_of_a_long_phase_pass() -> None:
    world = World(most=1000)
    for _ in range(3600):
        world.clock.now += 1.0
        assert world.send(500, times=10) == 10
    assert world.noted == []


def test_a_large_model_may_be_fetched_piece_by_piece() -> None:
    world = World()
    world.phase(30_000, 500 * MB)
    assert world.send(times=2000) == 2000  # a request and a receipt for each megabyte
    world.phase(30_000, 0)
    assert world.send(times=2000) == 500


def test_a_new_phase_listens_again() -> None:
    world = World(most=1000)
    world.send(times=5000)
    world.phase(1000)
    assert world.send() == 1
    world.send(times=5000)
    assert world.noted == [("hospital-1", MESSAGES)] * 2


def test_what_is_handed_on_to_another_process_counts_there() -> None:
    world = World(most=1000)
    assert world.send(times=5000, to="server.another") == 5000


@pytest.mark.parametrize("name", ["heart_flexfair", "skin_flexfair"])
def test_a_plan_says_how_long_answers_are(name: str) -> None:
    masked = shipped(name)
    layout = layout_of(masked, initial_vector(masked, None).size)
    most = largest_answers(layout, 4)
    assert most["train"] >= 4 * initial_vector(masked, None).size
    assert most[""] == max(most.values())
    clear = plan(FEDAVG)
    layout = layout_of(clear, initial_vector(clear, None).size)
    assert largest_answers(layout, 4)["train"] >= 4 * initial_vector(clear, None).size


# ------------------------------------------------------------------------------------------------------------- minutes


def test_a_party_has_so_many_messages_in_a_minute() -> None:
    world = World(granted=SMALL)
    assert world.send(times=1500) == 1000
    assert world.send(times=10, site="hospital-2") == 10
    world.clock.now += 61.0
    assert world.send(times=10) == 10


def test_a_party_has_so_many_bytes_in_a_minute() -> None:
    world = World(granted=SMALL)
    assert world.send(MB, times=20) == 7
    assert world.send() == 0
    world.clock.now += 59.0
    assert world.send() == 0
    world.clock.now += 2.0
    assert world.send() == 1


def test_whoever_is_not_taken_is_in_the_list_of_refusals() -> None:
    world = World(granted=SMALL)
    world.send(times=1500, site="hospital-77")
    found = [(one.refusal.site, one.refusal.code) for one in REFUSALS.found]
    assert ("hospital-77", RATE) in found


# -------------------------------------------------------------------------------------------------------------- senders

SENDERS: dict[str, tuple[str, object, str | None]] = {
    "a site itself": ("hospital-1", "hospital-1", "hospital-1"),
    "a site's job": ("hospital-1.job", "hospital-1.job", "hospital-1"),
    "a site that calls itself another": ("hospital-1", "hospital-2", "hospital-1"),
    "a site that calls itself the server": ("hospital-1", "server.job", "hospital-1"),
    "handed on by the server": ("server", "hospital-1.job", "hospital-1"),
    "the server's job": ("server.job", "server.job", None),
    "no origin": ("server", None, "?"),
    "nobody": ("", "server", "?"),
}


@pytest.mark.parametrize("what", SENDERS)
def test_who_sent_it(what: str) -> None:
    endpoint, origin, expected = SENDERS[what]
    assert sender(endpoint, message(origin=origin)) == expected


def test_the_gate_is_put_before_flares_handling_and_stays() -> None:
    code = """
import sys, types
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
taken = []
CoreCell.process_message = lambda self, endpoint, connection, app_id, message: taken.append(message)
from fairflare.flare import limits
from fairflare.flare.limits_file import STANDARD
gate = limits.install(STANDARD.model_copy(update={"messages_per_minute": 1000}))
assert limits.install(STANDARD) is gate
cell = types.SimpleNamespace(my_info=types.SimpleNamespace(fqcn="server"))
end = types.SimpleNamespace(name="hospital-1")
for _ in range(1500):
    CoreCell.process_message(cell, end, None, 1, types.SimpleNamespace(headers={}, payload=b""))
CoreCell.process_message(cell, end, None, 1, types.SimpleNamespace(payload=b""))
CoreCell.process_message(cell, types.SimpleNamespace(name="server.j"), None, 1, types.SimpleNamespace(payload=b""))
print(len(taken))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1000"]


def test_another_flare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_gate", None)
    monkeypatch.setattr(limits.CoreCell, "process_message", lambda self, message: None)
    with pytest.raises(ServerError, match="FF-SERVER-FLARE"):
        limits.install(STANDARD)


# ---------------------------------------------------------------------------------------------------------------- quota


def kit(folder: Path, **changes: int) -> Path:
    (folder / "local").mkdir()
    (folder / "local" / LIMITS_NAME).write_text(pretty(STANDARD.model_copy(update=changes)), encoding="utf-8")
    return folder


def asked(event: str) -> str | None:
    context = FLContext()
    ServerQuota().handle_event(event, context)
    reason = context.get_prop(FLContextKey.JOB_BLOCK_REASON)
    return None if reason is None else str(reason)


@pytest.mark.parametrize("event", [EventType.SUBMIT_JOB, EventType.BEFORE_CHECK_CLIENT_RESOURCES])
def test_a_job_without_room_does_not_come_in_and_does_not_begin(
    event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kit(tmp_path, quota_bytes=4 * MB, reserve_bytes=2 * MB))
    assert asked(event) is None
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "job").write_bytes(bytes(2 * MB))
    reason = asked(event)
    assert reason is not None
    assert reason.startswith("FF-SERVER-QUOTA: got ")
    assert str(tmp_path) not in reason
    assert asked(EventType.JOB_STARTED) is None


def test_the_reserve_is_needed_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit(tmp_path, quota_bytes=2**52, reserve_bytes=8 * MB)
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * MB))
    verify_room(tmp_path, read_limits(tmp_path / "local"))
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * MB - 1))
    with pytest.raises(ServerError, match="on the server's disk"):
        verify_room(tmp_path, read_limits(tmp_path / "local"))


def test_limits_that_cannot_be_read_let_no_job_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kit(tmp_path))
    (tmp_path / "local" / LIMITS_NAME).write_text("{}", encoding="utf-8")
    reason = asked(EventType.SUBMIT_JOB)
    assert reason is not None
    assert reason.startswith("FF-SERVER-MISSING-KEY")
    monkeypatch.setattr(quota, "read_limits", lambda _: 1 / 0)
    assert "FF-SERVER-QUOTA" in str(asked(EventType.SUBMIT_JOB))


def test_a_reason_is_taken_back_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's scheduler asks about one job after the other in the same context."""
    monkeypatch.chdir(kit(tmp_path, quota_bytes=MB, reserve_bytes=MB))
    context = FLContext()
    ServerQuota().handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, context)
    assert "FF-SERVER-QUOTA" in context.get_prop(FLContextKey.JOB_BLOCK_REASON)
    (tmp_path / "local" / LIMITS_NAME).write_text(pretty(STANDARD), encoding="utf-8")
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**50))
    ServerQuota().handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, context)
    assert context.get_prop(FLContextKey.JOB_BLOCK_REASON) is None


def test_a_reason_that_somebody_else_gave_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kit(tmp_path, quota_bytes=MB, reserve_bytes=MB))
    context = FLContext()
    context.set_prop(FLContextKey.JOB_BLOCK_REASON, "FF-JOB-META", private=True, sticky=False)
    ServerQuota().handle_event(EventType.SUBMIT_JOB, context)
    assert context.get_prop(FLContextKey.JOB_BLOCK_REASON) == "FF-JOB-META"


def test_without_a_file_the_standard_holds(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == STANDARD


@pytest.mark.parametrize(
    "changes", [{"quota_bytes": 1}, {"messages_per_minute": 10}, {"bytes_per_minute": -1}, {"reserve_bytes": 1.5}]
)
def test_limits_that_would_stop_everything_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({**STANDARD.model_dump(), **changes})
    (tmp_path / LIMITS_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ServerError, match="FF-SERVER-VALUE"):
        read_limits(tmp_path)
