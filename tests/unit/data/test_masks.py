# SPDX-License-Identifier: Apache-2.0
"""Masks: what is read as a label, what is refused, and that image and mask stay on top of each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairflare.data.check import Finding, check
from fairflare.data.images import stored_size
from fairflare.data.manifest import load, needed_columns
from fairflare.data.masks import decode_mask
from fairflare.errors import DataError
from fairflare.plan import Plan, SegmentationTask
from tests.unit.data.plans import (
    SECRET_FOLDER,
    SECRETS,
    Row,
    good_rows,
    image_input,
    make_plan,
    segmentation_plan,
    table_input,
    write_entry,
)

PLAN = segmentation_plan()
WIDTH, HEIGHT = 40, 30


def task_of(plan: Plan) -> SegmentationTask:
    assert isinstance(plan.task, SegmentationTask)
    return plan.task


def some_mask(at: int, values: tuple[int, ...] = (0, 255)) -> np.ndarray:
    return np.random.default_rng(at).choice(np.array(values, dtype=np.uint8), size=(HEIGHT, WIDTH))


def mask_rows(folder: Path) -> list[Row]:
    rows = good_rows()
    for at, row in enumerate(rows):
        Image.new("RGB", (WIDTH, HEIGHT), (at, 2 * at, 255 - at)).save(folder / row["file"])
        Image.fromarray(some_mask(at)).save(folder / row["mask"])
        del row["label"]
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / SECRET_FOLDER
    home.mkdir()
    return home


def by_code(findings: list[Finding], severity: str) -> dict[str, str]:
    return {one.code: one.text for one in findings if one.severity == severity}


def verify_tells_no_secret(text: str, folder: Path) -> None:
    assert [secret for secret in (*SECRETS, str(folder)) if secret in text] == []


# ------------------------------------------------------------------------------------------------------ what is read


def test_each_kind_of_task_needs_its_own_columns() -> None:
    assert needed_columns(make_plan(table_input(), attributes=[])) == (
        "id", "patient", "label", "split", "heart_rate", "pressure",
    )  # fmt: skip
    assert needed_columns(make_plan(image_input(), attributes=[])) == ("id", "patient", "label", "split", "file")
    assert needed_columns(segmentation_plan(attributes=[])) == ("id", "patient", "split", "file", "mask")


def test_masks_are_loaded_beside_their_images(folder: Path) -> None:
    data = load(PLAN, write_entry(folder, mask_rows(folder)))
    training = data.training
    assert training.masks is not None
    assert training.masks.shape == (4, 16, 32)
    assert training.masks.dtype == np.uint8
    assert set(np.unique(training.masks).tolist()) == {0, 1}
    assert training.labels.tolist() == [0, 0, 0, 0]
    assert training.inputs[:, 0, 3, 3].tolist() == [0, 1, 2, 3]
    nearest = some_mask(2)[((np.arange(16) + 0.5) * HEIGHT / 16).astype(int)]
    nearest = nearest[:, ((np.arange(32) + 0.5) * WIDTH / 32).astype(int)]
    assert np.array_equal(training.masks[2], nearest == 255)
    taken = training.take(np.array([3, 1]))
    assert len(taken) == 2
    assert taken.masks is not None
    assert np.array_equal(taken.masks[1], training.masks[1])
    assert check(PLAN, write_entry(folder, mask_rows(folder)))[0].severity != "error"


def test_classification_has_no_masks(folder: Path) -> None:
    data = load(make_plan(table_input()), write_entry(folder, good_rows()))
    assert data.training.masks is None
    assert data.training.take(np.array([1])).masks is None


def test_grey_values_become_places_of_labels(folder: Path) -> None:
    plan = segmentation_plan(image_input(1, HEIGHT + 2, WIDTH), ("other", "cup", "disc"), (7, 200, 3))
    values = some_mask(1, (7, 200, 3))
    Image.fromarray(values).save(folder / "m.png")
    task = task_of(segmentation_plan(image_input(1, 30, 40), ("other", "cup", "disc"), (7, 200, 3)))
    found = decode_mask(folder / "m.png", (WIDTH, HEIGHT), task)
    assert np.array_equal(np.array([7, 200, 3])[found], values)
    # Made larger or smaller, no label appears that was not there.
    assert set(np.unique(decode_mask(folder / "m.png", (WIDTH, HEIGHT), task_of(plan))).tolist()) == {0, 1, 2}


def palette(values: np.ndarray) -> Image.Image:
    """Place 0 of the palette is white, place 1 black: places and colours must not be confused."""
    image = Image.fromarray((values == 0).astype(np.uint8), mode="P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


KINDS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "grey_png": (Image.fromarray, "png"),
    "binary_png": (lambda values: Image.fromarray(values).convert("1"), "png"),
    "binary_tiff": (lambda values: Image.fromarray(values).convert("1"), "tif"),
    "palette_png": (palette, "png"),
    "palette_gif": (palette, "gif"),
    "grey_gif": (Image.fromarray, "gif"),
    "grey_bmp": (Image.fromarray, "bmp"),
    "grey_ppm": (Image.fromarray, "ppm"),
    "grey_as_rgb": (lambda values: Image.fromarray(values).convert("RGB"), "png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_store_a_mask_gives_the_same_labels(folder: Path, kind: str) -> None:
    make, ending = KINDS[kind]
    values = some_mask(5)
    make(values).save(folder / f"m.{ending}")
    found = decode_mask(folder / f"m.{ending}", (WIDTH, HEIGHT), task_of(segmentation_plan(image_input(3, 30, 40))))
    assert np.array_equal(found, values == 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endings", [("jpg", "png"), ("tif", "png"), ("png", "tif"), ("tif", "tif"), ("webp", "png")])
def test_a_mark_to_turn_the_picture_turns_neither_image_nor_mask(
    folder: Path, orientation: int, endings: tuple[str, str]
) -> None:
    mark = Image.Exif()
    mark[0x0112] = orientation
    values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values[:10, :20] = 255
    rows = good_rows()[:1]
    rows[0]["file"], rows[0]["mask"] = f"a.{endings[0]}", f"b.{endings[1]}"
    # Only the image is marked, or both are: it makes no difference.
    for marked in (("file",), ("file", "mask")):
        for name in ("file", "mask"):
            options = {"exif": mark} if name in marked else {}
            Image.fromarray(values).convert("RGB" if name == "file" else "L").save(folder / rows[0][name], **options)
        assert stored_size(folder / rows[0]["file"]) == (WIDTH, HEIGHT)
        training = load(segmentation_plan(image_input(1, 30, 40)), write_entry(folder, rows)).training
        assert training.masks is not None
        assert np.array_equal(training.masks[0], values == 255)
        assert (training.inputs[0, 0] > 127).astype(int).tolist() == (values == 255).astype(int).tolist()


# --------------------------------------------------------------------------------------------------- what is refused


def save(image: Image.Image, **options: object) -> Callable[[Path, list[Row]], None]:
    def saved(folder: Path, rows: list[Row]) -> None:
        image.save(folder / rows[0]["mask"], **options)

    return saved


def cell(text: str) -> Callable[[Path, list[Row]], None]:
    def put(folder: Path, rows: list[Row]) -> None:
        rows[0]["mask"] = text

    return put


def link(folder: Path, rows: list[Row]) -> None:
    Image.fromarray(some_mask(1)).save(folder.parent / "other.png")
    (folder / "link.png").symlink_to(folder.parent / "other.png")
    rows[0]["mask"] = "link.png"


def gone(folder: Path, rows: list[Row]) -> None:
    (folder / rows[0]["mask"]).unlink()


def several(folder: Path, rows: list[Row]) -> None:
    rows[0]["mask"] = "pages.tif"
    pages = [Image.fromarray(some_mask(at)) for at in range(2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])


def lossy(folder: Path, rows: list[Row]) -> None:
    rows[0]["mask"] = "m.jpg"
    Image.fromarray(some_mask(1)).save(folder / "m.jpg", quality=50)


def text(folder: Path, rows: list[Row]) -> None:
    (folder / rows[0]["mask"]).write_text("SECRET")


def one_grey_pixel() -> Image.Image:
    values = some_mask(1)
    values[0, 0] = 254
    return Image.fromarray(values)


def blue() -> Image.Image:
    image = Image.fromarray(some_mask(1)).convert("RGB")
    image.putpixel((0, 0), (0, 0, 255))
    return image


def coloured_palette() -> Image.Image:
    image = palette(some_mask(1))
    image.putpalette([255, 255, 254, 0, 0, 0])
    return image


GOOD = Image.fromarray(some_mask(1))
BROKEN: dict[str, tuple[Callable[[Path, list[Row]], None], str]] = {
    "outside_absolute": (cell("/SECRET.png"), "MASK-OUTSIDE"),
    "outside_parent": (cell("../SECRET.png"), "MASK-OUTSIDE"),
    "outside_link": (link, "MASK-OUTSIDE"),
    "missing": (gone, "MASK-MISSING"),
    "missing_cell": (cell(""), "MASK-MISSING"),
    "no_image": (text, "MASK"),
    "alpha": (save(GOOD.convert("RGBA")), "MASK"),
    "grey_with_alpha": (save(GOOD.convert("LA")), "MASK"),
    "transparent_grey": (save(GOOD, transparency=0), "MASK"),
    "transparent_palette": (save(palette(some_mask(1)), transparency=0), "MASK"),
    "colours": (save(blue()), "MASK"),
    "coloured_palette": (save(coloured_palette()), "MASK"),
    "sixteen_bits": (save(Image.fromarray(some_mask(1).astype(np.uint16))), "MASK"),
    "several_pictures": (several, "MASK"),
    "smaller": (save(GOOD.resize((20, 15), Image.Resampling.NEAREST)), "MASK-SIZE"),
    "turned": (save(GOOD.transpose(Image.Transpose.ROTATE_90)), "MASK-SIZE"),
    "one_pixel_of_another_value": (save(one_grey_pixel()), "MASK-VALUE"),
    "one_and_zero": (save(Image.fromarray(some_mask(1, (0, 1)))), "MASK-VALUE"),
    "jpeg": (lossy, "MASK-VALUE"),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_broken_masks_are_refused_and_found(folder: Path, defect: str) -> None:
    spoil, code = BROKEN[defect]
    rows = mask_rows(folder)
    spoil(folder, rows)
    entry = write_entry(folder, rows)
    with pytest.raises(DataError) as caught:
        load(PLAN, entry)
    assert caught.value.code == f"FF-DATA-{code}"
    assert caught.value.got.startswith("1 ")
    verify_tells_no_secret(str(caught.value), folder)
    findings = check(PLAN, entry)
    assert list(by_code(findings, "error")) == [f"FF-DATA-{code}"]
    verify_tells_no_secret(str(findings), folder)


def test_all_mask_defects_are_found_at_once(folder: Path) -> None:
    rows = mask_rows(folder)
    rows[0]["mask"] = "/SECRET.png"
    rows[1]["mask"] = ""
    Image.new("RGBA", (WIDTH, HEIGHT)).save(folder / rows[2]["mask"])
    Image.new("L", (3, 3)).save(folder / rows[3]["mask"])
    Image.new("L", (WIDTH, HEIGHT), 9).save(folder / rows[5]["mask"])
    (folder / rows[6]["file"]).write_text("SECRET")
    findings = check(PLAN, write_entry(folder, rows))
    assert list(by_code(findings, "error")) == [
        "FF-DATA-IMAGE", "FF-DATA-MASK-OUTSIDE", "FF-DATA-MASK-MISSING", "FF-DATA-MASK", "FF-DATA-MASK-SIZE",
        "FF-DATA-MASK-VALUE",
    ]  # fmt: skip
    verify_tells_no_secret(str(findings), folder)


def test_empty_training_masks_are_a_warning(folder: Path) -> None:
    rows = mask_rows(folder)
    for at in (1, 7):  # one of training, one of test
        Image.new("L", (WIDTH, HEIGHT)).save(folder / rows[at]["mask"])
    warnings = by_code(check(PLAN, write_entry(folder, rows)), "warning")
    assert warnings["FF-DATA-MASK-EMPTY"] == "1 of 4 training masks without any pixel but background"


def test_cells_of_segmentation_are_groups(folder: Path) -> None:
    findings = check(PLAN, write_entry(folder, mask_rows(folder)))
    texts = [one.text for one in findings if one.code == "FF-DATA-SMALL-CELL"]
    assert "training, 'sex': cells under 2 records: male 1" in texts
