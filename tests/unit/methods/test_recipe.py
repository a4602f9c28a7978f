# SPDX-License-Identifier: Apache-2.0
"""The README's recipe for a new method, done step by step on a copy of the package, with the README's own text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
TESTS = ("unit/engine/hospitals.py", "unit/methods/contract.py", "unit/methods/test_contract.py")


@dataclass(frozen=True)
class Recipe:
    """The README's steps: where the file goes and its text, the line, the method of a plan, the row."""

    path: str
    file: str
    line: str
    method: str
    row: str


def recipe() -> Recipe:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"<!-- recipe: begin -->\n(.*?)<!-- recipe: end -->", page, re.DOTALL)
    (path,) = re.findall(r"`(custom/fairflare/methods/\w+\.py)`", text)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["python", "python", "json", "text"]
    return Recipe(path, *(block for _, block in blocks))


def insert(file: Path, after: str, line: str) -> None:
    """One line more, after the last line that begins so; none if it is there already."""
    lines = [one for one in file.read_text(encoding="utf-8").splitlines(keepends=True) if one != line]
    place = max(number for number, one in enumerate(lines) if one.startswith(after))
    file.write_text("".join([*lines[: place + 1], line, *lines[place + 1 :]]), encoding="utf-8")


@pytest.fixture(scope="module")
def without_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of the contract, with the method but not its row."""
    home, steps = tmp_path_factory.mktemp("recipe"), recipe()
    shutil.copytree(ROOT / "custom" / "fairflare", home / "custom" / "fairflare", ignore=_without_caches)
    for name in TESTS:
        (home / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, home / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", home)
    (home / steps.path).write_text(steps.file, encoding="utf-8")
    assert steps.line.count("\n") == 1
    rows = home / "tests/unit/methods/contract.py"  # this tree may have the method itself
    rows.write_text(rows.read_text(encoding="utf-8").replace(steps.row, ""), encoding="utf-8")
    insert(home / "custom/fairflare/methods/__init__.py", "from fairflare.methods.fedavg import", steps.line)
    return home


@pytest.fixture(scope="module")
def home(without_row: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the row."""
    home, steps = tmp_path_factory.mktemp("whole") / "copy", recipe()
    shutil.copytree(without_row, home, ignore=_without_caches)
    assert steps.row.count("\n") == 1
    insert(home / "tests/unit/methods/contract.py", "ROWS: ", steps.row)
    return home


_without_caches = shutil.ignore_patterns("__pycache__", ".*")


def run(home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(home / "custom"), "COLUMNS": "200"}
    return subprocess.run(
        [str(one) for one in command], cwd=home, env=environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


def contract(home: Path, chosen: str) -> subprocess.CompletedProcess[str]:
    return run(home, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/methods", "-k", chosen)


def test_the_copy_is_what_runs(home: Path) -> None:
    found = run(home, sys.executable, "-c", "import fairflare; print(fairflare.__file__)").stdout.strip()
    assert Path(found).is_relative_to(home)


def test_a_method_without_a_row_is_noticed(without_row: Path) -> None:
    done = contract(without_row, "one_row")
    assert done.returncode == 1, done.stdout
    assert "fedavgm" in done.stdout


def test_its_row_keeps_the_contract(home: Path) -> None:
    done = contract(home, "fedavgm or one_row")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 18


def test_a_plan_with_it_validates_and_runs_masked(home: Path) -> None:
    new = run(home, BIN / "fairflare", "plan", "new", "--preset", "heart_fedavg", "--name", "mine", "--to", "plan.json")
    assert new.returncode == 0, new.stderr
    plan = json.loads((home / "plan.json").read_text(encoding="utf-8"))
    plan["method"], plan["training"]["rounds"] = json.loads(recipe().method), 2
    assert plan["protection"]["update"] == "masked"
    (home / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    checked = run(home, BIN / "fairflare", "plan", "check", "plan.json")
    assert checked.returncode == 0, checked.stderr
    assert "fedavgm" in checked.stdout
    ran = run(home, BIN / "fairflare", "run", "local", "plan.json", "--out", "mine")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    verified = run(home, BIN / "fairflare", "run", "verify", "mine")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_what_is_written_keeps_the_houses_rules(home: Path) -> None:
    files = [recipe().path, "custom/fairflare/methods/__init__.py", "tests/unit/methods/contract.py"]
    for command in (("check",), ("format", "--check")):
        done = run(home, BIN / "ruff", *command, *files)
        assert done.returncode == 0, done.stdout
