# SPDX-License-Identifier: Apache-2.0
"""Who is in a public data set, as a list of salted hashes that a pretrained model's file can carry.

A model that starts from weights which have seen a participant's patients would be tested on people it knows. So a
weight file carries the members of the data that it was trained on, and each site compares its own records with them.
Hashed are, of each record: its patient and its id (as written but for capitals and spaces), the bytes of its image
file, the pixels of its image at a small size, and the numbers of its row.

What this cannot find: an image that was cropped, turned, compressed anew or resized, a row with a rounded number or
with other features, under other names. An overlap that is found may still be chance: two sites that both count "1",
"2", "3", two black images, two short rows with the same numbers.

A salted hash hides nobody whose name can be guessed: whoever has the list can hash every number of a hospital and look
it up. That is why members are listed of data sets only that are declared ``public`` in the catalogue.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np

from fairflare.data.files import find, image_defects, image_root, place_defects
from fairflare.data.images import decode, in_threads, read
from fairflare.data.manifest import SPLITS, Manifest, read_manifest, row_defects
from fairflare.data.opt_out import loose
from fairflare.data.table import count, numbers
from fairflare.errors import DataError
from fairflare.plan import ImageInput, Plan
from fairflare.policy import Entry

FORMAT = "fairflare/members/1"
#: Keys in a weight file's metadata.
KEYS = ("fairflare_members", "fairflare_members_salt", "fairflare_members_count", "fairflare_members_hashes")
SALT_BYTES = 16
#: Of each image whatever the plan's size is, so that lists of one plan can be compared with data of another.
SMALL = ImageInput(
    kind="image", channels=3, height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3, augmentation="none"
)  # fmt: skip

_HASH = re.compile(r"[0-9a-f]{32}")
_SALT = re.compile(rf"[0-9a-f]{{{2 * SALT_BYTES}}}")

#: What a hash is of -> the content.
_Content = tuple[str, bytes]


@dataclass(frozen=True, repr=False)
class Members:
    """Salted SHA-256, the first 128 bits in hexadecimal, of whatever tells a record; not shown by ``repr``."""

    salt: bytes
    hashes: frozenset[str]


def members_of(plan: Plan, entry: Entry, salt: bytes | None = None, splits: Collection[str] = SPLITS) -> Members:
    """Members of a public data set, without those who opted out.

    Parameters
    ----------
    plan
        Features, and whether the records are images or rows.
    entry
        Where the data lie; it must say ``public``.
    salt
        16 bytes; drawn if ``None``. Lists that are to be joined need the same one.
    splits
        Which splits count, such as only those that a model was trained on.

    Raises
    ------
    DataError
        ``FF-DATA-NOT-PUBLIC``, or what is wrong with the data.
    """
    if not entry.public:
        raise DataError(
            "FF-DATA-NOT-PUBLIC",
            got="a data set that its catalogue does not declare public",
            expected='"public": true in its entry: a published list of members can be searched for guessed names',
            next_step="pretrain on a public data set, or declare this one public if its owner has made it so",
        )
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    records = _hashed(plan, entry, salt, splits)
    return Members(salt, frozenset(one for record in records for one in record))


def verify_apart(plan: Plan, entry: Entry, members: Members) -> None:
    """Refuse if a record of this site is among ``members``; those who opted out are not used, so they do not matter.

    Raises
    ------
    DataError
        ``FF-DATA-OVERLAP`` with the number of records, or what is wrong with the data.
    """
    records = _hashed(plan, entry, members.salt, SPLITS)
    if shared := sum(not members.hashes.isdisjoint(record) for record in records):
        raise DataError(
            "FF-DATA-OVERLAP",
            got=f"{count(shared, 'record')} of this site among those that the first model was pretrained on",
            expected="a first model that has seen nobody of this site: same patient, id, image or row",
            next_step="start from another model, or leave these data out of the pretraining",
        )


def to_metadata(members: Members) -> dict[str, str]:
    """The list as texts, as the metadata of a weight file wants it."""
    hashes = sorted(members.hashes)
    return dict(zip(KEYS, (FORMAT, members.salt.hex(), str(len(hashes)), " ".join(hashes)), strict=True))


def from_metadata(metadata: Mapping[str, str]) -> Members:
    """The list that :func:`to_metadata` wrote; raises :class:`DataError` ``FF-DATA-MEMBERS`` if there is none."""
    if any(key not in metadata for key in KEYS):
        _refuse("no list of members")
    kind, salt, size, text = (metadata[key] for key in KEYS)
    hashes = text.split()
    if kind != FORMAT:
        _refuse("a list of members of another version")
    if not _SALT.fullmatch(salt) or not all(_HASH.fullmatch(one) for one in hashes):
        _refuse("a list of members that was changed")
    if not hashes or size != str(len(hashes)) or len(set(hashes)) != len(hashes):
        _refuse("a list of members that is not complete")
    return Members(bytes.fromhex(salt), frozenset(hashes))


def _refuse(got: str) -> NoReturn:
    raise DataError(
        "FF-DATA-MEMBERS",
        got=f"a weight file with {got}",
        expected=f"the members of the data that it was trained on, as {FORMAT}",
        next_step="pretrain it again with this version: without the list nobody can tell who is in it",
    )


def _hashed(plan: Plan, entry: Entry, salt: bytes, splits: Collection[str]) -> Iterator[frozenset[str]]:
    """Hashes of each record of these splits."""
    manifest = read_manifest(plan, entry)
    for defect in row_defects(plan, manifest):
        raise defect
    kind = plan.task.input
    if isinstance(kind, ImageInput):
        contents = _images(manifest, image_root(entry))
    else:
        contents = _rows(manifest, [feature.name for feature in kind.features])
    for at, split in enumerate(manifest.table.columns["split"]):
        if split in splits:
            yield frozenset(_hash(salt, *one) for one in (*_names(manifest, at), *contents[at]))


def _hash(salt: bytes, kind: str, content: bytes) -> str:
    return hashlib.sha256(salt + kind.encode() + b"\0" + content).hexdigest()[:32]


def _names(manifest: Manifest, at: int) -> Iterator[_Content]:
    for kind in ("patient", "id"):
        yield kind, loose(manifest.table.columns[kind][at]).encode()


def _rows(manifest: Manifest, features: list[str]) -> list[list[_Content]]:
    """The numbers of each row as they were measured, by the names of the features; nothing for an empty row."""
    names = sorted(features)
    columns = np.array([numbers(manifest.table.columns[name])[0] for name in names])
    texts = [";".join("" if np.isnan(value) else repr(float(value) + 0.0) for value in row) for row in columns.T]
    prefix = ",".join(names)
    return [[("row", f"{prefix}:{text}".encode())] if text.strip(";") else [] for text in texts]


def _images(manifest: Manifest, root: Path) -> list[list[_Content]]:
    """The bytes of each file and its small pixels."""
    found = find(root, "file", manifest.table.columns["file"])
    for defect in place_defects(found):
        raise defect
    paths = [path for path in found.paths if path is not None]

    def one(at: int) -> list[_Content]:
        try:
            content = read(paths[at])
            pixels = decode(BytesIO(content), SMALL).tobytes()
        except Exception:
            return []  # decoders raise whatever their format's parser does
        return [("file", hashlib.sha256(content).digest()), ("pixels", pixels)]

    contents = in_threads(one, len(paths), None)
    for defect in image_defects(sum(not content for content in contents)):
        raise defect
    return contents
