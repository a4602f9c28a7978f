# SPDX-License-Identifier: Apache-2.0
"""The data catalogue: what it accepts, and that what it refuses says why without a path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairflare.errors import CatalogError
from fairflare.policy import DataCatalog, Entry, read_catalog, write_catalog
from tests.unit.data.plans import SECRET_FOLDER

Json = dict[str, Any]


def entry(folder: Path) -> Json:
    return {"manifest": str(folder / "manifest.csv"), "root": str(folder), "opt_out": None}


def flat(folder: Path) -> Json:
    return {"format": "fairflare/catalog/1", "data_sets": {"skin": entry(folder)}, "sites": None}


def by_site(folder: Path) -> Json:
    sites = {"site-1": {"skin": entry(folder)}, "site-2": {"skin": entry(folder), "heart": entry(folder)}}
    return {"format": "fairflare/catalog/1", "data_sets": None, "sites": sites}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / SECRET_FOLDER
    home.mkdir()
    (home / "manifest.csv").touch()
    return home


def written(folder: Path, data: object) -> Path:
    path = folder / "data_catalog.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def verify_speaks_without_paths(problem: CatalogError, folder: Path) -> None:
    assert problem.got
    assert problem.expected
    assert problem.next_step
    assert SECRET_FOLDER not in str(problem)
    assert "SECRET" not in str(problem)
    assert str(folder) not in str(problem)


def test_the_flat_form_does_not_look_at_the_site(folder: Path) -> None:
    catalog = read_catalog(written(folder, flat(folder)))
    assert catalog.entry("anybody", "skin") == Entry(**entry(folder))
    assert catalog.site_names == ()


def test_the_form_by_site_keeps_sites_apart(folder: Path) -> None:
    catalog = read_catalog(written(folder, by_site(folder)))
    assert catalog.site_names == ("site-1", "site-2")
    assert catalog.entry("site-2", "heart").root == str(folder)
    with pytest.raises(CatalogError, match="FF-CAT-UNKNOWN-DATA-SET"):
        catalog.entry("site-1", "heart")


def test_a_folder_that_holds_a_catalogue_can_be_named(folder: Path) -> None:
    catalog = DataCatalog(**by_site(folder))
    assert write_catalog(folder, catalog) == folder / "data_catalog.json"
    assert read_catalog(folder) == catalog


def change(*keys: str, to: object) -> Callable[[Json], Json]:
    def changed(data: Json) -> Json:
        part = data
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to
        return data

    return changed


def drop(*keys: str) -> Callable[[Json], Json]:
    def dropped(data: Json) -> Json:
        part = data
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        return data

    return dropped


SECRET_PATH = f"/{SECRET_FOLDER}/manifest.csv"
SKIN = ("data_sets", "skin")

BROKEN: dict[str, tuple[Callable[[Json], object], str]] = {
    "relative_manifest": (change(*SKIN, "manifest", to=f"{SECRET_FOLDER}/a.csv"), "FF-CAT-RULE"),
    "relative_root": (change(*SKIN, "root", to=f"../{SECRET_FOLDER}"), "FF-CAT-RULE"),
    "home_is_no_absolute_path": (change(*SKIN, "manifest", to=f"~/{SECRET_FOLDER}"), "FF-CAT-RULE"),
    "relative_opt_out": (change(*SKIN, "opt_out", to=SECRET_FOLDER), "FF-CAT-RULE"),
    "both_forms": (lambda data: {**data, "sites": {"a": data["data_sets"]}}, "FF-CAT-RULE"),
    "neither_form": (change("data_sets", to=None), "FF-CAT-RULE"),
    "no_data_set": (change("data_sets", to={}), "FF-CAT-RULE"),
    "path_in_place_of_data_sets": (change("data_sets", to=SECRET_PATH), "FF-CAT-RULE"),
    "path_in_place_of_entry": (change(*SKIN, to=SECRET_PATH), "FF-CAT-RULE"),
    "path_as_data_set_name": (lambda data: {**data, "data_sets": {SECRET_PATH: None}}, "FF-CAT-RULE"),
    "path_as_key_of_entry": (change(*SKIN, SECRET_PATH, to=None), "FF-CAT-UNKNOWN-KEY"),
    "path_as_key": (change(SECRET_PATH, to=None), "FF-CAT-UNKNOWN-KEY"),
    "path_as_format": (change("format", to=SECRET_PATH), "FF-CAT-VALUE"),
    "path_twice": (lambda data: f'{{"{SECRET_PATH}": 1, "{SECRET_PATH}": 2}}', "FF-CAT-JSON"),
    "path_as_site_name": (lambda data: {**data, "sites": {SECRET_PATH: {}}, "data_sets": None}, "FF-CAT-RULE"),
    "number_as_manifest": (change(*SKIN, "manifest", to=5), "FF-CAT-VALUE"),
    "misspelt_key": (lambda data: change(*SKIN, "manifset", to=SECRET_PATH)(data), "FF-CAT-UNKNOWN-KEY"),
    "opt_out_not_written_out": (drop(*SKIN, "opt_out"), "FF-CAT-MISSING-KEY"),
    "sites_not_written_out": (drop("sites"), "FF-CAT-MISSING-KEY"),
    "another_version": (change("format", to="fairflare/catalog/2"), "FF-CAT-VALUE"),
    "no_json": (lambda data: json.dumps(data)[:-5], "FF-CAT-JSON"),
    "a_list": (lambda data: [data], "FF-CAT-VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_catalogue_is_refused(folder: Path, defect: str) -> None:
    mutate, code = BROKEN[defect]
    path = written(folder, mutate(flat(folder)))
    with pytest.raises(CatalogError) as caught:
        read_catalog(path)
    assert caught.value.code == code
    verify_speaks_without_paths(caught.value, folder)


def test_a_misspelt_key_is_told_the_nearest_name(folder: Path) -> None:
    mutate, _ = BROKEN["misspelt_key"]
    with pytest.raises(CatalogError, match="nearest valid name is 'manifest'"):
        read_catalog(written(folder, mutate(flat(folder))))


def test_every_defect_is_named_with_its_place(folder: Path) -> None:
    data = by_site(folder)
    data["sites"]["site-1"]["skin"]["manfest"] = data["sites"]["site-1"]["skin"].pop("manifest")
    del data["sites"]["site-2"]["heart"]["root"]
    with pytest.raises(CatalogError) as caught:
        read_catalog(written(folder, data))
    assert caught.value.code == "FF-CAT-UNKNOWN-KEY"
    assert caught.value.got == (
        "sites.site-1.skin: unknown key 'manfest'; the nearest valid name is 'manifest'; "
        "sites.site-2.heart.root: Field required"
    )


def test_a_catalogue_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        read_catalog(folder / "nothing.json")
    assert caught.value.code == "FF-CAT-FILE"
    verify_speaks_without_paths(caught.value, folder)


@pytest.mark.parametrize(
    ("site", "data_set", "code", "hint"),
    [
        ("site-1", "skni", "FF-CAT-UNKNOWN-DATA-SET", "nearest valid name is 'skin'"),
        ("site-11", "skin", "FF-CAT-UNKNOWN-SITE", "nearest valid name is 'site-1'"),
        ("qqq", "skin", "FF-CAT-UNKNOWN-SITE", "one of site-1, site-2"),
    ],
)
def test_unknown_names_get_the_nearest_one(folder: Path, site: str, data_set: str, code: str, hint: str) -> None:
    catalog = DataCatalog(**by_site(folder))
    with pytest.raises(CatalogError, match=hint) as caught:
        catalog.entry(site, data_set)
    assert caught.value.code == code
    verify_speaks_without_paths(caught.value, folder)


@pytest.mark.parametrize(("field", "word"), [("manifest", "manifest"), ("root", "root folder")])
def test_a_missing_file_is_found_before_work_starts(folder: Path, field: str, word: str) -> None:
    data = flat(folder)
    data["data_sets"]["skin"][field] = str(folder / "gone")
    catalog = DataCatalog(**data)
    with pytest.raises(CatalogError, match=word) as caught:
        catalog.entry("site-1", "skin")
    assert caught.value.code == "FF-CAT-MISSING-FILE"
    verify_speaks_without_paths(caught.value, folder)


def test_an_entry_is_public_only_if_it_says_so(folder: Path) -> None:
    data = flat(folder)
    assert not read_catalog(written(folder, data)).entry("a", "skin").public  # as before there was this field
    data["data_sets"]["skin"]["public"] = True
    catalog = read_catalog(written(folder, data))
    assert catalog.entry("a", "skin").public
    write_catalog(folder, catalog)
    assert read_catalog(folder) == catalog
    for word in ("true", 1, None):
        data["data_sets"]["skin"]["public"] = word
        with pytest.raises(CatalogError) as caught:
            read_catalog(written(folder, data))
        assert caught.value.code == "FF-CAT-VALUE"
