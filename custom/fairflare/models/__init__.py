# SPDX-License-Identifier: Apache-2.0
"""Networks, built by registry name only: no class path, no download; weights by the hash of their file.

Every network uses GroupNorm (so it has no buffers, and nothing about single batches is shared) and nothing in place
(so per-sample gradients work later).
"""

from fairflare.models.registry import (
    build,
    frozen_tensors,
    frozen_tensors_of,
    initial_vector,
    matching_tensors,
    to_vector_of,
)
from fairflare.models.vector import (
    frozen_arrays,
    frozen_sha256,
    load_frozen,
    load_vector,
    named_arrays,
    parameter_count,
    to_vector,
    trained_parameters,
    vector_sha256,
    whole_arrays,
)
from fairflare.models.weights import WeightFile, find_weights, read_weights, write_weights

__all__ = [
    "WeightFile",
    "build",
    "find_weights",
    "frozen_arrays",
    "frozen_sha256",
    "frozen_tensors",
    "frozen_tensors_of",
    "initial_vector",
    "load_frozen",
    "load_vector",
    "matching_tensors",
    "named_arrays",
    "parameter_count",
    "read_weights",
    "to_vector",
    "to_vector_of",
    "trained_parameters",
    "vector_sha256",
    "whole_arrays",
    "write_weights",
]
