# SPDX-License-Identifier: Apache-2.0
"""Contexts on a disk: what is found in them without TenSEAL, and which folders are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairflare import schema
from fairflare.errors import HeError
from fairflare.he.context import fields, holds_secret, parse_context, read_client, read_server
from fairflare.he.parameters import (
    CLIENT_CONTEXT,
    FLARE,
    MOST_BITS,
    RECORD_NAME,
    SERVER_CONTEXT,
    SMALL,
    Parameters,
    Record,
    nominal,
    parameters_for,
    read_record,
)
from tests.unit.he.contexts import contexts


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(HeError) as caught:
        yield
    assert caught.value.code == f"FF-HE-{code}", caught.value


def hospital(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made = contexts(SMALL)
    _write(folder / CLIENT_CONTEXT, made.client, 0o600)
    (folder / RECORD_NAME).write_text(schema.pretty(made.record), encoding="utf-8")
    return folder


def server(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made = contexts(SMALL)
    _write(folder / SERVER_CONTEXT, made.server, 0o644)
    (folder / RECORD_NAME).write_text(schema.pretty(made.record), encoding="utf-8")
    return folder


def _write(file: Path, data: bytes, mode: int) -> None:
    file.write_bytes(data)
    file.chmod(mode)


# -------------------------------------------------------------------------------------------------------- what is in it


def test_a_secret_key_is_found_without_tenseal() -> None:
    made = contexts(SMALL)
    assert holds_secret(made.client)
    assert not holds_secret(made.server)
    form = parse_context(made.client)
    assert (form.scale, form.symmetric) == (2.0**30, True)
    assert form.parameters == parse_context(made.server).parameters


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"no context", bytes(100)], ids=["empty", "ones", "text", "zeros"])
def test_what_is_no_context_is_refused(data: bytes) -> None:
    with refused("CONTEXT"):
        parse_context(data)


def test_a_context_with_more_than_contexts_have_is_refused() -> None:
    made = contexts(SMALL)
    for more in (b"\x28\x01", made.server, made.client[-2:]):
        with refused("CONTEXT"):
            parse_context(made.client + more)


def test_a_secret_that_hides_behind_the_public_part_is_found() -> None:
    """Whatever the order of the fields."""
    made = contexts(SMALL)
    secret = made.client[len(made.server) - 2 :]  # private part, kind
    assert holds_secret(secret[:-2] + made.server)


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        list(fields(data))


# -------------------------------------------------------------------------------------------------------------- folders


def test_the_files_of_a_hospital_and_of_the_server(tmp_path: Path) -> None:
    made = contexts(SMALL)
    assert read_client(tmp_path / "none", hospital(tmp_path / "startup")).context == made.client
    found = read_server(server(tmp_path / "server"), simulated=False)
    assert (found.context, found.record) == (made.server, made.record)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    (hospital(tmp_path) / CLIENT_CONTEXT).chmod(mode)
    with refused("MODE"):
        read_client(tmp_path)


def test_a_link_is_refused_as_a_key_file(tmp_path: Path) -> None:
    folder = hospital(tmp_path / "a")
    os.rename(folder / CLIENT_CONTEXT, tmp_path / "elsewhere")
    (folder / CLIENT_CONTEXT).symlink_to(tmp_path / "elsewhere")
    with refused("MODE"):
        read_client(folder)


def test_no_context_and_two_contexts_are_refused(tmp_path: Path) -> None:
    with refused("NONE"):
        read_client(tmp_path)
    with refused("NONE"):
        read_server(tmp_path, simulated=False)
    with refused("TWO"):
        read_client(hospital(tmp_path / "startup"), hospital(tmp_path / "local"))


def test_a_context_without_its_record_is_refused(tmp_path: Path) -> None:
    (hospital(tmp_path) / RECORD_NAME).unlink()
    with refused("RECORD"):
        read_client(tmp_path)


def test_a_secret_key_at_the_server_is_refused_under_either_name(tmp_path: Path) -> None:
    folder = server(tmp_path / "a")
    _write(folder / SERVER_CONTEXT, contexts(SMALL).client, 0o600)
    with refused("SECRET"):
        read_server(folder, simulated=False)
    folder = hospital(server(tmp_path / "b"))
    with refused("SECRET"):
        read_server(folder, simulated=False)
    assert read_server(folder, simulated=True).record == contexts(SMALL).record
    with refused("SECRET"):
        read_server(server(tmp_path / "c"), hospital(tmp_path / "d"), simulated=False)


# ----------------------------------------------------------------------------------------------------------- parameters


def test_the_security_table_is_that_of_the_standard() -> None:
    assert MOST_BITS == {4096: 109, 8192: 218, 16384: 438}


@pytest.mark.parametrize(
    ("degree", "bits"), [(4096, (55, 55)), (8192, (60, 60, 60, 39)), (4096, (60, 49, 30))], ids=str
)
def test_parameters_below_128_bits_are_refused(degree: int, bits: tuple[int, ...], tmp_path: Path) -> None:
    data = schema.pretty(nominal(3)).replace("4096", str(degree)).replace("54,\n      54", ",\n".join(map(str, bits)))
    (tmp_path / RECORD_NAME).write_text(data, encoding="utf-8")
    with pytest.raises(HeError, match="128-bit"):
        read_record(tmp_path / RECORD_NAME)


@pytest.mark.parametrize(("parameters", "most"), [(SMALL, 63), (FLARE, 4_000_000)])
def test_room_ends_where_a_quarter_of_the_modulus_does(parameters: Parameters, most: int) -> None:
    assert parameters.has_room(most)
    assert not parameters.has_room(parameters.least_modulus // (4 << (16 + parameters.scale_bits)) + 1)


def test_small_parameters_are_chosen_while_they_have_room() -> None:
    assert [parameters_for(sites) for sites in (3, 63, 64, 1000)] == [SMALL, SMALL, FLARE, FLARE]


def test_every_part_of_a_record_is_in_its_fingerprint() -> None:
    record = contexts(SMALL).record
    others = (
        Record(format=record.format, parameters=FLARE, context_sha256=record.context_sha256),
        Record(format=record.format, parameters=record.parameters, context_sha256="0" * 64),
    )
    assert len({record.fingerprint, *(one.fingerprint for one in others)}) == 3
