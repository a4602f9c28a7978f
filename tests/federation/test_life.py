# SPDX-License-Identifier: Apache-2.0
"""Years in the life of a hospital whose kit nobody else made: a stolen key, a person who leaves, a hospital that comes.

Real processes; each test leaves the federation as it found it, or better.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.jobs import write_job
from fairflare.record import RunRecord
from poc.distributed import Distributed
from poc.federation import RESEARCHER, SERVER, wait_until
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = pytest.mark.federation

ILL = "hospital-2"


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    base = tmp_path_factory.mktemp("life")
    catalog = make_hospitals(base / "hospitals", presets.shipped("heart_flexfair"), SITES, 60)
    made = Distributed(base / "federation", catalog)
    try:
        made.start(SERVER)
        made.start(*SITES)
        yield made
    finally:
        made.stop()
    assert made.left() == []


def _complete(parties: Distributed, name: str, seed: int, tmp_path: Path) -> RunRecord:
    plan = changed(presets.shipped("heart_flexfair"), name=name, training={"rounds": 2, "seed": seed})
    job = parties.submit(write_job(plan, tmp_path / "jobs"))
    assert parties.ended(job) == "FINISHED:COMPLETED", parties.deploy_details(job)
    record = verify_run(parties.download(job))
    parties.wait_idle()
    return record


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
