# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the life of a federation: kits that expire, clocks, disks that fill up, machines that restart.

One federation for all tests; each leaves it running with all hospitals.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from nvflare.lighter.utils import sign_folders

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.flare.limits_file import LIMITS_NAME, STANDARD
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.record import RunRecord, read_record
from fairflare.schema import pretty
from tests.federation.provisioned import SERVER, Federation, federation, wait_until
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = pytest.mark.federation

ILL = "hospital-4"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    base = tmp_path_factory.mktemp("operations")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    with federation(base / "federation", catalog) as running:
        yield running
    assert running.left() == []


def _plan(name: str, seed: int, rounds: int = 2) -> Plan:
    training = {"rounds": rounds, "seed": seed}
    return changed(presets.shipped("heart_flexfair"), name=name, training=training, federation={"min_sites": 3})


def _submit(parties: Federation, plan: Plan) -> str:
    parties.wait_idle()
    return parties.submit(write_job(plan, parties.base / "drafts"))


def _complete(parties: Federation, plan: Plan) -> RunRecord:
    job = _submit(parties, plan)
    assert parties.ended(job) == "FINISHED:COMPLETED"
    return verify_run(parties.download(job))


# ---------------------------------------------------------------------------------------------------------------- kits


def _root_key(parties: Federation) -> RSAPrivateKey:
    """The project's private key, which only the provisioner has."""
    (state,) = (parties.base / "kits").glob("*/state/cert.json")
    key = serialization.load_pem_private_key(
        json.loads(state.read_text(encoding="utf-8"))["root_pri_key"].encode(), None
    )
    assert isinstance(key, RSAPrivateKey)
    return key


@contextlib.contextmanager
def _changed(parties: Federation, *names: str) -> Iterator[Path]:
    """A hospital that is down, whose start-up folder has other files; afterwards it is up again with its own."""
    startup = parties.kits[ILL] / "startup"
    kept = {name: (startup / name).read_bytes() for name in names}
    parties.wait_idle()
    parties.stop(ILL)
    try:
        yield startup
    finally:
        parties.stop(ILL)
        for name, data in kept.items():
            (startup / name).write_bytes(data)
        parties.start(ILL)


def _reissue(parties: Federation, startup: Path, first: datetime, last: datetime) -> None:
    """The same certificate for another time, signed by the project as everything in the folder is."""
    root_key = _root_key(parties)
    old = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
    new = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), x509.random_serial_number(), first, last, list(old.extensions)
    )
    made = new.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (startup / "client.crt").write_bytes(made)
    sign_folders(str(startup), root_key, signature_file="signature.json")


def _fails_to_start(parties: Federation) -> str:
    """What the hospital's process prints, which ends by itself."""
    before = len(parties.log(ILL).read_bytes())
    parties.spawn(ILL).wait(timeout=60)
    return parties.log(ILL).read_bytes()[before:].decode(errors="replace")


NOW = datetime.now(tz=timezone.utc)
PERIODS = {
    "FF-KIT-EXPIRED": (NOW - 300 * DAY, NOW - DAY),
    "FF-KIT-EARLY": (NOW + DAY, NOW + 300 * DAY),  # or a clock that is behind
}


@pytest.mark.parametrize("code", PERIODS)
def test_a_kit_at_the_wrong_time_does_not_start_and_says_why(code: str, parties: Federation) -> None:
    with _changed(parties, "client.crt", "signature.json") as startup:
        _reissue(parties, startup, *PERIODS[code])
        said = _fails_to_start(parties)
    assert code in said
    assert "client.crt that" in said
    assert "next step: " in said
    assert "created secure channel" not in said


def test_a_changed_file_of_the_kit_does_not_start(parties: Federation) -> None:
    with _changed(parties, "fed_client.json") as startup:
        (startup / "fed_client.json").write_bytes((startup / "fed_client.json").read_bytes() + b" ")
        said = _fails_to_start(parties)
    assert "FF-KIT-CHANGED" in said
    assert "fed_client.json" in said
    assert "Start NVFlare" not in said


def test_a_kit_of_another_project_never_gets_in(parties: Federation, tmp_path: Path) -> None:
    """A whole kit that its own project signed, with this project's address written into it."""
    catalog = make_hospitals(tmp_path / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    other = Federation(tmp_path / "other", catalog)
    own, foreign = (kits[ILL] / "startup" / "fed_client.json" for kits in (parties.kits, other.kits))
    target = json.loads(own.read_text(encoding="utf-8"))["servers"][0]["service"]
    config = json.loads(foreign.read_text(encoding="utf-8"))
    config["servers"][0]["service"] = target
    foreign.write_text(json.dumps(config), encoding="utf-8")
    sign_folders(str(foreign.parent), _root_key(other), signature_file="signature.json")
    try:
        other.spawn(ILL)
        wait_until(
            lambda: "CERTIFICATE_VERIFY_FAILED" in other.log(ILL).read_text("utf-8", "replace") or None, 60, "refusal"
        )
        assert "Successfully registered" not in other.log(ILL).read_text("utf-8", "replace")
    finally:
        other.stop()
    assert other.left() == []


# --------------------------------------------------------------------------------------------------------------- disks


@contextlib.contextmanager
def _small_disk(parties: Federation) -> Iterator[Path]:
    """A hospital's store on a disk of its own, of two megabytes."""
    store = parties.store / ILL
    store.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(store)], check=False, capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("this user may not mount a disk")
    try:
        yield store
    finally:
        parties.wait_idle()
        subprocess.run(["umount", str(store)], check=True)


def _fill(disk: Path) -> None:
    for size in (4096, 1):
        with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as stream:
            while True:
                stream.write(bytes(size))


@pytest.mark.slow
def test_a_hospital_that_cannot_write_down_its_decision_takes_no_part(parties: Federation) -> None:
    with _small_disk(parties) as disk:
        parties.wait_idle()
        _fill(disk)
        record = _complete(parties, _plan("full", 1))
    assert [(one.site, one.code) for one in record.without] == [(ILL, "FF-DECISION-LOG")]
    assert ILL not in record.roster


@pytest.mark.slow
def test_a_hospital_whose_disk_fills_up_sends_nothing_more(parties: Federation) -> None:
    with _small_disk(parties) as disk:
        job = _submit(parties, _plan("fills", 2, rounds=4))
        parties.wait_for(job, "phase", task="train", round=1)
        _fill(disk)
        assert parties.ended(job) == "FINISHED:COMPLETED"
        record = verify_run(parties.download(job))
    refusals = [(one.site, one.code) for line in record.rounds for one in line.refusals]
    assert refusals
    # Whatever it was about to write first: its memory, or its decision before a release.
    assert set(refusals) <= {(ILL, "FF-SECAGG-MEMORY"), (ILL, "FF-DECISION-LOG")}
    assert record.final is not None
    assert ILL not in record.final.participants


# ------------------------------------------------------------------------------------------------------------ restarts


def _kill_server(parties: Federation) -> None:
    """The server's machine fails, and starts again."""
    for pid in parties.processes(SERVER):
        os.kill(pid, signal.SIGKILL)
    parties.stop(SERVER)
    before = len(parties.log(SERVER).read_bytes())
    parties.spawn(SERVER)
    wait_until(lambda: b"Server started" in parties.log(SERVER).read_bytes()[before:] or None, 60, "server")


@pytest.mark.slow
def test_a_scope_that_names_the_filter_twice_lets_nothing_out(parties: Federation) -> None:
    """The second look refuses what the first one let pass: so the filter is at work in every job's process."""
    file = parties.kits[ILL] / "local" / "privacy.json"
    kept = file.read_bytes()
    scopes = json.loads(kept)
    scopes["scopes"][0]["task_result_filters"] *= 2
    parties.wait_idle()
    file.write_text(json.dumps(scopes), encoding="utf-8")
    try:
        record = _complete(parties, _plan("twice", 5))
        assert record.sessions[0].roster == SITES
        assert [(one.site, one.code) for one in record.join_refusals] == [(ILL, "FF-ROUND-SITE-ERROR")]
    finally:
        parties.wait_idle()
        file.write_bytes(kept)


@pytest.mark.slow
def test_restarts_between_jobs_are_not_noticed(parties: Federation) -> None:
    parties.wait_idle()
    _kill_server(parties)
    parties.stop(ILL)
    parties.start(ILL)
    record = _complete(parties, _plan("restarts", 3))
    # The three others come back by themselves; the job waits until enough are there, not until all are.
    assert len(record.roster) + len(record.without) == len(SITES)
    assert {one.code for one in record.without} <= {"FF-RUN-ABSENT"}


@contextlib.contextmanager
def _never_by_itself(parties: Federation) -> Iterator[None]:
    """A server whose operator wants to be asked before a run is gone on with."""
    file = parties.kits[SERVER] / "local" / LIMITS_NAME
    kept = file.read_bytes()
    file.write_text(pretty(STANDARD.model_copy(update={"continuations": 0})), encoding="utf-8")
    try:
        yield
    finally:
        file.write_bytes(kept)


@pytest.mark.slow
def test_a_run_whose_server_died_can_be_gone_on_with_when_the_operator_says_so(parties: Federation) -> None:
    plan = _plan("server_dies", 4, rounds=4)
    job = _submit(parties, plan)
    parties.wait_for(job, "phase", task="train", round=1)
    with _never_by_itself(parties):
        _kill_server(parties)
        parties.wait_idle()  # no hospital's process goes on working for a server that is gone
        meta = parties.meta(job)
    assert (meta["status"], "continued_as" in meta) == ("FINISHED:ABNORMAL", False)
    left = read_record(parties.progress(job).parent)
    assert (left.status, [line.round for line in left.rounds]) == ("running", [0])
    parties.resume_from(parties.progress(job).parent)
    try:
        record = _complete(parties, plan)
    finally:
        parties.resume_from(None)
    assert [(lost.round, lost.code) for lost in record.lost_rounds] == [(1, "FF-RUN-INTERRUPTED")]
    assert [line.round for line in record.rounds] == [0, 2, 3]
