# SPDX-License-Identifier: Apache-2.0
"""Four hospitals name one wheel in their policies; one of them has installed another. Real kits, real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairflare import presets
from fairflare.engine.verify import verify_run
from fairflare.jobs import write_job
from fairflare.policy import read_policy
from fairflare.policy.package import folder_digest, installed_digest, wheel_digest
from fairflare.privacy.decisions import read_decisions
from provision.deploy import wheel
from tests.federation.provisioned import SERVER, Federation
from tests.federation.support import SITES, changed, make_hospitals

pytestmark = [pytest.mark.federation, pytest.mark.slow]

OTHER = "hospital-4"


def other_wheel(folder: Path) -> Path:
    """The package with one line more in the one place that everything leaves by, installed into a folder."""
    for name in (*wheel.SOURCES, "requirements.lock"):
        copy = shutil.copytree if (wheel.ROOT / name).is_dir() else shutil.copyfile
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(wheel.ROOT / name, folder / "tree" / name)
    with (folder / "tree" / "custom" / "fairflare" / "privacy" / "gate.py").open("a", encoding="utf-8") as file:
        file.write("# and nobody was told\n")
    made = wheel.build(folder / "tree", folder)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, folder / "installed", made], check=True, capture_output=True, timeout=120)
    return folder / "installed"


class Mixed(Federation):
    """A federation in which one hospital's processes have another package."""

    def spawn(self, name: str) -> subprocess.Popen[bytes]:
        former = self.environment
        if name == OTHER:
            self.environment = {**former, "PYTHONPATH": str(self.base.parent / "other" / "installed")}
        try:
            return super().spawn(name)
        finally:
            self.environment = former


def test_the_hospital_with_another_wheel_takes_no_part_and_sends_nothing(tmp_path: Path) -> None:
    ours = wheel.build(wheel.ROOT, tmp_path / "ours")
    named = wheel_digest(ours)
    assert named == installed_digest()  # the three others run the tree that the wheel was built from
    other = folder_digest(other_wheel(tmp_path / "other") / "fairflare")
    assert other != named
    shipped = presets.shipped("heart_flexfair")
    plan = changed(shipped, name="pinned", training={"rounds": 2}, federation={"task_timeout_seconds": 30.0})
    parties = Mixed(tmp_path / "federation", make_hospitals(tmp_path / "hospitals", shipped, SITES, 60))
    for site in SITES:
        parties.set_policy(site, package=named)
    try:
        parties.start(SERVER)
        parties.start(*SITES)
        job = parties.submit(write_job(plan, tmp_path / "jobs"))
        assert parties.ended(job) == "FINISHED:COMPLETED"
        record = verify_run(parties.download(job))
    finally:
        parties.stop()
    assert parties.left() == []
    assert [(one.site, one.task, one.code) for one in record.without] == [(OTHER, "deploy", "FF-POLICY-PACKAGE")]
    assert len(record.rounds) == 2
    store = read_policy(parties.kits[OTHER] / "local").decisions_file(None, None)
    (decision,) = read_decisions(store)
    assert (decision.verdict, decision.code) == ("refused", "FF-POLICY-PACKAGE")
    assert decision.reasons[0].startswith(f"FF-POLICY-PACKAGE package: got {other}, expected the one")
    assert not list(parties.kits[OTHER].rglob("releases.jsonl"))
    assert os.listdir(store.parent) == [store.name]  # no memory of a data set: none was opened
