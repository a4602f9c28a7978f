# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks``: FLARE and a bare PyTorch loop, the server, masks, methods, many sites, in one run.

Prints a table and writes ``bench.json`` and ``bench.md``. Every figure is measured in this run. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = ".fairflare-bench"

Found = tuple[Sequence[Any], Mapping[str, str]]
Part = Callable[[bool, Path], Found]


def prepare(out: Path) -> Path:
    """An empty folder for the runs; only an earlier benchmark's is emptied."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise SystemExit(f"{out} holds something that is no benchmark; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def main(arguments: list[str] | None = None) -> int:
    """Run everything; exit status 0 whether aims are met or not."""
    from tests.benchmarks import subjects
    from tests.benchmarks.figures import as_text, in_words, machine, write

    given = _parser(subjects.ROOT / "runs" / "bench").parse_args(arguments)
    out: Path = given.out.resolve()
    started, command = time.monotonic(), ["python -m tests.benchmarks", *(["--quick"] if given.quick else [])]
    command += [f"--only {' '.join(given.only)}"] if given.only else []
    work, facts = prepare(out), machine(" ".join(command))
    print("\n".join(in_words(facts)), flush=True)
    figures: list[Any] = []
    facts["skipped"] = {}
    chosen = [one for one in PARTS if not given.only or one in given.only]
    for number, name in enumerate(chosen, 1):
        words, part = PARTS[name]
        print(f"[{number}/{len(chosen)}] {words}", flush=True)
        found, skipped = part(given.quick, work / name)
        figures += found
        facts["skipped"].update(skipped)
    facts["seconds"] = round(time.monotonic() - started, 1)
    write(out, facts, figures)
    print(as_text(figures))
    print("\n" + "\n".join(in_words(facts)))
    print(f"{facts['seconds']:.0f} s in all; {out / 'bench.md'}, {out / 'bench.json'}")
    shutil.rmtree(work, ignore_errors=True)
    return 0


def _parser(out: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it works; times mean little")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    return parser


# Each part imports what it needs: the command's help must not wait for torch.


def _round(name: str) -> Part:
    def part(quick: bool, folder: Path) -> Found:
        from tests.benchmarks import rounds, subjects

        build = getattr(subjects, name)
        return rounds.measure(build(subjects.QUICK if quick else subjects.FULL, folder / "data"), folder), {}

    return part


def _memory(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import memory, subjects

    return memory.all_figures(subjects.QUICK if quick else subjects.FULL, folder), {}


def _networks(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import networks

    return networks.all_figures(networks.QUICK if quick else networks.FULL, folder), {}


def _staleness(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import staleness

    return staleness.all_figures(*((4, 60) if quick else (20, 400)), folder), {}


def _masks(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import masks

    return masks.all_figures(masks.QUICK if quick else masks.full(), folder)


def _masked_rounds(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import masked_rounds

    return masked_rounds.all_figures(quick, folder), {}


def _provisioned(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import provisioned

    return provisioned.all_figures(quick, folder), {}


def _methods(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import methods

    return methods.all_figures(methods.QUICK if quick else methods.FULL, folder), {}


def _encrypted(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import encrypted

    return encrypted.all_figures(encrypted.QUICK if quick else encrypted.FULL, folder), {}


def _private(quick: bool, folder: Path) -> Found:
    from tests.benchmarks import private

    return private.all_figures(private.QUICK if quick else private.FULL, folder), {}


def _server_path(quick: bool, folder: Path) -> Found:
    del folder
    from tests.benchmarks import server_path

    return server_path.all_figures(quick), {}


#: Name -> what it says when it begins, and what gives its figures and the comparisons that it had to skip.
PARTS: dict[str, tuple[str, Part]] = {
    **{
        name: (f"{name}: making data, then bare loop, FLARE, bare loop", _round(name))
        for name in ("mlp", "cnn", "resnet18")
    },
    "memory": ("memory of the server", _memory),
    "networks": ("every registered network", _networks),
    "staleness": ("how often statistics are exchanged", _staleness),
    "masks": ("masks: kernel, client, server, sizes, other programs", _masks),
    "masked_rounds": ("masks: rounds in FLARE, with and without", _masked_rounds),
    "provisioned": ("real kits: provisioning, start, latency, audit", _provisioned),
    "methods": ("what each method costs over FedAvg", _methods),
    "encrypted": ("encrypted statistics against masked ones", _encrypted),
    "server_path": ("the server with 4, 16 and 50 sites", _server_path),
    "private": ("private training against plain Opacus", _private),
}


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
