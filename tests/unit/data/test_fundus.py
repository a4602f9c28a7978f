# SPDX-License-Identifier: Apache-2.0
"""Converters of retinal vessels: both forms of each folder give the same rows, and nobody stands in two splits."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairflare.data.check import check
from fairflare.data.manifest import load
from fairflare.data.sources import SOURCES, chase_db1, drive, stare
from fairflare.errors import DataError
from fairflare.policy import DataCatalog
from fairflare.presets import FEDAVG, fundus

PLAN = fundus("fundus_test", FEDAVG)
STARE_NAMES = [
    f"im{at:04d}"
    for at in (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
]  # fmt: skip
COUNTS = {"chase_db1": (16, 4, 8), "drive": (16, 4, 20), "stare": (12, 3, 5)}


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def drive_folder(home: Path) -> Path:
    for at in range(1, 41):
        part = "test" if at <= 20 else "training"
        touch(home / part / "images" / f"{at:02d}_{part}.tif")
        touch(home / part / "1st_manual" / f"{at:02d}_manual1.gif")
        touch(home / part / "mask" / f"{at:02d}_{part}_mask.gif")
    return home


def chase_folder(home: Path) -> Path:
    for child in range(1, 15):
        for eye in "LR":
            for ending in (".jpg", "_1stHO.png", "_2ndHO.png"):
                touch(home / f"Image_{child:02d}{eye}{ending}")
    return home


def stare_folder(home: Path, observers: tuple[str, ...] = ("ah", "vk"), ending: str = "ppm") -> Path:
    for name in STARE_NAMES:
        touch(home / "stare-images" / f"{name}.{ending}")
        for observer in observers:
            touch(home / f"labels-{observer}" / f"{name}.{observer}.{ending}")
    return home


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "chase_db1": chase_folder, "drive": drive_folder, "stare": stare_folder,
}  # fmt: skip


def site_rows(catalog: DataCatalog, site: str) -> list[dict[str, str]]:
    with Path(catalog.entry(site, "fundus").manifest).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def count_splits(rows: list[dict[str, str]]) -> tuple[int, ...]:
    return tuple(sum(row["split"] == split for row in rows) for split in ("training", "validation", "test"))


def named(rows: list[dict[str, str]], split: str) -> list[str]:
    return [row["id"] for row in rows if row["split"] == split]


@pytest.mark.parametrize("site", FOLDERS)
def test_the_owners_folder_becomes_rows(tmp_path: Path, site: str) -> None:
    source = FOLDERS[site](tmp_path / "source")
    catalog = SOURCES[site](source, tmp_path / "out")
    assert catalog.site_names == (site,)
    entry = catalog.entry(site, "fundus")
    assert entry.public
    assert entry.root == str(source)
    rows = site_rows(catalog, site)
    assert count_splits(rows) == COUNTS[site]
    assert all((source / row[name]).is_file() for row in rows for name in ("file", "mask"))
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(where) == 1 for where in splits.values())


def test_which_images_are_apart(tmp_path: Path) -> None:
    rows = site_rows(drive.convert(drive_folder(tmp_path / "d"), tmp_path / "1"), "drive")
    assert named(rows, "validation") == ["drive_37", "drive_38", "drive_39", "drive_40"]
    assert rows[0] == {
        "id": "drive_01", "patient": "drive_01", "split": "test", "file": "test/images/01_test.tif",
        "mask": "test/1st_manual/01_manual1.gif",
    }  # fmt: skip
    rows = site_rows(chase_db1.convert(chase_folder(tmp_path / "c"), tmp_path / "2"), "chase_db1")
    assert {row["patient"][-2:] for row in rows if row["split"] == "validation"} == {"09", "10"}
    assert {row["patient"][-2:] for row in rows if row["split"] == "test"} == {"11", "12", "13", "14"}
    rows = site_rows(stare.convert(stare_folder(tmp_path / "s"), tmp_path / "3"), "stare")
    assert named(rows, "validation") == ["stare_im0235", "stare_im0236", "stare_im0239"]
    assert named(rows, "test")[0] == "stare_im0240"


def test_the_second_observer_is_taken_only_where_the_first_is_not_there(tmp_path: Path) -> None:
    both = stare.convert(stare_folder(tmp_path / "both"), tmp_path / "1")
    assert all(row["mask"].startswith("labels-ah/") for row in site_rows(both, "stare"))
    second = stare.convert(stare_folder(tmp_path / "vk", ("vk",)), tmp_path / "2")
    assert site_rows(second, "stare")[0]["mask"] == "labels-vk/im0001.vk.ppm"


def test_packed_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        stare.convert(stare_folder(tmp_path / "packed", ending="ppm.gz"), tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    assert caught.value.next_step == "run: gunzip --keep stare-images/*.gz"


def test_a_release_without_masks_of_the_test_images_is_refused(tmp_path: Path) -> None:
    source = drive_folder(tmp_path / "source")
    for path in (source / "test" / "1st_manual").iterdir():
        path.unlink()
    (source / "test" / "1st_manual").rmdir()
    with pytest.raises(DataError, match="newer ones keep them back") as caught:
        drive.convert(source, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"


LOST = {
    "chase_db1": ("Image_03L.jpg", "Image_03L_1stHO.png"),
    "drive": ("training/images/25_training.tif", "training/1st_manual/25_manual1.gif"),
    "stare": ("stare-images/im0005.ppm", "labels-ah/im0005.ah.ppm"),
}


@pytest.mark.parametrize("site", LOST)
@pytest.mark.parametrize("which", [0, 1])
def test_a_part_of_a_data_set_is_refused(tmp_path: Path, site: str, which: int) -> None:
    source = FOLDERS[site](tmp_path / "SECRET")
    (source / LOST[site][which]).unlink()
    with pytest.raises(DataError) as caught:
        SOURCES[site](source, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("site", [*FOLDERS, "fundus"])
def test_an_empty_folder_and_a_subset_are_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(DataError) as caught:
        SOURCES[site](tmp_path, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    with pytest.raises(DataError) as caught:
        SOURCES[site](tmp_path, tmp_path / "out", subset=True)
    assert caught.value.code == "FF-DATA-SUBSET"


def test_metadata_of_another_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("id,image,mask,split\na,a.png,b.png,SECRET\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        stare.convert(tmp_path, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    lines = [f"SECRET{at},a.png,b.png,{'train' if at < 20 else 'test'}" for at in range(28)]
    (tmp_path / "metadata.csv").write_text("id,image,mask,split\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        chase_db1.convert(tmp_path, tmp_path / "out")
    assert caught.value.code == "FF-DATA-SOURCE"
    assert "SECRET" not in str(caught.value)


def test_three_folders_are_three_sites_even_if_they_are_links(tmp_path: Path) -> None:
    together = tmp_path / "together"
    together.mkdir()
    for site, make in FOLDERS.items():
        (together / site).symlink_to(make(tmp_path / f"real_{site}"))
    catalog = SOURCES["fundus"](together, tmp_path / "out")
    assert catalog.site_names == ("chase_db1", "drive", "stare")
    assert catalog.entry("drive", "fundus").root == str(tmp_path / "real_drive")
    assert {site: count_splits(site_rows(catalog, site)) for site in catalog.site_names} == COUNTS


# ---------------------------------------------------------------------------------------------------- the real files


@pytest.mark.real_data
def test_real_vessels_are_loaded(shared_data: Path, tmp_path: Path) -> None:
    catalog = SOURCES["fundus"](shared_data, tmp_path)
    for site in catalog.site_names:
        entry = catalog.entry(site, "fundus")
        data = load(PLAN, entry)
        parts = (data.training, data.validation, data.test)
        assert tuple(len(part) for part in parts) == COUNTS[site]
        for part in parts:
            assert part.masks is not None
            assert part.inputs.shape[1:] == (3, 192, 192)
            assert part.masks.shape[1:] == (192, 192)
            assert set(np.unique(part.masks).tolist()) == {0, 1}
            assert 0.05 < part.masks.mean() < 0.14
        assert [one.text for one in check(PLAN, entry) if one.severity != "info"] == []


@pytest.mark.real_data
@pytest.mark.parametrize("site", COUNTS)
def test_real_splits_are_those_of_the_metadata(shared_data: Path, tmp_path: Path, site: str) -> None:
    with (shared_data / site / "metadata.csv").open(encoding="utf-8-sig", newline="") as stream:
        theirs = {f"{site}_{row['id']}": row for row in csv.DictReader(stream)}
    ours = site_rows(SOURCES[site](shared_data / site, tmp_path), site)
    assert {row["id"] for row in ours} == set(theirs)
    for row in ours:
        assert (row["split"] == "test") == (theirs[row["id"]]["split"] == "test")
    owners = site_rows(SOURCES[site](FOLDERS[site](tmp_path / "owners"), tmp_path / "out"), site)
    assert [(row["id"], row["patient"], row["split"]) for row in ours] == [
        (row["id"], row["patient"], row["split"]) for row in owners
    ]


@pytest.mark.real_data
@pytest.mark.parametrize("site", COUNTS)
def test_resizing_keeps_the_share_of_vessels(shared_data: Path, tmp_path: Path, site: str) -> None:
    with (shared_data / site / "metadata.csv").open(encoding="utf-8-sig", newline="") as stream:
        shares = {f"{site}_{row['id']}": float(row["vessel_fraction"]) for row in csv.DictReader(stream)}
    catalog = SOURCES[site](shared_data / site, tmp_path)
    names = named(site_rows(catalog, site), "training")
    masks = load(PLAN, catalog.entry(site, "fundus")).training.masks
    assert masks is not None
    expected = [shares[name] for name in names]
    assert masks.mean(axis=(1, 2)).tolist() == pytest.approx(expected, rel=0.05)
