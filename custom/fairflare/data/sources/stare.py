# SPDX-License-Identifier: Apache-2.0
"""STARE: 20 fundus photographs of a clinic in San Diego, half of them with disease, with the vessels drawn by hand.

Owner: A. Hoover, Clemson University, and M. Goldbaum, University of California San Diego
(https://cecas.clemson.edu/~ahoover/stare/).

Terms: no licence that grants redistribution; offered on the owner's page for research. Nothing of it may be passed on.

Citation: Hoover, A., Kouznetsova, V., and Goldbaum, M. Locating blood vessels in retinal images by piecewise threshold
probing of a matched filter response. IEEE Trans. Med. Imaging 19(3), 203-210 (2000).

Takes the owner's folders after ``gunzip`` (``stare-images/im0001.ppm`` and ``labels-ah/im0001.ah.ppm``, or
``labels-vk/im0001.vk.ppm``) or a folder with ``metadata.csv`` (columns ``id, image, mask, split``) and the files that
it names. Of the owner's two observers A. Hoover (``ah``) is taken, as in most papers, and V. Kouznetsova (``vk``) only
where there is no folder ``labels-ah``: more thin vessels are marked there, and results on the two cannot be compared.
With ``metadata.csv`` the masks are those that it names. Each image counts as another person. There is no official
split: as in the FlexFair paper the test has 5 images, the last ones by name; validation is the last three of the
other 15.
"""

from __future__ import annotations

from pathlib import Path

from fairflare.data.sources.vessels import Picture, from_metadata, has_metadata, paired, rows, unusable, write
from fairflare.data.sources.writing import Row, refuse_subset
from fairflare.policy import DataCatalog

SITE = "stare"
EXPECTED = (15, 5)
VALIDATION = 3


def convert(source: Path, out: Path, *, subset: bool = False) -> DataCatalog:
    """Convert the folder ``source``; see the module's docstring."""
    refuse_subset(SITE, subset)
    return write(out, {SITE: (source, site_rows(source))})


def site_rows(source: Path) -> list[Row]:
    """Rows of the manifest, with files relative to ``source``."""
    pictures = from_metadata(source, SITE) if has_metadata(source) else _owners(source)
    return rows(SITE, pictures, EXPECTED, VALIDATION, lambda name: name)


def _owners(source: Path) -> list[Picture]:
    observer = "ah" if (source / "labels-ah").is_dir() else "vk"
    folders = ("stare-images", f"labels-{observer}")
    for folder in folders:
        if any((source / folder).glob("*.ppm.gz")) and not any((source / folder).glob("*.ppm")):
            raise unusable(
                SITE,
                f"files in {folder} that are still packed (.ppm.gz)",
                "unpacked .ppm files",
                f"run: gunzip --keep {folder}/*.gz",
            )
    names = [path.stem for path in (source / "stare-images").glob("im[0-9][0-9][0-9][0-9].ppm")]
    images = {name: f"stare-images/{name}.ppm" for name in names}
    masks = {name: f"labels-{observer}/{name}.{observer}.ppm" for name in names}
    found = paired(source, SITE, images, masks)
    return [Picture(name, at >= EXPECTED[0], file, mask) for at, (name, file, mask) in enumerate(found)]
