# SPDX-License-Identifier: Apache-2.0
"""Encrypted statistics over real start-up kits, with a key that the provisioner made, or that the hospitals made.

Each federation runs one job, and its models must be those of masks in one process.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fairflare import presets
from fairflare.audit.auditor import audit_kit
from fairflare.cli import app
from fairflare.engine.verify import verify_run
from fairflare.he.parameters import CLIENT_CONTEXT, RECORD_NAME, SERVER_CONTEXT
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from poc.federation import Poc
from tests.federation.provisioned import SERVER, Federation
from tests.federation.support import SITES, changed, local_run, make_hospitals, models

pytestmark = [pytest.mark.federation, pytest.mark.slow]
ROUNDS = 2
#: With its own defaults: ciphertexts of 235 kB, which FLARE hands over in another way than small ones.
BUILDER = {"path": "nvflare.lighter.impl.he.HEBuilder", "args": {}}


def _with_builder(project: Path) -> Path:
    data = yaml.safe_load(project.read_text(encoding="utf-8"))
    at = next(place for place, one in enumerate(data["builders"]) if one["path"].endswith("HardeningBuilder"))
    data["builders"].insert(at, BUILDER)
    project.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return project


class ByProvisioner(Federation):
    """HEBuilder stands where ``provision/project.yml`` has it, with FLARE's own parameters."""

    folder = "startup"

    def _provision(self, project: Path) -> Path:
        return super()._provision(_with_builder(project))


class InPoc(Poc):
    """The same in a workspace of ``nvflare poc``, which starts everybody itself."""

    folder = "startup"

    def _provision(self, project: Path) -> Path:
        return super()._provision(_with_builder(project))


class ByHospitals(Federation):
    """The first hospital makes the key and seals it to the others' certificates."""

    folder = "local"

    def _provision(self, project: Path) -> Path:
        kits, first = super()._provision(project), SITES[0]
        _fairflare("make", "--kit", kits / first, "--server-to", self.base / "for-server")
        for file in (self.base / "for-server").iterdir():
            file.rename(kits / SERVER / "local" / file.name)
        for site in SITES[1:]:
            parcel, certificate = self.base / f"{site}.parcel", kits / site / "startup" / "client.crt"
            _fairflare("seal", "--kit", kits / first, "--to", site, "--certificate", certificate, "--out", parcel)
            _fairflare("open", parcel, "--kit", kits / site, "--from", first)
        return kits


def _fairflare(*words: object) -> None:
    done = CliRunner().invoke(app, ["he", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@contextmanager
def running(kind: type[Federation | Poc], base: Path, catalog: DataCatalog) -> Iterator[Federation | Poc]:
    parties = kind(base, catalog)
    try:
        if isinstance(parties, Poc):
            parties.start()
        else:
            parties.start(SERVER)
            parties.start(*parties.sites)
        yield parties
    finally:
        parties.stop()


@dataclass
class Ended:
    plan: Plan
    catalog: DataCatalog
    parties: Federation | Poc
    folder: Path


@pytest.fixture(scope="module", params=[ByProvisioner, ByHospitals, InPoc])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    base = tmp_path_factory.mktemp(request.param.__name__)
    plan = changed(
        presets.shipped("heart_flexfair"), training={"rounds": ROUNDS}, protection={"statistics": "ckks"},
        federation={"task_timeout_seconds": 60.0},
    )  # fmt: skip
    catalog = make_hospitals(base / "hospitals", plan, SITES, 60)
    with running(request.param, base / "federation", catalog) as parties:
        job = parties.submit(write_job(plan, base / "jobs"))
        assert parties.ended(job) == "FINISHED:COMPLETED"
        return Ended(plan, catalog, parties, parties.download(job))


def test_the_models_are_those_of_masks_in_one_process(ended: Ended, tmp_path: Path) -> None:
    record = verify_run(ended.folder)
    masked = changed(ended.plan, protection={"statistics": "masked"})
    assert models(record) == models(local_run(masked, ended.catalog, tmp_path))
    assert [session.identities for session in record.sessions] == ["kit"]
    assert {penalty.risk for line in record.rounds for penalty in line.penalties} == {None}


def test_nobody_but_hospitals_has_the_key_and_they_have_it_for_themselves(ended: Ended) -> None:
    kits, folder = ended.parties.kits, ended.parties.folder  # type: ignore[attr-defined]
    for name, kit in kits.items():
        found = {file.name for file in kit.rglob("*.tenseal")}
        assert found == ({CLIENT_CONTEXT} if name in SITES else {SERVER_CONTEXT} if name == SERVER else set())
    for site in SITES:
        assert stat.S_IMODE((kits[site] / folder / CLIENT_CONTEXT).stat().st_mode) == 0o600
    assert len({(kits[name] / folder / RECORD_NAME).read_bytes() for name in (SERVER, *SITES)}) == 1


def test_the_audit_says_what_the_shared_key_means_and_finds_nothing_worse(ended: Ended) -> None:
    ours = {"FFA-104", "FFA-606", "FFA-607"}
    at_site, at_server = (audit_kit(ended.parties.kits[name]) for name in (SITES[0], SERVER))
    assert {(one.rule.id, one.severity.value) for one in at_site.findings if one.rule.id in ours} == {
        ("FFA-607", "low")
    }
    assert [one for one in at_server.findings if one.rule.id in ours] == []
