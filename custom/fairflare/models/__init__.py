# SPDX-License-Identifier: Apache-2.0
"""Networks, built by registry name only: no class path, no file path, no download.

Every network uses GroupNorm (so it has no buffers, and nothing about single batches is shared) and nothing in place
(so per-sample gradients work later).
"""

from fairflare.models.registry import build, initial_vector
from fairflare.models.vector import load_vector, named_arrays, parameter_count, to_vector, vector_sha256

__all__ = ["build", "initial_vector", "load_vector", "named_arrays", "parameter_count", "to_vector", "vector_sha256"]
