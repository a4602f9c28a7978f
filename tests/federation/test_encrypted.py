# SPDX-License-Identifier: Apache-2.0
"""Encrypted statistics through FLARE's processes: the masked run's model, and ciphertexts that tell the server nothing.

Every byte that the server got is written down, and tried with each key that there is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tenseal as ts

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.flare.names import ALLOWED
from fairflare.flare.simulate import Simulation
from fairflare.he.ckks import SiteCipher
from fairflare.he.context import read_client, read_server
from fairflare.jobs import write_job
from fairflare.plan import Plan
from fairflare.policy import DataCatalog
from fairflare.record import RunRecord
from fairflare.secagg.fixedpoint import StatisticsCodec
from tests.attacks.federation import looks_random
from tests.federation import recording
from tests.federation.recording import Received, received
from tests.federation.support import ROOT, SITES, changed, hooked, local_run, make_hospitals, models

pytestmark = pytest.mark.federation
ROUNDS = 2


@dataclass
class Run:
    plan: Plan
    catalog: DataCatalog
    simulation: Simulation
    record: RunRecord
    received: list[Received]

    def sent(self, label: str) -> dict[tuple[int, str], bytes]:
        return {(one.round, one.site): one.vectors[label] for one in self.received if label in one.vectors}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("encrypted")
    plan = changed(
        presets.shipped("heart_flexfair"), training={"rounds": ROUNDS}, protection={"statistics": "ckks"},
        federation={"task_timeout_seconds": 60.0},
    )  # fmt: skip
    catalog = make_hospitals(base / "hospitals", plan, SITES, 90)
    job = hooked(write_job(plan, base / "job"), aggregator=recording.PATH)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    simulation = Simulation(
        job, base / "run", catalog, SITES, allowed=[*ALLOWED, recording.PATH], environment={"PYTHONPATH": path}
    )
    simulation.run(timeout=300)
    return Run(plan, catalog, simulation, verify_run(simulation.workspace), list(received(simulation.records)))


def test_the_model_is_that_of_masks_in_one_process(run: Run, tmp_path: Path) -> None:
    masked = changed(run.plan, protection={"statistics": "masked"})
    assert run.record.status == "complete"
    assert models(run.record) == models(local_run(masked, run.catalog, tmp_path / "masked"))
    assert models(run.record) == models(local_run(run.plan, run.catalog, tmp_path / "encrypted"))


def test_the_server_knows_that_groups_were_compared_and_none_of_their_risks(run: Run) -> None:
    penalties = [penalty for line in run.record.rounds for penalty in line.penalties]
    assert len(penalties) >= ROUNDS
    assert {(one.risk, one.weight, one.coefficient, one.count, one.value, one.gap) for one in penalties} == {
        (None,) * 6
    }
    assert {line.totals for line in run.record.rounds} == set(range(ROUNDS))


def test_the_servers_context_decrypts_nothing_that_it_got(run: Run) -> None:
    own = read_server(run.simulation.workspace / "local", simulated=True)
    context = ts.context_from(own.context)
    captured = run.sent("risk_sums")
    assert len(captured) == ROUNDS * len(SITES)
    for data in captured.values():
        with pytest.raises(ValueError, match="secret"):
            ts.ckks_vector_from(context, data[4:]).decrypt()


def test_a_hospitals_key_finds_masked_words_in_anothers_ciphertext_and_sums_in_all(run: Run) -> None:
    cipher = SiteCipher(read_client(run.simulation.workspace / "local"))
    captured = run.sent("risk_sums")
    length = len(next(iter(run.sent("training_sums").values())))
    assert length == 48
    size = _words(run)
    parts = [np.frombuffer(data, dtype=np.uint8) for data in captured.values()]
    alone = np.concatenate([cipher.total([part], size) for part in parts])
    assert looks_random(alone)
    for number in range(ROUNDS):
        payloads = [np.frombuffer(captured[number, site], dtype=np.uint8) for site in SITES]
        total = StatisticsCodec(len(SITES)).decode(cipher.total(payloads, size))
        assert (total >= 0).all()
        assert 0 < total.max() <= run.record.records["training"] * 100


def _words(run: Run) -> int:
    (line, *_) = (
        json.loads(text)
        for text in (run.simulation.workspace / SITES[0] / "simulate_job" / "fairflare" / "releases.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
        if "risk_sums" in text
    )
    return int(line["vectors"]["risk_sums"])
