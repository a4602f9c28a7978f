# SPDX-License-Identifier: Apache-2.0
"""The rules of the tree itself: who imports whom, how large a room may grow, what never stands in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "custom" / "fairflare"
SPDX = "# SPDX-License-Identifier: Apache-2.0"
MODULE_LINES = 400
FUNCTION_LINES = 60
LIGHT = (
    "fairflare.plan",
    "fairflare.jobs.check",
    "fairflare.presets",
    "fairflare.fairness.metrics",
    "fairflare.evaluation",
    "fairflare.audit.auditor",
    "fairflare.cli",
)
HEAVY = ("torch", "torchvision", "opacus", "nvflare")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=_name(path))):
            yield path, node


def _body_lines(function: Function) -> int:
    """Count the lines from the first statement to the last; the docstring and the signature are free."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_the_package_is_found() -> None:
    # Every other test here passes on an empty folder, so this one must not.
    assert PACKAGE / "__init__.py" in _sources()


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_job_carries_code() -> None:
    # A folder `custom` in a job turns FLARE's class allow-list off at every site that runs the job.
    assert [_name(path) for path in ROOT.glob("jobs/*/app*/custom")] == []


def test_every_source_names_its_licence() -> None:
    # Within the first two lines: a script may begin with its interpreter.
    sources = sorted((ROOT / "custom").rglob("*.py"))
    heads = {_name(path): path.read_text(encoding="utf-8").splitlines()[:2] for path in sources}
    assert [name for name, head in heads.items() if SPDX not in head] == []


def test_no_assert_in_the_package() -> None:
    # `python -O` removes assert statements, and with them whatever they were checking.
    found = [f"{_name(path)}:{node.lineno}" for path, node in _nodes() if isinstance(node, ast.Assert)]
    assert found == []


def test_no_module_is_too_long() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _sources()}
    assert {name: length for name, length in lengths.items() if length > MODULE_LINES} == {}


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{_name(path)}:{node.lineno} {node.name}": _body_lines(node)
        for path, node in _nodes()
        if isinstance(node, Function)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


@pytest.mark.parametrize("module", LIGHT)
def test_import_stays_light(module: str) -> None:
    # Each in a process of its own: reading a plan or a report must not need torch or FLARE.
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_site_does_not_import_what_sets_up_the_root_logger() -> None:
    """Opacus does, in a process that has no handler yet: the site's log would look otherwise. Private plans need it."""
    code = "import sys, logging, fairflare.flare.executor; print('opacus' in sys.modules, logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "[]"]
