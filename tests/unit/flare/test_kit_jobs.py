# SPDX-License-Identifier: Apache-2.0
"""What old jobs left in a kit goes when somebody asks for it: never the store, never a job that runs, never more."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairflare.cli import app
from tests.unit.flare import own_kits
from tests.unit.flare.own_kits import SITE

OLD, NEW = "0f572ebe-d81a-42ad-af2b-e947deaa1734", "1b1c6a7e-f24a-4c54-81ab-33f50d09674f"
DAY = 86_400.0


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = own_kits.packaged(SITE, tmp_path_factory.mktemp("kits"))
    own_kits.remove()
    return kit


@pytest.fixture
def kit(packaged: Path, tmp_path: Path) -> Path:
    kit = Path(shutil.copytree(packaged, tmp_path / SITE))
    for job, days in ((OLD, 100.0), (NEW, 1.0)):
        made = (
            "log.txt", "fairflare/releases.jsonl", "fairflare/errors.log", "fairflare/models/best.safetensors",
            "app/config/config.json",
        )  # fmt: skip
        for name in made:
            file = kit / job / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} of {job}", encoding="utf-8")
        for one in (*(kit / job).rglob("*"), kit / job):
            os.utime(one, (time.time() - days * DAY,) * 2)
    return kit


def contents(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir()}


def run(kit: Path, *words: str, answer: str = "y\n") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["kit", "clean", str(kit), *words], input=answer)
    return done.exit_code, done.output


def test_only_old_jobs_go_and_what_left_the_site_stays(kit: Path) -> None:
    before = contents(kit)
    status, said = run(kit, "--days", "30")
    assert status == 0
    assert OLD in said
    assert NEW not in said
    gone = before - contents(kit)
    assert gone == {one for one in before if one.startswith(OLD) and not one.endswith("releases.jsonl")}
    assert "nothing to remove" in run(kit, "--days", "30")[1]
    assert run(kit, "--days", "30", "--everything", "--yes")[0] == 0
    assert not (kit / OLD).exists()
    assert contents(kit) == {one for one in before if not one.startswith(OLD)}


def test_a_job_in_which_anything_is_new_is_not_old(kit: Path) -> None:
    os.utime(kit / OLD / "fairflare" / "models" / "best.safetensors")
    assert "nothing to remove" in run(kit, "--days", "30")[1]


def test_without_a_yes_nothing_goes(kit: Path) -> None:
    before = contents(kit)
    assert run(kit, "--days", "30", answer="n\n")[0] != 0
    assert run(kit, "--days", "0")[0] != 0
    assert contents(kit) == before


def test_a_link_leads_nowhere(kit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "store"
    outside.mkdir()
    (outside / "reveals.sqlite").write_text("keep", encoding="utf-8")
    (kit / OLD / "link").symlink_to(outside)
    os.utime(kit / OLD / "link", (time.time() - 100 * DAY,) * 2, follow_symlinks=False)
    os.utime(kit / OLD, (time.time() - 100 * DAY,) * 2)
    linked = kit / "2b1c6a7e-f24a-4c54-81ab-33f50d09674f"
    linked.symlink_to(outside)
    assert run(kit, "--days", "30", "--everything", "--yes")[0] == 0
    assert (outside / "reveals.sqlite").read_text(encoding="utf-8") == "keep"
    assert linked.is_symlink()
    assert not (kit / OLD).exists()


def test_what_is_no_kit_is_not_cleaned(tmp_path: Path) -> None:
    assert run(tmp_path, "--days", "30", "--yes")[0] == 1
