# SPDX-License-Identifier: Apache-2.0
"""What must last lies where FLARE does not erase it, and where nobody else can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairflare.errors import PolicyError
from fairflare.policy import open_policy


def test_the_memory_lies_outside_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "workspace")
    outside = open_policy(tmp_path / "store").memory_file("north", "heart", tmp_path / "workspace")
    assert outside == tmp_path / "store" / "north" / "heart" / "reveals.sqlite"
    one = open_policy(tmp_path / "store").memory_file(None, "heart", tmp_path / "workspace")
    assert one == tmp_path / "store" / "heart" / "reveals.sqlite"
    for inside in ("workspace", "workspace/store", "link/store"):
        policy = open_policy(tmp_path / inside)
        with pytest.raises(PolicyError, match="FF-POLICY-STORE"):
            policy.memory_file("north", "heart", tmp_path / "workspace")
        with pytest.raises(PolicyError, match="FF-POLICY-STORE"):
            policy.decisions_file("north", tmp_path / "workspace")


def test_decisions_lie_beside_the_memory(tmp_path: Path) -> None:
    policy = open_policy(tmp_path / "store")
    assert policy.decisions_file(None, tmp_path / "workspace") == tmp_path / "store" / "decisions.jsonl"
    assert policy.decisions_file("north", None) == tmp_path / "store" / "north" / "decisions.jsonl"


def test_a_store_that_is_a_link_into_the_workspace_is_in_it(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "kept").mkdir(parents=True)
    (tmp_path / "store").symlink_to(workspace / "kept")
    with pytest.raises(PolicyError, match="inside FLARE's workspace"):
        open_policy(tmp_path / "store").decisions_file(None, workspace)


def test_a_workspace_that_is_a_link_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "workspace").symlink_to(tmp_path / "disk")
    with pytest.raises(PolicyError, match="inside FLARE's workspace"):
        open_policy(tmp_path / "disk" / "store").decisions_file(None, tmp_path / "workspace")


def test_a_store_that_is_a_link_elsewhere_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    file = open_policy(tmp_path / "store").decisions_file(None, tmp_path / "workspace")
    assert file == tmp_path / "disk" / "decisions.jsonl"


@pytest.mark.parametrize("below", ["north", "north/heart"])
def test_a_folder_in_the_store_is_no_link(tmp_path: Path, below: str) -> None:
    link = tmp_path / "store" / below
    link.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="a link to somewhere else"):
        open_policy(tmp_path / "store").memory_file("north", "heart", tmp_path / "workspace")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("below", ["", "north", "north/heart"])
def test_nobody_else_can_write_to_the_store(tmp_path: Path, below: str, mode: int) -> None:
    folder = tmp_path / "store" / below
    folder.mkdir(parents=True, mode=0o700)
    policy = open_policy(tmp_path / "store")
    policy.memory_file("north", "heart", tmp_path / "workspace")
    folder.chmod(mode)
    with pytest.raises(PolicyError, match="other users of this machine"):
        policy.memory_file("north", "heart", tmp_path / "workspace")


@pytest.mark.parametrize(("mode", "is_safe"), [(0o777, False), (0o1777, True), (0o775, True), (0o755, True)])
def test_nobody_can_put_another_folder_in_its_place(tmp_path: Path, mode: int, is_safe: bool) -> None:
    (tmp_path / "above" / "store").mkdir(parents=True)
    (tmp_path / "above").chmod(mode)
    policy = open_policy(tmp_path / "above" / "store")
    if is_safe:
        policy.decisions_file(None, tmp_path / "workspace")
        return
    with pytest.raises(PolicyError, match="other users of this machine"):
        policy.decisions_file(None, tmp_path / "workspace")


def test_no_message_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret_name").mkdir()
    os.chmod(tmp_path / "secret_name", 0o777)  # noqa: S103 - the defect under test
    with pytest.raises(PolicyError) as caught:
        open_policy(tmp_path / "secret_name").decisions_file(None, tmp_path / "workspace")
    assert "secret_name" not in str(caught.value)
