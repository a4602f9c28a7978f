# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks``: FLARE against a bare PyTorch loop, and the server's memory, in one run.

Prints a table and writes ``bench.json`` and ``bench.md``. Every figure is measured in this run. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

MARK = ".fairflare-bench"


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
    from tests.benchmarks import memory, networks, rounds, staleness, subjects
    from tests.benchmarks.figures import as_text, in_words, machine, write

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it works; times mean little")
    parser.add_argument("--out", type=Path, default=subjects.ROOT / "runs" / "bench", help="folder of the results")
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    size, started = subjects.QUICK if given.quick else subjects.FULL, time.monotonic()
    command = "python -m tests.benchmarks" + (" --quick" if given.quick else "")
    work, facts = prepare(out), machine(command)
    print("\n".join(in_words(facts)), flush=True)
    figures = []
    parts = [subjects.mlp, subjects.cnn, subjects.resnet18]
    for number, build in enumerate(parts, 1):
        print(
            f"[{number}/{len(parts) + 3}] {build.__name__}: making data, then bare loop, FLARE, bare loop", flush=True
        )
        folder = work / build.__name__
        figures += rounds.measure(build(size, folder / "data"), folder)
    print(f"[{len(parts) + 1}/{len(parts) + 3}] memory of the server", flush=True)
    figures += memory.all_figures(size, work / "memory")
    print(f"[{len(parts) + 2}/{len(parts) + 3}] every registered network", flush=True)
    figures += networks.all_figures(networks.QUICK if given.quick else networks.FULL, work / "networks")
    print(f"[{len(parts) + 3}/{len(parts) + 3}] how often statistics are exchanged", flush=True)
    figures += staleness.all_figures(*((4, 60) if given.quick else (20, 400)), work / "staleness")
    facts["seconds"] = round(time.monotonic() - started, 1)
    write(out, facts, figures)
    print(as_text(figures))
    print("\n" + "\n".join(in_words(facts)))
    print(f"{facts['seconds']:.0f} s in all; {out / 'bench.md'}, {out / 'bench.json'}")
    shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
