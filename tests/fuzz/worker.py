# SPDX-License-Identifier: Apache-2.0
"""Fuzzes one target, guided by the coverage of the package; started by ``python -m tests.fuzz``.

``python -m tests.fuzz.worker TARGET RESULT [options of libFuzzer] FOLDER``. Needs atheris, so no test imports it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fairflare.secagg"]):
    from tests.fuzz.structure import take_apart
    from tests.fuzz.targets import changed, targets


def main() -> None:
    """Fuzz until libFuzzer has had its runs; it ends the process itself, with status 0 unless something was found."""
    name, result, *options = sys.argv[1:]
    target = targets()[name]
    counts = {"inputs": 0, "whole": 0, "accepted": 0}
    most = int(next(one for one in options if one.startswith("-runs=")).removeprefix("-runs="))

    def one(data: bytes) -> None:
        counts["inputs"] += 1
        counts["whole"] += take_apart(data) is not None
        counts["accepted"] += target.run(data)
        if counts["inputs"] % 1000 == 0 or counts["inputs"] >= most:
            Path(result).write_text(json.dumps(counts), encoding="utf-8")

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.15:
            return atheris.Mutate(data, longest)
        return changed(target, data or rng.choice(target.mutator.seeds), rng)[:longest]

    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
