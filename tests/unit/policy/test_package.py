# SPDX-License-Identifier: Apache-2.0
"""One number over a package's files: a wheel's before it is installed, the installed one's, and what tools compute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairflare.cli import app
from fairflare.errors import PolicyError
from fairflare.policy import package
from fairflare.policy.package import PACKAGE, folder_digest, installed_digest, is_editable, wheel_digest

FILES = {
    "__init__.py": "", "py.typed": "", "gate.py": "OPEN = False\n", "Zebra.py": "", "a/__init__.py": "", "a-b.txt": "x",
    "a/b.py": "B = 1\n",
}  # fmt: skip
INFO = "fairflare-0.1.0.dist-info"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path / "site-packages")


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        file = folder / "fairflare" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder / "fairflare"


def make_wheel(file: Path, files: dict[str, str] | None = None, more: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in (FILES if files is None else files).items():
            archive.writestr(f"fairflare/{name}", text)
        for name, text in {f"{INFO}/METADATA": "m", f"{INFO}/RECORD": "r", **(more or {})}.items():
            archive.writestr(name, text)
    return file


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(PolicyError) as caught:
        call()
    assert caught.value.code == "FF-POLICY-PACKAGE"
    return caught.value.got


def test_a_wheel_has_the_number_of_what_is_installed_from_it(tree: Path, tmp_path: Path) -> None:
    assert wheel_digest(make_wheel(tmp_path / "a.whl")) == folder_digest(tree)
    backwards = dict(reversed(FILES.items()))
    assert wheel_digest(make_wheel(tmp_path / "b.whl", backwards)) == folder_digest(tree)


def test_usual_tools_compute_the_same(tree: Path) -> None:
    """The command of the module's first lines, and of the manual."""
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "gate.cpython-311.pyc").write_bytes(b"x")
    (command,) = [line.strip() for line in (package.__doc__ or "").splitlines() if line.strip().startswith("find ")]
    for folder, expected in ((tree.parent, folder_digest(tree)), (PACKAGE.parent, installed_digest())):
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == expected


def changed(tree: Path) -> None:
    (tree / "gate.py").write_text("OPEN = True\n", encoding="utf-8")


def added(tree: Path) -> None:
    (tree / "a" / "c.py").write_text("", encoding="utf-8")


def taken(tree: Path) -> None:
    (tree / "a" / "b.py").unlink()


def renamed(tree: Path) -> None:
    (tree / "gate.py").rename(tree / "gates.py")


def swapped(tree: Path) -> None:
    (tree / "a" / "b.py").write_text(FILES["gate.py"], encoding="utf-8")
    (tree / "gate.py").write_text(FILES["a/b.py"], encoding="utf-8")


def compiled(tree: Path) -> None:
    """A module without a source, which Python would import."""
    (tree / "gate2.pyc").write_bytes(b"x")


@pytest.mark.parametrize("change", [changed, added, taken, renamed, swapped, compiled])
def test_a_changed_package_has_another_number(tree: Path, change: Callable[[Path], None]) -> None:
    former = folder_digest(tree)
    change(tree)
    assert folder_digest(tree) != former


def test_times_modes_and_compiled_copies_do_not_count(tree: Path) -> None:
    former = folder_digest(tree)
    (tree / "a" / "__pycache__").mkdir()
    (tree / "a" / "__pycache__" / "b.cpython-311.pyc").write_bytes(b"x")
    os.utime(tree / "gate.py", (1, 1))
    (tree / "gate.py").chmod(0o600)
    assert folder_digest(tree) == former


def test_what_cannot_be_counted_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no package" in refused(lambda: folder_digest(tmp_path / "empty"))
    assert "not every file" in refused(lambda: folder_digest(tmp_path / "nothing"))
    (tree / "pipe").symlink_to(tmp_path / "gone")
    assert "no plain file" in refused(lambda: folder_digest(tree))
    (tree / "pipe").unlink()
    os.mkfifo(tree / "pipe")
    assert "no plain file" in refused(lambda: folder_digest(tree))
    (tree / "pipe").unlink()
    (tmp_path / "else").mkdir()
    (tree / "more").symlink_to(tmp_path / "else")
    assert "link to another folder" in refused(lambda: folder_digest(tree))
    (tree / "more").unlink()
    for name in ("gate.py\n" + "0" * 64 + "  fairflare\uff0fx.py", "a\\b.py"):
        (tree / name).touch()
        assert "no screen shows" in refused(lambda: folder_digest(tree))
        (tree / name).unlink()
    folder_digest(tree)


STRANGE = ("fairflare.pth", "other/__init__.py", "fairflare-0.1.0.data/purelib/x.py", "fairflare/__pycache__/gate.pyc",
           "fairflare/../x.py", "sitecustomize.py", "fairflare//x.py")  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_wheel_that_would_install_more_is_refused(tmp_path: Path, name: str) -> None:
    assert "more than the package" in refused(lambda: wheel_digest(make_wheel(tmp_path / "a.whl", more={name: "x"})))


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"PK no zip")
    assert "no wheel" in refused(lambda: wheel_digest(tmp_path / "a.whl"))
    assert "no wheel" in refused(lambda: wheel_digest(tmp_path / "b.whl"))
    assert "no wheel" in refused(lambda: wheel_digest(tmp_path))
    assert "no package" in refused(lambda: wheel_digest(make_wheel(tmp_path / "c.whl", {"gate.py": ""})))
    twice = make_wheel(tmp_path / "d.whl")
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("fairflare/gate.py", "OPEN = True\n")
    assert "more than the package" in refused(lambda: wheel_digest(twice))


def test_the_commands_print_it(tree: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["policy", "package"])
    assert done.stdout.strip() == installed_digest() == folder_digest(PACKAGE)
    assert ("tree of sources" in done.stderr) is is_editable()
    wheel = make_wheel(tmp_path / "a.whl")
    done = CliRunner().invoke(app, ["policy", "package", "--wheel", str(wheel)])
    assert done.output.strip() == folder_digest(tree)


# ------------------------------------------------------------------------------------------------ real wheels, a join

JOIN = """
import sys
from pathlib import Path
import fairflare
from fairflare.errors import PolicyError
from fairflare.policy import read_policy
from fairflare.presets import shipped
from fairflare.policy.package import is_editable
from fairflare.flare.permission import Asked, Permission, Places

kit = Path(sys.argv[1])
permission = Permission(
    shipped("heart_flexfair"), Asked("hospital-1", "j", None), Places(kit / "local", kit / "startup", kit)
)
print(fairflare.__file__, is_editable())
try:
    permission.verify()
except PolicyError as problem:
    print(problem.code)
else:
    print("joined")
"""


def install(wheel: Path, to: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(to)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)
    return to


def fairflare(target: Path, *arguments: str) -> list[str]:
    """What a Python says whose package is the one in ``target``."""
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=target, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_wheel_with_another_digest_is_refused_at_join(tmp_path: Path) -> None:
    from fairflare.policy import open_policy, write_policy
    from provision.deploy import wheel

    root = Path(__file__).resolve().parents[3]
    ours = wheel.build(root, tmp_path / "ours")
    source = tmp_path / "source"
    for name in (*wheel.SOURCES, "requirements.lock"):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name)
        else:
            source.mkdir(exist_ok=True)
            shutil.copyfile(root / name, source / name)
    with (source / "custom" / "fairflare" / "privacy" / "gate.py").open("a", encoding="utf-8") as file:
        file.write("# one more line\n")
    theirs = wheel.build(source, tmp_path / "theirs")
    assert ours.name == theirs.name
    kit = tmp_path / "kit"
    for part in ("local", "startup"):
        (kit / part).mkdir(parents=True)
    policy = open_policy(tmp_path / "store").model_copy(update={"package": wheel_digest(ours)})
    write_policy(kit / "local", policy)
    said = {}
    for made in (ours, theirs):
        target = install(made, tmp_path / f"{made.parent.name}-installed")
        place, editable, said[made] = fairflare(target, "-c", JOIN, str(kit))
        assert (Path(place).parent, editable) == (target / "fairflare", "False")
        command = "from fairflare.cli import main; main()"
        assert fairflare(target, "-c", command, "policy", "package") == [wheel_digest(made)]
    assert said == {ours: "joined", theirs: "FF-POLICY-PACKAGE"}
    assert wheel_digest(ours) == installed_digest()  # the tests' own tree is what the wheel was built from
