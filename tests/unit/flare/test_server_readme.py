# SPDX-License-Identifier: Apache-2.0
"""The manual of the server's operator says what the code does: fields, values, codes, commands."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from fairflare.cli import app
from fairflare.flare.limits_file import STANDARD, Limits

ROOT = Path(__file__).resolve().parents[3]
MANUAL = (ROOT / "provision" / "server" / "README.md").read_text(encoding="utf-8")
SOURCES = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "custom").rglob("*.py"))
UNITS = {"GiB": 1024**3, "": 1}


def test_every_field_of_the_limits_is_there_with_its_value() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) ?(GiB)? \|$", MANUAL, flags=re.MULTILINE)
    told = {name: int(value.replace(",", "")) * UNITS[unit] for name, value, unit in rows}
    assert told == {name: getattr(STANDARD, name) for name in Limits.model_fields if name != "format"}


def test_every_code_is_one_of_the_code() -> None:
    codes = set(re.findall(r"`(FF-[A-Z-]+)`", MANUAL))
    assert len(codes) > 8
    for code in codes:
        head, _, tail = code.rpartition("-")
        made = head == "FF-SERVER" and tail == "VALUE"  # the reader of JSON files puts it together
        assert made or code in SOURCES, code


def test_every_limit_and_every_word_of_the_server_is_explained() -> None:
    made = set(re.findall(r'"(FF-(?:LIMIT|SERVER)-[A-Z]+)', SOURCES)) - {"FF-LIMIT-INTERNAL"}
    assert made - set(re.findall(r"FF-[A-Z-]+", MANUAL)) == set()


def test_every_command_is_one() -> None:
    commands = set(re.findall(r"^fairflare (server \w+) KIT", MANUAL, flags=re.MULTILINE))
    assert commands == {"server health", "server resume"}
    for command in commands:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0


def test_it_is_found_from_the_other_manuals() -> None:
    assert "provision/server/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "server/README.md" in (ROOT / "provision" / "README.md").read_text(encoding="utf-8")
