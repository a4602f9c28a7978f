# SPDX-License-Identifier: Apache-2.0
"""Images: one decoder, its limits, and an order that threads do not change."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairflare.data import images
from fairflare.data.images import decode, inspect_images, load_images, locate
from fairflare.plan import ImageInput
from tests.unit.data.plans import image_input, make_plan


def size_of(channels: int, height: int, width: int) -> ImageInput:
    kind = make_plan(image_input(channels, height, width)).task.input
    assert isinstance(kind, ImageInput)
    return kind


def stored(image: Image.Image, **options: object) -> BytesIO:
    stream = BytesIO()
    image.save(stream, format="PNG", **options)
    stream.seek(0)
    return stream


def test_the_same_size_is_not_touched() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(8, 12, 3), dtype=np.uint8)
    assert np.array_equal(decode(stored(Image.fromarray(pixels)), size_of(3, 8, 12)), pixels.transpose(2, 0, 1))


def test_shrinking_averages() -> None:
    # A checkerboard of single pixels: without antialiasing it would become black or white.
    board = (np.indices((80, 80)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(stored(Image.fromarray(board)), size_of(1, 8, 8))
    assert small.shape == (1, 8, 8)
    assert abs(small.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_eight_bits_is_read(mode: str, channels: int) -> None:
    image = Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode)
    assert decode(stored(image), size_of(channels, 8, 8)).min() == 255


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused(mode: str) -> None:
    stream = BytesIO()
    Image.new(mode, (10, 10)).save(stream, format="TIFF")
    stream.seek(0)
    with pytest.raises(ValueError, match="8 bits"):
        decode(stream, size_of(1, 8, 8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7_100, 10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own, above its own limit
def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    _, unreadable = load_images([path], size_of(1, 8, 8))
    assert unreadable == 1


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert inspect_images([tmp_path / "a.png"], size_of(1, 8, 8), None)[0] is not None
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    assert inspect_images([tmp_path / "a.png"], size_of(1, 8, 8), None) == [None]


def test_threads_do_not_change_the_order(tmp_path: Path) -> None:
    paths = []
    for at in range(3 * images.BLOCK + 5):
        paths.append(tmp_path / f"{at}.png")
        Image.new("L", (8, 8), at).save(paths[-1])
    paths[7].write_bytes(b"no image")
    pixels, unreadable = load_images(paths, size_of(1, 8, 8))
    assert unreadable == 1
    assert pixels[:, 0, 0, 0].tolist() == [0 if at == 7 else at for at in range(len(paths))]
    seen: list[tuple[int, int]] = []
    hashes = inspect_images(paths, size_of(1, 8, 8), lambda done, total: seen.append((done, total)))
    assert [at for at, one in enumerate(hashes) if one is None] == [7]
    assert len(set(hashes)) == len(paths)
    assert seen[-1] == (len(paths), len(paths))


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    paths, outside, missing = locate(tmp_path / "link", ["a.png", "./a.png", "b.png", "\0"])
    assert (outside, missing) == (1, 1)
    assert paths == [(tmp_path / "real" / "a.png").resolve()] * 2 + [None, None]
