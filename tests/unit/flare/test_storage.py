# SPDX-License-Identifier: Apache-2.0
"""The server's store lies in its own kit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nvflare.apis.storage import StorageException

from fairflare.flare.storage import KitStorage


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FLARE's processes work in the kit's folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_relative_folder_is_one_of_the_kit(kit: Path) -> None:
    store = KitStorage("store/jobs")
    store.create_object("/one", b"data", {"a": 1})
    assert (kit / "store" / "jobs" / "one" / "data").read_bytes() == b"data"
    assert store.list_objects("/") == ["/one"]
    assert store.get_meta("/one") == {"a": 1}


def test_it_stays_where_it_was_made(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KitStorage("store")
    monkeypatch.chdir(os.sep)
    store.create_object("/one", b"data", {})
    assert (kit / "store" / "one").is_dir()


def test_its_folder_is_for_its_owner_only(kit: Path) -> None:
    KitStorage("store")
    assert (kit / "store").stat().st_mode & 0o077 == 0


def test_a_folder_that_is_not_there_yet_holds_nothing(kit: Path) -> None:
    # `nvflare poc prepare` names another folder for jobs, and FLARE lists it before there is any.
    assert KitStorage(".").list_objects("/elsewhere/jobs") == []


def test_a_name_that_leads_out_of_the_store_is_refused(kit: Path) -> None:
    (kit / "store").mkdir()
    (kit / "store" / "out").symlink_to(kit)
    with pytest.raises(StorageException, match="escapes"):
        KitStorage("store").list_objects("/out")
