# SPDX-License-Identifier: Apache-2.0
"""Image files: which may be opened, and how one becomes numbers; the only file that knows Pillow's reader.

A hospital's images come from many exports, so a decoder sees untrusted bytes: only formats in
:data:`FORMATS`, at most :data:`MAX_PIXELS` pixels, nothing outside the catalogue's root folder, and no
picture that was cut off. Images with more than 8 bits per channel are refused, because Pillow would clip them
without a word. A mark that a picture is to be shown turned (EXIF orientation) is ignored in every format: an image
and its mask must not be turned differently, and masks seldom carry the mark.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from fairflare.plan import ImageInput

#: Decoders that may see a file: no PostScript, no PDF, nothing that starts another program.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF")
#: Largest image, as in a 50-megapixel camera; below Pillow's own warning, so a decompression bomb ends here.
MAX_PIXELS = 50_000_000
#: Largest file; read before it is decoded, when its content is hashed.
MAX_BYTES = 512 * 1024 * 1024
#: More threads gain nothing: decoding is bound by the processor, and a site's other work needs some of it.
MAX_THREADS = 4
#: Images that one thread takes at a time.
BLOCK = 32

#: EXIF orientation -> what undoes it.
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


def locate(root: Path, files: Sequence[str]) -> tuple[list[Path | None], int, int]:
    """Find the files that a manifest names below ``root``.

    Returns
    -------
    paths
        One per file, resolved; ``None`` where it may not be opened or is not there.
    outside
        How many would leave ``root``: absolute, with ``..``, or through a symbolic link.
    missing
        How many are empty cells or name no file.
    """
    base = Path(os.path.realpath(root))
    paths: list[Path | None] = []
    outside = missing = 0
    for file in files:
        path = None if _leaves(file) else Path(os.path.realpath(base / file))
        if path is None or not path.is_relative_to(base):
            outside += 1
            paths.append(None)
        elif not file or not os.path.isfile(path):
            missing += 1
            paths.append(None)
        else:
            paths.append(path)
    return paths, outside, missing


def _leaves(file: str) -> bool:
    # Both kinds of path: a manifest may have been written on a Windows machine.
    path = PureWindowsPath(file)  # its separators are / and \
    return "\0" in file or bool(path.anchor) or ".." in path.parts


@contextmanager
def opened(source: Path | BinaryIO, *, single: bool = False) -> Iterator[Image.Image]:
    """An image as it is stored, not turned; the first one, if the file holds several.

    Raises
    ------
    ValueError
        If it has a size that is refused, or with ``single`` is one of several. Pillow raises ``OSError`` and others for
        broken files.
    """
    if isinstance(source, Path):
        # By its path, Pillow maps an uncompressed TIFF into memory, and scrambles one that is marked as turned.
        with source.open("rb") as stream, opened(stream, single=single) as image:
            yield image
        return
    with Image.open(source, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("more pixels than a camera takes")
        if single and getattr(image, "n_frames", 1) != 1:
            raise ValueError("several pictures, of which one would be chosen in silence")
        back = _BACK.get(_turned(image))
        image.load()
        yield image if back is None else image.transpose(back)


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is stored; only its head is read."""
    with Image.open(path, formats=FORMATS) as image:
        return (image.height, image.width) if _turned(image) >= 5 else (image.width, image.height)


def _turned(image: Image.Image) -> int:
    """The EXIF orientation that Pillow applies by itself: that of TIFF, and of no other format."""
    orientation = image.getexif().get(ExifTags.Base.Orientation) if image.format == "TIFF" else 1
    return orientation if orientation in _BACK else 1


def decode(source: Path | BinaryIO, size: ImageInput) -> NDArray[np.uint8]:
    """One image as (channels, height, width), resized with an antialiased bilinear filter.

    Raises
    ------
    ValueError
        If it has a mode or a size that is refused. Pillow raises ``OSError`` and others for broken files.
    """
    with opened(source) as image:
        if image.mode not in _MODES:
            raise ValueError("not 8 bits per channel")
        # A palette has no grey scale of its own; by way of RGB all images of one file get the same colours.
        ready = image.convert("RGB" if image.mode in ("P", "PA") else image.mode)
        ready = ready.convert("L" if size.channels == 1 else "RGB")
        if ready.size != (size.width, size.height):
            ready = ready.resize((size.width, size.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(ready, dtype=np.uint8)
    return pixels[None] if size.channels == 1 else pixels.transpose(2, 0, 1)


def load_images(paths: Sequence[Path], size: ImageInput) -> tuple[NDArray[np.uint8], int]:
    """Images as (n, channels, height, width) in the order of ``paths``, and how many could not be read."""
    result = np.zeros((len(paths), size.channels, size.height, size.width), dtype=np.uint8)

    def one(at: int) -> bool:
        try:
            result[at] = decode(paths[at], size)
        except Exception:
            # Decoders raise whatever their format's parser does (OSError, SyntaxError, struct.error, ...):
            # each means "not an image we can read", and each message could name the file.
            return False
        return True

    return result, len(paths) - sum(in_threads(one, len(paths), None))


def inspect_images(paths: Sequence[Path], size: ImageInput, progress: Progress | None) -> list[str | None]:
    """SHA-256 (hex) of each file's bytes, ``None`` for one that cannot be read as an image."""

    def one(at: int) -> str | None:
        try:
            content = read(paths[at])
            decode(BytesIO(content), size)
        except Exception:
            return None  # as in load_images
        return hashlib.sha256(content).hexdigest()

    return in_threads(one, len(paths), progress)


def read(path: Path) -> bytes:
    """All bytes of a file; raises ``ValueError`` if it is larger than :data:`MAX_BYTES`."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("a file that is too large")
    return path.read_bytes()


def in_threads(work: Callable[[int], Result], total: int, progress: Progress | None) -> list[Result]:
    """``work(0)``, ``work(1)``, ... in their order, by a few threads."""

    def block(start: int) -> list[Result]:
        return [work(at) for at in range(start, min(start + BLOCK, total))]

    results: list[Result] = []
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for part in pool.map(block, range(0, total, BLOCK)):
            results += part
            if progress is not None:
                progress(len(results), total)
    return results
