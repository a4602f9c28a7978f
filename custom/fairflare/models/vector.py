# SPDX-License-Identifier: Apache-2.0
"""A network as one flat float32 vector, the form in which models and updates travel, and its hash.

Only what is trained travels: parameters that require a gradient, which is all of them but in a ``part`` of a network.
The frozen rest is named tensors, float32, which every site has from the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float32]
#: Name -> numbers in the parameter's shape.
Tensors = Mapping[str, Vector]


def parameter_count(model: nn.Module) -> int:
    """Length P of the model's vector."""
    return sum(parameter.numel() for parameter in trained_parameters(model))


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that the vector is made of, in its order: that of ``named_parameters``."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def to_vector(model: nn.Module) -> Vector:
    """All trained parameters in the order of ``named_parameters``, float32, shape (P,)."""
    with torch.no_grad():
        flat: Vector = torch.cat([parameter.reshape(-1) for parameter in trained_parameters(model)]).numpy()
    return flat


def load_vector(model: nn.Module, vector: Vector) -> None:
    """Inverse of :func:`to_vector`: copy (P,) numbers into the model's trained parameters."""
    trained = trained_parameters(model)
    wanted = sum(parameter.numel() for parameter in trained)
    if vector.shape != (wanted,):
        raise ValueError(f"got a vector of {vector.shape}, expected ({wanted},)")
    flat, start = torch.from_numpy(np.array(vector, dtype=np.float32)), 0
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def named_arrays(model: nn.Module, vector: Vector) -> dict[str, Vector]:
    """The vector cut into the model's trained tensors (views), for a safetensors file."""
    result, start = {}, 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        stop = start + parameter.numel()
        result[name] = vector[start:stop].reshape(tuple(parameter.shape))
        start = stop
    return result


def whole_arrays(model: nn.Module, vector: Vector, frozen: Tensors) -> dict[str, Vector]:
    """Every tensor of the model, trained (views of the vector) or frozen: a file that is usable alone."""
    _verify_frozen(model, frozen)
    trained = named_arrays(model, vector)
    return {name: trained[name] if name in trained else frozen[name] for name, _ in model.named_parameters()}


def frozen_arrays(model: nn.Module) -> dict[str, Vector]:
    """Copies of the tensors that are not trained, float32."""
    named = model.named_parameters()
    return {name: one.detach().to(torch.float32).numpy().copy() for name, one in named if not one.requires_grad}


def load_frozen(model: nn.Module, tensors: Tensors) -> None:
    """Inverse of :func:`frozen_arrays`; ``ValueError`` for other names or shapes than the model's."""
    _verify_frozen(model, tensors)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))


def frozen_sha256(tensors: Tensors) -> str:
    """SHA-256 (hex) of frozen tensors: their names and shapes in order, then the numbers as little-endian float32."""
    about = [[name, list(array.shape)] for name, array in tensors.items()]
    return _sha256(f"fairflare/frozen/1:{json.dumps(about)}:", tensors.values())


def vector_sha256(vector: Vector) -> str:
    """SHA-256 (hex) of the numbers as little-endian float32, length first."""
    return _sha256(f"fairflare/model/1:{vector.size}:", [vector])


def _sha256(head: str, arrays: Iterable[Vector]) -> str:
    digest = hashlib.sha256(head.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def _verify_frozen(model: nn.Module, tensors: Tensors) -> None:
    own = {name: tuple(one.shape) for name, one in model.named_parameters() if not one.requires_grad}
    if own != {name: array.shape for name, array in tensors.items()}:
        raise ValueError(f"got {len(tensors)} frozen tensors that are not the model's {len(own)}")
