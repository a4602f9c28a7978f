# SPDX-License-Identifier: Apache-2.0
"""Years in the life of a hospital whose kit nobody else made: a stolen key, an old backup, a new version, a newcomer.

Real processes; each test leaves the federation as it found it, or better.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fairflare import __version__, presets
from fairflare.data.manifest import load
from fairflare.engine.local import run_local
from fairflare.engine.verify import verify_run
from fairflare.jobs import write_job
from fairflare.policy import DataCatalog, read_catalog, read_policy, write_catalog
from fairflare.record import RunRecord
from poc.distributed import Distributed
from poc.federation import RESEARCHER, ROOT, SERVER, FederationError, wait_until
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = [pytest.mark.federation, pytest.mark.slow]

ILL, RESTORED, UPGRADED, LATE = "hospital-2", "hospital-3", "hospital-4", "hospital-5"


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    base = tmp_path_factory.mktemp("life")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), (*SITES, LATE), 60)
    sites = catalog.sites or {}
    write_catalog(base, DataCatalog(format=catalog.format, data_sets=sites[LATE], sites=None))
    first = DataCatalog(format=catalog.format, data_sets=catalog.data_sets, sites={one: sites[one] for one in SITES})
    made = Distributed(base / "federation", first)
    try:
        made.start(SERVER)
        made.start(*SITES)
        yield made
    finally:
        made.stop()
    assert made.left() == []


def _submit(parties: Distributed, name: str, seed: int, tmp_path: Path, rounds: int = 2) -> str:
    plan = changed(
        presets.shipped("heart_flexfair"), name=name, training={"rounds": rounds, "seed": seed},
        federation={"task_timeout_seconds": 40.0},
    )  # fmt: skip
    return parties.submit(write_job(plan, tmp_path / "jobs"))


def _complete(parties: Distributed, name: str, seed: int, tmp_path: Path) -> RunRecord:
    return _completed(parties, _submit(parties, name, seed, tmp_path))


def _completed(parties: Distributed, job: str) -> RunRecord:
    assert parties.ended(job) == "FINISHED:COMPLETED", parties.deploy_details(job)
    record = verify_run(parties.download(job))
    parties.wait_idle()
    return record


def _errors(parties: Distributed, site: str, job: str) -> str:
    """What a site wrote about a job for itself alone."""
    file = parties.kits[site] / job / "fairflare" / "errors.log"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _connected(parties: Distributed) -> set[str]:
    """The sites that the server has a sign of life of."""
    printed = parties.flare(
        "system", "status", "server", "--startup-kit", str(parties.kits[RESEARCHER]), "--format", "json"
    )
    return {site for site in parties.sites if f'"{site}"' in printed}


def _take_over(parties: Distributed, listed: Path, *names: str) -> None:
    for name in names:
        parties.party(name).fairflare("kit", "revoked", str(parties.kits[name]), str(listed))


def test_a_stolen_key_is_cut_off_while_it_is_connected_and_the_hospital_comes_back_with_another(
    parties: Distributed, tmp_path: Path
) -> None:
    assert _connected(parties) == set(SITES)
    listed = parties.revoke(ILL)
    _take_over(parties, listed, SERVER)
    wait_until(lambda: _connected(parties) == set(SITES) - {ILL} or None, 60, "loss of the stolen key", 1.0)
    at = parties.log(SERVER).stat().st_size
    parties.stop(ILL)
    parties.spawn(ILL)  # the thief, who tries anew
    said = "FF-KIT-REVOKED a certificate that no longer counts was shown"
    wait_until(lambda: said in parties.log(SERVER).read_bytes()[at:].decode() or None, 60, "refusal", 0.5)
    assert ILL not in _connected(parties)
    parties.stop(ILL)
    stolen = parties.kits[ILL]
    parties.renew(ILL)
    _take_over(parties, listed, *parties.sites)
    parties.start(ILL)
    assert _complete(parties, "after_theft", 11, tmp_path).roster == SITES
    parties.party(ILL).fairflare("kit", "revoked", str(stolen), str(listed))
    parties.stop(ILL)
    parties.kits[ILL], new = stolen, parties.kits[ILL]
    try:
        assert parties.spawn(ILL).wait(timeout=60) == 1  # nor does its holder start it by mistake
    finally:
        parties.kits[ILL] = new
    parties.start(ILL)


def test_a_researcher_who_left_hands_nothing_in(parties: Distributed, tmp_path: Path) -> None:
    listed = parties.revoke(RESEARCHER)
    _take_over(parties, listed, SERVER)
    with pytest.raises(FederationError):
        _submit(parties, "left", 12, tmp_path)
    (parties.kits[SERVER] / "local" / listed.name).unlink()  # a server that does not care
    _take_over(parties, listed, *parties.sites)
    job = _submit(parties, "left_too", 13, tmp_path)
    assert parties.ended(job) != "FINISHED:COMPLETED"
    assert sum("FF-JOB-REVOKED" in one for one in parties.deploy_details(job)) == len(parties.sites)
    for name in parties.sites:
        (parties.kits[name] / "local" / listed.name).unlink()
    parties.wait_idle()


def test_a_store_from_an_old_backup_is_found_by_its_kit_and_with_the_kit_by_the_others(
    parties: Distributed, tmp_path: Path
) -> None:
    kit, party, archive = parties.kits[RESTORED], parties.party(RESTORED), tmp_path / "backup.tgz"
    assert _complete(parties, "before_backup", 20, tmp_path).roster == SITES
    party.fairflare("kit", "backup", str(kit), "--to", str(archive))
    old, old_anchors = tmp_path / "old", tmp_path / "old_anchors"
    store = Path(read_policy(kit / "local").store)
    shutil.copytree(store, old)
    shutil.copytree(kit / "anchors", old_anchors)
    assert _complete(parties, "before_restore", 21, tmp_path).roster == SITES
    parties.stop(RESTORED)
    new = store.rename(tmp_path / "new")
    with pytest.raises(FederationError, match="FF-KIT-BACKUP-OLD"):
        party.fairflare("kit", "restore", str(archive), str(kit))
    shutil.copytree(old, store)  # by hand, past our command
    parties.start(RESTORED)
    job = _submit(parties, "by_hand", 22, tmp_path)
    record = _completed(parties, job)
    assert [(one.site, one.code) for one in record.without] == [(RESTORED, "FF-DECISION-ROLLBACK")]
    parties.stop(RESTORED)
    anchors = (kit / "anchors").rename(tmp_path / "anchors")
    shutil.copytree(old_anchors, kit / "anchors")  # the whole machine, as it was
    parties.start(RESTORED)
    job = _submit(parties, "whole_machine", 23, tmp_path)
    assert parties.ended(job) != "FINISHED:COMPLETED"  # it would be the second answer under one mask's memory
    said = "".join(_errors(parties, one, job) for one in SITES)
    assert f"from site '{RESTORED}' a memory of" in said
    parties.stop(RESTORED)
    for now, then in ((store, new), (kit / "anchors", anchors)):
        shutil.rmtree(now)
        then.rename(now)
    parties.start(RESTORED)
    assert _complete(parties, "as_before", 24, tmp_path).roster == SITES


def test_a_hospital_is_upgraded_between_the_jobs_of_a_study_and_in_the_middle_of_one(
    parties: Distributed, tmp_path: Path
) -> None:
    newer = tmp_path / "installed"
    shutil.copytree(ROOT / "custom" / "fairflare", newer / "fairflare", ignore=shutil.ignore_patterns("__pycache__"))
    file = newer / "fairflare" / "__init__.py"
    text = file.read_text(encoding="utf-8")
    assert f'"{__version__}"' in text
    file.write_text(text.replace(__version__, "9.9.9"), encoding="utf-8")
    assert _complete(parties, "study_1", 31, tmp_path).roster == SITES
    job = _submit(parties, "study_2", 32, tmp_path, rounds=6)
    parties.wait_for(job, "phase", task="train", round=1)
    at = parties.log(UPGRADED).stat().st_size
    parties.leave(UPGRADED)
    parties.installed[UPGRADED] = newer
    parties.start(UPGRADED)
    assert parties.ended(job) in ("FINISHED:COMPLETED", "FINISHED:ABNORMAL")  # FLARE misses a word of who restarted
    record = verify_run(parties.download(job))
    assert record.status == "complete"
    assert len(record.rounds) + len(record.lost_rounds) == 6
    parties.wait_idle()
    record = _complete(parties, "study_3", 33, tmp_path)
    assert record.roster == SITES
    assert "fairflare 9.9.9" in parties.log(UPGRADED).read_bytes()[at:].decode()
    plan = record.plan
    entries = {site: read_catalog(parties.kits[site] / "local").data_sets[plan.task.data_set] for site in SITES}
    local = run_local(plan, {site: partial(load, plan, entry) for site, entry in entries.items()}, tmp_path / "local")
    assert [one.model_sha256 for one in record.rounds] == [one.model_sha256 for one in local.rounds]
    parties.stop(UPGRADED)
    del parties.installed[UPGRADED]
    parties.start(UPGRADED)


def test_a_hospital_that_comes_later_needs_no_new_kit_of_anybody(parties: Distributed, tmp_path: Path) -> None:
    before = {name: (kit / "startup").stat().st_ino for name, kit in parties.kits.items()}
    running = {name: set(parties.processes(name)) for name in parties.sites}
    parties.admit(LATE, read_catalog(parties.base.parent))
    assert {name: (parties.kits[name] / "startup").stat().st_ino for name in before} == before
    parties.start(LATE)
    assert _complete(parties, "five", 41, tmp_path).roster == (*SITES, LATE)
    assert {name: set(parties.processes(name)) for name in running} == running
