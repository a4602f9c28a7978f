# SPDX-License-Identifier: Apache-2.0
"""Makes a folder from which FairFlare can be installed without internet, with every file named by its hash.

``python -m provision.deploy.wheelhouse --to dist/wheelhouse`` (``make wheelhouse``), on a machine with internet, of the
same kind as the one that it is for: the same processor, a C library as old, and the same version of Python. It holds

- a wheel of this package, and of each package that it needs to run, at the locked version; none for tests;
- ``requirements.txt``: one line for each, with the SHA-256 that pip demands (``--require-hashes``);
- ``sbom.cdx.json``: the software bill of materials, CycloneDX 1.6: versions, hashes, licences, who needs whom.

The hashes are those of what was downloaded: they hold from there on. Two people who made it on two machines compare one
number, the SHA-256 of ``requirements.txt``; so nothing in these files says when, where or by whom.
"""

from __future__ import annotations

import argparse
import email
import email.message
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from provision.deploy import wheel
from provision.deploy.wheel import ROOT

OWN = "fairflare"
REQUIREMENTS, SBOM = "requirements.txt", "sbom.cdx.json"
_LONGEST_NAME = 100


class WheelhouseError(ValueError):
    """A wheelhouse that cannot be made; the folder is not made then."""


@dataclass(frozen=True)
class Part:
    """A wheel of the house: who it is, its file's hash (hex), licence and requirements as it says itself."""

    name: str
    version: str
    file: str
    sha256: str
    licence: Mapping[str, Any] | None
    requires: tuple[str, ...]

    @property
    def purl(self) -> str:
        """The package's name for every tool that reads bills of materials."""
        return f"pkg:pypi/{self.name}@{self.version}"


def make(to: Path, source: Path = ROOT, pip: Sequence[str] = (), only: Iterable[str] = ()) -> Path:
    """Write the new folder ``to``.

    Parameters
    ----------
    to
        The folder, which must not be there yet.
    source
        The project's folder.
    pip
        More arguments for pip, such as where it looks for packages.
    only
        Names of packages; if any is given, nothing else is fetched, to try things out.

    Raises
    ------
    WheelhouseError
        The environment is not the locked one, or a package cannot be had.
    """
    if to.exists():
        raise WheelhouseError(f"got a folder that is there already: {to.name}. Next step: remove it, or name another")
    wanted = {canonicalize_name(one) for one in only}
    pins = locked(source / "requirements.lock")
    names = [name for name in needed(pins) if not wanted or name in wanted]
    if wanted - set(names):
        raise WheelhouseError(f"got {', '.join(sorted(wanted - set(names)))}, expected names that {OWN} needs to run")
    with tempfile.TemporaryDirectory(prefix="fairflare-wheelhouse-", dir=_parent(to)) as folder:
        house = Path(folder) / "house"
        wheel.build(source, house)
        fetch([f"{name}=={pins[name]}" for name in names], house, pip)
        parts = sorted((read(file) for file in house.glob("*.whl")), key=lambda one: one.name)
        if [one.name for one in parts] != sorted([OWN, *names]):
            raise WheelhouseError("got other wheels than were asked for. Next step: look at what pip says")
        (house / REQUIREMENTS).write_text(requirements(parts), encoding="utf-8")
        (house / SBOM).write_text(json.dumps(bill(parts), indent=2) + "\n", encoding="utf-8")
        house.chmod(0o755)
        house.rename(to)
    return to


def locked(lock: Path) -> dict[str, str]:
    """Name -> version of everything in the lock."""
    lines = [Requirement(line) for line in lock.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in lines}


def needed(pins: Mapping[str, str]) -> list[str]:
    """Names of all that the package needs to run in this environment, which must be the locked one."""
    found: set[tuple[str, str]] = set()
    left = {(OWN, "")}
    while left:
        name, extra = left.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            raise WheelhouseError(f"{name} is not installed. Next step: make setup") from None
        if name != OWN and one.version != pins.get(name):
            raise WheelhouseError(f"got {name} {one.version}, expected {pins.get(name)}, as locked. Next: make setup")
        found.add((name, extra))
        left |= asked(one.requires or (), extra) - found
    return sorted({name for name, _ in found} - {OWN})


def asked(requires: Iterable[str], extra: str = "") -> set[tuple[str, str]]:
    """Packages that are needed here, each with "" and with every extra that is asked of it (``cuda-toolkit[nvcc]``)."""
    parsed = [Requirement(one) for one in requires]
    here = [one for one in parsed if not one.marker or one.marker.evaluate({"extra": extra})]
    return {(canonicalize_name(one.name), more) for one in here for more in ("", *one.extras)}


def fetch(pins: Sequence[str], to: Path, pip: Sequence[str]) -> None:
    """Download wheels; what there is only as source is built, and packed so that it is the same for everybody."""
    if not pins:
        return
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        raw, built = Path(folder) / "raw", Path(folder) / "built"
        _pip("download", "--dest", str(raw), "--prefer-binary", *pip, *pins)
        for file in raw.iterdir():
            if file.suffix == ".whl":
                shutil.move(file, to / file.name)
            else:
                # Not from pip's cache, where an earlier one lies as it was built.
                _pip("wheel", "--wheel-dir", str(built), "--no-cache-dir", "--no-index", str(file))
        for file in built.glob("*.whl"):
            wheel.pack(file, to / file.name)


def _pip(command: str, *words: str) -> None:
    fixed = ["--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *fixed, *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise WheelhouseError(f"pip could not fetch everything:\n{done.stderr.strip()[-2000:]}")


def read(file: Path) -> Part:
    """What a wheel says of itself, and its hash."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one)]
        data = email.message_from_bytes(archive.read(name))
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    requires = tuple(data.get_all("Requires-Dist", []))
    return Part(canonicalize_name(data["Name"]), data["Version"], file.name, digest, _licence(data), requires)


def _licence(data: email.message.Message) -> Mapping[str, Any] | None:
    """As CycloneDX has it: an SPDX expression where the package gives one, else the name that it gives."""
    if data["License-Expression"]:
        return {"expression": data["License-Expression"]}
    said = [data["License"] or ""]
    said += [one.rsplit(" :: ", 1)[1] for one in data.get_all("Classifier", []) if one.startswith("License :: ")]
    names = [one.strip() for one in said if one.strip() and "\n" not in one.strip() and len(one) <= _LONGEST_NAME]
    return {"license": {"name": names[0]}} if names else None


def requirements(parts: Sequence[Part]) -> str:
    """What pip installs, each file by its hash; nothing else counts once one line has a hash."""
    lines = [f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in parts]
    return "".join(lines)


def bill(parts: Sequence[Part]) -> dict[str, Any]:
    """The bill of materials; it says nothing of when and where it was made, so that it can be compared."""
    known = {one.name: one for one in parts}
    edges = _edges(known)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component(known[OWN], "application")},
        "components": [_component(one, "library") for one in parts if one.name != OWN],
        "dependencies": [
            {"ref": one.purl, "dependsOn": [known[name].purl for name in edges[one.name]]} for one in parts
        ],
    }


def _edges(known: Mapping[str, Part]) -> dict[str, list[str]]:
    """Who needs whom, also through extras that somebody asks of a package."""
    found: dict[str, set[str]] = {name: set() for name in known}
    seen: set[tuple[str, str]] = set()
    left = {(name, "") for name in known}
    while left:
        name, extra = left.pop()
        seen.add((name, extra))
        wanted = {one for one in asked(known[name].requires, extra) if one[0] in known}
        found[name] |= {other for other, _ in wanted}
        left |= wanted - seen
    return {name: sorted(others - {name}) for name, others in found.items()}


def _component(part: Part, kind: str) -> dict[str, Any]:
    return {
        "type": kind,
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "purl": part.purl,
        "hashes": [{"alg": "SHA-256", "content": part.sha256}],
        **({} if part.licence is None else {"licenses": [part.licence]}),
    }


def _parent(to: Path) -> Path:
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    return to.absolute().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--to", type=Path, default=Path("dist/wheelhouse"), help="new folder (default: dist/wheelhouse)"
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="to try: this package only; again")
    arguments = parser.parse_args()
    try:
        made = make(arguments.to, only=arguments.only)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in made.iterdir())
    print(f"{len(list(made.glob('*.whl')))} wheels, {size / 1e6:,.0f} MB in {made}")
    for name in (REQUIREMENTS, SBOM):
        print(f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {made / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
