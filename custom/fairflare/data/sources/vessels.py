# SPDX-License-Identifier: Apache-2.0
"""What the three data sets of retinal vessels have in common: pictures with a mask, and where each one is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairflare.data.sources.writing import Row, write_sites
from fairflare.data.table import read_table
from fairflare.errors import DataError
from fairflare.policy import DataCatalog

DATA_SET = "fundus"
COLUMNS = ("id", "patient", "split", "file", "mask")

_NEEDED = ("id", "image", "mask", "split")


@dataclass(frozen=True)
class Picture:
    """An image: its name in the data set, whether it is one of the test images, and its files below the folder."""

    name: str
    test: bool
    file: str
    mask: str


def has_metadata(source: Path) -> bool:
    """Whether the folder has the form with ``metadata.csv``, and not the owner's."""
    return (source / "metadata.csv").is_file()


def from_metadata(source: Path, what: str) -> list[Picture]:
    """Pictures that ``metadata.csv`` names (columns ``id, image, mask, split``; split ``train`` or ``test``)."""
    table = read_table(source / "metadata.csv", _NEEDED, f"{what} metadata")
    if not set(table.columns["split"]) <= {"train", "test"}:
        raise unusable(what, "metadata with another split than train or test", "the columns id, image, mask and split")
    cells = zip(*(table.columns[name] for name in _NEEDED), strict=True)
    return [Picture(name, split == "test", file, mask) for name, file, mask, split in cells]


def paired(source: Path, what: str, images: Mapping[str, str], masks: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, image, mask) of each image, in the order of names; refused if a mask is not there."""
    absent = sum(not (source / masks[name]).is_file() for name in images)
    if absent:
        raise unusable(what, f"{absent} of {len(images)} images without a mask", "a mask for each image")
    return [(name, images[name], masks[name]) for name in sorted(images)]


def rows(
    what: str, pictures: Sequence[Picture], expected: tuple[int, int], validation: int, patient: Callable[[str], str]
) -> list[Row]:
    """Rows of the manifest; of the training images, the last ``validation`` by name are set apart.

    Ids and patients begin with the name of the data set, so that "21" is not taken for somebody else's "21".
    ``expected`` are the numbers of training and test images: a split by order is only right for the whole data set.
    """
    training = sorted(picture.name for picture in pictures if not picture.test)
    found = (len(training), len(pictures) - len(training))
    if found != expected or len({picture.name for picture in pictures}) != len(pictures):
        got = f"{found[0]} training and {found[1]} test images"
        raise unusable(what, got, f"all images: {expected[0]} for training and {expected[1]} for the test")
    apart = set(training[-validation:])
    return [
        {
            "id": f"{what}_{one.name}",
            "patient": f"{what}_{patient(one.name)}",
            "split": "test" if one.test else "validation" if one.name in apart else "training",
            "file": one.file,
            "mask": one.mask,
        }
        for one in sorted(pictures, key=lambda picture: picture.name)
    ]


def write(out: Path, parts: Mapping[str, tuple[Path, Sequence[Row]]]) -> DataCatalog:
    """Write one manifest for each site: its folder and its rows."""
    roots = {site: source for site, (source, _) in parts.items()}
    return write_sites(out, DATA_SET, COLUMNS, {site: part for site, (_, part) in parts.items()}, roots)


def unusable(what: str, got: str, expected: str, next_step: str = "") -> DataError:
    """Refusal of a folder that does not hold the data set."""
    return DataError(
        "FF-DATA-SOURCE",
        got=f"a folder for {what} with {got}",
        expected=expected,
        next_step=next_step or "fetch the data set again from its owner, and name the folder that holds all of it",
    )
