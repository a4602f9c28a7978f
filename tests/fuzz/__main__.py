# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: fuzz every target, then measure which branches of each parser the inputs have taken.

Exit status 1 if anything but ``SecaggError`` came out, a sum was wrong, an input took too long, or a parser has less
than 95 % of its branches covered. Inputs and findings are in ``runs/fuzz``; the inputs of earlier runs are used again.
``FUZZ_RUNS`` is the number of inputs over all targets; every target has its part of it by what its inputs cost.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import coverage

from fairflare.secagg.encoding import LONGEST

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "runs" / "fuzz"
RUNS = 1_100_000
#: Share of its branches that a parser must have covered.
LEAST = 0.95
#: Seconds for one input.
PATIENCE = 10
_LONGEST = 1 << 14
#: What every message passes through.
READER = tuple(f"Reader.{name}" for name in ("__init__", "_list", "raw", "number", "text", "items", "raws", "end"))


def shares() -> dict[str, int]:
    """How many inputs each target gets."""
    from tests.fuzz.targets import targets

    runs = int(os.environ.get("FUZZ_RUNS") or RUNS)
    parts = {name: {1: 10, 10: 4}.get(one.cost, 1) for name, one in targets().items()}
    return {name: max(1, runs * part // sum(parts.values())) for name, part in parts.items()}


def fuzz(name: str, runs: int) -> tuple[str, str]:
    """Fuzz one target in a process of its own; its counts as JSON, and what went wrong."""
    from tests.fuzz.targets import targets

    corpus, result = OUT / name, OUT / f"{name}.json"
    corpus.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    for seed in targets()[name].mutator.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:20]).write_bytes(seed)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.worker", name, str(result), f"-runs={runs}", f"-seed={seed}",
            f"-timeout={PATIENCE}", f"-max_len={_LONGEST}", "-len_control=0", "-print_final_stats=0", "-verbosity=0",
            f"-artifact_prefix={OUT}/found-{name}-", str(corpus),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = "" if done.returncode == 0 else f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return (result.read_text(encoding="utf-8") if result.exists() else "{}"), wrong


def replay(names: Sequence[str], out: Path) -> None:
    """Run every kept input of these targets again, and write which branches they took."""
    from tests.fuzz.targets import targets

    chosen = [(targets()[name], sorted((OUT / name).iterdir())) for name in names]
    warnings.simplefilter("ignore")  # the package is imported already, which is meant: the seeds are not counted
    cover = coverage.Coverage(branch=True, data_file=None, source_pkgs=["fairflare.secagg"], config_file=False)
    cover.start()
    for target, files in chosen:
        for file in files:
            target.run(file.read_bytes())
        target.run(bytes(LONGEST + 1))  # longer than libFuzzer's inputs
    cover.stop()
    with redirect_stdout(io.StringIO()):
        cover.json_report(outfile=str(out))


Branches = dict[str, tuple[int, int, str]]


def branches(names: Sequence[str]) -> Branches:
    """Function, alone and as ``file:function`` -> branches taken, branches there are, those that were not taken."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "coverage.json"
        command = [sys.executable, "-m", "tests.fuzz", "--replay", str(out), *names]
        subprocess.run(command, cwd=ROOT, check=True)
        report = json.loads(out.read_text(encoding="utf-8"))
    found = {}
    for file, data in report["files"].items():
        for name, one in data["functions"].items():
            missing = ", ".join(f"{start}->{stop}" for start, stop in one["missing_branches"])
            taken = one["summary"]["covered_branches"], one["summary"]["num_branches"]
            found[f"{Path(file).stem}:{name}"] = found[name] = (*taken, missing)
    return found


def inputs_table(counts: dict[str, dict[str, int]]) -> None:
    """Print how many inputs each target had."""
    print(f"\n{'target':26}{'inputs':>10}{'whole':>8}{'accepted':>10}")
    for name, count in counts.items():
        inputs = count.get("inputs", 0)
        whole, accepted = (f"{100 * count.get(what, 0) // max(1, inputs)}%" for what in ("whole", "accepted"))
        print(f"{name:26}{inputs:>10}{whole:>8}{accepted:>10}")


def branches_table(names: Sequence[str]) -> list[str]:
    """Print the branches of each parser that its own inputs have taken; the parsers below the aim.

    What all messages pass through (``Reader``) is a parser of its own, with the inputs of all; so are certificates.
    """
    from tests.fuzz.targets import CHECKS, targets

    parsers = {name: ([name], targets()[name].functions) for name in names if name.startswith("parse-")}
    rows = {**parsers, "Reader, all messages": (list(parsers), READER)}
    rows["certificates"] = ([name for name in names if name.startswith("certificate-")], CHECKS)
    rows = {row: (who, functions) for row, (who, functions) in rows.items() if who}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        measured = list(pool.map(branches, [who for who, _ in rows.values()]))
    print(f"\n{'parser':26}{'branches':>12}{'and of Reader':>16}")
    below = []
    for (row, (_, functions)), found in zip(rows.items(), measured, strict=True):
        covered, there = (sum(found[one][place] for one in functions) for place in (0, 1))
        read, readable = (sum(found[one][place] for one in READER if found[one][0]) for place in (0, 1))
        missing = "; ".join(f"{one} {found[one][2]}" for one in functions if found[one][2])
        print(f"{row:26}{f'{covered} of {there}':>12}{f'{read} of {readable}':>16}  {missing}")
        if covered < LEAST * there:
            below.append(row)
    return below


def parties_table(names: Sequence[str]) -> None:
    """Print the branches of each module that all inputs together have taken, and those of sites and server missed."""
    files: dict[str, list[int]] = {}
    print("\nall inputs together, functions of the two state machines with branches not taken:")
    for function, (covered, there, missing) in branches(names).items():
        file, _, name = function.rpartition(":")
        if not file:
            continue
        total = files.setdefault(file, [0, 0])
        total[0], total[1] = total[0] + covered, total[1] + there
        if missing and name.split(".")[0].endswith(("Site", "Session")):
            print(f"  {function}: {missing}")
    for file, (covered, there) in files.items():
        if covered:
            print(f"  {file}.py: {covered} of {there} branches")


def main() -> int:
    """Fuzz, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="only these targets")
    given = parser.parse_args()
    if given.replay:
        replay(given.targets, given.replay)
        return 0
    runs, start = shares(), time.monotonic()
    runs = {name: count for name, count in runs.items() if name in (given.targets or runs)}
    OUT.mkdir(parents=True, exist_ok=True)
    print(f"{sum(runs.values()):,} inputs over {len(runs)} targets", flush=True)
    counts, wrong = {}, []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, (result, trouble) in zip(runs, pool.map(fuzz, runs, runs.values()), strict=True):
            counts[name] = json.loads(result)
            if trouble:
                wrong.append(name)
                print(f"FOUND by {name}:\n{trouble}", flush=True)
    inputs_table(counts)
    below = branches_table(list(counts))
    parties_table(list(counts))
    total, whole = (sum(one.get(what, 0) for one in counts.values()) for what in ("inputs", "whole"))
    minutes = (time.monotonic() - start) / 60
    print(
        f"\n{total:,} inputs, {100 * whole // max(1, total)}% with version and lengths right, in {minutes:.1f} minutes"
    )
    print(f"findings: {', '.join(wrong) or 'none'}; parsers below {LEAST:.0%}: {'; '.join(below) or 'none'}")
    return int(bool(wrong or below))


if __name__ == "__main__":
    sys.exit(main())
