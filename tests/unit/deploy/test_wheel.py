# SPDX-License-Identifier: Apache-2.0
"""The same sources give the same wheel, byte for byte, wherever, whenever and by whomever it is built."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provision.deploy import wheel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Path]:
    """A small package of the same form, in a folder of its own."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        package = folder / "custom" / "fairflare"
        (package / "evaluation" / "templates").mkdir(parents=True)
        for file, text in {
            "__init__.py": "", "py.typed": "", "errors.py": "LEFT = 1\n", "cli.py": "def main() -> None: ...\n",
            "evaluation/__init__.py": "", "evaluation/templates/page.css": "p {}\n",
        }.items():  # fmt: skip
            (package / file).write_text(text, encoding="utf-8")
        for file in ("pyproject.toml", "LICENSE", "README.md", "requirements.lock"):
            shutil.copyfile(ROOT / file, folder / file)
        return folder

    return make


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    former = os.umask(0o022)
    yield lambda mask: (os.umask(mask), None)[1]
    os.umask(former)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_two_folders_umasks_and_clocks_give_one_wheel(
    tree: Callable[[str], Path], umask: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = wheel.build(tree("one"), tmp_path / "w1")
    umask(0o077)
    other = tree("deeper/another name")
    for file in other.rglob("*"):
        if file.is_file():
            os.utime(file, (2_000_000_000, 2_000_000_000))
            file.chmod(0o700)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    two = wheel.build(other, tmp_path / "w2")
    assert one.name == two.name
    assert digest(one) == digest(two)
    with zipfile.ZipFile(two) as archive:
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_what_lies_about_in_a_tree_does_not_reach_the_wheel(tree: Callable[[str], Path], tmp_path: Path) -> None:
    one = wheel.build(tree("one"), tmp_path / "w1")
    other = tree("two")
    # What setuptools would take for a module of the package, from a build of last month.
    stale = other / "build" / "lib" / "fairflare"
    stale.mkdir(parents=True)
    (stale / "removed.py").write_text("REMOVED = 1\n", encoding="utf-8")
    cache = other / "custom" / "fairflare" / "__pycache__"
    cache.mkdir()
    (cache / "errors.cpython-311.pyc").write_bytes(b"old")
    (other / "custom" / "fairflare.egg-info").mkdir()
    (other / "notes.txt").write_text("mine", encoding="utf-8")
    assert digest(wheel.build(other, tmp_path / "w2")) == digest(one)


def test_another_source_is_another_wheel(tree: Callable[[str], Path], tmp_path: Path) -> None:
    one = wheel.build(tree("one"), tmp_path / "w1")
    other = tree("two")
    (other / "custom" / "fairflare" / "errors.py").write_text("LEFT = 2\n", encoding="utf-8")
    assert digest(wheel.build(other, tmp_path / "w2")) != digest(one)


def test_order_times_and_compression_of_an_archive_do_not_matter(tmp_path: Path) -> None:
    record = "a-1.dist-info/RECORD"
    contents = {"a/__init__.py": b"x = 1\n" * 50, "a/b.py": b"", record: b"a/b.py,,0\na/__init__.py,,1\n"}
    made = []
    for number, names in enumerate((sorted(contents), sorted(contents, reverse=True))):
        raw = tmp_path / f"raw{number}.whl"
        lines = contents[record].splitlines(keepends=True)
        with zipfile.ZipFile(raw, "w", (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)[number]) as archive:
            for name in names:
                entry = zipfile.ZipInfo(name, (2000 + number, 1, 1, 0, 0, 0))
                archive.writestr(entry, b"".join(lines[:: 1 - 2 * number]) if name == record else contents[name])
        made.append(wheel.pack(raw, tmp_path / f"packed{number}.whl"))
    assert digest(made[0]) == digest(made[1])
    with zipfile.ZipFile(made[0]) as archive:
        assert archive.namelist()[-1] == record


def test_another_builder_than_the_locked_one_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("setuptools==1.2.3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected 1\.2\.3"):
        wheel.verify_builder(lock)
    wheel.verify_builder(ROOT / "requirements.lock")


def test_the_projects_own_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "provision.deploy.wheel", "--to", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert done.stdout.split() == [digest(made), str(made)]
    with zipfile.ZipFile(made) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "custom"
    assert names == {
        file.relative_to(package).as_posix()
        for file in (package / "fairflare").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
