# SPDX-License-Identifier: Apache-2.0
"""Files of weights: the one place that reads and writes safetensors, and refuses everything that is not.

A weight file may come from a stranger. So it is looked at as bytes only: its hash first, then every number of its
header, then the tensors. Nothing here ever opens a pickle: loading one runs whatever code its author put into it.
Refusals never repeat paths, values or texts of the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from fairflare.errors import WeightsError
from fairflare.models import header

#: Weight files lie in a folder of this name.
FOLDER = "weights"
MAX_BYTES = 2 * 1024**3
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)  # arrays have no single truth value; files are compared by their hash
class WeightFile:
    """What a file holds: tensors in their order in the file, texts about them, SHA-256 (hex) of all its bytes."""

    tensors: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, str]
    sha256: str


def read_weights(path: Path, sha256: str | None = None) -> WeightFile:
    """Read a file of float32 tensors.

    Step counters of BatchNorm (``*.num_batches_tracked``, one int64 each) are passed over: files of known networks
    have them, and they are no weights. Links are followed: it is the hash that says which file it is.

    Parameters
    ----------
    path
        A safetensors file of at most ``MAX_BYTES``.
    sha256
        Hash (hex) of the file that is meant; compared before anything in the file is looked at.

    Raises
    ------
    WeightsError
        ``FF-WEIGHTS-MISSING``, ``-SIZE``, ``-HASH``, ``-EMPTY``, ``-PICKLE``, ``-TRUNCATED``, ``-FORMAT``, ``-DTYPE``
        or ``-VALUES``.
    """
    data = _bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise WeightsError(
            "FF-WEIGHTS-HASH",
            got="a weight file with another SHA-256 than the one asked for",
            expected="exactly the file that was meant",
            next_step="do not use this file; get the right one again from whoever gave you its hash",
        )
    tensors, metadata = _parsed(data)
    return WeightFile(MappingProxyType(tensors), MappingProxyType(metadata), digest)


def write_weights(path: Path, tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> str:
    """Write float32 tensors and return the file's SHA-256 (hex): the same tensors and texts give the same bytes.

    A crash leaves the old file or the new one, never a part. What :func:`read_weights` would refuse is not written.
    """
    if any(array.dtype != np.float32 for array in tensors.values()):
        raise header.wrong_type("another type than float32")
    arrays = {name: np.ascontiguousarray(tensors[name], dtype="<f4") for name in sorted(tensors)}
    # The library writes the texts in another order each time, so the header is written here.
    head = header.write({name: tensors[name].shape for name in arrays}, metadata)
    size = len(head) + sum(array.nbytes for array in arrays.values())
    if size > MAX_BYTES:
        raise _too_large()
    data = b"".join([head, *(array.tobytes() for array in arrays.values())])
    _parsed(data)
    _replace(path, data)
    return hashlib.sha256(data).hexdigest()


def find_weights(folder: Path | None, sha256: str) -> Path:
    """Where the file with this hash lies in a site's or server's folder of weights; its bytes are not looked at."""
    if _SHA256.fullmatch(sha256) is None:
        raise WeightsError(
            "FF-WEIGHTS-HASH",
            got="a text that is no SHA-256",
            expected="64 hexadecimal digits in lower case",
            next_step="write the hash as sha256sum prints it",
        )
    path = None if folder is None else folder / f"{sha256}.safetensors"
    if path is None or not os.path.isfile(path):  # Path.is_file raises where the folder may not be read
        raise WeightsError(
            "FF-WEIGHTS-MISSING",
            got=f"no folder of weights, for a start from the file {sha256}" if folder is None else f"no file {sha256}",
            expected=f"the file {sha256}.safetensors in the weights folder",
            next_step="copy the file into the weights folder of this site under its hash",
        )
    return path


def _bytes(path: Path) -> bytes:
    """The whole file, read once: what is hashed is what is parsed, whatever happens to the file meanwhile."""
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise _unreadable("something that is no regular file")
            if about.st_size > MAX_BYTES:
                raise _too_large()
            return stream.read(about.st_size)
    except (OSError, ValueError) as problem:
        raise _unreadable(f"a weight file that cannot be read ({type(problem).__name__})") from None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a named pipe as well, which otherwise waits for somebody to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parsed(data: bytes) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Tensors and texts. The header is checked first, so the library only sees files that it has to agree with."""
    places, metadata = header.read(data)
    try:
        arrays = load(data)
    except Exception:  # the library raises its own, untyped errors
        raise header.malformed("a file that the safetensors library refuses") from None
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in places.items():
        array = arrays.get(name)
        if array is None or array.dtype != np.float32 or array.shape != shape:
            raise header.malformed("a header that the safetensors library reads in another way")
        if not np.isfinite(array).all():
            raise WeightsError(
                "FF-WEIGHTS-VALUES",
                got="a tensor with numbers that are not finite",
                expected="finite numbers",
                next_step="use another file: the network of this one did not learn",
            )
        array.setflags(write=False)
        tensors[name] = array
    return tensors, metadata


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unreadable(got: str) -> WeightsError:
    return WeightsError(
        "FF-WEIGHTS-MISSING",
        got=got,
        expected="a readable safetensors file",
        next_step="copy the file into the weights folder of this site under its hash",
    )


def _too_large() -> WeightsError:
    return WeightsError(
        "FF-WEIGHTS-SIZE",
        got="a weight file that is too large",
        expected=f"at most {MAX_BYTES} bytes",
        next_step="keep only the tensors of the network, as float32",
    )
