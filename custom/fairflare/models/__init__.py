# SPDX-License-Identifier: Apache-2.0
"""Networks, built by registry name only: no class path, no download; weights by the hash of their file.

Every network uses GroupNorm (so it has no buffers, and nothing about single batches is shared) and nothing in place
(so per-sample gradients work later).
"""

from fairflare.models.registry import build, initial_vector, matching_tensors, to_vector_of
from fairflare.models.vector import load_vector, named_arrays, parameter_count, to_vector, vector_sha256
from fairflare.models.weights import WeightFile, find_weights, read_weights, write_weights

__all__ = [
    "WeightFile",
    "build",
    "find_weights",
    "initial_vector",
    "load_vector",
    "matching_tensors",
    "named_arrays",
    "parameter_count",
    "read_weights",
    "to_vector",
    "to_vector_of",
    "vector_sha256",
    "write_weights",
]
