# SPDX-License-Identifier: Apache-2.0
"""A wheelhouse of two small packages: made twice the same, installed without internet, refused once it was changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fairflare.policy.package import folder_digest, wheel_digest
from provision.deploy import wheelhouse
from provision.deploy.wheelhouse import REQUIREMENTS, SBOM, Part, WheelhouseError, bill, make, needed, read

ROOT = Path(__file__).resolve().parents[3]
PINS = wheelhouse.locked(ROOT / "requirements.lock")
#: Packages of the lock that stand for all: one that comes as a wheel, and one that comes as source.
AS_WHEEL, AS_SOURCE = "markdown-it-py", "mdurl"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where pip looks for packages: a folder with made-up ones under their locked names."""
    folder = tmp_path_factory.mktemp("index")
    for name, kind, needs in ((AS_WHEEL, "wheel", [f"{AS_SOURCE}~=0.1"]), (AS_SOURCE, "sdist", [])):
        tree = folder / f"{name}-tree"
        module = tree / name.replace("-", "_")
        module.mkdir(parents=True)
        (module / "__init__.py").write_text(f"NAME = {name!r}\n", encoding="utf-8")
        (tree / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "{name}"\nversion = "{PINS[name]}"\nlicense = "MIT"\n'
            f"dependencies = {json.dumps(needs)}\n",
            encoding="utf-8",
        )
        build = f"import sys; from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]))"
        subprocess.run(
            [sys.executable, "-c", build, str(folder)], cwd=tree, check=True, capture_output=True, timeout=60
        )
    return ["--no-index", "--find-links", str(folder)]


@pytest.fixture(scope="module")
def house(index: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "house", pip=index, only=[AS_WHEEL, AS_SOURCE])


def install(house: Path, to: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The manual's command, into a folder."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(house), "--require-hashes"]
    return subprocess.run(
        [*command, "--no-deps", "--target", str(to), "-r", str(house / REQUIREMENTS), *more],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_same_again_is_the_same_bytes(house: Path, index: list[str], tmp_path: Path) -> None:
    again = make(tmp_path / "again", pip=index, only=[AS_WHEEL, AS_SOURCE])
    assert {one.name: one.read_bytes() for one in again.iterdir()} == {
        one.name: one.read_bytes() for one in house.iterdir()
    }


def test_every_file_has_its_hash(house: Path) -> None:
    lines = (house / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in house.glob("*.whl")}
    assert {line.rsplit(":", 1)[1] for line in lines} == hashes
    assert [line.split(" ")[0] for line in lines] == [
        "fairflare==0.1.0", f"{AS_WHEEL}=={PINS[AS_WHEEL]}", f"{AS_SOURCE}=={PINS[AS_SOURCE]}",
    ]  # fmt: skip
    assert {file.name for file in house.iterdir() if file.suffix != ".whl"} == {REQUIREMENTS, SBOM}


def test_it_installs_without_internet_and_is_the_package_that_a_policy_names(house: Path, tmp_path: Path) -> None:
    done = install(house, tmp_path / "target")
    assert done.returncode == 0, done.stderr
    (own,) = house.glob("fairflare-*.whl")
    assert folder_digest(tmp_path / "target" / "fairflare") == wheel_digest(own)


def test_one_changed_byte_is_not_installed(house: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in house.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (own,) = copy.glob("fairflare-*.whl")
    with zipfile.ZipFile(own, "a") as archive:
        archive.writestr("fairflare/more.py", "")
    done = install(copy, tmp_path / "target")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "target").exists()


def test_the_bill_names_every_wheel_its_licence_and_who_needs_it(house: Path) -> None:
    found = json.loads((house / SBOM).read_text(encoding="utf-8"))
    own = found["metadata"]["component"]
    assert (own["name"], own["licenses"]) == ("fairflare", [{"expression": "Apache-2.0"}])
    parts = {one.name: one for one in map(read, house.glob("*.whl"))}
    assert {one["name"]: one["hashes"][0]["content"] for one in [own, *found["components"]]} == {
        name: one.sha256 for name, one in parts.items()
    }
    edges = {one["ref"]: one["dependsOn"] for one in found["dependencies"]}
    assert edges == {
        parts["fairflare"].purl: [], parts[AS_WHEEL].purl: [parts[AS_SOURCE].purl], parts[AS_SOURCE].purl: [],
    }  # fmt: skip
    assert "timestamp" not in json.dumps(found)


def test_what_is_needed_is_the_lock_without_what_is_for_tests() -> None:
    names = set(needed(PINS))
    assert {"nvflare", "torch", "cryptography", "pydantic"} <= names
    assert not names & {"pytest", "ruff", "mypy", "hypothesis", "matplotlib", "scikit-learn"}
    assert names <= PINS.keys()
    if sys.platform == "linux" and "cuda-toolkit" in names:
        assert {"nvidia-cufft", "nvidia-curand"} <= names  # asked for by an extra of another package


def test_extras_are_followed() -> None:
    requires = ["a[x,y]>=1", 'b; extra == "z"', 'c; python_version < "3"']
    assert wheelhouse.asked(requires) == {("a", ""), ("a", "x"), ("a", "y")}
    assert wheelhouse.asked(requires, "z") == {("a", ""), ("a", "x"), ("a", "y"), ("b", "")}
    parts = [
        Part("fairflare", "1", "f.whl", "0" * 64, None, ("a[x]",)),
        Part("a", "1", "a.whl", "0" * 64, None, ('b; extra == "x"', 'c; extra == "y"')),
        Part("b", "1", "b.whl", "0" * 64, None, ()), Part("c", "1", "c.whl", "0" * 64, None, ()),
    ]  # fmt: skip
    edges = {one["ref"]: one["dependsOn"] for one in bill(parts)["dependencies"]}
    assert edges["pkg:pypi/a@1"] == ["pkg:pypi/b@1"]


def test_what_cannot_be_made_leaves_nothing(index: list[str], tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="expected names that fairflare needs"):
        make(tmp_path / "house", pip=index, only=["pytest"])
    with pytest.raises(WheelhouseError, match="pip could not fetch"):
        make(tmp_path / "house", pip=index, only=["torch"])
    with pytest.raises(WheelhouseError, match=r"expected 9\.9, as locked"):
        needed({**PINS, "mdurl": "9.9"})
    with pytest.raises(WheelhouseError, match="expected None, as locked"):
        needed({name: version for name, version in PINS.items() if name != "mdurl"})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "house").mkdir()
    with pytest.raises(WheelhouseError, match="there already"):
        make(tmp_path / "house", pip=index, only=[AS_SOURCE])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("License-Expression: MIT\nLicense: other\n", {"expression": "MIT"}),
        ("License: BSD\n", {"license": {"name": "BSD"}}),
        ("License: a\n b\nClassifier: License :: OSI Approved :: MIT License\n", {"license": {"name": "MIT License"}}),
        ("License: " + "x" * 500 + "\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_licence_is_what_a_wheel_says(tmp_path: Path, fields: str, expected: object) -> None:
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", f"Metadata-Version: 2.4\nName: a\nVersion: 1\n{fields}\n")
    assert read(tmp_path / "a-1-py3-none-any.whl").licence == expected
