# SPDX-License-Identifier: Apache-2.0
"""CHASE_DB1: 28 fundus photographs of both eyes of 14 children in London, with the vessels drawn by hand.

Owner: Kingston University London and St George's, University of London (https://researchdata.kingston.ac.uk/96/).

Terms: Creative Commons Attribution 4.0.

Citation: Fraz, M. M., Remagnino, P., Hoppe, A., Uyyanonvara, B., Rudnicka, A. R., Owen, C. G., and Barman, S. A. An
ensemble classification-based approach applied to retinal blood vessel segmentation. IEEE Trans. Biomed. Eng. 59(9),
2538-2548 (2012).

Takes the owner's folder (``Image_01L.jpg`` beside ``Image_01L_1stHO.png``) or one with ``metadata.csv`` (columns
``id, image, mask, split``) and the files that it names. The masks are the first observer's. The patient is the child.
Training is children 01 to 08, validation 09 and 10, the test 11 to 14: 16, 4 and 8 images. The FlexFair paper has 21
and 7, which cuts the eyes of one child apart: a test on the left eye of a child whose right eye was learnt.
"""

from __future__ import annotations

import re
from pathlib import Path

from fairflare.data.sources.vessels import Picture, from_metadata, has_metadata, paired, rows, unusable, write
from fairflare.data.sources.writing import Row, refuse_subset
from fairflare.policy import DataCatalog

SITE = "chase_db1"
EXPECTED = (20, 8)
VALIDATION = 4
FIRST_TEST_CHILD = "11"

_NAME = re.compile(r"Image_([0-9]{2})[LR]")


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source``; see the module's docstring."""
    refuse_subset(SITE, subset)
    return write(out, {SITE: (source, site_rows(source))})


def site_rows(source: Path) -> list[Row]:
    """Rows of the manifest, with files relative to ``source``."""
    pictures = from_metadata(source, SITE) if has_metadata(source) else _owners(source)
    if not all(_NAME.fullmatch(picture.name) for picture in pictures):
        raise unusable(SITE, "images of other names", "names such as Image_01L, which say whose eye it is")
    return rows(SITE, pictures, EXPECTED, VALIDATION, _child)


def _owners(source: Path) -> list[Picture]:
    names = [path.stem for path in source.glob("Image_*.jpg") if _NAME.fullmatch(path.stem)]
    images = {name: f"{name}.jpg" for name in names}
    masks = {name: f"{name}_1stHO.png" for name in names}
    found = paired(source, SITE, images, masks)
    return [Picture(name, _child(name) >= FIRST_TEST_CHILD, file, mask) for name, file, mask in found]


def _child(name: str) -> str:
    return name.removeprefix("Image_")[:2]
