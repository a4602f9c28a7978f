# SPDX-License-Identifier: Apache-2.0
"""CKKS as FLARE's homomorphic encryption has it by default: one vector per tensor, 8192, [60, 40, 40], scale 2^40.

Runs under an interpreter that has ``tenseal``; nothing of FairFlare is imported. Each line of standard input asks for
one model: ``{"shapes": [[...]...]}``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

import numpy as np
import tenseal as ts


def run(shapes: list[list[int]], context: Any) -> dict[str, Any]:
    """Encrypt and serialise one tensor after the other; the first one must come back."""
    random = np.random.default_rng(1)
    encrypting = writing = 0.0
    size, wrong = 0, 0.0
    for number, shape in enumerate(shapes):
        values = random.normal(0, 0.01, math.prod(shape))
        started = time.perf_counter()
        cipher = ts.ckks_vector(context, values)
        between = time.perf_counter()
        data = cipher.serialize()
        ended = time.perf_counter()
        encrypting, writing, size = encrypting + between - started, writing + ended - between, size + len(data)
        if number == 0:
            wrong = float(np.abs(np.array(cipher.decrypt()) - values).max())
    if wrong > 1e-4:
        raise RuntimeError(f"a tensor came back wrong by {wrong}")
    return {"encrypt": encrypting, "write": writing, "bytes": size, "wrong": wrong}


def main() -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write warnings to standard output
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC
    )
    context.global_scale = 2**40
    for line in sys.stdin:
        print(json.dumps(run(context=context, **json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
