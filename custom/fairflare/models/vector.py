# SPDX-License-Identifier: Apache-2.0
"""A network as one flat float32 vector, the form in which models and updates travel, and its hash."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float32]


def parameter_count(model: nn.Module) -> int:
    """Length P of the model's vector."""
    return sum(parameter.numel() for parameter in model.parameters())


def to_vector(model: nn.Module) -> Vector:
    """All parameters in the order of ``named_parameters``, float32, shape (P,)."""
    with torch.no_grad():
        flat: Vector = torch.cat([parameter.reshape(-1) for parameter in model.parameters()]).numpy()
    return flat


def load_vector(model: nn.Module, vector: Vector) -> None:
    """Inverse of :func:`to_vector`: copy (P,) numbers into the model's parameters."""
    flat = torch.from_numpy(np.array(vector, dtype=np.float32))
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
    if start != flat.numel():
        raise ValueError(f"got a vector of {flat.numel()}, expected {start}")


def named_arrays(model: nn.Module, vector: Vector) -> dict[str, Vector]:
    """The vector cut into the model's named tensors (views), for a safetensors file."""
    result, start = {}, 0
    for name, parameter in model.named_parameters():
        stop = start + parameter.numel()
        result[name] = vector[start:stop].reshape(tuple(parameter.shape))
        start = stop
    return result


def vector_sha256(vector: Vector) -> str:
    """SHA-256 (hex) of the numbers as little-endian float32, length first."""
    data = np.ascontiguousarray(vector, dtype="<f4")
    digest = hashlib.sha256(f"fairflare/model/1:{data.size}:".encode())
    digest.update(data.data)
    return digest.hexdigest()
