# SPDX-License-Identifier: Apache-2.0
"""Members of public data: what is found again, what is not, and that neither list nor refusal names anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairflare.data.members import Members, from_metadata, members_of, to_metadata, verify_apart
from fairflare.data.sources import uci_heart
from fairflare.errors import DataError
from fairflare.plan import Plan
from fairflare.policy import Entry
from tests.unit.data.plans import (
    SECRET_FOLDER,
    SECRETS,
    Row,
    good_rows,
    image_input,
    make_plan,
    plan_dict,
    segmentation_plan,
    table_input,
    write_entry,
)

TABLE = make_plan(table_input())
IMAGES = make_plan(image_input())
MASKS = segmentation_plan()
SALT = bytes(range(16))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(30, 40, 3), dtype=np.uint8))


def public(entry: Entry) -> Entry:
    return entry.model_copy(update={"public": True})


def site(folder: Path, start: int, opt_out: str | None = None) -> Entry:
    """Eight records whose names, rows and images begin at ``start``."""
    folder.mkdir(exist_ok=True)
    rows = good_rows()
    for at, row in enumerate(rows):
        row.update(id=f"r{start + at}", patient=f"p{start + at}", heart_rate=f"{start + at}", file=f"{at}.png")
        picture(start + at).save(folder / row["file"])
        row["mask"] = f"mask_{at}.png"
        Image.new("L", (40, 30), 255 * (at % 2)).save(folder / row["mask"])
    return write_entry(folder, rows, opt_out)


def rewrite(folder: Path, at: int, **changes: str) -> Entry:
    """The manifest of ``site(folder, 200)`` with changes in one row."""
    rows = good_rows()
    for place, row in enumerate(rows):
        row.update(id=f"r{200 + place}", patient=f"p{200 + place}", heart_rate=f"{200 + place}", file=f"{place}.png")
        row["mask"] = f"mask_{place}.png"
    rows[at].update(changes)
    return write_entry(folder, rows)


def overlap(plan: Plan, entry: Entry, members: Members) -> int:
    try:
        verify_apart(plan, entry, members)
    except DataError as problem:
        refusal = problem
    else:
        return 0
    assert refusal.code == "FF-DATA-OVERLAP"
    assert [secret for secret in SECRETS if secret in str(refusal)] == []
    return int(refusal.got.split()[0])


@pytest.fixture
def ours(tmp_path: Path) -> Entry:
    return public(site(tmp_path / "public", 100))


@pytest.mark.parametrize("plan", [TABLE, IMAGES, MASKS], ids=["table", "images", "masks"])
def test_others_are_apart_and_the_same_are_not(tmp_path: Path, ours: Entry, plan: Plan) -> None:
    members = members_of(plan, ours)
    assert overlap(plan, site(tmp_path / "other", 200), members) == 0
    assert overlap(plan, ours, members) == 8
    assert overlap(plan, site(tmp_path / "half", 104), members) == 4


@pytest.mark.parametrize(("column", "cell"), [("patient", "p103"), ("patient", " P 103"), ("id", "R103")])
def test_a_name_is_found_however_it_is_written(tmp_path: Path, ours: Entry, column: str, cell: str) -> None:
    home = tmp_path / "other"
    site(home, 200)
    entry = rewrite(home, 2, **{column: cell})
    assert overlap(IMAGES, entry, members_of(IMAGES, ours)) == 1
    assert overlap(TABLE, entry, members_of(TABLE, ours)) == 1


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_an_image_that_was_saved_anew_without_loss_is_found(tmp_path: Path, ours: Entry, ending: str) -> None:
    home = tmp_path / "other"
    site(home, 200)
    options = {"lossless": True} if ending == "webp" else {}
    with Image.open(tmp_path / "public" / "5.png") as image:
        image.save(home / f"renamed.{ending}", **options)
    entry = rewrite(home, 0, file=f"renamed.{ending}")
    # Whatever the size of the other plan is.
    plan = make_plan(image_input(1, 64, 64))
    assert overlap(plan, entry, members_of(IMAGES, ours)) == 1


def test_an_image_that_was_compressed_is_not_found(tmp_path: Path, ours: Entry) -> None:
    home = tmp_path / "other"
    site(home, 200)
    with Image.open(tmp_path / "public" / "5.png") as image:
        image.save(home / "renamed.jpg", quality=60)
    assert overlap(IMAGES, rewrite(home, 0, file="renamed.jpg"), members_of(IMAGES, ours)) == 0


def test_a_row_is_found_whatever_its_numbers_look_like(tmp_path: Path, ours: Entry) -> None:
    home = tmp_path / "other"
    home.mkdir()
    members = members_of(TABLE, ours)
    same = {"heart_rate": "+103.00", "pressure": "1.235e2"}
    assert overlap(TABLE, rewrite(home, 1, **same), members) == 1
    # Another order and another scale of the features make no difference.
    data = plan_dict(table_input(("pressure", "heart_rate")))
    data["task"]["input"]["features"][0]["scale"] = 3.0
    assert overlap(make_plan(data["task"]["input"]), rewrite(home, 1, **same), members) == 1
    assert overlap(TABLE, rewrite(home, 1, **{**same, "pressure": "123.4"}), members) == 0


def test_rows_without_a_number_are_nobody(tmp_path: Path) -> None:
    empty = [{**row, "heart_rate": "", "pressure": ""} for row in good_rows()]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = public(write_entry(tmp_path / "a", empty))
    other = [{**row, "id": f"x{at}", "patient": f"y{at}"} for at, row in enumerate(empty)]
    assert overlap(TABLE, write_entry(tmp_path / "b", other), members_of(TABLE, first)) == 0


def test_who_opted_out_is_neither_listed_nor_compared(tmp_path: Path, ours: Entry) -> None:
    fewer = public(site(tmp_path / "fewer", 100, opt_out="r100\np101\n"))
    assert overlap(IMAGES, ours, members_of(IMAGES, fewer)) == 6
    assert overlap(IMAGES, fewer, members_of(IMAGES, ours)) == 6


def test_only_the_wanted_splits_are_listed(ours: Entry) -> None:
    assert overlap(TABLE, ours, members_of(TABLE, ours, splits=("training",))) == 4
    # An image record has a patient, an id, a file and pixels.
    assert len(members_of(IMAGES, ours, splits=("training", "validation")).hashes) == 4 * 6


def test_the_salt_changes_every_hash(ours: Entry) -> None:
    first, again, other = (members_of(TABLE, ours, salt) for salt in (SALT, SALT, None))
    assert first == again
    assert len(other.salt) == 16
    assert first.hashes.isdisjoint(other.hashes)
    assert other.salt != members_of(TABLE, ours).salt


def test_only_public_data_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        members_of(TABLE, site(tmp_path / "private", 1))
    assert caught.value.code == "FF-DATA-NOT-PUBLIC"


def test_metadata_bring_the_list_back(ours: Entry) -> None:
    members = members_of(IMAGES, ours)
    metadata = to_metadata(members)
    assert all(isinstance(text, str) for text in (*metadata, *metadata.values()))
    assert from_metadata({**metadata, "format": "pt"}) == members
    assert members.salt.hex() not in repr(members)


BROKEN = {
    "absent": dict.fromkeys(("fairflare_members",)),
    "no_salt": {"fairflare_members_salt": None},
    "no_hashes": {"fairflare_members_hashes": ""},
    "cut_off": {"fairflare_members_hashes": "0" * 32},
    "another_version": {"fairflare_members": "fairflare/members/9"},
    "short_salt": {"fairflare_members_salt": "00"},
    "no_hexadecimal": {"fairflare_members_hashes": "SECRET"},
    "wrong_count": {"fairflare_members_count": "9"},
    "count_is_text": {"fairflare_members_count": "SECRET"},
    "repeated": {"fairflare_members_hashes": " ".join(["0" * 32] * 32)},
}


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_list_is_refused(ours: Entry, defect: str) -> None:
    metadata = {**to_metadata(members_of(IMAGES, ours)), **BROKEN[defect]}
    with pytest.raises(DataError) as caught:
        from_metadata({key: text for key, text in metadata.items() if text is not None})
    assert caught.value.code == "FF-DATA-MEMBERS"
    assert "SECRET" not in str(caught.value)


def test_a_list_of_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="not complete"):
        from_metadata(to_metadata(Members(SALT, frozenset())))


@pytest.mark.parametrize("defect", ["unreadable", "missing", "label"])
def test_defects_of_the_data_are_refused_here_too(tmp_path: Path, ours: Entry, defect: str) -> None:
    home = tmp_path / SECRET_FOLDER
    site(home, 200)
    changes: Row = {}
    if defect == "unreadable":
        (home / "0.png").write_text("SECRET")
    elif defect == "missing":
        changes = {"file": "SECRET.png"}
    else:
        changes = {"label": "SECRET"}
    entry = rewrite(home, 0, **changes)
    with pytest.raises(DataError) as caught:
        verify_apart(IMAGES, entry, members_of(IMAGES, ours))
    assert caught.value.code in ("FF-DATA-IMAGE", "FF-DATA-FILE-MISSING", "FF-DATA-LABEL")
    assert [secret for secret in SECRETS if secret in str(caught.value)] == []


@pytest.mark.real_data
def test_real_hospitals_are_apart(shared_data: Path, tmp_path: Path) -> None:
    catalog = uci_heart.convert(shared_data / "uci_heart", tmp_path)
    plan = make_plan(table_input(uci_heart.FEATURES), attributes=[])
    for ours in catalog.site_names:
        members = members_of(plan, catalog.entry(ours, "heart"))
        shared = {other: overlap(plan, catalog.entry(other, "heart"), members) for other in catalog.site_names}
        assert shared.pop(ours) > 100
        assert set(shared.values()) == {0}
