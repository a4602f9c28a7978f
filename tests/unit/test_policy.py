# SPDX-License-Identifier: Apache-2.0
"""A hospital's policy: read strictly, never looser than it says, and never where FLARE erases it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from fairflare import presets, schema
from fairflare.cli import app
from fairflare.errors import PolicyError
from fairflare.plan import Plan, parse_plan
from fairflare.policy import (
    POLICY_NAME,
    SitePolicy,
    open_policy,
    read_policy,
    standard_policy,
    write_policy,
)
from fairflare.secagg.identity import development_identity

STORE = Path("/var/lib/fairflare")


def plan(**changes: Any) -> Plan:
    data = json.loads(schema.pretty(presets.shipped("heart_flexfair")))
    for path, value in changes.items():
        section, _, field = path.rpartition("__")
        target = data
        for part in section.split("__") if section else ():
            target = target[part]
        target[field] = value
    return parse_plan(json.dumps(data))


def standard() -> SitePolicy:
    """The standard policy of a site that does not list plans."""
    return standard_policy(STORE).model_copy(update={"plans": None})


def test_an_open_policy_takes_every_shipped_plan() -> None:
    for name in presets.JOBS:
        open_policy(STORE).verify(presets.shipped(name))


def test_the_standard_policy_takes_a_plan_that_holds_small_cells_back() -> None:
    standard().verify(plan(cells={"minimum": 11, "sites": 3}))


def test_the_standard_policy_takes_no_plan_that_was_not_approved() -> None:
    wanted = plan(cells={"minimum": 11, "sites": 3})
    found = list(standard_policy(STORE).check(wanted))
    assert found == [f"plans: got {wanted.sha256}, expected one of the 0 that this site has approved"]
    standard_policy(STORE).model_copy(update={"plans": (wanted.sha256,)}).verify(wanted)


def test_a_consent_of_the_plan_must_be_the_sites_as_well() -> None:
    wanted = presets.shipped("fundus_flexfair")
    policy = open_policy(STORE)
    policy.verify(wanted)
    found = list(policy.model_copy(update={"consents": ()}).check(wanted))
    assert found == ["consents: got 'pair_sums_of_three_hospitals', expected none"]


WEAKER = {
    "no masks": (
        {"protection": presets.UNPROTECTED, "cells": {"minimum": 11, "sites": 3}},
        "protection: got 'none', expected 'masked'",
    ),
    "small cells": ({"cells": {"minimum": 10, "sites": 3}}, "cells.minimum: got 10, expected at least 11"),
    "cells of two sites": ({"cells": {"minimum": 11, "sites": 2}}, "cells.sites: got 2, expected at least 3"),
    "nobody may collude": (
        {"cells": {"minimum": 11, "sites": 3}, "protection__masking__colluders": 0},
        "protection.masking.colluders: got 0, expected at least 1",
    ),
    "exact weights": (
        {"cells": {"minimum": 11, "sites": 3}, "protection__masking__weight_unit": 1},
        "protection.masking.weight_unit: got 1, expected at least 10",
    ),
}


@pytest.mark.parametrize(("changes", "found"), WEAKER.values(), ids=WEAKER)
def test_a_weaker_plan_is_refused_by_what_is_weak(changes: dict[str, Any], found: str) -> None:
    assert list(standard().check(plan(**changes))) == [found]
    with pytest.raises(PolicyError, match="FF-POLICY-REFUSED"):
        standard().verify(plan(**changes))


def test_fewer_sites_than_the_policy_wants_are_refused() -> None:
    policy = open_policy(STORE).model_copy(update={"least_sites": 4})
    assert list(policy.check(plan())) == ["federation.min_sites: got 3, expected at least 4"]


def test_a_policy_is_what_was_written(tmp_path: Path) -> None:
    policy = standard_policy(STORE).model_copy(update={"peers": {"north": "ab" * 32}})
    write_policy(tmp_path, policy)
    assert read_policy(tmp_path) == policy == read_policy(tmp_path / POLICY_NAME)


BROKEN = {
    "a relative store": ({"store": "data"}, "FF-POLICY-RULE"),
    "nobody as a peer": ({"peers": {}}, "FF-POLICY-RULE"),
    "a plan that is no hash": ({"plans": ["heart"]}, "FF-POLICY-VALUE"),
    "an unknown consent": ({"consents": ["everything"]}, "FF-POLICY-VALUE"),
    "a short key": ({"peers": {"north": "ab"}}, "FF-POLICY-VALUE"),
    "a site that is a path": ({"peers": {"../north": "ab" * 32}}, "FF-POLICY-RULE"),
    "another word": ({"protection": "secret"}, "FF-POLICY-VALUE"),
    "a negative number": ({"cohort_changes": -1}, "FF-POLICY-VALUE"),
    "an unknown key": ({"cohort_change": 1}, "FF-POLICY-UNKNOWN-KEY"),
}


@pytest.mark.parametrize(("changes", "code"), BROKEN.values(), ids=BROKEN)
def test_a_broken_policy_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    data = {**json.loads(schema.pretty(standard_policy(STORE))), **changes}
    (tmp_path / POLICY_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        read_policy(tmp_path)
    assert caught.value.code == code


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    data = json.loads(schema.pretty(standard_policy(STORE)))
    del data["cohort_changes"]
    (tmp_path / POLICY_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PolicyError, match="FF-POLICY-MISSING-KEY"):
        read_policy(tmp_path)


def test_the_memory_lies_outside_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "workspace")
    outside = open_policy(tmp_path / "store").memory_file("north", "heart", tmp_path / "workspace")
    assert outside == tmp_path / "store" / "north" / "heart" / "reveals.sqlite"
    one = open_policy(tmp_path / "store").memory_file(None, "heart", tmp_path / "workspace")
    assert one == tmp_path / "store" / "heart" / "reveals.sqlite"
    for inside in ("workspace", "workspace/store", "link/store"):
        with pytest.raises(PolicyError, match="FF-POLICY-STORE"):
            open_policy(tmp_path / inside).memory_file("north", "heart", tmp_path / "workspace")


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["policy", *map(str, arguments)])
    return result.exit_code, result.output if result.exception is None else str(result.exception) + result.output


def test_the_command_writes_once_and_checks(tmp_path: Path) -> None:
    assert run("new", "--store", tmp_path / "store", "--to", tmp_path)[0] == 0
    assert read_policy(tmp_path) == standard_policy(tmp_path / "store")
    assert "FF-POLICY-EXISTS" in run("new", "--store", tmp_path / "store", "--to", tmp_path)[1]
    status, text = run("check", tmp_path, "jobs/heart_flexfair")
    assert (status, "cells.minimum: got 0, expected at least 11" in text) == (1, True)


def test_an_open_policy_is_one_for_simulations(tmp_path: Path) -> None:
    run("new", "--template", "open", "--store", tmp_path / "store", "--to", tmp_path)
    assert read_policy(tmp_path) == open_policy(tmp_path / "store")
    assert run("check", tmp_path, "jobs/heart_flexfair") == (0, "the plan is within the policy\n")


def test_the_hash_of_a_key_is_what_peers_compare(tmp_path: Path) -> None:
    identity = development_identity("north")
    certificate = x509.load_der_x509_certificate(identity.certificate)
    (tmp_path / "client.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    assert run("key", tmp_path / "client.crt") == (0, identity.spki.hex() + "\n")
    (tmp_path / "client.crt").write_text("no certificate", encoding="utf-8")
    assert "FF-SECAGG-CERTIFICATE" in run("key", tmp_path / "client.crt")[1]


def test_the_schema_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        standard_policy(STORE).store = "/"  # type: ignore[misc]
    assert SitePolicy.model_config["extra"] == "forbid"
