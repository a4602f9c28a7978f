# SPDX-License-Identifier: Apache-2.0
"""DRIVE: 40 fundus photographs of a Dutch screening programme, with the vessels drawn by hand.

Owner: Image Sciences Institute, University Medical Center Utrecht (https://drive.grand-challenge.org).

Terms: no licence that grants redistribution. The owner gives the data set for research after a registration; whoever
converts it has registered. Nothing of it may be passed on.

Citation: Staal, J., Abramoff, M. D., Niemeijer, M., Viergever, M. A., and van Ginneken, B. Ridge-based vessel
segmentation in color images of the retina. IEEE Trans. Med. Imaging 23(4), 501-509 (2004).

Takes the owner's folder (``training/images/21_training.tif`` and ``training/1st_manual/21_manual1.gif``,
``test/images/01_test.tif`` and ``test/1st_manual/01_manual1.gif``) or one with ``metadata.csv`` (columns ``id, image,
mask, split``) and the files that it names. The masks are the first observer's. The test images are the official 20.
There is no official validation: it is the last four of the 20 training images by name (37 to 40). Each image is of
another person. Newer releases keep the masks of the test images back, and cannot be converted.
"""

from __future__ import annotations

from pathlib import Path

from fairflare.data.sources.vessels import Picture, from_metadata, has_metadata, paired, rows, unusable, write
from fairflare.data.sources.writing import Row, refuse_subset
from fairflare.policy import DataCatalog

SITE = "drive"
EXPECTED = (20, 20)
VALIDATION = 4


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source``; see the module's docstring."""
    refuse_subset(SITE, subset)
    return write(out, {SITE: (source, site_rows(source))})


def site_rows(source: Path) -> list[Row]:
    """Rows of the manifest, with files relative to ``source``."""
    if has_metadata(source):
        pictures = from_metadata(source, SITE)
    else:
        pictures = [*_part(source, "training"), *_part(source, "test")]
    return rows(SITE, pictures, EXPECTED, VALIDATION, lambda name: name)


def _part(source: Path, part: str) -> list[Picture]:
    names = [path.name.partition("_")[0] for path in (source / part / "images").glob(f"[0-9][0-9]_{part}.tif")]
    images = {name: f"{part}/images/{name}_{part}.tif" for name in names}
    masks = {name: f"{part}/1st_manual/{name}_manual1.gif" for name in names}
    if part == "test" and names and not (source / "test" / "1st_manual").is_dir():
        raise unusable(
            SITE,
            "test images but no folder test/1st_manual",
            "the first observer's masks of the test images too",
            "use a release that has them: newer ones keep them back",
        )
    return [Picture(name, part == "test", file, mask) for name, file, mask in paired(source, SITE, images, masks)]
