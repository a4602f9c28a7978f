# SPDX-License-Identifier: Apache-2.0
"""Four hospitals that made their own keys and kits: a masked and an encrypted job, and no key but at home."""

from __future__ import annotations

import base64
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.audit.auditor import audit_kit
from fairflare.engine.verify import verify_run
from fairflare.he.parameters import CLIENT_CONTEXT
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import read_policy
from fairflare.record import RunRecord
from poc.distributed import AUTHORITY, Distributed, verify_he_key_at_hospitals, verify_keys_at_home
from poc.federation import RESEARCHER, SERVER, FederationError
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = pytest.mark.federation

ILL = "hospital-2"


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    base = tmp_path_factory.mktemp("own")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    made = Distributed(base / "federation", catalog)
    try:
        yield made
    finally:
        made.stop()
    assert made.left() == []


def _completed(parties: Distributed, plan: Plan, tmp_path: Path) -> RunRecord:
    job = parties.submit(write_job(plan, tmp_path / "jobs"))
    assert parties.ended(job) == "FINISHED:COMPLETED", parties.deploy_details(job)
    record = verify_run(parties.download(job))
    assert record.plan_sha256 == plan.sha256
    parties.wait_idle()
    return record


def test_a_masked_and_an_encrypted_job_from_kits_that_nobody_handed_over(parties: Distributed, tmp_path: Path) -> None:
    plan = changed(presets.shipped("heart_flexfair"), name="own_keys", training={"rounds": 2})
    parties.start(SERVER)
    parties.start(*SITES)
    masked = _completed(parties, plan, tmp_path)
    assert plan.protection.update == plan.protection.statistics == "masked"
    encrypted = _completed(parties, changed(plan, name="own_he", protection={"statistics": "ckks"}), tmp_path)
    assert [one.model_sha256 for one in encrypted.rounds] == [one.model_sha256 for one in masked.rounds]
    assert len(masked.rounds) == 2
    assert {penalty.risk for line in encrypted.rounds for penalty in line.penalties} == {None}
    for site in SITES:
        policy = read_policy(parties.kits[site] / "local")
        assert (policy.identities, policy.peers) == ("kit", parties.peers)
    parties.stop()


def test_every_private_key_is_in_its_owners_folder_only(parties: Distributed, tmp_path: Path) -> None:
    keys, files = verify_keys_at_home(parties.base.parent, parties.homes)
    assert keys == len({AUTHORITY, SERVER, RESEARCHER, *SITES}) == 7
    assert files > 100


def test_the_key_of_encrypted_statistics_is_at_hospitals_only(parties: Distributed, tmp_path: Path) -> None:
    assert verify_he_key_at_hospitals(parties.base.parent, parties.homes, SITES) == len(SITES)
    context = next(parties.homes[ILL].rglob(CLIENT_CONTEXT)).read_bytes()
    spilt = parties.base / "post" / "x"
    for content in (context, context[:-7], base64.b64encode(b"xy" + context)):
        spilt.write_bytes(content)
        with pytest.raises(FederationError, match="post/x"):
            verify_he_key_at_hospitals(parties.base.parent, parties.homes, SITES)
        spilt.unlink()


@pytest.mark.parametrize("form", ["a copy", "DER", "in an archive", "one line", "in JSON", "the other's folder"])
def test_a_key_that_is_elsewhere_is_found(form: str, parties: Distributed, tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in (SERVER, ILL)}
    for name, home in homes.items():
        home.mkdir()
        kind = "server" if name == SERVER else "client"
        shutil.copyfile(parties.kits[name] / "startup" / f"{kind}.key", home / "own.key")
    (tmp_path / "post").mkdir()
    assert verify_keys_at_home(tmp_path, homes)[0] == 2
    key = homes[ILL] / "own.key"
    text = key.read_text(encoding="utf-8")
    if form == "a copy":
        shutil.copyfile(key, tmp_path / "post" / "x.log")
    elif form == "DER":
        command = ["openssl", "pkey", "-in", str(key), "-outform", "DER", "-out", str(tmp_path / "post" / "x")]
        subprocess.run(command, check=True, capture_output=True)
    elif form == "in an archive":
        with zipfile.ZipFile(tmp_path / "post" / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(key, "y")
    elif form == "one line":
        (tmp_path / "post" / "x").write_text("".join(text.splitlines()[1:-1]), encoding="utf-8")
    elif form == "in JSON":
        (tmp_path / "post" / "x").write_text('{"key": "' + text.replace("\n", "\\n") + '"}', encoding="utf-8")
    else:
        shutil.copyfile(key, homes[SERVER] / "more.key")
    with pytest.raises(FederationError, match="private key"):
        verify_keys_at_home(tmp_path, homes)


def test_a_hospital_whose_kit_was_changed_does_not_start(parties: Distributed) -> None:
    kit = parties.kits[ILL]
    for name, text, code in (
        ("local/resources.json.default", "{}", "FF-KIT-CHANGED"),
        ("startup/x.sh", "", "FF-KIT-ADDED"),
        ("old/resources.json", "{}", "FF-KIT-HIDDEN"),
    ):
        file = kit / name
        before = file.read_bytes() if file.exists() else None
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        log = parties.log(ILL)
        at = log.stat().st_size if log.exists() else 0
        assert parties.spawn(ILL).wait(timeout=60) == 1
        assert code in log.read_bytes()[at:].decode()
        assert "FFA-102" in {one.rule.id for one in audit_kit(kit).findings} or code == "FF-KIT-HIDDEN"
        file.unlink()
        if before is not None:
            file.write_bytes(before)


@pytest.mark.slow
def test_one_hospital_gets_a_new_key_and_the_others_keep_their_kits(parties: Distributed, tmp_path: Path) -> None:
    before = {name: (kit / "startup").stat().st_ino for name, kit in parties.kits.items()}
    old = parties.peers[ILL]
    parties.renew(ILL)
    assert {name for name, kit in parties.kits.items() if (kit / "startup").stat().st_ino != before[name]} == {ILL}
    assert parties.peers[ILL] != old
    # As the others', but for the key to encrypted statistics: another hospital must seal it to the new certificate.
    others = [one for one in audit_kit(parties.kits[SITES[0]]).findings if one.rule.id != "FFA-607"]
    assert list(audit_kit(parties.kits[ILL]).findings) == others
    plan = changed(presets.shipped("heart_flexfair"), name="new_key", training={"rounds": 2, "seed": 5})
    parties.start(SERVER)
    parties.start(*SITES)
    job = parties.submit(write_job(plan, tmp_path / "jobs"))
    assert parties.ended(job) == "FINISHED:COMPLETED", parties.deploy_details(job)
    record = verify_run(parties.download(job))
    assert len(record.rounds) == 2
    parties.stop()
