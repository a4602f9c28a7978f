# SPDX-License-Identifier: Apache-2.0
"""Reading evidence: links are not followed out of a folder, nothing is too large, nothing hostile is repeated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare.audit import folder as module
from fairflare.audit.folder import Folder, Problem, plain_name, shown


def text(found: object) -> str:
    assert isinstance(found, Problem)
    return found.text


def test_a_file_is_read_once_and_its_digest_is_of_what_was_judged(tmp_path):
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    folder = Folder(tmp_path)
    assert folder.json("a.json") == {}
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8")
    assert folder.json("a.json") == {}
    assert folder.digests == {"a.json": ("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", 2)}


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "loop"])
def test_a_link_out_of_the_folder_is_a_problem(tmp_path, target):
    (tmp_path / "outside").write_text("secret", encoding="utf-8")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(target)
    folder = Folder(tmp_path / "in")
    assert isinstance(folder.content("loop"), Problem)
    assert [name for name, _ in folder.problems] == ["loop"]


def test_a_folder_behind_a_link_is_neither_listed_nor_read(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a").write_text("secret", encoding="utf-8")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "way").symlink_to(tmp_path / "outside")
    folder = Folder(tmp_path / "in")
    assert list(folder.entries) == ["way"]
    assert text(folder.content("way/a")) == "is a link that leads out of the folder"
    assert text(folder.content("../outside/a")) == "is a link that leads out of the folder"


def test_a_link_inside_is_read(tmp_path):
    (tmp_path / "a").write_text("x", encoding="utf-8")
    (tmp_path / "b").symlink_to("a")
    assert Folder(tmp_path).content("b") == b"x"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    folder = Folder(tmp_path)
    assert text(folder.content("pipe")) == "is no file"
    assert [(name, problem.text) for name, problem in folder.problems] == [("pipe", "is neither a file nor a folder")]


def test_nothing_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    monkeypatch.setattr(module, "MOST_BYTES_IN_ALL", 25)
    for name in "abcd":
        (tmp_path / name).write_text("x" * 10, encoding="utf-8")
    (tmp_path / "huge").write_text("x" * 11, encoding="utf-8")
    folder = Folder(tmp_path)
    assert text(folder.content("huge")) == "has more than 10 bytes"
    assert folder.content("a") == b"x" * 10
    assert isinstance(folder.content("b"), bytes)
    assert text(folder.content("c")) == "was not read: there is too much beside it"


def test_nothing_is_too_deep_or_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_DEPTH", 2)
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    folder = Folder(tmp_path)
    assert list(folder.entries) == ["a", "a/b", "a/b/c"]
    assert [problem.text for _, problem in folder.problems] == ["is more than 2 folders deep; the rest is unseen"]
    monkeypatch.setattr(module, "MOST_ENTRIES", 1)
    assert len(Folder(tmp_path).entries) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff", "is no UTF-8 text"),
        (b"{", "is no JSON that every reader understands alike (line 1)"),
        (b'{"a": 1, "a": 2}', "is no JSON that every reader understands alike"),
        (b"[" * 100_000, "is no JSON that every reader understands alike"),
        (b"\xef\xbb\xbf{}", "is no JSON that every reader understands alike (line 1)"),
    ],
)
def test_broken_json_is_a_problem(tmp_path, data, problem):
    (tmp_path / "a.json").write_bytes(data)
    assert text(Folder(tmp_path).json("a.json")) == problem


def test_what_is_absent_says_so(tmp_path):
    folder = Folder(tmp_path)
    assert folder.json("a.json") == Problem("is not there", absent=True)
    assert list(folder.problems) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_is_a_problem(tmp_path):
    (tmp_path / "a").mkdir(mode=0)
    assert [problem.text for _, problem in Folder(tmp_path).problems] == ["cannot be listed (PermissionError)"]


@given(st.text())
def test_names_and_values_are_shown_without_orders_to_a_terminal(value):
    for found in (plain_name(value), shown(value)):
        assert found.isascii()
        assert found.isprintable()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "null"), (True, "true"), (3, "3"), (0.5, "0.5"), (10**30, "a huge number"), ("any", "'any'"),
        ("/home/ada/data", "a text of 14 characters"), ("\x1b[31m", "a text of 5 characters"), ([1], "a list of 1"),
        ({"a": 1}, "an object of 1 keys"), (b"x", "something else"),
    ],
)  # fmt: skip
def test_values_are_shown_if_they_are_plain(value, wanted):
    assert shown(value) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("app/config/plan.json", "app/config/plan.json"), ("../x", "?/x"), ("a/\x1b[2J", "a/?"), (".hidden", ".hidden")],
)
def test_names_are_shown_if_they_are_plain(name, wanted):
    assert plain_name(name) == wanted


def test_a_name_that_is_no_text_is_listed(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_text("x", encoding="utf-8")
    folder = Folder(tmp_path)
    assert [plain_name(name) for name in folder.entries] == ["?"]
