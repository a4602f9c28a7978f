# SPDX-License-Identifier: Apache-2.0
"""A patient's name, planted wherever exports leave it, appears in no message, no finding and no ``repr``."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fairflare.data.check import check
from fairflare.data.manifest import load, read_manifest
from fairflare.data.members import members_of, verify_apart
from fairflare.data.table import read_table
from fairflare.errors import DataError
from fairflare.plan import Plan
from fairflare.policy import Entry
from tests.unit.data.plans import Row, good_rows, image_input, make_plan, segmentation_plan, table_input, write_entry

NAME = "Zzyzx^Marked^Patient"
PLANS = {"table": make_plan(table_input()), "images": make_plan(image_input()), "masks": segmentation_plan()}


def planted(folder: Path) -> list[Row]:
    """Good rows in which ids, patients, file names, metadata of files and an unused column hold the name."""
    home = folder / NAME
    home.mkdir(parents=True)
    rows = good_rows()
    text = PngInfo()
    text.add_text("PatientName", NAME)
    text.add_itxt("Comment", NAME)
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = NAME
    for at, row in enumerate(rows):
        row.update(id=f"{NAME}-{at}", patient=f"{NAME} {at}", remark=NAME)
        row.update(file=f"{NAME}/{NAME}-{at}.{'jpg' if at % 2 else 'png'}", mask=f"{NAME}/mask-{NAME}-{at}.png")
        options = {"exif": exif, "comment": NAME.encode()} if at % 2 else {"pnginfo": text, "exif": exif}
        Image.new("RGB", (40, 30), (at, 0, 0)).save(folder / row["file"], **options)
        mask = Image.fromarray(np.eye(30, 40, dtype=np.uint8) * 255)
        mask.save(folder / row["mask"], pnginfo=text, exif=exif)
    return rows


def nothing(folder: Path, rows: list[Row]) -> None:
    pass


def cell(column: str, text: str = NAME, at: int = 0) -> Callable[[Path, list[Row]], None]:
    def put(folder: Path, rows: list[Row]) -> None:
        rows[at][column] = text

    return put


def same(column: str) -> Callable[[Path, list[Row]], None]:
    def put(folder: Path, rows: list[Row]) -> None:
        rows[0][column] = rows[7][column]

    return put


def column_renamed(folder: Path, rows: list[Row]) -> None:
    for row in rows:
        row[f"patient {NAME}"] = row.pop("patient")


def broken(column: str) -> Callable[[Path, list[Row]], None]:
    def spoil(folder: Path, rows: list[Row]) -> None:
        path = folder / rows[0][column]
        path.write_bytes(path.read_bytes()[:-30])
        (folder / rows[2][column]).write_text(NAME)
        (folder / rows[4][column]).unlink()

    return spoil


def colours(folder: Path, rows: list[Row]) -> None:
    exif = Image.Exif()
    exif[0x010E] = NAME
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), (9, 0, 0)).save(folder / rows[0]["mask"], exif=exif)
    Image.new("L", (4, 3)).save(folder / rows[1]["mask"], exif=exif)
    Image.new("L", (40, 30), 7).save(folder / rows[2]["mask"], exif=exif)


DEFECTS: dict[str, Callable[[Path, list[Row]], None]] = {
    "none": nothing,
    "attribute": cell("sex"),
    "number": cell("age"),
    "feature": cell("heart_rate"),
    "label": cell("label"),
    "split": cell("split"),
    "file": cell("file"),
    "mask": cell("mask"),
    "file_outside": cell("file", f"../{NAME}.png"),
    "mask_outside": cell("mask", f"/{NAME}.png"),
    "id_that_cannot_opt_out": cell("id", f'"{NAME}"'),
    "id_twice": same("id"),
    "patient_in_two_splits": same("patient"),
    "column_renamed": column_renamed,
    "images_broken": broken("file"),
    "masks_broken": broken("mask"),
    "masks_of_other_kinds": colours,
}
OPT_OUTS = {"none": None, "one": f"{NAME}-3\n", "another_writing": f"{NAME.upper()}-3\n", "quoted": f'"{NAME}-3"\n'}


def sayings(plan: Plan, entry: Entry) -> Iterator[str]:
    """Everything that the data layer says about these data."""

    def tried(work: Callable[[], object]) -> str:
        try:
            return repr(work())
        except DataError as problem:
            return "".join(traceback.format_exception(problem)) + repr(problem) + repr(problem.args)

    yield repr(check(plan, entry))
    yield tried(lambda: load(plan, entry))
    yield tried(lambda: load(plan, entry).training)
    yield tried(lambda: read_manifest(plan, entry))
    yield tried(lambda: read_table(Path(entry.manifest), ("id", "patient"), "manifest"))
    listed = entry.model_copy(update={"public": True})
    yield tried(lambda: members_of(plan, listed))
    yield tried(lambda: members_of(plan, entry))
    yield tried(lambda: verify_apart(plan, entry, members_of(plan, listed)))


@pytest.mark.parametrize("opt_out", OPT_OUTS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_name_is_never_repeated(tmp_path: Path, defect: str, opt_out: str) -> None:
    rows = planted(tmp_path)
    DEFECTS[defect](tmp_path, rows)
    entry = write_entry(tmp_path, rows, OPT_OUTS[opt_out])
    for plan in PLANS.values():
        for said in sayings(plan, entry):
            assert "zzyzx" not in said.lower()
            assert "marked" not in said.lower()


def test_the_name_does_not_keep_good_data_from_being_used(tmp_path: Path) -> None:
    rows = planted(tmp_path)
    for plan in PLANS.values():
        assert len(load(plan, write_entry(tmp_path, rows)).training) == 4
