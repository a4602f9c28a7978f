# SPDX-License-Identifier: Apache-2.0
"""Builds the package's wheel so that everybody who builds it from the same sources gets the same bytes.

``python -m provision.deploy.wheel --to dist`` (``make wheel``). A wheel as setuptools writes it carries the times and
modes of files, and whatever an old ``build/`` folder has kept; its bytes also depend on the library that compressed
them. Here only what belongs to the package is copied and built, and the archive is packed anew: sorted, not compressed,
one time, one mode. What is left to differ is the version of setuptools, which must be the locked one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: All that a wheel is made of.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "custom/fairflare")
#: The earliest time that a zip archive can say.
_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644
_UNIX = 3


def build(source: Path, to: Path) -> Path:
    """Build the wheel of the tree in ``source`` into the folder ``to``; returns its path.

    Raises
    ------
    ValueError
        Another setuptools than the locked one.
    subprocess.CalledProcessError
        setuptools could not build it; what it said is on standard error.
    """
    verify_builder(source / "requirements.lock")
    with tempfile.TemporaryDirectory(prefix="fairflare-wheel-") as folder:
        tree, raw = Path(folder) / "tree", Path(folder) / "raw"
        for name in SOURCES:
            _copy(source / name, tree / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
        # Set iteration order, and a time that another program may have set, must not reach the bytes.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "315532800"}
        subprocess.run(
            [*command, "--no-deps", "--no-build-isolation", "--wheel-dir", str(raw), str(tree)],
            check=True, env=environment,
        )  # fmt: skip
        (made,) = raw.glob("*.whl")
        to.mkdir(parents=True, exist_ok=True)
        return pack(made, to / made.name)


def pack(wheel: Path, to: Path) -> Path:
    """Write the wheel's files into a new archive whose bytes depend on nothing but their names and contents."""
    with zipfile.ZipFile(wheel) as archive:
        files = {one.filename: archive.read(one) for one in archive.infolist() if not one.is_dir()}
    (record,) = [name for name in files if name.endswith(".dist-info/RECORD")]
    files[record] = b"".join(sorted(files[record].splitlines(keepends=True)))
    partial = to.with_name(f".{to.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        # The list of all files last, as installers like it.
        for name in sorted(files, key=lambda one: (one == record, one)):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr, entry.create_system = _MODE << 16, _UNIX
            archive.writestr(entry, files[name])
    partial.replace(to)
    return to


def verify_builder(lock: Path) -> None:
    """Raise ``ValueError`` unless the installed setuptools is the locked one: its version is written into the wheel."""
    found = re.search(r"^setuptools==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    wanted, own = found and found[1], version("setuptools")
    if own != wanted:
        raise ValueError(f"got setuptools {own}, expected {wanted}, as locked. Next step: make setup")


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("dist"), help="folder for the wheel (default: dist)")
    arguments = parser.parse_args()
    try:
        made = build(ROOT, arguments.to)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{hashlib.sha256(made.read_bytes()).hexdigest()}  {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
