# SPDX-License-Identifier: Apache-2.0
"""Every command of the READMEs does what it says, in order, on a copy of the tree's folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "poc/README.md", "provision/README.md", "provision/LIFE.md", "provision/deploy/README.md")
#: Pages whose blocks build upon one another: they are run as one, in order.
WALKS = {"provision/README.md", "provision/LIFE.md", "provision/deploy/README.md"}
#: Commands that a test or a make target runs elsewhere, and that would run this test again.
ELSEWHERE = {
    ".venv/bin/lint-imports": "make lint",
    ".venv/bin/python -m pytest tests/unit": "make test",
}
KIT = "runs/kits/fairflare/prod_00/hospital-1"
#: Commands whose exit status is not 0 by design.
STATUS = {
    ".venv/bin/fairflare plan diff jobs/heart_flexfair runs/my_plan.json": 1,
    f".venv/bin/fairflare policy check {KIT}/local runs/hearts.json": 1,
    f".venv/bin/fairflare rehearse runs/hearts.json --catalog {KIT}/local --policy {KIT}/local --site hospital-1 "
    "--html runs/rehearsal.html": 1,
    f".venv/bin/fairflare rehearse runs/plan.json --catalog runs/try --site site-1 --policy {KIT}/local "
    "--html runs/rehearsal.html": 1,
}


def blocks(page: str) -> list[list[str]]:
    text = re.sub(r"\\\n +", "", (ROOT / page).read_text(encoding="utf-8"))
    found = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [
        [line.split("  #")[0].split(" #")[0].strip() for line in block.splitlines() if line.strip()] for block in found
    ]


def all_blocks() -> list[tuple[str, int, list[str]]]:
    found = {page: blocks(page) for page in PAGES}
    walks = {page: [[line for lines in found[page] for line in lines]] for page in WALKS}
    return [(page, number, lines) for page in PAGES for number, lines in enumerate({**found, **walks}[page])]


def needs(lines: list[str]) -> list[pytest.MarkDecorator]:
    text = "\n".join(lines)
    marks = [pytest.mark.federation] if "simulat" in text else []
    return [*marks, pytest.mark.real_data] if "FAIRFLARE_DATA" in text else marks


CASES = [
    pytest.param(lines, id=f"{page}-{number}", marks=needs(lines))
    for page, number, lines in all_blocks()
    if not lines[0].startswith("make ")
]


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    for name in ("jobs", "poc", "provision"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.mark.parametrize("lines", CASES)
def test_a_block_of_commands_runs(lines: list[str], sandbox: Path, request: pytest.FixtureRequest) -> None:
    environment = {**os.environ, "COLUMNS": "200", "HOME": str(sandbox)}  # nvflare cert notes what it did in there
    if "FAIRFLARE_DATA" in "\n".join(lines):
        environment["FAIRFLARE_DATA"] = str(request.getfixturevalue("shared_data"))
    for line in lines:
        if line in ELSEWHERE:
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=sandbox, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == STATUS.get(line, 0), f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_make_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(
        re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`make[^`]*`|^make .*$", text, flags=re.MULTILINE)))
    )
    assert named
    assert named <= targets


def test_what_runs_elsewhere_is_really_run_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(BIN)/lint-imports" in makefile
    assert "$(BIN)/python -m pytest" in makefile
    lines = [line for _, _, lines in all_blocks() for line in lines]
    assert set(ELSEWHERE) <= set(lines)
    assert set(STATUS) <= set(lines)
