# SPDX-License-Identifier: Apache-2.0
"""Nothing is released that was not paid for: over jobs, processes that race or are killed, and files that come back."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fairflare.errors import LedgerError
from fairflare.privacy import ledger as module
from fairflare.privacy.accounting import epsilon
from fairflare.privacy.anchor import Anchor, ledger_anchor
from fairflare.privacy.chain import EMPTY, EventChain
from fairflare.privacy.ledger import Entry, Ledger
from fairflare.privacy.loss import Budget, DpSgd, Gaussian, Release

PLAN = "a" * 64
WIDE = Budget(8.0, 1e-5)
GROUPS = Gaussian(20.0, 1.0, 1)


def release(round_: int = 0, what: str = "sex", mechanism: DpSgd | Gaussian = GROUPS, job: str = "job-1") -> Release:
    return Release(PLAN, job, round_, what, mechanism)


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    return ledger_anchor(tmp_path / "kit", "heart")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store" / "heart" / "ledger.sqlite"


def refused(code: str, call: Callable[[], object]) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def test_what_was_released_is_there_for_every_later_job(file: Path, anchor: Anchor) -> None:
    first = [release(0, "model", DpSgd(0.016, 1.0, 105)), release(0)]
    assert Ledger(file, anchor).entries() == ()
    Ledger(file, anchor).spend(WIDE, *first)
    second = release(0, "model", DpSgd(0.02, 1.4, 100), job="job-2")
    after = Ledger(file, anchor).spend(Budget(3.0, 1e-5, "replace"), second)
    entries = Ledger(file, anchor).entries()
    assert [one.release for one in entries] == [*first, second]
    assert [one.seq for one in entries] == [1, 2, 3]
    assert [one.budget for one in entries] == [WIDE, WIDE, Budget(3.0, 1e-5, "replace")]
    found = Ledger(file, anchor).epsilon(1e-5, "replace")
    assert found == epsilon([one.release.mechanism for one in entries], 1e-5, "replace")
    assert found.value <= after.value <= 1.005 * found.value
    count, head = Ledger(file, anchor).head()
    assert (count, anchor.read()) == (3, head.hex())
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_same_round_again_is_paid_again(file: Path) -> None:
    ledger = Ledger(file)
    assert ledger.spend(WIDE, release()).value < ledger.spend(WIDE, release()).value


def test_what_cannot_be_afforded_is_refused_by_name_and_not_written(file: Path, anchor: Anchor) -> None:
    ledger = Ledger(file, anchor)
    ledger.spend(WIDE, release())
    limit = epsilon([Gaussian(20.0, 1.0, 3)], 1e-5).value * 1.001
    ledger.spend(Budget(limit, 1e-5), release(1))
    ledger.spend(Budget(limit, 1e-5), release(2))  # the last that fits, by the fine count
    head = ledger.head()
    problem = refused("FF-LEDGER-BUDGET", lambda: ledger.spend(Budget(limit, 1e-5), release(3)))
    refused("FF-LEDGER-BUDGET", lambda: ledger.spend(WIDE, release(3, mechanism=Gaussian(0.1, 1.0, 1))))
    one, two = (epsilon([Gaussian(20.0, 1.0, count)], 1e-5).value for count in (4, 5))
    several = Budget((one + two) / 2, 1e-5)  # for either, but all or none
    refused("FF-LEDGER-BUDGET", lambda: ledger.spend(several, release(3), release(4)))
    refused("FF-LEDGER-BUDGET", lambda: ledger.spend(Budget(limit, 1e-5, "replace"), release(3)))
    assert ledger.head() == head
    assert not any(text in str(problem) for text in ("heart", PLAN, "job-1", f"{limit:.3g}"))


def test_a_budget_between_the_two_ways_to_count_is_kept_to_the_last_bit(file: Path) -> None:
    one = DpSgd(0.016, 1.0, 315)
    exact = epsilon([one], 1e-5).value
    refused("FF-LEDGER-BUDGET", lambda: Ledger(file).spend(Budget(exact * (1 - 1e-9), 1e-5), release(mechanism=one)))
    assert Ledger(file).spend(Budget(exact, 1e-5), release(mechanism=one)).value == exact


def test_nothing_to_pay_for_and_nothing_to_count_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("FF-LEDGER-FORM", lambda: Ledger(file).spend(WIDE))
    monkeypatch.setitem(sys.modules, "fairflare.privacy.accounting", None)
    monkeypatch.delattr("fairflare.privacy.accounting", raising=False)
    refused("FF-LEDGER-ACCOUNTING", lambda: Ledger(file).spend(WIDE, release()))
    assert not file.exists()


def test_the_event_is_on_disk_and_anchored_before_anything_is_returned(
    file: Path, anchor: Anchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(file, anchor)
    ledger.spend(WIDE, release())

    def fails(*_: object) -> None:
        raise OSError("the power fails")

    monkeypatch.setattr(Anchor, "write", fails)
    refused("FF-LEDGER-DAMAGED", lambda: ledger.spend(WIDE, release(1)))
    monkeypatch.undo()
    assert len(ledger.entries()) == 2  # it counts as written


@pytest.mark.parametrize("what", ["older", "empty", "lost", "another"])
def test_an_older_an_empty_a_lost_and_another_ledger_are_refused(
    what: str, file: Path, anchor: Anchor, tmp_path: Path
) -> None:
    ledger, copy = Ledger(file, anchor), tmp_path / "copy"
    ledger.spend(WIDE, release())
    shutil.copy(file, copy)
    ledger.spend(WIDE, release(1))
    newest = file.read_bytes()
    file.unlink()
    if what == "older":
        shutil.copy(copy, file)
    elif what == "empty":
        file.touch(0o600)
    elif what == "another":
        Ledger(file).spend(WIDE, *(release(number, "age") for number in range(3)))
    for call in (ledger.entries, ledger.head, lambda: ledger.spend(WIDE, release(2)), lambda: ledger.epsilon(1e-5)):
        refused("FF-LEDGER-ROLLBACK", call)
    assert file.exists() == (what != "lost")  # so that a copy can be put back
    file.write_bytes(newest)
    assert len(ledger.entries()) == 2


def alter(sql: str, *values: object) -> Callable[[Path], None]:
    def run(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TRIGGER no_update")
            connection.execute("DROP TRIGGER no_delete")
            connection.execute(sql, values)
            for name in ("no_update", "no_delete"):
                connection.execute(
                    f"CREATE TRIGGER {name} BEFORE {name[3:].upper()} ON events"
                    " BEGIN SELECT RAISE(ABORT, 'append only'); END"
                )
            connection.commit()

    return run


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed noise": alter("UPDATE events SET event = replace(event, '20.0', '90.0') WHERE seq = 1"),
    "changed count": alter("UPDATE events SET event = replace(event, '\"count\":1', '\"count\":0') WHERE seq = 2"),
    "changed hash": alter("UPDATE events SET hash = zeroblob(32) WHERE seq = 2"),
    "taken out of the middle": alter("DELETE FROM events WHERE seq = 1"),
    "cut in the middle": lambda file: os.truncate(file, file.stat().st_size // 2),
    "cut to a page": lambda file: os.truncate(file, 4096),
    "no database": lambda file: file.write_bytes(b"x" * 5000),
    "a table more": lambda file: sqlite3.connect(file).execute("CREATE TABLE more (a)").connection.close(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("anchored", [True, False])
def test_a_damaged_ledger_is_refused(damage: str, anchored: bool, file: Path, anchor: Anchor) -> None:
    ledger = Ledger(file, anchor if anchored else None)
    ledger.spend(WIDE, release())
    ledger.spend(WIDE, release(1), release(2))
    DAMAGES[damage](file)
    for _ in range(2):
        refused("FF-LEDGER-DAMAGED", ledger.entries)
        refused("FF-LEDGER-DAMAGED", lambda: ledger.spend(WIDE, release(3)))


def test_the_last_releases_cut_off_are_found_by_the_anchor(file: Path, anchor: Anchor) -> None:
    ledger = Ledger(file, anchor)
    ledger.spend(WIDE, release(), release(1))
    alter("DELETE FROM events WHERE seq = 2")(file)
    refused("FF-LEDGER-ROLLBACK", ledger.entries)


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "dpsgd"},
        {"kind": "laplace", "mechanism": {}},
        {"kind": "gaussian", "time": "x", "mechanism": {"sigma": 1.0, "sensitivity": 1.0, "count": -5}},
        {"plan": PLAN, "kind": "SESSION", "session": "00", "roster": "00"},
    ],
)
def test_a_good_chain_of_something_else_is_no_ledger(event: dict[str, object], file: Path) -> None:
    chain = EventChain(file, lambda _: None)
    with chain.mine(), chain.written([event]):
        pass
    chain.close()
    refused("FF-LEDGER-DAMAGED", Ledger(file).entries)


def test_an_anchor_that_cannot_be_read_and_a_disk_that_refuses(file: Path, anchor: Anchor, tmp_path: Path) -> None:
    ledger = Ledger(file, anchor)
    ledger.spend(WIDE, release())
    (tmp_path / "kit" / "anchors" / "ledger-heart").write_text("nonsense")
    refused("FF-LEDGER-DAMAGED", lambda: ledger.spend(WIDE, release(1)))
    (tmp_path / "plain").touch()
    refused("FF-LEDGER-DAMAGED", lambda: Ledger(tmp_path / "plain" / "ledger.sqlite").spend(WIDE, release()))


def test_who_waits_too_long_is_told(file: Path) -> None:
    ledger = Ledger(file, patience=0.1)
    ledger.spend(WIDE, release())
    holder = EventChain(file, lambda _: None)
    refused("FF-LEDGER-BUSY", lambda: ledger.spend(WIDE, release(1)))
    threading.Timer(0.3, holder.close).start()
    Ledger(file, patience=20).spend(WIDE, release(1))
    assert len(ledger.entries()) == 2


SPENDER = """
import sys, time
from pathlib import Path
from fairflare.errors import LedgerError
from fairflare.privacy import accounting
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget, Gaussian, Release
file, anchor, limit, job, most = sys.argv[1:]
ledger = Ledger(Path(file), Anchor(Path(anchor)))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(most)):
    try:
        ledger.spend(Budget(float(limit), 1e-5), Release("a" * 64, job, number, "sex", Gaussian(20.0, 1.0, 1)))
    except LedgerError as problem:
        print(problem.code, flush=True)
        break
    print("paid", number, flush=True)
"""


def spender(file: Path, anchor: Path, limit: float, job: str, most: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SPENDER, str(file), str(anchor), repr(limit), job, str(most)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_two_processes_that_race_for_the_last_of_a_budget_one_gets_it(file: Path, tmp_path: Path) -> None:
    limit = epsilon([Gaussian(20.0, 1.0, 7)], 1e-5).value
    racers = [spender(file, tmp_path / "anchor", limit, job, 20) for job in ("one", "two")]
    for one in racers:
        go(one)
    said = [one.communicate(timeout=120)[0].splitlines() for one in racers]
    assert sum(line.startswith("paid") for lines in said for line in lines) == 7
    assert [lines[-1] for lines in said] == ["FF-LEDGER-BUDGET"] * 2
    ledger = Ledger(file, Anchor(tmp_path / "anchor"))
    assert len(ledger.entries()) == 7
    assert ledger.epsilon(1e-5).value <= limit


def test_what_another_job_spends_between_the_first_look_and_the_lock_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(epsilon([Gaussian(20.0, 1.0, 2)], 1e-5).value, 1e-5)
    look, looks = module._verify_affordable, list[int]()

    def looked(entries: Sequence[Entry], releases: Sequence[Release], most: Budget) -> object:
        found = look(entries, releases, most)
        looks.append(len(entries))
        if len(looks) == 1:
            Ledger(file).spend(budget, release(0, job="another"), release(1, job="another"))
        return found

    monkeypatch.setattr(module, "_verify_affordable", looked)
    refused("FF-LEDGER-BUDGET", lambda: Ledger(file).spend(budget, release()))
    assert {one.release.job for one in Ledger(file).entries()} == {"another"}


def test_killed_at_any_moment_the_ledger_has_all_that_was_paid(file: Path, tmp_path: Path) -> None:
    paid = 0
    ledger = Ledger(file, Anchor(tmp_path / "anchor"))
    for turn in range(4):
        process = spender(file, tmp_path / "anchor", 50.0, f"job-{turn}", 1000)
        go(process)
        time.sleep(0.03 + 0.037 * turn)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].splitlines()
        # What a site was told it had paid for, it may have drawn noise for and sent.
        whole = sum(line.startswith("paid ") for line in said)
        count = len(ledger.entries())
        assert paid + whole <= count <= paid + whole + 1
        paid = count
    assert paid > 0
    ledger.spend(WIDE, release())


@pytest.mark.parametrize("at", ["BEGIN", "INSERT", "COMMIT", "anchor", "after"])
def test_killed_at_each_step_of_a_release(at: str, file: Path, tmp_path: Path) -> None:
    """A child dies (as by kill -9: no handler runs) just before a statement, or after all of them."""
    anchor = Anchor(tmp_path / "anchor")
    Ledger(file, anchor).spend(WIDE, release())
    code = f"""
import os, sqlite3, sys
from pathlib import Path
from fairflare.privacy import chain
from fairflare.privacy.anchor import Anchor
from fairflare.privacy.ledger import Ledger
from fairflare.privacy.loss import Budget, Gaussian, Release
at = {at!r}
class Dying(sqlite3.Connection):
    armed = False
    def execute(self, sql, *values):
        if sql.startswith("INSERT"):
            Dying.armed = True
        if at == "BEGIN" and sql == "BEGIN IMMEDIATE" and Dying.seen:
            os._exit(9)
        Dying.seen += sql == "BEGIN IMMEDIATE"
        if Dying.armed and sql.startswith(at):
            os._exit(9)
        return super().execute(sql, *values)
Dying.seen = 0
real = sqlite3.connect
chain.sqlite3.connect = lambda *a, **k: real(*a, factory=Dying, **k)
if at == "anchor":
    Anchor.write = lambda *_: os._exit(9)
release = Release("a" * 64, "j", 1, "sex", Gaussian(20.0, 1.0, 1))
Ledger(Path({str(file)!r}), Anchor(Path({str(tmp_path / "anchor")!r}))).spend(Budget(8.0, 1e-5), release)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    ledger = Ledger(file, anchor)
    assert len(ledger.entries()) == (2 if at in ("anchor", "after") else 1)
    ledger.spend(WIDE, release(2))
    assert ledger.entries()[-1].release.round == 2


def test_threads_of_one_process_wait_for_each_other(file: Path) -> None:
    ledger = Ledger(file)
    threads = [threading.Thread(target=ledger.spend, args=(WIDE, release(number))) for number in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one.release.round for one in ledger.entries()) == list(range(6))


def test_an_empty_ledger_is_not_made_by_looking(file: Path, anchor: Anchor) -> None:
    assert Ledger(file, anchor).head() == EMPTY
    assert Ledger(file, anchor).epsilon(1e-5).value == 0
    assert not file.parent.exists()
